"""Frames to the size the network was trained on, still uint8: resize by the short side, crop the centre."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Scalar = TypeVar("_Scalar", bound=np.generic)


def resized_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """(height, width) after the short side became `short_side_px`; the long side is truncated, as torchvision does."""
    if height <= width:
        return short_side_px, int(short_side_px * width / height)
    return int(short_side_px * height / width), short_side_px


def resize_short_side(rgb: NDArray[np.uint8], short_side_px: int) -> NDArray[np.uint8]:
    """Resize a frame by antialiased bilinear interpolation.

    Args:
        rgb: (H, W, 3).
        short_side_px: length of the short side afterwards; a frame that has it already is returned as it is.

    Returns:
        (H', W', 3) uint8.

    Source: PIL's `Image.resize`, as in the original extractors; its filter widens on shrinking, OpenCV's does not.
    """
    height, width = resized_size(rgb.shape[0], rgb.shape[1], short_side_px)
    if (height, width) == rgb.shape[:2]:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def centre_crop(image: NDArray[_Scalar], size_px: int) -> NDArray[_Scalar]:
    """Cut the central square out of an image.

    Args:
        image: (H, W, C), no side shorter than `size_px`.
        size_px: side of the square; an odd margin leaves the extra pixel on the right and at the bottom.

    Returns:
        (size_px, size_px, C), a copy: the frame around it can be freed.
    """
    top = (image.shape[0] - size_px) // 2
    left = (image.shape[1] - size_px) // 2
    square: NDArray[_Scalar] = image[top : top + size_px, left : left + size_px].copy()
    return square
