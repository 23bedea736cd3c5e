"""All rows of an output as columns, which exports write and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..durable import AtomicFile
from .format import FEATURES

MATRICES = (FEATURES, "rgb", "flow")
"""The names that matrices may have."""


@dataclass(frozen=True)
class Table:
    """All rows of an output."""

    recipe: str
    """JSON."""
    videos: bytes
    """A JSON line for each video, see `entries.VideoEntry`."""
    matrices: Mapping[str, Any]
    """N rows each, by name: arrays for writing; for reading, objects that give arrays when sliced."""
    spans: Mapping[str, Any]
    """N values each, by `entries.SPAN_COLUMNS`; also arrays, or objects to slice."""
    names: Any = ()
    """N names, the video of each row: a sequence for writing; for reading, an object to slice."""
    close: Callable[[], None] = lambda: None
    """Closes the file that slices are read from."""


MAX_EXPANSION = 100
"""Bytes that a byte of a file may become in memory."""


def refuse_bomb(num_bytes: int, path: Path) -> None:
    """Raise ValueError if a file announces so much more than it can hold that reading it would exhaust the memory."""
    if num_bytes > MAX_EXPANSION * (path.stat().st_size + 10_000):
        raise ValueError(f"it announces {num_bytes} bytes, and has {path.stat().st_size}")


class ExportFormat(Protocol):
    """A module that writes all rows into one file, and reads them back."""

    def check(self) -> None:
        """Raise UsageError if a package that it needs is not installed."""

    def write(self, table: Table, file: AtomicFile, /) -> None:
        """Write the file."""

    def read(self, path: Path, /) -> Table:
        """Return the table of a file; matrices and spans are read when they are sliced.

        Raises:
            Exception: any error, if the file is damaged or has another format.
        """
