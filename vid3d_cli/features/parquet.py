"""`--out feats.parquet`: a table with a row for each clip, for pandas, pyarrow and databases.

Columns: "video", "clip", "start_seconds", …, and "features" (or "rgb" and "flow"), each a list of D numbers. Metadata:
"recipe", "videos" (JSON lines, one for each video), and "shapes" of the rows, since a layer's map is stored flat.
"""

from __future__ import annotations

import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile
from ..errors import UsageError
from .entries import SPAN_COLUMNS
from .table import MATRICES, Table, refuse_bomb

GROUP_BYTES = 16 * 1024 * 1024
"""Approximate size of a row group, which is what a reader of one row has to read."""


def check() -> None:
    """Raise UsageError if pyarrow is not installed."""
    _pyarrow()


def write(table: Table, file: AtomicFile) -> None:
    """Write all rows."""
    pa, pq = _pyarrow()
    num_rows = len(table.names)
    matrices = {name: matrix.reshape(num_rows, -1) for name, matrix in table.matrices.items()}
    fields = [pa.field("video", pa.string())]
    fields += [pa.field(name, pa.from_numpy_dtype(dtype)) for name, dtype in SPAN_COLUMNS.items()]
    fields += [pa.field(n, pa.list_(pa.from_numpy_dtype(m.dtype), m.shape[1])) for n, m in matrices.items()]
    shapes = json.dumps({name: matrix.shape[1:] for name, matrix in table.matrices.items()})
    schema = pa.schema(fields, {"recipe": table.recipe, "videos": table.videos, "shapes": shapes})
    size = max(1, GROUP_BYTES // max(1, sum(m.itemsize * m.shape[1] for m in matrices.values())))
    with pq.ParquetWriter(file, schema, use_dictionary=["video"]) as writer:
        for part in (slice(start, start + size) for start in range(0, num_rows, size)):
            columns = [pa.array(table.names[part], pa.string())]
            columns += [pa.array(table.spans[name][part]) for name in SPAN_COLUMNS]
            columns += [
                pa.FixedSizeListArray.from_arrays(pa.array(m[part].reshape(-1)), m.shape[1]) for m in matrices.values()
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read(path: Path) -> Table:
    """Return the table of a file; row groups are read on demand."""
    _, pq = _pyarrow()
    file = pq.ParquetFile(path)
    metadata = file.schema_arrow.metadata or {}
    shapes = json.loads(metadata[b"shapes"])
    row_bytes = sum(4 * math.prod(shape) for shape in shapes.values())
    refuse_bomb(file.metadata.num_rows * (row_bytes + 8 * len(SPAN_COLUMNS)), path)
    return Table(
        metadata[b"recipe"].decode(),
        metadata[b"videos"],
        {name: _Column(file, name, shapes[name]) for name in MATRICES if name in shapes},
        {name: _Column(file, name, ()) for name in SPAN_COLUMNS},
        _Column(file, "video", ()),
        close=file.close,
    )


class _Column:
    """A column of a file; it keeps the last row group, since the next video is likely to be in it too."""

    def __init__(self, file: Any, name: str, row_shape: tuple[int, ...]) -> None:
        self._file, self._name, self._row_shape = file, name, row_shape
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        self._starts = [0, *accumulate(sizes)]
        self._last: tuple[int, NDArray[Any]] | None = None

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        starts = self._starts
        groups = [i for i in range(len(starts) - 1) if starts[i] < rows.stop and starts[i + 1] > rows.start]
        parts = [self._group(i)[max(0, rows.start - starts[i]) : rows.stop - starts[i]] for i in groups]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _group(self, number: int) -> NDArray[Any]:
        if self._last is None or self._last[0] != number:
            values = self._file.read_row_group(number, columns=[self._name])[self._name].combine_chunks()
            flat = np.asarray((values.flatten() if self._row_shape else values).to_numpy(zero_copy_only=False))
            self._last = number, flat.reshape(-1, *self._row_shape)
        return self._last[1]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError('.parquet needs pyarrow: pip install "vid3d[parquet]"') from None
    return pa, pq
