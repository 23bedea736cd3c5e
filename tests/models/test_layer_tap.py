"""Features from inside a network: what a tap takes, and how its map is pooled."""

import numpy as np
import pytest
import torch
from torch import nn

from vid3d_cli.errors import ShapeError
from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.models.clip_model import ClipModel, LayerTap, Normalise, pool_map
from vid3d_cli.models.manifest import Normalisation
from vid3d_cli.models.registry import POOLS

PLUS_MINUS_ONE = Normalisation((-1.0, 1.0), None, None, "RGB", None, None, False)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3, 4))
        return BackboneOutput(features, self.head(features))


@pytest.mark.parametrize("pool", POOLS)
def test_a_layer_is_pooled_as_requested(pool):
    torch.manual_seed(0)
    net = Tiny()
    model = ClipModel(net, Normalise(PLUS_MINUS_ONE), LayerTap(net, "conv", pool))
    clips = torch.randint(0, 256, (2, 6, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        plain = ClipModel(net, Normalise(PLUS_MINUS_ONE))(clips)
        output = model(clips)
        x = net.conv(model.normalise(clips.permute(0, 4, 1, 2, 3))).numpy().astype(np.float64)
    expected = {"avg": x.mean((2, 3, 4)), "max": x.max((2, 3, 4)), "none": x, "spatial": x.mean((3, 4))}[pool]
    np.testing.assert_allclose(output.features.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(output.logits, plain.logits)


def test_a_layer_is_read_before_the_next_layer_works_in_place():
    net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    tap = LayerTap(net, "0", "none")
    with torch.inference_mode():
        net(torch.randn(1, 3, 2, 4, 4))
    assert (tap.features() < 0).any()


@pytest.mark.parametrize("pool", POOLS)
def test_no_pooling_changes_a_vector(pool):
    x = torch.randn(2, 5)
    torch.testing.assert_close(pool_map(x, pool), x)


def test_clips_of_the_wrong_rank_are_a_shape_error():
    with pytest.raises(ShapeError, match=r"\(N, T, H, W, C\), got \(6, 8, 8, 3\)"):
        ClipModel(Tiny(), Normalise(PLUS_MINUS_ONE))(torch.zeros(6, 8, 8, 3, dtype=torch.uint8))
