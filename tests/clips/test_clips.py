"""Sliding clips against their definition, which looks at all frames at once."""

import doctest
import itertools
from functools import partial

import pytest
from held import count_held
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli.clips import windows
from vid3d_cli.clips.windows import TAILS, check_clip_options, count_clips, sliding_clips
from vid3d_cli.errors import UsageError

num_frames_drawn = st.integers(0, 60)
length_drawn = st.integers(1, 20)
stride_drawn = st.integers(1, 30)
tail_drawn = st.sampled_from(TAILS)


def spans_by_definition(num_frames, length, stride, tail):
    """(first frame, number of real frames) of every clip."""
    whole = [start for start in range(0, num_frames, stride) if start + length <= num_frames]
    if num_frames and not whole:
        return [(0, num_frames)]  # a short video is one clip, whatever the tail
    spans = [(start, length) for start in whole]
    shown = {frame for start in whole for frame in range(start, start + length)}
    rest = range(len(whole) * stride, num_frames)
    if tail != "drop" and set(rest) - shown:
        spans.append((rest.start, len(rest)))
    return spans


def test_every_small_case_is_as_defined():
    for num_frames, length, stride, tail in itertools.product(range(26), range(1, 9), range(1, 12), TAILS):
        cut = list(sliding_clips(range(num_frames), length=length, stride=stride, tail=tail))
        expected = spans_by_definition(num_frames, length, stride, tail)
        case = (num_frames, length, stride, tail)
        assert [(window.start, window.num_valid) for window in cut] == expected, case
        assert count_clips(num_frames, length=length, stride=stride, tail=tail) == len(expected), case


@given(num_frames_drawn, length_drawn, stride_drawn, tail_drawn)
def test_clips_are_as_defined(num_frames, length, stride, tail):
    cut = list(sliding_clips(range(num_frames), length=length, stride=stride, tail=tail))
    assert [(window.start, window.num_valid) for window in cut] == spans_by_definition(num_frames, length, stride, tail)
    assert count_clips(num_frames, length=length, stride=stride, tail=tail) == len(cut)


@given(num_frames_drawn, length_drawn, stride_drawn, tail_drawn)
def test_clip_k_starts_at_k_strides_and_shows_what_follows(num_frames, length, stride, tail):
    for k, window in enumerate(sliding_clips(range(num_frames), length=length, stride=stride, tail=tail)):
        real, fill = window.frames[: window.num_valid], window.frames[window.num_valid :]
        assert window.start == k * stride
        assert len(window.frames) == length
        assert real == list(range(window.start, min(window.start + length, num_frames)))
        repeated = itertools.cycle(real) if tail == "loop" else itertools.repeat(real[-1])
        assert fill == list(itertools.islice(repeated, len(fill)))


@pytest.mark.parametrize("tail", ["pad", "loop"])
@given(num_frames_drawn, length_drawn, stride_drawn)
def test_only_frames_in_gaps_are_in_no_clip(tail, num_frames, length, stride):
    cut = sliding_clips(range(num_frames), length=length, stride=stride, tail=tail)
    shown = {frame for window in cut for frame in window.frames}
    assert shown == {frame for frame in range(num_frames) if frame % stride < length}


@given(num_frames_drawn, length_drawn, stride_drawn, tail_drawn)
def test_every_clip_shows_a_new_frame(num_frames, length, stride, tail):
    shown = set()
    for window in sliding_clips(range(num_frames), length=length, stride=stride, tail=tail):
        assert set(window.frames) - shown
        shown.update(window.frames)


@given(num_frames_drawn, length_drawn, stride_drawn)
def test_drop_makes_only_whole_clips_except_for_a_short_video(num_frames, length, stride):
    cut = list(sliding_clips(range(num_frames), length=length, stride=stride, tail="drop"))
    if 0 < num_frames < length:
        assert [window.num_valid for window in cut] == [num_frames]
    else:
        assert all(window.num_valid == length for window in cut)


@pytest.mark.parametrize("tail", TAILS)
@given(num_frames_drawn, length_drawn, stride_drawn)
def test_at_most_one_clip_of_frames_is_held(tail, num_frames, length, stride):
    most, left = count_held(partial(sliding_clips, length=length, stride=stride, tail=tail), num_frames)
    assert most <= length
    assert left == 0


@given(num_frames_drawn, length_drawn, stride_drawn, tail_drawn)
def test_a_clip_is_yielded_as_soon_as_its_last_frame_is_read(num_frames, length, stride, tail):
    frames = iter(range(num_frames))
    for window in sliding_clips(frames, length=length, stride=stride, tail=tail):
        if window.num_valid == length:
            assert frames.__length_hint__() == num_frames - window.start - length


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"length": 0, "stride": 1}, "window 0"),
        ({"length": -3, "stride": 1}, "window -3"),
        ({"length": 1, "stride": 0}, "stride 0"),
        ({"length": 1, "stride": -1}, "stride -1"),
        ({"length": 1, "stride": 1, "tail": "wrap"}, "'wrap'.*pad, drop, loop"),
        ({"length": 1, "stride": 1, "tail": ""}, "''.*pad, drop, loop"),
    ],
)
def test_invalid_clip_options(options, named):
    with pytest.raises(UsageError, match=named):
        list(sliding_clips(range(3), **options))
    with pytest.raises(UsageError, match=named):
        check_clip_options(**{"tail": "pad", **options})


def test_the_examples_in_the_docstrings_are_right():
    results = doctest.testmod(windows)
    assert results.attempted >= 1
    assert results.failed == 0
