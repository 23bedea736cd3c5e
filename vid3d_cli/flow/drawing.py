"""Draws flow for people: the frame beside the colours, the colour wheel with its scale, a sheet of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .colour import flow_to_rgb

Image8 = NDArray[np.uint8]

_MIN_SIDE_PX = 64
"""Smaller frames have no room for the wheel."""
_GAP_PX = 2
_GREY = (128, 128, 128)

SHEET_PAIRS = 12
"""Pairs on a sheet."""
_TILE_PX = (320, 240)
"""Largest width and height of a frame on a sheet."""
_MARGIN_PX, _BAND_PX = 12, 96


def draw_pair(rgb: Image8, flow: NDArray[np.float32], max_px: float) -> Image8:
    """Return a frame beside the colours of its flow, with the colour wheel in the corner.

    Args:
        rgb: (H, W, 3), the first frame of the pair.
        flow: (H, W, 2), pixels per frame step.
        max_px: motion that is fully saturated.

    Returns:
        (H, 2 W + 2, 3), RGB.
    """
    height, width = rgb.shape[:2]
    gap = np.full((height, _GAP_PX, 3), _GREY, np.uint8)
    colours = flow_to_rgb(flow, max_px)
    if min(height, width) >= _MIN_SIDE_PX:
        side_px = max(40, round(0.2 * min(height, width)))
        legend = _draw_scale(side_px, max_px)
        _paste(colours, legend, height - legend.height - 4, width - legend.width - 4)
    return np.hstack([rgb, gap, colours])


def draw_sheet(pairs: Sequence[tuple[NDArray[np.float32], float, Image8 | None]], max_px: float) -> Image8:
    """Return a grid of frames above the colours of their flow, with times, and the colour wheel below.

    Args:
        pairs: flow (H, W, 2), time in seconds, and first frame (H, W, 3) or None, of one size; at least one.
        max_px: motion that is fully saturated.

    Returns:
        (H', W', 3), RGB.
    """
    height, width = pairs[0][0].shape[:2]
    num_images = 1 if pairs[0][2] is None else 2
    share = min(_TILE_PX[0] / width, _TILE_PX[1] / height)
    tile_width, tile_height = max(1, round(share * width)), max(1, round(share * height))
    num_columns = min(6 if height > width else 4, len(pairs))
    num_rows = -(-len(pairs) // num_columns)
    step_x, step_y = tile_width + _MARGIN_PX, num_images * (tile_height + _GAP_PX) + _MARGIN_PX
    sheet = np.full(
        (num_rows * step_y + _MARGIN_PX + _BAND_PX, max(num_columns * step_x + _MARGIN_PX, 400), 3), 255, np.uint8
    )
    for number, (flow, seconds, rgb) in enumerate(pairs):
        row, column = divmod(number, num_columns)
        top, left = _MARGIN_PX + row * step_y, _MARGIN_PX + column * step_x
        colours = flow_to_rgb(flow, max_px)
        for image in [colours] if rgb is None else [rgb, colours]:
            small = cv2.resize(image, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
            sheet[top : top + tile_height, left : left + tile_width] = small
            top += tile_height + _GAP_PX
        # No motion is white: a line shows where the frame ends.
        bottom = top - _GAP_PX - 1
        cv2.rectangle(sheet, (left, bottom - tile_height + 1), (left + tile_width - 1, bottom), _GREY, 1)
        _paste(sheet, _draw_text(f"{seconds:.2f} s", 16), _MARGIN_PX + row * step_y + 4, left + 6)
    wheel = _draw_wheel(_BAND_PX - 2 * _MARGIN_PX, max_px)
    top = num_rows * step_y + _MARGIN_PX
    _paste(sheet, wheel, top, _MARGIN_PX)
    text = _draw_text(f"direction of motion; full colour: {max_px:g} px per frame", 16)
    _paste(sheet, text, top + (wheel.height - text.height) // 2, 2 * _MARGIN_PX + wheel.width)
    return sheet


@lru_cache(4)
def _draw_wheel(side_px: int, max_px: float) -> Image.Image:
    """Return a disc whose colour at each place is that of the motion from its centre to there."""
    side = 4 * side_px  # drawn larger, then shrunk, for a smooth edge
    places = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    field = np.stack(np.meshgrid(places, places), axis=-1) * np.float32(0.999 * max_px)
    disc = Image.fromarray(flow_to_rgb(field, max_px)).convert("RGBA")
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse([0, 0, side - 1, side - 1], fill=255)
    disc.putalpha(mask)
    ImageDraw.Draw(disc).ellipse([0, 0, side - 1, side - 1], outline=(90, 90, 90, 255), width=5)
    return disc.resize((side_px, side_px), Image.Resampling.LANCZOS)


@lru_cache(4)
def _draw_scale(side_px: int, max_px: float) -> Image.Image:
    """Return the wheel above the motion of its rim."""
    wheel, text = _draw_wheel(side_px, max_px), _draw_text(f"{max_px:g} px/frame", max(11, side_px // 4))
    drawn = Image.new("RGBA", (max(wheel.width, text.width), wheel.height + text.height))
    drawn.alpha_composite(wheel, ((drawn.width - wheel.width) // 2, 0))
    drawn.alpha_composite(text, ((drawn.width - text.width) // 2, wheel.height))
    return drawn


def _draw_text(text: str, size_px: int) -> Image.Image:
    """Return black text with a white edge: it is legible on any colours."""
    font = ImageFont.load_default(size_px)
    box = font.getbbox(text, stroke_width=2)
    drawn = Image.new("RGBA", (int(box[2] - box[0]) + 2, int(box[3] - box[1]) + 2))
    place = (1 - box[0], 1 - box[1])
    ImageDraw.Draw(drawn).text(place, text, font=font, fill="black", stroke_width=2, stroke_fill="white")
    return drawn


def _paste(image: Image8, drawn: Image.Image, top: int, left: int) -> None:
    """Draw into an image, in place; what lies outside is cut."""
    part = image[max(top, 0) : top + drawn.height, max(left, 0) : left + drawn.width]
    pixels = np.asarray(drawn, np.float32)[: part.shape[0], : part.shape[1]]
    share = pixels[..., 3:] / 255
    part[:] = np.rint(share * pixels[..., :3] + (1 - share) * part)
