"""3D ResNets against torchvision's with the same tensors, at other sizes than the cases, and in both streams."""

import copy
import functools

import pytest
import torch
from seeded import draw
from torch import nn
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

from vid3d_cli import create_model
from vid3d_cli.models.registry import BACKBONES

CHANNELS = {"rgb": 3, "flow": 2}


def moabitcoin_r2plus1d_34():
    """What moabitcoin/ig65m-pytorch makes of torchvision's parts."""
    net = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [3, 4, 6, 3], R2Plus1dStem)
    net.layer2[0].conv2[0] = Conv2Plus1D(128, 128, 288)
    net.layer3[0].conv2[0] = Conv2Plus1D(256, 256, 576)
    net.layer4[0].conv2[0] = Conv2Plus1D(512, 512, 1152)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return net


ORIGINALS = {
    "r3d_18": r3d_18,
    "mc3_18": mc3_18,
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_34": moabitcoin_r2plus1d_34,
}


@functools.cache
def seeded_net(name, stream="rgb"):
    net = create_model(name, stream=stream)
    net.load_state_dict({key: torch.from_numpy(draw(key, tensor.shape, 5)) for key, tensor in net.state_dict().items()})
    return net


def seeded_clips(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "r3d_18" else [pytest.mark.exhaustive]) for name in ORIGINALS]
)
def test_the_original_with_the_same_tensors_gives_the_same(name, stream):
    ours = seeded_net(name, stream)
    with torch.device("meta"):
        theirs = ORIGINALS[name]().eval()
        if stream == "flow":
            first = theirs.stem[0]
            theirs.stem[0] = nn.Conv3d(
                2, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False
            )
    theirs.load_state_dict(ours.state_dict(), assign=True)
    clips = seeded_clips(1, CHANNELS[stream], 11, 38, 53)  # odd at every halving, and not square
    with torch.inference_mode():
        output, logits = ours(clips), theirs(clips)
        theirs.fc = nn.Identity()
        features = theirs(clips)
    assert (output.logits - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert (output.features - features).abs().max() <= 1e-5 * features.abs().max()


def test_only_the_layers_that_mix_time_shorten_the_clip():
    frames = {}
    for name in ("r3d_18", "mc3_18"):
        with torch.device("meta"):
            net, x = create_model(name), torch.zeros(1, 3, 16, 32, 32)
        for layer in BACKBONES[name].layers:
            x = net.get_submodule(layer)(x)
        frames[name] = x.shape[2]
    assert frames == {"r3d_18": 2, "mc3_18": 16}


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_a_layer_gave_is_left_as_it_was(name):
    """No ReLU works in place on what another module gave: it could not be had as features."""
    net, given, copies = copy.deepcopy(seeded_net(name)), {}, {}

    def keep(module, inputs, output):
        given[module], copies[module] = output, output.clone()

    layers = [net.get_submodule(path) for path in BACKBONES[name].layers.values()]
    for layer in layers:
        layer.register_forward_hook(keep)
    with torch.inference_mode():
        features = net(seeded_clips(1, 3, 8, 32, 32)).features
    for layer in layers:
        assert given[layer].min() == 0  # after its ReLU
        torch.testing.assert_close(given[layer], copies[layer], rtol=0, atol=0)
    torch.testing.assert_close(given[layers[-1]].mean((2, 3, 4)), features)


@pytest.mark.parametrize("name", ORIGINALS)
def test_one_pixel_of_one_frame_is_enough(name):
    net = seeded_net(name)
    with torch.inference_mode():
        outputs = [net(torch.full((1, 3, 1, 1, 1), value)).logits for value in (-1.0, 1.0)]
    assert torch.isfinite(outputs[0]).all()
    assert not torch.equal(*outputs)
