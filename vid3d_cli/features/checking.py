"""Whether features are whole: every row is read, and compared with what was written down when it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError
from ..records import ClipSpan
from .appending import read_records
from .directory import TreeStore
from .entries import VideoEntry
from .inspection import describe_unfinished, read_whole
from .npy import NpyStore
from .packed import PackedStore
from .store import FeatureStore

AGAIN = "the same vid3d extract command makes them anew"


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was written."""

    what: str
    """What is wrong, where, and what to do; one line."""
    is_damage: bool = True
    """Whether rows are lost or wrong; else it is only worth knowing."""


def find_problems(store: FeatureStore, on_video: Callable[[], None] = lambda: None) -> Iterator[Problem]:
    """Read all that an output holds.

    Args:
        store: of which output; memory holds the rows of a video.
        on_video: called after each video.
    """
    entries, recipe = store.entries(), store.recipe() or {}
    for path in _journals(store):
        yield from _journal_problems(path)
    for entry in _lost(store, entries):
        yield Problem(f"{entry.video}: its rows are missing or cut off; {AGAIN}")
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        yield from _video_problems(store, entry, recipe, shapes)
        on_video()
    unfinished = describe_unfinished(store)
    if unfinished:
        yield Problem(f"{store.path}: {unfinished}", is_damage=False)


# The journal ---------------------------------------------------------------------------------------------------------


def _journals(store: FeatureStore) -> list[Path]:
    if isinstance(store, TreeStore):
        return store.journal_paths()
    if isinstance(store, PackedStore):
        return _journals(store.rows)
    return [store.journal_path] if isinstance(store, NpyStore) else []


def _journal_problems(path: Path) -> Iterator[Problem]:
    """A line that was cut off is of a job that was killed, and is made again; one with others behind it is damaged."""
    ends = read_records(path)[1]
    rest = path.read_bytes()[ends[-1] if ends else 0 :] if path.exists() else b""
    if b"\n" in rest:
        yield Problem(f"{path}: damaged after line {len(ends)}: the videos of the lines behind do not count; {AGAIN}")


def _lost(store: FeatureStore, entries: Sequence[VideoEntry]) -> list[VideoEntry]:
    """Videos that a journal names, and whose rows are not there."""
    there = {entry.key for entry in entries}
    named = [VideoEntry.from_json(line) for path in _journals(store) for line in read_records(path)[0]]
    return [entry for key, entry in {entry.key: entry for entry in named}.items() if key not in there]


# A video -------------------------------------------------------------------------------------------------------------


def _video_problems(
    store: FeatureStore, entry: VideoEntry, recipe: Mapping[str, Any], shapes: dict[str, tuple[int, ...]]
) -> Iterator[Problem]:
    try:
        features = read_whole(store, entry)
    except OutputError as error:
        yield Problem(f"{error}; {_how_to_replace(store)}")
        return
    if not _are_in_order(features.spans):
        yield Problem(f"{entry.video}: its clips are not in the order of time; {_how_to_replace(store)}")
    for name, rows in features.matrices.items():
        # Whole frames, without a crop, have maps of as many sizes as there are videos.
        shape = rows.shape[1:] if recipe["crops"] == "none" else shapes.setdefault(name, rows.shape[1:])
        if (rows.shape[1:], rows.dtype.name) != (shape, recipe["dtype"]):
            yield Problem(
                f"{entry.video}: {name} has rows of {rows.shape[1:]} {rows.dtype}, and not of {shape} "
                f"{recipe['dtype']}; {_how_to_replace(store)}"
            )
        if not np.isfinite(rows).all():
            advice = "float16 ends at 65504: use --dtype float32" if rows.dtype == np.float16 else "extract it anew"
            yield Problem(f"{entry.video}: {name} has numbers that are not finite; {advice}, with another --out")
    if entry.file is not None and Path(entry.video).exists() and not entry.file.is_of(entry.video):
        what = "the video was changed since its rows were made"
        yield Problem(f"{entry.video}: {what}; {AGAIN}", is_damage=False)


def _how_to_replace(store: FeatureStore) -> str:
    new = f"new{store.path.suffix or '/'}"
    return f"vid3d features convert {store.path} {new} leaves it out, and vid3d extract --out {new} makes it anew"


def _are_in_order(spans: Sequence[ClipSpan]) -> bool:
    return (
        [span.index for span in spans] == list(range(len(spans)))
        and all(a.start_frame < b.start_frame and a.start_seconds < b.start_seconds for a, b in pairwise(spans))
        and all(span.start_seconds <= span.end_seconds and span.num_valid_frames > 0 for span in spans)
    )
