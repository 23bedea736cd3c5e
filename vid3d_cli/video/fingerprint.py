"""Fingerprints of video files: a job compares them before it skips a video as done."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sources import is_url

ENDS_BYTES = 64 * 1024
"""This much of a file's head and of its tail goes into the digest: containers keep their indexes there."""


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a file and its version without reading all of it."""

    size_bytes: int
    mtime_ns: int
    """Time of the last change, in nanoseconds since 1970."""
    ends_sha256: str
    """Digest of its first and last `ENDS_BYTES`."""

    @classmethod
    def of(cls, video: str) -> Fingerprint | None:
        """Return the fingerprint of a video; None for a URL, a pipe, and a missing or unreadable file."""
        status = _status(video)
        if status is None:
            return None
        digest = hashlib.sha256()
        try:
            with Path(video).open("rb") as file:
                digest.update(file.read(ENDS_BYTES))
                if status.st_size > ENDS_BYTES:
                    file.seek(max(ENDS_BYTES, status.st_size - ENDS_BYTES))
                    digest.update(file.read(ENDS_BYTES))
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns, digest.hexdigest())

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None) -> Fingerprint | None:
        """Return the fingerprint that `dataclasses.asdict` wrote; None for None."""
        return None if fields is None else cls(**fields)

    def may_be(self, video: str) -> bool:
        """Whether size and time of change are the same; quicker than `is_of`, for a check after reading."""
        status = _status(video)
        return status is not None and (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.mtime_ns)

    def is_of(self, video: str) -> bool:
        """Whether the file has this fingerprint; reads it only if size and time are the same."""
        return self.may_be(video) and Fingerprint.of(video) == self


def is_same_file(before: Fingerprint | None, video: str) -> bool:
    """Whether a video has not changed; one without a fingerprint (a URL, no file) must still have none."""
    if before is not None:
        return before.is_of(video)
    return is_url(video) or Fingerprint.of(video) is None


def _status(video: str) -> os.stat_result | None:
    if is_url(video):
        return None
    try:
        status = Path(video).stat()
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None
