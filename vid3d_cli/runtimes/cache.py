"""A cache on disk of converted networks, and of what else a start without torch needs to know about them.

An entry is a zip file, whose checksums reveal damage. Its name is a digest of everything that determines its contents,
so entries never collide and processes need no lock.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..durable import AtomicFile
from ..errors import OutputError, UsageError
from ..models.digests import cache_dir
from ..version import __version__

_log = logging.getLogger("vid3d_cli")

_PACKAGE = Path(__file__).parent.parent


class NetworkCache:
    """Converted networks in one directory.

    Args:
        directory: created on the first write; None is "openvino" beside the weights.
        max_bytes: size limit; the least recently used entries are deleted. The newest entry always stays.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int = 2 << 30) -> None:
        self._directory = directory or cache_dir() / "openvino"
        self._max_bytes = max_bytes

    def _path(self, key: str) -> Path:
        # Another version of vid3d, or of the files that make the networks, makes other entries.
        key = f"{key} {__version__} {code_digest()}"
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()}.zip"

    def read(self, key: str, *names: str) -> list[bytes] | None:
        """Return files of an entry, or None if it is missing or damaged."""
        path = self._path(key)
        try:
            with zipfile.ZipFile(path) as archive:
                files = [archive.read(name) for name in names]
        except FileNotFoundError:
            return None
        except (OSError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError, ValueError) as error:
            _log.info("ignored %s, which cannot be read: %s", path, error)
            return None
        with contextlib.suppress(OSError):  # a read-only cache is fine
            os.utime(path)
        return files

    def write(self, key: str, files: Mapping[str, bytes]) -> None:
        """Store files, by name, as an entry; a failure is logged, not raised."""
        path = self._path(key)
        try:
            with AtomicFile(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            self._prune(path)
        except (OutputError, OSError) as error:
            _log.info("did not cache the converted network: %s", error)

    def _prune(self, newest: Path) -> None:
        entries = [(entry.stat(), entry) for entry in self._directory.glob("*.zip") if entry != newest]
        room = self._max_bytes - newest.stat().st_size
        for facts, entry in sorted(entries, key=lambda item: item[0].st_mtime, reverse=True):
            room -= facts.st_size
            if room < 0:
                entry.unlink(missing_ok=True)


def use_private_inductor_cache() -> None:
    """Make TorchInductor keep compiled code beside the weights, where only this user can write, unless the user says.

    Its own default, /tmp/torchinductor_NAME, can be made by anybody first, and torch runs the code that it finds there.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        path = cache_dir() / f"inductor-{os.getuid()}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
        is_private = facts.st_uid == os.getuid() and not facts.st_mode & 0o077
    except (OSError, UsageError):  # read-only, or no home directory, as in some containers
        is_private = False
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path if is_private else tempfile.mkdtemp(prefix="vid3d-inductor-"))


@functools.cache
def code_digest() -> str:
    """Return a digest of the source files that build and convert networks."""
    digest = hashlib.sha256()
    networks = ["models/registry.py", "models/*checkpoint.py", "models/clip_model.py", "models/backbones/*.py"]
    for path in sorted(path for pattern in (*networks, "runtimes/*.py") for path in _PACKAGE.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
