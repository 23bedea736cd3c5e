"""S3D-G: S3D with self-gating, for rgb (3 channels) and flow (2 channels).

    layer            kernel, stride                   output of 32 × 224²
    space to depth   2×2×2 → 8 × channels             24 × 16 × 112²
    conv1            2×4×4                            64 × 16 × 112²
    maxpool_2a       1×3×3, 1×2×2                     64 × 16 × 56²
    conv_2b          1×1×1                            64 × 16 × 56²
    conv_2c          1×3×3; 3×1×1; gating            192 × 16 × 56²
    maxpool_3a       1×3×3, 1×2×2                    192 × 16 × 28²
    mixed_3b, 3c                                     480 × 16 × 28²
    maxpool_4a       3×3×3, 2                        480 × 8 × 14²
    mixed_4b … 4f                                    832 × 8 × 14²
    maxpool_5a       2×2×2, 2                        832 × 4 × 7²
    mixed_5b, 5c                                    1024 × 4 × 7²
    average                                         1024
    fc                                               512

Gating multiplies every channel by a sigmoid of a linear map of all channels' means; a mixed block gates each branch.
The variant "paper" has the paper's stem, a 3×7×7 convolution with stride 2, in place of space to depth and conv1.

Source: Xie et al. 2018, arXiv:1712.04851; antoine77340/S3D_HowTo100M `s3dg.py`, the video half of the text-video model
of Miech et al. 2020, arXiv:1912.06430. The tensor names, the batch-norm eps of 1e-5 and the padding of pools are from
there. Its `fc` gives not class scores but the embedding that is compared with text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import BackboneOutput
from .s3d import MIXED

Size3 = tuple[int, int, int]

FEATURE_DIM = 1024

# fmt: off
MODULES = (
    "conv1", "maxpool_2a", "conv_2b", "conv_2c", "gating", "maxpool_3a", "mixed_3b", "mixed_3c", "maxpool_4a",
    "mixed_4b", "mixed_4c", "mixed_4d", "mixed_4e", "mixed_4f", "maxpool_5a", "mixed_5b", "mixed_5c",
)
"""In the order in which they run."""
# fmt: on


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Size3, stride: int = 1, padding: Size3 = (0, 0, 0)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class Pointwise(Unit):
    """1×1×1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (1, 1, 1))


class Separable(Unit):
    """In space, 1×3×3, then in time, 3×1×1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.conv2 = nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(super().forward(x))), inplace=True)


class SpaceToDepthStem(Unit):
    """2×4×4 convolution after space to depth: it sees 4×8×8 pixels, with stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(8 * in_channels, out_channels, (2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's SAME padding. The original pads both sides alike and cuts the first row of the output.
        return super().forward(F.pad(space_to_depth(x), (1, 2, 1, 2, 0, 1)))


def space_to_depth(x: Tensor) -> Tensor:
    """Return clips (N, C, T, H, W) as (N, 8 C, T/2, H/2, W/2), with the channels in the order (t, h, w, c)."""
    n, c, t, h, w = x.shape
    cubes = x.reshape(n, c, t // 2, 2, h // 2, 2, w // 2, 2)
    return cubes.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(n, 8 * c, t // 2, h // 2, w // 2)


class SelfGating(nn.Module):
    """Multiplies the channels by weights computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.fc(x.mean((2, 3, 4), dtype=torch.float32))).to(x.dtype)  # (N, C)
        return weights[:, :, None, None, None] * x


class MaxPool(nn.Sequential):
    """Max pooling, padded after the end only, as TensorFlow pads even sizes and the original all sizes."""

    def __init__(self, kernel: Size3, stride: Size3) -> None:
        t, h, w = (k - s for k, s in zip(kernel, stride, strict=True))
        super().__init__(
            nn.ConstantPad3d((0, w, 0, h, 0, t), 0.0),  # the same as -inf: every window holds an output of a ReLU
            nn.MaxPool3d(kernel, stride, ceil_mode=True),
        )


class Mixed(nn.Module):
    """Inception block: 1×1×1, 1×1×1 → 3×3×3, 1×1×1 → 3×3×3 and pool → 1×1×1, each gated, concatenated."""

    def __init__(self, in_channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.conv_b0 = Pointwise(in_channels, b0)
        self.conv_b1_a = Pointwise(in_channels, b1a)
        self.conv_b1_b = Separable(b1a, b1b)
        self.conv_b2_a = Pointwise(in_channels, b2a)
        self.conv_b2_b = Separable(b2a, b2b)
        self.maxpool_b3 = nn.MaxPool3d(3, 1, 1)
        self.conv_b3_b = Pointwise(in_channels, b3b)
        self.gating_b0 = SelfGating(b0)
        self.gating_b1 = SelfGating(b1b)
        self.gating_b2 = SelfGating(b2b)
        self.gating_b3 = SelfGating(b3b)
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(self.maxpool_b3(x))),
        )
        return torch.cat(branches, 1)


class S3DG(nn.Module):
    """S3D-G (Xie et al. 2018), as in HowTo100M's text-video model.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K, the width of `fc`: classes, or the size of an embedding.
        space_to_depth: whether the stem is space to depth and 2×4×4, or the paper's 3×7×7.
    """

    def __init__(self, in_channels: int, num_classes: int, space_to_depth: bool = True) -> None:
        super().__init__()
        self._grain = 2 if space_to_depth else 1  # the sizes of a clip must be multiples of this
        self.conv1 = (
            SpaceToDepthStem(in_channels, 64)
            if space_to_depth
            else Unit(in_channels, 64, (3, 7, 7), stride=2, padding=(1, 3, 3))
        )
        self.maxpool_2a = MaxPool((1, 3, 3), (1, 2, 2))
        self.conv_2b = Pointwise(64, 64)
        self.conv_2c = Separable(64, 192)
        self.gating = SelfGating(192)
        self.maxpool_3a = MaxPool((1, 3, 3), (1, 2, 2))
        self.maxpool_4a = MaxPool((3, 3, 3), (2, 2, 2))
        self.maxpool_5a = MaxPool((2, 2, 2), (2, 2, 2))
        channels = 192
        for name, branches in MIXED.items():
            block = Mixed(channels, *branches)
            self.add_module(f"mixed_{name}", block)
            channels = block.out_channels
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, T, H, W); T, H and W must be even if the stem is space to depth.

        Raises:
            ShapeError: clips are empty or, with that stem, have an odd size.
        """
        sizes = tuple(clips.shape[2:])
        if min(sizes) < 1 or any(size % self._grain for size in sizes):
            raise ShapeError(
                f"s3d_g needs clips whose frames, height and width are multiples of {self._grain}, got {sizes}"
            )
        x = clips
        for name in MODULES:
            x = getattr(self, name)(x)  # (N, 1024, T/8, H/32, W/32)
        features = x.float().mean((2, 3, 4))
        return BackboneOutput(features, self.fc(features))
