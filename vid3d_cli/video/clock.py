"""Computes when frames are shown: PTS → seconds, ticks of a frame rate, spans. Exact arithmetic, no PyAV.

    PTS 900 904 908, in units of 1/100 s      → FrameClock → 0, 0.04, 0.08 s
    frames at 0, 40, 80 ms, 50 frames/s asked → at_ticks   → frames 0 0 1 1 2 2

Times are Fractions of a second.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from ..errors import UsageError

MAX_TICK_TOLERANCE_SECONDS = Fraction(1, 1000)
"""Upper bound of the rounding by a container's clock that `at_ticks` allows for."""

MAX_JUMP_SECONDS = Fraction(60)
"""A frame may start this long after the previous one; see `MAX_DECLARED_JUMP_SECONDS`."""

MAX_DECLARED_JUMP_SECONDS = Fraction(3600)
"""A frame may start this long after the previous one within the duration that the header declares."""

LOOK_AHEAD = 8
"""Frames that `FrameClock` holds where a time is not the one expected next."""

MAX_DAMAGED = 2
"""If more of these are out of order, the file's clock may have started again."""

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
        raise UsageError(f"--fps {text}: give a number (25, 29.97), 30000/1001, or native")
    return fps


def describe_fps(fps: Fraction | float) -> str:
    """Return a frame rate as people write it: "25", "12.5", "29.97"."""
    return f"{float(fps):.5g}"


def parse_seconds(time: str | float, option: str = "the time") -> float:
    """Return the seconds of a time that a user wrote.

        90 → 90.0    "90" → 90.0    "1:30" → 90.0    "1:02:03.5" → 3723.5

    Args:
        time: as the user wrote it.
        option: the option that was given it, for the message.

    Raises:
        UsageError: the text is no time of this form.
    """
    with suppress(ValueError):
        return float(time)
    if not (found := _CLOCK_TIME.fullmatch(str(time).strip())):
        raise UsageError(f"{option} {time}: give seconds (90, 1.5), 1:30 or 1:02:03.5")
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)


def check_span(fps: Fraction | float | None, start_seconds: float, end_seconds: float | None) -> None:
    """Raise UsageError for a frame rate or a span that no video can have."""
    if fps is not None and not 0 < fps < math.inf:
        raise UsageError(f"--fps {describe_fps(fps)}: give a positive number")
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise UsageError(f"--start {start_seconds:g}: give 0 s or more")
    if end_seconds is not None and not end_seconds > start_seconds:
        raise UsageError(f"--end {end_seconds:g}: give an end after the start, {start_seconds:g} s")


def describe_end(start_seconds: float, end_seconds: float) -> str:
    """Return why there is nothing to read from a start at or after the end of a video."""
    return f"nothing to read from {start_seconds:g} s on: the video is {end_seconds:.3f} s long; give an earlier start"


@dataclass(frozen=True)
class Timed(Generic[T]):
    """An item, usually a frame, and the time for which it is shown."""

    start: Fraction
    """Seconds since the first frame of the file."""
    end: Fraction
    """Seconds since the first frame of the file; as the file says, which may leave gaps or overlap."""
    item: T


@dataclass(frozen=True)
class FileTimed(Generic[T]):
    """An item, usually a frame, with its times as the file gives them."""

    item: T
    units: int | None
    """When it is shown, in units of the file; None if the file gives no time."""
    duration_units: int
    """For how long, in units of the file; 0 if unknown."""


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

    The last tick ends with the video: 32 frames of 1/30 s have 27 ticks of 1/25 s, the last from 1.04 to 1.067 s.

    Args:
        frames: in the order of time; there are no ticks before the first one.
        fps: ticks per second.
        clock_unit: seconds to which the times of the frames are rounded.
    """
    tolerance = min(clock_unit / 2, MAX_TICK_TOLERANCE_SECONDS)
    tick = -1
    held: Timed[T] | None = None
    shown: T | None = None  # by the latest tick, which waits until it is known whether the video ends before it does
    for frame in frames:
        if held is None:
            tick = max(0, math.ceil((frame.start - tolerance) * fps))
        else:
            while tick / fps < frame.start - tolerance:
                if shown is not None:
                    yield Timed((tick - 1) / fps, tick / fps, shown)
                shown = held.item
                tick += 1
        held = frame
    if held is None:
        return
    num_ticks = count_ticks(held.start, held.end, fps=fps, clock_unit=clock_unit)
    while tick < num_ticks:
        if shown is not None:
            yield Timed((tick - 1) / fps, tick / fps, shown)
        shown = held.item
        tick += 1
    if shown is not None:
        yield Timed((tick - 1) / fps, min(tick / fps, held.end), shown)


def count_ticks(last_start: Fraction, last_end: Fraction, *, fps: Fraction, clock_unit: Fraction) -> int:
    """Return how many ticks from 0 on `at_ticks` yields for a video whose last frame has this start and end.

    The last frame gets at least the tick at its start, however short it is.
    """
    tolerance = min(clock_unit / 2, MAX_TICK_TOLERANCE_SECONDS)
    return max(math.floor(last_start * fps) + 1, math.ceil((last_end - 2 * tolerance) * fps))


class FrameClock(Generic[T]):
    """Converts the times of a file to seconds since its first frame, always increasing.

        in the file  900 904 4908 912 916 → 0 0.04 0.08 0.12 0.16 s   one damaged time changes no other
        in the file  900 904 20 24 28     → 0 0.04 0.08 0.12 0.16 s   the file's clock starts again
        in the file  900 904 1900 1904    → 0 0.04 10 10.04 s         a gap stays

    A decoder returns frames in the order in which they are shown, so a time that breaks this order is damaged. At the
    first frame, and where a time is not the one expected next, the clock reads a few frames ahead to find out which
    times are damaged: those without which the others increase in the most regular way. A damaged frame is placed
    between its neighbours. If most of what follows does not fit what came before, or comes later than a video may
    pause, the file's clock has jumped: the next frame follows the previous one, and the others follow it.

    Args:
        time_base: seconds per unit of the file's times.
        nominal_duration: seconds per frame, on average.
        declared_duration: seconds of the video as its header says; None if it does not say.
    """

    def __init__(self, time_base: Fraction, nominal_duration: Fraction, declared_duration: Fraction | None) -> None:
        self.time_base = time_base
        self._nominal = nominal_duration
        self._declared_duration = declared_duration or Fraction(0)
        self._zero: Fraction | None = None  # the file's own time of its first frame
        self._last: Fraction | None = None  # start of the previous frame
        self._step = nominal_duration  # from the frame before the previous one to the previous one

    def place(self, frames: Iterable[FileTimed[T]], *, first_units: int | None = None) -> Iterator[Timed[T]]:
        """Yield the frames with their starts and ends; at most `LOOK_AHEAD` of them are held.

        Args:
            frames: in the order in which they are shown.
            first_units: time in the file of the stream's first frame, which may be lost; None: the first of `frames`.
        """
        source = iter(frames)
        held: deque[FileTimed[T]] = deque()
        while held or (held := deque(itertools.islice(source, 1))):
            start = self._seconds(held[0])
            if not self._is_expected(start):
                held.extend(itertools.islice(source, LOOK_AHEAD - len(held)))
                start = self._find_start(held, first_units)
            assert start is not None
            if self._last is not None:
                self._step = start - self._last
            self._last = start
            frame = held.popleft()
            end = start + frame.duration_units * self.time_base
            yield Timed(start, end if self._may_follow(start, end) else start + self._nominal, frame.item)

    def _seconds(self, frame: FileTimed[T]) -> Fraction | None:
        return None if frame.units is None else frame.units * self.time_base - (self._zero or 0)

    def _is_expected(self, start: Fraction | None) -> bool:
        if start is None or self._last is None:
            return False
        return self._last < start <= self._last + Fraction(3, 2) * min(self._nominal, self._step)

    def _find_start(self, held: Sequence[FileTimed[T]], first_units: int | None) -> Fraction:
        """Return the start of the first of these frames."""
        times = {n: seconds for n, frame in enumerate(held) if (seconds := self._seconds(frame)) is not None}
        fitting = self._fit(times, self._last)
        if self._last is None:
            start = times[fitting[0]] - fitting[0] * self._nominal if fitting else Fraction(0)
            if self._zero is None and fitting:
                first = start if first_units is None else first_units * self.time_base
                self._zero = first if start - MAX_JUMP_SECONDS < first < start else start
                start -= self._zero
            return start
        alone = self._fit(times, None) if len(fitting) < len(times) - MAX_DAMAGED or self._zero is None else []
        if 2 * len(fitting) < len(alone) or (alone and self._zero is None):
            fitting = alone
            shift = times[fitting[0]] - self._last - (fitting[0] + 1) * self._nominal
            self._zero = (self._zero or 0) + shift
            times = {n: seconds - shift for n, seconds in times.items()}
        if not fitting:
            return self._last + self._nominal
        if fitting[0] == 0:
            return times[0]
        return self._last + min(self._nominal, (times[fitting[0]] - self._last) / (fitting[0] + 1))

    def _fit(self, times: Mapping[int, Fraction], last: Fraction | None) -> list[int]:
        """Return the positions of the times to keep: as many as increase, and of several choices the most regular one.

        Args:
            times: of frames, by their position.
            last: time of the frame before position 0; None if there is none.
        """
        chain = [*([] if last is None else [last]), *times.values()]
        if all(itertools.starmap(self._may_follow, itertools.pairwise(chain))):
            return list(times)
        # For every time, the best choice that ends with it: (-number of times, how irregular they are, positions).
        best: list[tuple[int, Fraction, list[int]]] = [(0, Fraction(0), [])]
        for n, seconds in times.items():
            ways = []
            for minus_count, irregularity, kept in best:
                before = times[kept[-1]] if kept else last
                if before is not None and self._may_follow(before, seconds):
                    usual = (n - (kept[-1] if kept else -1)) * self._nominal
                    ways.append((minus_count - 1, irregularity + abs(seconds - before - usual), [*kept, n]))
                elif before is None:
                    ways.append((-1, Fraction(0), [n]))
            best += [min(ways)] if ways else []
        return min(best)[2]

    def _may_follow(self, last: Fraction, start: Fraction) -> bool:
        if not last < start:
            return False
        return start <= last + MAX_JUMP_SECONDS or (
            start <= min(self._declared_duration, last + MAX_DECLARED_JUMP_SECONDS)
        )

    def restart(self) -> None:
        """Forget the previous frame, after a seek; times stay relative to the first frame of the file."""
        self._last, self._step = None, self._nominal

    def to_units(self, seconds: float) -> int | None:
        """Return the same moment in units of the file; None before the first frame with a time."""
        return None if self._zero is None else round((Fraction(seconds) + self._zero) / self.time_base)
