"""Decoding in child processes: the frames of `VideoReader`, byte by byte; children that die or hang are replaced."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import damage, read_index, write_audio, write_video

from vid3d_cli.errors import (
    DecoderDied,
    DecoderFailed,
    DecoderHangs,
    EmptyFile,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    OutOfMemory,
    ResourceError,
    UsageError,
    VideoNotFound,
)
from vid3d_cli.options import Options
from vid3d_cli.run import local
from vid3d_cli.run.pipeline import Pipeline
from vid3d_cli.video import process as module
from vid3d_cli.video import reader as reader_module
from vid3d_cli.video.process import Decoders, probe
from vid3d_cli.video.reader import VideoReader

linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


@pytest.fixture(scope="module")
def pool():
    """Decoders for tests that do no harm to them."""
    with Decoders(timeout=30) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """60 frames at 25 fps: more than slots."""
    return str(write_video(tmp_path_factory.mktemp("decoders") / "video.mp4", num_frames=60))


def pid_of(frames):
    return frames._decoder.process.pid


# The same frames -----------------------------------------------------------------------------------------------------

VARIABLE = [0, 0.04, 0.1, 0.5, 0.52, 0.9, 1.4, 1.41, 2.0]


def damaged(path, **options):
    return damage(write_video(path, num_frames=40, num_b_frames=0, **options), [13, 14, 30])


VIDEOS = {
    "plain.mp4": lambda path: write_video(path, num_frames=60),
    "many.mp4": lambda path: write_video(path, num_frames=200, fps=30),
    "variable.mp4": lambda path: write_video(path, times_seconds=VARIABLE),
    "late.mp4": lambda path: write_video(path, times_seconds=[3 + i / 25 for i in range(20)]),
    "rotated.mp4": lambda path: write_video(path, num_frames=12, rotation_degrees=90, width=64, height=96),
    "mirrored.mp4": lambda path: write_video(path, num_frames=12, rotation_degrees=180, is_mirrored=True),
    "odd.webm": lambda path: write_video(path, num_frames=20, width=70, height=50),
    "counted.avi": lambda path: write_video(path, num_frames=30),
    "single.mp4": lambda path: write_video(path, num_frames=1),
    "long.mp4": lambda path: write_video(path, num_frames=90, fps=10),
    "damaged.mp4": damaged,
    "damaged.avi": damaged,
}
SPANS = [
    {},
    {"fps": Fraction(10)},
    {"fps": Fraction(60)},
    {"start_seconds": 0.3, "end_seconds": 1.1},
    {"start_seconds": 6.0, "fps": Fraction(30000, 1001)},
]


def everything(frames):
    """All that a reader tells: header, frames, and the counts after the last one; or its error."""
    try:
        with frames as reader:
            shown = [(frame.index, frame.seconds, frame.end_seconds, frame.rgb.copy()) for frame in reader]
        return reader.info, reader.num_expected_frames, reader.num_decode_failures, shown
    except NoFrames as error:
        return error.args


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("name", VIDEOS)
def test_nothing_differs_from_reading_in_this_process(pool, tmp_path, name, span):
    path = str(VIDEOS[name](tmp_path / name))
    expected = everything(VideoReader(path, **span))
    found = everything(pool.open(path, **span))
    assert found[:-1] == expected[:-1]
    if name.startswith("damaged") and not span:
        assert found[2] > 0
    if len(expected) == 2:
        assert found == expected
        return
    assert [frame[:-1] for frame in found[-1]] == [frame[:-1] for frame in expected[-1]]
    for one, other in zip(found[-1], expected[-1], strict=True):
        np.testing.assert_array_equal(one[-1], other[-1], strict=True)


def test_a_picture_that_is_shown_again_is_the_same_array(pool, video):
    with pool.open(video, fps=Fraction(100)) as frames:
        shown = [frame.rgb for frame in frames]
    assert len(shown) == 240
    for index in range(0, 240, 4):
        assert all(rgb is shown[index] for rgb in shown[index : index + 4])
    assert len({id(rgb) for rgb in shown}) == 60


def test_an_error_is_what_it_is_in_this_process(pool, tmp_path, video):
    empty, text, audio = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "audio.mp4"
    empty.write_bytes(b"")
    text.write_text("not a video\n" * 100)
    write_audio(audio)
    failing = [
        (EmptyFile, empty, {}),
        (NotAVideo, text, {}),
        (NoVideoStream, audio, {}),
        (VideoNotFound, tmp_path / "absent.mp4", {}),
        (UsageError, video, {"fps": Fraction(0)}),
        (NoFrames, video, {"start_seconds": 99}),
    ]
    for kind, path, span in failing:
        texts = []
        for open_video in (VideoReader, pool.open):
            with pytest.raises(kind) as caught, open_video(str(path), **span) as frames:
                next(iter(frames))
            assert caught.type is kind
            texts.append((caught.value.args, str(caught.value)))
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), OutOfMemory, "takes more memory than there is"),
        (av.error.MemoryError(12, "Cannot allocate memory"), OutOfMemory, "takes more memory than there is"),
        (RuntimeError("the decoder fell over"), DecoderFailed, "RuntimeError: the decoder fell over"),
        (OSError(24, "Too many open files"), ResourceError, "raise the limit"),
        (NoFrames("a.mp4", "nothing in it"), NoFrames, "nothing in it"),
    ],
)
def test_errors_that_are_not_ours_become_so(error, kind, text):
    assert type(module._explain("a.mp4", error)) is kind
    assert text in str(module._explain("a.mp4", error))
    if not isinstance(error, NoFrames):  # where our own reader has put it into its words
        wrapped = NotAVideo("a.mp4", "cannot be opened")
        wrapped.__cause__ = error
        assert type(module._explain("a.mp4", wrapped)) is (NotAVideo if kind is DecoderFailed else kind)


# Shared memory -------------------------------------------------------------------------------------------------------


def indices(pictures):
    return [read_index(rgb) for rgb in pictures]


def test_frames_may_be_kept(pool, video):
    with pool.open(video) as frames:
        kept = [frame.rgb for frame in frames]
    with pool.open(video) as frames:  # the same child
        for frame in frames:
            frame.rgb[:] = 0
    assert indices(kept) == list(range(60))


def test_a_view_keeps_its_picture(pool, video):
    """Its slot must not be filled anew while any view of it is left, however it was made."""
    with pool.open(video) as frames:
        views = [next(frames).rgb[:, ::-1][::1], memoryview(next(frames).rgb.transpose(2, 0, 1))]
        before = [np.array(view) for view in views]
        assert read_index(views[0][:, ::-1]) == 0
        for frame in frames:
            last = frame.index
        assert last == 59
        for view, copy in zip(views, before, strict=True):
            np.testing.assert_array_equal(view, copy)


def test_pictures_are_not_copied_while_few_are_kept(pool, video):
    with pool.open(video) as frames:
        for frame in frames:
            assert np.may_share_memory(frame.rgb, np.frombuffer(frames._pictures._mapped, np.uint8))


def test_large_pictures_have_few_slots_and_never_lock_up(pool, tmp_path):
    path = write_video(tmp_path / "large.mp4", num_frames=12, width=3840, height=2160, codec="mpeg4")
    layout = module._Layout((2160, 3840, 3))
    assert layout.num_slots == module.MIN_SLOTS
    with pool.open(str(path)) as frames:
        kept = [frame.rgb[::40, ::40] for frame in frames]
    assert indices(kept) == list(range(12))


# Children ------------------------------------------------------------------------------------------------------------


def test_a_child_is_used_again_also_for_what_was_left_half_way(tmp_path, video):
    endless = str(write_video(tmp_path / "endless.mp4", times_seconds=[0, 50, 50.04]))
    with Decoders(30) as decoders:
        pids = []
        for path, fps, num_frames in [(video, None, 60), (video, None, 3), (endless, 1000, 5), (video, None, 1)]:
            with decoders.open(path, fps=fps and Fraction(fps)) as frames:
                pids.append(pid_of(frames))
                assert [next(frames).index for _ in range(num_frames)] == list(range(num_frames))
        with pytest.raises(VideoNotFound):
            decoders.open("absent.mp4")
        with decoders.open(video) as frames, decoders.open(video) as others:
            assert pid_of(frames) != pid_of(others)
            pids.append(min(pid_of(frames), pid_of(others), key=lambda pid: pid != pids[0]))
            assert indices(frame.rgb for frame in frames) == indices(frame.rgb for frame in others) == list(range(60))
    assert len(set(pids)) == 1


def test_after_the_last_frame_there_is_none(pool, video):
    with pool.open(video) as frames:
        assert len(list(frames)) == 60
        assert list(frames) == []
    frames.close()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGSEGV, "its decoder crashed (SIGSEGV): re-encode it, or leave it out"),
        (signal.SIGKILL, "its decoder was killed (SIGKILL), as the system does when memory runs out"),
    ],
)
def test_a_child_that_dies_costs_its_video(video, number, text):
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            next(frames)
            dead = pid_of(frames)
            os.kill(dead, number)
            with pytest.raises(DecoderDied) as caught:
                list(frames)
        assert caught.value.video == video
        assert caught.value.message.startswith(text)
        with decoders.open(video) as frames:
            assert pid_of(frames) != dead
            assert len(list(frames)) == 60


def test_a_child_that_dies_while_idle_costs_nothing(video):
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            dead = frames._decoder
        dead.process.kill()
        dead.process.wait()
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_child_that_is_silent_is_killed(video):
    with Decoders(timeout=2.0) as decoders:
        with decoders.open(video) as frames:
            process = frames._decoder.process
            process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(DecoderHangs, match=r"got no further for 2 s: give --timeout more seconds"):
                list(frames)
        assert 2 <= time.monotonic() - started < 10
        assert process.returncode == -signal.SIGKILL
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_child_that_hangs_on_opening_is_killed(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with Decoders(timeout=0.5) as decoders, pytest.raises(DecoderHangs):
        decoders.open(str(tmp_path / "pipe.mp4"))


def test_the_time_that_frames_are_worked_on_does_not_count(video):
    with Decoders(timeout=2.0) as decoders, decoders.open(video) as frames:
        next(frames)
        time.sleep(2.5)
        assert len(list(frames)) == 59


def test_a_child_that_gets_on_slowly_is_left_alone(tmp_path):
    """On the way to a late start: it brings no frame for longer than its time, and decodes all along."""
    source = write_video(tmp_path / "whole.ts", num_frames=100, codec="mpeg4").read_bytes()
    slow = tmp_path / "slow.ts"
    os.mkfifo(slow)

    def feed():
        with slow.open("wb", buffering=0) as pipe:
            half = len(source) // 2
            pipe.write(source[:half])
            for start in range(half, len(source), (len(source) - half) // 25):
                time.sleep(0.2)
                pipe.write(source[start : start + (len(source) - half) // 25])

    feeding = threading.Thread(target=feed)
    feeding.start()
    with Decoders(timeout=2.5) as decoders, decoders.open(str(slow), start_seconds=3.9) as frames:
        started = time.monotonic()
        assert read_index(next(frames).rgb) == 98
        assert time.monotonic() - started > 3
    feeding.join()


def test_a_child_that_does_not_leave_its_video_is_replaced(video, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    with Decoders() as decoders:
        with decoders.open(video) as frames:
            process = frames._decoder.process
            process.send_signal(signal.SIGSTOP)
        assert process.returncode == -signal.SIGKILL
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_job_are_not_for_its_children(pool, video, wish):
    with pool.open(video) as frames:
        next(frames)
        os.kill(pid_of(frames), wish)
        assert os.getsid(pid_of(frames)) != os.getsid(0)
        assert len(list(frames)) == 59


def test_closing_ends_whoever_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    decoders, errors = Decoders(), []

    def read():
        try:
            decoders.open(str(tmp_path / "pipe.mp4"))
        except DecoderDied as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not decoders._lent:
        time.sleep(0.01)
    started = time.monotonic()
    decoders.close()
    reading.join(5)
    assert time.monotonic() - started < 1
    assert len(errors) == 1
    with pytest.raises(RuntimeError, match="closed"):
        decoders.open("video.mp4")


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@linux_only
def test_a_child_ends_with_its_parent_whatever_it_is_at(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    script = (
        "import sys, threading, time\n"
        "from vid3d_cli.video.process import Decoders\n"
        "decoders = Decoders()\n"
        "threading.Thread(target=decoders.open, args=[sys.argv[1]]).start()\n"
        "while not decoders._lent: time.sleep(0.01)\n"
        "time.sleep(0.7)\n"
        "print(*[decoder.process.pid for decoder in decoders._lent], flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "pipe.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    give_up = time.monotonic() + 2
    while is_running(pid):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@linux_only
def test_the_system_prefers_a_child_when_memory_runs_out(pool, video):
    with pool.open(video) as frames:
        assert Path(f"/proc/{pid_of(frames)}/oom_score_adj").read_text().strip() == "1000"


@linux_only
def test_a_child_without_memory_costs_its_video(tmp_path, video):
    large = str(write_video(tmp_path / "large.mp4", num_frames=3, width=3840, height=2160))
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            pid = pid_of(frames)
        num_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (num_bytes + 2**25, num_bytes + 2**25))
        with pytest.raises((OutOfMemory, DecoderDied)), decoders.open(large) as frames:
            list(frames)
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_child_imports_little():
    script = (
        "import vid3d_cli.video.process, sys; print([m for m in ('torch', 'cv2', 'rich', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_child_that_cannot_begin_ends_the_job_and_not_its_video(video, monkeypatch, capfd):
    monkeypatch.setattr(module, "_COMMAND", "import no_such_module")
    with Decoders(30) as decoders, pytest.raises(ResourceError, match="ended with exit code 1: its last words stand"):
        decoders.open(video)
    assert "no_such_module" in capfd.readouterr().err


def open_files():
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


def children():
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def wait_for_children(pid):
    give_up = time.monotonic() + 30
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return [int(child) for child in found]


@linux_only
def test_nothing_is_left_behind(video):
    files, before = open_files(), children()
    with Decoders(30) as decoders:
        for number in range(50):
            try:
                with decoders.open(video) as frames:
                    next(frames)
                    if number % 10 == 3:
                        os.kill(pid_of(frames), signal.SIGSEGV)
                    if number % 10 != 7:
                        list(frames)
            except DecoderDied:
                assert number % 10 == 3
            del frames
        assert len(children()) == len(before) + 1
    assert open_files() == files
    assert children() == before


@contextlib.contextmanager
def open_files_left(num_left):
    """So many files can be opened, and no more."""
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(num_left):
            os.close(taken.pop())
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("is_running", [False, True])
def test_too_many_open_files_are_not_the_fault_of_a_video(video, is_running):
    """At whichever it fails: the memory, its pipe, the connection, the child, what is sent to it, the mapping."""
    num_left, has_worked = 0, False
    while not has_worked:
        with Decoders(30) as decoders:
            if is_running:
                decoders.open(video).close()
            try:
                with open_files_left(num_left), decoders.open(video) as frames:
                    has_worked = len(list(frames)) == 60
            except ResourceError as error:
                assert "too many open files: raise the limit (ulimit -n" in str(error)
                num_left += 1
    assert num_left > 3


# Probing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.mp4", "rotated.mp4", "damaged.avi", "odd.webm"])
@pytest.mark.parametrize("decode", [False, True])
def test_probe_returns_what_the_reader_knows(pool, tmp_path, name, decode):
    path = str(VIDEOS[name](tmp_path / name))
    assert probe(path, decode=decode, decoders=pool) == reader_module.probe(path, decode=decode)


def test_probe_without_decoders_leaves_no_process(video):
    before = children()
    assert probe(video, decode=True).num_frames_decoded == 60
    assert children() == before
    with pytest.raises(VideoNotFound):
        probe("absent.mp4")
    assert children() == before


def test_probe_of_a_pipe_without_a_writer_ends_with_the_timeout(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    before = children()
    with pytest.raises(DecoderHangs, match=r"got no further for 0\.5 s: give --timeout more seconds"):
        probe(str(tmp_path / "pipe.mp4"), timeout=0.5)
    assert children() == before


def test_the_command_fails_a_pipe_and_probes_the_rest(vid3d, video, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    result = vid3d("probe", "pipe.mp4", video, "--timeout", 4)
    assert result.exit_code == 1
    assert [json.loads(line)["num_frames_decoded"] for line in result.stdout.splitlines()] == [60]
    assert "pipe.mp4: its decoder got no further for 4 s" in result.stderr


def test_sigterm_during_probe_exits_143_and_leaves_no_process(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    command = [sys.executable, "-m", "vid3d_cli", "probe", str(tmp_path / "pipe.mp4")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        decoders = wait_for_children(running.pid)
        running.terminate()
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 143
    assert "terminated (SIGTERM)" in stderr
    assert not any(is_running(pid) for pid in decoders)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_decoders_refuse_a_timeout_that_is_not_positive(timeout):
    with pytest.raises(UsageError, match="more than 0 s"):
        Decoders(timeout)


# The engine ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path):
    return [str(write_video(tmp_path / f"{n}.mp4", num_frames=n)) for n in (20, 100, 13, 9)]


def features_of(videos, failures=None, **options):
    on_failure = None if failures is None else lambda failure, _: failures.append(failure)
    pipeline = Pipeline(Options(window=9, stride=4, fps="native", device="cpu", batch_size=1))
    results = local.run(pipeline, videos, on_failure=on_failure, **options)
    return {result.video: result.features() for result in results}


def strike(monkeypatch, victim, number):
    """Have a signal sent to the child that opens this video."""

    def open_video(self, video, **options):
        frames = really_open(self, video, **options)
        if video == victim:
            os.kill(pid_of(frames), number)
        return frames

    really_open = Decoders.open
    monkeypatch.setattr(Decoders, "open", open_video)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGSEGV, "DecoderDied"), (signal.SIGKILL, "DecoderDied"), (signal.SIGSTOP, "DecoderHangs")],
)
def test_a_decoder_that_fails_costs_one_video_of_a_job(tiny_model, videos, monkeypatch, number, error):
    expected = features_of(videos)
    strike(monkeypatch, videos[1], number)
    failures = []
    found = features_of(videos, failures, jobs=2, timeout=3.0)
    assert [(failure.video, failure.error) for failure in failures] == [(videos[1], error)]
    assert list(found) == [videos[0], *videos[2:]]
    for video, features in found.items():
        np.testing.assert_array_equal(features, expected[video])


def test_a_job_ends_at_once_also_where_a_decoder_hangs(tiny_model, videos, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    before = threading.active_count()
    pipeline = Pipeline(Options(window=9, device="cpu"))
    results = local.run(pipeline, [videos[0], str(tmp_path / "pipe.mp4"), *videos[1:]], jobs=2, timeout=None)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 1
    assert threading.active_count() == before


def test_a_job_without_files_to_open_ends_and_tells_so(tiny_model, videos, monkeypatch):
    def no_pipe():
        raise OSError(24, "Too many open files")

    failures = []
    monkeypatch.setattr(module.os, "pipe", no_pipe)
    with pytest.raises(ResourceError, match="too many open files: raise the limit"):
        features_of(videos, failures)
    assert failures == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_leaves_no_time_is_refused(tiny_model, videos, timeout):
    with pytest.raises(UsageError, match="a decoder needs some time"):
        features_of(videos, timeout=timeout)


def test_a_child_that_does_not_understand_costs_its_video_alone(video):
    with Decoders(timeout=30) as decoders:
        with decoders.open(video) as frames:
            next(frames)
            frames._decoder._connection.send_bytes(b"no request")
            with pytest.raises(DecoderDied, match="ended with exit code 1"):
                list(frames)
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60
