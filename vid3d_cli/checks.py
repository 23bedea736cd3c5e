"""Compares networks with numbers that their authors published for an input.

    weights/checks.toml → Check, Sample → run_checks() → Verdict

A network gets a sample as it stands, so that only its code and weights decide the numbers. The dataclasses below are
the schema of the file; tests/test_checks.py checks its values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from .durable import AtomicFile
from .errors import OutputError, ShapeError, UsageError, WeightsError, WeightsUnavailable
from .models.clip_model import ClipModel, Normalise, create_model
from .models.digests import cache_dir
from .models.download import Progress, SourceError, fetch
from .models.manifest import ModelEntry, UrlSource, WeightsFile, data_path, read_labels
from .models.weights import WITHOUT_DOWNLOAD, Find, find_all
from .records import FUSED, STREAMS, softmax
from .toml_files import parse, read_toml

MAX_SAMPLE_BYTES = 200_000_000
"""Of one file of a sample; no size is published."""

MAX_DIFFERENCE = 0.001
"""Largest difference of a logit or norm that matches, relative to the largest logit that the authors printed."""

MAX_PROBABILITY_DIFFERENCE = 0.05
"""Largest difference of a probability that matches, relative to itself, so that small ones count: 0.05 of a logit.

Every pixel changed by up to a level, as another JPEG decoder may, moved the probabilities of s3d_mini by 0.5 to 1.1 %.
"""


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
    """Name of the sample; all checks of a model have the same."""
    top: Mapping[str, float]
    """The largest outputs, by the names of their classes."""
    source: str
    """Where the numbers were published."""
    unit: str = "logit"
    """Of `top`: "logit" or "probability"."""
    norm: float | None = None
    """Norm of the logits."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The networks that take part."""
        return STREAMS if self.stream == FUSED else (self.stream,)


@dataclass(frozen=True)
class CheckList:
    """The content of a file of checks."""

    samples: Mapping[str, Sample]
    checks: tuple[Check, ...]

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
    yours: float | None
    """None: it is not finite."""
    max_difference: float
    """The largest difference of a number that matches."""
    your_class: str | None = None
    """The class that has our number, if it is another one."""

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.yours is None else self.yours - self.published

    @property
    def matches(self) -> bool:
        """Whether the number matches, and belongs to the same class."""
        return self.difference is not None and abs(self.difference) <= self.max_difference and self.your_class is None


@dataclass(frozen=True)
class Verdict:
    """A check and what came out."""

    check: Check
    sample: Sample
    numbers: tuple[Number, ...]

    @property
    def matches(self) -> bool:
        """Whether all numbers match."""
        return all(number.matches for number in self.numbers)


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
    source = listed.samples[checks[0].sample]
    running = [stream for stream in STREAMS if any(stream in check.streams for check in checks)]
    published = {file.stream: file for file in entry.files if file.stream in running and file.stream not in weights}
    paths = {stream: Path(weights[stream]) for stream in running if stream in weights}
    missing: list[str] = []
    try:
        paths |= zip(published, find_all(published.values(), find), strict=True)
    except WeightsUnavailable as error:
        missing.append(str(error).removesuffix(f"\n{WITHOUT_DOWNLOAD}"))  # a model without published numbers
    try:
        files = _find_sample(source, running, sample, progress)
    except WeightsUnavailable as error:
        missing.append(str(error))
    if missing:
        raise WeightsUnavailable("\n".join(missing))
    logits: dict[str, NDArray[np.float32]] = {}
    for stream in running:
        clip = _read_clip(files[stream], source, stream, is_given=sample is not None)
        try:
            logits[stream] = _run(entry, stream, paths[stream], clip)
        except ShapeError as error:
            raise _not_the_sample(files[stream][0], error, is_given=sample is not None) from None
    for check in checks:
        summed = sum((logits[stream] for stream in check.streams), np.float32(0))
        yield Verdict(check, source, tuple(_compare(check, summed, entry)))


def _compare(check: Check, logits: NDArray[np.float32], entry: ModelEntry) -> Iterator[Number]:
    """Yield the norm, and the largest outputs in their order."""
    is_finite = bool(np.isfinite(logits).all())
    max_difference = MAX_DIFFERENCE * max(check.top.values())
    if check.norm is not None:
        norm = float(np.linalg.norm(logits.astype(np.float64))) if is_finite else None
        yield Number("norm", check.norm, norm, max_difference)
    labels = read_labels(entry) if entry.labels_file is not None else None
    outputs = softmax(logits) if check.unit == "probability" and is_finite else logits
    ranked = np.argsort(outputs)[::-1]
    for (name, value), index in zip(check.top.items(), ranked, strict=False):
        if check.unit == "probability":
            max_difference = MAX_PROBABILITY_DIFFERENCE * value
        if is_finite:
            other = labels[index] if labels is not None and labels[index] != name else None
            yield Number(name, value, float(outputs[index]), max_difference, other)
        else:
            yield Number(name, value, None, max_difference)


def _run(entry: ModelEntry, stream: str, weights: Path, clip: NDArray[Any]) -> NDArray[np.float32]:
    """Return the logits (K,) of a clip (1, T, H, W, C): uint8, or float32 that is normalised already."""
    net: torch.nn.Module = create_model(entry.name, stream=stream, num_classes=entry.num_classes, weights=weights)
    if clip.dtype == np.uint8:
        net = ClipModel(net, Normalise(entry.streams[stream].normalisation))
        tensor = torch.from_numpy(clip)
    else:
        tensor = torch.from_numpy(clip).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        logits: NDArray[np.float32] = net(tensor).logits[0].numpy()
    return logits


# Samples -------------------------------------------------------------------------------------------------------------


def _find_sample(
    sample: Sample, streams: Sequence[str], given: Path | None, progress: Progress | None
) -> dict[str, list[Path]]:
    """Return the files of each stream of a sample; download what is not in the cache."""
    names = {stream: sample.names(stream) for stream in streams}
    all_names = [name for stream in streams for name in names[stream]]
    if given is not None and given.is_file():
        if len(all_names) > 1:
            raise UsageError(f"--sample {given}: give the directory that has {all_names[0]} to {all_names[-1]}")
        return {streams[0]: [given]}
    directory = given or cache_dir() / "samples" / sample.name
    lacking = [name for name in all_names if not (directory / name).is_file()]
    if given and lacking:
        what = f"has no {lacking[0]}" if given.is_dir() else "no such file or directory"
        raise UsageError(f"--sample {given}: {what}")
    try:
        while lacking:
            _download(sample, directory / lacking[0], progress)
            del lacking[0]
    except SourceError as error:
        shown = [f"  {sample.address}{name}" for name in (lacking[0], lacking[-1])]
        shown = [shown[0], *(["  …"] if len(lacking) > 2 else []), *shown[1 : len(lacking)]]
        advice = f"Put the files into {directory}, or name the directory that has them: --sample PATH"
        raise WeightsUnavailable(
            "\n".join([f"the sample is not on this machine; download: {error}", *shown, advice])
        ) from error
    return {stream: [directory / name for name in names[stream]] for stream in streams}


def _download(sample: Sample, path: Path, progress: Progress | None) -> None:
    """Write a file of a sample to the cache; raise SourceError if it does not come."""
    source = UrlSource(sample.address + path.name)
    try:
        with AtomicFile(path) as out:
            fetch(source, WeightsFile(sample.name, "", path.name, (source,), MAX_SAMPLE_BYTES), progress, out)
    except OutputError as error:
        raise SourceError(f"{error}; VID3D_CACHE names another directory") from error


def _not_the_sample(path: Path, error: Exception, *, is_given: bool) -> UsageError | WeightsUnavailable:
    """Return the error of a file that is not the sample's: the user gave it, or it is in the cache."""
    what = f"{path}: not {path.name} of the sample: {getattr(error, 'strerror', None) or error}"
    return UsageError(what) if is_given else WeightsUnavailable(f"{what}; delete it to download it again")


def _read_clip(paths: Sequence[Path], sample: Sample, stream: str, *, is_given: bool) -> NDArray[Any]:
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
            frames.append(_read_image(path))
        return np.stack(frames)[None]
    except (OSError, ValueError, EOFError) as error:
        raise _not_the_sample(path, error, is_given=is_given) from None


def _read_array(path: Path, num_channels: int) -> NDArray[np.float32]:
    clip = np.lib.format.open_memmap(path, mode="r")  # mapped: the header may promise anything
    if not np.issubdtype(clip.dtype, np.floating):
        raise ValueError("it is no array of floating-point numbers")
    if clip.ndim != 5 or clip.shape[0] != 1 or clip.shape[-1] != num_channels:
        raise ValueError(f"its shape is {clip.shape}, not (1, frames, height, width, {num_channels})")
    return np.array(clip, np.float32)


def _read_image(path: Path) -> NDArray[np.uint8]:
    data = np.fromfile(path, np.uint8)
    with suppress(cv2.error):  # the file is empty, or announces more pixels than OpenCV reads
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is not None:
            return np.ascontiguousarray(image[..., ::-1], np.uint8)
    raise ValueError("it is no image, or too large")
