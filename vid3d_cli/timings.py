"""Seconds per stage of a run, added up over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_STAGES = ("decode", "resize", "flow", "network", "waited")


@dataclass
class StageSeconds:
    """Wall-clock seconds per stage. Stages in different threads overlap, so the sum may exceed the run's time."""

    decode: float = 0.0
    """Decoding and conversion to RGB."""
    resize: float = 0.0
    """Resizing, and conversion to grey for flow."""
    flow: float = 0.0
    """Optical flow."""
    network: float = 0.0
    """The networks of all streams."""
    waited: float = 0.0
    """Time that the networks waited for clips."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage; thread-safe."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage; thread-safe."""
        with self._lock:
            setattr(self, stage, getattr(self, stage) + seconds)

    def timed(self, stage: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function with every call timed."""

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.during(stage):
                return function(*args, **kwargs)

        return wrapper

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time to make each one is added to the stage."""
        iterator = iter(items)
        end = object()
        while True:
            with self.during(stage):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def take(self) -> dict[str, float]:
        """Return the seconds of every stage by name, and start again from 0; thread-safe."""
        with self._lock:
            taken = {name: getattr(self, name) for name in _STAGES}
            vars(self).update(dict.fromkeys(_STAGES, 0.0))
        return taken

    def by_stage(self) -> dict[str, float]:
        """Return the seconds of every stage by name, rounded to milliseconds."""
        return {name: round(getattr(self, name), 3) for name in _STAGES}

    @property
    def share_waited(self) -> float:
        """Share of the networks' time spent waiting, 0 to 1."""
        return self.waited / max(self.waited + self.network, 1e-9)

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {getattr(self, name):.1f} s" for name in ("decode", "resize", "flow", "network"))
        return f"{stages}, waited {self.waited:.1f} s ({self.share_waited:.1%})"
