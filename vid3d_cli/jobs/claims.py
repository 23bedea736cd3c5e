"""`--claim`: workers that share a directory claim videos one by one, with a file that only one of them can create.

    .claims/.host-12-af.clock   touched regularly while its worker lives
    .claims/1c5f….claim         {"worker": …, "video": …}; touched regularly while its worker lives

A claim that is not touched for a while belongs to a dead worker, and expires. A worker removes its claim once the video
is in its journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..durable import cannot_write, output_errors
from ..errors import UsageError
from ..records import to_json
from ..video.sources import Source, without_password
from .locking import only_one

CLAIMS = ".claims"

_TAKING_OVER = ".taking-over"

STALE_SECONDS = 60.0
"""Claims that are not touched for this long expire."""

BEATS = 6
"""Touches of a claim within `STALE_SECONDS`."""


def worker_name() -> str:
    """Return a name that is unique among all machines, and readable."""
    return f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class Claims:
    """The claims of one worker; leaving its block releases them.

    Args:
        directory: shared by all workers.
        worker: name of this worker.
        stale_seconds: see `STALE_SECONDS`; the same for all workers.
    """

    def __init__(self, directory: Path, worker: str, stale_seconds: float = STALE_SECONDS) -> None:
        self._directory = directory / CLAIMS
        self._worker = worker
        self._clock = self._directory / f".{worker}.clock"
        self._stale_seconds = stale_seconds
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._now()  # while this worker lives, its clock file keeps the directory from being removed
        self._thread.start()

    def take(self, source: Source) -> bool:
        """Claim a video; False if a living worker has it."""
        path = self._path(source)
        if not self._create(path, source) and not self._take_over(path, source):
            return False
        with self._lock:
            self._held.add(path)
        return True

    def holds(self, source: Source) -> bool:
        """Whether this worker still holds the claim; a worker that sleeps for too long loses it."""
        return self._owner(self._path(source)) == self._worker

    def give_back(self, source: Source) -> None:
        """Release a claim: the video is done, failed, or left to other workers."""
        path = self._path(source)
        with self._lock:
            self._held.discard(path)
        if self._owner(path) == self._worker:
            path.unlink(missing_ok=True)

    def _path(self, source: Source) -> Path:
        digest = hashlib.sha256(os.fsencode(str(source.output_stem))).hexdigest()
        return self._directory / f"{digest[:24]}.claim"

    def _create(self, path: Path, source: Source) -> bool:
        """Create the file; False if it exists."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                video = without_password(source.video)
                file.write(to_json({"worker": self._worker, "video": video, "stale_seconds": self._stale_seconds}))
        except FileExistsError:
            return False
        except OSError as error:
            raise cannot_write(path, error) from None
        return True

    def _owner(self, path: Path) -> str | None:
        try:
            return str(json.loads(path.read_text())["worker"])
        except (OSError, ValueError, KeyError):
            return None

    def _is_stale(self, path: Path) -> bool:
        """Whether a claim has expired, by the clock of the file system, which all machines share."""
        with suppress(FileNotFoundError):
            return self._now() - path.stat().st_mtime > max(self._stale_seconds, _stale_seconds_of(path))
        return True

    def _now(self) -> float:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)  # the last of the other workers may have removed it
            if not self._clock.exists():
                self._clock.write_text(to_json({"worker": self._worker, "stale_seconds": self._stale_seconds}))
            os.utime(self._clock)
            return self._clock.stat().st_mtime
        except OSError as error:
            raise cannot_write(self._clock, error) from None

    def _take_over(self, path: Path, source: Source) -> bool:
        """Replace an expired claim; one worker at a time checks and replaces."""
        if not self._is_stale(path):
            return False
        with output_errors(path), only_one(self._directory / _TAKING_OVER):
            if not self._is_stale(path):
                return False
            path.unlink(missing_ok=True)
            return self._create(path, source)

    def _beat(self) -> None:
        while not self._is_over.wait(self._stale_seconds / BEATS):
            with self._lock:
                held = list(self._held)
            for path in (self._clock, *held):
                with suppress(OSError):  # lost claims and full disks are reported elsewhere
                    os.utime(path)

    def close(self) -> None:
        """Release all claims."""
        self._is_over.set()
        with self._lock:
            held = list(self._held)
            self._held.clear()
        for path in held:
            if self._owner(path) == self._worker:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # other workers are still running
            self._remove_traces()
            self._directory.rmdir()

    def _remove_traces(self) -> None:
        """Remove this worker's clock and the files of dead workers."""
        now = self._now()
        for path in self._directory.iterdir():
            if path == self._clock or now - path.stat().st_mtime > max(self._stale_seconds, _stale_seconds_of(path)):
                path.unlink(missing_ok=True)
        if [path.name for path in self._directory.iterdir()] == [_TAKING_OVER]:
            (self._directory / _TAKING_OVER).unlink(missing_ok=True)

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def refuse_living_claims(directory: Path) -> None:
    """Raise UsageError for a directory that --claim workers are writing to.

    It uses the clock of this machine, so it is only an early check; the claims keep workers apart.
    """
    for clock in (directory / CLAIMS).glob("*.clock"):
        with suppress(FileNotFoundError):
            if abs(time.time() - clock.stat().st_mtime) < max(STALE_SECONDS, _stale_seconds_of(clock)):
                raise UsageError(f"{directory}: in use by --claim workers: wait for them, or add --claim")


def _stale_seconds_of(path: Path) -> float:
    """Return the seconds after which the worker of a claim or clock counts as dead."""
    try:
        return float(json.loads(path.read_text())["stale_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
