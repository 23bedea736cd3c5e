"""Makes the first rows of a video by many recipes: it is decoded once, and no clip runs twice through one network."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import NoFrames, TooLarge
from ..plan import Plan
from ..records import Clip, ClipSpan, Frame
from ..run.load import build_model
from ..run.reader import ClipReader
from ..video.clock import MAX_TICK_TOLERANCE_SECONDS, Timed, at_ticks
from ..video.frames import DecodedVideo
from ..video.pixels import PixelOptions
from ..workers import Workers

if TYPE_CHECKING:
    from ..models.clip_model import ClipModel
    from ..runtimes.base import Runtime

MAX_FRAMES_BYTES = 2**30
"""Memory for decoded frames: 6 s of full HD. Rows beyond them are not compared."""

_READ_CLIPS = 4
"""Recipes whose clips are kept, since changes of the network alone use the same ones."""

FLOW_AXES = {"x, y": (0, 1, 1), "-x, -y": (0, 1, -1), "y, x": (1, 0, 1)}
"""The channels of flow: which comes first, which second, and their sign."""


@dataclass(frozen=True)
class Settings:
    """A recipe, and what no option says."""

    plan: Plan
    offset: int = 0
    """Frames from the first frame read to the first one used; below 0, the first frame repeats."""
    takes_nearest: bool = False
    """At another frame rate, take the frame nearest to a tick, as ffmpeg's fps filter does, and of two the earlier."""
    eps: float | None = None
    """Of all batch norms; None: the network's."""
    flow_axes: str = "x, y"
    """One of `FLOW_AXES`."""

    __hash__ = None  # type: ignore[assignment]  # a plan has none


class HeldFrames:
    """The first frames of a video, decoded once, and read as often as wanted, at any rate.

    Args:
        frames: as they are stored; closed with this.
    """

    def __init__(self, frames: DecodedVideo) -> None:
        self.info, self.time_base = frames.info, frames.time_base
        self.is_cut = False
        """Whether frames are missing at the end, since memory is full."""
        self._frames, self._held = frames, list[Timed[NDArray[np.uint8]]]()

    def __enter__(self) -> HeldFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._frames.close()

    def holds(self, span: ClipSpan) -> bool:
        """Return whether all frames of a clip, and the one after it, were held."""
        return not self.is_cut or span.end_seconds < float(self._held[-1].start)

    def stored(self) -> Iterator[Timed[NDArray[np.uint8]]]:
        """Yield the frames as they are stored."""
        for i in itertools.count():
            if i == len(self._held):
                self.is_cut = i * self.info.width * self.info.height * 3 >= MAX_FRAMES_BYTES
                frame = None if self.is_cut else next(self._frames, None)
                if frame is None:
                    return
                self._held.append(Timed(Fraction(frame.seconds), Fraction(frame.end_seconds), frame.rgb))
            yield self._held[i]

    def replay(self, settings: Settings) -> Any:
        """Return what `ClipReader` takes as its decoders."""
        return _Replay(self, settings)


class _Replay:
    """Opens the held frames as if they were a video."""

    num_expected_frames = None
    num_lost_frames = 0

    def __init__(self, held: HeldFrames, settings: Settings) -> None:
        self.info, self._held, self._settings = held.info, held, settings

    def open(
        self,
        video: str,
        *,
        fps: Fraction | None,
        start_seconds: float,
        end_seconds: float | None,
        pixels: PixelOptions,
    ) -> _Replay:
        """Return this; the frames are those of the settings."""
        return self

    def close(self) -> None:
        """Leave the frames as they are."""

    def __iter__(self) -> Iterator[Frame]:
        plan, offset, frames = self._settings.plan, self._settings.offset, self._held.stored()
        if plan.fps is not None:
            # Less than half a tick by twice what `at_ticks` tolerates: of two frames as near, the earlier is taken.
            tolerance = min(self._held.time_base, 2 * MAX_TICK_TOLERANCE_SECONDS)
            early = Fraction(1, 2) / plan.fps - tolerance if self._settings.takes_nearest else 0
            moved = (Timed(max(Fraction(0), f.start - early), f.end - early, f.item) for f in frames)
            frames = at_ticks(moved if early else frames, fps=plan.fps, clock_unit=self._held.time_base)
        frames = (frame for frame in frames if float(frame.start) >= plan.start_seconds)
        if offset < 0:
            first = next(frames, None)
            frames = itertools.chain([] if first is None else [first] * (1 - offset), frames)
        for index, frame in enumerate(itertools.islice(frames, max(0, offset), None)):
            if plan.end_seconds is not None and float(frame.start) >= plan.end_seconds:
                return
            yield Frame(index, float(frame.start), float(frame.end), frame.item)


class RowMaker:
    """Makes rows of features.

    Args:
        video: path or URL.
        held: its frames.
        checkpoints: of each stream.
        workers: threads that resize frames and compute flow.
        on_run: called after each run of a network, with the number of runs.
    """

    def __init__(
        self,
        video: str,
        held: HeldFrames,
        checkpoints: dict[str, Path],
        workers: Workers,
        on_run: Callable[[int], None],
    ) -> None:
        self.num_runs = 0
        """Clips that went through a network."""
        self._video, self._held, self._checkpoints, self._workers = video, held, checkpoints, workers
        self._on_run = on_run
        self._networks: dict[str, tuple[Runtime, ClipModel]] = {}
        self._rows: dict[bytes, NDArray[np.float32]] = {}
        self._read: dict[str, tuple[int, list[Clip]]] = {}

    @property
    def is_cut(self) -> bool:
        """Whether rows are missing whose frames memory cannot hold."""
        return self._held.is_cut

    def refuse_empty(self, plan: Plan) -> NoReturn:
        """Raise VideoError: there is no row to compare."""
        if self.is_cut:
            gigabytes = MAX_FRAMES_BYTES / 1e9
            raise TooLarge(
                self._video,
                f"the frames of a clip take more than {gigabytes:.1f} GB: compare a smaller copy of the video",
            )
        raise NoFrames(self._video, f"no frame starts at {plan.start_seconds:g} s or later; give an earlier --start")

    def rows(self, settings: Settings, stream: str, num_rows: int) -> NDArray[np.float32]:
        """Return the first rows of a stream, (N, D): as many as there are, and whose frames are held.

        Raises:
            VideoError: the video cannot be used.
            ShapeError: the network cannot take clips of this shape.
        """
        features = [self._run(settings, stream, clip) for clip in self._clips(settings, stream, num_rows)]
        return np.stack(features) if features else np.empty((0, 0), np.float32)

    def _clips(self, settings: Settings, stream: str, num_rows: int) -> list[Clip]:
        plan = replace(settings.plan, networks={stream: settings.plan.networks[stream]})
        facts = {name: value for name, value in vars(plan).items() if name not in ("networks", "preset", "weights")}
        key = f"{stream} {settings.offset} {settings.takes_nearest} {facts}"
        num_read, clips = self._read.pop(key, (0, []))
        if num_read < num_rows:
            replay = self._held.replay(settings)
            with ClipReader(plan, self._video, self._workers, replay) as reader:
                clips = [clip for clip in itertools.islice(reader, num_rows) if self._held.holds(clip.span)]
            num_read = num_rows
        self._read[key] = num_read, clips
        while len(self._read) > _READ_CLIPS:
            del self._read[next(iter(self._read))]
        return clips[:num_rows]

    def _run(self, settings: Settings, stream: str, clip: Clip) -> NDArray[np.float32]:
        plan, entries = settings.plan, clip.streams[stream]
        if stream == "flow" and settings.flow_axes != "x, y":
            first, second, sign = FLOW_AXES[settings.flow_axes]
            entries = np.ascontiguousarray(entries[..., [first, second]])
            if sign < 0:
                entries = 255 - entries if entries.dtype == np.uint8 else -entries
        network = f"{stream} {settings.eps} {plan.views}"
        normalisation = plan.networks[stream].normalisation
        digest = hashlib.blake2b(f"{network} {normalisation} {entries.shape} {entries.dtype}".encode())
        digest.update(np.ascontiguousarray(entries).data)
        key = digest.digest()
        if key not in self._rows:
            from ..models.clip_model import Normalise

            runtime, model = self._load(network, settings, stream)
            model.normalise = Normalise(normalisation).to(next(model.backbone.parameters()).device)
            (output,) = runtime.run([Clip(clip.span, {stream: entries})])
            self._rows[key] = output.features[stream].ravel()
            self.num_runs += len(plan.crop_names)
            self._on_run(self.num_runs)
        return self._rows[key]

    def _load(self, key: str, settings: Settings, stream: str) -> tuple[Runtime, ClipModel]:
        """Return a network and its runtime, which keeps the `ClipModel` itself in fp32."""
        if key not in self._networks:
            from ..runtimes import create_runtime

            plan = settings.plan
            model = build_model(plan, stream, self._checkpoints[stream])
            for module in model.modules() if settings.eps is not None else ():
                if hasattr(module, "running_var") and hasattr(module, "eps"):
                    module.eps = settings.eps  # type: ignore[assignment]
            runtime = create_runtime(
                {stream: model},
                name="torch",
                device=plan.network_device,
                precision="fp32",
                num_threads=plan.threads,
                batch_size=1,
                views=plan.views,
            )
            self._networks[key] = runtime, model
        return self._networks[key]
