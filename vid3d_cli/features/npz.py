"""`--out feats.npz`: all rows as named arrays of NumPy.

"features" (or "rgb" and "flow"), "video", "clip", "start_seconds", …: N rows each
"recipe": JSON; "videos": the bytes of JSON lines, one for each video
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile
from ..errors import UsageError
from ..suggest import check_known
from ..text import printable
from .entries import SPAN_COLUMNS
from .table import MATRICES, Table, refuse_bomb


def check() -> None:
    """NumPy is always installed."""


def write(table: Table, file: AtomicFile) -> None:
    """Write all rows, uncompressed."""
    arrays = {
        **table.matrices,
        "video": np.array(table.names),
        **table.spans,
        "videos": np.frombuffer(table.videos, np.uint8),
        "recipe": np.array(table.recipe),
    }
    np.savez(file, **arrays)


def read(path: Path) -> Table:
    """Return the table of a file; the first slice of an array loads all of it."""
    stored = open_npz(path)
    return Table(
        str(stored["recipe"]),
        stored["videos"].tobytes(),
        {name: _Member(stored, name) for name in MATRICES if name in stored},
        {name: _Member(stored, name) for name in SPAN_COLUMNS},
        _Member(stored, "video"),
        close=stored.close,
    )


def open_npz(path: Path) -> Any:
    """Return an archive as `np.load` does.

    Raises:
        ValueError: its arrays would take far more memory than the file, as no archive of features does.
    """
    stored: Any = np.load(path, allow_pickle=False)
    if not hasattr(stored, "zip"):
        raise ValueError("it is no .npz archive")
    with ExitStack() as stack:
        stack.callback(stored.close)
        refuse_bomb(sum(member.file_size for member in stored.zip.infolist()), path)
        stack.pop_all()
    return stored


def load_array(path: Path, key: str | None = None) -> NDArray[Any]:
    """Return the array of an .npy, which is memory-mapped, or one of an .npz.

    Args:
        path: the file.
        key: name of the array of an .npz; None for its only one.

    Raises:
        UsageError: there is no such array, or several.
        Exception: any error, if the file is damaged or has another format.
    """
    array: NDArray[Any]
    if path.suffix != ".npz":
        array = np.lib.format.open_memmap(path, mode="r")  # mapped: the header may promise anything
    else:
        with open_npz(path) as stored:
            if key is None and len(stored.files) != 1:
                names = ", ".join(map(printable, stored.files)) or "none"
                raise UsageError(f"{path}: has {len(stored.files)} arrays; name one with --key: {names}")
            name = stored.files[0] if key is None else key
            check_known(name, stored.files, f"{path} has no array '{name}'")
            array = stored[name]
    return array


class _Member:
    """An array of an .npz, in memory from the first slice on: a zip archive cannot be mapped."""

    def __init__(self, stored: Any, name: str) -> None:
        self._stored, self._name = stored, name

    @cached_property
    def _array(self) -> NDArray[Any]:
        array: NDArray[Any] = self._stored[self._name]
        return array

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self._array[rows]
