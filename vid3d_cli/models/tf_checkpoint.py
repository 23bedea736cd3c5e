"""TensorFlow's checkpoints, read without TensorFlow: the format of DeepMind's I3D weights.

    model.ckpt.index                 a table: tensor name → its type, shape, CRC-32C and place in the data
    model.ckpt.data-00000-of-00001   the numbers of all tensors, and nothing else

The table is LevelDB's, a file of blocks:

    table    data blocks, metaindex block, index block, footer
    footer   handles of metaindex and index, padding, magic number
    handle   offset and size of a block
    block    entries, offsets of some entries (to search by), their number; compression, CRC-32C
    entry    bytes shared with the key before, bytes of the key's rest, bytes of the value; the key's rest; the value

An index entry's value is the handle of a data block, a data entry's value a protocol buffer.

Source: LevelDB, doc/table_format.md; TensorFlow, core/lib/io/format.cc, core/protobuf/tensor_bundle.proto,
core/framework/tensor_shape.proto, core/lib/hash/crc32c.h.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

Tensors = dict[str, NDArray[np.float32]]

INDEX_SUFFIX = ".index"
DATA_SUFFIX = ".data-00000-of-00001"

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
BLOCK_TRAILER_BYTES = 5

UNCOMPRESSED = 0
LITTLE_ENDIAN = 0
FLOAT32 = 1
"""Values of the block's first trailer byte, of BundleHeaderProto.endianness, of BundleEntryProto.dtype."""

MAX_INDEX_BYTES = 2**20
"""Those of I3D take 11 kB."""

MAX_KEYS_BYTES = 2**22
"""Of a block. Keys share their beginnings: without a limit, an index of 1 MB gives keys of gigabytes."""

TRAINING_STATE = re.compile(r"(^|/)(global_step|beta[12]_power|Momentum|(Adam|RMSProp)(_1)?)$")
"""Names of what only training needs: counters, and the optimiser's state of each weight."""

NORM_VECTORS = ("beta", "gamma", "moving_mean", "moving_variance")


def is_tf_checkpoint(path: Path) -> bool:
    """Whether a file is, by its name, the index or the data of a TensorFlow checkpoint."""
    return path.suffix == INDEX_SUFFIX or path.suffix.startswith(".data-")


def read_tf_checkpoint(path: Path) -> Tensors:
    """Return a network's tensors by TensorFlow's names, in PyTorch's layout.

    Args:
        path: of the index or the data; the other file must be in the same directory.

    Raises:
        CheckpointError: one of the two files is missing, damaged, or of a kind that vid3d does not read.
    """
    return to_pytorch_layout(read_tensors(path))


def to_pytorch_layout(tensors: Mapping[str, NDArray[np.float32]]) -> Tensors:
    """Return Sonnet's tensors in the layout of torch.nn.

    A convolution's kernel (D, H, W, I, O) becomes (O, I, D, H, W), a batch norm's vector (1, 1, 1, 1, C) becomes (C,).
    A batch norm with an offset (beta) but no scale (gamma), as in I3D, gets a scale of ones.
    """
    laid_out: Tensors = {}
    for name, tensor in tensors.items():
        scope, _, kind = name.rpartition("/")
        if kind in NORM_VECTORS and tensor.shape[:-1] == (1, 1, 1, 1):
            tensor = tensor[0, 0, 0, 0]
        elif tensor.ndim == 5:
            tensor = np.ascontiguousarray(tensor.transpose(4, 3, 0, 1, 2))
        laid_out[name] = tensor
        if kind == "beta" and f"{scope}/gamma" not in tensors:
            laid_out[f"{scope}/gamma"] = np.ones_like(tensor)
    return laid_out


def read_tensors(path: Path) -> Tensors:
    """Return all tensors but the training state, verified, in TensorFlow's layout.

    Raises:
        CheckpointError: a file is missing, damaged, or of a kind that vid3d does not read.
    """
    try:
        index, data = _beside(path, INDEX_SUFFIX), _beside(path, DATA_SUFFIX)
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(
                f"the index is longer than {MAX_INDEX_BYTES} bytes; it is damaged, or not one of a network"
            )
        tensors, room = {}, data.stat().st_size
        for entry in read_index(index.read_bytes()):
            tensors[entry.name] = read_tensor(data, entry)
            room -= entry.size
            if room < 0:
                raise ValueError("the index is damaged: tensors share their data")
        return tensors
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _beside(path: Path, suffix: str) -> Path:
    file = path.with_suffix(suffix)
    if not file.is_file():
        raise ValueError(f"a TensorFlow checkpoint is two files, and '{file.name}' is not beside this one")
    return file


# ---------------------------------------------------------------------------------------------------------------------
# The tensors
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorEntry:
    """The entry of one float32 tensor in the index."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """Its start in the data, in bytes."""
    size: int
    """In bytes."""
    masked_crc32c: int
    """Of its bytes in the data."""


def read_index(table: bytes) -> list[TensorEntry]:
    """Return the entries of an index, without the training state.

    Raises:
        ValueError: the index is damaged, or its data are not float32 in one file.
    """
    messages = dict(table_entries(table))
    if b"" not in messages:
        raise ValueError("the index is damaged: it has no header")
    header, _ = parse_message(messages.pop(b""))  # BundleHeaderProto
    num_shards, endianness = header[1], header[2]
    if num_shards != 1:
        raise ValueError(f"the data are in {num_shards} files; only those in one are read")
    if endianness != LITTLE_ENDIAN:
        raise ValueError("the data are big-endian; only little-endian ones are read")
    names = {key: key.decode("utf-8", "backslashreplace") for key in messages}
    return [parse_entry(names[key], messages[key]) for key in messages if not TRAINING_STATE.search(names[key])]


def parse_entry(name: str, message: bytes) -> TensorEntry:
    """Return the content of a BundleEntryProto.

    Raises:
        ValueError: the entry is damaged, or not of a complete float32 tensor.
    """
    integers, messages = parse_message(message)
    dtype, offset, size, masked_crc32c = integers[1], integers[4], integers[5], integers[6]
    shapes, slices = messages[2], messages[7]
    if dtype != FLOAT32:
        raise ValueError(f"tensor {name!r} has TensorFlow's data type {dtype}; only float32, which is 1, is read")
    if slices:
        raise ValueError(f"tensor {name!r} is stored in slices; only whole tensors are read")
    dims = [dim for shape in shapes for dim in parse_message(shape)[1][2]]  # TensorShapeProto.dim
    shape = tuple(parse_message(dim)[0][1] for dim in dims)
    if size != 4 * math.prod(shape):
        raise ValueError(f"the index is damaged: tensor {name!r} of shape {shape} has {size} bytes")
    return TensorEntry(name, shape, offset, size, masked_crc32c)


def read_tensor(data: Path, entry: TensorEntry) -> NDArray[np.float32]:
    """Return one tensor, float32, verified.

    Raises:
        ValueError: the data are truncated or damaged.
    """
    data_size = data.stat().st_size
    if entry.offset + entry.size > data_size:
        raise ValueError(
            f"the data are cut off, or another checkpoint's: tensor {entry.name!r} ends at byte "
            f"{entry.offset + entry.size} of {data_size}"
        )
    numbers = np.fromfile(data, "<f4", entry.size // 4, offset=entry.offset)
    if mask_crc32c(google_crc32c.value(numbers.tobytes())) != entry.masked_crc32c:
        raise ValueError(f"the data are damaged, or another checkpoint's: tensor {entry.name!r} has another CRC-32C")
    return numbers.reshape(entry.shape)


def mask_crc32c(crc: int) -> int:
    """Return a CRC-32C as TensorFlow stores it: masked, because checksums of checksums are weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


class Cursor:
    """Takes bytes from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self.position < len(self.content)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            ValueError: there are fewer.
        """
        end = self.position + size
        if end > len(self.content):
            raise ValueError("the index is damaged: something in it is longer than what holds it")
        taken, self.position = self.content[self.position : end], end
        return taken

    def unsigned(self, size: int) -> int:
        """Return a little-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        """Return an integer in groups of 7 bits, the lowest first; all but the last have the top bit set."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self.unsigned(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("the index is damaged: an integer of more than 64 bits")


def table_entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table.

    Raises:
        ValueError: it is no table, damaged, or compressed.
    """
    if int.from_bytes(table[-8:], "little") != TABLE_MAGIC:
        raise ValueError("the index is not one of a TensorFlow checkpoint, or is cut off")
    handles = Cursor(table[-FOOTER_BYTES:])
    handles.varint(), handles.varint()  # the metaindex, in which TensorFlow writes nothing
    num_bytes = 0
    for _, handle in block_entries(read_block(table, handles)):
        block = read_block(table, Cursor(handle))
        num_bytes += len(block)
        if num_bytes > len(table):
            raise ValueError("the index is damaged: it names a block many times")
        yield from block_entries(block)


def read_block(table: bytes, handle: Cursor) -> bytes:
    """Return a block without its trailer.

    Raises:
        ValueError: the block is outside the table, damaged, or compressed.
    """
    offset, size = handle.varint(), handle.varint()
    block = Cursor(table[offset : offset + size + BLOCK_TRAILER_BYTES])
    content, compression, masked_crc32c = block.take(size), block.take(1), block.unsigned(4)
    if mask_crc32c(google_crc32c.value(content + compression)) != masked_crc32c:
        raise ValueError("the index is damaged: a block has another CRC-32C")
    if compression[0] != UNCOMPRESSED:
        raise ValueError("the index is compressed; only uncompressed ones are read")
    return content


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block.

    Raises:
        ValueError: the block is damaged.
    """
    num_restarts = int.from_bytes(block[-4:], "little")
    entries, key, num_bytes = Cursor(block[: max(len(block) - 4 * (num_restarts + 1), 0)]), b"", 0
    while entries:
        num_shared, num_added, value_size = entries.varint(), entries.varint(), entries.varint()
        if num_shared > len(key):
            raise ValueError("the index is damaged: a key shares more bytes than the one before has")
        key = key[:num_shared] + entries.take(num_added)
        num_bytes += len(key)
        if num_bytes > MAX_KEYS_BYTES:
            raise ValueError(f"the index is damaged: a block with names of more than {MAX_KEYS_BYTES} bytes")
        yield key, entries.take(value_size)


def parse_message(message: bytes) -> tuple[Mapping[int, int], Mapping[int, list[bytes]]]:
    """Return the fields of a protocol buffer by number: integers, and bytes; absent fields are 0 and [].

    Raises:
        ValueError: the message is damaged.
    """
    integers: defaultdict[int, int] = defaultdict(int)
    strings: defaultdict[int, list[bytes]] = defaultdict(list)
    fields = Cursor(message)
    while fields:
        number, wire_type = divmod(fields.varint(), 8)
        if wire_type == 0:
            integers[number] = fields.varint()
        elif wire_type == 2:
            strings[number].append(fields.take(fields.varint()))
        elif wire_type == 5:
            integers[number] = fields.unsigned(4)
        else:
            raise ValueError("the index is damaged: no protocol buffer where there must be one")
    return integers, strings
