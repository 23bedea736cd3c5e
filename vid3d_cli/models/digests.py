"""Digests of files. A file is hashed once: the cache keeps its digests, under what changes with its content.

digests/DEVICE-INODE-BYTES-MTIME-CTIME  →  {"sha256": …, "git_blob": …}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from ..durable import AtomicFile
from ..errors import OutputError, UsageError, WeightsUnavailable
from .manifest import WeightsFile

_CHUNK_BYTES = 1 << 20

_SETTLED_SECONDS = 2.0
"""Age from which a file's digests are kept on disk: a younger one could change again without another time of change."""


def cache_dir() -> Path:
    """Return $VID3D_CACHE, else $XDG_CACHE_HOME/vid3d, else ~/.cache/vid3d. The directory need not exist."""
    try:
        if own := os.environ.get("VID3D_CACHE"):
            return Path(own).expanduser().absolute()
        if xdg := os.environ.get("XDG_CACHE_HOME"):
            return Path(xdg).expanduser().absolute() / "vid3d"
        return Path("~/.cache/vid3d").expanduser()
    except RuntimeError as error:  # a user without a home directory, as in some containers
        raise UsageError(f"no directory for weights ({error}): set VID3D_CACHE to a directory") from None


@dataclass(frozen=True)
class Digests:
    """What identifies the content of a file."""

    size_bytes: int
    git_blob: str
    sha256: str

    def fits(self, file: WeightsFile) -> bool:
        """Whether this is the content that the manifest names."""
        return (
            file.size_bytes in (None, self.size_bytes)
            and file.git_blob in (None, self.git_blob)
            and self.sha256.startswith(file.sha256 or "")
        )

    def compare(self, file: WeightsFile) -> str:
        """Return the lines of an error: expected and found, for every fact that the manifest holds."""
        rows = [
            ("size", None if file.size_bytes is None else f"{file.size_bytes} bytes", f"{self.size_bytes} bytes"),
            ("git blob", file.git_blob, self.git_blob),
            ("sha256", file.sha256, self.sha256),
        ]
        return "\n".join(
            f"  {what + ':':<10}expected {expected}\n{'':<12}found    {found}"
            for what, expected, found in rows
            if expected is not None
        )


_known: dict[str, Digests] = {}
"""The digests that this process has seen, by `_name`."""


def _name(facts: os.stat_result) -> str:
    """Return what changes with the content of a file; the last time also changes where the first is put back."""
    return f"{facts.st_dev}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def _find(name: str) -> Digests | None:
    """Return known digests, from this process or an earlier one."""
    if name not in _known:
        # No entry, or a damaged one: the file is hashed.
        with contextlib.suppress(OSError, ValueError, TypeError, UsageError):
            _known[name] = Digests(**json.loads((cache_dir() / "digests" / name).read_bytes()))
    return _known.get(name)


def _keep(facts: os.stat_result, digests: Digests) -> None:
    name = _name(facts)
    _known[name] = digests
    is_settled = time.time() - max(facts.st_mtime, facts.st_ctime) > _SETTLED_SECONDS
    # Whole seconds are the times of an image (squashfs) or an object store, which may be the same for every version.
    if is_settled and facts.st_ctime_ns % 1_000_000_000:
        with contextlib.suppress(OutputError, UsageError), AtomicFile(cache_dir() / "digests" / name) as out:
            out.write(json.dumps(asdict(digests)).encode())


def digest_path(path: Path, *, afresh: bool = False) -> Digests:
    """Return the digests of a file; one that has not changed since it was hashed is not opened.

    Args:
        path: the file.
        afresh: hash it, whatever is known of it.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    try:
        facts = path.stat()
        digests = None if afresh else _find(_name(facts))
        if digests is None:
            with path.open("rb") as stream:
                digests = digest_stream(stream)
            _keep(facts, digests)
        return digests
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error.strerror}") from error


def digest_stream(stream: BinaryIO) -> Digests:
    """Return the digests of an open file."""
    size_bytes = os.fstat(stream.fileno()).st_size
    # usedforsecurity: git chose SHA-1, and FIPS builds of Python refuse it otherwise
    blob = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    sha256 = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(_CHUNK_BYTES):
        blob.update(chunk)
        sha256.update(chunk)
    return Digests(size_bytes, blob.hexdigest(), sha256.hexdigest())


def file_sha256(path: Path) -> str:
    """Return the sha256 of any file, 64 hex digits; see `digest_path`."""
    return digest_path(path).sha256
