"""I3D of ResNet-50: its table and its pools; test_registry.py has the original's numbers."""

import pytest
import torch
from lively import lively, noise

from vid3d_cli.models.backbones.i3d_r50 import Bottleneck
from vid3d_cli.models.registry import BACKBONES

LAYERS = BACKBONES["i3d_r50"].layers
build = BACKBONES["i3d_r50"].build


def shapes_inside(num_frames, side_px):
    with torch.device("meta"):
        net, shapes = build("rgb", 400).eval(), {}
        for name, path in LAYERS.items():
            net.get_submodule(path).register_forward_hook(lambda m, i, x, key=name: shapes.update({key: x.shape}))
        net(torch.empty(2, 3, num_frames, side_px, side_px))
    return {name: tuple(shape) for name, shape in shapes.items()}


def test_every_stage_puts_out_what_the_table_says():
    assert shapes_inside(32, 224) == {
        "conv1": (2, 64, 16, 112, 112),
        "pool1": (2, 64, 8, 55, 55),
        "layer1": (2, 256, 8, 55, 55),
        "pool2": (2, 256, 4, 55, 55),
        "layer2": (2, 512, 4, 28, 28),
        "layer3": (2, 1024, 4, 14, 14),
        "layer4": (2, 2048, 4, 7, 7),
    }


@pytest.mark.parametrize(
    ("num_frames", "lengths"),
    [(7, (4, 2, 1)), (14, (7, 3, 1)), (15, (8, 4, 2)), (16, (8, 4, 2)), (64, (32, 16, 8))],
)
def test_the_pools_drop_an_odd_last_frame(num_frames, lengths):
    shapes = shapes_inside(num_frames, 32)
    assert tuple(shapes[name][2] for name in ("conv1", "pool1", "pool2")) == lengths


def test_the_kernels_span_the_frames_of_the_table():
    with torch.device("meta"):
        net = build("rgb", 400)
    spans = {
        name: [block.conv1.kernel_size[0] for block in module if isinstance(block, Bottleneck)]
        for name, module in net.named_children()
        if name.startswith("layer")
    }
    assert spans == {"layer1": [3, 3, 3], "layer2": [3, 1, 3, 1], "layer3": [3, 1, 3, 1, 3, 1], "layer4": [1, 3, 1]}


@pytest.mark.parametrize(("in_channels", "stride"), [(32, 1), (16, 2)])
def test_a_block_leaves_its_input_as_it_was(in_channels, stride):
    block, x = lively(Bottleneck(in_channels, 8, 3, stride)), noise(2, in_channels, 4, 6, 7)
    before = x.clone()
    with torch.inference_mode():
        y = block(x)
    assert torch.equal(x, before)
    assert y.shape == (2, 32, 4, -(-6 // stride), -(-7 // stride))
