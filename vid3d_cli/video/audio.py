"""Copies the audio of a video into another file, packet by packet.

    packets of a codec that MP4 players know → the same bytes at the same times
    other packets → decoded in a process of its own → AAC in a temporary file → its packets

No audio is decoded in this process: a hostile file can only crash or stall the other one.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
import av.container
import av.error
from av.stream import Discard

from . import TIMEOUT_SECONDS
from .container import AV_TIME_BASE, open_container, time_base
from .passes import MAX_DEMUX_ERRORS

COPIED = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "opus")
"""FFmpeg's names of the codecs that stay as they are: MP4 holds them, and players play them there."""

_MAX_BACK_SECONDS, _MAX_GAP_SECONDS = 1, 3600
"""A packet that is earlier or later than this was damaged, or the file's clock started again: it follows directly."""

_COMMAND = "import sys; sys.path[:] = sys.argv[4:]; from vid3d_cli.video.audio import encode; encode(*sys.argv[1:4])"

_log = logging.getLogger(__name__)


class AudioCopy:
    """Copies the audio tracks of a video into an open container; a context manager.

    A track that cannot be copied is left out, with a warning in the log.

    Args:
        video: path or URL.
        source: the open video, of which only the audio is read.
        target: the container, to which no packet was written yet.
        shift: seconds that all times become earlier.
        allow_playlists: see `container.open_container`.
    """

    def __init__(
        self,
        video: str,
        source: av.container.InputContainer,
        target: av.container.OutputContainer,
        shift: Fraction,
        *,
        allow_playlists: bool = False,
    ) -> None:
        self._stack = contextlib.ExitStack()
        streams = _usable(source)
        if len(streams) < len(source.streams.audio):
            _log.warning("%s: an audio track is left out: FFmpeg cannot read it", video)
        if not all(map(_is_copied, streams)):
            codecs = ", ".join(stream.codec_context.name for stream in streams)
            encoded = self._stack.enter_context(tempfile.NamedTemporaryFile(prefix="vid3d-"))  # noqa: SIM115
            if _encode_elsewhere(video, encoded.name, allow_playlists, source.duration):
                source = self._stack.enter_context(open_container(encoded.name))
                streams = _usable(source)
            else:
                _log.warning("%s: its audio is left out: it does not decode (%s)", video, codecs)
                streams = []
        self._tracks = {stream.index: _Track(stream, target, shift) for stream in streams}
        self._packets = _demux(source, streams)
        self._next = next(self._packets, None)

    def copy_until(self, seconds: Fraction | None) -> None:
        """Write the packets that start before a time in the target; None: all of them."""
        while self._next is not None:
            track = self._tracks[self._next.stream_index]
            if seconds is not None and track.seconds_of(self._next) >= seconds:
                return
            track.write(self._next)
            self._next = next(self._packets, None)

    def __enter__(self) -> AudioCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._packets.close()  # before the container
        self._stack.close()


class _Track:
    """A track of the target: it has the packets of a stream or, if that cannot be copied, AAC."""

    def __init__(self, stream: av.AudioStream, target: av.container.OutputContainer, shift: Fraction) -> None:
        self._target, self._shift, self._base = target, shift, time_base(stream)
        self._last: Fraction | None = None  # start of the latest packet
        self._duration = Fraction(0)  # of the latest packet
        self._decoder = None if _is_copied(stream) else stream.codec_context
        self._stream: Any
        if self._decoder is None:
            self._stream = target.add_stream_from_template(stream)
        else:
            encoder = av.codec.Codec("aac", "w")
            rate = self._decoder.sample_rate
            layout = {1: "mono", 6: "5.1"}.get(self._decoder.layout.nb_channels, "stereo")
            self._stream = target.add_stream("aac", rate=rate if rate in (encoder.audio_rates or ()) else 48000)
            self._stream.codec_context.layout = layout
        self._stream.metadata.update({key: value for key, value in stream.metadata.items() if key == "language"})

    def seconds_of(self, packet: av.Packet[Any]) -> Fraction:
        """Return when a packet starts in the target."""
        units = packet.pts if packet.dts is None else packet.dts
        start = None if units is None else units * self._base - self._shift
        if self._last is None:
            return Fraction(0) if start is None else start
        expected = self._last + self._duration
        if start is None or not -_MAX_BACK_SECONDS <= start - expected <= _MAX_GAP_SECONDS:
            self._shift += 0 if start is None else start - expected
            start = expected
        return max(start, self._last + self._base)

    def write(self, packet: av.Packet[Any]) -> None:
        """Write a packet."""
        self._last = self.seconds_of(packet)
        self._duration = (packet.duration or 0) * self._base
        packet.pts = packet.dts = round(self._last / self._base)
        if self._decoder is None:
            packet.stream = self._stream
            with contextlib.suppress(av.error.InvalidDataError):  # damage
                self._target.mux(packet)
        else:
            self._encode(packet)

    def finish(self) -> None:
        """Write what the codecs still hold."""
        if self._decoder is not None:
            self._encode(None)
            self._target.mux(self._stream.encode(None))

    def _encode(self, packet: av.Packet[Any] | None) -> None:
        assert self._decoder is not None
        with contextlib.suppress(av.error.FFmpegError):  # damage
            for frame in self._decoder.decode(packet):
                self._target.mux(self._stream.encode(frame))


def _is_copied(stream: av.AudioStream) -> bool:
    context = stream.codec_context
    name = context.codec.canonical_name
    return name in COPIED and not (name == "mp3" and context.sample_rate < 16000)  # which FFmpeg refuses in MP4


def _usable(source: av.container.InputContainer) -> list[av.AudioStream]:
    """Return the audio streams that FFmpeg knows how to decode."""
    contexts = [(stream, stream.codec_context) for stream in source.streams.audio]
    return [stream for stream, context in contexts if context and context.sample_rate and context.layout.nb_channels]


def _demux(
    source: av.container.InputContainer, streams: Sequence[av.AudioStream]
) -> Generator[av.Packet[Any], None, None]:
    """Yield the packets of some streams; damage between them is skipped."""
    for stream in source.streams:
        if stream not in streams:
            stream.discard = Discard.all
    for _ in range(MAX_DEMUX_ERRORS if streams else 0):
        try:
            yield from (packet for packet in source.demux(streams) if packet.size)
        except av.error.FFmpegError:
            continue
        return


def _encode_elsewhere(video: str, path: str, allow_playlists: bool, duration: int | None) -> bool:
    """Write the audio of a video to an MP4 file, in another process; return whether it ended well."""
    command = [sys.executable, "-c", _COMMAND, video, path, "playlists" * allow_playlists, *sys.path]
    timeout = TIMEOUT_SECONDS + (duration or 0) / AV_TIME_BASE
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0


def encode(video: str, path: str, allow_playlists: str = "") -> None:
    """Write the audio tracks of a video to an MP4 file, at their times in the video; runs in its own process."""
    with (
        open_container(video, allow_playlists=bool(allow_playlists)) as source,
        av.open(f"file:{path}", "w", "mp4", options={"movie_timescale": "48000"}) as target,
    ):
        streams = _usable(source)
        tracks = {stream.index: _Track(stream, target, Fraction(0)) for stream in streams}
        for packet in _demux(source, streams):
            tracks[packet.stream_index].write(packet)
        for track in tracks.values():
            track.finish()
