"""Files that grow by whole records, and are cut back to the last whole one after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..durable import cannot_write, sync_directory
from ..errors import OutputError


class AppendedFile:
    """A file that is written at its end; every way to fail is an OutputError.

    Args:
        path: opened, or made with its directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if is_new:
                sync_directory(path.parent)
            self.size = os.fstat(self._handle).st_size
        except OSError as error:
            raise cannot_write(path, error) from None
        self._is_synced = True

    def append(self, data: bytes) -> None:
        """Write at the end: all of it, or nothing."""
        before = self.size
        self.size += len(data)
        try:
            self.write_at(before, data)
        except OutputError:
            with suppress(OutputError):
                self.cut(before)
            raise

    def write_at(self, position: int, data: bytes) -> None:
        """Write over what is there."""
        self._is_synced = False
        view = memoryview(data)
        try:
            while view:
                num_bytes = os.pwrite(self._handle, view, position)
                view, position = view[num_bytes:], position + num_bytes
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def cut(self, size: int) -> None:
        """Drop what is behind."""
        if size == self.size:
            return  # its time of change stays
        try:
            os.ftruncate(self._handle, size)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.size = size

    def sync(self) -> None:
        """Have the disk hold all that was written, and see that the file is still the one of this name."""
        try:
            if not self._is_synced:
                os.fsync(self._handle)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.check_name()
        self._is_synced = True

    def check_name(self) -> None:
        """Raise OutputError if the file is not the one of its name any more."""
        if not self._has_its_name():
            raise OutputError(f"{self.path}: cannot be written: it was removed or replaced by someone else meanwhile")

    def _has_its_name(self) -> bool:
        mine = os.fstat(self._handle)
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def close(self) -> None:
        """Give the handle back."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def handle(self) -> int:
        """The operating system's number of the open file."""
        return self._handle


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The JSON objects of a file of lines, up to the first line that is not whole, and where each line ends.

    A file that is not there has none.

    Raises:
        OutputError: it cannot be read.
    """
    records, ends, end = [], [], 0
    for line in _lines(path):
        end += len(line)
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        records.append(record)
        ends.append(end)
    return records, ends


def refuse_damaged(path: Path) -> None:
    """Raise OutputError for a file of lines of which one is damaged that has others behind it.

    A last line that is not whole is of a process that was killed, and does not count; this is something else.
    """
    records, ends = read_records(path)
    rest = path.read_bytes()[ends[-1] if ends else 0 :] if path.exists() else b""
    if b"\n" in rest.rstrip(b"\n"):
        raise OutputError(
            f"{path}: damaged after line {len(records)}; vid3d features convert saves what is before it into a new "
            "output, where the rest can be made anew"
        )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
