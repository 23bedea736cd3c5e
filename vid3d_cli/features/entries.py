"""What an output of `vid3d extract` knows of each video: its rows and whence they are, or why there are none."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import ClipSpan, VideoFailure, VideoResult, to_json
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
"""Which part of its video a row describes: columns, in the order of an index line."""


@dataclass(frozen=True)
class VideoEntry:
    """A video whose rows are there; a line of `videos.jsonl`."""

    video: str
    """Path or URL as it was given."""
    stem: str
    """Where its files go below a directory, without suffix."""
    row: int
    """Of its first clip in the matrix; 0 where it has a matrix of its own."""
    num_rows: int
    fps: float
    """Frames per second that were read."""
    num_frames: int
    """That were read."""
    num_lost_frames: int
    """Frames that damage or a missing end has cost."""
    file: Fingerprint | None
    """The file that was read; None for a URL."""
    crc32: int
    """Checksum of the rows' bytes, matrix by matrix."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)

    def to_json(self) -> str:
        """One line, without its end."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> VideoEntry:
        """The inverse of `to_json`, of the parsed line."""
        return cls(**{**line, "file": Fingerprint.from_json(line["file"])})


@dataclass(frozen=True)
class FailedVideo:
    """A video without rows; a line of `failures.jsonl`, which is a list of videos too."""

    video: str
    error: str
    """Name of the exception class, as drawn in `errors`."""
    message: str
    """What was wrong and what to do."""
    file: Fingerprint | None
    """The file that failed; None for a URL, or where there was no file."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)

    @classmethod
    def of(cls, failure: VideoFailure, file: Fingerprint | None) -> FailedVideo:
        """What an engine told, and of which file."""
        return cls(failure.video, failure.error, failure.message, file)

    def to_json(self) -> str:
        """One line, without its end."""
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> FailedVideo:
        """The inverse of `to_json`, of the parsed line."""
        return cls(line["video"], line["error"], line["message"], Fingerprint.from_json(line.get("file")))


@dataclass(frozen=True)
class VideoFeatures:
    """All that is stored of one video."""

    entry: VideoEntry
    matrices: Mapping[str, NDArray[Any]]
    """N rows each, by name: "features", or "rgb" and "flow"."""
    spans: Sequence[ClipSpan]
    """Of the N rows."""

    @classmethod
    def of(
        cls, result: VideoResult, stem: PurePosixPath, file: Fingerprint | None, form: FeatureFormat
    ) -> VideoFeatures:
        """What a store is given of a result."""
        matrices = form.matrices(result)
        entry = VideoEntry(
            video=result.video,
            stem=str(stem),
            row=0,
            num_rows=len(result.clips),
            fps=result.fps,
            num_frames=result.num_frames,
            num_lost_frames=result.num_decode_failures,
            file=file,
            crc32=checksum(matrices),
        )
        return cls(entry, matrices, [clip.span for clip in result.clips])


def video_key(video: str) -> str:
    """The same for `a.mp4` and `./a.mp4`; relative paths stay relative, so that a tree may move with its features."""
    return video if is_url(video) else os.path.normpath(video)


def readable(video: str) -> str:
    """A name that is UTF-8 whatever bytes it has, for columns that any library reads; `VideoEntry.video` is exact."""
    return os.fsencode(video).decode("utf-8", "backslashreplace")


def checksum(matrices: Mapping[str, NDArray[Any]]) -> int:
    """CRC-32 of the rows of one video, matrix by matrix in the order of their names."""
    value = 0
    for name in sorted(matrices):
        value = zlib.crc32(np.ascontiguousarray(matrices[name]).data, value)
    return value


def span_arrays(spans: Sequence[ClipSpan]) -> dict[str, NDArray[Any]]:
    """Spans as columns of length N; see `SPAN_COLUMNS`."""
    values = [_span_values(span) for span in spans]
    columns = list(zip(*values, strict=True)) or [()] * len(SPAN_COLUMNS)
    return {n: np.array(c, dtype) for (n, dtype), c in zip(SPAN_COLUMNS.items(), columns, strict=True)}


def spans_of(columns: Mapping[str, Any]) -> list[ClipSpan]:
    """The inverse of `span_arrays`."""
    return [
        ClipSpan(
            index=int(columns["clip"][i]),
            start_frame=int(columns["start_frame"][i]),
            num_valid_frames=int(columns["num_valid_frames"][i]),
            start_seconds=float(columns["start_seconds"][i]),
            end_seconds=float(columns["end_seconds"][i]),
        )
        for i in range(len(columns["clip"]))
    ]


def index_line(row: int, video: str, span: ClipSpan) -> str:
    """A line of `index.jsonl`, without its end."""
    return to_json({"row": row, "video": readable(video), **dict(zip(SPAN_COLUMNS, _span_values(span), strict=True))})


def span_of_line(line: bytes) -> ClipSpan:
    """The inverse of `index_line`."""
    fields = json.loads(line)
    fields["index"] = fields.pop("clip")
    del fields["row"], fields["video"]
    return ClipSpan(**fields)


def _span_values(span: ClipSpan) -> tuple[int, float, float, int, int]:
    return span.index, span.start_seconds, span.end_seconds, span.start_frame, span.num_valid_frames
