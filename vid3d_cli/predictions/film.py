"""The film: a copy of the video with the current label, its score and a timeline drawn on every frame.

    source → decoder process → frame → band of `overlay` → H.264 ─┬→ MP4
    source → audio packets ────────────────────────────────────────┘

The video is read a second time, for its labels are known only when it was classified. One frame is in memory at a time.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av.container
import av.error

from ..durable import AtomicFile
from ..errors import NotAVideo, OutputError, UsageError
from ..records import FUSED
from ..video import TIMEOUT_SECONDS
from ..video.audio import AudioCopy
from ..video.container import choose_stream, is_rereadable, open_container, time_base
from ..video.pixels import PixelOptions
from ..video.process import Decoders
from ..video.sources import is_url
from ..video.writer import VideoWriter
from .formats import Writer
from .overlay import Overlay

if TYPE_CHECKING:
    from ..results import VideoResult
    from ..segments import Segment

# As players show it: the colours that they guess without tags, no squeezed shapes and, below, no combs.
_PIXELS = PixelOptions(colour_matrix="guess", square_pixels=True)

_log = logging.getLogger(__name__)


class Film(Writer):
    """The whole video as MP4; frames outside the clips have no label."""

    holds_many = False
    is_binary = True

    def write(self, result: VideoResult, name: str) -> None:
        assert self.path is not None and isinstance(self.stream.buffer, AtomicFile)  # it is binary
        _check_source(result.video, self.path)
        segments = result.segments_by(self.choices.rule, [FUSED])
        _log.info("writing %s …", self.path)
        try:
            _write_film(
                self.stream.buffer.part,
                result.video,
                segments,
                result.end_seconds,
                allow_playlists=self.choices.allow_playlists,
            )
        except av.error.FFmpegError as error:  # reading raises errors of our own
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.stream.buffer.seek(0, 2)


def _check_source(video: str, path: Path) -> None:
    if is_url(video) or not Path(video).exists():  # a missing file fails when it is opened
        return
    if not is_rereadable(video):
        raise NotAVideo(video, "a film reads its video a second time, which a pipe or a camera cannot; save it first")
    if path.exists() and path.samefile(video):
        raise UsageError(f"{path}: is the video itself; give the film another name")


def _write_film(
    path: Path, video: str, segments: list[Segment], end_seconds: float, *, allow_playlists: bool = False
) -> None:
    """Write the film.

    Args:
        path: where; the file may exist.
        video: path or URL.
        segments: what to show, in seconds from the first frame.
        end_seconds: least end of the timeline.
        allow_playlists: see `container.open_container`.
    """
    with ExitStack() as stack:
        decoders = stack.enter_context(Decoders(TIMEOUT_SECONDS, allow_playlists=allow_playlists))
        frames = stack.enter_context(decoders.open(video, pixels=_PIXELS))
        if frames.info.is_interlaced:
            frames.close()
            frames = stack.enter_context(decoders.open(video, pixels=_PIXELS._replace(deinterlace=True)))
        info = frames.info
        source = stack.enter_context(open_container(video, allow_playlists=allow_playlists))
        stream = choose_stream(source, video, has_threads=False)
        unit = time_base(stream)
        overlay = Overlay(info.height, info.width, segments, max(end_seconds, info.duration_seconds or 0))
        first_units = stream.start_time or 0
        shift = _find_shift(source, first_units * unit) // unit  # in units, so that all frames stay on them
        writer = VideoWriter(path, fps=Fraction(info.fps), time_base=unit, suffix=".mp4")
        target = writer.open()
        try:
            writer.add_stream(*overlay.size)
            with AudioCopy(video, source, target, shift * unit, allow_playlists=allow_playlists) as audio:
                latest = -1
                for frame in frames:
                    # Damaged frames may have times between the units.
                    units = max(first_units - shift + round(Fraction(frame.seconds) / unit), latest + 1)
                    duration_units = max(1, round(Fraction(frame.end_seconds - frame.seconds) / unit))
                    audio.copy_until(units * unit)
                    writer.write(overlay.draw(frame.rgb, frame.seconds), units, duration_units)
                    latest = units
                audio.copy_until(None)
                writer.finish()
        except BaseException:
            with suppress(av.error.FFmpegError):
                writer.close()
            raise


def _find_shift(source: av.container.InputContainer, first: Fraction) -> Fraction:
    """Return when the video or its audio starts: 0 in most files, but any time in a transport stream."""
    starts = [first, *(s.start_time * time_base(s) for s in source.streams.audio if s.start_time is not None)]
    return max(Fraction(0), min(starts))
