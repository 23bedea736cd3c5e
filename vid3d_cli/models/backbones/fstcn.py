"""FstCN: 2D convolutions of single frames, then convolutions in time, for rgb (3 channels) and flow (2 channels).

A clip of 30 frames gives five samples, s_t = 5 frames apart, and their differences to the frames d_t = 9 later:

    V_clip        frames 0, 5, 10, 15, 20
    V_clip^diff   | frames 9, 14, 19, 24, 29 − V_clip |

The differences and one frame of V_clip (a random one in training, else the middle one) go through the same spatial
convolutional layers (SCL). Then the differences take the temporal path and the frame takes the spatial path.

    layer              kernel, stride            output of 30 × 204²
    scl1               1×7×7, 1×2×2               96 × (5 + 1) × 102²
      norm, max pool   1×3×3, 1×2×2               96 × (5 + 1) × 50²
    scl2               1×5×5, 1×2×2              256 × (5 + 1) × 25²
      norm, max pool   1×3×3, 1×2×2              256 × (5 + 1) × 12²
    scl3, scl4         1×3×3                     512 × (5 + 1) × 12²

    temporal_scl       1×3×3                     128 × 5 × 12²
      max pool         1×3×3, 1×3×3              128 × 5 × 4²
    temporal_tp        P, 128 → 128               16 × 5 × 128
    tcl                3×3 and 5×5, side by side  32 + 32 × 5 × 128
    temporal_fc1, 2                             4096, 2048

    spatial_scl        1×3×3                     128 × 1 × 12²
      max pool         1×3×3, 1×3×3              128 × 1 × 4²
    spatial_fc1, 2                              4096, 2048

    fc                 both paths side by side  2048
    classifier

The transformation and permutation operator (T-P) makes the 4² places channels, and time × features the plane on which
the temporal convolutional layer (TCL) works: a k×k kernel spans k frames and k features. Features have no order of
their own, so a learnt matrix P mixes them before neighbours are convolved. The variants "tcl3" and "tcl5" have one of
the two kernels, as in the paper's comparison.

Source: Sun, Jia, Yeung & Shi 2015, arXiv:1510.00562. The authors published neither code nor weights. The numbers are
those of three public implementations, among them MRzzm/action-recognition-models-pytorch `FstCN.py`, whose TCL is 1D,
without P and with a pool after it. Chosen here, because they say nothing or differ: zero padding that only the stride
shrinks, which the factorised convolution needs; local response normalisation as in CNN-M, whose first layers the SCL
are (Chatfield et al. 2014, arXiv:1405.3531); the absolute value of the differences; the identity as the initial P; ReLU
and dropout after every fully connected layer but the last. Flow is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ShapeError
from ._layers import BackboneOutput, LocalResponseNorm

NUM_SAMPLES = 5
"""l_t: frames of V_clip, and their differences."""
SAMPLE_STRIDE = 5
"""s_t: from one sample to the next, in frames."""
DIFFERENCE_SPAN = 9
"""d_t: from a sample to the frame that it is subtracted from, in frames."""

NUM_FRAMES, SIDE_PX = (NUM_SAMPLES - 1) * SAMPLE_STRIDE + DIFFERENCE_SPAN + 1, 204

MAP_SIDE = 4  # 204 px after the pools

FEATURE_DIM = 2048


class SCL(nn.Sequential):
    """Spatial convolutional layer: k×k on each frame, ReLU, then the modules `after`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *after: nn.Module) -> None:
        half = kernel // 2
        super().__init__(
            nn.Conv3d(in_channels, out_channels, (1, kernel, kernel), (1, stride, stride), (0, half, half)),
            nn.ReLU(inplace=True),
            *after,
        )


def max_pool(stride: int) -> nn.MaxPool3d:
    """Return 3×3 max pooling of each frame."""
    return nn.MaxPool3d((1, 3, 3), (1, stride, stride))


class TransformPermute(nn.Module):
    """T-P operator: the places of a map become channels, and the learnt P mixes its features.

    The output has five axes like other maps: (N, places, time, features, 1).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.permutation = nn.Parameter(torch.eye(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.flatten(3).permute(0, 3, 2, 1).float() @ self.permutation  # (N, H·W, T, F')
        return mixed.to(x.dtype).unsqueeze(4)


class TCL(nn.Module):
    """Temporal convolutional layer: k×k over time × features, a path for each k, concatenated."""

    def __init__(self, in_channels: int, out_channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(in_channels, out_channels, (kernel, kernel, 1), padding=(kernel // 2, kernel // 2, 0)),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            for kernel in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self.paths], 1)


class FullyConnected(nn.Sequential):
    """Linear, ReLU, dropout."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features), nn.ReLU(inplace=True), nn.Dropout(0.5))


def sample_pairs(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return V_clip and V_clip^diff, both (N, C, 5, H, W), of clips of 30 frames."""
    samples = clips[:, :, :-DIFFERENCE_SPAN:SAMPLE_STRIDE]
    return samples, (clips[:, :, DIFFERENCE_SPAN::SAMPLE_STRIDE] - samples).abs()


def choose_frame(samples: Tensor, is_random: bool) -> Tensor:
    """Return the middle frame of each clip (N, C, T, H, W), or a random one, as (N, C, 1, H, W)."""
    num_clips, num_samples = samples.shape[0], samples.shape[2]
    if not is_random:
        return samples[:, :, num_samples // 2, None]
    index = torch.randint(num_samples, (num_clips,), device=samples.device)
    return samples[torch.arange(num_clips, device=samples.device), :, index].unsqueeze(2)


class FstCN(nn.Module):
    """FstCN (Sun et al. 2015) for clips of 30 frames and 204 × 204 px.

    Args:
        in_channels: 3 for rgb, 2 for flow.
        num_classes: K.
        kernels: sides of the kernels of the temporal convolutional layer.
    """

    compares_pixels = True

    def __init__(self, in_channels: int, num_classes: int, kernels: Sequence[int] = (3, 5)) -> None:
        super().__init__()
        self.scl1 = SCL(in_channels, 96, 7, 2, LocalResponseNorm(), max_pool(2))
        self.scl2 = SCL(96, 256, 5, 2, LocalResponseNorm(), max_pool(2))
        self.scl3 = SCL(256, 512, 3, 1)
        self.scl4 = SCL(512, 512, 3, 1)
        self.temporal_scl = SCL(512, 128, 3, 1, max_pool(3))
        self.temporal_tp = TransformPermute(128, 128)
        self.tcl = TCL(MAP_SIDE**2, 32, kernels)
        self.temporal_fc1 = FullyConnected(32 * len(kernels) * NUM_SAMPLES * 128, 4096)
        self.temporal_fc2 = FullyConnected(4096, 2048)
        self.spatial_scl = SCL(512, 128, 3, 1, max_pool(3))
        self.spatial_fc1 = FullyConnected(128 * MAP_SIDE**2, 4096)
        self.spatial_fc2 = FullyConnected(4096, 2048)
        self.fc = FullyConnected(2 * 2048, FEATURE_DIM)
        self.classifier = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return the features and logits of normalised clips.

        Args:
            clips: (N, C, 30, 204, 204).

        Raises:
            ShapeError: clips have another size.
        """
        if clips.shape[2:] != (NUM_FRAMES, SIDE_PX, SIDE_PX):
            raise ShapeError(
                f"fstcn needs clips of exactly {NUM_FRAMES} frames and {SIDE_PX} × {SIDE_PX} px, "
                f"got {tuple(clips.shape[2:])}"
            )
        samples, differences = sample_pairs(clips)
        x = torch.cat([differences, choose_frame(samples, is_random=self.training)], 2)  # (N, C, 5 + 1, 204, 204)
        x = x.to(next(self.scl1.parameters()).dtype)
        x = self.scl4(self.scl3(self.scl2(self.scl1(x))))  # (N, 512, 5 + 1, 12, 12)
        motion = self.tcl(self.temporal_tp(self.temporal_scl(x[:, :, :-1])))  # (N, 64, 5, 128, 1)
        motion = self.temporal_fc2(self.temporal_fc1(motion.flatten(1).float()))  # (N, 2048)
        appearance = self.spatial_scl(x[:, :, -1:])  # (N, 128, 1, 4, 4)
        appearance = self.spatial_fc2(self.spatial_fc1(appearance.flatten(1).float()))  # (N, 2048)
        features = self.fc(torch.cat([motion, appearance], 1))
        return BackboneOutput(features, self.classifier(features))
