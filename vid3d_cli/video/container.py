"""Opens the container of a path or URL and chooses the stream to read; its errors say what is wrong with the file.

Rationals of PyAV become `fractions.Fraction` here.
"""

from __future__ import annotations

import contextlib
import re
import stat
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.format
import av.video
from av.stream import Disposition

from ..errors import EmptyFile, NotAVideo, NoVideoStream, TooLarge, TruncatedVideo, VideoNotFound
from ..offline import is_on
from . import MAX_PIXELS as MAX_PIXELS
from .clock import MAX_JUMP_SECONDS
from .sources import is_url

URL_TIMEOUT_SECONDS = 30.0
"""A server may take this long to answer, on opening and on every read."""

URL_SCHEMES = ("http", "https")

# A title that is not UTF-8 must not fail a video. PyAV 19 and later accept it by default.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

# For sizes that are not in the header, and frames that are larger than it says.
_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}

_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS in FFmpeg's libavformat/avformat.h
_DEFAULT_RATE = Fraction(25)  # frames per second, if the file does not say
AV_TIME_BASE = 1_000_000
"""A container's start and duration are in microseconds."""

# FFmpeg chooses a demuxer by content, whatever a file is called. These open other files, addresses or ports, ...
_PLAYLISTS = {"concat", "dash", "hls", "imf", "mlv", "vobsub"}
# ... and these run scripts, or listen to the network.
_NEVER = {"avisynth", "lavfi", "rtp", "rtsp", "sap", "sdp", "vapoursynth"}
_FORMATS = av.format.formats_available - _NEVER

_HTTP = "http,https,httpproxy,tcp,tls"
_IN_PLAYLISTS = "crypto,data"  # encrypted segments, and keys inside the playlist

_DESCRIPTOR = re.compile(r"/dev/std(in|out|err)|/dev/fd/\d+|/proc/(self|\d+)/fd/\d+")

_TRUNCATED = "cut off before the end of its index (moov), as by a broken download or recording; fetch it again"


def open_container(video: str, *, allow_playlists: bool = False) -> av.container.InputContainer:
    """Return the open container of a path, or of an http or https URL.

    A path is always a file: "take:2.mp4" and "concat:a.mp4" are no protocols.

    Args:
        video: path or URL.
        allow_playlists: open the files and addresses that it names, if it is a playlist: HLS, ffconcat. Else FFmpeg
            opens nothing but the file itself, or addresses that the URL redirects to.

    Raises:
        VideoError: FFmpeg cannot open it; the class says why.
    """
    formats = _FORMATS if allow_playlists else _FORMATS - _PLAYLISTS
    # "none": FFmpeg reads x%03d.png and x*.png as file names, not as patterns.
    allowed = {"format_whitelist": ",".join(formats), "pattern_type": "none"}
    if is_url(video):
        allowed["protocol_whitelist"] = f"{_HTTP},{_IN_PLAYLISTS}" if allow_playlists else _HTTP
        return _open_url(video, allowed)
    _check_file(video)
    allowed["protocol_whitelist"] = f"file,{_HTTP},{_IN_PLAYLISTS}" if allow_playlists else "file"
    try:
        # The prefix keeps FFmpeg from reading a protocol in the name.
        container = _open(f"file:{video}", allowed)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, av.error.ArgumentError) and not allow_playlists and _may_be_playlist(video):
            raise NotAVideo(
                video,
                "it names other files or addresses, as a playlist does; if you trust it, add --allow-playlists",
            ) from error
        check_index(video, error)
        # A fragmented MP4 that ends in the index of a fragment opens if FFmpeg cannot look ahead.
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            return _open(f"file:{video}", {**allowed, "seekable": "0"})
        raise NotAVideo(video, f"not a video that FFmpeg can open ({_reason(error)})") from error
    if container.format.name == "tty":  # FFmpeg would draw any *.txt as ANSI art
        container.close()
        raise NotAVideo(video, "a text file, not a video; to read a list of videos from it, write @ before its name")
    return container


def _open(name: str, options: dict[str, str], *, timeout: float | None = None) -> av.container.InputContainer:
    container: av.container.InputContainer = av.open(
        name, options={**_DECODER_OPTIONS, **options}, timeout=timeout, **_ANY_METADATA
    )
    return container


def _may_be_playlist(video: str) -> bool:
    """Whether a file that FFmpeg refused is text, as playlists are."""
    with Path(video).open("rb") as file:
        return b"\0" not in file.read(4096)


def _open_url(url: str, allowed: dict[str, str]) -> av.container.InputContainer:
    scheme, rest = url.split("://", 1)
    if scheme.lower() not in URL_SCHEMES:
        advice = f"write {rest}" if scheme.lower() == "file" else "save it to a file first"
        raise NotAVideo(url, f"{scheme}:// is not read, only {' and '.join(URL_SCHEMES)}; {advice}")
    if is_on("VID3D_OFFLINE"):
        raise NotAVideo(url, "not opened: VID3D_OFFLINE is set")
    try:
        return _open(f"{scheme.lower()}://{rest}", allowed, timeout=URL_TIMEOUT_SECONDS)
    except av.error.ExitError as error:
        raise NotAVideo(url, f"no answer within {URL_TIMEOUT_SECONDS:g} s; try again later") from error
    except (av.error.HTTPNotFoundError, av.error.FileNotFoundError) as error:
        raise VideoNotFound(url, f"no such video on the server ({_reason(error)}); check the address") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        advice = "check the address; a playlist (HLS, .m3u8) needs --allow-playlists"
        raise NotAVideo(url, f"cannot be opened ({_reason(error)}); {advice}") from error


def _check_file(video: str) -> None:
    """Raise an error for an unusable path; FFmpeg's own errors say less."""
    if _DESCRIPTOR.fullmatch(video):  # the decoder process has other ones
        raise NotAVideo(video, "cannot read a video from standard input or a pipe; save it to a file first")
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


def check_index(video: str, cause: Exception) -> None:
    """Raise TruncatedVideo for an MP4 or QuickTime file that ends before its index (moov) does."""
    if not is_url(video) and _is_mp4_without_index(video):
        raise TruncatedVideo(video, _TRUNCATED) from cause


def _is_mp4_without_index(video: str) -> bool:
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


def is_rereadable(video: str) -> bool:
    """Whether opening the video again gives the same bytes; a camera or a pipe does not."""
    return not is_url(video) and Path(video).is_file()


def may_begin_anywhere(container: av.container.InputContainer) -> bool:
    """Whether a file of this format may begin between two keyframes, as a capture of a broadcast does."""
    return container.format.name in ("mpegts", "mpeg") or bool(container.format.flags & _NO_TIMESTAMPS)


def choose_stream(container: av.container.InputContainer, video: str, *, has_threads: bool) -> av.VideoStream:
    """Return the stream to read, ready to decode: FFmpeg's choice, but never a cover image.

    Raises:
        NoVideoStream: there is none.
        NotAVideo: FFmpeg has no decoder for it.
        TooLarge: its frames would need gigabytes of memory.
    """
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & still]
    if not moving:
        found = "only a cover image" if container.streams.video else "only audio" if container.streams.audio else ""
        raise NoVideoStream(video, f"no video stream in it{found and ', '}{found}; name a file that contains video")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    context = stream.codec_context
    if context is None:
        raise NotAVideo(video, "FFmpeg has no decoder for its video codec; re-encode it, for example as H.264")
    if context.width * context.height > MAX_PIXELS:
        raise TooLarge(
            video,
            f"its header announces frames of {context.width} × {context.height} pixels, more than "
            f"{MAX_PIXELS // 10**6} million: it is damaged; if it is not, re-encode it smaller",
        )
    context.options = _DECODER_OPTIONS
    stream.thread_type = "AUTO" if has_threads else "NONE"
    return stream


def time_base(stream: av.VideoStream | av.AudioStream) -> Fraction:
    """Return the seconds per unit of the stream's times."""
    return _fraction(stream.time_base) or Fraction(1, AV_TIME_BASE)


def average_rate(stream: av.VideoStream) -> Fraction:
    """Return frames per second, from the first plausible source."""
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate, stream.codec_context.framerate]
    if stream.container.format.flags & _NO_TIMESTAMPS:  # raw .h264 and such: FFmpeg assumes 25, the codec may know
        rates.reverse()
    return next((_fraction(rate) for rate in rates if rate and _fraction(rate) >= 1 / MAX_JUMP_SECONDS), _DEFAULT_RATE)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Return how wide a pixel is, as a multiple of its height; 1 if the file says nothing plausible."""
    aspect = _fraction(stream.sample_aspect_ratio)
    return aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    """Return the seconds that the stream's header declares, else the container's; None if neither does."""
    # AVI's header gives one rate for both: where that is damaged, the duration is too.
    if time_base(stream) > MAX_JUMP_SECONDS:
        return None
    if stream.duration and stream.duration > 0:
        return stream.duration * time_base(stream)
    if container.duration and container.duration > 0:
        return Fraction(container.duration, AV_TIME_BASE)
    return None


def _fraction(rational: Any) -> Fraction:  # a Fraction until PyAV 18, PyAV's own type from 19 on
    return Fraction(rational.numerator, rational.denominator) if rational else Fraction(0)
