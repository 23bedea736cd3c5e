"""`--out feats.parquet`: a table with a row a clip, for pandas, pyarrow and databases; its metadata has the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile
from ..errors import OutputError, UsageError
from .entries import SPAN_COLUMNS, VideoEntry, VideoFeatures, spans_of
from .format import FEATURES
from .npy import NpyStore
from .packed import PackedStore, parse_entries, parse_recipe
from .store import Recipe

GROUP_BYTES = 16 * 1024 * 1024
"""Of features in a row group, about: what a reader of one row has to read."""


class ParquetStore(PackedStore):
    """Columns "video", "clip", "start_seconds", …, and "features" (or "rgb" and "flow"), each a list of D numbers.

    Metadata: "recipe", "videos" (a JSON line each), and "shapes" of the rows: a layer's map is stored flat.
    """

    def pack(self, rows: NpyStore, recipe: Recipe, file: AtomicFile) -> None:
        pa, pq = _pyarrow()
        videos, spans = rows.columns()
        matrices = {name: matrix.reshape(len(matrix), -1) for name, matrix in rows.matrices.items()}
        fields = [pa.field("video", pa.string())]
        fields += [pa.field(name, pa.from_numpy_dtype(dtype)) for name, dtype in SPAN_COLUMNS.items()]
        fields += [pa.field(n, pa.list_(pa.from_numpy_dtype(m.dtype), m.shape[1])) for n, m in matrices.items()]
        schema = pa.schema(
            fields,
            {
                "recipe": json.dumps(recipe),
                "videos": "".join(f"{entry.to_json()}\n" for entry in rows.entries()),
                "shapes": json.dumps({name: matrix.shape[1:] for name, matrix in rows.matrices.items()}),
            },
        )
        row_bytes = sum(m.itemsize * m.shape[1] for m in matrices.values())
        with pq.ParquetWriter(file, schema, use_dictionary=["video"]) as writer:
            for part in _parts(len(videos), max(1, GROUP_BYTES // max(1, row_bytes))):
                columns = [pa.array(videos[part], pa.string())]
                columns += [pa.array(spans[name][part]) for name in SPAN_COLUMNS]
                columns += [
                    pa.FixedSizeListArray.from_arrays(pa.array(m[part].reshape(-1)), m.shape[1])
                    for m in matrices.values()
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))

    @cached_property
    def _file(self) -> Any:
        pa, pq = _pyarrow()
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise OutputError(f"{self.path}: cannot be read: {error}") from None

    def _metadata(self, name: str) -> Any:
        if name.encode() not in self._all_metadata:
            raise OutputError(f"{self.path}: not a table of vid3d extract: its metadata has no '{name}'")
        return self._all_metadata[name.encode()]

    @cached_property
    def _all_metadata(self) -> dict[bytes, bytes]:
        return self._file.schema_arrow.metadata or {}

    def packed_recipe(self) -> dict[str, Any]:
        return parse_recipe(self._metadata("recipe"), self.path)

    def packed_entries(self) -> list[VideoEntry]:
        return parse_entries(self._metadata("videos").splitlines(), self.path)

    def read_packed(self, entry: VideoEntry) -> VideoFeatures:
        table = self._rows_of(entry)
        spans = spans_of({name: table[name].to_numpy() for name in SPAN_COLUMNS})
        shapes = json.loads(self._metadata("shapes"))
        names = [name for name in (FEATURES, "rgb", "flow") if name in shapes]
        return VideoFeatures(entry, {n: _matrix(table[n], (entry.num_rows, *shapes[n])) for n in names}, spans)

    def _rows_of(self, entry: VideoEntry) -> Any:
        pa, _ = _pyarrow()
        starts = self._group_starts
        end = entry.row + entry.num_rows
        groups = [i for i in range(len(starts) - 1) if starts[i] < end and starts[i + 1] > entry.row]
        table = pa.concat_tables([self._group(i) for i in groups])
        return table.slice(entry.row - starts[groups[0]], entry.num_rows)

    @cached_property
    def _group_starts(self) -> list[int]:
        metadata = self._file.metadata
        return [0, *accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]

    def _group(self, number: int) -> Any:
        """A row group; the last one is kept, since the next video is likely to be in it too."""
        if self._last_group is None or self._last_group[0] != number:
            self._last_group = number, self._file.read_row_group(number)
        return self._last_group[1]

    _last_group: tuple[int, Any] | None = None

    def release(self) -> None:
        self.__dict__.pop("_group_starts", None)
        self.__dict__.pop("_all_metadata", None)
        self._last_group = None
        if file := self.__dict__.pop("_file", None):
            file.close()


def _parts(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _matrix(column: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    values = column.combine_chunks()
    flat: NDArray[Any] = np.asarray(values.flatten().to_numpy(zero_copy_only=False))
    return flat.reshape(shape)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError('.parquet needs pyarrow: pip install "vid3d[parquet]"') from None
    return pa, pq
