"""`index.html`: the overview of a directory of reports, a row a video."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO
from urllib.parse import quote

from ...records import FUSED, rank
from ...text import printable
from ..formats import Choices, Index
from .pages import generate, to_inert_json

if TYPE_CHECKING:
    from ...results import VideoResult

NUM_CELLS = 120
"""A video's timeline has so many cells, each with the label that is seen in its middle."""
NUM_COLOURS = 8
MAX_MISSING = 200
"""Videos without a report that are listed by name."""


class _Row(NamedTuple):
    """What is kept of a video: 500 bytes."""

    name: str
    seconds: float
    num_lost_frames: int
    best: int
    """Number of the video's best label."""
    score: float
    cells: array[int]
    """Numbers of labels, 0 for none."""


class Overview(Index):
    """Collects a row for each report that is written."""

    file_name = "index.html"

    def __init__(self, choices: Choices) -> None:
        super().__init__(choices)
        self._rows: list[_Row] = []
        self._numbers: dict[str, int] = {}

    def add(self, result: VideoResult, name: str) -> None:
        start, end = result.start_seconds, result.end_seconds
        cells = array("H", bytes(2 * NUM_CELLS))
        for segment in sorted(result.segments_by(self.choices.rule, [FUSED]), key=lambda segment: segment.score):
            first, last = (
                round(NUM_CELLS * (seconds - start) / max(end - start, 1e-9) - 0.001)
                for seconds in (segment.start_seconds, segment.end_seconds)
            )
            number = self._number_of(segment.label)
            cells[first:last] = array("H", [number] * (last - first))
        (best,) = rank(result.logits[FUSED], result.labels, 1)
        number = self._number_of(best.label)
        self._rows.append(_Row(name, end - start, result.num_lost_frames, number, best.score, cells))

    def _number_of(self, label: str) -> int:
        return self._numbers.setdefault(label, len(self._numbers) + 1)

    def write(self, stream: TextIO, names: Sequence[str]) -> None:
        seen = Counter(number for row in self._rows for number in row.cells if number)
        colours = {number: colour for colour, (number, _) in enumerate(seen.most_common(NUM_COLOURS))}
        labels = [printable(label) for label in self._numbers]
        done = {row.name for row in self._rows}
        missing = [name for name in names if name not in done]
        pieces = generate(
            "overview.html",
            "overview.js",
            num_videos=len(self._rows),
            seconds=sum(row.seconds for row in self._rows),
            legend=[(labels[number - 1], colour) for number, colour in colours.items()],
            data=to_inert_json({"labels": labels, "rows": [_describe(row, colours) for row in self._rows]}),
            has_lost=any(row.num_lost_frames for row in self._rows),
            has_other=len(labels) > len(colours),
            missing=[printable(name) for name in missing[:MAX_MISSING]],
            num_missing=len(missing),
        )
        stream.writelines(pieces)


def _describe(row: _Row, colours: dict[int, int]) -> dict[str, object]:
    return {
        "name": printable(row.name),
        "href": f"{quote(os.fsencode(row.name))}.html",
        "label": row.best - 1,
        "colour": colours.get(row.best, NUM_COLOURS),
        "score": round(row.score, 3),
        "seconds": round(row.seconds, 1),
        "lost": row.num_lost_frames,
        # A digit a cell: its colour, 8 for other labels; or a space.
        "cells": "".join(str(colours.get(number, NUM_COLOURS)) if number else " " for number in row.cells),
    }
