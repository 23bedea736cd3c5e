"""One video through the tool: clips, networks, pooling. How many videos share this is the business of `engines`."""

from __future__ import annotations

import itertools
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..clips.dense import DensePlan
from ..clips.preprocess import Views, check_num_crops, check_resized_size, describe_resize
from ..clips.streams import FlowOfRun, StreamFrame, align_streams
from ..clips.windows import Window, check_clip_options, count_clips, sliding_clips
from ..errors import CheckpointError, FlowFilesError, NoScores, TooLarge, UsageError, WeightsUnavailable
from ..flow.files import FlowFiles, is_of_one_video, open_flow_files
from ..flow.methods import create_flow, describe_flow, find_flow_method, quantise_flow, resize_flow
from ..fusion import Fusion, pool_video
from ..models.manifest import ModelEntry, WeightsFile, find_model, read_labels
from ..models.weights import file_sha256, pull
from ..options import Options
from ..recipe import Recipe, StreamRecipe
from ..records import STREAMS, Clip, ClipOutput, ClipSpan, Frame, VideoResult
from ..version import __version__
from ..video.process import DecodedVideo, Decoders
from ..video.reader import VideoReader, check_span, parse_fps
from ..workers import Workers

if TYPE_CHECKING:
    from ..models.clip_model import ClipModel
    from ..runtimes.base import Runtime


_Timed = TypeVar("_Timed")


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
        self.num_classes: dict[str, int] = {}

    def _input_of_variant(self) -> tuple[int, int | tuple[int, int], int]:
        """Frames of a clip, size of the resized frame and side of the crop: the model's, or those of a variant.

        Raises:
            UsageError: the backbone has no such variant.
        """
        entry = self.entry
        usual = entry.clip_length, entry.resize_px, entry.crop_px
        if self.options.variant is None:
            return usual
        from ..models.backbones import BACKBONES

        backbone = BACKBONES[entry.backbone]
        num_frames, side_px = backbone.clip_of(self._variant)
        if (num_frames, side_px) == backbone.clip:
            return usual
        return num_frames, backbone.resizes_px.get(side_px, entry.resize_px), side_px

    def _check_options(self) -> None:
        options = self.options
        if "flow" in self.streams and not options.flow_files:
            create_flow(options.flow)  # an unknown method is told now, not in the first video
        if options.flow_files and options.start_seconds:
            raise UsageError("ready-made flow is counted from the first frame: it cannot be used with --start")
        check_span(self.fps, options.start_seconds, options.end_seconds)
        check_num_crops(options.crops)
        if options.resize_only and options.crops != 1:
            raise UsageError("crops cannot be cut out of frames that are only resized: choose one of the two")
        if options.keep_crops and options.crops == 1:
            raise UsageError("the features of several crops can be kept: ask for 3 or 10 of them")
        if options.dense and options.layer is not None:
            raise UsageError("--dense pools the features that feed the classifier: leave it or --layer out")
        if options.dense and options.batch_size is not None:
            raise UsageError("--dense runs one long stretch of frames at a time: leave it or --batch-size out")
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
    def runtime(self) -> Runtime:
        """The networks, loaded; torch is imported here and not before.

        Raises:
            UsageError: a device or precision that is not here, or clips too short for the network.
            WeightsError: weights that cannot be had or do not fit.
        """
        from ..runtimes import create_runtime, select_runtime

        # Told before anything is downloaded.
        options = self.options
        name = select_runtime(
            options.runtime,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            num_threads=options.threads,
        )
        self._check_network()
        batch_size = 1 if self.dense_plan is not None else options.batch_size
        models = {stream: self._load(stream, checkpoint) for stream, checkpoint in self.checkpoints.items()}
        return create_runtime(
            models,
            name=name,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            num_threads=options.threads,
            batch_size=batch_size,
            views=None if options.crops == 1 else Views(options.crops, self.crop_px, options.keep_crops),
            identities={stream: self._identity(stream) for stream in self.streams},
        )

    @property
    def device(self) -> str:
        """What `Options.device` asks for, where the runtime leaves a choice."""
        return "cpu" if self.options.runtime == "openvino" else self.options.device

    def _identity(self, stream: str) -> str:
        """What tells the network of a stream from all others."""
        recipe, options = self._stream_recipes[stream], self.options
        parts = (self.entry.backbone, self._variant, options.layer, options.pool, options.dense)
        return f"{recipe.weights_sha256} {recipe.normalisation} {parts}"

    def _load(self, stream: str, checkpoint: Path) -> ClipModel:
        from ..models.backbones import BACKBONES
        from ..models.clip_model import ClipModel, LayerTap, Normalise, count_classes, create_model
        from ..runtimes.base import check_classes

        name, options = self.entry.backbone, self.options
        net = create_model(name, stream=stream, weights=checkpoint, variant=self._variant)
        num_classes = count_classes(net.state_dict(), BACKBONES[name])
        if num_classes is not None:
            self.num_classes[stream] = num_classes
            check_classes(self.num_classes)
            self._labels_of(num_classes)
        tap = None if options.layer is None else LayerTap(net, BACKBONES[name].layers[options.layer], options.pool)
        return ClipModel(net, Normalise(self.entry.streams[stream].normalisation), tap, self.dense_plan is not None)

    @property
    def doubts(self) -> Iterator[str]:
        """What works and may not be what was meant, in sentences: own checkpoints, windows of a dense run."""
        plan = self.dense_plan
        if plan is not None and not plan.pays:
            step = plan.steps.stride
            yield (
                f"--dense computes every frame {plan.times_computed:.1f} times for these windows, and one after the "
                f"other they compute it {plan.times_one_by_one:.1f} times: leave it out"
                + (f", or choose a stride that is a multiple of {step}" if self.stride % step else "")
            )
        from ..models.backbones import BACKBONES
        from ..models.clip_model import read_checkpoint, suggest_model

        name = self.entry.backbone
        for stream, path in self._own.items():
            if self.entry.layout is None or not BACKBONES[name].key_layouts:
                continue
            model = suggest_model(read_checkpoint(path), name)
            if find_model(model) is not self.entry:
                yield (
                    f"{path} has the tensor names of {model}, which was trained on another input than "
                    f"{self.entry.name}: if your {stream} network was too, use --model {model}"
                )

    @cached_property
    def dense_plan(self) -> DensePlan | None:
        """How windows are pooled from one pass over a video; None where each is run by itself.

        Raises:
            UsageError: a backbone that cannot do it, or clips that are no whole number of its steps in time.
        """
        if not self.options.dense:
            return None
        from ..models.backbones import BACKBONES

        steps = BACKBONES[self.entry.backbone].steps
        if steps is None:
            able = ", ".join(name for name, backbone in BACKBONES.items() if backbone.steps)
            raise UsageError(f"{self.entry.backbone} looks at each clip as a whole and cannot run --dense; {able} can")
        return DensePlan(steps, self.window, self.stride, self.options.tail)

    @property
    def _variant(self) -> str | None:
        """The backbone's form, as asked for or as the model's weights take it; None for the plain one.

        Raises:
            UsageError: the backbone has no such variant.
        """
        if self.options.variant is None:
            return self.entry.variant
        from ..models.backbones import find_variant

        return find_variant(self.entry.backbone, self.options.variant)

    def _check_network(self) -> None:
        """Raise UsageError for clips or layers that the backbone does not have; imports torch."""
        from ..models.backbones import BACKBONES
        from ..models.clip_model import POOLS

        options, name, backbone = self.options, self.entry.backbone, BACKBONES[self.entry.backbone]
        if backbone.is_fixed_size:
            num_frames, side_px = backbone.clip_of(self._variant)
            if self.window != num_frames or options.resize_only:
                raise UsageError(f"{name} takes clips of {num_frames} frames of {side_px} × {side_px} px and no others")
        elif self.window < backbone.min_frames:
            raise UsageError(f"{name} needs a window of at least {backbone.min_frames} frames, got {self.window}")
        elif self._variant is None and self.window % backbone.frame_multiple:
            raise UsageError(
                f"{name} needs windows of a multiple of {backbone.frame_multiple} frames, got {self.window}"
            )
        if options.pool not in POOLS:
            raise UsageError(f"unknown pooling '{options.pool}': choose one of {', '.join(POOLS)}")
        if options.layer is None and options.pool != "avg":
            raise UsageError(f"--pool {options.pool} is for the map of a layer: name one with --layer")
        if options.layer is not None and options.layer not in backbone.layers:
            raise UsageError(f"{name} has no layer '{options.layer}': choose one of {', '.join(backbone.layers)}")

    @cached_property
    def recipe(self) -> Recipe:
        """What decides the numbers; see `records.Recipe`."""
        options, entry = self.options, self.entry
        return Recipe(
            model=entry.name,
            streams=self._stream_recipes,
            fps=str(self.fps) if self.fps else "native",
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            window=self.window,
            stride=self.stride,
            tail=options.tail,
            resize=describe_resize(self.size_px, antialias=entry.antialias),
            crops=self._describe_crops(),
            keeps_crops=options.keep_crops,
            variant=self._variant,
            features="pooled" if options.layer is None else f"{options.layer}, {options.pool}",
            flow=self.describe_flow(),
            runtime=self.runtime.description,
            precision=self.runtime.precision,
            versions={self.runtime.name: self.runtime.version, **package_versions()},
            dense=None if self.dense_plan is None else self.dense_plan.describe(),
        )

    def describe_flow(self, files: FlowFiles | None = None) -> str | None:
        """How flow comes about: of one video, or as far as it is the same for all; None without a flow stream."""
        if "flow" not in self.streams:
            return None
        options = self.options
        if files is not None:
            source = files.description
        elif options.flow_files is not None:
            source = f"ready-made {options.flow_files}, images of bound {self.flow_bound_px:g} px"
        else:
            source = describe_flow(options.flow)
        return source + (", quantised to 8 bits" if options.quantise_flow else "")

    def _describe_crops(self) -> str:
        options, size_px = self.options, self.crop_px
        if options.resize_only:
            return "none"
        if options.crops == 1:
            return f"centre {size_px} px"
        return f"{options.crops} of {size_px} px, {'kept' if options.keep_crops else 'averaged'}"

    @cached_property
    def _stream_recipes(self) -> dict[str, StreamRecipe]:
        """Made once: the digests take a reading of the files."""
        return {stream: self._stream_recipe(stream) for stream in self.streams}

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
        """Raise UsageError for a model that has features but no classes; loads own networks to see."""
        if self.entry.has_classes:
            return
        if self.options.weights:
            self.runtime  # noqa: B018  (loaded here: an own checkpoint may have classes)
        if not self.options.weights or self.entry.num_classes in self.num_classes.values():
            raise UsageError(f"{self.entry.name} puts out an embedding and knows no classes: use vid3d extract")

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """The class names, where they are known before the checkpoint is read."""
        if self.options.labels is not None:
            return _read_label_lines(Path(self.options.labels))
        return None if self.options.weights else read_labels(self.entry)

    def _labels_of(self, num_classes: int) -> tuple[str, ...]:
        """The class names of a network that has so many; by number where it has others than the model's."""
        labels = self.labels or read_labels(self.entry)
        if len(labels) == num_classes:
            return labels
        if self.options.labels is not None:
            raise UsageError(f"{self.options.labels}: {len(labels)} names for {num_classes} classes: give one a line")
        return tuple(f"class {i}" for i in range(num_classes))

    def open_clips(self, video: str, workers: Workers | None = None, decoders: Decoders | None = None) -> ClipReader:
        """Open a video for reading its clips; a context manager."""
        return ClipReader(video, self, workers, decoders)

    def pool(self, read: ReadVideo, outputs: Sequence[ClipOutput]) -> VideoResult:
        """Put the clips of a video together, in their order."""
        if self.dense_plan is not None:
            outputs = self.dense_plan.pool(outputs, read.windows)
        clips, logits = pool_video(outputs, self.fusion)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise NoScores(read.video, "the network's scores are not finite: the weights are damaged, or try fp32")
        labels = self._labels_of(next(iter(logits.values())).shape[0])
        return VideoResult(
            video=read.video,
            clips=clips,
            logits=logits,
            labels=labels,
            fps=read.fps,
            num_frames=read.num_frames,
            num_decode_failures=read.num_decode_failures,
            recipe=replace(self.recipe, flow=read.flow),
        )


@dataclass(frozen=True)
class ReadVideo:
    """What is known of a video when its clips have been read; it can be pickled."""

    video: str
    """Path or URL as it was given."""
    fps: float
    """Frames per second that were read, after resampling."""
    num_frames: int
    """How many frames were read, after resampling."""
    num_decode_failures: int
    """How many damaged packets were skipped."""
    flow: str | None
    """How its flow came about; None without a flow stream."""
    windows: tuple[ClipSpan, ...]
    """Where the windows lie that a dense run pools; of any other run none."""


class _Shown(NamedTuple):
    """When a frame is shown."""

    seconds: float
    end_seconds: float


class ClipReader:
    """The clips of one video, made while they are read; memory is bounded by the window.

    In a dense run the clips are the long stretches that the windows are pooled from; memory is bounded by these.

    Args:
        video: path or URL.
        pipeline: decides what is read and how.
        workers: resize frames and compute flow; None does so in the thread that iterates.
        decoders: decode in a process that can be replaced; None does so in the thread that iterates.

    Raises:
        VideoError: on opening or while reading.
        ResourceError: likewise, from decoders.
    """

    def __init__(
        self, video: str, pipeline: Pipeline, workers: Workers | None = None, decoders: Decoders | None = None
    ) -> None:
        self.video = video
        self.num_frames = 0
        self._pipeline = pipeline
        self._workers = Workers() if workers is None else workers
        self._shown: list[_Shown] = []
        options = pipeline.options
        self.flow_files: FlowFiles | None = None
        if options.flow_files and "flow" in pipeline.streams:
            self.flow_files = open_flow_files(options.flow_files, video, pipeline.flow_bound_px)
        open_video = VideoReader if decoders is None else decoders.open
        self.frames = open_video(
            video, fps=pipeline.fps, start_seconds=options.start_seconds, end_seconds=options.end_seconds
        )
        info = self.frames.info
        try:
            check_resized_size(video, info.height, info.width, pipeline.size_px)
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
        """How many clips the container's header promises; None when it promises nothing."""
        num_frames = self.frames.num_expected_frames
        p = self._pipeline
        if num_frames and p.dense_plan is not None:
            return p.dense_plan.count_stretches(num_frames)
        return num_frames and count_clips(num_frames, length=p.window, stride=p.stride, tail=p.options.tail)

    def __iter__(self) -> Iterator[Clip]:
        p = self._pipeline
        flow, pairs_per_call = self._flow_of_run() if "flow" in p.streams else (None, 1)
        frames = align_streams(
            self._count(self.frames),
            size_px=p.size_px,
            # Several squares are cut from the whole frame, later: all at once would take many times the memory.
            crop_px=p.crop_px if p.options.crops == 1 and not p.options.resize_only else None,
            antialias=p.entry.antialias,
            rgb="rgb" in p.streams,
            flow=flow,
            pairs_per_call=pairs_per_call,
            workers=self._workers,
        )
        windows = self._cut(frames) if p.dense_plan is None else p.dense_plan.stretches(frames)
        yield from map(self._stack, itertools.count(), windows)  # which holds no window while the next one fills
        self._check_flow_files()

    def _cut(self, frames: Iterable[_Timed]) -> Iterator[Window[_Timed]]:
        p = self._pipeline
        return sliding_clips(frames, length=p.window, stride=p.stride, tail=p.options.tail)

    def summary(self) -> ReadVideo:
        """What `Pipeline.pool` is to know of the video, once all clips have been read."""
        p = self._pipeline
        return ReadVideo(
            self.video,
            float(p.fps or self.frames.info.fps),
            self.num_frames,
            self.frames.num_decode_failures,
            p.describe_flow(self.flow_files),
            tuple(_span(index, window) for index, window in enumerate(self._cut(self._shown))),
        )

    def _count(self, frames: VideoReader | DecodedVideo) -> Iterator[Frame]:
        for frame in self._workers.spent.each("decode", frames):
            self.num_frames += 1
            if self._pipeline.dense_plan is not None:
                self._shown.append(_Shown(frame.seconds, frame.end_seconds))
            yield frame

    def _flow_of_run(self) -> tuple[FlowOfRun, int]:
        """What gives the flow of some pairs, and how many at a time."""
        if self.flow_files is None:
            method = self._pipeline.options.flow
            compute = create_flow(method, flow_device(method, self._pipeline.device))
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
        """The last frame has no flow, or a repeated one; any other difference means files of another video or rate."""
        whole = self._pipeline.options.end_seconds is None
        if self.flow_files and whole and len(self.flow_files) not in (self.num_frames - 1, self.num_frames):
            raise FlowFilesError(self.video, self._flow_files_misfit(str(self.num_frames)))

    def _flow_files_misfit(self, num_frames: str) -> str:
        assert self.flow_files is not None
        rate = f"at {self._pipeline.fps} fps" if self._pipeline.fps else "at its native rate"
        return (
            f"{len(self.flow_files)} ready-made flow fields do not fit {num_frames} frames {rate}; "
            "flow made from every frame wants --fps native"
        )

    def _stack(self, index: int, window: Window[StreamFrame]) -> Clip:
        streams = {s: np.stack([frame.streams[s] for frame in window.frames]) for s in window.frames[0].streams}
        if self._pipeline.options.quantise_flow and "flow" in streams:
            streams["flow"] = quantise_flow(streams["flow"], self._pipeline.trained_bound_px)
        return Clip(_span(index, window), streams)


def package_versions() -> dict[str, str]:
    """The versions of what decides the numbers here, beside the runtime."""
    return {
        "python": platform.python_version(),
        "vid3d": __version__,
        "av": av.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "torch": version("torch"),
    }


def flow_device(method: str, device: str) -> str:
    """Where flow is computed, for `flow.create_flow`: on the first of the GPUs, by a method that can use one.

    Args:
        method: a name in `flow.FLOW_METHODS`.
        device: see `Options.device`.

    Raises:
        UsageError: no such method or device.
    """
    if not find_flow_method(method).can_use_gpu:
        return "cpu"
    from ..runtimes.torch import select_devices

    first = select_devices(device)[0]
    return str(first) if first.type == "cuda" else "cpu"


def _span(index: int, window: Window[StreamFrame] | Window[_Shown]) -> ClipSpan:
    first, last = window.frames[0], window.frames[window.num_valid - 1]
    return ClipSpan(index, window.start, window.num_valid, first.seconds, last.end_seconds)


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
