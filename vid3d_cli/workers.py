"""The threads that the readers of all videos share for resizing and flow."""

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
    """Does work for readers, and keeps the order that they hand it out in.

    Args:
        num_threads: that work at the same time; 0: whoever hands out work does it himself.
        spent: where the time that each stage takes is added up.
    """

    def __init__(self, num_threads: int = 0, spent: StageSeconds | None = None) -> None:
        self.num_threads = num_threads
        self.spent = StageSeconds() if spent is None else spent
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vid3d worker") if num_threads else None

    def start(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """Hand out a call.

        Args:
            stage: of `StageSeconds`, to which its time counts.
            function: what is called.
            *args: with what.
            **kwargs: with what.

        Returns:
            What waits for its result.
        """
        timed = self.spent.timed(stage, function)
        if self._pool is None:
            result = timed(*args, **kwargs)
            return lambda: result
        return self._pool.submit(timed, *args, **kwargs).result

    def ahead(self, items: Iterable[T], threads_per_item: int = 1) -> Iterator[T]:
        """Draw items earlier than they are asked for, so that as many are in work as keep the threads busy."""
        num_items = math.ceil(self.num_threads / threads_per_item)
        drawn: deque[T] = deque()
        for item in items:
            drawn.append(item)
            if len(drawn) > num_items:
                yield drawn.popleft()
        while drawn:
            yield drawn.popleft()

    def close(self) -> None:
        """End the threads; work that has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
