"""All rows of an output as columns, which exports write and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    names: Sequence[str] = ()
    """The video of each row; only for writing, since `videos` says the same."""
    close: Callable[[], None] = lambda: None
    """Closes the file that slices are read from."""


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
