"""Files that appear whole or not at all, alone or several together."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Buffer


_PART_PREFIX = ".vid3d-"


class AtomicFile(io.BufferedRandom):
    """A file written under a temporary name beside its target, which `commit` syncs and renames.

    As a context manager it commits at the end of the block, and leaves nothing behind when the block raises.

    Args:
        target: where the file appears; its directory is made.

    Raises:
        OutputError: it cannot be written, here or later.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # What cannot take this name is told now, not when the file is done: a directory, or a name too long.
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(target.stat().st_mode):
                    raise IsADirectoryError(errno.EISDIR, "it is a directory")
            handle, part = _make_part(target.parent)
        except OSError as error:
            raise cannot_write(target, error) from None
        os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        self.part = Path(part)
        self._file = _PartFile(handle, target)
        super().__init__(self._file)

    @property
    def error(self) -> OutputError | None:
        """What has gone wrong with it, where the one who wrote cannot say."""
        return self._file.error

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        try:
            self.flush()
            os.fsync(self.fileno())
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def remove_older(self) -> None:
        """Delete the file whose place this one will take."""
        try:
            self.target.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def publish(self) -> None:
        """Put the synced file in its place, and close it: until then it is locked, so that nobody tidies it away."""
        try:
            self.part.replace(self.target)
            self.close()
            sync_directory(self.target.parent)
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def commit(self) -> None:
        """Put the file in its place, durably."""
        commit_all([self])

    def discard(self) -> None:
        """Leave no trace."""
        self._file.is_discarded = True
        self.close()
        self.part.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


class _PartFile(io.FileIO):
    """What lies below the buffer, so that every way to write raises the same error."""

    def __init__(self, handle: int, target: Path) -> None:
        super().__init__(handle, "r+b")
        self._target = target
        self.error: OutputError | None = None  # the first one, for who cannot hand it on
        self.is_discarded = False  # then what is still in the buffer need not be written: the disk may be full

    def write(self, data: Buffer, /) -> int:
        if self.is_discarded:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or cannot_write(self._target, error)
            raise self.error from None


def open_all(targets: Sequence[Path]) -> list[AtomicFile]:
    """Open several files, or none when one cannot be written."""
    files: list[AtomicFile] = []
    try:
        for target in targets:
            files.append(AtomicFile(target))
    except OutputError:
        discard_all(files)
        raise
    return files


def commit_all(files: Sequence[AtomicFile]) -> None:
    """Sync all files, then put them in their places; when one cannot be synced, none appears.

    The last one is the sign that the others are there: an older one in its place goes first.
    """
    try:
        for file in files:
            file.sync()
        if len(files) > 1:
            files[-1].remove_older()
        for file in files:
            file.publish()
    except BaseException:
        discard_all(files)
        raise


def discard_all(files: Sequence[AtomicFile]) -> None:
    """Leave no trace of several files."""
    for file in files:
        file.discard()


def _make_part(directory: Path) -> tuple[int, str]:
    """Make and lock a new file; again, if another process took it for an abandoned one before it was locked."""
    while True:
        handle, part = tempfile.mkstemp(prefix=_PART_PREFIX, suffix=".part", dir=directory)
        if _lock(handle) is not False and os.fstat(handle).st_nlink:
            return handle, part
        os.close(handle)


def remove_abandoned(directory: Path) -> None:
    """Remove what processes that were killed have left unfinished in a directory: what nobody has locked any more."""
    for part in directory.glob(f"{_PART_PREFIX}*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            if _lock(file.fileno()):
                part.unlink()


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed, or its process ends; None where the file system knows no locks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def cannot_write(target: Path, error: OSError) -> OutputError:
    """The error of a file that the operating system does not let us write."""
    return OutputError(f"{target}: cannot be written: {error.strerror}")


def sync_directory(directory: Path) -> None:
    """Have the disk hold the names of new files; a system that cannot do so for directories keeps its own order."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
