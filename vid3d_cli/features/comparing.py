"""Compares two outputs row by row: of two machines, of two versions, or own and published features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, ShapeError, UsageError
from ..recipe import deciding_differences, provenance_differences
from ..records import ClipSpan
from .entries import Recipe, VideoEntry
from .format import FEATURES
from .merging import join_streams, split_streams
from .npy import NpyStore
from .store import Store, read_verified
from .stores import open_store

Matrices = Mapping[str, NDArray[Any]]

_CHUNK_ROWS = 4096
"""Rows of a plain matrix compared at a time."""


@dataclass(frozen=True)
class Rows:
    """One side of a comparison: an output, or a plain matrix without an index."""

    store: Store | None
    matrix: NDArray[Any] | None
    """(N, D), memory-mapped."""
    recipe: Recipe
    """Empty for a plain matrix."""

    def blocks(self) -> Iterator[tuple[str | None, Sequence[ClipSpan], Matrices]]:
        """Yield all rows in their order, streams side by side: a video, its spans and its rows; or some plain rows."""
        if self.store is not None:
            for entry in self.store.entries():
                features = read_verified(self.store, entry)
                yield entry.video, features.spans, _joined(features.matrices, self.recipe)
        elif self.matrix is not None:
            for start in range(0, len(self.matrix), _CHUNK_ROWS):
                yield None, (), {FEATURES: self.matrix[start : start + _CHUNK_ROWS]}

    def count(self) -> int:
        """Return the number of rows."""
        if self.store is not None:
            return sum(entry.num_rows for entry in self.store.entries())
        return 0 if self.matrix is None else len(self.matrix)


@dataclass(frozen=True)
class RowPair:
    """A row of A and the row of B that describes the same clip."""

    video: str | None
    """Video in A, or in B if A is a plain matrix; None if both are plain."""
    clip: int
    """Position among the clips of the video; without a video, position of the row in its matrix."""
    start_seconds: float | None
    cosine: Mapping[str, float]
    """Cosine by stream, or of "features"; 1 means the same direction."""
    relative_difference: Mapping[str, float]
    """By stream: the largest difference of two numbers, relative to the largest number of both rows."""


def open_rows(path: str) -> Rows:
    """Open an output, or a plain .npy matrix without an index.

    Raises:
        UsageError: nothing is there.
        OutputError: it is no matrix of rows, or a damaged output.
    """
    plain = Path(path)
    if plain.suffix.lower() != ".npy" or not plain.is_file() or NpyStore(plain).recipe() is not None:
        store = open_store(path)
        return Rows(store, None, store.recipe() or {})
    NpyStore(plain).refuse_incomplete()  # an output without its recipe is no plain matrix
    try:
        matrix: NDArray[Any] = np.load(plain, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: not a matrix of numbers: {error}") from None
    if matrix.ndim < 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise OutputError(f"{path}: an array {matrix.shape} of {matrix.dtype}, not a matrix with a row for each clip")
    return Rows(None, matrix.reshape(len(matrix), -1), {})


@dataclass
class Comparison:
    """Compares two outputs row by row; rows match by video path and by start, to the millisecond.

    Rows of a plain matrix match by position. One video is in memory at a time, and each .npz.
    """

    a: Rows
    b: Rows
    num_rows: int = 0
    """Pairs yielded so far; the other counts are complete after the last pair."""
    num_rows_only: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    """Rows that only one output has."""
    num_videos_only: dict[str, int] = field(default_factory=lambda: {"a": 0, "b": 0})
    """Videos that only one output has."""

    def recipe_differences(self) -> dict[str, tuple[Any, Any]]:
        """Return the recipe's values that differ, by name; none if a side is a plain matrix."""
        recipes = self.a.recipe, self.b.recipe
        return {**provenance_differences(*recipes), **deciding_differences(*recipes)} if all(recipes) else {}

    def pairs(self) -> Iterator[RowPair]:
        """Yield every pair of rows, once.

        Raises:
            ShapeError: rows, or numbers of rows, that cannot be compared.
            OutputError: damaged rows.
        """
        if self.a.store is not None and self.b.store is not None:
            pairs = self._pairs_of_videos(self.a.store, self.b.store)
        elif self.a.store is not None or self.b.store is None:
            pairs = _pairs_in_order(self.a, self.b)
        else:
            pairs = _pairs_in_order(self.b, self.a)
        for pair in pairs:
            self.num_rows += 1
            yield pair

    def _pairs_of_videos(self, a: Store, b: Store) -> Iterator[RowPair]:
        left = {entry.key: entry for entry in b.entries()}
        for entry in a.entries():
            if other := left.pop(entry.key, None):
                yield from self._pairs_of_video(a, entry, b, other)
            else:
                self._count_only("a", entry)
        for entry in left.values():
            self._count_only("b", entry)

    def _count_only(self, side: str, entry: VideoEntry) -> None:
        self.num_videos_only[side] += 1
        self.num_rows_only[side] += entry.num_rows

    def _pairs_of_video(self, a: Store, in_a: VideoEntry, b: Store, in_b: VideoEntry) -> Iterator[RowPair]:
        of_a, of_b = read_verified(a, in_a), read_verified(b, in_b)
        rows_b = {start: row for row, start in enumerate(_starts(of_b.spans))}
        shared = [(i, rows_b[start]) for i, start in enumerate(_starts(of_a.spans)) if start in rows_b]
        self.num_rows_only["a"] += in_a.num_rows - len(shared)
        self.num_rows_only["b"] += in_b.num_rows - len(shared)
        if shared:
            rows_of_a, rows_of_b = (list(rows) for rows in zip(*shared, strict=True))
            try:
                matrices = _apart(of_a.matrices, self.a.recipe), _apart(of_b.matrices, self.b.recipe)
            except UsageError:  # the streams differ in width
                matrices = _joined(of_a.matrices, self.a.recipe), _joined(of_b.matrices, self.b.recipe)
            taken_a = {name: matrix[rows_of_a] for name, matrix in matrices[0].items()}
            taken_b = {name: matrix[rows_of_b] for name, matrix in matrices[1].items()}
            measured = _measure(taken_a, taken_b, in_a.video)
            for row, values in zip(rows_of_a, measured, strict=True):
                yield RowPair(in_a.video, of_a.spans[row].index, of_a.spans[row].start_seconds, *values)


def _starts(spans: Sequence[ClipSpan]) -> Iterator[tuple[int, int]]:
    """Yield the start of each clip in milliseconds, and how many before it have the same: centred clips may."""
    seen: Counter[int] = Counter()
    for span in spans:
        start = round(span.start_seconds * 1000)
        yield start, seen[start]
        seen[start] += 1


def _apart(matrices: Matrices, recipe: Recipe) -> Matrices:
    return split_streams(matrices, recipe) if FEATURES in matrices else matrices


def _joined(matrices: Matrices, recipe: Recipe) -> Matrices:
    return matrices if FEATURES in matrices else join_streams(matrices, recipe)


def _pairs_in_order(rows: Rows, plain: Rows) -> Iterator[RowPair]:
    assert plain.matrix is not None
    if rows.count() != plain.count():
        raise ShapeError(
            f"{rows.count()} rows and {plain.count()} rows: without an index, only equal numbers can be compared; "
            "extract with the window, stride, fps and tail of the others"
        )
    start = 0
    for video, spans, matrices in rows.blocks():
        end = start + len(matrices[FEATURES])
        measured = _measure(matrices, {FEATURES: plain.matrix[start:end]}, video or "the matrices")
        for i, values in enumerate(measured):
            clip, seconds = (spans[i].index, spans[i].start_seconds) if spans else (start + i, None)
            yield RowPair(video, clip, seconds, *values)
        start = end


# Numbers -------------------------------------------------------------------------------------------------------------


def _measure(a: Matrices, b: Matrices, what: str) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Yield cosine and largest relative difference of every row, by the names that both sides have."""
    names = [name for name in a if name in b]
    if not names:
        raise ShapeError(f"{what}: {' and '.join(a)} in one, {' and '.join(b)} in the other: nothing to compare")
    cosines, differences = {}, {}
    for name in names:
        flat_a, flat_b = (np.asarray(m, np.float64).reshape(len(m), -1) for m in (a[name], b[name]))
        if flat_a.shape != flat_b.shape:
            raise ShapeError(
                f"{what}: rows of {flat_a.shape[1]} numbers and of {flat_b.shape[1]} cannot be compared; "
                "both must be of one stream, or of both, and of the same layer"
            )
        cosines[name], differences[name] = _cosine(flat_a, flat_b), _relative_difference(flat_a, flat_b)
    for row in range(len(cosines[names[0]])):
        yield {n: float(cosines[n][row]) for n in names}, {n: float(differences[n][row]) for n in names}


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the cosine of each row, (N, D), (N, D) → (N,); 1 for two rows of zeros, 0 for one."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms == 0, 1.0, norms))


def _relative_difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the largest relative difference of each row, (N, D), (N, D) → (N,), from 0 to 2."""
    largest = np.maximum(abs(a).max(axis=1), abs(b).max(axis=1))
    return np.asarray(abs(a - b).max(axis=1) / np.where(largest == 0, 1.0, largest))
