"""`--dry-run`: what a job would do, from the headers of its videos. It needs no weights and runs no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..clips.preprocess import resized_size
from ..clips.windows import count_clips
from ..errors import NoFrames, VideoError
from ..features.format import FeatureFormat
from ..features.recipes import refuse_other_recipe
from ..features.store import Store
from ..models.registry import BACKBONES
from ..plan import Plan
from ..records import VideoFailure
from ..run.reader import ClipReader
from ..video.clock import describe_end
from ..video.process import TIMEOUT_SECONDS, Decoders
from ..video.sources import Source
from .extraction import Left, find_left

_OPENED_AT_A_TIME = 4
_HANDED_OUT_AT_A_TIME = 256
"""Videos handed to the threads that open them; at most this many headers wait."""


@dataclass(frozen=True)
class VideoPlan:
    """The work that a video needs, from its header; numbers are None if the header gives no duration."""

    video: str
    seconds: float | None
    """Seconds to read, between --start and --end."""
    frames: int | None
    """Frames to read, at the frame rate of the job."""
    clips: int | None
    """Clips that each network runs: the windows, or the stretches of a dense run."""
    rows: int | None
    """Rows of features, one per window."""
    bytes: int | None
    """Size of the features of all rows, without index and recipe."""
    multiply_adds: int | None
    """Multiply-adds of all networks; None without `--estimate`."""


@dataclass
class Totals:
    """Sums over all videos that are left."""

    videos: int = 0
    cannot_be_opened: int = 0
    unknown_length: int = 0
    """Videos that open but whose headers give no duration; the numbers below leave them out."""
    seconds: float = 0.0
    frames: int = 0
    clips: int = 0
    rows: int = 0
    bytes: int = 0
    multiply_adds: int | None = None

    def add(self, plan: VideoPlan | VideoFailure) -> None:
        """Add the work of a video."""
        self.videos += 1
        if isinstance(plan, VideoFailure):
            self.cannot_be_opened += 1
        elif plan.rows is None:
            self.unknown_length += 1
        else:
            for name in ("seconds", "frames", "clips", "rows", "bytes"):
                setattr(self, name, getattr(self, name) + (getattr(plan, name) or 0))
            if plan.multiply_adds is not None:
                self.multiply_adds = (self.multiply_adds or 0) + plan.multiply_adds


@dataclass(frozen=True)
class Comparison:
    """The videos that a job would work on, and the checkpoints that could not be compared."""

    left: Left
    unchecked: list[str] = field(default_factory=list)
    """Streams whose checkpoint is not on disk and has no published digest, so that it cannot be compared."""


def compare(
    plan: Plan,
    sources: Sequence[Source],
    store: Store,
    form: FeatureFormat,
    *,
    overwrite: bool = False,
    redo_failed: bool = False,
) -> Comparison:
    """Return which videos a job would work on; nothing is written.

    Raises:
        RecipeDiffers: the output was made with another recipe.
        OutputError: files of the output are missing.
    """
    if not overwrite:
        store.refuse_incomplete()
    there = None if overwrite else store.recipe()
    if there is None:
        return Comparison(Left(list(sources), 0, 0, set()))
    refuse_other_recipe(store.path, there, form.describe(plan.recipe))
    unchecked = [stream for stream, net in plan.networks.items() if net.sha256 is None]
    return Comparison(find_left(store, sources, redo_failed=redo_failed), unchecked)


def plan_videos(
    plan: Plan,
    videos: Sequence[str],
    form: FeatureFormat,
    *,
    timeout: float | None = TIMEOUT_SECONDS,
    count_operations: bool = False,
) -> Iterator[VideoPlan | VideoFailure]:
    """Open each video and yield the work it needs, in list order; only first frames are decoded.

    Args:
        plan: what to do with each video.
        videos: paths or URLs.
        form: format of the features.
        timeout: see `run.local.run`.
        count_operations: count the networks' multiply-adds; this imports torch.

    Raises:
        UsageError: options that do not suit these videos.
        ResourceError: no more processes or open files.
    """
    plan.check_videos(videos)
    sizes = _Sizes(plan, count_operations)
    # The decoders end first, so that no thread waits for one that hangs.
    with (
        ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool,
        Decoders(timeout, allow_playlists=plan.allow_playlists) as decoders,
    ):
        for start in range(0, len(videos), _HANDED_OUT_AT_A_TIME):
            part = videos[start : start + _HANDED_OUT_AT_A_TIME]
            for header in pool.map(lambda video: _read_header(plan, video, decoders), part):
                yield header if isinstance(header, VideoFailure) else _plan_video(plan, header, form, sizes)


class _Header(NamedTuple):
    video: str
    size: tuple[int, int]
    """(height, width) of its frames."""
    seconds: float | None
    num_frames: int | None
    num_clips: int | None


def _read_header(plan: Plan, video: str, decoders: Decoders) -> _Header | VideoFailure:
    try:
        with ClipReader(plan, video, decoders=decoders) as reader:
            info = reader.frames.info
            if info.duration_seconds is not None and info.duration_seconds <= plan.start_seconds:
                raise NoFrames(video, describe_end(plan.start_seconds, info.duration_seconds))
            ends = [seconds for seconds in (info.duration_seconds, plan.end_seconds) if seconds is not None]
            seconds = None if info.duration_seconds is None else round(min(ends) - plan.start_seconds, 6)
            size = (info.height, info.width)
            return _Header(video, size, seconds, reader.frames.num_expected_frames, reader.num_expected_clips)
    except VideoError as error:
        return VideoFailure(video, type(error).__name__, error.message)


def _plan_video(plan: Plan, header: _Header, form: FeatureFormat, sizes: _Sizes) -> VideoPlan:
    if header.num_frames is None or header.num_clips is None:
        return VideoPlan(header.video, header.seconds, None, None, None, None, None)
    size = sizes.of_clip(header.size)
    num_rows = count_clips(
        header.num_frames, length=plan.window, stride=plan.stride, tail=plan.tail, centred=plan.centred
    )
    return VideoPlan(
        video=header.video,
        seconds=header.seconds,
        frames=header.num_frames,
        clips=header.num_clips,
        rows=num_rows,
        bytes=num_rows * size.numbers * np.dtype(form.dtype).itemsize,
        multiply_adds=None if size.multiply_adds is None else header.num_clips * size.multiply_adds,
    )


class _Size(NamedTuple):
    numbers: int
    """Numbers in a row of features."""
    multiply_adds: int | None


class _Sizes:
    """The size of a clip's features and work in all networks and crops, computed once per frame size."""

    def __init__(self, plan: Plan, count_operations: bool) -> None:
        self._plan, self._count_operations = plan, count_operations
        self._known: dict[tuple[int, int], _Size] = {}

    def of_clip(self, size: tuple[int, int]) -> _Size:
        """Return the size of a clip from frames of (height, width)."""
        plan = self._plan
        seen = resized_size(*size, plan.resize_px) if plan.resize_only else (plan.crop_px, plan.crop_px)
        if seen not in self._known:
            self._known[seen] = self._count(seen)
        return self._known[seen]

    def _count(self, size: tuple[int, int]) -> _Size:
        plan = self._plan
        num_kept = len(plan.crop_names) if plan.keep_crops else 1
        if plan.layer is None and not self._count_operations:
            return _Size(num_kept * len(plan.networks) * BACKBONES[plan.backbone].feature_dim, None)
        from ..runtimes.estimate import clip_cost  # a layer's map is measured by torch, on its meta device

        num_frames = plan.num_clip_frames if (dense := plan.dense_plan) is None else dense.length
        costs = [
            clip_cost(
                plan.backbone,
                stream,
                network.normalisation,
                (num_frames, *size),
                variant=plan.variant,
                layer=plan.layer,
                pool=plan.pool,
                is_dense=plan.dense,
            )
            for stream, network in plan.networks.items()
        ]
        return _Size(
            num_kept * sum(math.prod(cost.feature_shape) for cost in costs),
            len(plan.crop_names) * sum(cost.multiply_adds for cost in costs) if self._count_operations else None,
        )


@dataclass(frozen=True)
class Estimate:
    """The time of the networks alone, at this machine's speed for large matrix products."""

    seconds: float
    operations_per_second: float
    """Measured, summed over all devices; a multiply-add counts as two."""
    devices: str
    precision: str


def estimate_time(plan: Plan, multiply_adds: int) -> Estimate:
    """Return the expected time of the networks, after measuring this machine for a second; imports torch.

    On a CPU networks reach 0.75 to 1.25 of the speed of matrix products (benchmarks/RESULTS.md).

    Raises:
        UsageError: a device or precision that this machine does not have.
    """
    from ..runtimes.devices import select_devices, select_precision
    from ..runtimes.estimate import matrix_product_rate

    devices = select_devices(plan.network_device)
    precision = select_precision(plan.precision, *devices)
    rate = sum(matrix_product_rate(str(device), precision) for device in devices)
    return Estimate(2 * multiply_adds / rate, rate, ", ".join(map(str, devices)), precision)
