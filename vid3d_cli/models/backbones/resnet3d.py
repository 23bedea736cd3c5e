"""3D ResNets: R3D, MC3 and R(2+1)D, for rgb (3 channels) and flow (2 channels).

    layer    r3d_18        mc3_18        r2plus1d_18, r2plus1d_34         output of 16 × 112²
    stem     3×7×7, 1×2×2  3×7×7, 1×2×2  1×7×7, 1×2×2 → 45; 3×1×1          64 × 16 × 56²
    layer1   3×3×3         3×3×3         1×3×3 → M; 3×1×1                  64 × 16 × 56²
    layer2   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   128 × 8 × 28²
    layer3   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   256 × 4 × 14²
    layer4   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   512 × 2 × 7²
    average                                                               512
    fc

A layer is two residual blocks (3, 4, 6, 3 in r2plus1d_34) of two such convolutions each; the first convolution of a
layer has the stride. mc3_18 keeps all frames. R(2+1)D splits a convolution in space and time, with batch norm, ReLU and
M channels in between; M is such that both halves together have as many weights as the 3×3×3 convolution.

Source: Tran et al. 2018, arXiv:1711.11248; torchvision `models/video/resnet.py`, from which the tensor names are.
r2plus1d_34 is the network of the IG-65M weights: moabitcoin/ig65m-pytorch `models.py`, after facebookresearch/VMZ
`video_model.py`. It differs in two numbers: the batch-norm eps is 1e-3, and every convolution has its own M, while in
torchvision a block's second convolution has the M of its first. Caffe2's momentum of 0.9 is PyTorch's default of 0.1;
moabitcoin sets PyTorch's to 0.9, which matters in training only. TSP fine-tunes the same network
(HumamAlwassel/TSP `models/backbone.py`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ._layers import BackboneOutput, Stepwise, refuse_small

Size3 = tuple[int, int, int]

Kind = Literal["3d", "2d", "2+1d"]
"""The form of a 3×3×3 convolution: 3×3×3, 1×3×3 alone, or 1×3×3 and then 3×1×1."""


class Form(NamedTuple):
    """How one network of the table differs from the others."""

    kinds: tuple[Kind, Kind, Kind, Kind]
    """The form of the convolutions of layer1 … layer4."""
    depths: tuple[int, int, int, int]
    """Blocks of layer1 … layer4."""
    eps: float = 1e-5
    """Of batch norm."""
    own_m: bool = False
    """Whether every convolution has its own M, as in the paper, or a block has one, as in torchvision."""


FORMS = {
    "r3d_18": Form(("3d", "3d", "3d", "3d"), (2, 2, 2, 2)),
    "mc3_18": Form(("3d", "2d", "2d", "2d"), (2, 2, 2, 2)),
    "r2plus1d_18": Form(("2+1d", "2+1d", "2+1d", "2+1d"), (2, 2, 2, 2)),
    "r2plus1d_34": Form(("2+1d", "2+1d", "2+1d", "2+1d"), (3, 4, 6, 3), eps=1e-3, own_m=True),
}

FEATURE_DIM = 512


def convolution(in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)) -> nn.Conv3d:
    """Return a convolution without bias, padded so that only its stride shrinks the map."""
    t, h, w = kernel
    return nn.Conv3d(in_channels, out_channels, kernel, stride, (t // 2, h // 2, w // 2), bias=False)


def three_cubed(kind: Kind, in_channels: int, out_channels: int, stride: int, m: int) -> nn.Module:
    """Return a 3×3×3 convolution in the form `kind`; "2+1d" has `m` channels in between."""
    if kind == "3d":
        return convolution(in_channels, out_channels, (3, 3, 3), (stride, stride, stride))
    if kind == "2d":
        return convolution(in_channels, out_channels, (1, 3, 3), (1, stride, stride))
    return nn.Sequential(
        convolution(in_channels, m, (1, 3, 3), (1, stride, stride)),
        nn.BatchNorm3d(m),
        nn.ReLU(inplace=True),
        convolution(m, out_channels, (3, 1, 1), (stride, 1, 1)),
    )


def channels_between(in_channels: int, out_channels: int) -> int:
    """Return M, with which 1×3×3 and 3×1×1 have together as many weights as 3×3×3 (section 3.5)."""
    return (27 * in_channels * out_channels) // (9 * in_channels + 3 * out_channels)


class Block(nn.Module):
    """Two convolutions, and the input added to their output; a block that adds channels halves the map.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kind: of both convolutions.
        own_m: see `Form`.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: Kind, own_m: bool) -> None:
        super().__init__()
        stride = 1 if in_channels == out_channels else 2
        m = channels_between(in_channels, out_channels)
        self.conv1 = nn.Sequential(
            three_cubed(kind, in_channels, out_channels, stride, m),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )
        if own_m:
            m = channels_between(out_channels, out_channels)
        self.conv2 = nn.Sequential(
            three_cubed(kind, out_channels, out_channels, 1, m),
            nn.BatchNorm3d(out_channels),
        )
        self.downsample = nn.Sequential()
        if stride > 1:
            strides = (1 if kind == "2d" else stride, stride, stride)
            self.downsample.append(convolution(in_channels, out_channels, (1, 1, 1), strides))
            self.downsample.append(nn.BatchNorm3d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x), inplace=True)


def stem(kind: Kind, in_channels: int) -> nn.Sequential:
    """Return the first convolution; "2+1d" has 45 channels in between, in both streams (VMZ `r3d_model.py`)."""
    if kind == "2+1d":
        return nn.Sequential(
            convolution(in_channels, 45, (1, 7, 7), (1, 2, 2)),
            nn.BatchNorm3d(45),
            nn.ReLU(inplace=True),
            convolution(45, 64, (3, 1, 1)),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
        )
    return nn.Sequential(
        convolution(in_channels, 64, (3, 7, 7), (1, 2, 2)),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


class ResNet3D(Stepwise):
    """R3D, MC3 or R(2+1)D (Tran et al. 2018).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        form: the name of the network, one of `FORMS`.
    """

    def __init__(self, in_channels: int, num_classes: int, form: str) -> None:
        super().__init__()
        kinds, depths, eps, own_m = FORMS[form]

        def layer(number: int, in_channels: int, out_channels: int) -> nn.Sequential:
            kind, depth = kinds[number - 1], depths[number - 1]
            widths = [in_channels] + [out_channels] * (depth - 1)
            return nn.Sequential(*(Block(width, out_channels, kind, own_m) for width in widths))

        self.stem = stem(kinds[0], in_channels)
        self.layer1 = layer(1, 64, 64)
        self.layer2 = layer(2, 64, 128)
        self.layer3 = layer(3, 128, 256)
        self.layer4 = layer(4, 256, FEATURE_DIM)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = eps

    def maps(self, clips: Tensor) -> Tensor:
        """Return the output of layer4 for normalised clips.

        Args:
            clips: (N, C, T, H, W) of any size; padding keeps at least one position.

        Raises:
            ShapeError: clips have no frames or no pixels.
        """
        refuse_small("a 3D ResNet", clips.shape[2:], 1, 1)
        x = self.layer1(self.stem(clips))  # (N, 64, T, H/2, W/2)
        maps: Tensor = self.layer4(self.layer3(self.layer2(x)))  # (N, 512, T/8, H/16, W/16); mc3_18: T frames
        return maps

    def head(self, maps: Tensor) -> BackboneOutput:
        features = maps.float().mean((2, 3, 4))
        return BackboneOutput(features, self.fc(features))
