"""`--out feats.npy`: one matrix of all rows, `feats.index.jsonl` with a line a row, `feats.recipe.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import VideoResult
from .atomic import AtomicFile
from .features import FEATURES, FeatureFormat, refuse_existing


class GrowingNpy:
    """An .npy file that rows are appended to; np.load reads it like any other after `finish`.

    The header is written twice: NumPy pads it so that the number of rows may grow in place.
    """

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self.num_rows = 0
        self._row_shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float32)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (N, …), of the same shape and dtype as those before."""
        if not self.num_rows:
            self._row_shape, self._dtype = rows.shape[1:], rows.dtype
            self._write_header()
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self.num_rows += len(rows)

    def finish(self) -> None:
        """Write the number of rows into the header."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()

    def _write_header(self) -> None:
        shape = (self.num_rows, *self._row_shape)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class NpyOutput:
    """See the head of this file; without concatenation the matrices are `feats_rgb.npy` and `feats_flow.npy`."""

    def __init__(self, out: Path, form: FeatureFormat, *, streams: Sequence[str], overwrite: bool) -> None:
        names = [FEATURES] if form.concat else streams
        paths = {name: out if form.concat else out.with_name(f"{out.stem}_{name}.npy") for name in names}
        index_path, recipe_path = out.with_suffix(".index.jsonl"), out.with_suffix(".recipe.json")
        refuse_existing([*paths.values(), index_path], overwrite)
        self._form = form
        self._files = [AtomicFile(path) for path in paths.values()]
        self._matrices = {name: GrowingNpy(file) for name, file in zip(paths, self._files, strict=True)}
        self._recipe, self._index = AtomicFile(recipe_path), AtomicFile(index_path)
        self._num_rows = 0

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Append the rows of one video."""
        if not self._num_rows:
            self._recipe.write(result.recipe.to_json().encode() + b"\n")
        for name, rows in self._form.matrices(result).items():
            self._matrices[name].append(rows)
        for clip in result.clips:
            span = asdict(clip.span)
            line = {"row": self._num_rows, "video": result.video, "clip": span.pop("index"), **_ordered(span)}
            self._index.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._num_rows += 1

    def commit(self) -> None:
        """Put the files in their places, the index last: where it is, the rest is. No rows, no files."""
        if not self._num_rows:
            return self.discard()
        for matrix in self._matrices.values():
            matrix.finish()
        for file in (*self._files, self._recipe, self._index):
            file.commit()
        return None

    def discard(self) -> None:
        """Leave nothing behind."""
        for file in (*self._files, self._recipe, self._index):
            file.discard()


def _ordered(span: dict[str, Any]) -> dict[str, Any]:
    return {name: span[name] for name in ("start_seconds", "end_seconds", "start_frame", "num_valid_frames")}
