"""What the backbones share: the shape of their answer, and what the registry knows of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

KeyRules = Sequence[tuple[str, str]]
"""(pattern, replacement) pairs that are applied in order to a published tensor name and give ours."""


class BackboneOutput(NamedTuple):
    """What every backbone returns for clips (N, C, T, H, W)."""

    features: Tensor
    """(N, D) float32: the pooled vector that feeds the classifier."""
    logits: Tensor
    """(N, K) float32: class scores before softmax."""


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry."""

    build: Callable[[str, int], nn.Module]
    """(stream, number of classes) → the network, untrained."""
    classifier: str
    """Name of the last layer's weight, whose first axis is the number of classes."""
    min_frames: int
    """The shortest clip of which something is left to pool."""
    key_layouts: Mapping[str, KeyRules]
    """How published files call the tensors, by the name of the publisher."""
