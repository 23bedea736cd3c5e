"""S3D against what the published implementations returned, at the sizes they allow and at smaller ones."""

import functools

import numpy as np
import pytest
import torch
from seeded import SeededCase
from torchvision.models.video import s3d as torchvision_s3d

from vid3d_cli import create_model
from vid3d_cli.backbones import BACKBONES
from vid3d_cli.backbones.s3d import S3D
from vid3d_cli.errors import CheckpointError, ShapeError

# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


def tensors_of(case, prefix=""):
    return {f"{prefix}{name}": torch.from_numpy(array) for name, array in case.state_dict().items()}


@pytest.mark.parametrize("name", ["s3d_kylemin_64f", "s3d_torchvision_64f"])
def test_the_prefix_of_data_parallel_makes_no_difference(tmp_path, name):
    case = SeededCase(name)
    torch.save(tensors_of(case), tmp_path / "plain.pt")
    torch.save({"state_dict": tensors_of(case, "module.")}, tmp_path / "prefixed.pth.tar")
    plain = create_model("s3d", weights=tmp_path / "plain.pt").state_dict()
    prefixed = create_model("s3d", weights=tmp_path / "prefixed.pth.tar").state_dict()
    assert all(torch.equal(tensor, prefixed[key]) for key, tensor in plain.items())


def test_kylemins_names_stand_where_torchvisions_do(tmp_path):
    """Both list the same tensors in the same order, so that their renaming can be checked without running anything."""
    kylemin = SeededCase("s3d_kylemin_64f")
    torch.save(tensors_of(kylemin), tmp_path / "s3d.pt")
    loaded = create_model("s3d", weights=tmp_path / "s3d.pt").state_dict()
    ours = SeededCase("s3d_torchvision_64f").facts["shapes"]
    assert list(loaded) == list(ours)
    for key, array in zip(ours, kylemin.state_dict().values(), strict=True):
        np.testing.assert_array_equal(loaded[key].numpy(), array)


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


@pytest.mark.parametrize(
    ("name", "stream", "num_classes", "num_parameters"),
    [
        ("s3d", "rgb", None, 8_320_048),  # as torchvision says of its checkpoint
        ("s3d", "flow", None, 8_320_048 - 64 * 49),
        ("s3d", "rgb", 101, 8_320_048 - 299 * 1025),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, stream, num_classes, num_parameters):
    net = create_model(name, stream=stream, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters


# ---------------------------------------------------------------------------------------------------------------------
# Narrow networks, small clips
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def random_s3d():
    return with_lively_norms(create_model("s3d"))


def with_lively_norms(net):
    """Drawn like the seeded cases: a fresh network's answers hardly depend on its input."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv3d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif isinstance(module, torch.nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2)])
@pytest.mark.parametrize(("num_frames", "side_px"), [(16, 96), (16, 112), (8, 64), (5, 17)])
def test_the_mini_answers_for_small_clips(stream, channels, num_frames, side_px):
    net = create_model("s3d_mini", stream=stream, num_classes=10)
    with torch.inference_mode():
        output = net(torch.rand(2, channels, num_frames, side_px, side_px))
    assert output.features.shape == (2, 256)
    assert output.logits.shape == (2, 10)
    assert output.features.dtype == output.logits.dtype == torch.float32


@pytest.mark.parametrize("shape", [(16, 96, 112), (8, 64, 64), (5, 17, 40)])
def test_a_map_smaller_than_the_pool_is_averaged_whole_and_its_frames_two_by_two(shape):
    net = with_lively_norms(create_model("s3d_mini", num_classes=10))
    clips = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, features = net.features(clips), net(clips).features
    frames = maps.mean((3, 4))
    pairs = (frames[..., 1:] + frames[..., :-1]) / 2 if frames.shape[2] > 1 else frames
    torch.testing.assert_close(features, pairs.mean(2))


@pytest.mark.parametrize("name", ["s3d", "s3d_mini"])
@pytest.mark.parametrize("shape", [(4, 17, 17), (5, 16, 17), (5, 17, 16), (0, 0, 0)])
def test_clips_too_small_to_pool_are_told_what_is_needed(name, shape):
    net = create_model(name)
    with torch.inference_mode(), pytest.raises(ShapeError, match="5 frames and 17 × 17 px") as error:
        net(torch.zeros(1, 3, *shape))
    assert str(shape) in str(error.value)


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


def test_the_mini_learns_with_a_momentum_that_follows():
    net = BACKBONES["s3d_mini"].build("rgb", 10)
    assert {module.momentum for module in net.modules() if isinstance(module, torch.nn.BatchNorm3d)} == {0.1}
    net.train()(torch.rand(2, 3, 8, 32, 32)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
