"""Segments for tools that hold data sets: detections as ActivityNet evaluates them, labels as FiftyOne imports them.

Sources: ActivityNet's Evaluation/README.md (https://github.com/activitynet/ActivityNet), and
`FiftyOneTemporalDetectionDataset` in FiftyOne's guide (https://docs.voxel51.com).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..records import FUSED
from ..version import __version__
from .objects import JsonObject
from .records import segment_record

if TYPE_CHECKING:
    from ..results import VideoResult


class _Detections(JsonObject):
    """Writes a list of the fused segments for each video."""

    score: str
    span: str
    """What the format calls these."""

    def entry(self, result: VideoResult) -> list[dict[str, Any]]:
        records = [segment_record(result.video, s) for s in result.segments_by(self.choices.rule, [FUSED])]
        return [
            {"label": r["label"], self.score: r["score"], self.span: [r["start_seconds"], r["end_seconds"]]}
            for r in records
        ]


class ActivityNet(_Detections):
    """The detections that `eval_detection.py` compares with the truth."""

    member, score, span = "results", "score", "segment"

    def head(self, labels: Sequence[str]) -> dict[str, Any]:
        return {"version": f"vid3d {__version__}", "external_data": {}}


class FiftyOne(_Detections):
    """The `labels.json` of a `FiftyOneTemporalDetectionDataset`."""

    member, score, span = "labels", "confidence", "timestamps"

    def head(self, labels: Sequence[str]) -> dict[str, Any]:
        return {}
