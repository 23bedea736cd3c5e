"""Segments against a slow reference: time is cut into ticks, and every tick is decided by itself."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.errors import UsageError
from vid3d_cli.segments import SegmentRule, find_segments, make_curves

TICKS = 32
"""Ticks per second. Clips start and end at multiples of 4 ticks, so that midpoints of centres are whole ticks."""

LABELS = ("a", "b", "c")


@st.composite
def videos(draw):
    """Draw clips, (start, end) in ticks, and scores (N, K): they overlap, leave gaps, or have no length."""
    num_clips = draw(st.integers(1, 12))
    length = draw(st.integers(0, 6))
    start, end, spans = draw(st.integers(0, 3)), 0, []
    for _ in range(num_clips):
        end = max(end, start + draw(st.sampled_from([length, length, length, 0, 1])))
        spans.append((4 * start, 4 * end))
        start += draw(st.integers(1, 7))
    values = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.625, 1.0])
    scores = draw(st.lists(st.tuples(values, values, values), min_size=num_clips, max_size=num_clips))
    return spans, np.array(scores)


rules = st.builds(
    SegmentRule,
    smooth=st.integers(1, 4),
    threshold=st.none() | st.sampled_from([0.0, 0.3, 0.61]),
    min_seconds=st.sampled_from([0.0, 4 / TICKS, 9 / TICKS, 40 / TICKS, 1e9]),
    multi_label=st.booleans(),
)


def segments_of(video, rule):
    spans, scores = video
    curves = make_curves([(start / TICKS, end / TICKS) for start, end in spans], scores, rule.smooth)
    return find_segments(curves, LABELS, "rgb", rule)


def score_ticks(video, smooth):
    """Return the score of each class in each tick from the first clip's start to the last one's end, (ticks, K)."""
    spans, scores = video
    ticks = range(spans[0][0], spans[-1][1])
    centres = [(start + end) / 2 for start, end in spans]
    cells = [min(range(len(spans)), key=lambda i: abs(centres[i] - tick - 0.5)) for tick in ticks]
    curve = []
    for i in range(len(spans)):
        seen = [
            scores[j]
            for tick, cell in zip(ticks, cells, strict=True)
            for j, (start, end) in enumerate(spans)
            if cell == i and start <= tick < end
        ]
        curve.append(np.mean(seen, axis=0) if seen else scores[i])
    near = [range(i - (smooth - 1) // 2, i + smooth // 2 + 1) for i in range(len(spans))]
    curve = [np.mean([curve[j] for j in window if 0 <= j < len(spans)], axis=0) for window in near]
    return np.array([curve[cell] for cell in cells]).reshape(-1, len(LABELS))


def ticks_of(segment):
    start, end = segment.start_seconds * TICKS, segment.end_seconds * TICKS
    assert (start, end) == (round(start), round(end))
    return round(start), round(end)


@given(videos(), rules)
@settings(deadline=None, max_examples=60)
def test_segments_are_ordered_within_the_clips_and_always_the_same(video, rule):
    spans, _ = video
    segments = segments_of(video, rule)
    assert segments == segments_of(video, rule)
    for segment in segments:
        assert spans[0][0] <= ticks_of(segment)[0] <= ticks_of(segment)[1] <= spans[-1][1]
        assert 0 <= segment.score <= 1
    order = [(segment.start_seconds, segment.label) for segment in segments]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    tracks = [[s for s in segments if s.label == label] for label in LABELS] if rule.multi_label else [segments]
    for track in tracks:
        assert all(one.end_seconds <= two.start_seconds for one, two in pairwise(track))


@given(videos(), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_the_best_class_of_each_tick_has_its_segment(video, smooth):
    spans, _ = video
    expected = score_ticks(video, smooth)
    segments = segments_of(video, SegmentRule(smooth))
    bounds = [ticks_of(segment) for segment in segments]
    assert (bounds[0][0], bounds[-1][1]) == (spans[0][0], spans[-1][1])  # they tile the clips
    assert all(one[1] == two[0] for one, two in pairwise(bounds))
    assert all(one.label != two.label for one, two in pairwise(segments))
    for (start, end), segment in zip(bounds, segments, strict=True):
        part = expected[start - spans[0][0] : end - spans[0][0]]
        own = part[:, LABELS.index(segment.label)]
        assert (own >= part.max(axis=1, initial=0) - 1e-9).all()
        assert not len(own) or segment.score == pytest.approx(own.mean(), abs=1e-9)


@given(videos(), st.sampled_from([0.3, 0.61]), st.booleans(), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_each_tick_above_the_threshold_has_its_segment(video, threshold, multi_label, smooth):
    spans, _ = video
    segments = segments_of(video, SegmentRule(smooth, threshold, multi_label=multi_label))
    expected = score_ticks(video, smooth)
    for tick, scores in enumerate(expected, start=spans[0][0]):
        seen = {s.label for s in segments if ticks_of(s)[0] <= tick < ticks_of(s)[1]}
        reached = {label for label, score in zip(LABELS, scores, strict=True) if score >= threshold}
        if multi_label:
            assert seen == reached
        else:
            best = {label for label, score in zip(LABELS, scores, strict=True) if score >= scores.max() - 1e-9}
            assert len(seen) == bool(reached)
            assert seen <= best


@given(videos(), rules)
@settings(deadline=None, max_examples=100)
def test_short_gaps_are_joined_and_short_segments_dropped(video, rule):
    raw = segments_of(video, SegmentRule(rule.smooth, rule.threshold, 0.0, rule.multi_label))
    segments = segments_of(video, rule)
    for segment in segments:
        assert segment.end_seconds - segment.start_seconds >= rule.min_seconds
        own = [s for s in raw if s.label == segment.label]
        assert segment.start_seconds in [s.start_seconds for s in own]
        assert segment.end_seconds in [s.end_seconds for s in own]
    for label in LABELS:
        own = [s for s in segments if s.label == label]
        assert all(two.start_seconds - one.end_seconds >= rule.min_seconds for one, two in pairwise(own))
    for long in raw:  # what is long enough stays
        if long.end_seconds - long.start_seconds >= rule.min_seconds:
            assert any(
                (s.label, s.start_seconds <= long.start_seconds, long.end_seconds <= s.end_seconds)
                == (long.label, True, True)
                for s in segments
            )


def test_a_flicker_is_joined_over_what_is_seen_in_the_gap():
    scores = np.array([[1, 0, 0] if label == "a" else [0, 1, 0] for label in "aaabaaabbb"], float)
    curves = make_curves([(i, i + 1) for i in range(10)], scores)
    found = find_segments(curves, LABELS, "rgb", SegmentRule(min_seconds=2))
    assert [(s.label, s.start_seconds, s.end_seconds, s.score) for s in found] == [("a", 0, 7, 6 / 7), ("b", 7, 10, 1)]


def test_a_length_of_exactly_min_seconds_stays_although_times_are_rounded():
    spans = [(i * 0.1, i * 0.1 + 0.1) for i in range(50)]
    scores = np.array([[1, 0, 0], [0, 1, 0]] * 25, float)
    found = find_segments(make_curves(spans, scores), LABELS, "rgb", SegmentRule(min_seconds=0.1))
    assert [s.label for s in found] == ["a", "b"] * 25


def test_boundaries_are_midpoints_between_centres():
    curves = make_curves([(0, 2), (1, 3), (2, 4), (6, 8)], np.eye(4, 3))
    assert curves.bounds.tolist() == [0, 1.5, 2.5, 5, 8]


@pytest.mark.parametrize("spans", [[(1.0, 1.0)], [(0.5, 1.5)], [(0.0, 0.0), (0.0, 0.0)]])
def test_one_clip_or_no_length(spans):
    scores = np.tile([0.25, 0.5, 0.25], (len(spans), 1))
    (segment,) = find_segments(make_curves(spans, scores), LABELS, "rgb", SegmentRule())
    assert (segment.start_seconds, segment.end_seconds) == spans[0]
    assert (segment.label, segment.score, segment.stream) == ("b", 0.5, "rgb")


@pytest.mark.parametrize(
    "wrong", [{"smooth": 0}, {"threshold": 1.5}, {"threshold": float("nan")}, {"min_seconds": -1.0}, {"smooth": "3"}]
)
def test_rules_that_cannot_be(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SegmentRule(**wrong)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stride", [2.56, 0.64])
@pytest.mark.parametrize("rule", [SegmentRule(5, min_seconds=5), SegmentRule(5, 0.0, 5, multi_label=True)])
def test_ten_hours_take_seconds(stride, rule):
    scores = np.random.default_rng(0).dirichlet(np.full(400, 0.05), 14_000)
    began = time.process_time()
    curves = make_curves([(i * stride, i * stride + 2.56) for i in range(14_000)], scores, rule.smooth)
    segments = find_segments(curves, [str(k) for k in range(400)], "rgb", rule)
    assert time.process_time() - began < 10
    assert segments
