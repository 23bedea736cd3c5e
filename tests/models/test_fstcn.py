"""FstCN against the paper's ideas: 2D and 1D kernels make a 3D one, T-P, differences in time, one frame in space."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lively import lively

from vid3d_cli.models.backbones.fstcn import SCL, TCL, FstCN, TransformPermute, choose_frame, sample_pairs
from vid3d_cli.models.registry import BACKBONES

SAMPLES = [0, 5, 10, 15, 20]
PARTNERS = [9, 14, 19, 24, 29]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@functools.cache
def random_fstcn():
    return lively(FstCN(3, 10, kernels=(3,)))  # with the second kernel it has 84 million parameters more


@functools.cache
def random_clip():
    return torch.rand(1, 3, 30, 204, 204, generator=generator()) * 2 - 1


def outputs_of(net, clips, *names):
    """The outputs of some modules, and of the network under "net"."""
    outputs = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, i, x, name=name: outputs.update({name: x}))
        for name in names
    ]
    outputs["net"] = net(clips)
    for hook in hooks:
        hook.remove()
    return outputs


def assert_same(answer, expected):
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()


def on_meta(in_channels=3, num_classes=101, **options):
    with torch.device("meta"):
        return FstCN(in_channels, num_classes, **options)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

TABLE = {
    "scl1.0": (96, 6, 102, 102),
    "scl1": (96, 6, 50, 50),
    "scl2.0": (256, 6, 25, 25),
    "scl2": (256, 6, 12, 12),
    "scl3": (512, 6, 12, 12),
    "scl4": (512, 6, 12, 12),
    "temporal_scl.0": (128, 5, 12, 12),
    "temporal_scl": (128, 5, 4, 4),
    "temporal_tp": (16, 5, 128, 1),
    "tcl.paths.0": (32, 5, 128, 1),
    "tcl.paths.1": (32, 5, 128, 1),
    "tcl": (64, 5, 128, 1),
    "temporal_fc1": (4096,),
    "temporal_fc2": (2048,),
    "spatial_scl.0": (128, 1, 12, 12),
    "spatial_scl": (128, 1, 4, 4),
    "spatial_fc1": (4096,),
    "spatial_fc2": (2048,),
    "fc": (2048,),
}


@pytest.mark.parametrize("in_channels", [3, 2])
def test_every_layer_has_the_shape_of_the_table(in_channels):
    net = on_meta(in_channels).eval()
    outputs = outputs_of(net, torch.empty(2, in_channels, 30, 204, 204, device="meta"), *TABLE)
    assert {name: tuple(outputs[name].shape) for name in TABLE} == {name: (2, *shape) for name, shape in TABLE.items()}
    assert set(BACKBONES["fstcn"].layers.values()) <= set(TABLE)
    assert outputs["net"].features.shape == (2, 2048)
    assert outputs["net"].logits.shape == (2, 101)


@pytest.mark.parametrize(("in_channels", "kernels"), [(3, (3, 5)), (2, (3, 5)), (3, (3,)), (3, (5,))])
def test_the_number_of_parameters_is_that_of_the_table(in_channels, kernels):
    spatial = [(in_channels, 96, 7), (96, 256, 5), (256, 512, 3), (512, 512, 3), (512, 128, 3), (512, 128, 3)]
    convolutions = spatial + [(16, 32, kernel) for kernel in kernels]
    connected = [(32 * len(kernels) * 5 * 128, 4096), (4096, 2048), (128 * 4 * 4, 4096), (4096, 2048), (4096, 2048)]
    expected = sum(i * o * k**2 + o for i, o, k in convolutions) + 128 * 128
    expected += sum(i * o + o for i, o in [*connected, (2048, 101)])
    assert sum(parameter.numel() for parameter in on_meta(in_channels, kernels=kernels).parameters()) == expected


def test_the_variants_have_one_kernel():
    backbone = BACKBONES["fstcn"]
    for variant, kernel in [("tcl3", 3), ("tcl5", 5)]:
        with torch.device("meta"):
            net = backbone.build("rgb", 10, **backbone.variants[variant])
        assert [path[0].kernel_size for path in net.tcl.paths] == [(kernel, kernel, 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Samples and differences
# ---------------------------------------------------------------------------------------------------------------------


def test_samples_are_5_frames_apart_and_differences_9():
    frames = torch.arange(30.0) ** 2  # no two differences are alike
    samples, differences = sample_pairs(frames.view(1, 1, 30, 1, 1))
    assert samples.flatten().tolist() == [t**2 for t in SAMPLES]
    assert differences.flatten().tolist() == [u**2 - t**2 for t, u in zip(SAMPLES, PARTNERS, strict=True)]


def test_differences_have_no_sign():
    clips = torch.rand(2, 3, 30, 4, 4, generator=generator())
    forwards, backwards = sample_pairs(clips)[1], sample_pairs(clips.flip(2))[1]
    assert (forwards >= 0).all()
    torch.testing.assert_close(forwards, backwards.flip(2))


def test_the_middle_sample_is_chosen_and_in_training_a_random_one_of_each_clip():
    samples = torch.arange(5.0).expand(64, 5).reshape(64, 1, 5, 1, 1)
    assert choose_frame(samples, is_random=False).shape == (64, 1, 1, 1, 1)
    assert set(choose_frame(samples, is_random=False).flatten().tolist()) == {2.0}
    torch.manual_seed(0)
    assert set(choose_frame(samples, is_random=True).flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_random_frame_is_one_of_its_own_clip():
    samples = torch.rand(8, 3, 5, 2, 2, generator=generator())
    frames = choose_frame(samples, is_random=True)
    assert all((samples[i] == frames[i]).all((0, 2, 3)).any() for i in range(8))


# ---------------------------------------------------------------------------------------------------------------------
# Factorisation and T-P
# ---------------------------------------------------------------------------------------------------------------------


def test_transformation_and_permutation_is_that_of_its_definition():
    operator = lively(TransformPermute(3, 4))
    maps = np.random.default_rng(0).standard_normal((2, 3, 5, 2, 3)).astype(np.float32)  # (N, F, T, H, W)
    permutation = operator.permutation.detach().numpy()
    expected = np.zeros((2, 2 * 3, 5, 4, 1))
    for n, t, y, x in itertools.product(range(2), range(5), range(2), range(3)):
        expected[n, y * 3 + x, t, :, 0] = permutation.T @ maps[n, :, t, y, x]
    with torch.inference_mode():
        np.testing.assert_allclose(operator(torch.from_numpy(maps)).numpy(), expected, atol=1e-6)


def test_a_permutation_matrix_permutes_the_features_and_the_first_one_leaves_them():
    operator, order = TransformPermute(6, 6), [3, 0, 5, 1, 4, 2]
    maps = torch.rand(2, 6, 5, 4, 4, generator=generator())
    transformed = maps.permute(0, 3, 4, 2, 1).reshape(2, 16, 5, 6, 1)
    with torch.inference_mode():
        assert_same(operator(maps), transformed)
        operator.permutation.copy_(torch.eye(6)[:, order])
        assert_same(operator(maps), transformed[:, :, :, order])


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_kernel_in_space_and_then_one_in_time_are_a_3d_kernel_of_rank_one(kernel):
    """The paper's starting point: K = K_xy ⊗ k_t, of k² + k parameters in place of k³, place by place."""
    side, features = 4, 6
    spatial, temporal = lively(SCL(3, features, kernel, 1))[0], lively(TCL(side**2, 1, [kernel])).paths[0][0]
    spatial.bias.data.zero_()
    temporal.bias.data.zero_()
    in_time = torch.rand(kernel, generator=generator(2))
    rank_one = torch.einsum("t,fcyx->fctyx", in_time, spatial.weight[:, :, 0])
    clips = torch.rand(2, 3, 5, side, side, generator=generator())
    with torch.inference_mode():
        expected = F.conv3d(clips, rank_one, padding=kernel // 2)  # (N, F, T, H, W)
        transformed = TransformPermute(features, features)(spatial(clips))
        for place in range(side**2):
            temporal.weight.zero_()
            temporal.weight[0, place, :, kernel // 2, 0] = in_time  # this place, and no other feature but its own
            assert_same(temporal(transformed)[:, 0, :, :, 0], expected.flatten(3)[..., place].mT)


def test_spatial_layers_see_single_frames():
    net, order = random_fstcn(), [4, 0, 3, 1, 2]
    frames = random_clip()[:, :, SAMPLES]
    with torch.inference_mode():
        maps, permuted = (net.scl4(net.scl3(net.scl2(net.scl1(x)))) for x in (frames, frames[:, :, order]))
    assert_same(permuted, maps[:, :, order])


# ---------------------------------------------------------------------------------------------------------------------
# The paths
# ---------------------------------------------------------------------------------------------------------------------


def test_the_order_of_the_pairs_matters_to_the_temporal_path_alone():
    net, clip = random_fstcn(), random_clip()
    swapped = clip.clone()
    swapped[:, :, [0, 9, 20, 29]] = clip[:, :, [20, 29, 0, 9]]  # the first pair with the last; frame 10 stays
    names = ["scl4", "temporal_scl", "tcl", "temporal_fc2", "spatial_fc2"]
    with torch.inference_mode():
        before, after = outputs_of(net, clip, *names), outputs_of(net, swapped, *names)
    order = [4, 1, 2, 3, 0]
    assert_same(after["scl4"], before["scl4"][:, :, [*order, 5]])
    assert_same(after["temporal_scl"], before["temporal_scl"][:, :, order])
    assert_same(after["spatial_fc2"], before["spatial_fc2"])
    for name in ("tcl", "temporal_fc2"):
        assert (after[name] - before[name]).abs().max() > 0.01 * before[name].abs().max()
    assert not torch.allclose(after["net"].features, before["net"].features)
    # and the TCL's own maps are not just the old ones in another order
    assert not torch.allclose(after["tcl"], before["tcl"][:, :, order])


def test_each_path_depends_on_its_frames_alone():
    net, clip = random_fstcn(), random_clip().clone().requires_grad_()
    pairs = sorted(SAMPLES + PARTNERS)
    expected = {"spatial_fc2": [10], "temporal_fc2": pairs, "fc": pairs}
    outputs = outputs_of(net, clip, *expected)
    for name, frames in expected.items():
        (gradient,) = torch.autograd.grad(outputs[name].sum(), clip, retain_graph=True)
        assert gradient.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist() == frames


def test_in_a_still_clip_only_the_spatial_path_sees_what_is_there():
    net = random_fstcn()
    still = [random_clip()[:, :, t, None].expand(1, 3, 30, 204, 204) for t in (0, 1)]
    with torch.inference_mode():
        one, other = (outputs_of(net, clip, "temporal_fc2", "spatial_fc2") for clip in still)
    assert torch.equal(one["temporal_fc2"], other["temporal_fc2"])
    assert not torch.allclose(one["spatial_fc2"], other["spatial_fc2"])
    assert not torch.allclose(one["net"].logits, other["net"].logits)
