"""Cuts frames into sliding or centred clips: index arithmetic only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Generic, TypeVar

from ..errors import UsageError
from ..suggest import check_known

T = TypeVar("T")

TAILS = ("pad", "drop", "loop")
"""How the last frames fill a clip: repeat the last frame, drop them, or repeat them in turn."""


@dataclass(frozen=True)
class Window(Generic[T]):
    """Consecutive frames and their position in the video."""

    start: int
    """Index of the first real frame."""
    num_valid: int
    """Number of real frames."""
    frames: list[T]
    """`length` frames, real ones and repeats of these at the ends of the video."""


def sliding_clips(
    frames: Iterable[T], *, length: int, stride: int, tail: str = "pad", centred: bool = False
) -> Iterator[Window[T]]:
    """Cut a stream of frames into clips of `length` frames, one every `stride` frames.

        frames 012345678, length 4, stride 2 →  0123  2345  4567  6788
        tail="drop"                          →  0123  2345  4567
        tail="loop"                          →  0123  2345  4567  6786

    A tail clip is made only if it shows a frame that no clip has shown. A stream shorter than one clip is one clip,
    whatever the tail, so that a short video always has a result. At most `length` frames are held in memory.

    Centred clips have a stride-th frame in the middle each, and repeat the first and the last frame:

        frames 012345678, length 3, stride 2 →  001  123  345  567  788

    >>> for tail in TAILS:
    ...     print(*("".join(w.frames) for w in sliding_clips("012345678", length=4, stride=2, tail=tail)))
    0123 2345 4567 6788
    0123 2345 4567
    0123 2345 4567 6786

    Args:
        frames: read once.
        length: frames per clip, at least 1.
        stride: frames from the start of one clip to the start of the next, at least 1; above `length` it leaves gaps.
        tail: one of `TAILS`.
        centred: clip k shows frames k * stride - length // 2 and so on, ceil(number of frames / stride) clips in all.
            A clip of even length has one frame more before the middle than after it.

    Raises:
        UsageError: see `check_clip_options`.
    """
    check_clip_options(length, stride, tail, centred=centred)
    if centred:
        repeated = _repeat_edges(frames, length // 2, length - 1 - length // 2)
        # map holds no window while the next one fills
        yield from map(_without_edges, sliding_clips(repeated, length=length, stride=stride, tail="drop"))
        return
    held: deque[T] = deque()  # frames from `start` on
    start = num_to_skip = num_unseen = 0
    for frame in frames:
        if num_to_skip:
            num_to_skip -= 1
            continue
        held.append(frame)
        num_unseen += 1
        if len(held) == length:
            yield Window(start, length, list(held))
            start, num_unseen, num_to_skip = start + stride, 0, max(stride - length, 0)
            for _ in range(min(stride, length)):
                held.popleft()
    if num_unseen and (tail != "drop" or start == 0):
        yield Window(start, len(held), _fill(list(held), length, tail))


def _fill(frames: list[T], length: int, tail: str) -> list[T]:
    if tail == "loop":
        return [frames[i % len(frames)] for i in range(length)]
    return frames + [frames[-1]] * (length - len(frames))


def _repeat_edges(frames: Iterable[T], before: int, after: int) -> Iterator[tuple[int, T]]:
    """Yield (index, frame) of every frame, the first and the last one several times more."""
    num_frames = 0  # enumerate would hold the first frame to the end
    for frame in frames:
        yield from repeat((num_frames, frame), 1 if num_frames else before + 1)
        num_frames += 1
    if num_frames:
        yield from repeat((num_frames - 1, frame), after)


def _without_edges(window: Window[tuple[int, T]]) -> Window[T]:
    first, last = window.frames[0][0], window.frames[-1][0]
    return Window(first, last + 1 - first, [frame for _, frame in window.frames])


def count_clips(num_frames: int, *, length: int, stride: int, tail: str = "pad", centred: bool = False) -> int:
    """Return how many clips `sliding_clips` cuts from this many frames."""
    if centred:
        return -(-num_frames // stride)
    if num_frames <= length:
        return min(num_frames, 1)
    num_whole = (num_frames - length) // stride + 1
    last_end, next_start = (num_whole - 1) * stride + length, num_whole * stride
    return num_whole + (tail != "drop" and max(last_end, next_start) < num_frames)


def check_clip_options(length: int, stride: int, tail: str, *, centred: bool = False) -> None:
    """Raise UsageError if the length or stride is below 1, or the tail is unknown or does not fit centred clips."""
    if length < 1 or stride < 1:
        raise UsageError(f"window and stride must be at least 1 frame, got window {length} and stride {stride}")
    check_known(tail, TAILS, f"unknown tail '{tail}'")
    if centred and tail != "pad":
        raise UsageError("--centred repeats the first and the last frame: give --no-centred, or --tail pad")
