"""Outputs that are one file, which no crash can leave half written: rows are collected beside it and packed at the end.

feats.npz.part/feats.npy, …     grows video by video, see `npy.NpyStore`; a job that was killed goes on from there
feats.npz                       appears, or is replaced, when the job has ended
feats.npz.failures.jsonl
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from ..durable import AtomicFile, remove_abandoned
from ..errors import OutputError
from .entries import VideoEntry, VideoFeatures
from .npy import NpyStore
from .store import FeatureStore, Recipe, refuse_other_recipe, remove_files


class PackedStore(FeatureStore):
    """See the head of this file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.directory = path.with_name(f"{path.name}.part")
        self.rows = NpyStore(self.directory / f"{path.stem}.npy")
        self._has_begun = self._is_locked = False

    # Formats ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def packed_recipe(self) -> dict[str, Any]:
        """The recipe in the file."""

    @abstractmethod
    def packed_entries(self) -> list[VideoEntry]:
        """The videos in the file."""

    @abstractmethod
    def read_packed(self, entry: VideoEntry) -> VideoFeatures:
        """What the file holds of a video."""

    @abstractmethod
    def pack(self, rows: NpyStore, recipe: Recipe, file: AtomicFile) -> None:
        """Write all that was collected into the file."""

    def release(self) -> None:
        """Close the file, if it was opened for reading."""

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        """Beside the file."""
        return self.path.with_name(f"{self.path.name}.failures.jsonl")

    def recipe(self) -> dict[str, Any] | None:
        return self.rows.recipe() or (self.packed_recipe() if self.path.exists() else None)

    def entries(self) -> list[VideoEntry]:
        """Those of the file, then those that were collected since."""
        collected = self.rows.entries()
        keys = {entry.key for entry in collected}
        packed = self.packed_entries() if self.path.exists() else []
        return [entry for entry in packed if entry.key not in keys] + collected

    def read(self, entry: VideoEntry) -> VideoFeatures:
        return self.rows.read(entry) if entry.key in self._collected else self.read_packed(entry)

    @cached_property
    def _collected(self) -> set[str]:
        return {entry.key for entry in self.rows.entries()}

    # Writing ---------------------------------------------------------------------------------------------------------

    def foreign(self, stems: Collection[str]) -> list[Path]:
        return [self.path] if self.path.exists() or self.path.is_symlink() else []

    def lock(self, *, anew: bool = False) -> None:
        """What is packed is not touched; the lock is that of the rows beside it."""
        self.rows.lock(anew=anew)
        self._is_locked = True
        remove_abandoned(self.path.parent)

    def begin(self, recipe: Recipe) -> None:
        there = self.recipe()
        if there is not None:
            refuse_other_recipe(self.path, there, recipe)
        self.lock()
        self.rows.begin(recipe)
        self._has_begun = True
        self._unpack()

    def _unpack(self) -> None:
        """Collect what the file holds, and was not collected yet."""
        if not self.path.exists():
            return
        have = {entry.key for entry in self.rows.entries()}
        for entry in self.packed_entries():
            if entry.key not in have:
                self.rows.write(self.read_packed(entry))
        self.rows.commit()

    def write(self, features: VideoFeatures) -> None:
        self.rows.write(features)
        self.__dict__.pop("_collected", None)

    def check(self, features: VideoFeatures) -> None:
        self.rows.check(features)

    def commit(self) -> None:
        self._sync_failures()
        self.rows.commit()

    def finish(self) -> None:
        if not self._has_begun and self.rows.entries():
            self.begin(self.rows.recipe() or {})  # all was done when the job before was killed
        if self._has_begun:
            self._pack()
        super().finish()

    def _pack(self) -> None:
        if self.rows.entries():
            self.rows.compact()
            with AtomicFile(self.path) as file:
                self.pack(self.rows, self.rows.recipe() or {}, file)
            self.release()
            self.rows.clear()
        self._has_begun = False

    def close(self) -> None:
        super().close()
        self.release()
        self.rows.close()
        self._has_begun = False
        if self._is_locked and self.rows.recipe() is None:
            self._remove_directory()
        self._is_locked = False

    def clear(self) -> None:
        self.release()
        self.rows.clear()
        remove_files([self.path, self.failures_path])

    def own_paths(self) -> list[Path]:
        return [self.path]

    def _remove_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def parse_recipe(text: str | bytes, path: Path) -> dict[str, Any]:
    """The recipe of a file.

    Raises:
        OutputError: it is something else.
    """
    try:
        recipe = json.loads(text)
    except (ValueError, TypeError):
        recipe = None
    if not isinstance(recipe, dict) or "model" not in recipe:
        raise OutputError(f"{path}: cannot be read: its recipe is not one of vid3d extract")
    return recipe


def parse_entries(lines: Iterable[str | bytes], path: Path) -> list[VideoEntry]:
    """The videos of a file, a JSON line each.

    Raises:
        OutputError: they are something else.
    """
    try:
        return [VideoEntry.from_json(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{path}: cannot be read: its list of videos is damaged: {error}") from None
