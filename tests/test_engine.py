"""The local engine: order, failures that cost one video, and memory that does not grow with the video."""

import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from vid3d_cli import pipeline as pipeline_module
from vid3d_cli.engines import local
from vid3d_cli.errors import NoFrames
from vid3d_cli.options import Options
from vid3d_cli.pipeline import Pipeline
from vid3d_cli.records import Clip, ClipOutput, ClipSpan, Frame


class FakePipeline:
    """Videos are numbers of clips, as text; a clip is one number. Anything else fails as its name says."""

    def __init__(self, batch_size=3):
        self.runtime = SimpleNamespace(batch_size=batch_size, run=self._run)
        self.batches = []
        self.num_read = 0

    def _run(self, clips):
        self.batches.append(len(clips))
        return [ClipOutput(clip.span, {}, {}) for clip in clips]

    def check_videos(self, videos): ...

    def open_clips(self, video):
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
            yield Clip(ClipSpan(index, index, 1, 0.0, 0.0), {})
        if "crash" in self.video:
            raise RuntimeError("the decoder fell over")


def test_results_come_in_the_order_of_the_videos():
    videos = ["5", "1 a", "7", "2", "1 b"]
    results = list(local.run(FakePipeline(), videos, jobs=3))
    assert results == [(video, list(range(int(video.split()[0])))) for video in videos]


def test_batches_are_filled():
    pipeline = FakePipeline(batch_size=3)
    list(local.run(pipeline, ["7"]))
    assert pipeline.batches == [3, 3, 1]


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


def test_reading_ahead_is_bounded_and_ends_with_the_iterator():
    before = threading.active_count()
    pipeline = FakePipeline(batch_size=1)
    results = local.run(pipeline, ["1", "100000", "100000"], jobs=2)
    next(results)
    time.sleep(0.3)
    assert pipeline.num_read <= 1 + 2 * 4  # per open video: two queued, one in hand, one being put
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("window, stride", [(16, 16), (16, 4)])
def test_memory_is_bounded_by_the_window_not_by_the_video(monkeypatch, tmp_path, window, stride):
    """A synthetic source of two hours against one of a minute: the peak differs by little more than the outputs."""

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
    long, num_long = peak_bytes_per_clip(25 * 60 * 120)
    assert num_long == -(-(25 * 60 * 120 - window) // stride) + 1
    clip_bytes = window * 8 * 8 * 3
    output_bytes = 1000  # a ClipOutput with its span; features are shared here
    assert long - short < 4 * clip_bytes + (num_long - num_short) * output_bytes
    assert (num_long - num_short) * clip_bytes > 2 * (long - short)  # keeping the clips would have shown
