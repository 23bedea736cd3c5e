"""Resizes and crops frames to the size that a network was trained on; they stay uint8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import TooLarge, UsageError
from .resampling import resample

_Scalar = TypeVar("_Scalar", bound=np.generic)

NUM_CROPS = (1, 3, 10)
"""Numbers of crops: 1 is the centre; 3 are both ends and the middle of the long side; 10 are the four corners and the
centre, and the same mirrored."""


def resized_size(height: int, width: int, size_px: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels after a resize.

    Args:
        height: height of the frame.
        width: width of the frame.
        size_px: length of the short side; the long side keeps the aspect ratio, rounded down, as in torchvision. Or
            (height, width), which ignores the aspect ratio.
    """
    if not isinstance(size_px, int):
        return size_px
    if height <= width:
        return size_px, int(size_px * width / height)
    return int(size_px * height / width), size_px


MAX_RESIZED_PIXELS = 2**24
"""Largest resized frame: at 256 px, a frame 250 times as long as wide still fits."""


def check_resized_size(video: str, height: int, width: int, size_px: int | tuple[int, int]) -> None:
    """Raise TooLarge if a resize would make frames larger than `MAX_RESIZED_PIXELS`; see `resized_size`."""
    resized_height, resized_width = resized_size(height, width, size_px)
    if resized_height * resized_width > MAX_RESIZED_PIXELS:
        raise TooLarge(
            video,
            f"frames of {width}×{height} px would be resized to {resized_width}×{resized_height}: crop the video first",
        )


def resize(rgb: NDArray[np.uint8], size_px: int | tuple[int, int], *, antialias: bool = True) -> NDArray[np.uint8]:
    """Return a frame resized by bilinear interpolation.

    Args:
        rgb: (H, W, 3) uint8.
        size_px: see `resized_size`; a frame that already has this size is returned as it is.
        antialias: widen the filter when shrinking, as PIL and the original extractors do, with the bytes of torchvision
            (see `resampling`). False interpolates between the four nearest pixels, as OpenCV does, and torchvision and
            pytorchvideo in training.

    Returns:
        (H', W', 3) uint8.
    """
    height, width = resized_size(rgb.shape[0], rgb.shape[1], size_px)
    if (height, width) == rgb.shape[:2]:
        return rgb
    if antialias:
        return resample(rgb, height, width)
    resized: Any = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def describe_resize(size_px: int | tuple[int, int], *, antialias: bool = True) -> str:
    """Return a resize in words, for the recipe: "short side 256 px, antialiased bilinear"."""
    what = f"short side {size_px} px" if isinstance(size_px, int) else f"{size_px[0]} × {size_px[1]} px (h × w)"
    return f"{what}, {'antialiased ' if antialias else ''}bilinear"


@dataclass(frozen=True)
class Crop:
    """A square of a frame, mirrored or not. Pixel coordinates."""

    top: int
    left: int
    size_px: int
    mirrored: bool = False
    """Flip left and right, and negate horizontal flow."""

    def cut(self, frames: NDArray[_Scalar], *, is_flow: bool = False) -> NDArray[_Scalar]:
        """Return a copy of the square of frames (…, H, W, C), or of flow (…, H, W, 2) in float32 pixels or uint8."""
        rows = slice(self.top, self.top + self.size_px)
        columns = slice(self.left, self.left + self.size_px)
        square: NDArray[_Scalar] = frames[..., rows, columns, :].copy()
        if self.mirrored:
            square = square[..., ::-1, :].copy()
        if self.mirrored and is_flow:
            square[..., 0] = 255 - square[..., 0] if square.dtype == np.uint8 else np.negative(square[..., 0])
        return square


def check_num_crops(num_crops: int) -> None:
    """Raise UsageError unless a number of crops is one of `NUM_CROPS`."""
    if num_crops not in NUM_CROPS:
        raise UsageError(f"cannot cut {num_crops} crops: choose one of {', '.join(map(str, NUM_CROPS))}")


def place_crops(num_crops: int, height: int, width: int, size_px: int) -> list[Crop]:
    """Return the crops of a frame.

    Args:
        num_crops: one of `NUM_CROPS`.
        height: height of the resized frame, at least `size_px`.
        width: width of the resized frame, at least `size_px`.
        size_px: side of a square; an odd margin leaves the extra pixel on the right and at the bottom.

    Returns:
        1: the centre. 3: start, middle and end of the long side, centred on the short side. 10: top left, top right,
        bottom left, bottom right and centre, then the mirrored top right, top left, bottom right, bottom left and
        centre. The mirrored ones are in the order of torchvision's `ten_crop`.

    Raises:
        UsageError: the number of crops is not one of `NUM_CROPS`.
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
    """Several crops of each clip, which run one by one. Their scores are averaged."""

    num_crops: int
    """One of `NUM_CROPS`."""
    size_px: int
    """Side of a square."""
    are_kept: bool = False
    """Keep the features of each crop apart, rather than average them."""

    def cut(self, clips: Sequence[NDArray[Any]], *, is_flow: bool = False) -> Iterator[list[NDArray[Any]]]:
        """Yield the clips (T, H, W, C), all of one size, cut to one crop after the other; see `place_crops`."""
        for crop in place_crops(self.num_crops, clips[0].shape[1], clips[0].shape[2], self.size_px):
            yield [crop.cut(frames, is_flow=is_flow) for frames in clips]
