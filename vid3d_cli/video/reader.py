"""Reads a video file or URL: upright frames with their times.

    packets → decoded frames → times → start, end, fps → RGB

Damage never ends a video: frames that do not decode are counted and skipped, and the others keep their times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike, fspath
from types import TracebackType

import av
import av.error
import av.video
from av.video.reformatter import ColorTrc

from ..arguments import checked
from ..errors import DamagedVideo, NoFrames
from ..records import Frame
from .clock import Timed, at_ticks, check_span, describe_end, until_next
from .container import AV_TIME_BASE, pixel_aspect
from .interlacing import deinterlace
from .passes import Pass
from .pixels import PixelOptions
from .rgb import FULL, LIMITED, MATRIX_NAMES, Orientation, RgbConverter

SEEK_FROM_SECONDS = 5.0
"""Below this start, decoding from the beginning is as fast as seeking."""


@dataclass(frozen=True)
class VideoInfo:
    """The facts of a video: from its header and, if it was decoded, counts."""

    video: str
    """Path or URL as it was given."""
    codec: str
    """FFmpeg's name of the decoder: "h264", "mpeg4", "vp9"."""
    width: int
    """Pixels of an upright frame (rotation applied)."""
    height: int
    """Pixels of an upright frame (rotation applied)."""
    rotation_degrees: int
    """Clockwise turn that makes stored frames upright: 0, 90, 180 or 270."""
    fps: float
    """Average frames per second, from the header."""
    duration_seconds: float | None
    """From the header, else from the decoded frames; None if neither is known."""
    num_frames_declared: int | None
    """From the header; None if the container does not say."""
    num_frames_decoded: int | None
    """Counted; None if not decoded."""
    num_lost_frames: int | None
    """Frames that are lost or visibly damaged, see `VideoReader.num_lost_frames`; None if not decoded."""
    size_bytes: int | None
    """Size of the file; None for a URL whose server does not say."""
    container: str
    """FFmpeg's name of the container format: "mov,mp4,m4a,3gp,3g2,mj2"."""
    pixel_format: str
    """FFmpeg's name of how pixels are stored: "yuv420p"."""
    bit_depth: int
    """Bits of a colour component."""
    has_alpha: bool
    """Whether there is transparency; vid3d drops it."""
    colour_matrix: str | None
    """FFmpeg's name of the tagged YUV matrix: "bt709"; None without a tag."""
    colour_range: str | None
    """The tagged range: "limited" or "full"; None without a tag."""
    transfer: str | None
    """FFmpeg's name of the tagged transfer: "smpte2084" (PQ) and "arib_std_b67" (HLG) are HDR; None without a tag."""
    is_interlaced: bool
    """Whether the first frame is interlaced."""
    pixel_aspect: float
    """How wide a pixel is, as a multiple of its height; 1 if the file does not say."""
    start_offset_seconds: float
    """When the first frame appears after the start of the file, which may be that of its sound; all other times are
    relative to the first frame."""
    has_audio: bool
    """Whether there is sound."""

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer is that of HDR, PQ or HLG."""
        return self.transfer in ("smpte2084", "arib_std_b67")


class VideoReader:
    """Iterates over the frames of a video, resampled to a frame rate.

        with VideoReader("video.mp4", fps=Fraction(25), start_seconds=60, end_seconds=70) as reader:
            for frame in reader: ...

    Opening decodes one frame, so an unreadable file fails before the loop. Every iteration reads the file again. Not
    thread-safe: close it in the thread that iterates.

    Args:
        video: path or URL.
        fps: yield the frame shown at every tick k/fps; None for the frames as they are.
        start_seconds: skip frames that start earlier; times stay those of the file.
        end_seconds: skip frames that start at this time or later.
        pixels: how to convert frames to RGB.
        allow_playlists: see `container.open_container`.

    Raises:
        VideoError: the video cannot be used; the class says why. The loop raises `NoFrames` if the span is empty.
        UsageError: the span or the frame rate is impossible.
    """

    @checked
    def __init__(
        self,
        video: str | PathLike[str],
        *,
        fps: Fraction | float | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        pixels: PixelOptions = PixelOptions(),  # noqa: B008  (immutable)
        allow_playlists: bool = False,
    ) -> None:
        check_span(fps, start_seconds, end_seconds)
        pixels.check()
        self._video = video = fspath(video)
        self._fps = None if fps is None else Fraction(fps)
        self._start_seconds = start_seconds
        self._end_seconds = math.inf if end_seconds is None else end_seconds
        self._allow_playlists = allow_playlists
        self._pass = self._open()
        self._is_fresh = True  # the first iteration uses the pass that opening began
        self._deinterlaces = pixels.deinterlace
        self._converter = RgbConverter(video, self._pass.first, pixel_aspect(self._pass.stream), pixels)
        self._info = _header_info(self._pass, self._converter)
        # Weak, so that an iteration that is dropped half-way ends at once and closes the file.
        self._iterator: weakref.ref[Generator[Frame, None, None]] | None = None

    @property
    def info(self) -> VideoInfo:
        """What the header and the first frame say, without counts."""
        return self._info

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of the file's clock."""
        return self._pass.clock.time_base

    @property
    def first_units(self) -> int:
        """When the first frame is shown, in units of the file's clock."""
        return self._pass.first_units

    @property
    def num_frames_decoded(self) -> int:
        """Frames that the latest iteration has decoded so far, yielded or not."""
        return self._pass.num_frames_decoded

    @property
    def num_packets_read(self) -> int:
        """Packets that the latest iteration has read so far, including those read again after damage."""
        return self._pass.num_packets_read

    @property
    def num_lost_frames(self) -> int:
        """Lost or damaged frames that the latest iteration has found so far.

        These are packets that do not decode or never become a frame, frames with visible damage and, at the end of the
        file, frames that the index lists (MP4, QuickTime) or the header promises (AVI) beyond the last packet. In a
        transport stream, these are also the frames that fit into a gap near damage. Missing frames are counted at the
        end of the iteration. A cut Matroska, WebM, FLV or transport stream does not say how many frames are missing.
        """
        return self._pass.num_lost_frames

    @property
    def num_expected_frames(self) -> int | None:
        """About how many frames an iteration yields, from the header; None if it says too little."""
        info = self._info
        if (
            self._start_seconds <= 0
            and self._end_seconds == math.inf
            and self._fps is None
            and info.num_frames_declared
        ):
            return info.num_frames_declared
        seconds = info.duration_seconds
        if seconds is None and info.num_frames_declared:
            seconds = info.num_frames_declared / info.fps
        end_seconds = min(self._end_seconds, math.inf if seconds is None else seconds)
        if end_seconds == math.inf:
            return None
        fps = info.fps if self._fps is None else float(self._fps)
        first, end = (math.ceil(seconds * fps - 0.01) for seconds in (self._start_seconds, end_seconds))
        return max(1, end - first)  # 0.01: header times are rounded

    def count_frames(self) -> VideoInfo:
        """Decode the video to its end, whatever the span, and return `info` with the counts."""
        self._start_pass()
        end = Fraction(0)
        with contextlib.closing(self._pass):
            for frame in self._pass.timed_frames():
                end = frame.end
            with contextlib.suppress(DamagedVideo):  # the counts tell
                self._pass.count_lost(at_end=True)
        duration_seconds = self._info.duration_seconds
        return dataclasses.replace(
            self._info,
            duration_seconds=float(end) if duration_seconds is None else duration_seconds,
            num_frames_decoded=self._pass.num_frames_decoded,
            num_lost_frames=self._pass.num_lost_frames,
        )

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a running iteration and close the file."""
        self._end_iteration()
        self._pass.close()
        self._is_fresh = False

    def __iter__(self) -> Iterator[Frame]:
        self._start_pass()
        iterator = self._read()
        self._iterator = weakref.ref(iterator)
        return iterator

    def _start_pass(self) -> None:
        self._end_iteration()
        if not self._is_fresh:
            self._pass = self._open()
        self._is_fresh = False

    def _open(self) -> Pass:
        return Pass(self._video, allow_playlists=self._allow_playlists)

    def _end_iteration(self) -> None:
        iterator = None if self._iterator is None else self._iterator()
        if iterator is not None:
            iterator.close()

    def _read(self) -> Generator[Frame, None, None]:
        """Yield the frames of the span; closing this generator closes the file."""
        try:
            frames = self._timed_frames()
            if self._deinterlaces:
                frames = deinterlace(self._video, frames)
            shown_frames = (
                until_next(frames)
                if self._fps is None
                else at_ticks(frames, fps=self._fps, clock_unit=self._pass.clock.time_base)
            )
            num_frames, end, is_over = 0, Fraction(0), True
            for shown in shown_frames:
                start_seconds, end = float(shown.start), shown.end
                if start_seconds >= self._end_seconds:
                    is_over = False
                    break
                # Compared as floats, so that a time that was reported for a frame finds that frame again.
                if start_seconds >= self._start_seconds:
                    end_seconds = min(float(end), self._end_seconds)
                    yield Frame(num_frames, start_seconds, end_seconds, self._converter.convert(shown.item))
                    num_frames += 1
            self._pass.count_lost(at_end=is_over)
            if not num_frames:
                raise NoFrames(self._video, self._why_no_frames(float(end)))
        finally:
            self._pass.close()

    def _timed_frames(self) -> Iterator[Timed[av.VideoFrame]]:
        """Return the decoded frames with their times, from a keyframe before the start on."""
        if self._start_seconds >= SEEK_FROM_SECONDS:
            frames = self._pass.timed_frames_from(self._start_seconds)
            if frames is not None:
                return frames
            self._pass.close()
            self._pass = self._open()
        return self._pass.timed_frames()

    def _why_no_frames(self, end_seconds: float) -> str:
        if self._start_seconds >= end_seconds:
            return describe_end(self._start_seconds, end_seconds)
        return f"no frame starts between {self._start_seconds:g} s and {self._end_seconds:g} s; give a longer span"


def _start_offset(one_pass: Pass) -> float:
    in_file = one_pass.container.start_time
    if in_file is None:
        return 0.0
    return max(0.0, float(one_pass.first_units * one_pass.clock.time_base) - in_file / AV_TIME_BASE)


def _header_info(one_pass: Pass, converter: RgbConverter) -> VideoInfo:
    container, stream, first = one_pass.container, one_pass.stream, one_pass.first
    components = first.format.components
    height, width = converter.size
    return VideoInfo(
        video=one_pass.video,
        codec=stream.codec_context.name,
        width=width,
        height=height,
        rotation_degrees=Orientation.of(first).rotation_degrees,
        fps=float(one_pass.rate),
        duration_seconds=None if one_pass.declared_duration is None else float(one_pass.declared_duration),
        num_frames_declared=stream.frames or None,
        num_frames_decoded=None,
        num_lost_frames=None,
        size_bytes=container.size if container.size and container.size > 0 else None,  # negative: unknown to PyAV 18
        container=container.format.name,
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in components),
        has_alpha=any(component.is_alpha for component in components),
        colour_matrix=MATRIX_NAMES.get(first.colorspace),
        colour_range={LIMITED: "limited", FULL: "full"}.get(first.color_range),
        transfer={trc.value: trc.name.lower() for trc in ColorTrc if trc.name != "UNSPECIFIED"}.get(first.color_trc),
        is_interlaced=first.interlaced_frame,
        pixel_aspect=float(pixel_aspect(stream)),
        start_offset_seconds=_start_offset(one_pass),
        has_audio=bool(container.streams.audio),
    )
