"""Features of several outputs as one: the shards of a list, the workers' files of a directory, another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, RecipeDiffers, UsageError
from ..records import STREAMS
from .directory import TreeStore, VideoFeaturesStore
from .entries import VideoEntry, VideoFeatures, checksum
from .format import FEATURES
from .inspection import read_whole
from .store import FeatureStore, Recipe, recipe_differences, refuse_other_recipe

COMMIT_VIDEOS = 64
"""Between two commits."""


@dataclass
class Merged:
    """What became of the videos of some outputs."""

    num_videos: int = 0
    """Whose rows were written now."""
    num_rows: int = 0
    """Of them."""
    num_there: int = 0
    """Videos that the output had already."""
    num_repeated: int = 0
    """Videos that a part has and an earlier one had; they stand once."""
    num_failures: int = 0
    """Videos that no part has done."""
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong with videos that were left out, by their keys."""


def merge(
    parts: Sequence[FeatureStore],
    target: FeatureStore,
    *,
    concat: bool | None = None,
    overwrite: bool = False,
    on_video: Callable[[], None] = lambda: None,
) -> Merged:
    """Copy the rows of several outputs into one, in their order; those of a directory in the order of their stems.

    What the target has already is left as it is, so the same call goes on where it was interrupted. Rows that are not
    as they were written are left out. Memory holds a video, and an .npz as a whole.

    Args:
        parts: of the same recipe, but for layout and concatenation.
        target: of any format; closed at the end.
        concat: whether the streams stand side by side in one matrix; None: as in the first part.
        overwrite: replace what the target has.
        on_video: called after each video of each part.

    Raises:
        RecipeDiffers: the parts, or what the target has, were made in different ways.
        UsageError: the target is one of the parts, or two videos would get the same file in it.
        OutputExists: files that are no features are in the way.
        OutputError: the target cannot be written.
    """
    if any(part.path.resolve() == target.path.resolve() for part in parts):
        raise UsageError(f"{target.path} is to be read and written: give another --out")
    entries = [entries_in_order(part) for part in parts]
    if not any(entries):
        raise UsageError(f"{', '.join(str(part.path) for part in parts)}: no rows of any video in it")
    recipe = _common_recipe(parts, target, concat)
    stems = _stems(entries, target)
    with target:
        _make_ready(target, recipe, stems, overwrite)
        return _Merger(target, recipe, on_video).run(parts, entries)


def entries_in_order(store: FeatureStore) -> list[VideoEntry]:
    """Its videos, as their rows are; in a directory by stems, so that it does not matter which worker did what."""
    entries = store.entries()
    if isinstance(store, TreeStore):
        entries.sort(key=lambda entry: PurePosixPath(entry.stem).parts)
    return entries


def _common_recipe(parts: Sequence[FeatureStore], target: FeatureStore, concat: bool | None) -> Recipe:
    recipes = [part.recipe() or {} for part in parts]
    layout = "video_features" if isinstance(target, VideoFeaturesStore) else "vid3d"
    concat = recipes[0]["concat"] if concat is None else concat
    form = {"layout": layout, "concat": concat and layout == "vid3d"}
    first = {**recipes[0], **form}
    for part, recipe in zip(parts, recipes, strict=True):
        if differences := recipe_differences(first, {**recipe, **form}):
            lines = "".join(f"\n  {name}: {a} there, {b} here" for name, (a, b) in differences.items())
            raise RecipeDiffers(f"{part.path}: made by another recipe than {parts[0].path}:{lines}\nLeave one out")
    return first


def _stems(entries: Sequence[Sequence[VideoEntry]], target: FeatureStore) -> dict[str, str]:
    """The keys of all videos by stem, which must be of one each where files are named by it."""
    keys: dict[str, str] = {}
    for entry in (entry for of_part in entries for entry in of_part):
        if keys.setdefault(entry.stem, entry.key) != entry.key and isinstance(target, TreeStore):
            raise UsageError(
                f"{target.path / entry.stem} would be of {keys[entry.stem]} and of {entry.key}: "
                "merge into one file, as with --out feats.npy"
            )
    return keys


def _make_ready(target: FeatureStore, recipe: Recipe, stems: Mapping[str, str], overwrite: bool) -> None:
    there = target.take_place(stems, overwrite=overwrite)
    if there is not None:
        refuse_other_recipe(target.path, there, recipe)
    if isinstance(target, TreeStore):
        target.refuse_taken_stems(stems)
    target.begin(recipe)


class _Merger:
    """One pass over all parts."""

    def __init__(self, target: FeatureStore, recipe: Recipe, on_video: Callable[[], None]) -> None:
        self._target, self._recipe, self._on_video = target, recipe, on_video
        self._there = {entry.key for entry in target.entries()}
        self._written: set[str] = set()
        self._merged = Merged(num_there=len(self._there))

    def run(self, parts: Sequence[FeatureStore], entries: Sequence[Sequence[VideoEntry]]) -> Merged:
        for part, of_part in zip(parts, entries, strict=True):
            recipe = part.recipe() or {}
            for entry in of_part:
                self._add(part, entry, recipe)
                self._on_video()
            part.close()  # an .npz is in memory
        self._add_failures(parts)
        self._target.commit()
        if self._there or self._written:
            self._target.finish()
        return self._merged

    def _add(self, part: FeatureStore, entry: VideoEntry, recipe: Recipe) -> None:
        merged = self._merged
        if entry.key in self._written:
            merged.num_repeated += 1
        if entry.key in self._written | self._there:
            return
        try:
            features = read_whole(part, entry)
        except OutputError as error:
            merged.damaged[entry.key] = str(error)
            return
        features = with_concat(features, recipe, self._recipe["concat"])
        self._target.check(features)
        self._target.write(features)
        merged.damaged.pop(entry.key, None)
        self._written.add(entry.key)
        merged.num_videos += 1
        merged.num_rows += entry.num_rows
        if merged.num_videos % COMMIT_VIDEOS == 0:
            self._target.commit()

    def _add_failures(self, parts: Sequence[FeatureStore]) -> None:
        listed = {failed.key for failed in self._target.failures()}
        left_out = self._there | self._written | set(self._merged.damaged)
        failures = {failed.key: failed for part in reversed(parts) for failed in part.failures()}
        for key, failed in failures.items():
            if key not in left_out:
                self._merged.num_failures += 1
                if key not in listed:
                    self._target.write_failure(failed)


# Streams side by side, or one matrix each -----------------------------------------------------------------------------


def with_concat(features: VideoFeatures, recipe: Recipe, concat: bool) -> VideoFeatures:
    """The same features with the streams side by side, or apart.

    Args:
        features: as `recipe` says.
        recipe: of the output that they are from.
        concat: what is wanted.

    Raises:
        UsageError: rows that do not tell where one stream ends and the next one begins.
    """
    if recipe["concat"] == concat:
        return features
    matrices = join_streams(features.matrices, recipe) if concat else split_streams(features.matrices, recipe)
    return VideoFeatures(replace(features.entry, crc32=checksum(matrices)), matrices, features.spans)


def join_streams(matrices: Mapping[str, NDArray[Any]], recipe: Recipe) -> dict[str, NDArray[Any]]:
    """{"rgb": (N, D), "flow": (N, D)} → {"features": (N, 2·D)}, as `VideoResult.features` puts them together."""
    return {FEATURES: np.concatenate([matrices[s] for s in _streams(recipe)], _axis(recipe))}


def split_streams(matrices: Mapping[str, NDArray[Any]], recipe: Recipe) -> dict[str, NDArray[Any]]:
    """The inverse of `join_streams`: both streams of a backbone are equally wide, at every layer.

    Raises:
        UsageError: these are not.
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
