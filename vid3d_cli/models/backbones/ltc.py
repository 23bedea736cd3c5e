"""LTC: C3D with fewer channels and far longer, smaller clips, for rgb (3 channels) and flow (2 channels).

    layer    kernel, stride    output of 100 × 58²
    conv1    3×3×3              64 × 100 × 58²
    pool1    1×2×2, 1×2×2       64 × 100 × 29²
    conv2    3×3×3             128 × 100 × 29²
    pool2    2×2×2, 2          128 × 50 × 14²
    conv3    3×3×3             256 × 50 × 14²
    pool3    2×2×2, 2          256 × 25 × 7²
    conv4    3×3×3             256 × 25 × 7²
    pool4    2×2×2, 2          256 × 12 × 3²
    conv5    3×3×3             256 × 12 × 3²
    pool5    2×2×2, 2          256 × 6 × 1²
    fc6      2048
    fc7      2048
    fc8

Every convolution, fc6 and fc7 end in a ReLU. The authors compare clips of 20 to 100 frames of 58² and 71² px, and
C3D's 16 × 112². The clip decides the output of pool5, and so the number of inputs of fc6:

    frames       16      20   40   60   80  100
    of 58²              256  512  768 1280 1536
    of 71²             1024 2048 3072 5120 6144
    of 112²    2304

The default clip is that of the flow network, 100 × 58². The others are variants, such as "60x71".

Source: Varol, Laptev & Schmid 2018, arXiv:1604.04494; gulvarol/ltc `models/ltc.lua` (layers, rounding), `opts.lua` (the
default clip) and `model.lua` (features: fc7 after its ReLU). The authors subtract the mean of each flow frame before
the network (`perframemean`); own weights must have been trained without. The published RGB files, in Torch7's format,
are not of this network but of C3D with one more pool over time.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import BackboneOutput, refuse_small
from .c3d import Convolution, FullyConnected

NUM_FRAMES, SIDE_PX = 100, 58

MIN_FRAMES, MIN_SIDE_PX = 16, 32  # fewer leave pool5 nothing

FEATURE_DIM = 2048

DROPOUT = {3: 0.5, 2: 0.9}
"""The ratios of the authors' 100 × 58² networks, by the channels of rgb and flow: gulvarol/ltc README."""


class LTC(nn.Module):
    """LTC (Varol, Laptev & Schmid 2018) for clips of one length and size.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        num_frames: frames in a clip, at least 16.
        side_px: side of a clip in pixels, at least 32.

    Raises:
        ShapeError: clips are so short or small that nothing is left for fc6.
    """

    def __init__(
        self, in_channels: int, num_classes: int, num_frames: int = NUM_FRAMES, side_px: int = SIDE_PX
    ) -> None:
        super().__init__()
        refuse_small("ltc", (num_frames, side_px, side_px), MIN_FRAMES, MIN_SIDE_PX)
        self.clip_shape = num_frames, side_px, side_px
        self.conv1 = Convolution(in_channels, 64)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = Convolution(64, 128)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3 = Convolution(128, 256)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4 = Convolution(256, 256)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5 = Convolution(256, 256)
        self.pool5 = nn.MaxPool3d(2)
        self.fc6 = FullyConnected(256 * (num_frames // 16) * (side_px // 32) ** 2, FEATURE_DIM)
        self.fc7 = FullyConnected(FEATURE_DIM, FEATURE_DIM)
        self.fc8 = nn.Linear(FEATURE_DIM, num_classes)
        self.dropout = nn.Dropout(DROPOUT[in_channels])

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, T, H, W), T = num_frames and H = W = side_px.

        Raises:
            ShapeError: clips have another size.
        """
        if clips.shape[2:] != self.clip_shape:
            num_frames, side_px, _ = self.clip_shape
            raise ShapeError(
                f"this ltc needs clips of exactly {num_frames} frames and {side_px} × {side_px} px, "
                f"got {tuple(clips.shape[2:])}"
            )
        x = self.pool1(self.conv1(clips))  # (N, 64, T, H/2, W/2)
        x = self.pool2(self.conv2(x))  # (N, 128, T/2, H/4, W/4)
        x = self.pool3(self.conv3(x))  # (N, 256, T/4, H/8, W/8)
        x = self.pool4(self.conv4(x))  # (N, 256, T/8, H/16, W/16)
        x = self.pool5(self.conv5(x))  # (N, 256, T/16, H/32, W/32)
        x = self.dropout(self.fc6(x.flatten(1).float()))
        features = self.fc7(x)
        return BackboneOutput(features, self.fc8(self.dropout(features)))
