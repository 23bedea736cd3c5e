"""The 2-D two-stream network: its layer table, the normalisation, and what each stream looks at."""

import functools

import numpy as np
import pytest
import torch
from lively import lively

from vid3d_cli.models.backbones._layers import LocalResponseNorm
from vid3d_cli.models.backbones.two_stream import stack_flow
from vid3d_cli.models.registry import BACKBONES

LAYERS = BACKBONES["two_stream"].layers
build = BACKBONES["two_stream"].build

CHANNELS = {"rgb": 3, "flow": 2}


@functools.cache
def random_net(stream):
    return lively(build(stream, 10))


def random_clips(stream, num_clips=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_clips, CHANNELS[stream], 10, 224, 224, generator=generator) * 2 - 1


def outputs_of(net, clips, names):
    """What the modules of these names put out."""
    outputs = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, i, x, key=name: outputs.update({key: x}))
        for name in names
    ]
    with torch.inference_mode():
        net(clips)
    for hook in hooks:
        hook.remove()
    return outputs


def logits_of(stream, clips):
    with torch.inference_mode():
        return random_net(stream)(clips).logits


# ---------------------------------------------------------------------------------------------------------------------
# The layer table
# ---------------------------------------------------------------------------------------------------------------------

# fmt: off
SHAPES = {
    "features.conv1": (96, 1, 109, 109),
    "features.norm1": (96, 1, 109, 109),
    "features.pool1": (96, 1, 54, 54),
    "features.conv2": (256, 1, 26, 26),
    "features.norm2": (256, 1, 26, 26),
    "features.pool2": (256, 1, 13, 13),
    "features.conv3": (512, 1, 13, 13),
    "features.conv4": (512, 1, 13, 13),
    "features.conv5": (512, 1, 13, 13),
    "features.pool5": (512, 1, 6, 6),
    "full6": (4096,),
    "full7": (2048,),
}
# fmt: on


@pytest.mark.parametrize("stream", CHANNELS)
def test_every_layer_puts_out_what_the_table_says(stream):
    names = [name for name in SHAPES if (stream, name) != ("flow", "features.norm2")]
    with torch.device("meta"):
        clips = torch.empty(2, CHANNELS[stream], 10, 224, 224)
        outputs = outputs_of(build(stream, 101).eval(), clips, names)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {name: (2, *SHAPES[name]) for name in names}
    assert list(outputs) == names  # in the order in which they run


@pytest.mark.parametrize(("stream", "norms"), [("rgb", ["norm1", "norm2"]), ("flow", ["norm1"])])
def test_only_the_rgb_stream_has_the_second_normalisation(stream, norms):
    with torch.device("meta"):
        net = build(stream, 101)
    assert [name for name, module in net.features.named_children() if isinstance(module, LocalResponseNorm)] == norms


def test_the_normalisation_is_krizhevskys():
    """PyTorch's alpha is five times his, since it averages over the channels where he sums."""
    x = np.random.default_rng(0).normal(0, 30, (2, 12, 1, 4, 3))
    expected = np.empty_like(x)
    for i in range(12):
        neighbours = x[:, max(i - 2, 0) : i + 3]
        expected[:, i] = x[:, i] / (2 + 1e-4 * (neighbours**2).sum(1)) ** 0.75
    np.testing.assert_allclose(LocalResponseNorm()(torch.from_numpy(x)).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stream", CHANNELS)
def test_the_features_are_full7_after_its_relu_and_feed_the_classifier(stream):
    net, clips = random_net(stream), random_clips(stream, num_clips=2)
    outputs = outputs_of(net, clips, SHAPES.keys() - {"features.norm2"})
    with torch.inference_mode():
        features, logits = net(clips)
        torch.testing.assert_close(net.classifier(outputs["full7"]), logits)
    assert torch.equal(features, outputs["full7"])
    for name in ("features.conv1", "features.conv2", "features.conv3", "features.conv5", "full6", "full7"):
        assert outputs[name].min() == 0  # a ReLU was the last to touch it
        assert outputs[name].max() > 0


def test_the_pools_take_the_window_over_the_edge():
    """26 px leave a last window of two: without Caffe's rounding conv3 would see 12²."""
    net = random_net("rgb")
    outputs = outputs_of(net, random_clips("rgb"), ["features.norm2", "features.pool2"])
    corner = outputs["features.norm2"][..., 24:, 24:].amax((3, 4))
    assert torch.equal(outputs["features.pool2"][..., 12, 12], corner)


# ---------------------------------------------------------------------------------------------------------------------
# What each stream looks at
# ---------------------------------------------------------------------------------------------------------------------


def test_the_rgb_stream_sees_the_first_frame_alone():
    clips = random_clips("rgb")
    before = logits_of("rgb", clips)
    others = clips.clone()
    others[:, :, 1:] *= -1
    assert torch.equal(logits_of("rgb", others), before)
    first = clips.clone()
    first[:, :, 0] *= -1
    assert not torch.allclose(logits_of("rgb", first), before, rtol=1e-2)


@pytest.mark.parametrize("component", [0, 1])
def test_the_flow_stream_sees_both_components_of_all_ten_fields(component):
    clips = random_clips("flow")
    before = logits_of("flow", clips)
    for frame in range(10):
        other = clips.clone()
        other[:, component, frame] *= -1
        assert not torch.allclose(logits_of("flow", other), before, rtol=1e-2)


def test_the_order_of_the_fields_matters():
    clips = random_clips("flow")
    assert not torch.allclose(logits_of("flow", clips.flip(2)), logits_of("flow", clips), rtol=1e-2)


def test_the_stack_is_x_and_y_of_one_field_after_another():
    """The paper's eq. 1, whose indices start at 1: I(2k - 1) is x and I(2k) is y of field k."""
    clips = random_clips("flow", num_clips=2)
    stack = stack_flow(clips).numpy()
    assert stack.shape == (2, 20, 1, 224, 224)
    fields = clips.numpy().astype(np.float64)
    for k in range(1, 11):
        for channel, component in [(2 * k - 1, 0), (2 * k, 1)]:
            field = fields[:, component, k - 1]
            expected = field - field.mean((1, 2), keepdims=True)
            np.testing.assert_allclose(stack[:, channel - 1, 0], expected, atol=1e-6)


def test_a_camera_that_shifts_a_whole_field_changes_nothing():
    clips = random_clips("flow")
    shift = torch.rand(1, 2, 10, 1, 1, generator=torch.Generator().manual_seed(2)) * 4 - 2
    before, after = logits_of("flow", clips), logits_of("flow", clips + shift)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    halved = clips.clone()
    halved[:, :, :, :112] += shift  # half of a field is no camera's doing
    assert (logits_of("flow", halved) - before).abs().max() > 1e-2 * before.abs().max()


# ---------------------------------------------------------------------------------------------------------------------
# Clips and training
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "ratio"), [("rgb", 0.5), ("flow", 0.9)])
def test_dropout_falls_on_both_full_layers_in_training_only(stream, ratio):
    with torch.device("meta"):
        net = build(stream, 101)
        dropped = []
        net.dropout.register_forward_hook(lambda m, i, x: dropped.append((m.p, m.training, x.shape[1])))
        for mode in (True, False):
            net.train(mode)(torch.empty(1, CHANNELS[stream], 10, 224, 224))
    assert dropped == [(ratio, mode, width) for mode in (True, False) for width in (4096, 2048)]
