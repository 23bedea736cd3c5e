"""Looking into features that are there: what they are of, and the rows of one video or one second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, UsageError
from .entries import VideoEntry, VideoFeatures, checksum, video_key
from .npy import NpyStore
from .packed import PackedStore
from .store import FeatureStore

MAX_NAMED = 5
"""Videos that a message names."""


@dataclass(frozen=True)
class Summary:
    """What an output holds."""

    num_videos: int
    num_rows: int
    """A row a clip."""
    seconds: float
    """Of video that was read for them."""
    matrices: Mapping[str, Mapping[str, Any]]
    """By name: "shape" of all rows, and "dtype"; in a directory the shape of a row is that of its first video."""
    recipe: Mapping[str, Any]
    """See `FeatureFormat.describe`."""
    failures: Mapping[str, int]
    """How many videos failed, by the class of the error."""
    lost_frames: Mapping[str, int]
    """Of the videos that are damaged."""
    unfinished: str | None
    """What there is of a job that has not ended, in a sentence."""


def read_whole(store: FeatureStore, entry: VideoEntry) -> VideoFeatures:
    """The rows of a video, which are those that were written.

    Raises:
        OutputError: they are not, or cannot be read.
    """
    try:
        features = store.read(entry)
    except Exception as error:  # a damaged file can make the readers raise anything
        raise OutputError(f"{entry.video}: its rows cannot be read: {error}") from error
    num_rows = {len(features.spans), *(len(rows) for rows in features.matrices.values())}
    if num_rows != {entry.num_rows}:
        raise OutputError(f"{entry.video}: {min(num_rows)} rows are there of {entry.num_rows}")
    if checksum(features.matrices) != entry.crc32:
        raise OutputError(f"{entry.video}: its rows are not those that were written: their checksum differs")
    return features


def summarise(store: FeatureStore) -> Summary:
    """Tell what an output holds; of the rows, only those of the first video are read."""
    entries = store.entries()
    num_rows = sum(entry.num_rows for entry in entries)
    return Summary(
        num_videos=len(entries),
        num_rows=num_rows,
        seconds=sum(entry.num_frames / entry.fps for entry in entries),
        matrices={
            n: {"shape": [num_rows, *m.shape[1:]], "dtype": m.dtype.name}
            for n, m in _first_rows(store, entries).items()
        },
        recipe=store.recipe() or {},
        failures=dict(Counter(failed.error for failed in store.failures())),
        lost_frames={entry.video: entry.num_lost_frames for entry in entries if entry.num_lost_frames},
        unfinished=describe_unfinished(store),
    )


def _first_rows(store: FeatureStore, entries: Sequence[VideoEntry]) -> Mapping[str, NDArray[Any]]:
    """Those of the first video that is not damaged."""
    for entry in entries:
        with suppress(OutputError):
            return read_whole(store, entry).matrices
    return {}


def describe_unfinished(store: FeatureStore) -> str | None:
    """What there is of a job that is at work or was interrupted, as far as files tell; None of one that has ended."""
    goes_on = "a job is at work, or was interrupted and goes on when its command is given again"
    if isinstance(store, PackedStore):
        return f"rows wait in {store.directory}: {goes_on}" if store.directory.exists() else None
    if isinstance(store, NpyStore):
        num_rows = sum(entry.num_rows for entry in store.entries())
        num_found = {*map(len, store.matrices.values()), *map(_num_promised, store.matrix_paths().values())}
        return f"more or fewer rows than the {num_rows} that count: {goes_on}" if num_found - {num_rows} else None
    return None


def _num_promised(path: Path) -> int:
    """The rows that NumPy sees."""
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):  # not there yet, or not even its header
        return 0


def find_video(entries: Sequence[VideoEntry], name: str) -> VideoEntry:
    """The video that a person means: by its path as it was given, its stem below a directory, or a unique ending.

        b.mp4, sub/b.mp4, sub/b, b → in/sub/b.mp4

    Raises:
        UsageError: there is none, or several; the message names some.
    """
    ending = PurePosixPath(name).parts
    ways = (
        [entry for entry in entries if name == entry.video],
        [entry for entry in entries if video_key(name) == entry.key],
        [entry for entry in entries if name == entry.stem],
        [entry for entry in entries if ending in (_last_parts(entry.key, ending), _last_parts(entry.stem, ending))],
    )
    found = next((matches for matches in ways if matches), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{name}' may be {len(found)} videos: {_some(found)}; give more of the path")
    likely = [entry for entry in entries if PurePosixPath(name).stem.lower() in entry.key.lower()]
    raise UsageError(f"no video '{name}' among the {len(entries)}; there is {_some(likely or entries)}")


def _last_parts(path: str, ending: Sequence[str]) -> tuple[str, ...]:
    return PurePosixPath(path).parts[-len(ending) :]


def _some(entries: Sequence[VideoEntry]) -> str:
    names = ", ".join(entry.video for entry in entries[:MAX_NAMED])
    return names + (", …" if len(entries) > MAX_NAMED else "")


def rows_at(features: VideoFeatures, seconds: float) -> list[int]:
    """The rows of the clips that cover a moment: several where clips overlap.

    Raises:
        UsageError: none does.
    """
    spans = features.spans
    rows = [i for i, span in enumerate(spans) if span.start_seconds <= seconds < span.end_seconds]
    if not rows:
        raise UsageError(
            f"{features.entry.video}: no clip covers {seconds:g} s: {len(spans)} clips lie between "
            f"{spans[0].start_seconds:g} and {spans[-1].end_seconds:g} s"
        )
    return rows
