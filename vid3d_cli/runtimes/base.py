"""What every runtime does alike: clips → batches → streams and their views → the networks → `ClipOutput`.

Work is started first and waited for later, so that a GPU has the next batch at hand when it is done with one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..clips.preprocess import Views
from ..errors import CheckpointError, UsageError
from ..records import Clip, ClipOutput


class Answer(NamedTuple):
    """What a network says of N clips."""

    features: NDArray[np.float32]
    """(N, D), or what a layer's tap takes."""
    logits: NDArray[np.float32]
    """(N, K)."""


class Runtime(ABC):
    """Runs the clip models of a two-stream model; the contract of all runtimes.

    Args:
        precision: "fp32", "bf16" or "fp16".
        batch_size: clips at a time.

    Raises:
        UsageError: a batch of no clips.
    """

    name: str
    """As `--runtime` calls it."""
    version: str
    """Of the package that does the work."""
    num_in_flight: int = 1
    """Batches that are worth having started before the oldest is waited for; 1 where `start` does the work itself."""

    def __init__(self, precision: str, batch_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, got {batch_size}")
        self.precision = precision
        self.batch_size = batch_size

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs where, for the recipe."""

    @abstractmethod
    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        """Give the networks work.

        Args:
            clips: of equal shape; more than `batch_size` become several batches.

        Returns:
            What waits for the features and logits of every clip and stream. It holds no clip, and may be dropped.

        Raises:
            ShapeError: clips that a network cannot take.
            CheckpointError: the streams' scores cannot be fused; when waiting.
            Vid3dError: the machine cannot do it; the message says what to try.
        """

    def run(self, clips: Sequence[Clip]) -> list[ClipOutput]:
        """Start and wait, a batch at a time; see `start`."""
        outputs: list[ClipOutput] = []
        while len(outputs) < len(clips):
            outputs += self.start(clips[len(outputs) : len(outputs) + self.batch_size])()
        return outputs


class DeviceRuntime(Runtime):
    """A runtime of one device: batches → streams → their views.

    Args:
        streams: that there is a model of.
        precision: "fp32", "bf16" or "fp16".
        batch_size: clips at a time.
        views: how many crops of each clip are run, and what becomes of their features; None runs clips as they are.

    Raises:
        UsageError: a batch of no clips.
    """

    def __init__(self, streams: Iterable[str], precision: str, batch_size: int, views: Views | None) -> None:
        super().__init__(precision, batch_size)
        self.streams = tuple(streams)
        self.views = views

    @abstractmethod
    def start_stream(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], Answer]:
        """Give a network work.

        Args:
            stream: whose network.
            clips: (T, H, W, C) uint8 or, of flow, float32 pixels; at least one, all of one shape and type.

        Returns:
            What waits for the answer.
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
        started = {stream: self._start_views(stream, [c.streams[stream] for c in clips]) for stream in self.streams}

        def wait() -> list[ClipOutput]:
            answers = {stream: self._finish_views(waiting) for stream, waiting in started.items()}
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

    def _start_views(self, stream: str, clips: list[NDArray[Any]]) -> list[Callable[[], Answer]]:
        views = [clips] if self.views is None else self.views.cut(clips, is_flow=stream == "flow")
        return [self.start_stream(stream, view) for view in views]

    def _finish_views(self, waiting: Sequence[Callable[[], Answer]]) -> Answer:
        answers = [wait() for wait in waiting]
        if self.views is None:
            return answers[0]
        features = np.stack([answer.features for answer in answers], 1)
        logits = np.stack([answer.logits for answer in answers])
        return Answer(features if self.views.are_kept else features.mean(1), logits.mean(0))


def check_classes(num_classes: Mapping[str, int]) -> None:
    """Raise CheckpointError for streams whose scores cannot be fused."""
    if len(set(num_classes.values())) > 1:
        counts = ", ".join(f"{stream} {count}" for stream, count in num_classes.items())
        raise CheckpointError(f"the streams have different numbers of classes ({counts}): run one with --streams")
