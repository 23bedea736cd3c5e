"""Pools clips into a video's scores, and fuses the streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .arguments import check_fields, checked
from .errors import UsageError
from .records import FUSED, STREAMS, ClipOutput, Logits, softmax
from .suggest import check_known


@dataclass(frozen=True)
class Fusion:
    """Late fusion of the streams: a weighted sum of their logits, or of their probabilities."""

    weights: Mapping[str, float]
    """By stream; none negative, not all zero."""
    on: str = "logits"
    """"logits" (sum, then softmax) or "probs" (softmax, then weighted mean)."""

    __hash__ = None  # type: ignore[assignment]  # a dict may change

    def __post_init__(self) -> None:
        check_fields(self, Fusion)
        if not _are_weights([self.weights.get(stream, -1.0) for stream in STREAMS]):
            raise UsageError(f"weights={self.weights}: give rgb and flow a number of 0 or more, and one of them more")
        check_known(self.on, ("logits", "probs"), f"cannot fuse on '{self.on}'")

    @classmethod
    @checked
    def parse(cls, text: str, on: str = "logits") -> Fusion:
        """Parse weights such as "1:1.5" (rgb:flow).

        Raises:
            UsageError: the text is not two numbers, one is negative, both are zero, or `on` is unknown.
        """
        try:
            weights = [float(part) for part in text.split(":")]
        except ValueError:
            weights = []
        if not _are_weights(weights):
            raise UsageError(
                f"cannot parse the fusion weights '{text}': give two numbers for rgb and flow, such as 1:1 or 1:1.5"
            )
        return cls(dict(zip(STREAMS, weights, strict=True)), on)

    def __call__(self, logits: Mapping[str, Logits]) -> Logits:
        """Return the fused logits of the streams that ran.

        Args:
            logits: (K,) by stream; a single stream is returned unchanged.

        Returns:
            (K,) float32 whose softmax is the fused score. For "probs" it is the logarithm of the mean probability.

        Source: sum of logits 1:1, DeepMind's `evaluate_sample.py`; probabilities, Simonyan & Zisserman 2014.
        """
        if len(logits) == 1:
            return next(iter(logits.values()))
        if self.on == "logits":
            return _sum(self.weights[s] * x for s, x in logits.items())
        total = sum(self.weights[s] for s in logits)
        fused = _sum(self.weights[s] / total * softmax(x) for s, x in logits.items())
        # Bounded below, since JSON has no -inf.
        log_fused: Logits = np.log(np.maximum(fused, np.finfo(np.float32).tiny))
        return log_fused


def _are_weights(weights: Sequence[float]) -> bool:
    return len(weights) == len(STREAMS) and all(0 <= weight < np.inf for weight in weights) and any(weights)


def _sum(arrays: Iterable[Logits]) -> Logits:
    total: Logits = np.sum(list(arrays), axis=0, dtype=np.float32)
    return total


def fuse_clips(clips: Iterable[ClipOutput], fusion: Fusion) -> tuple[ClipOutput, ...]:
    """Return the clips with fused logits added."""
    return tuple(replace(clip, logits={**clip.logits, FUSED: fusion(clip.logits)}) for clip in clips)


def pool_video(clips: Sequence[ClipOutput], fusion: Fusion) -> tuple[tuple[ClipOutput, ...], dict[str, Logits]]:
    """Return the clips with fused logits added, and the logits of the video.

    Args:
        clips: at least one, all with the same streams.
        fusion: how to fuse the streams.

    Returns:
        The clips; and the video's logits by stream, the mean over its clips, and "fused".
    """
    pooled = {s: _sum(clip.logits[s] for clip in clips) / np.float32(len(clips)) for s in clips[0].logits}
    return fuse_clips(clips, fusion), {**pooled, FUSED: fusion(pooled)}
