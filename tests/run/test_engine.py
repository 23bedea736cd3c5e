"""The local engine: order, full batches, failures of one video, memory that does not grow with the video."""

import copy
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from videos import write_video

from vid3d_cli.errors import NoFrames, ShapeError, WeightsUnavailable
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.records import Clip, ClipOutput, ClipSpan, Frame
from vid3d_cli.run import feeds, load, local, threads
from vid3d_cli.run.reader import ClipReader, open_clips
from vid3d_cli.runtimes import has_openvino
from vid3d_cli.runtimes.base import MultiDeviceRuntime
from vid3d_cli.timings import StageSeconds
from vid3d_cli.video.process import Decoders

ODD_PX = 7


class FakePlan:
    """Videos are numbers of clips, as text; a clip is one number. Anything else fails as its name says.

    `odd_fail` is when the network finds that it cannot take the clips of an "odd" video: in "start" or in "wait".
    """

    dense = False
    allow_playlists = False

    def __init__(
        self, batch_size=3, read_seconds=0.0, run_seconds=0.0, num_in_flight=1, odd_fail="", start_seconds=0.05
    ):
        self.runtime = SimpleNamespace(batch_size=batch_size, num_in_flight=num_in_flight, start=self._start)
        self.read_seconds, self.run_seconds = read_seconds, run_seconds
        self.odd_fail, self.start_seconds = odd_fail, start_seconds
        self.may_read = threading.Event()  # a "blocked" video waits for this
        self.batches = []
        self.events = []  # "start 0", "wait 0", …
        self.num_read = 0

    def _start(self, clips):
        assert len({clip.streams["rgb"].shape for clip in clips}) == 1
        number = len(self.batches)
        self.batches.append(len(clips))
        self.events.append(f"start {number}")
        spans = [clip.span for clip in clips]
        is_odd = any(clip.streams["rgb"].shape[1] == ODD_PX for clip in clips)
        if is_odd and self.odd_fail == "start":
            raise ShapeError("too odd")
        if self.runtime.num_in_flight > 1:
            time.sleep(self.start_seconds)  # so that the next clips have been read

        def wait():
            self.events.append(f"wait {number}")
            if is_odd and self.odd_fail == "wait":
                raise ShapeError("too odd")
            if is_odd:
                raise RuntimeError("the network fell over")
            time.sleep(self.run_seconds)
            return [ClipOutput(span, {}, {}) for span in spans]

        return wait

    def load(self):
        return SimpleNamespace(runtime=self.runtime, fuse=self.fuse, pool=self.pool, recipe=None, warnings=())

    def open_clips(self, video, workers):
        with workers.spent.during("decode"):
            time.sleep(self.read_seconds)
        while "endless" in video:  # a clip of so many frames that it never completes
            workers.start("resize", time.sleep, 0.001)()
        return FakeReader(video, self)

    def fuse(self, video, outputs):
        return [output.span.index for output in outputs]

    def pool(self, read, outputs):
        return read.video, [output.span.index for output in outputs]


class FakeReader:
    def __init__(self, video, plan):
        if video == "unopenable":
            raise NoFrames(video, "nothing in it")
        self.video, self.plan = video, plan
        self.num_expected_clips = None
        self.is_closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True

    def summary(self):
        return SimpleNamespace(video=self.video)

    def __iter__(self):
        if "blocked" in self.video:
            assert self.plan.may_read.wait(10)
        shape = (1, ODD_PX if "odd" in self.video else 8, 12 if "wide" in self.video else 8)
        for index in range(int(self.video.split()[0])):
            self.plan.num_read += 1
            yield Clip(ClipSpan(index, index, 1, 0.0, 0.0), {"rgb": np.zeros(shape)})
        if "crash" in self.video:
            raise RuntimeError("the decoder fell over")


@pytest.fixture(autouse=True)
def _fake_plans(monkeypatch):
    """Make fake plans load and read by their own methods."""
    real_load = local.load
    monkeypatch.setattr(local, "load", lambda plan, *fetch: real_load(plan, *fetch) if is_real(plan) else plan.load())
    monkeypatch.setattr(
        feeds,
        "open_clips",
        lambda plan, video, workers, decoders: (
            open_clips(plan, video, workers, decoders) if is_real(plan) else plan.open_clips(video, workers)
        ),
    )


def is_real(plan):
    return isinstance(plan, Plan)


def test_results_keep_the_order_of_the_videos():
    videos = ["5", "1 a", "7", "2", "1 b"]
    results = list(local.run(FakePlan(), videos, jobs=3))
    assert results == [(video, list(range(int(video.split()[0])))) for video in videos]


@pytest.mark.parametrize("num_in_flight", [1, 2, 4])
@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize(
    ("videos", "batches"),
    [
        (["7"], [3, 3, 1]),
        (["3", "1"], [3, 1]),
        (["2", "5", "1", "1 b"], [3, 3, 3]),  # batches span several videos
        (["1", "1 b", "1 c", "1 d", "1 e"], [3, 2]),
        (["2", "2 wide", "1 wide", "2 b"], [2, 3, 2]),  # but hold clips of one size only
        (["1", "unopenable", "0", "3"], [3, 1]),
    ],
)
def test_batches_are_filled(videos, batches, jobs, num_in_flight):
    plan = FakePlan(batch_size=3, num_in_flight=num_in_flight)
    results = list(local.run(plan, videos, jobs=jobs, on_failure=lambda *_: None))
    assert plan.batches == batches
    assert results == [(video, list(range(int(video.split()[0])))) for video in videos if video != "unopenable"]


def test_a_result_does_not_wait_for_the_next_video_to_fill_a_batch():
    plan = FakePlan(batch_size=3)
    results = local.run(plan, ["6", "100"])
    assert next(results)[0] == "6"
    assert plan.batches == [3, 3]
    results.close()


def answers_of(videos):
    return [(video, list(range(int(video.split()[0])))) for video in videos]


@pytest.mark.parametrize("num_in_flight", [1, 2, 3, 4])
def test_num_in_flight_batches_run_and_the_oldest_is_awaited(num_in_flight):
    plan = FakePlan(batch_size=1, num_in_flight=num_in_flight)
    assert list(local.run(plan, ["6"])) == answers_of(["6"])
    ahead = num_in_flight - 1
    first = [f"start {i}" for i in range(ahead)]
    in_turn = [event for i in range(6 - ahead) for event in (f"start {i + ahead}", f"wait {i}")]
    last = [f"wait {i}" for i in range(6 - ahead, 6)]
    assert plan.events == first + in_turn + last


def test_the_network_continues_with_the_next_video_while_a_result_is_used():
    plan = FakePlan(num_in_flight=2)
    results = local.run(plan, ["3", "3 b", "3 c"])
    assert [next(results)] == answers_of(["3"])
    assert plan.events == ["start 0", "start 1", "wait 0"]
    assert list(results) == answers_of(["3 b", "3 c"])


@pytest.mark.parametrize("num_in_flight", [1, 2, 4])
def test_a_result_does_not_wait_for_a_slow_next_video(num_in_flight):
    plan = FakePlan(num_in_flight=num_in_flight)
    results = local.run(plan, ["6", "3 blocked"])
    assert [next(results)] == answers_of(["6"])
    assert plan.batches == [3, 3]
    plan.may_read.set()
    assert list(results) == answers_of(["3 blocked"])


@pytest.mark.parametrize("num_in_flight", [1, 2, 4])
@pytest.mark.parametrize("odd_fail", ["start", "wait"])
def test_clips_that_the_network_cannot_run_fail_only_their_videos(odd_fail, num_in_flight):
    failures = []
    plan = FakePlan(batch_size=2, num_in_flight=num_in_flight, odd_fail=odd_fail)
    videos = ["3", "9 odd", "1 odd", "4 b", "1 wide", "2 odd", "5 c"]
    results = local.run(plan, videos, jobs=3, on_failure=lambda failure, _: failures.append(failure))
    assert list(results) == answers_of(["3", "4 b", "1 wide", "5 c"])
    assert [(f.video, f.error, f.message) for f in failures] == [
        (video, "ShapeError", "too odd") for video in ("9 odd", "1 odd", "2 odd")
    ]
    if odd_fail == "start":  # fails at once: no second batch of the first video is tried
        assert plan.batches[:4] == [2, 1, 2, 1]


@pytest.mark.parametrize("num_in_flight", [1, 2, 4])
def test_an_error_of_the_network_ends_the_run(num_in_flight):
    before = threading.active_count()
    results = local.run(FakePlan(num_in_flight=num_in_flight), ["7", "1 odd", "100000"], on_failure=print)
    assert [next(results)] == answers_of(["7"])
    with pytest.raises(RuntimeError, match="the network fell over"):
        next(results)
    assert threading.active_count() == before


def test_closing_drops_work_in_progress():
    before = threading.active_count()
    plan = FakePlan(num_in_flight=3)
    results = local.run(plan, ["3", "100000"])
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(plan.batches) > 1
    assert plan.events[-1] == "wait 0"


class Interrupt:
    """Raises KeyboardInterrupt in this thread, once, before a line of the engine."""

    def __init__(self, num_lines):
        self.num_lines_left = num_lines

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in (local.__file__, feeds.__file__):
            return None
        if event == "line":
            self.num_lines_left -= 1
            if self.num_lines_left == 0:
                raise KeyboardInterrupt
        return self


def first_result(plan, videos, interrupt):
    """None if it is interrupted before."""
    sys.settrace(interrupt)
    try:
        results = local.run(plan, videos, jobs=2)
        result = next(results)
    except KeyboardInterrupt:
        return None
    finally:
        sys.settrace(None)
    results.close()
    return result


@pytest.mark.parametrize("num_in_flight", [1, 3])
def test_an_interrupt_at_any_line_leaves_no_thread(num_in_flight):
    before, result, num_lines = threading.active_count(), None, 0
    while result is None:
        num_lines += 1
        plan = FakePlan(batch_size=2, num_in_flight=num_in_flight, start_seconds=0)
        result = first_result(plan, ["3", "100000", "2"], Interrupt(num_lines))
        give_up = time.monotonic() + 5
        while threading.active_count() > before:  # a thread that was starting ends by itself
            assert time.monotonic() < give_up, f"interrupted before line {num_lines} there is a thread left"
            time.sleep(0.001)
    assert num_lines > 100


def test_closing_does_not_wait_for_an_incomplete_clip():
    before, started = threading.active_count(), time.monotonic()
    results = local.run(FakePlan(batch_size=1), ["1", *["1 endless"] * 3], jobs=4)
    next(results)
    results.close()
    assert threading.active_count() == before
    assert time.monotonic() - started < feeds.STOP_SECONDS


def test_hanging_decoders_delay_the_job_once_and_not_one_by_one(monkeypatch):
    monkeypatch.setattr(feeds, "STOP_SECONDS", 0.5)
    plan = FakePlan(batch_size=1)
    results = local.run(plan, ["1", *["1 blocked"] * 6], jobs=7)
    next(results)
    started = time.monotonic()
    results.close()
    assert 0.5 <= time.monotonic() - started < 6 * 0.5
    plan.may_read.set()


def test_results_and_failures_keep_their_order_if_videos_share_batches():
    told = []
    videos = ["1", "4 crash", "unopenable", "1 b", "2", "1 crash", "1 c"]
    results = local.run(FakePlan(batch_size=8), videos, on_failure=lambda failure, _: told.append(failure.video))
    for video, _ in results:
        told.append(video)
    assert told == videos


def test_a_failure_fails_one_video():
    failures = []
    results = local.run(
        FakePlan(), ["2", "unopenable", "4 crash", "1"], on_failure=lambda failure, error: failures.append(failure)
    )
    assert [video for video, _ in results] == ["2", "1"]
    assert [(f.video, f.error, f.message) for f in failures] == [
        ("unopenable", "NoFrames", "nothing in it"),
        ("4 crash", "RuntimeError", "the decoder fell over"),
    ]


def test_without_a_handler_a_failure_is_raised():
    results = local.run(FakePlan(), ["2", "unopenable"])
    next(results)
    with pytest.raises(NoFrames, match="unopenable: nothing in it"):
        next(results)


def test_progress_counts_clips_of_the_video():
    seen = []
    list(local.run(FakePlan(batch_size=2), ["5"], on_clips=lambda video, done, _, new: seen.append((done, new))))
    assert seen == [(2, [0, 1]), (4, [2, 3]), (5, [4])]


def test_progress_counts_clips_that_filled_the_batch_of_the_previous_video():
    seen = []
    results = local.run(FakePlan(), ["2", "5"], on_clips=lambda video, done, _, new: seen.append((done, new)))
    for video, _ in results:
        seen.append(video)
    assert seen == [(2, [0, 1]), "2", (1, [0]), (4, [1, 2, 3]), (5, [4]), "5"]


def num_read_at_last(plan, expected):
    """Return how many clips are read when reading waits; at least as many as expected."""
    give_up = time.monotonic() + 10
    while plan.num_read < expected:
        assert time.monotonic() < give_up, plan.num_read
        time.sleep(0.001)
    time.sleep(0.1)  # would it read more?
    return plan.num_read


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    before = threading.active_count()
    plan = FakePlan(batch_size=1)
    results = local.run(plan, ["1", "100000", "100000"], jobs=2)
    next(results)
    assert num_read_at_last(plan, 1 + 2 * 3) <= 1 + 2 * 4  # per open video: two queued, one in hand, one being put
    results.close()
    assert threading.active_count() == before


def test_reading_ahead_is_bounded_by_a_batch_of_every_open_video():
    plan = FakePlan(batch_size=4)
    results = local.run(plan, ["1", "1 b", *["100000"] * 5], jobs=2)
    next(results)
    # The two, and of the long ones: those that ran, a queued batch, one clip being put and one peeked at.
    assert num_read_at_last(plan, 2 + 2 * (4 + 2)) <= 2 + 2 + 2 * (4 + 2)
    results.close()


def test_the_first_clips_are_read_while_the_networks_are_loaded():
    plan = FakePlan(batch_size=5)

    class LoadingPlan:
        dense = False
        allow_playlists = False
        open_clips = plan.open_clips
        read_before = None

        def load(self):
            self.read_before = num_read_at_last(plan, feeds.MIN_ROOM + 1)
            return plan.load()

    loading = LoadingPlan()
    results = local.run(loading, ["9", "4"], jobs=1)
    assert loading.read_before == feeds.MIN_ROOM + 1  # one is being put
    assert num_read_at_last(plan, 5 + 1) == 5 + 1  # the size of a batch is known now
    assert [video for video, _ in results] == ["9", "4"]
    assert plan.batches == [5, 5, 3]


def test_networks_that_fail_to_load_end_the_reading():
    class BrokenPlan(FakePlan):
        def load(self):
            raise WeightsUnavailable("not here")

    before = threading.active_count()
    with pytest.raises(WeightsUnavailable):
        local.run(BrokenPlan(), ["100000", "100000", "1"])
    assert threading.active_count() == before


def test_time_is_measured_by_stage():
    spent = StageSeconds()
    started = time.perf_counter()
    list(local.run(FakePlan(1, read_seconds=0.1, run_seconds=0.05), ["2", "1", "1 b"], jobs=1, spent=spent))
    seconds = time.perf_counter() - started
    assert 0.3 <= spent.decode <= seconds
    assert 0.2 <= spent.network <= seconds
    assert 0.15 <= spent.waited <= seconds - spent.network  # one job: nothing is read before a result is out
    assert spent.share_waited == pytest.approx(spent.waited / (spent.waited + spent.network))
    assert spent.resize == spent.flow == 0


def test_the_network_does_not_wait_if_reading_is_faster():
    spent = StageSeconds()
    list(local.run(FakePlan(1, read_seconds=0.05, run_seconds=0.1), ["2"] * 5, jobs=2, spent=spent))
    assert spent.decode >= 0.25
    assert spent.waited < spent.decode / 2  # for the first video at most


@pytest.mark.parametrize(
    ("window", "stride", "num_in_flight"),
    [
        (16, 16, 1),
        pytest.param(16, 4, 1, marks=pytest.mark.exhaustive),
        pytest.param(16, 16, 4, marks=pytest.mark.exhaustive),
    ],
)
def test_memory_is_bounded_by_the_window_not_by_the_video(monkeypatch, tmp_path, window, stride, num_in_flight):
    """Half an hour of synthetic video takes little more memory than a minute: just the outputs."""

    class SyntheticReader:
        info = SimpleNamespace(fps=25.0, height=8, width=8, is_interlaced=False, is_hdr=False, pixel_aspect=1.0)
        num_lost_frames = 0

        def __init__(self, video, **_):
            self.num_expected_frames = int(video)

        def __iter__(self):
            for index in range(self.num_expected_frames):
                yield Frame(index, index / 25, (index + 1) / 25, np.full((8, 8, 3), index % 256, np.uint8))

        def close(self): ...

    monkeypatch.setattr(Decoders, "open", lambda self, video, **options: SyntheticReader(video, **options))
    monkeypatch.setattr(feeds, "open_clips", ClipReader)
    # The stages between frame and clip at the size of the synthetic frames.
    plan = replace(Plan.make(Options(streams="rgb", window=window, stride=stride)), resize_px=8, crop_px=8)
    feature = np.zeros(4, np.float32)

    def answer(spans):
        return [ClipOutput(span, {"rgb": feature}, {"rgb": feature}) for span in spans]

    runtime = SimpleNamespace(
        batch_size=1, num_in_flight=num_in_flight, start=lambda clips: partial(answer, [clip.span for clip in clips])
    )
    networks = SimpleNamespace(runtime=runtime, pool=lambda read, outputs: len(outputs), recipe=None, warnings=())

    def peak_bytes_per_clip(num_frames):
        tracemalloc.start()
        (num_clips,) = local.run(plan, [str(num_frames)], networks=networks)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, num_clips

    short, num_short = peak_bytes_per_clip(25 * 60)
    long, num_long = peak_bytes_per_clip(25 * 60 * 30)
    assert num_long == -(-(25 * 60 * 30 - window) // stride) + 1
    clip_bytes = window * 8 * 8 * 3
    output_bytes = 1000  # a ClipOutput with its span; features are shared here
    assert long - short < 4 * clip_bytes + (num_long - num_short) * output_bytes
    assert (num_long - num_short) * clip_bytes > 2 * (long - short)  # keeping the clips would have shown


@pytest.fixture
def short_videos(tmp_path):
    """Videos of different lengths and shapes, one of them empty."""
    videos = []
    for index, (num_frames, width) in enumerate([(13, 64), (4, 64), (21, 100), (9, 64), (6, 64)]):
        videos.append(str(write_video(tmp_path / f"{index}.mp4", num_frames=num_frames, width=width)))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    return [*videos[:2], str(broken), *videos[2:]]


def results_of(videos, monkeypatch, *, num_cores, jobs, **options):
    monkeypatch.setattr(local, "count_cores", lambda: num_cores)
    failures = []
    plan = Plan.make(Options(window=9, stride=4, fps="native", device="cpu", **options))
    results = list(local.run(plan, videos, jobs=jobs, on_failure=lambda failure, _: failures.append(failure.video)))
    assert [result.video for result in results] == [video for video in videos if video not in failures]
    assert len(failures) == 1
    return results


@pytest.mark.parametrize("options", [{}, {"resize_only": True, "streams": "rgb"}])
def test_no_machine_option_changes_a_result(tiny_model, short_videos, monkeypatch, options):
    """Varies the videos read at a time, the clips per batch, and the threads that resize and compute flow."""
    first = results_of(short_videos, monkeypatch, num_cores=1, jobs=1, batch_size=1, **options)
    assert [len(result.clips) for result in first] == [2, 1, 4, 1, 1]
    for num_cores, jobs, batch_size in [(3, 2, 1), (1, 2, 3), (4, 2, 8), (2, 4, 3)]:
        again = results_of(short_videos, monkeypatch, num_cores=num_cores, jobs=jobs, batch_size=batch_size, **options)
        for one, other in zip(first, again, strict=True):
            assert [clip.span for clip in one.clips] == [clip.span for clip in other.clips]
            for stream in one.logits:
                np.testing.assert_allclose(other.logits[stream], one.logits[stream], rtol=0, atol=1e-6)
            np.testing.assert_allclose(other.features(), one.features(), rtol=0, atol=1e-6)
            if batch_size == 1:  # equal to the last bit for one batch size
                np.testing.assert_array_equal(other.features(), one.features())


@pytest.fixture(scope="module")
def three_videos(tmp_path_factory):
    directory = tmp_path_factory.mktemp("videos")
    return [str(write_video(directory / f"{n}.mp4", num_frames=n)) for n in (20, 16, 28)]


def test_the_threaded_engine_equals_the_simple_loop(three_videos):
    plan = Plan.make(Options("s3d_mini.camera_motion", device="cpu", precision="fp32", runtime="torch", stride=8))
    expected = list(local.run_one_by_one(plan, three_videos))
    found = list(local.run(plan, three_videos, jobs=3))
    assert [result.video for result in found] == three_videos
    for one, other in zip(expected, found, strict=True):
        assert (one.recipe, one.labels, one.num_frames) == (other.recipe, other.labels, other.num_frames)
        assert [clip.span for clip in one.clips] == [clip.span for clip in other.clips]
        np.testing.assert_array_equal(other.features(), one.features())
        for stream in ("rgb", "flow", "fused"):
            np.testing.assert_array_equal(other.logits[stream], one.logits[stream])


def real_results(videos, monkeypatch, *, num_cores=2, jobs=1, change=None, **options):
    """A plan with a real network in fp32, two streams, overlapping windows: 2 + 1 + 3 clips."""
    monkeypatch.setattr(local, "count_cores", lambda: num_cores)
    options = {"device": "cpu", "precision": "fp32", "fps": "native", "stride": 8, **options}
    plan = Plan.make(Options("s3d_mini.camera_motion", **options))
    networks = load.load(plan)
    if change is not None:
        networks = replace(networks, runtime=change(networks.runtime))
    results = list(local.run(plan, videos, jobs=jobs, networks=networks))
    assert [result.video for result in results] == videos
    assert [len(result.clips) for result in results] == [2, 1, 3][-len(videos) :]
    return np.concatenate([result.features() for result in results]), np.stack([r.logits["fused"] for r in results])


def check_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def check_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.exhaustive
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_no_number_of_jobs_clips_or_threads_changes_a_result(three_videos, monkeypatch, torch_threads, runtime):
    """--jobs changes no bit; --batch-size, --threads and --runtime change at most 1e-5 of the largest number."""
    if runtime == "openvino":
        if not has_openvino():
            pytest.skip("needs OpenVINO")
        # Before it is cached and read again, a converted network rounds some sums in another order.
        real_results(three_videos[1:], monkeypatch, runtime=runtime)
    expected = real_results(three_videos, monkeypatch, runtime="torch", threads=1, batch_size=1)
    for threads_of_network, batch_size in ((1, 4), (2, 1), (2, 2)):
        options = {"runtime": runtime, "threads": threads_of_network, "batch_size": batch_size}
        found = real_results(three_videos, monkeypatch, num_cores=1, jobs=1, **options)
        check_close(found, expected)
        check_equal(real_results(three_videos, monkeypatch, num_cores=3, jobs=3, **options), found)


def test_batches_in_flight_and_devices_change_no_bit(three_videos, monkeypatch):
    def three_in_flight(runtime):
        runtime.num_in_flight = 3
        return runtime

    def on_two_devices(runtime):
        return MultiDeviceRuntime([runtime, copy.deepcopy(runtime)])

    options = {"runtime": "torch", "batch_size": 2, "jobs": 2}
    expected = real_results(three_videos, monkeypatch, **options)
    for change in (three_in_flight, on_two_devices):
        check_equal(real_results(three_videos, monkeypatch, change=change, **options), expected)


def test_every_stage_is_timed(tiny_model, short_videos):
    spent = StageSeconds()
    list(local.run(Plan.make(Options(window=9)), short_videos, on_failure=lambda *_: None, spent=spent))
    assert min(spent.decode, spent.resize, spent.flow, spent.network, spent.waited) > 0


@pytest.mark.parametrize(
    ("num_cores", "jobs", "expected"),
    [(1, None, (2, 1)), (2, None, (2, 2)), (12, None, (3, 12)), (96, None, (8, 96)), (2, 1, (1, 2)), (4, 50, (50, 4))],
)
def test_cores_are_shared_among_readers(num_cores, jobs, expected):
    shares = threads.share_threads(num_cores, jobs)
    assert (shares.jobs, shares.workers) == expected


def test_opencv_gets_its_threads_back():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        results = local.run(FakePlan(), ["1", "1"])
        next(results)
        assert cv2.getNumThreads() == 1
        results.close()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
