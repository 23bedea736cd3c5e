"""Frames → aligned rgb and flow, one entry of each a frame, resized and cropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .flow import to_grey
from .preprocess import place_crops, resize
from .records import Frame
from .workers import Workers

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


class _Picture(NamedTuple):
    """What is made of a frame once, however often it is shown."""

    rgb: NDArray[np.uint8]
    """Resized and cropped."""
    grey: NDArray[np.uint8] | None
    """Resized whole, for flow; None where none is computed."""


@dataclass(frozen=True)
class _Shown:
    """When a picture is shown, and what waits for it."""

    index: int
    seconds: float
    end_seconds: float
    picture: Callable[[], _Picture]


_WaitForMotion = Callable[[], NDArray[np.float32]]


def align_streams(
    frames: Iterable[Frame],
    *,
    size_px: int | tuple[int, int],
    crop_px: int | None,
    rgb: bool,
    flow: FlowOfPair | None,
    antialias: bool = True,
    workers: Workers | None = None,
) -> Iterator[StreamFrame]:
    """Resize every frame once, pair it with its flow, and crop both.

    flow[t] is the motion from frame t to frame t+1; the last frame has no successor and repeats the flow before it
    (a single frame: no motion), so both streams have as many entries as there are frames. Two frames are held, and
    those that the workers are at.

    Args:
        frames: in the order of time.
        size_px: see `preprocess.resized_size`; flow is computed at this size.
        crop_px: side of the central square that is kept; None keeps the whole frame.
        rgb: whether to give the rgb stream.
        flow: computes the flow of a pair, in any thread; None leaves the flow stream out.
        antialias: see `preprocess.resize`.
        workers: resize and compute flow; None does so in this thread.
    """
    workers = Workers() if workers is None else workers

    def prepare(stored: NDArray[np.uint8]) -> _Picture:
        resized = resize(stored, size_px, antialias=antialias)
        return _Picture(_crop_centre(resized, crop_px), to_grey(resized) if flow else None)

    def move(index: int, first: _Picture, second: _Picture) -> NDArray[np.float32]:
        assert flow is not None and first.grey is not None and second.grey is not None
        return _crop_centre(flow(index, first.grey, second.grey), crop_px)

    pictures = workers.ahead(_prepare_each(frames, prepare, workers))
    moving = _move_each(pictures, move, workers) if flow else ((shown, None) for shown in pictures)
    motion: NDArray[np.float32] | None = None
    for shown, wait_for_motion in workers.ahead(moving):
        picture = shown.picture()
        if wait_for_motion is not None:
            motion = wait_for_motion()
        elif flow is not None and motion is None:
            motion = np.zeros((*picture.rgb.shape[:2], 2), np.float32)
        streams: dict[str, NDArray[Any]] = {"rgb": picture.rgb} if rgb else {}
        if motion is not None:
            streams["flow"] = motion
        yield StreamFrame(shown.seconds, shown.end_seconds, streams)


def _prepare_each(
    frames: Iterable[Frame], prepare: Callable[[NDArray[np.uint8]], _Picture], workers: Workers
) -> Iterator[_Shown]:
    last: NDArray[np.uint8] | None = None
    for frame in frames:
        # Resampling to a higher rate shows one picture several times: it is resized once.
        if frame.rgb is not last:
            picture = workers.start("resize", prepare, frame.rgb)
            last = frame.rgb
        yield _Shown(frame.index, frame.seconds, frame.end_seconds, picture)


def _move_each(
    pictures: Iterable[_Shown], move: Callable[[int, _Picture, _Picture], NDArray[np.float32]], workers: Workers
) -> Iterator[tuple[_Shown, _WaitForMotion | None]]:
    """Every picture with its motion to the next one; the last one has none."""
    first: _Shown | None = None
    for second in pictures:
        if first is not None:
            yield first, workers.start("flow", move, first.index, first.picture(), second.picture())
        first = second
    if first is not None:
        yield first, None


def _crop_centre(image: NDArray[_Scalar], crop_px: int | None) -> NDArray[_Scalar]:
    if crop_px is None:
        return image
    (centre,) = place_crops(1, image.shape[0], image.shape[1], crop_px)
    return centre.cut(image)  # a copy: the frame around it can be freed
