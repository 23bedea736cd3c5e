"""Computes when frames are shown: PTS → seconds, ticks of a frame rate, spans. Exact arithmetic, no PyAV.

    PTS 900 904 908, in units of 1/100 s      → FrameClock → 0, 0.04, 0.08 s
    frames at 0, 40, 80 ms, 50 frames/s asked → at_ticks   → frames 0 0 1 1 2 2

Times are Fractions of a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from ..errors import UsageError

MAX_TICK_TOLERANCE_SECONDS = Fraction(1, 1000)
"""Upper bound of the rounding by a container's clock that `at_ticks` allows for."""

MAX_JUMP_SECONDS = Fraction(60)
"""A frame may start this long after the previous one, or later within the duration that the header declares."""

_CLOCK_TIME = re.compile(r"(?:(\d+):(?=[0-5]?\d:))?(\d+):([0-5]?\d(?:\.\d*)?)")

T = TypeVar("T")


def parse_fps(text: str) -> Fraction | None:
    """Return the frame rate that a user wrote, or None for the video's own.

        "native" → None    "25" → 25    "29.97" → 2997/100    "30000/1001" → 30000/1001

    Raises:
        UsageError: the text is not a positive number or fraction.
    """
    if text.strip().lower() == "native":
        return None
    try:
        fps = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise UsageError(f"cannot read {text!r} as frames per second: give a number (25, 29.97), 30000/1001, or native")
    return fps


def parse_seconds(time: str | float) -> float:
    """Return the seconds of a time that a user wrote.

        90 → 90.0    "90" → 90.0    "1:30" → 90.0    "1:02:03.5" → 3723.5

    Raises:
        UsageError: the text is no time of this form.
    """
    with suppress(ValueError):
        return float(time)
    if not (found := _CLOCK_TIME.fullmatch(str(time).strip())):
        raise UsageError(f"cannot read '{time}' as a time: give seconds (90, 1.5), 1:30 or 1:02:03.5")
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)


def check_span(fps: Fraction | float | None, start_seconds: float, end_seconds: float | None) -> None:
    """Raise UsageError for a frame rate or a span that no video can have."""
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"cannot read at {fps} frames per second: give a positive number")
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise UsageError(f"cannot start at {start_seconds} s: give 0 or more")
    if end_seconds is not None and not end_seconds > start_seconds:
        raise UsageError(f"cannot end at {end_seconds:g} s: give an end after the start, {start_seconds:g} s")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """An item, usually a frame, and the time for which it is shown."""

    start: Fraction
    """Seconds since the first frame of the file."""
    end: Fraction
    """Seconds since the first frame of the file; as the file says, which may leave gaps or overlap."""
    item: T


def until_next(frames: Iterable[Timed[T]]) -> Iterator[Timed[T]]:
    """Yield each frame with the start of the next one as its end; the last frame keeps its own end."""
    held: Timed[T] | None = None
    for frame in frames:
        if held is not None:
            yield Timed(held.start, frame.start, held.item)
        held = frame
    if held is not None:
        yield held


def at_ticks(frames: Iterable[Timed[T]], *, fps: Fraction, clock_unit: Fraction) -> Iterator[Timed[T]]:
    """Yield, for every tick k/fps, the last frame that has started by then.

        frames at 0 40 80 120 ms, 12.5 fps → ticks at 0 80 ms         → frames 0 2
                                  50 fps   → ticks at 0 20 40 … 140 ms → frames 0 0 1 1 2 2 3 3

    Containers round times to a clock. In WebM, 30 frames per second are at 0, 33, 67, 100 ms, so tick 2 (66.67 ms)
    comes before its frame: frame 1 would be shown twice and frame 2 never. Frame times are therefore taken to be half a
    clock unit earlier, the most that rounding adds. The end of the last frame is a sum of two rounded numbers, so it is
    taken to be one unit earlier. Clocks as coarse as a frame (AVI counts frames) do not round, hence
    `MAX_TICK_TOLERANCE_SECONDS`.

    Args:
        frames: in the order of time; there are no ticks before the first one.
        fps: ticks per second.
        clock_unit: seconds to which the times of the frames are rounded.
    """
    tolerance = min(clock_unit / 2, MAX_TICK_TOLERANCE_SECONDS)
    tick = -1
    held: Timed[T] | None = None
    for frame in frames:
        if held is None:
            tick = max(0, math.ceil((frame.start - tolerance) * fps))
        else:
            while tick / fps < frame.start - tolerance:
                yield Timed(tick / fps, (tick + 1) / fps, held.item)
                tick += 1
        held = frame
    # The last frame gets at least the tick at its start, however short it is.
    while held and (tick / fps <= held.start or tick / fps < held.end - 2 * tolerance):
        yield Timed(tick / fps, (tick + 1) / fps, held.item)
        tick += 1


class FrameClock:
    """Converts the times of a file to seconds since its first frame, always increasing.

    A frame without a time follows the previous frame by the nominal duration. So does a frame whose time is not later
    than the previous frame's, or far beyond the end of the video: one flipped bit may mean a day, which resampling
    would fill with copies.

    Args:
        time_base: seconds per unit of the file's times.
        nominal_duration: seconds per frame, on average.
        declared_duration: seconds of the video as its header says; None if it does not say.
    """

    def __init__(self, time_base: Fraction, nominal_duration: Fraction, declared_duration: Fraction | None) -> None:
        self.time_base = time_base
        self._nominal_duration = nominal_duration
        self._declared_duration = declared_duration or Fraction(0)
        self._zero: Fraction | None = None  # the file's own time of its first frame
        self._last: Fraction | None = None

    def place(self, item: T, units: int | None, duration_units: int) -> Timed[T]:
        """Return the next frame with its start and end.

        Args:
            item: the frame.
            units: its time in the file, in units of `time_base`; None if the file gives none.
            duration_units: its duration in the file; 0 if unknown.
        """
        start = Fraction(0) if self._last is None else self._last + self._nominal_duration
        if units is not None:
            in_file = units * self.time_base
            if self._zero is None:
                self._zero = in_file - start
            if self._last is None or self._may_follow(self._last, in_file - self._zero):
                start = in_file - self._zero
        self._last = start
        end = start + duration_units * self.time_base
        return Timed(start, end if self._may_follow(start, end) else start + self._nominal_duration, item)

    def _may_follow(self, last: Fraction, start: Fraction) -> bool:
        return last < start <= max(self._declared_duration, last + MAX_JUMP_SECONDS)

    def restart(self) -> None:
        """Forget the previous frame, after a seek; times stay relative to the first frame of the file."""
        self._last = None

    def to_units(self, seconds: float) -> int | None:
        """Return the same moment in units of the file; None before the first frame with a time."""
        return None if self._zero is None else round((Fraction(seconds) + self._zero) / self.time_base)
