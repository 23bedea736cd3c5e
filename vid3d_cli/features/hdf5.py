"""`--out feats.h5`: the arrays of an .npz as datasets, which h5py reads in parts; the recipe is an attribute.

"videos" has a string for each video: its JSON line.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..durable import AtomicFile
from ..errors import UsageError
from .entries import SPAN_COLUMNS
from .table import MATRICES, Table, refuse_bomb

COPIED_ROWS = 4096
"""Rows copied at a time: a matrix may be larger than the memory."""


def check() -> None:
    """Raise UsageError if h5py is not installed."""
    _h5py()


def write(table: Table, file: AtomicFile) -> None:
    """Write all rows."""
    h5py = _h5py()
    with h5py.File(file, "w") as target:
        target.attrs["recipe"] = table.recipe
        for name, matrix in table.matrices.items():
            dataset = target.create_dataset(name, matrix.shape, matrix.dtype)
            for start in range(0, len(matrix), COPIED_ROWS):
                dataset[start : start + COPIED_ROWS] = matrix[start : start + COPIED_ROWS]
        for name, column in table.spans.items():
            target[name] = column
        for name, texts in {"video": map(os.fsencode, table.names), "videos": table.videos.splitlines()}.items():
            target.create_dataset(name, data=np.array(list(texts), object), dtype=h5py.string_dtype())


def read(path: Path) -> Table:
    """Return the table of a file; slices are read on demand."""
    file = _h5py().File(path, "r")
    try:
        refuse_bomb(sum(file[name].nbytes for name in file), path)
        return Table(
            file.attrs["recipe"],
            b"\n".join(file["videos"][:]),
            {name: file[name] for name in MATRICES if name in file},
            {name: file[name] for name in SPAN_COLUMNS},
            file["video"].asstr(),
            close=file.close,
        )
    except BaseException:
        file.close()
        raise


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UsageError('.h5 needs h5py: pip install "vid3d[hdf5]"') from None
    return h5py
