"""S3D-G: its own layers against what they stand for, and its sizes; test_registry.py has its numbers."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import SeededCase, draw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli import create_model
from vid3d_cli.errors import ShapeError
from vid3d_cli.models.backbones.s3d_g import MaxPool, SelfGating, SpaceToDepthStem, space_to_depth
from vid3d_cli.models.registry import BACKBONES

PAPER = BACKBONES["s3d_g"].variants["paper"]

CASE = "s3dg_howto100m_32f"


def seeded(net):
    """Drawn like the reference cases: a fresh network's answers hardly depend on its input."""
    drawn = {name: torch.as_tensor(draw(name, tuple(t.shape), 5)) for name, t in net.state_dict().items()}
    net.load_state_dict(drawn)
    return net.eval()


@functools.cache
def seeded_s3d_g(variant=None):
    return seeded(BACKBONES["s3d_g"].build("rgb", 10, **(PAPER if variant else {})))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# The published network
# ---------------------------------------------------------------------------------------------------------------------


def published_tensors():
    return {name: torch.from_numpy(array) for name, array in SeededCase(CASE).state_dict().items()}


def test_tensors_are_the_published_ones():
    with torch.device("meta"):
        net = BACKBONES["s3d_g"].build("rgb", 512)
    shapes = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes == SeededCase(CASE).facts["shapes"]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {norm.eps for norm in norms} == {1e-5}


def test_the_half_of_the_published_file_that_reads_text_is_left_out(tmp_path):
    text = {"word_embd.weight": (66250, 300), "fc1.weight": (2048, 300), "fc1.bias": (2048,), "fc2.bias": (512,)}
    state = published_tensors()
    torch.save({**state, **{f"text_module.{name}": torch.zeros(shape) for name, shape in text.items()}}, tmp_path / "a")
    loaded = create_model("s3d_g", weights=tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("variant", "stream", "num_classes", "num_frames", "num_parameters", "num_multiply_adds"),
    [
        (None, "rgb", 512, 32, 9_670_800, 36_292_438_784),
        (None, "flow", 512, 32, 9_654_416, 33_004_104_448),
        ("paper", "rgb", 400, 64, 9_535_072, 64_182_352_640),
        ("paper", "flow", 400, 64, 9_535_072 - 64 * 147, 60_405_906_176),
    ],
)
def test_parameters_and_multiply_adds(variant, stream, num_classes, num_frames, num_parameters, num_multiply_adds):
    with torch.device("meta"):
        net = BACKBONES["s3d_g"].build(stream, num_classes, **(PAPER if variant else {})).eval()
        clip = torch.empty(1, 3 if stream == "rgb" else 2, num_frames, 224, 224)
    with FlopCounterMode(display=False) as counter:
        net(clip)
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters
    assert counter.get_total_flops() / 2 == num_multiply_adds


def test_the_embedding_is_a_layer():
    net, outputs = seeded_s3d_g(), []
    hook = net.get_submodule(BACKBONES["s3d_g"].layers["embedding"]).register_forward_hook(
        lambda module, inputs, output: outputs.append((inputs[0], output))
    )
    with torch.inference_mode():
        features, logits = net(noise(2, 3, 4, 32, 32))
    hook.remove()
    assert torch.equal(outputs[0][0], features)
    assert torch.equal(outputs[0][1], logits)
    assert (features.shape, logits.shape) == ((2, 1024), (2, 10))


# ---------------------------------------------------------------------------------------------------------------------
# Its own layers
# ---------------------------------------------------------------------------------------------------------------------


def test_space_to_depth_orders_channels_by_t_h_w_c():
    x = np.arange(2 * 3 * 4 * 6 * 8, dtype=np.float32).reshape(2, 3, 4, 6, 8)
    folded = space_to_depth(torch.from_numpy(x)).numpy()
    assert folded.shape == (2, 24, 2, 3, 4)
    for t, h, w, c in np.ndindex(2, 2, 2, 3):
        np.testing.assert_array_equal(folded[:, ((t * 2 + h) * 2 + w) * 3 + c], x[:, c, t::2, h::2, w::2])


@pytest.mark.parametrize("in_channels", [2, 3])
def test_the_stem_is_a_strided_convolution_of_pixels(in_channels):
    """2×4×4 on folded cubes is 4×8×8 with stride 2 on pixels, with 2 rows of zeros before and 4 after (time: 0, 2)."""
    stem, x = seeded(SpaceToDepthStem(in_channels, 5)), noise(2, in_channels, 8, 12, 16)
    # (out, t, h, w, in, T, H, W) → (out, in, 2 T + t, 2 H + h, 2 W + w)
    kernel = stem.conv1.weight.unflatten(1, (2, 2, 2, in_channels)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    kernel = kernel.reshape(5, in_channels, 4, 8, 8)
    with torch.inference_mode():
        expected = stem.bn1(F.conv3d(F.pad(x, (2, 4, 2, 4, 0, 2)), kernel, stride=2)).relu()
        answer = stem(x)
    assert answer.shape == (2, 5, 4, 6, 8)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


def test_gating_weighs_channels_by_their_means():
    gating, x = seeded(SelfGating(6)), noise(2, 6, 3, 4, 5)
    with torch.inference_mode():
        answer = gating(x).numpy()
    weight, bias, x = gating.fc.weight.detach().numpy(), gating.fc.bias.detach().numpy(), x.numpy()
    for n in range(2):
        means = np.array([channel.mean() for channel in x[n]])
        weights = 1 / (1 + np.exp(-(weight @ means + bias)))
        np.testing.assert_allclose(answer[n], x[n] * weights.reshape(6, 1, 1, 1), rtol=1e-5)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_pools_take_windows_from_the_first_element_on_to_beyond_the_end(kernel, stride, size):
    x = noise(1, 2, size, 5, size + 3).relu()
    answer = MaxPool(kernel, stride)(x)
    assert answer.shape[2:] == tuple(-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
    for position in np.ndindex(*answer.shape[2:]):
        window = [slice(p * s, p * s + k) for p, s, k in zip(position, stride, kernel, strict=True)]
        assert torch.equal(answer[(..., *position)], x[(..., *window)].amax((2, 3, 4)))


# ---------------------------------------------------------------------------------------------------------------------
# Clips of other sizes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 33, 32), (4, 32, 33), (0, 32, 32)])
def test_odd_clips_are_refused(shape):
    with torch.inference_mode(), pytest.raises(ShapeError, match="multiples of 2") as error:
        seeded_s3d_g()(torch.zeros(1, 3, *shape))
    assert str(shape) in str(error.value)


def test_the_papers_stem_takes_odd_clips_but_not_empty_ones():
    net = seeded_s3d_g("paper")
    with torch.inference_mode():
        assert net(noise(1, 3, 5, 33, 47)).features.shape == (1, 1024)
        with pytest.raises(ShapeError, match=r"\(0, 32, 32\)"):
            net(torch.zeros(1, 3, 0, 32, 32))
