"""Requests for the facts and the frames of a video, which a decoder process answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..records import Frame
from .pixels import PixelOptions
from .reader import VideoInfo, VideoReader
from .slots import Layout

if TYPE_CHECKING:
    from .child import Parent
    from .process import Answers

_FRAMES_BYTES = 64 * 2**20
"""Memory for the frames of a video, roughly: the decoder process reads this far ahead."""

_MAX_FRAMES_AHEAD = 16


class CountRequest(NamedTuple):
    """Asks for the `VideoInfo` of a video, with counts if `decode`."""

    video: str
    decode: bool
    allow_playlists: bool

    def answer(self, parent: Parent) -> VideoInfo:
        """Return the facts."""
        with VideoReader(self.video, allow_playlists=self.allow_playlists) as reader:
            parent.report(lambda: reader.num_packets_read)
            return reader.count_frames() if self.decode else reader.info


class ReadRequest(NamedTuple):
    """Asks for the frames of a video; the arguments of `VideoReader`."""

    video: str
    fps: Fraction | None
    start_seconds: float
    end_seconds: float | None
    pixels: PixelOptions
    allow_playlists: bool

    def answer(self, parent: Parent) -> int:
        """Send Opened, then every frame; return the number of lost ones."""
        with VideoReader(**self._asdict()) as reader:
            parent.report(lambda: reader.num_packets_read)
            info = reader.info
            num_bytes, latest = info.height * info.width * 3, None
            slots = parent.share(Layout.fit(num_bytes, _FRAMES_BYTES, _MAX_FRAMES_AHEAD))
            parent.send(Opened(info, reader.num_expected_frames, reader.time_base, reader.first_units))
            for frame in reader:
                slot = None
                if frame.rgb is not latest:
                    slot, memory = slots.take(_MAX_FRAMES_AHEAD)
                    memory[:num_bytes].reshape(frame.rgb.shape)[:] = latest = frame.rgb
                    slots.mark_filled(slot)
                parent.send(SentFrame(frame.index, frame.seconds, frame.end_seconds, slot, reader.num_lost_frames))
            return reader.num_lost_frames


class Opened(NamedTuple):
    """The first answer to a `ReadRequest`."""

    info: VideoInfo
    num_expected_frames: int | None
    time_base: Fraction
    first_units: int


class SentFrame(NamedTuple):
    """A `Frame` whose pixels are in shared memory."""

    frame_index: int
    seconds: float
    end_seconds: float
    slot: int | None
    """None: the same pixels as those of the previous frame."""
    num_lost_frames: int


class DecodedVideo(Iterator[Frame]):
    """The frames of a video as `VideoReader` yields them, once.

    A `Frame.rgb` can be kept for any time; if many are kept, they are copies. For threads and errors see `Answers`;
    those of opening are raised by the call.

    Args:
        answers: to a `ReadRequest`.
    """

    info: VideoInfo
    """What the header and the first frame say, without counts."""
    num_expected_frames: int | None
    """Estimate of the number of frames; None if the header says too little."""
    time_base: Fraction
    """Seconds per unit of the file's clock."""
    first_units: int
    """When the first frame is shown, in units of the file's clock."""
    num_lost_frames: int
    """Lost and damaged frames found up to the latest frame; after the last one, all of them."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._rgb: NDArray[np.uint8] | None = None  # of the latest frame
        self.num_lost_frames = 0
        self.info, self.num_expected_frames, self.time_base, self.first_units = next(answers)

    def __next__(self) -> Frame:
        sent: SentFrame | None = next(self._answers, None)
        if sent is None:
            self._rgb = None
            self.num_lost_frames = self._answers.last or self.num_lost_frames
            raise StopIteration
        self.num_lost_frames = sent.num_lost_frames
        if sent.slot is not None:
            shape = self.info.height, self.info.width, 3
            self._rgb = self._answers.borrow(sent.slot)[: math.prod(shape)].reshape(shape)
        assert self._rgb is not None
        return Frame(sent.frame_index, sent.seconds, sent.end_seconds, self._rgb)

    def __enter__(self) -> DecodedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the video; frames that were yielded stay as they are."""
        self._rgb = None
        self._answers.close()
