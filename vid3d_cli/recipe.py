"""The recipe of features: what decides their numbers, and where they came from (provenance).

Files store flat keys, which the functions below classify. Rows of two recipes go into one output only if all keys that
decide numbers agree. A difference in provenance causes at most a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NUMERICS = 2
"""Increased when vid3d computes other numbers for the same recipe. A recipe without the key has 1.

2: videos of more than 8 bits, nv12 and other rare pixel formats lose a bias of 1 to 2 grey levels, and grey videos of
limited range get their contrast.
"""

_PROVENANCE = re.compile(r"runtime|preset|files\.annotations|versions(\..+)?|streams\.\w+\.weights")
"""The keys, with dots between the levels, that say where features came from; all others decide numbers."""

_FLOW_FOLDER = re.compile(r"^ready-made (.*), images of bound ")
"""The folder in a description of ready-made flow; it is provenance."""


@dataclass(frozen=True)
class StreamRecipe:
    """The checkpoint and the input of one stream."""

    weights: str
    """Manifest name, or the path of the user's own file."""
    weights_sha256: str | None
    """Digest of the checkpoint file; None while it is unknown."""
    normalisation: str
    """How pixels or flow became the network's input, in words that can be compared."""


@dataclass(frozen=True)
class Recipe:
    """How features were made: the same recipe on the same file gives the same rows."""

    model: str
    streams: Mapping[str, StreamRecipe]
    fps: str
    """Frames per second read, as a fraction, or "native"."""
    start_seconds: float
    end_seconds: float | None
    window: int
    stride: int
    tail: str
    resize: str
    """How frames were resized."""
    crops: str
    """Which crops of a frame were used, and whether their features were kept or averaged."""
    keeps_crops: bool
    """Whether features have an axis for crops."""
    variant: str | None
    """Variant of the backbone; None for the plain one."""
    features: str
    """Which features: "pooled" (the vector that feeds the classifier), or a layer and its pooling."""
    flow: str | None
    """How flow was computed; None without a flow stream."""
    runtime: str = ""
    """What ran the networks, and on which device; empty before they are loaded."""
    precision: str | None = None
    """"fp32", "bf16" or "fp16"; None before "auto" is resolved."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of vid3d and the packages it ran with; empty before the networks are loaded."""
    centred: bool | None = None
    """Whether clips were centred on frames; None if not."""
    spread: str | None = None
    """Frames of a window that ran, see `clips.spread.Spread`; None for all."""
    dense: str | None = None
    """How windows were pooled from one pass over the video; None if each ran by itself."""
    pixels: str | None = None
    """Choices about colours, interlacing and the shape of pixels; None for the defaults."""
    preset: str | None = None
    """The preset, and the options that differ from it; None without one."""
    numerics: int = NUMERICS
    """See `NUMERICS`."""

    __hash__ = None  # type: ignore[assignment]  # `streams` and `versions` are dicts, which may change


def deciding_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that decide numbers and differ, each with both values.

    Args:
        there: a stored recipe, from any version of vid3d.
        now: the other recipe. A precision or digest of None is unknown and not a difference.

    Returns:
        Nested keys are joined by dots, as in "streams.rgb.weights_sha256".
    """
    old, new = _deciding(there), _deciding(now)
    unknown = {key for key in new if new[key] is None and (key == "precision" or key.endswith(".weights_sha256"))}
    keys = [key for key in dict.fromkeys([*old, *new]) if key not in unknown]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def provenance_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that say where features came from and differ, each with both values.

    Args:
        there: a stored recipe.
        now: the other recipe.

    Returns:
        Nested keys are joined by dots. Keys that only one side has are left out.
    """
    old, new = _provenance(there), _provenance(now)
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key]}


def describe_value(key: str, value: Any) -> str:
    """Return a value of a recipe in words, for a key as the functions above return it."""
    if value is None:
        return f"no {key.split('.')[1]} stream" if key.startswith("streams.") else "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"numerics": 1, **_flat(recipe)}
    flat["flow"] = _FLOW_FOLDER.sub("ready-made, images of bound ", flat["flow"]) if flat.get("flow") else None
    return {key: value for key, value in flat.items() if not _PROVENANCE.fullmatch(key)}


def _provenance(recipe: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat(recipe)
    found = {key: value for key, value in flat.items() if _PROVENANCE.fullmatch(key) and value}
    if folder := _FLOW_FOLDER.match(flat.get("flow") or ""):
        found["flow"] = folder[1]
    return found


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(recipe)).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in _flat(value).items()}
        else:
            flat[name] = value
    return flat
