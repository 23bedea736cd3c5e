"""`--out feats.npy`: one matrix of all rows, `feats.index.jsonl` with a line a row, `feats.recipe.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..records import VideoResult, to_json
from .atomic import AtomicFile, commit_all, discard_all, open_all
from .features import FEATURES, FeatureFormat, refuse_existing


class GrowingNpy:
    """An .npy file that rows are appended to; np.load reads it like any other after `finish`.

    The header is written twice: NumPy pads it so that the number of rows may grow in place.
    """

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._rows: NDArray[Any] | None = None  # none of the first rows: their shape and dtype
        self.num_rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (N, …), of the same shape and dtype as those before."""
        if self._rows is None:
            self._rows = rows[:0]
            self._write_header()
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self.num_rows += len(rows)

    def finish(self) -> None:
        """Write the number of rows into the header."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()

    def _write_header(self) -> None:
        rows = np.empty(0, np.float32) if self._rows is None else self._rows
        header = {
            "descr": np.lib.format.dtype_to_descr(rows.dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *rows.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


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
            self._index.write(to_json(line).encode() + b"\n")
            self._num_rows += 1

    def commit(self) -> None:
        """Put the files in their places, the index last: where it is, the rest is. No rows, no files."""
        if not self._num_rows:
            return self.discard()
        try:
            for matrix in self._matrices.values():
                matrix.finish()
        except OutputError:
            self.discard()
            raise
        return commit_all(self._files)

    def discard(self) -> None:
        """Leave nothing behind."""
        discard_all(self._files)


def _ordered(span: dict[str, Any]) -> dict[str, Any]:
    return {name: span[name] for name in ("start_seconds", "end_seconds", "start_frame", "num_valid_frames")}
