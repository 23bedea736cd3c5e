"""P3D: bottleneck ResNets whose 3×3×3 convolution is a spatial and a temporal one, for rgb and flow (2 channels).

    stage      kernel, stride              p3d63  p3d131  p3d199    output of 16 × 160²
    conv1      1×7×7, 1×2×2                                          64 × 16 × 80²
    pool1      max 2×3×3, 2                                          64 × 8 × 40²
    layer1     res2: blocks A, B, C, …        3       3       3      256 × 8 × 40²
    pool       max 2×1×1, 2×1×1                                      256 × 4 × 40²
    layer2     res3: first block 1×2×2        4       4       8      512 × 4 × 20²
    pool       max 2×1×1, 2×1×1                                      512 × 2 × 20²
    layer3     res4: first block 1×2×2        6      23      36     1024 × 2 × 10²
    pool       max 2×1×1, 2×1×1                                     1024 × 1 × 10²
    layer4     res5: 2-D, first block 2×2     3       3       3     2048 × 1 × 5²
    average    of the whole map                                     2048
    fc         classifier

A block is a 1×1×1 convolution, then S (1×3×3, in space) and T (3×1×1, in time), then 1×1×1, plus the shortcut:

    A    ReLU T ReLU S x                one after the other
    B    ReLU (ReLU S x + T x)          side by side
    C    ReLU (ReLU S x + T ReLU S x)   both
    c    half of C

The blocks of layer1 to layer3 alternate as `structure` says: "ABC" is P3D ResNet; "A", "B" and "C" are the paper's
P3D-A, P3D-B and P3D-C ResNet. "ABc" is the authors' Caffe model: its prototxt multiplies both terms of C's sum by 0.5
(B's by 1), which the PyTorch port leaves out. Both structures have the same tensors, so a file does not show which one
it needs: "ABC" if the converter folded the 0.5 into conv4, "ABc" after any other conversion of the Caffe model.

Clips may have any number of frames. Max pools keep an odd last frame (they round up, as in Caffe). res5 sees each of
the T/16 remaining frames alone, and the features and logits of these are averaged. (The port views (N, C, T, H, W) as
(N·T, C, H, W) there, which mixes clips unless one frame remains.)

Source: Qiu et al. 2017, arXiv:1711.10305; ZhaofanQiu/pseudo-3d-residual-networks `deploy_p3d_resnet_kinetics.prototxt`:
its pool1 has no padding, and its B and C have a ReLU after the sum and none after T. qijiezhao/pseudo-3d-pytorch
`p3d_model.py`, from which the tensor names, p3d63 and p3d131 are, differs in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UsageError
from ._layers import BackboneOutput, Stepwise, TemporalPart, average_in_time, refuse_small, silence

FEATURE_DIM = 2048

MIN_FRAMES, MIN_SIDE_PX = 1, 3  # fewer pixels leave pool1 nothing


def pointwise(in_channels: int, out_channels: int, stride: int = 1, *, is_flat: bool) -> nn.Conv2d | nn.Conv3d:
    """Return a 1×1 or 1×1×1 convolution without bias; the stride is in space."""
    if is_flat:
        return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False)


class Bottleneck(nn.Module):
    """1×1 to fewer channels, `between`, 1×1 to four times as many, plus the shortcut.

    Args:
        in_channels: of the input; the shortcut is a convolution if the output has another number.
        channels: of `between`.
        stride: in space, of the first convolution and the shortcut.
    """

    is_flat = False
    """Whether the convolutions are 2-D."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if self.is_flat else nn.BatchNorm3d
        out_channels = 4 * channels
        self.conv1 = pointwise(in_channels, channels, stride, is_flat=self.is_flat)
        self.bn1 = norm(channels)
        self.conv4 = pointwise(channels, out_channels, is_flat=self.is_flat)
        self.bn4 = norm(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            shortcut = pointwise(in_channels, out_channels, stride, is_flat=self.is_flat)
            self.downsample = nn.Sequential(shortcut, norm(out_channels))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return F.relu(self.bn4(self.conv4(y)) + self.downsample(x), inplace=True)


class Flat(Bottleneck):
    """The block of res5: 3×3, without time."""

    is_flat = True

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv_normal = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn_normal = nn.BatchNorm2d(channels)

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_normal(self.conv_normal(x)), inplace=True)


class Pseudo3D(TemporalPart, Bottleneck):
    """The convolutions of the blocks A, B and C."""

    temporal = ("conv3", "bn3")

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(channels)

    def in_space(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def in_time(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn3(self.conv3(x))
        return y

    def start_still(self) -> None:
        silence(self.bn3)  # T adds nothing to S


class BlockA(Pseudo3D):
    """T after S."""

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.in_time(self.in_space(x)), inplace=True)

    def start_still(self) -> None:
        average_in_time(self.conv3, self.bn3)


class BlockB(Pseudo3D):
    """T beside S."""

    def between(self, x: Tensor) -> Tensor:
        return F.relu(self.in_space(x) + self.in_time(x), inplace=True)


class BlockC(Pseudo3D):
    """S, plus T after S."""

    def between(self, x: Tensor) -> Tensor:
        x = self.in_space(x)
        return F.relu(x + self.in_time(x), inplace=True)


class HalvedC(BlockC):
    """C with the mean of the two terms in place of their sum."""

    def between(self, x: Tensor) -> Tensor:
        return super().between(x) / 2

    def start_still(self) -> None:
        average_in_time(self.conv3, self.bn3)


BLOCKS: dict[str, type[Pseudo3D]] = {"A": BlockA, "B": BlockB, "C": BlockC, "c": HalvedC}


class Stage(nn.Sequential):
    """Blocks; the first one changes the number of channels and the size.

    Args:
        in_channels: of the first block's input.
        channels: see `Bottleneck`.
        depth: number of blocks.
        stride: of the first block.
        blocks: yields the class of the next block.
    """

    def __init__(
        self, in_channels: int, channels: int, depth: int, stride: int, blocks: Iterator[type[Bottleneck]]
    ) -> None:
        first = next(blocks)(in_channels, channels, stride)
        super().__init__(first, *(next(blocks)(4 * channels, channels) for _ in range(depth - 1)))


class FlatStage(Stage):
    """Blocks of 2-D convolutions, which see each frame alone."""

    def forward(self, x: Tensor) -> Tensor:
        N, _, T = x.shape[:3]
        frames = x.transpose(1, 2).flatten(0, 1)  # (N·T, C, H, W)
        for block in self:
            frames = block(frames)  # (N·T, D, H', W')
        return frames.reshape(N, T, *frames.shape[1:]).transpose(1, 2)  # (N, D, T, H', W')


class P3D(Stepwise):
    """P3D (Qiu et al. 2017).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        depths: blocks of res2 … res5.
        structure: the letters of the blocks, which alternate from layer1 to layer3.

    Raises:
        UsageError: `structure` has other letters.
    """

    def __init__(
        self, in_channels: int, num_classes: int, depths: tuple[int, int, int, int], structure: str = "ABC"
    ) -> None:
        super().__init__()
        if not structure or not set(structure) <= set(BLOCKS):
            raise UsageError(f"a structure of P3D is made of the blocks {', '.join(BLOCKS)}, got '{structure}'")
        blocks = cycle(BLOCKS[letter] for letter in structure)  # continues from stage to stage
        self.conv1_custom = nn.Conv3d(in_channels, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((2, 3, 3), 2, ceil_mode=True)
        self.layer1 = Stage(64, 64, depths[0], 1, blocks)
        self.layer2 = Stage(256, 128, depths[1], 2, blocks)
        self.layer3 = Stage(512, 256, depths[2], 2, blocks)
        self.layer4 = FlatStage(1024, 512, depths[3], 2, cycle([Flat]))
        self.pool = nn.MaxPool3d((2, 1, 1), ceil_mode=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def maps(self, clips: Tensor) -> Tensor:
        """Return the output of res5 for normalised clips.

        Args:
            clips: (N, C, T, H, W), T at least 1, H and W at least 3.

        Raises:
            ShapeError: clips have no frames, or are so small that nothing is left to pool.
        """
        refuse_small("p3d", clips.shape[2:], MIN_FRAMES, MIN_SIDE_PX)
        x = self.relu(self.bn1(self.conv1_custom(clips)))  # (N, 64, T, H/2, W/2)
        x = self.pool1(x)  # (N, 64, T/2, H/4, W/4)
        x = self.pool(self.layer1(x))  # (N, 256, T/4, H/4, W/4)
        x = self.pool(self.layer2(x))  # (N, 512, T/8, H/8, W/8)
        x = self.pool(self.layer3(x))  # (N, 1024, T/16, H/16, W/16)
        maps: Tensor = self.layer4(x)  # (N, 2048, T/16, H/32, W/32)
        return maps

    def head(self, maps: Tensor) -> BackboneOutput:
        # The classifier is linear, so the mean of the logits over time is the logits of the mean.
        features = maps.float().mean((2, 3, 4))
        return BackboneOutput(features, self.fc(self.dropout(features)))
