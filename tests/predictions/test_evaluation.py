"""Metrics against brute-force definitions, and the labels of videos."""

from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli import UsageError
from vid3d_cli.predictions.evaluation import (
    average_precision,
    class_numbers,
    confusion,
    evaluate,
    find_label,
    mean_average_precision,
    read_label_table,
    sweep_fusion,
    top_k_accuracy,
)


@st.composite
def scored_videos(draw):
    num_videos, num_classes = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = rng.normal(size=(num_videos, num_classes)).round(draw(st.integers(0, 3))).astype(np.float32)
    return logits, rng.integers(0, num_classes, num_videos)


@given(scored_videos(), st.integers(1, 9))
def test_top_k_counts_videos_whose_class_is_among_the_k_best(videos, k):
    logits, targets = videos
    hits = 0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda i: (-row[i], i))
        hits += target in ranking[:k]
    assert top_k_accuracy(logits, targets, k) == pytest.approx(hits / len(targets))


@given(scored_videos())
def test_average_precision_is_the_area_under_the_steps(videos):
    """Every score that occurs is a threshold; its precision is weighted by the recall that it adds (scikit-learn)."""
    logits, targets = videos
    scores, is_positive = logits[:, 0].astype(float), targets == targets[0]
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = (taken & is_positive).sum() / is_positive.sum()
        area += (recall - recall_before) * (taken & is_positive).sum() / taken.sum()
        recall_before = recall
    assert average_precision(scores, is_positive) == pytest.approx(area)


@given(scored_videos())
def test_confusion_counts_every_video_once(videos):
    logits, targets = videos
    counts = confusion(logits, targets)
    assert counts.sum() == len(targets)
    assert np.trace(counts) / len(targets) == pytest.approx(top_k_accuracy(logits, targets, 1))
    np.testing.assert_array_equal(counts.sum(1), np.bincount(targets, minlength=logits.shape[1]))


def test_metrics_of_a_small_example():
    logits = np.float32([[2, 1, 0], [2, 1, 0], [0, 3, 1], [1, 0, -3]])
    metrics = evaluate(logits, np.array([0, 0, 1, 2]))
    assert metrics.top1 == 0.75
    assert metrics.top5 == 1
    assert metrics.mean_class_accuracy == pytest.approx((1 + 1 + 0) / 3)
    assert metrics.mean_average_precision == pytest.approx((2 / 3 + 1 + 1 / 4) / 3)
    # The last video, of class 2, comes last by that class's score and before both others by class 0's.


def test_perfect_and_inverted_scores():
    targets = np.array([0, 1, 2, 0])
    perfect = np.eye(3, dtype=np.float32)[targets] * 9
    assert evaluate(perfect, targets) == evaluate(perfect + 5, targets)
    assert mean_average_precision(perfect, targets) == 1
    assert evaluate(-perfect, targets).top1 == 0


def test_sweeping_fusion_ends_at_the_streams_themselves():
    rng = np.random.default_rng(0)
    logits = {s: rng.normal(size=(30, 4)).astype(np.float32) for s in ("rgb", "flow")}
    targets = rng.integers(0, 4, 30)
    table = sweep_fusion(logits, targets)
    assert len(table) == 11
    assert table["1.0:0.0"] == evaluate(logits["rgb"], targets)
    assert table["0.0:1.0"] == evaluate(logits["flow"], targets)
    assert table["0.5:0.5"] == evaluate(logits["rgb"] / 2 + logits["flow"] / 2, targets)


def test_label_tables(tmp_path):
    own = tmp_path / "own.csv"
    own.write_text('video,label\na.mp4,"hurling (sport)"\nsub/b,zumba\n')
    assert read_label_table(own) == {"a.mp4": "hurling (sport)", "sub/b": "zumba"}
    kinetics = tmp_path / "kinetics.csv"
    kinetics.write_text("label,youtube_id,time_start,time_end,split\nabseiling,-3B32lodo2M,59,69,val\n")
    assert read_label_table(kinetics) == {"-3B32lodo2M_000059_000069": "abseiling"}
    for text in ("", "a.mp4,zumba\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UsageError, match="must name the columns video,label"):
            read_label_table(tmp_path / "bad.csv")
    with pytest.raises(UsageError, match=r"cannot read --labels .*gone\.csv: No such file"):
        read_label_table(tmp_path / "gone.csv")


@pytest.mark.parametrize("name", ["d/sub/a.mp4", "d/sub/a", "sub/a.mp4", "sub/a", "a.mp4", "a"])
def test_a_label_is_found_by_any_name_of_the_video(name):
    assert find_label({name: "zumba", "b": "yoga"}, "d/sub/a.mp4", PurePosixPath("sub/a")) == "zumba"
    assert find_label({"c": "zumba"}, "d/sub/a.mp4", PurePosixPath("sub/a")) is None


def test_a_label_that_is_not_a_class():
    np.testing.assert_array_equal(class_numbers(["b", "a", "b"], ["a", "b"]), [1, 0, 1])
    with pytest.raises(UsageError, match="no class 'zumbaa': did you mean 'zumba'"):
        class_numbers(["zumbaa"], ["yoga", "zumba"])
