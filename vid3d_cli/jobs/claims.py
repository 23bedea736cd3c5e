"""`--claim`: workers that share a directory take videos one by one, each by a file that only one of them can make.

    .claims/.host-12-af.clock   touched again and again while this worker lives
    .claims/1c5f….claim         {"worker": …, "video": …}; touched again and again while its worker lives

A claim that nobody has touched for a while is of a worker that died, and is taken over. What is done is told by the
journals of all workers: a claim goes when its video is in one.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ..durable import cannot_write
from ..errors import UsageError
from ..records import to_json
from ..video.sources import Source

CLAIMS = ".claims"

_TAKING_OVER = ".taking-over"

STALE_SECONDS = 60.0
"""A worker that has not touched its claims for so long is taken for dead."""

BEATS = 6
"""How often a claim is touched in that time."""


def worker_name() -> str:
    """Unique among all machines, and a person sees whose it is."""
    return f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


class Claims:
    """The claims of one worker; a context manager, whose end gives back what was not done.

    Args:
        directory: that all workers share.
        worker: its name.
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
        self._now()  # as long as we live there is a file of ours: no one removes the directory
        self._thread.start()

    def take(self, source: Source) -> bool:
        """Claim a video, unless another worker that lives has it."""
        path = self._path(source)
        if not self._create(path, source) and not self._take_over(path, source):
            return False
        with self._lock:
            self._held.add(path)
        return True

    def holds(self, source: Source) -> bool:
        """Whether the claim is still ours: a worker that was asleep for too long has lost it."""
        return self._owner(self._path(source)) == self._worker

    def give_back(self, source: Source) -> None:
        """End a claim: the video is done, failed, or left to others."""
        path = self._path(source)
        with self._lock:
            self._held.discard(path)
        if self._owner(path) == self._worker:
            path.unlink(missing_ok=True)

    def _path(self, source: Source) -> Path:
        digest = hashlib.sha256(os.fsencode(str(source.output_stem))).hexdigest()
        return self._directory / f"{digest[:24]}.claim"

    def _create(self, path: Path, source: Source) -> bool:
        """Make the file, or find that there is one."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(
                    to_json({"worker": self._worker, "video": source.video, "stale_seconds": self._stale_seconds})
                )
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
        """By the clock of the file system, which the machines share: a file that we touch now says what time it is."""
        with suppress(FileNotFoundError):
            return self._now() - path.stat().st_mtime > max(self._stale_seconds, _stale_seconds_of(path))
        return True

    def _now(self) -> float:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)  # gone, if we slept while all others came to an end
            if not self._clock.exists():
                self._clock.write_text(to_json({"worker": self._worker, "stale_seconds": self._stale_seconds}))
            os.utime(self._clock)
            return self._clock.stat().st_mtime
        except OSError as error:
            raise cannot_write(self._clock, error) from None

    def _take_over(self, path: Path, source: Source) -> bool:
        """Replace the claim of a dead worker. One worker at a time looks whether it is one and takes it away."""
        if not self._is_stale(path):
            return False
        with self._taking_over():
            if not self._is_stale(path):
                return False
            path.unlink(missing_ok=True)
            return self._create(path, source)

    @contextmanager
    def _taking_over(self) -> Iterator[None]:
        import fcntl

        try:
            with (self._directory / _TAKING_OVER).open("w") as file:
                with suppress(OSError):  # a file system without locks: what `holds` says is all that there is then
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise cannot_write(self._directory / _TAKING_OVER, error) from None

    def _beat(self) -> None:
        while not self._is_over.wait(self._stale_seconds / BEATS):
            with self._lock:
                held = list(self._held)
            for path in (self._clock, *held):
                with suppress(OSError):  # the worker that took it over, or the disk, will be heard of elsewhere
                    os.utime(path)

    def close(self) -> None:
        """Give back all claims."""
        self._is_over.set()
        with self._lock:
            held = list(self._held)
            self._held.clear()
        for path in held:
            if self._owner(path) == self._worker:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # others still work
            self._remove_traces()
            self._directory.rmdir()

    def _remove_traces(self) -> None:
        """Remove our clock, and all that dead workers have left."""
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
    """Raise UsageError for a directory in which workers that claim videos are at work.

    By the clock of this machine, and so only by hours: it is a warning in time, and not what keeps workers apart.
    """
    for clock in (directory / CLAIMS).glob("*.clock"):
        with suppress(FileNotFoundError):
            if abs(time.time() - clock.stat().st_mtime) < max(STALE_SECONDS, _stale_seconds_of(clock)):
                raise UsageError(f"{directory}: workers are at it with --claim: wait for them, or add --claim")


def _stale_seconds_of(path: Path) -> float:
    """After which time its worker wants to be taken for dead."""
    try:
        return float(json.loads(path.read_text())["stale_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
