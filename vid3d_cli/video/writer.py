"""Writes frames to a video file that common players can show."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.codec
import av.container
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ..errors import UsageError
from .rgb import BT709, LIMITED

VIDEO_CODECS = {
    ".mp4": ("libx264", "mpeg4"),
    ".mov": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".avi": ("mpeg4",),
    ".webm": ("libvpx-vp9", "libvpx"),
}
"""The encoders to try for each suffix; which of them exist depends on how FFmpeg was built."""

_ENCODER_OPTIONS = {
    "libx264": {"crf": "18"},  # the defaults are made for camera noise and smear edges of motion
    "libvpx-vp9": {"crf": "24", "b": "0"},
    "libvpx": {"crf": "10", "b": "4M"},
    "mpeg4": {},  # see `VideoWriter._add_stream`
}

_FORMATS = {".mkv": "matroska"}
"""FFmpeg's names of the containers that are not called like their suffix."""

_MAX_RATE = 65535
"""MPEG-4 stores no finer rate or time."""


class VideoWriter:
    """Writes a video frame by frame; the suffix decides the container.

    Args:
        path: the file, with one of the suffixes of `VIDEO_CODECS`.
        fps: frames per second.
        time_base: seconds per unit of the times that `write` is given; None writes frames at the fixed rate.
        suffix: that of the format, if the path has another one.

    Raises:
        UsageError: this PyAV has no encoder for the suffix.
    """

    def __init__(
        self, path: Path, *, fps: Fraction, time_base: Fraction | None = None, suffix: str | None = None
    ) -> None:
        self._path = path
        self._suffix = (suffix or path.suffix).lower()
        self._codec = _find_encoder(self._suffix)
        self._rate = Fraction(fps).limit_denominator(_MAX_RATE)
        self._time_base = time_base
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._reformatter = VideoReformatter()

    def open(self) -> av.container.OutputContainer:
        """Create the file, and return its container: streams may be added until the first frame is written."""
        options = {}
        if self._time_base is not None and self._suffix in (".mp4", ".mov"):
            # Browsers need the index first. Streams that start late do so by a time in the file's own units.
            unit = self._time_base.denominator
            options = {"movflags": "faststart", "movie_timescale": str(unit * -(-48000 // unit))}
        form = _FORMATS.get(self._suffix, self._suffix[1:])
        self._container = av.open(f"file:{self._path}", "w", form, options=options)  # a path is never a protocol
        return self._container

    def write(self, rgb: NDArray[np.uint8], units: int | None = None, duration_units: int = 0) -> None:
        """Append a frame (H, W, 3), of the same size as the others; an odd side gets one more pixel.

        Args:
            rgb: the frame.
            units: when it appears, later than the one before; None at a fixed rate.
            duration_units: how long it is shown; only that of the last frame counts.
        """
        # 4:2:0 shares each colour among 2×2 pixels; players and x264 refuse odd sizes.
        rgb = np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge")
        if self._stream is None:
            self.add_stream(*rgb.shape[:2])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if units is not None:
            frame = self._reformatter.reformat(frame, format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
            frame.pts, frame.duration, frame.time_base = units, duration_units, self._time_base
        self._mux(frame)

    def add_stream(self, height_px: int, width_px: int) -> None:
        """Add the stream of frames before other streams; `write` does it otherwise."""
        assert self._container is not None  # opened
        stream: Any = self._container.add_stream(self._codec, rate=self._rate, options=_ENCODER_OPTIONS[self._codec])
        stream.height, stream.width = height_px + height_px % 2, width_px + width_px % 2
        stream.pix_fmt = "yuv420p"
        if self._codec == "mpeg4":
            stream.bit_rate = 8 * height_px * width_px  # the default does not depend on the size and leaves blocks
        if self._time_base is not None:
            context = stream.codec_context
            if self._codec != "mpeg4" or self._time_base.denominator <= _MAX_RATE:
                context.time_base = self._time_base
            else:
                context.time_base = Fraction(1, _MAX_RATE)
            # Without tags, players guess by the size.
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
        self._stream = stream

    def _mux(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the frames that the encoder still holds, and close."""
        self._mux(None)
        self.close()

    def close(self) -> None:
        """Close the file as it is."""
        if self._container is not None:
            self._container.close()
            self._container = None


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], *, fps: Fraction) -> None:
    """Write frames (H, W, 3) to a video; see `VideoWriter`."""
    writer = VideoWriter(path, fps=fps)
    writer.open()
    try:
        for frame in frames:
            writer.write(frame)
        writer.finish()
    finally:
        writer.close()


def _find_encoder(suffix: str) -> str:
    for name in VIDEO_CODECS[suffix]:
        with suppress(ValueError):
            return str(av.codec.Codec(name, "w").name)
    raise UsageError(f"this PyAV has no encoder for {suffix} ({', '.join(VIDEO_CODECS[suffix])}): use another suffix")
