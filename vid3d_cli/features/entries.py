"""What an output records of each video: its rows and the file they are from, or why it has none."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..records import ClipSpan, HoldsArrays, VideoFailure, VideoResult, to_json
from ..video.fingerprint import Fingerprint
from ..video.sources import is_url
from .format import FeatureFormat

SPAN_COLUMNS = {
    "clip": np.int64,
    "start_seconds": np.float64,
    "end_seconds": np.float64,
    "start_frame": np.int64,
    "num_valid_frames": np.int64,
}
"""The fields of a `ClipSpan` as columns, in the order of an index line; "clip" is its `index`."""


@dataclass(frozen=True)
class VideoEntry:
    """A video that has rows; a line of `videos.jsonl`."""

    video: str
    """Path or URL as given."""
    stem: str
    """Path of its files below a directory, without suffix."""
    row: int
    """Its first row in the matrix; 0 if it has a matrix of its own."""
    num_rows: int
    fps: float
    """Frames per second after resampling."""
    num_frames: int
    """Frames read, after resampling."""
    num_lost_frames: int
    """Frames missing because the file is damaged or cut off."""
    file: Fingerprint | None
    """The file that was read; None for a URL."""
    crc32: int
    """See `checksum`."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)


@dataclass(frozen=True)
class FailedVideo(VideoFailure):
    """A video without rows; a line of `failures.jsonl`, which vid3d accepts as a list of videos."""

    file: Fingerprint | None
    """The file that failed; None for a URL, or if there was no file."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)

    @classmethod
    def of(cls, failure: VideoFailure, file: Fingerprint | None) -> FailedVideo:
        """Add the file to a failure."""
        return cls(failure.video, failure.error, failure.message, file)


@dataclass(frozen=True, eq=False, repr=False)
class VideoFeatures(HoldsArrays):
    """The stored features of one video."""

    entry: VideoEntry
    matrices: Mapping[str, NDArray[Any]]
    """N rows each, by name: "features", or "rgb" and "flow"."""
    spans: Sequence[ClipSpan]
    """Spans of the N rows."""

    @classmethod
    def of(
        cls, result: VideoResult, stem: PurePosixPath, file: Fingerprint | None, form: FeatureFormat
    ) -> VideoFeatures:
        """Return what a store keeps of a result."""
        matrices = form.matrices(result)
        entry = VideoEntry(
            video=result.video,
            stem=str(stem),
            row=0,
            num_rows=len(result.clips),
            fps=result.fps,
            num_frames=result.num_frames,
            num_lost_frames=result.num_lost_frames,
            file=file,
            crc32=checksum(matrices),
        )
        return cls(entry, matrices, [clip.span for clip in result.clips])


def video_key(video: str) -> str:
    """Return the same key for `a.mp4` and `./a.mp4`; relative paths stay relative, so that a tree can be moved."""
    return video if is_url(video) else os.path.normpath(video)


def readable(video: str) -> str:
    """Return a name that is valid UTF-8, for columns that any library reads; `VideoEntry.video` is exact."""
    return os.fsencode(video).decode("utf-8", "backslashreplace")


def checksum(matrices: Mapping[str, NDArray[Any]]) -> int:
    """Return the CRC-32 of the rows of one video, matrix by matrix in the order of their names."""
    value = 0
    for name in sorted(matrices):
        value = zlib.crc32(np.ascontiguousarray(matrices[name]).data, value)
    return value


# Lines of JSON -------------------------------------------------------------------------------------------------------


def json_lines(items: Iterable[VideoEntry | FailedVideo]) -> bytes:
    """Return a line for each video."""
    return "".join(f"{to_json(asdict(item))}\n" for item in items).encode()


def parse_entries(lines: Iterable[Mapping[str, Any]], path: Path) -> list[VideoEntry]:
    """Return the videos of parsed lines.

    Raises:
        OutputError: a line is not an entry, or names files outside the directory.
    """
    try:
        entries = [VideoEntry(**{**line, "file": Fingerprint.from_json(line["file"])}) for line in lines]
        for stem in (PurePosixPath(entry.stem) for entry in entries):
            if stem.is_absolute() or ".." in stem.parts:
                raise ValueError(f"'{stem}' lies outside the output")
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{path}: cannot be read: its list of videos is damaged: {error}") from None
    return entries


def parse_failures(lines: Iterable[Mapping[str, Any]]) -> list[FailedVideo]:
    """Return the failures of parsed lines; other lines are skipped."""
    return [
        FailedVideo(line["video"], line["error"], line["message"], Fingerprint.from_json(line.get("file")))
        for line in lines
        if {"video", "error", "message"} <= line.keys()
    ]


# Spans ---------------------------------------------------------------------------------------------------------------


def span_arrays(spans: Sequence[ClipSpan]) -> dict[str, NDArray[Any]]:
    """Return spans as columns of length N, see `SPAN_COLUMNS`."""
    return {
        name: np.array([getattr(span, _field(name)) for span in spans], dtype) for name, dtype in SPAN_COLUMNS.items()
    }


def spans_of(columns: Mapping[str, Any]) -> list[ClipSpan]:
    """Return the spans of columns; the inverse of `span_arrays`."""
    rows = zip(*(columns[name].tolist() for name in SPAN_COLUMNS), strict=True)
    return [ClipSpan(**dict(zip(map(_field, SPAN_COLUMNS), row, strict=True))) for row in rows]


def index_line(row: int, video: str, span: ClipSpan) -> str:
    """Return a line of `index.jsonl`, without its end."""
    return to_json({"row": row, "video": readable(video), **{n: getattr(span, _field(n)) for n in SPAN_COLUMNS}})


def span_of_line(line: bytes) -> ClipSpan:
    """Return the span of a line of `index.jsonl`."""
    fields = json.loads(line)
    return ClipSpan(**{_field(name): fields[name] for name in SPAN_COLUMNS})


def _field(column: str) -> str:
    return "index" if column == "clip" else column
