"""3D ResNets: R3D, MC3 and R(2+1)D, for rgb (3 channels) and flow (2 channels).

    layer    r3d_18        mc3_18        r2plus1d_18, r2plus1d_34         output of 16 × 112²
    stem     3×7×7, 1×2×2  3×7×7, 1×2×2  1×7×7, 1×2×2 → 45; 3×1×1          64 × 16 × 56²
    layer1   3×3×3         3×3×3         1×3×3 → M; 3×1×1                  64 × 16 × 56²
    layer2   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   128 × 8 × 28²
    layer3   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   256 × 4 × 14²
    layer4   3×3×3, 2      1×3×3, 1×2×2  1×3×3, 1×2×2 → M; 3×1×1, 2×1×1   512 × 2 × 7²
    average                                                               512
    fc

A layer is two residual blocks (3, 4, 6, 3 in r2plus1d_34) of two such convolutions each; a stride is that of the very
first one. mc3_18 keeps all frames. R(2+1)D splits a convolution in space and time, with batch norm, ReLU and M channels
between the two: as many weights as the whole one has.

Source: Tran et al. 2018, arXiv:1711.11248; torchvision `models/video/resnet.py`, whose tensor names these are.
r2plus1d_34 is the network of the IG-65M weights, moabitcoin/ig65m-pytorch `models.py`, after facebookresearch/VMZ
`video_model.py`, and differs in two numbers: the batch-norm eps is 1e-3, and M is that of each convolution, where
torchvision takes a block's second M from its first convolution. Caffe2's momentum of 0.9 is PyTorch's default of 0.1;
moabitcoin sets PyTorch's to 0.9, which matters in training only.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ...clips.dense import TimeSteps
from ...errors import ShapeError
from ._layers import IN_CHANNELS, Backbone, BackboneOutput, Stepwise

Size3 = tuple[int, int, int]

Kind = Literal["3d", "2d", "2+1d"]
"""How a 3×3×3 convolution is done: whole, as 1×3×3 alone, or as 1×3×3 and then 3×1×1."""


class Form(NamedTuple):
    """What tells one network of the table from another."""

    kinds: tuple[Kind, Kind, Kind, Kind]
    """Of the convolutions of layer1 … layer4."""
    depths: tuple[int, int, int, int]
    """Blocks of layer1 … layer4."""
    steps: TimeSteps = TimeSteps(stride=8, margin=56)
    """Of the last map."""
    eps: float = 1e-5
    """Of batch norm."""
    own_m: bool = False
    """Whether M is each convolution's own, as in the paper, or the whole block's, as in torchvision."""


FORMS = {
    "r3d_18": Form(("3d", "3d", "3d", "3d"), (2, 2, 2, 2)),
    "mc3_18": Form(("3d", "2d", "2d", "2d"), (2, 2, 2, 2), TimeSteps(stride=1, margin=5)),
    "r2plus1d_18": Form(("2+1d", "2+1d", "2+1d", "2+1d"), (2, 2, 2, 2)),
    "r2plus1d_34": Form(("2+1d", "2+1d", "2+1d", "2+1d"), (3, 4, 6, 3), TimeSteps(8, 96), eps=1e-3, own_m=True),
}

FEATURE_DIM = 512

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")


def convolution(in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)) -> nn.Conv3d:
    """Convolution without bias, padded so that only its stride shrinks the map."""
    t, h, w = kernel
    return nn.Conv3d(in_channels, out_channels, kernel, stride, (t // 2, h // 2, w // 2), bias=False)


def three_cubed(kind: Kind, in_channels: int, out_channels: int, stride: int, m: int) -> nn.Module:
    """3×3×3 convolution, done as `kind` says; `m` is the number of channels between the two of "2+1d"."""
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
    """M: 1×3×3 to M channels and 3×1×1 from there have as many weights as 3×3×3 has (section 3.5)."""
    return (27 * in_channels * out_channels) // (9 * in_channels + 3 * out_channels)


class Block(nn.Module):
    """Two convolutions, and the input added to what they give; where it widens, it halves the map.

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
    """The first convolution; "2+1d" goes over 45 channels, in both streams (VMZ `r3d_model.py`)."""
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
    """A network of the table above.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        form: which of them.
    """

    def __init__(self, in_channels: int, num_classes: int, form: Form) -> None:
        super().__init__()

        def layer(number: int, in_channels: int, out_channels: int) -> nn.Sequential:
            kind, depth = form.kinds[number - 1], form.depths[number - 1]
            widths = [in_channels] + [out_channels] * (depth - 1)
            return nn.Sequential(*(Block(width, out_channels, kind, form.own_m) for width in widths))

        self.stem = stem(form.kinds[0], in_channels)
        self.layer1 = layer(1, 64, 64)
        self.layer2 = layer(2, 64, 128)
        self.layer3 = layer(3, 128, 256)
        self.layer4 = layer(4, 256, FEATURE_DIM)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = form.eps

    def maps(self, clips: Tensor) -> Tensor:
        """Normalised clips → the output of layer4.

        Args:
            clips: (N, C, T, H, W), of any size: padding leaves something of the smallest.

        Raises:
            ShapeError: a clip without frames or pixels.
        """
        if 0 in clips.shape[2:]:
            raise ShapeError(f"a 3D ResNet needs clips of at least 1 frame and 1 × 1 px, got {tuple(clips.shape[2:])}")
        x = self.layer1(self.stem(clips))  # (N, 64, T, H/2, W/2)
        maps: Tensor = self.layer4(self.layer3(self.layer2(x)))  # (N, 512, T/8, H/16, W/16); mc3_18: T frames
        return maps

    def head(self, maps: Tensor) -> BackboneOutput:
        features = maps.mean((2, 3, 4))
        return BackboneOutput(features.float(), self.fc(features).float())


def build(name: str, stream: str, num_classes: int) -> ResNet3D:
    """The 3D ResNet of that name for one stream, untrained."""
    return ResNet3D(IN_CHANNELS[stream], num_classes, FORMS[name])


RESNET = [  # torchvision's 2-D names
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"\.conv([12])\.", r".conv\1.0."),
    (r"\.bn([12])\.", r".conv\1.1."),
]


def _entry(name: str, num_frames: int, publisher: str) -> Backbone:
    return Backbone(
        partial(build, name),
        clip=(num_frames, 112),
        feature_dim=FEATURE_DIM,
        classifier="fc.weight",
        min_frames=1,
        layers={layer: layer for layer in LAYERS},
        steps=FORMS[name].steps,
        # M channels have no counterpart in a 2-D network
        image_networks={} if "2+1d" in FORMS[name].kinds else {"resnet18": RESNET},
        key_layouts={publisher: []},  # whose names are ours
    )


BACKBONES = {
    "r3d_18": _entry("r3d_18", 16, "torchvision"),
    "mc3_18": _entry("mc3_18", 16, "torchvision"),
    "r2plus1d_18": _entry("r2plus1d_18", 16, "torchvision"),
    "r2plus1d_34": _entry("r2plus1d_34", 32, "moabitcoin"),
}
