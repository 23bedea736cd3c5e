"""Reading clips from a video: aligned streams, correct seconds, ready-made flow."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from videos import read_index, write_video

from vid3d_cli import make_plan
from vid3d_cli.clips.preprocess import CENTRE, place_crops, resize
from vid3d_cli.errors import FlowFilesError
from vid3d_cli.flow.fields import quantise_flow, resize_flow, to_grey
from vid3d_cli.flow.files import open_flow_files
from vid3d_cli.flow.methods import optical_flow
from vid3d_cli.flow.opencv import FARNEBACK
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.video.reader import VideoReader


def read_clips(video, *, window=None, stride=None, **options):
    """Return the clips of a plan; any window works, since no network runs."""
    plan = make_plan(**options)
    window = window or plan.window
    with ClipReader(replace(plan, window=window, stride=stride or window), str(video)) as reader:
        expected = reader.num_expected_clips
        clips = list(reader)
    return clips, expected


@pytest.mark.parametrize("tail, shown", [("pad", [8, 9, 9, 9]), ("loop", [8, 9, 8, 9]), ("drop", None)])
def test_window_stride_and_tail_decide_the_frames_of_clips(tmp_path, tail, shown):
    video = write_video(tmp_path / "a.mp4", num_frames=10, width=48, height=48)
    clips, expected = read_clips(video, streams="rgb", window=4, stride=4, tail=tail)
    indices = [[read_index(frame) for frame in clip.streams["rgb"]] for clip in clips]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7]] + ([shown] if shown else [])
    assert len(clips) == expected
    assert [c.span.start_frame for c in clips] == [0, 4, 8][: len(clips)]
    assert [c.span.num_valid_frames for c in clips] == [4, 4, 2][: len(clips)]
    ends = [0.16, 0.32, 0.40][: len(clips)]
    assert [c.span.end_seconds for c in clips] == pytest.approx(ends)
    assert [c.span.start_seconds for c in clips] == pytest.approx([0, 0.16, 0.32][: len(clips)])


def test_streams_are_aligned_and_flow_is_computed_before_clips_are_cut(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=7)
    clips, _ = read_clips(video, window=4, stride=2)
    with VideoReader(str(video)) as reader:
        resized = [resize(frame.rgb, 256) for frame in reader]
    motion = optical_flow(np.stack([to_grey(rgb) for rgb in resized]))
    (centre,) = place_crops(CENTRE, *resized[0].shape[:2], 224)
    motion = centre.cut(np.stack([*motion, motion[-1]]))
    rgb = centre.cut(np.stack(resized))
    for clip, frames in zip(clips, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 6]], strict=True):
        np.testing.assert_array_equal(clip.streams["rgb"], rgb[frames])
        np.testing.assert_array_equal(clip.streams["flow"], motion[frames])


@pytest.mark.parametrize(("width", "height"), [(90, 134), (340, 180)])
def test_flow_of_the_source_is_resized_as_it_is(tmp_path, width, height):
    """As Utils.cpp of ahsaniqbal/Kinetics-FeatureExtractor at 9a517cc: TV-L1, then resize, crop and truncate."""
    video = write_video(tmp_path / "a.mp4", num_frames=4, width=width, height=height)
    with VideoReader(str(video)) as reader:
        stored = [frame.rgb[..., ::-1] for frame in reader]  # BGR, as OpenCV reads it
    greys = [cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2GRAY) for bgr in stored]
    scale = 256 / min(width, height)
    size = (int(width * scale), int(height * scale))
    left, top = size[0] // 2 - 112, size[1] // 2 - 112
    of_frame = []
    for one, other in itertools.pairwise(greys):
        field = cv2.calcOpticalFlowFarneback(one, other, None, **FARNEBACK, flags=0)
        of_frame.append(cv2.resize(field, size)[top : top + 224, left : left + 224])
    options = {"flow": "farneback", "flow_size": "source", "streams": "flow", "window": 4}
    (exact,), _ = read_clips(video, **options)
    np.testing.assert_array_equal(exact.streams["flow"], [*of_frame, of_frame[-1]])
    (coarse,), _ = read_clips(video, **options, quantise_flow=True)
    np.testing.assert_array_equal(coarse.streams["flow"], quantise_flow(exact.streams["flow"], 20.0))
    (resized,), _ = read_clips(video, **{**options, "flow_size": "resized"})
    assert np.abs(resized.streams["flow"] - exact.streams["flow"]).mean() > 0.1


def test_frames_of_a_given_size_and_interpolation(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=3, width=90, height=134)
    options = {"streams": "rgb", "window": 3, "resize": "340x256", "interpolation": "lanczos", "resize_only": True}
    (clip,), _ = read_clips(video, **options)
    with VideoReader(str(video)) as reader:
        expected = [np.asarray(Image.fromarray(frame.rgb).resize((340, 256), Image.LANCZOS)) for frame in reader]
    np.testing.assert_array_equal(clip.streams["rgb"], expected)


def test_frames_are_read_at_the_rate_of_the_weights(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=60, fps=50, width=48, height=48)
    (clip,), _ = read_clips(video, streams="rgb")  # I3D reads 25 fps
    assert [read_index(frame) for frame in clip.streams["rgb"][:30]] == list(range(0, 60, 2))
    assert (clip.span.num_valid_frames, clip.span.end_seconds) == (30, pytest.approx(1.2))


def test_start_and_end(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=50, width=48, height=48)
    clips, expected = read_clips(video, streams="rgb", window=9, start_seconds=0.4, end_seconds=1.0)
    assert [read_index(frame) for clip in clips for frame in clip.streams["rgb"]][:15] == list(range(10, 25))
    assert (clips[0].span.start_seconds, clips[-1].span.end_seconds) == pytest.approx((0.4, 1.0))
    assert len(clips) == expected == 2


def test_quantised_flow(tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=5)
    (exact,), _ = read_clips(video, streams="flow", window=5)
    (coarse,), _ = read_clips(video, streams="flow", window=5, quantise_flow=True)
    assert coarse.streams["flow"].dtype == np.uint8
    np.testing.assert_array_equal(coarse.streams["flow"], quantise_flow(exact.streams["flow"], 20.0))


@pytest.mark.parametrize("form", ["flow.npz", "flow"])
def test_ready_made_flow_equals_computed_flow(tmp_path, vid3d, form):
    video = write_video(tmp_path / "a.mp4", num_frames=6)
    assert vid3d("flow", video, "--out", form).exit_code == 0
    (computed,), _ = read_clips(video, streams="flow", window=6)
    (read,), _ = read_clips(video, streams="flow", window=6, flow_files=tmp_path / form)
    clamped = computed.streams["flow"].clip(-20, 20)
    error = np.abs(read.streams["flow"].clip(-20, 20) - clamped).mean()
    assert error < (0.01 if form == "flow.npz" else 0.3)  # half precision; 8 bits in a JPEG
    assert np.abs(clamped).mean() > 0.5
    (long,), _ = read_clips(video, streams="flow", window=6, flow_files=tmp_path / form, flow_size="source")
    with open_flow_files(tmp_path / form, str(video)) as files:  # computed at 341 × 256 px
        shrunk = resize_flow(files[2], 48, 64)
    expected = cv2.resize(shrunk, (341, 256))[16:240, 58:282]
    np.testing.assert_array_equal(long.streams["flow"][2], expected)


def test_ready_made_flow_of_another_rate_is_refused(tmp_path, vid3d):
    video = write_video(tmp_path / "a.mp4", num_frames=20, fps=50)
    assert vid3d("flow", video, "--out", "flow.npz").exit_code == 0
    with pytest.raises(FlowFilesError, match=r"19 ready-made flow fields do not fit 10 frames at 25 fps.*--fps native"):
        read_clips(video, flow_files=tmp_path / "flow.npz")
    clips, _ = read_clips(video, flow_files=tmp_path / "flow.npz", fps="native")
    assert len(clips) == 1
