"""The local engine on real plans: results that no option changes, memory that does not grow with the video."""

import copy
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from videos import write_video

from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.records import ClipOutput, Frame
from vid3d_cli.run import load, local, threads
from vid3d_cli.runtimes import has_openvino
from vid3d_cli.runtimes.base import MultiDeviceRuntime
from vid3d_cli.timings import StageSeconds
from vid3d_cli.video.process import Decoders


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
    ("num_cores", "jobs", "has_gpu", "expected"),
    [
        (1, None, False, (2, 1)),
        (2, None, False, (2, 2)),
        (12, None, False, (3, 4)),
        (96, None, False, (8, 4)),
        (1, None, True, (2, 1)),
        (12, None, True, (12, 4)),
        (96, None, True, (32, 4)),
        (2, 1, True, (1, 2)),
        (4, 50, False, (50, 4)),
    ],
)
def test_cores_are_shared_among_readers(num_cores, jobs, has_gpu, expected):
    shares = threads.share_threads(num_cores, jobs, has_gpu=has_gpu)
    assert (shares.jobs, shares.workers) == expected
