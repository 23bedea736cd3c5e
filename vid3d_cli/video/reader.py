"""Reads a video file or URL: upright frames with their times.

    packets → decoded frames → times → start, end, fps → RGB

Damage never ends a video: frames that do not decode are counted and skipped, and the others keep their times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
import av.error
import av.video
from av.video.reformatter import ColorTrc

from ..errors import NoFrames, VideoError
from ..records import Frame
from .clock import FrameClock, Timed, at_ticks, check_span, until_next
from .container import (
    MAX_PIXELS,
    average_rate,
    check_index,
    choose_stream,
    declared_duration,
    is_rereadable,
    open_container,
    pixel_aspect,
    time_base,
)
from .interlacing import deinterlace
from .pixels import PixelOptions
from .rgb import FULL, LIMITED, MATRIX_NAMES, Orientation, RgbConverter
from .sources import is_url

SEEK_FROM_SECONDS = 5.0
"""Below this start, decoding from the beginning is as fast as seeking."""

SEEK_MARGIN_SECONDS = 1.0
"""Seek this much further back: some containers index decoding times, which are earlier than those shown."""

MAX_DEMUX_ERRORS = 100
"""Stop reading after this many read errors without a packet in between."""


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

    Raises:
        VideoError: the video cannot be used; the class says why. The loop raises `NoFrames` if the span is empty.
        UsageError: the span or the frame rate is impossible.
    """

    def __init__(
        self,
        video: str,
        *,
        fps: Fraction | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        pixels: PixelOptions = PixelOptions(),  # noqa: B008  (immutable)
    ) -> None:
        check_span(fps, start_seconds, end_seconds)
        pixels.check()
        self._video = video
        self._fps = None if fps is None else Fraction(fps)
        self._start_seconds = start_seconds
        self._end_seconds = math.inf if end_seconds is None else end_seconds
        self._pass = _Pass(video)
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

        These are packets that do not decode, frames with visible damage and, at the end of the file, frames that the
        index lists (MP4, QuickTime) or the header promises (AVI) beyond the last packet. A cut Matroska, WebM, FLV or
        transport stream does not say how many frames are missing.
        """
        return self._pass.num_lost_frames

    @property
    def num_expected_frames(self) -> int | None:
        """Estimate of the frames of an iteration, for progress bars; None if the header says too little."""
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
        return max(1, math.ceil((end_seconds - self._start_seconds) * fps - 0.01))  # 0.01: header times are rounded

    def count_frames(self) -> VideoInfo:
        """Decode the video to its end, whatever the span, and return `info` with the counts."""
        self._start_pass()
        end = Fraction(0)
        with contextlib.closing(self._pass):
            for frame in self._pass.timed_frames():
                end = frame.end
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
            self._pass = _Pass(self._video)
        self._is_fresh = False

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
            num_frames, end = 0, Fraction(0)
            for shown in shown_frames:
                start_seconds, end = float(shown.start), shown.end
                if start_seconds >= self._end_seconds:
                    break
                # Compared as floats, so that a time that was reported for a frame finds that frame again.
                if start_seconds >= self._start_seconds:
                    yield Frame(num_frames, start_seconds, float(end), self._converter.convert(shown.item))
                    num_frames += 1
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
            self._pass = _Pass(self._video)
        return self._pass.timed_frames()

    def _why_no_frames(self, end_seconds: float) -> str:
        if self._start_seconds >= end_seconds:
            return (
                f"nothing to read from {self._start_seconds:g} s on: "
                f"the video is {end_seconds:.3f} s long; give an earlier start"
            )
        return f"no frame starts between {self._start_seconds:g} s and {self._end_seconds:g} s; give a longer span"


class _DamageError(Exception):
    """A frame was decoded from damaged data."""


class _Pass:
    """One reading of a video: the open container, its decoder and the counts.

    Raises:
        VideoError: the video cannot be opened, or no frame of it decodes.
    """

    def __init__(self, video: str) -> None:
        self.video = video
        self.num_frames_decoded = 0
        self.num_lost_frames = 0
        self.num_packets_read = 0
        self._last_dts: int | None = None  # of the latest packet, in units of the file
        self.container = open_container(video)
        try:
            self._choose_stream(has_threads=is_rereadable(video))
            self.rate = average_rate(self.stream)
            self.declared_duration = declared_duration(self.container, self.stream)
            self.clock = FrameClock(time_base(self.stream), 1 / self.rate, self.declared_duration)
            self._decoded = self._decode(None)
            first = next(self._decoded, None)
            if first is None:
                raise NoFrames(video, self._why_nothing_decodes())
            self.first: av.VideoFrame = first
        except VideoError as error:
            self.container.close()
            check_index(video, error)  # FFmpeg opens what is left of a cut moov box
            raise
        except BaseException:
            self.container.close()
            raise

    def _choose_stream(self, *, has_threads: bool) -> None:
        self.stream = choose_stream(self.container, self.video, has_threads=has_threads)
        self._has_threads = has_threads

    def _why_nothing_decodes(self) -> str:
        if is_url(self.video):
            return (
                "no frame of it decodes from there: it is damaged, or its index is at the end and the server cannot "
                "seek to it; download it first"
            )
        if self.stream.codec_context.width:
            return "no frame of it decodes: the file is damaged or cut off; fetch it again"
        return (
            "no frame of it decodes: the file is damaged or cut off, or its frames are larger than "
            f"{MAX_PIXELS // 10**6} million pixels; fetch it again, or re-encode it smaller"
        )

    def close(self) -> None:
        """Close the container and end the generators of this pass."""
        self._decoded.close()  # before the container: resuming a demuxer without a container crashes the process
        self.container.close()

    def timed_frames(self) -> Iterator[Timed[av.VideoFrame]]:
        """Return all frames with their times."""
        return map(self._timed, self._frames())

    def timed_frames_from(self, start_seconds: float) -> Iterator[Timed[av.VideoFrame]] | None:
        """Return frames with their times, from a keyframe at or before `start_seconds` on.

        Returns:
            None if no such keyframe was found; the pass cannot be used then.
        """
        self._timed(self.first)
        target = self.clock.to_units(max(0.0, start_seconds - SEEK_MARGIN_SECONDS))
        if target is None:
            return None
        self._decoded.close()
        self.clock.restart()
        self._decoded = self._decode(target)
        # Frames shown before the keyframe may refer to frames before the seek, and decode with errors.
        key_frame = next((frame for frame in self._decoded if frame.key_frame), None)
        if key_frame is None or self._units(key_frame) is None:
            return None
        timed = self._timed(key_frame)
        if timed.start > start_seconds:
            return None
        self.first = key_frame
        return itertools.chain([timed], map(self._timed, itertools.islice(self._frames(), 1, None)))

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Yield all frames, and count them."""
        for frame in itertools.chain([self.first], self._decoded):
            self.num_frames_decoded += 1
            yield frame

    def _timed(self, frame: av.VideoFrame) -> Timed[av.VideoFrame]:
        return self.clock.place(frame, self._units(frame), frame.duration)

    def _units(self, frame: av.VideoFrame) -> int | None:
        """Return the time of a frame in the file: PTS, or DTS in AVI, which has no PTS.

        AVI only counts its chunks. FFmpeg guesses PTS from that, and guesses wrong where B-frames are packed (all of
        UCF101): 1 2 4 3 5 7 6, with DTS 1 2 3 4 5 6 7.
        """
        return frame.dts if self.container.format.name == "avi" else frame.pts

    def _decode(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        """Yield every frame that decodes.

        Several threads decode until they meet damage. Then one thread reads the file again and continues after the
        frames already yielded, for two reasons. With frame threads, an error in the last packets loses the frames after
        it, uncounted (35 to 38 of 40 frames are left instead of 39: PyAV cannot continue a decoder that is being
        flushed). With slice threads, FFmpeg does not conceal damage in H.264. A video that cannot be read twice is
        decoded by one thread from the start. Frame threads sometimes yield a visibly damaged frame before they flag it:
        the frame is the same, but it is not counted.

        Args:
            start: begin at a keyframe at or before this time, in units of the file; None for the beginning.
        """
        num_yielded = 0
        if self._has_threads:
            with contextlib.closing(self._decode_undamaged(start)) as frames:
                try:
                    for frame in frames:
                        yield frame
                        num_yielded += 1
                    return
                except (_DamageError, av.error.FFmpegError):
                    pass
            self.container.close()
            self.container = open_container(self.video)
            self._choose_stream(has_threads=False)
        with contextlib.closing(self._decode_around_damage(start)) as frames:
            yield from itertools.islice(frames, num_yielded, None)

    def _decode_undamaged(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        self._seek(start)
        num_missing = 0
        for packet in self._demux():
            num_missing += bool(packet.size) and not packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _DamageError
                num_missing -= 1
                yield frame
        # Threads hide errors in the last packets. In VP8, a missing frame may be one that is never shown: then reading
        # again finds nothing more, and has only cost time.
        if num_missing > 0:
            raise _DamageError
        self.num_lost_frames += self._num_lost_at_end()

    def _decode_around_damage(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        self._seek(start)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.num_lost_frames += 1
                continue
            for frame in frames:
                self.num_lost_frames += frame.is_corrupt
                yield frame

    def _seek(self, start: int | None) -> None:
        if start is not None:
            # A container that cannot seek stays at its beginning; the caller checks the time of the first frame.
            with contextlib.suppress(av.error.FFmpegError):
                self.container.seek(start, stream=self.stream)

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """Yield the packets of the stream and, last, the empty one that flushes the decoder."""
        num_errors = 0  # since the latest packet
        while num_errors < MAX_DEMUX_ERRORS:
            try:
                for packet in self._demux():
                    if packet.size:
                        self.num_lost_frames += num_errors
                        num_errors = 0
                        yield packet
                break
            except (av.error.ExitError, av.error.ConnectionResetError, av.error.TimeoutError):
                break  # the server is gone: asking again would only wait again
            except av.error.FFmpegError:
                num_errors += 1
        # Errors without a later packet may all be about one packet, asked for again and again.
        self.num_lost_frames += max(num_errors > 0, self._num_lost_at_end())
        flush: av.Packet[Any] = av.Packet()
        flush.stream = self.stream
        yield flush

    def _demux(self) -> Iterator[av.Packet[Any]]:
        for packet in self.container.demux(self.stream):
            self.num_packets_read += 1
            self._last_dts = self._last_dts if packet.dts is None else packet.dts
            yield packet

    def _num_lost_at_end(self) -> int:
        """Return how many frames should follow the latest packet; 0 if the file does not say."""
        if self._last_dts is None:
            return 0
        if self.container.format.name == "avi":
            # The header counts frames and empty chunks, as times do. FFmpeg lowers the duration below that count where
            # the file is shorter than it should be.
            is_cut = 0 < (self.stream.duration or 0) < self.stream.frames
            return max(0, self.stream.frames - 1 - self._last_dts) if is_cut else 0
        if "mp4" not in self.container.format.name.split(","):
            return 0  # other indexes list only some frames
        index = self.stream.index_entries
        num_lost = 0
        for number in range(len(index) - 1, -1, -1):
            if index[number].timestamp <= self._last_dts:
                break
            num_lost += not index[number].is_discard  # an edit list may leave frames out
        return num_lost


def _header_info(one_pass: _Pass, converter: RgbConverter) -> VideoInfo:
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
    )
