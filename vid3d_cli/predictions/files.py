"""Class predictions as JSON, JSON lines and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from ..fusion import top_k
from ..records import FUSED, STREAMS, ClipOutput, Prediction, VideoResult, to_json

Record = dict[str, Any]

CSV_COLUMNS = ("video", "clip", "start_seconds", "end_seconds", "stream", "rank", "label", "score", "logit")


def prediction_records(result: VideoResult, *, k: int, per: str = "clip") -> Iterator[Record]:
    """What `vid3d classify` says of one video.

    Args:
        result: of one video.
        k: how many classes of each stream.
        per: "clip" (one record a clip, then one for the video, whose "clip" is None) or "video" (that one alone).

    Yields:
        video, clip, start_seconds, end_seconds, and for each stream and "fused" the top k as label, score, logit.
    """
    for clip in result.clips if per == "clip" else ():
        yield _record(result, clip, k)
    yield _record(result, None, k)


def _record(result: VideoResult, clip: ClipOutput | None, k: int) -> Record:
    span = clip.span if clip else None
    logits = clip.logits if clip else result.logits
    return {
        "video": result.video,
        "clip": span.index if span else None,
        "start_seconds": round(span.start_seconds if span else result.start_seconds, 6),
        "end_seconds": round(span.end_seconds if span else result.end_seconds, 6),
        **{stream: [_plain(p) for p in top_k(values, result.labels, k)] for stream, values in logits.items()},
    }


def _plain(prediction: Prediction) -> Record:
    return {"label": prediction.label, "score": round(prediction.score, 6), "logit": round(prediction.logit, 6)}


class JsonLines:
    """One object a line, flushed: a reader at the other end of a pipe sees each video when it is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, records: Iterable[Record]) -> None:
        """Append records."""
        for record in records:
            self._stream.write(to_json(record) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing is left to write."""


class JsonArray:
    """All records as one JSON array, written as they come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._separator = stream, "[\n"

    def write(self, records: Iterable[Record]) -> None:
        """Append records."""
        for record in records:
            self._stream.write(self._separator + to_json(record))
            self._separator = ",\n"

    def close(self) -> None:
        """End the array, also one without records."""
        self._stream.write("[]\n" if self._separator == "[\n" else "\n]\n")


class Csv:
    """One line a class, best first; the clip of a whole video is empty."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = csv.writer(stream, lineterminator="\n")
        self._rows.writerow(CSV_COLUMNS)

    def write(self, records: Iterable[Record]) -> None:
        """Append records."""
        for record in records:
            where = [record[name] for name in CSV_COLUMNS[:4]]
            for stream, predictions in streams_of(record).items():
                for rank, p in enumerate(predictions, start=1):
                    self._rows.writerow([*where, stream, rank, p["label"], p["score"], p["logit"]])
        self._stream.flush()

    def close(self) -> None:
        """Nothing is left to write."""


def streams_of(record: Record) -> dict[str, list[Record]]:
    """The predictions of a record by stream, "fused" last."""
    return {name: record[name] for name in (*STREAMS, FUSED) if name in record}
