"""The Middlebury colours of optical flow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .fields import check_field


def _colour_wheel() -> NDArray[np.float32]:
    """Return (55, 3) colours in [0, 1]: one turn from red to red, with more steps where the eye sees more hues."""
    red, yellow, green, cyan, blue, magenta = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=np.float32
    )
    arcs = [(red, yellow, 15), (yellow, green, 6), (green, cyan, 4), (cyan, blue, 11), (blue, magenta, 13)]
    arcs.append((magenta, red, 6))
    # Whole levels, as published: torchvision and flow_vis draw exactly these.
    levels = [
        255 * start + (end - start) * np.floor(255 * np.arange(steps)[:, None] / steps) for start, end, steps in arcs
    ]
    return np.asarray(np.concatenate(levels) / 255, dtype=np.float32)


_WHEEL = _colour_wheel()


def flow_to_rgb(flow: NDArray[np.float32], max_px: float) -> NDArray[np.uint8]:
    """Return a field drawn with the colour wheel of Baker et al. (IJCV 2011), known from Middlebury.

    The hue shows the direction, the saturation the length: no motion is white, `max_px` is fully saturated. Longer
    vectors are darkened to 75 %, as in Middlebury's `colorcode.cpp`.

    Args:
        flow: (H, W, 2), pixels per frame step.
        max_px: length that is drawn fully saturated.

    Returns:
        (H, W, 3), RGB.

    Raises:
        ShapeError: the array is not a field.
        UsageError: `max_px` is not a positive number.
    """
    check_field(flow)
    if not max_px > 0:
        raise UsageError(f"the longest motion drawn must be a positive number of pixels, got {max_px}")
    x, y = np.asarray(flow[..., 0], np.float32), np.asarray(flow[..., 1], np.float32)
    length = np.hypot(x, y)[..., None] / np.float32(max_px)
    position = (np.arctan2(-y, -x) / np.float32(np.pi) + 1) / 2 * (len(_WHEEL) - 1)
    below = position.astype(np.int32)
    share = (position - below)[..., None]
    hue = (1 - share) * _WHEEL[below] + share * _WHEEL[(below + 1) % len(_WHEEL)]
    colour = np.where(length <= 1, 1 - length * (1 - hue), np.float32(0.75) * hue)
    return np.asarray(np.floor(255 * colour), dtype=np.uint8)
