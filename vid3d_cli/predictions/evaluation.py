"""Compares scores with labels: top-k accuracy, mean class accuracy, mean average precision, confusion."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..fusion import Fusion
from ..suggest import did_you_mean

Logits = NDArray[np.float32]
Targets = NDArray[np.int64]

SWEPT_SHARES = tuple(i / 10 for i in range(11))
"""Weights of the flow stream that `sweep_fusion` tries, out of 1."""


@dataclass(frozen=True)
class Metrics:
    """Accuracy of the scores of V videos, each number 0 to 1."""

    top1: float
    top5: float
    mean_class_accuracy: float
    """Share of videos recognised per class, averaged over the classes that occur."""
    mean_average_precision: float
    """Average precision of ranking all videos by a class's score, averaged over the classes that occur."""


def evaluate(logits: Logits, targets: Targets) -> Metrics:
    """Return all metrics of some scores.

    Args:
        logits: (V, K) float32.
        targets: (V,) int64 class numbers, 0 to K-1.
    """
    recalls = [float((logits[targets == k].argmax(1) == k).mean()) for k in np.unique(targets)]
    return Metrics(
        top1=top_k_accuracy(logits, targets, 1),
        top5=top_k_accuracy(logits, targets, 5),
        mean_class_accuracy=float(np.mean(recalls)),
        mean_average_precision=mean_average_precision(logits, targets),
    )


def top_k_accuracy(logits: Logits, targets: Targets, k: int) -> float:
    """Return the share of videos, 0 to 1, whose class is among the k with the highest scores."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float((best == targets[:, None]).any(1).mean())


def mean_average_precision(logits: Logits, targets: Targets) -> float:
    """Return the mean average precision, 0 to 1, over the classes that occur.

    Videos are ranked by softmax probability, which is comparable between videos.

    Source: average precision as in information retrieval, without interpolation, as in scikit-learn.
    """
    log_scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(np.mean([average_precision(log_scores[:, k], targets == k) for k in np.unique(targets)]))


def average_precision(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> float:
    """Return the mean precision at the rank of each positive, 0 to 1; equal scores share the lowest of their ranks."""
    order = np.argsort(-scores, kind="stable")
    hits, sorted_scores = is_positive[order].cumsum(), scores[order]
    last_of_equals = np.searchsorted(-sorted_scores, -sorted_scores, side="right") - 1
    precision = hits[last_of_equals] / (last_of_equals + 1)
    return float(precision[is_positive[order]].mean())


def confusion(logits: Logits, targets: Targets) -> NDArray[np.int64]:
    """Return (K, K) int64 counts of videos; rows are true classes, columns recognised ones."""
    num_classes = logits.shape[1]
    counts = np.bincount(targets * num_classes + logits.argmax(1), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def sweep_fusion(logits: Mapping[str, Logits], targets: Targets, on: str = "logits") -> dict[str, Metrics]:
    """Return the metrics of the fused streams by weights, from "1.0:0.0" (rgb alone) to "0.0:1.0" (flow alone).

    Args:
        logits: (V, K) for "rgb" and "flow".
        targets: (V,) int64 class numbers.
        on: what is fused, "logits" or "probs".
    """
    table = {}
    for share in SWEPT_SHARES:
        weights = f"{1 - share:.1f}:{share:.1f}"
        fuse = Fusion.parse(weights, on)
        fused = np.stack([fuse(dict(zip(logits, video, strict=True))) for video in zip(*logits.values(), strict=True)])
        table[weights] = evaluate(fused, targets)
    return table


def read_label_table(path: Path) -> dict[str, str]:
    """Read the labels of videos from a CSV file, or from standard input if its name is "-".

    The header is "video,label", or that of Kinetics' annotations, "label,youtube_id,time_start,time_end,…", whose
    videos are named <youtube_id>_<start>_<end>, both times with six digits.

    Returns:
        Labels by video name, for `find_label`.

    Raises:
        UsageError: the file cannot be read, or has neither header.
    """
    try:
        is_stdin = str(path) == "-"
        with nullcontext(sys.stdin) if is_stdin else path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UsageError(f"cannot read --labels {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"--labels {path}: not a text file: give a CSV file with the columns video,label") from None
    columns = set(rows[0]) if rows else set()
    if {"video", "label"} <= columns:
        return {row["video"]: row["label"] for row in rows}
    if {"youtube_id", "time_start", "time_end", "label"} <= columns:
        return {_kinetics_name(row): row["label"] for row in rows}
    raise UsageError(
        f"--labels {path}: the first line must name the columns video,label "
        "(or Kinetics' label,youtube_id,time_start,time_end)"
    )


def _kinetics_name(row: Mapping[str, str]) -> str:
    return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"


def find_label(table: Mapping[str, str], video: str, stem: PurePosixPath) -> str | None:
    """Return the label of a video, or None.

    The table may name the video by its path, by its path below the input directory, or by its file name, each with or
    without suffix.

    Args:
        table: the result of `read_label_table`.
        video: path of the video.
        stem: the path below the input directory, without suffix; see `sources.Source.output_stem`.
    """
    path = PurePosixPath(video)
    names = [video, str(path.with_suffix("")), str(stem) + path.suffix, str(stem), path.name, path.stem]
    return next((table[name] for name in names if name in table), None)


def class_numbers(labels: Sequence[str], classes: Sequence[str]) -> Targets:
    """Return the class numbers of labels.

    Raises:
        UsageError: a label is not one of the classes.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    for label in labels:
        if label not in number_of:
            hint = did_you_mean(label, classes) or f"its classes are: {', '.join(classes[:5])}, …"
            raise UsageError(f"the model has no class '{label}': {hint}")
    return np.array([number_of[label] for label in labels], np.int64)
