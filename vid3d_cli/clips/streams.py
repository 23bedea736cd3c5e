"""Turns frames into aligned rgb and flow streams, one entry of each per frame, resized and cropped.

    frames → resized → runs of frames → flow, one call per run → entries, one per frame
                       0123  3456  67   3 pairs per call: a run starts with the last frame of the previous

All frames of a video have one shape (`video.rgb.RgbConverter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..flow.fields import quantise_flow, resize_flow, to_grey
from ..records import Frame
from ..workers import Workers
from .preprocess import Views, resize, resized_size

_Scalar = TypeVar("_Scalar", bound=np.generic)

FlowOfRun = Callable[[int, NDArray[np.uint8]], NDArray[np.float32]]
"""(index of the first frame, grey images (n+1, H, W) of consecutive frames, n ≥ 1) → flow (n, H, W, 2) in pixels."""


@dataclass(frozen=True)
class StreamFrame:
    """The entries of all streams for one frame."""

    seconds: float
    end_seconds: float
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (H, W, 3) uint8; "flow": (H, W, 2), the motion from this frame to the next, float32 in pixels or uint8."""


class _Prepared(NamedTuple):
    """A frame's image, prepared once even if several frames show it."""

    rgb: NDArray[np.uint8]
    """Resized and cropped."""
    grey: NDArray[np.uint8]
    """For flow: resized but not cropped, or as stored; empty if flow is not computed."""


@dataclass(frozen=True)
class _PendingFrame:
    """A frame that a worker is preparing."""

    index: int
    seconds: float
    end_seconds: float
    wait: Callable[[], _Prepared]


def align_streams(
    frames: Iterable[Frame],
    *,
    size_px: int | tuple[int, int],
    crop: Views | None,
    rgb: bool,
    flow: FlowOfRun | None,
    pairs_per_call: int = 1,
    interpolation: str = "antialiased",
    flow_of_stored: bool = False,
    bound_px: float | None = None,
    is_still_at_end: bool = False,
    workers: Workers | None = None,
) -> Iterator[StreamFrame]:
    """Yield the entries of all streams for every frame: resized, paired with its flow, and cropped.

    flow[t] is the motion from frame t to frame t+1. The last frame has no successor and repeats the flow before it (a
    single frame has zero flow), so both streams have one entry per frame.

    Flow is computed in runs of `pairs_per_call` pairs, or fewer where the video ends. Without threads, no frame is read
    beyond the current run, and two runs are held in memory. With threads, enough runs and frames are read ahead to give
    every thread a pair of frames and a frame to resize.

    Args:
        frames: in time order.
        size_px: see `preprocess.resized_size`.
        crop: one crop of the frame; None keeps the whole frame.
        rgb: whether to yield the rgb stream.
        flow: computes the flow of a run, in any thread; None leaves the flow stream out.
        pairs_per_call: largest number of pairs per call of `flow`.
        interpolation: see `preprocess.resize`.
        flow_of_stored: compute flow on the frames before the resize, and resize the field; its vectors keep their
            length. False computes it on the resized frames.
        bound_px: quantise flow to 8 bits at this bound, see `quantise_flow`; None keeps it exact.
        is_still_at_end: give the last frame zero flow instead.
        workers: threads that resize and compute flow; None uses this thread.
    """
    workers = Workers() if workers is None else workers

    def prepare(stored: NDArray[np.uint8]) -> _Prepared:
        resized = resize(stored, size_px, interpolation)
        grey = to_grey(stored if flow_of_stored else resized) if flow else np.empty((0, 0), np.uint8)
        return _Prepared(_cut(resized, crop), grey)

    def finish(frame: _PendingFrame, motion: NDArray[Any] | None) -> StreamFrame:
        streams: dict[str, NDArray[Any]] = {"rgb": frame.wait().rgb} if rgb else {}
        if motion is not None:
            streams["flow"] = motion
        return StreamFrame(frame.seconds, frame.end_seconds, streams)

    pending = workers.ahead(_prepare_each(frames, prepare, workers))
    if flow is None:
        for frame in pending:
            yield finish(frame, None)
        return

    def finish_field(field: NDArray[np.float32]) -> NDArray[Any]:
        if flow_of_stored:
            height, width = resized_size(field.shape[0], field.shape[1], size_px)
            field = resize_flow(field, height, width, rescale=False)
        cropped = _cut(field, crop)
        return cropped if bound_px is None else quantise_flow(cropped, bound_px)

    def compute_flow(run: list[_PendingFrame]) -> list[NDArray[Any]]:
        if len(run) == 1:
            return []
        grey = np.stack([frame.wait().grey for frame in run])
        return [finish_field(field) for field in flow(run[0].index, grey)]

    started = ((run, workers.start("flow", compute_flow, run)) for run in _cut_runs(pending, pairs_per_call))
    last: _PendingFrame | None = None
    motion: NDArray[Any] | None = None
    for run, wait_for_flow in workers.ahead(started, threads_per_item=pairs_per_call):
        for frame, motion in zip(run[:-1], wait_for_flow(), strict=True):
            yield finish(frame, motion)
        last = run[-1]
        del run, wait_for_flow  # free them before the next run fills
    if last is not None:
        still = np.zeros((*last.wait().grey.shape, 2), np.float32)
        yield finish(last, finish_field(still) if motion is None or is_still_at_end else motion)


def _prepare_each(
    frames: Iterable[Frame], prepare: Callable[[NDArray[np.uint8]], _Prepared], workers: Workers
) -> Iterator[_PendingFrame]:
    last: NDArray[np.uint8] | None = None
    for frame in frames:
        # Resampling to a higher frame rate repeats images: each is resized once.
        if frame.rgb is not last:
            wait = workers.start("resize", prepare, frame.rgb)
            last = frame.rgb
        yield _PendingFrame(frame.index, frame.seconds, frame.end_seconds, wait)


def _cut_runs(frames: Iterable[_PendingFrame], pairs_per_call: int) -> Iterator[list[_PendingFrame]]:
    """Yield each run as soon as its last frame is there; the last run may have a single frame."""
    run: list[_PendingFrame] = []
    for frame in frames:
        run.append(frame)
        if len(run) > pairs_per_call:
            yield run
            run = run[-1:]
    if run:
        yield run


def _cut(image: NDArray[_Scalar], crop: Views | None) -> NDArray[_Scalar]:
    if crop is None:
        return image
    (square,) = crop.place(image.shape[0], image.shape[1])
    return square.cut(image)  # a copy, so that the whole frame can be freed
