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
from numpy.typing import NDArray

from ..errors import UsageError

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


class VideoWriter:
    """Writes a video frame by frame; the suffix decides the container.

    Args:
        path: the file, with one of the suffixes of `VIDEO_CODECS`.
        fps: frames per second.

    Raises:
        UsageError: this PyAV has no encoder for the suffix.
    """

    def __init__(self, path: Path, *, fps: Fraction) -> None:
        self._path = path
        self._codec = _find_encoder(path.suffix.lower())
        self._rate = Fraction(fps).limit_denominator(65535)  # MPEG-4 stores no finer one
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None

    def open(self) -> None:
        """Create the file."""
        self._container = av.open(f"file:{self._path}", "w")  # a path is never a protocol

    def write(self, rgb: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3), of the same size as the others; an odd side gets one more pixel."""
        # 4:2:0 shares each colour among 2×2 pixels; players and x264 refuse odd sizes.
        rgb = np.pad(rgb, [(0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)], mode="edge")
        if self._stream is None:
            self._stream = self._add_stream(*rgb.shape[:2])
        self._mux(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"))

    def _add_stream(self, height_px: int, width_px: int) -> Any:
        assert self._container is not None  # opened
        stream: Any = self._container.add_stream(self._codec, rate=self._rate, options=_ENCODER_OPTIONS[self._codec])
        stream.height, stream.width, stream.pix_fmt = height_px, width_px, "yuv420p"
        if self._codec == "mpeg4":
            stream.bit_rate = 8 * height_px * width_px  # the default does not depend on the size and leaves blocks
        return stream

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
