"""The values that travel through the pipeline: Frame → Clip → ClipOutput → VideoResult."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recipe import Recipe

STREAMS = ("rgb", "flow")
"""The streams in the order in which they are reported and concatenated."""

FUSED = "fused"
"""The name of the late fusion, used like the name of a stream."""


@dataclass(frozen=True)
class Frame:
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
    """Index of its first frame in the frames read: resampled frames, counted from `--start`."""
    num_valid_frames: int
    """How many of its frames are real; the rest repeat real ones (see `clips.sliding_clips`)."""
    start_seconds: float
    """When its first frame appears."""
    end_seconds: float
    """When its last real frame ends, at most the end of the video."""


@dataclass(frozen=True)
class Clip:
    """The network's input before normalisation."""

    span: ClipSpan
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (T, H, W, 3) uint8. "flow": (T, H, W, 2) float32, pixels per frame step, or uint8, see `quantise_flow`."""


@dataclass(frozen=True)
class ClipOutput:
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
class VideoResult:
    """The scores and features of one video."""

    video: str
    """Path or URL as given."""
    clips: tuple[ClipOutput, ...]
    """In time order; at least one."""
    logits: Mapping[str, NDArray[np.float32]]
    """Per stream and "fused", (K,): the video's scores before softmax."""
    labels: tuple[str, ...]
    """K class names, in the order of the logits."""
    fps: float
    """Frames per second after resampling."""
    num_frames: int
    """Number of frames read, after resampling."""
    num_lost_frames: int
    """Number of frames lost to damage."""
    recipe: Recipe

    def features(self, stream: str | None = None) -> NDArray[np.float32]:
        """Return the clip features as a matrix.

        Args:
            stream: "rgb" or "flow"; None for all streams that ran, concatenated rgb first.

        Returns:
            (N, D) float32, one row per clip; (N, crops, D) if crops were kept. For the map of a layer, D is replaced by
            (C, T) or (C, T, H, W).
        """
        streams = [stream] if stream else [s for s in STREAMS if s in self.clips[0].features]
        axis = 1 if self.recipe.keeps_crops else 0
        return np.stack([np.concatenate([clip.features[s] for s in streams], axis) for clip in self.clips])

    @property
    def start_seconds(self) -> float:
        """When the first clip starts."""
        return self.clips[0].span.start_seconds

    @property
    def end_seconds(self) -> float:
        """When the last clip ends."""
        return self.clips[-1].span.end_seconds


@dataclass(frozen=True)
class VideoFailure:
    """A failed video; as a JSON line it is also an entry of an input list."""

    video: str
    error: str
    """Name of the exception class, one of those in `errors`."""
    message: str
    """What was wrong and what to do."""


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
