"""What a feature was made by, in two parts: what decides its numbers, and where it came from.

The file keeps flat keys; the functions below classify them. Rows of two recipes go into one output only if all keys
that decide numbers agree. Where they came from is recorded, and a difference is at most worth a warning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMERICS = 1
"""Raised when the numbers of vid3d change for the same recipe. A recipe without the key is of 1."""

_PROVENANCE = re.compile(r"runtime|versions(\..+)?|streams\.\w+\.weights")
"""The keys, with dots between the levels, that say where features came from; all others decide numbers."""

_FLOW_FOLDER = re.compile(r"^ready-made (.*), images of bound ")
"""The folder in a description of ready-made flow: where it lay, not what it was."""


@dataclass(frozen=True)
class StreamRecipe:
    """How one stream was made and read."""

    weights: str
    """Manifest name, or the path of the user's own file."""
    weights_sha256: str
    """Digest of the checkpoint file."""
    normalisation: str
    """How pixels or flow became the network's input, in words that can be compared."""


@dataclass(frozen=True)
class Recipe:
    """What a feature was made by: the same recipe on the same file gives the same row."""

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
    """Which squares of a frame were seen, and what became of their features."""
    keeps_crops: bool
    """Whether features have an axis of crops."""
    variant: str | None
    """Form of the backbone; None for the plain one."""
    features: str
    """Where they were taken from: "pooled" is the vector that feeds the classifier."""
    flow: str | None
    """How flow was computed; None without a flow stream."""
    runtime: str
    precision: str
    versions: Mapping[str, str]
    """Of vid3d and the packages that decide the numbers."""
    dense: str | None = None
    """How windows were pooled from one pass over the video; None where each was run by itself."""
    numerics: int = NUMERICS
    """See `NUMERICS`."""


def deciding_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that decide numbers and differ, each with both values.

    Args:
        there: a recipe as it was written, of any version of vid3d.
        now: another one. A precision or digest of None is not known yet, and is no difference.

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
        there: a recipe as it was written.
        now: another one.

    Returns:
        Nested keys are joined by dots. Keys of which one side knows nothing are left out.
    """
    old, new = _provenance(there), _provenance(now)
    return {key: (old[key], new[key]) for key in old if key in new and old[key] != new[key]}


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
