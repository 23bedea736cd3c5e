"""Resize and crop against torchvision, whose preprocessing the networks were trained with."""

import contextlib

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
import torchvision.transforms.v2.functional as tvf2
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vid3d_cli.clips.preprocess import NUM_CROPS, Crop, Views, check_resized_size, place_crops, resize, resized_size
from vid3d_cli.errors import TooLarge, UsageError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "short_side_px"),
    [(240, 320, 256), (1080, 1920, 256), (131, 97, 64), (97, 131, 64), (100, 100, 30), (33, 500, 16), (7, 9, 40)],
)
def test_resize_gives_the_pixels_of_torchvision(height, width, short_side_px):
    image = noise(height, width)
    resized = resize(image, short_side_px)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    expected = tvf2.resize(torch.from_numpy(image).permute(2, 0, 1), [short_side_px], antialias=True)
    np.testing.assert_array_equal(resized, expected.permute(1, 2, 0))
    of_pil = np.asarray(tvf.resize(Image.fromarray(image), short_side_px)).astype(int)
    assert np.abs(resized - of_pil).max() <= 1
    assert (resized != of_pil).mean() <= 0.005


def test_rotated_and_read_only_frames_are_resized_alike():
    image = noise(60, 40)
    turned, borrowed = np.rot90(np.rot90(image, 2).copy(), 2), image.copy()
    borrowed.flags.writeable = False
    for other in (turned, borrowed):
        np.testing.assert_array_equal(resize(other, 30), resize(image, 30))


@settings(max_examples=200)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 60))
def test_sizes_of_any_aspect_ratio_are_those_of_torchvision(height, width, short_side_px):
    expected = tvf.resize(Image.new("RGB", (width, height)), short_side_px)
    assert resized_size(height, width, short_side_px) == (expected.height, expected.width)
    assert resize(noise(height, width), short_side_px).shape == (expected.height, expected.width, 3)


def test_a_frame_of_the_right_size_is_not_touched():
    image = noise(40, 60)
    assert resize(image, 40) is image


@pytest.mark.parametrize("size_px", [(128, 171), (182, 242), (256, 256), (300, 20)])
def test_an_exact_size_does_not_keep_the_aspect_ratio(size_px):
    image = noise(240, 320)
    expected = tvf2.resize(torch.from_numpy(image).permute(2, 0, 1), list(size_px), antialias=True)
    np.testing.assert_array_equal(resize(image, size_px), expected.permute(1, 2, 0))


@pytest.mark.parametrize(("height", "width", "size_px"), [(240, 320, (128, 171)), (360, 480, 256), (60, 40, (90, 100))])
def test_without_antialiasing_it_is_torchvisions_without(height, width, size_px):
    image = noise(height, width)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    size = list(resized_size(height, width, size_px))
    expected = tvf.resize(tensor, size, antialias=False).permute(1, 2, 0).numpy()
    resized = resize(image, size_px, antialias=False)
    assert resized.dtype == np.uint8
    # OpenCV rounds its weights to 11 bits
    assert np.abs(resized.astype(int) - expected).max() <= 1
    assert np.abs(resized.astype(int) - resize(image, size_px)).max() > 10 or height < size[0]


def cut(num_crops, image, size_px):
    return [crop.cut(image) for crop in place_crops(num_crops, *image.shape[:2], size_px)]


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 12), st.sampled_from(["uint8", "float32"]))
def test_crops_are_those_of_torchvision(size_px, half_margin_y, half_margin_x, dtype):
    image = noise(size_px + 2 * half_margin_y, size_px + 2 * half_margin_x).astype(dtype)
    expected = tvf.ten_crop(torch.from_numpy(image).permute(2, 0, 1), size_px)
    cropped = cut(10, image, size_px)
    assert {crop.dtype for crop in cropped} == {np.dtype(dtype)}
    for ours, theirs in zip(cropped, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(cut(1, image, size_px)[0], cropped[4])


def test_an_odd_margin_leaves_the_extra_pixel_on_the_right_and_at_the_bottom():
    image = noise(7, 10)
    np.testing.assert_array_equal(cut(1, image, 4)[0], image[1:5, 3:7])
    np.testing.assert_array_equal(cut(1, image, 5)[0], image[1:6, 2:7])


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 40), st.sampled_from(NUM_CROPS))
def test_every_crop_lies_inside_and_together_they_reach_the_ends(size_px, margin_y, margin_x, num_crops):
    height, width = size_px + margin_y, size_px + margin_x
    crops = place_crops(num_crops, height, width, size_px)
    assert len(crops) == num_crops
    assert all(0 <= c.top <= margin_y and 0 <= c.left <= margin_x and c.size_px == size_px for c in crops)
    if num_crops == 3:  # along the long side
        ends = [(c.left if width >= height else c.top) for c in crops]
        assert (ends[0], ends[2]) == (0, max(margin_y, margin_x))
    if num_crops == 10:
        for half in (crops[:5], crops[5:]):
            corners = {(y, x) for y in (0, margin_y) for x in (0, margin_x)}
            assert corners <= {(c.top, c.left) for c in half}


def test_the_mirror_image_of_motion_moves_the_other_way():
    motion = np.random.default_rng(0).normal(size=(2, 6, 8, 2)).astype(np.float32)
    mirrored = Crop(0, 0, 6, mirrored=True).cut(motion, is_flow=True)
    np.testing.assert_array_equal(mirrored[..., 0], -motion[:, :, 5::-1, 0])
    np.testing.assert_array_equal(mirrored[..., 1], motion[:, :, 5::-1, 1])
    quantised = np.array([[[[0, 7], [255, 9]], [[127, 0], [128, 0]]]], np.uint8)
    expected = [[[[0, 9], [255, 7]], [[127, 0], [128, 0]]]]
    np.testing.assert_array_equal(Crop(0, 0, 2, mirrored=True).cut(quantised, is_flow=True), expected)


@pytest.mark.parametrize("size_px", [6, 8])
@pytest.mark.parametrize("num_crops", NUM_CROPS)
def test_crops_are_copies(size_px, num_crops):
    image = noise(8, 8)
    before = image.copy()
    for cropped in cut(num_crops, image, size_px):
        assert not np.shares_memory(cropped, image)
        cropped[:] = 0
    np.testing.assert_array_equal(image, before)


def test_views_give_the_same_square_of_every_clip():
    clips = [np.stack([noise(9, 14, seed) for seed in seeds]) for seeds in ([0, 1], [2, 3])]
    for view, crop in zip(Views(3, 9).cut(clips), place_crops(3, 9, 14, 9), strict=True):
        for cropped, clip in zip(view, clips, strict=True):
            np.testing.assert_array_equal(cropped, clip[:, :, crop.left : crop.left + 9])


@pytest.mark.parametrize("num_crops", [0, 2, 5, -1])
def test_other_numbers_of_crops_are_refused(num_crops):
    with pytest.raises(UsageError, match="choose one of 1, 3, 10"):
        place_crops(num_crops, 10, 10, 5)


@pytest.mark.parametrize(
    ("height", "width", "size_px", "is_too_large"),
    [
        (256, 64000, 256, False),
        (1, 250, 256, False),
        (1, 4000, 256, True),
        (4000, 1, 112, True),
        (1, 9999, (9, 9), False),
    ],
)
def test_frames_that_no_resize_makes_small_are_refused(height, width, size_px, is_too_large):
    with pytest.raises(TooLarge, match="crop the video first") if is_too_large else contextlib.nullcontext():
        check_resized_size("a.mp4", height, width, size_px)
