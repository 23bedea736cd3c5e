"""Shared parts of the networks: output, smallest clip, dense runs (`Stepwise`), inflation, a norm of the first CNNs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ShapeError


class BackboneOutput(NamedTuple):
    """The output of every network for clips (N, C, T, H, W)."""

    features: Tensor
    """(N, D) float32: the pooled vector that feeds the classifier."""
    logits: Tensor
    """(N, K) float32: class scores before softmax."""


def refuse_small(network: str, size: Sequence[int], min_frames: int, min_side_px: int) -> None:
    """Raise ShapeError for a clip of size (T, H, W) with fewer frames or pixels than a network can pool."""
    if size[0] < min_frames or min(size[1:]) < min_side_px:
        raise ShapeError(
            f"{network} needs clips of at least {min_frames} frame{'s' * (min_frames > 1)} and "
            f"{min_side_px} × {min_side_px} px, got {tuple(size)}"
        )


class Stepwise(nn.Module):
    """A network that is convolutional in time up to its last map; its head takes a weighted mean of that map's steps.

    So it can run over more frames than a clip and give an output for each step.
    """

    def maps(self, clips: Tensor) -> Tensor:
        """Return the last map, (N, D, T', H', W'), of normalised clips."""
        raise NotImplementedError

    def head(self, maps: Tensor) -> BackboneOutput:
        """Return the output for a last map of one step in time or more."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> BackboneOutput:
        return self.head(self.maps(clips))

    def steps(self, clips: Tensor) -> BackboneOutput:
        """Return the output of each step: features (N, D, T'), logits (N, K, T'). `TimeSteps.weights` averages them."""
        maps = self.maps(clips)
        each = self.head(maps.transpose(1, 2).flatten(0, 1).unsqueeze(2))  # of (N·T', D, 1, H', W')
        features, logits = (x.reshape(maps.shape[0], -1, x.shape[-1]).transpose(1, 2) for x in each)
        return BackboneOutput(features, logits)


class TemporalPart:
    """Mixin of blocks with convolutions in time only, which a 2-D network does not have."""

    temporal: tuple[str, ...]
    """The names of the modules that a 2-D network does not have."""

    def start_still(self) -> None:
        """Initialise them so that a clip of one repeated frame gives what the 2-D block gives for the image."""
        raise NotImplementedError


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation over five neighbouring channels: x / (2 + 10⁻⁴ · the sum of their squares)^0.75.

    Source: Krizhevsky et al. 2012, section 3.3. PyTorch, like Caffe, divides alpha by the number of channels.
    """

    def __init__(self) -> None:
        super().__init__(size=5, alpha=5e-4, beta=0.75, k=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)  # float16 has no squares of numbers above 255


def average_in_time(convolution: nn.Module, norm: nn.Module) -> None:
    """Set a t×1×1 convolution and its batch norm to the mean over t frames, channel by channel."""
    assert isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
    with torch.no_grad():
        identity = torch.eye(convolution.out_channels)[:, :, None, None, None]
        convolution.weight.copy_(identity / convolution.kernel_size[0])
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # of variance 1 and mean 0


def silence(norm: nn.BatchNorm3d) -> None:
    """Set a batch norm's output to zero; it can still learn."""
    with torch.no_grad():
        norm.weight.zero_()
