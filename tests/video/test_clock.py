"""Frame rates, spans, ticks and file times: exact arithmetic, checked against brute force."""

import math
from fractions import Fraction
from itertools import accumulate, count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.errors import UsageError
from vid3d_cli.video.clock import (
    LOOK_AHEAD,
    MAX_GAP_SECONDS,
    MAX_JUMP_SECONDS,
    NUM_WITNESSES,
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


@pytest.mark.parametrize(
    "text", ["", "soon", "inf", "nan", "1:60", "1:", ":30", "1:60:00", "1:2:3:4", "1:-5", "1:30 s", "1.5:00"]
)
def test_parse_seconds_refuses(text):
    with pytest.raises(UsageError, match=r"^--end .*: give seconds"):
        parse_seconds(text, "--end")


@pytest.mark.parametrize("text", ["", "fast", "0", "-25", "1/0", "25 fps", "nan", "inf"])
def test_parse_fps_refuses(text):
    with pytest.raises(UsageError, match=r"^--fps "):
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
    ends = [(k + 1) / fps for k in range(len(shown) - 1)] + [min(len(shown) / fps, last.end)]
    assert [(s.start, s.end) for s in shown] == list(zip([k / fps for k in range(len(shown))], ends, strict=True))


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
WILD = st.integers(9, 400000) | st.integers(-400000, -9) | st.none()  # two frames to more than an hour


def place_all(times, declared=None, first=None):
    clock = FrameClock(TIME_BASE, NOMINAL, declared)
    return list(clock.place([(index, *time) for index, time in enumerate(times)], first_units=first))


def starts(units, **options):
    """Place frames of 4 units; return their starts in units."""
    return [frame.start / TIME_BASE for frame in place_all([(u, 4) for u in units], **options)]


@given(st.lists(st.tuples(st.none() | st.integers(-(2**40), 2**40), st.integers(0, 2**40)), min_size=1))
def test_whatever_a_file_says_times_increase_from_zero_in_believable_steps(times):
    placed = place_all(times)
    assert placed[0].start == 0
    for n, (frame, later) in enumerate(pairwise(placed), start=1):
        is_followed = n + NUM_WITNESSES < len(placed)
        assert 0 < later.start - frame.start <= (MAX_GAP_SECONDS if is_followed else MAX_JUMP_SECONDS)
    assert all(0 < frame.end - frame.start <= MAX_JUMP_SECONDS for frame in placed)
    assert [frame.item for frame in placed] == list(range(len(times)))


@given(st.integers(-(2**40), 2**40), st.lists(st.integers(1, 6000), max_size=20))
def test_believable_times_are_kept_relative_to_the_first(first, steps):
    units = list(accumulate(steps, initial=first))
    placed = place_all([(u, 4) for u in units])
    assert [frame.start for frame in placed] == [(u - first) * TIME_BASE for u in units]
    assert all(frame.end == frame.start + 4 * TIME_BASE for frame in placed)


@settings(deadline=None)
@given(st.integers(8, 60), st.integers(-1000, 10**6), st.lists(st.tuples(st.integers(0), WILD), min_size=1, max_size=2))
def test_one_or_two_damaged_times_change_no_other(num_frames, first, damage):
    true = [first + 4 * i for i in range(num_frames)]
    before, after = (1, 0) if len(damage) == 1 else (3, 3)  # two outweigh fewer than three intact frames
    seen = dict(enumerate(true))
    for n, wild in damage:
        place = before + n % (num_frames - before - after)
        seen[place] = None if wild is None else true[place] + wild
    placed = starts(seen.values())
    assert all(placed[n] == true[n] - first for n in range(num_frames) if seen[n] == true[n])
    assert all(earlier < later for earlier, later in pairwise(placed))


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=16, max_size=40), st.integers(0), st.sampled_from([-1, 1]), st.data())
def test_one_damaged_time_changes_no_other_at_a_variable_rate(steps, n, sign, data):
    true = [0, *accumulate(steps)]
    n = 4 + n % (len(steps) - 8)
    seen = [*true]
    seen[n] += sign * data.draw(st.integers(121, 5000))  # beyond any four frames
    assert [s for i, s in enumerate(starts(seen)) if i != n] == [s for i, s in enumerate(true) if i != n]


def test_a_damaged_time_of_the_first_frame_changes_no_other():
    for wild in (4000, 10**9, None):
        assert starts([wild, *range(4, 80, 4)]) == list(range(0, 80, 4))


def test_a_frame_without_a_believable_time_lies_between_its_neighbours():
    for odd in (None, 3, 0, 10**9):
        assert starts([0, 4, odd, 12]) == [0, 4, 8, 12]
    assert starts([0, 4, None, None, 7, 11]) == [0, 4, 5, 6, 7, 11]


def test_a_gap_is_believed_up_to_a_minute():
    assert starts([0, 4, 6004, 6008]) == [0, 4, 6004, 6008]
    assert starts([0, 4, 6005, 6009]) == [0, 4, 8, 12]


def test_a_gap_of_up_to_an_hour_needs_the_header_or_frames_that_follow():
    assert starts([0, 40000], declared=Fraction(400)) == [0, 40000]
    assert starts([0, 40000, 40004, 40008], declared=Fraction(300)) == [0, 4, 8, 12]
    assert starts([0, 4, 40000, 40004, 40008]) == [0, 4, 40000, 40004, 40008]
    assert starts([0, 40000, 40004, 40008]) == [0, 4, 8, 12]  # the first frame alone may be the damaged one


def test_a_longer_gap_needs_the_header_and_frames_that_follow():
    for first in (0, 10**8):  # wherever the clock of the file starts
        units = [first + n for n in (0, 400000, 400004, 400008)]
        assert starts(units, declared=Fraction(4001)) == [0, 400000, 400004, 400008]
        assert starts(units[:2], declared=Fraction(4001)) == [0, 4]
        assert starts(units) == [0, 4, 8, 12]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 20), st.integers(4, 360000)), min_size=1, max_size=6),
    st.integers(3, 20),
    st.none() | st.integers(1, 100),
)
def test_gaps_between_groups_of_frames_are_kept(groups, num_last, longer):
    """`longer`: times as long as an hour; the header confirms it."""
    units = [10**6]
    for num_frames, gap in groups:
        units += [units[-1] + 4 * i for i in range(1, num_frames)]
        units.append(units[-1] + gap * (longer or 1))
    units += [units[-1] + 4 * i for i in range(1, num_last)]
    assert starts(units, declared=longer and (units[-1] + 4 - units[0]) * TIME_BASE) == [u - units[0] for u in units]


def test_when_the_clock_of_the_file_starts_again_frames_follow_the_previous_ones():
    again = [*range(1000, 1100, 4), *range(0, 100, 4)]
    assert starts(again) == [*range(0, 200, 4)]
    assert starts([*again[:30], 9000, *again[31:]]) == [*range(0, 200, 4)]
    far = [*range(0, 100, 4), *range(10**6, 10**6 + 100, 4)]
    assert starts(far) == [*range(0, 200, 4)]


def test_times_are_relative_to_the_first_frame_of_the_stream_also_if_it_is_lost():
    assert starts([48, 52, 56], first=0) == [48, 52, 56]
    assert starts([0, 4, 8], first=8) == [0, 4, 8]  # in the order of decoding
    assert starts([48, 52, 56], first=-(10**7)) == [0, 4, 8]


def test_few_frames_are_held():
    taken = []
    frames = (taken.append(n) or (n, [4 * n, n * n][n % 2], 4) for n in range(100))
    for placed in FrameClock(TIME_BASE, NOMINAL, None).place(frames):
        assert len(taken) - placed.item <= LOOK_AHEAD
    taken.clear()
    regular = (taken.append(n) or (n, 4 * n, 4) for n in range(100))
    held = [len(taken) - placed.item for placed in FrameClock(TIME_BASE, NOMINAL, None).place(regular)]
    assert held[LOOK_AHEAD:] == [1] * (100 - LOOK_AHEAD)


def test_after_a_seek_times_stay_relative_to_the_first_frame():
    clock = FrameClock(TIME_BASE, NOMINAL, None)
    assert clock.to_units(1.0) is None
    next(clock.place([("first", 700, 4)]))
    assert clock.to_units(1.0) == 800
    clock.restart()
    assert next(clock.place([("later", 90000, 4)])).start == 893
