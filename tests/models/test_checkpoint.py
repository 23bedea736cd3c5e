"""Checkpoint files: every kind that is read, those that do not fit, and those that must be refused."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from lively import lively, noise

from vid3d_cli import create_model
from vid3d_cli.errors import CheckpointError, UnknownModel, UsageError
from vid3d_cli.models.checkpoint import read_checkpoint

NUM_CLASSES = 7

# ---------------------------------------------------------------------------------------------------------------------
# Kinds of files
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
    ("file_name", "save"),
    [
        ("rgb.pt", save_plain),
        ("rgb.safetensors", save_safetensors),
        ("rgb.pth.tar", save_training_checkpoint),
        ("rgb.pth", save_legacy),
    ],
)
def test_every_kind_of_file_gives_the_same_numbers(tmp_path, file_name, save):
    saved = lively(create_model("s3d_mini", num_classes=NUM_CLASSES))
    save(saved.state_dict(), tmp_path / file_name)
    net = create_model("s3d_mini", weights=tmp_path / file_name)
    assert not net.training
    assert not any(module.training for module in net.modules())
    with torch.inference_mode():
        clips = noise(1, 3, 8, 64, 64)
        output, expected = net(clips), saved(clips)
    assert output.features.dtype == output.logits.dtype == torch.float32
    assert torch.equal(output.features, expected.features)
    assert torch.equal(output.logits, expected.logits)


@pytest.mark.parametrize("key", ["state_dict", "model_state", "model_state_dict", "model"])
def test_the_state_dict_is_found_in_what_training_scripts_save(tmp_path, key):
    saved = create_model("s3d_mini").state_dict()
    options = argparse.Namespace(lr=0.1, device=torch.device("cpu"))
    torch.save({"epoch": 3, "args": options, key: saved}, tmp_path / "a.pyth")
    loaded = create_model("s3d_mini", weights=tmp_path / "a.pyth").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in saved.items())


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that do not fit
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def state():
    """Fits the rgb network."""
    net = create_model("s3d_mini", num_classes=NUM_CLASSES)
    return {name: torch.full(tensor.shape, 0.5) for name, tensor in net.state_dict().items()}


def load(state, path, **options):
    torch.save(state, path)
    return create_model("s3d_mini", weights=path, **options)


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
    names = [name for name in state if name.startswith("features.8") and name.endswith("weight")][:num_missing]
    for name in names:
        del state[name]
    with pytest.raises(CheckpointError, match=f"{num_missing} missing") as error:
        load(state, tmp_path / "a.pt")
    message = one_line(error)
    assert str(tmp_path / "a.pt") in message
    assert [name in message for name in names] == [True] * min(num_missing, 3) + [False] * max(num_missing - 3, 0)


def test_tensors_too_many_are_counted_and_named(tmp_path, state):
    state["features.99.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 unexpected: features\.99\.weight"):
        load(state, tmp_path / "a.pt")


@pytest.mark.parametrize("shape", [(16, 2, 1, 7, 7), (), (16, 3, 7, 7)])
def test_misshapen_tensors_are_named_with_both_shapes(tmp_path, state, shape):
    state["features.0.0.0.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"1 misshapen: features\.0\.0\.0\.weight") as error:
        load(state, tmp_path / "a.pt")
    assert str(tuple(shape)) in one_line(error)
    assert "(16, 3, 1, 7, 7)" in one_line(error)


@pytest.mark.parametrize("shape", [(), (7,), (0, 256, 1, 1, 1), (7, 256)])
def test_a_misshapen_classifier_is_named_like_any_other_tensor(tmp_path, state, shape):
    state["classifier.1.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"misshapen: classifier\.1\.weight"):
        load(state, tmp_path / "a.pt")


def test_all_kinds_of_misfit_are_named_together(tmp_path, state):
    state["extra.weight"] = state.pop("features.5.branch0.1.bias")
    state["features.5.branch0.1.weight"] = torch.zeros(63)
    with pytest.raises(CheckpointError, match=r"1 missing: features\.5.*1 unexpected: extra.*1 misshapen: features\.5"):
        load(state, tmp_path / "a.pt")


def test_a_flow_checkpoint_is_refused_for_rgb(tmp_path, state):
    state["features.0.0.0.weight"] = torch.zeros(16, 2, 1, 7, 7)
    load(state, tmp_path / "flow.pt", stream="flow")
    with pytest.raises(CheckpointError, match="misshapen"):
        load(state, tmp_path / "flow.pt", stream="rgb")


@pytest.mark.parametrize("num_classes", [None, 157])
def test_the_number_of_classes_is_the_checkpoints(tmp_path, state, num_classes):
    state["classifier.1.weight"] = torch.zeros(157, 256, 1, 1, 1)
    state["classifier.1.bias"] = torch.zeros(157)
    net = load(state, tmp_path / "charades.pt", num_classes=num_classes)
    assert net.classifier[1].bias.shape == (157,)


def test_another_number_of_classes_than_the_checkpoints_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match=r"2 misshapen: classifier\.1"):
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
        create_model("s3d_mini", weights=path)
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
        create_model("s3d_mini", weights=path)
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


def test_a_small_file_takes_little_memory(tmp_path):
    """Before: 1 MB of deflated zeros became tensors of 1 GB, and 1 kB a tensor of 2^40 numbers that share one."""
    torch.save({"w": torch.zeros(2**22)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match=r"unpack to 16777\d{3} bytes, many times its size"):
        read_checkpoint(tmp_path / "bomb.pt")
    torch.save({"w": torch.zeros(1).expand(2**40)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"w \(1099511627776,\) is larger than its data"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("length", [2**62, 2**40, 10**8 + 1])
def test_a_header_that_promises_much_is_refused(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such checkpoint file"):
        create_model("s3d_mini", weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize("name", ["i3d.kinetic400", "i3dd"])
def test_an_unknown_model_names_the_closest(name):
    with pytest.raises(UnknownModel, match=f"{name}.*did you mean.*i3d.*vid3d models"):
        create_model(name)


def test_unknown_weights_name_the_closest_model():
    with pytest.raises(UnknownModel, match=r"i3d\.kinetics40\b.*did you mean.*i3d\.kinetics400"):
        create_model("i3d", weights="i3d.kinetics40")


def test_an_unknown_stream_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'audio'.*rgb, flow"):
        create_model("i3d", stream="audio")
