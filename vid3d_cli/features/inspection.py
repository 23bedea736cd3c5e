"""Inspects outputs: a summary, the rows of a video or of a moment, and a check of every row."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..durable import damaged_lines, read_records
from ..errors import OutputError, UsageError
from ..records import ClipSpan
from ..suggest import did_you_mean
from .entries import VideoEntry, VideoFeatures, parse_entries, video_key
from .recipes import RESTORE
from .store import Store, read_verified

MAX_NAMED = 5
"""Videos that a message names."""

REPAIR = "run the same vid3d extract command to extract it again"
RESUME = "run the same vid3d extract command to resume it"


# Summary -------------------------------------------------------------------------------------------------------------


def summarise(store: Store) -> dict[str, Any]:
    """Return a summary of an output, as `vid3d features info` prints it.

    "videos", "rows" and "seconds" of video are totals; "matrices" has shape and dtype by name; "failures" counts videos
    by the class of their error; "lost_frames" has the damaged videos; "elsewhere" has the provenance of rows that
    differs from the recipe's; "unfinished": see `Store.describe_unfinished`; "damage": see `describe_damage`.
    Of the rows, only those of the first video are read; a directory is assumed to have one shape.
    """
    entries, damage = store.entries(), describe_damage(store)
    num_rows = sum(entry.num_rows for entry in entries)
    matrices = _first_rows(store, entries)
    return {
        "videos": len(entries),
        "rows": num_rows,
        "seconds": sum(entry.num_frames / entry.fps for entry in entries),
        "matrices": {n: {"shape": [num_rows, *m.shape[1:]], "dtype": m.dtype.name} for n, m in matrices.items()},
        "recipe": store.recipe() or {},
        "failures": dict(Counter(failed.error for failed in store.failures())),
        "lost_frames": {entry.video: entry.num_lost_frames for entry in entries if entry.num_lost_frames},
        "elsewhere": [dict(each) for each in {tuple((e.provenance or {}).items()): 0 for e in entries} if each],
        "unfinished": None if damage else store.describe_unfinished(),
        "damage": damage,
    }


def describe_damage(store: Store) -> str | None:
    """Return what of an output is missing, cut off or damaged, and what to do; None for a whole one. No row is read."""
    if damage := _describe_damaged_files(store):
        return damage
    lost = _lost_videos(store)
    if lost and not store.has_files_per_video:  # only while all its files are being replaced
        return f"{store.path}: a job is replacing its files, or was interrupted: {RESUME}"
    where = f"{store.path}: the files of {len(lost)} listed videos are missing or damaged: {_some(lost)}"
    return f"{where}; restore them, or {REPAIR}" if lost else None


def _describe_damaged_files(store: Store) -> str | None:
    for journal in store.journal_paths():
        num_good, damaged = damaged_lines(journal)
        if damaged and (damaged[0].endswith(b"\n") or damaged[0][:1] != b"{"):  # else a job writes it, or was killed
            return f"{journal}: damaged after line {num_good}, so that later videos cannot be read; {RESTORE}"
    try:
        store.refuse_incomplete()
    except OutputError as error:
        return str(error)
    if store.has_files_per_video and not store.journal_paths() and store.describe_unfinished():
        return f"{store.recipe_path.parent / 'videos.jsonl'}: missing; restore it, or {RESUME}"
    return None


def _lost_videos(store: Store) -> list[VideoEntry]:
    """Return the videos that a journal lists and whose rows are missing or cut off."""
    listed = {e.key: e for path in store.journal_paths() for e in parse_entries(read_records(path)[0], path)}
    there = {entry.key for entry in store.entries()} if listed else set()  # read last: a running job adds to both
    return [entry for key, entry in listed.items() if key not in there]


def _first_rows(store: Store, entries: Sequence[VideoEntry]) -> Mapping[str, NDArray[Any]]:
    """Return the rows of the first video that is not damaged."""
    for entry in entries:
        with suppress(OutputError):
            return read_verified(store, entry).matrices
    return {}


# One video -----------------------------------------------------------------------------------------------------------


def find_video(entries: Sequence[VideoEntry], name: str) -> VideoEntry:
    """Return the video of a name: its path as given, its stem, or an ending of either that only one video has.

        b.mp4, sub/b.mp4, sub/b, b → in/sub/b.mp4

    Raises:
        UsageError: there is none, or several; the message names some.
    """
    ending = PurePosixPath(name).parts

    def ends(path: str) -> bool:
        return PurePosixPath(path).parts[-len(ending) :] == ending

    ways: tuple[Callable[[VideoEntry], bool], ...] = (
        lambda entry: entry.video == name,
        lambda entry: entry.key == video_key(name),
        lambda entry: entry.stem == name,
        lambda entry: ends(entry.key) or ends(entry.stem),
    )
    found = next((matches for way in ways if (matches := list(filter(way, entries)))), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{name}' matches {len(found)} videos: {_some(found)}; give more of the path")
    if not entries:
        raise UsageError(f"there is no '{name}': no video has rows yet")
    if hint := did_you_mean(name, [known for entry in entries for known in (entry.video, entry.stem)]):
        raise UsageError(f"none of the {len(entries)} videos is '{name}': {hint}")
    likely = [entry for entry in entries if PurePosixPath(name).stem.lower() in entry.key.lower()]
    raise UsageError(f"none of the {len(entries)} videos is '{name}'; there is {_some(likely or entries)}")


def _some(entries: Sequence[VideoEntry]) -> str:
    names = ", ".join(entry.video for entry in entries[:MAX_NAMED])
    return names + (", …" if len(entries) > MAX_NAMED else "")


def rows_at(features: VideoFeatures, seconds: float) -> list[int]:
    """Return the rows of the clips that cover a moment: several if clips overlap.

    Raises:
        UsageError: no clip does.
    """
    spans = features.spans
    rows = [i for i, span in enumerate(spans) if span.start_seconds <= seconds < span.end_seconds]
    if not rows:
        raise UsageError(
            f"{features.entry.video}: no clip covers {seconds:g} s: its {len(spans)} clips lie between "
            f"{spans[0].start_seconds:g} and {spans[-1].end_seconds:g} s"
        )
    return rows


# Check ---------------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A difference between an output and what was written."""

    what: str
    """What is wrong, where, and what to do; one line."""
    is_damage: bool = True
    """Whether rows are lost or wrong; otherwise a warning."""


def find_problems(store: Store, on_video: Callable[[], None] = lambda: None) -> Iterator[Problem]:
    """Read every row of an output and yield what is wrong.

    Args:
        store: the output to check; one video at a time is in memory.
        on_video: called after each video.
    """
    entries, recipe = store.entries(), store.recipe() or {}
    damage = _describe_damaged_files(store)
    if damage:
        yield Problem(damage)
    lost = _lost_videos(store)
    for entry in lost:
        yield Problem(f"{entry.video}: its rows are missing or cut off" + ("" if damage else f"; {REPAIR}"))
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        yield from _video_problems(store, entry, recipe, shapes)
        on_video()
    if not damage and not lost and (unfinished := store.describe_unfinished()):
        yield Problem(unfinished, is_damage=False)


def _video_problems(
    store: Store, entry: VideoEntry, recipe: Mapping[str, Any], shapes: dict[str, tuple[int, ...]]
) -> Iterator[Problem]:
    new = f"new{store.path.suffix or '/'}"
    replace = (
        f"vid3d features convert {store.path} {new} leaves it out, and vid3d extract --out {new} extracts it again"
    )
    try:
        features = read_verified(store, entry)
    except OutputError as error:
        yield Problem(f"{error}; {replace}")
        return
    if not _are_in_order(features.spans, is_centred=bool(recipe.get("centred"))):
        yield Problem(f"{entry.video}: its clips are not in time order; {replace}")
    for name, rows in features.matrices.items():
        # Maps of whole frames, without a crop, have as many shapes as there are frame sizes.
        shape = rows.shape[1:] if recipe["crops"] == "none" else shapes.setdefault(name, rows.shape[1:])
        if (rows.shape[1:], rows.dtype.name) != (shape, recipe["dtype"]):
            yield Problem(
                f"{entry.video}: {name} has rows of {rows.shape[1:]} {rows.dtype}, expected {shape} "
                f"{recipe['dtype']}; {replace}"
            )
        if not np.isfinite(rows).all():
            advice = "float16 ends at 65504: use --dtype float32" if rows.dtype == np.float16 else "extract it again"
            yield Problem(f"{entry.video}: {name} contains NaN or infinity; {advice}, with another --out")
    if entry.file is not None and Path(entry.video).exists() and not entry.file.is_of(entry.video):
        yield Problem(f"{entry.video}: the video changed after its rows were made; {REPAIR}", is_damage=False)


def _are_in_order(spans: Sequence[ClipSpan], *, is_centred: bool) -> bool:
    before = operator.le if is_centred else operator.lt  # several centred clips may start at the first frame
    return (
        [span.index for span in spans] == list(range(len(spans)))
        and all(
            before(a.start_frame, b.start_frame) and before(a.start_seconds, b.start_seconds)
            for a, b in pairwise(spans)
        )
        and all(span.start_seconds <= span.end_seconds and span.num_valid_frames > 0 for span in spans)
    )
