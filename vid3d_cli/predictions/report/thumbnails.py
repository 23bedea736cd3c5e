"""Thumbnails of a video over time, read in a decoder process as its clips were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import NoFrames
from ...video.pixels import PixelOptions
from ...video.process import Decoders
from ...video.reader import VideoInfo

MAX_THUMBNAILS = 40
MAX_PER_SECOND = 4
SIDE_PX = 160
"""The longer side."""

MAX_BYTES = 300_000
"""Of all thumbnails of a video."""
QUALITIES = (60, 30, 10)
"""Of JPEG: the first that fits into `MAX_BYTES`, else the last."""

SEEK_FROM_SECONDS = 600.0
"""A longer span is read by one seek for each thumbnail: 40 of them take as long as decoding ten minutes."""

AS_PLAYERS_SHOW = PixelOptions(colour_matrix="guess", square_pixels=True)

Thumbnail = tuple[float, bytes]
"""When its frame appears, in seconds, and a JPEG file."""


def read_thumbnails(
    decoders: Decoders, video: str, start_seconds: float, end_seconds: float
) -> tuple[VideoInfo, list[Thumbnail]]:
    """Return the facts of a video and its thumbnails, at least one, in the order of time.

    Args:
        decoders: read the frames.
        video: path or URL.
        start_seconds: of the span to show.
        end_seconds: of the span to show.

    Raises:
        VideoError: the video cannot be read.
    """
    span = max(end_seconds - start_seconds, 0.001)
    num = min(MAX_THUMBNAILS, math.ceil(span * MAX_PER_SECOND))
    with decoders.open(video, start_seconds=start_seconds, pixels=AS_PLAYERS_SHOW) as frames:
        info, first = frames.info, next(frames)
    shown = [(first.seconds, _shrink(first.rgb))]
    can_seek = info.duration_seconds is not None
    if can_seek and span > SEEK_FROM_SECONDS:
        times = [start_seconds + span * i / num for i in range(1, num)]
        shown += _seek(decoders, video, times)
    elif num > 1:
        # Half a tick more than wanted: a tick at the very start or end may be rounded away.
        fps = Fraction((num + 0.5) / span).limit_denominator(10**6)
        until = {"start_seconds": start_seconds, "end_seconds": end_seconds}
        with suppress(NoFrames), decoders.open(video, fps=fps, pixels=AS_PLAYERS_SHOW, **until) as frames:
            shown = [(frame.seconds, _shrink(frame.rgb)) for frame in frames][:num] or shown
    return info, _encode(list(dict(shown).items()))  # seeks into a damaged part find the same frame after it


def _seek(decoders: Decoders, video: str, times: list[float]) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    for seconds in times:
        with suppress(NoFrames), decoders.open(video, start_seconds=seconds, pixels=AS_PLAYERS_SHOW) as frames:
            frame = next(frames)
            yield frame.seconds, _shrink(frame.rgb)


def _shrink(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _encode(shown: list[tuple[float, NDArray[np.uint8]]]) -> list[Thumbnail]:
    for quality in QUALITIES:
        encoded = [(seconds, _to_jpeg(rgb, quality)) for seconds, rgb in shown]
        if sum(len(jpeg) for _, jpeg in encoded) <= MAX_BYTES:
            break
    return encoded


def _to_jpeg(rgb: NDArray[np.uint8], quality: int) -> bytes:
    bgr: Any = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
