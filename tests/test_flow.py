"""Contracts of every flow method, of the fields' arithmetic, and of flow files in both directions."""

import json
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli import flow as vflow
from vid3d_cli.errors import FlowFilesError, OutputError, OutputExists, ShapeError, UsageError
from vid3d_cli.flow import (
    FLOW_METHODS,
    create_flow,
    dequantise_flow,
    describe_flow,
    flow_to_rgb,
    mean_end_point_error,
    open_flow_files,
    optical_flow,
    quantise_flow,
    rescale_flow,
    resize_flow,
    to_grey,
)
from vid3d_cli.outputs.flow_files import FILM_CODECS, open_flow_output

DATA = Path(__file__).parent / "data"
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "flow"
RECIPE = {"flow": "dis", "note": "élan"}

# Mean end-point error against TV-L1 as a share of TV-L1's mean motion, over the five reference pairs; measured
# 0.18, 0.27, 0.17 and 0.49, plus a margin for other OpenCV versions.
MAX_SHARE_OF_MOTION = {"dis": 0.25, "dis-fast": 0.25, "dis-ultrafast": 0.35, "dis-medium": 0.25, "farneback": 0.6}

methods = pytest.mark.parametrize("method", FLOW_METHODS)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture with full contrast."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def shifted_pair(dx: int, dy: int, height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Two frames whose content moves by dx to the right and dy down."""
    big = texture(height + 40, width + 40)
    return big[20 : 20 + height, 20 : 20 + width], big[20 - dy : 20 - dy + height, 20 - dx : 20 - dx + width]


def some_flow(num_pairs: int = 4, height: int = 37, width: int = 51, longest_px: float = 15) -> np.ndarray:
    """Smooth motion, so that JPEG loses little."""
    noise = np.random.default_rng(1).normal(size=(num_pairs, height, width, 2)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(field, (0, 0), 6) for field in noise])
    return (smooth / np.abs(smooth).max() * longest_px).astype(np.float32)


# --- methods ---------------------------------------------------------------------------------------------------------


@methods
def test_flow_has_the_shape_of_the_frames(method):
    prev, following = shifted_pair(1, 0, 63, 97)
    flow = create_flow(method)(prev, following)
    assert (flow.shape, flow.dtype) == ((63, 97, 2), np.float32)
    assert np.isfinite(flow).all()


@methods
@pytest.mark.parametrize("shift", [(3, -2), (-2, 1), (4, 0), (0, 4)])
def test_a_translation_is_found_with_x_right_and_y_down(method, shift):
    flow = create_flow(method)(*shifted_pair(*shift))
    inside = flow[16:-16, 16:-16]
    assert mean_end_point_error(inside, np.broadcast_to(np.float32(shift), inside.shape)) < 0.3


@methods
def test_a_still_picture_does_not_move(method):
    picture = texture(100, 140)
    flow = create_flow(method)(picture, picture.copy())
    assert np.abs(flow[16:-16, 16:-16]).max() < 0.01
    assert np.abs(flow).max() < 0.2  # Farneback sees some at the edges


@methods
@pytest.mark.parametrize("greys", [(0, 0), (255, 255), (0, 255), (90, 91)])
def test_uniform_frames_give_finite_flow(method, greys):
    frames = [np.full((64, 80), grey, np.uint8) for grey in greys]
    assert np.isfinite(create_flow(method)(*frames)).all()


@methods
def test_any_size_works(method):
    """OpenCV's DIS alone crashes on 8×64 and 12×400, and gives NaN on 16×400 (height×width)."""
    compute = create_flow(method)
    sides = [1, 2, 7, 8, 9, 12, 16, 31, 32, 33, 64, 91, 401]
    for height in sides:
        for width in sides:
            prev = texture(height, width) if min(height, width) > 8 else np.zeros((height, width), np.uint8)
            flow = compute(prev, np.roll(prev, 1, axis=1))
            assert flow.shape == (height, width, 2)
            assert np.isfinite(flow).all(), (height, width)


@methods
def test_a_low_frame_still_moves(method):
    prev, following = shifted_pair(2, 0, 20, 300)
    assert abs(np.median(create_flow(method)(prev, following)[4:-4, 16:-16, 0]) - 2) < 0.3


@methods
def test_one_function_gives_the_same_flow_whatever_it_saw_before(method):
    pair = shifted_pair(3, 1)
    fresh = create_flow(method)(*pair)
    used = create_flow(method)
    for height, width in [(24, 30), (60, 80), (120, 160)]:
        used(texture(height, width), texture(height, width, 1))
    np.testing.assert_array_equal(used(*pair), fresh)
    np.testing.assert_array_equal(used(*pair), fresh)


@methods
def test_the_layout_in_memory_does_not_matter(method):
    prev, following = shifted_pair(2, 1)
    expected = create_flow(method)(prev.copy(), following.copy())
    strided = np.stack([prev, following], axis=-1)  # each frame is every second byte
    np.testing.assert_array_equal(create_flow(method)(strided[..., 0], strided[..., 1]), expected)
    flipped = create_flow(method)(prev[::-1], following[::-1])
    np.testing.assert_array_equal(flipped, create_flow(method)(prev[::-1].copy(), following[::-1].copy()))


@methods
def test_factories_make_a_function_per_thread(method):
    pair = shifted_pair(1, 1)
    np.testing.assert_array_equal(FLOW_METHODS[method]()(*pair), create_flow(method)(*pair))
    if method.startswith("dis"):
        assert create_flow(method) is not create_flow(method)


@methods
@pytest.mark.parametrize(
    ("prev", "following"),
    [
        (np.zeros((40, 40), np.uint8), np.zeros((40, 41), np.uint8)),
        (np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)),
        (np.zeros((40, 40), np.float32), np.zeros((40, 40), np.float32)),
        (np.zeros((0, 40), np.uint8), np.zeros((0, 40), np.uint8)),
    ],
)
def test_what_is_no_pair_of_grey_frames_is_refused(method, prev, following):
    with pytest.raises(ShapeError, match="two grey frames"):
        create_flow(method)(prev, following)


@methods
def test_near_tvl1_on_a_real_crop(method):
    with np.load(DATA / "flow_pair.npz") as arrays:
        prev, following, tvl1 = arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)
    inside = np.s_[8:-8, 8:-8]
    assert mean_end_point_error(tvl1[inside], np.zeros_like(tvl1[inside])) > 2
    assert mean_end_point_error(create_flow(method)(prev, following)[inside], tvl1[inside]) < 0.2


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference pairs are not beside this checkout")
@methods
def test_near_tvl1_on_the_reference_pairs(method):
    errors, motions = [], []
    for path in sorted(REFERENCE.glob("*.npz")):
        with np.load(path) as arrays:
            tvl1 = arrays["flow"].astype(np.float32)
            errors.append(mean_end_point_error(create_flow(method)(arrays["prev"], arrays["next"]), tvl1))
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


@pytest.mark.parametrize("preset", vflow.DIS_PRESETS)
def test_dis_parameters_are_those_of_opencv(preset):
    theirs = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    expected = vflow.DisParameters(
        finest_scale=theirs.getFinestScale(),
        patch_stride_px=theirs.getPatchStride(),
        gradient_descent_iterations=theirs.getGradientDescentIterations(),
        variational_refinement_iterations=theirs.getVariationalRefinementIterations(),
        patch_size_px=theirs.getPatchSize(),
    )
    assert vflow.DIS_PRESETS[preset] == expected
    pair = shifted_pair(3, -2)
    np.testing.assert_array_equal(create_flow(f"dis-{preset}")(*pair), theirs.calc(*map(np.copy, pair), None))


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(
        UsageError, match=r"unknown flow method 'dis-fats': did you mean 'dis-fast'\? choose from dis, "
    ):
        create_flow("dis-fats")
    with pytest.raises(UsageError, match="'raft': choose from"):
        describe_flow("raft")


def test_optical_flow_of_a_stack():
    frames = np.stack([texture(48, 64, seed) for seed in range(4)])
    flow = optical_flow(frames)
    assert (flow.shape, flow.dtype) == ((3, 48, 64, 2), np.float32)
    np.testing.assert_array_equal(flow[1], create_flow("dis")(frames[1], frames[2]))


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


# --- fields ----------------------------------------------------------------------------------------------------------

pixels = st.floats(-200, 200, width=32)
bounds = st.sampled_from([1.0, 15.0, 20.0, 32.0])


def test_rescale_clamps_and_divides():
    flow = np.array([-50, -20, -5, 0, 10, 20, 21], np.float32)
    np.testing.assert_array_equal(rescale_flow(flow), np.float32([-1, -1, -0.25, 0, 0.5, 1, 1]))
    assert rescale_flow(flow).dtype == np.float32
    assert rescale_flow(np.float32([16]), bound_px=32) == 0.5


def test_the_ends_and_the_middle_of_the_quantised_range():
    values = np.array([-1e9, -20, 0, 20, 1e9, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(quantise_flow(values), [0, 0, 128, 255, 255, 255, 0])
    assert quantise_flow(values).dtype == np.uint8
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
@pytest.mark.parametrize("function", [rescale_flow, quantise_flow, dequantise_flow])
def test_a_bound_must_be_positive(function, bound_px):
    with pytest.raises(UsageError, match="positive"):
        function(np.zeros(2, np.uint8), bound_px)


def test_resizing_scales_each_component():
    flow = np.broadcast_to(np.float32([6, -4]), (40, 60, 2))
    resized = resize_flow(flow, height=10, width=120)
    assert (resized.shape, resized.dtype) == ((10, 120, 2), np.float32)
    np.testing.assert_allclose(resized, np.broadcast_to(np.float32([12, -1]), (10, 120, 2)), rtol=1e-6)


def test_resizing_to_the_same_size_changes_nothing():
    flow = some_flow(1)[0]
    np.testing.assert_array_equal(resize_flow(flow, *flow.shape[:2]), flow)


def test_resizing_interpolates_between_pixel_centres():
    flow = np.zeros((1, 2, 2), np.float32)
    flow[0, 1, 1] = 4
    np.testing.assert_allclose(resize_flow(flow, 1, 4)[0, :, 1], [0, 1, 3, 4])


def test_resizing_refuses_what_is_no_field():
    with pytest.raises(ShapeError):
        resize_flow(np.zeros((4, 4, 3), np.float32), 2, 2)
    with pytest.raises(ShapeError):
        resize_flow(np.zeros((4, 4, 2), np.float32), 0, 2)


def test_mean_end_point_error():
    flow = np.zeros((2, 2, 2), np.float32)
    reference = flow.copy()
    reference[0, 0] = 3, 4
    assert mean_end_point_error(flow, reference) == 1.25
    with pytest.raises(ShapeError, match="cannot compare"):
        mean_end_point_error(flow, reference[:1])


# --- colours ---------------------------------------------------------------------------------------------------------


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


# --- ready-made flow -------------------------------------------------------------------------------------------------


def write_images(directory: Path, flow: np.ndarray, pattern: str, first: int = 1, bound_px: float = 20) -> Path:
    """Write flow the way other tools do; PNG or JPEG by the pattern."""
    directory.mkdir(parents=True, exist_ok=True)
    for index, field in enumerate(quantise_flow(flow, bound_px)):
        for channel, axis in enumerate("xy"):
            name = pattern.format(axis=axis, number=index + first)
            assert cv2.imwrite(str(directory / name), field[..., channel])
    return directory


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "pattern", ["flow_{axis}_{number:05d}.png", "{axis}_{number:05d}.png", "flow_{axis}_{number}.PNG"]
)
def test_images_of_every_naming_are_read(tmp_path, pattern, first):
    flow = some_flow(12)  # beyond 9, where names without leading zeros sort differently
    with open_flow_files(write_images(tmp_path / "f", flow, pattern, first), "walk.mp4") as files:
        assert len(files) == 12
        assert files[0].dtype == np.float32
        for index in (0, 11, 5, -1):
            np.testing.assert_allclose(files[index], flow[index], atol=20 / 255 + 1e-4)
        with pytest.raises(IndexError):
            files[12]
        assert len(list(files)) == 12


def test_jpeg_images_and_another_bound(tmp_path):
    flow = some_flow(2, longest_px=30)
    directory = write_images(tmp_path / "f", flow, "flow_{axis}_{number:05d}.jpg", bound_px=32)
    (directory / "img_00001.jpg").write_bytes(b"denseflow's frames may lie there too")
    files = open_flow_files(directory, "walk.mp4", bound_px=32)
    assert len(files) == 2
    assert np.abs(files[1] - flow[1]).max() < 32 / 255 + 1
    assert "bound 32 px" in files.description


@pytest.mark.parametrize("name", ["walk", "walk.mp4"])
def test_a_directory_per_video(tmp_path, name):
    write_images(tmp_path / name, some_flow(3), "x_y.png".replace("x_y", "flow_{axis}_{number}"))
    write_images(tmp_path / "run", some_flow(2), "flow_{axis}_{number}.png")
    assert len(open_flow_files(tmp_path, "/videos/walk.mp4")) == 3
    assert len(open_flow_files(str(tmp_path), "/videos/run.mp4")) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_any_order(tmp_path, save, dtype):
    flow = some_flow(5)
    save(tmp_path / "walk.npz", seconds=np.arange(5), flow=flow.astype(dtype))
    for path in (tmp_path / "walk.npz", tmp_path):
        with open_flow_files(path, "walk.mp4") as files:
            assert len(files) == 5
            for index in (0, 1, 4, 2, -1, 0):
                assert files[index].dtype == np.float32
                np.testing.assert_array_equal(files[index], flow[index].astype(dtype).astype(np.float32))


def test_a_pair_read_before_is_not_changed_by_the_next(tmp_path):
    flow = some_flow(2)
    np.savez(tmp_path / "walk.npz", flow=flow)
    with open_flow_files(tmp_path, "walk.mp4") as files:
        first = files[0]
        first += 1  # writable, and the reader's own data stays as it was
        np.testing.assert_array_equal(files[0], flow[0])


def test_missing_flow_says_what_was_looked_for(tmp_path):
    with pytest.raises(FlowFilesError, match=r"walk\.mp4: no ready-made flow at .*nowhere"):
        open_flow_files(tmp_path / "nowhere", "walk.mp4")
    with pytest.raises(FlowFilesError, match=r"flow_x_00001\.jpg.*walk/, walk\.mp4/, walk\.npz"):
        open_flow_files(tmp_path, "walk.mp4")
    (tmp_path / "walk.txt").touch()
    with pytest.raises(FlowFilesError, match="is not ready-made flow"):
        open_flow_files(tmp_path / "walk.txt", "walk.mp4")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("flow_y_00002.png", "the y image of frame 2 is missing"),
        ("flow_x_00001.png", "the x image of frame 1 is missing"),
        ("flow_x_00003.png", "the x image of frame 3 is missing"),
    ],
)
def test_a_gap_is_an_error(tmp_path, missing, message):
    write_images(tmp_path, some_flow(3), "flow_{axis}_{number:05d}.png")
    (tmp_path / missing).unlink()
    with pytest.raises(FlowFilesError, match=message):
        open_flow_files(tmp_path, "walk.mp4")


def test_two_images_of_one_frame_are_an_error(tmp_path):
    write_images(tmp_path, some_flow(2), "flow_{axis}_{number:05d}.png")
    write_images(tmp_path, some_flow(1), "{axis}_{number}.png")
    with pytest.raises(FlowFilesError, match="the same frame"):
        open_flow_files(tmp_path, "walk.mp4")


def test_damaged_images_are_named(tmp_path):
    write_images(tmp_path, some_flow(3), "flow_{axis}_{number:05d}.png")
    (tmp_path / "flow_x_00001.png").write_bytes(b"")
    (tmp_path / "flow_y_00002.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "flow_y_00003.png"), np.zeros((5, 5), np.uint8))
    files = open_flow_files(tmp_path, "walk.mp4")
    for index, message in enumerate(["flow_x_00001.png is not", "flow_y_00002.png is not", "differ in size"]):
        with pytest.raises(FlowFilesError, match=message):
            files[index]


@pytest.mark.parametrize("text", ["", "{}", '{"bound_px": -3}', '{"bound_px": "wide"}', "[1]"])
def test_a_damaged_sidecar_is_named(tmp_path, text):
    write_images(tmp_path, some_flow(1), "flow_{axis}_{number:05d}.png")
    (tmp_path / "flow.json").write_text(text)
    with pytest.raises(FlowFilesError, match="no usable bound_px"):
        open_flow_files(tmp_path, "walk.mp4")


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "walk.npz"
    path.write_bytes(b"PK no archive")
    with pytest.raises(FlowFilesError, match="not a readable"):
        open_flow_files(path, "walk.mp4")
    for arrays, message in [
        ({"rgb": np.zeros(3)}, 'no array "flow" .it has: rgb'),
        ({"flow": np.zeros((3, 4, 4))}, "damaged or not flow"),
        ({"flow": np.zeros((3, 4, 4, 2), int)}, "expected floats"),
        ({"flow": np.array([{}], dtype=object)}, "damaged or not flow"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(FlowFilesError, match=message):
            open_flow_files(path, "walk.mp4")


def test_an_archive_with_flipped_bytes_is_noticed(tmp_path):
    path = tmp_path / "walk.npz"
    np.savez(path, flow=np.zeros((2, 64, 64, 2), np.float32))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    files = open_flow_files(path, "walk.mp4")
    with pytest.raises(FlowFilesError, match="damaged at pair 1"):
        list(files)


# --- writers ---------------------------------------------------------------------------------------------------------


def write_flow(
    path: Path | str, flow: Iterable[np.ndarray], *, overwrite: bool = False, fps: Fraction = Fraction(25), **options
):
    """Write all of `flow`."""
    output = open_flow_output(path, fps=fps, bound_px=20, max_px=15, recipe=RECIPE, overwrite=overwrite, **options)
    with output:
        for index, field in enumerate(flow):
            output.write(field, index / float(fps))


TARGETS = ["flow", "flow.npz", *(f"flow{suffix}" for suffix in FILM_CODECS)]
targets = pytest.mark.parametrize("name", TARGETS)


def test_images_can_be_read_again(tmp_path):
    flow = some_flow(3)
    flow[0, :20] = 100  # truncated
    write_flow(tmp_path / "flow", flow)
    names = sorted(path.name for path in (tmp_path / "flow").iterdir())
    assert names == ["flow.json", *(f"flow_{axis}_0000{i}.jpg" for axis in "xy" for i in (1, 2, 3))]
    facts = json.loads((tmp_path / "flow" / "flow.json").read_text(encoding="utf-8"))
    assert facts == {
        "bound_px": 20,
        "fps": "25",
        "height_px": 37,
        "width_px": 51,
        "num_pairs": 3,
        "recipe": RECIPE,
    }
    files = open_flow_files(tmp_path / "flow", "walk.mp4", bound_px=32)  # flow.json knows better
    assert len(files) == 3
    for index in (1, 2):
        assert np.abs(files[index] - flow[index]).max() <= 20 / 255 + 6 * 40 / 255  # JPEG: a few levels
        assert mean_end_point_error(files[index], flow[index]) < 0.2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_npz_can_be_read_again(tmp_path, dtype):
    flow = some_flow(3)
    write_flow(tmp_path / "flow.npz", flow, dtype=dtype)
    with np.load(tmp_path / "flow.npz", allow_pickle=False) as arrays:
        assert arrays["flow"].dtype == dtype
        np.testing.assert_array_equal(arrays["flow"], flow.astype(dtype))
        np.testing.assert_allclose(arrays["seconds"], [0, 0.04, 0.08])
        assert json.loads(str(arrays["recipe"])) == RECIPE
    with open_flow_files(tmp_path / "flow.npz", "walk.mp4") as files:
        np.testing.assert_allclose(np.stack(list(files)), flow, atol=0.004)


def test_equal_flow_gives_equal_archives(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_flow(tmp_path / name, some_flow(2))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("suffix", FILM_CODECS)
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
def test_films_decode_with_every_pair(tmp_path, suffix, fps):
    flow = some_flow(7)  # 51×37: both odd
    write_flow(tmp_path / f"film{suffix}", flow, fps=fps)
    with av.open(str(tmp_path / f"film{suffix}")) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(float(fps), rel=1e-3)
    assert len(pictures) == 7
    assert pictures[0].shape == (38, 52, 3)
    error = np.abs(pictures[3][:37, :51].astype(int) - flow_to_rgb(flow[3], 15)).mean()
    assert error < 12, error


@targets
def test_what_exists_is_replaced_only_when_asked(tmp_path, name):
    path = tmp_path / name
    write_flow(path, some_flow(4))
    with pytest.raises(OutputExists, match="--overwrite"):
        write_flow(path, some_flow(2))
    write_flow(path, some_flow(2), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    if name in ("flow", "flow.npz"):
        assert len(open_flow_files(path, "walk.mp4")) == 2


@targets
def test_an_exception_leaves_nothing(tmp_path, name):
    with (
        pytest.raises(KeyboardInterrupt),
        open_flow_output(tmp_path / name, fps=Fraction(25), bound_px=20, max_px=15, recipe=RECIPE) as output,
    ):
        output.write(some_flow(1)[0], 0.0)
        assert not (tmp_path / name).exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@targets
def test_an_exception_leaves_the_old_output(tmp_path, name):
    path = tmp_path / name
    write_flow(path, some_flow(1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ShapeError):
        write_flow(path, np.zeros((2, 8, 8, 3), np.float32), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@targets
def test_all_fields_have_one_size(tmp_path, name):
    fields = [np.zeros((16, 16, 2), np.float32), np.zeros((16, 18, 2), np.float32)]
    with pytest.raises(ShapeError, match=r"\(16, 18, 2\)"):
        write_flow(tmp_path / name, fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flow", "flow.npz"])
def test_a_video_of_one_frame_has_no_pairs(tmp_path, name):
    write_flow(tmp_path / name, [])
    assert len(open_flow_files(tmp_path / name, "walk.mp4")) == 0


def test_a_film_without_pairs_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="nothing to film"):
        write_flow(tmp_path / "film.mp4", [])
    assert list(tmp_path.iterdir()) == []


@targets
def test_tiny_fields_can_be_written(tmp_path, name):
    write_flow(tmp_path / name, np.zeros((2, 1, 1, 2), np.float32))
    assert (tmp_path / name).exists()


def test_parents_are_made_and_dots_in_a_directory_need_a_slash(tmp_path):
    write_flow(f"{tmp_path}/a/b/my.video/", some_flow(1))
    assert len(open_flow_files(tmp_path / "a" / "b" / "my.video", "my.video.mp4")) == 1
    with pytest.raises(UsageError, match=r"cannot write flow as '\.gif'.*a directory, \.npz, or a film"):
        write_flow(tmp_path / "x.gif", some_flow(1))


def test_overwriting_never_deletes_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(OutputExists, match="holds other files"):
        write_flow(tmp_path, some_flow(1), overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "flow").mkdir()
    write_flow(tmp_path / "flow", some_flow(2))
    assert len(open_flow_files(tmp_path / "flow", "walk.mp4")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow"]


@targets
def test_what_cannot_be_written_is_explained(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_flow(tmp_path / "file" / name, some_flow(1))


def test_npz_holds_floats_only(tmp_path):
    with pytest.raises(UsageError, match="float16 or float32"):
        write_flow(tmp_path / "flow.npz", some_flow(1), dtype=np.uint8)
