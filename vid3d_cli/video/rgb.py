"""Decoded frames → RGB arrays, upright."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ..errors import NotAVideo
from .pixels import PixelOptions

# Values of AVColorSpace, AVColorTransferCharacteristic and AVColorRange in FFmpeg, libavutil/pixfmt.h.
BT709, UNSPECIFIED, RESERVED, BT601 = 1, 2, 3, 5
LIMITED, FULL = 1, 2
MATRIX_NAMES = {
    0: "gbr",
    BT709: "bt709",
    4: "fcc",
    BT601: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
    14: "ictcp",
}
"""FFmpeg's names of the YUV matrices."""

# Without the second flag (full chroma), swscale is 1 to 2 grey levels too dark on average.
_EXACT = 0x2 | 0x2000  # SWS_BILINEAR | SWS_FULL_CHR_H_INT

# Every other extractor has these numbers, which have a bias of 1 grey level.
_FAST = 0x2
_FAST_FORMATS = ("yuv420p", "yuvj420p", "yuva420p")

# swscale reads grey as of full range, whatever its tag.
_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Orientation:
    """How a stored frame is turned upright: mirrored first, then rotated clockwise."""

    is_mirrored: bool = False
    rotation_degrees: int = 0

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Read the display matrix of a frame; angles are rounded to quarter turns.

        The matrix (a b u, c d v, x y w) puts column p, row q at column a·p + c·q, row b·p + d·q.
        Source: FFmpeg, libavutil/display.h.
        """
        try:
            side_data: Mapping[str, Any] = frame.side_data  # PyAV types it as a dict of other keys
            if "DISPLAYMATRIX" not in side_data:
                return cls()
        except ValueError:  # side data of a kind that PyAV cannot name (before version 19)
            return cls(rotation_degrees=90 * (round(-frame.rotation / 90) % 4))
        a, b, _, c, d = struct.unpack("=5i", bytes(side_data["DISPLAYMATRIX"])[:20])
        quarter_turns = round(math.degrees(math.atan2(-c, d)) / 90) % 4
        return cls(is_mirrored=a * d - b * c < 0, rotation_degrees=90 * quarter_turns)

    def apply(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a stored (H, W, 3) frame upright, C-contiguous."""
        mirrored = stored[:, ::-1] if self.is_mirrored else stored
        return np.ascontiguousarray(np.rot90(mirrored, k=-self.rotation_degrees // 90))


class RgbConverter:
    """Converts frames to upright RGB arrays, all of one size; alpha is dropped.

    A frame that is asked for several times in a row is converted once, and its array is shared.

    Args:
        video: path or URL, for errors.
        first: the first frame; it gives the size and the orientation.
        pixel_aspect: how wide a pixel is, as a multiple of its height.
        options: how to convert.
    """

    def __init__(
        self,
        video: str,
        first: av.VideoFrame,
        pixel_aspect: Fraction = Fraction(1),
        options: PixelOptions = PixelOptions(),  # noqa: B008  (immutable)
    ) -> None:
        self._video, self._matrix = video, options.colour_matrix
        self._width = max(1, round(first.width * pixel_aspect)) if options.square_pixels else first.width
        self._height = first.height
        self._orientation = Orientation.of(first)
        # The bytes are those of frame.to_ndarray(format="rgb24"), which sets swscale up for every frame: 4.3 ms instead
        # of 0.5 ms at 340×256.
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame | None = None
        self._rgb: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the arrays."""
        is_turned = self._orientation.rotation_degrees % 180 == 90
        return (self._width, self._height) if is_turned else (self._height, self._width)

    def convert(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Return a frame as (H, W, 3), C-contiguous.

        Raises:
            NotAVideo: FFmpeg cannot convert its pixel format.
        """
        if frame is not self._frame:
            self._rgb, self._frame = self._orientation.apply(self._convert(frame)), frame
        return self._rgb

    def _convert(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        name, is_limited = frame.format.name, frame.color_range == LIMITED
        frame.colorspace = self._choose_matrix(frame)
        frame.color_trc = frame.color_primaries = UNSPECIFIED  # swscale refuses some values, and applies none
        flags = _FAST if name in _FAST_FORMATS else _EXACT
        try:
            # One thread: frames are too small for swscale's own.
            rgb = self._reformatter.reformat(frame, self._width, self._height, "rgb24", interpolation=flags, threads=1)
        except (av.error.FFmpegError, ValueError) as error:
            matrix = MATRIX_NAMES.get(frame.colorspace, f"matrix {frame.colorspace}")
            message = f"its pixel format {name}, {matrix}, does not convert to RGB ({error}); re-encode it"
            raise NotAVideo(self._video, message) from error
        stored = rgb.to_ndarray().astype(np.uint8, copy=False)  # already uint8; this is for mypy
        return _FROM_LIMITED[stored] if name.startswith("gray") and is_limited else stored

    def _choose_matrix(self, frame: av.VideoFrame) -> int:
        if self._matrix in ("bt601", "bt709"):
            return BT601 if self._matrix == "bt601" else BT709
        if frame.colorspace not in (UNSPECIFIED, RESERVED):
            return frame.colorspace
        # Source of the sizes: mpv, mp_csp_guess_colorspace.
        return BT709 if self._matrix == "guess" and (frame.width >= 1280 or frame.height > 576) else BT601
