"""Batch norms folded into convolutions: as many as possible, and no output changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import K, shake
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vid3d_cli.models.clip_model import LayerTap
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.runtimes.folding import fold_batch_norms


def fold(net, x):
    """Fold, check that the output stays the same, and return how many norms were folded."""
    with torch.inference_mode():
        before = net(x)
    num_folded = fold_batch_norms(net, x)
    with torch.inference_mode():
        after = net(x)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    return num_folded


@pytest.mark.parametrize("name", ["i3d", "s3d_mini", "r2plus1d_18", "p3d63", "i3d_r50"])
def test_all_batch_norms_of_a_network_are_folded(name):
    torch.manual_seed(0)
    net = shake(BACKBONES[name].build("rgb", K))
    num_norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
    side_px = 193 if name == "i3d" else 32
    assert fold(net, torch.rand(1, 3, 9, side_px, side_px)) == num_norms > 0
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())


class Pairs(nn.Module):
    """Two convolutions and two norms, with a forward pass that the test chooses."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm3d(2), nn.BatchNorm3d(2)
        self._forward = forward
        shake(self)

    def forward(self, x):
        return self._forward(self, x)


def residual(net, x):
    y = net.a(x)
    return net.norm_a(y) + y


@pytest.mark.parametrize(
    ("forward", "num_folded"),
    [
        (lambda net, x: net.norm_b(net.b(net.norm_a(net.a(x)).relu())), 2),
        (lambda net, x: net.norm_a(net.b(x)), 1),  # the forward pass decides, not the names
        (lambda net, x: F.relu(net.norm_b(F.conv3d(x, net.b.weight, net.b.bias)), inplace=True), 1),
        (lambda net, x: net.norm_b(F.conv3d(x, net.b.weight, None)), 0),  # uses no bias
        (lambda net, x: net.norm_b(F.conv3d(x, net.b.weight.abs(), net.b.bias)), 0),
        (lambda net, x: net.a(net.norm_a(x)), 0),
        (lambda net, x: net.norm_a(net.a(x).relu()), 0),
        (residual, 0),
        (lambda net, x: net.norm_a(net.a(x)) + net.norm_b(net.a(x)), 0),
        (lambda net, x: net.norm_a(net.a(x)) + net.norm_a(net.b(x)), 0),
    ],
)
def test_a_norm_is_folded_if_nothing_else_uses_the_convolution(forward, num_folded):
    assert fold(Pairs(forward), torch.randn(2, 2, 3, 4, 4)) == num_folded


@pytest.mark.parametrize("tapped", ["a", "norm_a"])
@pytest.mark.parametrize("pool", ["avg", "none"])
def test_a_tapped_layer_is_not_folded(tapped, pool):
    net, x = Pairs(lambda net, x: net.norm_b(net.b(net.norm_a(net.a(x))))), torch.randn(2, 2, 3, 4, 4)
    tap = LayerTap(net, tapped, pool)
    with torch.inference_mode():
        net(x)
        before = tap.features()
        assert fold_batch_norms(net, x) == 1
        net(x)
        torch.testing.assert_close(tap.features(), before)


@pytest.mark.parametrize(("dtype", "num_folded"), [(torch.float32, 2), (torch.bfloat16, 2), (torch.float16, 1)])
@pytest.mark.parametrize("gain", [1e-7, 1e7])
def test_a_norm_whose_folded_weights_a_type_cannot_hold_stays(dtype, num_folded, gain):
    net, x = Pairs(lambda net, x: net.norm_b(net.b(net.norm_a(net.a(x)).relu()))), torch.randn(1, 2, 3, 4, 4)
    net.norm_a.weight.data.mul_(gain)
    net.b.weight.data.div_(gain)  # the network's outputs stay the same
    net.norm_b.running_var.fill_(1.0)
    net.norm_a.bias.data.mul_(gain)
    assert fold_batch_norms(copy.deepcopy(net), x, torch.float32) == 2
    net.b.weight.data.mul_(gain)
    assert fold_batch_norms(net, x, dtype) == num_folded
