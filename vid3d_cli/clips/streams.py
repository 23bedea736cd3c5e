"""Frames → aligned rgb and flow, one entry of each a frame, resized and cropped.

frames → resized → runs of pictures of one shape → flow, a run a call → entries, one a frame
                   0123  3456  6              3 pairs a call: a run ends with the picture that the next begins with
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..flow.methods import to_grey
from ..records import Frame
from ..workers import Workers
from .preprocess import place_crops, resize

_Scalar = TypeVar("_Scalar", bound=np.generic)

FlowOfRun = Callable[[int, NDArray[np.uint8]], NDArray[np.float32]]
"""(index of the first frame, grey pictures (n+1, H, W) of frames in a row, n ≥ 1) → flow (n, H, W, 2) in pixels."""


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
    grey: NDArray[np.uint8]
    """Resized whole, for flow; empty where none is computed."""


@dataclass(frozen=True)
class _Shown:
    """When a picture is shown, and what waits for it."""

    index: int
    seconds: float
    end_seconds: float
    picture: Callable[[], _Picture]


class _Run(NamedTuple):
    """Pictures of one shape, shown one after the other."""

    shown: list[_Shown]
    is_last: bool
    """No next run begins with the last picture: the video ends there, or goes on in another shape."""


def align_streams(
    frames: Iterable[Frame],
    *,
    size_px: int | tuple[int, int],
    crop_px: int | None,
    rgb: bool,
    flow: FlowOfRun | None,
    pairs_per_call: int = 1,
    antialias: bool = True,
    workers: Workers | None = None,
) -> Iterator[StreamFrame]:
    """Resize every frame once, pair it with its flow, and crop both.

    flow[t] is the motion from frame t to frame t+1; the last frame has no successor and repeats the flow before it
    (a single frame: no motion), so both streams have as many entries as there are frames. So does the last frame
    before one of another shape.

    Flow is computed run by run, of `pairs_per_call` pairs or of what is left where the video or a shape ends. Without
    threads nothing is read beyond the run of the frame that is asked for, and two runs are held. Threads are kept
    busy: they have so many more runs in work as have a pair for each of them, and a picture each to resize.

    Args:
        frames: in the order of time.
        size_px: see `preprocess.resized_size`; flow is computed at this size.
        crop_px: side of the central square that is kept; None keeps the whole frame.
        rgb: whether to give the rgb stream.
        flow: computes the flow of a run, in any thread; None leaves the flow stream out.
        pairs_per_call: how many pairs `flow` is given at a time, at most.
        antialias: see `preprocess.resize`.
        workers: resize and compute flow; None does so in this thread.
    """
    workers = Workers() if workers is None else workers
    if antialias:
        from . import resampling  # noqa: F401  (it loads torch: not in the time of the first resize)

    def prepare(stored: NDArray[np.uint8]) -> _Picture:
        resized = resize(stored, size_px, antialias=antialias)
        return _Picture(_crop_centre(resized, crop_px), to_grey(resized) if flow else np.empty((0, 0), np.uint8))

    def show(shown: _Shown, motion: NDArray[np.float32] | None) -> StreamFrame:
        streams: dict[str, NDArray[Any]] = {"rgb": shown.picture().rgb} if rgb else {}
        if motion is not None:
            streams["flow"] = motion
        return StreamFrame(shown.seconds, shown.end_seconds, streams)

    pictures = workers.ahead(_prepare_each(frames, prepare, workers))
    if flow is None:
        for shown in pictures:
            yield show(shown, None)
        return

    def move(run: _Run) -> list[NDArray[np.float32]]:
        if len(run.shown) == 1:
            return []
        grey = np.stack([shown.picture().grey for shown in run.shown])
        return [_crop_centre(field, crop_px) for field in flow(run.shown[0].index, grey)]

    moving = ((run, workers.start("flow", move, run)) for run in _cut_runs(pictures, pairs_per_call))
    motion: NDArray[np.float32] | None = None
    for run, wait_for_motion in workers.ahead(moving, threads_per_item=pairs_per_call):
        for shown, motion in zip(run.shown[:-1], wait_for_motion(), strict=True):
            yield show(shown, motion)
        if run.is_last:
            last = run.shown[-1]
            if motion is None:
                motion = np.zeros((*last.picture().rgb.shape[:2], 2), np.float32)
            yield show(last, motion)
            motion = None
        del run, wait_for_motion  # not while the next run fills


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


def _cut_runs(pictures: Iterable[_Shown], pairs_per_call: int) -> Iterator[_Run]:
    """Every run as soon as its last picture is there; only a last run may be of one picture."""
    run: list[_Shown] = []
    for shown in pictures:
        if run and shown.picture().grey.shape != run[-1].picture().grey.shape:
            yield _Run(run, is_last=True)
            run = []
        run.append(shown)
        if len(run) > pairs_per_call:
            yield _Run(run, is_last=False)
            run = run[-1:]
    if run:
        yield _Run(run, is_last=True)


def _crop_centre(image: NDArray[_Scalar], crop_px: int | None) -> NDArray[_Scalar]:
    if crop_px is None:
        return image
    (centre,) = place_crops(1, image.shape[0], image.shape[1], crop_px)
    return centre.cut(image)  # a copy: the frame around it can be freed
