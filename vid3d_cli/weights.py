"""From a model's name to verified weights on disk.

    weights/manifest.toml → ModelEntry → StreamEntry → WeightsFile → locate() or pull() → a path

The manifest is data: what a model is called, where its files are to be had, how they are verified, and how its input
is made. A file is used only after its digests were checked, and lies in the cache only if they were right. Nothing here
knows what is inside a checkpoint; `model.py` reads it.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import hashlib
import importlib.resources
import logging
import os
import re
import shutil
import string
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from .errors import ChecksumMismatch, UnknownModel, UsageError, WeightsError, WeightsUnavailable
from .records import FUSED, STREAMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes received so far and the bytes in all (None: not known), possibly from another thread."""

_T = TypeVar("_T")

_CHUNK_BYTES = 1 << 20
_NETWORK_TIMEOUT_SECONDS = 10.0
_GROWTH_POLL_SECONDS = 0.2
_MIN_SHA256_DIGITS = 8  # torch.hub's convention for the digest in a file name

# Errors of the cache's file system, not of a source: another source would meet them again.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


# ---------------------------------------------------------------------------------------------------------------------
# What the manifest says
# ---------------------------------------------------------------------------------------------------------------------


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

    @property
    def url(self) -> str:
        """The file as a URL that a browser opens."""
        return (data_path() / self.file).as_uri()

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


# ---------------------------------------------------------------------------------------------------------------------
# Reading the manifest
# ---------------------------------------------------------------------------------------------------------------------


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
        # TOML's true is Python's True, which is an int
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
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
        if not min_digits <= len(value) <= max_digits or not set(value) <= set(string.digits + "abcdef"):
            raise self.fail(key, f"must be {min_digits} to {max_digits} lower-case hex digits, got {value!r}")
        return value

    def numbers(self, key: str) -> tuple[float, ...] | None:
        values: list[object] | None = self.optional(key, list)
        if values is None:
            return None
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise self.fail(key, f"must be a list of numbers, got {values!r}")
        return tuple(float(v) for v in values)  # type: ignore[arg-type]

    def table(self, key: str) -> _Table:
        return _Table(f"{self._where}.{key}", self.required(key, dict))

    def tables(self, key: str) -> list[_Table]:
        values: list[object] = self.optional(key, list) or []
        return [_Table(f"{self._where}.{key}[{i}]", value) for i, value in enumerate(values)]

    def items(self) -> list[tuple[str, _Table]]:
        """All keys, each of which must be a table."""
        names = list(self._values)
        return [(name, self.table(name)) for name in names]

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


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


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
        return [entry.streams[s].weights for s in entry.streams]
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


# ---------------------------------------------------------------------------------------------------------------------
# Files on disk
# ---------------------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """$VID3D_CACHE, else $XDG_CACHE_HOME/vid3d, else ~/.cache/vid3d. It need not exist."""
    if own := os.environ.get("VID3D_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "vid3d"
    return Path("~/.cache/vid3d").expanduser()


def weights_path(file: WeightsFile) -> Path:
    """Where a downloaded file lies, or would lie."""
    return cache_dir() / "weights" / file.model / file.file_name


@dataclass(frozen=True)
class _Digests:
    """What identifies a file's content."""

    size_bytes: int
    git_blob: str
    sha256: str

    def fits(self, file: WeightsFile) -> bool:
        return (
            file.size_bytes in (None, self.size_bytes)
            and file.git_blob in (None, self.git_blob)
            and self.sha256.startswith(file.sha256 or "")
        )

    def compare(self, file: WeightsFile) -> str:
        """The lines of an error text: expected and found, for every fact that the manifest holds."""
        rows = [
            ("size", None if file.size_bytes is None else f"{file.size_bytes} bytes", f"{self.size_bytes} bytes"),
            ("git blob", file.git_blob, self.git_blob),
            ("sha256", file.sha256, self.sha256),
        ]
        return "\n".join(
            f"  {what + ':':<10}expected {expected}\n{'':<12}found    {found}"
            for what, expected, found in rows
            if expected is not None
        )


def _digest(path: Path) -> _Digests:
    size_bytes = path.stat().st_size
    # usedforsecurity: git's choice of SHA-1 is not ours, and FIPS builds of Python refuse it otherwise
    blob = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            blob.update(chunk)
            sha256.update(chunk)
    return _Digests(size_bytes, blob.hexdigest(), sha256.hexdigest())


def file_sha256(path: Path) -> str:
    """The sha256 of any file, 64 hex digits: what tells one checkpoint from another in a recipe.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    return _digest_weights(path).sha256


def _digest_weights(path: Path) -> _Digests:
    try:
        return _digest(path)
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error.strerror}") from error


def verify_file(path: Path, file: WeightsFile) -> str:
    """Check that a file is the one that the manifest names.

    Returns:
        The sha256 of the file, 64 hex digits.

    Raises:
        ChecksumMismatch: size or digests differ.
        WeightsUnavailable: the file cannot be read.
    """
    digests = _digest_weights(path)
    if not digests.fits(file):
        raise ChecksumMismatch(
            f"{path} is not the published file of {file.name}:\n{digests.compare(file)}\n"
            f"Delete it and type: vid3d weights pull {file.name}"
        )
    return digests.sha256


def _is_right(path: Path, file: WeightsFile) -> bool:
    try:
        verify_file(path, file)
    except WeightsError:
        return False
    return True


def locate(file: WeightsFile) -> Path:
    """Find a file without the network.

    Returns:
        Its path, verified: in the cache, or in the installed package.

    Raises:
        WeightsUnavailable: it is not there, or is another file; the text says what to do.
    """
    path, problems = _look_up(file)
    if path is None:
        raise WeightsUnavailable(_missing_message(file, problems))
    return path


def ensure(file: WeightsFile, *, progress: Progress | None = None) -> Path:
    """Find a file, and download it if it is not there.

    Raises:
        WeightsUnavailable: it is not there and no source gave it; the text says what to do.
    """
    return pull(file, progress=progress)


def _look_up(file: WeightsFile) -> tuple[Path | None, list[str]]:
    """Where the verified file is, or None and what is wrong with the files that stand in its place."""
    problems = []
    packaged = [data_path() / source.file for source in file.sources if isinstance(source, PackagedSource)]
    for path in [weights_path(file), *packaged]:
        # False also where a directory of the path may not be read
        if not os.path.lexists(path):
            continue
        try:
            verify_file(path, file)
        except ChecksumMismatch:
            problems.append(f"{path}\n    is there, but is damaged or another file (wrong size or digest)")
        except WeightsUnavailable as error:
            problems.append(str(error))
        else:
            return path, []
    return None, problems


def _missing_message(file: WeightsFile, problems: Sequence[str], *, tried: bool = False) -> str:
    """The one text for weights that cannot be had: what, why, from where, whereto, and what to type."""
    what = f"weights {file.name} ({file.file_name}, {file.describe_size()}) are not on this machine"
    lines = [f"{what} and could not be fetched:" if tried else f"{what}."]
    lines += [f"  {problem}" for problem in problems]
    if not tried:
        lines += ["Published at:", *(f"  {source.describe()}" for source in file.sources)]
    lines += [
        f"With a connection:     vid3d weights pull {file.model}",
        f"From another machine:  download it there, then: vid3d weights add {file.model} FILE",
        f"                       (or copy it to {weights_path(file)})",
        f"A file of your own:    --weights {file.stream}=FILE",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Fetching
# ---------------------------------------------------------------------------------------------------------------------


class _SourceError(Exception):
    """A source did not give the file; the text is the short reason."""


def pull(file: WeightsFile, *, progress: Progress | None = None) -> Path:
    """Download a file unless it is there already and right.

    Each source is tried in turn; a file is put in its place only after it was verified.

    Args:
        file: what to download.
        progress: called while bytes arrive.

    Raises:
        WeightsUnavailable: no source gave the file, or the cache cannot be written; the text says what to do.
    """
    path, problems = _look_up(file)
    if path is not None:
        return path
    for source in file.sources:
        try:
            return _install(file, functools.partial(_fetch, source, file, progress))
        except (_SourceError, ChecksumMismatch) as error:
            reason = "gave a damaged or different file" if isinstance(error, ChecksumMismatch) else str(error)
            problems.append(f"{source.describe()}\n    {reason}")
    raise WeightsUnavailable(_missing_message(file, problems, tried=True))


def add(name: str, path: Path) -> WeightsFile:
    """Put a file that was downloaded by other means into the cache.

    Args:
        name: a model, whose stream is then recognised by the file's digest, or "model:stream".
        path: the file; it is copied.

    Returns:
        The manifest's entry of the file.

    Raises:
        UsageError: there is no such model, stream or file.
        ChecksumMismatch: it is none of the model's files.
        WeightsUnavailable: the cache cannot be written.
    """
    candidates = parse_weights_name(name)
    try:
        digests = _digest(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    for file in candidates:
        if digests.fits(file):
            _install(file, functools.partial(_copy, path))
            return file
    raise ChecksumMismatch(_not_published_message(name, path, candidates, digests))


def _not_published_message(name: str, path: Path, candidates: Sequence[WeightsFile], digests: _Digests) -> str:
    lines = [f"{path} is not a published file of {name}."]
    for file in candidates:
        lines += [f"{file.name} ({file.file_name}):", digests.compare(file)]
    known = [stream.weights for entry in model_entries().values() for stream in entry.streams.values()]
    for file in known:
        if digests.fits(file):
            lines.append(f"It is {file.name}. Type: vid3d weights add {file.name} {path}")
            return "\n".join(lines)
    stream = candidates[0].stream
    lines.append(f"Download it again, or use it unverified, as a file of your own: --weights {stream}={path}")
    return "\n".join(lines)


def _install(file: WeightsFile, write: Callable[[Path], None]) -> Path:
    """Have a file written beside its place, verify it, and move it there; leave nothing behind otherwise."""
    target = weights_path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=target.parent) as directory:
            partial = Path(directory) / file.file_name
            write(partial)
            verify_file(partial, file)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            partial.replace(target)
    except OSError as error:
        raise WeightsUnavailable(
            f"weights {file.name} cannot be written to {target.parent}: {error.strerror or error}\n"
            f"Make room or give write access there, or set VID3D_CACHE to a directory that can be written."
        ) from error
    return target


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _fetch(source: Source, file: WeightsFile, progress: Progress | None, target: Path) -> None:
    """Get a file from one source.

    Raises:
        _SourceError: it was not to be had from there.
        OSError: it could not be written.
    """
    try:
        if isinstance(source, HubSource):
            _fetch_hub(source, file, progress, target)
        elif isinstance(source, UrlSource):
            _fetch_url(source, file, progress, target)
        else:
            raise _SourceError("is missing or damaged: reinstall vid3d")
    except _SourceError:
        raise
    except Exception as error:  # what a source's library raises is its own affair; the next source may work
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise _SourceError(_short_reason(error)) from error


def _require_network() -> None:
    for variable in ("VID3D_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _SourceError(f"not tried: {variable} is set")


def _short_reason(error: BaseException) -> str:
    """Why a download failed, in a few words: the innermost cause, which names the host's or the network's complaint."""
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return f"the server answered HTTP {status}"
    # urllib keeps the cause in `reason`, requests in its first argument, everybody else where Python does
    for inner in (error.__cause__, getattr(error, "reason", None), *error.args[:1]):
        if isinstance(inner, BaseException):
            return _short_reason(inner)
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text.splitlines()[0])[:160]


def _user_agent() -> str:
    import importlib.metadata  # here because it takes 20 ms, which `vid3d --help` does not have

    try:
        return f"vid3d/{importlib.metadata.version('vid3d')}"
    except importlib.metadata.PackageNotFoundError:
        return "vid3d"


def _fetch_url(source: UrlSource, file: WeightsFile, progress: Progress | None, target: Path) -> None:
    import urllib.request  # here for the same reason as in _user_agent

    _require_network()
    request = urllib.request.Request(source.url, headers={"User-Agent": _user_agent()})
    with (
        urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT_SECONDS) as response,
        target.open("wb") as out,
    ):
        length = response.headers.get("Content-Length")
        total_bytes = int(length) if length else file.size_bytes
        num_bytes = 0
        while chunk := response.read(_CHUNK_BYTES):
            out.write(chunk)
            num_bytes += len(chunk)
            if progress is not None:
                progress(num_bytes, total_bytes)
    if length and num_bytes < int(length):
        raise _SourceError(f"the connection broke after {num_bytes} of {length} bytes")


def _fetch_hub(source: HubSource, file: WeightsFile, progress: Progress | None, target: Path) -> None:
    import huggingface_hub

    # The user's own Hub cache may hold the file, also on a machine without network.
    cached = huggingface_hub.try_to_load_from_cache(source.repo, source.file, revision=source.revision)
    if isinstance(cached, str) and _is_right(Path(cached), file):
        shutil.copyfile(cached, target)
        return
    _require_network()
    with _quiet_hub():
        # hf_hub_download retries an unreachable Hub for 23 s; asking for the file's size first fails at once.
        size_bytes = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(source.repo, source.file, revision=source.revision),
            token=False,
            timeout=_NETWORK_TIMEOUT_SECONDS,
            user_agent=_user_agent(),
        ).size
        with _watch_growth(target.parent, size_bytes or file.size_bytes, progress):
            downloaded = huggingface_hub.hf_hub_download(
                source.repo,
                source.file,
                revision=source.revision,
                local_dir=target.parent,
                token=False,  # the files are public; a stale token would be refused
                etag_timeout=_NETWORK_TIMEOUT_SECONDS,
                user_agent=_user_agent(),
            )
    Path(downloaded).replace(target)


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars and logging; errors say what matters."""
    from huggingface_hub import logging as hub_logging
    from huggingface_hub import utils as hub_utils

    were_disabled = hub_utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    verbosity = hub_logging.get_verbosity()
    hub_utils.disable_progress_bars()  # type: ignore[attr-defined]
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not were_disabled:
            hub_utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _watch_growth(directory: Path, total_bytes: int | None, progress: Progress | None) -> Iterator[None]:
    """Report how much has arrived in a directory, while somebody else downloads into it."""
    if progress is None:
        yield
        return

    def report() -> None:
        # the largest, because huggingface_hub lays notes of its own beside the file;
        # and a file may be renamed between being listed and being asked for its size
        with contextlib.suppress(OSError):
            progress(max((path.stat().st_size for path in directory.rglob("*")), default=0), total_bytes)

    def watch() -> None:
        while not stop.wait(_GROWTH_POLL_SECONDS):
            report()

    stop = threading.Event()
    thread = threading.Thread(target=watch, name="vid3d-download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    report()
