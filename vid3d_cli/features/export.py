"""Outputs in one file that is written at the end of the job; until then, rows are collected beside it.

feats.npz.part/feats.npy, …   grows video by video, see `npy.NpyStore`; an interrupted job resumes from there
feats.npz                     appears, or is replaced, at the end of the job; a later job reads its rows back
feats.npz.failures.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..durable import AtomicFile, read_errors, remove_abandoned, remove_files
from ..errors import OutputExists
from .entries import SPAN_COLUMNS, Recipe, VideoEntry, VideoFeatures, parse_entries, readable, spans_of
from .npy import RESUMES, NpyStore
from .recipes import RESTORE, parse_recipe, refuse_other_recipe
from .store import Store, read_verified
from .table import ExportFormat, Table


class _Exported(NamedTuple):
    """The contents of an existing file."""

    recipe: dict[str, Any] | None
    entries: list[VideoEntry]
    table: Table


class ExportStore(Store):
    """Features in one file of any format.

    Args:
        path: path of the file.
        form: the module that writes and reads it.
    """

    def __init__(self, path: Path, form: ExportFormat) -> None:
        super().__init__(path)
        self._format = form
        self._directory = path.with_name(f"{path.name}.part")
        self._rows = NpyStore(self._directory / f"{path.stem}.npy")
        self._opened: _Exported | None = None
        self._is_locked = self._has_begun = False

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.failures.jsonl")

    @property
    def recipe_path(self) -> Path:
        return self._rows.recipe_path

    def own_paths(self) -> list[Path]:
        return [self.path]

    def refuse_incomplete(self) -> None:
        super().refuse_incomplete()
        self._rows.refuse_incomplete()

    def journal_paths(self) -> list[Path]:
        return self._rows.journal_paths()

    def describe_unfinished(self) -> str | None:
        return f"rows are collected in {self._directory}: {RESUMES}" if self._directory.exists() else None

    def recipe(self) -> dict[str, Any] | None:
        return self._rows.recipe() or self._exported().recipe

    def entries(self) -> list[VideoEntry]:
        """Return the entries of the file, then those collected since."""
        collected = self._rows.entries()
        keys = {entry.key for entry in collected}
        return [entry for entry in self._exported().entries if entry.key not in keys] + collected

    def read(self, entry: VideoEntry) -> VideoFeatures:
        return self._rows.read(entry) if entry.key in self._collected else self._read_exported(entry)

    @cached_property
    def _collected(self) -> set[str]:
        return {entry.key for entry in self._rows.entries()}

    def _read_exported(self, entry: VideoEntry) -> VideoFeatures:
        rows, table = slice(entry.row, entry.row + entry.num_rows), self._exported().table
        with read_errors(self.path):
            spans = spans_of({name: table.spans[name][rows] for name in SPAN_COLUMNS})
            if other := {*table.names[rows]} - {readable(entry.video)}:
                raise ValueError(f"rows of {entry.video} are marked as those of {other.pop()}")
            return VideoFeatures(entry, {name: matrix[rows] for name, matrix in table.matrices.items()}, spans)

    def _exported(self) -> _Exported:
        if self._opened is None and self.path.exists():
            with read_errors(self.path, f"; it is damaged, cut off, or not from vid3d extract: {RESTORE}"):
                table = self._format.read(self.path)
                if (recipe := parse_recipe(table.recipe)) is None:
                    raise ValueError("its recipe is not one of vid3d extract")
                entries = parse_entries(map(json.loads, table.videos.splitlines()), self.path)
                self._opened = _Exported(recipe, entries, table)
        return self._opened or _Exported(None, [], Table("", b"", {}, {}))

    def _close_exported(self) -> None:
        if self._opened is not None:
            self._opened.table.close()
            self._opened = None

    # Writing ---------------------------------------------------------------------------------------------------------

    def conflicting_files(self, stems: Collection[str], recipe: Recipe | None = None) -> list[Path]:
        collected = self._rows.conflicting_files(stems, recipe)
        if collected and not self.journal_paths():
            raise OutputExists(f"{collected[0]}: already exists, where vid3d extract collects rows; move it away")
        return ([self.path] if self.path.exists() or self.path.is_symlink() else []) + collected

    def lock(self, *, anew: bool = False) -> None:
        if not anew:
            super().refuse_incomplete()
        self._rows.lock(anew=anew)
        self._is_locked = True
        remove_abandoned(self.path.parent)

    def begin(self, recipe: Recipe) -> None:
        there = self.recipe()
        if there is not None:
            refuse_other_recipe(self.path, there, recipe)
            refuse_other_recipe(self.path, self._exported().recipe or there, there)
        self.lock()
        self._rows.begin(there or recipe)
        self._has_begun = True
        have = {entry.key for entry in self._rows.entries()}
        for entry in self._exported().entries:
            if entry.key not in have:
                self._rows.write(read_verified(self, entry))
        self._rows.commit()

    def write(self, features: VideoFeatures) -> None:
        self._rows.write(features)
        self.__dict__.pop("_collected", None)

    def check(self, features: VideoFeatures) -> None:
        self._rows.check(features)

    def commit(self) -> None:
        self._sync_failures()
        self._rows.commit()

    def finish(self) -> None:
        if not self._has_begun and self._rows.entries():
            self.begin(self._rows.recipe() or {})  # a job was killed after its last row
        if self._has_begun and self._rows.entries():
            self._export()
        self._has_begun = False
        super().finish()

    def _export(self) -> None:
        self._rows.compact()
        with AtomicFile(self.path) as file:
            try:
                self._format.write(self._rows.table(), file)
            except Exception:
                if file.error is not None:  # some libraries hide the error that their file raised
                    raise file.error from None
                raise
        self._close_exported()
        self._rows.clear()
        self.__dict__.pop("_collected", None)

    def close(self) -> None:
        super().close()
        self._close_exported()
        self._rows.close()
        if self._is_locked and self._rows.recipe() is None:
            with suppress(OSError):  # it is empty, unless other programs wrote to it
                self._directory.rmdir()
        self._is_locked = self._has_begun = False

    def clear(self) -> None:
        self._close_exported()
        self._rows.clear()
        self.__dict__.pop("_collected", None)
        remove_files([self.path, self.failures_path])
