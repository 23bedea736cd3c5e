"""Optical flow: from two grey frames to the motion of every pixel, and from flow files that are there already.

    prev, next  (H, W) uint8  →  (H, W, 2) float32: pixels per frame step, channel 0 is x (right), 1 is y (down)

A *method* is a name in `FLOW_METHODS`; `create_flow` makes the function that computes it. `open_flow_files` reads
flow that was made elsewhere. The rest turns a field into what networks, files and people want: `rescale_flow`,
`quantise_flow`, `resize_flow`, `flow_to_rgb`.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import FlowFilesError, ShapeError, UsageError

FlowFunction = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""prev, next (H, W) uint8 → (H, W, 2) float32 in pixels. It holds buffers: use one per thread."""

DEFAULT_METHOD = "dis"
"""2 ms a pair at 340×256, and nearer to TV-L1 than Farneback (`benchmarks/flow.py`)."""

DEFAULT_BOUND_PX = 20.0
"""Where flow is truncated. Source: kinetics-i3d README, "Sample data and preprocessing"."""

MIN_DIS_SIDE_PX = 32
"""Sides shorter than this are padded for DIS.

OpenCV's DIS picks its pyramid from the *width* when a side is below 8 · 2^finest_scale (32 for the presets fast and
ultrafast): on a wide, low frame the coarsest level is then lower than its 8 px patch. 64×8 ends in a segmentation
fault, 400×12 in a failed assertion, 400×16 in NaN, anything with a side below 8 in an error. From 32 px on, every
level holds a patch.
"""


# --- methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowMethod:
    """A factory of flow functions that can say what it makes: `FLOW_METHODS["dis"]()` is a fresh one."""

    description: str
    """Name and parameters, for the recipe; aliases share it."""
    create: Callable[[], FlowFunction]

    def __call__(self) -> FlowFunction:
        """Make a fresh flow function."""
        return self.create()


@dataclass(frozen=True)
class DisParameters:
    """What tells the presets of OpenCV's DIS apart; written out here so that no OpenCV version can change them."""

    finest_scale: int
    """Flow is computed down to 1 / 2^this of the size, then enlarged."""
    patch_stride_px: int
    gradient_descent_iterations: int
    variational_refinement_iterations: int

    patch_size_px: int = 8

    def __str__(self) -> str:
        return (
            f"finest scale {self.finest_scale}, patch {self.patch_size_px} px, stride {self.patch_stride_px} px, "
            f"{self.gradient_descent_iterations} descent and {self.variational_refinement_iterations} refinement steps"
        )


DIS_PRESETS = {
    "ultrafast": DisParameters(2, 4, 12, 0),
    "fast": DisParameters(2, 4, 16, 5),
    "medium": DisParameters(1, 3, 25, 5),
}


class DisFlow:
    """Dense inverse search (Kroeger et al., ECCV 2016, arXiv:1603.03590), OpenCV's implementation."""

    def __init__(self, parameters: DisParameters) -> None:
        self._finest_scale = parameters.finest_scale
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._dis.setPatchSize(parameters.patch_size_px)
        self._dis.setPatchStride(parameters.patch_stride_px)
        self._dis.setGradientDescentIterations(parameters.gradient_descent_iterations)
        self._dis.setVariationalRefinementIterations(parameters.variational_refinement_iterations)

    def __call__(self, prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute (H, W, 2) flow from two grey frames (H, W)."""
        _check_pair(prev, following)
        height, width = prev.shape
        # A small frame makes OpenCV overwrite its own finest scale, and every later pair comes out differently.
        self._dis.setFinestScale(self._finest_scale)
        flow = self._dis.calc(_pad_for_dis(prev), _pad_for_dis(following), None)  # type: ignore[call-overload]
        return np.ascontiguousarray(flow[:height, :width], dtype=np.float32)


def _pad_for_dis(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column until both sides have `MIN_DIS_SIDE_PX`; most frames pass untouched."""
    missing = [max(0, MIN_DIS_SIDE_PX - side) for side in grey.shape]
    if any(missing):
        grey = np.pad(grey, [(0, missing[0]), (0, missing[1])], mode="edge")
    return np.ascontiguousarray(grey)


FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
}
"""The values of OpenCV's own tutorial, which most Python code was copied from."""


def farneback_flow(prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Polynomial expansion (Farnebäck, SCIA 2003), OpenCV's implementation.

    Args:
        prev: (H, W), grey.
        following: (H, W), grey, one frame step later.

    Returns:
        (H, W, 2), pixels per frame step.

    Raises:
        ShapeError: the frames are not two grey pictures of one size.
    """
    _check_pair(prev, following)
    flow = cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
        np.ascontiguousarray(prev), np.ascontiguousarray(following), None, **FARNEBACK, flags=0
    )
    return np.asarray(flow, dtype=np.float32)


def _check_pair(prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> None:
    if (
        prev.shape != following.shape
        or prev.ndim != 2
        or prev.size == 0
        or prev.dtype != np.uint8
        or following.dtype != np.uint8
    ):
        raise ShapeError(
            "optical flow needs two grey frames (H, W) uint8 of one size, "
            f"got {prev.shape} {prev.dtype} and {following.shape} {following.dtype}"
        )


def _dis_method(preset: str) -> FlowMethod:
    parameters = DIS_PRESETS[preset]
    return FlowMethod(f"dis, preset {preset} ({parameters})", functools.partial(DisFlow, parameters))


FLOW_METHODS: dict[str, FlowMethod] = {
    "dis": _dis_method("fast"),
    "dis-ultrafast": _dis_method("ultrafast"),
    "dis-fast": _dis_method("fast"),
    "dis-medium": _dis_method("medium"),
    "farneback": FlowMethod(
        "farneback (" + ", ".join(f"{name} {value}" for name, value in FARNEBACK.items()) + ")", lambda: farneback_flow
    ),
}


def create_flow(method: str = DEFAULT_METHOD) -> FlowFunction:
    """Make a function that computes flow.

    Args:
        method: a name in `FLOW_METHODS`.

    Returns:
        A fresh function; it holds buffers, so threads need one each.

    Raises:
        UsageError: no such method.
    """
    return _find_method(method).create()


def describe_flow(method: str = DEFAULT_METHOD) -> str:
    """Say by which method and parameters flow is computed, for the recipe.

    Raises:
        UsageError: no such method.
    """
    return _find_method(method).description


def _find_method(method: str) -> FlowMethod:
    if method in FLOW_METHODS:
        return FLOW_METHODS[method]
    close = difflib.get_close_matches(method, FLOW_METHODS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown flow method {method!r}: {hint}choose from {', '.join(FLOW_METHODS)}")


def optical_flow(grey: NDArray[np.uint8], method: str = DEFAULT_METHOD) -> NDArray[np.float32]:
    """Compute the flow of every pair of consecutive frames.

    Args:
        grey: (T, H, W).
        method: a name in `FLOW_METHODS`.

    Returns:
        (T-1, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down). Entry t is frame t → t+1.

    Raises:
        ShapeError: not a stack of at least one grey frame.
        UsageError: no such method.
    """
    compute = create_flow(method)
    if grey.ndim != 3 or 0 in grey.shape or grey.dtype != np.uint8:
        raise ShapeError(f"expected grey frames (T, H, W) uint8 with T ≥ 1, got {grey.shape} {grey.dtype}")
    flow = np.empty((len(grey) - 1, *grey.shape[1:], 2), np.float32)
    for t in range(len(flow)):
        flow[t] = compute(grey[t], grey[t + 1])
    return flow


def to_grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a colour frame into the grey one that flow is computed on (0.299 R + 0.587 G + 0.114 B).

    Args:
        rgb: (H, W, 3).

    Returns:
        (H, W).

    Raises:
        ShapeError: not a colour frame.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0 or rgb.dtype != np.uint8:
        raise ShapeError(f"expected a frame (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), dtype=np.uint8)


# --- fields ----------------------------------------------------------------------------------------------------------


def rescale_flow(flow: NDArray[Any], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.float32]:
    """Truncate flow to ±bound and map it to the range the I3D flow stream was trained on.

    Args:
        flow: (…, 2), pixels per frame step.
        bound_px: truncation.

    Returns:
        The same shape, in [-1, 1].

    Source: kinetics-i3d README, "Sample data and preprocessing".
    """
    _check_bound(bound_px)
    return np.asarray(np.clip(flow, -bound_px, bound_px) / bound_px, dtype=np.float32)


def quantise_flow(flow: NDArray[Any], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.uint8]:
    """Truncate flow to ±bound and map it linearly to 0…255, as the 8-bit images of the training data were.

        -20 → 0    0 → 128 (127.5, half to even)    20 → 255

    Args:
        flow: (…, 2), pixels per frame step.
        bound_px: truncation.

    Returns:
        The same shape.

    Source: `CAST` in yjxiong/dense_flow; in double precision, as there, so that ties fall alike.
    """
    _check_bound(bound_px)
    bounded = np.clip(np.asarray(flow, dtype=np.float64), -bound_px, bound_px)
    return np.asarray(np.rint(255 * (bounded + bound_px) / (2 * bound_px)), dtype=np.uint8)


def dequantise_flow(image: NDArray[np.uint8], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.float32]:
    """Undo `quantise_flow`, up to half a step (bound / 255) and the truncation; zero motion comes back as +0.08 px.

    Args:
        image: (…), 0 to 255.
        bound_px: truncation that the images were made with.

    Returns:
        The same shape, pixels per frame step.
    """
    _check_bound(bound_px)
    return np.asarray(image * (2 * bound_px / 255) - bound_px, dtype=np.float32)


def _check_bound(bound_px: float) -> None:
    if not 0 < bound_px < float("inf"):
        raise UsageError(f"the flow bound must be a positive number of pixels, got {bound_px}")


def resize_flow(flow: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize a field bilinearly, and its vectors with it: half the width, half the motion in x.

    Args:
        flow: (H, W, 2), pixels of the old size.
        height: new height in pixels.
        width: new width in pixels.

    Returns:
        (height, width, 2), pixels of the new size.

    Raises:
        ShapeError: not a field, or a side below 1 px.
    """
    _check_field(flow)
    if height < 1 or width < 1:
        raise ShapeError(f"cannot resize flow to {height}×{width} px")
    old_height, old_width = flow.shape[:2]
    resized = cv2.resize(np.ascontiguousarray(flow, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized * np.array([width / old_width, height / old_height]), dtype=np.float32)


def mean_end_point_error(flow: NDArray[Any], reference: NDArray[Any]) -> float:
    """Average the distance between two fields' vectors.

    Args:
        flow: (…, 2), pixels.
        reference: the same shape.

    Returns:
        Pixels.

    Raises:
        ShapeError: the shapes differ, or there is no vector.
    """
    if flow.shape != reference.shape or flow.size == 0 or flow.shape[-1] != 2:
        raise ShapeError(f"cannot compare flow of shapes {flow.shape} and {reference.shape}")
    difference = np.asarray(flow, dtype=np.float64) - reference
    return float(np.linalg.norm(difference, axis=-1).mean())


def _check_field(flow: NDArray[Any]) -> None:
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise ShapeError(f"expected flow (H, W, 2), got {flow.shape}")


# --- colours ---------------------------------------------------------------------------------------------------------


def _colour_wheel() -> NDArray[np.float32]:
    """(55, 3) in [0, 1], from red once around; more steps where the eye sees more hues."""
    red, yellow, green, cyan, blue, magenta = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=np.float32
    )
    arcs = [(red, yellow, 15), (yellow, green, 6), (green, cyan, 4), (cyan, blue, 11), (blue, magenta, 13)]
    arcs.append((magenta, red, 6))
    # Whole levels, as published: torchvision and flow_vis draw exactly these.
    levels = [
        255 * start + (end - start) * np.floor(255 * np.arange(steps)[:, None] / steps) for start, end, steps in arcs
    ]
    return np.asarray(np.concatenate(levels) / 255, dtype=np.float32)


_WHEEL = _colour_wheel()


def flow_to_rgb(flow: NDArray[np.float32], max_px: float) -> NDArray[np.uint8]:
    """Draw a field with the colour wheel of Baker et al. (IJCV 2011), the Middlebury one.

    The hue is the direction, the saturation the length: white stands still, `max_px` is fully saturated. Longer
    vectors are darkened to 75 %, as in Middlebury's `colorcode.cpp`.

    Args:
        flow: (H, W, 2), pixels per frame step.
        max_px: length that is drawn fully saturated.

    Returns:
        (H, W, 3), RGB.

    Raises:
        ShapeError: not a field.
    """
    _check_field(flow)
    if not max_px > 0:
        raise UsageError(f"the longest motion drawn must be a positive number of pixels, got {max_px}")
    x, y = np.asarray(flow[..., 0], np.float32), np.asarray(flow[..., 1], np.float32)
    length = np.hypot(x, y)[..., None] / np.float32(max_px)
    position = (np.arctan2(-y, -x) / np.float32(np.pi) + 1) / 2 * (len(_WHEEL) - 1)
    below = position.astype(np.int32)
    share = (position - below)[..., None]
    hue = (1 - share) * _WHEEL[below] + share * _WHEEL[(below + 1) % len(_WHEEL)]
    colour = np.where(length <= 1, 1 - length * (1 - hue), np.float32(0.75) * hue)
    return np.asarray(np.floor(255 * colour), dtype=np.uint8)


# --- ready-made flow -------------------------------------------------------------------------------------------------

_IMAGE_NAME = re.compile(r"(?:flow_)?([xy])_?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_LAYOUTS = "flow_x_00001.jpg and flow_y_00001.jpg, or x_00001.jpg and y_00001.jpg (.jpg, .jpeg or .png)"
SIDECAR_NAME = "flow.json"
"""What `vid3d flow` writes beside its images: bound, size and recipe."""


class FlowFiles:
    """Flow of one video that was computed before: `len(files)` pairs, `files[i]` is (H, W, 2) float32 in pixels.

    One pair at a time is read, so memory does not grow with the video. Going forward is fast in every format; use it
    in a `with` block, or close it.
    """

    description: str
    """What the flow was read from, for the recipe; without paths."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _read(self, index: int) -> NDArray[np.float32]:
        raise NotImplementedError

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._read(index % len(self))

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self._read(index) for index in range(len(self)))

    def close(self) -> None:
        """Close what is open."""

    def __enter__(self) -> FlowFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_flow_files(path: str | Path, video: str, bound_px: float = DEFAULT_BOUND_PX) -> FlowFiles:
    """Find the ready-made flow of a video.

    Args:
        path: a directory of images (see `_LAYOUTS`), an .npz with the array "flow", or a directory that holds one of
            the two per video, named by the video's name with or without its suffix.
        video: path or URL of the video, to name it by.
        bound_px: what the 8-bit images 0 and 255 stand for; a flow.json beside them knows better. Not used for .npz.

    Raises:
        FlowFilesError: nothing there, a frame is missing, or it cannot be read.
    """
    _check_bound(bound_px)
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
    tried = ", ".join(f"{stem}/ {name}/ {stem}.npz".split())
    raise FlowFilesError(video, f"no ready-made flow in {path}: looked for {_LAYOUTS} in it, then for {tried}")


def _is_image_directory(directory: Path) -> bool:
    return any(entry.name == SIDECAR_NAME or is_flow_image_name(entry.name) for entry in directory.iterdir())


def is_flow_image_name(name: str) -> bool:
    """Whether a file of this name is an 8-bit image of x or y flow."""
    return _IMAGE_NAME.fullmatch(name) is not None


class ImageFlow(FlowFiles):
    """Pairs of 8-bit images, one of x and one of y, as denseflow, mmaction and TSN name them.

    Args:
        directory: holds the images, numbered from 0 or 1 without gaps.
        video: whose flow it is, for error messages.
        bound_px: what 0 and 255 stand for, where no flow.json says.

    Raises:
        FlowFilesError: the numbering has gaps, or x and y differ.
    """

    def __init__(self, directory: Path, video: str, bound_px: float) -> None:
        self._video = video
        self.bound_px = self._stored_bound_px(directory / SIDECAR_NAME) or bound_px
        self.description = f"ready-made 8-bit images, bound {self.bound_px:g} px"
        self._pairs = self._find_pairs(directory)

    def _stored_bound_px(self, sidecar: Path) -> float | None:
        if not sidecar.exists():
            return None
        try:
            bound_px = float(json.loads(sidecar.read_text(encoding="utf-8"))["bound_px"])
            _check_bound(bound_px)
        except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
            raise FlowFilesError(
                self._video, f"{sidecar} holds no usable bound_px: delete it or write it anew"
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
                raise FlowFilesError(self._video, f"{images[axis][number]} and {path.name} are the same frame's {axis}")
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
                        f"(numbered {first} to {max(found)}; frames are named {_LAYOUTS})",
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
            data = np.fromfile(path, np.uint8)  # imread itself cannot open every name on Windows
        except OSError as error:
            raise FlowFilesError(self._video, f"cannot read {path}: {error.strerror}") from error
        image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
        if image is None:
            raise FlowFilesError(self._video, f"{path} is not a readable image")
        return np.asarray(image, dtype=np.uint8)


class NpzFlow(FlowFiles):
    """The array "flow" (T-1, H, W, 2) of an .npz, in pixels; read through the archive without unpacking it whole.

    Args:
        path: the archive, as `vid3d flow` or `np.savez` write it.
        video: whose flow it is, for error messages.

    Raises:
        FlowFilesError: not an archive, no such array, or not flow.
    """

    description = "ready-made .npz"

    def __init__(self, path: Path, video: str) -> None:
        self._path, self._video = path, video
        self._stream: IO[bytes] | None = None
        self._next = 0  # index of the pair that the stream stands before
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FlowFilesError(video, f"{path} is not a readable .npz") from error
        try:
            self._rewind()
        except BaseException:
            self.close()
            raise

    def _rewind(self) -> None:
        if self._stream:
            self._stream.close()
        try:
            self._stream = self._archive.open("flow.npy")
            self._shape, self._dtype = self._read_header(self._stream)
        except KeyError as error:
            arrays = ", ".join(Path(name).stem for name in self._archive.namelist())
            raise FlowFilesError(
                self._video, f'{self._path} has no array "flow" (it has: {arrays or "none"})'
            ) from error
        except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise FlowFilesError(self._video, f"{self._path} is damaged or not flow: {error}") from error
        self._next = 0

    @staticmethod
    def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
        if len(shape) != 4 or shape[3] != 2 or dtype.kind != "f" or fortran_order:
            raise ValueError(f"expected floats (T-1, H, W, 2) in C order, got {shape} {dtype}")
        return shape, dtype

    def __len__(self) -> int:
        return self._shape[0]

    def _read(self, index: int) -> NDArray[np.float32]:
        if index < self._next:
            self._rewind()
        while self._next < index:  # in a compressed archive there is no other way forward
            self._read_next()
        return np.frombuffer(self._read_next(), self._dtype).reshape(self._shape[1:]).astype(np.float32)

    def _read_next(self) -> bytes:
        if self._stream is None:
            raise ValueError(f"{self._path} is closed")
        num_bytes = int(np.prod(self._shape[1:])) * self._dtype.itemsize
        try:
            data = self._stream.read(num_bytes)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise FlowFilesError(self._video, f"{self._path} is damaged at pair {self._next}: {error}") from error
        if len(data) < num_bytes:
            raise FlowFilesError(self._video, f"{self._path} ends at pair {self._next} of {len(self)}")
        self._next += 1
        return data

    def close(self) -> None:
        """Close the archive."""
        if self._stream:
            self._stream.close()
            self._stream = None
        self._archive.close()
