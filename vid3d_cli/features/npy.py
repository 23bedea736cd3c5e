"""`--out feats.npy`: one matrix of all rows, `feats.index.jsonl` with a line a row, and what is known of the videos.

feats.npy            (N, D): np.load reads it at any time; feats_rgb.npy and feats_flow.npy without concatenation
feats.index.jsonl    a line a row
feats.videos.jsonl   a line a video, written last: the rows of a video without one do not count
feats.recipe.json, feats.failures.jsonl
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import remove_abandoned
from ..errors import OutputError
from .appending import AppendedFile, read_records, refuse_damaged
from .entries import VideoEntry, VideoFeatures, index_line, readable, span_arrays, span_of_line
from .format import FEATURES
from .store import FeatureStore, Recipe, open_locked, read_recipe, remove_files, write_recipe


@dataclass(frozen=True)
class _NpyFile:
    """What is known of an .npy file before its rows are read."""

    like: NDArray[Any]
    """(0, …): shape and dtype of the rows."""
    data_start: int
    """Bytes of the header. NumPy pads it, so that the number of rows can grow in place."""
    num_rows: int
    """That are there, whole."""
    num_promised: int
    """That the header tells of."""

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return int(self.like.dtype.itemsize * math.prod(self.like.shape[1:]))

    @classmethod
    def of(cls, path: Path) -> _NpyFile | None:
        """Read a header; None where there is none, or not a whole one.

        Raises:
            OutputError: the file is something else.
        """
        try:
            with path.open("rb") as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("of another version")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                data_start, size = file.tell(), file.seek(0, io.SEEK_END)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            if path.is_file() and path.stat().st_size < _SHORTEST_HEADER:
                return None
            raise OutputError(f"{path}: not a matrix that vid3d wrote: {error}") from None
        header = cls(np.empty((0, *shape[1:]), dtype), data_start, 0, shape[0])
        return replace(header, num_rows=(size - data_start) // max(1, header.row_bytes))

    def rows(self, path: Path) -> NDArray[Any]:
        """The rows, memory-mapped."""
        if not self.num_rows:
            return self.like
        return np.memmap(path, self.like.dtype, "r", self.data_start, (self.num_rows, *self.like.shape[1:]))


_SHORTEST_HEADER = 128


class GrowingNpy:
    """An .npy file that rows are appended to; its header never promises more rows than are committed.

    Args:
        path: opened where it is there.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)
        self._header = _NpyFile.of(path)
        if self._header is None:
            self._file.cut(0)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (N, …) of the shape and dtype of those before."""
        if self._header is None:
            header = _header_bytes(rows, 0)
            self._file.append(header)
            self._header = _NpyFile(rows[:0], len(header), 0, 0)
        self._file.append(np.ascontiguousarray(rows).tobytes())

    def sync(self) -> None:
        """Have the disk hold the rows."""
        self._file.sync()

    def promise(self, num_rows: int) -> None:
        """Write into the header how many rows there are."""
        if self._header is not None and self._header.num_promised != num_rows:
            self._file.write_at(0, _header_bytes(self._header.like, num_rows))
            self._header = replace(self._header, num_promised=num_rows)

    def cut(self, num_rows: int) -> None:
        """Drop the rows behind so many."""
        if self._header is not None:
            self._file.cut(self._header.data_start + num_rows * self._header.row_bytes)
            self.promise(num_rows)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _header_bytes(like: NDArray[Any], num_rows: int) -> bytes:
    file = io.BytesIO()
    header = {
        "descr": np.lib.format.dtype_to_descr(like.dtype),
        "fortran_order": False,
        "shape": (num_rows, *like.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@dataclass(frozen=True)
class _Committed:
    """What counts of the files, and how long they are without the rest."""

    entries: list[VideoEntry]
    num_rows: int
    index_bytes: int
    journal_bytes: int


class NpyStore(FeatureStore):
    """See the head of this file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index_path = path.with_suffix(".index.jsonl")
        self.journal_path = path.with_suffix(".videos.jsonl")
        self._recipe_path = path.with_suffix(".recipe.json")
        self._journal: AppendedFile | None = None
        self._index: AppendedFile | None = None
        self._matrices: dict[str, GrowingNpy] = {}
        self._num_rows = 0
        self._pending: list[VideoEntry] = []

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        """Beside the matrix."""
        return self.path.with_suffix(".failures.jsonl")

    def recipe(self) -> dict[str, Any] | None:
        return read_recipe(self._recipe_path)

    def entries(self) -> list[VideoEntry]:
        """Of a video that was made anew, the rows that came last."""
        return list({entry.key: entry for entry in self._committed().entries}.values())

    def read(self, entry: VideoEntry) -> VideoFeatures:
        rows = slice(entry.row, entry.row + entry.num_rows)
        spans = [span_of_line(line) for line in self._index_lines[rows]]
        return VideoFeatures(entry, {name: m[rows] for name, m in self.matrices.items()}, spans)

    @cached_property
    def matrices(self) -> dict[str, NDArray[Any]]:
        """All rows that are on disk, by name, as they were when this was first asked for; memory-mapped."""
        paths = self.matrix_paths()
        return {name: header.rows(paths[name]) for name, header in self._headers().items() if header is not None}

    def columns(self) -> tuple[list[str], dict[str, NDArray[Any]]]:
        """The video of every row of a compact output, and the columns of `entries.SPAN_COLUMNS`."""
        entries = self.entries()
        num_rows = sum(entry.num_rows for entry in entries)
        spans = [span_of_line(line) for line in self._index_lines[:num_rows]]
        return [readable(entry.video) for entry in entries for _ in range(entry.num_rows)], span_arrays(spans)

    @cached_property
    def _index_lines(self) -> _Lines:
        return _Lines(self._index_path)

    def matrix_paths(self) -> dict[str, Path]:
        recipe = self.recipe()
        if recipe is None:
            return {}
        if recipe["concat"]:
            return {FEATURES: self.path}
        return {name: self.path.with_name(f"{self.path.stem}_{name}.npy") for name in recipe["streams"]}

    def _committed(self) -> _Committed:
        """The videos of the journal, as far as their rows and index lines are there."""
        lines, ends = read_records(self.journal_path)
        index = _Lines(self._index_path)
        available = min([len(index), *(header.num_rows if header else 0 for header in self._headers().values())])
        entries: list[VideoEntry] = []
        num_rows = 0
        for line in lines:
            entry = VideoEntry.from_json(line)
            if num_rows + entry.num_rows > available:
                break
            entries.append(entry)
            num_rows += entry.num_rows
        return _Committed(entries, num_rows, index.end(num_rows), ends[len(entries) - 1] if entries else 0)

    def _headers(self) -> dict[str, _NpyFile | None]:
        return {name: _NpyFile.of(path) for name, path in self.matrix_paths().items()}

    # Writing ---------------------------------------------------------------------------------------------------------

    def foreign(self, stems: Collection[str]) -> list[Path]:
        beside = [self.path.with_name(f"{self.path.stem}_{name}.npy") for name in ("rgb", "flow")]
        files = [self.path, *beside, self._index_path, self.journal_path]
        return [path for path in files if path.exists() and (path.is_dir() or path.stat().st_size)]

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        has_rows = self.path.exists() and self.path.stat().st_size > 0
        if has_rows and not anew and not self.journal_path.exists():
            raise OutputError(
                f"{self.journal_path}: missing: without it nobody knows what {self.path} holds; bring it back, or "
                "start anew with --overwrite"
            )
        self._journal = open_locked(self.journal_path, self.path)
        remove_abandoned(self.path.parent)
        if not anew:
            refuse_damaged(self.journal_path)
            if self._rewritten.exists():
                self._put_rewritten_in_place()
            self._cut_back()

    def _cut_back(self) -> None:
        """Drop what was written and not committed."""
        assert self._journal is not None
        committed = self._committed()
        self._forget_what_was_read()
        self._journal.cut(committed.journal_bytes)
        self._num_rows = committed.num_rows
        self._index = self._index or AppendedFile(self._index_path)
        self._index.cut(committed.index_bytes)
        for name, path in self.matrix_paths().items():
            if name not in self._matrices and path.exists():
                self._matrices[name] = GrowingNpy(path)
            if name in self._matrices:
                self._matrices[name].cut(committed.num_rows)

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        write_recipe(self._recipe_path, recipe, self.path)
        self._row_shapes = {name: header.like.shape[1:] for name, header in self._headers().items() if header}
        self._index = self._index or AppendedFile(self._index_path)
        for name, path in self.matrix_paths().items():
            if name not in self._matrices:
                self._matrices[name] = GrowingNpy(path)

    def write(self, features: VideoFeatures) -> None:
        assert self._index is not None
        entry = replace(features.entry, row=self._num_rows)
        for name, matrix in self._matrices.items():
            matrix.append(features.matrices[name])
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
        self._journal.append(b"".join(entry.to_json().encode() + b"\n" for entry in self._pending))
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
            if not self._rewritten.exists() and self._index is not None:
                self._cut_back()
            if not self._journal.size:
                self._remove_traces()
        finally:
            self._close_files()

    def _remove_traces(self) -> None:
        """Of an output without rows; what is no part of it stays."""
        remove_files([*self.matrix_paths().values(), self._recipe_path])
        is_empty = self._index_path.exists() and not self._index_path.stat().st_size
        remove_files([self._index_path, self.journal_path] if is_empty else [self.journal_path])

    def _close_files(self) -> None:
        self._close_rows()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._pending.clear()
        self._forget_what_was_read()

    def _close_rows(self) -> None:
        for file in (*self._matrices.values(), self._index):
            if file is not None:
                file.close()
        self._index = None
        self._matrices.clear()

    def clear(self) -> None:
        """The lock stays."""
        assert self._journal is not None
        paths = [*self.matrix_paths().values(), self._index_path, self._recipe_path, self.failures_path]
        self._close_rows()
        self._journal.cut(0)  # first of all: what is left of a removal that is interrupted does not count
        remove_files(paths)
        shutil.rmtree(self._rewritten, ignore_errors=True)
        self._num_rows = 0
        self._forget_what_was_read()

    def own_paths(self) -> list[Path]:
        return [*self.matrix_paths().values(), self.path, self._index_path, self.journal_path, self._recipe_path]

    def _forget_what_was_read(self) -> None:
        self.__dict__.pop("matrices", None)
        self.__dict__.pop("_index_lines", None)

    # Rewriting -------------------------------------------------------------------------------------------------------

    @property
    def _rewritten(self) -> Path:
        """A directory of whole files that are about to take the places of those beside it."""
        return self.path.with_name(f".{self.path.name}.rewritten")

    def compact(self) -> None:
        """Leave out older rows of videos that were made anew: a copy takes the place of all files in one step."""
        kept = self.entries()
        if len(kept) == len(self._committed().entries):
            return
        unfinished = self.path.with_name(f".{self.path.name}.rewriting")
        shutil.rmtree(unfinished, ignore_errors=True)
        with NpyStore(unfinished / self.path.name) as copy:
            copy.begin(self.recipe() or {})
            for entry in kept:
                copy.write(self.read(entry))
            copy.commit()
        unfinished.replace(self._rewritten)  # from here on the copy counts, whenever we are interrupted
        self._put_rewritten_in_place()
        self._cut_back()

    def _put_rewritten_in_place(self) -> None:
        self._close_rows()
        for file in sorted(self._rewritten.iterdir()):
            if file.name != self.journal_path.name:
                file.replace(self.path.with_name(file.name))
        # Last, and by its content: the file is our lock.
        journal = self._rewritten / self.journal_path.name
        assert self._journal is not None
        if journal.exists():
            data = journal.read_bytes()
            self._journal.cut(0)
            self._journal.append(data)
            self._journal.sync()
        shutil.rmtree(self._rewritten)


class _Lines(Sequence[bytes]):
    """The whole lines of a file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        is_empty = not path.exists() or not path.stat().st_size
        self._data: NDArray[np.uint8] = np.empty(0, np.uint8) if is_empty else np.memmap(path, np.uint8, "r")
        self._ends = np.flatnonzero(self._data == ord("\n")) + 1

    def __len__(self) -> int:
        return len(self._ends)

    def end(self, num_lines: int) -> int:
        """Where so many lines end, in bytes."""
        return int(self._ends[num_lines - 1]) if num_lines else 0

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[i] for i in range(*rows.indices(len(self)))]
        start = self._ends[rows - 1] if rows else 0
        return self._data[start : self._ends[rows]].tobytes()
