"""How well scores agree with known labels: top-k accuracy, mean class accuracy, mean average precision, confusion."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..fusion import Fusion

Logits = NDArray[np.float32]
Targets = NDArray[np.int64]

SWEPT_SHARES = tuple(i / 10 for i in range(11))
"""The shares of the flow stream that `sweep_fusion` tries."""


@dataclass(frozen=True)
class Metrics:
    """Agreement of V scored videos with their labels, each 0 to 1."""

    top1: float
    top5: float
    mean_class_accuracy: float
    """Mean over the classes that occur of the share of their videos that were recognised."""
    mean_average_precision: float
    """Mean over the classes that occur of the average precision of ranking all videos by the class's score."""


def evaluate(logits: Logits, targets: Targets) -> Metrics:
    """Compare scores with labels.

    Args:
        logits: (V, K).
        targets: (V,), class numbers.
    """
    recalls = [float((logits[targets == k].argmax(1) == k).mean()) for k in np.unique(targets)]
    return Metrics(
        top1=top_k_accuracy(logits, targets, 1),
        top5=top_k_accuracy(logits, targets, 5),
        mean_class_accuracy=float(np.mean(recalls)),
        mean_average_precision=mean_average_precision(logits, targets),
    )


def top_k_accuracy(logits: Logits, targets: Targets, k: int) -> float:
    """Share of the videos whose class is among the k with the highest scores."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float((best == targets[:, None]).any(1).mean())


def mean_average_precision(logits: Logits, targets: Targets) -> float:
    """Mean over the classes that occur; scores are softmax probabilities, so that they compare between videos.

    Source: the average precision of information retrieval, without interpolation, as in scikit-learn.
    """
    log_scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(np.mean([average_precision(log_scores[:, k], targets == k) for k in np.unique(targets)]))


def average_precision(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> float:
    """Mean precision at the rank of every positive; equal scores share the worst of their ranks."""
    order = np.argsort(-scores, kind="stable")
    hits, sorted_scores = is_positive[order].cumsum(), scores[order]
    last_of_equals = np.searchsorted(-sorted_scores, -sorted_scores, side="right") - 1
    precision = hits[last_of_equals] / (last_of_equals + 1)
    return float(precision[is_positive[order]].mean())


def confusion(logits: Logits, targets: Targets) -> NDArray[np.int64]:
    """(K, K) counts: row is the true class, column the recognised one."""
    num_classes = logits.shape[1]
    counts = np.bincount(targets * num_classes + logits.argmax(1), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def sweep_fusion(logits: Mapping[str, Logits], targets: Targets, on: str = "logits") -> dict[str, Metrics]:
    """Metrics of the fused streams by weights, "1:0" (rgb alone) to "0:1" (flow alone).

    Args:
        logits: per stream, (V, K); both streams.
        targets: (V,).
        on: see `fusion.Fusion`.
    """
    table = {}
    for share in SWEPT_SHARES:
        weights = f"{1 - share:.1f}:{share:.1f}"
        fuse = Fusion.parse(weights, on)
        fused = np.stack([fuse(dict(zip(logits, video, strict=True))) for video in zip(*logits.values(), strict=True)])
        table[weights] = evaluate(fused, targets)
    return table


def read_label_table(path: Path) -> dict[str, str]:
    """Read which video shows what.

    Two kinds of CSV, told apart by their header: "video,label", and Kinetics' annotations
    ("label,youtube_id,time_start,time_end,…"), whose files are called <youtube_id>_<start>_<end> (six digits each).

    Returns:
        Label by video, as the file names it, for `find_label`.

    Raises:
        UsageError: it cannot be read, or has neither header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--labels {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    columns = set(rows[0]) if rows else set()
    if {"video", "label"} <= columns:
        return {row["video"]: row["label"] for row in rows}
    if {"youtube_id", "time_start", "time_end", "label"} <= columns:
        return {_kinetics_name(row): row["label"] for row in rows}
    raise UsageError(
        f"--labels {path}: the first line must name the columns: video,label "
        "(or Kinetics' label,youtube_id,time_start,time_end)"
    )


def _kinetics_name(row: Mapping[str, str]) -> str:
    return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"


def find_label(table: Mapping[str, str], video: str, stem: PurePosixPath) -> str | None:
    """The label of a video: by its path, its path below the directory given, or its name, each with or without suffix.

    Args:
        table: of `read_label_table`.
        video: path as it was found.
        stem: the same below the deepest directory given, without suffix: `sources.Source.output_stem`.
    """
    path = PurePosixPath(video)
    names = [video, str(path.with_suffix("")), str(stem) + path.suffix, str(stem), path.name, path.stem]
    return next((table[name] for name in names if name in table), None)


def class_numbers(labels: Sequence[str], classes: Sequence[str]) -> Targets:
    """Labels as numbers of the model's classes.

    Raises:
        UsageError: a label that the model does not know.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    for label in labels:
        if label not in number_of:
            close = difflib.get_close_matches(label, classes, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it knows: {', '.join(classes[:5])}, …"
            raise UsageError(f"the model has no class '{label}': {hint}")
    return np.array([number_of[label] for label in labels], np.int64)
