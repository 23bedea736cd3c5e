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
"""The name under which the late fusion of the streams stands beside them."""


@dataclass(frozen=True)
class Frame:
    """One picture of the resampled video."""

    index: int
    """Position in the frames read, from 0."""
    seconds: float
    """When it appears, relative to the first frame of the file."""
    end_seconds: float
    """When the next frame takes its place."""
    rgb: NDArray[np.uint8]
    """(H, W, 3), upright (rotation applied)."""


@dataclass(frozen=True)
class ClipSpan:
    """Which part of a video a clip shows."""

    index: int
    """Position among the clips of the video, from 0."""
    start_frame: int
    """Index of its first frame in the frames read."""
    num_valid_frames: int
    """How many of its frames are real; the rest repeat real ones (see `clips.sliding_clips`)."""
    start_seconds: float
    """When its first frame appears."""
    end_seconds: float
    """When its last real frame ends."""


@dataclass(frozen=True)
class Clip:
    """The network's input before normalisation."""

    span: ClipSpan
    streams: Mapping[str, NDArray[Any]]
    """"rgb": (T, H, W, 3) uint8. "flow": (T, H, W, 2) float32, pixels per frame step, or uint8, see `quantise_flow`."""


@dataclass(frozen=True)
class ClipOutput:
    """What the networks say of one clip."""

    span: ClipSpan
    features: Mapping[str, NDArray[np.float32]]
    """Per stream, (D,): the pooled vector that feeds the classifier; or what a layer gave, (C,), (C, T) or
    (C, T, H, W). With a leading axis where the features of several crops were kept."""
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
    """Everything that is known of one video after the networks have run."""

    video: str
    """Path or URL as it was given."""
    clips: tuple[ClipOutput, ...]
    """In the order of time; at least one."""
    logits: Mapping[str, NDArray[np.float32]]
    """Per stream and "fused", (K,): the video's scores before softmax."""
    labels: tuple[str, ...]
    """K class names, in the order of the logits."""
    fps: float
    """Frames per second that were read, after resampling."""
    num_frames: int
    """How many frames were read, after resampling."""
    num_decode_failures: int
    """How many damaged packets were skipped."""
    recipe: Recipe

    def features(self, stream: str | None = None) -> NDArray[np.float32]:
        """The clip features as a matrix.

        Args:
            stream: "rgb" or "flow"; None for all streams that ran, concatenated rgb first.

        Returns:
            (N, D) float32, a row a clip; (N, crops, D) where those of every crop were kept; and with (C, T) or
            (C, T, H, W) in the place of D where a layer's map was.
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
    """A video that could not be used; written as JSON it is also a valid input list."""

    video: str
    error: str
    """Name of the exception class, as drawn in `errors`."""
    message: str
    """What was wrong and what to do."""


def to_json(value: Any) -> str:
    """One line of JSON that any UTF-8 stream takes.

    File names need not be UTF-8: their odd bytes travel as lone surrogates, which JSON can only write as escapes.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
