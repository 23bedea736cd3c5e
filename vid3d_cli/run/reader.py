"""Reads the clips of one video, as a plan defines them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..clips.preprocess import check_resized_size
from ..clips.streams import FlowOfRun, StreamFrame, align_streams
from ..clips.windows import Window, count_clips, sliding_clips
from ..errors import FlowFilesError, TooLarge
from ..flow.fields import quantise_flow, resize_flow
from ..flow.files import FlowFiles, open_flow_files
from ..flow.methods import create_flow, find_flow_method
from ..plan import Plan
from ..records import Clip, ClipSpan, Frame
from ..video.clock import describe_fps
from ..video.process import DecodedVideo, Decoders
from ..video.reader import VideoReader
from ..workers import Workers

_Timed = TypeVar("_Timed")


@dataclass(frozen=True)
class ReadVideo:
    """The facts of a video whose clips have been read; it pickles."""

    video: str
    """Path or URL as given."""
    fps: float
    """Frames per second after resampling."""
    num_frames: int
    """Number of frames read, after resampling."""
    num_lost_frames: int
    """Number of frames lost to damage."""
    flow: str | None
    """How its flow was made; None without a flow stream."""
    warnings: tuple[str, ...]
    """See `VideoResult.warnings`."""
    windows: tuple[ClipSpan, ...]
    """The windows that a dense run pools; empty in any other run."""


class _Shown(NamedTuple):
    """When a frame is shown."""

    seconds: float
    end_seconds: float


class ClipReader:
    """Iterates over the clips of one video; memory is bounded by the window.

        with ClipReader(plan, "a.mp4") as clips:
            for clip in clips: ...
            clips.summary()

    In a dense run, the clips are the long stretches that the windows are pooled from; memory is bounded by these.

    Args:
        plan: what to read, and how.
        video: path or URL.
        workers: threads that resize frames and compute flow; None does so in the thread that iterates.
        decoders: processes that decode, and may crash; None decodes in the thread that iterates.

    Raises:
        VideoError: on opening or while reading.
        ResourceError: no more processes or open files.
    """

    def __init__(
        self, plan: Plan, video: str, workers: Workers | None = None, decoders: Decoders | None = None
    ) -> None:
        self.video = video
        self.num_frames = 0
        self._plan = plan
        self._workers = Workers() if workers is None else workers
        self._shown: list[_Shown] = []
        self.flow_files: FlowFiles | None = None
        if plan.flow_files and "flow" in plan.networks:
            self.flow_files = open_flow_files(plan.flow_files, video, plan.bound_px)
        open_video = partial(VideoReader, allow_playlists=plan.allow_playlists) if decoders is None else decoders.open
        self.frames = open_video(
            video,
            fps=plan.fps,
            start_seconds=plan.start_seconds,
            end_seconds=plan.end_seconds,
            pixels=plan.pixels,
        )
        info = self.frames.info
        try:
            check_resized_size(video, info.height, info.width, plan.resize_px)
        except TooLarge:
            self.frames.close()
            raise

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.frames.close()
        if self.flow_files is not None:
            self.flow_files.close()

    @property
    def num_expected_clips(self) -> int | None:
        """Number of clips expected from the header; None if it does not say."""
        num_frames, plan = self.frames.num_expected_frames, self._plan
        if num_frames and (dense := plan.dense_plan) is not None:
            return dense.count_stretches(num_frames)
        return num_frames and count_clips(num_frames, length=plan.window, stride=plan.stride, tail=plan.tail)

    def __iter__(self) -> Iterator[Clip]:
        plan, dense = self._plan, self._plan.dense_plan
        flow, pairs_per_call = self._flow_of_run() if "flow" in plan.networks else (None, 1)
        frames = align_streams(
            self._count(self.frames),
            size_px=plan.resize_px,
            # Several crops are cut later, from the whole frame: all at once would take many times the memory.
            crop_px=plan.crop_px if plan.crops == 1 and not plan.resize_only else None,
            antialias=plan.antialias,
            rgb="rgb" in plan.networks,
            flow=flow,
            pairs_per_call=pairs_per_call,
            workers=self._workers,
        )
        windows = self._cut(frames) if dense is None else dense.stretches(frames)
        yield from map(self._stack, itertools.count(), windows)  # holds no window while the next one fills
        self._check_flow_files()

    def summary(self) -> ReadVideo:
        """Return the facts of the video, after all clips have been read."""
        plan, files = self._plan, self.flow_files
        return ReadVideo(
            self.video,
            float(plan.fps or self.frames.info.fps),
            self.num_frames,
            self.frames.num_lost_frames,
            plan.describe_flow(None if files is None else files.description),
            plan.pixels.warnings(self.frames.info),
            tuple(_span(index, window) for index, window in enumerate(self._cut(self._shown))),
        )

    def _cut(self, frames: Iterable[_Timed]) -> Iterator[Window[_Timed]]:
        return sliding_clips(frames, length=self._plan.window, stride=self._plan.stride, tail=self._plan.tail)

    def _count(self, frames: VideoReader | DecodedVideo) -> Iterator[Frame]:
        for frame in self._workers.spent.each("decode", frames):
            self.num_frames += 1
            if self._plan.dense:
                self._shown.append(_Shown(frame.seconds, frame.end_seconds))
            yield frame

    def _flow_of_run(self) -> tuple[FlowOfRun, int]:
        """Return the function that computes or reads flow, and how many pairs it takes at a time."""
        if self.flow_files is None:
            method = self._plan.flow
            compute = create_flow(method, flow_device(method, self._plan.network_device))
            return lambda _, grey: compute(grey), compute.pairs_per_call
        files, reading = self.flow_files, threading.Lock()

        def read(index: int, grey: NDArray[np.uint8]) -> NDArray[np.float32]:
            if index >= len(files):
                raise FlowFilesError(self.video, self._flow_files_misfit(f"more than {index + 1}"))
            with reading:
                field = files[index]
            return resize_flow(field, *grey.shape[1:])[None]

        return read, 1

    def _check_flow_files(self) -> None:
        """Raise FlowFilesError if the flow is of another video or frame rate; the last frame's may be missing."""
        whole = self._plan.end_seconds is None
        if self.flow_files and whole and len(self.flow_files) not in (self.num_frames - 1, self.num_frames):
            raise FlowFilesError(self.video, self._flow_files_misfit(str(self.num_frames)))

    def _flow_files_misfit(self, num_frames: str) -> str:
        assert self.flow_files is not None
        rate = f"at {describe_fps(self._plan.fps)} fps" if self._plan.fps else "at its native rate"
        return (
            f"{len(self.flow_files)} ready-made flow fields do not fit {num_frames} frames {rate}; "
            "flow made from every frame needs --fps native"
        )

    def _stack(self, index: int, window: Window[StreamFrame]) -> Clip:
        streams = {s: np.stack([frame.streams[s] for frame in window.frames]) for s in window.frames[0].streams}
        if self._plan.quantise_flow and "flow" in streams:
            assert self._plan.trained_bound_px is not None
            streams["flow"] = quantise_flow(streams["flow"], self._plan.trained_bound_px)
        return Clip(_span(index, window), streams)


def flow_device(method: str, device: str) -> str:
    """Return where flow is computed: on the GPUs of `device`, "cuda:0,cuda:1", by a method that can use them, or "cpu".

    Args:
        method: a name in `flow.methods.FLOW_METHODS`.
        device: see `Options.device`.

    Raises:
        UsageError: no such method or device.
    """
    if not find_flow_method(method).can_use_gpu:
        return "cpu"
    from ..runtimes.devices import select_devices

    return ",".join(str(gpu) for gpu in select_devices(device) if gpu.type == "cuda") or "cpu"


def _span(index: int, window: Window[StreamFrame] | Window[_Shown]) -> ClipSpan:
    first, last = window.frames[0], window.frames[window.num_valid - 1]
    return ClipSpan(index, window.start, window.num_valid, first.seconds, last.end_seconds)
