"""`--out feats.npy`: one matrix of all rows, `feats.index.jsonl` with a line a row, `feats.recipe.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OddFeatures, OutputError
from ..records import VideoResult, to_json
from .atomic import AtomicFile, commit_all, discard_all, open_all
from .features import FEATURES, FeatureFormat, refuse_existing


class GrowingNpy:
    """An .npy file that rows are appended to; np.load reads it like any other after `finish`.

    The header is written twice: NumPy pads it so that the number of rows may grow in place.
    """

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._like = np.empty(0, np.float32)  # none of the rows: their shape and dtype
        self._data_start: int | None = None

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (N, …), of the same shape and dtype as those before."""
        if self._data_start is None:
            self._like = rows[:0]
            self._write_header(0)
            self._data_start = self._file.tell()
        self._file.write(np.ascontiguousarray(rows).tobytes())

    def check(self, rows: NDArray[Any], video: str) -> None:
        """Raise OddFeatures for rows that are not of the shape of those before."""
        if self._data_start is not None and rows.shape[1:] != self._like.shape[1:]:
            raise OddFeatures(
                video,
                f"its features of shape {rows.shape[1:]} do not go into one matrix with those before, of "
                f"{self._like.shape[1:]}: pool them, or write to a directory",
            )

    def finish(self, num_rows: int) -> None:
        """Keep the first `num_rows` rows, and write their number into the header."""
        row_bytes = self._like.dtype.itemsize * math.prod(self._like.shape[1:])
        self._file.flush()
        self._file.truncate((self._data_start or 0) + num_rows * row_bytes)
        self._file.seek(0)
        self._write_header(num_rows)
        self._file.flush()

    def _write_header(self, num_rows: int) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._like.dtype),
            "fortran_order": False,
            "shape": (num_rows, *self._like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


def append_all(matrices: Mapping[str, GrowingNpy], rows: Mapping[str, NDArray[Any]], video: str) -> None:
    """Append the rows of one video to each of the matrices, or to none.

    Raises:
        OddFeatures: they are of another shape than those before.
    """
    for name, matrix in matrices.items():
        matrix.check(rows[name], video)
    for name, matrix in matrices.items():
        matrix.append(rows[name])


class NpyOutput:
    """See the head of this file; without concatenation the matrices are `feats_rgb.npy` and `feats_flow.npy`."""

    def __init__(self, out: Path, form: FeatureFormat, *, streams: Sequence[str], overwrite: bool) -> None:
        names = [FEATURES] if form.concat else streams
        paths = [out if form.concat else out.with_name(f"{out.stem}_{name}.npy") for name in names]
        paths += [out.with_suffix(".recipe.json"), out.with_suffix(".index.jsonl")]
        refuse_existing(paths, overwrite)
        self._form = form
        self._files = open_all(paths)
        *matrices, self._recipe, self._index = self._files
        self._matrices = {name: GrowingNpy(file) for name, file in zip(names, matrices, strict=True)}
        self._num_rows = self._index_bytes = 0  # of whole videos: a write may be interrupted anywhere

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Append the rows of one video."""
        if not self._num_rows:
            self._recipe.write(result.recipe.to_json().encode() + b"\n")
        append_all(self._matrices, self._form.matrices(result), result.video)
        for row, clip in enumerate(result.clips, start=self._num_rows):
            span = asdict(clip.span)
            line = {"row": row, "video": result.video, "clip": span.pop("index"), **_ordered(span)}
            self._index.write(to_json(line).encode() + b"\n")
        self._num_rows, self._index_bytes = self._num_rows + len(result.clips), self._index.tell()

    def commit(self) -> None:
        """Put the files in their places, the index last: where it is, the rest is. No rows, no files."""
        if not self._num_rows:
            return self.discard()
        try:
            for matrix in self._matrices.values():
                matrix.finish(self._num_rows)
            self._index.flush()
            self._index.truncate(self._index_bytes)
        except OutputError:
            self.discard()
            raise
        return commit_all(self._files)

    def discard(self) -> None:
        """Leave nothing behind."""
        discard_all(self._files)


def _ordered(span: dict[str, Any]) -> dict[str, Any]:
    return {name: span[name] for name in ("start_seconds", "end_seconds", "start_frame", "num_valid_frames")}
