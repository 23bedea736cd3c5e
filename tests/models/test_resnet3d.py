"""3D ResNets against torchvision's with the same tensors, at other sizes than the cases, and in both streams."""

import copy
import functools

import pytest
import torch
from seeded import draw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

from vid3d_cli import create_model
from vid3d_cli.errors import ShapeError
from vid3d_cli.models.backbones import BACKBONES

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
@pytest.mark.parametrize("name", ORIGINALS)
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


@pytest.mark.parametrize(
    ("name", "stream", "num_frames", "num_parameters", "num_macs"),
    [
        ("r3d_18", "rgb", 16, 33_371_472, 40_696_553_472),
        ("r3d_18", "flow", 16, 33_371_472 - 64 * 147, 40_696_553_472 - 64 * 147 * 16 * 56**2),
        ("mc3_18", "rgb", 16, 11_695_440, 43_342_635_008),
        ("r2plus1d_18", "rgb", 16, 31_505_325, 40_519_080_960),
        ("r2plus1d_18", "flow", 16, 31_505_325 - 45 * 49, 40_519_080_960 - 45 * 49 * 16 * 56**2),
        ("r2plus1d_34", "rgb", 8, 63_697_175, 38_089_082_368),
        ("r2plus1d_34", "rgb", 32, 63_697_175, 152_355_715_072),
    ],
)
def test_parameters_and_operations_are_as_many_as_published(name, stream, num_frames, num_parameters, num_macs):
    """torchvision publishes 40.697, 43.343 and 40.519 GMAC."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = BACKBONES[name].build(stream, 400).eval()
        net(torch.empty(1, CHANNELS[stream], num_frames, 112, 112))
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters
    assert counter.get_total_flops() == 2 * num_macs


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
def test_channels_last_gives_the_same(name):
    net, clips = copy.deepcopy(seeded_net(name)), seeded_clips(2, 3, 8, 32, 32)
    with torch.inference_mode():
        expected = net(clips).logits
        logits = net.to(memory_format=torch.channels_last_3d)(clips.to(memory_format=torch.channels_last_3d)).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ORIGINALS)
def test_one_pixel_of_one_frame_is_enough(name):
    net = seeded_net(name)
    with torch.inference_mode():
        outputs = [net(torch.full((1, 3, 1, 1, 1), value)).logits for value in (-1.0, 1.0)]
    assert torch.isfinite(outputs[0]).all()
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("shape", [(0, 112, 112), (16, 0, 112), (16, 112, 0)])
def test_a_clip_of_nothing_is_told_what_is_needed(shape):
    with torch.device("meta"), pytest.raises(ShapeError, match="1 frame and 1 × 1 px") as error:
        create_model("r3d_18")(torch.zeros(1, 3, *shape))
    assert str(shape) in str(error.value)
    assert "\n" not in str(error.value)
