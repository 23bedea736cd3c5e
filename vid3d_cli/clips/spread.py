"""Picks the frames of a window that the network gets: index arithmetic only."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

from ..errors import UsageError
from .windows import Window

_NUMBER = re.compile(r"0*[1-9][0-9]{0,5}")


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
            raise UsageError(f"--spread {text}: give a number of frames (32), or 32:64, see docs/video.md")
        return cls(*map(int, numbers))

    def __str__(self) -> str:
        return f"{self.num_frames}" if self.span is None else f"{self.num_frames}:{self.span}"

    def indices(self, window: Window[Any], file_fps: float, fps: Fraction | float) -> list[int]:
        """Return positions in the frames of a window; they repeat if there are fewer than `num_frames`.

        >>> from vid3d_cli.clips.windows import sliding_clips
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
