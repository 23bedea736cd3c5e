"""Frames → aligned rgb and flow, one entry of each a frame, resized and cropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .flow import to_grey
from .preprocess import place_crops, resize
from .records import Frame

_Scalar = TypeVar("_Scalar", bound=np.generic)

FlowOfPair = Callable[[int, NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""(index of the first frame, its grey picture (H, W) uint8, that of the next frame) → flow (H, W, 2) in pixels."""


@dataclass(frozen=True)
class StreamFrame:
    """What the streams hold for one frame."""

    seconds: float
    end_seconds: float
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (H, W, 3) uint8; "flow": (H, W, 2) float32, the motion from this frame to the next in pixels."""


def align_streams(
    frames: Iterable[Frame],
    *,
    size_px: int | tuple[int, int],
    crop_px: int | None,
    rgb: bool,
    flow: FlowOfPair | None,
    antialias: bool = True,
) -> Iterator[StreamFrame]:
    """Resize every frame once, pair it with its flow, and crop both.

    flow[t] is the motion from frame t to frame t+1; the last frame has no successor and repeats the flow before it
    (a single frame: no motion), so both streams have as many entries as there are frames. Two frames are held.

    Args:
        frames: in the order of time.
        size_px: see `preprocess.resized_size`; flow is computed at this size.
        crop_px: side of the central square that is kept; None keeps the whole frame.
        rgb: whether to give the rgb stream.
        flow: computes the flow of a pair; None leaves the flow stream out.
        antialias: see `preprocess.resize`.
    """
    shown: _Resized | None = None
    motion: NDArray[np.float32] | None = None
    for frame in frames:
        if shown is not None and frame.rgb is shown.frame.rgb:
            # Resampling to a higher rate shows one picture several times: it is resized once.
            coming = _Resized(frame, shown.rgb, shown.grey)
        else:
            resized = resize(frame.rgb, size_px, antialias=antialias)
            coming = _Resized(frame, resized, to_grey(resized) if flow else None)
        if shown is not None:
            if flow is not None and shown.grey is not None and coming.grey is not None:
                motion = _crop_centre(flow(shown.frame.index, shown.grey, coming.grey), crop_px)
            yield shown.to_streams(crop_px, rgb, motion)
        shown = coming
    if shown is not None:
        if flow is not None and motion is None:
            motion = _crop_centre(np.zeros((*shown.rgb.shape[:2], 2), np.float32), crop_px)
        yield shown.to_streams(crop_px, rgb, motion)


def _crop_centre(image: NDArray[_Scalar], crop_px: int | None) -> NDArray[_Scalar]:
    if crop_px is None:
        return image
    (centre,) = place_crops(1, image.shape[0], image.shape[1], crop_px)
    return centre.cut(image)  # a copy: the frame around it can be freed


@dataclass(frozen=True)
class _Resized:
    frame: Frame
    rgb: NDArray[np.uint8]
    grey: NDArray[np.uint8] | None

    def to_streams(self, crop_px: int | None, with_rgb: bool, motion: NDArray[np.float32] | None) -> StreamFrame:
        streams: dict[str, NDArray[Any]] = {}
        if with_rgb:
            streams["rgb"] = _crop_centre(self.rgb, crop_px)
        if motion is not None:
            streams["flow"] = motion
        return StreamFrame(self.frame.seconds, self.frame.end_seconds, streams)
