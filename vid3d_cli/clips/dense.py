"""Dense runs: the network sees each frame about once, and the features of overlapping windows are pooled from that.

A network that is convolutional in time gives one vector per step of its last map, in I3D one every 8 frames. The
features of a clip are the weighted mean of its steps. Overlapping windows share steps:

    frames      0 … 1023, window 64, stride 8: 121 windows
    per window  [0, 64) [8, 72) [16, 80) …                     the network sees 121 × 64 = 7744 frames
    dense       [0, 352) [256, 608) [512, 864) [672, 1024)     4 stretches × 352 = 1408 frames

Results differ from those of separate windows: at the ends of a window, convolutions see the neighbouring frames rather
than zero padding. They equal those of a single pass over the whole video. A step within `TimeSteps.margin` of the end
of a stretch depends on frames beyond that end; it is taken from the neighbouring stretch, except at the ends of the
video.

A window starts at a step. A stride that is not a multiple of a step needs several passes, each offset by some frames:
I3D with window 64 and stride 4 needs two.
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
from ..models.registry import TimeSteps
from ..records import ClipOutput, ClipSpan
from .windows import Window, count_clips

T = TypeVar("T")

NEW_FRAMES = 256
"""New frames per stretch.

Each stretch has `2 * margin` more frames, which are computed twice: I3D computes (256 + 2 × 48) / 256 = 1.4 times the
frames. Longer stretches would save little and take more memory: rgb in fp32 on a CPU takes 2.4 GB (OpenVINO 2.8 GB),
against 1.3 GB for clips of 64 frames.
"""


@dataclass(frozen=True)
class DensePlan:
    """Cuts a video into stretches, and pools the features of windows from those of stretches.

    Raises:
        UsageError: the window is not a multiple of a step, or the tail is "loop".
    """

    steps: TimeSteps
    window: int
    """Frames per window."""
    stride: int
    """Frames from the start of one window to the start of the next."""
    tail: str
    """"pad" or "drop"; see `windows.sliding_clips`."""
    new_frames: int = NEW_FRAMES
    """New frames per stretch, a multiple of `steps.stride`."""

    def __post_init__(self) -> None:
        if self.window % self.steps.stride:
            step = self.steps.stride
            near = sorted({max(1, self.window // step) * step, (self.window // step + 1) * step})
            raise UsageError(
                f"--dense pools steps of {step} frames: choose a window that is a multiple of {step}, "
                f"such as {' or '.join(map(str, near))}, got {self.window}"
            )
        if self.tail == "loop":
            raise UsageError("--dense cannot loop the tail, since it runs the video in one piece: use pad or drop")

    @property
    def phases(self) -> range:
        """Frame offsets within a step at which windows start; each needs a pass over the video."""
        return range(0, self.steps.stride, math.gcd(self.stride, self.steps.stride))

    @property
    def length(self) -> int:
        """Frames per stretch."""
        return self.new_frames + 2 * self.steps.margin

    @property
    def times_computed(self) -> float:
        """How often the network computes each frame of a long video."""
        return len(self.phases) * self.length / self.new_frames

    @property
    def times_one_by_one(self) -> float:
        """How often it would compute each frame without a dense run."""
        return self.window / self.stride

    @property
    def pays(self) -> bool:
        """Whether a dense run is less work than separate windows."""
        return self.times_computed < self.times_one_by_one

    def describe(self) -> str:
        """Return the plan in words, for the recipe."""
        return f"stretches of {self.length} frames, margin {self.steps.margin}"

    def stretches(self, frames: Iterable[T]) -> Iterator[Window[T]]:
        """Cut a stream of frames into stretches, each a whole number of steps long.

        The last frame repeats until the last window is full. All stretches have the same length, so that a network is
        compiled once; to that end the last one starts earlier. A video shorter than a stretch gives a shorter one. At
        most a stretch and a step of frames are held in memory.

        >>> steps = TimeSteps(stride=2, margin=2)
        >>> plan = DensePlan(steps, window=4, stride=2, tail="pad", new_frames=4)
        >>> print(*("".join(stretch.frames) for stretch in plan.stretches("0123456789ABC")))
        01234567 456789AB 6789ABCC

        Args:
            frames: read once.
        """
        length, step, num_frames = self.length, self.steps.stride, 0
        held: deque[T] = deque(maxlen=length + step - 1)
        ends = {phase: phase + length for phase in self.phases}  # end of the next stretch of each phase
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
        """Return (start, end) of the last stretch of a phase if it shows new frames; `end` is the end not reached."""
        step = self.steps.stride
        last = phase + (num_frames - phase) // step * step
        if end == phase + self.length:  # a short video
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
        """Return the number of frames after the last one has repeated to fill the last window."""
        num_clips = count_clips(num_frames, length=self.window, stride=self.stride, tail=self.tail)
        return max(num_frames, (num_clips - 1) * self.stride + self.window) if num_clips else num_frames

    def count_stretches(self, num_frames: int) -> int:
        """Return how many stretches `stretches` cuts from this many frames."""
        num_frames = self._count_filled(num_frames)

        def count(phase: int) -> int:
            num_whole = max(0, (num_frames - phase - self.length) // self.new_frames + 1)
            end = phase + self.length + num_whole * self.new_frames
            return num_whole + (self._rest(num_frames, phase, end) is not None)

        return sum(map(count, self.phases))

    def pool(self, stretches: Iterable[ClipOutput], windows: Iterable[ClipSpan]) -> list[ClipOutput]:
        """Return the outputs of windows, pooled from the outputs of all stretches of a video.

        Args:
            stretches: features (…, D, S) and logits (K, S), one column per step, in time order.
            windows: the spans that `windows.sliding_clips` cuts from the same frames.
        """
        step = self.steps.stride

        def phase_of(output: ClipOutput) -> int:
            return output.span.start_frame % step

        in_phases = groupby(sorted(stretches, key=phase_of), phase_of)  # a stable sort keeps the time order
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
        """Join the stretches of one phase; where two overlap, the second one takes over at its margin."""
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
