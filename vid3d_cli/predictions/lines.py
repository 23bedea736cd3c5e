"""Predictions as JSON lines and CSV: clips as they are done, then the video; or segments."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..records import ClipOutput, to_json
from .formats import Writer
from .records import CSV_COLUMNS, Record, clip_records, prediction_records, prediction_rows, segment_record

if TYPE_CHECKING:
    from ..results import VideoResult

SEGMENT_COLUMNS = ("video", "start_seconds", "end_seconds", "stream", "label", "score")


class _Lines(Writer):
    """Writes a line, or several, for each record."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._num_written: Counter[str] = Counter()  # clips by video

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        if not self.choices.segments and self.choices.per == "clip":
            self._write_all(list(clip_records(video, clips, labels, self.choices.k)))
            self._num_written[video] += len(clips)

    def write(self, result: VideoResult, name: str) -> None:
        choices = self.choices
        if choices.segments:
            self._write_all([segment_record(result.video, s) for s in result.segments_by(choices.rule)])
        else:
            skip = self._num_written.pop(result.video, 0)
            self._write_all(list(prediction_records(result, k=choices.k, per=choices.per, skip=skip)))

    def _write_all(self, records: list[Record]) -> None:
        """Append records, and flush them: a pipe's reader sees them at once."""
        self.begin()
        for record in records:
            self.write_record(record)
        self.stream.flush()

    def begin(self) -> None:
        """Write what precedes the records, once."""

    def write_record(self, record: Record) -> None:
        raise NotImplementedError


class JsonLines(_Lines):
    """One JSON object per line."""

    def write_record(self, record: Record) -> None:
        self.stream.write(to_json(record) + "\n")


class Csv(_Lines):
    """One line per class, best first; the clip is empty in lines for the whole video. Or one line per segment.

    It is valid UTF-8: other bytes of file names are escapes, as in JSON. Names and labels are not changed otherwise,
    so a spreadsheet takes one that begins with = for a formula.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rows = csv.writer(SimpleNamespace(write=self._write_line))
        self._has_header = False

    def _write_line(self, line: str) -> None:
        # csv quotes a name with a CR only if CR ends its lines, until Python 3.13.
        text = line.removesuffix("\r\n").encode("utf-8", "backslashreplace").decode()
        self.stream.write(f"{text}\n")

    def write_record(self, record: Record) -> None:
        if self.choices.segments:
            self._rows.writerow([record[name] for name in SEGMENT_COLUMNS])
            return
        self._rows.writerows(prediction_rows(record))

    def close(self) -> None:
        if self.path is None:  # a file without a video does not appear
            self.begin()

    def begin(self) -> None:
        if not self._has_header:
            self._rows.writerow(SEGMENT_COLUMNS if self.choices.segments else CSV_COLUMNS)
            self._has_header = True
