"""Reads ready-made flow, which `vid3d flow` (see `writers`) or another tool has computed.

Example:
    with open_flow_files("flow/", "walk.mp4") as files:
        field = files[0]                                # (H, W, 2) float32, pixels per frame step
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import FlowFilesError, UsageError
from ..video import MAX_PIXELS
from .fields import DEFAULT_BOUND_PX, check_bound, dequantise_flow

_IMAGE_NAME = re.compile(r"(?:flow_)?([xy])_?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_LAYOUTS = "flow_x_00001.jpg and flow_y_00001.jpg, or x_00001.jpg and y_00001.jpg (.jpg, .jpeg or .png)"

_MAX_IMAGE_BYTES = 2**28
_MAX_SIDECAR_BYTES = 2**20

SIDECAR_NAME = "flow.json"
"""The file beside the images of `vid3d flow` that holds their bound, size and recipe."""


class FlowFiles(ABC):
    """The ready-made flow of one video: `files[i]` is pair i, (H, W, 2) float32 in pixels, `len(files)` their number.

    One pair at a time is in memory. Reading forward is fast in every format. Use it in a `with` block, or close it.

    Args:
        video: whose flow it is, for error messages.

    Raises:
        FlowFilesError: while reading: a field cannot be read, or has another size than the first one read.
    """

    description: str
    """The format, for the recipe; without paths."""

    def __init__(self, video: str) -> None:
        self._video = video
        self._size: tuple[int, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, index: int) -> NDArray[np.float32]: ...

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        field = self._read(index)
        size = field.shape[:2]
        self._size = self._size or size
        if size != self._size:
            expected, found = (f"{width}×{height} px" for height, width in (self._size, size))
            raise FlowFilesError(
                self._video, f"the ready-made flow has two sizes: pair {index} is {found}, not {expected}"
            )
        return field

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:  # noqa: B027  (only an archive stays open)
        """Close the files."""

    def __enter__(self) -> FlowFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_flow_files(path: str | Path, video: str, bound_px: float = DEFAULT_BOUND_PX) -> FlowFiles:
    """Open the ready-made flow of a video.

    Args:
        path: a directory of images (flow_x_00001.jpg and flow_y_00001.jpg, or x_00001.jpg and y_00001.jpg; .jpg, .jpeg
            or .png), an .npz with the array "flow", or a directory that holds one of the two per video, under the name
            of the video with or without its suffix.
        video: path or URL of the video.
        bound_px: what 0 and 255 stand for in images; a flow.json beside them takes precedence. Not used for .npz.

    Raises:
        FlowFilesError: there is no flow, an image is missing, or a file cannot be read.
        UsageError: the bound is not a positive number.
    """
    check_bound(bound_px)
    path = Path(path)
    if not path.exists():
        raise FlowFilesError(video, f"no ready-made flow at {path}: no such file or directory")
    stem, name = Path(video).stem, Path(video).name
    candidates = [path, path / stem, path / name, path / f"{stem}.npz", path / f"{name}.npz"]
    for candidate in candidates if path.is_dir() else [path]:
        if candidate.is_file() and candidate.suffix.lower() == ".npz":
            return NpzFlow(candidate, video)
        if candidate.is_dir() and _is_image_directory(candidate):
            return ImageFlow(candidate, video, bound_px)
    if path.is_file():
        raise FlowFilesError(video, f"{path} is not ready-made flow: expected a directory of images or an .npz")
    tried = f"{stem}/, {name}/, {stem}.npz"
    raise FlowFilesError(video, f"no ready-made flow in {path}: looked for {_LAYOUTS} in it, then for {tried}")


def is_of_one_video(path: Path) -> bool:
    """Whether a path holds the flow of one video, not a file or directory per video."""
    return path.is_file() or (path.is_dir() and _is_image_directory(path))


def _is_image_directory(directory: Path) -> bool:
    return any(entry.name == SIDECAR_NAME or is_flow_image_name(entry.name) for entry in directory.iterdir())


def is_flow_image_name(name: str) -> bool:
    """Return whether a file name is that of an 8-bit image of x or y flow."""
    return _IMAGE_NAME.fullmatch(name) is not None


class ImageFlow(FlowFiles):
    """Pairs of 8-bit images, one of x and one of y, as denseflow, mmaction and TSN name them.

    Args:
        directory: holds the images, numbered from 0 or 1 without gaps.
        video: whose flow it is, for error messages.
        bound_px: what 0 and 255 stand for, if there is no flow.json.

    Raises:
        FlowFilesError: an image is missing or there twice, or flow.json is damaged.
    """

    def __init__(self, directory: Path, video: str, bound_px: float) -> None:
        super().__init__(video)
        self.bound_px = self._stored_bound_px(directory / SIDECAR_NAME) or bound_px
        self.description = f"ready-made 8-bit images, bound {self.bound_px:g} px"
        self._pairs = self._find_pairs(directory)

    def _stored_bound_px(self, sidecar: Path) -> float | None:
        if not sidecar.exists():
            return None
        try:
            with sidecar.open("rb") as file:
                bound_px = float(json.loads(file.read(_MAX_SIDECAR_BYTES))["bound_px"])
            check_bound(bound_px)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
            raise FlowFilesError(
                self._video, f"{sidecar} has no usable bound_px: delete or replace the file"
            ) from error
        return bound_px

    def _find_pairs(self, directory: Path) -> list[tuple[Path, Path]]:
        images: dict[str, dict[int, Path]] = {"x": {}, "y": {}}
        for path in directory.iterdir():
            match = _IMAGE_NAME.fullmatch(path.name)
            if not match:
                continue
            axis, number = match[1].lower(), int(match[2])
            if number in images[axis]:
                both = f"{images[axis][number]} and {path.name}"
                raise FlowFilesError(self._video, f"{both} are both the {axis} image of frame {number}")
            images[axis][number] = path
        self._check_numbers(directory, images)
        return [(images["x"][number], images["y"][number]) for number in sorted(images["x"])]

    def _check_numbers(self, directory: Path, images: dict[str, dict[int, Path]]) -> None:
        found = images["x"].keys() | images["y"].keys()
        first = 0 if 0 in found else 1
        for number in range(first, max(found, default=0) + 1):
            for axis in "xy":
                if number not in images[axis]:
                    raise FlowFilesError(
                        self._video,
                        f"the {axis} image of frame {number} is missing in {directory} "
                        f"(frames are numbered {first} to {max(found)} and named {_LAYOUTS})",
                    )

    def __len__(self) -> int:
        return len(self._pairs)

    def _read(self, index: int) -> NDArray[np.float32]:
        x, y = (self._read_image(path) for path in self._pairs[index])
        if x.shape != y.shape:
            raise FlowFilesError(self._video, f"{self._pairs[index][0]} and its y image differ in size")
        return dequantise_flow(np.stack([x, y], axis=-1), self.bound_px)

    def _read_image(self, path: Path) -> NDArray[np.uint8]:
        try:
            data = np.fromfile(path, np.uint8, _MAX_IMAGE_BYTES)  # imread prints a warning where this raises an error
        except OSError as error:
            raise FlowFilesError(self._video, f"cannot read {path}: {error.strerror}") from error
        num_pixels = _count_pixels(data)
        if num_pixels > MAX_PIXELS:
            raise FlowFilesError(
                self._video, f"{path} announces more than {MAX_PIXELS // 10**6} million pixels: no flow is that large"
            )
        image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if num_pixels else None
        if image is None:
            raise FlowFilesError(self._video, f"{path} is not a readable image")
        return np.asarray(image, dtype=np.uint8)


def _count_pixels(image: NDArray[np.uint8]) -> int:
    """Return width × height in the header of a PNG or JPEG image; 0 for other files."""
    data = image.tobytes()
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return math.prod(struct.unpack_from(">II", data, 16))
    position = 2 if data.startswith(b"\xff\xd8") else len(data)
    while position + 9 <= len(data):
        marker, kind, size, height, width = struct.unpack_from(">BBHxHH", data, position)
        if marker != 0xFF or kind < 0xC0 or 0xD0 <= kind <= 0xD9:  # a decoder might look for the header elsewhere
            return 0
        if kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the start of the frame, not of a table
            return int(height * width)
        position += 1 if kind == 0xFF else 2 + size  # 0xFF: padding
    return 0


class NpzFlow(FlowFiles):
    """The array "flow" (T-1, H, W, 2) of an .npz, in pixels.

    The archive is read as a stream, pair by pair: its array may be compressed, and larger than the memory or the disk.

    Args:
        path: the archive, as `vid3d flow` or `np.savez` write it.
        video: whose flow it is, for error messages.

    Raises:
        FlowFilesError: the file is not an archive, has no such array, or the array is not flow.
    """

    description = "ready-made .npz"

    def __init__(self, path: Path, video: str) -> None:
        super().__init__(video)
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FlowFilesError(video, f"{path} is not a readable .npz") from error
        try:
            self._rewind()
        except BaseException:
            self._archive.close()
            raise

    def _rewind(self) -> None:
        """Open the array at its start: a stream only goes forward."""
        try:
            if self._archive.getinfo("flow.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("NumPy writes no such compression")  # Python unpacks others without a limit
            self._stream = self._archive.open("flow.npy")
            self._shape, self._dtype = _read_header(self._stream)
        except KeyError as error:
            arrays = ", ".join(Path(name).stem for name in self._archive.namelist())
            raise FlowFilesError(
                self._video, f'{self._path} has no array "flow" (it has: {arrays or "none"})'
            ) from error
        except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise FlowFilesError(self._video, f"{self._path} is damaged or not flow: {error}") from error
        self._next = 0  # index of the pair that the stream gives next

    def __len__(self) -> int:
        return self._shape[0]

    def _read(self, index: int) -> NDArray[np.float32]:
        if index < self._next:
            self._rewind()
        num_bytes = math.prod(self._shape[1:]) * self._dtype.itemsize
        data = b""
        while self._next <= index:
            try:
                data = self._stream.read(num_bytes)
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise FlowFilesError(self._video, f"{self._path} is damaged at pair {self._next}: {error}") from error
            if len(data) < num_bytes:
                raise FlowFilesError(self._video, f"{self._path} ends at pair {self._next} of {len(self)}")
            self._next += 1
        return np.frombuffer(data, self._dtype).reshape(self._shape[1:]).astype(np.float32)

    def close(self) -> None:
        """Close the archive."""
        self._stream.close()
        self._archive.close()


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of a flow array; the stream then stands before its first pair."""
    if np.lib.format.read_magic(stream) != (1, 0):  # others are for names of fields, and may take gigabytes
        raise ValueError("its header is not one of an array of numbers")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 4 or shape[3] != 2 or min(shape) < 0 or dtype.kind != "f" or fortran_order:
        raise ValueError(f"expected floats (T-1, H, W, 2) in C order, got {shape} {dtype}")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise ValueError(f"fields of {shape[2]}×{shape[1]} px: no flow is that large")
    return shape, dtype
