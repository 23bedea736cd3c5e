"""What the backbones share: the shape of their answer, and what the registry knows of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KeyRules = Sequence[tuple[str, str]]
"""(pattern, replacement) pairs that are applied in order to a published tensor name and give ours; "" drops one."""

IN_CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of a frame in each stream."""


GOOGLENET_BLOCKS = dict(
    zip(
        ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"),
        ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"),
        strict=True,
    )
)
"""The Inception blocks as torchvision's GoogLeNet counts them → as I3D and S3D do."""


class BackboneOutput(NamedTuple):
    """What every backbone returns for clips (N, C, T, H, W)."""

    features: Tensor
    """(N, D) float32: the pooled vector that feeds the classifier."""
    logits: Tensor
    """(N, K) float32: class scores before softmax."""


class TemporalPart:
    """Mixin of blocks with convolutions in time alone, which a picture network has no counterpart of."""

    temporal: tuple[str, ...]
    """The names of the modules that are not in a picture network."""

    def start_still(self) -> None:
        """Set them so that a clip of one repeated frame leaves the block as the picture leaves the rest of it."""
        raise NotImplementedError


def average_in_time(convolution: nn.Module, norm: nn.Module) -> None:
    """Set a t×1×1 convolution and its batch norm to the mean over t frames, channel by channel."""
    assert isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
    with torch.no_grad():
        identity = torch.eye(convolution.out_channels)[:, :, None, None, None]
        convolution.weight.copy_(identity / convolution.kernel_size[0])
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # of variance 1 and mean 0


def silence(norm: nn.BatchNorm3d) -> None:
    """Set a batch norm to zero; it learns all the same."""
    with torch.no_grad():
        norm.weight.zero_()


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
    image_networks: Mapping[str, KeyRules] = field(default_factory=dict)
    """The 2-D networks of torchvision that it can start from, and how their tensors are called here."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The paper's other forms of the network, by name, each as options of `build`."""

    def clip_of(self, variant: str | None) -> tuple[int, int]:
        """`clip` of a variant, whose options may say another `num_frames` and `side_px`."""
        options = self.variants[variant] if variant else {}
        return options.get("num_frames", self.clip[0]), options.get("side_px", self.clip[1])
