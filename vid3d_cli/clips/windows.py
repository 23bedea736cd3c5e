"""Cuts frames into sliding or centred clips, and spreads frames over a clip: index arithmetic only."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from math import ceil, floor
from typing import Generic, NamedTuple, TypeVar

from ..errors import UsageError
from ..suggest import check_known

_NUMBER = re.compile(r"0*[1-9][0-9]{0,5}")

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
        raise UsageError(f"--centred repeats the first and the last frame: leave out --centred or --tail {tail}")


class Spread(NamedTuple):
    """Picks frames of a window, evenly from its first frame to its last: floor(linspace(0, length - 1, num_frames)).

    With `span`, as in "32:64", the picks end where those of HERO's extractor end, whose features Moment-DETR, QD-DETR
    and others load. It takes `span` frames at 30 fps for so many of the file's own frames, though it has resampled the
    file to 30 fps before: floor(linspace(0, span * floor(fps of the file) / fps read - 1, num_frames)), and frames
    after the window repeat its last one. With a window of 60 frames at 30 fps, "32:64" ends at frame 31 for a file of
    15 fps, 52 for 25 fps, and from 28.125 fps on at the last one.

    In the last clip of a file, as there, the last frame repeats to a whole second, and that second from then on. Where
    it begins before the clip, as it may with a window of 45 frames, the clip's first frame stands for what is missing.

    The indices are exact. torch.linspace computes in float32 and gives other ones where an exact position is a whole
    number that it rounds down: for 104 of the 8192 pairs of 1 … 128 and 1 … 64 frames, and for none with "32:64" at
    30 fps, window 45 or 60, files of 1 … 120 fps.

    Source: linjieli222/HERO_Video_Feature_Extractor, slowfast/extract_feature/preprocessing.py, get_start_end_idx and
    temporal_sampling; video_loader.py for the fps of the file; mil-nce/preprocessing.py has the same.
    """

    num_frames: int
    """Frames that the network gets."""
    span: int | None = None
    """Frames at 30 fps, in HERO's sense; None for the window."""

    @classmethod
    def parse(cls, text: str | int) -> Spread:
        """Return what a user wrote: "32" or "32:64".

        Raises:
            UsageError: other text.
        """
        numbers = str(text).split(":")
        if len(numbers) > 2 or not all(_NUMBER.fullmatch(number) for number in numbers):
            raise UsageError(f"--spread {text}: give a number of frames (32), or 32:64, see vid3d extract --help-all")
        return cls(*map(int, numbers))

    def __str__(self) -> str:
        return f"{self.num_frames}" if self.span is None else f"{self.num_frames}:{self.span}"

    def indices(self, window: Window[T], file_fps: float, fps: Fraction | float) -> list[int]:
        """Return positions in the frames of a window; they repeat if there are fewer than `num_frames`.

        >>> for window in sliding_clips("0123456789", length=10, stride=10):
        ...     Spread(4).indices(window, 25, 25), Spread(14).indices(window, 25, 25)
        ([0, 3, 6, 9], [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 9])

        Args:
            window: as `sliding_clips` cuts it.
            file_fps: average frame rate of the file.
            fps: frame rate at which it is read.
        """
        length, steps = len(window.frames), max(self.num_frames - 1, 1)
        last = Fraction(length if self.span is None else self.span * floor(file_fps) / Fraction(fps)) - 1
        picked = [min(max(floor(last * i / steps), 0), length - 1) for i in range(self.num_frames)]
        if self.span is None:
            return picked
        second = ceil(fps)
        filled = -(window.start + window.num_valid) // second * -second - window.start
        return [i if i < filled else max(filled - second + (i - filled) % second, 0) for i in picked]
