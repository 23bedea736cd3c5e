"""TensorFlow's checkpoints: as DeepMind published them, as TensorFlow writes them, as a writer here does, and damaged.

`data/tf_checkpoints.tar.gz` holds
  deepmind/<name>/model.ckpt.index   of kinetics-i3d, byte for byte as published
  tensorflow/<name>.ckpt.*           written by TensorFlow 2.21 (tf.compat.v1.train.Saver), numbers counted through:
    momentum, adam, rmsprop          conv_3d/w, batch_norm/beta, batch_norm/moving_mean, with an optimiser's state
    two_blocks                       names so long that they fill two blocks
    sliced                           a variable of a partitioner
"""

import functools
import hashlib
import math
import struct
import tarfile
import tempfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from seeded import DATA, SeededCase

from vid3d_cli import create_model
from vid3d_cli.errors import CheckpointError
from vid3d_cli.models.checkpoint import convert_keys, read_checkpoint
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.models.tf_checkpoint import (
    TensorEntry,
    mask_crc32c,
    read_index,
    read_tensors,
    read_tf_checkpoint,
    to_pytorch_layout,
)


@functools.cache
def stored_files():
    with tarfile.open(DATA / "tf_checkpoints.tar.gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def unpack(name, folder):
    """One of TensorFlow's own checkpoints; the path of its index."""
    for file, content in stored_files().items():
        if file.startswith(f"tensorflow/{name}.ckpt."):
            (folder / Path(file).name).write_bytes(content)
    return folder / f"{name}.ckpt.index"


# ---------------------------------------------------------------------------------------------------------------------
# A writer
# ---------------------------------------------------------------------------------------------------------------------


def varint(value):
    return bytes([value]) if value < 0x80 else bytes([value % 0x80 + 0x80]) + varint(value // 0x80)


def field(number, value):
    """A field of a protocol buffer; 0 is left out, as everywhere."""
    if isinstance(value, bytes):
        return varint(number * 8 + 2) + varint(len(value)) + value
    return varint(number * 8) + varint(value) if value else b""


def masked(content):
    crc = google_crc32c.value(content)
    return ((crc // 2**15 | crc * 2**17) + 0xA282EAD8) % 2**32


HEADER = field(1, 1) + field(3, field(1, 1))  # one shard, little-endian, written by version 1


def entry_message(shape, offset, size, masked_crc32c, dtype=1):
    dims = b"".join(field(2, field(1, length)) for length in shape)
    crc = varint(6 * 8 + 5) + struct.pack("<I", masked_crc32c)
    return field(1, dtype) + field(2, dims) + field(4, offset) + field(5, size) + crc


def block_of(pairs, interval):
    """Keys and values, every `interval`-th of them whole and listed at the end."""
    content, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        if i % interval == 0:
            restarts.append(len(content))
            before = b""
        shared = next((n for n, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), None)
        shared = min(len(key), len(before)) if shared is None else shared
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table_of_blocks(blocks, compression=0, num_times=1):
    """(last key, content) of each block → a table, whose index names them so many times."""
    content = b""

    def add(block):
        nonlocal content
        handle = varint(len(content)) + varint(len(block))
        trailer = bytes([compression])
        content += block + trailer + struct.pack("<I", masked(block + trailer))
        return handle

    handles = [(key, add(block)) for key, block in blocks] * num_times
    metaindex, index = add(block_of([], 1)), add(block_of(handles, 1))
    return content + (metaindex + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def successor(key):
    """The shortest key that is not before this one: what LevelDB calls the last block by."""
    for i, byte in enumerate(key):
        if byte < 0xFF:
            return key[:i] + bytes([byte + 1])
    return key


def table_of(messages, *, header=HEADER, keys_per_block=10**6, interval=16, compression=0):
    """Name → message, in order, as a table."""
    pairs = [(b"", header), *sorted((name.encode(), message) for name, message in messages.items())]
    groups = [pairs[i : i + keys_per_block] for i in range(0, len(pairs), keys_per_block)]
    blocks = [(group[-1][0], block_of(group, interval)) for group in groups]
    blocks[-1] = (successor(blocks[-1][0]), blocks[-1][1])
    return table_of_blocks(blocks, compression)


def write_checkpoint(prefix, tensors, **options):
    """Index and data; returns the index's path."""
    messages, data = {}, b""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].encode()):
        numbers = tensor.tobytes()
        messages[name] = entry_message(tensor.shape, len(data), len(numbers), masked(numbers))
        data += numbers
    return write_files(prefix, table_of(messages, **options), data)


def write_files(prefix, table, data):
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(table)
    return index


def is_same(tensors, expected):
    """Bit by bit, so that NaNs too are compared."""
    facts = [{n: (t.dtype, t.shape, t.tobytes()) for n, t in side.items()} for side in (tensors, expected)]
    return facts[0] == facts[1]


# ---------------------------------------------------------------------------------------------------------------------
# Checksums
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "crc"),
    [
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_crc32c(content, crc):
    assert google_crc32c.value(content) == crc


@given(st.integers(0, 2**32 - 1))
def test_a_masked_checksum_is_rotated_by_15_bits_and_shifted(crc):
    rotated = (mask_crc32c(crc) - 0xA282EAD8) % 2**32
    bits = f"{crc:032b}"
    assert f"{rotated:032b}" == bits[-15:] + bits[:-15]


# ---------------------------------------------------------------------------------------------------------------------
# DeepMind's files
# ---------------------------------------------------------------------------------------------------------------------

GIT_BLOBS = {
    "rgb_imagenet": "5ab1058b8f4f89a896c01f67c0a4c96a31548af7",
    "flow_imagenet": "8217f9450d851d24782aaf1af01c5c3b35b81a35",
    "rgb_scratch": "84dd4518e982d9ca6ce1ff02e95fca2e8cbb1f73",
    "flow_scratch": "193bc425100f3978c793da66bd9eb54baea8dc6a",
}
"""deepmind/kinetics-i3d at 0667e88, data/checkpoints/<name>/model.ckpt.index."""

DATA_BYTES = {"rgb": 50_818_176, "flow": 50_730_368}
KINETICS600_DATA_BYTES, KINETICS600_NUM_TENSORS = 103_218_112, 346


def published_index(name):
    return stored_files()[f"deepmind/{name}/model.ckpt.index"]


@pytest.mark.parametrize("name", GIT_BLOBS)
def test_deepminds_indexes_are_the_published_ones(name):
    content = published_index(name)
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == GIT_BLOBS[name]


@pytest.mark.parametrize("name", GIT_BLOBS)
def test_deepminds_tensors_lie_one_after_the_other(name):
    entries = read_index(published_index(name))
    assert len(entries) == 57 * 4 + 2
    end = 0
    for entry in entries:
        assert entry.offset == end
        assert entry.size == 4 * math.prod(entry.shape)
        end += entry.size
    assert end == DATA_BYTES[name.split("_")[0]]


@pytest.mark.parametrize("name", GIT_BLOBS)
def test_the_writer_here_writes_what_deepmind_published(name):
    entries = read_index(published_index(name))
    messages = {e.name: entry_message(e.shape, e.offset, e.size, e.masked_crc32c) for e in entries}
    assert table_of(messages) == published_index(name)


def shapes_in_torch(shapes):
    """TensorFlow's names and shapes, on their way into our I3D."""
    tensors = to_pytorch_layout({name: np.empty(shape, np.float32) for name, shape in shapes.items()})
    state = convert_keys({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, BACKBONES["i3d"])
    assert len(state) == len(tensors)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def shapes_of_i3d(stream, num_classes):
    with torch.device("meta"):
        state = BACKBONES["i3d"].build(stream, num_classes).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if "num_batches_tracked" not in name}


@pytest.mark.parametrize("name", GIT_BLOBS)
def test_deepminds_tensors_are_those_of_i3d(name):
    shapes = {entry.name: entry.shape for entry in read_index(published_index(name))}
    assert shapes_in_torch(shapes) == shapes_of_i3d(name.split("_")[0], 400)


def test_kinetics_600_is_the_network_without_a_prefix_and_with_momentum():
    """Its index is not here; its number of tensors and the size of its data are known."""
    shapes = {}
    for entry in read_index(published_index("rgb_scratch")):
        name = entry.name.removeprefix("RGB/inception_i3d/")
        shape = tuple(600 if length == 400 else length for length in entry.shape)
        shapes[name] = shape
        if name.endswith(("/w", "/b", "/beta")):
            shapes[f"{name}/Momentum"] = shape
    assert len(shapes) == KINETICS600_NUM_TENSORS
    assert sum(4 * math.prod(shape) for shape in shapes.values()) == KINETICS600_DATA_BYTES

    entries = read_index(table_of({name: entry_message(s, 0, 4 * math.prod(s), 0) for name, s in shapes.items()}))
    assert shapes_in_torch({entry.name: entry.shape for entry in entries}) == shapes_of_i3d("rgb", 600)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers of I3D
# ---------------------------------------------------------------------------------------------------------------------

BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def deepminds_scope(unit):
    """ "Mixed_3b.b1a" → "Mixed_3b/Branch_1/Conv3d_0a_1x1"."""
    if unit == "logits":
        return "Logits/Conv3d_0c_1x1"
    if unit == "Mixed_5b.b2b":
        return "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    stage, _, branch = unit.partition(".")
    return f"{stage}/{BRANCHES[branch]}" if branch else stage


def without_scales(state):
    """The same network with scales of 1, as DeepMind's batch norm has none: they go into what is normalised."""
    scaled = dict(state)
    for name in (name for name in state if name.endswith(".bn.weight")):
        unit, scale = name.removesuffix(".bn.weight"), state[name]
        scaled[name] = np.ones_like(scale)
        scaled[f"{unit}.conv3d.weight"] = state[f"{unit}.conv3d.weight"] * scale.reshape(-1, 1, 1, 1, 1)
        scaled[f"{unit}.bn.running_mean"] = state[f"{unit}.bn.running_mean"] * scale
    return scaled


def as_deepmind_stores_it(state, prefix):
    """Under DeepMind's names and in TensorFlow's layout."""
    stored = {}
    for unit in (name.removesuffix(".conv3d.weight") for name in state if name.endswith(".conv3d.weight")):
        scope = f"{prefix}/inception_i3d/{deepminds_scope(unit)}"
        stored[f"{scope}/conv_3d/w"] = np.moveaxis(state[f"{unit}.conv3d.weight"], (0, 1), (4, 3))
        if unit == "logits":
            stored[f"{scope}/conv_3d/b"] = state["logits.conv3d.bias"]
        else:
            stored[f"{scope}/batch_norm/beta"] = state[f"{unit}.bn.bias"]
            stored[f"{scope}/batch_norm/moving_mean"] = state[f"{unit}.bn.running_mean"]
            stored[f"{scope}/batch_norm/moving_variance"] = state[f"{unit}.bn.running_var"]
    return stored


@pytest.mark.parametrize(
    ("name", "published", "prefix"),
    [("i3d_rgb_piergiaj_23f", "rgb_imagenet", "RGB"), ("i3d_flow_piergiaj_64f", "flow_imagenet", "Flow")],
)
def test_every_tensor_comes_to_its_place(tmp_path, name, published, prefix):
    case = SeededCase(name)
    state = without_scales(case.state_dict())
    stored = as_deepmind_stores_it(state, prefix)
    shapes = {entry.name: entry.shape for entry in read_index(published_index(published))}
    assert {name: tensor.shape for name, tensor in stored.items()} == shapes

    path = write_checkpoint(tmp_path / "model.ckpt", stored)
    loaded = create_model("i3d", stream=case.facts["stream"], weights=path).state_dict()
    assert is_same({name: tensor.numpy() for name, tensor in loaded.items()}, state)


@pytest.mark.exhaustive
def test_a_checkpoint_like_deepminds_gives_the_numbers_of_the_original(tmp_path):
    case = SeededCase("i3d_rgb_piergiaj_23f")
    stored = as_deepmind_stores_it(without_scales(case.state_dict()), "RGB")
    path = write_checkpoint(tmp_path / "model.ckpt", stored).with_suffix(".data-00000-of-00001")
    net = create_model("i3d", weights=path)
    with torch.inference_mode():
        output = net(torch.from_numpy(case.clips()))
    for answer, expected in [(output.features, case.features), (output.logits, case.logits)]:
        assert np.abs(answer.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow's files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "rmsprop"])
def test_what_tensorflow_wrote_is_read_without_the_training_state(tmp_path, optimiser):
    tensors = read_tensors(unpack(optimiser, tmp_path))
    assert is_same(
        tensors,
        {
            "batch_norm/beta": np.arange(360, 365, dtype=np.float32),
            "batch_norm/moving_mean": np.arange(365, 370, dtype=np.float32).reshape(1, 1, 1, 1, 5),
            "conv_3d/w": np.arange(360, dtype=np.float32).reshape(2, 3, 4, 3, 5),
        },
    )


def test_what_tensorflow_wrote_is_laid_out_as_in_torch(tmp_path):
    tensors = read_tf_checkpoint(unpack("momentum", tmp_path))
    kernel = tensors.pop("conv_3d/w")
    assert kernel.shape == (5, 3, 2, 3, 4)
    stored = np.arange(360).reshape(2, 3, 4, 3, 5)
    for index in np.ndindex(stored.shape):
        t, y, x, channel_in, channel_out = index
        assert kernel[channel_out, channel_in, t, y, x] == stored[index]
    assert is_same(
        tensors,
        {
            "batch_norm/beta": np.arange(360, 365, dtype=np.float32),
            "batch_norm/gamma": np.ones(5, np.float32),
            "batch_norm/moving_mean": np.arange(365, 370, dtype=np.float32),
        },
    )


def test_tensorflows_tables_of_two_blocks_are_read(tmp_path):
    tensors = read_tensors(unpack("two_blocks", tmp_path))
    assert is_same(
        tensors,
        {f"{i:02d}/{'x' * 3000}/beta": np.arange(2 * i, 2 * i + 2, dtype=np.float32) for i in range(90)},
    )


def test_tensorflows_slices_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="tensor 'w' is stored in slices; only whole tensors are read"):
        read_tensors(unpack("sliced", tmp_path))


@pytest.mark.parametrize("order", [("beta", "gamma"), ("gamma", "beta")])
def test_an_existing_scale_is_kept(order):
    tensors = {f"a/{kind}": np.full(2, len(kind), np.float32) for kind in order}
    assert is_same(to_pytorch_layout(tensors), tensors)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 3), (3, 1), (1, 3), ()])
def test_a_norm_of_another_shape_is_left_for_the_network_to_refuse(shape):
    tensor = to_pytorch_layout({"a/moving_mean": np.zeros(shape, np.float32)})["a/moving_mean"]
    assert tensor.size == math.prod(shape)
    assert tensor.shape != (tensor.size,)


# ---------------------------------------------------------------------------------------------------------------------
# Any table
# ---------------------------------------------------------------------------------------------------------------------

names_drawn = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a/"), min_size=1).filter(
    lambda name: not name.endswith(("global_step", "Momentum", "Adam", "RMSProp", "_1", "_power"))
)
tensors_drawn = st.dictionaries(
    names_drawn,
    st_numpy.arrays(np.float32, st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(tensors_drawn, st.integers(1, 8), st.integers(1, 5))
def test_what_is_written_is_read(tensors, keys_per_block, interval):
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "a.ckpt", tensors, keys_per_block=keys_per_block, interval=interval)
        assert is_same(read_tensors(path), tensors)


messages_drawn = st.one_of(
    st.binary(max_size=40),
    st.builds(
        entry_message,
        st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 4), max_size=70),
        st.integers(0, 2**64 - 1) | st.integers(0, 80),
        st.integers(0, 2**64 - 1) | st.integers(0, 80),
        st.just(masked(b"")),
        st.sampled_from([1, 1, 1, 3]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(messages_drawn, messages_drawn, st.just(HEADER) | st.binary(max_size=10))
def test_an_index_that_says_anything_is_tensors_or_one_error(a, b, header):
    with tempfile.TemporaryDirectory() as folder:
        path = write_files(Path(folder) / "a.ckpt", table_of({"a": a, "b": b}, header=header), bytes(80))
        try:
            tensors = read_tensors(path)
        except CheckpointError as error:
            assert_is_one_line(error, path)
        else:
            assert set(tensors) == {"a", "b"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=3))
def test_blocks_that_hold_anything_are_tensors_or_one_error(blocks):
    with tempfile.TemporaryDirectory() as folder:
        path = write_files(Path(folder) / "a.ckpt", table_of_blocks([(b"z", block) for block in blocks]), bytes(80))
        with pytest.raises(CheckpointError) as error:  # none is by chance a header
            read_tensors(path)
        assert_is_one_line(error.value, path)


def assert_is_one_line(error, path):
    assert str(error).startswith(f"{path}: ")
    assert "\n" not in str(error)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------

NUMBERS = np.arange(6, dtype=np.float32)
CRC = masked(NUMBERS.tobytes())
WHOLE = entry_message((2, 3), 0, 24, CRC)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", "is not one of a TensorFlow checkpoint, or is cut off"),
        (b"PK\3\4" + bytes(100), "is not one of a TensorFlow checkpoint, or is cut off"),
        (table_of({"a": WHOLE}, compression=1), "the index is compressed; only uncompressed ones are read"),
        (table_of({"a": WHOLE}, header=field(1, 3)), "the data are in 3 files"),
        (table_of({"a": WHOLE}, header=HEADER + field(2, 1)), "the data are big-endian"),
        (table_of({"a": entry_message((2, 3), 0, 24, CRC, 2)}), "tensor 'a' has TensorFlow's data type 2"),
        (table_of({"a\nb": WHOLE + field(7, b"")}), r"tensor 'a\\nb' is stored in slices"),
        (table_of({"a": entry_message((2, 3), 0, 20, CRC)}), r"tensor 'a' of shape \(2, 3\) has 20 bytes"),
        (table_of({"a": entry_message((2, 3), 4, 24, CRC)}), "tensor 'a' ends at byte 28 of 24"),
        (table_of({"a": entry_message((2, 3), 2**63, 24, CRC)}), "tensor 'a' ends at byte 9223372036854775832 of 24"),
        (table_of({"a": entry_message((5,), 4, 20, CRC)}), "tensor 'a' has another CRC-32C"),
        (table_of({"a": WHOLE, "b": entry_message((6,), 0, 24, CRC + 1)}), "tensor 'b' has another CRC-32C"),
        (table_of({"a": entry_message((0, 2**63), 0, 0, masked(b""))}), "a.ckpt.index: "),
        (table_of({"a": WHOLE + b"\x0b"}), "no protocol buffer where there must be one"),
        (table_of({"a": WHOLE + b"\x08" + b"\xff" * 10}), "an integer of more than 64 bits"),
        (table_of({"a": WHOLE + b"\x12\x05"}), "longer than what holds it"),
        (table_of_blocks([(b"a", b"\1\0\0" + bytes(4))]), "a key shares more bytes"),
        (table_of_blocks([(b"a", block_of([(b"a", WHOLE)], 1))]), "it has no header"),
        (table_of_blocks([]), "it has no header"),
    ],
)
def test_unsupported_checkpoints_are_refused_in_one_line(tmp_path, table, message):
    path = write_files(tmp_path / "a.ckpt", table, NUMBERS.tobytes())
    with pytest.raises(CheckpointError, match=message) as error:
        read_tensors(path)
    assert_is_one_line(error.value, path)


GROWING = b"".join(varint(i) + b"\1\0x" for i in range(8000)) + bytes(4)  # keys "x", "xx", "xxx", …


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (bytes(2**20 + 1), "longer than 1048576 bytes"),
        (table_of_blocks([(b"a", GROWING)]), "names of more than 4194304 bytes"),
        (table_of({f"w{i}": WHOLE for i in range(9)}), "tensors share their data"),
    ],
    ids=["index", "names", "tensors"],
)
def test_small_files_take_little_memory(tmp_path, table, message):
    """Before: an index of 1 MB whose names grow, or whose entries all name the same gigabyte, took all memory."""
    path = write_files(tmp_path / "a.ckpt", table, NUMBERS.tobytes())
    with pytest.raises(CheckpointError, match=message):
        read_tensors(path)


def test_a_block_that_is_named_again_and_again_is_refused(tmp_path):
    """Before: an index of 1 MB that names one block 100,000 times took hours."""
    table = table_of_blocks([(b"a", block_of([(b"x" * 40, WHOLE)], 1))], num_times=50)
    path = write_files(tmp_path / "a.ckpt", table, NUMBERS.tobytes())
    with pytest.raises(CheckpointError, match="names a block many times"):
        read_tensors(path)


def test_the_other_file_must_be_in_the_same_directory(tmp_path):
    index = write_checkpoint(tmp_path / "a.ckpt", {"a": NUMBERS})
    data = index.with_suffix(".data-00000-of-00001")
    alone = tmp_path / "alone"
    alone.mkdir()
    for file, other in [(index, data), (data, index)]:
        path = Path(alone / file.name)
        path.write_bytes(file.read_bytes())
        with pytest.raises(CheckpointError, match=f"'{other.name}' is not beside this one") as error:
            create_model("i3d", weights=path)
        assert_is_one_line(error.value, path)
        path.unlink()


@pytest.mark.parametrize("name", ["a.ckpt.data-00000-of-00003", "a.ckpt.data-00002-of-00003", "a.ckpt.index"])
def test_a_checkpoint_in_several_files_is_refused_whichever_is_given(tmp_path, name):
    (tmp_path / name).write_bytes(NUMBERS.tobytes())
    write_files(tmp_path / "a.ckpt", table_of({"a": WHOLE}, header=field(1, 3)), b"")
    with pytest.raises(CheckpointError, match="the data are in 3 files; only those in one are read"):
        create_model("i3d", weights=tmp_path / name)


@pytest.mark.parametrize("name", ["nowhere.index", "nowhere.data-00000-of-00001"])
def test_a_missing_checkpoint_is_named(name):
    with pytest.raises(CheckpointError, match=f"{name}: no such checkpoint file"):
        create_model("i3d", weights=name)


def test_another_networks_tensors_do_not_fit(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt", {"dense/kernel": NUMBERS})
    with pytest.raises(CheckpointError, match="does not fit i3d"):
        create_model("i3d", weights=path)


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------

SMALL = {
    f"unit_{i}/{kind}": np.arange(i, i + math.prod(shape), dtype=np.float32).reshape(shape)
    for i in range(2)
    for kind, shape in [("conv_3d/w", (1, 1, 1, 2, 3)), ("batch_norm/beta", (3,)), ("batch_norm/moving_mean", (3,))]
}


@pytest.fixture
def small(tmp_path):
    """Index and data of a small checkpoint whose table has four data blocks."""
    index = write_checkpoint(tmp_path / "a.ckpt", SMALL, keys_per_block=2, interval=2)
    return index, index.with_suffix(".data-00000-of-00001")


def is_refused(path):
    """Whether there is an error; the same tensors as ever if there is none."""
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        assert_is_one_line(error, path)
        return True
    assert is_same(tensors, SMALL)
    return False


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_cut_off_anywhere_is_refused(small, which):
    content = small[which].read_bytes()
    for length in range(len(content)):
        small[which].write_bytes(content[:length])
        assert is_refused(small[0]), length


def test_any_damaged_byte_of_the_data_is_refused_and_its_tensor_named(small):
    index, data = small
    content = data.read_bytes()
    entries = read_index(index.read_bytes())
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        data.write_bytes(damaged)
        (entry,) = (entry for entry in entries if entry.offset <= position < entry.offset + entry.size)
        with pytest.raises(CheckpointError, match=f"tensor '{entry.name}' has another CRC-32C"):
            read_tensors(index)


def test_any_damaged_byte_of_the_index_that_is_read_is_refused(small):
    index, _ = small
    content = index.read_bytes()
    metaindex = content.rindex(block_of([], 1))
    unread = {*range(metaindex, metaindex + 13), *range(len(content) - 48, len(content) - 8)}
    accepted = set()
    for position in range(len(content)):
        for flipped in (1 << position % 8, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flipped
            index.write_bytes(damaged)
            if not is_refused(index):
                accepted.add(position)
    assert accepted <= unread


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_gives_the_same_tensors_or_one_error(data):
    with tempfile.TemporaryDirectory() as folder:
        index = write_checkpoint(Path(folder) / "a.ckpt", SMALL, keys_per_block=2, interval=2)
        file = data.draw(st.sampled_from([index, index.with_suffix(".data-00000-of-00001")]))
        content = file.read_bytes()
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        file.write_bytes(content[:start] + data.draw(st.binary(max_size=60)) + content[end:])
        is_refused(index)


def test_damage_is_one_line_from_read_checkpoint_too(small):
    data = small[1]
    data.write_bytes(data.read_bytes()[:-1])
    for path in small:
        with pytest.raises(CheckpointError, match="tensor 'unit_1/conv_3d/w' ends at byte 96 of 95") as error:
            read_checkpoint(path)
        assert_is_one_line(error.value, path)


def test_entries_say_where_a_tensor_lies(small):
    first, *_ = read_index(small[0].read_bytes())
    numbers = SMALL["unit_0/batch_norm/beta"].tobytes()
    assert first == TensorEntry("unit_0/batch_norm/beta", (3,), 0, 12, masked(numbers))
