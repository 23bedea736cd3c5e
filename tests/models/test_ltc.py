"""LTC against the authors' Torch7 definition, restated here, and against what the paper is about: long clips."""

import functools

import pytest
import torch
import torch.nn.functional as F

from vid3d_cli import create_model
from vid3d_cli.errors import ShapeError, UsageError
from vid3d_cli.models.backbones.ltc import LTC
from vid3d_cli.models.checkpoint import recognise
from vid3d_cli.models.registry import BACKBONES


def on_meta(num_frames, side_px, in_channels=2, num_classes=101):
    with torch.device("meta"):
        return LTC(in_channels, num_classes, num_frames, side_px).eval()


def shapes_of(net, clips):
    """Layer → shape of one clip's output, in the order in which they run."""
    shapes = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(
            lambda m, i, x, key=layer: shapes.update({key: tuple(x[0].shape)})
        )
        for layer, path in BACKBONES["ltc"].layers.items()
    ]
    net(clips)
    for hook in hooks:
        hook.remove()
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

# Frames and side after every layer; maps of conv1 to conv5 and of the pool after each.
TABLES = {
    (100, 58): [(100, 58), (100, 29), (100, 29), (50, 14), (50, 14), (25, 7), (25, 7), (12, 3), (12, 3), (6, 1)],
    (60, 58): [(60, 58), (60, 29), (60, 29), (30, 14), (30, 14), (15, 7), (15, 7), (7, 3), (7, 3), (3, 1)],
    (100, 71): [(100, 71), (100, 35), (100, 35), (50, 17), (50, 17), (25, 8), (25, 8), (12, 4), (12, 4), (6, 2)],
    (60, 71): [(60, 71), (60, 35), (60, 35), (30, 17), (30, 17), (15, 8), (15, 8), (7, 4), (7, 4), (3, 2)],
    (16, 112): [(16, 112), (16, 56), (16, 56), (8, 28), (8, 28), (4, 14), (4, 14), (2, 7), (2, 7), (1, 3)],
}
MAPS = [64, 64, 128, 128, 256, 256, 256, 256, 256, 256]


@pytest.mark.parametrize(("num_frames", "side_px"), TABLES)
def test_every_layer_has_the_shape_of_the_table(num_frames, side_px):
    clips = torch.empty(1, 2, num_frames, side_px, side_px, device="meta")
    shapes = shapes_of(on_meta(num_frames, side_px), clips)
    names = [f"{kind}{i}" for i in range(1, 6) for kind in ("conv", "pool")]
    table = zip(names, MAPS, TABLES[num_frames, side_px], strict=True)
    expected = {name: (maps, frames, side, side) for name, maps, (frames, side) in table}
    assert list(shapes.items()) == [*expected.items(), ("fc6", (2048,)), ("fc7", (2048,))]


@pytest.mark.parametrize(
    ("num_frames", "side_px", "width"),
    [
        (16, 112, 2304),
        *zip((20, 40, 60, 80, 100), [58] * 5, (256, 512, 768, 1280, 1536), strict=True),
        *zip((20, 40, 60, 80, 100), [71] * 5, (1024, 2048, 3072, 5120, 6144), strict=True),
    ],
)
def test_the_width_of_fc6_follows_from_the_clip(num_frames, side_px, width):
    net = on_meta(num_frames, side_px)
    assert net.fc6.weight.shape == (2048, width)
    convolutions = sum(27 * i * o + o for i, o in [(2, 64), (64, 128), (128, 256), (256, 256), (256, 256)])
    connections = sum(i * o + o for i, o in [(width, 2048), (2048, 2048), (2048, 101)])
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + connections


def test_the_variants_are_the_authors_other_clips():
    backbone = BACKBONES["ltc"]
    assert backbone.clip == (100, 58)
    assert {backbone.clip_of(variant) for variant in ("", *backbone.variants)} == {
        (16, 112),
        *((num_frames, side_px) for side_px in (58, 71) for num_frames in (20, 40, 60, 80, 100)),
    }
    assert all(backbone.clip_of(variant) == tuple(map(int, variant.split("x"))) for variant in backbone.variants)


@pytest.mark.parametrize(("variant", "clip"), [(None, (100, 58)), ("60x71", (60, 71)), ("16x112", (16, 112))])
def test_a_checkpoint_determines_its_clip(variant, clip):
    """All widths of fc6 differ, so that --variant can be guessed from a file."""
    state = on_meta(*clip, in_channels=3, num_classes=7).state_dict()
    assert [form for form in recognise(state) if form[0] == "ltc"] == [("ltc", "rgb", variant, 7)]


def test_dropout_is_the_authors_for_each_stream():
    with torch.device("meta"):
        assert BACKBONES["ltc"].build("flow", 101).dropout.p == 0.9
        assert BACKBONES["ltc"].build("rgb", 101).dropout.p == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def random_ltc(num_frames, side_px):
    """Drawn so that answers depend on the clip: a fresh network's hardly do."""
    net = LTC(2, 10, num_frames, side_px).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.normal_(0, scale, generator=generator)
    return net


def random_clips(num_clips, num_frames, side_px):
    clips = torch.rand(num_clips, 2, num_frames, side_px, side_px, generator=torch.Generator().manual_seed(0))
    return clips * 2 - 1


def restated(state, x):
    """`models/ltc.lua` line by line, without its dropout and its final LogSoftMax."""
    for i in range(1, 6):
        x = F.conv3d(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], stride=1, padding=1)
        x = F.threshold(x, 0, 0)
        x = F.max_pool3d(x, (1 if i == 1 else 2, 2, 2))
    for i in (6, 7):
        x = F.threshold(F.linear(x.reshape(len(x), -1), state[f"fc{i}.weight"], state[f"fc{i}.bias"]), 0, 0)
    return x, F.linear(x, state["fc8.weight"], state["fc8.bias"])


@pytest.mark.parametrize(("num_frames", "side_px"), [(20, 58), (20, 71), (37, 45)])
def test_it_computes_what_the_authors_definition_says(num_frames, side_px):
    net, clips = random_ltc(num_frames, side_px), random_clips(2, num_frames, side_px)
    with torch.inference_mode():
        output = net(clips)
        features, logits = restated(net.state_dict(), clips)
        channels_last = net(clips.to(memory_format=torch.channels_last_3d))
    for answer in (output, channels_last):
        assert (answer.features - features).abs().max() <= 1e-5 * features.abs().max()
        assert (answer.logits - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert features.min() == 0  # after the ReLU
    assert (features[0] != features[1]).any()


def frames_that_matter(net, module, take):
    """Frames of a random clip on which a part of a module's output depends."""
    clips = random_clips(1, net.clip_shape[0], net.clip_shape[1]).requires_grad_()
    taken = []
    hook = module.register_forward_hook(lambda m, i, output: taken.append(take(output).sum()))
    net(clips)
    hook.remove()
    (gradient,) = torch.autograd.grad(taken[0], clips)
    return gradient.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()


def test_features_depend_on_all_100_frames():
    net = random_ltc(100, 32)
    assert frames_that_matter(net, net.fc7, lambda x: x) == list(range(100))


@pytest.mark.parametrize(("frame", "first", "last"), [(0, 0, 31), (2, 16, 63), (3, 32, 79), (5, 64, 99)])
def test_before_fc6_no_map_sees_more_than_48_frames(frame, first, last):
    """pool5 pools 16 frames to one, and the convolutions below reach 1 + 1 + 2 + 4 + 8 further on either side."""
    net = random_ltc(100, 32)
    assert frames_that_matter(net, net.pool5, lambda x: x[:, :, frame]) == list(range(first, last + 1))


# ---------------------------------------------------------------------------------------------------------------------
# Clips that do not fit
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_frames", "side_px"), [(15, 58), (100, 31)])
def test_a_network_for_clips_that_leave_fc6_nothing_cannot_be_built(num_frames, side_px):
    with pytest.raises(ShapeError, match="at least 16 frames and 32 × 32 px"):
        on_meta(num_frames, side_px)


def test_the_smallest_clip_leaves_fc6_one_place():
    assert on_meta(16, 32).fc6.in_features == 256


def test_a_variant_is_chosen_by_name():
    net = create_model("ltc", stream="flow", num_classes=3, variant="20x58")
    assert net.clip_shape == (20, 58, 58)
    with torch.inference_mode():
        assert net(random_clips(1, 20, 58)).logits.shape == (1, 3)
    with pytest.raises(UsageError, match="60x71"):
        create_model("ltc", variant="60x70")
