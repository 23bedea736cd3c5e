"""The values that travel through the pipeline: Frame → Clip → ClipOutput → `results.VideoResult`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import checked
from .errors import UsageError

Logits = NDArray[np.float32]

STREAMS = ("rgb", "flow")
"""The streams in the order in which they are reported and concatenated."""

FUSED = "fused"
"""The name of the late fusion, used like the name of a stream."""


class HoldsArrays:
    """Base of dataclasses that hold arrays: `==` compares the values, and the repr shows only shapes.

    They have no hash, since arrays can change.
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_are_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        shown = (f"{field.name}={_shape_of(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)


def _shape_of(value: Any) -> str:
    """Return "(8, 1024) float32" for an array, and for a mapping the same for each of its arrays."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shape_of(item)}' for key, item in value.items())}}}"
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class Frame(HoldsArrays):
    """One frame of the resampled video."""

    index: int
    """Position in the frames read, from 0."""
    seconds: float
    """When it appears, relative to the first frame of the file."""
    end_seconds: float
    """When the next frame replaces it."""
    rgb: NDArray[np.uint8]
    """(H, W, 3), upright (rotation applied)."""


@dataclass(frozen=True)
class ClipSpan:
    """The part of a video that a clip shows."""

    index: int
    """Position among the clips of the video, from 0."""
    start_frame: int
    """Index of its first real frame in the frames read: resampled frames, counted from `--start`."""
    num_valid_frames: int
    """How many frames of its window are real; the rest repeat real ones (see `clips.sliding_clips`)."""
    start_seconds: float
    """When its first real frame appears."""
    end_seconds: float
    """When its last real frame ends, at most the end of the video."""


@dataclass(frozen=True, eq=False, repr=False)
class Clip(HoldsArrays):
    """The network's input before normalisation."""

    span: ClipSpan
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (T, H, W, 3) uint8. "flow": (T, H, W, 2) float32, pixels per frame step, or uint8, see `quantise_flow`."""


@dataclass(frozen=True, eq=False, repr=False)
class ClipOutput(HoldsArrays):
    """The networks' output for one clip."""

    span: ClipSpan
    features: Mapping[str, NDArray[np.float32]]
    """Per stream, (D,): the pooled vector that feeds the classifier; or the output of a layer, (C,), (C, T) or
    (C, T, H, W). If crops were kept, they are the first axis."""
    logits: Mapping[str, NDArray[np.float32]]
    """Per stream and, after `fusion.pool_video`, "fused", (K,)."""


@dataclass(frozen=True)
class Prediction:
    """One class with its score."""

    label: str
    score: float
    """Softmax probability, 0 to 1."""
    logit: float


@dataclass(frozen=True)
class VideoFailure:
    """A failed video; as a JSON line it is also an entry of an input list."""

    video: str
    error: str
    """Name of the exception class, one of those in `errors`."""
    message: str
    """What was wrong and what to do."""


# Scores --------------------------------------------------------------------------------------------------------------


def softmax(logits: Logits) -> Logits:
    """Return the probabilities (…, K) of logits (…, K)."""
    exp: Logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities


@checked
def top_k(logits: Logits, labels: Sequence[str], k: int) -> list[Prediction]:
    """Return the k classes with the highest scores, best first; equal scores in label order.

        top_k(result.logits["fused"], result.labels, 5)

    Args:
        logits: (K,) float32: of a video or a clip, for one stream or "fused".
        labels: K class names.
        k: how many classes; all if there are fewer.

    Raises:
        UsageError: the number of labels is not that of the logits, or k is negative.
    """
    if logits.shape != (len(labels),) or logits.dtype.kind != "f":
        shown = f"logits of shape {logits.shape} and type {logits.dtype}, and {len(labels)} labels"
        raise UsageError(f"{shown}: give a label for each logit, a float")
    if k < 0:
        raise UsageError(f"k={k}: give 0 or more")
    return rank(logits, labels, k)


def rank(logits: Logits, labels: Sequence[str], k: int) -> list[Prediction]:
    """Return the predictions of `top_k`; none without labels. The arguments are not checked."""
    if not labels:
        return []
    scores = softmax(logits)
    best = np.argsort(-logits, kind="stable")[:k]
    return [Prediction(labels[i], float(scores[i]), float(logits[i])) for i in best]


def to_json(value: Any) -> str:
    """Return a value as one line of JSON that is valid UTF-8.

    File names need not be UTF-8: Python holds their other bytes as lone surrogates, which JSON can only write as
    escapes.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
