"""Optical flow: from consecutive grey frames to the motion of every pixel.

    (n+1, H, W) uint8  →  (n, H, W, 2) float32: pixels per frame step, channel 0 is x (right), 1 is y (down)

A *method* is a name in `FLOW_METHODS`; `create_flow` makes the function that computes it. The rest turns a field into
what networks, files and people want: `rescale_flow`, `quantise_flow`, `resize_flow`, `flow_to_rgb`.
"""

from __future__ import annotations

import difflib
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError, UsageError


class FlowFunction(Protocol):
    """Computes the flow of a run of frames, in any thread."""

    @property
    def pairs_per_call(self) -> int:
        """With how many pairs at once it is fast; that changes no flow on a CPU, and last bits at most on a GPU."""

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Compute the flow of every pair of consecutive frames.

        Args:
            grey: (n+1, H, W).

        Returns:
            (n, H, W, 2), pixels per frame step.

        Raises:
            ShapeError: not a stack of at least one grey frame.
        """


FlowOfPair = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""prev, next (H, W) uint8 → (H, W, 2) float32 in pixels. It may hold buffers: one per thread."""

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


@dataclass(frozen=True)
class FlowMethod:
    """A factory of flow functions that can say what it makes."""

    description: str
    """Name and parameters, for the recipe; aliases share it."""
    create: Callable[[str], FlowFunction]
    """Makes a flow function that computes on a device, where it can."""
    can_use_gpu: bool = False


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


class PairByPair:
    """Flow by a method that knows two frames at a time, as OpenCV's do.

    Args:
        create: makes what computes it, for a thread.
    """

    pairs_per_call = 1

    def __init__(self, create: Callable[[], FlowOfPair]) -> None:
        self._create = create
        self._of_thread = threading.local()

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Compute (n, H, W, 2) flow from grey frames (n+1, H, W)."""
        if grey.ndim != 3 or 0 in grey.shape or grey.dtype != np.uint8:
            raise ShapeError(f"expected grey frames (T, H, W) uint8 with T ≥ 1, got {grey.shape} {grey.dtype}")
        if not hasattr(self._of_thread, "compute"):
            self._of_thread.compute = self._create()
        flow = np.empty((len(grey) - 1, *grey.shape[1:], 2), np.float32)
        for t in range(len(flow)):
            flow[t] = self._of_thread.compute(grey[t], grey[t + 1])
        return flow


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
    """
    flow = cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
        np.ascontiguousarray(prev), np.ascontiguousarray(following), None, **FARNEBACK, flags=0
    )
    return np.asarray(flow, dtype=np.float32)


class Tvl1Flow:
    """TV-L1, see `tvl1`; torch is imported here.

    Args:
        device: where to compute, as torch calls it.
    """

    def __init__(self, device: str) -> None:
        from .tvl1 import pairs_per_call, tvl1_flow

        self.pairs_per_call = pairs_per_call(device)
        self._compute = functools.partial(tvl1_flow, device=device)

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Compute (n, H, W, 2) flow from grey frames (n+1, H, W)."""
        return self._compute(grey)


def _dis_method(preset: str) -> FlowMethod:
    parameters = DIS_PRESETS[preset]
    return FlowMethod(
        f"dis, preset {preset} ({parameters})", lambda _: PairByPair(functools.partial(DisFlow, parameters))
    )


FLOW_METHODS: dict[str, FlowMethod] = {
    "dis": _dis_method("fast"),
    "dis-ultrafast": _dis_method("ultrafast"),
    "dis-fast": _dis_method("fast"),
    "dis-medium": _dis_method("medium"),
    "farneback": FlowMethod(
        "farneback (" + ", ".join(f"{name} {value}" for name, value in FARNEBACK.items()) + ")",
        lambda _: PairByPair(lambda: farneback_flow),
    ),
    "tvl1": FlowMethod(
        "tvl1, OpenCV's default parameters (tau 0.25, lambda 0.15, theta 0.3, 5 scales, 5 warps, epsilon 0.01)",
        Tvl1Flow,
        can_use_gpu=True,
    ),
}


def create_flow(method: str = DEFAULT_METHOD, device: str = "cpu") -> FlowFunction:
    """Make a function that computes flow.

    Args:
        method: a name in `FLOW_METHODS`.
        device: "cpu", or a GPU as torch calls it ("cuda:0"), for a method that can use one; the others ignore it.

    Raises:
        UsageError: no such method.
    """
    return find_flow_method(method).create(device)


def describe_flow(method: str = DEFAULT_METHOD) -> str:
    """Say by which method and parameters flow is computed, for the recipe.

    Raises:
        UsageError: no such method.
    """
    return find_flow_method(method).description


def find_flow_method(method: str) -> FlowMethod:
    """The method of that name.

    Raises:
        UsageError: no such method.
    """
    if method in FLOW_METHODS:
        return FLOW_METHODS[method]
    close = difflib.get_close_matches(method, FLOW_METHODS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown flow method {method!r}: {hint}choose from {', '.join(FLOW_METHODS)}")


def optical_flow(grey: NDArray[np.uint8], method: str = DEFAULT_METHOD, *, device: str = "cpu") -> NDArray[np.float32]:
    """Compute the flow of every pair of consecutive frames.

    Args:
        grey: (T, H, W).
        method: a name in `FLOW_METHODS`.
        device: see `create_flow`.

    Returns:
        (T-1, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down). Entry t is frame t → t+1.

    Raises:
        ShapeError: not a stack of at least one grey frame.
        UsageError: no such method.
    """
    return create_flow(method, device)(grey)


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


def rescale_flow(flow: NDArray[Any], bound_px: float = DEFAULT_BOUND_PX) -> NDArray[np.float32]:
    """Truncate flow to ±bound and map it to the range the I3D flow stream was trained on.

    Args:
        flow: (…, 2), pixels per frame step.
        bound_px: truncation.

    Returns:
        The same shape, in [-1, 1].

    Source: kinetics-i3d README, "Sample data and preprocessing".
    """
    check_bound(bound_px)
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
    check_bound(bound_px)
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
    check_bound(bound_px)
    return np.asarray(image * (2 * bound_px / 255) - bound_px, dtype=np.float32)


def check_bound(bound_px: float) -> None:
    """Refuse a truncation that leaves no flow.

    Raises:
        UsageError: not a positive number.
    """
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
