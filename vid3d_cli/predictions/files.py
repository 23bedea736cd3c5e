"""Writes class predictions as JSON, JSON lines and CSV.

To add a format, write a `Writer` and add it to `WRITERS`. The command line reads `WRITERS` for its help, so this module
imports NumPy only when it is used.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ..records import ClipOutput, VideoResult

Record = dict[str, Any]

CSV_COLUMNS = ("video", "clip", "start_seconds", "end_seconds", "stream", "rank", "label", "score", "logit")


def prediction_records(result: VideoResult, *, k: int, per: str = "clip", skip: int = 0) -> Iterator[Record]:
    """Yield the predictions for one video as records.

    Args:
        result: the result of one video.
        k: number of classes per stream.
        per: "clip" yields one record per clip, then one for the video, whose "clip" is None; "video" only the latter.
        skip: leave out so many of the first clips.

    Yields:
        video, clip, start_seconds, end_seconds, and for each stream and "fused" the top k as label, score, logit.
    """
    from ..records import prediction_record

    if per == "clip":
        yield from clip_records(result.video, result.clips[skip:], result.labels, k)
    yield prediction_record(result.video, None, result, result.logits, result.labels, k)


def clip_records(video: str, clips: Iterable[ClipOutput], labels: Sequence[str], k: int) -> Iterator[Record]:
    """Yield a record per clip, as `prediction_records` does, before the video is done.

    Args:
        video: path or URL as given.
        clips: with "fused" logits.
        labels: class names, in the order of the logits.
        k: number of classes per stream.
    """
    from ..records import prediction_record

    for clip in clips:
        yield prediction_record(video, clip.span.index, clip.span, clip.logits, labels, k)


def streams_of(record: Record) -> dict[str, list[Record]]:
    """Return the predictions of a record by stream, "fused" last."""
    from ..records import FUSED, STREAMS

    return {name: record[name] for name in (*STREAMS, FUSED) if name in record}


class Writer(ABC):
    """Writes records in one format.

    Args:
        stream: text stream that is written to; it is not closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @abstractmethod
    def write(self, records: Iterable[Record]) -> None:
        """Append records, and flush them: a pipe's reader sees them at once."""

    def close(self) -> None:  # noqa: B027  (most formats have no end)
        """Write the end of the file, if the format has one."""


class JsonLines(Writer):
    """One JSON object per line."""

    def write(self, records: Iterable[Record]) -> None:
        from ..records import to_json

        for record in records:
            self._stream.write(to_json(record) + "\n")
        self._stream.flush()


class JsonArray(Writer):
    """One JSON array of all records, written as they come."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._separator = "[\n"

    def write(self, records: Iterable[Record]) -> None:
        from ..records import to_json

        for record in records:
            self._stream.write(self._separator + to_json(record))
            self._separator = ",\n"
        self._stream.flush()

    def close(self) -> None:
        self._stream.write("[]\n" if self._separator == "[\n" else "\n]\n")


class Csv(Writer):
    """One line per class, best first; the clip is empty in lines for the whole video.

    It is valid UTF-8: other bytes of file names are escapes, as in JSON. Names and labels are not changed otherwise,
    so a spreadsheet takes one that begins with = for a formula.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._rows = csv.writer(SimpleNamespace(write=self._write_line))
        self._has_header = False

    def _write_line(self, line: str) -> None:
        # csv quotes a name with a CR only if CR ends its lines, until Python 3.13.
        text = line.removesuffix("\r\n").encode("utf-8", "backslashreplace").decode()
        self._stream.write(f"{text}\n")

    def write(self, records: Iterable[Record]) -> None:
        self._write_header()
        for record in records:
            where = [record[name] for name in CSV_COLUMNS[:4]]
            for stream, predictions in streams_of(record).items():
                for rank, p in enumerate(predictions, start=1):
                    self._rows.writerow([*where, stream, rank, p["label"], p["score"], p["logit"]])
        self._stream.flush()

    def close(self) -> None:
        self._write_header()

    def _write_header(self) -> None:
        if not self._has_header:
            self._rows.writerow(CSV_COLUMNS)
            self._has_header = True


WRITERS: dict[str, type[Writer]] = {"json": JsonArray, "jsonl": JsonLines, "csv": Csv}
"""The formats of predictions by name; `vid3d classify --format` offers them."""
