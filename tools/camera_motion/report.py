"""Accuracies as Markdown: per class and stream, and a confusion table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .paths import CLASSES

STREAMS = ("rgb", "flow", "fused")

Logits = Mapping[str, NDArray[np.float32]]
"""Per stream and "fused", (N, 10)."""


def accuracies(logits: Logits, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the top-1 of every stream, in percent."""
    return {s: round(100 * float((logits[s].argmax(1) == labels).mean()), 2) for s in STREAMS if s in logits}


def confusion(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (10, 10) counts: rows are true classes, columns recognised ones."""
    table = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(table, (labels, logits.argmax(1)), 1)
    return table


def class_table(logits: Logits, labels: NDArray[np.int64]) -> str:
    """Return a table of the top-1 of every class, and of all."""
    rows = []
    for index, name in enumerate(CLASSES):
        of_class = labels == index
        if of_class.any():
            found = accuracies({s: x[of_class] for s, x in logits.items()}, labels[of_class])
            rows.append([name, str(of_class.sum()), *(f"{found[s]:.1f}" for s in STREAMS)])
    total = accuracies(logits, labels)
    rows.append(["**all**", str(len(labels)), *(f"**{total[s]:.1f}**" for s in STREAMS)])
    return _table(["class", "clips", "rgb %", "flow %", "fused %"], rows)


def confusion_table(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Return the confusion table; an empty cell means zero."""
    table = confusion(logits, labels)
    rows = [[name, *(str(n) if n else "" for n in table[i])] for i, name in enumerate(CLASSES)]
    return _table(["true \\ found", *map(_short, CLASSES)], rows)


def _short(name: str) -> str:
    first, _, second = name.partition("-")
    return f"{first} {second[:4]}".strip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
