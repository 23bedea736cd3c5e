"""S3D against what the published implementations returned, at the sizes they allow and at smaller ones."""

import functools

import numpy as np
import pytest
import torch
from lively import lively
from seeded import SeededCase
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import s3d as torchvision_s3d

from vid3d_cli import create_model
from vid3d_cli.errors import CheckpointError, ShapeError, UsageError
from vid3d_cli.models.backbones.s3d import S3D
from vid3d_cli.models.registry import BACKBONES

# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


def tensors_of(case, prefix=""):
    return {f"{prefix}{name}": torch.from_numpy(array) for name, array in case.state_dict().items()}


def test_kylemins_names_stand_where_torchvisions_do(tmp_path):
    """Both list the same tensors in the same order, so that their renaming can be checked without running anything."""
    kylemin = SeededCase("s3d_kylemin_64f")
    torch.save(tensors_of(kylemin), tmp_path / "s3d.pt")
    loaded = create_model("s3d", weights=tmp_path / "s3d.pt").state_dict()
    ours = SeededCase("s3d_torchvision_64f").facts["shapes"]
    assert list(loaded) == list(ours)
    for key, array in zip(ours, kylemin.state_dict().values(), strict=True):
        np.testing.assert_array_equal(loaded[key].numpy(), array)


@pytest.mark.exhaustive
def test_torchvisions_s3d_with_the_same_tensors_gives_the_same():
    ours, theirs = random_s3d(), torchvision_s3d(weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    # the fewest frames and rows that it takes, and a map wider than the pool's window
    clips = torch.rand(1, 3, 13, 209, 260, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        logits, expected = ours(clips).logits, theirs(clips)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_batch_norm_is_the_published_one():
    norms = [module for module in random_s3d().modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert len(norms) == 77
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 1e-3)}


# ---------------------------------------------------------------------------------------------------------------------
# Narrow networks, small clips
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def random_s3d():
    return lively(create_model("s3d"))


@pytest.mark.parametrize("shape", [(16, 96, 112), (8, 64, 64), (5, 17, 40)])
def test_a_map_smaller_than_the_pool_has_one_window_in_space(shape):
    net = lively(create_model("s3d_mini", num_classes=10))
    clips = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, features = net.features(clips), net(clips).features
    frames = maps.mean((3, 4))
    pairs = (frames[..., 1:] + frames[..., :-1]) / 2 if frames.shape[2] > 1 else frames
    torch.testing.assert_close(features, pairs.mean(2))


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_mini_is_small_and_comes_back_from_its_file(tmp_path, stream):
    net = create_model("s3d_mini", stream=stream, num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) < 600_000
    torch.save(net.state_dict(), tmp_path / "mini.pt")
    again = create_model("s3d_mini", stream=stream, weights=tmp_path / "mini.pt")
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in net.state_dict().items())


def test_a_checkpoint_of_the_wide_one_does_not_fit_the_mini(tmp_path):
    torch.save(random_s3d().state_dict(), tmp_path / "wide.pt")
    with pytest.raises(CheckpointError, match="misshapen"):
        create_model("s3d_mini", weights=tmp_path / "wide.pt")


@pytest.mark.parametrize("width", [0.01, 0.25, 0.3, 0.5, 1.0, 1.5])
def test_channels_are_multiples_of_8_near_the_width(width):
    net, wide = S3D(3, 10, width), S3D(3, 10)
    for narrow_module, module in zip(net.modules(), wide.modules(), strict=True):
        if isinstance(module, torch.nn.BatchNorm3d):
            channels = narrow_module.num_features
            assert channels % 8 == 0
            assert channels == 8 or abs(channels - width * module.num_features) <= 4
    with torch.inference_mode():
        assert net.eval()(torch.zeros(1, 3, 8, 32, 32)).features.shape == (1, net.feature_dim)


def test_momentum_suits_training_from_scratch_in_the_mini_alone():
    for name, momentum in [("s3d", 1e-3), ("s3d_mini", 0.1)]:
        with torch.device("meta"):
            net = BACKBONES[name].build("rgb", 10)
        assert {m.momentum for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d)} == {momentum}


# ---------------------------------------------------------------------------------------------------------------------
# The paper's other forms
# ---------------------------------------------------------------------------------------------------------------------

LAYERS = BACKBONES["s3d"].layers

STAGES = ("1a", "2c", "3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")

FORMS = {
    #                    1a … 3c      4b … 5c
    None: ("separable", "separable"),
    "i3d": ("3d", "3d"),
    "i2d": ("2d", "2d"),
    "bottom_heavy_i3d": ("3d", "2d"),
    "top_heavy_i3d": ("2d", "3d"),
    "bottom_heavy_s3d": ("separable", "2d"),
    "fast": ("2d", "separable"),
}

COUNTS = {
    #                     parameters   multiply-adds of 64 × 224², added up by hand from the paper's table
    None: (8_320_048, 71_913_857_024),
    "i3d": (12_697_264, 111_150_686_208),  # parameters: as the published I3D has
    "i2d": (6_009_904, 36_888_600_576),
    "bottom_heavy_i3d": (7_015_600, 100_009_205_760),
    "top_heavy_i3d": (11_691_568, 48_030_081_024),
    "bottom_heavy_s3d": (6_341_040, 68_050_706_432),
    "fast": (7_988_912, 40_751_751_168),
}


def form_of(stage, variant):
    return FORMS[variant][stage in STAGES[4:]]


def stage_of(net, stage):
    return net.get_submodule(LAYERS[f"Conv_{stage}" if stage in ("1a", "2c") else f"Mixed_{stage}"])


def options_of(variant):
    return BACKBONES["s3d"].variants[variant] if variant else {}


@functools.cache
def on_meta(variant):
    with torch.device("meta"):
        return BACKBONES["s3d"].build("rgb", 400, **options_of(variant)).eval()


@functools.cache
def narrow(variant):
    """Few channels, lively numbers."""
    return lively(S3D(3, 10, width=0.1, **options_of(variant)).eval())


def spanning_kernels(module):
    """Kernels other than 1×1×1, in the order in which they run."""
    kernels = [conv.kernel_size for conv in module.modules() if isinstance(conv, torch.nn.Conv3d)]
    return [kernel for kernel in kernels if kernel != (1, 1, 1)]


def test_all_forms_are_tested():
    assert set(FORMS) == set(COUNTS) == {None, *BACKBONES["s3d"].variants}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", FORMS)
def test_every_stage_has_the_kernels_of_its_form(variant, stage):
    k = 7 if stage == "1a" else 3
    kernels = {"3d": [(k, k, k)], "separable": [(1, k, k), (k, 1, 1)], "2d": [(1, k, k)]}[form_of(stage, variant)]
    num_branches = 1 if stage in ("1a", "2c") else 2
    assert spanning_kernels(stage_of(on_meta(variant), stage)) == num_branches * kernels


@pytest.mark.parametrize("split", STAGES)
def test_the_split_is_an_option(split):
    with torch.device("meta"):
        net = BACKBONES["s3d"].build("rgb", 400, bottom="2d", top="3d", split=split)
    whole = [stage for stage in STAGES if all(t == h for t, h, _ in spanning_kernels(stage_of(net, stage)))]
    assert whole == list(STAGES[STAGES.index(split) :])


@pytest.mark.parametrize("split", ["", "2b", "Mixed_4b", "6a"])
def test_an_unknown_split_names_the_known_ones(split):
    with pytest.raises(UsageError, match="1a, 2c, 3b"):
        BACKBONES["s3d"].build("rgb", 400, bottom="2d", top="3d", split=split)


@pytest.mark.parametrize("variant", FORMS)
def test_maps_are_as_large_in_every_form(variant):
    assert map_shapes(variant) == map_shapes(None)


@functools.cache
def map_shapes(variant):
    net, shapes = on_meta(variant), []
    hooks = [
        net.get_submodule(path).register_forward_hook(lambda m, i, x: shapes.append(tuple(x.shape)))
        for path in LAYERS.values()
    ]
    net(torch.empty(1, 3, 64, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize("variant", FORMS)
def test_parameters_and_multiply_adds_are_those_of_the_table(variant):
    net = on_meta(variant)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 64, 224, 224, device="meta"))
    assert (sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2) == COUNTS[variant]


def test_the_i3d_form_has_the_tensors_of_i3d():
    """Both list them in the same order; they differ in names and in how they pad."""
    with torch.device("meta"):
        i3d = BACKBONES["i3d"].build("rgb", 400)
    assert [p.shape for p in on_meta("i3d").parameters()] == [p.shape for p in i3d.parameters()]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", FORMS)
def test_convolutions_in_2d_see_one_frame_each_and_others_several(variant, stage):
    """Frames that change places before a stage do so after it, or not."""
    module, generator = stage_of(narrow(variant), stage), torch.Generator().manual_seed(2)
    in_channels = next(conv for conv in module.modules() if isinstance(conv, torch.nn.Conv3d)).in_channels
    x = torch.randn(1, in_channels, 6, 8, 8, generator=generator)
    places = torch.tensor([3, 0, 5, 1, 4, 2])

    def convolve(x):
        if stage == "1a":  # strides: let every frame come twice
            return module(x.repeat_interleave(2, 2))
        return module(x) if stage == "2c" else torch.cat([module.branch0(x), module.branch1(x), module.branch2(x)], 1)

    with torch.inference_mode():
        moved, expected = convolve(x[:, :, places]), convolve(x)[:, :, places]
    assert torch.allclose(moved, expected, atol=1e-5) == (form_of(stage, variant) == "2d")


def test_i2d_mixes_frames_in_max_pools_alone():
    net, places = narrow("i2d"), torch.tensor([3, 0, 5, 1, 4, 2])
    clip = torch.randn(1, 3, 12, 64, 64, generator=torch.Generator().manual_seed(3))
    moved = clip.unflatten(2, (6, 2))[:, :, places].flatten(2, 3)  # pairs of frames, as the stem strides by 2
    with torch.inference_mode():
        # max pool 3a is the last layer before a pool that spans time: the one in mixed 3b
        before, after = net.features[:5](clip), net.features[:5](moved)
        torch.testing.assert_close(after, before[:, :, places])
        assert not torch.allclose(net.features[5](after), net.features[5](before)[:, :, places], atol=1e-3)


@pytest.mark.parametrize("variant", FORMS)
def test_a_2d_stem_looks_at_every_other_frame(variant):
    clip = torch.randn(1, 3, 12, 64, 64, generator=torch.Generator().manual_seed(4))
    other = clip.clone()
    other[:, :, 1::2] = 0
    with torch.inference_mode():
        same = torch.equal(narrow(variant)(clip).features, narrow(variant)(other).features)
    assert same == (form_of("1a", variant) == "2d")


@pytest.mark.parametrize("variant", FORMS)
def test_every_form_takes_the_smallest_clip(variant):
    with torch.inference_mode():
        output = narrow(variant)(torch.rand(2, 3, 5, 17, 17))
        with pytest.raises(ShapeError, match="5 frames"):
            narrow(variant)(torch.rand(2, 3, 4, 17, 17))
    assert output.logits.shape == (2, 10)
    assert output.features.isfinite().all()
