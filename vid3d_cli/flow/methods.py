"""Optical flow methods: from consecutive grey frames to the motion of every pixel.

    (n+1, H, W) uint8  →  (n, H, W, 2) float32: pixels per frame step, channel 0 is x (right), 1 is y (down)

To add a method, write its file and add one line to `FLOW_METHODS`.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked
from ..suggest import check_known
from .fields import check_grey
from .opencv import DIS_PRESETS, FARNEBACK, DisFlow, farneback_flow

DEFAULT_METHOD = "dis"
"""2 ms a pair at 340×256, and closer to TV-L1 than Farneback (`benchmarks/flow.py`)."""


class FlowFunction(Protocol):
    """Computes the flow of a run of frames, in any thread."""

    @property
    def pairs_per_call(self) -> int:
        """How many pairs to pass at once for the best speed.

        The flow does not depend on it on a CPU; on a GPU the last bits may.
        """

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return the flow of every pair of consecutive frames.

        Args:
            grey: (n+1, H, W).

        Returns:
            (n, H, W, 2), pixels per frame step.

        Raises:
            ShapeError: the array is not a stack of at least one grey frame.
        """


FlowOfPair = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""prev, following (H, W) uint8 → (H, W, 2) float32 in pixels per frame step."""


class PairByPair:
    """Makes a flow function from one that takes two frames, as OpenCV's do.

    Args:
        create: makes the function of two frames; called once per thread, so the function may hold buffers.
    """

    pairs_per_call = 1

    def __init__(self, create: Callable[[], FlowOfPair]) -> None:
        self._create = create
        self._of_thread = threading.local()

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return the flow (n, H, W, 2) of grey frames (n+1, H, W)."""
        check_grey(grey)
        if not hasattr(self._of_thread, "compute"):
            self._of_thread.compute = self._create()
        flow = np.empty((len(grey) - 1, *grey.shape[1:], 2), np.float32)
        for t in range(len(flow)):
            flow[t] = self._of_thread.compute(grey[t], grey[t + 1])
        return flow


@dataclass(frozen=True)
class FlowMethod:
    """One way to compute flow."""

    description: str
    """Name and parameters, for the recipe; aliases share it."""
    create: Callable[[str], FlowFunction]
    """Makes a flow function that computes on the given devices if the method can use them."""
    can_use_gpu: bool = False


def _dis(preset: str) -> FlowMethod:
    parameters = DIS_PRESETS[preset]
    return FlowMethod(
        f"dis, preset {preset} ({parameters})", lambda _: PairByPair(functools.partial(DisFlow, parameters))
    )


def _lazy(module: str, name: str) -> Callable[[str], FlowFunction]:
    """Import the class of a flow function when it is first needed: torch takes seconds to import."""

    def create(device: str) -> FlowFunction:
        function: FlowFunction = getattr(importlib.import_module(f".{module}", __package__), name)(device)
        return function

    return create


_FARNEBACK_TEXT = ", ".join(f"{name} {value}" for name, value in FARNEBACK.items())
_TVL1_TEXT = "OpenCV's default parameters (tau 0.25, lambda 0.15, theta 0.3, 5 scales, 5 warps, epsilon 0.01)"

FLOW_METHODS: dict[str, FlowMethod] = {
    "dis": _dis("fast"),
    "dis-ultrafast": _dis("ultrafast"),
    "dis-fast": _dis("fast"),
    "dis-medium": _dis("medium"),
    "farneback": FlowMethod(f"farneback ({_FARNEBACK_TEXT})", lambda _: PairByPair(lambda: farneback_flow)),
    "tvl1": FlowMethod(f"tvl1, {_TVL1_TEXT}", _lazy("tvl1", "Tvl1Flow"), can_use_gpu=True),
}


def find_flow_method(method: str) -> FlowMethod:
    """Return the method of a name.

    Raises:
        UsageError: there is no such method.
    """
    check_known(method, FLOW_METHODS, f"unknown flow method '{method}'")
    return FLOW_METHODS[method]


def create_flow(method: str = DEFAULT_METHOD, device: str = "cpu") -> FlowFunction:
    """Return a function that computes flow.

    Args:
        method: a name in `FLOW_METHODS`.
        device: "cpu", or GPUs in torch's notation ("cuda:0" or "cuda:0,cuda:1"); a method that cannot use them ignores
            it.

    Raises:
        UsageError: there is no such method.
    """
    return find_flow_method(method).create(device)


def describe_flow(method: str = DEFAULT_METHOD) -> str:
    """Return the name and parameters of a method, for the recipe.

    Raises:
        UsageError: there is no such method.
    """
    return find_flow_method(method).description


@checked
def optical_flow(grey: NDArray[np.uint8], method: str = DEFAULT_METHOD, *, device: str = "cpu") -> NDArray[np.float32]:
    """Return the flow of every pair of consecutive frames.

    Args:
        grey: (T, H, W).
        method: a name in `FLOW_METHODS`: "dis", "dis-ultrafast", "dis-fast", "dis-medium", "farneback" or "tvl1".
        device: "cpu", or GPUs in torch's notation ("cuda:0" or "cuda:0,cuda:1"); a method that cannot use them ignores
            it.

    Returns:
        (T-1, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down). Entry t is frame t → t+1.

    Raises:
        ShapeError: the array is not a stack of at least one grey frame.
        UsageError: there is no such method or device.
    """
    return create_flow(method, device)(grey)
