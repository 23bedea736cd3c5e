"""Where the time of a run goes: seconds by stage, added up over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class StageSeconds:
    """Wall-clock seconds; stages of different threads overlap, so their sum may exceed the time of the run."""

    decode: float = 0.0
    """Readers: decoding and conversion to RGB."""
    resize: float = 0.0
    """Readers: resizing, and the grey pictures that flow is computed on."""
    flow: float = 0.0
    """Readers: optical flow."""
    network: float = 0.0
    """The networks, all streams."""
    waited: float = 0.0
    """The networks had no clips to work on."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage; any thread may."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        with self._lock:
            setattr(self, stage, getattr(self, stage) + seconds)

    def timed(self, stage: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function, its calls timed."""

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.during(stage):
                return function(*args, **kwargs)

        return wrapper

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the making of each timed."""
        iterator = iter(items)
        end = object()
        while True:
            with self.during(stage):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def by_stage(self) -> dict[str, float]:
        """The seconds of every stage by its name."""
        return {name: round(getattr(self, name), 3) for name in ("decode", "resize", "flow", "network", "waited")}

    @property
    def share_waited(self) -> float:
        """How much of its time the network waited, 0 to 1."""
        return self.waited / max(self.waited + self.network, 1e-9)

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {getattr(self, name):.1f} s" for name in ("decode", "resize", "flow", "network"))
        return f"{stages}, waited {self.waited:.1f} s ({self.share_waited:.1%})"
