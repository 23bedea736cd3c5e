"""Turns the scores of clips into segments: which class is seen from when to when.

    clips (they may overlap)   [---0---]
                                   [---1---]
                                       [---2---]
    cells                      [--0--|-1-|--2--]     boundaries halfway between the centres of neighbouring clips
    a class's curve            .9     .7  .2         its mean over the clips that cover a cell, by their seconds in it
    segments                   [----------]          runs of cells where the class is best, and reaches the threshold

Source: temporal actionness grouping (TAG) joins the parts of a curve above a threshold into segments (Zhao et al.,
"Temporal Action Detection with Structured Segment Networks", ICCV 2017). Its curve says how likely any action is, and
many thresholds give many proposals; here each class has a curve, and there is one threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arguments import check_fields
from .errors import UsageError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """A stretch of time in which one class is seen."""

    start_seconds: float
    end_seconds: float
    label: str
    score: float
    """Mean probability of the class over the segment, 0 to 1."""
    stream: str
    """"rgb", "flow" or "fused"."""


@dataclass(frozen=True)
class SegmentRule:
    """How scores become segments."""

    smooth: int = 1
    """Average the scores of so many neighbouring clips."""
    threshold: float | None = None
    """Least score of a class, 0 to 1; None for 0, or 0.2 with `multi_label`."""
    min_seconds: float = 0.0
    """Join segments of one class across shorter gaps, whatever else is in the gap; then drop shorter segments."""
    multi_label: bool = False
    """Whether classes may overlap; else only the best class of each moment has a segment."""

    def __post_init__(self) -> None:
        check_fields(self, SegmentRule)
        if self.smooth < 1:
            raise UsageError(f"smooth={self.smooth}: give 1 clip or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold={self.threshold:g}: give a score from 0 to 1")
        if not 0 <= self.min_seconds < np.inf:
            raise UsageError(f"min_seconds={self.min_seconds:g}: give 0 seconds or more")

    @property
    def least_score(self) -> float:
        """The threshold, with its default filled in."""
        return (0.2 if self.multi_label else 0.0) if self.threshold is None else self.threshold


@dataclass(frozen=True, eq=False)
class Curves:
    """The scores of a video over time."""

    bounds: Array
    """(N + 1,) seconds: cell i lasts from bounds[i] to bounds[i + 1]. There is a cell for each clip."""
    scores: Array
    """(N, K), probabilities."""

    def averaged(self, max_cells: int) -> Curves:
        """Return at most so many cells, each the mean of neighbours, weighted by their seconds."""
        num_cells = len(self.scores)
        firsts = np.unique(np.linspace(0, num_cells, min(num_cells, max_cells), endpoint=False).astype(int))
        seconds = np.diff(self.bounds).clip(min=1e-9)[:, None]
        means = np.add.reduceat(self.scores * seconds, firsts) / np.add.reduceat(seconds, firsts)
        return Curves(np.append(self.bounds[firsts], self.bounds[-1]), means)


def make_curves(spans: Sequence[tuple[float, float]], scores: NDArray[np.floating], smooth: int = 1) -> Curves:
    """Return the score curves of a video.

    Args:
        spans: start and end of each clip in seconds, in time order; at least one.
        scores: (N, K), the probabilities of each clip.
        smooth: average over so many neighbouring cells; fewer at the ends.
    """
    starts, ends = np.array(spans, np.float64).T
    centres = (starts + ends) / 2
    bounds = np.concatenate([starts[:1], (centres[1:] + centres[:-1]) / 2, [ends.max()]])
    bounds = np.maximum.accumulate(bounds)
    averaged = _average_overlaps(bounds, starts, ends, np.asarray(scores, np.float64))
    return Curves(bounds, _smooth(averaged, smooth))


def _average_overlaps(bounds: Array, starts: Array, ends: Array, scores: Array) -> Array:
    """Return (N, K): the mean score of the clips that cover a cell, weighted by the seconds they cover."""
    averaged: Array = scores.copy()  # what covers nothing, such as a clip of no length, keeps its own score
    first = np.searchsorted(np.maximum.accumulate(ends), bounds[:-1], "right")
    last = np.searchsorted(starts, bounds[1:], "left")
    for i, clips in enumerate(map(slice, first.tolist(), last.tolist())):
        seconds = np.minimum(ends[clips], bounds[i + 1]) - np.maximum(starts[clips], bounds[i])
        seconds = seconds.clip(min=0)
        if seconds.any():
            averaged[i] = seconds @ scores[clips] / seconds.sum()
    return averaged


def _smooth(scores: Array, width: int) -> Array:
    if width == 1:
        return scores
    sums = np.concatenate([np.zeros_like(scores[:1]), scores.cumsum(axis=0)])
    first = np.arange(len(scores)) - (width - 1) // 2
    ends = (first + width).clip(max=len(scores))
    first = first.clip(min=0)
    smoothed: Array = (sums[ends] - sums[first]) / (ends - first)[:, None]
    return smoothed


def find_segments(curves: Curves, labels: Sequence[str], stream: str, rule: SegmentRule) -> list[Segment]:
    """Return the segments of one stream, by start; those of equal start by class.

    Args:
        curves: from `make_curves`.
        labels: K class names.
        stream: recorded in the segments.
        rule: how scores become segments.
    """
    is_seen = curves.scores >= rule.least_score
    if not rule.multi_label:
        best = np.zeros_like(is_seen)
        best[np.arange(len(best)), curves.scores.argmax(axis=1)] = True
        is_seen &= best
    classes = np.flatnonzero(is_seen.any(axis=0)).tolist()
    runs = [(first, end, k) for k in classes for first, end in _runs(is_seen[:, k])]
    if rule.min_seconds:
        runs = _join(runs, curves.bounds, rule)
        runs = [run for run in runs if not _is_shorter(curves.bounds[run[1]] - curves.bounds[run[0]], rule)]
    in_order = sorted(runs, key=lambda run: (run[0], run[2]))
    return [_make_segment(curves, *run, labels[run[2]], stream) for run in in_order]


def _runs(is_seen: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_seen, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _join(runs: list[tuple[int, int, int]], bounds: Array, rule: SegmentRule) -> list[tuple[int, int, int]]:
    """Join runs of one class across shorter gaps than `rule.min_seconds`.

    Unless classes may overlap, what other classes have in the gap is left out; the earlier class has precedence.
    """
    joined: list[tuple[int, int, int]] = []
    for first, end, k in sorted(runs, key=lambda run: (run[2] if rule.multi_label else 0, run[0])):
        before = len(joined) - 1
        while before >= 0 and _is_shorter(bounds[first] - bounds[joined[before][1]], rule):
            if joined[before][2] == k:
                joined[before:] = [(joined[before][0], end, k)]
                break
            before = -1 if rule.multi_label else before - 1
        else:
            joined.append((first, end, k))
    return joined


def _is_shorter(seconds: float, rule: SegmentRule) -> bool:
    return seconds < rule.min_seconds - 1e-6  # times are rounded


def _make_segment(curves: Curves, first: int, end: int, k: int, label: str, stream: str) -> Segment:
    seconds = np.diff(curves.bounds[first : end + 1])
    scores = curves.scores[first:end, k]
    score = np.average(scores, weights=seconds) if seconds.sum() > 0 else scores.mean()
    return Segment(float(curves.bounds[first]), float(curves.bounds[end]), label, float(score), stream)
