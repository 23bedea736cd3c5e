"""What the manifest says: every model that vid3d knows, its published files, and how its input is made.

    weights/manifest.toml → ModelEntry → StreamEntry → WeightsFile

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

from .errors import UnknownModel, UsageError, WeightsError
from .records import FUSED, STREAMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_T = TypeVar("_T")

_MIN_SHA256_DIGITS = 8  # torch.hub's convention for the digest in a file name


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


Source = HubSource | UrlSource | PackagedSource


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

    @property
    def name(self) -> str:
        """Name of the file in commands, as in "i3d.kinetics400:rgb"."""
        return f"{self.model}:{self.stream}"

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

    weights: WeightsFile
    """The published file of this stream."""
    num_parameters: int
    """Of the network with this stream's input and this model's classes."""
    normalisation: Normalisation
    """How this stream's input is made."""


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
    protocol: str
    """How it was measured: implementation, frames, crops."""
    source: str
    """Who published it, and where."""


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
    """What it was trained on last."""
    num_classes: int
    """Length of the logits."""
    labels_file: str | None
    """Class names, relative to `data_path()`; None: classes are shown by number."""
    fps: Fraction
    """Frames per second that the video is resampled to."""
    clip_length: int
    """Frames in a clip."""
    clip_stride: int
    """Frames from the start of a clip to the start of the next."""
    short_side_px: int
    """The shorter side of a frame after the resize."""
    crop_px: int
    """Side of the square centre crop."""
    licence: str
    """In words, with what it leaves open."""
    paper: str
    """Authors, title, venue."""
    code: str
    """Address of the repository that the weights come from."""
    notes: str
    """What a user should know besides; may be empty."""
    metrics: tuple[Metric, ...]
    """Published accuracies; may be empty."""
    streams: Mapping[str, StreamEntry]
    """In the order of `records.STREAMS`."""


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
    checkout = Path(__file__).resolve().parent.parent / "weights"
    for directory in (installed, checkout):
        if (directory / "manifest.toml").is_file():
            return directory
    raise WeightsError(f"no manifest.toml in {installed} or {checkout}: reinstall vid3d")


@functools.cache
def model_entries() -> dict[str, ModelEntry]:
    """All models of the manifest by name, in its order.

    Raises:
        WeightsError: the manifest is not valid; the text names the key.
    """
    return read_manifest(data_path() / "manifest.toml")


def read_manifest(path: Path) -> dict[str, ModelEntry]:
    """Read and check a manifest.

    Raises:
        WeightsError: a key is unknown, missing or has a bad value; the text names it.
    """
    try:
        root = _Table(path.name, tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise WeightsError(f"manifest: {path} cannot be read: {error}") from error
    entries = {name: _read_model(name, table) for name, table in root.table("models").items()}
    root.close()
    for backbone in {entry.backbone for entry in entries.values()}:
        defaults = [entry.name for entry in entries.values() if entry.backbone == backbone and entry.default]
        if len(defaults) > 1:
            raise WeightsError(f"manifest: more than one default of {backbone}: {', '.join(defaults)}")
    return entries


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
        default=table.optional("default", bool) or False,
        dataset=table.text("dataset"),
        num_classes=table.count("num_classes"),
        labels_file=table.optional("labels", str),
        fps=_read_fps(preprocessing),
        clip_length=preprocessing.count("clip_length"),
        clip_stride=preprocessing.count("clip_stride"),
        short_side_px=preprocessing.count("short_side_px"),
        crop_px=preprocessing.count("crop_px"),
        licence=table.text("licence"),
        paper=table.text("paper"),
        code=table.text("code"),
        notes=table.optional("notes", str) or "",
        metrics=tuple(_read_metric(metric) for metric in table.tables("metrics")),
        streams={stream: _read_stream(name, stream, streams[stream]) for stream in STREAMS if stream in streams},
    )
    if entry.crop_px > entry.short_side_px:
        raise preprocessing.fail("crop_px", f"is larger than short_side_px: {entry.crop_px} > {entry.short_side_px}")
    preprocessing.close()
    table.close()
    return entry


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
    weights = WeightsFile(
        model=model,
        stream=stream,
        file_name=table.text("file"),
        size_bytes=table.optional("size_bytes", int),
        git_blob=table.hex_digest("git_blob", 40, 40),
        sha256=table.hex_digest("sha256", _MIN_SHA256_DIGITS, 64),
        sources=tuple(_read_source(source) for source in table.tables("sources")),
        size_text=table.optional("size_text", str),
    )
    if Path(weights.file_name).name != weights.file_name:
        raise table.fail("file", f"must be a bare file name, got {weights.file_name!r}")
    if not weights.sources:
        raise table.fail("sources", "is empty")
    if weights.git_blob is None and weights.sha256 is None:
        raise table.fail("sha256", "or git_blob must be given: unverified files are not fetched")
    entry = StreamEntry(
        weights=weights,
        num_parameters=table.count("num_parameters"),
        normalisation=_read_normalisation(stream, table.table("normalisation")),
    )
    table.close()
    return entry


def _read_source(table: _Table) -> Source:
    hub, url, packaged = (table.optional(key, str) for key in ("hub", "url", "packaged"))
    source: Source
    if hub is not None:
        revision = table.hex_digest("revision", 40, 40)
        if revision is None:
            raise table.fail("revision", "is missing: a branch can change, a commit cannot")
        source = HubSource(repo=hub, file=table.text("file"), revision=revision)
    elif url is not None:
        if not url.startswith(("https://", "http://")):
            raise table.fail("url", f"must start with https:// or http://, got {url!r}")
        source = UrlSource(url)
    elif packaged is not None:
        source = PackagedSource(packaged)
    else:
        raise table.fail("hub", "or url or packaged must be given")
    if [hub, url, packaged].count(None) != 2:
        raise table.fail("hub", "and url and packaged exclude each other")
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
        name: a model ("i3d.kinetics400", "i3d") for all its streams, or one stream of it ("i3d.kinetics400:rgb").

    Raises:
        UnknownModel: there is no such model.
        UsageError: the model has no such stream.
    """
    model, colon, stream = name.partition(":")
    entry = find_model(model)
    if not colon:
        return [stream_entry.weights for stream_entry in entry.streams.values()]
    if stream not in entry.streams:
        raise UsageError(f"{entry.name} has no stream {stream!r}: it has {', '.join(entry.streams)}")
    return [entry.streams[stream].weights]


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
