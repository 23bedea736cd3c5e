"""Dense runs: the network sees every frame about once, and overlapping windows are pooled from what it said.

A network that is convolutional in time gives one vector a step of its last map, I3D one every 8 frames, and a clip's
features are the weighted mean of its steps. Where windows overlap, they share steps:

    frames      0 … 1023, 64 a window, 8 from window to window: 121 windows
    per window  [0, 64) [8, 72) [16, 80) …                     the network sees 121 × 64 = 7744 frames
    dense       [0, 352) [256, 608) [512, 864) [672, 1024)     4 × 352 = 1408 frames

The numbers are not those of the windows one by one: at a window's ends a convolution meets the frames that are there,
and not the zeros of its padding. They are those of a single pass over the whole video: a step that feels the end of a
stretch, save at the ends of the video, is taken from the stretch beside it (`TimeSteps.margin`).

A window starts at a step. Strides that are no multiple of a step need several passes, each of which starts some frames
after the one before: 64/4 of I3D takes two.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..records import ClipOutput, ClipSpan
from .windows import Window, count_clips

T = TypeVar("T")

NEW_FRAMES = 256
"""Frames by which each stretch goes beyond the one before.

A stretch has `2 * margin` more, which are computed twice: I3D computes (256 + 2 × 48) / 256 = 1.4 times the frames.
More new ones would save little of that and cost memory: rgb in fp32 on a CPU takes 2.4 GB in all (OpenVINO 2.8 GB),
against 1.3 GB for clips of 64 frames.
"""


@dataclass(frozen=True)
class TimeSteps:
    """The steps in time of a network's last map."""

    stride: int
    """Frames from one step to the next."""
    margin: int
    """How near, in frames, a step may come to the end of a stretch before it feels what is beyond it: half of the
    receptive field, or so much of it that features move by less than 1e-4 of the largest; a multiple of `stride`."""
    pool: int = 1
    """Steps that the head averages at a time, before it averages those means; more than 1 make the outer steps of a
    clip count less."""

    def weights(self, num_steps: int) -> NDArray[np.float32]:
        """What each step of a clip counts in its features.

        >>> (6 * TimeSteps(stride=8, margin=48, pool=2).weights(4)).round(3).tolist()
        [1.0, 2.0, 2.0, 1.0]
        """
        pool = min(self.pool, num_steps)
        counts = np.convolve(np.ones(num_steps - pool + 1), np.ones(pool))
        weights: NDArray[np.float32] = (counts / counts.sum()).astype(np.float32)
        return weights


@dataclass(frozen=True)
class DensePlan:
    """How a video is cut into stretches, and windows out of these.

    Raises:
        UsageError: windows that are no whole number of steps, or a tail that does not go on where the video ends.
    """

    steps: TimeSteps
    window: int
    """Frames a window."""
    stride: int
    """Frames from one window's start to the next one's."""
    tail: str
    """See `clips.sliding_clips`."""
    new_frames: int = NEW_FRAMES
    """See there; a multiple of the steps' stride."""

    def __post_init__(self) -> None:
        if self.window % self.steps.stride:
            step = self.steps.stride
            near = sorted({max(1, self.window // step) * step, (self.window // step + 1) * step})
            raise UsageError(
                f"a dense run pools steps of {step} frames: it needs a window that is a multiple of {step}, "
                f"such as {' or '.join(map(str, near))}, got {self.window}"
            )
        if self.tail == "loop":
            raise UsageError("a looped tail does not go on where the video ends, as a dense run does: use pad or drop")

    @property
    def phases(self) -> range:
        """Where, within a step, windows start; each costs a pass over the video."""
        return range(0, self.steps.stride, math.gcd(self.stride, self.steps.stride))

    @property
    def length(self) -> int:
        """Frames a stretch."""
        return self.new_frames + 2 * self.steps.margin

    @property
    def times_computed(self) -> float:
        """How often the network sees a frame of a long video."""
        return len(self.phases) * self.length / self.new_frames

    @property
    def times_one_by_one(self) -> float:
        """How often it would with one window after the other."""
        return self.window / self.stride

    @property
    def pays(self) -> bool:
        """Whether these windows are less work together than one by one."""
        return self.times_computed < self.times_one_by_one

    def describe(self) -> str:
        """In words that can be compared, for the recipe."""
        return f"stretches of {self.length} frames, margin {self.steps.margin}"

    def stretches(self, frames: Iterable[T]) -> Iterator[Window[T]]:
        """Cut a stream of frames into stretches, each of a whole number of steps.

        The video ends as its last window does, by repeating its last frame. All stretches but that of a short video
        have one length, for which a compiled network need be made ready but once: the last one begins earlier. At most
        a stretch and a step of frames are held.

        >>> steps = TimeSteps(stride=2, margin=2)
        >>> plan = DensePlan(steps, window=4, stride=2, tail="pad", new_frames=4)
        >>> print(*("".join(stretch.frames) for stretch in plan.stretches("0123456789ABC")))
        01234567 456789AB 6789ABCC

        Args:
            frames: consumed once.
        """
        length, step, num_frames = self.length, self.steps.stride, 0
        held: deque[T] = deque(maxlen=length + step - 1)
        ends = {phase: phase + length for phase in self.phases}  # of the stretch that each phase comes to next
        for frame in self._fill(frames):
            held.append(frame)
            num_frames += 1
            for phase, end in ends.items():
                if end == num_frames:
                    yield Window(end - length, length, list(held)[-length:])
                    ends[phase] += self.new_frames
        for phase, end in ends.items():
            if rest := self._rest(num_frames, phase, end):
                start, last = rest
                yield Window(start, last - start, list(held)[start - num_frames :][: last - start])

    def _rest(self, num_frames: int, phase: int, end: int) -> tuple[int, int] | None:
        """Where the stretch lies that a phase ends with, as `end` was not reached; None: it would show nothing new."""
        step = self.steps.stride
        last = phase + (num_frames - phase) // step * step
        if end == phase + self.length:  # of a short video
            return (phase, last) if last >= phase + self.window else None
        return (last - self.length, last) if last > end - self.new_frames else None

    def _fill(self, frames: Iterable[T]) -> Iterator[T]:
        num_frames = 0
        for frame in frames:
            yield frame
            num_frames += 1
        for _ in range(num_frames, self._count_filled(num_frames)):
            yield frame

    def _count_filled(self, num_frames: int) -> int:
        """How many frames there are when the last window is full."""
        num_clips = count_clips(num_frames, length=self.window, stride=self.stride, tail=self.tail)
        return max(num_frames, (num_clips - 1) * self.stride + self.window) if num_clips else num_frames

    def count_stretches(self, num_frames: int) -> int:
        """How many stretches are cut from so many frames."""
        num_frames = self._count_filled(num_frames)

        def count(phase: int) -> int:
            num_whole = max(0, (num_frames - phase - self.length) // self.new_frames + 1)
            end = phase + self.length + num_whole * self.new_frames
            return num_whole + (self._rest(num_frames, phase, end) is not None)

        return sum(map(count, self.phases))

    def pool(self, stretches: Iterable[ClipOutput], windows: Iterable[ClipSpan]) -> list[ClipOutput]:
        """What the networks would say of windows, from what they said of the stretches of a wholly read video.

        Args:
            stretches: features (…, D, S) and logits (K, S), a column a step.
            windows: as `clips.sliding_clips` cuts them from the same frames.
        """
        step = self.steps.stride

        def phase_of(output: ClipOutput) -> int:
            return output.span.start_frame % step

        in_phases = groupby(sorted(stretches, key=phase_of), phase_of)  # sorting keeps the order of time
        joined = {phase: self._join(list(outputs)) for phase, outputs in in_phases}
        num_steps = self.window // step
        weights = self.steps.weights(num_steps)

        def pool_window(span: ClipSpan) -> ClipOutput:
            first, phase = divmod(span.start_frame, step)
            whole, steps = joined[phase], slice(first, first + num_steps)
            return ClipOutput(
                span,
                {stream: columns[..., steps] @ weights for stream, columns in whole.features.items()},
                {stream: columns[..., steps] @ weights for stream, columns in whole.logits.items()},
            )

        return [pool_window(span) for span in windows]

    def _join(self, outputs: Sequence[ClipOutput]) -> ClipOutput:
        """The stretches of one phase as one: where two overlap, the first gives way to the second at the margin."""
        step, margin = self.steps.stride, self.steps.margin
        starts = [output.span.start_frame for output in outputs]
        ends = [start + margin for start in starts[1:]] + [starts[-1] + outputs[-1].span.num_valid_frames]
        cuts = [
            slice((begin - start) // step, (end - start) // step)
            for start, (begin, end) in zip(starts, pairwise([starts[0], *ends]), strict=True)
        ]

        def join(kind: str, stream: str) -> NDArray[np.float32]:
            parts = [getattr(output, kind)[stream][..., cut] for output, cut in zip(outputs, cuts, strict=True)]
            return np.concatenate(parts, -1)

        return ClipOutput(
            outputs[0].span,
            {stream: join("features", stream) for stream in outputs[0].features},
            {stream: join("logits", stream) for stream in outputs[0].logits},
        )
