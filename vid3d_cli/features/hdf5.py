"""`--out feats.h5`: the arrays of an .npz as datasets, which h5py reads in parts; the recipe is an attribute."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any

import numpy as np

from ..durable import AtomicFile
from ..errors import OutputError, UsageError
from .entries import SPAN_COLUMNS, VideoEntry, VideoFeatures, spans_of
from .format import FEATURES
from .npy import NpyStore
from .packed import PackedStore, parse_entries, parse_recipe
from .store import Recipe

COPIED_ROWS = 4096
"""At a time: a matrix may be larger than the memory."""


class Hdf5Store(PackedStore):
    """Datasets of N rows: "features" (or "rgb" and "flow"), "video", "clip", …; "videos" has a JSON line a video."""

    def pack(self, rows: NpyStore, recipe: Recipe, file: AtomicFile) -> None:
        try:
            self._write(rows, recipe, file)
        except Exception:
            if file.error is not None:  # h5py hides what its file says
                raise file.error from None
            raise

    def _write(self, rows: NpyStore, recipe: Recipe, file: AtomicFile) -> None:
        h5py = _h5py()
        videos, spans = rows.columns()
        with h5py.File(file, "w") as target:
            target.attrs["recipe"] = json.dumps(recipe)
            for name, matrix in rows.matrices.items():
                dataset = target.create_dataset(name, matrix.shape, matrix.dtype)
                for start in range(0, len(matrix), COPIED_ROWS):
                    dataset[start : start + COPIED_ROWS] = matrix[start : start + COPIED_ROWS]
            for name, column in spans.items():
                target[name] = column
            texts = {"video": map(os.fsencode, videos), "videos": (e.to_json().encode() for e in rows.entries())}
            for name, values in texts.items():
                target.create_dataset(name, data=np.array(list(values), object), dtype=h5py.string_dtype())

    @cached_property
    def _file(self) -> Any:
        try:
            return _h5py().File(self.path, "r")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read: {error}") from None

    def _part(self, name: str) -> Any:
        if name not in self._file:
            raise OutputError(f"{self.path}: not a file of vid3d extract: it has no dataset '{name}'")
        return self._file[name]

    def packed_recipe(self) -> dict[str, Any]:
        if "recipe" not in self._file.attrs:
            raise OutputError(f"{self.path}: not a file of vid3d extract: it has no recipe")
        return parse_recipe(self._file.attrs["recipe"], self.path)

    def packed_entries(self) -> list[VideoEntry]:
        return parse_entries(self._part("videos")[:], self.path)

    def read_packed(self, entry: VideoEntry) -> VideoFeatures:
        rows = slice(entry.row, entry.row + entry.num_rows)
        names = [name for name in (FEATURES, "rgb", "flow") if name in self._file]
        spans = spans_of({name: self._part(name)[rows] for name in SPAN_COLUMNS})
        return VideoFeatures(entry, {name: self._part(name)[rows] for name in names}, spans)

    def release(self) -> None:
        if file := self.__dict__.pop("_file", None):
            file.close()


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UsageError('.h5 needs h5py: pip install "vid3d[hdf5]"') from None
    return h5py
