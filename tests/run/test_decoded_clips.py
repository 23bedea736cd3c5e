"""Clips made by a decoder process: those of `ClipReader`, in slots that are free again when nobody views them."""

import gc
import mmap
import os
import pickle
import resource
import signal
import time
import traceback
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from disks import file_size_limit
from videos import damage, draw_index, write_video

from vid3d_cli import make_plan
from vid3d_cli.errors import (
    DecoderDied,
    DecoderFailed,
    DecoderHangs,
    FlowFilesError,
    NoFrames,
    OutOfMemory,
    TooLarge,
    VideoNotFound,
)
from vid3d_cli.run import local
from vid3d_cli.run.reader import ClipReader, ClipsRequest, DecodedClips, open_clips
from vid3d_cli.video import child, process
from vid3d_cli.video.process import Decoders
from vid3d_cli.video.slots import Layout, Slots, create_file
from vid3d_cli.workers import Workers

linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """60 frames at 25 fps."""
    return str(write_video(tmp_path_factory.mktemp("clips") / "video.mp4", num_frames=60))


def plan_of(*, window=8, stride=None, resize_px=40, crop_px=32, **options):
    """A plan with small frames; any window works, since no network runs."""
    plan = make_plan(**{"model": "i3d", "fps": "native"} | options)
    small = {"resize_px": resize_px, "crop_px": crop_px, "window": window, "stride": stride or window}
    return plan if plan.dense else replace(plan, **small)


def read_all(clips):
    """Everything that a reader says, or its error."""
    try:
        with clips() as reader:
            return reader.num_expected_clips, list(reader), reader.summary()
    except Exception as error:
        return type(error), str(error)


# The same as in this process -----------------------------------------------------------------------------------------

PLANS = {
    "both": {},
    "overlapping": {"window": 8, "stride": 3},
    "gaps": {"window": 8, "stride": 11, "streams": "rgb"},
    "three crops": {"crops": 3},
    "ten crops": {"crops": 10, "streams": "flow"},
    "a list of crops": {"crops": "brm,tl", "interpolation": "lanczos"},
    "flow of the source": {"flow_size": "source", "interpolation": "bilinear"},
    "whole frames": {"resize_only": True},
    "loop": {"tail": "loop", "window": 9},
    "drop": {"tail": "drop", "window": 9},
    "faster": {"fps": 60},
    "slower": {"fps": 7.5},
    "a span": {"start_seconds": 0.3, "end_seconds": 1.1},
    "after the end": {"start_seconds": 30},
    "quantised": {"quantise_flow": True, "stride": 5},
    "longer than the video": {"window": 100},
    "farneback": {"flow": "farneback", "streams": "flow"},
}


@pytest.mark.parametrize("name", PLANS)
def test_clips_are_those_of_this_process(pool, video, name):
    plan = plan_of(**PLANS[name])
    with Workers(2) as workers:
        found = read_all(lambda: open_clips(plan, video, workers, pool))
    assert found == read_all(lambda: ClipReader(plan, video))


def test_stretches_of_a_dense_run_are_those_of_this_process(pool, tmp_path):
    plan = plan_of(model="s3d_mini", dense=True, stride=8)
    for num_frames in (9, 300, 20):  # a short stretch, long ones, and a short one in slots that are larger
        path = str(write_video(tmp_path / f"{num_frames}.mp4", num_frames=num_frames))
        found = read_all(lambda path=path: open_clips(plan, path, None, pool))
        assert found == read_all(lambda path=path: ClipReader(plan, path))
        assert found[2].windows


def test_a_header_may_give_no_length(pool, tmp_path):
    path = tmp_path / "raw.m4v"
    with av.open(str(path), "w", format="m4v") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=48)
        for index in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_index(index))))
        container.mux(stream.encode())
    for window, num_clips in ((20, 1), (4, 5)):
        plan = plan_of(window=window, streams="rgb")
        found = read_all(lambda plan=plan: open_clips(plan, str(path), None, pool))
        assert found == read_all(lambda plan=plan: ClipReader(plan, str(path)))
        assert (found[0], len(found[1])) == (None, num_clips)


def test_an_unexpected_error_comes_with_its_traceback(pool, video):
    with pytest.raises(DecoderFailed, match="reading it ended with AttributeError: ") as caught:
        pool.ask(ClipsRequest("no plan", video, 0)).finish()
    assert "run/reader.py" in "".join(traceback.format_exception(caught.value))


def test_an_error_that_does_not_pickle_is_sent_as_text():
    error = NoFrames("a.mp4", "nothing in it")
    error.trouble = lambda: None
    sent = pickle.loads(pickle.dumps(child._explain("a.mp4", error)))
    assert isinstance(sent, DecoderFailed)
    assert "NoFrames: a.mp4: nothing in it" in str(sent)


@pytest.mark.parametrize(("num_cores", "num_threads"), [(0, 0), (2, 2), (16, 4)])
def test_a_process_has_a_few_threads(num_cores, num_threads):
    class Asked(Decoders):
        def ask(self, request):
            assert request.num_threads == num_threads
            return iter([None])

    with Workers(num_cores) as workers:
        open_clips(plan_of(), "a.mp4", workers, Asked())


def test_flow_computed_here_has_all_cores(monkeypatch):
    class Stop(Exception):
        pass

    def workers(num_threads, spent):
        assert num_threads == 16
        raise Stop

    monkeypatch.setattr(local, "count_cores", lambda: 16)
    monkeypatch.setattr(local, "Workers", workers)
    with pytest.raises(Stop):
        local.run(plan_of(), ["a.mp4"])


def test_flow_files_are_read_in_the_process(pool, video, tmp_path, vid3d):
    assert vid3d("flow", video, "--out", "flow.npz").exit_code == 0
    for method in ("dis", "tvl1"):  # which would compute it here
        plan = plan_of(flow_files=tmp_path / "flow.npz", flow=method)
        assert isinstance(clips := open_clips(plan, video, None, pool), DecodedClips)
        assert read_all(lambda clips=clips: clips) == read_all(lambda plan=plan: ClipReader(plan, video))
    error, text = read_all(lambda: open_clips(replace(plan, fps=12), video, None, pool))
    assert error is FlowFilesError
    assert (error, text) == read_all(lambda: ClipReader(replace(plan, fps=12), video))


def test_flow_of_a_gpu_method_is_computed_here(pool, video):
    with open_clips(plan_of(flow="tvl1"), video, None, pool) as clips:
        assert isinstance(clips, ClipReader)
        assert clips.frames.info.height == 48
    assert isinstance(open_clips(plan_of(), video), ClipReader)


def test_what_fails_a_video_is_the_same(pool, tmp_path):
    damaged = damage(write_video(tmp_path / "damaged.mp4", num_frames=40, num_b_frames=0), [13, 14, 30])
    wide = str(write_video(tmp_path / "wide.mp4", num_frames=2, width=4000, height=16, codec="mpeg4"))
    (tmp_path / "text.mp4").write_text("no video")
    cases = {
        "absent.mp4": (plan_of(), VideoNotFound),
        str(tmp_path / "text.mp4"): (plan_of(), None),
        wide: (plan_of(resize_px=2000), TooLarge),
        str(damaged): (plan_of(), None),
    }
    for path, (plan, error) in cases.items():
        found = read_all(lambda plan=plan, path=path: open_clips(plan, path, None, pool))
        assert found == read_all(lambda plan=plan, path=path: ClipReader(plan, path))
        assert error in (None, found[0])
    assert found[2].num_lost_frames == 3
    assert read_all(lambda: open_clips(plan_of(start_seconds=99), str(damaged), None, pool))[0] is NoFrames


def test_times_of_stages_arrive(pool, video):
    with Workers(1) as workers, open_clips(plan_of(window=7, tail="drop"), video, workers, pool) as clips:
        next(clips)
        early = workers.spent.take()
        list(clips)
    late = workers.spent.take()
    for stage in ("decode", "resize", "flow"):
        assert early[stage] > 0
        assert late[stage] > 0
    assert clips.summary().num_frames == 60


# Slots ---------------------------------------------------------------------------------------------------------------


def slots_of(clips):
    return clips._answers._decoder.slots


@pytest.mark.parametrize("num_kept", [0, 1, 5, 100])
def test_clips_can_be_kept(pool, video, num_kept):
    plan = plan_of(window=4, streams="rgb")
    expected = [clip.streams["rgb"].copy() for clip in ClipReader(plan, video)]
    with Workers(2) as workers:
        for _ in range(3):  # a process is reused, and its slots that are free
            with open_clips(plan, video, workers, pool) as clips:
                kept = []
                for clip, right in zip(clips, expected, strict=True):
                    np.testing.assert_array_equal(clip.streams["rgb"], right)
                    kept = [*kept, clip][-num_kept:] if num_kept else []
                    del clip
            for clip in kept:
                np.testing.assert_array_equal(clip.streams["rgb"], expected[clip.span.index])


def test_a_slot_is_not_filled_again_while_any_view_is_left(pool, video):
    with open_clips(plan_of(window=4), video, None, pool) as clips:
        views = [memoryview(clip.streams["flow"][1:, ::2].transpose(3, 0, 1, 2)) for clip in (next(clips), next(clips))]
        before = [np.array(view) for view in views]
        memory = np.frombuffer(slots_of(clips).memory, np.uint8)
        for clip in clips:
            assert all(np.may_share_memory(array, memory) for array in clip.streams.values())
        for view, copy in zip(views, before, strict=True):
            np.testing.assert_array_equal(view, copy)


@pytest.mark.exhaustive
def test_slots_that_are_not_needed_take_no_memory(video):
    with Decoders(30) as decoders:
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            for clip in clips:
                del clip
                slots = slots_of(clips)
        starts = range(4096, len(slots.memory), slots.layout.slot_bytes)
        used = [any(slots.memory[start : start + 4096]) for start in starts]
        assert len(used) > 20
        assert used.count(True) <= 3


def test_clips_that_have_no_slot_left_are_copies(video):
    with Decoders(30) as decoders:
        with open_clips(plan_of(window=64, streams="rgb", resize_px=32), video, None, decoders) as clips:
            next(clips)
            slots = slots_of(clips)
        for slot in range(slots.layout.num_slots):
            slots._mark(slot, b"\1")  # as if filled
        held = [slots.borrow(slot) for slot in range(slots.layout.num_slots)]
        memory = np.frombuffer(slots.memory, np.uint8)
        assert [np.may_share_memory(flat, memory) for flat in held] == [True] * (len(held) - 1) + [False]
        assert slots._count(b"\0") == 1
        held.clear()
        assert slots._count(b"\0") == slots.layout.num_slots


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="memory is returned on Linux only")
def test_slots_that_are_free_again_take_no_memory():
    with open(create_file(), "r+b") as file:  # noqa: PTH123
        slots = Slots(file.fileno(), Layout(8, 4096))
    lent = []
    for slot in range(6):
        slots._view(slot)[:] = 1
        slots.mark_filled(slot)
        lent.append(slots.borrow(slot))
    before = lent[5].copy()
    del lent[:5]
    assert [bool(slots._view(slot).any()) for slot in range(8)] == [True] * 3 + [False] * 2 + [True] + [False] * 2
    slots.reset()
    assert [bool(slots._view(slot).any()) for slot in range(8)] == [False] * 5 + [True] + [False] * 2
    np.testing.assert_array_equal(lent[0], before)


def test_memory_that_cannot_be_shared_is_told(video):
    told = pytest.raises(OutOfMemory, match=r"than a limit allows .*raise the limit")
    with Decoders(30) as decoders, file_size_limit(1000), told:
        list(open_clips(plan_of(window=4), video, None, decoders))


def test_a_video_is_left_while_its_process_asks_for_memory(video, monkeypatch):
    monkeypatch.setattr(process, "STOP_SECONDS", 20)
    with Decoders(30) as decoders:
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            next(clips)
            pid = process_of(clips).pid
        with open_clips(plan_of(window=30), video, None, decoders) as clips:
            clips._answers._decoder._arrivals.poll(10_000)
            started = time.monotonic()
        assert time.monotonic() - started < 10
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            assert process_of(clips).pid == pid
            assert len(list(clips)) == 15


def test_arrays_start_where_their_numbers_may(pool, tmp_path):
    path = str(write_video(tmp_path / "odd.mp4", num_frames=5, width=70, height=50))
    with open_clips(plan_of(window=5, resize_px=33, crop_px=31), path, None, pool) as clips:
        (clip,) = clips
    assert clip.streams["rgb"].nbytes % 4
    assert all(array.flags.aligned and array.flags.c_contiguous for array in clip.streams.values())


# Processes -----------------------------------------------------------------------------------------------------------


def process_of(clips):
    return clips._answers._decoder.process


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_process_that_dies_fails_its_video(video, number):
    with Decoders(30) as decoders:
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            kept = next(clips)
            before = kept.streams["rgb"].copy()
            os.kill(process_of(clips).pid, number)
            with pytest.raises(DecoderDied):
                list(clips)
        np.testing.assert_array_equal(kept.streams["rgb"], before)
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            assert len(list(clips)) == 15


def test_a_process_that_hangs_fails_its_video(video):
    with Decoders(timeout=2) as decoders, open_clips(plan_of(window=4), video, None, decoders) as clips:
        next(clips)
        process_of(clips).send_signal(signal.SIGSTOP)
        with pytest.raises(DecoderHangs, match=r"made no progress for 2 s"):
            list(clips)


@linux_only
@pytest.mark.exhaustive
def test_a_process_without_memory_fails_its_video(tmp_path, video):
    large = str(write_video(tmp_path / "large.mp4", num_frames=9, width=1920, height=1080))
    with Decoders(30) as decoders:
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            next(clips)
            pid = process_of(clips).pid
        num_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (num_bytes + 2**25, num_bytes + 2**25))
        whole = plan_of(window=9, resize_only=True, resize_px=1080)
        with pytest.raises((OutOfMemory, DecoderDied)), open_clips(whole, large, None, decoders) as clips:
            list(clips)
        with open_clips(plan_of(window=4), video, None, decoders) as clips:
            assert len(list(clips)) == 15


@pytest.mark.exhaustive
def test_a_video_that_is_left_early_leaves_an_idle_process(video):
    plan = plan_of(window=4)
    with Decoders(30) as decoders:
        pids = set()
        for num_read in (1, 3, 0, 15):
            started = time.monotonic()
            with open_clips(plan, video, None, decoders) as clips:
                pids.add(process_of(clips).pid)
                kept = [next(clips) for _ in range(num_read)]
            assert time.monotonic() - started < 10
            assert [clip.span.index for clip in kept] == list(range(num_read))
        assert len(pids) <= 2  # one that is left before its first slot is killed


@linux_only
@pytest.mark.exhaustive
def test_no_process_or_file_is_left(video):
    gc.collect()
    files = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Decoders(30) as decoders:
        for window in (4, 9, 4, 16):  # larger slots are new memory
            with open_clips(plan_of(window=window), video, None, decoders) as clips:
                list(clips)
            del clips
    assert sorted(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
