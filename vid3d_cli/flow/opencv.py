"""OpenCV's flow methods: DIS and Farneback, for one pair of frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_DIS_SIDE_PX = 32
"""Frames with shorter sides are padded for DIS.

OpenCV's DIS picks its pyramid from the *width* when a side is below 8 · 2^finest_scale (32 for the presets fast and
ultrafast). On a wide, low frame the coarsest level is then lower than its 8 px patch: 64×8 crashes, 400×12 fails an
assertion, 400×16 gives NaN, and any side below 8 gives an error. From 32 px on, every level holds a patch.
"""


@dataclass(frozen=True)
class DisParameters:
    """Parameters of one DIS preset, written out so that no OpenCV version can change them."""

    finest_scale: int
    """Flow is computed at 1 / 2^this of the size, then enlarged."""
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
    """Dense inverse search (Kroeger et al., ECCV 2016, arXiv:1603.03590), as OpenCV computes it.

    It holds buffers: use one object per thread.
    """

    def __init__(self, parameters: DisParameters) -> None:
        self._finest_scale = parameters.finest_scale
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._dis.setPatchSize(parameters.patch_size_px)
        self._dis.setPatchStride(parameters.patch_stride_px)
        self._dis.setGradientDescentIterations(parameters.gradient_descent_iterations)
        self._dis.setVariationalRefinementIterations(parameters.variational_refinement_iterations)

    def __call__(self, prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the flow (H, W, 2) between two grey frames (H, W), in pixels per frame step."""
        height, width = prev.shape
        # A small frame makes OpenCV overwrite its own finest scale, which would change every later pair.
        self._dis.setFinestScale(self._finest_scale)
        flow = self._dis.calc(_pad_for_dis(prev), _pad_for_dis(following), None)  # type: ignore[call-overload]
        return np.ascontiguousarray(flow[:height, :width], dtype=np.float32)


def _pad_for_dis(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column until both sides have `MIN_DIS_SIDE_PX`."""
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
"""The values of OpenCV's tutorial, which most Python code copies."""


def farneback_flow(prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return flow by polynomial expansion (Farnebäck, SCIA 2003), as OpenCV computes it.

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
