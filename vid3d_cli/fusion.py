"""Clip outputs → video result: pooling over clips, late fusion of the streams, top-k. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .records import FUSED, STREAMS, ClipOutput, Prediction

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Fusion:
    """How the streams' scores become one: a weighted sum of their logits, or of their probabilities."""

    weights: Mapping[str, float]
    """Per stream, not negative, not all zero."""
    on: str = "logits"
    """"logits" (sum, then softmax) or "probs" (softmax, then weighted mean)."""

    @classmethod
    def parse(cls, text: str, on: str = "logits") -> Fusion:
        """Read "1:1.5" (rgb : flow).

        Raises:
            UsageError: not two numbers, negative or both zero, or an unknown `on`.
        """
        try:
            weights = [float(part) for part in text.split(":")]
        except ValueError:
            weights = []
        if len(weights) != len(STREAMS) or not all(0 <= w < np.inf for w in weights) or not any(weights):
            raise UsageError(
                f"cannot fuse by '{text}': give the weights of rgb and flow as two numbers, like 1:1 or 1:1.5"
            )
        if on not in ("logits", "probs"):
            raise UsageError(f"cannot fuse on '{on}': choose logits or probs")
        return cls(dict(zip(STREAMS, weights, strict=True)), on)

    def __call__(self, logits: Mapping[str, Logits]) -> Logits:
        """Fuse the streams that are there.

        Args:
            logits: per stream, (K,); one stream alone is returned as it is.

        Returns:
            (K,) float32 whose softmax is the fused score. On "probs" that is the logarithm of the mean probability.

        Source: sum of logits 1:1, DeepMind's `evaluate_sample.py`; probabilities, Simonyan & Zisserman 2014.
        """
        if len(logits) == 1:
            return next(iter(logits.values()))
        if self.on == "logits":
            return _sum(self.weights[s] * x for s, x in logits.items())
        total = sum(self.weights[s] for s in logits)
        fused = _sum(self.weights[s] / total * softmax(x) for s, x in logits.items())
        # Bounded from below: JSON has no -inf.
        log_fused: Logits = np.log(np.maximum(fused, np.finfo(np.float32).tiny))
        return log_fused


def _sum(arrays: Iterable[Logits]) -> Logits:
    total: Logits = np.sum(list(arrays), axis=0, dtype=np.float32)
    return total


def softmax(logits: Logits) -> Logits:
    """(…, K) → probabilities over the last axis."""
    exp: Logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Logits = exp / exp.sum(axis=-1, keepdims=True)
    return probabilities


def pool_video(clips: Sequence[ClipOutput], fusion: Fusion) -> tuple[tuple[ClipOutput, ...], dict[str, Logits]]:
    """Fuse every clip, and pool the clips into the video's logits.

    Args:
        clips: at least one, all with the same streams.
        fusion: how the streams are fused.

    Returns:
        The clips with "fused" added, and the video's logits per stream (the mean over its clips) and "fused".
    """
    pooled = {s: _sum(clip.logits[s] for clip in clips) / np.float32(len(clips)) for s in clips[0].logits}
    fused_clips = tuple(replace(clip, logits={**clip.logits, FUSED: fusion(clip.logits)}) for clip in clips)
    return fused_clips, {**pooled, FUSED: fusion(pooled)}


def top_k(logits: Logits, labels: Sequence[str], k: int) -> list[Prediction]:
    """The k classes with the highest scores, best first; equal scores in the order of the labels."""
    scores = softmax(logits)
    best = np.argsort(-logits, kind="stable")[:k]
    return [Prediction(labels[i], float(scores[i]), float(logits[i])) for i in best]
