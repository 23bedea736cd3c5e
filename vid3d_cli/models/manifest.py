"""What the manifest says: every model that vid3d knows, its published files, and how its input is made.

    weights/manifest.toml → ModelEntry → StreamEntry → WeightsFile
                          → BackboneEntry

The manifest is data; every key of it must be known here, and has a field that explains it. `weights.py` gets the files.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UnknownModel, UsageError, WeightsError, WeightsUnavailable
from ..records import FUSED, STREAMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_T = TypeVar("_T")

_MIN_SHA256_DIGITS = 8  # torch.hub's convention for the digest in a file name

_TF_DATA_SUFFIX, _TF_INDEX_SUFFIX = ".data-00000-of-00001", ".index"  # the two files of a TensorFlow checkpoint


@dataclass(frozen=True)
class HubSource:
    """A file in a repository of the Hugging Face Hub."""

    repo: str
    """Owner and name, as in "obvious-research/phenaki-cvivit"."""
    file: str
    """Path of the file inside the repository."""
    revision: str
    """Commit, 40 hex digits, so that the file cannot change."""

    @property
    def url(self) -> str:
        """Where a browser downloads the file."""
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{urllib.parse.quote(self.file)}"

    def describe(self) -> str:
        """One phrase for people."""
        return self.url


@dataclass(frozen=True)
class UrlSource:
    """A file on any web server."""

    url: str
    """Where a browser downloads the file; of a pinned commit where the host has commits."""

    def describe(self) -> str:
        """One phrase for people."""
        return self.url


@dataclass(frozen=True)
class PackagedSource:
    """A file that was installed with vid3d."""

    file: str
    """Path of the file relative to `data_path()`."""

    def describe(self) -> str:
        """One phrase for people."""
        return f"{data_path() / self.file} (installed with vid3d)"


@dataclass(frozen=True)
class ManualSource:
    """A place from which a person gets the file, because no program can or should: it is never fetched."""

    url: str
    """What to open in a browser."""
    how: str
    """One sentence: why by hand, and what to do there."""

    def describe(self) -> str:
        """One phrase for people."""
        return f"{self.url} by hand: {self.how}"


Source = HubSource | UrlSource | PackagedSource | ManualSource


@dataclass(frozen=True)
class WeightsFile:
    """One published checkpoint file: how it is called, had and recognised."""

    model: str
    """Name of the model, as in "i3d.kinetics400"."""
    stream: str
    """"rgb" or "flow"."""
    file_name: str
    """Name under which the file lies in the cache."""
    size_bytes: int | None
    """Exact size; None where it was not published."""
    git_blob: str | None
    """Git's id of the content, 40 hex digits; None where the file is in no git tree."""
    sha256: str | None
    """64 hex digits, or the first 8 or more of them where only those are published; None where none are."""
    sources: tuple[Source, ...]
    """Where the file is to be had, in order of preference."""
    size_text: str | None = None
    """The size in words, where it is not known to the byte."""
    index: WeightsFile | None = None
    """The file that must lie beside it: TensorFlow's table of which tensor lies where."""

    @property
    def name(self) -> str:
        """Name of the file in commands, as in "i3d.kinetics400:rgb"."""
        return f"{self.model}:{self.stream}"

    @property
    def parts(self) -> tuple[WeightsFile, ...]:
        """All files of the checkpoint: itself, and its index if it has one."""
        return (self,) if self.index is None else (self, self.index)

    @property
    def has_digest(self) -> bool:
        """Whether its publisher says how the content is recognised; else the one seen first is held on to."""
        return self.git_blob is not None or self.sha256 is not None

    @property
    def is_fetched(self) -> bool:
        """Whether a program can get it; else only a person can."""
        return not all(isinstance(source, ManualSource) for source in self.sources)

    def describe_size(self) -> str:
        """The size for people, as in "50.9 MB"."""
        if self.size_bytes is None:
            return self.size_text or "size unknown"
        return f"{self.size_bytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Normalisation:
    """How uint8 pixels, or flow in pixels per frame step, become the network's input."""

    range: tuple[float, float]
    """Where 0 and 255 go; of flow: where -bound_px and bound_px go."""
    mean: tuple[float, ...] | None
    """Subtracted after that, one value a channel; None for nothing."""
    std: tuple[float, ...] | None
    """Divided by after that, one value a channel; None for nothing."""
    channel_order: str | None
    """"RGB" or "BGR"; None for flow, whose channels are always x, y."""
    bound_px: float | None
    """Flow is truncated to ± this many pixels; None for pictures."""
    flow_method: str | None
    """The optical flow that the network was trained on; None for pictures."""
    quantised: bool
    """Whether the network was trained on flow that had been stored in 8 bits."""

    def describe(self) -> str:
        """The same in words that can be compared, as in "RGB to [-1, 1]"."""
        what = self.channel_order or f"flow, truncated to ±{self.bound_px:g} px,"
        words = f"{what} to [{self.range[0]:g}, {self.range[1]:g}]"
        if self.mean is not None:
            words += f", minus {list(self.mean)}"
        if self.std is not None:
            words += f", divided by {list(self.std)}"
        return words


@dataclass(frozen=True)
class StreamEntry:
    """One stream of a model."""

    weights: WeightsFile | None
    """The published file of this stream; None where the public has none that can be opened."""
    unpublished: str
    """Why there is none, in a sentence; empty where there is one."""
    num_parameters: int
    """Of the network with this stream's input and this model's classes."""
    multiply_adds: int
    """Of that network on one clip of this model: half of what `FlopCounterMode` counts."""
    normalisation: Normalisation
    """How this stream's input is made; own checkpoints must have been trained on the same."""


@dataclass(frozen=True)
class Metric:
    """One published measurement."""

    stream: str
    """"rgb", "flow" or "fused"."""
    dataset: str
    """What was classified, as in "Kinetics-400"."""
    split: str
    """Which part of it: "test", "val", "split 1"."""
    scores: Mapping[str, float]
    """Percent by name, as in {"top1": 71.1}."""
    views: str
    """What each video was judged by, in a word or two: "1 clip", "10 × 3 views"; empty where that was not published."""
    protocol: str
    """How it was measured: implementation, frames, crops."""
    source: str
    """Who published it, and where."""


@dataclass(frozen=True)
class BackboneEntry:
    """What the models of one backbone share."""

    name: str
    """As in "i3d"."""
    summary: str
    """What it is, in a line."""
    paper: str
    """Authors, title, venue."""
    feature_dim: int
    """Width of the pooled vector that feeds the classifier."""
    stated: str
    """What its authors state of parameters and multiply-adds where the networks here differ from it; may be empty."""


@dataclass(frozen=True)
class ModelEntry:
    """A backbone with weights: everything that the manifest says of it."""

    name: str
    """As in "i3d.kinetics400"."""
    backbone: str
    """As in "i3d"."""
    default: bool
    """Whether the bare backbone name means this model."""
    dataset: str
    """What it was trained on last; of a model without weights, what `num_classes` is of."""
    num_classes: int
    """Length of the logits; without weights, what the sizes were counted with: own checkpoints need not have it."""
    has_classes: bool
    """Whether the last layer's output are scores of classes; else it is an embedding."""
    variant: str | None
    """Name of the backbone's form, one of `Backbone.variants`; None for the usual one."""
    layout: str | None
    """The published tensor names, one of `Backbone.key_layouts`, that tell checkpoints of this model's input."""
    labels_file: str | None
    """Class names, relative to `data_path()`; None: classes are shown by number."""
    fps: Fraction
    """Frames per second that the video is resampled to."""
    clip_length: int
    """Frames in a clip."""
    clip_stride: int
    """Frames from the start of a clip to the start of the next."""
    resize_px: int | tuple[int, int]
    """A frame after the resize: the shorter side, or (height, width) whatever the aspect ratio was."""
    antialias: bool
    """Whether the resize widens its filter on shrinking; the weights' own pipeline decides."""
    crop_px: int
    """Side of the square centre crop."""
    licence: str
    """In words, with what it leaves open."""
    code: str
    """Address of the repository that the weights, or the network, come from; may be empty."""
    notes: str
    """What a user should know besides; may be empty."""
    metrics: tuple[Metric, ...]
    """Published accuracies; may be empty."""
    streams: Mapping[str, StreamEntry]
    """In the order of `records.STREAMS`."""

    @property
    def published_streams(self) -> tuple[str, ...]:
        """The streams that have weights."""
        return tuple(name for name, stream in self.streams.items() if stream.weights is not None)

    @property
    def files(self) -> tuple[WeightsFile, ...]:
        """The published files, one a stream that has any."""
        return tuple(stream.weights for stream in self.streams.values() if stream.weights is not None)


@dataclass(frozen=True)
class Manifest:
    """All that one manifest file says."""

    backbones: Mapping[str, BackboneEntry]
    """By name, in its order."""
    models: Mapping[str, ModelEntry]
    """By name, in its order."""


class _Table:
    """A table of the manifest whose every key must be asked for, with the type that it must have."""

    def __init__(self, where: str, values: object) -> None:
        if not isinstance(values, dict):
            raise WeightsError(f"manifest: {where} must be a table, got {values!r}")
        self._where = where
        self._values = dict(values)

    def fail(self, key: str, problem: str) -> WeightsError:
        return WeightsError(f"manifest: {self._where}.{key} {problem}")

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        value = self._values.pop(key, None)
        # not isinstance, because TOML's true is Python's True, which is an int
        if value is not None and type(value) is not kind:
            raise self.fail(key, f"must be of type {kind.__name__}, got {value!r}")
        return value

    def required(self, key: str, kind: type[_T]) -> _T:
        value = self.optional(key, kind)
        if value is None:
            raise self.fail(key, "is missing")
        return value

    def flag(self, key: str, *, unless_given: bool) -> bool:
        value = self.optional(key, bool)
        return unless_given if value is None else value

    def text(self, key: str) -> str:
        value = self.required(key, str)
        if not value.strip():
            raise self.fail(key, "is empty")
        return value

    def count(self, key: str) -> int:
        value = self.required(key, int)
        if value < 1:
            raise self.fail(key, f"must be at least 1, got {value}")
        return value

    def hex_digest(self, key: str, min_digits: int, max_digits: int) -> str | None:
        value = self.optional(key, str)
        if value is None:
            return None
        if not re.fullmatch(f"[0-9a-f]{{{min_digits},{max_digits}}}", value):
            raise self.fail(key, f"must be {min_digits} to {max_digits} lower-case hex digits, got {value!r}")
        return value

    def numbers(self, key: str) -> tuple[float, ...] | None:
        values: list[Any] | None = self.optional(key, list)
        if values is None:
            return None
        if not all(type(value) in (int, float) for value in values):
            raise self.fail(key, f"must be a list of numbers, got {values!r}")
        return tuple(float(value) for value in values)

    def has(self, key: str) -> bool:
        return key in self._values

    def table(self, key: str) -> _Table:
        return _Table(f"{self._where}.{key}", self.required(key, dict))

    def tables(self, key: str) -> list[_Table]:
        values: list[object] = self.optional(key, list) or []
        return [_Table(f"{self._where}.{key}[{i}]", value) for i, value in enumerate(values)]

    def items(self) -> list[tuple[str, _Table]]:
        """All keys, each of which must be a table."""
        return [(name, self.table(name)) for name in list(self._values)]

    def close(self) -> None:
        if self._values:
            raise WeightsError(f"manifest: {self._where} has unknown keys: {', '.join(sorted(self._values))}")


def data_path() -> Path:
    """The directory that holds manifest.toml: inside the installed package, or the checkout's `weights/`."""
    installed = Path(str(importlib.resources.files("vid3d_cli") / "data"))
    checkout = Path(__file__).resolve().parents[2] / "weights"
    for directory in (installed, checkout):
        if (directory / "manifest.toml").is_file():
            return directory
    raise WeightsError(f"no manifest.toml in {installed} or {checkout}: reinstall vid3d")


@functools.cache
def _installed() -> Manifest:
    return read_manifest(data_path() / "manifest.toml")


def model_entries() -> Mapping[str, ModelEntry]:
    """All models of the manifest by name, in its order.

    Raises:
        WeightsError: the manifest is not valid; the text names the key.
    """
    return _installed().models


def backbone_entries() -> Mapping[str, BackboneEntry]:
    """What the models of a backbone share, by the backbone's name; raises as `model_entries` does."""
    return _installed().backbones


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        WeightsError: a key is unknown, missing or has a bad value; the text names it.
    """
    try:
        root = _Table(path.name, tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise WeightsError(f"manifest: {path} cannot be read: {error}") from error
    backbones = {name: _read_backbone(name, table) for name, table in root.table("backbones").items()}
    models = {name: _read_model(name, table) for name, table in root.table("models").items()}
    root.close()
    if undescribed := [entry.name for entry in models.values() if entry.backbone not in backbones]:
        raise WeightsError(f"manifest: no table [backbones.<name>] for the backbone of {', '.join(undescribed)}")
    for backbone in backbones:
        defaults = [entry.name for entry in models.values() if entry.backbone == backbone and entry.default]
        if len(defaults) != 1:
            found = ", ".join(defaults) or "none"
            raise WeightsError(f"manifest: one model of {backbone} must be the default, found: {found}")
    return Manifest(backbones, models)


def _read_backbone(name: str, table: _Table) -> BackboneEntry:
    entry = BackboneEntry(
        name=name,
        summary=table.text("summary"),
        paper=table.text("paper"),
        feature_dim=table.count("feature_dim"),
        stated=table.text("stated") if table.has("stated") else "",
    )
    table.close()
    return entry


def _read_model(name: str, table: _Table) -> ModelEntry:
    backbone = table.text("backbone")
    if not name.startswith(f"{backbone}."):
        raise table.fail("backbone", f"is {backbone!r}, so the model must be called {backbone}.<tag>")
    preprocessing = table.table("preprocessing")
    streams = dict(table.table("streams").items())
    if not streams or not set(streams) <= set(STREAMS):
        raise table.fail("streams", f"must be some of {', '.join(STREAMS)}, got {', '.join(streams) or 'none'}")
    entry = ModelEntry(
        name=name,
        backbone=backbone,
        default=table.flag("default", unless_given=False),
        dataset=table.text("dataset"),
        num_classes=table.count("num_classes"),
        has_classes=table.flag("classes", unless_given=True),
        variant=table.text("variant") if table.has("variant") else None,
        layout=table.optional("layout", str),
        labels_file=table.optional("labels", str),
        fps=_read_fps(preprocessing),
        clip_length=preprocessing.count("clip_length"),
        clip_stride=preprocessing.count("clip_stride"),
        resize_px=_read_resize(preprocessing),
        antialias=preprocessing.flag("antialias", unless_given=True),
        crop_px=preprocessing.count("crop_px"),
        licence=table.text("licence"),
        code=table.text("code") if table.has("code") else "",
        notes=table.optional("notes", str) or "",
        metrics=tuple(_read_metric(metric) for metric in table.tables("metrics")),
        streams={stream: _read_stream(name, stream, streams[stream]) for stream in STREAMS if stream in streams},
    )
    shortest_px = entry.resize_px if isinstance(entry.resize_px, int) else min(entry.resize_px)
    if entry.crop_px > shortest_px:
        raise preprocessing.fail("crop_px", f"does not fit into the resized frame: {entry.crop_px} > {shortest_px}")
    if entry.labels_file and not entry.has_classes:
        raise table.fail("labels", "and classes = false exclude each other")
    preprocessing.close()
    table.close()
    return entry


def _read_resize(table: _Table) -> int | tuple[int, int]:
    if table.has("short_side_px") == table.has("resize_px"):
        raise table.fail("short_side_px", "or resize_px must be given, one of them")
    if table.has("short_side_px"):
        return table.count("short_side_px")
    size: list[Any] = table.required("resize_px", list)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise table.fail("resize_px", f"must be [height, width], got {size!r}")
    return size[0], size[1]


def _read_fps(table: _Table) -> Fraction:
    text = table.text("fps")
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise table.fail("fps", f'must be a positive number or fraction in quotes ("25", "30000/1001"), got {text!r}')
    return fps


def _read_metric(table: _Table) -> Metric:
    metric = Metric(
        stream=table.text("stream"),
        dataset=table.text("dataset"),
        split=table.text("split"),
        scores=table.required("scores", dict),
        views=table.text("views") if table.has("views") else "",
        protocol=table.text("protocol"),
        source=table.text("source"),
    )
    if metric.stream not in (*STREAMS, FUSED):
        raise table.fail("stream", f"must be rgb, flow or fused, got {metric.stream!r}")
    if not metric.scores or not all(isinstance(s, float) and 0 <= s <= 100 for s in metric.scores.values()):
        raise table.fail("scores", f"must be percentages with a decimal point by name, got {metric.scores!r}")
    table.close()
    return metric


def _read_stream(model: str, stream: str, table: _Table) -> StreamEntry:
    unpublished = table.text("unpublished") if table.has("unpublished") else ""
    entry = StreamEntry(
        weights=None if unpublished else _read_weights(model, stream, table),
        unpublished=unpublished,
        num_parameters=table.count("num_parameters"),
        multiply_adds=table.count("multiply_adds"),
        normalisation=_read_normalisation(stream, table.table("normalisation")),
    )
    table.close()
    return entry


def _read_weights(model: str, stream: str, table: _Table) -> WeightsFile:
    index = table.table("index") if table.has("index") else None
    weights = WeightsFile(
        model=model,
        stream=stream,
        file_name=table.text("file"),
        size_bytes=table.optional("size_bytes", int),
        git_blob=table.hex_digest("git_blob", 40, 40),
        sha256=table.hex_digest("sha256", _MIN_SHA256_DIGITS, 64),
        sources=tuple(_read_source(source) for source in table.tables("sources")),
        size_text=table.optional("size_text", str),
        index=_read_weights(model, stream, index) if index else None,
    )
    if Path(weights.file_name).name != weights.file_name:
        raise table.fail("file", f"must be a bare file name, got {weights.file_name!r}")
    if not weights.sources:
        raise table.fail("sources", "is empty")
    if not weights.has_digest and any(isinstance(s, UrlSource) and s.url.startswith("http:") for s in weights.sources):
        raise table.fail("sources", "has an http:// address but no digest: anybody on the way could change the file")
    if index:
        index.close()
        names = [part.file_name for part in weights.parts]
        if names[1] != names[0].removesuffix(_TF_DATA_SUFFIX) + _TF_INDEX_SUFFIX:
            raise table.fail("index", f"must be X{_TF_INDEX_SUFFIX} beside X{_TF_DATA_SUFFIX}, got {names}")
    return weights


def _read_source(table: _Table) -> Source:
    kinds = ("hub", "url", "packaged", "manual")
    given = [(kind, table.text(kind)) for kind in kinds if table.has(kind)]
    if len(given) != 1:
        raise table.fail(" or ".join(kinds), f"must be given, one of them; got {len(given)}")
    kind, place = given[0]
    if kind in ("url", "manual") and not place.startswith(("https://", "http://")):
        raise table.fail(kind, f"must start with https:// or http://, got {place!r}")
    source: Source
    if kind == "hub":
        revision = table.hex_digest("revision", 40, 40)
        if revision is None:
            raise table.fail("revision", "is missing: a branch can change, a commit cannot")
        source = HubSource(repo=place, file=table.text("file"), revision=revision)
    elif kind == "url":
        source = UrlSource(place)
    elif kind == "packaged":
        source = PackagedSource(place)
    else:
        source = ManualSource(place, how=table.text("how"))
    table.close()
    return source


def _read_normalisation(stream: str, table: _Table) -> Normalisation:
    bounds = table.numbers("range")
    if bounds is None or len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise table.fail("range", "must be two rising numbers")
    is_flow = stream == "flow"
    normalisation = Normalisation(
        range=(bounds[0], bounds[1]),
        mean=table.numbers("mean"),
        std=table.numbers("std"),
        channel_order=None if is_flow else table.text("channel_order"),
        bound_px=table.required("bound_px", float) if is_flow else None,
        flow_method=table.text("flow_method") if is_flow else None,
        quantised=table.required("quantised", bool) if is_flow else False,
    )
    if normalisation.channel_order not in (None, "RGB", "BGR"):
        raise table.fail("channel_order", f"must be RGB or BGR, got {normalisation.channel_order!r}")
    if normalisation.bound_px is not None and normalisation.bound_px <= 0:
        raise table.fail("bound_px", f"must be positive, got {normalisation.bound_px}")
    num_channels = 2 if is_flow else 3
    for key, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if values is not None and len(values) != num_channels:
            raise table.fail(key, f"must have {num_channels} values, got {list(values)}")
    if normalisation.std is not None and min(normalisation.std) <= 0:
        raise table.fail("std", f"must be positive, got {list(normalisation.std)}")
    table.close()
    return normalisation


def find_model(name: str) -> ModelEntry:
    """The model of this name; a bare backbone name means its default tag.

    Raises:
        UnknownModel: there is none; the text names the closest.
    """
    entries = model_entries()
    defaults = {entry.backbone: entry for entry in entries.values() if entry.default}
    entry = entries.get(name) or defaults.get(name)
    if entry is not None:
        return entry
    close = difflib.get_close_matches(name, [*entries, *defaults], n=1)
    hint = f": did you mean {close[0]!r}?" if close else "."
    raise UnknownModel(f"unknown model {name!r}{hint} See: vid3d models")


def parse_weights_name(name: str) -> list[WeightsFile]:
    """The files that a name in a `vid3d weights` command stands for.

    Args:
        name: a model ("i3d.kinetics400", "i3d") for all its published files, or one stream's ("i3d.kinetics400:rgb").

    Raises:
        UnknownModel: there is no such model.
        UsageError: the model has no such stream.
        WeightsUnavailable: nobody published weights of it; the text says why.
    """
    model, colon, stream = name.partition(":")
    entry = find_model(model)
    if colon and stream not in entry.streams:
        raise UsageError(f"{entry.name} has no stream {stream!r}: it has {', '.join(entry.streams)}")
    files = [file for file in entry.files if not colon or file.stream == stream]
    if not files:
        why = entry.streams[stream or next(iter(entry.streams))].unpublished
        raise WeightsUnavailable(f"there are no public weights of {name}. {why}")
    return files


def read_labels(entry: ModelEntry) -> tuple[str, ...]:
    """The class names in the order of the logits; "class 0", "class 1", … where no list is known.

    Raises:
        WeightsError: the list is missing or has the wrong length.
    """
    if entry.labels_file is None:
        return tuple(f"class {i}" for i in range(entry.num_classes))
    path = data_path() / entry.labels_file
    try:
        labels = tuple(path.read_text("utf-8").splitlines())
    except OSError as error:
        raise WeightsError(f"labels of {entry.name}: {path} cannot be read: {error.strerror}") from error
    if len(labels) != entry.num_classes:
        raise WeightsError(f"labels of {entry.name}: {path} has {len(labels)} lines, expected {entry.num_classes}")
    return labels
