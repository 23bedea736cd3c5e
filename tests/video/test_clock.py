"""Frame rates, spans, ticks and file times: exact arithmetic, checked against brute force."""

import math
from fractions import Fraction
from itertools import accumulate, count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.errors import UsageError
from vid3d_cli.video.clock import (
    MAX_JUMP_SECONDS,
    FrameClock,
    Timed,
    at_ticks,
    check_span,
    parse_fps,
    parse_seconds,
    until_next,
)


def timed(starts, durations, unit=Fraction(1)):
    return [
        Timed(start * unit, (start + d) * unit, i) for i, (start, d) in enumerate(zip(starts, durations, strict=True))
    ]


@pytest.mark.parametrize(
    ("text", "fps"),
    [
        ("native", None),
        ("Native", None),
        ("25", 25),
        (" 12.5 ", Fraction(25, 2)),
        ("29.97", Fraction(2997, 100)),
        ("30000/1001", Fraction(30000, 1001)),
    ],
)
def test_parse_fps(text, fps):
    assert parse_fps(text) == fps


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (1.5, 1.5),
        (0, 0),
        ("90", 90),
        (" .5 ", 0.5),
        ("1e2", 100),
        ("1:30", 90),
        ("0:07.25", 7.25),
        ("90:00", 5400),
        ("1:02:03.5", 3723.5),
        ("100:00:00", 360000),
    ],
)
def test_parse_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@given(st.integers(0, 10**7), st.integers(0, 999))
def test_parse_seconds_reads_what_clocks_show(seconds, millis):
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{millis:03}"
    assert parse_seconds(clock) == pytest.approx(seconds + millis / 1000, abs=1e-9)


@pytest.mark.parametrize("text", ["", "soon", "1:60", "1:", ":30", "1:60:00", "1:2:3:4", "1:-5", "1:30 s", "1.5:00"])
def test_parse_seconds_refuses(text):
    with pytest.raises(UsageError, match="as a time: give seconds"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "fast", "0", "-25", "1/0", "25 fps", "nan", "inf"])
def test_parse_fps_refuses(text):
    with pytest.raises(UsageError, match="frames per second"):
        parse_fps(text)


@pytest.mark.parametrize(
    "span", [(None, -1, None), (None, math.nan, None), (None, 2, 1), (None, 0, 0), (Fraction(0), 0, None)]
)
def test_check_span_refuses(span):
    with pytest.raises(UsageError, match="give"):
        check_span(*span)


durations = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@settings(deadline=None)
@given(durations, st.fractions(min_value=Fraction(1, 2), max_value=120, max_denominator=1001), st.integers(10, 2000))
def test_ticks_are_the_brute_force_ones(steps, fps, units_per_second):
    unit = Fraction(1, units_per_second)
    starts = [0, *accumulate(steps[:-1])]
    frames = timed(starts, steps, unit)
    tolerance = min(unit / 2, Fraction(1, 1000))
    *_, last = frames
    num_ticks = next(k for k in count() if k / fps > last.start and k / fps >= last.end - 2 * tolerance)
    expected = [max(f.item for f in frames if f.start - tolerance <= k / fps) for k in range(num_ticks)]
    shown = list(at_ticks(frames, fps=fps, clock_unit=unit))
    assert [s.item for s in shown] == expected
    assert [(s.start, s.end) for s in shown] == [(k / fps, (k + 1) / fps) for k in range(len(shown))]


@given(
    st.fractions(min_value=1, max_value=240, max_denominator=1001),
    st.integers(1, 50),
    st.sampled_from([math.floor, round, math.ceil]),
)
def test_rounded_clocks_keep_every_frame(fps, num_frames, rounding):
    """Whichever way a container rounds to its milliseconds, by up to half of one."""
    unit = Fraction(1, 1000)

    def rounded(seconds: Fraction) -> Fraction:
        below, half = math.floor(seconds / unit), seconds / unit % 1 == Fraction(1, 2)
        return unit * (below + (rounding is math.ceil) if half else round(seconds / unit))

    frames = [Timed(rounded(i / fps), rounded(i / fps) + rounded(1 / fps), i) for i in range(num_frames)]
    assert [s.item for s in at_ticks(frames, fps=fps, clock_unit=unit)] == list(range(num_frames))


@given(durations)
def test_until_next_leaves_no_gap(steps):
    starts = [0, *accumulate(steps[:-1])]
    frames = timed(starts, steps)
    shown = list(until_next(frames))
    assert [s.end for s in shown] == [*starts[1:], sum(steps)]
    assert [s.item for s in shown] == list(range(len(steps)))


# File times ----------------------------------------------------------------------------------------------------------

TIME_BASE = Fraction(1, 100)
NOMINAL = Fraction(1, 25)


def place_all(times, declared=None):
    clock = FrameClock(TIME_BASE, NOMINAL, declared)
    return [clock.place(index, units, duration) for index, (units, duration) in enumerate(times)]


@given(st.lists(st.tuples(st.none() | st.integers(-(2**40), 2**40), st.integers(0, 2**40)), min_size=1))
def test_whatever_a_file_says_times_increase_from_zero_in_believable_steps(times):
    placed = place_all(times)
    assert placed[0].start == 0
    assert all(0 < later.start - frame.start <= MAX_JUMP_SECONDS for frame, later in pairwise(placed))
    assert all(0 < frame.end - frame.start <= MAX_JUMP_SECONDS for frame in placed)
    assert [frame.item for frame in placed] == list(range(len(times)))


@given(st.integers(-(2**40), 2**40), st.lists(st.integers(1, 6000), max_size=20))
def test_believable_times_are_kept_relative_to_the_first(first, steps):
    units = list(accumulate(steps, initial=first))
    placed = place_all([(u, 4) for u in units])
    assert [frame.start for frame in placed] == [(u - first) * TIME_BASE for u in units]
    assert all(frame.end == frame.start + 4 * TIME_BASE for frame in placed)


def test_a_frame_without_a_believable_time_follows_the_previous_one():
    for odd in (None, 3, 0, 10**9):
        assert [f.start * 100 for f in place_all([(0, 4), (4, 4), (odd, 4), (12, 4)])] == [0, 4, 8, 12]
    assert [f.start for f in place_all([(0, 4), (40000, 4)], declared=Fraction(400))] == [0, 400]


def test_after_a_seek_times_stay_relative_to_the_first_frame():
    clock = FrameClock(TIME_BASE, NOMINAL, None)
    assert clock.to_units(1.0) is None
    clock.place("first", 700, 4)
    assert clock.to_units(1.0) == 800
    clock.restart()
    assert clock.place("later", 90000, 4).start == 893
