"""One video through the tool: clips, networks, pooling. How many videos share this is the business of `engines`."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .errors import CheckpointError, FlowFilesError, NoScores, UsageError, WeightsUnavailable
from .flow import create_flow, describe_flow, quantise_flow, resize_flow
from .flow_files import FlowFiles, is_of_one_video, open_flow_files
from .fusion import Fusion, pool_video
from .manifest import ModelEntry, WeightsFile, find_model, read_labels
from .options import Options
from .preprocess import NUM_CROPS, Views, describe_resize
from .records import STREAMS, Clip, ClipOutput, ClipSpan, Frame, Recipe, StreamRecipe, VideoResult
from .streams import FlowOfPair, StreamFrame, align_streams
from .version import __version__
from .video import VideoReader, check_span, parse_fps
from .weights import file_sha256, pull

if TYPE_CHECKING:
    from .runtimes.torch import TorchRuntime


DEFAULT_VARIANT = "default"
"""What the plain form of a backbone is called, where a model means another."""


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
        self.streams = _select_streams(options.streams, self.entry, options.weights)
        clip_length, self.size_px, self.crop_px = self._input_of_variant()
        self.window = clip_length if options.window is None else options.window
        trained_stride = self.entry.clip_stride if self.window == self.entry.clip_length else self.window
        self.stride = trained_stride if options.stride is None else options.stride
        check_clip_options(self.window, self.stride, options.tail)
        self.fps = self.entry.fps if options.fps is None else parse_fps(str(options.fps))
        self.fusion = Fusion.parse(options.fuse, options.fuse_on)
        self._check_options()
        self._own = {stream: _own_checkpoint(stream, path) for stream, path in options.weights.items()}
        self._fetch = fetch

    def _input_of_variant(self) -> tuple[int, int | tuple[int, int], int]:
        """Frames of a clip, size of the resized frame and side of the crop: the model's, or those of a variant.

        Raises:
            UsageError: the backbone has no such variant.
        """
        entry = self.entry
        if self._variant in (None, entry.variant):
            return entry.clip_length, entry.resize_px, entry.crop_px
        from .backbones import BACKBONES

        backbone = BACKBONES[entry.backbone]
        if self._variant not in backbone.variants:
            known = f"choose one of {', '.join(backbone.variants)}" if backbone.variants else "it has none"
            raise UsageError(f"{entry.backbone} has no variant '{self._variant}': {known}")
        num_frames, side_px = backbone.clip_of(self._variant)
        if (num_frames, side_px) == backbone.clip:
            return entry.clip_length, entry.resize_px, entry.crop_px
        sides = (entry.resize_px,) if isinstance(entry.resize_px, int) else entry.resize_px
        scaled = tuple(round(side * side_px / entry.crop_px) for side in sides)
        return num_frames, scaled[0] if len(scaled) == 1 else (scaled[0], scaled[1]), side_px

    def _check_options(self) -> None:
        options = self.options
        if "flow" in self.streams and not options.flow_files:
            create_flow(options.flow)  # an unknown method is told now, not in the first video
        if options.flow_files and options.start_seconds:
            raise UsageError("ready-made flow is counted from the first frame: it cannot be used with --start")
        check_span(self.fps, options.start_seconds, options.end_seconds)
        if options.crops not in NUM_CROPS:
            raise UsageError(f"cannot cut {options.crops} crops: choose one of {', '.join(map(str, NUM_CROPS))}")
        if options.resize_only and options.crops != 1:
            raise UsageError("crops cannot be cut out of frames that are only resized: choose one of the two")
        if options.keep_crops and options.crops == 1:
            raise UsageError("the features of several crops can be kept: ask for 3 or 10 of them")
        if options.labels is not None and not self.labels:
            raise UsageError(f"{options.labels}: no class names in it")
        if options.variant and not options.weights:
            raise UsageError(
                f"the weights of {self.entry.name} are of another form: a variant needs weights of its own"
            )
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
        return {stream: self._own.get(stream) or self._fetch(self._published(stream)) for stream in self.streams}

    def _published(self, stream: str) -> WeightsFile:
        file = self.entry.streams[stream].weights
        assert file is not None  # `_select_streams` saw to it
        return file

    @property
    def left_out(self) -> dict[str, str]:
        """The streams that were not asked for by name and do not run, since nobody published weights: why."""
        if self.options.streams != "both":
            return {}
        return {name: stream.unpublished for name, stream in self.entry.streams.items() if name not in self.streams}

    @cached_property
    def runtime(self) -> TorchRuntime:
        """The networks, loaded; torch is imported here and not before.

        Raises:
            UsageError: a device or precision that is not here, or clips too short for the network.
            WeightsError: weights that cannot be had or do not fit.
        """
        from .model import ClipModel, LayerTap, Normalise, create_model
        from .runtimes.torch import TorchRuntime, select_device, select_precision

        # Told before anything is downloaded.
        options = self.options
        select_precision(options.precision, select_device(options.device))
        path = self._layer_path()
        models = {}
        for stream, checkpoint in self.checkpoints.items():
            net = create_model(self.entry.backbone, stream=stream, weights=checkpoint, variant=self._variant)
            tap = None if path is None else LayerTap(net, path, options.pool)
            models[stream] = ClipModel(net, Normalise(self.entry.streams[stream].normalisation), tap)
        views = None if options.crops == 1 else Views(options.crops, self.crop_px, options.keep_crops)
        return TorchRuntime(
            models, device=options.device, precision=options.precision, batch_size=options.batch_size, views=views
        )

    @property
    def _variant(self) -> str | None:
        asked = self.options.variant or self.entry.variant
        return None if asked == DEFAULT_VARIANT else asked

    def _layer_path(self) -> str | None:
        """The module that features are taken from, None for the usual ones; checks what depends on the backbone.

        Raises:
            UsageError: clips of a length or size that the network cannot take, or no such layer or pooling.
        """
        from .backbones import BACKBONES
        from .model import POOLS

        options, name, backbone = self.options, self.entry.backbone, BACKBONES[self.entry.backbone]
        if backbone.is_fixed_size:
            num_frames, side_px = backbone.clip_of(self._variant)
            if self.window != num_frames or options.resize_only:
                raise UsageError(f"{name} takes clips of {num_frames} frames of {side_px} × {side_px} px and no others")
        elif self.window < backbone.min_frames:
            raise UsageError(f"{name} needs a window of at least {backbone.min_frames} frames, got {self.window}")
        if options.pool not in POOLS:
            raise UsageError(f"unknown pooling '{options.pool}': choose one of {', '.join(POOLS)}")
        if options.layer is None:
            if options.pool != "avg":
                raise UsageError(f"--pool {options.pool} is for the map of a layer: name one with --layer")
            return None
        if options.layer not in backbone.layers:
            raise UsageError(f"{name} has no layer '{options.layer}': choose one of {', '.join(backbone.layers)}")
        return backbone.layers[options.layer]

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
            resize=describe_resize(self.size_px, antialias=entry.antialias),
            crops=self._describe_crops(),
            keeps_crops=options.keep_crops,
            features="pooled" if options.layer is None else f"{options.layer}, {options.pool}",
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

    def _describe_crops(self) -> str:
        options, size_px = self.options, self.crop_px
        if options.resize_only:
            return "none"
        if options.crops == 1:
            return f"centre {size_px} px"
        return f"{options.crops} of {size_px} px, {'kept' if options.keep_crops else 'averaged'}"

    def _stream_recipe(self, stream: str) -> StreamRecipe:
        own = self.options.weights.get(stream)
        return StreamRecipe(
            weights=str(own) if own else self._published(stream).name,
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

    def check_classes(self) -> None:
        """Raise UsageError for a model that has features but no classes."""
        if not self.entry.has_classes and not self.options.weights:
            raise UsageError(f"{self.entry.name} puts out an embedding and knows no classes: use vid3d extract")

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The class names, where they are known before the checkpoint is read."""
        if self.options.labels is not None:
            return _read_label_lines(self.options.labels)
        return None if self.options.weights else read_labels(self.entry)

    def _labels_of(self, num_classes: int) -> tuple[str, ...]:
        """The class names of a network that has so many; by number where it has others than the model's."""
        labels = self.labels or read_labels(self.entry)
        if len(labels) == num_classes:
            return labels
        if self.options.labels is not None:
            raise UsageError(f"{self.options.labels}: {len(labels)} names for {num_classes} classes: give one a line")
        return tuple(f"class {i}" for i in range(num_classes))

    def open_clips(self, video: str) -> ClipReader:
        """Open a video for reading its clips; a context manager."""
        return ClipReader(video, self)

    def pool(self, reader: ClipReader, outputs: Sequence[ClipOutput]) -> VideoResult:
        """Put the clips of a wholly read video together."""
        clips, logits = pool_video(outputs, self.fusion)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise NoScores(reader.video, "the network's scores are not finite: the weights are damaged, or try fp32")
        labels = self._labels_of(next(iter(logits.values())).shape[0])
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
            size_px=p.size_px,
            # Several squares are cut from the whole frame, later: all at once would take many times the memory.
            crop_px=p.crop_px if p.options.crops == 1 and not p.options.resize_only else None,
            antialias=p.entry.antialias,
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


def _read_label_lines(path: Path) -> tuple[str, ...]:
    """The class names of a file, one a line.

    Raises:
        UsageError: no such file, or not of text.
    """
    try:
        return tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines())
    except OSError as error:
        raise UsageError(f"{path}: class names cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: class names must be UTF-8 text, one a line") from None


def _own_checkpoint(stream: str, path: str | Path) -> Path:
    """The user's own checkpoint file of a stream.

    Raises:
        CheckpointError: it is not there.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"--weights {stream}={path}: no such file")
    return Path(path)


def _select_streams(asked: str, entry: ModelEntry, own: Mapping[str, str | Path]) -> tuple[str, ...]:
    """The streams that "rgb", "flow" or "both" (all that have weights) means for this model.

    Raises:
        UsageError: an unknown name, or a stream that the model does not have.
        WeightsUnavailable: nobody published weights, and none of the user's own are given.
    """
    if asked not in (*STREAMS, "both"):
        raise UsageError(f"unknown stream '{asked}': choose one of {', '.join(STREAMS)}, both")
    if asked != "both" and asked not in entry.streams:
        raise UsageError(f"{entry.name} has no {asked} stream; it has: {', '.join(entry.streams)}")
    candidates = tuple(entry.streams) if asked == "both" else (asked,)
    streams = tuple(s for s in candidates if s in own or entry.streams[s].weights is not None)
    if not streams:
        why = entry.streams[candidates[0]].unpublished
        other = " or ".join(f"--streams {s}" for s in entry.published_streams)
        raise WeightsUnavailable(
            f"{entry.name} has no public {' or '.join(candidates)} weights. {why}\n"
            f"Give your own with --weights {candidates[0]}=FILE" + (f", or run {other}" if other else "")
        )
    return streams
