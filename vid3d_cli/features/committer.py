"""A thread that writes and syncs finished videos while the next one is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from .entries import FailedVideo, VideoFeatures
from .store import Store

Item: TypeAlias = VideoFeatures | FailedVideo

MAX_WAITING = 8
"""Maximum number of videos that wait for the disk."""


class Committer:
    """Writes videos to a store and commits: one by one, or several at once if the disk is slower than the job.

    The next `put`, or `close`, raises an error of the disk.

    Args:
        store: a store that has begun; no other thread may write to it.
        on_commit: called in the committer's thread with the items that were committed.
    """

    def __init__(self, store: Store, on_commit: Callable[[list[Item]], None] | None = None) -> None:
        self._store = store
        self._on_commit = on_commit
        self._waiting: queue.Queue[Item | None] = queue.Queue(MAX_WAITING)
        self._error: BaseException | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over a video."""
        self._raise_error()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until everything handed over is committed."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        is_last = False
        while not is_last:
            waiting = [self._waiting.get(), *(self._waiting.get() for _ in range(self._waiting.qsize()))]
            is_last = None in waiting
            if not self._has_failed:
                try:
                    self._commit([item for item in waiting if item is not None])
                except BaseException as error:
                    self._error, self._has_failed = error, True

    def _commit(self, items: list[Item]) -> None:
        for item in items:
            if isinstance(item, FailedVideo):
                self._store.write_failure(item)
            else:
                self._store.write(item)
        self._store.commit()
        if self._on_commit is not None:
            self._on_commit(items)

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
