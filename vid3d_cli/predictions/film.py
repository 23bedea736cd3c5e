"""The film: a copy of the video with the current label, its score and a timeline drawn on every frame.

    video → decoder process → frame → band of `overlay` → H.264 ─┬→ MP4
    video → decoder process → audio packets ─────────────────────┘

The video is read a second time, for its labels are known only when it was classified. The decoder reads up to 16 frames
ahead, and the encoder holds a few dozen.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av.error

from ..durable import AtomicFile
from ..errors import NotAVideo, OutputError
from ..records import FUSED
from ..text import printable
from ..video.audio import AudioCopy
from ..video.container import is_rereadable
from ..video.pixels import PixelOptions
from ..video.process import Decoders
from ..video.sources import is_url
from ..video.writer import VideoWriter
from .formats import Choices, Writer
from .overlay import Overlay

if TYPE_CHECKING:
    from ..results import VideoResult
    from ..segments import Segment

# As players show it: the colours that they guess without tags, no squeezed shapes and, below, no combs.
_PIXELS = PixelOptions(colour_matrix="guess", square_pixels=True)

_PROGRESS_SECONDS = 10

_log = logging.getLogger(__name__)


class Film(Writer):
    """The whole video as MP4; frames outside the clips have no label."""

    holds_many = False
    is_binary = True

    def write(self, result: VideoResult, name: str) -> None:
        assert self.path is not None and isinstance(self.stream.buffer, AtomicFile)  # it is binary
        video = result.video
        if not is_url(video) and Path(video).exists() and not is_rereadable(video):
            raise NotAVideo(
                video, "a film reads its video a second time, which a pipe or a camera cannot; save it first"
            )
        segments = result.segments_by(self.choices.rule, [FUSED])
        _log.info("writing %s …", self.path)
        try:
            _write_film(self.stream.buffer.part, video, segments, result.end_seconds, self.choices)
        except av.error.FFmpegError as error:  # reading raises errors of our own
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.stream.buffer.seek(0, 2)


def _write_film(path: Path, video: str, segments: list[Segment], end_seconds: float, choices: Choices) -> None:
    """Write the film.

    Args:
        path: where; the file may exist.
        video: path or URL.
        segments: what to show, in seconds from the first frame.
        end_seconds: least end of the timeline.
        choices: how the video is read.
    """
    with ExitStack() as stack:
        decoders = stack.enter_context(Decoders(choices.timeout, allow_playlists=choices.allow_playlists))
        frames = stack.enter_context(decoders.open(video, pixels=_PIXELS))
        if frames.info.is_interlaced:
            frames.close()
            frames = stack.enter_context(decoders.open(video, pixels=_PIXELS._replace(deinterlace=True)))
        info, unit = frames.info, frames.time_base
        end_seconds = max(end_seconds, info.duration_seconds or 0)
        overlay = Overlay(info.height, info.width, segments, end_seconds)
        audio = AudioCopy(info, decoders)
        # The film starts with the video or its audio: at 0 in most files, but at any time in a transport stream. Whole
        # units, so that all frames stay on them.
        zero_units = int(min(frames.first_units * unit, audio.start) // unit)
        writer = VideoWriter(path, fps=Fraction(info.fps), time_base=unit, suffix=".mp4")
        target = writer.open()
        try:
            writer.add_stream(*overlay.size)
            audio.begin(target, zero_units * unit)
            latest, told = -1, time.monotonic()
            for frame in frames:
                # Damaged frames may have times between the units.
                units = max(frames.first_units - zero_units + round(Fraction(frame.seconds) / unit), latest + 1)
                duration_units = max(1, round(Fraction(frame.end_seconds - frame.seconds) / unit))
                audio.copy_until(units * unit)
                writer.write(overlay.draw(frame.rgb, frame.seconds), units, duration_units)
                latest = units
                if time.monotonic() >= told + _PROGRESS_SECONDS:
                    told = time.monotonic()
                    _log.info("film of %s: %.0f %% written", printable(video), 100 * frame.end_seconds / end_seconds)
            audio.copy_until(None)
            writer.finish()
        except BaseException:
            with suppress(av.error.FFmpegError):
                writer.close()
            raise
