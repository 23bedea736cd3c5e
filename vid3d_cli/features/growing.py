"""An .npy file that rows are appended to, and that np.load reads at any time."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AppendedFile
from ..errors import OutputError

_SHORTEST_HEADER = 128
"""Bytes; a file with fewer was cut off before its first row."""


@dataclass(frozen=True)
class NpyHeader:
    """The header of an .npy file, and the number of rows that the file has."""

    like: NDArray[Any]
    """(0, …): shape and dtype of the rows."""
    data_start: int
    """Bytes of the header. NumPy pads it, so the number of rows can be overwritten."""
    num_rows: int
    """Complete rows in the file."""
    num_promised: int
    """Rows that the header announces."""

    @property
    def row_bytes(self) -> int:
        return int(self.like.dtype.itemsize * math.prod(self.like.shape[1:]))

    @classmethod
    def read(cls, path: Path) -> NpyHeader | None:
        """Return the header of a file; None if it is missing or incomplete.

        Raises:
            OutputError: the file is not an .npy file.
        """
        try:
            with path.open("rb") as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("another version of the format")
                shape, is_transposed, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.hasobject:
                    raise ValueError("it holds Python objects")
                if is_transposed or not shape:
                    raise ValueError("it has no rows one after the other")
                like: NDArray[Any] = np.empty((0, *shape[1:]), dtype)
                data_start, size = file.tell(), file.seek(0, io.SEEK_END)
        except FileNotFoundError:
            return None
        except Exception as error:  # a header is parsed as Python, which can fail in many ways
            if path.is_file() and path.stat().st_size < _SHORTEST_HEADER:
                return None
            raise OutputError(f"{path}: not a matrix that vid3d wrote: {error}") from None
        header = cls(like, data_start, 0, shape[0])
        return replace(header, num_rows=(size - data_start) // max(1, header.row_bytes))

    def to_bytes(self, num_rows: int) -> bytes:
        """Return the header of a file with `num_rows` rows."""
        file = io.BytesIO()
        descr, shape = np.lib.format.dtype_to_descr(self.like.dtype), (num_rows, *self.like.shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        return file.getvalue()

    def rows(self, path: Path) -> NDArray[Any]:
        """Return the rows, memory-mapped."""
        if not self.num_rows:
            return self.like
        return np.memmap(path, self.like.dtype, "r", self.data_start, (self.num_rows, *self.like.shape[1:]))


class GrowingNpy(AppendedFile):
    """An .npy file that rows are appended to; its header never promises more rows than are committed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._header = NpyHeader.read(path)
            if self._header is None:
                self.cut(0)
        except BaseException:
            self.close()
            raise

    def append_rows(self, rows: NDArray[Any]) -> None:
        """Add rows (N, …) of the same shape and dtype as earlier ones."""
        if self._header is None:
            header = NpyHeader(rows[:0], 0, 0, 0)
            self.append(header.to_bytes(0))
            self._header = replace(header, data_start=self.size)
        self.append(np.ascontiguousarray(rows).tobytes())

    def promise(self, num_rows: int) -> None:
        """Write the number of rows into the header."""
        if self._header is not None and self._header.num_promised != num_rows:
            self.write_at(0, self._header.to_bytes(num_rows))
            self._header = replace(self._header, num_promised=num_rows)

    def cut_rows(self, num_rows: int) -> None:
        """Drop the rows after the first `num_rows`."""
        if self._header is not None:
            self.cut(self._header.data_start + num_rows * self._header.row_bytes)
            self.promise(num_rows)
