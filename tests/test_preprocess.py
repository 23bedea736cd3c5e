"""Resize and crop against torchvision, which the networks were published with."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vid3d_cli.preprocess import centre_crop, resize_short_side, resized_size


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "short_side_px"),
    [(240, 320, 256), (1080, 1920, 256), (131, 97, 64), (97, 131, 64), (100, 100, 30), (33, 500, 16), (7, 9, 40)],
)
def test_resize_gives_the_pixels_of_torchvision(height, width, short_side_px):
    picture = noise(height, width)
    expected = np.asarray(tvf.resize(Image.fromarray(picture), short_side_px, antialias=True))
    resized = resize_short_side(picture, short_side_px)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, expected)


@settings(max_examples=200)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 60))
def test_sizes_of_any_aspect_ratio_are_those_of_torchvision(height, width, short_side_px):
    expected = tvf.resize(Image.new("RGB", (width, height)), short_side_px)
    assert resized_size(height, width, short_side_px) == (expected.height, expected.width)
    assert resize_short_side(noise(height, width), short_side_px).shape == (expected.height, expected.width, 3)


def test_a_frame_of_the_right_size_is_not_touched():
    picture = noise(40, 60)
    assert resize_short_side(picture, 40) is picture


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 12), st.sampled_from(["uint8", "float32"]))
def test_crop_is_that_of_torchvision(size_px, half_margin_y, half_margin_x, dtype):
    image = noise(size_px + 2 * half_margin_y, size_px + 2 * half_margin_x).astype(dtype)
    expected = tvf.center_crop(torch.from_numpy(image).permute(2, 0, 1), size_px).permute(1, 2, 0)
    cropped = centre_crop(image, size_px)
    assert cropped.dtype == dtype
    np.testing.assert_array_equal(cropped, expected.numpy())


def test_an_odd_margin_leaves_the_extra_pixel_on_the_right_and_at_the_bottom():
    image = noise(7, 10)
    np.testing.assert_array_equal(centre_crop(image, 4), image[1:5, 3:7])
    np.testing.assert_array_equal(centre_crop(image, 5), image[1:6, 2:7])


@pytest.mark.parametrize("size_px", [6, 8])
def test_the_crop_is_a_copy(size_px):
    image = noise(8, 8)
    before = image.copy()
    cropped = centre_crop(image, size_px)
    assert not np.shares_memory(cropped, image)
    cropped[:] = 0
    np.testing.assert_array_equal(image, before)
