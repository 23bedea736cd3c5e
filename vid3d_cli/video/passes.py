"""One reading of a video: the open container, its packets, the frames that decode, and what is lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import av
import av.error
import av.video

from ..errors import ConnectionLost, DamagedVideo, NoFrames, VideoError
from .clock import MAX_JUMP_SECONDS, FrameClock, Timed
from .container import (
    AV_TIME_BASE,
    MAX_PIXELS,
    average_rate,
    check_index,
    choose_stream,
    declared_duration,
    is_rereadable,
    may_begin_anywhere,
    open_container,
    time_base,
)
from .losses import LostFrames
from .sources import is_url

SEEK_MARGIN_SECONDS = 1.0
"""Seek this much further back: some containers index decoding times, which are earlier than those shown."""

MAX_DEMUX_ERRORS = 100
"""Stop reading after this many read errors without a packet in between."""

_CONNECTION_LOST = "the server stopped before the end of the video ({}); try again later"


class _DamageError(Exception):
    """A frame was decoded from damaged data."""


class Pass:
    """One reading of a video: the open container, its decoder and the counts.

    Raises:
        VideoError: the video cannot be opened, or no frame of it decodes.
    """

    def __init__(self, video: str, *, allow_playlists: bool = False) -> None:
        self.video = video
        self._open = partial(open_container, video, allow_playlists=allow_playlists)
        self.num_frames_decoded = 0
        self.num_packets_read = 0
        self._num_lost_unread = 0  # lost before they became packets
        self._last_dts: int | None = None  # of the latest packet, in units of the file
        self._reached_byte, self._reached_seconds = 0, 0.0  # the furthest end of a packet of any stream, of a URL
        self.container = self._open()
        try:
            self._choose_stream(has_threads=is_rereadable(video))
            self.rate = average_rate(self.stream)
            self.declared_duration = declared_duration(self.container, self.stream)
            self.clock: FrameClock[av.VideoFrame] = FrameClock(
                time_base(self.stream), 1 / self.rate, self.declared_duration
            )
            self._lost = self._count_from(None)
            self._decoded = self._decode(None)
            first: av.VideoFrame | None = None
            with contextlib.suppress(ConnectionLost):  # so ends a video whose index the server cannot seek to
                first = next(self._decoded, None)
            if first is None:
                raise NoFrames(video, self._why_nothing_decodes())
            self.first = first
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

    @property
    def first_units(self) -> int:
        """When the first frame is shown, in units of the file. After a cut, earlier packets have no keyframe."""
        known = [units for units in (self._lost.first, self._time_of(self.first)) if units is not None]
        return min(known, default=self.stream.start_time or 0)

    @property
    def num_lost_frames(self) -> int:
        """Frames that are lost or visibly damaged, found so far; see `VideoReader.num_lost_frames`."""
        return self._lost.num_lost + self._num_lost_unread

    def count_lost(self, *, at_end: bool) -> None:
        """Count the frames that are missing between those decoded so far and, at the end of the file, after them.

        Raises:
            DamagedVideo: these are more than half of all.
        """
        self._lost.count_missing(at_end=at_end)
        num_shown = self.num_frames_decoded - self._lost.num_damaged
        num_frames = num_shown + self.num_lost_frames
        if num_shown < num_frames / 2:
            message = f"most of the video is damaged: {num_shown} of {num_frames} frames decode; fetch it again"
            raise DamagedVideo(self.video, message)

    def timed_frames(self) -> Iterator[Timed[av.VideoFrame]]:
        """Return all frames with their times."""
        frames = ((frame, self._units(frame), frame.duration) for frame in self._frames())
        return self.clock.place(frames, first_units=self._lost.first)

    def timed_frames_from(self, start_seconds: float) -> Iterator[Timed[av.VideoFrame]] | None:
        """Return frames with their times, from a keyframe at or before `start_seconds` on.

        Returns:
            None if no such keyframe was found; the pass cannot be used then.
        """
        next(self.timed_frames())  # finds time zero
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
        self.first, self.num_frames_decoded = key_frame, 0
        frames = self.timed_frames()
        timed = next(frames)
        return None if timed.start > start_seconds else itertools.chain([timed], frames)

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Yield all frames, and count them."""
        for frame in itertools.chain([self.first], self._decoded):
            self.num_frames_decoded += 1
            yield frame

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
            self.container = self._open()
            self._choose_stream(has_threads=False)
        with contextlib.closing(self._decode_around_damage(start)) as frames:
            yield from itertools.islice(frames, num_yielded, None)

    def _decode_undamaged(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        self._seek(start)
        num_missing = 0
        for packet in self._demux():
            num_missing += bool(packet.size) and not packet.is_discard and self._lost.has_begun
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise _DamageError
                num_missing -= 1
                self._lost.add_frame(self._time_of(frame), is_damaged=False)
                yield frame
        # Threads hide errors in the last packets. In VP8, a missing frame may be one that is never shown: then reading
        # again finds nothing more, and has only cost time.
        if num_missing > 0:
            raise _DamageError
        self._num_lost_unread += self._num_lost_at_end()

    def _decode_around_damage(self, start: int | None) -> Generator[av.VideoFrame, None, None]:
        self._seek(start)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._lost.add_failure(self._time_of(packet))
                continue
            for frame in frames:
                self._lost.add_frame(self._time_of(frame), is_damaged=frame.is_corrupt)
                yield frame

    def _seek(self, start: int | None) -> None:
        self._lost, self._num_lost_unread = self._count_from(start), 0
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
                        self._num_lost_unread += num_errors
                        num_errors = 0
                        yield packet
                break
            except av.error.FFmpegError as error:
                if error.errno == errno.EIO and self.container.size <= 0:
                    break  # so ends a video whose size the server does not say
                if is_url(self.video) and not isinstance(error, av.error.InvalidDataError):
                    raise ConnectionLost(self.video, _CONNECTION_LOST.format(error.strerror or error)) from error
                num_errors += 1
        if is_url(self.video) and self._is_cut_off():
            raise ConnectionLost(self.video, _CONNECTION_LOST.format("it ends too early"))
        # Errors without a later packet may all be about one packet, asked for again and again.
        self._num_lost_unread += max(num_errors > 0, self._num_lost_at_end())
        flush: av.Packet[Any] = av.Packet()
        flush.stream = self.stream
        yield flush

    def _demux(self) -> Iterator[av.Packet[Any]]:
        # Of a URL, packets of all streams show how far the server came.
        for packet in self.container.demux() if is_url(self.video) else self.container.demux(self.stream):
            self.num_packets_read += 1
            if is_url(self.video):
                self._note_reached(packet)
                if packet.stream_index != self.stream.index:
                    continue
            self._last_dts = self._last_dts if packet.dts is None else packet.dts
            if packet.size:
                is_shown = not packet.is_discard and not self._is_hidden(packet)
                self._lost.add_packet(
                    self._time_of(packet), is_key=packet.is_keyframe, is_shown=is_shown, is_torn=packet.is_corrupt
                )
            yield packet

    def _time_of(self, shown: av.Packet[Any] | av.VideoFrame) -> int | None:
        """Return the time by which packets and frames are compared; None in AVI, where theirs differ."""
        return None if self.container.format.name == "avi" else shown.pts

    def _is_hidden(self, packet: av.Packet[Any]) -> bool:
        """Whether an intact packet becomes no frame.

        Sources: RFC 6386, 9.1 (VP8: bit show_frame); FFmpeg, libavcodec/mpeg4video.h (MAX_NVOP_SIZE).
        """
        codec = self.stream.codec_context.name
        return (codec == "vp8" and not memoryview(packet)[0] & 0x10) or (codec == "mpeg4" and packet.size < 20)

    def _count_from(self, start: int | None) -> LostFrames:
        is_transport_stream = self.container.format.name == "mpegts"
        return LostFrames(
            max_gap=int(MAX_JUMP_SECONDS / self.clock.time_base) if is_transport_stream else 0,
            has_lead_in=start is not None or may_begin_anywhere(self.container),
        )

    def _note_reached(self, packet: av.Packet[Any]) -> None:
        if packet.pos is not None:
            self._reached_byte = max(self._reached_byte, packet.pos + packet.size)
        if packet.pts is not None and packet.time_base:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self._reached_seconds = max(self._reached_seconds, end - (self.container.start_time or 0) / AV_TIME_BASE)

    def _is_cut_off(self) -> bool:
        """Whether a server sent less than the whole file, by its index, or both by its size and by its duration."""
        if self._num_lost_at_end():
            return True
        end_seconds = (self.container.duration or math.inf) / AV_TIME_BASE
        return 0 < self._reached_byte < 0.98 * self.container.size - 4096 and self._reached_seconds < end_seconds - 1

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
