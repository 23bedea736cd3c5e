"""What an output records of each video: its rows and the file they are from, or why it has none."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..presets import DTYPES
from ..records import ClipSpan, HoldsArrays, VideoFailure, to_json
from ..results import VideoResult
from ..video.fingerprint import Fingerprint
from ..video.sources import is_url, without_password
from .format import FeatureFormat

SPAN_COLUMNS = {
    "clip": np.int64,
    "start_seconds": np.float64,
    "end_seconds": np.float64,
    "start_frame": np.int64,
    "num_valid_frames": np.int64,
}
"""The fields of a `ClipSpan` as columns, in the order of an index line; "clip" is its `index`."""

_DTYPES = tuple(map(np.dtype, DTYPES))

Recipe = Mapping[str, Any]
"""The recipe of the rows, as `FeatureFormat.describe` returns it."""


@dataclass(frozen=True)
class VideoEntry:
    """A video that has rows; a line of `videos.jsonl`."""

    video: str
    """Path or URL as given, see `without_password`."""
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
    record_crc32: int | None = None
    """See `record_checksum`; None in outputs of older versions."""
    provenance: Mapping[str, Any] | None = None
    """What differs from the provenance in the recipe, by key, for rows made elsewhere; None if nothing does."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)


@dataclass(frozen=True)
class FailedVideo(VideoFailure):
    """A video without rows; a line of `failures.jsonl`, which vid3d accepts as a list of videos."""

    file: Fingerprint | None
    """The file that failed; None for a URL, or if there was no file."""
    stem: str = ""
    """See `VideoEntry`; empty in outputs of older versions."""

    @property
    def key(self) -> str:
        """See `video_key`."""
        return video_key(self.video)

    @classmethod
    def of(cls, failure: VideoFailure, file: Fingerprint | None, stem: PurePosixPath) -> FailedVideo:
        """Add the file and the stem to a failure."""
        public = without_secrets(failure)
        return cls(public.video, public.error, public.message, file, str(stem))


@dataclass(frozen=True, eq=False, repr=False)
class VideoFeatures(HoldsArrays):
    """The stored features of one video."""

    entry: VideoEntry
    matrices: Mapping[str, NDArray[Any]]
    """N rows each, by name: "features", or "rgb" and "flow"."""
    spans: Sequence[ClipSpan]
    """Spans of the N rows."""

    def __post_init__(self) -> None:
        if other := [rows.dtype for rows in self.matrices.values() if rows.dtype not in _DTYPES]:
            raise OutputError(f"{self.entry.video}: has rows of {other[0]}, not of {' or '.join(DTYPES)}")

    @classmethod
    def of(
        cls,
        result: VideoResult,
        stem: PurePosixPath,
        file: Fingerprint | None,
        form: FeatureFormat,
        provenance: Mapping[str, Any] | None = None,
    ) -> VideoFeatures:
        """Return what a store keeps of a result.

        Raises:
            NoFeatures: features that are not finite.
        """
        matrices = form.matrices(result)
        entry = VideoEntry(
            video=without_password(result.video),
            stem=str(stem),
            row=0,
            num_rows=len(result.clips),
            fps=result.fps,
            num_frames=result.num_frames,
            num_lost_frames=result.num_lost_frames,
            file=file,
            crc32=checksum(matrices),
            provenance=provenance or None,
        )
        return cls(entry, matrices, [clip.span for clip in result.clips])

    def sealed(self, recipe: Recipe, row: int = 0) -> VideoFeatures:
        """Return the same features with the first row in the matrix and, if it is new, the checksum of the record."""
        entry = replace(self.entry, row=row)
        if entry.record_crc32 is None:
            entry = replace(entry, record_crc32=record_checksum(entry, self.spans, recipe))
        return replace(self, entry=entry)


def video_key(video: str) -> str:
    """Return the same key for `a.mp4` and `./a.mp4`; relative paths stay relative, so that a tree can be moved."""
    return without_password(video) if is_url(video) else os.path.normpath(video)


def readable(video: str) -> str:
    """Return a name that is valid UTF-8, for columns that any library reads; `VideoEntry.video` is exact."""
    return os.fsencode(video).decode("utf-8", "backslashreplace")


def checksum(matrices: Mapping[str, NDArray[Any]]) -> int:
    """Return the CRC-32 of the rows of one video, matrix by matrix in the order of their names."""
    value = 0
    for name in sorted(matrices):
        value = zlib.crc32(np.ascontiguousarray(matrices[name]).data, value)
    return value


def record_checksum(entry: VideoEntry, spans: Sequence[ClipSpan], recipe: Recipe) -> int:
    """Return the CRC-32 of all that is stored of a video besides its rows: its entry, its spans and the recipe.

    `row` and fields of None are left out, so that later versions may add fields.
    """
    left_out = ("row", "record_crc32")
    fields = {name: value for name, value in asdict(entry).items() if value is not None and name not in left_out}
    columns = {name: column.tolist() for name, column in span_arrays(spans).items()}
    return zlib.crc32(json.dumps([fields, columns, recipe], sort_keys=True).encode())


def without_secrets(failure: VideoFailure) -> VideoFailure:
    """Return a failure with its video `without_password`, in the message too."""
    video = without_password(failure.video)
    return VideoFailure(video, failure.error, failure.message.replace(failure.video, video))


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
        for entry in entries:
            _check(entry)
    except (ValueError, TypeError, KeyError) as error:
        reason = error if isinstance(error, ValueError) else "a line has other fields"
        raise OutputError(f"{path}: cannot be read: its list of videos is damaged: {reason}") from None
    return entries


def _check(entry: VideoEntry) -> None:
    numbers = (entry.row, entry.num_rows, entry.num_frames, entry.num_lost_frames, entry.crc32)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or not entry.fps > 0 or not isinstance(entry.video, str):
        raise ValueError(f"'{entry.video}' has values that cannot be")
    stem = PurePath(entry.stem)
    if stem.is_absolute() or stem.drive or ".." in stem.parts or not stem.name or "\0" in entry.stem:
        raise ValueError(f"'{stem}' lies outside the output")


def parse_failures(lines: Iterable[Mapping[str, Any]], path: Path) -> list[FailedVideo]:
    """Return the failures of parsed lines.

    Raises:
        OutputError: a line is not a failure.
    """
    try:
        return [
            FailedVideo(
                line["video"],
                line["error"],
                line["message"],
                Fingerprint.from_json(line.get("file")),
                str(line.get("stem", "")),
            )
            for line in lines
        ]
    except (TypeError, KeyError):
        raise OutputError(f"{path}: not a list of failures that vid3d extract wrote; move it away") from None


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


def parse_index(lines: Sequence[bytes], entry: VideoEntry, row: int) -> list[ClipSpan]:
    """Return the spans of the lines of `index.jsonl` that belong to a video, the first of which is a row.

    Raises:
        ValueError: a line belongs to another row or video, or is none.
    """
    spans = []
    for number, fields in enumerate(map(json.loads, lines), row):
        if (fields["row"], fields["video"]) != (number, readable(entry.video)):
            raise ValueError(f"its line for row {number} is of row {fields['row']} of {fields['video']}")
        spans.append(ClipSpan(**{_field(name): fields[name] for name in SPAN_COLUMNS}))
    return spans


def _field(column: str) -> str:
    return "index" if column == "clip" else column
