"""I3D of ResNet-50: bottlenecks whose first convolution spans one frame or three, for rgb and flow.

    stage    kernel, stride             blocks   frames of their kernels   output of 32 × 224²
    conv1    5×7×7, 2                                                        64 × 16 × 112²
    pool1    max 2×3×3, 2                                                    64 × 8 × 55²
    layer1   res2                         3      3 3 3                      256 × 8 × 55²
    pool2    max 2×1×1, 2×1×1                                               256 × 4 × 55²
    layer2   res3: first block 1×2×2      4      3 1 3 1                    512 × 4 × 28²
    layer3   res4: first block 1×2×2      6      3 1 3 1 3 1               1024 × 4 × 14²
    layer4   res5: first block 1×2×2      3      1 3 1                     2048 × 4 × 7²
    average  of the whole map                                              2048
    fc       classifier

A block is a t×1×1 convolution, 1×3×3, which has the stride, and 1×1×1, plus the shortcut. The convolutions are padded
so that only their stride shrinks the map. The max pools are not padded, and drop an odd last frame.

Source: Wang et al., Non-local Neural Networks, 2018, arXiv:1711.07971, table 1 and section 4.1 (I3D 3×1×1);
facebookresearch/video-nonlocal-net `lib/models/resnet_video.py`. Tushar-N/pytorch-resnet3d `models/resnet.py` runs its
weights in PyTorch; the tensor names are from there.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ._layers import BackboneOutput, Stepwise, refuse_small

FEATURE_DIM = 2048

MIN_FRAMES, MIN_SIDE_PX = 7, 5  # fewer leave a max pool nothing


class Bottleneck(nn.Module):
    """Convolutions: `frames`×1×1 to `channels`, 1×3×3, and 1×1×1 to four times as many, plus the shortcut.

    Args:
        in_channels: of the input; the shortcut is a convolution if the output has another number.
        channels: of the 1×3×3 convolution.
        frames: what the first convolution spans, 1 or 3.
        stride: in space, of the 1×3×3 convolution and the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, frames: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, (frames, 1, 1), padding=(frames // 2, 0, 0), bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * channels)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != 4 * channels:
            shortcut = nn.Conv3d(in_channels, 4 * channels, 1, (1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)


class Stage(nn.Sequential):
    """Blocks, one for each of `frames`; the first one changes the number of channels and has the stride."""

    def __init__(self, in_channels: int, channels: int, frames: tuple[int, ...], stride: int) -> None:
        first = Bottleneck(in_channels, channels, frames[0], stride)
        super().__init__(first, *(Bottleneck(4 * channels, channels, span, 1) for span in frames[1:]))


class I3DResNet50(Stepwise):
    """I3D of ResNet-50 (Wang et al. 2018).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, 64, (5, 7, 7), 2, (2, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((2, 3, 3), 2)
        self.layer1 = Stage(64, 64, (3, 3, 3), stride=1)
        self.pool2 = nn.MaxPool3d((2, 1, 1))
        self.layer2 = Stage(256, 128, (3, 1, 3, 1), stride=2)
        self.layer3 = Stage(512, 256, (3, 1, 3, 1, 3, 1), stride=2)
        self.layer4 = Stage(1024, 512, (1, 3, 1), stride=2)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(FEATURE_DIM, num_classes)

    def maps(self, clips: Tensor) -> Tensor:
        """Return the output of layer4 for normalised clips.

        Args:
            clips: (N, C, T, H, W), T at least 7, H and W at least 5.

        Raises:
            ShapeError: clips are so short or small that nothing is left to pool.
        """
        refuse_small("i3d_r50", clips.shape[2:], MIN_FRAMES, MIN_SIDE_PX)
        x = self.relu(self.bn1(self.conv1(clips)))  # (N, 64, T/2, H/2, W/2)
        x = self.pool1(x)  # (N, 64, T/4, H/4, W/4)
        x = self.pool2(self.layer1(x))  # (N, 256, T/8, H/4, W/4)
        maps: Tensor = self.layer4(self.layer3(self.layer2(x)))  # (N, 2048, T/8, H/32, W/32)
        return maps

    def head(self, maps: Tensor) -> BackboneOutput:
        features = maps.float().mean((2, 3, 4))
        return BackboneOutput(features, self.fc(self.dropout(features)))
