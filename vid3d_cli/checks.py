"""Compares networks with numbers that their authors published for an input.

    weights/checks.toml → Check, Sample → run_checks() → Verdict

A network gets a sample as it stands, so that only its code and weights decide the numbers. The dataclasses below are
the schema of the file; tests/test_checks.py checks its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .durable import AtomicFile
from .errors import OutputError, UsageError, WeightsError, WeightsUnavailable
from .models.clip_model import ClipModel, Normalise, create_model
from .models.digests import cache_dir
from .models.download import Progress, SourceError, fetch
from .models.manifest import ModelEntry, UrlSource, WeightsFile, data_path, read_labels
from .models.weights import Find, find_all
from .records import FUSED, STREAMS, softmax
from .toml_files import parse, read_toml

MAX_SAMPLE_BYTES = 200_000_000
"""Of one file of a sample; no size is published."""

MAX_DIFFERENCE = 0.001
"""Largest difference of a number that matches, relative to the largest output that the authors printed."""


@dataclass(frozen=True)
class Sample:
    """An input that authors published: an array for each stream, or images."""

    name: str
    """As in "cricket": the name of its directory in the cache; not in the file."""
    what: str
    """Whose, which and how long, in a few words."""
    address: str
    """Of the directory that has the files, at a commit; ends with a slash."""
    files: Mapping[str, str]
    """Name by stream: of an array (1, T, H, W, C) that is normalised already; or of images, with their number, as in
    "{:03}.jpg"."""
    numbers: tuple[int, int] | None = None
    """First and last number of the images."""
    resize: tuple[int, int] | None = None
    """Height and width to which images are resized before their centre square is cut out; None: they are used whole."""

    __hash__ = None  # type: ignore[assignment]  # `files` is a dict

    def names(self, stream: str) -> list[str]:
        """Return the names of a stream's files, in the order of their frames."""
        first, last = self.numbers or (0, 0)
        return [self.files[stream].format(number) for number in range(first, last + 1)]


@dataclass(frozen=True)
class Check:
    """What a network returned for a sample, as its authors printed it."""

    models: tuple[str, ...]
    """Names of the models whose weights hold the same numbers."""
    stream: str
    """"rgb", "flow", or "fused": the sum of the logits of both."""
    sample: str
    """Name of the sample."""
    top: Mapping[str, float]
    """The largest outputs, by the names of their classes."""
    source: str
    """Where the numbers were published."""
    unit: str = "logit"
    """Of `top`: "logit" or "probability"."""
    norm: float | None = None
    """Norm of the logits."""
    variant: str | None = None
    """Variant of the network that gave the numbers; None: the model's."""

    __hash__ = None  # type: ignore[assignment]  # `top` is a dict

    @property
    def streams(self) -> tuple[str, ...]:
        """The networks that take part."""
        return STREAMS if self.stream == FUSED else (self.stream,)


@dataclass(frozen=True)
class CheckList:
    """The content of a file of checks."""

    samples: Mapping[str, Sample]
    checks: tuple[Check, ...]

    __hash__ = None  # type: ignore[assignment]  # `samples` is a dict

    def find(self, entry: ModelEntry, streams: Sequence[str]) -> list[Check]:
        """Return the checks of a model that need no other streams.

        Raises:
            UsageError: there are none.
        """
        of_model = [check for check in self.checks if entry.name in check.models]
        if not of_model:
            names = ", ".join(dict.fromkeys(model for check in self.checks for model in check.models))
            raise UsageError(f"no numbers of an input were published for {entry.name}; there are some for: {names}")
        found = [check for check in of_model if set(check.streams) <= set(streams)]
        if not found:
            published = ", ".join(check.stream for check in of_model)
            raise UsageError(
                f"the numbers published for {entry.name} are of {published}: not of {' or '.join(streams)}"
            )
        return found


@dataclass(frozen=True)
class Number:
    """A published number and ours."""

    what: str
    """"norm", or the class that the authors printed."""
    published: float
    yours: float
    your_class: str | None = None
    """The class that has our number, if it is another one."""

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.yours - self.published


@dataclass(frozen=True)
class Verdict:
    """A check and what came out."""

    check: Check
    sample: Sample
    numbers: tuple[Number, ...]

    __hash__ = None  # type: ignore[assignment]  # `check` has none

    @property
    def max_difference(self) -> float:
        """The largest difference of a number that matches."""
        return MAX_DIFFERENCE * max(self.check.top.values())

    @property
    def matches(self) -> bool:
        """Whether all numbers match, and belong to the same classes."""
        return all(abs(n.difference) <= self.max_difference and n.your_class is None for n in self.numbers)


def read_checks(path: Path | None = None) -> CheckList:
    """Return the checks of a file; by default those that come with vid3d.

    Raises:
        WeightsError: the file cannot be read, or a key is unknown, missing or of the wrong type.
    """
    path = path or data_path() / "checks.toml"
    try:
        root = read_toml(path)
        for name, sample in root.get("samples", {}).items():
            sample["name"] = name
        checks: CheckList = parse(CheckList, root, path.name)
    except (OSError, ValueError) as error:
        raise WeightsError(f"checks: {path} cannot be read: {error}") from error
    return checks


def run_checks(
    entry: ModelEntry,
    listed: CheckList,
    streams: Sequence[str],
    *,
    weights: Mapping[str, str | Path],
    sample: Path | None = None,
    find: Find | None = None,
    progress: Progress | None = None,
) -> Iterator[Verdict]:
    """Yield the verdict of each check of a model; all files are found before the first.

    Args:
        entry: the model.
        listed: the checks.
        streams: the streams that may run.
        weights: own checkpoints by stream; the published ones are used for the others.
        sample: a file of the sample, or the directory that has its files; None: the cache, or a download.
        find: finds or downloads a published checkpoint; None for `models.weights.pull`.
        progress: called while a file of a sample arrives.

    Raises:
        UsageError: there is no check, or `sample` is not what it needs.
        WeightsUnavailable: checkpoints or files of a sample are missing; one text says what to fetch, and where to
            put it.
        CheckpointError: a checkpoint does not fit.
    """
    checks = listed.find(entry, streams)
    inputs = {(check.sample, stream): listed.samples[check.sample] for check in checks for stream in check.streams}
    running = [stream for stream in STREAMS if any(stream == needed for _, needed in inputs)]
    missing: list[str] = []
    paths = {stream: Path(weights[stream]) for stream in running if stream in weights}
    published = [file for file in entry.files if file.stream in running and file.stream not in weights]
    try:
        paths |= dict(zip([file.stream for file in published], find_all(published, find), strict=True))
    except WeightsUnavailable as error:
        missing.append(str(error))
    try:
        files = _find_samples(inputs, sample, progress)
    except WeightsUnavailable as error:
        missing.append(str(error))
    if missing:
        raise WeightsUnavailable("\n".join(missing))
    logits: dict[tuple[str, str], NDArray[np.float32]] = {}
    for check in checks:
        for stream in check.streams:
            key = check.sample, stream
            if key not in logits:
                clip = _read_clip(files[key], listed.samples[check.sample], entry, stream, is_given=sample is not None)
                logits[key] = _run(entry, stream, paths[stream], check.variant, clip)
        summed = sum((logits[check.sample, stream] for stream in check.streams), np.float32(0))
        yield Verdict(check, listed.samples[check.sample], tuple(_compare(check, summed, entry)))


def _compare(check: Check, logits: NDArray[np.float32], entry: ModelEntry) -> Iterator[Number]:
    """Yield the norm, and the largest outputs in their order."""
    if check.norm is not None:
        yield Number("norm", check.norm, float(np.linalg.norm(logits)))
    labels = read_labels(entry)
    outputs = logits if check.unit == "logit" else softmax(logits)
    ranked = np.argsort(outputs)[::-1]
    for (name, value), index in zip(check.top.items(), ranked, strict=False):
        # A model without a list of classes calls them "class 0", "class 1", …: only such a name can differ.
        is_named = entry.labels_file is not None or name.startswith("class ")
        other = labels[index] if is_named and labels[index] != name else None
        yield Number(name, value, float(outputs[index]), other)


def _run(entry: ModelEntry, stream: str, weights: Path, variant: str | None, clip: NDArray[Any]) -> NDArray[np.float32]:
    """Return the logits (K,) of a clip (1, T, H, W, C): uint8, or float32 that is normalised already."""
    net: torch.nn.Module = create_model(
        entry.name, stream=stream, num_classes=entry.num_classes, weights=weights, variant=variant
    )
    if clip.dtype == np.uint8:
        net = ClipModel(net, Normalise(entry.streams[stream].normalisation))
        tensor = torch.from_numpy(clip)
    else:
        tensor = torch.from_numpy(clip).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        logits: NDArray[np.float32] = net(tensor).logits[0].numpy()
    return logits


# Samples -------------------------------------------------------------------------------------------------------------

_Inputs = Mapping[tuple[str, str], Sample]
"""Samples by their name and the stream."""


def _find_samples(inputs: _Inputs, given: Path | None, progress: Progress | None) -> dict[tuple[str, str], list[Path]]:
    """Return the files of each stream of the samples."""
    if given is not None and not given.is_dir():
        if not given.is_file():
            raise UsageError(f"--sample {given}: no such file or directory")
        names = [name for (_, stream), sample in inputs.items() for name in sample.names(stream)]
        if len(names) > 1:
            few = len(names) <= 2
            what = " and ".join(names) if few else f"{names[0]} to {names[-1]}"
            raise UsageError(f"--sample {given}: give the directory that has {what}{', or --streams' if few else ''}")
        return {key: [given] for key in inputs}
    found: dict[tuple[str, str], list[Path]] = {}
    missing: list[str] = []
    for key, sample in inputs.items():
        directory = given or cache_dir() / "samples" / sample.name
        found[key] = [directory / name for name in sample.names(key[1])]
        lacking = [path for path in found[key] if not path.is_file()]
        if given and lacking:
            raise UsageError(f"--sample {given}: has no {lacking[0].name}")
        for i, path in enumerate(lacking):
            try:
                if missing:  # another one would fail the same way, and may take as long
                    raise SourceError
                _download(sample, key[1], path, progress)
            except SourceError as error:
                last = f" to {lacking[-1].name}" if i < len(lacking) - 1 else ""
                why = f"\n    {error}" if str(error) else ""
                missing.append(f"  {sample.address}{path.name}{last}{why}\n    put it in {directory}")
                break
    if missing:
        raise WeightsUnavailable(
            "\n".join(
                ["the sample is not on this machine:", *missing, "  or give the file, or its directory: --sample"]
            )
        )
    return found


def _download(sample: Sample, stream: str, path: Path, progress: Progress | None) -> None:
    """Write a file of a sample to the cache; raise SourceError if it does not come."""
    source = UrlSource(sample.address + path.name)
    try:
        with AtomicFile(path) as out:
            fetch(source, WeightsFile(sample.name, stream, path.name, (source,), MAX_SAMPLE_BYTES), progress, out)
    except OutputError as error:
        raise WeightsUnavailable(f"{error}\nSet VID3D_CACHE to another directory") from error


def _read_clip(
    paths: Sequence[Path], sample: Sample, entry: ModelEntry, stream: str, *, is_given: bool
) -> NDArray[Any]:
    """Return a sample as a clip (1, T, H, W, C): float32 as the network gets it, or uint8 images, RGB.

    Raises:
        UsageError: a file that the user gave is not the sample's.
        WeightsUnavailable: a file of the cache is not.
    """
    path = paths[0]
    try:
        if sample.numbers is None:
            return _read_array(path, {"rgb": 3, "flow": 2}[stream])
        frames = []
        for path in paths:  # named in the error
            frames.append(_read_image(path, sample.resize))
        return np.stack(frames)[None]
    except (OSError, ValueError, EOFError) as error:
        what = f"{path}: not {path.name} of the sample: {getattr(error, 'strerror', None) or error}"
        if is_given:
            raise UsageError(what) from None
        raise WeightsUnavailable(f"{what}; delete it to download it again") from None


def _read_array(path: Path, num_channels: int) -> NDArray[np.float32]:
    clip = np.load(path, mmap_mode="r", allow_pickle=False)  # memory-mapped: the header may promise anything
    if not isinstance(clip, np.ndarray) or not np.issubdtype(clip.dtype, np.floating):
        raise ValueError("it is no array of floating-point numbers")
    if clip.ndim != 5 or clip.shape[0] != 1 or clip.shape[-1] != num_channels:
        raise ValueError(f"its shape is {clip.shape}, not (1, frames, height, width, {num_channels})")
    return np.array(clip, np.float32)


def _read_image(path: Path, resize: tuple[int, int] | None) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.stat().st_size else None
    if image is None:
        raise ValueError("it is no image")
    if resize is not None:
        height, width = resize
        left = (width - height) // 2
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[:, left : left + height]
    return np.ascontiguousarray(image[..., ::-1], np.uint8)
