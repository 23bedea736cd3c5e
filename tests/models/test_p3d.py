"""P3D: its blocks against compositions by hand, its stages against the authors' prototxt, clips of any length."""

import functools

import pytest
import torch
import torch.nn.functional as F
from lively import lively, noise

from vid3d_cli.errors import UsageError
from vid3d_cli.models.backbones.p3d import BLOCKS, Flat
from vid3d_cli.models.registry import BACKBONES

NAMES = ["p3d63", "p3d131", "p3d199"]


@functools.cache
def random_p3d63(structure="ABC"):
    return lively(BACKBONES["p3d63"].build("rgb", 10, structure=structure))


@functools.cache
def on_meta(name, stream="rgb", structure="ABC"):
    with torch.device("meta"):
        return BACKBONES[name].build(stream, 400, structure=structure).eval()


def run(net, clips):
    with torch.inference_mode():
        return net(clips)


def assert_equal(answer, expected, tolerance=1e-5):
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= tolerance * expected.abs().max()


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------


def by_hand(letter, tensors, x, stride):
    """A block as the prototxt draws it, out of its tensors."""

    def norm(x, name):
        mean, var, weight, bias = (tensors[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    shortcut = x
    if "downsample.0.weight" in tensors:
        shortcut = norm(F.conv3d(x, tensors["downsample.0.weight"], stride=(1, stride, stride)), "downsample.1")
    x = F.relu(norm(F.conv3d(x, tensors["conv1.weight"], stride=(1, stride, stride)), "bn1"))
    space = F.relu(norm(F.conv3d(x, tensors["conv2.weight"], padding=(0, 1, 1)), "bn2"))
    time = norm(F.conv3d(x if letter == "B" else space, tensors["conv3.weight"], padding=(1, 0, 0)), "bn3")
    if letter == "A":
        x = F.relu(time)
    elif letter == "c":
        x = F.relu(0.5 * space + 0.5 * time)
    else:
        x = F.relu(space + time)
    return F.relu(shortcut + norm(F.conv3d(x, tensors["conv4.weight"]), "bn4"))


@pytest.mark.parametrize(("in_channels", "stride"), [(32, 1), (16, 1), (16, 2)])  # 32 go through unchanged
@pytest.mark.parametrize("letter", BLOCKS)
def test_a_block_is_its_composition_by_hand(letter, in_channels, stride):
    block = lively(BLOCKS[letter](in_channels, 8, stride))
    x = noise(2, in_channels, 5, 7, 6)
    assert_equal(run(block, x), by_hand(letter, block.state_dict(), x, stride))


@pytest.mark.parametrize(("in_channels", "stride"), [(32, 1), (16, 2)])
def test_the_flat_block_is_a_bottleneck_of_two_dimensions(in_channels, stride):
    block = lively(Flat(in_channels, 8, stride))
    x = noise(2, in_channels, 7, 6)
    with torch.inference_mode():
        y = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=stride)))
        y = F.relu(block.bn_normal(F.conv2d(y, block.conv_normal.weight, padding=1)))
        shortcut = x
        if in_channels != 32:
            shortcut = block.downsample[1](F.conv2d(x, block.downsample[0].weight, stride=stride))
        expected = F.relu(shortcut + block.bn4(F.conv2d(y, block.conv4.weight)))
    assert_equal(run(block, x), expected)


def letters(stage):
    return "".join({kind: letter for letter, kind in BLOCKS.items()}[type(block)] for block in stage)


def test_the_blocks_take_turns_as_in_the_prototxt():
    """Its res2a is an A; the turns do not start anew with res3a or res4a, which is a C."""
    net = on_meta("p3d199")
    assert letters(net.layer1) == "ABC"
    assert letters(net.layer2) == "ABCABCAB"
    assert letters(net.layer3) == "CAB" * 12
    assert [type(block) for block in net.layer4] == [Flat] * 3


@pytest.mark.parametrize(("name", "depths"), [("p3d63", (3, 4, 6)), ("p3d131", (3, 4, 23)), ("p3d199", (3, 8, 36))])
@pytest.mark.parametrize(("variant", "turn"), [("A", "A"), ("B", "B"), ("C", "C"), ("caffe", "ABc")])
def test_a_variant_is_made_of_its_blocks(name, depths, variant, turn):
    net = on_meta(name, **BACKBONES[name].variants[variant])
    stages = letters(net.layer1), letters(net.layer2), letters(net.layer3)
    assert tuple(map(len, stages)) == depths
    assert "".join(stages) == (turn * 63)[: sum(depths)]
    assert [type(block) for block in net.layer4] == [Flat] * 3


def test_a_half_folded_into_conv4_makes_the_caffe_model_the_plain_one():
    """Which is why a checkpoint cannot say which of the two it needs."""
    tensors = dict(random_p3d63().state_dict())
    halving = BACKBONES["p3d63"].build("rgb", 10, **BACKBONES["p3d63"].variants["caffe"]).eval()
    halving.load_state_dict(tensors)
    clips = noise(1, 3, 8, 48, 48)
    plain = run(random_p3d63(), clips).features
    assert (run(halving, clips).features - plain).abs().max() > 0.1 * plain.abs().max()
    for block in ("layer1.2", "layer2.2", "layer3.1", "layer3.4"):
        tensors[f"{block}.conv4.weight"] = 2 * tensors[f"{block}.conv4.weight"]
    halving.load_state_dict(tensors)
    assert_equal(run(halving, clips).features, plain)


@pytest.mark.parametrize("structure", ["", "D", "ABD", "a"])
def test_an_unknown_block_is_refused(structure):
    with pytest.raises(UsageError, match="A, B, C, c"):
        BACKBONES["p3d63"].build("rgb", 10, structure=structure)


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


def shapes_inside(net, clips):
    """What the stages put out and, by the names of the stages that they feed, what the pools in time do."""
    shapes = {}
    stages = ["relu", "pool1", "layer1", "layer2", "layer3", "layer4"]
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, i, y, name=name: shapes.update({name: y.shape[1:]}))
        for name in stages
    ]
    hooks += [
        net.get_submodule(name).register_forward_pre_hook(
            lambda m, i, name=name: shapes.update({f"into {name}": i[0].shape[1:]})
        )
        for name in stages[3:]
    ]
    run(net, clips)
    for hook in hooks:
        hook.remove()
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_stages(name):
    assert shapes_inside(on_meta(name), torch.empty(2, 3, 16, 160, 160, device="meta")) == {
        "relu": (64, 16, 80, 80),
        "pool1": (64, 8, 40, 40),
        "layer1": (256, 8, 40, 40),
        "into layer2": (256, 4, 40, 40),
        "layer2": (512, 4, 20, 20),
        "into layer3": (512, 2, 20, 20),
        "layer3": (1024, 2, 10, 10),
        "into layer4": (1024, 1, 10, 10),
        "layer4": (2048, 1, 5, 5),
    }


@pytest.mark.parametrize(
    ("num_frames", "lengths"),
    [
        (1, [1, 1, 1, 1, 1]),
        (8, [8, 4, 2, 1, 1]),
        (16, [16, 8, 4, 2, 1]),
        (17, [17, 9, 5, 3, 2]),
        (32, [32, 16, 8, 4, 2]),
        (50, [50, 25, 13, 7, 4]),
    ],
)
def test_every_pool_halves_time_and_keeps_the_odd_frame(num_frames, lengths):
    shapes = shapes_inside(on_meta("p3d63"), torch.empty(1, 3, num_frames, 64, 64, device="meta"))
    assert [shapes[name][1] for name in ("relu", "layer1", "layer2", "layer3", "layer4")] == lengths


@pytest.mark.parametrize(("size", "pooled"), [(80, 40), (79, 39), (5, 2), (4, 2), (3, 1), (2, 1)])
def test_pool1_starts_at_the_first_pixel_and_covers_the_last(size, pooled):
    """3 pixels from every other one on, of which the last window may miss some: Caffe's rule, without padding."""
    x = noise(1, 2, 4, size, size)
    expected = torch.stack([x[..., 2 * i : 2 * i + 3].amax(-1) for i in range(pooled)], -1)
    expected = torch.stack([expected[..., 2 * i : 2 * i + 3, :].amax(-2) for i in range(pooled)], -2)
    expected = torch.stack([expected[:, :, 0:2].amax(2), expected[:, :, 2:4].amax(2)], 2)
    assert 2 * pooled + 1 >= size
    assert torch.equal(random_p3d63().pool1(x), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Clips of any length
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [16, 17, 32])
def test_features_are_the_mean_of_those_of_the_frames_that_are_left(num_frames):
    net, left = random_p3d63(), []
    hook = net.layer4.register_forward_pre_hook(lambda module, inputs: left.append(inputs[0]))
    output = run(net, noise(2, 3, num_frames, 64, 48))
    hook.remove()
    assert left[0].shape[:3] == (2, 1024, 1 if num_frames == 16 else 2)
    for clip in range(2):
        features, logits = [], []
        for frame in left[0][clip].unbind(1):
            x = frame[None]
            with torch.inference_mode():
                for block in net.layer4:
                    x = block(x)
                features.append(x.mean((2, 3))[0])
                logits.append(net.fc(features[-1]))
        assert_equal(output.features[clip], torch.stack(features).mean(0))
        assert_equal(output.logits[clip], torch.stack(logits).mean(0))


def test_res5_sees_every_frame_by_itself():
    maps = noise(2, 1024, 3, 4, 4)
    changed = maps.clone()
    changed[1, :, 2] += 1
    with torch.inference_mode():
        before, after = random_p3d63().layer4(maps), random_p3d63().layer4(changed)
    assert before.shape == (2, 2048, 3, 2, 2)
    differs = (before - after).abs().amax((1, 3, 4)) > 1e-3 * before.abs().max()
    assert differs.tolist() == [[False, False, False], [False, False, True]]


@pytest.mark.parametrize("structure", BLOCKS)
def test_every_block_sees_the_order_of_the_frames(structure):
    clips = noise(1, 3, 8, 32, 32)
    there, back = (run(random_p3d63(structure), x).features for x in (clips, clips.flip(2)))
    assert (there - back).abs().max() > 0.01 * there.abs().max()
