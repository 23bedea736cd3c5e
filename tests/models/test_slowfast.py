"""SlowFast: its tables, its two pathways and what passes between them; test_registry.py has the published numbers."""

import functools

import pytest
import torch
from lively import lively, noise

from vid3d_cli.models.backbones.slowfast import PoolConcat, slow_frames
from vid3d_cli.models.registry import BACKBONES

LAYERS = BACKBONES["slowfast_r50"].layers
build = BACKBONES["slowfast_r50"].build


@functools.cache
def random_net():
    return lively(build("rgb", 10))


def maps_of(net, clips):
    """What every layer puts out."""
    maps = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(lambda m, i, x, key=name: maps.update({key: x}))
        for name, path in LAYERS.items()
    ]
    with torch.inference_mode():
        net(clips)
    for hook in hooks:
        hook.remove()
    return maps


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------


def test_every_stage_puts_out_what_the_table_says():
    with torch.device("meta"):
        maps = maps_of(build("rgb", 400).eval(), torch.empty(2, 3, 32, 256, 256))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "slow.pool1": (2, 64, 8, 64, 64),
        "fast.pool1": (2, 8, 32, 64, 64),
        "slow.res2": (2, 256, 8, 64, 64),
        "fast.res2": (2, 32, 32, 64, 64),
        "slow.res3": (2, 512, 8, 32, 32),
        "fast.res3": (2, 64, 32, 32, 32),
        "slow.res4": (2, 1024, 8, 16, 16),
        "fast.res4": (2, 128, 32, 16, 16),
        "slow.res5": (2, 2048, 8, 8, 8),
        "fast.res5": (2, 256, 32, 8, 8),
    }


@pytest.mark.parametrize(
    ("pathway", "kernels"),
    [
        ("slow", {"pool1": (1, 7, 7), "res2": (1, 1, 1), "res3": (1, 1, 1), "res4": (3, 1, 1), "res5": (3, 1, 1)}),
        ("fast", {"pool1": (5, 7, 7), "res2": (3, 1, 1), "res3": (3, 1, 1), "res4": (3, 1, 1), "res5": (3, 1, 1)}),
    ],
)
def test_the_slow_pathway_spans_no_time_before_res4(pathway, kernels):
    with torch.device("meta"):
        net = build("rgb", 400)
    for stage, kernel in kernels.items():
        named = net.get_submodule(LAYERS[f"{pathway}.{stage}"]).named_modules()
        first = {m.kernel_size for name, m in named if name == "conv" or name.endswith("conv_a")}
        assert first == {kernel}


# ---------------------------------------------------------------------------------------------------------------------
# The pathways
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_frames", "frames"),
    [
        (32, [0, 4, 8, 13, 17, 22, 26, 31]),
        (16, [0, 5, 10, 15]),
        (8, [0, 7]),
        (4, [0]),
        (5, [0, 4]),
        (9, [0, 4, 8]),
    ],
)
def test_the_slow_pathway_takes_every_fourth_frame_or_so(num_frames, frames):
    assert slow_frames(num_frames) == frames


@pytest.mark.parametrize("num_frames", [*range(4, 260), *range(7_900, 8_000)])
def test_the_slow_frames_are_those_of_pytorchvideo(num_frames):
    published = torch.linspace(0, num_frames - 1, -(-num_frames // 4)).long()
    assert slow_frames(num_frames) == published.tolist()


def test_both_pathways_see_the_frames_of_one_clip():
    """Frame 5 of 16 is the slow pathway's second; frame 6 is for the fast one alone."""
    clips = noise(1, 3, 16, 32, 32)
    before = maps_of(random_net(), clips)
    for frame, changed in [(5, [1]), (6, [])]:
        other = clips.clone()
        other[:, :, frame] *= -1
        after = maps_of(random_net(), other)
        difference = (after["slow.pool1"] - before["slow.pool1"]).abs().amax((0, 1, 3, 4))
        assert difference.nonzero().flatten().tolist() == changed
        difference = (after["fast.pool1"] - before["fast.pool1"]).abs().amax((0, 1, 3, 4))
        assert difference.nonzero().flatten().tolist() == [*range(frame - 2, frame + 3)]  # its kernel spans five
        assert not torch.equal(after["slow.res2"], before["slow.res2"])  # it hears of it from the fast one


def test_lateral_connections_go_from_the_fast_to_the_slow_pathway_only():
    clips, fast_only = noise(1, 3, 16, 32, 32), noise(1, 3, 16, 32, 32, seed=1)
    fast_only[:, :, slow_frames(16)] = clips[:, :, slow_frames(16)]
    before = maps_of(random_net(), clips)
    told = maps_of(random_net(), fast_only)
    assert torch.equal(told["slow.pool1"], before["slow.pool1"])
    assert all(not torch.equal(told[f"slow.res{i}"], before[f"slow.res{i}"]) for i in (2, 3, 4, 5))

    stem = random_net().get_submodule(LAYERS["slow.pool1"])
    silent = stem.register_forward_hook(lambda m, i, x: torch.zeros_like(x))
    after = maps_of(random_net(), clips)
    silent.remove()
    assert not torch.equal(after["slow.res5"], before["slow.res5"])
    assert all(torch.equal(x, before[name]) for name, x in after.items() if name.startswith("fast"))


# ---------------------------------------------------------------------------------------------------------------------
# The head, and clips of other lengths and sizes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [7, 8, 10])
def test_the_scores_are_the_mean_over_windows_of_7_as_in_the_published_head(side):
    """At 256 px a map is 8² and has four windows; the published head classifies each and averages the scores."""
    proj = torch.nn.Linear(24 + 3, 5)
    slow, fast = noise(2, 24, 8, side, side), noise(2, 3, 32, side, side, seed=1)
    starts = range(side - 7 + 1)
    windows = [(slice(i, i + 7), slice(j, j + 7)) for i in starts for j in starts]
    scores = [
        proj(torch.cat([slow[..., rows, columns].mean((2, 3, 4)), fast[..., rows, columns].mean((2, 3, 4))], 1))
        for rows, columns in windows
    ]
    assert len(scores) == (side - 6) ** 2
    torch.testing.assert_close(proj(PoolConcat()(slow, fast)), torch.stack(scores).mean(0))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (5, 7, 6)])
def test_small_maps_have_one_window(shape):
    num_frames, *size = shape
    slow, fast = noise(2, 8, num_frames, *size), noise(2, 1, 4 * num_frames, *size)
    expected = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)
    torch.testing.assert_close(PoolConcat()(slow, fast), expected)


@pytest.mark.parametrize("num_frames", [4, 5, 6, 7, 8, 30, 33])
def test_a_clip_need_not_be_a_multiple_of_four_frames(num_frames):
    maps = maps_of(random_net(), noise(1, 3, num_frames, 32, 32))
    assert maps["fast.res5"].shape[2] == num_frames
    assert maps["slow.res5"].shape[2] == -(-num_frames // 4)
