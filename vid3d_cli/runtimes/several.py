"""Several devices as one: each has the networks, and batches go to them in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from ..records import Clip, ClipOutput
from .base import Runtime


class SeveralRuntime(Runtime):
    """Hands batches to runtimes in turn; to whoever waits in the order of starting they are one runtime.

    Args:
        runtimes: at least one, of one kind and precision.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        first = runtimes[0]
        super().__init__(first.precision, first.batch_size)
        self.name, self.version = first.name, first.version
        self.num_in_flight = sum(runtime.num_in_flight for runtime in runtimes)
        self._runtimes = runtimes
        self._turns = itertools.cycle(runtimes)

    @property
    def description(self) -> str:
        """What runs where, but not how often: the numbers do not depend on it."""
        return " and ".join(sorted({runtime.description for runtime in self._runtimes}))

    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        wait = next(self._turns).start(clips)
        # One that ran out of memory has halved its batches, and the others would, too.
        self.batch_size = min(runtime.batch_size for runtime in self._runtimes)
        return wait
