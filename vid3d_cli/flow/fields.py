"""Arithmetic on frames and flow fields: grey frames, 8-bit quantisation, resizing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError, UsageError

DEFAULT_BOUND_PX = 20.0
"""Flow is clipped to ± this. Source: kinetics-i3d README, "Sample data and preprocessing"."""


def to_grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grey version of a frame, 0.299 R + 0.587 G + 0.114 B: flow is computed on it.

    Args:
        rgb: (H, W, 3).

    Returns:
        (H, W).

    Raises:
        ShapeError: the array is not an RGB frame.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0 or rgb.dtype != np.uint8:
        raise ShapeError(f"expected a frame (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def check_grey(grey: NDArray[np.uint8]) -> None:
    """Check that an array is a stack of grey frames.

    Raises:
        ShapeError: it is not (T, H, W) uint8 with T ≥ 1.
    """
    if grey.ndim != 3 or 0 in grey.shape or grey.dtype != np.uint8:
        raise ShapeError(f"expected grey frames (T, H, W) uint8 with T ≥ 1, got {grey.shape} {grey.dtype}")


def check_field(flow: NDArray[Any]) -> None:
    """Check that an array is a flow field.

    Raises:
        ShapeError: it is not (H, W, 2), or it is empty.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise ShapeError(f"expected flow (H, W, 2), got {flow.shape}")


def check_bound(bound_px: float) -> None:
    """Check that a flow bound is a positive, finite number of pixels.

    Raises:
        UsageError: it is not.
    """
    if not 0 < bound_px < float("inf"):
        raise UsageError(f"the flow bound must be a positive number of pixels, got {bound_px}")


def quantise_flow(flow: NDArray[Any], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.uint8]:
    """Return flow as 8-bit levels, as in the images of the training data: clipped to ±bound, mapped to 0…255.

        -20 → 0    0 → 128 (127.5, half to even)    20 → 255

    Args:
        flow: (…, 2), pixels per frame step.
        bound_px: where flow is clipped.

    Returns:
        The same shape.

    Raises:
        UsageError: the bound is not a positive number.

    Source: `CAST` in yjxiong/dense_flow; in double precision, as there, so that ties round alike.
    """
    check_bound(bound_px)
    levels = np.array(flow, dtype=np.float64)  # a copy, changed in place: a new array for each step takes longer
    np.clip(levels, -bound_px, bound_px, out=levels)
    levels += bound_px
    levels *= 255
    levels /= 2 * bound_px
    return np.rint(levels, out=levels).astype(np.uint8)


def dequantise_flow(image: NDArray[np.uint8], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.float32]:
    """Return the flow that 8-bit levels stand for, within bound / 255 of the clipped original.

    Zero motion becomes +0.08 px at the default bound, because 128 is not the exact middle.

    Args:
        image: levels 0 to 255, of any shape.
        bound_px: the bound that the levels were made with.

    Returns:
        The same shape, pixels per frame step.

    Raises:
        UsageError: the bound is not a positive number.
    """
    check_bound(bound_px)
    return np.asarray(image * (2 * bound_px / 255) - bound_px, dtype=np.float32)


def resize_flow(flow: NDArray[np.float32], height: int, width: int, *, rescale: bool = True) -> NDArray[np.float32]:
    """Return a field resized bilinearly, with its vectors rescaled: half the width, half the motion in x.

    Args:
        flow: (H, W, 2), in pixels of the old size.
        height: new height in pixels.
        width: new width in pixels.
        rescale: False leaves vectors as long as they are.

    Returns:
        (height, width, 2), in pixels of the new size; without `rescale`, of the old one.

    Raises:
        ShapeError: the array is not a field, or a new side is below 1 px.
    """
    check_field(flow)
    if height < 1 or width < 1:
        raise ShapeError(f"cannot resize flow to {height}×{width} px")
    old_height, old_width = flow.shape[:2]
    resized: Any = cv2.resize(np.ascontiguousarray(flow, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if rescale:
        resized = resized * np.array([width / old_width, height / old_height])
    return np.asarray(resized, dtype=np.float32)
