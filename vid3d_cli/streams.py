"""Frames → aligned rgb and flow, one entry of each a frame, resized and cropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .flow import to_grey
from .preprocess import centre_crop, resize_short_side
from .records import Frame

FlowOfPair = Callable[[int, NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""(index of the first frame, its grey picture (H, W) uint8, that of the next frame) → flow (H, W, 2) in pixels."""


@dataclass(frozen=True)
class StreamFrame:
    """What the streams hold for one frame."""

    seconds: float
    end_seconds: float
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (S, S, 3) uint8; "flow": (S, S, 2) float32, the motion from this frame to the next in pixels."""


def align_streams(
    frames: Iterable[Frame], *, short_side_px: int, crop_px: int, rgb: bool, flow: FlowOfPair | None
) -> Iterator[StreamFrame]:
    """Resize and crop every frame once and pair it with its flow.

    flow[t] is the motion from frame t to frame t+1; the last frame has no successor and repeats the flow before it
    (a single frame: no motion), so both streams have as many entries as there are frames. Two frames are held.

    Args:
        frames: in the order of time.
        short_side_px: the frame's short side after resizing; flow is computed at this size.
        crop_px: side of the central square that is kept.
        rgb: whether to give the rgb stream.
        flow: computes the flow of a pair; None leaves the flow stream out.
    """
    shown: _Resized | None = None
    motion = np.zeros((crop_px, crop_px, 2), np.float32)
    for frame in frames:
        if shown is not None and frame.rgb is shown.frame.rgb:
            # Resampling to a higher rate shows one picture several times: it is resized once.
            coming = _Resized(frame, shown.rgb, shown.grey)
        else:
            resized = resize_short_side(frame.rgb, short_side_px)
            coming = _Resized(frame, resized, to_grey(resized) if flow else None)
        if shown is not None:
            if flow is not None and shown.grey is not None and coming.grey is not None:
                motion = centre_crop(flow(shown.frame.index, shown.grey, coming.grey), crop_px)
            yield shown.to_streams(crop_px, rgb, motion if flow else None)
        shown = coming
    if shown is not None:
        yield shown.to_streams(crop_px, rgb, motion if flow else None)


@dataclass(frozen=True)
class _Resized:
    frame: Frame
    rgb: NDArray[np.uint8]
    grey: NDArray[np.uint8] | None

    def to_streams(self, crop_px: int, with_rgb: bool, motion: NDArray[np.float32] | None) -> StreamFrame:
        streams: dict[str, NDArray[Any]] = {}
        if with_rgb:
            streams["rgb"] = centre_crop(self.rgb, crop_px)
        if motion is not None:
            streams["flow"] = motion
        return StreamFrame(self.frame.seconds, self.frame.end_seconds, streams)
