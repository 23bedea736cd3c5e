"""How alike two outputs are, row by row: two machines, two versions, or one's own features and published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, ShapeError, UsageError
from .entries import VideoEntry
from .format import FEATURES
from .inspection import read_whole
from .merging import join_streams, split_streams
from .npy import NpyStore
from .store import FeatureStore, Recipe, recipe_differences
from .stores import open_store

Matrices = Mapping[str, NDArray[Any]]

_CHUNK_ROWS = 4096
"""Of a matrix without an index, that are compared at a time."""


@dataclass(frozen=True)
class RowPair:
    """A row of A and the row of B that describes the same clip."""

    video: str | None
    """As in A, or in B where A does not say; None where neither does."""
    clip: int
    """Position among the clips of the video; of the row in its matrix where no video is known."""
    start_seconds: float | None
    cosine: Mapping[str, float]
    """By stream, or of "features" as a whole: 1 is the same direction."""
    relative_difference: Mapping[str, float]
    """Likewise: the largest difference of two numbers, relative to the largest number of both rows."""


def open_rows(path: str) -> FeatureStore | NDArray[Any]:
    """Open an output, or a plain .npy matrix that has no index.

    Returns:
        A matrix is (N, D), memory-mapped.

    Raises:
        UsageError: nothing is there.
        OutputError: no matrix of rows.
    """
    plain = Path(path)
    if plain.suffix.lower() != ".npy" or not plain.is_file() or NpyStore(plain).recipe() is not None:
        return open_store(path)
    try:
        matrix: NDArray[Any] = np.load(plain, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: not a matrix of numbers: {error}") from None
    if matrix.ndim < 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise OutputError(f"{path}: an array {matrix.shape} of {matrix.dtype}, and not a matrix with a row a clip")
    return matrix.reshape(len(matrix), -1)


class Comparison:
    """Two outputs, row by row: those of the same video, by its path as given, and the same start to the millisecond.

    A matrix without an index is compared in its order. Memory holds a video, and an .npz as a whole.

    Args:
        a: see `open_rows`.
        b: likewise.
    """

    def __init__(self, a: FeatureStore | NDArray[Any], b: FeatureStore | NDArray[Any]) -> None:
        self._a, self._b = a, b
        self._recipes = [_recipe_of(a), _recipe_of(b)]
        self.num_rows = 0
        """That were compared so far; all counts are of the pairs that were drawn."""
        self.num_rows_only = {"a": 0, "b": 0}
        """That one output has and the other one has not."""
        self.num_videos_only = {"a": 0, "b": 0}
        """Likewise."""

    def recipe_differences(self) -> dict[str, tuple[Any, Any]]:
        """The values that differ, by name; of matrices without an index nothing is known."""
        return recipe_differences(self._recipes[0], self._recipes[1]) if all(self._recipes) else {}

    def pairs(self) -> Iterator[RowPair]:
        """Go through both, once.

        Raises:
            ShapeError: rows, or numbers of rows, that cannot be compared.
            OutputError: rows that are not as they were written.
        """
        for pair in self._pairs():
            self.num_rows += 1
            yield pair

    def _pairs(self) -> Iterator[RowPair]:
        if isinstance(self._a, FeatureStore):
            if isinstance(self._b, FeatureStore):
                return self._pairs_of_videos(self._a, self._b)
            return _pairs_in_order(self._a, self._recipes[0], self._b)
        if isinstance(self._b, FeatureStore):
            return _pairs_in_order(self._b, self._recipes[1], self._a)
        return _pairs_plain(self._a, self._b)

    def _pairs_of_videos(self, a: FeatureStore, b: FeatureStore) -> Iterator[RowPair]:
        left = {entry.key: entry for entry in b.entries()}
        for entry in a.entries():
            other = left.pop(entry.key, None)
            if other is None:
                self._count_only("a", entry)
            else:
                yield from self._pairs_of_video(a, entry, b, other)
        for entry in left.values():
            self._count_only("b", entry)

    def _count_only(self, side: str, entry: VideoEntry) -> None:
        self.num_videos_only[side] += 1
        self.num_rows_only[side] += entry.num_rows

    def _pairs_of_video(
        self, a: FeatureStore, in_a: VideoEntry, b: FeatureStore, in_b: VideoEntry
    ) -> Iterator[RowPair]:
        of_a, of_b = read_whole(a, in_a), read_whole(b, in_b)
        rows_b = {_milliseconds(span.start_seconds): row for row, span in enumerate(of_b.spans)}
        starts = [_milliseconds(span.start_seconds) for span in of_a.spans]
        shared = [(row, rows_b[start]) for row, start in enumerate(starts) if start in rows_b]
        self.num_rows_only["a"] += in_a.num_rows - len(shared)
        self.num_rows_only["b"] += in_b.num_rows - len(shared)
        if shared:
            take_a, take_b = zip(*shared, strict=True)
            matrices_a, matrices_b = _alike(of_a.matrices, of_b.matrices, self._recipes)
            cosines, differences = _measure(_take(matrices_a, take_a), _take(matrices_b, take_b), in_a.video)
            for i, row in enumerate(take_a):
                span = of_a.spans[row]
                yield RowPair(in_a.video, span.index, span.start_seconds, _row(cosines, i), _row(differences, i))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _take(matrices: Matrices, rows: tuple[int, ...]) -> Matrices:
    return {name: matrix[list(rows)] for name, matrix in matrices.items()}


def _recipe_of(rows: FeatureStore | NDArray[Any]) -> Recipe:
    return (rows.recipe() or {}) if isinstance(rows, FeatureStore) else {}


def _alike(of_a: Matrices, of_b: Matrices, recipes: Sequence[Recipe]) -> tuple[Matrices, Matrices]:
    """Both by stream where that can be, else both side by side."""
    try:
        return _apart(of_a, recipes[0]), _apart(of_b, recipes[1])
    except UsageError:
        return _joined(of_a, recipes[0]), _joined(of_b, recipes[1])


def _apart(matrices: Matrices, recipe: Recipe) -> Matrices:
    return split_streams(matrices, recipe) if FEATURES in matrices else matrices


def _joined(matrices: Matrices, recipe: Recipe) -> Matrices:
    return matrices if FEATURES in matrices else join_streams(matrices, recipe)


# Matrices without an index -------------------------------------------------------------------------------------------


def _pairs_in_order(store: FeatureStore, recipe: Recipe, matrix: NDArray[Any]) -> Iterator[RowPair]:
    entries = store.entries()
    _check_lengths(sum(entry.num_rows for entry in entries), len(matrix))
    row = 0
    for entry in entries:
        features = read_whole(store, entry)
        rows = matrix[row : row + entry.num_rows]
        cosines, differences = _measure(_joined(features.matrices, recipe), {FEATURES: rows}, entry.video)
        for i, span in enumerate(features.spans):
            yield RowPair(entry.video, span.index, span.start_seconds, _row(cosines, i), _row(differences, i))
        row += entry.num_rows


def _pairs_plain(a: NDArray[Any], b: NDArray[Any]) -> Iterator[RowPair]:
    _check_lengths(len(a), len(b))
    for start in range(0, len(a), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        cosines, differences = _measure({FEATURES: a[rows]}, {FEATURES: b[rows]}, "the matrices")
        for i in range(len(cosines[FEATURES])):
            yield RowPair(None, start + i, None, _row(cosines, i), _row(differences, i))


def _check_lengths(num_a: int, num_b: int) -> None:
    if num_a != num_b:
        raise ShapeError(
            f"{num_a} rows and {num_b} rows: without an index only as many can be compared; "
            "extract with the window, stride, fps and tail that the others were made with"
        )


# Numbers -------------------------------------------------------------------------------------------------------------


def _row(values: Matrices, row: int) -> dict[str, float]:
    return {name: float(numbers[row]) for name, numbers in values.items()}


def _measure(a: Matrices, b: Matrices, what: str) -> tuple[Matrices, Matrices]:
    """Cosine and largest relative difference of N rows each, by the names that both have."""
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
    return cosines, differences


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(N, D), (N, D) → (N,); rows of zeros are like each other and unlike all others."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms == 0, 1.0, norms))


def _relative_difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(N, D), (N, D) → (N,), from 0 to 2."""
    largest = np.maximum(abs(a).max(axis=1), abs(b).max(axis=1))
    return np.asarray(abs(a - b).max(axis=1) / np.where(largest == 0, 1.0, largest))
