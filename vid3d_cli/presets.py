"""Presets: the settings and files that a program which loads features wants.

    weights/presets/NAME.toml → Preset → Options, Files

The dataclasses below are the schema of a preset's file, of ours and of a user's. tests/presets checks ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .arguments import check
from .errors import UsageError
from .models.manifest import data_path
from .options import MACHINE, Options
from .records import STREAMS
from .suggest import check_known, did_you_mean
from .text import printable
from .toml_files import parse, read_toml

VALUES = {
    "verified": "the numbers were compared with published features, or with the original's code",
    "recipe": "every setting of a published extractor is known from its code; unknown says what differs; not compared",
    "layout": "names, shapes and times are the program's; some settings behind the numbers are not known",
}
"""What is known of a preset's numbers."""

DTYPES = ("float32", "float16")
AXES = ("TD", "DT", "TCD")
ANNOTATIONS = ("activitynet", "anomaly-lists", "dense-captions", "moment-retrieval", "ms-tcn")
"""The files with labels that `features.annotations` writes."""
SUFFIXES = (".npy", ".npz")
MAX_CROPS = 14
"""Files of a video and stream, one for each crop: `--crops` has so many different ones."""

_OPTIONS = [
    f.name
    for f in dataclasses.fields(Options)
    if f.metadata["group"] != MACHINE and f.name not in ("preset", "weights", "labels", "flow_files")
]
"""What a preset may set: a stranger's file opens no file and no address."""

_WORD = re.compile(r"\{(stem|id|stream|crop)\}")
_RESERVED = ("file", "allow_pickle")
"""Parameters of `np.savez`, which no array can be named after."""
_IS_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Files:
    """The files of one video, as a program loads them.

    Raises:
        UsageError: they cannot be, or lie outside of their directory.
    """

    names: str
    """As in "{stream}/{stem}.npy": {stem} is the video's name, {id} the same without a leading "v_", {stream} is rgb or
    flow, {crop} the number of a crop, from 0. Folders of the video come before its name: rgb/sub/a.npy. The ending,
    .npy or .npz, is the format."""
    axes: str = "TD"
    """"TD": (rows, features), "DT": (features, rows), or "TCD": (rows, crops, features)."""
    key: str = "features"
    """Name of the array in an .npz."""
    dtype: str = "float32"
    """See `FeatureFormat`."""
    streams: Mapping[str, str] = field(default_factory=dict)
    """What {stream} stands for, as in {rgb = "RGB"}; by default the name of the stream."""
    annotations: str = ""
    """Which files with labels the programs open beside them, one of `ANNOTATIONS`; empty for none."""

    __hash__ = None  # type: ignore[assignment]  # `streams` is a dict

    def __post_init__(self) -> None:
        check_known(self.suffix, SUFFIXES, f"ending '{self.suffix}' of names '{self.names}'")
        check_known(self.axes, AXES, f"unknown axes '{self.axes}'")
        check_known(self.dtype, DTYPES, f"unknown dtype '{self.dtype}'")
        if self.annotations:
            check_known(self.annotations, ANNOTATIONS, f"unknown annotations '{self.annotations}'")
        folders, _, name = self.names.rpartition("/")
        rest, is_hidden = _WORD.sub("", self.names), any(part[:1] in ("", ".") for part in self.names.split("/"))
        labels = [self.streams.get(stream, stream) for stream in STREAMS]
        are_labels = {*self.streams} <= {*STREAMS} and len({*labels}) == 2 and all(map(_IS_NAME.fullmatch, labels))
        for fault, is_so in {
            "other braces than {stem}, {id}, {stream}, {crop}": {*rest} & {*"{}"},
            "a folder or file that is hidden, or outside of the directory": is_hidden or "\\" in rest,
            "control characters": printable(self.names) != self.names,
            "no {stem} or {id} after the last /": not {*_WORD.findall(name)} & {"stem", "id"},
            "{stem} or {id} before the last /": {*_WORD.findall(folders)} & {"stem", "id"},
            "{crop}, and the axes TCD, which has all crops": self.has_file_per_crop and self.axes == "TCD",
            f"the key '{self.key}', which is no name": not _IS_NAME.fullmatch(self.key) or self.key in _RESERVED,
            f"the names {' and '.join(labels)} for the streams rgb and flow": not are_labels,
            "{crop} or {stream} so near the video that two could share a file; write _ between": self._is_ambiguous(),
        }.items():
            if is_so:
                raise UsageError(f"files '{printable(self.names)}' cannot have {fault}")

    def _is_ambiguous(self) -> bool:
        """Whether a file may be of two videos: "a11.npy" is crop 11 of a, and crop 1 of a1."""
        streams, crops = ("",) if self.concat else STREAMS, MAX_CROPS if self.has_file_per_crop else 1
        files = [str(self.path("\0", stream, crop)) for stream in streams for crop in range(crops)]
        ends = [(file.partition("\0")[0], file.rpartition("\0")[2]) for file in files]
        return any(
            (a.startswith(b) or b.startswith(a)) and (x.endswith(y) or y.endswith(x))
            for (a, x), (b, y) in itertools.combinations(ends, 2)
        )

    @property
    def suffix(self) -> str:
        """Ending of the names."""
        return PurePosixPath(self.names).suffix

    @property
    def concat(self) -> bool:
        """See `FeatureFormat`; names with {stream} are of a file for each."""
        return "{stream}" not in self.names

    @property
    def has_file_per_crop(self) -> bool:
        """Whether each crop has a file of its own."""
        return "{crop}" in self.names

    @property
    def has_crops(self) -> bool:
        """Whether the files hold the features of every crop."""
        return self.has_file_per_crop or self.axes == "TCD"

    def path(self, stem: str, stream: str = "", crop: int = 0) -> PurePosixPath:
        """Return the path of a file below the directory.

        Args:
            stem: path of the video without suffix, as in "sub/a".
            stream: "rgb" or "flow", if the names have {stream}.
            crop: number of the crop, if the names have {crop}.
        """
        video = PurePosixPath(stem)
        short = video.name.removeprefix("v_") or video.name
        words = {"stem": video.name, "id": short, "stream": self.streams.get(stream, stream), "crop": str(crop)}
        *folders, name = (_WORD.sub(lambda word: words[word[1]], part) for part in self.names.split("/"))
        return PurePosixPath(*folders) / video.parent / name


@dataclass(frozen=True)
class RowCentre:
    """The middle of row i, as the program computes it: (first + i * step) / fps seconds."""

    first: float
    """Frames."""
    step: float
    """Frames."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and 0 < self.step < math.inf):
            raise UsageError(f"centre {self}: its numbers must be finite, and step more than 0")

    def __str__(self) -> str:
        return f"({self.first:g} + {'' if self.step == 1 else f'{self.step:g}·'}i) / fps"


@dataclass(frozen=True)
class Preset:
    """What a program wants."""

    name: str
    """As in "ms-tcn", or the path of the user's file; not in the file."""
    summary: str
    """The programs, in a line."""
    values: str
    """One of `VALUES`."""
    options: Mapping[str, Any]
    """Fields of `Options` that say how features are made, without files and what fits a machine."""
    files: Files
    centre: RowCentre
    sources: tuple[str, ...]
    """Addresses of the code and the threads that the settings come from."""
    unknown: str = ""
    """What is not known, or differs from the original, in a sentence or two."""

    __hash__ = None  # type: ignore[assignment]  # `options` is a dict

    @property
    def usual(self) -> Options:
        """The options, where nothing overrides them."""
        return Options(**self.options)

    def describe(self, options: Options) -> str:
        """Return the preset for the recipe, with the options that differ from it: "ms-tcn, but stride 2"."""
        usual = self.usual
        shown = [f.name for f in dataclasses.fields(Options) if f.metadata["group"] != MACHINE and f.name != "preset"]
        names = [name for name in shown if str(getattr(options, name)) != str(getattr(usual, name))]
        changes = [f"{name} {_describe(getattr(options, name))}" for name in names]
        return ", ".join([self.name, "but " + ", ".join(changes)] if changes else [self.name])


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def preset_names() -> list[str]:
    """Return the names of the presets that come with vid3d."""
    return sorted(path.stem for path in (data_path() / "presets").glob("*.toml"))


def matching_presets(part: str) -> list[Preset]:
    """Return the presets that come with vid3d and have these letters in their name or programs."""
    presets = map(find_preset, preset_names())
    return [preset for preset in presets if part.lower() in f"{preset.name} {preset.summary}".lower()]


def find_preset(name: str) -> Preset:
    """Return a preset by its name, or the path of its file, which ends in .toml.

    Raises:
        UsageError: there is none, or its file is not a preset; the text says why.
    """
    path = Path(name) if name.endswith(".toml") else data_path() / "presets" / f"{name}.toml"
    if not name.endswith(".toml") and name not in preset_names():
        alike = [repr(preset.name) for preset in matching_presets(name)]
        hint = f"did you mean {' or '.join(alike)}?" if alike else did_you_mean(name, preset_names())
        raise UsageError(f"no preset '{name}': {hint or 'see vid3d presets, or give the path of a .toml'}")
    try:
        preset: Preset = parse(Preset, {**read_toml(path), "name": name}, "")
        for option in preset.options:
            check_known(option, _OPTIONS, f"a preset has no option '{option}'")
        values = [word for word in VALUES if word != "verified" or not name.endswith(".toml")]  # ours
        check_known(preset.values, values, f"unknown values '{preset.values}'")
        stride = preset.usual.stride
        if stride not in (None, preset.centre.step):
            raise UsageError(f"centre.step is {preset.centre.step:g}, but a row comes every {stride} frames: stride")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a preset: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return preset


def with_preset(given: Mapping[str, Any]) -> Options:
    """Return options: those given, then those of the preset that is among them, then the defaults.

    Raises:
        UsageError: there is no such preset, or an option does not fit.
    """
    name = check("preset", given.get("preset"), str | None)
    return Options(**{**(find_preset(name).options if name else {}), **given})
