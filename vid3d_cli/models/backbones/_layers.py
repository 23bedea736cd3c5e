"""What the backbones share: the shape of their answer, and what the registry knows of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...clips.dense import TimeSteps

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


class Stepwise(nn.Module):
    """A network that is convolutional in time up to its last map, of whose steps its head takes a weighted mean.

    So it can run over more frames than a clip, and answer for each step of the last map by itself.
    """

    def maps(self, clips: Tensor) -> Tensor:
        """The last map, (N, D, T', H', W')."""
        raise NotImplementedError

    def head(self, maps: Tensor) -> BackboneOutput:
        """What the network says of a last map, of one step in time or more."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> BackboneOutput:
        return self.head(self.maps(clips))

    def steps(self, clips: Tensor) -> BackboneOutput:
        """What it says of each step: features (N, D, T'), logits (N, K, T'); `TimeSteps.weights` averages them."""
        maps = self.maps(clips)
        each = self.head(maps.transpose(1, 2).flatten(0, 1).unsqueeze(2))  # of (N·T', D, 1, H', W')
        features, logits = (x.reshape(maps.shape[0], -1, x.shape[-1]).transpose(1, 2) for x in each)
        return BackboneOutput(features, logits)


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
    steps: TimeSteps | None = None
    """How it runs over more frames than a clip, if it is `Stepwise`."""
    is_fixed_size: bool = False
    """Whether fully connected layers bind the network to clips of exactly `clip`."""
    image_networks: Mapping[str, KeyRules] = field(default_factory=dict)
    """The 2-D networks of torchvision that it can start from, and how their tensors are called here."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The paper's other forms of the network, by name, each as options of `build`."""

    frame_multiple: int = 1
    """What the number of frames must be a multiple of."""
    resizes_px: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Where variants see squares of several sides: side → (height, width) of the frame that it is cut from."""

    def clip_of(self, variant: str | None) -> tuple[int, int]:
        """`clip` of a variant, whose options may say another `num_frames` and `side_px`."""
        options = self.variants[variant] if variant else {}
        return options.get("num_frames", self.clip[0]), options.get("side_px", self.clip[1])
