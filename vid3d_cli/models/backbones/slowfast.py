"""SlowFast, ResNet-50, 8×8: a slow pathway of few frames beside a fast one of few channels, for rgb and flow.

    stage       slow pathway                  of 32 × 256²       fast pathway              of 32 × 256²
    frames      α = 4 times fewer                8 × 256²        all                         32 × 256²
    conv1       1×7×7, stride 1×2×2         64 × 8 × 128²        5×7×7, stride 1×2×2     8 × 32 × 128²
    max pool 1  1×3×3, stride 1×2×2         64 × 8 × 64²         1×3×3, stride 1×2×2     8 × 32 × 64²
    res2        1×1×1, 1×3×3, 1×1×1; × 3   256 × 8 × 64²         3×1×1, 1×3×3, 1×1×1    32 × 32 × 64²
    res3        1×1×1, 1×3×3, 1×1×1; × 4   512 × 8 × 32²         3×1×1, 1×3×3, 1×1×1    64 × 32 × 32²
    res4        3×1×1, 1×3×3, 1×1×1; × 6  1024 × 8 × 16²         3×1×1, 1×3×3, 1×1×1   128 × 32 × 16²
    res5        3×1×1, 1×3×3, 1×1×1; × 3  2048 × 8 × 8²          3×1×1, 1×3×3, 1×1×1   256 × 32 × 8²
    pool        8×7×7, stride 1           2048 × 1 × 2²          32×7×7, stride 1      256 × 1 × 2²
    classifier  of both, concatenated; mean over positions

After max pool 1, res2, res3 and res4 a lateral connection adds the fast maps to the slow pathway: a 7×1×1 convolution
with stride α in time gives twice the channels, which are concatenated. Nothing goes the other way.

Both pathways take their frames from one clip. The published network accepts 32 frames only, the span of its average
pool. Here the pool spans all frames. The slow pathway has ⌈T / α⌉ frames, as many as the stride leaves of the fast
maps, so T need not be a multiple of α.

Source: Feichtenhofer et al. 2019, arXiv:1812.03982, table 1 (of R-50 4×16, β = 1/8); pytorchvideo `models/slowfast.py`
and `models/hub/slowfast.py`, from which the tensor names and the 7×1×1 lateral convolutions (5×1×1 in the paper) of the
published 8×8 checkpoint are. It ends, as here, before the softmax.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._layers import BackboneOutput, refuse_small

ALPHA = 4
"""Frames of the fast pathway for each frame of the slow one."""
BETA_INVERSE = 8
"""Channels of the slow pathway for each channel of the fast one."""
LATERAL_RATIO = 2
"""Channels of a lateral connection for each channel of the fast pathway."""

STEM_CHANNELS = 64
FEATURE_DIM = 2048 + 2048 // BETA_INVERSE

SLOW_KERNELS = {"res2": 1, "res3": 1, "res4": 3, "res5": 3}
"""Frames that the first convolution of a block in the slow pathway spans; in the fast one always 3."""
DEPTHS = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}
"""Blocks of each stage of ResNet-50."""

POOL_SIDE = 7


class Stem(nn.Sequential):
    """Convolution that spans `frames`, batch norm, ReLU, max pool in space."""

    def __init__(self, in_channels: int, out_channels: int, frames: int) -> None:
        conv = nn.Conv3d(in_channels, out_channels, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        norm, activation = nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)
        super().__init__(OrderedDict(conv=conv, norm=norm, activation=activation, pool=pool))


class Bottleneck(nn.Sequential):
    """Convolutions: `frames`×1×1 to a quarter of the channels, 1×3×3, and 1×1×1 to all channels."""

    def __init__(self, in_channels: int, out_channels: int, frames: int, stride: int) -> None:
        inner = out_channels // 4
        super().__init__(
            OrderedDict(
                conv_a=nn.Conv3d(in_channels, inner, (frames, 1, 1), padding=(frames // 2, 0, 0), bias=False),
                norm_a=nn.BatchNorm3d(inner),
                act_a=nn.ReLU(inplace=True),
                conv_b=nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
                norm_b=nn.BatchNorm3d(inner),
                act_b=nn.ReLU(inplace=True),
                conv_c=nn.Conv3d(inner, out_channels, 1, bias=False),
                norm_c=nn.BatchNorm3d(out_channels),
            )
        )


class ResBlock(nn.Module):
    """Bottleneck plus its input; a 1×1×1 convolution changes the shape of the input if the two differ."""

    def __init__(self, in_channels: int, out_channels: int, frames: int, stride: int) -> None:
        super().__init__()
        self.has_projection = in_channels != out_channels
        if self.has_projection:
            self.branch1_conv = nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(out_channels)
        self.branch2 = Bottleneck(in_channels, out_channels, frames, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.branch1_norm(self.branch1_conv(x)) if self.has_projection else x
        return F.relu(self.branch2(x) + shortcut, inplace=True)


class ResStage(nn.Sequential):
    """Blocks; the first one changes the number of channels and has the stride."""

    def __init__(self, in_channels: int, out_channels: int, frames: int, stride: int, depth: int) -> None:
        first = ResBlock(in_channels, out_channels, frames, stride)
        others = [ResBlock(out_channels, out_channels, frames, 1) for _ in range(depth - 1)]
        super().__init__(OrderedDict(res_blocks=nn.Sequential(first, *others)))


class Lateral(nn.Sequential):
    """Lateral connection: the fast maps with the slow pathway's number of frames and twice the channels."""

    def __init__(self, in_channels: int) -> None:
        out_channels = LATERAL_RATIO * in_channels
        conv = nn.Conv3d(in_channels, out_channels, (7, 1, 1), (ALPHA, 1, 1), (3, 0, 0), bias=False)
        norm, activation = nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)
        super().__init__(OrderedDict(conv_fast_to_slow=conv, norm=norm, activation=activation))


class PathwayPair(nn.Module):
    """One stage of both pathways, then the lateral connection if there is one."""

    def __init__(self, slow: nn.Module, fast: nn.Module, lateral: Lateral | None) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = lateral

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = torch.cat([slow, self.multipathway_fusion(fast)], 1)
        return slow, fast


class PoolConcat(nn.Module):
    """Mean of each pathway over windows of all frames and 7² positions, then over the windows; concatenated.

    The published head classifies each window and averages the scores; the classifier is linear, so that is the same. A
    map smaller than the window has one window.
    """

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([self.pool(slow), self.pool(fast)], 1)  # (N, 2048 + 256)

    @staticmethod
    def pool(maps: Tensor) -> Tensor:
        """Return the means (N, C) of maps (N, C, T, H, W)."""
        num_frames, height, width = maps.shape[2:]
        kernel = num_frames, min(POOL_SIDE, height), min(POOL_SIDE, width)
        return F.avg_pool3d(maps.float(), kernel, stride=1).mean((2, 3, 4))


def slow_frames(num_frames: int) -> list[int]:
    """Return the indices of the slow pathway's frames: spread evenly from the first frame to the last.

    They are those of `torch.linspace` in float32, rounded down, without a tensor that a GPU would wait for.

    Source: `PackPathway` in pytorch/hub `facebookresearch_pytorchvideo_slowfast.md`; pytorch
    `aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp`, which counts from both ends.
    """
    last, num_slow = num_frames - 1, -(-num_frames // ALPHA)
    if num_slow == 1:
        return [0]
    step = float(np.float32(last) / np.float32(num_slow - 1))
    exact = [step * i if i < num_slow // 2 else last - step * (num_slow - 1 - i) for i in range(num_slow)]
    return [int(np.float32(position)) for position in exact]


class SlowFast(nn.Module):
    """SlowFast R-50 8×8 (Feichtenhofer et al. 2019).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = STEM_CHANNELS
        slow: nn.Module = Stem(in_channels, channels, 1)
        fast: nn.Module = Stem(in_channels, channels // BETA_INVERSE, 5)
        blocks: list[nn.Module] = [PathwayPair(slow, fast, Lateral(channels // BETA_INVERSE))]
        out_channels = 4 * STEM_CHANNELS
        for name, depth in DEPTHS.items():
            stride = 1 if name == "res2" else 2  # max pool 1 has already halved what res2 gets
            fast_in, fast_out = channels // BETA_INVERSE, out_channels // BETA_INVERSE
            slow = ResStage(channels + LATERAL_RATIO * fast_in, out_channels, SLOW_KERNELS[name], stride, depth)
            fast = ResStage(fast_in, fast_out, 3, stride, depth)
            blocks.append(PathwayPair(slow, fast, None if name == "res5" else Lateral(fast_out)))
            channels, out_channels = out_channels, 2 * out_channels
        head = nn.Sequential(OrderedDict(dropout=nn.Dropout(0.5), proj=nn.Linear(FEATURE_DIM, num_classes)))
        self.blocks = nn.ModuleList([*blocks, PoolConcat(), head])

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, T, H, W), T at least 4.

        Raises:
            ShapeError: clips have fewer than α frames, which leaves the slow pathway none, or no pixels.
        """
        refuse_small("slowfast_r50", clips.shape[2:], ALPHA, 1)
        *pairs, pool, head = self.blocks
        slow, fast = torch.stack([clips[:, :, i] for i in slow_frames(clips.shape[2])], 2), clips
        for pair in pairs:
            slow, fast = pair(slow, fast)  # (N, 2048, T/4, H/32, W/32), (N, 256, T, H/32, W/32)
        features = pool(slow, fast)
        return BackboneOutput(features, head(features))
