"""A lock between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..durable import cannot_write


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock file during a block, after waiting for the process that holds it; the lock ends with the process.

    On a file system without locks, the block runs at once.

    Raises:
        OutputError: the lock file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
