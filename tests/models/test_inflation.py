"""Inflated networks against the 2-D networks they came from, on clips of one repeated frame.

Stage by stage, since the networks as wholes differ where no inflation reaches: I3D's and torchvision's pools and stem
pad unlike (their grids lie a pixel apart), P3D strides in a block's first convolution and torchvision's ResNet in its
second, R3D has no pool after its stem, and i3d_r50's has no padding. Every stage is given what the 2-D network's own
stage is given.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import SeededCase, draw
from torch import nn
from torchvision import models

from vid3d_cli.errors import CheckpointError, UsageError
from vid3d_cli.models.backbones import TemporalPart
from vid3d_cli.models.inflation import inflate, to_3d
from vid3d_cli.models.registry import BACKBONES

NUM_FRAMES = 16  # even, for stems that skip every other frame; the middle ones see no border
ABLE = [(name, network) for name, backbone in BACKBONES.items() for network in backbone.image_networks]


@functools.cache
def image_network(name):
    """Torchvision's network with seeded values."""
    options = {"aux_logits": False, "init_weights": False, "transform_input": False} if name == "googlenet" else {}
    net = getattr(models, name)(weights=None, **options).eval()
    net.load_state_dict({k: torch.from_numpy(draw(k, tuple(t.shape), 25)) for k, t in net.state_dict().items()})
    return net


@functools.cache
def inflated(name, network):
    return inflate(image_network(network).state_dict(), name)


def outputs_of(net, image):
    """What every module of the 2-D network was given, and gave: name → (input, output)."""
    seen, hooks = {}, []
    for name, module in net.named_modules():

        def keep(module, given, output, name=name):
            seen[name] = given[0].clone(), output.clone()

        hooks.append(module.register_forward_hook(keep))
    with torch.inference_mode():
        net(image)
    for hook in hooks:
        hook.remove()
    return seen


@functools.cache
def seen_by(network):
    return outputs_of(image_network(network), torch.from_numpy(draw("picture", (1, 3, 64, 64), 0)))


def middle_of_still(stage, frame):
    """The stage's answer for a clip of one repeated frame, where it does not see the clip's ends."""
    clip = frame[:, :, None].expand(-1, -1, NUM_FRAMES, -1, -1).contiguous()
    with torch.inference_mode():
        output = stage(clip)
    return output[:, :, output.shape[2] // 2]


def check(stage, given, expected):
    answer = middle_of_still(stage, given)
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_reference_is_torchvisions_googlenet():
    case = SeededCase("googlenet_torchvision_1f")
    net = image_network("googlenet")
    shapes = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == case.facts["shapes"]
    with torch.inference_mode():
        logits = net(torch.from_numpy(case.clips())[:, :, 0]).numpy()
    assert np.abs(logits - case.logits).max() <= 1e-4 * np.abs(case.logits).max()


GOOGLENET_STAGES = {
    "conv2": "2b", "conv3": "2c", "inception3a": "3b", "inception3b": "3c", "inception4a": "4b", "inception4b": "4c",
    "inception4c": "4d", "inception4d": "4e", "inception4e": "4f", "inception5a": "5b", "inception5b": "5c",
}  # fmt: skip


@pytest.mark.parametrize("name", ["i3d", "s3d"])
@pytest.mark.parametrize(("theirs", "ours"), GOOGLENET_STAGES.items())
def test_a_still_clip_gives_googlenets_activations(name, theirs, ours):
    (layer,) = [layer for layer in BACKBONES[name].layers if f"_{ours}" in layer]
    stage = inflated(name, "googlenet").net.get_submodule(BACKBONES[name].layers[layer])
    check(stage, *seen_by("googlenet")[theirs])


def test_s3ds_stem_on_a_still_clip_is_googlenets():
    check(inflated("s3d", "googlenet").net.features[0], *seen_by("googlenet")["conv1"])


def test_i3ds_stem_on_a_still_clip_is_googlenets_a_pixel_on():
    """SAME padding puts one pixel less before an even image than the three that torchvision puts there."""
    given, expected = seen_by("googlenet")["conv1"]
    answer = middle_of_still(inflated("i3d", "googlenet").net.Conv3d_1a_7x7, torch.roll(given, (1, 1), (2, 3)))
    inner = (..., slice(2, -3), slice(2, -3))  # what padding and the pixels that went round do not reach
    assert (answer[inner] - expected[inner]).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["i3d", "s3d"])
def test_the_classifier_is_googlenets(name):
    given, expected = seen_by("googlenet")["fc"]
    net = inflated(name, "googlenet").net
    classifier = net.get_submodule(BACKBONES[name].classifier.removesuffix(".weight"))
    with torch.inference_mode():
        torch.testing.assert_close(classifier(given[:, :, None, None, None]).flatten(1), expected)


RESNET_BLOCKS = [
    (name, network, f"layer{layer}.{block}")
    for name, network in ABLE
    if network in ("resnet18", "resnet50")
    for layer, depth in zip((1, 2, 3, 4), {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[network], strict=True)
    for block in range(depth)
    if name != "p3d63" or block > 0 or layer == 1  # P3D strides elsewhere
]


@pytest.mark.parametrize(("name", "network", "block"), RESNET_BLOCKS)
def test_a_still_clip_gives_resnets_activations(name, network, block):
    given, expected = seen_by(network)[block]
    stage = inflated(name, network).net.get_submodule(block)
    if name == "p3d63" and block.startswith("layer4"):  # 2-D
        with torch.inference_mode():
            torch.testing.assert_close(stage(given), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    else:
        check(stage, given, expected)


@pytest.mark.parametrize("variant", ["A", "B", "C", "caffe"])
def test_every_kind_of_p3d_block_starts_still(variant):
    backbone = BACKBONES["p3d63"]
    net = backbone.build("rgb", 10, **backbone.variants[variant]).eval()
    x = torch.rand(1, 64, 40, 8, 8)[:, :, :1].expand(-1, -1, NUM_FRAMES, -1, -1)
    for block in net.layer1:
        channels = block.conv1.in_channels
        given = x.repeat(1, channels // 64, 1, 1, 1)
        block.start_still()
        with torch.inference_mode():
            space = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(given))))))
            expected = F.relu(block.bn4(block.conv4(space)) + block.downsample(given))
            answer = block(given)
        middle = NUM_FRAMES // 2
        torch.testing.assert_close(answer[:, :, middle], expected[:, :, middle], rtol=1e-5, atol=1e-5)


def test_the_stems_of_the_resnets_are_inflated_too():
    stems = [("r3d_18", "resnet18", "stem"), ("p3d63", "resnet50", "conv1_custom"), ("i3d_r50", "resnet50", "conv1")]
    for name, network, stem in stems:
        given, expected = seen_by(network)["conv1"]
        stage = inflated(name, network).net.get_submodule(stem)
        check(stage[0] if name == "r3d_18" else stage, given, expected)


@pytest.mark.parametrize(("name", "network"), ABLE)
def test_all_tensors_of_the_2d_network_are_used(name, network):
    with torch.device("meta"):
        image = getattr(models, network)(weights=None).state_dict()
        net = BACKBONES[name].build("rgb", 1000)
    backbone = BACKBONES[name]
    from vid3d_cli.models.inflation import _recognise

    recognised, renamed = _recognise(image, name)
    assert recognised == network
    assert renamed.keys() <= net.state_dict().keys()
    assert backbone.classifier in renamed
    temporal = [m for m in net.modules() if isinstance(m, TemporalPart)]
    assert bool(temporal) == (name not in ("i3d", "i3d_r50", "r3d_18", "mc3_18"))


def test_flow_starts_from_the_mean_over_the_colours():
    image = image_network("googlenet").state_dict()
    stem = inflate(image, "i3d", stream="flow").net.Conv3d_1a_7x7.conv3d.weight.detach()
    assert stem.shape == (64, 2, 7, 7, 7)
    grey = image["conv1.conv.weight"].mean(1)
    for channel in range(2):
        for t in range(7):
            torch.testing.assert_close(stem[:, channel, t], grey / 7)


def test_part_of_a_network_may_be_inflated():
    image = image_network("googlenet").state_dict()
    result = inflate(image, "s3d", only=["features.0.", "features.5."], num_classes=7)
    whole, other = inflated("s3d", "googlenet").net.state_dict(), result.net.state_dict()
    from_image = [key for key in whole if whole[key].shape == other[key].shape and torch.equal(whole[key], other[key])]
    convolutions = [key for key in from_image if whole[key].ndim == 5]
    assert convolutions
    assert {key.split(".")[1] for key in convolutions} == {"0", "5"}
    assert {key.split(".")[1] for key in result.from_image} == {"0", "5"}
    assert "classifier.1.weight" in result.random
    again = inflate(image, "s3d", only=["features.0.", "features.5."], num_classes=7).net.state_dict()
    assert all(torch.equal(other[key], again[key]) for key in other)  # the same seed, the same chance
    elsewhere = inflate(image, "s3d", only=["features.0.", "features.5."], num_classes=7, seed=1).net.state_dict()
    assert not torch.equal(other["classifier.1.weight"], elsewhere["classifier.1.weight"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3]), st.integers(0, 999))
def test_an_inflated_kernel_on_a_still_clip_is_the_kernel_on_the_image(out, channels, t, k, seed):
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(out, channels, k, k, generator=generator, dtype=torch.float64)
    image = torch.randn(2, channels, 6, 7, generator=generator, dtype=torch.float64)
    answer = F.conv3d(image[:, :, None].repeat(1, 1, t, 1, 1), to_3d(kernel, (out, channels, t, k, k)))
    torch.testing.assert_close(answer[:, :, 0], F.conv2d(image, kernel))


def test_files_of_other_networks_are_refused():
    image = image_network("googlenet").state_dict()
    with pytest.raises(
        CheckpointError, match=r"r3d_18 starts from torchvision's resnet18; this checkpoint is not resnet18"
    ):
        inflate(image, "r3d_18")
    half = dict(list(image.items())[:100])
    with pytest.raises(CheckpointError, match=r"not googlenet \(\d+ missing: Mixed_4b"):
        inflate(half, "i3d")
    with pytest.raises(CheckpointError, match=r"p3d131 starts from torchvision's resnet101"):
        inflate(image_network("resnet50").state_dict(), "p3d131")
    with pytest.raises(CheckpointError, match=r"not resnet50 \(\d+ misshapen: layer1\.0"):
        inflate(models.wide_resnet50_2(weights=None).state_dict(), "p3d63")
    with pytest.raises(CheckpointError, match=r"not googlenet \(\d+ misshapen: Conv3d_1a_7x7"):
        inflate(inflated("i3d", "googlenet").net.state_dict(), "i3d")
    with pytest.raises(UsageError, match=r"c3d cannot start from a 2-D network; these can: .*i3d"):
        inflate(image, "c3d")
    with pytest.raises(UsageError, match=r"no tensors that begin with 'Mixed_9'.*Mixed_3b"):
        inflate(image, "i3d", only=["Mixed_9"])


def test_the_auxiliary_classifiers_of_the_published_file_are_left_aside():
    image = dict(image_network("googlenet").state_dict())
    image["aux1.conv.conv.weight"] = torch.zeros(128, 512, 1, 1)
    image["aux2.fc2.bias"] = torch.zeros(1000)
    result = inflate(image, "i3d")
    assert result.random == ()
    assert isinstance(result.net, nn.Module)
