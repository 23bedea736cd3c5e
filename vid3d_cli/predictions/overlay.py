"""Draws the current labels, their scores and a timeline on a band at the bottom of frames.

■ label …                    ▬▬▬▬▬▬──  87 %      a row for each label: one, or up to three if classes overlap
▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬▬|▬▬▬▬▬▬▬▬────▬▬▬▬▬▬▬▬▬▬▬▬▬▬      the segments of the whole video, and the playhead
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from heapq import nlargest

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from ..segments import Segment
from ..text import printable
from .colours import DARK, class_colours

MIN_SIDE_PX = 240
"""Smaller videos are enlarged by a whole factor until both sides have this; text is legible from here on."""

_MAX_FACTOR, _MAX_SIDE_PX = 8, 4096
_MAX_ROWS = 3

_BAND, _TRACK, _INK = (0, 0, 0, 185), "#696969", "#ffffff"

# The first that can draw a label does. Pillow's own has plain Latin, CJK and other scripts need a font of the system.
_FONTS = (
    *("", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc"),
    *("DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "FreeSans.ttf"),
)

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


class Overlay:
    """Draws on the frames of one video.

    Args:
        height_px: of its frames.
        width_px: of its frames.
        segments: what is shown, in seconds.
        end_seconds: end of the timeline.
    """

    def __init__(self, height_px: int, width_px: int, segments: Sequence[Segment], end_seconds: float) -> None:
        wanted = -(-MIN_SIDE_PX // min(height_px, width_px))
        self._factor = max(1, min(wanted, _MAX_FACTOR, _MAX_SIDE_PX // max(height_px, width_px)))
        self.size = (height_px * self._factor, width_px * self._factor)
        """Height and width of the drawn frames."""
        self._segments = segments
        self._end_seconds = max(end_seconds, 1e-9)
        self._colours = class_colours([s.label for s in sorted(segments, key=lambda s: s.start_seconds)], DARK)
        self._bounds, self._shown = _sweep(segments)
        num_rows = max(1, *map(len, self._shown))

        # The text grows with the video, but more slowly.
        self._em = em = round(4 + 0.035 * min(self.size))
        self._row_px, self._pad_px, self._line_px = round(1.4 * em), max(4, round(0.55 * em)), max(4, round(0.4 * em))
        height = min(self.size[0], num_rows * self._row_px + round(0.3 * em) + self._line_px + 2 * self._pad_px)
        self._band = (height, self.size[1])
        self._timeline = self._draw_timeline()
        self._drawn: tuple[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] | None = None

    def draw(self, rgb: NDArray[np.uint8], seconds: float) -> NDArray[np.uint8]:
        """Return a copy of a frame (H, W, 3) with what is seen at a time; small frames are enlarged."""
        drawn = np.asarray(cv2.resize(rgb, self.size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
        between = bisect_right(self._bounds, seconds)
        if self._drawn is None or self._drawn[0] != between:
            self._drawn = between, self._draw_band(self._shown[between])
        behind, before = self._drawn[1]
        region = drawn[-self._band[0] :]
        cv2.add(cv2.multiply(region, behind, scale=1 / 255), before, dst=region)
        self._draw_playhead(region, seconds)
        return drawn

    def _draw_timeline(self) -> Image.Image:
        """Draw the band without labels."""
        height, width = self._band
        image = Image.new("RGBA", (width, height), _BAND)
        draw = ImageDraw.Draw(image)
        bottom = height - self._pad_px
        bars = [(0.0, self._end_seconds, _TRACK)]
        for s in sorted(self._segments, key=_by_score):  # of those that overlap, the best is seen
            bars.append((s.start_seconds, s.end_seconds, self._colours[s.label]))
        for start, end, colour in bars:
            x = self._x_of(start)
            draw.rectangle((x, bottom - self._line_px, max(x, self._x_of(end) - 1), bottom - 1), colour)
        return image

    def _x_of(self, seconds: float) -> int:
        """Return where a time is on the timeline."""
        length_px = max(1, self._band[1] - 2 * self._pad_px)
        return self._pad_px + round(length_px * min(1.0, max(0.0, seconds / self._end_seconds)))

    def _draw_playhead(self, band: NDArray[np.uint8], seconds: float) -> None:
        x, half, over = self._x_of(seconds), max(1, self._em // 12), max(2, self._pad_px // 2)
        bottom = self._band[0] - self._pad_px + over
        top = bottom - self._line_px - 2 * over
        band[max(0, top - 1) : bottom + 1, max(0, x - half - 1) : x + half + 1] = 0
        band[max(0, top) : bottom, max(0, x - half) : x + half] = 255

    def _draw_band(self, shown: Sequence[Segment]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return, as (h, W, 3), how much is left of the frame behind the band (of 255), and what is added."""
        image = self._timeline.copy()
        draw = ImageDraw.Draw(image)
        for row, segment in enumerate(shown):
            self._draw_row(draw, self._pad_px + row * self._row_px, segment)
        rgba = np.asarray(image, np.uint16)
        alpha = np.repeat(rgba[..., 3:], 3, axis=2)
        return (255 - alpha).astype(np.uint8), (rgba[..., :3] * alpha // 255).astype(np.uint8)

    def _draw_row(self, draw: ImageDraw.ImageDraw, top: int, segment: Segment) -> None:
        em, width, middle = self._em, self._band[1], top + self._row_px // 2
        colour = self._colours[segment.label]
        chip = round(0.8 * em)
        draw.rectangle(
            (self._pad_px, middle - chip // 2, self._pad_px + chip - 1, middle - chip // 2 + chip - 1), colour
        )
        left, right = self._pad_px + chip + em // 2, width - self._pad_px
        number, font = f"{100 * segment.score:.0f} %", _own_font(em)
        draw.text((right, middle), number, _INK, font, anchor="rm")
        right -= round(font.getlength("100 %")) + em // 2
        if width >= 20 * em:  # else the label needs the place
            start, height = right - round(0.2 * width), max(4, round(0.4 * em))
            box = (start, middle - height // 2, right - 1, middle - height // 2 + height - 1)
            draw.rectangle(box, _TRACK)
            full = start + round((right - start) * min(1.0, max(0.0, segment.score)))
            if full > start:
                draw.rectangle((*box[:2], full - 1, box[3]), colour)
            right = start - em // 2
        text, font = _choose_font(segment.label, em)
        draw.text((left, middle), _shorten(text, font, right - left), _INK, font, anchor="lm")


def _sweep(segments: Sequence[Segment]) -> tuple[list[float], list[list[Segment]]]:
    """Return the times at which other segments are shown, and which are shown before, between and after them."""
    bounds = sorted({t for s in segments for t in (s.start_seconds, s.end_seconds)})
    later = deque(sorted(segments, key=lambda s: s.start_seconds))
    current: list[Segment] = []
    shown: list[list[Segment]] = [[]]
    for bound in bounds:
        while later and later[0].start_seconds <= bound:
            current.append(later.popleft())
        current = [s for s in current if s.end_seconds > bound]
        shown.append(nlargest(_MAX_ROWS, current, key=_by_score))
    return bounds, shown


def _by_score(segment: Segment) -> float:
    return segment.score


@lru_cache(64)
def _choose_font(label: str, em: int) -> tuple[str, _Font]:
    r"""Return a label as it is drawn, and a font for it: the first that can draw it.

    If none can, accents are left out, and other characters become escapes, as "\u65e5".
    """
    text = printable(label)
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    is_leftwards = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    if features.check("raqm") or not is_leftwards:  # else letters would come in the wrong order
        for name in _FONTS:
            font = _find_font(name, em) if name else _own_font(em)
            if font is not None and all(_has_glyph(font, c) for c in set(text)):
                return text, font
    font = _own_font(em)
    return "".join(c if _has_glyph(font, c) else c.encode("ascii", "backslashreplace").decode() for c in plain), font


@lru_cache(4)
def _own_font(em: int) -> _Font:
    return ImageFont.load_default(em)


def _find_font(name: str, em: int) -> _Font | None:
    font = _load_font(name)
    return font and font.font_variant(size=em)


@lru_cache(64)
def _load_font(name: str) -> ImageFont.FreeTypeFont | None:
    """Search the system for a font, which takes a while if it is not there."""
    try:
        return ImageFont.truetype(name)
    except OSError:
        return None


@lru_cache(4096)
def _has_glyph(font: _Font, character: str) -> bool:
    # All characters that a font lacks look the same: like this one, which no font has.
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


def _shorten(text: str, font: _Font, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    num_fit = bisect_left(range(len(text)), True, key=lambda n: font.getlength(f"{text[:n].rstrip()}…") > width_px)
    return f"{text[: num_fit - 1].rstrip()}…" if num_fit else ""
