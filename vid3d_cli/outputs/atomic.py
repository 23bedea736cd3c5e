"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class AtomicFile(io.BufferedRandom):
    """A file written under a temporary name beside its target, which `commit` syncs and renames.

    As a context manager it commits at the end of the block, and leaves nothing behind when the block raises.

    Args:
        target: where the file appears; its directory is made.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from None
        os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        self.part = Path(part)
        super().__init__(io.FileIO(handle, "r+b"))

    def write(self, data: Buffer, /) -> int:
        """Write all of it."""
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(f"{self.target}: cannot be written: {error.strerror}") from None

    def commit(self) -> None:
        """Put the file in its place, durably."""
        try:
            self.flush()
            os.fsync(self.fileno())
            self.close()
            self.part.replace(self.target)
        except OSError as error:
            self.discard()
            raise OutputError(f"{self.target}: cannot be written: {error.strerror}") from None

    def discard(self) -> None:
        """Leave no trace."""
        with contextlib.suppress(OSError):  # a full disk would complain again
            self.close()
        self.part.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
