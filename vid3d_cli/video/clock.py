"""Computes when frames are shown: PTS → seconds, ticks of a frame rate, spans. Exact arithmetic, no PyAV.

    PTS 900 904 908, in units of 1/100 s      → FrameClock → 0, 0.04, 0.08 s
    frames at 0, 40, 80 ms, 50 frames/s asked → at_ticks   → frames 0 0 1 1 2 2

Times are Fractions of a second.
"""

from __future__ import annotations

import itertools
import math
import operator
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
"""A frame may start this long after the previous one; see `FrameClock` for longer gaps."""

MAX_GAP_SECONDS = Fraction(3600)
"""A longer gap needs two confirmations, see `FrameClock`."""

LOOK_AHEAD = 8
"""Frames that `FrameClock` holds where a time is not the one expected next; at a variable frame rate, almost always.
They are decoded frames, so this is memory: 8 frames of 4K take 100 MB."""

NUM_WITNESSES = 2
"""So many frames must follow a jump to confirm it. If more frames than this are out of order, the file's clock may have
started again."""

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
        if math.isfinite(seconds := float(time)):
            return seconds
    if not (found := _CLOCK_TIME.fullmatch(str(time).strip())):
        raise UsageError(f"{option} {time}: give seconds (90, 1.5), 1:30 or 1:02:03.5")
    hours, minutes, rest = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(rest)


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
    # The last frame gets at least the tick at its start, however short it is.
    num_ticks = max(math.floor(held.start * fps) + 1, math.ceil((held.end - 2 * tolerance) * fps))
    while tick < num_ticks:
        if shown is not None:
            yield Timed((tick - 1) / fps, tick / fps, shown)
        shown = held.item
        tick += 1
    if shown is not None:
        yield Timed((tick - 1) / fps, min(tick / fps, held.end), shown)


class FrameClock(Generic[T]):
    """Converts the times of a file to seconds since its first frame, always increasing.

        in the file  900 904 4908 912 916 → 0 0.04 0.08 0.12 0.16 s   one damaged time changes no other
        in the file  900 904 20 24 28     → 0 0.04 0.08 0.12 0.16 s   the file's clock starts again
        in the file  900 904 1900 1904    → 0 0.04 10 10.04 s         a gap stays

    A decoder returns frames in the order in which they are shown, so a time that breaks this order is damaged. At the
    first frame, and where a time is not the one expected next, the clock reads a few frames ahead to find out which
    times are damaged: those without which the others increase in the most regular way. A damaged frame is placed
    between its neighbours.

    A gap of up to a minute is believed. A longer one is believed if the header's duration confirms it or, where the
    header says none, if frames follow it; a gap of more than an hour only if both do. If most of what follows does not
    fit what came before, the file's clock has started again: the next frame follows the previous one, and so on.

    Args:
        time_base: seconds per unit of the file's times.
        nominal_duration: seconds per frame, on average.
        declared_duration: seconds of the video as its header says; None if it does not say.
    """

    def __init__(self, time_base: Fraction, nominal_duration: Fraction, declared_duration: Fraction | None) -> None:
        self.time_base = time_base
        self._nominal = nominal_duration
        self._declared_duration = declared_duration
        self._zero: Fraction | None = None  # the file's own time of its first frame
        self._last: Fraction | None = None  # start of the previous frame
        self._step = nominal_duration  # from the frame before the previous one to the previous one

    def place(
        self, frames: Iterable[tuple[T, int | None, int]], *, first_units: int | None = None
    ) -> Iterator[Timed[T]]:
        """Yield the frames with their starts and ends; at most `LOOK_AHEAD` of them are held.

        Args:
            frames: each with its time and its duration in units of the file: None and 0 if unknown. They come in the
                order in which they are shown.
            first_units: time in the file of the stream's first frame, which may be lost; None: the first of `frames`.
        """
        source = iter(frames)
        held: deque[tuple[T, int | None, int]] = deque()
        while held or (held := deque(itertools.islice(source, 1))):
            start = self._seconds(held[0][1])
            if start is None or not self._is_expected(start):
                held.extend(itertools.islice(source, LOOK_AHEAD - len(held)))
                times = {n: seconds for n, frame in enumerate(held) if (seconds := self._seconds(frame[1])) is not None}
                start = self._find_start(times, first_units)
            if self._last is not None:
                self._step = start - self._last
            self._last = start
            item, _, duration_units = held.popleft()
            end = start + duration_units * self.time_base
            yield Timed(start, end if self._may_follow(start, end) else start + self._nominal, item)

    def _seconds(self, units: int | None) -> Fraction | None:
        return None if units is None else units * self.time_base - (self._zero or 0)

    def _is_expected(self, start: Fraction) -> bool:
        return self._last is not None and 0 < start - self._last <= Fraction(3, 2) * min(self._nominal, self._step)

    def _find_start(self, times: Mapping[int, Fraction], first_units: int | None) -> Fraction:
        """Return the start of frame 0, given the times in the file of this frame and the next ones."""
        expected = Fraction(0) if self._last is None else self._last + self._nominal
        starts_again = self._zero is None
        fitting = self._fit(times, None if starts_again else self._last)
        if not starts_again and len(fitting) < len(times) - NUM_WITNESSES:
            alone = self._fit(times, None)
            if starts_again := 2 * len(fitting) < len(alone):
                fitting = alone
        if not fitting:
            return expected
        n, start = fitting[0]
        if starts_again or self._last is None:
            start -= n * self._nominal
        elif n > 0:
            start = self._last + min(self._nominal, (start - self._last) / (n + 1))
        if not starts_again:
            return start
        shift = start - expected
        if self._last is None and first_units is not None:
            first = first_units * self.time_base
            shift = first if start - MAX_JUMP_SECONDS < first < start else start
        self._zero = (self._zero or 0) + shift
        return start - shift

    def _fit(self, times: Mapping[int, Fraction], last: Fraction | None) -> Sequence[tuple[int, Fraction]]:
        """Return the times to keep: as many as can be believed, and of several choices the most regular one.

        Args:
            times: of frames, by their position.
            last: time of the frame before position 0; None if there is none.
        """

        def irregularity(chain: Sequence[tuple[int, Fraction]]) -> Fraction:
            pairs = itertools.pairwise(chain)
            return sum((abs(later - time - (m - n) * self._nominal) for (n, time), (m, later) in pairs), Fraction(0))

        before = [] if last is None else [(-1, last)]
        for num_kept in range(len(times), 0, -1):
            chains = ([*before, *kept] for kept in itertools.combinations(times.items(), num_kept))
            if believed := [chain for chain in chains if self._is_believed([time for _, time in chain])]:
                return min(believed, key=irregularity)[len(before) :]
        return []

    def _is_believed(self, times: Sequence[Fraction]) -> bool:
        if not all(itertools.starmap(operator.lt, itertools.pairwise(times))):
            return False
        zero = times[0] if self._zero is None else Fraction(0)
        # A jump after the very first frame may be damage of that frame, if no header says otherwise.
        is_first_sure = self._zero is not None or self._declared_duration is not None
        return all(
            self._may_follow(
                last - zero, start - zero, is_followed=n + NUM_WITNESSES < len(times) and (n > 1 or is_first_sure)
            )
            for n, (last, start) in enumerate(itertools.pairwise(times), start=1)
        )

    def _may_follow(self, last: Fraction, start: Fraction, *, is_followed: bool = False) -> bool:
        is_short, declared = start - last <= MAX_GAP_SECONDS, self._declared_duration
        is_confirmed = is_short and is_followed if declared is None else start <= declared and (is_short or is_followed)
        return last < start and (start - last <= MAX_JUMP_SECONDS or is_confirmed)

    def restart(self) -> None:
        """Forget the previous frame, after a seek; times stay relative to the first frame of the file."""
        self._last, self._step = None, self._nominal

    def to_units(self, seconds: float) -> int | None:
        """Return the same moment in units of the file; None before the first frame with a time."""
        return None if self._zero is None else round((Fraction(seconds) + self._zero) / self.time_base)
