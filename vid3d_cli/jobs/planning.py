"""`--dry-run`: what a job would do, by the headers of its videos; no network runs and no weights are needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ..clips.preprocess import resized_size
from ..clips.windows import count_clips
from ..errors import NoFrames, VideoError
from ..features.format import FeatureFormat
from ..features.store import FeatureStore, refuse_other_recipe
from ..run.pipeline import Pipeline
from ..runtimes.cost import clip_cost
from ..runtimes.speed import matrix_product_rate
from ..runtimes.torch import select_devices, select_precision
from ..video.process import Decoders
from ..video.sources import Source
from .extraction import Left, find_left

_OPENED_AT_A_TIME = 4
_HANDED_OUT_AT_A_TIME = 256
"""To the threads that open videos; so many headers wait at most."""


@dataclass(frozen=True)
class VideoPlan:
    """What a video would take, by its header; the numbers are None where that does not tell how long it is."""

    video: str
    seconds: float | None
    """Of the whole video."""
    frames: int | None
    """That would be read, at the frame rate of the job."""
    clips: int | None
    """That each network would run: the windows, or the stretches of a dense run."""
    rows: int | None
    """Of features: a window each."""
    bytes: int | None
    """Of the features of all rows, without index and recipe."""
    multiply_adds: int | None
    """Of all networks."""


@dataclass(frozen=True)
class CannotOpen:
    """A video that would fail; written as JSON it is also a valid input list."""

    video: str
    error: str
    """Name of the exception class, as drawn in `errors`."""
    message: str


@dataclass
class Totals:
    """Of all videos that are left."""

    videos: int = 0
    cannot_be_opened: int = 0
    unknown_length: int = 0
    """Videos that can be opened and whose headers do not tell; they are not in the numbers below."""
    seconds: float = 0.0
    frames: int = 0
    clips: int = 0
    rows: int = 0
    bytes: int = 0
    multiply_adds: int = 0

    def add(self, plan: VideoPlan | CannotOpen) -> None:
        """Count a video in."""
        self.videos += 1
        if isinstance(plan, CannotOpen):
            self.cannot_be_opened += 1
        elif plan.rows is None:
            self.unknown_length += 1
        else:
            for name in ("seconds", "frames", "clips", "rows", "bytes", "multiply_adds"):
                setattr(self, name, getattr(self, name) + (getattr(plan, name) or 0))


def find_left_roughly(
    pipeline: Pipeline,
    sources: Sequence[Source],
    store: FeatureStore,
    form: FeatureFormat,
    *,
    overwrite: bool = False,
    redo_failed: bool = False,
) -> Left:
    """Which videos a job would work on; nothing is written.

    Raises:
        RecipeDiffers: what is there was made in another way, as far as that is known without the weights.
    """
    there = store.recipe()
    if there is None or overwrite:
        return Left(list(sources), 0, 0, set())
    now = {
        "model": pipeline.entry.name,
        "fps": str(pipeline.fps) if pipeline.fps else "native",
        "start_seconds": pipeline.options.start_seconds,
        "end_seconds": pipeline.options.end_seconds,
        "window": pipeline.window,
        "stride": pipeline.stride,
        "tail": pipeline.options.tail,
        **asdict(form),
    }
    refuse_other_recipe(store.path, {name: there.get(name) for name in now}, now)
    return find_left(store, sources, redo_failed=redo_failed)


def plan_videos(
    pipeline: Pipeline, videos: Sequence[str], form: FeatureFormat, *, timeout: float | None = None
) -> Iterator[VideoPlan | CannotOpen]:
    """Open each video and tell what it would take, in their order; no more than its first frames are decoded.

    Args:
        pipeline: what would be done with each.
        videos: paths or URLs.
        form: of the features.
        timeout: see `engines.local.run`.

    Raises:
        UsageError: options that do not fit the model, or these videos.
        ResourceError: no more processes or open files are to be had.
    """
    pipeline.check_videos(videos)
    pipeline._check_network()
    costs = _Costs(pipeline)
    # The decoders end first, so that nobody waits for one that hangs.
    with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool, Decoders(timeout) as decoders:
        for start in range(0, len(videos), _HANDED_OUT_AT_A_TIME):
            part = videos[start : start + _HANDED_OUT_AT_A_TIME]
            for header in pool.map(lambda video: _read_header(pipeline, video, decoders), part):
                yield header if isinstance(header, CannotOpen) else _plan(pipeline, header, form, costs)


class _Header(NamedTuple):
    video: str
    size: tuple[int, int]
    """(height, width) of its frames."""
    seconds: float | None
    num_frames: int | None
    num_clips: int | None


def _read_header(pipeline: Pipeline, video: str, decoders: Decoders) -> _Header | CannotOpen:
    start_seconds = pipeline.options.start_seconds
    try:
        with pipeline.open_clips(video, decoders=decoders) as reader:
            info = reader.frames.info
            if info.duration_seconds is not None and info.duration_seconds <= start_seconds:
                raise NoFrames(
                    video, f"nothing to read from {start_seconds:g} s on: its header says that it is shorter"
                )
            size, seconds = (info.height, info.width), info.duration_seconds
            return _Header(video, size, seconds, reader.frames.num_expected_frames, reader.num_expected_clips)
    except VideoError as error:
        return CannotOpen(video, type(error).__name__, error.message)


def _plan(pipeline: Pipeline, header: _Header, form: FeatureFormat, costs: _Costs) -> VideoPlan:
    if header.num_frames is None or header.num_clips is None:
        return VideoPlan(header.video, header.seconds, None, None, None, None, None)
    options, cost = pipeline.options, costs.of_clip(header.size)
    num_rows = count_clips(header.num_frames, length=pipeline.window, stride=pipeline.stride, tail=options.tail)
    return VideoPlan(
        video=header.video,
        seconds=header.seconds,
        frames=header.num_frames,
        clips=header.num_clips,
        rows=num_rows,
        bytes=num_rows * cost.numbers * np.dtype(form.dtype).itemsize,
        multiply_adds=header.num_clips * cost.multiply_adds,
    )


class _ClipOfAllStreams(NamedTuple):
    numbers: int
    """Of a row of features."""
    multiply_adds: int


class _Costs:
    """What a clip takes in all networks and views, counted once for each size of frames that the networks see."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._known: dict[tuple[int, int], _ClipOfAllStreams] = {}

    def of_clip(self, size: tuple[int, int]) -> _ClipOfAllStreams:
        """Of a video whose frames have a (height, width)."""
        p = self._pipeline
        seen = resized_size(*size, p.size_px) if p.options.resize_only else (p.crop_px, p.crop_px)
        if seen not in self._known:
            self._known[seen] = self._count(seen)
        return self._known[seen]

    def _count(self, size: tuple[int, int]) -> _ClipOfAllStreams:
        p, options = self._pipeline, self._pipeline.options
        num_frames = p.window if p.dense_plan is None else p.dense_plan.length
        costs = [
            clip_cost(
                p.entry.backbone,
                stream,
                p.entry.streams[stream].normalisation,
                (num_frames, *size),
                variant=options.variant or p.entry.variant,
                layer=options.layer,
                pool=options.pool,
                is_dense=options.dense,
            )
            for stream in p.streams
        ]
        num_kept = options.crops if options.keep_crops else 1
        return _ClipOfAllStreams(
            num_kept * sum(math.prod(cost.feature_shape) for cost in costs),
            options.crops * sum(cost.multiply_adds for cost in costs),
        )


@dataclass(frozen=True)
class Estimate:
    """How long the networks alone would take, at the speed at which this machine multiplies large matrices."""

    seconds: float
    operations_per_second: float
    """Measured now, of all devices; a multiply-add is two."""
    devices: str
    precision: str


def estimate(pipeline: Pipeline, multiply_adds: int) -> Estimate:
    """Measure this machine for a second, and divide.

    On a CPU networks come to 0.75 to 1.25 of the speed of matrix products (benchmarks/RESULTS.md).

    Raises:
        UsageError: a device or precision that is not here.
    """
    devices = select_devices(pipeline.device)
    precision = select_precision(pipeline.options.precision, *devices)
    rate = sum(matrix_product_rate(str(device), precision) for device in devices)
    return Estimate(2 * multiply_adds / rate, rate, ", ".join(map(str, devices)), precision)
