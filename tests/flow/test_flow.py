"""Contracts of every flow method, and the fields' arithmetic and colours."""

import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from moving import DATA, REFERENCE, mean_end_point_error, shifted_pair, texture
from videos import write_video

from vid3d_cli import make_plan
from vid3d_cli.clips.preprocess import CENTRE, place_crops, resize
from vid3d_cli.errors import ShapeError, UsageError
from vid3d_cli.flow.colour import flow_to_rgb
from vid3d_cli.flow.fields import dequantise_flow, quantise_flow, resize_flow, to_grey
from vid3d_cli.flow.methods import FLOW_METHODS, FlowMethod, PairByPair, create_flow, describe_flow, optical_flow
from vid3d_cli.flow.opencv import DIS_PRESETS, DisParameters
from vid3d_cli.run import reader as clip_reader
from vid3d_cli.run.reader import ClipReader, flow_device
from vid3d_cli.runtimes import devices as torch_devices
from vid3d_cli.video.process import Decoders
from vid3d_cli.video.reader import VideoReader

# Mean end-point error against TV-L1 as a share of TV-L1's mean motion, over the five reference pairs; measured
# 0.18, 0.27, 0.17 and 0.49, plus a margin for other OpenCV versions.
MAX_SHARE_OF_MOTION = {
    "dis": 0.25,
    "dis-fast": 0.25,
    "dis-ultrafast": 0.35,
    "dis-medium": 0.25,
    "farneback": 0.6,
    "tvl1": 0.02,
}

methods = pytest.mark.parametrize("method", FLOW_METHODS)


def flow_of(method: str, prev: np.ndarray, following: np.ndarray) -> np.ndarray:
    return create_flow(method)(np.stack([prev, following]))[0]


@methods
def test_flow_has_the_shape_of_the_frames(method):
    prev, following = shifted_pair(1, 0, 63, 97)
    flow = create_flow(method)(np.stack([prev, following, prev, prev]))
    assert (flow.shape, flow.dtype) == ((3, 63, 97, 2), np.float32)
    assert np.isfinite(flow).all()


@methods
def test_a_run_is_its_pairs_bit_for_bit(method):
    grey = np.stack([texture(60, 90)[2 * t : 2 * t + 40, t : t + 70] for t in range(6)])
    expected = np.stack([flow_of(method, *pair) for pair in itertools.pairwise(grey)])
    compute = create_flow(method)
    np.testing.assert_array_equal(compute(grey), expected)
    np.testing.assert_array_equal(np.concatenate([compute(grey[:4]), compute(grey[3:])]), expected)
    assert abs(np.median(expected[..., 1]) + 2) < 0.3


@methods
def test_any_thread_may_call(method):
    grey = np.stack([texture(60, 90)[2 * t : 2 * t + 40, t : t + 70] for t in range(4)])
    compute = create_flow(method)
    expected = compute(grey)
    with ThreadPoolExecutor(3) as threads:
        for flow in threads.map(compute, [grey] * 6):
            np.testing.assert_array_equal(flow, expected)


def test_only_tvl1_takes_several_pairs_at_once():
    assert {create_flow(method).pairs_per_call for method in FLOW_METHODS if method != "tvl1"} == {1}
    assert 1 < create_flow("tvl1").pairs_per_call < create_flow("tvl1", "cuda:1").pairs_per_call


def test_only_a_method_that_can_use_a_gpu_is_given_one(monkeypatch):
    asked = []

    def select_devices(name):
        asked.append(name)
        return [torch.device("cuda:2"), torch.device("cuda:0")] if name == "cuda:2,0" else [torch.device(name)]

    monkeypatch.setattr(torch_devices, "select_devices", select_devices)
    devices = ["cpu", "mps", "cuda:1", "cuda:2,0"]
    assert [flow_device("tvl1", device) for device in devices] == ["cpu", "cpu", "cuda:1", "cuda:2,cuda:0"]
    assert asked == devices
    assert {flow_device(method, "cuda:0") for method in FLOW_METHODS if method != "tvl1"} == {"cpu"}
    assert asked == devices
    with pytest.raises(UsageError, match="unknown flow method"):
        flow_device("tvl2", "cpu")


@methods
@pytest.mark.parametrize("shift", [(3, -2), (-2, 1), (4, 0), (0, 4)])
def test_a_translation_is_found_with_x_right_and_y_down(method, shift):
    flow = flow_of(method, *shifted_pair(*shift))
    inside = flow[16:-16, 16:-16]
    assert mean_end_point_error(inside, np.broadcast_to(np.float32(shift), inside.shape)) < 0.3


def greys_of(video, short_side_px: int) -> np.ndarray:
    with VideoReader(str(video)) as reader:
        return np.stack([to_grey(resize(frame.rgb, short_side_px)) for frame in reader])


@pytest.mark.parametrize("command", ["flow", "extract"])
def test_the_help_names_every_method(vid3d, command):
    words = vid3d(command, "--help-all").stdout.translate(str.maketrans(",.│", "   ")).split()
    assert {method for method in FLOW_METHODS if method not in words} == set()


def test_a_device_is_for_methods_that_can_use_one(vid3d, tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=3)
    result = vid3d("flow", video, "--out", "flow.npz", "--device", "cuda")
    assert (result.exit_code, "leave out --device, or choose --flow tvl1" in result.stderr) == (2, True)


@pytest.mark.parametrize("method", ["dis", "tvl1"])
def test_the_command_writes_the_flow_of_every_pair(vid3d, tmp_path, method):
    video = write_video(tmp_path / "a.mp4", num_frames=11)
    options = ("--flow", method, "--short-side", 48, "--device", "cpu", "--dtype", "float32")
    assert vid3d("flow", video, "--out", "flow.npz", *options).exit_code == 0
    with np.load(tmp_path / "flow.npz") as arrays:
        np.testing.assert_array_equal(arrays["flow"], optical_flow(greys_of(video, 48), method))
        np.testing.assert_allclose(arrays["seconds"], np.arange(10) / 25)


def test_the_command_fails_a_video_whose_decoder_hangs(vid3d, tmp_path):
    os.mkfifo(tmp_path / "a.mp4")  # opening it never returns
    result = vid3d("flow", "a.mp4", "--out", "flow.npz", "--timeout", 1)
    assert (result.exit_code, "a.mp4: its reader" in result.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_command_leaves_nothing_of_a_video_whose_decoder_dies(vid3d, tmp_path, monkeypatch):
    video = write_video(tmp_path / "a.mp4", num_frames=40)
    open_video = Decoders.open

    def open_and_kill(decoders, *args, **options):
        frames = open_video(decoders, *args, **options)
        frames._answers._decoder.process.kill()
        return frames

    monkeypatch.setattr(Decoders, "open", open_and_kill)
    for out in ("flow.npz", "flow.mp4", "flow/"):
        result = vid3d("flow", video, "--out", out)
        assert (result.exit_code, "a.mp4: its reader" in result.stderr) == (1, True), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_command_writes_nothing_for_one_frame(vid3d, tmp_path):
    video = write_video(tmp_path / "a.mp4", num_frames=1)
    assert "0 flow fields" in vid3d("flow", video, "--out", "images/").stderr


@pytest.mark.parametrize(("runtime", "asked_for"), [("torch", "cuda:1"), ("openvino", "cpu")])
def test_the_pipeline_computes_flow_in_runs_on_its_device(monkeypatch, tmp_path, runtime, asked_for):
    video = write_video(tmp_path / "a.mp4", num_frames=11)
    asked, runs = [], []

    def create_tvl1(method, device="cpu"):
        assert (method, device) == ("tvl1", "cpu")
        compute = create_flow(method)
        spy = Mock(side_effect=lambda grey: runs.append(len(grey) - 1) or compute(grey))
        spy.pairs_per_call = 4
        return spy

    monkeypatch.setattr(clip_reader, "flow_device", lambda method, device: asked.append(device) or "cpu")
    monkeypatch.setattr(clip_reader, "create_flow", create_tvl1)
    options = {"streams": "flow", "flow": "tvl1", "device": "cuda:1", "runtime": runtime}
    monkeypatch.setattr("vid3d_cli.plan.check_runtime_options", lambda *args, **others: None)
    made = replace(make_plan(model="s3d_mini", fps="native", **options), window=11)
    with ClipReader(made, str(video)) as reader:
        (clip,) = reader
    assert (asked, runs) == ([asked_for], [4, 4, 2])
    expected = optical_flow(greys_of(video, made.resize_px), "tvl1")
    (centre,) = place_crops(CENTRE, *expected.shape[1:3], made.crop_px)
    np.testing.assert_array_equal(clip.streams["flow"], centre.cut(expected)[[*range(10), 9]])


@methods
def test_a_still_frame_does_not_move(method):
    frame = texture(100, 140)
    flow = flow_of(method, frame, frame)
    assert np.abs(flow[16:-16, 16:-16]).max() < 0.01
    assert np.abs(flow).max() < 0.2  # Farneback sees some at the edges


@methods
@pytest.mark.parametrize("greys", [(0, 0), (255, 255), (0, 255), (90, 91)])
def test_uniform_frames_give_finite_flow(method, greys):
    frames = [np.full((64, 80), grey, np.uint8) for grey in greys]
    assert np.isfinite(flow_of(method, *frames)).all()


def check_sizes(method, sides):
    compute = create_flow(method)
    for height, width in itertools.product(sides, sides):
        prev = texture(height, width) if min(height, width) > 8 else np.zeros((height, width), np.uint8)
        flow = compute(np.stack([prev, np.roll(prev, 1, axis=1)]))
        assert flow.shape == (1, height, width, 2)
        assert np.isfinite(flow).all(), (height, width)


@methods
def test_unusual_sizes_work(method):
    """OpenCV's DIS alone crashes on 8×64 and 12×400, and gives NaN on 16×400 (height×width)."""
    check_sizes(method, [1, 8, 12, 16, 65, 400])


@pytest.mark.exhaustive
@methods
def test_any_size_works(method):
    check_sizes(method, [1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 19, 31, 32, 33, 64, 91, 401])


@methods
def test_a_low_frame_still_moves(method):
    prev, following = shifted_pair(2, 0, 20, 300)
    assert abs(np.median(flow_of(method, prev, following)[4:-4, 16:-16, 0]) - 2) < 0.3


@methods
def test_the_flow_does_not_depend_on_earlier_calls(method):
    pair = np.stack(shifted_pair(3, 1))
    fresh = create_flow(method)(pair)
    used = create_flow(method)
    for height, width in [(24, 30), (60, 80), (120, 160)]:
        used(np.stack([texture(height, width), texture(height, width, 1)]))
    np.testing.assert_array_equal(used(pair), fresh)
    np.testing.assert_array_equal(used(pair), fresh)


@methods
def test_the_layout_in_memory_does_not_matter(method):
    compute = create_flow(method)
    pair = np.stack(shifted_pair(2, 1))
    strided = np.stack([pair, pair[::-1]], axis=-1)[..., 0]  # each frame is every second byte
    np.testing.assert_array_equal(compute(strided), compute(pair))
    np.testing.assert_array_equal(compute(pair[:, ::-1]), compute(pair[:, ::-1].copy()))


@methods
@pytest.mark.parametrize(
    "grey",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((2, 40, 40, 3), np.uint8),
        np.zeros((2, 40, 40), np.float32),
        np.zeros((2, 0, 40), np.uint8),
        np.zeros((0, 40, 40), np.uint8),
    ],
)
def test_other_arrays_than_grey_frames_are_refused(method, grey):
    with pytest.raises(ShapeError, match="expected grey frames"):
        create_flow(method)(grey)


@methods
def test_near_tvl1_on_a_real_crop(method):
    with np.load(DATA / "flow_pair.npz") as arrays:
        prev, following, tvl1 = arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)
    inside = np.s_[8:-8, 8:-8]
    assert mean_end_point_error(tvl1[inside], np.zeros_like(tvl1[inside])) > 2
    assert mean_end_point_error(flow_of(method, prev, following)[inside], tvl1[inside]) < 0.2


@pytest.mark.exhaustive
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference pairs are not beside this checkout")
@methods
def test_near_tvl1_on_the_reference_pairs(method):
    errors, motions = [], []
    for path in sorted(REFERENCE.glob("*.npz")):
        with np.load(path) as arrays:
            tvl1 = arrays["flow"].astype(np.float32)
            errors.append(mean_end_point_error(flow_of(method, arrays["prev"], arrays["next"]), tvl1))
        motions.append(mean_end_point_error(tvl1, np.zeros_like(tvl1)))
    assert np.mean(errors) < MAX_SHARE_OF_MOTION[method] * np.mean(motions)


@methods
def test_the_description_names_method_and_parameters(method):
    assert describe_flow(method).startswith(method.split("-")[0])
    assert any(character.isdigit() for character in describe_flow(method))


def test_dis_is_dis_fast():
    assert describe_flow("dis") == describe_flow("dis-fast")
    assert "preset fast" in describe_flow("dis")
    assert len({describe_flow(method) for method in FLOW_METHODS}) == len(FLOW_METHODS) - 1


@pytest.mark.parametrize("preset", DIS_PRESETS)
def test_dis_parameters_are_those_of_opencv(preset):
    theirs = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    expected = DisParameters(
        finest_scale=theirs.getFinestScale(),
        patch_stride_px=theirs.getPatchStride(),
        gradient_descent_iterations=theirs.getGradientDescentIterations(),
        variational_refinement_iterations=theirs.getVariationalRefinementIterations(),
        patch_size_px=theirs.getPatchSize(),
    )
    assert DIS_PRESETS[preset] == expected
    pair = shifted_pair(3, -2)
    np.testing.assert_array_equal(flow_of(f"dis-{preset}", *pair), theirs.calc(*map(np.copy, pair), None))


def test_the_error_of_an_unknown_method_suggests_the_nearest():
    with pytest.raises(
        UsageError, match=r"unknown flow method 'dis-fats': did you mean 'dis-fast'\? Choose one of dis, "
    ):
        create_flow("dis-fats")
    with pytest.raises(UsageError, match="'raft': choose one of"):
        describe_flow("raft")


def test_a_method_is_one_function_and_one_entry(monkeypatch):
    def half_the_difference(prev, following):
        return np.stack([following / 2 - prev / 2] * 2, axis=-1).astype(np.float32)

    entry = FlowMethod("halves, no parameters", lambda device: PairByPair(lambda: half_the_difference))
    monkeypatch.setitem(FLOW_METHODS, "halves", entry)
    flow = optical_flow(np.array([[[0]], [[10]], [[4]]], np.uint8), "halves")
    np.testing.assert_array_equal(flow[:, 0, 0], [[5, 5], [-3, -3]])
    assert describe_flow("halves") == "halves, no parameters"


def test_optical_flow_of_a_stack():
    frames = np.stack([texture(48, 64, seed) for seed in range(4)])
    flow = optical_flow(frames)
    assert (flow.shape, flow.dtype) == ((3, 48, 64, 2), np.float32)
    np.testing.assert_array_equal(flow[1], flow_of("dis", frames[1], frames[2]))


def test_one_frame_has_no_flow():
    assert optical_flow(np.zeros((1, 20, 30), np.uint8)).shape == (0, 20, 30, 2)


@pytest.mark.parametrize("shape", [(0, 20, 30), (20, 30), (2, 20, 30, 3), (2, 0, 30)])
def test_optical_flow_refuses_other_shapes(shape):
    with pytest.raises(ShapeError, match="T ≥ 1"):
        optical_flow(np.zeros(shape, np.uint8))


def test_optical_flow_refuses_floats():
    with pytest.raises(ShapeError, match="float64"):
        optical_flow(np.zeros((2, 20, 30)))


def test_to_grey_weighs_rgb_in_that_order():
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(to_grey(rgb), [[76, 150, 29, 255]])
    np.testing.assert_array_equal(to_grey(rgb[:, ::-1]), [[255, 29, 150, 76]])
    with pytest.raises(ShapeError):
        to_grey(np.zeros((4, 4), np.uint8))


pixels = st.floats(-200, 200, width=32)
bounds = st.sampled_from([1.0, 15.0, 20.0, 32.0])


def test_the_ends_and_the_middle_of_the_quantised_range():
    values = np.array([-1e9, -20, 0, 20, 1e9, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(quantise_flow(values), [0, 0, 128, 255, 255, 255, 0])
    exact = values.astype(np.float64)
    assert quantise_flow(exact).dtype == np.uint8
    np.testing.assert_array_equal(exact, values)  # not changed in place
    np.testing.assert_allclose(dequantise_flow(np.array([0, 255], np.uint8)), [-20, 20], rtol=1e-6)
    assert dequantise_flow(np.array([128], np.uint8))[0] == pytest.approx(20 / 255)


@given(pixels, bounds)
def test_quantising_is_denseflows_formula(value, bound_px):
    bounded = min(max(value, -bound_px), bound_px)
    expected = round(255 * (bounded + bound_px) / (2 * bound_px))  # Python too rounds half to even
    assert quantise_flow(np.array([value], np.float32), bound_px)[0] == expected


@given(st.floats(-1, 1, width=32), bounds)
def test_the_round_trip_loses_at_most_half_a_step(share, bound_px):
    value = np.array([share * bound_px], np.float32)
    restored = dequantise_flow(quantise_flow(value, bound_px), bound_px)
    assert abs(restored - value)[0] <= bound_px / 255 * (1 + 1e-5)


@given(bounds)
def test_all_256_levels_survive_a_round_trip(bound_px):
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise_flow(dequantise_flow(levels, bound_px), bound_px), levels)


@given(st.lists(pixels, min_size=2, max_size=20))
def test_quantising_is_monotone(values):
    levels = quantise_flow(np.sort(np.array(values, np.float32)))
    assert (np.diff(levels.astype(int)) >= 0).all()


@pytest.mark.parametrize("bound_px", [0, -20, math.nan, math.inf])
@pytest.mark.parametrize("function", [quantise_flow, dequantise_flow])
def test_a_bound_must_be_positive(function, bound_px):
    with pytest.raises(UsageError, match="positive"):
        function(np.zeros(2, np.uint8), bound_px)


def test_resizing_scales_each_component():
    flow = np.broadcast_to(np.float32([6, -4]), (40, 60, 2))
    resized = resize_flow(flow, height=10, width=120)
    assert (resized.shape, resized.dtype) == ((10, 120, 2), np.float32)
    np.testing.assert_allclose(resized, np.broadcast_to(np.float32([12, -1]), (10, 120, 2)), rtol=1e-6)
    np.testing.assert_array_equal(resize_flow(flow, 10, 120, rescale=False), flow[:1, :1].repeat(10, 0).repeat(120, 1))


def test_resizing_to_the_same_size_changes_nothing():
    flow = np.random.default_rng(1).normal(size=(37, 51, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_flow(flow, *flow.shape[:2]), flow)


def test_resizing_interpolates_between_pixel_centres():
    flow = np.zeros((1, 2, 2), np.float32)
    flow[0, 1, 1] = 4
    np.testing.assert_allclose(resize_flow(flow, 1, 4)[0, :, 1], [0, 1, 3, 4])


def test_resizing_refuses_other_arrays_than_fields():
    with pytest.raises(ShapeError):
        resize_flow(np.zeros((4, 4, 3), np.float32), 2, 2)
    with pytest.raises(ShapeError):
        resize_flow(np.zeros((4, 4, 2), np.float32), 0, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_colour_wheel_is_torchvisions(seed):
    flow = np.random.default_rng(seed).normal(0, 4, (17, 23, 2)).astype(np.float32)
    expected = torchvision.utils.flow_to_image(torch.from_numpy(flow).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    length_px = np.linalg.norm(flow, axis=-1)
    ours = flow_to_rgb(flow, max_px=float(length_px.max()))
    assert ours.dtype == np.uint8
    # Not the longest vector: there torchvision may round below 0, which wraps to 255.
    shorter = length_px < length_px.max()
    assert np.abs(ours.astype(int) - expected)[shorter].max() <= 1


def test_standing_still_is_white_and_too_fast_is_dark():
    flow = np.array([[[0, 0], [10, 0], [20, 0]]], np.float32)
    still, at_max, beyond = flow_to_rgb(flow, max_px=10)[0]
    assert still.tolist() == [255, 255, 255]
    assert at_max.max() == 255
    assert beyond.max() == int(0.75 * 255)
    assert at_max.argmax() == beyond.argmax() == 0  # motion to the right is red


def test_the_colours_need_a_positive_scale():
    with pytest.raises(UsageError):
        flow_to_rgb(np.zeros((2, 2, 2), np.float32), max_px=0)
