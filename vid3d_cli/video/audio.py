"""Copies the audio of a video into another file, packet by packet.

    decoder process (child.py)                                               this process
    packets of a codec that MP4 players know → the same bytes at the same times ─┐
    other packets → decoded → AAC ───────────────────────────────────────────────┴→ connection → the other file

This process opens nothing of the video but such packets: a hostile file can crash or stall only its decoder.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import av.container
import av.error
from av.stream import Discard

from ..errors import VideoError
from .container import open_container, time_base
from .passes import MAX_DEMUX_ERRORS
from .process import Decoders
from .reader import VideoInfo

if TYPE_CHECKING:
    from .child import Parent

COPIED = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")
"""FFmpeg's names of the codecs that stay as they are: MP4 holds them, and players play them there."""

_MAX_BACK_SECONDS, _MAX_GAP_SECONDS = 1, 3600
"""A packet that is earlier or later than this was damaged, or the file's clock started again: it follows directly."""

_NO_PACKETS = bytes.fromhex("1f43b675 80")  # an empty cluster, which ends the header of Matroska

_log = logging.getLogger(__name__)


class AudioRequest(NamedTuple):
    """Asks for the audio of a video."""

    video: str
    allow_playlists: bool

    def answer(self, parent: Parent) -> None:
        """Send AudioOpened, then every packet."""
        for answer in read_audio(self):
            parent.send(answer)


class AudioOpened(NamedTuple):
    """The first answer to an `AudioRequest`."""

    header: bytes
    """A Matroska file with the tracks and no packets."""
    start: Fraction | float
    """When the audio starts, in seconds of the file's clock."""
    num_tracks: int
    """Of the video; the header has those that FFmpeg can read."""


class AudioPacket(NamedTuple):
    """A packet of a track."""

    track: int
    seconds: Fraction
    """When it starts, in seconds of the file's clock."""
    duration_seconds: Fraction
    data: bytes


# In this process -----------------------------------------------------------------------------------------------------


class AudioCopy:
    """Copies the audio tracks of a video into an open container.

    A track that cannot be read is left out. If the decoder process fails, the audio ends. Both warn in the log.

    Args:
        info: of the video.
        decoders: lend a process.
    """

    def __init__(self, info: VideoInfo, decoders: Decoders) -> None:
        self._video = info.video
        self._answers = _ask(info.video, decoders) if info.has_audio else iter(())
        self._opened: AudioOpened = next(self._answers, AudioOpened(b"", math.inf, 0))
        self.start = self._opened.start
        """When the audio starts, in seconds of the file's clock; infinity without audio."""

    def begin(self, target: av.container.OutputContainer, zero: Fraction) -> None:
        """Add the tracks to a container to which no packet was written yet.

        Args:
            target: the container.
            zero: its time 0, in seconds of the file's clock.
        """
        self._target, self._zero = target, zero
        self._tracks: list[Any] = []
        if math.isfinite(self.start):
            with av.open(io.BytesIO(self._opened.header)) as header:
                self._tracks = [_add_copy(stream, target) for stream in header.streams.audio]
        self._ends: dict[int, int] = {}  # of the tracks that have packets
        self._next = next(self._answers, None)

    def copy_until(self, seconds: Fraction | None) -> None:
        """Write the packets that start before a time in the target; None: all of them."""
        while self._next is not None and (seconds is None or self._next.seconds - self._zero < seconds):
            self._write(self._next)
            self._next = next(self._answers, None)
        if seconds is None and (num_left_out := self._opened.num_tracks - len(self._ends)):
            _log.warning("%s: audio tracks left out, because FFmpeg cannot read them: %d", self._video, num_left_out)

    def _write(self, sent: AudioPacket) -> None:
        stream = self._tracks[sent.track]
        packet: av.Packet[Any] = av.Packet(sent.data)
        packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, stream.rate), True
        units = round((sent.seconds - self._zero) * stream.rate)
        packet.pts = packet.dts = max(units, self._ends.get(sent.track, units))
        packet.duration = round(sent.duration_seconds * stream.rate)
        self._ends[sent.track] = packet.pts + 1
        with suppress(av.error.InvalidDataError):  # damage
            self._target.mux(packet)


def _ask(video: str, decoders: Decoders) -> Iterator[Any]:
    """Yield what a decoder process answers: AudioOpened, then packets."""
    try:
        with decoders.ask(AudioRequest(video, decoders.allow_playlists)) as answers:
            yield from answers
    except VideoError as error:
        _log.warning("%s; its audio is left out from there on", error)


# In the decoder process ----------------------------------------------------------------------------------------------


def read_audio(request: AudioRequest) -> Iterator[AudioOpened | AudioPacket]:
    """Yield AudioOpened and then the packets.

    Raises:
        VideoError: the video cannot be opened.
    """
    file = io.BytesIO()
    with (
        open_container(request.video, allow_playlists=request.allow_playlists) as source,
        av.open(file, "w", "matroska", options={"fflags": "flush_packets"}) as header,
    ):
        streams = [stream for stream in source.streams.audio if _is_usable(stream)]
        for stream in source.streams:
            if stream not in streams:
                stream.discard = Discard.all
        tracks = {stream.index: _Track(n, stream, header) for n, stream in enumerate(streams)}
        if streams:
            header.start_encoding()
        starts = [time_base(stream) * max(stream.start_time or 0, 0) for stream in streams]  # a lead-in may be before 0
        yield AudioOpened(file.getvalue() + _NO_PACKETS, min(starts, default=math.inf), len(source.streams.audio))
        for _ in range(MAX_DEMUX_ERRORS if streams else 0):
            with suppress(av.error.FFmpegError):  # damage
                for packet in source.demux(streams):
                    yield from tracks[packet.stream.index].convert(packet)
                return


class _Track:
    """A track: the packets of a stream or, if they cannot be copied, AAC."""

    def __init__(self, number: int, stream: av.AudioStream, header: av.container.OutputContainer) -> None:
        self._number, self._base = number, time_base(stream)
        self._shift = Fraction(0)  # where the file's clock started again
        self._expected: Fraction | None = None  # start of the next packet
        self._decoder = None if _is_copied(stream) else stream.codec_context
        if self._decoder is None:
            _add_copy(stream, header)
            return
        encoder = av.codec.Codec("aac", "w")
        rate = self._decoder.sample_rate
        encoded: Any = header.add_stream("aac", rate=rate if rate in (encoder.audio_rates or ()) else 48000)
        encoded.codec_context.layout = {1: "mono", 6: "5.1"}.get(self._decoder.layout.nb_channels, "stereo")
        _copy_language(stream, encoded)
        self._encoder = encoded.codec_context

    def convert(self, packet: av.Packet[Any]) -> Iterator[AudioPacket]:
        """Yield what becomes of a packet; an empty one, which ends the stream, gives what the codecs still hold."""
        if packet.size:
            start = self._start_of(packet)
            self._expected = start + (packet.duration or 0) * self._base
            packet.pts = packet.dts = round(start / self._base)
        if self._decoder is not None:
            with suppress(av.error.FFmpegError):  # damage
                for frame in [*self._decoder.decode(packet), *([] if packet.size else [None])]:
                    for encoded in self._encoder.encode(frame):
                        yield self._to_sent(encoded, Fraction(1, self._encoder.sample_rate))
        elif packet.size:
            yield self._to_sent(packet, self._base)

    def _start_of(self, packet: av.Packet[Any]) -> Fraction:
        units = packet.pts if packet.dts is None else packet.dts
        start = None if units is None else units * self._base - self._shift
        if self._expected is None:
            return start or Fraction(0)
        if start is None or not -_MAX_BACK_SECONDS <= start - self._expected <= _MAX_GAP_SECONDS:
            self._shift += 0 if start is None else start - self._expected
            return self._expected
        return start

    def _to_sent(self, packet: av.Packet[Any], base: Fraction) -> AudioPacket:
        return AudioPacket(self._number, (packet.pts or 0) * base, (packet.duration or 0) * base, bytes(packet))


def _is_usable(stream: av.AudioStream) -> bool:
    """Whether FFmpeg knows how to decode a stream."""
    context = stream.codec_context
    return bool(context and context.sample_rate and context.layout.nb_channels)


def _is_copied(stream: av.AudioStream) -> bool:
    context = stream.codec_context
    name = context.codec.canonical_name
    return name in COPIED and not (name == "mp3" and context.sample_rate < 16000)  # which FFmpeg refuses in MP4


def _add_copy(stream: av.AudioStream, target: av.container.OutputContainer) -> Any:
    copy = target.add_stream_from_template(stream)
    _copy_language(stream, copy)
    return copy


def _copy_language(stream: av.AudioStream, copy: Any) -> None:
    copy.metadata.update({key: value for key, value in stream.metadata.items() if key == "language"})
