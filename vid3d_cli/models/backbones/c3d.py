"""C3D: 3×3×3 convolutions all the way, then fully connected layers, for rgb (3 channels) and flow (2 channels).

    layer            kernel, stride     output of 16 × 112²
    conv1a           3×3×3               64 × 16 × 112²
    pool1            1×2×2, 1×2×2        64 × 16 × 56²
    conv2a           3×3×3              128 × 16 × 56²
    pool2            2×2×2, 2           128 × 8 × 28²
    conv3a, conv3b   3×3×3              256 × 8 × 28²
    pool3            2×2×2, 2           256 × 4 × 14²
    conv4a, conv4b   3×3×3              512 × 4 × 14²
    pool4            2×2×2, 2           512 × 2 × 7²
    conv5a, conv5b   3×3×3              512 × 2 × 7²
    pool5            2×2×2, 2           512 × 1 × 4²
    fc6, fc7                            4096
    fc8

Every layer but the pools and fc8 ends in a ReLU. fc6 has 512 · 1 · 4 · 4 inputs, so a clip must be 16 × 112².

Source: Tran et al. 2015, arXiv:1412.0767; DavideA/c3d-pytorch `C3D_model.py`, whose tensor names these are, and
mmaction2 `backbones/c3d.py` with `heads/i3d_head.py`, the same network under other names.

pool5 reduces 7 px to 4. Both implementations pad one px on each side; the authors' Caffe pads after the last px only
(ceil mode), and so does the variant "caffe". DavideA's Sports-1M weights came from Caffe through a Keras port, whose
scores differed from Caffe's because of this padding: DavideA/c3d-pytorch issue 1, chuckcho/c3d-keras issue 15.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ShapeError
from ._layers import BackboneOutput

NUM_FRAMES, SIDE_PX = 16, 112

FEATURE_DIM = 4096


class Convolution(nn.Conv3d):
    """3×3×3 convolution and ReLU in one module: a layer's output is what follows its ReLU, as in Caffe."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class FullyConnected(nn.Linear):
    """Linear layer and ReLU in one module, like `Convolution`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class C3D(nn.Module):
    """C3D (Tran et al. 2015) for clips of 16 frames and 112 × 112 px.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        pads_after: whether pool5 pads after the last px only, as the authors' Caffe does.
    """

    def __init__(self, in_channels: int, num_classes: int, pads_after: bool = False) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, 64)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = Convolution(64, 128)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3a = Convolution(128, 256)
        self.conv3b = Convolution(256, 256)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4a = Convolution(256, 512)
        self.conv4b = Convolution(512, 512)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5a = Convolution(512, 512)
        self.conv5b = Convolution(512, 512)
        self.pool5 = nn.MaxPool3d(2, ceil_mode=True) if pads_after else nn.MaxPool3d(2, padding=(0, 1, 1))
        self.fc6 = FullyConnected(512 * 1 * 4 * 4, FEATURE_DIM)
        self.fc7 = FullyConnected(FEATURE_DIM, FEATURE_DIM)
        self.fc8 = nn.Linear(FEATURE_DIM, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, 16, 112, 112).

        Raises:
            ShapeError: clips have another size.
        """
        if clips.shape[2:] != (NUM_FRAMES, SIDE_PX, SIDE_PX):
            raise ShapeError(
                f"c3d needs clips of exactly {NUM_FRAMES} frames and {SIDE_PX} × {SIDE_PX} px, "
                f"got {tuple(clips.shape[2:])}"
            )
        x = self.pool1(self.conv1(clips))  # (N, 64, 16, 56, 56)
        x = self.pool2(self.conv2(x))  # (N, 128, 8, 28, 28)
        x = self.pool3(self.conv3b(self.conv3a(x)))  # (N, 256, 4, 14, 14)
        x = self.pool4(self.conv4b(self.conv4a(x)))  # (N, 512, 2, 7, 7)
        x = self.pool5(self.conv5b(self.conv5a(x)))  # (N, 512, 1, 4, 4)
        x = self.dropout(self.fc6(x.flatten(1).float()))
        features = self.fc7(x)
        return BackboneOutput(features, self.fc8(self.dropout(features)))
