"""A thread that has the disk hold what is done, while the next video is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from .entries import FailedVideo, VideoFeatures
from .store import FeatureStore

Item: TypeAlias = VideoFeatures | FailedVideo

MAX_WAITING = 8
"""Videos whose features wait for the disk, at most."""


class Committer:
    """Writes to a store and commits: every video by itself, or several at once where the disk is slower than the job.

    An error of the disk is raised by the next `put`, or by `close`.

    Args:
        store: that has begun; no one else writes to it meanwhile.
        on_commit: is told in the thread of what is safe now.
    """

    def __init__(self, store: FeatureStore, on_commit: Callable[[list[Item]], None] | None = None) -> None:
        self._store = store
        self._on_commit = on_commit
        self._waiting: queue.Queue[Item | None] = queue.Queue(MAX_WAITING)
        self._error: BaseException | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over what is known of a video."""
        self._raise_error()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until all that was handed over is safe."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        has_more = True
        while has_more:
            items = self._take_all()
            has_more = None not in items
            if not self._has_failed:
                try:
                    self._commit([item for item in items if item is not None])
                except BaseException as error:
                    self._error, self._has_failed = error, True

    def _take_all(self) -> list[Item | None]:
        """What waits, at least one item."""
        items = [self._waiting.get()]
        while items[-1] is not None:
            try:
                items.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return items

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
