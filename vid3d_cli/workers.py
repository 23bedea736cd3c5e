"""Threads for resizing and flow, shared by the readers of all videos."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from .timings import StageSeconds

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A pool of threads.

    Args:
        num_threads: threads in the pool; 0 does the work in the calling thread.
        spent: adds up the time of each stage.
    """

    def __init__(self, num_threads: int = 0, spent: StageSeconds | None = None) -> None:
        self.num_threads = num_threads
        self.spent = StageSeconds() if spent is None else spent
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vid3d worker") if num_threads else None

    def start(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """Start a call and return a function that waits for its result.

        Args:
            stage: the field of `StageSeconds` that its time is added to.
            function: the function to call.
            *args: its arguments.
            **kwargs: its keyword arguments.
        """
        timed = self.spent.timed(stage, function)
        if self._pool is None:
            result = timed(*args, **kwargs)
            return lambda: result
        return self._pool.submit(timed, *args, **kwargs).result

    def ahead(self, items: Iterable[T], threads_per_item: int = 1) -> Iterator[T]:
        """Yield items, drawn far enough ahead to keep all threads busy."""
        num_items = math.ceil(self.num_threads / threads_per_item)
        drawn: deque[T] = deque()
        for item in items:
            drawn.append(item)
            if len(drawn) > num_items:
                yield drawn.popleft()
        while drawn:
            yield drawn.popleft()

    def close(self) -> None:
        """Stop the threads and drop work that has not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
