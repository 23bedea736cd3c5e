"""Files that survive a crash: they appear complete or not at all, or grow by complete records."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from .errors import OutputError, OutputExists, UsageError, Vid3dError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PART_PREFIX = ".vid3d-"

STDOUT = Path("-")
"""The file name that stands for stdout."""


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return an OutputError for a file that the operating system could not write."""
    return OutputError(f"{path}: cannot be written: {error.strerror}")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into an OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def read_errors(path: Path, advice: str = "") -> Iterator[None]:
    """Turn any error in the block into an OutputError: libraries raise various errors for damaged files."""
    try:
        yield
    except Vid3dError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OutputError(f"{path}: cannot be read: {reason.rstrip('.')}{advice}") from None


# Complete or not at all ----------------------------------------------------------------------------------------------


class AtomicFile(io.BufferedRandom):
    """A file that is written under a temporary name beside its target; `commit` syncs and renames it.

    As a context manager it commits at the end of the block. If the block raises, it leaves nothing behind.

    Args:
        target: path of the file; its directory is created if needed.

    Raises:
        OutputError: the file cannot be written, here or later.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Fail now, not when the file is complete, if the target is a directory or its name is too long.
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(mode := target.stat().st_mode):  # a rename would replace /dev/null
                    raise OSError(
                        errno.EINVAL, f"it is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}"
                    )
            handle, self.part = _create_part(target.parent)
        self._file = _PartFile(handle, target)
        super().__init__(self._file)

    @property
    def error(self) -> OutputError | None:
        """The first error of writing, for callers whose library hides it."""
        return self._file.error

    def sync(self) -> None:
        """Wait until the disk has everything written so far."""
        with output_errors(self.target):
            self.flush()
            os.fsync(self.fileno())

    def commit(self) -> None:
        """Sync the file and give it its name; if that fails, discard it."""
        try:
            self.sync()
            with output_errors(self.target):
                self.part.replace(self.target)
                self.close()  # only now, because the lock keeps `remove_abandoned` away
                sync_directory(self.target.parent)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Delete the temporary file; no effect after a commit."""
        with suppress(OutputError):  # writing the rest of the buffer may fail, which does not matter
            self.close()
        with suppress(OSError):  # `remove_abandoned` deletes it later
            self.part.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise OutputExists for the first of the paths that exists, unless they may be overwritten."""
    existing = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputExists(f"{existing[0]}{more}: already exists; choose another name, or add --overwrite")


@contextmanager
def open_output(
    path: Path | None,
    *,
    overwrite: bool = False,
    keep_partial: bool | Callable[[], bool] = True,
    keep_empty: bool = False,
) -> Iterator[TextIO]:
    """Yield a text stream to stdout (None or "-"), or to a file that appears whole at the end of the block.

    Args:
        path: path of the file.
        overwrite: whether the file may exist.
        keep_partial: whether what was written is kept if the block raises; a function is called then.
        keep_empty: whether a file appears to which nothing was written.

    Raises:
        OutputExists: the file exists.
        OutputError: it cannot be written, here or later.
    """
    if path is None or path == STDOUT:
        yield sys.stdout
        return
    refuse_existing([path], overwrite)
    file = AtomicFile(path)
    # File names need not be UTF-8; their bytes are written as they are.
    stream = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    has_ended = False
    try:
        yield stream
        has_ended = True
    finally:
        try:
            stream.detach()
        except BaseException:  # its last lines did not fit on the disk
            file.discard()
            raise
        is_kept = has_ended or (keep_partial() if callable(keep_partial) else keep_partial)
        file.commit() if is_kept and (file.tell() or keep_empty) else file.discard()


class _PartFile(io.FileIO):
    """The raw file below the buffer; all ways to write raise the same error."""

    def __init__(self, handle: int, target: Path) -> None:
        super().__init__(handle, "r+b")
        self._target = target
        self.error: OutputError | None = None

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or cannot_write(self._target, error)
            raise self.error from None


def _create_part(directory: Path) -> tuple[int, Path]:
    """Create and lock a file; retry if another process deleted it as abandoned before it was locked."""
    while True:
        part = directory / f"{_PART_PREFIX}{secrets.token_hex(8)}.part"
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if _lock(handle) is not False and os.fstat(handle).st_nlink:
            return handle, part
        os.close(handle)


def write_once(path: Path, data: bytes) -> None:
    """Write a file, unless it exists or another process creates it first."""
    file = AtomicFile(path)
    try:
        file.write(data)
        file.sync()
        with output_errors(path), suppress(FileExistsError):
            os.link(file.part, path)
    finally:
        file.discard()


def remove_abandoned(directory: Path) -> None:
    """Delete the temporary files of killed processes: those that no process has locked."""
    for part in directory.glob(f"{_PART_PREFIX}*.part"):
        with suppress(OSError), part.open("rb") as file:
            if _lock(file.fileno()):
                part.unlink()


def remove_files(paths: Iterable[Path]) -> None:
    """Delete the files that exist."""
    for path in paths:
        with output_errors(path):
            path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names of new files; no effect if the file system cannot do so."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or its process ends; None if the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


# Growing by complete records -----------------------------------------------------------------------------------------


class AppendedFile:
    """A file that is written at its end.

    Args:
        path: path of the file; it is created, with its directory, if needed.

    Raises:
        OutputError: the file cannot be written, here or later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with output_errors(path):
            is_new = not path.exists()
            self._handle = _open_in_folder(path)
            if is_new:
                sync_directory(path.parent)
            self.size = os.fstat(self._handle).st_size
        self._is_synced = True

    @classmethod
    def locked(cls, path: Path, out: Path) -> AppendedFile:
        """Open a file that only one process may write to; the lock ends with the process, even if it is killed.

        Args:
            path: path of the file.
            out: the output that the file belongs to, for the message.

        Raises:
            UsageError: another process has locked it.
        """
        file = cls(path)
        if _lock(file._handle) is False:
            file.close()
            raise UsageError(
                f"{out}: another vid3d is writing to it; wait until it ends, or share the work with --shard or --claim"
            )
        return file

    def append(self, data: bytes) -> None:
        """Write at the end: all of it or nothing."""
        before = self.size
        self.size += len(data)
        try:
            self.write_at(before, data)
        except OutputError:
            with suppress(OutputError):
                self.cut(before)
            raise

    def write_at(self, position: int, data: bytes) -> None:
        """Overwrite bytes."""
        self._is_synced = False
        view = memoryview(data)
        with output_errors(self.path):
            while view:
                num_bytes = os.pwrite(self._handle, view, position)
                view, position = view[num_bytes:], position + num_bytes

    def cut(self, size: int) -> None:
        """Drop the bytes after a size."""
        if size != self.size:  # else its modification time must stay
            with output_errors(self.path):
                os.ftruncate(self._handle, size)
            self.size = size

    def sync(self) -> None:
        """Wait until the disk has everything; raise OutputError if the file no longer has its name."""
        if not self._is_synced:
            with output_errors(self.path):
                os.fsync(self._handle)
        self.check_name()
        self._is_synced = True

    def check_name(self) -> None:
        """Raise OutputError if the file was deleted or replaced: what is written to it would be lost."""
        mine = os.fstat(self._handle)
        with suppress(FileNotFoundError):
            named = self.path.stat()
            if (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino):
                return
        raise OutputError(f"{self.path}: cannot be written: another program removed or replaced it")

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _open_in_folder(path: Path) -> int:
    """Open or create a file and its directory; retry if another worker removes the empty directory meanwhile."""
    for attempts_left in range(9, -1, -1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, FileExistsError):
            if not attempts_left:
                raise
    raise AssertionError("unreachable")


def read_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the JSON objects of a file of lines up to the first damaged line, and where each line ends in bytes.

    A missing file has none.

    Raises:
        OutputError: it cannot be read.
    """
    records: list[dict[str, Any]] = []
    ends: list[int] = []
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    break
                records.append(record)
                ends.append((ends[-1] if ends else 0) + len(line))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
    return records, ends


def damaged_lines(path: Path) -> tuple[int, list[bytes]]:
    """Return the number of good lines of a file of JSON objects, and the lines from the first damaged one on.

    A single damaged line without an end of line is harmless: a process was killed while writing it.
    """
    ends = read_records(path)[1]
    rest = path.read_bytes()[ends[-1] if ends else 0 :] if path.exists() else b""
    return len(ends), rest.splitlines(keepends=True)
