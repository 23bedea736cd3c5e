"""The scheduler, with fake readers and networks: order, full batches, failures of one video, bounded reading ahead."""

import sys
import threading
import time
from random import Random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from vid3d_cli.errors import NoFrames, NoScores, ShapeError, WeightsUnavailable
from vid3d_cli.records import Clip, ClipOutput, ClipSpan
from vid3d_cli.run import feeds, local
from vid3d_cli.timings import StageSeconds

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
        self.runtime.run = lambda clips: self._start(clips)()
        return SimpleNamespace(runtime=self.runtime, fuse=self.fuse, pool=self.pool, recipe=None, warnings=())

    def open_clips(self, video, workers):
        with workers.spent.during("decode"):
            time.sleep(self.read_seconds)
        while "endless" in video:  # a clip of so many frames that it never completes
            workers.start("resize", time.sleep, 0.001)()
        return FakeReader(video, self)

    def pause(self):
        """Called with every clip."""

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
            self.plan.pause()
            yield Clip(ClipSpan(index, index, 1, 0.0, 0.0), {"rgb": np.zeros(shape)})
        if "crash" in self.video:
            raise RuntimeError("the decoder fell over")


@pytest.fixture(autouse=True)
def _fake_plans(monkeypatch):
    """Make fake plans load and read by their own methods."""
    monkeypatch.setattr(local, "load", lambda plan, *fetch: plan.load())
    monkeypatch.setattr(feeds, "open_clips", lambda plan, video, workers, _: plan.open_clips(video, workers))
    monkeypatch.setattr(local, "ClipReader", lambda plan, video: FakeReader(video, plan))


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
        (["2", "2 wide", "1 wide"], [2, 3]),  # but hold clips of one size only
        (["1", "unopenable", "0", "3"], [3, 1]),
    ],
)
def test_batches_are_filled(videos, batches, jobs, num_in_flight):
    plan = FakePlan(batch_size=3, num_in_flight=num_in_flight)
    results = list(local.run(plan, videos, jobs=jobs, on_failure=lambda *_: None))
    assert sorted(plan.batches) == sorted(batches)
    assert results == answers_of(video for video in videos if video != "unopenable")


def test_a_result_does_not_wait_for_the_next_video_to_fill_a_batch():
    plan = FakePlan(batch_size=3, run_seconds=0.05)
    results = local.run(plan, ["6", "100"], jobs=1)
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
    results = local.run(plan, ["3", "3 b", "3 c"], jobs=1)
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


@pytest.mark.parametrize("num_in_flight", [1, 2, 4])
def test_an_error_of_the_network_ends_the_run(num_in_flight):
    before = threading.active_count()
    results = local.run(FakePlan(num_in_flight=num_in_flight), ["6", "1 odd", "100000"], jobs=1, on_failure=print)
    assert [next(results)] == answers_of(["6"])
    with pytest.raises(RuntimeError, match="the network fell over"):
        next(results)
    assert threading.active_count() == before


def test_closing_drops_work_in_progress():
    before = threading.active_count()
    plan = FakePlan(num_in_flight=3)
    results = local.run(plan, ["3", "100000"], jobs=1)
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
    seen = {"2": [], "5": []}
    due = ["2", "5"]
    results = local.run(FakePlan(), ["2", "5"], on_clips=lambda video, done, _, new: seen[due[0]].append((done, new)))
    for video, _ in results:  # a video is reported only when its result is due
        assert video == due.pop(0)
    for video, reports in seen.items():
        assert [index for _, new in reports for index in new] == list(range(int(video)))
        assert [done for done, _ in reports] == [new[-1] + 1 for _, new in reports]
    assert len(seen["5"]) <= 3  # what ran before its turn comes at once


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
    assert num_read_at_last(plan, 1 + 2 * 3) == 1 + 2 * 3  # per open video: two clips wait, one is in hand
    results.close()
    assert threading.active_count() == before


def test_reading_ahead_is_bounded_by_two_batches():
    plan = FakePlan(batch_size=4)
    results = local.run(plan, ["1", "1 b", *["100000"] * 5], jobs=2)
    next(results)
    # The batch that ran, two that wait, and a clip in the hand of every reader.
    assert num_read_at_last(plan, 3 * 4 + 2) == 3 * 4 + 2
    results.close()


def test_the_first_clips_are_read_while_the_networks_are_loaded():
    plan = FakePlan(batch_size=5)

    class LoadingPlan:
        dense = False
        allow_playlists = False
        open_clips = plan.open_clips
        read_before = None

        def load(self):
            self.read_before = num_read_at_last(plan, feeds.CLIPS_AHEAD + 1)
            return plan.load()

    loading = LoadingPlan()
    results = local.run(loading, ["19", "4"], jobs=1)
    assert loading.read_before == feeds.CLIPS_AHEAD + 1  # one is being put
    assert num_read_at_last(plan, 2 * 5 + 1) == 2 * 5 + 1  # the size of a batch is known now
    assert [video for video, _ in results] == ["19", "4"]
    assert plan.batches == [5, 5, 5, 5, 3]


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
    assert 0.1 <= spent.waited <= seconds - spent.network
    assert spent.share_waited == pytest.approx(spent.waited / (spent.waited + spent.network))
    assert spent.resize == spent.flow == 0


def test_the_network_does_not_wait_if_reading_is_faster():
    spent = StageSeconds()
    list(local.run(FakePlan(1, read_seconds=0.05, run_seconds=0.1), ["2"] * 5, jobs=2, spent=spent))
    assert spent.decode >= 0.25
    assert spent.waited < spent.decode / 2  # for the first video at most


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


VIDEOS = ["0", "1", "2", "3 wide", "7", "9 wide", "4 crash", "unopenable", "3 odd", "12 odd", "6 nan"]


class RandomPlan(FakePlan):
    """Pauses at random places, for a moment each; the scores of a "nan" video are not finite."""

    def __init__(self, random):
        super().__init__(
            random.randint(1, 5), num_in_flight=random.randint(1, 3), odd_fail=random.choice(["start", "wait"])
        )
        self.pauses = [random.choice([0, 0, 0, 1e-4, 1e-3]) for _ in range(97)]
        self.fails_at, self.halves_at = (random.choice([None, random.randrange(20)]) for _ in range(2))

    def _start(self, clips):
        assert len(clips) <= self.runtime.batch_size
        number = len(self.batches)
        if number == self.halves_at:
            self.runtime.batch_size = max(1, self.runtime.batch_size // 2)
        if number == self.fails_at:
            raise RuntimeError("the network fell over")
        self.start_seconds = self.pauses[number % 97]
        return super()._start(clips)

    def pause(self):
        time.sleep(self.pauses[self.num_read % 97])

    def fuse(self, video, outputs):
        if "nan" in video:
            raise NoScores(video, "not finite")
        return super().fuse(video, outputs)

    def pool(self, read, outputs):
        self.fuse(read.video, outputs)
        return super().pool(read, outputs)


def outcome_alone(plan, video):
    """Return the result of the simple loop, or the type of its error."""
    try:
        (result,) = local.run_one_by_one(plan, [video])
    except Exception as error:
        return type(error)
    return result


@pytest.mark.parametrize("seed", range(60))
def test_the_scheduler_equals_the_simple_loop(seed):
    """Videos of random lengths, shapes and errors give the same outcomes in the same order, at any speed."""
    random, before = Random(seed), threading.active_count()
    names = [
        f"{name} {index}" if name[0].isdigit() else name for index, name in enumerate(random.choices(VIDEOS, k=12))
    ]
    plan, found = RandomPlan(random), []
    results = local.run(
        plan,
        names,
        jobs=random.randint(1, 5),
        on_failure=lambda failure, error: found.append(type(error)),
        on_clips=random.choice([None, lambda *_: None]),
    )
    alone = RandomPlan(Random(seed))
    alone.fails_at = alone.halves_at = None
    expected = [outcome_alone(alone, name) for name in names]
    try:
        for result in results:
            found.append(result)
    except RuntimeError:
        assert plan.fails_at is not None
        assert found == expected[: len(found)]
    else:
        assert found == expected
    assert threading.active_count() == before


def when_run(plan, num_clips, call):
    """Call a function as soon as the networks have run this many clips."""
    start = plan.runtime.start

    def start_and_count(clips):
        wait = start(clips)
        if sum(plan.batches) == num_clips:
            call()
        return wait

    plan.runtime.start = start_and_count


@pytest.mark.parametrize("num_in_flight", [1, 2])
@pytest.mark.parametrize("jobs", [2, 3])
def test_a_slow_first_video_stops_no_other(jobs, num_in_flight):
    videos = ["2 blocked", *(f"3 {index}" for index in range(20)), "40 long"]
    plan = FakePlan(batch_size=4, num_in_flight=num_in_flight, start_seconds=0)
    when_run(plan, 100, plan.may_read.set)
    assert list(local.run(plan, videos, jobs=jobs)) == answers_of(videos)
    assert plan.batches == [4] * 25 + [2]


def test_a_fast_reader_fills_batches_alone():
    videos = ["1 blocked", "1 blocked b", "40"]
    plan = FakePlan(batch_size=8)
    when_run(plan, 40, plan.may_read.set)
    assert list(local.run(plan, videos, jobs=3)) == answers_of(videos)
    assert plan.batches == [8] * 5 + [2]


def test_results_that_wait_for_an_earlier_video_are_bounded(monkeypatch):
    """Once the outputs of later videos take too much, no more are opened until the first one is done."""
    monkeypatch.setattr(feeds, "VIDEO_BYTES", 0)
    monkeypatch.setattr(feeds, "MAX_HELD_BYTES", 5 * 4000)

    class LargeOutputs(FakePlan):
        num_opened = 0

        def open_clips(self, video, workers):
            self.num_opened += 1
            return super().open_clips(video, workers)

        def _start(self, clips):
            super()._start(clips)
            return lambda: [ClipOutput(clip.span, {"rgb": np.zeros(1000, np.float32)}, {}) for clip in clips]

    plan, results = LargeOutputs(batch_size=1), []
    videos = ["1 blocked", *(f"1 {index}" for index in range(30))]
    thread = threading.Thread(target=lambda: results.extend(local.run(plan, videos, jobs=2)))
    thread.start()
    others = 4 + 3  # clips that wait for the networks, and readers
    assert num_read_at_last(plan, 5) <= 5 + others
    assert plan.num_opened <= 5 + others + 1
    plan.may_read.set()
    thread.join(10)
    assert results == answers_of(videos)


def test_clips_of_a_video_that_is_given_up_make_room_for_others():
    failures = []
    plan = FakePlan(batch_size=2, odd_fail="start")
    videos = [*(f"50 odd {index}" for index in range(10)), "20"]
    results = local.run(plan, videos, jobs=3, on_failure=lambda failure, _: failures.append(failure.video))
    assert list(results) == answers_of(["20"])
    assert failures == videos[:-1]
