"""Segments where the truth is known: the demo's film, and films of all ten camera motions in a random order."""

import sys
from pathlib import Path

import pytest

import vid3d_cli as vid3d
from vid3d_cli.segments import SegmentRule
from vid3d_cli.video.demo import MOTIONS, render

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from check_segments import FPS, MODEL, classify_films, compare


def assert_boundaries_are_right(result, truth, stride, rule):
    """The same labels in the same order, each boundary within one stride of the truth."""
    found = result.segments_by(rule, ["fused"])
    assert [s.label for s in found] == [m.label for m in truth]
    assert max(compare(found, truth).errors_seconds) <= stride / FPS + 1e-6
    assert found[0].start_seconds == 0
    assert found[-1].end_seconds == pytest.approx(truth[-1].end_seconds, abs=1 / FPS)


@pytest.mark.parametrize("stride", [16, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_segments_of_the_demo(tmp_path, stride):
    truth = render(tmp_path / "camera.mp4")
    assert [m.label for m in truth] == list(MOTIONS)
    result = vid3d.classify(tmp_path / "camera.mp4", model=MODEL, stride=stride)
    assert_boundaries_are_right(result, truth, stride, SegmentRule(min_seconds=0 if stride == 16 else 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("stride", "rule"), [(16, SegmentRule()), (8, SegmentRule(min_seconds=1.0))])
def test_segments_of_ten_motions_in_a_random_order(tmp_path, stride, rule):
    """Other seeds: python tools/check_segments.py."""
    for result, truth in classify_films(tmp_path, range(5), 2.56, stride):
        assert_boundaries_are_right(result, truth, stride, rule)
