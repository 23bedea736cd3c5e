"""What the backbones share: the shape of their answer, and what the registry knows of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

KeyRules = Sequence[tuple[str, str]]
"""(pattern, replacement) pairs that are applied in order to a published tensor name and give ours."""

IN_CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of a frame in each stream."""


class BackboneOutput(NamedTuple):
    """What every backbone returns for clips (N, C, T, H, W)."""

    features: Tensor
    """(N, D) float32: the pooled vector that feeds the classifier."""
    logits: Tensor
    """(N, K) float32: class scores before softmax."""


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry."""

    build: Callable[..., nn.Module]
    """(stream, number of classes, **a variant's options) → the network, untrained."""
    clip: tuple[int, int]
    """Frames of the clip that the paper or the published weights use, and its side in pixels."""
    feature_dim: int
    """D, the width of `BackboneOutput.features`."""
    classifier: str
    """Name of the last layer's weight, whose first axis is the number of classes."""
    min_frames: int
    """The shortest clip of which something is left to pool."""
    key_layouts: Mapping[str, KeyRules]
    """How published files call the tensors, by the name of the publisher."""
    layers: Mapping[str, str]
    """The layers whose output can be had as features: the paper's name → the module's; (N, C, T, H, W), or (N, D)."""
    is_fixed_size: bool = False
    """Whether fully connected layers bind the network to clips of exactly `clip`."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The paper's other forms of the network, by name, each as options of `build`."""
