"""The two-stream network, 2-D: CNN-M-2048 on one frame (rgb) or on a stack of L = 10 flow fields (flow).

    layer   kernel, stride   output for 224²    then
    input                      3 or 20 × 224²
    conv1   7×7, 2            96 × 109²         norm1 (both streams)
    pool1   3×3, 2            96 × 54²
    conv2   5×5, 2           256 × 26²          norm2 (rgb only: the paper spares the flow stream's memory)
    pool2   3×3, 2           256 × 13²
    conv3   3×3              512 × 13²
    conv4   3×3              512 × 13²
    conv5   3×3              512 × 13²
    pool5   3×3, 2           512 × 6²
    full6                   4096                dropout
    full7                   2048                dropout
    softmax

The convolutions and full6, full7 end in a ReLU. Of a clip, the rgb stream sees the first frame, at which the flow stack
starts: channel 2k - 1 is the horizontal and 2k the vertical displacement from frame k to k + 1 (the paper's eq. 1), and
each has its mean subtracted (section 3.1), here that of the clip as it is cropped. Maps keep a time axis, of length 1.

Source: Simonyan & Zisserman 2014, arXiv:1406.2199, fig. 1 and section 5, which leave the paddings to CNN-M-2048 of
Chatfield et al. 2014, arXiv:1405.3531: by its Caffe definition (`VGG_CNN_M_2048_deploy.prototxt`) conv1 has none, conv2
to conv5 have 1, and a pool's last window may reach over the edge, as Caffe's do. Fig. 1 writes the pools as 2×2, the
factor by which they shrink a map; section 5 says that their windows are 3×3. No weights of this network are public.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import IN_CHANNELS, Backbone, BackboneOutput

STACK_LENGTH = 10
"""L, the flow fields that the flow stream sees at once."""
SIDE_PX = 224

FEATURE_DIM = 2048

DROPOUT = {"rgb": 0.5, "flow": 0.9}
"""The ratios of the paper's best networks of each stream: section 6, table 1."""

LAYERS = {
    "conv1": "features.conv1",
    "pool1": "features.pool1",
    "conv2": "features.conv2",
    "pool2": "features.pool2",
    "conv3": "features.conv3",
    "conv4": "features.conv4",
    "conv5": "features.conv5",
    "pool5": "features.pool5",
    "full6": "full6",
    "full7": "full7",
}


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


class Norm(nn.LocalResponseNorm):
    """Across five neighbouring channels: x / (2 + 10⁻⁴ · the sum of their squares)^0.75.

    Source: Krizhevsky et al. 2012, section 3.3. PyTorch, like Caffe, divides alpha by the number of channels.
    """

    def __init__(self) -> None:
        super().__init__(size=5, alpha=5e-4, beta=0.75, k=2.0)


class Full(nn.Sequential):
    """Fully connected, ReLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features), nn.ReLU(inplace=True))


def stack_flow(clips: Tensor) -> Tensor:
    """Flow fields as the channels of one frame, each without its mean.

    Args:
        clips: (N, 2, L, H, W); channel 0 is x (right), 1 is y (down).

    Returns:
        (N, 2L, 1, H, W): x and y of the first field, x and y of the second, …

    Source: arXiv:1406.2199, section 3.1, eq. 1 and "Mean flow subtraction".
    """
    fields = clips - clips.mean((3, 4), keepdim=True)
    return fields.transpose(1, 2).flatten(1, 2).unsqueeze(2)


class TwoStream(nn.Module):
    """The network of the table above, for one of its streams.

    Args:
        stream: "rgb" or "flow".
        num_classes: K.
    """

    def __init__(self, stream: str, num_classes: int) -> None:
        super().__init__()
        self.is_flow = stream == "flow"
        in_channels = IN_CHANNELS[stream] * (STACK_LENGTH if self.is_flow else 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=Conv(in_channels, 96, 7, 2, 0),
            norm1=Norm(),
            pool1=Pool(),
            conv2=Conv(96, 256, 5, 2, 1),
            norm2=Norm(),
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
        self.dropout = nn.Dropout(DROPOUT[stream])
        self.classifier = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Normalised clips → features and logits.

        Args:
            clips: (N, C, 10, 224, 224).

        Raises:
            ShapeError: a clip of any other length or size.
        """
        if clips.shape[2:] != (STACK_LENGTH, SIDE_PX, SIDE_PX):
            raise ShapeError(
                f"two_stream needs clips of exactly {STACK_LENGTH} frames of {SIDE_PX} × {SIDE_PX} px, "
                f"got {tuple(clips.shape[2:])}"
            )
        x = stack_flow(clips) if self.is_flow else clips[:, :, :1]  # (N, 20 or 3, 1, 224, 224)
        x = self.features(x).flatten(1)  # (N, 512 · 6 · 6)
        features = self.full7(self.dropout(self.full6(x)))
        return BackboneOutput(features.float(), self.classifier(self.dropout(features)).float())


def build(stream: str, num_classes: int) -> TwoStream:
    """The network of one stream, untrained."""
    return TwoStream(stream, num_classes)


BACKBONES = {
    "two_stream": Backbone(
        build,
        clip=(STACK_LENGTH, SIDE_PX),
        feature_dim=FEATURE_DIM,
        classifier="classifier.weight",
        min_frames=STACK_LENGTH,
        layers=LAYERS,
        key_layouts={},
        is_fixed_size=True,
    )
}
