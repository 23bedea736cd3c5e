"""A video file or URL → its frames, upright, with their times: the only place that knows PyAV.

    packets → decoded frames → times → start, end, fps → RGB

Damage never ends a video: what does not decode is counted and skipped, and the frames around it keep their times.
Rationals of PyAV become `fractions.Fraction` here; everything that leaves this file is a plain number or an array.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import stat
import struct
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import av
import av.container
import av.error
import av.video
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ..errors import (
    EmptyFile,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    TooLarge,
    TruncatedVideo,
    UsageError,
    VideoError,
    VideoNotFound,
)
from ..records import Frame
from .sources import is_url

URL_TIMEOUT_SECONDS = 30.0
"""How long a server may keep silent, on opening and on every read."""

SEEK_FROM_SECONDS = 5.0
"""Below this start, decoding from the beginning is as quick as seeking."""

SEEK_MARGIN_SECONDS = 1.0
"""Seek this much further back: some containers index decoding times, which run ahead of what is shown."""

MAX_TICK_TOLERANCE_SECONDS = Fraction(1, 1000)
"""Upper bound of what `at_ticks` takes for rounding by the container's clock."""

MAX_JUMP_SECONDS = Fraction(60)
"""A longer wait for the next frame is believed only within the duration that the header declares."""

MAX_PIXELS = 8192 * 8192
"""Of a frame: 8K video of any shape, 200 MB as RGB. A header may lie, and a decoder holds a dozen frames."""

MAX_DEMUX_ERRORS = 100
"""Give the file up after so many read errors without one packet in between."""

# Pictures are too small for swscale's own threads. PyAV 14 has no such option.
_ONE_THREAD: dict[str, int] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}

# A title that is not UTF-8 is no reason to refuse a video. From PyAV 19 on it is none anyway.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# For what the header does not tell, and for frames that are larger than it says.
_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}

_HAS_INDEX = hasattr(av.stream.Stream, "index_entries")  # from PyAV 17 on; before, a cut MP4 counts no lost frames

_DEFAULT_RATE = Fraction(25)  # frames per second, where the file says nothing at all
_AV_TIME_BASE = 1_000_000  # a container's duration is in microseconds

T = TypeVar("T")


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video: what its header says and, where it was decoded, what was counted."""

    video: str
    """Path or URL as it was given."""
    codec: str
    """FFmpeg's name of the decoder: "h264", "mpeg4", "vp9"."""
    width: int
    """Pixels, of the upright picture (rotation applied)."""
    height: int
    """Pixels, of the upright picture (rotation applied)."""
    rotation_degrees: int
    """How far the stored picture was turned clockwise to stand upright: 0, 90, 180 or 270."""
    fps: float
    """Average frames per second, from the header."""
    duration_seconds: float | None
    """From the header, else from the decoded frames; None if neither is known."""
    num_frames_declared: int | None
    """From the header; None where the container does not say."""
    num_frames_decoded: int | None
    """Counted; None if not decoded."""
    num_decode_failures: int | None
    """Frames that are lost or visibly damaged, see `VideoReader.num_decode_failures`; None if not decoded."""
    size_bytes: int | None
    """Size of the file; None for a URL that does not tell."""
    container: str
    """FFmpeg's name of the container format: "mov,mp4,m4a,3gp,3g2,mj2"."""
    pixel_format: str
    """FFmpeg's name of how pixels are stored: "yuv420p"."""


def parse_fps(text: str) -> Fraction | None:
    """Read a frame rate as a user writes it.

        "native" → None    "25" → 25    "29.97" → 2997/100    "30000/1001" → 30000/1001

    Raises:
        UsageError: not a positive number or fraction.
    """
    if text.strip().lower() == "native":
        return None
    try:
        fps = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise UsageError(f"cannot read {text!r} as frames per second: give a number (25, 29.97), 30000/1001, or native")
    return fps


def probe(video: str, *, decode: bool = True) -> VideoInfo:
    """Tell what a video is.

    Args:
        video: path or URL.
        decode: decode all of it, to count frames and failures; otherwise only the first frame.

    Raises:
        VideoError: it cannot be used; the class says why.
    """
    with VideoReader(video) as reader:
        return reader.count_frames() if decode else reader.info


class VideoReader:
    """The frames of a video, resampled to a frame rate.

        with VideoReader("video.mp4", fps=Fraction(25), start_seconds=60, end_seconds=70) as reader:
            for frame in reader: ...

    Every iteration reads the file anew. Opening decodes one frame, so what cannot be read fails before the loop.
    Not thread-safe: close it in the thread that iterates.

    Args:
        video: path or URL.
        fps: give the picture shown at every tick k/fps; None for the frames as they are.
        start_seconds: leave out what starts before; times stay those of the file.
        end_seconds: leave out what starts at or after this.

    Raises:
        VideoError: it cannot be used; the class says why. `NoFrames` also comes from the loop, if the span is empty.
        UsageError: the span or the frame rate makes no sense.
    """

    def __init__(
        self,
        video: str,
        *,
        fps: Fraction | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
    ) -> None:
        check_span(fps, start_seconds, end_seconds)
        self._video = video
        self._fps = None if fps is None else Fraction(fps)
        self._start_seconds = start_seconds
        self._end_seconds = math.inf if end_seconds is None else end_seconds
        self._pass = _Pass(video)
        self._is_fresh = True  # nothing taken from the pass yet: the first iteration uses it
        self._info = _header_info(self._pass)
        # Weak, so that an iteration that is dropped half-way ends there and then, and closes the file.
        self._iterator: weakref.ref[Generator[Frame, None, None]] | None = None

    @property
    def info(self) -> VideoInfo:
        """What the header and the first frame say; nothing is counted."""
        return self._info

    @property
    def num_frames_decoded(self) -> int:
        """How many frames the latest iteration has decoded so far, given out or not."""
        return self._pass.num_frames_decoded

    @property
    def num_packets_read(self) -> int:
        """How many packets the latest iteration has read so far, those read again after damage included."""
        return self._pass.num_packets_read

    @property
    def num_decode_failures(self) -> int:
        """How many frames the latest iteration has found lost or damaged so far.

        Packets that do not decode, frames with visible damage and, at the end of the file, frames that its index still
        lists (MP4, QuickTime) or its header promises (AVI). What a cut Matroska, WebM, FLV or transport stream has
        lost, nobody knows.
        """
        return self._pass.num_decode_failures

    @property
    def num_expected_frames(self) -> int | None:
        """About how many frames an iteration will give, for progress bars; None if the header does not tell."""
        info = self._info
        is_whole = self._start_seconds <= 0 and self._end_seconds == math.inf
        if is_whole and self._fps is None and info.num_frames_declared:
            return info.num_frames_declared
        seconds = info.duration_seconds
        if seconds is None and info.num_frames_declared:
            seconds = info.num_frames_declared / info.fps
        end_seconds = min(self._end_seconds, math.inf if seconds is None else seconds)
        if end_seconds == math.inf:
            return None
        fps = info.fps if self._fps is None else float(self._fps)
        return max(1, math.ceil((end_seconds - self._start_seconds) * fps - 0.01))  # 0.01: header times are rounded

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration, if one is under way, and close the file."""
        self._end_iteration()
        self._pass.close()
        self._is_fresh = False

    def __iter__(self) -> Iterator[Frame]:
        self._start_pass()
        iterator = self._read()
        self._iterator = weakref.ref(iterator)
        return iterator

    def count_frames(self) -> VideoInfo:
        """Decode the video to its end and return `info` with the counts; the span and the rate do not matter."""
        self._start_pass()
        end = Fraction(0)
        with contextlib.closing(self._pass):
            for frame in self._pass.timed_frames():
                end = frame.start + frame.duration
        return dataclasses.replace(
            self._info,
            duration_seconds=float(end) if self._info.duration_seconds is None else self._info.duration_seconds,
            num_frames_decoded=self._pass.num_frames_decoded,
            num_decode_failures=self._pass.num_decode_failures,
        )

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
        """Yield the frames of the span; the file is closed when this generator is."""
        try:
            frames = self._timed_frames()
            to_rgb = _RgbConverter(self._video, self._pass.first)
            shown_frames = (
                until_next(frames)
                if self._fps is None
                else at_ticks(frames, fps=self._fps, clock_unit=self._pass.time_base)
            )
            num_frames, end = 0, Fraction(0)
            for shown in shown_frames:
                start_seconds, end = float(shown.start), shown.end
                if start_seconds >= self._end_seconds:
                    break
                # Compared as floats: a time that a frame was reported with must find that frame again.
                if start_seconds >= self._start_seconds:
                    yield Frame(num_frames, start_seconds, float(end), to_rgb(shown.item))
                    num_frames += 1
            if not num_frames:
                raise NoFrames(self._video, self._why_no_frames(float(end)))
        finally:
            self._pass.close()

    def _timed_frames(self) -> Iterator[Timed[av.VideoFrame]]:
        """The decoded frames with their times, from a keyframe before the start on."""
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


def check_span(fps: Fraction | None, start_seconds: float, end_seconds: float | None) -> None:
    """Raise UsageError for a rate or a span that cannot be read."""
    if fps is not None and fps <= 0:
        raise UsageError(f"cannot read at {fps} frames per second: give a positive number")
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise UsageError(f"cannot start at {start_seconds} s: give 0 or more")
    if end_seconds is not None and not end_seconds > start_seconds:
        raise UsageError(f"cannot end at {end_seconds:g} s: give an end after the start, {start_seconds:g} s")


# Times ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed(Generic[T]):
    """Something with a place in time."""

    start: Fraction
    """Seconds since the first frame of the file."""
    duration: Fraction
    """Seconds; only the last one's is relied on."""
    item: T


@dataclass(frozen=True)
class Shown(Generic[T]):
    """Something and the span of time that it is shown for."""

    start: Fraction
    end: Fraction
    item: T


def until_next(frames: Iterable[Timed[T]]) -> Iterator[Shown[T]]:
    """Show each frame until the next one starts, and the last one for its own duration."""
    held: Timed[T] | None = None
    for frame in frames:
        if held is not None:
            yield Shown(held.start, frame.start, held.item)
        held = frame
    if held is not None:
        yield Shown(held.start, held.start + held.duration, held.item)


def at_ticks(frames: Iterable[Timed[T]], *, fps: Fraction, clock_unit: Fraction) -> Iterator[Shown[T]]:
    """For every tick k/fps, the last frame that has started by then.

        frames at 0 40 80 120 ms, 12.5 fps → ticks at 0 80 ms         → frames 0 2
                                  50 fps   → ticks at 0 20 40 … 140 ms → frames 0 0 1 1 2 2 3 3

    Containers round times to a clock: 30 frames per second are 0, 33, 67, 100 ms in WebM, so tick 2 (66.67 ms) comes
    before "its" frame, and frame 1 would be shown twice and frame 2 never. Frame times are therefore taken to be half a
    clock unit less, the most that rounding adds. The end of the last frame is a sum of two rounded numbers (its time,
    its duration), so there it is one unit. Clocks as coarse as a frame (AVI counts frames) do not round: hence
    `MAX_TICK_TOLERANCE_SECONDS`.

    Args:
        frames: in the order of time; ticks before the first one are left out.
        fps: ticks per second.
        clock_unit: seconds to which the times of the frames are rounded.
    """
    tolerance = min(clock_unit / 2, MAX_TICK_TOLERANCE_SECONDS)
    tick = -1
    held: Timed[T] | None = None
    for frame in frames:
        if held is None:
            tick = max(0, math.ceil((frame.start - tolerance) * fps))
        else:
            while tick / fps < frame.start - tolerance:
                yield Shown(tick / fps, (tick + 1) / fps, held.item)
                tick += 1
        held = frame
    # The last frame has at least the tick at its very start, however short it is.
    while held and (tick / fps <= held.start or tick / fps < held.start + held.duration - 2 * tolerance):
        yield Shown(tick / fps, (tick + 1) / fps, held.item)
        tick += 1


class _Clock:
    """Frame times relative to the first frame, always increasing.

    A frame without a time follows the previous frame by the nominal duration. So does one whose time is not later than
    the previous frame's, or jumps far beyond the end of the video: one flipped bit may mean a day, and resampling would
    fill it with copies.

    Args:
        time_base: seconds per unit of the file's times.
        nominal_duration: seconds per frame, on average.
        declared_duration: seconds of the whole video as its header says; None if it does not.
        by_decoding_time: go by DTS, for containers without PTS. AVI only counts its chunks; FFmpeg guesses PTS from
            that and guesses wrong where B-frames are packed (all of UCF101): 1 2 4 3 5 7 6, with DTS 1 2 3 4 5 6 7.
    """

    def __init__(
        self,
        time_base: Fraction,
        nominal_duration: Fraction,
        *,
        declared_duration: Fraction | None,
        by_decoding_time: bool,
    ) -> None:
        self._time_base = time_base
        self._nominal_duration = nominal_duration
        self._declared_duration = declared_duration or Fraction(0)
        self._by_decoding_time = by_decoding_time
        self._zero: Fraction | None = None  # the file's own time of its first frame
        self._last: Fraction | None = None

    def timed(self, frame: av.VideoFrame) -> Timed[av.VideoFrame]:
        """Give the next decoded frame its time."""
        start = Fraction(0) if self._last is None else self._last + self._nominal_duration
        units = self.units(frame)
        if units is not None:
            in_file = units * self._time_base
            if self._zero is None:
                self._zero = in_file - start
            if self._last is None or self._may_follow(self._last, in_file - self._zero):
                start = in_file - self._zero
        self._last = start
        duration = frame.duration * self._time_base
        if not self._may_follow(start, start + duration):
            duration = self._nominal_duration
        return Timed(start, duration, frame)

    def _may_follow(self, last: Fraction, start: Fraction) -> bool:
        return last < start <= max(self._declared_duration, last + MAX_JUMP_SECONDS)

    def units(self, frame: av.VideoFrame) -> int | None:
        """The time that the file gives a frame, in its own units."""
        return frame.dts if self._by_decoding_time else frame.pts

    def restart(self) -> None:
        """Forget the previous frame, after a seek; times stay relative to the first frame of the file."""
        self._last = None

    def in_file(self, seconds: float) -> int | None:
        """The same moment in units of the file; None before the first frame with a time."""
        return None if self._zero is None else round((Fraction(seconds) + self._zero) / self._time_base)


# Decoding ------------------------------------------------------------------------------------------------------------


class _DamageError(Exception):
    """A frame was decoded from damaged data."""


class _Pass:
    """One reading of a video: the open container, its decoder and the counts.

    Raises:
        VideoError: it cannot be opened, or no frame of it decodes.
    """

    def __init__(self, video: str) -> None:
        self.video = video
        self.num_frames_decoded = 0
        self.num_decode_failures = 0
        self.num_packets_read = 0
        self._last_dts: int | None = None  # of the latest packet, in units of the file
        self.container = _open_container(video)
        try:
            self._choose_stream(has_threads=_can_read_again(video))
            self.time_base = _fraction(self.stream.time_base) or Fraction(1, _AV_TIME_BASE)
            self.rate = _average_rate(self.stream)
            self.declared_duration = self._declared_duration()
            self._clock = _Clock(
                self.time_base,
                1 / self.rate,
                declared_duration=self.declared_duration,
                by_decoding_time=self.container.format.name == "avi",
            )
            self._decoded = self._decode(None)
            first = next(self._decoded, None)
            if first is None:
                raise NoFrames(video, self._why_nothing_decodes())
            self.first: av.VideoFrame = first
        except VideoError as error:
            self.container.close()
            if not is_url(video) and _is_mp4_without_index(video):  # FFmpeg opens what a cut moov box still tells
                raise TruncatedVideo(video, _TRUNCATED) from error
            raise
        except BaseException:
            self.container.close()
            raise

    def _choose_stream(self, *, has_threads: bool) -> None:
        self.stream = _video_stream(self.container, self.video)
        context = self.stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            raise TooLarge(
                self.video,
                f"its header announces frames of {context.width} × {context.height} pixels, more than "
                f"{MAX_PIXELS // 10**6} million: it is damaged; if it is not, re-encode it smaller",
            )
        context.options = _DECODER_OPTIONS
        self._has_threads = has_threads
        self.stream.thread_type = "AUTO" if has_threads else "NONE"

    def _why_nothing_decodes(self) -> str:
        if is_url(self.video):
            return _NOTHING_DECODES_URL
        return _NOTHING_DECODES if self.stream.codec_context.width else _NOTHING_DECODES_NO_SIZE

    def _declared_duration(self) -> Fraction | None:
        """Seconds, by the stream's header or else the container's."""
        if self.stream.duration and self.stream.duration > 0:
            declared = self.stream.duration * self.time_base
        elif self.container.duration and self.container.duration > 0:
            declared = Fraction(self.container.duration, _AV_TIME_BASE)
        else:
            return None
        # AVI's header gives one rate for both: where that is damaged, the duration is too.
        return None if self.time_base > MAX_JUMP_SECONDS else declared

    def close(self) -> None:
        """Close the container; generators of this pass end."""
        self._decoded.close()  # before the container: a demuxer that is resumed without one crashes the process
        self.container.close()

    def frames(self) -> Iterator[av.VideoFrame]:
        """All frames, counted as they are taken."""
        for frame in itertools.chain([self.first], self._decoded):
            self.num_frames_decoded += 1
            yield frame

    def timed_frames(self) -> Iterator[Timed[av.VideoFrame]]:
        """All frames with their times."""
        return map(self._clock.timed, self.frames())

    def timed_frames_from(self, start_seconds: float) -> Iterator[Timed[av.VideoFrame]] | None:
        """Frames with their times, from a keyframe at or before `start_seconds` on.

        Returns:
            None if no such keyframe was found; the pass is then spent.
        """
        self._clock.timed(self.first)
        target = self._clock.in_file(max(0.0, start_seconds - SEEK_MARGIN_SECONDS))
        if target is None:
            return None
        self._decoded.close()
        self._clock.restart()
        self._decoded = self._decode(target)
        # Frames shown before the keyframe may need pictures from before the seek: only what follows it is whole.
        key_frame = next((frame for frame in self._decoded if frame.key_frame), None)
        if key_frame is None or self._clock.units(key_frame) is None:
            return None
        timed = self._clock.timed(key_frame)
        if timed.start > start_seconds:
            return None
        self.first = key_frame
        return itertools.chain([timed], map(self._clock.timed, itertools.islice(self.frames(), 1, None)))

    def _decode(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        """Every frame that decodes, from the beginning or from a keyframe at or before `start` (in units of the file).

        Several threads decode until they meet damage; then one thread reads again and goes on after the frames already
        given. For with frame threads, an error among the last packets takes the frames after it along, uncounted (35
        to 38 of 40 frames are left instead of 39: PyAV cannot go on reading a decoder that is being flushed), and with
        slice threads FFmpeg conceals no damage in H.264. What cannot be read twice is decoded by one thread at once.
        Now and then frame threads give a visibly damaged frame out before they flag it: the same frame, not counted.
        """
        num_given = 0
        if self._has_threads:
            with contextlib.closing(self._decode_undamaged(start)) as frames:
                try:
                    for frame in frames:
                        yield frame
                        num_given += 1
                    return
                except (_DamageError, av.error.FFmpegError):
                    pass
            self.container.close()
            self.container = _open_container(self.video)
            self._choose_stream(has_threads=False)
        with contextlib.closing(self._decode_around_damage(start)) as frames:
            yield from itertools.islice(frames, num_given, None)

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
        # Threads swallow the errors of the last packets. In VP8 a missing frame may be one that is never shown: then
        # reading again finds nothing more, and has cost only time.
        if num_missing > 0:
            raise _DamageError
        self.num_decode_failures += self._num_lost_at_end()

    def _decode_around_damage(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        self._seek(start)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.num_decode_failures += 1
                continue
            for frame in frames:
                self.num_decode_failures += frame.is_corrupt
                yield frame

    def _seek(self, start: int | None) -> None:
        if start is not None:
            # What cannot seek stays where it is; the caller looks at the time of the first frame.
            with contextlib.suppress(av.error.FFmpegError):
                self.container.seek(start, stream=self.stream)

    def _packets(self) -> Iterator[av.Packet[Any]]:
        """The packets of the stream and, last, the empty one that makes the decoder give out what it holds."""
        num_errors = 0  # since the latest packet
        while num_errors < MAX_DEMUX_ERRORS:
            try:
                for packet in self._demux():
                    if packet.size:
                        self.num_decode_failures += num_errors
                        num_errors = 0
                        yield packet
                break
            except (av.error.ExitError, av.error.ConnectionResetError, av.error.TimeoutError):
                break  # the server is gone: asking again would only wait again
            except av.error.FFmpegError:
                num_errors += 1
        # Errors that no packet follows may be one packet, asked for again and again.
        self.num_decode_failures += max(num_errors > 0, self._num_lost_at_end())
        flush: av.Packet[Any] = av.Packet()
        flush.stream = self.stream
        yield flush

    def _demux(self) -> Iterator[av.Packet[Any]]:
        for packet in self.container.demux(self.stream):
            self.num_packets_read += 1
            self._last_dts = self._last_dts if packet.dts is None else packet.dts
            yield packet

    def _num_lost_at_end(self) -> int:
        """How many more frames should have come after the latest packet, as far as the file tells."""
        if self._last_dts is None:
            return 0
        if self.container.format.name == "avi":
            # The header counts frames and empty places, as times do. FFmpeg sets the duration lower than that where
            # the file is shorter than it should be.
            is_cut = 0 < (self.stream.duration or 0) < self.stream.frames
            return max(0, self.stream.frames - 1 - self._last_dts) if is_cut else 0
        if "mp4" not in self.container.format.name.split(","):
            return 0  # the index of others is of some frames only
        index = self.stream.index_entries if _HAS_INDEX else ()
        num_lost = 0
        for number in range(len(index) - 1, -1, -1):
            if index[number].timestamp <= self._last_dts:
                break
            num_lost += not index[number].is_discard  # an edit list may leave frames out
        return num_lost


class _RgbConverter:
    """Frames → upright RGB arrays, all of the first frame's size.

    A frame that is picked several times in a row is converted once, and its array shared.
    """

    def __init__(self, video: str, first: av.VideoFrame) -> None:
        self._video = video
        self._width, self._height = first.width, first.height
        self._orientation = _Orientation.of(first)
        # The same bytes as frame.to_ndarray(format="rgb24"), which sets swscale up anew for every frame: 4.3 ms
        # instead of 0.5 ms at 340×256.
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame | None = None
        self._rgb: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Convert a frame.

        Returns:
            (H, W, 3), C-contiguous.
        """
        if frame is not self._frame:
            try:
                rgb = self._reformatter.reformat(frame, self._width, self._height, "rgb24", **_ONE_THREAD)
            except (av.error.FFmpegError, ValueError) as error:
                message = f"its pixel format {frame.format.name} does not convert to RGB ({error}); re-encode it"
                raise NotAVideo(self._video, message) from error
            self._rgb, self._frame = self._orientation.upright(_as_array(rgb)), frame
        return self._rgb


def _as_array(rgb: av.VideoFrame) -> NDArray[np.uint8]:
    return rgb.to_ndarray().astype(np.uint8, copy=False)  # they are uint8 already; this tells mypy


@dataclass(frozen=True)
class _Orientation:
    """How a stored picture is turned to stand upright: mirrored first, then rotated clockwise."""

    is_mirrored: bool = False
    rotation_degrees: int = 0

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Orientation:
        """Read the display matrix of a frame; angles between quarter turns go to the nearest.

        The matrix (a b u, c d v, x y w) puts column p, row q at column a·p + c·q, row b·p + d·q.
        Source: FFmpeg, libavutil/display.h.
        """
        try:
            side_data: Mapping[str, Any] = frame.side_data  # PyAV types it as a dict of other keys
            if "DISPLAYMATRIX" not in side_data:
                return cls()
        except ValueError:  # side data of a kind that this PyAV has no name for (before version 19)
            return cls(rotation_degrees=90 * (round(-frame.rotation / 90) % 4))
        a, b, _, c, d = struct.unpack("=5i", bytes(side_data["DISPLAYMATRIX"])[:20])
        quarter_turns = round(math.degrees(math.atan2(-c, d)) / 90) % 4
        return cls(is_mirrored=a * d - b * c < 0, rotation_degrees=90 * quarter_turns)

    def upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a stored (H, W, 3) picture upright."""
        mirrored = stored[:, ::-1] if self.is_mirrored else stored
        return np.ascontiguousarray(np.rot90(mirrored, k=-self.rotation_degrees // 90))


# Opening -------------------------------------------------------------------------------------------------------------


_NOTHING_DECODES = "no frame of it decodes: the file is damaged or cut off; fetch it again"
_NOTHING_DECODES_NO_SIZE = (
    "no frame of it decodes: the file is damaged or cut off, or its frames are larger than "
    f"{MAX_PIXELS // 10**6} million pixels; fetch it again, or re-encode it smaller"
)
_NOTHING_DECODES_URL = (
    "no frame of it decodes from there: it is damaged, or its index lies at the end and the server "
    "cannot jump to it; download it first"
)
_TRUNCATED = "cut off before the end of its index (moov), as by a broken download or recording; fetch it again"


def _open_container(video: str) -> av.container.InputContainer:
    if is_url(video):
        return _open_url(video)
    _check_file(video)
    try:
        # The prefix keeps FFmpeg from reading "take:2.mp4" as a protocol.
        container = _open(f"file:{video}")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if _is_mp4_without_index(video):
            raise TruncatedVideo(video, _TRUNCATED) from error
        # A fragmented MP4 that ends in the index of a fragment opens if FFmpeg cannot look ahead.
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            return _open(f"file:{video}", seekable="0")
        raise NotAVideo(video, f"not a video that FFmpeg can open ({_reason(error)})") from error
    if container.format.name == "tty":  # FFmpeg would draw any *.txt as ANSI art
        container.close()
        raise NotAVideo(video, "a text file, not a video; to read a list of videos from it, write @ before its name")
    return container


def _open(name: str, *, timeout: float | None = None, **options: str) -> av.container.InputContainer:
    container: av.container.InputContainer = av.open(
        name, options={**_DECODER_OPTIONS, **options}, timeout=timeout, **_ANY_METADATA
    )
    return container


def _can_read_again(video: str) -> bool:
    """Whether opening the same video again gives the same bytes: not so for a camera or a pipe."""
    return not is_url(video) and Path(video).is_file()


def _open_url(url: str) -> av.container.InputContainer:
    try:
        return _open(url, timeout=URL_TIMEOUT_SECONDS)
    except av.error.ExitError as error:
        raise NotAVideo(url, f"no answer within {URL_TIMEOUT_SECONDS:g} s; try again later") from error
    except (av.error.HTTPNotFoundError, av.error.FileNotFoundError) as error:
        raise VideoNotFound(url, f"no such video on the server ({_reason(error)}); check the address") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotAVideo(url, f"cannot be opened ({_reason(error)}); check the address") from error


def _check_file(video: str) -> None:
    """Raise what is wrong with a path before FFmpeg sees it: its own messages are poorer."""
    try:
        status = Path(video).stat()
        if stat.S_ISDIR(status.st_mode):
            raise NotAVideo(video, "a directory; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size == 0:
            raise EmptyFile(video, "the file is empty (0 bytes); fetch it again")
        with Path(video).open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VideoNotFound(video, "no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotAVideo(video, f"cannot be read: {reason.lower()}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_mp4_without_index(video: str) -> bool:
    """Whether a file starts like MP4 or QuickTime but ends before its moov box does."""
    num_bytes = Path(video).stat().st_size
    is_first = True
    with Path(video).open("rb") as file:
        position = 0
        while position + 8 <= num_bytes:
            file.seek(position)
            header = file.read(16)
            size, kind = struct.unpack(">I4s", header[:8])
            if size == 1 and len(header) == 16:
                (size,) = struct.unpack(">Q", header[8:])
            if is_first and kind not in (b"ftyp", b"wide", b"mdat", b"free", b"skip", b"moov"):
                return False
            is_first = False
            if kind == b"moov":
                return bool(position + size > num_bytes)
            if size < 8:  # 0: this box reaches to the end of the file
                return True
            position += size
    return not is_first


def _video_stream(container: av.container.InputContainer, video: str) -> av.VideoStream:
    """The stream to read: FFmpeg's choice, but never a cover picture."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & still]
    if not moving:
        found = "only a cover picture" if container.streams.video else "only audio" if container.streams.audio else ""
        raise NoVideoStream(video, f"no video stream in it{found and ', '}{found}; name a file with moving pictures")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        raise NotAVideo(video, "FFmpeg has no decoder for its video codec; re-encode it, for example as H.264")
    return stream


def _header_info(one_pass: _Pass) -> VideoInfo:
    container, stream, first = one_pass.container, one_pass.stream, one_pass.first
    orientation = _Orientation.of(first)
    is_turned = orientation.rotation_degrees % 180 == 90
    return VideoInfo(
        video=one_pass.video,
        codec=stream.codec_context.name,
        width=first.height if is_turned else first.width,
        height=first.width if is_turned else first.height,
        rotation_degrees=orientation.rotation_degrees,
        fps=float(one_pass.rate),
        duration_seconds=None if one_pass.declared_duration is None else float(one_pass.declared_duration),
        num_frames_declared=stream.frames or None,
        num_frames_decoded=None,
        num_decode_failures=None,
        size_bytes=container.size if container.size and container.size > 0 else None,  # negative: unknown to PyAV 18
        container=container.format.name,
        pixel_format=first.format.name,
    )


def _average_rate(stream: av.VideoStream) -> Fraction:
    """Frames per second, by the first source that says so and may be right."""
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate, stream.codec_context.framerate)
    return next((_fraction(rate) for rate in rates if rate and _fraction(rate) >= 1 / MAX_JUMP_SECONDS), _DEFAULT_RATE)


def _fraction(rational: Any) -> Fraction:  # a Fraction until PyAV 18, PyAV's own type from 19 on
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)
