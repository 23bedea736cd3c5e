"""The contract `Runtime`, and what all runtimes share: clips → batches → streams → views → networks → `ClipOutput`.

Work is started first and waited for later, so that a GPU always has the next batch at hand.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..clips.preprocess import Views
from ..errors import CheckpointError, UsageError
from ..records import Clip, ClipOutput


class Answer(NamedTuple):
    """The outputs of one network for N clips."""

    features: NDArray[np.float32]
    """(N, D), or the shape that a layer's tap takes."""
    logits: NDArray[np.float32]
    """(N, K)."""


class Runtime(ABC):
    """Runs the clip models of a two-stream model.

    Args:
        precision: "fp32", "bf16" or "fp16".
        batch_size: clips per batch, at least 1.

    Raises:
        UsageError: the batch size is below 1.
    """

    name: str
    """The value of `--runtime`."""
    version: str
    """Version of the package that runs the networks."""
    num_in_flight: int = 1
    """Batches to start before waiting for the oldest; 1 if `start` itself does the work."""

    def __init__(self, precision: str, batch_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, got {batch_size}")
        self.precision = precision
        self.batch_size = batch_size

    @property
    @abstractmethod
    def description(self) -> str:
        """Runtime and device, for the recipe."""

    @abstractmethod
    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        """Start the networks on some clips.

        Args:
            clips: of equal shape; more than `batch_size` clips become several batches.

        Returns:
            A function that waits and returns the outputs, one per clip. It holds no clip and need not be called.

        Raises:
            ShapeError: a network cannot take clips of this shape.
            CheckpointError: the streams have different numbers of classes; raised while waiting.
            Vid3dError: out of memory, or the network cannot run here; the message says what to try.
        """

    def run(self, clips: Sequence[Clip]) -> list[ClipOutput]:
        """Return the outputs of some clips, computed one batch at a time; see `start`."""
        outputs: list[ClipOutput] = []
        while len(outputs) < len(clips):
            outputs += self.start(clips[len(outputs) : len(outputs) + self.batch_size])()
        return outputs


class DeviceRuntime(Runtime):
    """A runtime on one device. Subclasses implement `start_stream`.

    Args:
        streams: the streams that have a model.
        precision: "fp32", "bf16" or "fp16".
        batch_size: clips per batch, at least 1.
        views: the crops to run of each clip; None runs clips as they are.

    Raises:
        UsageError: the batch size is below 1.
    """

    def __init__(self, streams: Iterable[str], precision: str, batch_size: int, views: Views | None) -> None:
        super().__init__(precision, batch_size)
        self.streams = tuple(streams)
        self.views = views

    @abstractmethod
    def start_stream(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], list[Answer]]:
        """Start the network of one stream on every view of some clips.

        Args:
            stream: "rgb" or "flow".
            clips: at least one (T, H, W, C) array of uint8, or float32 pixels for flow; all of one shape and type.

        Returns:
            A function that waits and returns the outputs of each view; of one if there are no `views`.
        """

    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        waiting: list[Callable[[], list[ClipOutput]]] = []
        num_started = 0
        while num_started < len(clips):
            batch = clips[num_started : num_started + self.batch_size]
            waiting.append(self._start_batch(batch))
            num_started += len(batch)
        return lambda: [output for wait in waiting for output in wait()]

    def _start_batch(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        spans = [clip.span for clip in clips]
        started = {stream: self.start_stream(stream, [c.streams[stream] for c in clips]) for stream in self.streams}

        def wait() -> list[ClipOutput]:
            answers = {stream: self._join_views(wait()) for stream, wait in started.items()}
            check_classes({stream: answer.logits.shape[1] for stream, answer in answers.items()})
            return [
                ClipOutput(
                    span,
                    {stream: answer.features[i] for stream, answer in answers.items()},
                    {stream: answer.logits[i] for stream, answer in answers.items()},
                )
                for i, span in enumerate(spans)
            ]

        return wait

    def _join_views(self, answers: Sequence[Answer]) -> Answer:
        if self.views is None:
            return answers[0]
        features = np.stack([answer.features for answer in answers], 1)
        logits = np.stack([answer.logits for answer in answers])
        return Answer(features if self.views.are_kept else features.mean(1), logits.mean(0))


class MultiDeviceRuntime(Runtime):
    """Sends batches to several runtimes in turn. Wait for them in the order in which they were started.

    Args:
        runtimes: at least one, all of the same kind and precision, each with its own networks.
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
        """The kinds of devices but not their number, which does not change results."""
        return " and ".join(sorted({runtime.description for runtime in self._runtimes}))

    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        wait = next(self._turns).start(clips)
        # A device that ran out of memory has halved its batch size; the others would run out, too.
        self.batch_size = min(runtime.batch_size for runtime in self._runtimes)
        return wait


def check_classes(num_classes: Mapping[str, int]) -> None:
    """Raise CheckpointError if streams have different numbers of classes: their scores cannot be fused."""
    if len(set(num_classes.values())) > 1:
        counts = ", ".join(f"{stream} {count}" for stream, count in num_classes.items())
        raise CheckpointError(f"the streams have different numbers of classes ({counts}): run one with --streams")
