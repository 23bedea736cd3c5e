"""The local engine: order, full batches, failures that cost one video, memory that does not grow with the video."""

import threading
import time
import tracemalloc
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from videos import write_video

from vid3d_cli import pipeline as pipeline_module
from vid3d_cli.engines import local, threads
from vid3d_cli.errors import NoFrames, WeightsUnavailable
from vid3d_cli.options import Options
from vid3d_cli.pipeline import Pipeline
from vid3d_cli.records import Clip, ClipOutput, ClipSpan, Frame
from vid3d_cli.timings import StageSeconds


class FakePipeline:
    """Videos are numbers of clips, as text; a clip is one number. Anything else fails as its name says."""

    def __init__(self, batch_size=3, read_seconds=0.0, run_seconds=0.0):
        self.runtime = SimpleNamespace(batch_size=batch_size, run=self._run)
        self.read_seconds, self.run_seconds = read_seconds, run_seconds
        self.batches = []
        self.num_read = 0

    def _run(self, clips):
        assert len({clip.streams["rgb"].shape for clip in clips}) == 1
        self.batches.append(len(clips))
        time.sleep(self.run_seconds)
        return [ClipOutput(clip.span, {}, {}) for clip in clips]

    def check_videos(self, videos): ...

    def open_clips(self, video, workers):
        with workers.spent.during("decode"):
            time.sleep(self.read_seconds)
        return FakeReader(video, self)

    def pool(self, reader, outputs):
        return reader.video, [output.span.index for output in outputs]


class FakeReader:
    def __init__(self, video, pipeline):
        if video == "unopenable":
            raise NoFrames(video, "nothing in it")
        self.video, self.pipeline = video, pipeline
        self.num_expected_clips = None
        self.is_closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_closed = True

    def __iter__(self):
        for index in range(int(self.video.split()[0])):
            self.pipeline.num_read += 1
            yield Clip(
                ClipSpan(index, index, 1, 0.0, 0.0), {"rgb": np.zeros((1, 8, 12 if "wide" in self.video else 8))}
            )
        if "crash" in self.video:
            raise RuntimeError("the decoder fell over")


def test_results_come_in_the_order_of_the_videos():
    videos = ["5", "1 a", "7", "2", "1 b"]
    results = list(local.run(FakePipeline(), videos, jobs=3))
    assert results == [(video, list(range(int(video.split()[0])))) for video in videos]


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize(
    ("videos", "batches"),
    [
        (["7"], [3, 3, 1]),
        (["3", "1"], [3, 1]),
        (["2", "5", "1", "1 b"], [3, 3, 3]),  # over the ends of videos
        (["1", "1 b", "1 c", "1 d", "1 e"], [3, 2]),
        (["2", "2 wide", "1 wide", "2 b"], [2, 3, 2]),  # but only clips of one size
        (["1", "unopenable", "0", "3"], [3, 1]),
    ],
)
def test_batches_are_filled(videos, batches, jobs):
    pipeline = FakePipeline(batch_size=3)
    results = list(local.run(pipeline, videos, jobs=jobs, on_failure=lambda *_: None))
    assert pipeline.batches == batches
    assert results == [(video, list(range(int(video.split()[0])))) for video in videos if video != "unopenable"]


def test_a_result_does_not_wait_for_the_next_video_to_fill_a_batch():
    pipeline = FakePipeline(batch_size=3)
    results = local.run(pipeline, ["6", "100"])
    assert next(results)[0] == "6"
    assert pipeline.batches == [3, 3]
    results.close()


def test_results_and_failures_come_in_turn_also_where_videos_share_batches():
    told = []
    videos = ["1", "4 crash", "unopenable", "1 b", "2", "1 crash", "1 c"]
    results = local.run(FakePipeline(batch_size=8), videos, on_failure=lambda failure, _: told.append(failure.video))
    for video, _ in results:
        told.append(video)
    assert told == videos


def test_a_failure_costs_one_video():
    failures = []
    results = local.run(
        FakePipeline(), ["2", "unopenable", "4 crash", "1"], on_failure=lambda failure, error: failures.append(failure)
    )
    assert [video for video, _ in results] == ["2", "1"]
    assert [(f.video, f.error, f.message) for f in failures] == [
        ("unopenable", "NoFrames", "nothing in it"),
        ("4 crash", "RuntimeError", "the decoder fell over"),
    ]


def test_without_a_handler_a_failure_is_raised():
    results = local.run(FakePipeline(), ["2", "unopenable"])
    next(results)
    with pytest.raises(NoFrames, match="unopenable: nothing in it"):
        next(results)


def test_progress_counts_clips_of_the_video():
    seen = []
    list(local.run(FakePipeline(batch_size=2), ["5"], on_clips=lambda done, expected: seen.append(done)))
    assert seen == [2, 4, 5]


def test_progress_counts_what_filled_the_batch_of_the_video_before():
    seen = []
    results = local.run(FakePipeline(), ["2", "5"], on_clips=lambda done, expected: seen.append(done))
    for video, _ in results:
        seen.append(video)
    assert seen == [2, "2", 1, 4, 5, "5"]


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    before = threading.active_count()
    pipeline = FakePipeline(batch_size=1)
    results = local.run(pipeline, ["1", "100000", "100000"], jobs=2)
    next(results)
    time.sleep(0.3)
    assert pipeline.num_read <= 1 + 2 * 4  # per open video: two queued, one in hand, one being put
    results.close()
    assert threading.active_count() == before


def test_reading_ahead_is_bounded_by_a_batch_of_every_open_video():
    pipeline = FakePipeline(batch_size=4)
    results = local.run(pipeline, ["1", "1 b", *["100000"] * 5], jobs=2)
    next(results)
    time.sleep(0.3)
    # The two, and two of the long ones: what ran, then a batch queued, one clip being put and one looked at.
    assert pipeline.num_read <= 2 + 2 + 2 * (4 + 2)
    results.close()


def test_the_first_clips_are_read_while_the_networks_are_loaded():
    pipeline = FakePipeline(batch_size=5)
    ready = pipeline.runtime

    class LoadingPipeline:
        open_clips, check_videos, pool = pipeline.open_clips, pipeline.check_videos, pipeline.pool
        read_before = None

        @property
        def runtime(self):
            if self.read_before is None:
                time.sleep(0.2)
                self.read_before = pipeline.num_read
            return ready

    loading = LoadingPipeline()
    results = local.run(loading, ["9", "4"], jobs=1)
    assert loading.read_before == local.MIN_ROOM + 1  # one is being put
    time.sleep(0.2)
    assert pipeline.num_read == 5 + 1  # the size of a batch is known now
    assert [video for video, _ in results] == ["9", "4"]
    assert pipeline.batches == [5, 5, 3]


def test_networks_that_cannot_be_loaded_end_the_reading():
    class BrokenPipeline(FakePipeline):
        @property
        def runtime(self):
            raise WeightsUnavailable("not here")

        @runtime.setter
        def runtime(self, _): ...

    before = threading.active_count()
    with pytest.raises(WeightsUnavailable):
        local.run(BrokenPipeline(), ["100000", "100000", "1"])
    assert threading.active_count() == before


def test_time_is_told_by_stage():
    spent = StageSeconds()
    started = time.perf_counter()
    list(local.run(FakePipeline(1, read_seconds=0.1, run_seconds=0.05), ["2", "1", "1 b"], jobs=1, spent=spent))
    seconds = time.perf_counter() - started
    assert 0.3 <= spent.decode <= seconds
    assert 0.2 <= spent.network <= seconds
    assert 0.15 <= spent.waited <= seconds - spent.network  # one job: nothing is read before a result is out
    assert spent.share_waited == pytest.approx(spent.waited / (spent.waited + spent.network))
    assert spent.resize == spent.flow == 0


def test_the_network_does_not_wait_where_reading_is_quicker():
    spent = StageSeconds()
    list(local.run(FakePipeline(1, read_seconds=0.05, run_seconds=0.1), ["2"] * 5, jobs=2, spent=spent))
    assert spent.decode >= 0.25
    assert spent.waited < spent.decode / 2  # for the first video at most


@pytest.mark.parametrize("window, stride", [(16, 16), (16, 4)])
def test_memory_is_bounded_by_the_window_not_by_the_video(monkeypatch, tmp_path, window, stride):
    """A synthetic source of half an hour against one of a minute: the peak differs by little more than the outputs."""

    class SyntheticReader:
        info = SimpleNamespace(fps=25.0)
        num_decode_failures = 0

        def __init__(self, video, **_):
            self.num_expected_frames = int(video)

        def __iter__(self):
            for index in range(self.num_expected_frames):
                yield Frame(index, index / 25, (index + 1) / 25, np.full((8, 8, 3), index % 256, np.uint8))

        def close(self): ...

    monkeypatch.setattr(pipeline_module, "VideoReader", SyntheticReader)
    pipeline = Pipeline(Options(streams="rgb", window=window, stride=stride), fetch=lambda file: tmp_path)
    # The stages between frame and clip at the size of the synthetic frames.
    pipeline.size_px, pipeline.crop_px = 8, 8
    feature = np.zeros(4, np.float32)
    pipeline.__dict__["runtime"] = SimpleNamespace(
        batch_size=1, run=lambda clips: [ClipOutput(clip.span, {"rgb": feature}, {"rgb": feature}) for clip in clips]
    )
    monkeypatch.setattr(Pipeline, "pool", lambda self, reader, outputs: len(outputs))

    def peak_bytes_per_clip(num_frames):
        tracemalloc.start()
        (num_clips,) = local.run(pipeline, [str(num_frames)])
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
    pipeline = Pipeline(Options(window=9, stride=4, fps="native", device="cpu", **options))
    results = list(local.run(pipeline, videos, jobs=jobs, on_failure=lambda failure, _: failures.append(failure.video)))
    assert [result.video for result in results] == [video for video in videos if video not in failures]
    assert len(failures) == 1
    return results


@pytest.mark.parametrize("options", [{}, {"resize_only": True, "streams": "rgb"}])
def test_nothing_changes_a_result(tiny_model, short_videos, monkeypatch, options):
    """Not the videos read at a time, nor the clips a batch, nor the threads that resize and compute flow."""
    first = results_of(short_videos, monkeypatch, num_cores=1, jobs=1, batch_size=1, **options)
    assert [len(result.clips) for result in first] == [2, 1, 4, 1, 1]
    for num_cores, jobs, batch_size in [(2, 1, 3), (3, 2, 1), (1, 2, 3), (4, 2, 8), (4, 4, 1), (2, 4, 3), (3, 4, 8)]:
        again = results_of(short_videos, monkeypatch, num_cores=num_cores, jobs=jobs, batch_size=batch_size, **options)
        for one, other in zip(first, again, strict=True):
            assert [clip.span for clip in one.clips] == [clip.span for clip in other.clips]
            for stream in one.logits:
                np.testing.assert_allclose(other.logits[stream], one.logits[stream], rtol=0, atol=1e-6)
            np.testing.assert_allclose(other.features(), one.features(), rtol=0, atol=1e-6)
            if batch_size == 1:  # of one batch size, to the last bit
                np.testing.assert_array_equal(other.features(), one.features())


def test_every_stage_is_timed(tiny_model, short_videos):
    spent = StageSeconds()
    list(local.run(Pipeline(Options(window=9)), short_videos, on_failure=lambda *_: None, spent=spent))
    assert min(spent.decode, spent.resize, spent.flow, spent.network, spent.waited) > 0


@pytest.mark.parametrize(
    ("num_cores", "jobs", "expected"),
    [(1, None, (2, 1)), (2, None, (2, 2)), (12, None, (3, 12)), (96, None, (8, 96)), (2, 1, (1, 2)), (4, 50, (50, 4))],
)
def test_cores_are_shared_out(num_cores, jobs, expected):
    shares = threads.share_threads(num_cores, jobs)
    assert (shares.jobs, shares.workers) == expected


def test_opencv_gets_its_threads_back():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        results = local.run(FakePipeline(), ["1", "1"])
        next(results)
        assert cv2.getNumThreads() == 1
        results.close()
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
