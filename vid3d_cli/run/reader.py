"""Reads the clips of one video, as a plan defines them: in a decoder process, or in this one.

    decoder process   frames → resized → grey → flow → cropped, quantised → clip 3, stacked in slot 1 (ClipReader)
    this process      Clip ←─────────────── "clip 3 is in slot 1" ────────────────┘                   (DecodedClips)

`ClipReader` does all the work, in either process. What `DecodedClips` yields are views of slots, see `video.slots`.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
from ..timings import StageSeconds
from ..video.clock import describe_fps
from ..video.frames import DecodedVideo
from ..video.process import Answers, Decoders
from ..video.reader import VideoReader
from ..video.slots import Layout, Slots
from ..workers import Workers
from .threads import one_opencv_thread, share_threads

if TYPE_CHECKING:
    from ..video.child import Parent

_CLIPS_BYTES = 2**29
"""Memory for the slots of a decoder process, if all are used: 14 clips of I3D with both streams."""

_MAX_CLIPS_AHEAD = 1
"""Clips in slots that this process has not taken yet."""

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


Forms = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of the array of each stream."""

Allocate = Callable[[Forms], Mapping[str, NDArray[Any]]]
"""Makes the arrays of a clip."""


def _allocate(forms: Forms) -> Mapping[str, NDArray[Any]]:
    return {stream: np.empty(shape, dtype) for stream, (shape, dtype) in forms.items()}


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
        allocate: makes the arrays that clips are stacked in.

    Raises:
        VideoError: on opening or while reading.
        ResourceError: no more processes or open files.
    """

    def __init__(
        self,
        plan: Plan,
        video: str,
        workers: Workers | None = None,
        decoders: Decoders | None = None,
        *,
        allocate: Allocate = _allocate,
    ) -> None:
        self.video = video
        self.num_frames = 0
        self._plan = plan
        self._workers = Workers() if workers is None else workers
        self._allocate = allocate
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
        return num_frames and count_clips(
            num_frames, length=plan.window, stride=plan.stride, tail=plan.tail, centred=plan.centred
        )

    def __iter__(self) -> Iterator[Clip]:
        plan, dense = self._plan, self._plan.dense_plan
        flow, pairs_per_call = self._flow_of_run() if "flow" in plan.networks else (None, 1)
        frames = align_streams(
            self._count(self.frames),
            size_px=plan.resize_px,
            # Other crops are cut later, from the whole frame: all at once would take many times the memory.
            crop=None if plan.views or plan.resize_only else plan.squares,
            interpolation=plan.interpolation,
            flow_of_stored=plan.flow_size == "source",
            rgb="rgb" in plan.networks,
            flow=flow,
            pairs_per_call=pairs_per_call,
            bound_px=plan.trained_bound_px if plan.quantise_flow else None,
            is_still_at_end=plan.centred,
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
        plan = self._plan
        return sliding_clips(frames, length=plan.window, stride=plan.stride, tail=plan.tail, centred=plan.centred)

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
        plan = self._plan
        picked: Sequence[int] = range(len(window.frames))
        if (spread := plan.spread_plan) is not None:
            file_fps = self.frames.info.fps
            picked = spread.indices(window, file_fps, plan.fps or Fraction(file_fps))
        first = window.frames[0].streams
        arrays = self._allocate({s: ((len(picked), *entry.shape), entry.dtype.str) for s, entry in first.items()})
        for stream, array in arrays.items():
            np.stack([window.frames[i].streams[stream] for i in picked], out=array)
        if plan.centred and "flow" in arrays:  # before the first frame nothing moves, as MS-TCN's extractor has it
            num_before = plan.window // 2 - index * plan.stride
            arrays["flow"][[i < num_before for i in picked]] = self._still
        return Clip(_span(index, window), arrays)

    @property
    def _still(self) -> NDArray[Any]:
        """The flow of a pixel that does not move."""
        still, bound_px = np.zeros(2, np.float32), self._plan.trained_bound_px
        return quantise_flow(still, bound_px) if self._plan.quantise_flow and bound_px else still


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
    end_seconds = max(frame.end_seconds for frame in window.frames)
    return ClipSpan(index, window.start, window.num_valid, window.frames[0].seconds, end_seconds)


# From a decoder process ----------------------------------------------------------------------------------------------


def open_clips(
    plan: Plan, video: str, workers: Workers | None = None, decoders: Decoders | None = None
) -> ClipReader | DecodedClips:
    """Open the clips of a video: in a decoder process, unless flow is computed by a method that can use a GPU.

    For the arguments and errors see `ClipReader`; the decoder process has as many threads as `workers`, up to 4.
    """
    has_gpu_flow = "flow" in plan.networks and plan.flow_files is None and find_flow_method(plan.flow).can_use_gpu
    if decoders is None or has_gpu_flow:
        return ClipReader(plan, video, workers, decoders)
    workers = Workers() if workers is None else workers
    request = ClipsRequest(plan, video, share_threads(workers.num_threads).workers)
    return DecodedClips(decoders.ask(request), workers.spent)


class ClipsRequest(NamedTuple):
    """Asks a decoder process for the clips of a video; see `video.process.Request`."""

    plan: Plan
    video: str
    num_threads: int
    """Threads that resize frames and compute flow."""

    def answer(self, parent: Parent) -> tuple[ReadVideo, dict[str, float]]:
        """Send the number of expected clips, then a SentClip for each; return the facts and the last seconds."""
        slots: Slots
        slot: int

        def allocate(forms: Forms) -> Mapping[str, NDArray[Any]]:
            nonlocal slots, slot
            slots = parent.share(Layout.fit(sum(map(_count_bytes, forms.values())), _CLIPS_BYTES))
            slot, memory = slots.take(_MAX_CLIPS_AHEAD)
            return _carve(memory, forms)

        with (
            one_opencv_thread(),
            Workers(self.num_threads) as workers,
            ClipReader(self.plan, self.video, workers, allocate=allocate) as reader,
        ):
            frames, spent = reader.frames, workers.spent
            assert isinstance(frames, VideoReader)
            parent.report(lambda: (frames.num_packets_read, spent.by_stage()))
            parent.send(reader.num_expected_clips)
            for clip in reader:
                slots.mark_filled(slot)
                forms = {stream: (array.shape, array.dtype.str) for stream, array in clip.streams.items()}
                parent.send(SentClip(clip.span, slot, forms, reader.num_frames, spent.take()))
            return reader.summary(), spent.take()


class SentClip(NamedTuple):
    """A `Clip` whose arrays are in shared memory."""

    span: ClipSpan
    slot: int
    forms: Forms
    num_frames: int
    """See `DecodedClips.num_frames`."""
    seconds: Mapping[str, float]
    """Spent on each stage since the clip before."""


class DecodedClips(Iterator[Clip]):
    """The clips of a video as `ClipReader` yields them, once, made by a decoder process.

    Their arrays are views of shared memory. Clips can be kept for any time; if many are kept, they are copies. For
    threads and errors see `Answers`; those of opening are raised by the call.

    Args:
        answers: to a `ClipsRequest`.
        spent: gets the seconds of each stage.
    """

    num_expected_clips: int | None
    """Number of clips expected from the header; None if it does not say."""
    num_frames: int
    """Number of frames read for the clips so far."""

    def __init__(self, answers: Answers, spent: StageSeconds) -> None:
        self._answers, self._spent = answers, spent
        self.num_frames = 0
        self._read: ReadVideo | None = None
        self.num_expected_clips = next(answers)

    def __next__(self) -> Clip:
        sent: SentClip | None = next(self._answers, None)
        if sent is not None:
            self.num_frames = sent.num_frames
            self._add(sent.seconds)
            return Clip(sent.span, _carve(self._answers.borrow(sent.slot), sent.forms))
        if self._read is None and self._answers.last is not None:
            self._read, seconds = self._answers.last
            self._add(seconds)
        raise StopIteration

    def _add(self, seconds: Mapping[str, float]) -> None:
        for stage, number in seconds.items():
            self._spent.add(stage, number)

    def summary(self) -> ReadVideo:
        """Return the facts of the video, after all clips have been read."""
        assert self._read is not None
        return self._read

    def __enter__(self) -> DecodedClips:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._answers.close()


def _count_bytes(form: tuple[tuple[int, ...], str]) -> int:
    """Return the bytes of an array, up to where the next one may start."""
    shape, dtype = form
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64


def _carve(memory: NDArray[np.uint8], forms: Forms) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a clip, which lie one after the other."""
    arrays, start = {}, 0
    for stream, (shape, dtype) in forms.items():
        arrays[stream] = np.ndarray(shape, dtype, memory, start)  # a view
        start += _count_bytes((shape, dtype))
    return arrays
