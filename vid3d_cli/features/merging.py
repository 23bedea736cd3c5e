"""Copies the features of one or several outputs into another: shards, the files of workers, another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, OutputExists, RecipeDiffers, UsageError
from ..recipe import deciding_differences, provenance_differences
from ..records import STREAMS
from .entries import Recipe, VideoEntry, VideoFeatures, checksum
from .format import FEATURES
from .recipes import list_differences, refuse_other_recipe
from .store import Store, read_verified

COMMIT_VIDEOS = 64
"""Videos between two commits."""


@dataclass
class Merged:
    """The outcome of a merge."""

    num_videos: int = 0
    """Videos whose rows it wrote."""
    num_rows: int = 0
    """Rows of these videos."""
    num_there: int = 0
    """Videos that the output already had."""
    num_repeated: int = 0
    """Videos that an earlier part also had; they are written once."""
    num_failures: int = 0
    """Videos that failed in a part and have no rows in any part."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Why videos were left out, by their keys."""
    provenance: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Differences in provenance, such as versions: the value of the recipe kept, and of another part."""


def merge(
    parts: Sequence[Store],
    target: Store,
    *,
    concat: bool | None = None,
    overwrite: bool = False,
    on_video: Callable[[], None] = lambda: None,
) -> Merged:
    """Copy the rows and the lists of failures of several outputs into one, in their order.

    Videos that the target has are skipped, so the same call resumes an interrupted one. Damaged rows are left out. One
    video at a time is in memory, and each .npz.

    Args:
        parts: outputs with one recipe, except for layout and concatenation; the target gets the first one's recipe.
        target: an output of any format; it is closed at the end.
        concat: whether to put the streams side by side in one matrix; None: as in the first part.
        overwrite: replace the target.
        on_video: called after each video of each part.

    Raises:
        RecipeDiffers: the recipes of the parts, or of the target, give different numbers.
        UsageError: the target is one of the parts, or two videos would get the same file in it.
        OutputExists: other files have the names of the target, or it holds other rows.
        OutputError: the target cannot be written.
    """
    if any(part.path.resolve() == target.path.resolve() for part in parts):
        raise UsageError(f"{target.path} is an input too: choose another name for the output")
    entries = [part.entries() for part in parts]
    if not any(entries):
        raise UsageError(f"{', '.join(str(part.path) for part in parts)}: no rows of any video")
    recipe, provenance = _common_recipe(parts, target, concat)
    stems = _keys_by_stem(entries, target)
    with target:
        there = target.prepare(stems, recipe, overwrite=overwrite)
        if there is not None:
            refuse_other_recipe(target.path, there, recipe)
            provenance = {**provenance_differences(there, recipe), **provenance}
            _refuse_other_rows(target, entries)
        target.begin(recipe)
        target.refuse_taken_stems(stems)  # now that the recipe says how files are named
        merged = _copy(parts, entries, target, recipe["concat"], on_video)
    merged.provenance = provenance
    return merged


def _refuse_other_rows(target: Store, entries: Sequence[Sequence[VideoEntry]]) -> None:
    """Raise OutputExists if an existing target has rows that no part has: it is not the same merge, interrupted."""
    of_parts = {(entry.key, entry.num_rows, entry.num_frames, entry.file) for of_part in entries for entry in of_part}
    for entry in target.entries():
        if (entry.key, entry.num_rows, entry.num_frames, entry.file) not in of_parts:
            raise OutputExists(
                f"{target.path}: already exists, with rows of {entry.video} that are not in the input; choose another "
                "name, or add --overwrite"
            )


def _common_recipe(
    parts: Sequence[Store], target: Store, concat: bool | None
) -> tuple[Recipe, dict[str, tuple[Any, Any]]]:
    recipes = [part.recipe() or {} for part in parts]
    if target.layout == "files":
        if concat is not None:
            raise UsageError("--layout files: its files have the streams as the preset says: leave out --[no-]concat")
        if "files" not in recipes[0]:
            raise UsageError(f"{parts[0].path}: has no files of a preset; extract them with --preset")
        form = {"layout": "files", "files": recipes[0]["files"], "concat": recipes[0]["concat"]}
    else:
        concat = recipes[0]["concat"] if concat is None else concat
        form = {"layout": target.layout, "concat": concat and target.layout == "vid3d"}
    recipes = [{name: value for name, value in recipe.items() if name != "files"} for recipe in recipes]
    first = {**recipes[0], **form}
    provenance: dict[str, tuple[Any, Any]] = {}
    for part, recipe in zip(parts, recipes, strict=True):
        if differences := deciding_differences(first, {**recipe, **form}):
            lines = list_differences(differences, "here")
            raise RecipeDiffers(f"{part.path}: made with another recipe than {parts[0].path}:{lines}\nLeave one out")
        provenance = {**provenance_differences(first, recipe), **provenance}
    return first, provenance


def _keys_by_stem(entries: Sequence[Sequence[VideoEntry]], target: Store) -> dict[str, str]:
    keys: dict[str, str] = {}
    for entry in (entry for of_part in entries for entry in of_part):
        if keys.setdefault(entry.stem, entry.key) != entry.key and target.has_files_per_video:
            raise UsageError(
                f"{keys[entry.stem]} and {entry.key} would share {target.path / entry.stem}: write one file, "
                "such as feats.npy"
            )
    return keys


def _copy(
    parts: Sequence[Store],
    entries: Sequence[Sequence[VideoEntry]],
    target: Store,
    concat: bool,
    on_video: Callable[[], None],
) -> Merged:
    there = {entry.key for entry in target.entries()}
    target_recipe = target.recipe() or {}
    written: set[str] = set()
    merged = Merged(num_there=len(there))
    for part, of_part in zip(parts, entries, strict=True):
        recipe = part.recipe() or {}
        for entry in of_part:
            merged.num_repeated += entry.key in written
            if entry.key not in written | there:
                try:
                    features = _under(target_recipe, with_concat(read_verified(part, entry), recipe, concat), recipe)
                except OutputError as error:
                    merged.damaged[entry.key] = str(error)
                else:
                    target.check(features)
                    target.write(features)
                    merged.damaged.pop(entry.key, None)
                    written.add(entry.key)
                    merged.num_rows += entry.num_rows
                    if len(written) % COMMIT_VIDEOS == 0:
                        target.commit()
            on_video()
        part.close()  # an .npz is in memory
    merged.num_videos = len(written)
    failures = {failed.key: failed for part in reversed(parts) for failed in part.failures()}
    listed = {failed.key for failed in target.failures()}
    for key, failed in failures.items():
        if key not in there | written | merged.damaged.keys():
            merged.num_failures += 1
            if key not in listed:
                target.write_failure(failed)
    target.commit()
    if there or written:
        target.finish()
    return merged


def _under(target: Recipe, features: VideoFeatures, recipe: Recipe) -> VideoFeatures:
    """Return features for an output with another recipe: their entry says what differs, and gets a new checksum."""
    elsewhere = {name: of_part for name, (_, of_part) in provenance_differences(target, recipe).items()}
    provenance = {**elsewhere, **(features.entry.provenance or {})} or None
    return replace(features, entry=replace(features.entry, provenance=provenance, record_crc32=None))


# Streams side by side, or one matrix each -----------------------------------------------------------------------------


def with_concat(features: VideoFeatures, recipe: Recipe, concat: bool) -> VideoFeatures:
    """Return the same features with the streams side by side, or apart.

    Args:
        features: features of an output.
        recipe: recipe of that output.
        concat: whether to put the streams side by side.

    Raises:
        UsageError: the rows cannot be split.
    """
    if recipe["concat"] == concat:
        return features
    matrices = join_streams(features.matrices, recipe) if concat else split_streams(features.matrices, recipe)
    return VideoFeatures(replace(features.entry, crc32=checksum(matrices)), matrices, features.spans)


def join_streams(matrices: Mapping[str, NDArray[Any]], recipe: Recipe) -> dict[str, NDArray[Any]]:
    """Return the streams side by side: {"rgb": (N, D), "flow": (N, D)} → {"features": (N, 2·D)}."""
    return {FEATURES: np.concatenate([matrices[s] for s in _streams(recipe)], _axis(recipe))}


def split_streams(matrices: Mapping[str, NDArray[Any]], recipe: Recipe) -> dict[str, NDArray[Any]]:
    """Return the streams apart: {"features": (N, 2·D)} → {"rgb": (N, D), "flow": (N, D)}.

    Raises:
        UsageError: the rows cannot be split into streams of equal width.
    """
    streams, rows = _streams(recipe), matrices[FEATURES]
    width = rows.shape[_axis(recipe)]
    if width % len(streams):
        raise UsageError(f"rows of {width} numbers cannot be split into {' and '.join(streams)}: extract --no-concat")
    return dict(zip(streams, np.split(rows, len(streams), _axis(recipe)), strict=True))


def _streams(recipe: Recipe) -> list[str]:
    return [stream for stream in STREAMS if stream in recipe["streams"]]


def _axis(recipe: Recipe) -> int:
    return 2 if recipe["keeps_crops"] else 1
