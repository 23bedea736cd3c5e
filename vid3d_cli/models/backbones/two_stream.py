"""The two-stream network, 2-D: CNN-M-2048 on one frame (rgb) or on a stack of L = 10 flow fields (flow).

    layer   kernel, stride   output for 224²    then
    input                      3 or 20 × 224²
    conv1   7×7, 2            96 × 109²         norm1 (both streams)
    pool1   3×3, 2            96 × 54²
    conv2   5×5, 2           256 × 26²          norm2 (rgb only: in the paper, to save the flow stream's memory)
    pool2   3×3, 2           256 × 13²
    conv3   3×3              512 × 13²
    conv4   3×3              512 × 13²
    conv5   3×3              512 × 13²
    pool5   3×3, 2           512 × 6²
    full6                   4096                dropout
    full7                   2048                dropout
    softmax

The convolutions and full6, full7 end in a ReLU. The rgb stream sees the first frame of a clip, at which the flow stack
starts. Channel 2k - 1 of the stack is the horizontal and 2k the vertical displacement from frame k to k + 1 (the
paper's eq. 1). Each channel has its mean subtracted (section 3.1), here the mean of the cropped clip. Maps keep a time
axis of length 1.

Source: Simonyan & Zisserman 2014, arXiv:1406.2199, fig. 1 and section 5. The paddings are those of CNN-M-2048
(Chatfield et al. 2014, arXiv:1405.3531) in its Caffe definition (`VGG_CNN_M_2048_deploy.prototxt`): conv1 has none,
conv2 to conv5 have 1, and a pool's last window may extend past the edge, as in Caffe. Fig. 1 gives the pools as 2×2,
the factor by which they shrink a map; section 5 gives their windows as 3×3. No weights of this network are public.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import BackboneOutput, LocalResponseNorm

STACK_LENGTH = 10
"""L, the flow fields in a stack."""
SIDE_PX = 224

FEATURE_DIM = 2048

DROPOUT = {3: 0.5, 2: 0.9}
"""The ratios of the paper's best networks, by the channels of rgb and flow: section 6, table 1."""


class Conv(nn.Sequential):
    """Convolution in space, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, (1, kernel, kernel), (1, stride, stride), (0, padding, padding)),
            nn.ReLU(inplace=True),
        )


class Pool(nn.MaxPool3d):
    """3×3 in space, stride 2; Caffe's rounding."""

    def __init__(self) -> None:
        super().__init__((1, 3, 3), (1, 2, 2), ceil_mode=True)


class Full(nn.Sequential):
    """Fully connected, ReLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features), nn.ReLU(inplace=True))


def stack_flow(clips: Tensor) -> Tensor:
    """Return flow fields as the channels of one frame, each without its mean.

    Args:
        clips: (N, 2, L, H, W); channel 0 is x (right), 1 is y (down).

    Returns:
        (N, 2L, 1, H, W): x and y of the first field, x and y of the second, …

    Source: arXiv:1406.2199, section 3.1, eq. 1 and "Mean flow subtraction".
    """
    fields = clips - clips.mean((3, 4), keepdim=True)
    return fields.transpose(1, 2).flatten(1, 2).unsqueeze(2)


class TwoStream(nn.Module):
    """One stream of the two-stream network (Simonyan & Zisserman 2014).

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
    """

    compares_pixels = True

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.is_flow = in_channels == 2
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=Conv(in_channels * (STACK_LENGTH if self.is_flow else 1), 96, 7, 2, 0),
            norm1=LocalResponseNorm(),
            pool1=Pool(),
            conv2=Conv(96, 256, 5, 2, 1),
            norm2=LocalResponseNorm(),
            pool2=Pool(),
            conv3=Conv(256, 512, 3, 1, 1),
            conv4=Conv(512, 512, 3, 1, 1),
            conv5=Conv(512, 512, 3, 1, 1),
            pool5=Pool(),
        )
        if self.is_flow:
            del layers["norm2"]
        self.features = nn.Sequential(layers)
        self.full6 = Full(512 * 6 * 6, 4096)
        self.full7 = Full(4096, FEATURE_DIM)
        self.dropout = nn.Dropout(DROPOUT[in_channels])
        self.classifier = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, 10, 224, 224).

        Raises:
            ShapeError: clips have another length or size.
        """
        if clips.shape[2:] != (STACK_LENGTH, SIDE_PX, SIDE_PX):
            raise ShapeError(
                f"two_stream needs clips of exactly {STACK_LENGTH} frames of {SIDE_PX} × {SIDE_PX} px, "
                f"got {tuple(clips.shape[2:])}"
            )
        x = stack_flow(clips) if self.is_flow else clips[:, :, :1]  # (N, 20 or 3, 1, 224, 224)
        x = self.features(x.to(next(self.features.parameters()).dtype)).flatten(1).float()  # (N, 512 · 6 · 6)
        features = self.full7(self.dropout(self.full6(x)))
        return BackboneOutput(features, self.classifier(self.dropout(features)))
