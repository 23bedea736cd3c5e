"""Resize and crop against torchvision, whose preprocessing the networks were trained with."""

import contextlib

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
import torchvision.transforms.v2.functional as tvf2
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vid3d_cli.clips.preprocess import (
    CROPS,
    INTERPOLATIONS,
    Crop,
    Views,
    check_resized_size,
    describe_crops,
    parse_crops,
    parse_resize,
    place_crops,
    resize,
    resized_size,
)
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


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_rotated_and_read_only_frames_are_resized_alike(interpolation):
    image = noise(60, 40)
    turned, borrowed = np.rot90(np.rot90(image, 2).copy(), 2), image.copy()
    borrowed.flags.writeable = False
    for other in (turned, borrowed):
        np.testing.assert_array_equal(resize(other, 30, interpolation), resize(image, 30, interpolation))


@pytest.mark.parametrize(
    ("height", "width", "size_px"),
    [(240, 320, (256, 340)), (481, 853, (256, 340)), (353, 199, (256, 340)), (131, 97, 64), (33, 501, 16), (7, 9, 40)],
)
def test_lanczos_is_pillows_and_bilinear_is_opencvs(height, width, size_px):
    image = noise(height, width)
    new_height, new_width = resized_size(height, width, size_px)
    of_pil = Image.fromarray(image).resize((new_width, new_height), Image.LANCZOS)
    np.testing.assert_array_equal(resize(image, size_px, "lanczos"), np.asarray(of_pil))
    of_opencv = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(image, size_px, "bilinear"), of_opencv)


@pytest.mark.parametrize(
    ("text", "size_px"), [("256", 256), (256, 256), ("340x256", (256, 340)), ("1x4096", (4096, 1))]
)
def test_a_size_is_a_short_side_or_width_and_height(text, size_px):
    assert parse_resize(text) == size_px


@pytest.mark.parametrize("text", ["", "0", "-256", "256 px", "340x", "x256", "340×256", "0x256", "1.5", "²", "256\n"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match="give the pixels of the short side"):
        parse_resize(text)


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
    resized = resize(image, size_px, "bilinear")
    assert resized.dtype == np.uint8
    # OpenCV rounds its weights to 11 bits
    assert np.abs(resized.astype(int) - expected).max() <= 1
    assert np.abs(resized.astype(int) - resize(image, size_px)).max() > 10 or height < size[0]


def cut(crops, image, size_px, rounding="down"):
    return [crop.cut(image) for crop in place_crops(parse_crops(crops), *image.shape[:2], size_px, rounding)]


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(0, 24), st.integers(0, 24), st.sampled_from(["uint8", "float32"]))
def test_crops_are_those_of_torchvision(size_px, margin_y, margin_x, dtype):
    image = noise(size_px + margin_y, size_px + margin_x).astype(dtype)
    expected = tvf.ten_crop(torch.from_numpy(image).permute(2, 0, 1), size_px)
    cropped = cut(10, image, size_px, "even")
    assert {crop.dtype for crop in cropped} == {np.dtype(dtype)}
    for ours, theirs in zip(cropped, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(cut(1, image, size_px, "even")[0], cropped[4])


def sliced(name, image, size_px):
    """A crop by slices: the edge of the frame that a name gives, counted from that edge."""
    bottom, right = (side - size_px for side in image.shape[:2])
    if name.endswith("m"):
        there = {"tl": "tr", "tr": "tl", "bl": "br", "br": "bl"}  # a left square is on the right of the mirrored frame
        if bottom <= right:
            there |= {"start": "end", "end": "start"}
        return sliced(there.get(name[:-1], name[:-1]), image[:, ::-1], size_px)
    if name in ("start", "end") and bottom > right:
        return sliced(name, image.swapaxes(0, 1), size_px).swapaxes(0, 1)
    middle_y, middle_x = bottom // 2, right // 2
    first, last = slice(None, size_px), slice(-size_px, None)
    rows, columns = slice(middle_y, middle_y + size_px), slice(middle_x, middle_x + size_px)
    rows = {"t": first, "b": last}.get(name[0], rows)
    columns = {"l": first, "r": last}.get(name[1:], columns)
    columns = {"start": first, "end": last}.get(name, columns)
    return image[rows, columns]


NAMES = [name + m for name in ("tl", "tr", "c", "bl", "br", "start", "end") for m in ("", "m")]


@settings(max_examples=100)
@given(st.integers(1, 20), st.integers(0, 9), st.integers(0, 9), st.lists(st.sampled_from(NAMES), min_size=1))
def test_a_list_names_crops_in_any_order(size_px, margin_y, margin_x, names):
    image = noise(size_px + margin_y, size_px + margin_x)
    for name, cropped in zip(names, cut(" ,".join(names), image, size_px), strict=True):
        np.testing.assert_array_equal(cropped, sliced(name, image, size_px))


def test_crops_in_the_order_of_ur_dmu():
    """Source: oversample_data in henrryzh1/UR-DMU, feature_extract/i3d_extract.py, lines 27 to 45."""
    image = noise(256, 340)
    expected = []
    for frame in (image, image[:, ::-1]):
        expected += [frame[:224, :224], frame[:224, -224:], frame[16:240, 58:282]]
        expected += [frame[-224:, :224], frame[-224:, -224:]]
    for cropped, theirs in zip(cut("tl,tr,c,bl,br,trm,tlm,cm,brm,blm", image, 224), expected, strict=True):
        np.testing.assert_array_equal(cropped, theirs)


@pytest.mark.parametrize(("crops", "text"), [(10, "10"), ("start,c,end", "3"), ("c", "1"), ("tl, cm", "tl, cm")])
def test_a_list_is_described_in_full_unless_a_number_stands_for_it(crops, text):
    assert describe_crops(parse_crops(crops)) == text


def test_an_odd_margin_leaves_the_extra_pixel_on_the_right_and_at_the_bottom():
    image = noise(7, 10)
    np.testing.assert_array_equal(cut(1, image, 4)[0], image[1:5, 3:7])
    np.testing.assert_array_equal(cut(1, image, 5)[0], image[1:6, 2:7])


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 40), st.sampled_from([1, 3, 10]))
def test_every_crop_lies_inside_and_together_they_reach_the_ends(size_px, margin_y, margin_x, num_crops):
    height, width = size_px + margin_y, size_px + margin_x
    crops = place_crops(parse_crops(num_crops), height, width, size_px)
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
@pytest.mark.parametrize("crops", CROPS)
def test_crops_are_copies(size_px, crops):
    image = noise(8, 8)
    before = image.copy()
    for cropped in cut(crops, image, size_px):
        assert not np.shares_memory(cropped, image)
        cropped[:] = 0
    np.testing.assert_array_equal(image, before)


def test_views_give_the_same_square_of_every_clip():
    clips = [np.stack([noise(9, 14, seed) for seed in seeds]) for seeds in ([0, 1], [2, 3])]
    for view, crop in zip(Views(CROPS["3"], 9).cut(clips), place_crops(CROPS["3"], 9, 14, 9), strict=True):
        for cropped, clip in zip(view, clips, strict=True):
            np.testing.assert_array_equal(cropped, clip[:, :, crop.left : crop.left + 9])


@pytest.mark.parametrize("crops", [0, 2, 5, -1, "", "tl,", "m", "tlmm", "TL", "10,tl", "centre"])
def test_other_crops_are_refused(crops):
    with pytest.raises(UsageError, match="give 1, 3, 10, or a list of tl, tr, c, bl, br, start, end"):
        parse_crops(crops)


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
