"""S3D: I3D with every k×k×k convolution split into 1×k×k and k×1×1, for rgb (3 channels) and flow (2 channels).

    stage          kernel, stride                output of 64 × 224²
    conv 1a        1×7×7, 1×2×2; 7×1×1, 2×1×1    64 × 32 × 112²
    max pool 2a    1×3×3, 1×2×2                  64 × 32 × 56²
    conv 2b        1×1×1                         64 × 32 × 56²
    conv 2c        1×3×3; 3×1×1                 192 × 32 × 56²
    max pool 3a    1×3×3, 1×2×2                 192 × 32 × 28²
    mixed 3b, 3c                                480 × 32 × 28²
    max pool 4a    3×3×3, 2                     480 × 16 × 14²
    mixed 4b … 4f                               832 × 16 × 14²
    max pool 5a    2×2×2, 2                     832 × 8 × 7²
    mixed 5b, 5c                               1024 × 8 × 7²
    average pool   2×7×7, 1                    1024 × 7 × 1²
    classifier     1×1×1, mean over time

s3d_mini has a quarter of the channels, for small clips (16 × 112²). The average pool's window is never larger than the
map.

The paper's other networks have another form of the convolutions before a split, after it, or both:

    variant            1a, 2c, 3b, 3c     4b … 4f, 5b, 5c
    i3d                3d                 3d                 3d: k×k×k
    i2d                2d                 2d                 2d: 1×k×k
    bottom_heavy_i3d   3d                 2d
    top_heavy_i3d      2d                 3d
    bottom_heavy_s3d   separable          2d                 separable: 1×k×k, then k×1×1
    fast               2d                 separable          Fast-S3D, the top-heavy S3D

Pools and strides stay, also in time, so that maps are as long in every form: a 2D stem sees every other frame, and in a
2D network only max pools mix frames. tensorflow/models `slim/nets/s3dg.py` builds the top-heavy networks in this way
(`first_temporal_kernel_size`, `temporal_conv_startat`); its padding is TensorFlow's, and its first layer is never
separable. The paper moves the split through the network; here it is at 4b, before the last two groups of blocks.

Source: Xie et al. 2018, arXiv:1712.04851; torchvision `models/video/s3d.py`, from which the tensor names, the symmetric
padding and the batch-norm eps of 1e-3 are; kylemin/S3D `model.py`, the same network with other names. Of maps larger
than 7², kylemin's averages the whole map; torchvision's, like this one, averages every 7² window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ._layers import BackboneOutput, Stepwise, TemporalPart, average_in_time, refuse_small

Size3 = tuple[int, int, int]

Form = Literal["3d", "separable", "2d"]
"""The form of a k×k×k convolution."""

MIXED = {
    #      b0  b1a  b1b b2a  b2b  b3b
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Output channels of the convolutions of each block."""

STAGES = ("1a", "2c", *MIXED)
"""The stages with several forms; their names sort in the order in which they run."""

AVERAGE_POOL = (2, 7, 7)

MIN_FRAMES, MIN_SIDE_PX = 5, 17  # fewer leave max pool 5a nothing


class Unit(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; padded alike on both sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)) -> None:
        t, h, w = kernel
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel, stride, (t // 2, h // 2, w // 2), bias=False),
            nn.BatchNorm3d(out_channels, eps=1e-3),
            nn.ReLU(inplace=True),
        )


class Pointwise(Unit):
    """1×1×1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (1, 1, 1))


class Whole(Unit):
    """k×k×k."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, (kernel, kernel, kernel), (stride, stride, stride))


class Separable(TemporalPart, nn.Sequential):
    """1×k×k in space, then k×1×1 in time."""

    temporal = ("1",)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            Unit(in_channels, out_channels, (1, kernel, kernel), (1, stride, stride)),
            Unit(out_channels, out_channels, (kernel, 1, 1), (stride, 1, 1)),
        )

    def start_still(self) -> None:
        convolution, norm, _ = self[1].children()
        average_in_time(convolution, norm)


class Spatial(Unit):
    """1×k×k in space; its stride also skips frames."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, (1, kernel, kernel), (stride, stride, stride))


Convolution = Callable[..., nn.Module]

CONVOLUTIONS: dict[Form, Convolution] = {"3d": Whole, "separable": Separable, "2d": Spatial}


class Mixed(nn.Module):
    """Inception block: 1×1×1, 1×1×1 → 3×3×3, 1×1×1 → 3×3×3 and pool → 1×1×1, concatenated.

    Args:
        conv3: the form of the two 3×3×3.
        in_channels: of the input.
        b0, b1a, b1b, b2a, b2b, b3b: output channels of the convolutions.
    """

    def __init__(
        self, conv3: Convolution, in_channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int
    ) -> None:
        super().__init__()
        self.branch0 = Pointwise(in_channels, b0)
        self.branch1 = nn.Sequential(Pointwise(in_channels, b1a), conv3(b1a, b1b, 3))
        self.branch2 = nn.Sequential(Pointwise(in_channels, b2a), conv3(b2a, b2b, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Pointwise(in_channels, b3b))
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class S3D(Stepwise):
    """S3D (Xie et al. 2018), or one of the paper's other forms.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        width: multiplies every number of channels; the product is rounded to a multiple of 8, at least 8.
        momentum: of batch norm, in training; the default is that of the published networks.
        bottom: form of the stages before the split.
        top: form of the stages after it.
        split: the first stage of the top, one of `STAGES`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: float = 1.0,
        momentum: float = 1e-3,
        bottom: Form = "separable",
        top: Form = "separable",
        split: str = "4b",
    ) -> None:
        super().__init__()
        if split not in STAGES:
            raise UsageError(f"s3d has no stage '{split}' to split at: choose one of {', '.join(STAGES)}")
        convolution = {stage: CONVOLUTIONS[bottom if stage < split else top] for stage in STAGES}

        def wide(channels: int) -> int:
            return max(8, int(channels * width / 8 + 0.5) * 8)

        mixed: dict[str, Mixed] = {}
        channels = wide(192)
        for name, branches in MIXED.items():
            mixed[name] = Mixed(convolution[name], channels, *map(wide, branches))
            channels = mixed[name].out_channels
        self.features = nn.Sequential(
            convolution["1a"](in_channels, wide(64), 7, 2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            Pointwise(wide(64), wide(64)),
            convolution["2c"](wide(64), wide(192), 3),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            mixed["3b"],
            mixed["3c"],
            nn.MaxPool3d(3, 2, 1),
            mixed["4b"],
            mixed["4c"],
            mixed["4d"],
            mixed["4e"],
            mixed["4f"],
            nn.MaxPool3d(2, 2),
            mixed["5b"],
            mixed["5c"],
        )
        self.feature_dim = channels
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Conv3d(channels, num_classes, 1))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = momentum

    def maps(self, clips: Tensor) -> Tensor:
        """Return the output of mixed 5c for normalised clips.

        Args:
            clips: (N, C, T, H, W), T at least 5, H and W at least 17.

        Raises:
            ShapeError: clips are so short or small that nothing is left to pool.
        """
        refuse_small("s3d", clips.shape[2:], MIN_FRAMES, MIN_SIDE_PX)
        maps: Tensor = self.features(clips)  # (N, D, T/8, H/32, W/32)
        return maps

    def head(self, maps: Tensor) -> BackboneOutput:
        kernel = [min(*sizes) for sizes in zip(maps.shape[2:], AVERAGE_POOL, strict=True)]
        x = F.avg_pool3d(maps.float(), kernel, stride=1)  # (N, D, T/8 - 1, 1, 1)
        # The classifier is linear, so the mean of the logits over time is the logits of the mean.
        features = x.mean((2, 3, 4), keepdim=True)
        return BackboneOutput(features.flatten(1), self.classifier(features).flatten(1))
