"""I3D against what the published implementations returned, and checkpoints that must be refused."""

import functools
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import SeededCase

from vid3d_cli import create_model
from vid3d_cli.errors import CheckpointError, ShapeError, UnknownModel, UsageError
from vid3d_cli.models.backbones.i3d import MaxPool3D, Unit3D, same_padding
from vid3d_cli.models.clip_model import read_checkpoint

# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


def save_plain(state, path):
    torch.save(state, path)


def save_safetensors(state, path):
    safetensors.torch.save_file(state, path)


def save_training_checkpoint(state, path):
    """As a training script under DataParallel leaves it."""
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 41, "state_dict": prefixed, "best_acc1": 71.1}, path)


def save_legacy(state, path):
    """As PyTorch before 1.6 wrote it, when the published files were made."""
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)


@pytest.mark.parametrize(
    ("name", "stream", "file_name", "save"),
    [
        ("i3d_rgb_piergiaj_23f", "rgb", "rgb.safetensors", save_safetensors),
        ("i3d_rgb_piergiaj_23f", "rgb", "rgb.pth.tar", save_training_checkpoint),
        ("i3d_rgb_piergiaj_23f", "rgb", "rgb.pth", save_legacy),
    ],
)
def test_a_checkpoint_gives_the_same_numbers_from_every_kind_of_file(tmp_path, name, stream, file_name, save):
    case = SeededCase(name)
    save({key: torch.from_numpy(array) for key, array in case.state_dict().items()}, tmp_path / file_name)
    net = create_model("i3d", stream=stream, weights=tmp_path / file_name)
    assert not net.training
    with torch.inference_mode():
        output = net(torch.from_numpy(case.clips()))
    for answer, expected in [(output.features, case.features), (output.logits, case.logits)]:
        assert answer.dtype == torch.float32
        assert answer.shape == expected.shape
        assert np.abs(answer.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("stream", "num_classes", "num_parameters"),
    [("rgb", None, 12_697_264), ("flow", None, 12_675_312), ("rgb", 157, 12_448_189)],
)
def test_the_number_of_parameters_is_the_published_one(stream, num_classes, num_parameters):
    net = create_model("i3d", stream=stream, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters
    assert not net.training


@pytest.mark.parametrize("shape", [(1, 3, 8, 193, 193), (1, 3, 9, 192, 193), (1, 3, 9, 193, 192), (1, 3, 1, 32, 32)])
def test_clips_too_small_to_pool_are_told_what_is_needed(shape):
    clip = torch.zeros(shape)
    with torch.inference_mode(), pytest.raises(ShapeError, match="9 frames and 193 × 193 px") as error:
        random_i3d()(clip)
    assert str(tuple(shape[2:])) in str(error.value)


def test_the_smallest_clip_is_enough():
    with torch.inference_mode():
        output = random_i3d()(torch.zeros(1, 3, 9, 193, 193))
    assert output.features.shape == (1, 1024)
    assert output.logits.shape == (1, 400)


@functools.cache
def random_i3d():
    return create_model("i3d", stream="rgb")


# ---------------------------------------------------------------------------------------------------------------------
# SAME padding
# ---------------------------------------------------------------------------------------------------------------------


def tensorflow_padding(size, kernel, stride):
    """Source: TensorFlow's API guide on convolution, "Notes on padding": as many outputs as ceil(size / stride)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5))
def test_same_padding_is_tensorflows(size, kernel, stride):
    padding = same_padding(size, kernel, stride)
    assert padding == tensorflow_padding(size, kernel, stride)
    assert (size + sum(padding) - kernel) // stride + 1 == math.ceil(size / stride)


def windows_of(x, kernel, stride):
    """Zero-padded (…, T, H, W) → (…, T', H', W', kT, kH, kW)."""
    pads = [tensorflow_padding(*axis) for axis in zip(x.shape[-3:], kernel, stride, strict=True)]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 3) + pads)
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(-3, -2, -1))
    return views[..., :: stride[0], :: stride[1], :: stride[2], :, :, :]


sizes_drawn = st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 11))


@settings(max_examples=40, deadline=None)
@given(sizes_drawn, st.sampled_from([(7, 2), (3, 1), (1, 1)]), st.integers(0, 2**32 - 1))
def test_a_unit_is_convolution_of_the_zero_padded_clip_then_batch_norm_and_relu(size, kernel_and_stride, seed):
    kernel, stride = kernel_and_stride
    rng = np.random.default_rng(seed)
    unit = Unit3D(2, 3, kernel, stride).double().eval()
    with torch.no_grad():
        for tensor in (unit.conv3d.weight, unit.bn.weight, unit.bn.bias, unit.bn.running_mean):
            tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape)))
        unit.bn.running_var.copy_(torch.from_numpy(rng.uniform(1e-3, 1, 3)))
    x = rng.normal(size=(2, 2, *size))
    with torch.inference_mode():
        y = unit(torch.from_numpy(x)).numpy()

    windows = windows_of(x, (kernel,) * 3, (stride,) * 3)
    summed = np.einsum("ncthwijk,ocijk->nothw", windows, unit.conv3d.weight.detach().numpy())
    scale, offset, mean, variance = (
        tensor.detach().numpy().reshape(1, -1, 1, 1, 1)
        for tensor in (unit.bn.weight, unit.bn.bias, unit.bn.running_mean, unit.bn.running_var)
    )
    expected = np.maximum((summed - mean) / np.sqrt(variance + 1e-3) * scale + offset, 0)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    sizes_drawn,
    st.sampled_from([((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]),
    st.integers(0, 2**32 - 1),
)
def test_a_pool_is_the_maximum_of_the_zero_padded_clip(size, kernel_and_stride, seed):
    x = np.maximum(np.random.default_rng(seed).normal(size=(2, 3, *size)), 0)  # what comes out of a ReLU
    pooled = MaxPool3D(*kernel_and_stride)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(pooled, windows_of(x, *kernel_and_stride).max(axis=(-3, -2, -1)))


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that do not fit
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def state():
    """Fits the rgb network, and takes no room: every tensor is one number seen many times."""
    return {name: torch.tensor(0.5).expand(tensor.shape) for name, tensor in random_i3d().state_dict().items()}


def load(state, path, **options):
    torch.save(state, path)
    return create_model("i3d", weights=path, **options)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_fits_is_loaded(tmp_path, state):
    net = load(state, tmp_path / "a.pt")
    assert all((parameter == 0.5).all() for parameter in net.parameters())


def test_batch_norms_counter_may_be_missing(tmp_path, state):
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(without) < len(state)
    load(without, tmp_path / "a.pt")


@pytest.mark.parametrize("num_missing", [1, 3, 5])
def test_missing_tensors_are_counted_and_the_first_are_named(tmp_path, state, num_missing):
    names = [name for name in state if name.startswith("Mixed_4") and name.endswith("weight")][:num_missing]
    for name in names:
        del state[name]
    with pytest.raises(CheckpointError, match=f"{num_missing} missing") as error:
        load(state, tmp_path / "a.pt")
    message = one_line(error)
    assert str(tmp_path / "a.pt") in message
    assert [name in message for name in names] == [True] * min(num_missing, 3) + [False] * max(num_missing - 3, 0)


def test_tensors_too_many_are_counted_and_named(tmp_path, state):
    state["Mixed_9z.conv3d.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 unexpected: Mixed_9z\.conv3d\.weight"):
        load(state, tmp_path / "a.pt")


@pytest.mark.parametrize("shape", [(64, 2, 7, 7, 7), (), (64, 3, 7, 7)])
def test_misshapen_tensors_are_named_with_both_shapes(tmp_path, state, shape):
    state["Conv3d_1a_7x7.conv3d.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"1 misshapen: Conv3d_1a_7x7\.conv3d\.weight") as error:
        load(state, tmp_path / "a.pt")
    assert str(tuple(shape)) in one_line(error)
    assert "(64, 3, 7, 7, 7)" in one_line(error)


@pytest.mark.parametrize("shape", [(), (400,), (0, 1024, 1, 1, 1), (400, 1024)])
def test_a_misshapen_classifier_is_named_like_any_other_tensor(tmp_path, state, shape):
    state["logits.conv3d.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"misshapen: logits\.conv3d\.weight"):
        load(state, tmp_path / "a.pt")


def test_all_kinds_of_misfit_are_told_at_once(tmp_path, state):
    state["extra.weight"] = state.pop("Mixed_3b.b0.bn.bias")
    state["Mixed_3b.b0.bn.weight"] = torch.zeros(63)
    with pytest.raises(CheckpointError, match=r"1 missing: Mixed_3b.*1 unexpected: extra.*1 misshapen: Mixed_3b"):
        load(state, tmp_path / "a.pt")


def test_a_flow_checkpoint_is_refused_for_rgb(tmp_path, state):
    state["Conv3d_1a_7x7.conv3d.weight"] = torch.zeros(64, 2, 7, 7, 7)
    load(state, tmp_path / "flow.pt", stream="flow")
    with pytest.raises(CheckpointError, match="misshapen"):
        load(state, tmp_path / "flow.pt", stream="rgb")


@pytest.mark.parametrize("num_classes", [None, 157])
def test_the_number_of_classes_is_the_checkpoints(tmp_path, state, num_classes):
    state["logits.conv3d.weight"] = torch.tensor(0.5).expand(157, 1024, 1, 1, 1)
    state["logits.conv3d.bias"] = torch.tensor(0.5).expand(157)
    net = load(state, tmp_path / "charades.pt", num_classes=num_classes)
    assert net.logits.conv3d.bias.shape == (157,)


def test_another_number_of_classes_than_the_checkpoints_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"2 misshapen: logits\.conv3d"):
        load(state, tmp_path / "a.pt", num_classes=157)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no checkpoints
# ---------------------------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it runs a shell command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def pickle_protocol_2(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


def pickle_protocol_4(value, path):
    path.write_bytes(pickle.dumps(value, protocol=4))


SYSTEM = r".*\b(posix|nt)\.system\b"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
@pytest.mark.parametrize(
    ("save", "named"),
    # torch stops at the first instruction of protocol 4, before it sees what would be imported
    [(save_plain, SYSTEM), (save_legacy, SYSTEM), (pickle_protocol_2, SYSTEM), (pickle_protocol_4, "")],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, save, named, suffix):
    path, made = tmp_path / f"a{suffix}", tmp_path / "made by the checkpoint"
    save({"weights": Malicious(f"echo > '{made}'")}, path)
    with pytest.raises(CheckpointError, match=f"refused{named}") as error:
        create_model("i3d", weights=path)
    assert str(path) in one_line(error)
    assert not made.exists()
    if save in (save_plain, save_legacy):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert made.exists()  # it does work on those who let it


class Script(torch.nn.Module):
    def forward(self, x):
        return x + 1


def write_text(path):
    path.write_text("<!DOCTYPE html>\n<html>404: Not Found</html>\n" * 100)


def write_nothing(path):
    path.write_bytes(b"")


def write_script(path):
    torch.jit.script(Script()).save(str(path))


def write_list(path):
    torch.save([torch.zeros(2), torch.zeros(3)], path)


def write_strings(path):
    torch.save({"a": "b"}, path)


def write_empty_dict(path):
    torch.save({}, path)


def write_tensor(path):
    torch.save(torch.zeros(2), path)


def write_other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*TorchScript archive:UserWarning")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "write",
    [
        write_text,
        write_nothing,
        write_script,
        write_list,
        write_strings,
        write_empty_dict,
        write_tensor,
        write_other_archive,
    ],
)
def test_files_that_are_no_checkpoints_are_one_line(tmp_path, write, suffix):
    path = tmp_path / f"a{suffix}"
    write(path)
    with pytest.raises(CheckpointError) as error:
        create_model("i3d", weights=path)
    assert one_line(error).startswith(f"{path}: ")


SMALL_STATE = {"a.weight": torch.arange(60.0).reshape(3, 4, 5), "a.bias": torch.ones(300), "b": torch.tensor(7)}


@pytest.mark.parametrize(
    ("save", "suffix"), [(save_plain, ".pt"), (save_legacy, ".pth"), (save_safetensors, ".safetensors")]
)
def test_a_file_cut_off_anywhere_is_one_line(tmp_path, save, suffix):
    path = tmp_path / f"a{suffix}"
    save(SMALL_STATE, path)
    content = path.read_bytes()
    for length in {*range(0, len(content), max(1, len(content) // 150)), *range(min(200, len(content)))}:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path)
        assert one_line(error).startswith(f"{path}: "), length


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize(
    ("save", "suffix"), [(save_plain, ".pt"), (save_legacy, ".pth"), (save_safetensors, ".safetensors")]
)
def test_a_file_with_a_damaged_byte_is_tensors_or_one_error(tmp_path, save, suffix):
    path = tmp_path / f"a{suffix}"
    save(SMALL_STATE, path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(min(len(content), 1500))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            state = read_checkpoint(path)
        except CheckpointError as error:
            num_refused += 1
            assert str(error).startswith(f"{path}: ")
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert num_refused > 30


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file"):
        create_model("i3d", weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize("name", ["i3d.kinetic400", "i3dd"])
def test_an_unknown_model_is_told_the_closest(name):
    with pytest.raises(UnknownModel, match=f"{name}.*did you mean.*i3d.*vid3d models"):
        create_model(name)


def test_an_unknown_name_of_weights_is_told_the_closest():
    with pytest.raises(UnknownModel, match=r"i3d\.kinetics40\b.*did you mean.*i3d\.kinetics400"):
        create_model("i3d", weights="i3d.kinetics40")


def test_an_unknown_stream_is_told_the_known_ones():
    with pytest.raises(UsageError, match=r"'audio'.*rgb, flow"):
        create_model("i3d", stream="audio")
