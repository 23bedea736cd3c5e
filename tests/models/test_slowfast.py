"""SlowFast: its tables, its two pathways and what passes between them; test_backbones.py has the published numbers."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.errors import ShapeError
from vid3d_cli.models.backbones import BACKBONES
from vid3d_cli.models.backbones.slowfast import PoolConcat, build, slow_frames
from vid3d_cli.models.clip_model import create_model

LAYERS = BACKBONES["slowfast_r50"].layers


@functools.cache
def random_net():
    """Drawn like the seeded cases: a fresh network's answers hardly depend on its input."""
    net, generator = build("rgb", 10).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            elif isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


def random_clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


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


@pytest.mark.parametrize(
    ("stream", "channels", "num_parameters", "num_macs"),
    [
        ("rgb", 3, 34_566_488, 65_708_888_064),  # pytorchvideo's table says 34.57 M and 65.71 G
        ("flow", 2, 34_566_488 - 64 * 49 - 8 * 245, 65_708_888_064 - (64 * 49 * 8 + 8 * 245 * 32) * 128**2),
    ],
)
def test_the_size_is_the_published_one(stream, channels, num_parameters, num_macs):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = build(stream, 400).eval()
        net(torch.empty(1, channels, 32, 256, 256))
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters
    assert counter.get_total_flops() == 2 * num_macs


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


def test_a_published_file_keeps_its_tensors_under_model_state(tmp_path):
    torch.save({"model_state": random_net().state_dict()}, tmp_path / "SLOWFAST_8x8_R50.pyth")
    loaded = create_model("slowfast_r50", weights=tmp_path / "SLOWFAST_8x8_R50.pyth").state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in random_net().state_dict().items())


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
    assert slow_frames(num_frames).tolist() == frames


@pytest.mark.parametrize("num_frames", range(4, 260, 4))
def test_the_slow_frames_are_those_of_pytorchvideo(num_frames):
    published = torch.linspace(0, num_frames - 1, num_frames // 4).long()
    assert torch.equal(slow_frames(num_frames), published)


def test_both_pathways_see_the_frames_of_one_clip():
    """Frame 5 of 16 is the slow pathway's second; frame 6 is for the fast one alone."""
    clips = random_clips(1, 3, 16, 32, 32)
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


def test_the_fast_pathway_tells_the_slow_one_and_hears_nothing_back():
    clips, fast_only = random_clips(1, 3, 16, 32, 32), random_clips(1, 3, 16, 32, 32, seed=1)
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
    slow, fast = random_clips(2, 24, 8, side, side), random_clips(2, 3, 32, side, side, seed=1)
    starts = range(side - 7 + 1)
    windows = [(slice(i, i + 7), slice(j, j + 7)) for i in starts for j in starts]
    scores = [
        proj(torch.cat([slow[..., rows, columns].mean((2, 3, 4)), fast[..., rows, columns].mean((2, 3, 4))], 1))
        for rows, columns in windows
    ]
    assert len(scores) == (side - 6) ** 2
    torch.testing.assert_close(proj(PoolConcat()(slow, fast)), torch.stack(scores).mean(0))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (5, 7, 6)])
def test_maps_no_larger_than_a_window_are_averaged_whole(shape):
    num_frames, *size = shape
    slow, fast = random_clips(2, 8, num_frames, *size), random_clips(2, 1, 4 * num_frames, *size)
    expected = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)
    torch.testing.assert_close(PoolConcat()(slow, fast), expected)


@pytest.mark.parametrize("num_frames", [4, 5, 6, 7, 8, 30, 33])
def test_a_clip_need_not_be_a_multiple_of_four_frames(num_frames):
    maps = maps_of(random_net(), random_clips(1, 3, num_frames, 32, 32))
    assert maps["fast.res5"].shape[2] == num_frames
    assert maps["slow.res5"].shape[2] == -(-num_frames // 4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (0, 32, 32), (32, 0, 32)])
def test_clips_too_short_are_told_what_is_needed(shape):
    with torch.inference_mode(), pytest.raises(ShapeError, match="at least 4 frames") as error:
        random_net()(torch.zeros(1, 3, *shape))
    assert str(shape) in str(error.value)
    assert "\n" not in str(error.value)


def test_clips_do_not_mix_nor_does_the_layout_in_memory_matter():
    clips = random_clips(2, 3, 9, 40, 56)
    with torch.inference_mode():
        together, alone = random_net()(clips), random_net()(clips[1:])
        other = random_net()(clips.contiguous(memory_format=torch.channels_last_3d))
    for expected, x, y in zip(together, alone, other, strict=True):
        torch.testing.assert_close(x, expected[1:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns():
    torch.manual_seed(0)
    net = build("flow", 3)
    net(torch.rand(2, 2, 8, 64, 64)).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
