"""The timeline of a result in a notebook: one SVG without script, which loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size

from ..records import Prediction
from ..segments import Segment, SegmentRule
from ..text import printable
from .colours import class_colours
from .views import clock, name_of, shown_streams

if TYPE_CHECKING:
    from ..results import VideoResult

MAX_SEGMENTS = 240
"""Segments that a row shows: a picture takes less than 200 kB, however long the video is."""

_WIDTH, _LEFT, _RIGHT = 760, 52, 732
"""Of the picture, and where its time starts and ends, in pixels."""
_BEST_LEFT, _BEST_WIDTH = 210, 480
_CHARACTER_PX = 6.6
_MUTED, _AT_END, _AT_MIDDLE = " fill-opacity='.65'", " text-anchor='end'", " text-anchor='middle'"
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
"""Seconds between two ticks."""


class _Time(NamedTuple):
    """The time that the picture shows, in seconds."""

    start: float
    end: float

    def x(self, seconds: float) -> float:
        """Return where a moment is, in pixels."""
        return _LEFT + (_RIGHT - _LEFT) * (seconds - self.start) / (self.end - self.start)


def draw_timeline(result: VideoResult) -> str:
    """Return when which class is seen, and the five best classes, as HTML for light and dark notebooks."""
    if not result.labels:
        return f"<pre>{_safe(repr(result))}</pre>"
    streams = shown_streams(result)
    rows = {stream: result.segments_by(SegmentRule(), [stream]) for stream in streams}
    best = result.top(5)
    seen = [segment.label for stream in reversed(streams) for segment in rows[stream]]
    colours = class_colours([*seen, *(p.label for p in best)])
    time = _Time(result.start_seconds, max(result.end_seconds, result.start_seconds + 0.001))
    name = name_of(result.video)
    about = f"{clock(time.start)} – {clock(time.end)}, {result.recipe.model}"
    room_px = _RIGHT - _CHARACTER_PX * (len(about) + 4)
    parts = [
        _text(0, 13, name, " font-weight='600'", room_px),
        _text(_RIGHT, 13, about, _MUTED + _AT_END),
    ]
    y = 28
    for stream, segments in rows.items():
        parts += [_text(0, y + 28, stream, _MUTED), *_draw_row(_thin(segments, time), time, y, colours)]
        y += 44
    parts += [*_draw_axis(time, y), *_draw_best(best, y + 38, colours)]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {y + 38 + 20 * len(best)}' role='img' "
        f"aria-label='Timeline of {_safe(name)}' fill='currentColor' font-size='12' "
        f"font-family='system-ui, sans-serif' style='width: 100%; max-width: {_WIDTH}px'>{''.join(parts)}</svg>"
    )


def _thin(segments: Sequence[Segment], time: _Time) -> Sequence[Segment]:
    """Return the segments; of too many, those at evenly spaced moments, without repeats."""
    if len(segments) <= MAX_SEGMENTS:
        return segments
    moments = time.start + (time.end - time.start) * (np.arange(MAX_SEGMENTS) + 0.5) / MAX_SEGMENTS
    found = np.searchsorted([segment.start_seconds for segment in segments], moments, "right") - 1
    return [segments[i] for i, _ in groupby(found.clip(0).tolist())]


def _draw_row(segments: Sequence[Segment], time: _Time, y: float, colours: Mapping[str, str]) -> Iterator[str]:
    """Yield the bars of a stream: as high as the score, over the whole height in pale, below the label."""
    ends = [segment.start_seconds for segment in segments[1:]] + [time.end]
    for segment, next_start in zip(segments, ends, strict=True):
        x, percent = time.x(segment.start_seconds), f"{100 * segment.score:.0f} %"
        width = max(2.0, time.x(segment.end_seconds) - x - 1)
        span = f"{clock(segment.start_seconds)} – {clock(segment.end_seconds)}"
        height = max(1.0, 24 * segment.score)
        yield f"<g fill='{colours[segment.label]}'><title>{_safe(segment.label)}\n{span}, {percent}</title>"
        yield _rect(x, y + 12, width, 24, " fill-opacity='.25'") + _rect(x, y + 36 - height, width, height) + "</g>"
        yield _text(x, y + 8, segment.label, " font-size='11'", time.x(next_start) - x - 4)


def _draw_axis(time: _Time, y: float) -> Iterator[str]:
    length = time.end - time.start
    step = next((step for step in _STEPS if length / step <= 10), 3600 * ceil(length / 36000))
    for n in range(ceil(time.start / step - 1e-6), int(time.end / step + 1e-6) + 1):
        x = time.x(n * step)
        yield _rect(x, y - 4, 1, 4, " fill-opacity='.4'")
        yield _text(x, y + 11, clock(n * step, digits=int(step < 1)), " font-size='11'" + _MUTED + _AT_MIDDLE)


def _draw_best(best: Sequence[Prediction], y: float, colours: Mapping[str, str]) -> Iterator[str]:
    for p in best:
        width = max(1.0, _BEST_WIDTH * p.score)
        yield _text(0, y + 11, p.label, room_px=_BEST_LEFT - 12)
        yield _rect(_BEST_LEFT, y, width, 14, f" fill='{colours[p.label]}'")
        yield _text(_BEST_LEFT + width + 6, y + 11, f"{100 * p.score:.0f} %", _MUTED)
        y += 20


def _rect(x: float, y: float, width: float, height: float, attributes: str = "") -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'{attributes}/>"


def _text(x: float, y: float, text: str, attributes: str = "", room_px: float = _WIDTH) -> str:
    """Return text, shortened to the room that it has; nothing if that is too small for a few letters."""
    text, room = printable(text), int(room_px / _CHARACTER_PX)
    if cell_len(text) > room:
        text = f"{set_cell_size(text, room - 1).rstrip()}…" if room >= 4 else ""
    return text and f"<text x='{x:.1f}' y='{y:.1f}'{attributes}>{_safe(text)}</text>"


def _safe(text: str) -> str:
    return escape(printable(text))
