"""Presets: the settings and files that a program which loads features wants.

    weights/presets/NAME.toml → Preset → Options, Files

The dataclasses below are the schema of a preset's file, of ours and of a user's. tests/presets checks ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .arguments import check
from .errors import UsageError
from .models.manifest import data_path
from .options import MACHINE, Options
from .suggest import check_known, did_you_mean
from .toml_files import parse, read_toml

VALUES = ("verified", "recipe", "layout")
"""What is known of a preset's numbers: compared with published features or the original's code; every setting is known
from the original's code; or only shapes, names and times."""


@dataclass(frozen=True)
class Files:
    """The files of one video, as a program loads them."""

    names: str
    """As in "{stem}.npy": {stem} is the video's name, {id} the same without a leading "v_", {stream} is rgb or flow,
    {crop} the number of a crop. The ending, .npy, .npz or .mat, is the format."""
    axes: str = "TD"
    """"TD": (rows, features), "DT": (features, rows), or "TCD": (rows, crops, features)."""
    key: str = "features"
    """Name of the array in an .npz or .mat."""
    dtype: str = "float32"
    """See `FeatureFormat`."""
    concat: bool = True
    """See `FeatureFormat`; names with {stream} need False."""
    streams: Mapping[str, str] = field(default_factory=dict)
    """What {stream} stands for, as in {rgb = "RGB"}; by default the name of the stream."""

    __hash__ = None  # type: ignore[assignment]  # `streams` is a dict


@dataclass(frozen=True)
class RowCentre:
    """The middle of row i, as the program computes it: (first + i * step) / fps seconds."""

    first: float
    """Frames."""
    step: float
    """Frames."""

    def seconds(self, row: int, fps: float) -> float:
        """Return the middle of a row; `fps` is the rate at which the video was read."""
        return (self.first + row * self.step) / fps

    def __str__(self) -> str:
        return f"({self.first:g} + {self.step:g}·i) / fps"


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
    """Fields of `Options`."""
    files: Files
    centre: RowCentre
    sources: tuple[str, ...]
    """Addresses of the code and the threads that the settings come from."""
    unknown: str = ""
    """What is not known, or differs from the original, in a sentence or two."""
    annotations: str = ""
    """Which files with labels the programs open, by a name in `features.annotations.WRITERS`; empty for none."""

    __hash__ = None  # type: ignore[assignment]  # `options` is a dict

    def describe(self, options: Options) -> str:
        """Return the preset for the recipe, with the options that differ from it: "ms-tcn, but stride 2"."""
        usual = Options(**self.options, preset=options.preset)
        facts = {f.name: f.metadata for f in dataclasses.fields(Options) if f.metadata["group"] != MACHINE}
        names = [name for name in facts if str(getattr(options, name)) != str(getattr(usual, name))]
        changes = [f"{name} {_describe(getattr(options, name))}" for name in names]
        return ", ".join([self.name, "but " + ", ".join(changes)] if changes else [self.name])


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def preset_names() -> list[str]:
    """Return the names of the presets that come with vid3d."""
    return sorted(path.stem for path in (data_path() / "presets").glob("*.toml"))


def find_preset(name: str) -> Preset:
    """Return a preset by its name, or the path of its file, which ends in .toml.

    Raises:
        UsageError: there is none, or its file is not a preset; the text says why.
    """
    path = Path(name) if name.endswith(".toml") else data_path() / "presets" / f"{name}.toml"
    if not name.endswith(".toml") and name not in preset_names():
        hint = did_you_mean(name, preset_names())
        raise UsageError(f"no preset '{name}': {hint or 'see vid3d presets, or give the path of a .toml'}")
    try:
        preset: Preset = parse(Preset, {**read_toml(path), "name": name}, path.name)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a preset: {error}") from None
    try:
        known = [f.name for f in dataclasses.fields(Options) if f.name != "preset"]
        for option in preset.options:
            check_known(option, known, f"unknown option '{option}'")
        check_known(preset.values, VALUES, f"unknown values '{preset.values}'")
        Options(**preset.options)
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
