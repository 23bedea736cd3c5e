"""The contents of the manifest: the models that vid3d knows, their published files, and how their input is made.

    weights/manifest.toml → ModelEntry → StreamEntry → WeightsFile
                          → BackboneEntry

The dataclasses below are the schema: a table has a key for every field without a default, and no unknown key.
tests/models/test_manifest.py checks the values. `weights.py` downloads the files.
"""

from __future__ import annotations

import functools
import importlib.resources
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

from ..errors import UnknownModel, WeightsError, WeightsUnavailable
from ..records import STREAMS
from ..suggest import check_known, did_you_mean
from ..toml_files import parse, read_toml


@dataclass(frozen=True)
class HubSource:
    """A file in a repository of the Hugging Face Hub."""

    repo: str
    """Owner and name, as in "obvious-research/phenaki-cvivit"."""
    file: str
    """Path of the file inside the repository."""
    revision: str
    """Commit, 40 hex digits: a branch can change, a commit cannot."""

    @property
    def url(self) -> str:
        """Where a browser downloads the file."""
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{urllib.parse.quote(self.file)}"

    def describe(self) -> str:
        """Return the source as one phrase."""
        return self.url


@dataclass(frozen=True)
class UrlSource:
    """A file on any web server."""

    url: str
    """Where a browser downloads the file; of a pinned commit if the host has commits."""

    def describe(self) -> str:
        """Return the source as one phrase."""
        return self.url


@dataclass(frozen=True)
class PackagedSource:
    """A file that is installed with vid3d."""

    packaged: str
    """Path of the file relative to `data_path()`."""

    def describe(self) -> str:
        """Return the source as one phrase."""
        return f"{data_path() / self.packaged} (installed with vid3d)"


@dataclass(frozen=True)
class ManualSource:
    """A web page from which a person downloads the file; vid3d never fetches it."""

    page: str
    """The address to open in a browser."""
    how: str
    """One sentence: why by hand, and what to do there."""

    def describe(self) -> str:
        """Return the source as one phrase."""
        return f"{self.page} by hand: {self.how}"


Source = HubSource | UrlSource | PackagedSource | ManualSource


@dataclass(frozen=True)
class WeightsFile:
    """One published checkpoint file: its name, its sources, and what identifies its content."""

    model: str
    """Name of the model, as in "i3d.kinetics400"; not in the file."""
    stream: str
    """"rgb" or "flow"; not in the file."""
    file_name: str
    """Name of the file in the cache."""
    sources: tuple[Source, ...]
    """Where to download the file, in order of preference."""
    size_bytes: int | None = None
    """Exact size; None if it was not published."""
    size_text: str | None = None
    """The size in words, if it is not known to the byte."""
    git_blob: str | None = None
    """Git's id of the content, 40 hex digits: sha1(b"blob <size>\\0" + content); None if the file is in no git tree."""
    sha256: str | None = None
    """64 hex digits, or the first 8 or more of them if only those are published; None if none are."""
    index: WeightsFile | None = None
    """The second file of a TensorFlow checkpoint: the table of which tensor lies where."""

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
        """Whether the publisher gives a digest; if not, vid3d records that of the file it sees first."""
        return self.git_blob is not None or self.sha256 is not None

    @property
    def is_fetched(self) -> bool:
        """Whether vid3d can download the file; if not, only a person can."""
        return not all(isinstance(source, ManualSource) for source in self.sources)

    def describe_size(self) -> str:
        """Return the size for people, as in "50.9 MB"."""
        if self.size_bytes is None:
            return self.size_text or "size unknown"
        return f"{self.size_bytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Normalisation:
    """How uint8 pixels, or flow in pixels per frame step, become the network's input."""

    range: tuple[float, float]
    """What 0 and 255 become; of flow: what -bound_px and bound_px become."""
    mean: tuple[float, ...] | None = None
    """Subtracted after that, one value per channel; None subtracts nothing."""
    std: tuple[float, ...] | None = None
    """Divided by after that, one value per channel; None divides by nothing."""
    channel_order: str | None = None
    """"RGB" or "BGR"; None for flow, whose channels are always x, y."""
    bound_px: float | None = None
    """Flow is truncated to ± this many pixels; None for rgb."""
    flow_method: str | None = None
    """The optical flow that the network was trained on; None for rgb."""
    quantised: bool = False
    """Whether the network was trained on flow that had been stored in 8 bits."""

    def describe(self) -> str:
        """Return the same in words that can be compared, as in "RGB to [-1, 1]"."""
        what = self.channel_order or f"flow, truncated to ±{self.bound_px:g} px,"
        words = f"{what} to [{self.range[0]:g}, {self.range[1]:g}]"
        if self.mean is not None:
            words += f", minus {list(self.mean)}"
        if self.std is not None:
            words += f", divided by {list(self.std)}"
        return words


@dataclass(frozen=True)
class StreamEntry:
    """One stream of a model. The keys of `weights` stand beside the others in the file."""

    num_parameters: int
    """Parameters of the network with this stream's input and this model's classes."""
    multiply_adds: int
    """Multiply-adds of that network for one clip of this model: half of what torch's `FlopCounterMode` counts."""
    normalisation: Normalisation
    """How this stream's input is made; own checkpoints must have been trained on the same."""
    weights: WeightsFile | None = None
    """The published file of this stream; None if there is none that can be opened."""
    unpublished: str = ""
    """Why there is none, in a sentence."""


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
    views: str = ""
    """How much of each video was classified, in a word or two: "1 clip", "10 × 3 views"; empty if not published."""


@dataclass(frozen=True)
class BackboneEntry:
    """What the models of one backbone share."""

    name: str
    """As in "i3d"; not in the file."""
    summary: str
    """One line that describes it."""
    paper: str
    """Authors, title, venue."""
    stated: str = ""
    """The parameters and multiply-adds that its authors state, if the networks here differ."""


@dataclass(frozen=True)
class ModelEntry:
    """A backbone with weights. The keys of a video's way to clips stand in the table `preprocessing` in the file."""

    name: str
    """As in "i3d.kinetics400"; not in the file."""
    backbone: str
    """As in "i3d"."""
    dataset: str
    """The dataset it was trained on last; without weights, the dataset that `num_classes` belongs to."""
    num_classes: int
    """Length of the logits. Without weights, what the sizes were counted with; own checkpoints may have another."""
    fps: Fraction
    """Frames per second that the video is resampled to; text in the file: "25", "30000/1001"."""
    clip_length: int
    """Frames in a clip."""
    clip_stride: int
    """Frames from the start of a clip to the start of the next."""
    resize_px: int | tuple[int, int]
    """Size of a frame after the resize: the shorter side, or (height, width) whatever the aspect ratio was."""
    crop_px: int
    """Side of the square centre crop."""
    licence: str
    """Licence of the weights, in words, with what it leaves open."""
    streams: Mapping[str, StreamEntry]
    """In the order of `records.STREAMS`."""
    default: bool = False
    """Whether the bare backbone name means this model."""
    has_classes: bool = True
    """Whether the logits are scores of classes; if not, they are an embedding."""
    variant: str | None = None
    """Name of the backbone's form, one of `Backbone.variants`; None for the plain one."""
    layout: str | None = None
    """The published tensor names, one of `Backbone.key_layouts`, that identify checkpoints with this model's input."""
    labels_file: str | None = None
    """File of class names, one per line, relative to `data_path()`; None: classes are numbered."""
    antialias: bool = True
    """Whether the resize widens its filter when it shrinks, as the pipeline of the weights did."""
    crop_rounding: str = "down"
    """Where the centre of an odd margin lies, one of `clips.preprocess.ROUNDINGS`."""
    code: str = ""
    """Address of the repository that the weights, or the network, come from."""
    notes: str = ""
    """Further notes for users."""
    metrics: tuple[Metric, ...] = ()
    """Published accuracies."""

    @property
    def interpolation(self) -> str:
        """How its frames are resized, one of `clips.preprocess.INTERPOLATIONS`."""
        return "antialiased" if self.antialias else "bilinear"

    @property
    def published_streams(self) -> tuple[str, ...]:
        """The streams that have weights."""
        return tuple(name for name, stream in self.streams.items() if stream.weights is not None)

    @property
    def files(self) -> tuple[WeightsFile, ...]:
        """The published files, one for each stream that has weights."""
        return tuple(stream.weights for stream in self.streams.values() if stream.weights is not None)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest file."""

    backbones: Mapping[str, BackboneEntry]
    """By name, in the order of the file."""
    models: Mapping[str, ModelEntry]
    """By name, in the order of the file."""


def data_path() -> Path:
    """Return the directory that holds manifest.toml: in the installed package, or the checkout's `weights/`."""
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
    """Return all models by name, in the order of the manifest.

    Raises:
        WeightsError: the manifest is not valid; the text names the key.
    """
    return _installed().models


def backbone_entries() -> Mapping[str, BackboneEntry]:
    """Return what the models of a backbone share, by the backbone's name; raises as `model_entries` does."""
    return _installed().backbones


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        WeightsError: a key is unknown or missing, or a value has the wrong type; the text names it.
    """
    try:
        root = read_toml(path)
    except (OSError, ValueError) as error:
        raise WeightsError(f"manifest: {path} cannot be read: {error}") from error
    # What the file does not say twice: names, and which tables the fields of two dataclasses are spread over.
    for name, backbone in root.get("backbones", {}).items():
        backbone["name"] = name
    for name, model in root.get("models", {}).items():
        model["name"] = name
        model |= model.pop("preprocessing", {})
        streams = model.get("streams", {})
        model["streams"] = {stream: streams[stream] for stream in sorted(streams, key=[*STREAMS, *streams].index)}
        for stream, facts in model["streams"].items():
            weights = {key: facts.pop(key) for key in get_type_hints(WeightsFile) if key in facts}
            for part in filter(None, (weights, weights.get("index"))):
                part |= {"model": name, "stream": stream}
            if weights:
                facts["weights"] = weights
    try:
        manifest: Manifest = parse(Manifest, root, path.name)
    except ValueError as error:
        raise WeightsError(f"manifest: {error}") from None
    return manifest


def find_model(name: str) -> ModelEntry:
    """Return the model of a name; a bare backbone name means its default model.

    Raises:
        UnknownModel: there is none; the text names the closest one.
    """
    entries = model_entries()
    defaults = {entry.backbone: entry for entry in entries.values() if entry.default}
    entry = entries.get(name) or defaults.get(name)
    if entry is not None:
        return entry
    hint = did_you_mean(name, [*entries, *defaults])
    raise UnknownModel(f"unknown model '{name}'{f': {hint}' if hint else '.'} See: vid3d models")


def parse_weights_name(name: str) -> list[WeightsFile]:
    """Return the files that a name in a `vid3d weights` command selects.

    Args:
        name: a model ("i3d.kinetics400", "i3d") for all its published files, or one stream's ("i3d.kinetics400:rgb").

    Raises:
        UnknownModel: there is no such model.
        UsageError: the model has no such stream.
        WeightsUnavailable: it has no public weights; the text says why.
    """
    model, colon, stream = name.partition(":")
    entry = find_model(model)
    if colon:
        check_known(stream, entry.streams, f"{entry.name} has no stream '{stream}'")
    files = [file for file in entry.files if not colon or file.stream == stream]
    if not files:
        why = entry.streams[stream or next(iter(entry.streams))].unpublished
        raise WeightsUnavailable(f"there are no public weights of {name}. {why}")
    return files


def read_labels(entry: ModelEntry) -> tuple[str, ...]:
    """Return the class names in the order of the logits; "class 0", "class 1", … if the model has no list.

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
