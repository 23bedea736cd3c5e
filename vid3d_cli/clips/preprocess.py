"""Frames to the size the network was trained on, still uint8: resize, then crop, once or several times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import TooLarge, UsageError

_Scalar = TypeVar("_Scalar", bound=np.generic)

NUM_CROPS = (1, 3, 10)
"""The centre; the two ends and the middle of the long side; the four corners and the centre, then mirrored."""


def resized_size(height: int, width: int, size_px: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) after the resize.

    Args:
        height: of the frame.
        width: of the frame.
        size_px: of the short side, when the long side keeps the aspect ratio and is truncated, as torchvision does; or
            (height, width), whatever the aspect ratio was.
    """
    if not isinstance(size_px, int):
        return size_px
    if height <= width:
        return size_px, int(size_px * width / height)
    return int(size_px * height / width), size_px


MAX_RESIZED_PIXELS = 2**24
"""Of a frame: a picture whose long side is 250 times its short one still fits at 256 px."""


def check_resized_size(video: str, height: int, width: int, size_px: int | tuple[int, int]) -> None:
    """Raise TooLarge for frames so long and thin that their short side cannot be `size_px`; see `resized_size`."""
    resized_height, resized_width = resized_size(height, width, size_px)
    if resized_height * resized_width > MAX_RESIZED_PIXELS:
        raise TooLarge(
            video,
            f"its frames of {width}×{height} px would be resized to {resized_width}×{resized_height}: crop them first",
        )


def resize(rgb: NDArray[np.uint8], size_px: int | tuple[int, int], *, antialias: bool = True) -> NDArray[np.uint8]:
    """Resize a frame by bilinear interpolation.

    Args:
        rgb: (H, W, 3).
        size_px: see `resized_size`; a frame that has the size already is returned as it is.
        antialias: widen the filter on shrinking, as PIL and the original extractors do; False takes the four nearest
            pixels, as OpenCV does and torchvision and pytorchvideo did in training.

    Returns:
        (H', W', 3) uint8.
    """
    height, width = resized_size(rgb.shape[0], rgb.shape[1], size_px)
    if (height, width) == rgb.shape[:2]:
        return rgb
    if antialias:
        from .resampling import resample

        return resample(rgb, height, width)
    resized: Any = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def describe_resize(size_px: int | tuple[int, int], *, antialias: bool = True) -> str:
    """The same in words that can be compared, as in "short side 256 px, antialiased bilinear"."""
    what = f"short side {size_px} px" if isinstance(size_px, int) else f"{size_px[0]} × {size_px[1]} px (h × w)"
    return f"{what}, {'antialiased ' if antialias else ''}bilinear"


@dataclass(frozen=True)
class Crop:
    """A square of a frame, or of its mirror image."""

    top: int
    left: int
    size_px: int
    mirrored: bool = False
    """Left and right change places, and horizontal motion its sign."""

    def cut(self, frames: NDArray[_Scalar], *, is_flow: bool = False) -> NDArray[_Scalar]:
        """Cut the square out of frames (…, H, W, C), or of flow (…, H, W, 2) in pixels or as uint8; a copy."""
        rows = slice(self.top, self.top + self.size_px)
        columns = slice(self.left, self.left + self.size_px)
        square: NDArray[_Scalar] = frames[..., rows, columns, :].copy()
        if self.mirrored:
            square = square[..., ::-1, :].copy()
        if self.mirrored and is_flow:
            square[..., 0] = 255 - square[..., 0] if square.dtype == np.uint8 else np.negative(square[..., 0])
        return square


def check_num_crops(num_crops: int) -> None:
    """Raise UsageError for a number that is not one of `NUM_CROPS`."""
    if num_crops not in NUM_CROPS:
        raise UsageError(f"cannot cut {num_crops} crops: choose one of {', '.join(map(str, NUM_CROPS))}")


def place_crops(num_crops: int, height: int, width: int, size_px: int) -> list[Crop]:
    """Where the squares of a frame lie.

    Args:
        num_crops: one of `NUM_CROPS`.
        height: of the resized frame, at least `size_px`.
        width: of the resized frame, at least `size_px`.
        size_px: side of a square; an odd margin leaves the extra pixel on the right and at the bottom.

    Returns:
        The centre; the start, middle and end of the long side, each in the middle of the short one; or top left, top
        right, bottom left, bottom right and centre, then the mirror images of the right, the left, … ones, as
        torchvision's `ten_crop` orders them.

    Raises:
        UsageError: another number of crops.
    """
    check_num_crops(num_crops)
    bottom, right = height - size_px, width - size_px
    top, left = bottom // 2, right // 2
    centre = Crop(top, left, size_px)
    if num_crops == 1:
        return [centre]
    if num_crops == 3:
        ends = (Crop(0, left, size_px), Crop(bottom, left, size_px))
        if width >= height:
            ends = (Crop(top, 0, size_px), Crop(top, right, size_px))
        return [ends[0], centre, ends[1]]
    corners = [Crop(y, x, size_px) for y in (0, bottom) for x in (0, right)]
    mirrored = [Crop(y, x, size_px, mirrored=True) for y in (0, bottom) for x in (right, 0)]
    return [*corners, centre, *mirrored, Crop(top, right - left, size_px, mirrored=True)]


@dataclass(frozen=True)
class Views:
    """The crops that are run of every clip, where there is more than the centre; their scores are averaged."""

    num_crops: int
    """One of `NUM_CROPS`."""
    size_px: int
    """Side of a square."""
    are_kept: bool = False
    """Whether the features of each stay apart."""

    def cut(self, clips: Sequence[NDArray[Any]], *, is_flow: bool = False) -> Iterator[list[NDArray[Any]]]:
        """The same square of all clips (T, H, W, C), of equal size, square after square; see `place_crops`."""
        for crop in place_crops(self.num_crops, clips[0].shape[1], clips[0].shape[2], self.size_px):
            yield [crop.cut(frames, is_flow=is_flow) for frames in clips]
