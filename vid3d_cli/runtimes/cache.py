"""Converted networks on disk: found again at the next start, written whole or not at all, and never trusted blindly.

An entry is a zip file, whose checksums tell a damaged one. Its name is a digest of everything that decides what is in
it, so nothing is ever overwritten by something else, and processes need not know of each other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ..durable import AtomicFile
from ..errors import OutputError

_log = logging.getLogger("vid3d_cli")

_PACKAGE = Path(__file__).parent.parent


class NetworkCache:
    """The files of converted networks in one directory.

    Args:
        directory: made when it is needed.
        max_bytes: how much is kept, apart from the entry that was written last; what was unused for longest goes.
    """

    def __init__(self, directory: Path, max_bytes: int = 2 << 30) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def _path(self, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()}.zip"

    def read(self, key: str) -> dict[str, bytes] | None:
        """The files of an entry by name; None: there is none that is whole."""
        path = self._path(key)
        try:
            with zipfile.ZipFile(path) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
        except FileNotFoundError:
            return None
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            _log.info("%s is not used, since it cannot be read: %s", path, error)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read is a cache, too
            os.utime(path)
        return files

    def write(self, key: str, files: Sequence[Path]) -> None:
        """Keep files; where the disk does not let us, nothing is kept."""
        path = self._path(key)
        try:
            with AtomicFile(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
                for file in files:
                    archive.write(file, file.name)
            self._prune(path)
        except (OutputError, OSError) as error:
            _log.info("the converted network is not kept: %s", error)

    def _prune(self, newest: Path) -> None:
        entries = [(entry.stat(), entry) for entry in self._directory.glob("*.zip") if entry != newest]
        room = self._max_bytes - newest.stat().st_size
        for facts, entry in sorted(entries, key=lambda item: item[0].st_mtime, reverse=True):
            room -= facts.st_size
            if room < 0:
                entry.unlink(missing_ok=True)


@functools.cache
def code_digest() -> str:
    """Of the source that decides what network is built of given weights, and how it is converted."""
    digest = hashlib.sha256()
    for path in sorted(
        [_PACKAGE / "models/clip_model.py", *_PACKAGE.glob("models/backbones/*.py"), *_PACKAGE.glob("runtimes/*.py")]
    ):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
