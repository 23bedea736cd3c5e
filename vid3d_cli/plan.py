"""Turns options and the manifest into a plan: everything that is decided before a video is opened.

A plan is frozen, holds plain values, pickles, and needs no torch and no network. Dry runs, resumed jobs, shards and Ray
actors all start from a plan and know its recipe without loading anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from .clips.dense import DensePlan
from .clips.preprocess import (
    CENTRE,
    INTERPOLATIONS,
    Views,
    describe_crops,
    describe_resize,
    parse_crops,
    parse_resize,
)
from .clips.spread import Spread
from .clips.windows import check_clip_options
from .errors import CheckpointError, UsageError, WeightsUnavailable
from .flow.files import is_of_one_video
from .flow.methods import describe_flow, find_flow_method
from .fusion import Fusion
from .models import weights
from .models.digests import file_sha256
from .models.manifest import ModelEntry, Normalisation, WeightsFile, find_model, read_labels
from .models.registry import BACKBONES, POOLS, find_variant
from .models.weights import known_sha256
from .options import Options
from .presets import find_preset
from .recipe import Recipe, StreamRecipe
from .records import STREAMS
from .runtimes import check_runtime_options
from .suggest import check_known
from .video.clock import check_span, parse_fps, parse_seconds
from .video.pixels import PixelOptions

Fetch = Callable[[WeightsFile], Path]
"""Finds or downloads a published checkpoint; None stands for `models.weights.pull`."""

MAX_LABELS_BYTES = 2**24
"""Maximum length of a file of class names."""

FLOW_SIZES = ("resized", "source")
"""Frames that flow is computed on: resized ones, or those before the resize."""

MAX_WINDOW = 10_000
"""Frames of the longest window: at 224 px, rgb clips of so many take 6 GB each."""


@dataclass(frozen=True)
class StreamPlan:
    """The network of one stream."""

    weights: str
    """Manifest name, or the path of the user's own checkpoint as given."""
    checkpoint: Path | None
    """The user's own checkpoint; None for a published one, which `Plan.published` names."""
    sha256: str | None
    """Digest of the checkpoint; None while it is unknown, see `Plan.fetch`."""
    normalisation: Normalisation
    """How pixels or flow become its input."""


@dataclass(frozen=True, kw_only=True)
class Plan(Options):
    """Options whose defaults are filled in, and the facts of the model that a run needs.

    Example:
        plan = Plan.make(Options(model="s3d_mini"))
        plan.window, plan.recipe.tail                 # (16, "pad")
    """

    preset: str | None
    """The preset, and the options that differ from it."""
    preset_model: str | None
    """The model that the preset is for."""
    variant: str | None
    """Variant of the backbone; None for the plain one."""
    labels: tuple[str, ...] | None
    """Class names; None if only the checkpoint shows how many classes there are."""
    fps: Fraction | None
    """Frames per second to read; None for the video's own."""
    labels_from: str
    """File that gave the class names; "labels" if they were given as a list."""
    start_seconds: float
    end_seconds: float | None
    flow_files: Path | None
    window: int
    stride: int
    backbone: str
    networks: Mapping[str, StreamPlan]
    """The network of each stream that runs, rgb first."""
    has_classes: bool
    """Whether the logits are scores of classes, according to the manifest."""
    num_classes: int
    """Length of the logits, according to the manifest."""
    resize_px: int | tuple[int, int]
    """Short side of the resized frame, or (height, width)."""
    interpolation: str
    crop_px: int
    """Side of a crop: the model's, or the short side of a smaller resized frame."""
    crop_rounding: str
    """See `clips.preprocess.ROUNDINGS`."""
    trained_bound_px: float | None
    """Displacement at which the flow network's input is truncated; None without a flow stream."""
    left_out: Mapping[str, str]
    """Streams that were requested but have no weights, and why."""

    __hash__ = None  # as for Options

    def __repr__(self) -> str:
        rate = f"{float(self.fps):g} fps" if self.fps else "native fps"
        return f"Plan({self.model}, {' + '.join(self.networks)}, {rate}, window {self.window}, stride {self.stride})"

    @classmethod
    def make(cls, options: Options) -> Plan:
        """Return the plan for some options, checked against the manifest and each other.

        Raises:
            UsageError: options that do not fit the model or each other.
            CheckpointError: a checkpoint of the user is missing.
            WeightsUnavailable: no requested stream has weights.
        """
        entry = find_model(options.model)
        preset = find_preset(options.preset) if options.preset else None
        streams = _select_streams(options.streams, entry, options.weights)
        variant = entry.variant if options.variant is None else find_variant(entry.backbone, options.variant)
        window, resize_px, crop_px = _input_of_variant(entry, options.variant, variant)
        resize_px = resize_px if options.resize is None else parse_resize(options.resize)
        crop_px = min(crop_px, *([resize_px] if isinstance(resize_px, int) else resize_px))
        window = window if options.window is None else options.window
        trained_stride = entry.clip_stride if window == entry.clip_length else window
        flow_normalisation = entry.streams["flow"].normalisation if "flow" in streams else None
        decided = {
            "model": entry.name,
            "preset": preset and preset.describe(options),
            "preset_model": preset and find_model(preset.usual.model).name,
            "variant": variant,
            "labels": _read_labels(options, entry),
            "labels_from": str(options.labels) if isinstance(options.labels, (str, Path)) else "labels",
            "fps": entry.fps if options.fps is None else parse_fps(str(options.fps)),
            "start_seconds": parse_seconds(options.start_seconds, "--start"),
            "end_seconds": None if options.end_seconds is None else parse_seconds(options.end_seconds, "--end"),
            "window": window,
            "stride": trained_stride if options.stride is None else options.stride,
            "backbone": entry.backbone,
            "networks": {},
            "weights": dict(options.weights),
            "flow_files": options.flow_files and Path(options.flow_files),
            "has_classes": entry.has_classes,
            "num_classes": entry.num_classes,
            "resize_px": resize_px,
            "interpolation": entry.interpolation if options.interpolation is None else options.interpolation,
            "crop_px": crop_px,
            "crop_rounding": entry.crop_rounding,
            "trained_bound_px": flow_normalisation and flow_normalisation.bound_px,
            "left_out": _left_out(options, entry, streams),
        }
        _check_options(options, entry, streams)
        plan = cls(**{**vars(options), **decided})
        plan._check()
        # Last, since it reads own checkpoints.
        networks = {stream: _plan_stream(stream, entry, options.weights.get(stream)) for stream in streams}
        return replace(plan, networks=networks)

    def _check(self) -> None:
        """Raise UsageError for impossible clips, layers or machine options."""
        check_clip_options(self.window, self.stride, self.tail, centred=self.centred)
        option, num_frames = ("window", self.window) if self.spread is None else ("spread", self.num_clip_frames)
        for name, number in (("window", self.window), (option, num_frames)):
            if number > MAX_WINDOW:
                gigabytes = number * self.crop_px**2 * 12 / 1e9
                needs = f"a window of {number} frames needs more than {gigabytes:,.0f} GB of memory"
                raise UsageError(f"--{name}: {needs}; give at most {MAX_WINDOW}")
        check_span(self.fps, self.start_seconds, self.end_seconds)
        if self.end_seconds == math.inf:  # JSON, and so the recipe, has no infinity
            raise UsageError("--end inf: leave the end out to read the whole video")
        self.pixels.check()
        check_known(self.interpolation, INTERPOLATIONS, f"unknown interpolation '{self.interpolation}'")
        check_known(self.flow_size, FLOW_SIZES, f"unknown flow size '{self.flow_size}'")
        self._check_crops()
        Fusion.parse(self.fuse, self.fuse_on)
        check_runtime_options(self.runtime, self.device, self.precision, compile=self.compile, num_threads=self.threads)
        name, backbone = self.backbone, BACKBONES[self.backbone]
        if backbone.is_fixed_size:
            fixed_frames, side_px = backbone.clip_of(self.variant)
            if num_frames != fixed_frames or self.crop_px != side_px or self.resize_only:
                raise UsageError(f"{name} takes only clips of {fixed_frames} frames of {side_px} × {side_px} px")
        elif num_frames < backbone.min_frames:
            raise UsageError(f"{name} needs a {option} of at least {backbone.min_frames} frames, got {num_frames}")
        elif self.variant is None and num_frames % backbone.frame_multiple:
            raise UsageError(
                f"{name} needs a {option} that is a multiple of {backbone.frame_multiple} frames, got {num_frames}"
            )
        if self.layer is not None:
            check_known(self.layer, backbone.layers, f"{name} has no layer '{self.layer}'")
        self.dense_plan  # noqa: B018  (raises)

    def _check_crops(self) -> None:
        if self.resize_only and self.views is not None:
            raise UsageError("--resize-only runs whole frames, without a crop: give --no-resize-only, or --crops 1")
        if self.keep_crops and len(self.crop_names) == 1:
            raise UsageError("--keep-crops needs several crops: give --crops 3, 10, or a list, or --no-keep-crops")

    @property
    def crop_names(self) -> tuple[str, ...]:
        """The crops of a frame, in the order of their rows; see `clips.preprocess.place_crops`."""
        return parse_crops(self.crops)

    @property
    def num_clip_frames(self) -> int:
        """Frames of a clip that the network gets."""
        return self.window if (spread := self.spread_plan) is None else spread.num_frames

    @property
    def spread_plan(self) -> Spread | None:
        """Which frames of a window the network gets; None for all.

        Raises:
            UsageError: `spread` is neither N nor N:M.
        """
        return None if self.spread is None else Spread.parse(self.spread)

    @property
    def views(self) -> Views | None:
        """The crops to cut from clips; None if clips come as they run, cut to the centre or whole."""
        return None if self.crop_names == CENTRE else self.squares

    @property
    def squares(self) -> Views:
        """The crops of a frame."""
        return Views(self.crop_names, self.crop_px, self.keep_crops, self.crop_rounding)

    @property
    def dense_plan(self) -> DensePlan | None:
        """How windows are pooled from one pass over a video; None if each window runs by itself.

        Raises:
            UsageError: the backbone cannot do it, or a window is not a whole number of its steps in time.
        """
        if not self.dense:
            return None
        steps = BACKBONES[self.backbone].steps
        if steps is None:
            able = ", ".join(name for name, backbone in BACKBONES.items() if backbone.steps)
            raise UsageError(f"{self.backbone} looks at each clip as a whole and cannot run --dense; these can: {able}")
        return DensePlan(steps, self.window, self.stride, self.tail)

    @property
    def pixels(self) -> PixelOptions:
        """How stored frames become RGB."""
        return PixelOptions(self.colour_matrix, self.deinterlace, self.square_pixels)

    @property
    def fusion(self) -> Fusion:
        """How the streams' scores become one."""
        return Fusion.parse(self.fuse, self.fuse_on)

    @property
    def network_device(self) -> str:
        """The requested device; "cpu" for OpenVINO."""
        return "cpu" if self.runtime == "openvino" else self.device

    @property
    def bound_px(self) -> float:
        """The displacement that ready-made flow images store as 0 and 255."""
        assert self.trained_bound_px is not None
        return self.flow_bound_px or self.trained_bound_px

    @property
    def warnings(self) -> list[str]:
        """Warnings about options that work but may not be intended, one sentence each."""
        found = [
            f"{self.model} runs on {' and '.join(self.networks)} alone: there are no public {stream} weights. {why}"
            for stream, why in self.left_out.items()
        ]
        if (dense := self.dense_plan) is not None and not dense.pays:
            step = dense.steps.stride
            found.append(
                f"--dense computes every frame {dense.times_computed:.1f} times for these windows, and "
                f"{dense.times_one_by_one:.1f} times without it: leave --dense out"
                + (f", or choose a stride that is a multiple of {step}" if self.stride % step else "")
            )
        if self.centred and (times := self.num_clip_frames / self.stride) > 1:
            found.append(f"--centred with stride {self.stride} computes every frame {times:.3g} times")
        if self.preset_model and self.preset_model != self.model:
            resized = f", and the resize, {self.resize}, may not fit crops of {self.crop_px} px" if self.resize else ""
            found.append(
                f"the preset is for {self.preset_model}: with {self.model}, rows may have another length{resized}"
            )
        return found

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def published(self, stream: str) -> WeightsFile:
        """Return the manifest's entry of a stream's published checkpoint."""
        file = find_model(self.model).streams[stream].weights
        assert file is not None  # else it has a checkpoint of its own: `_select_streams`
        return file

    def find_checkpoints(self, fetch: Fetch | None = None) -> dict[str, Path]:
        """Return the checkpoint file of each stream; download the published ones that are not on disk.

        Raises:
            WeightsUnavailable: a file is missing and cannot be downloaded; the text says what to do.
        """
        published = [stream for stream, net in self.networks.items() if net.checkpoint is None]
        found = dict(zip(published, weights.find_all(map(self.published, published), fetch), strict=True))
        return {stream: net.checkpoint or found[stream] for stream, net in self.networks.items()}

    def fetch(self, fetch: Fetch | None = None) -> Plan:
        """Return the plan with every digest known; only checkpoints without a published digest are read.

        Raises:
            WeightsUnavailable: a file is missing and cannot be downloaded; the text says what to do.
        """
        unknown = [stream for stream, net in self.networks.items() if net.sha256 is None]
        found = zip(unknown, weights.find_all(map(self.published, unknown), fetch), strict=True)
        known = {stream: replace(self.networks[stream], sha256=file_sha256(path)) for stream, path in found}
        return replace(self, networks={**self.networks, **known})

    # Recipe ----------------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """The recipe without runtime and versions, which are known once the networks are loaded.

        `precision` is None while it is "auto", and a digest is None while it is unknown.
        """
        return Recipe(
            model=self.model,
            streams={
                stream: StreamRecipe(net.weights, net.sha256, net.normalisation.describe())
                for stream, net in self.networks.items()
            },
            fps=str(self.fps) if self.fps else "native",
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
            window=self.window,
            stride=self.stride,
            tail=self.tail,
            centred=self.centred or None,
            spread=None if (spread := self.spread_plan) is None else str(spread),
            resize=describe_resize(self.resize_px, self.interpolation),
            crops=self._describe_crops(),
            keeps_crops=self.keep_crops,
            variant=self.variant,
            features="pooled" if self.layer is None else f"{self.layer}, {self.pool}",
            flow=self.describe_flow(),
            precision=None if self.precision == "auto" else self.precision,
            dense=None if (dense := self.dense_plan) is None else dense.describe(),
            pixels=self.pixels.describe(),
            preset=self.preset,
        )

    def describe_flow(self, source: str | None = None) -> str | None:
        """Return how flow is made, for the recipe; None without a flow stream.

        Args:
            source: description of one video's flow; None for that of the options.
        """
        if "flow" not in self.networks:
            return None
        if source is None and self.flow_files is not None:
            source = f"ready-made {self.flow_files}, images of bound {self.bound_px:g} px"
        at_source = ", computed before the resize" if self.flow_size == "source" else ""
        quantised = ", quantised to 8 bits" if self.quantise_flow else ""
        return (source or describe_flow(self.flow)) + at_source + quantised

    def _describe_crops(self) -> str:
        if self.resize_only:
            return "none"
        if self.views is None:
            words = f"centre {self.crop_px} px"
        else:
            kept = "kept" if self.keep_crops else "averaged"
            words = f"{describe_crops(self.crop_names)} of {self.crop_px} px, {kept}"
        return words + (", odd margins rounded half to even" if self.crop_rounding == "even" else "")

    # Videos ----------------------------------------------------------------------------------------------------------

    def check_videos(self, videos: Sequence[str]) -> None:
        """Raise UsageError for options that do not suit these videos together."""
        path = self.flow_files
        if path is None or len(videos) < 2:
            return
        if is_of_one_video(path):
            raise UsageError(f"{path} is the flow of one video: for several, give the directory that holds all of it")
        name, number = Counter(Path(video).stem for video in videos).most_common(1)[0]
        if number > 1:
            raise UsageError(f"{number} videos are named {name}, but {path} can hold the flow of only one: rename them")

    def check_classes(self) -> None:
        """Raise UsageError for a model without classes; a user's own checkpoint may have some."""
        if not self.has_classes and not any(net.checkpoint for net in self.networks.values()):
            raise UsageError(f"{self.model} gives an embedding and has no classes: use vid3d extract")


def _select_streams(asked: str, entry: ModelEntry, own: Mapping[str, str | Path]) -> tuple[str, ...]:
    """Return the streams of this model that "rgb", "flow" or "both" (all that have weights) selects.

    Raises:
        UsageError: an unknown name, or a stream that the model does not have.
        WeightsUnavailable: there are no public weights, and none of the user's own.
    """
    check_known(asked, (*STREAMS, "both"), f"unknown stream '{asked}'")
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


def _left_out(options: Options, entry: ModelEntry, streams: Sequence[str]) -> dict[str, str]:
    if options.streams != "both":
        return {}
    return {name: stream.unpublished for name, stream in entry.streams.items() if name not in streams}


def _plan_stream(stream: str, entry: ModelEntry, own: str | Path | None) -> StreamPlan:
    """Return the checkpoint and normalisation of a stream.

    Raises:
        CheckpointError: the user's own checkpoint is missing.
    """
    facts = entry.streams[stream]
    if own is not None:
        if not Path(own).is_file():
            raise CheckpointError(f"--weights {stream}={own}: no such file")
        return StreamPlan(str(own), Path(own), file_sha256(Path(own)), facts.normalisation)
    assert facts.weights is not None
    return StreamPlan(facts.weights.name, None, known_sha256(facts.weights), facts.normalisation)


def _input_of_variant(
    entry: ModelEntry, asked: str | None, variant: str | None
) -> tuple[int, int | tuple[int, int], int]:
    """Return the frames of a clip, the size of the resized frame and the side of the crop."""
    backbone = BACKBONES[entry.backbone]
    usual = entry.clip_length, entry.resize_px, entry.crop_px
    if asked is None or backbone.clip_of(variant) == backbone.clip:
        return usual
    num_frames, side_px = backbone.clip_of(variant)
    return num_frames, backbone.resizes_px.get(side_px, entry.resize_px), side_px


def _check_options(options: Options, entry: ModelEntry, streams: Sequence[str]) -> None:
    """Raise UsageError for options that exclude each other."""
    if "flow" in streams and not options.flow_files:
        find_flow_method(options.flow)
    if options.flow_files and parse_seconds(options.start_seconds, "--start"):
        raise UsageError("ready-made flow starts at the first frame: it cannot be used with --start")
    if options.dense and options.layer is not None:
        raise UsageError("--dense pools the features before the classifier: give --no-dense, or leave out --layer")
    if options.dense and (options.centred or options.spread is not None):
        other = "give --no-centred" if options.centred else "leave out --spread"
        raise UsageError(f"--dense does not give the features of separate clips: give --no-dense, or {other}")
    if ":" in str(options.spread) and (options.centred or options.tail != "pad"):
        other = "--no-centred" if options.centred else "--tail pad"
        raise UsageError(f"--spread {options.spread} fills clips as HERO's extractor does: give {other}")
    if options.dense and options.batch_size is not None:
        raise UsageError("--dense runs a long stretch of frames at a time: give --no-dense, or leave out --batch-size")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"the batch size must be at least 1, got {options.batch_size}")
    check_known(options.pool, POOLS, f"unknown pooling '{options.pool}'")
    if options.layer is None and options.pool != "avg":
        raise UsageError(f"--pool {options.pool} pools the map of a layer: name one with --layer")
    if options.variant and not options.weights:
        raise UsageError(f"the public weights of {entry.name} fit only one variant: --variant needs your own --weights")
    if unused := [stream for stream in options.weights if stream not in streams]:
        raise UsageError(f"weights were given for '{unused[0]}', but these streams run: {', '.join(streams)}")


def _read_labels(options: Options, entry: ModelEntry) -> tuple[str, ...] | None:
    """Return the class names; None if they depend on the user's checkpoint.

    Raises:
        UsageError: the file is missing, empty, or not text.
    """
    if options.labels is None:
        return None if options.weights else read_labels(entry)
    is_file = isinstance(options.labels, (str, Path))
    labels = read_class_names(Path(options.labels)) if is_file else tuple(options.labels)  # type: ignore[arg-type]
    if not labels:
        raise UsageError(f"{options.labels if is_file else 'labels'}: contains no class names")
    return labels


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a file.

    Raises:
        UsageError: the file is missing, too long, or not text.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_LABELS_BYTES + 1)
        if len(text) > MAX_LABELS_BYTES:
            raise UsageError(f"{path}: more than {MAX_LABELS_BYTES} bytes, too long for a file of class names")
        return tuple(line.strip() for line in text.decode("utf-8-sig").rstrip().splitlines())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: class names cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: class names must be UTF-8 text, one per line") from None
