"""One video through the tool: clips, networks, pooling. How many videos share this is the business of `engines`."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
import PIL
from numpy.typing import NDArray

from .clips import Window, check_clip_options, count_clips, sliding_clips
from .errors import CheckpointError, FlowFilesError, NoScores, UsageError
from .flow import create_flow, describe_flow, quantise_flow, resize_flow
from .flow_files import FlowFiles, is_of_one_video, open_flow_files
from .fusion import Fusion, pool_video
from .manifest import ModelEntry, WeightsFile, find_model, read_labels
from .options import Options
from .records import STREAMS, Clip, ClipOutput, ClipSpan, Frame, Recipe, StreamRecipe, VideoResult
from .streams import FlowOfPair, StreamFrame, align_streams
from .version import __version__
from .video import VideoReader, check_span, parse_fps
from .weights import file_sha256, pull

if TYPE_CHECKING:
    from .runtimes.torch import TorchRuntime


class Pipeline:
    """Everything that is decided before a video is opened: the model, its weights, the clips, the recipe.

    Args:
        options: see `Options`.
        fetch: finds or downloads a published checkpoint.

    Raises:
        UsageError: options that do not fit each other or the model.
        CheckpointError: an own checkpoint file that is not there.
    """

    def __init__(self, options: Options, *, fetch: Callable[[WeightsFile], Path] = pull) -> None:
        self.options = options
        self.entry = find_model(options.model)
        self.streams = _select_streams(options.streams, self.entry)
        self.window = self.entry.clip_length if options.window is None else options.window
        trained_stride = self.entry.clip_stride if options.window is None else self.window
        self.stride = trained_stride if options.stride is None else options.stride
        check_clip_options(self.window, self.stride, options.tail)
        self.fps = self.entry.fps if options.fps is None else parse_fps(str(options.fps))
        self.fusion = Fusion.parse(options.fuse, options.fuse_on)
        self._check_options()
        self._own = {stream: _own_checkpoint(stream, path) for stream, path in options.weights.items()}
        self._fetch = fetch

    def _check_options(self) -> None:
        options = self.options
        if "flow" in self.streams and not options.flow_files:
            create_flow(options.flow)  # an unknown method is told now, not in the first video
        if options.flow_files and options.start_seconds:
            raise UsageError("ready-made flow is counted from the first frame: it cannot be used with --start")
        check_span(self.fps, options.start_seconds, options.end_seconds)
        if unused := [stream for stream in options.weights if stream not in self.streams]:
            raise UsageError(
                f"weights were given for '{unused[0]}', but the streams that run are: {', '.join(self.streams)}"
            )

    @cached_property
    def checkpoints(self) -> dict[str, Path]:
        """The checkpoint file of each stream; what is not on disk is fetched here.

        Raises:
            WeightsUnavailable: the text says what to do.
        """
        return {s: self._own.get(s) or self._fetch(self.entry.streams[s].weights) for s in self.streams}

    @cached_property
    def runtime(self) -> TorchRuntime:
        """The networks, loaded; torch is imported here and not before.

        Raises:
            UsageError: a device or precision that is not here, or clips too short for the network.
            WeightsError: weights that cannot be had or do not fit.
        """
        from .backbones import BACKBONES
        from .model import ClipModel, Normalise, create_model
        from .runtimes.torch import TorchRuntime, select_device, select_precision

        # Told before anything is downloaded.
        select_precision(self.options.precision, select_device(self.options.device))
        min_frames = BACKBONES[self.entry.backbone].min_frames
        if self.window < min_frames:
            raise UsageError(f"{self.entry.backbone} needs a window of at least {min_frames} frames, got {self.window}")
        models = {
            stream: ClipModel(
                create_model(self.entry.backbone, stream=stream, weights=path),
                Normalise(self.entry.streams[stream].normalisation),
            )
            for stream, path in self.checkpoints.items()
        }
        options = self.options
        return TorchRuntime(models, device=options.device, precision=options.precision, batch_size=options.batch_size)

    @cached_property
    def recipe(self) -> Recipe:
        """What decides the numbers; see `records.Recipe`."""
        options, entry = self.options, self.entry
        return Recipe(
            model=entry.name,
            streams={stream: self._stream_recipe(stream) for stream in self.streams},
            fps=str(self.fps) if self.fps else "native",
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            window=self.window,
            stride=self.stride,
            tail=options.tail,
            resize=f"short side {entry.short_side_px} px, antialiased bilinear; centre crop {entry.crop_px} px",
            flow=None,  # may differ from video to video: see `pool`
            runtime=self.runtime.description,
            precision=self.runtime.precision,
            versions={
                "python": platform.python_version(),
                "vid3d": __version__,
                self.runtime.name: self.runtime.version,
                "av": av.__version__,
                "opencv": cv2.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
        )

    def _stream_recipe(self, stream: str) -> StreamRecipe:
        own = self.options.weights.get(stream)
        return StreamRecipe(
            weights=str(own) if own else self.entry.streams[stream].weights.name,
            weights_sha256=file_sha256(self.checkpoints[stream]),
            normalisation=self.entry.streams[stream].normalisation.describe(),
        )

    @property
    def flow_bound_px(self) -> float:
        """The bound that ready-made flow images were stored with."""
        return self.options.flow_bound_px or self.trained_bound_px

    @property
    def trained_bound_px(self) -> float:
        """The displacement at which the flow network's input is truncated."""
        bound_px = self.entry.streams["flow"].normalisation.bound_px
        assert bound_px is not None  # the manifest's reader sees to it
        return bound_px

    def check_videos(self, videos: Sequence[str]) -> None:
        """Raise UsageError for options that do not suit these videos together."""
        path = self.options.flow_files
        if path is None or len(videos) < 2:
            return
        if is_of_one_video(path):
            raise UsageError(f"{path} is the flow of one video: for several, name the directory that holds theirs")
        names = Counter(Path(video).stem for video in videos)
        name, number = names.most_common(1)[0]
        if number > 1:
            raise UsageError(f"{number} videos are called {name}: their flow in {path} cannot be told apart")

    def open_clips(self, video: str) -> ClipReader:
        """Open a video for reading its clips; a context manager."""
        return ClipReader(video, self)

    def pool(self, reader: ClipReader, outputs: Sequence[ClipOutput]) -> VideoResult:
        """Put the clips of a wholly read video together."""
        clips, logits = pool_video(outputs, self.fusion)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise NoScores(reader.video, "the network's scores are not finite: the weights are damaged, or try fp32")
        labels = read_labels(self.entry)
        num_classes = next(iter(logits.values())).shape[0]
        if len(labels) != num_classes:  # an own checkpoint with classes of its own
            labels = tuple(f"class {i}" for i in range(num_classes))
        return VideoResult(
            video=reader.video,
            clips=clips,
            logits=logits,
            labels=labels,
            fps=float(self.fps or reader.frames.info.fps),
            num_frames=reader.num_frames,
            num_decode_failures=reader.frames.num_decode_failures,
            recipe=replace(self.recipe, flow=reader.flow_description),
        )


class ClipReader:
    """The clips of one video, made while they are read; memory is bounded by the window.

    Args:
        video: path or URL.
        pipeline: decides what is read and how.

    Raises:
        VideoError: on opening or while reading.
    """

    def __init__(self, video: str, pipeline: Pipeline) -> None:
        self.video = video
        self.num_frames = 0
        self._pipeline = pipeline
        options = pipeline.options
        self._flow_files: FlowFiles | None = None
        if options.flow_files and "flow" in pipeline.streams:
            self._flow_files = open_flow_files(options.flow_files, video, pipeline.flow_bound_px)
        self.frames = VideoReader(
            video, fps=pipeline.fps, start_seconds=options.start_seconds, end_seconds=options.end_seconds
        )

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.frames.close()
        if self._flow_files is not None:
            self._flow_files.close()

    @property
    def flow_description(self) -> str | None:
        """How the flow of this video came about; None without a flow stream."""
        if "flow" not in self._pipeline.streams:
            return None
        options, files = self._pipeline.options, self._flow_files
        source = describe_flow(options.flow) if files is None else files.description
        return source + (", quantised to 8 bits" if options.quantise_flow else "")

    @property
    def num_expected_clips(self) -> int | None:
        """How many clips the container's header promises; None when it promises nothing."""
        num_frames = self.frames.num_expected_frames
        p = self._pipeline
        return num_frames and count_clips(num_frames, length=p.window, stride=p.stride, tail=p.options.tail)

    def __iter__(self) -> Iterator[Clip]:
        p = self._pipeline
        frames = align_streams(
            self._count(self.frames),
            short_side_px=p.entry.short_side_px,
            crop_px=p.entry.crop_px,
            rgb="rgb" in p.streams,
            flow=self._flow_of_pair() if "flow" in p.streams else None,
        )
        windows = sliding_clips(frames, length=p.window, stride=p.stride, tail=p.options.tail)
        for index, window in enumerate(windows):
            yield self._stack(index, window)
        self._check_flow_files()

    def _count(self, frames: VideoReader) -> Iterator[Frame]:
        for frame in frames:
            self.num_frames += 1
            yield frame

    def _flow_of_pair(self) -> FlowOfPair:
        if self._flow_files is None:
            flow = create_flow(self._pipeline.options.flow)
            return lambda _, first, second: flow(first, second)
        files = self._flow_files

        def read(index: int, first: NDArray[np.uint8], _: NDArray[np.uint8]) -> NDArray[np.float32]:
            if index >= len(files):
                raise FlowFilesError(self.video, self._flow_files_misfit(f"more than {index + 1}"))
            return resize_flow(files[index], *first.shape)

        return read

    def _check_flow_files(self) -> None:
        """The last frame has no flow, or a repeated one; any other difference means files of another video or rate."""
        whole = self._pipeline.options.end_seconds is None
        if self._flow_files and whole and len(self._flow_files) not in (self.num_frames - 1, self.num_frames):
            raise FlowFilesError(self.video, self._flow_files_misfit(str(self.num_frames)))

    def _flow_files_misfit(self, num_frames: str) -> str:
        assert self._flow_files is not None
        rate = f"at {self._pipeline.fps} fps" if self._pipeline.fps else "at its native rate"
        return (
            f"{len(self._flow_files)} ready-made flow fields do not fit {num_frames} frames {rate}; "
            "flow made from every frame wants --fps native"
        )

    def _stack(self, index: int, window: Window[StreamFrame]) -> Clip:
        first, last = window.frames[0], window.frames[window.num_valid - 1]
        span = ClipSpan(index, window.start, window.num_valid, first.seconds, last.end_seconds)
        streams = {s: np.stack([frame.streams[s] for frame in window.frames]) for s in first.streams}
        if self._pipeline.options.quantise_flow and "flow" in streams:
            streams["flow"] = quantise_flow(streams["flow"], self._pipeline.trained_bound_px)
        return Clip(span, streams)


def _own_checkpoint(stream: str, path: str | Path) -> Path:
    """The user's own checkpoint file of a stream.

    Raises:
        CheckpointError: it is not there.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"--weights {stream}={path}: no such file")
    return Path(path)


def _select_streams(asked: str, entry: ModelEntry) -> tuple[str, ...]:
    """The streams that "rgb", "flow" or "both" means for this model.

    Raises:
        UsageError: an unknown name, or a stream that the model does not have.
    """
    if asked == "both":
        return tuple(entry.streams)
    if asked not in STREAMS:
        raise UsageError(f"unknown stream '{asked}': choose one of {', '.join(STREAMS)}, both")
    if asked not in entry.streams:
        raise UsageError(f"{entry.name} has no {asked} weights; it has: {', '.join(entry.streams)}")
    return (asked,)
