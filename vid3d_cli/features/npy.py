"""`--out feats.npy`: one matrix of all rows, with an index, a journal and a recipe beside it.

feats.npy            (N, D); np.load reads it at any time. feats_rgb.npy and feats_flow.npy with --no-concat
feats.index.jsonl    a line for each row
feats.videos.jsonl   the journal: a line for each video, written last. Rows of a video without a line do not count
feats.recipe.json, feats.failures.jsonl
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..durable import AppendedFile, output_errors, read_records, remove_abandoned, remove_files, sync_directory
from ..errors import OutputError, OutputExists, Vid3dError
from ..presets import DTYPES
from .entries import (
    Recipe,
    VideoEntry,
    VideoFeatures,
    index_line,
    json_lines,
    parse_entries,
    parse_index,
    readable,
    span_arrays,
)
from .format import FEATURES
from .growing import GrowingNpy, NpyHeader
from .recipes import RESTORE, read_recipe, write_recipe
from .store import Store, refuse_damaged_journal, refuse_without
from .table import Table

RESUMES = "a job is running, or was interrupted; run the same command to resume it"


class _Committed(NamedTuple):
    """The committed part of the files."""

    entries: list[VideoEntry]
    num_rows: int
    index_bytes: int
    journal_bytes: int


class NpyStore(Store):
    """Features in one .npy matrix, or one for each stream."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index_path = path.with_suffix(".index.jsonl")
        self._journal_path = path.with_suffix(".videos.jsonl")
        self._recipe_path = path.with_suffix(".recipe.json")
        self._unfinished = path.with_name(f".{path.name}.rewriting")
        self._rewritten = path.with_name(f".{path.name}.rewritten")
        self._index: AppendedFile | None = None
        self._matrices: dict[str, GrowingNpy] = {}
        self._num_rows = 0
        self._pending: list[VideoEntry] = []

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        return self.path.with_suffix(".failures.jsonl")

    @property
    def recipe_path(self) -> Path:
        return self._recipe_path

    def own_paths(self) -> list[Path]:
        return [*self._matrix_paths().values(), self.path, self._index_path, self._journal_path, self._recipe_path]

    def journal_paths(self) -> list[Path]:
        return [self._journal_path] if self._journal_path.exists() else []

    def recipe(self) -> dict[str, Any] | None:
        return read_recipe(self._recipe_path)

    def entries(self) -> list[VideoEntry]:
        """Return the entries; a video that was extracted again keeps its place and has its latest rows."""
        return list({entry.key: entry for entry in self._committed().entries}.values())

    def read(self, entry: VideoEntry) -> VideoFeatures:
        rows = slice(entry.row, entry.row + entry.num_rows)
        try:
            spans = parse_index(self._index_lines[rows], entry, entry.row)
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{self._index_path}: cannot be read: {error}") from None
        return VideoFeatures(entry, {name: m[rows] for name, m in self._mapped.items()}, spans)

    def table(self) -> Table:
        """Return all rows of an output without replaced ones, see `compact`."""
        entries = self.entries()
        spans = span_arrays([span for entry in entries for span in self.read(entry).spans])
        videos = [readable(entry.video) for entry in entries for _ in range(entry.num_rows)]
        return Table(json.dumps(self.recipe()), json_lines(entries), self._mapped, spans, videos)

    def refuse_incomplete(self) -> None:
        """Compare the rows that the journal lists with those of the other files.

        A crash leaves rows and index lines without a journal line, never the reverse; and a header never promises more
        rows than the journal lists. So whatever is missing here was removed or cut off later.
        """
        super().refuse_incomplete()
        if self._rewritten.exists():
            return  # the next job completes it, see `compact`
        refuse_without(self._journal_path, [*self._matrix_paths().values(), self._index_path])
        # In this order, a job that is running does not look like damage.
        promised = max((header.num_promised for header in self._headers().values() if header), default=0)
        num_rows = 0
        for entry in parse_entries(read_records(self._journal_path)[0], self._journal_path):
            if entry.row != num_rows:
                raise OutputError(f"{self._journal_path}: lines before that of {entry.video} are missing; {RESTORE}")
            num_rows += entry.num_rows
        paths, headers = self._matrix_paths().values(), self._headers().values()
        has = {path: header.num_rows if header else 0 for path, header in zip(paths, headers, strict=True)}
        for path, num_there in {**has, self._index_path: len(_Lines(self._index_path))}.items():
            if num_there < num_rows:
                what = f"has {num_there} of" if path.exists() else "missing; it holds"
                raise OutputError(f"{path}: {what} the {num_rows} rows that {self._journal_path} lists: {RESTORE}")
        if promised > num_rows:
            raise OutputError(
                f"{self._journal_path}: lists {num_rows} of the {promised} rows of {self.path}; {RESTORE}"
            )

    def describe_unfinished(self) -> str | None:
        if self._rewritten.exists():
            return f"its files are being replaced: {RESUMES}"
        num_rows = sum(entry.num_rows for entry in self.entries())
        headers = [header for header in self._headers().values() if header is not None]
        if {n for header in headers for n in (header.num_rows, header.num_promised)} <= {num_rows}:
            return None
        return f"it has more or fewer rows than the {num_rows} that count: {RESUMES}"

    @cached_property
    def _mapped(self) -> dict[str, NDArray[Any]]:
        """All rows on disk, by name, as of the first call."""
        paths = self._matrix_paths()
        return {name: header.rows(paths[name]) for name, header in self._headers().items() if header is not None}

    @cached_property
    def _index_lines(self) -> _Lines:
        return _Lines(self._index_path)

    def _matrix_paths(self, recipe: Recipe | None = None) -> dict[str, Path]:
        recipe = recipe or self.recipe()
        if recipe is None or recipe["concat"]:
            return {FEATURES: self.path} if recipe else {}
        return {name: self.path.with_name(f"{self.path.stem}_{name}.npy") for name in recipe["streams"]}

    def _headers(self) -> dict[str, NpyHeader | None]:
        headers = {name: NpyHeader.read(path) for name, path in self._matrix_paths().items()}
        for header in headers.values():
            if header is not None and header.like.dtype not in map(np.dtype, DTYPES):
                raise OutputError(f"{self.path}: has rows of {header.like.dtype}, not of {' or '.join(DTYPES)}")
        return headers

    def _committed(self) -> _Committed:
        """Return the videos of the journal up to the first one without complete rows and index lines."""
        lines, ends = read_records(self._journal_path)
        index = _Lines(self._index_path)
        available = min([len(index), *(header.num_rows if header else 0 for header in self._headers().values())])
        entries: list[VideoEntry] = []
        num_rows = 0
        for entry in parse_entries(lines, self._journal_path):
            if num_rows + entry.num_rows > available:
                break
            entries.append(entry)
            num_rows += entry.num_rows
        return _Committed(entries, num_rows, index.end(num_rows), ends[len(entries) - 1] if entries else 0)

    # Writing ---------------------------------------------------------------------------------------------------------

    def conflicting_files(self, stems: Collection[str], recipe: Recipe | None = None) -> list[Path]:
        own = {*self._matrix_paths().values(), self._index_path} if self._has_recipe() else set()
        matrices = self._matrix_paths(recipe or {"concat": True}).values()
        for path in matrices:
            if path != self.path and NpyStore(path).recipe_path.exists():
                raise OutputExists(f"{path}: already exists, as another output of vid3d extract; choose another name")
        files = [path for path in (*matrices, self._index_path) if path not in own and path.exists()]
        return [path for path in files if path.is_dir() or path.stat().st_size]

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        if not anew:  # before the lock makes a journal
            refuse_without(self._journal_path, [*self._matrix_paths().values(), self._index_path])
        with self._locked(self._journal_path):
            remove_abandoned(self.path.parent)
            shutil.rmtree(self._unfinished, ignore_errors=True)
            if not anew:
                if self._rewritten.exists():
                    self._adopt_rewritten()
                refuse_damaged_journal(self._journal_path)
                self.refuse_incomplete()
                for _, error in self._damaged(self.entries()):
                    raise OutputError(
                        f"{self.path}: {error}; restore its files, or see vid3d features check {self.path}"
                    )
                self._drop_uncommitted()

    def _drop_uncommitted(self) -> None:
        assert self._journal is not None
        committed = self._committed()
        self._forget_what_was_read()
        self._journal.cut(committed.journal_bytes)
        self._num_rows = committed.num_rows
        self._index = self._index or AppendedFile(self._index_path)
        self._index.cut(committed.index_bytes)
        for name, path in self._matrix_paths().items():
            if name not in self._matrices and path.exists():
                self._matrices[name] = GrowingNpy(path)
            if name in self._matrices:
                self._matrices[name].cut_rows(committed.num_rows)

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        for name, path in self._matrix_paths(recipe).items():
            if name not in self._matrices and (header := NpyHeader.read(path)) and header.num_rows:
                raise OutputExists(f"{path}: already exists, and {self._journal_path} does not list its rows; move it")
        write_recipe(self._recipe_path, recipe, self.path)
        self._row_shapes = {name: header.like.shape[1:] for name, header in self._headers().items() if header}
        self._index = self._index or AppendedFile(self._index_path)
        for name, path in self._matrix_paths().items():
            if name not in self._matrices:
                self._matrices[name] = GrowingNpy(path)

    def write(self, features: VideoFeatures) -> None:
        assert self._index is not None
        features = features.sealed(self.recipe() or {}, self._num_rows)
        entry = features.entry
        for name, matrix in self._matrices.items():
            matrix.append_rows(features.matrices[name])
        lines = (index_line(self._num_rows + i, entry.video, span) for i, span in enumerate(features.spans))
        self._index.append("".join(f"{line}\n" for line in lines).encode())
        self._num_rows += entry.num_rows
        self._pending.append(entry)

    def commit(self) -> None:
        self._sync_failures()
        if not self._pending:
            return
        assert self._index is not None and self._journal is not None
        for matrix in self._matrices.values():
            matrix.sync()
        self._index.sync()
        self._journal.append(json_lines(self._pending))
        self._journal.sync()
        self._pending.clear()
        for matrix in self._matrices.values():
            matrix.promise(self._num_rows)
        self._forget_what_was_read()

    def finish(self) -> None:
        for matrix in self._matrices.values():
            matrix.sync()
        self.compact()
        super().finish()

    def close(self) -> None:
        super().close()
        if self._journal is None:
            return
        try:
            # Else the next `lock` completes it, or refuses what another program removed, and nothing may be dropped.
            if not self._rewritten.exists() and self._is_complete():
                if self._index is not None:
                    self._drop_uncommitted()
                if not self._journal.size:
                    self._remove_traces()
        finally:
            self._release()
            self._pending.clear()
            self._forget_what_was_read()

    def _is_complete(self) -> bool:
        with suppress(Vid3dError):
            self.refuse_incomplete()
            return True
        return False

    def _remove_traces(self) -> None:
        """Delete the files of an output without rows."""
        remove_files([*self._matrix_paths().values(), self._index_path, self._recipe_path])
        remove_files([self._journal_path])

    def _release(self) -> None:
        self._close_rows()
        super()._release()

    def _close_rows(self) -> None:
        for file in (*self._matrices.values(), self._index):
            if file is not None:
                file.close()
        self._index = None
        self._matrices.clear()

    def clear(self) -> None:
        assert self._journal is not None
        self._close_rows()
        matrices = self._matrix_paths().values() if self._has_recipe() else ()  # others are no part of this output
        shutil.rmtree(self._rewritten, ignore_errors=True)
        for path in filter(Path.exists, matrices):
            with suppress(OutputError), closing(GrowingNpy(path)) as matrix:
                matrix.promise(0)  # before the journal is cut, see `refuse_incomplete`
                matrix.sync()
        self._journal.cut(0)  # before the rows: after an interrupt, none of them counts
        remove_files([*matrices, self._index_path, self._recipe_path, self.failures_path])
        self._num_rows = 0
        self._forget_what_was_read()

    def _forget_what_was_read(self) -> None:
        self.__dict__.pop("_mapped", None)
        self.__dict__.pop("_index_lines", None)

    # Replaced rows ---------------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Drop the rows of videos that were extracted again: a copy replaces all files.

        The copy is complete and synced when its directory is renamed. From then on it counts: after a crash, `lock`
        moves the remaining files, and nothing else deletes or cuts a file before that.
        """
        kept = self.entries()
        if len(kept) == len(self._committed().entries):
            return
        shutil.rmtree(self._unfinished, ignore_errors=True)
        try:
            with NpyStore(self._unfinished / self.path.name) as copy:
                copy.begin(self.recipe() or {})
                for entry in kept:
                    copy.write(self.read(entry))
                copy.commit()
            with output_errors(self.path):
                self._unfinished.replace(self._rewritten)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        self._adopt_rewritten()
        self._drop_uncommitted()

    def _adopt_rewritten(self) -> None:
        assert self._journal is not None
        self._close_rows()
        with output_errors(self.path):
            sync_directory(self.path.parent)
            journal = self._rewritten / self._journal_path.name
            rest = [file for file in sorted(self._rewritten.iterdir()) if file != journal]
            refuse_without(journal, rest)
            for file in rest:
                file.replace(self.path.with_name(file.name))
            if journal.exists():  # its content is copied, since the journal is our lock
                data = journal.read_bytes()
                self._journal.write_at(0, data)
                self._journal.cut(len(data))
                self._journal.sync()
            sync_directory(self.path.parent)
            shutil.rmtree(self._rewritten)


class _Lines:
    """The complete lines of a file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        is_empty = not path.exists() or not path.stat().st_size
        self._data: NDArray[np.uint8] = np.empty(0, np.uint8) if is_empty else np.memmap(path, np.uint8, "r")
        self._ends = np.flatnonzero(self._data == ord("\n")) + 1

    def __len__(self) -> int:
        return len(self._ends)

    def end(self, num_lines: int) -> int:
        """Return where the first `num_lines` lines end, in bytes."""
        return int(self._ends[num_lines - 1]) if num_lines else 0

    def __getitem__(self, rows: slice) -> list[bytes]:
        start, stop, _ = rows.indices(len(self))
        return self._data[self.end(start) : self.end(stop)].tobytes().splitlines(keepends=True) if start < stop else []
