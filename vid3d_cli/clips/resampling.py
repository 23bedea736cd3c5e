"""Resizes frames with an antialiased bilinear filter: byte by byte as torch does, without importing torch.

An output pixel is a mean of the input pixels, weighted by a triangle that is two output pixels wide. Rows are resized
first and rounded to uint8, then columns. Weights are integers of at most 15 bits, which add up to about 2**precision:

    output = (sum of weight × pixel + 2**(precision - 1)) >> precision

Matrix products of floats compute this exactly, in any order: with 128 subtracted from the pixels, float32 holds every
sum up to a precision of 17, which suffices down to about an eighth of the size; beyond that, float64 is used. An axis
is cut into blocks, since a matrix of all weights would be nearly all zeros.

Source: `precompute_coeffs` in Pillow's Resample.c, whose weights have 22 bits, so that two values in a thousand differ
by 1; for 15 bits, `_compute_index_ranges_int16_weights` in PyTorch's ATen/native/cpu/UpSampleKernel.cpp.

In a decoder process, 1080p to 455×256 takes 4.4 ms, and 0.7 ms in torch (Pillow: 7 ms); 340×256 differs by 0.3 ms.
Importing torch takes each process 1 to 2 s and 280 MB. So a process imports it once it has spent as long on large
frames: that costs at most twice the best choice, however many frames follow ("ski rental").
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

LARGE_PIXELS = 2**19
"""Frames of at least this size gain by torch's kernel: 960×540 is just smaller, 1280×720 larger."""

TORCH_PAYS_SECONDS = 2.0
"""CPU time spent on resizing large frames after which torch is imported."""

WEIGHT_BITS = 15
MAX_PRECISION = 22
MAX_FLOAT32_PRECISION = 17

BLOCK = 8
"""Output pixels per matrix product. More would multiply more zeros; fewer would take more calls."""

STRIPE_PIXELS = 2**18
"""Input pixels that are resized at a time: 3 MB of floats stay in the cache."""


class _Block(NamedTuple):
    """Neighbouring output pixels along one axis, and the input pixels that they are made of."""

    outputs: slice
    inputs: slice
    weights: NDArray[Any]
    """(inputs, outputs), divided by 2**precision."""


class _Axis(NamedTuple):
    """A resize along one axis."""

    blocks: list[_Block]
    offsets: NDArray[Any]
    """(outputs,), added before rounding down."""


class _Torch:
    """torch, imported when it pays; one per process."""

    def __init__(self) -> None:
        self.module: Any = None
        """Set once its import is complete and its kernel gives the bytes of `resample_by_numpy`."""
        self.seconds = 0.0
        """CPU time spent on large frames; what two threads add at the same moment may count once."""
        self._begun = threading.Lock()

    def fetch(self) -> None:
        """Begin to import torch in the background, once: it holds no frame up."""
        if self._begun.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):  # no more threads
                threading.Thread(target=self._import, name="vid3d torch", daemon=True).start()

    def _import(self) -> None:
        try:
            import torch

            noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
            if np.array_equal(_resample_by_torch(torch, noise, 40, 50), resample_by_numpy(noise, 40, 50)):
                self.module = torch
        except Exception as error:  # none installed that works, no memory for it
            logging.getLogger(__name__).debug("frames are resized without torch: %s", error)


_torch = _Torch()


def resample(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return a frame resized with an antialiased bilinear filter.

    Args:
        rgb: (H, W, 3).
        height: new height in pixels.
        width: new width in pixels.

    Returns:
        (height, width, 3), C-contiguous.
    """
    if _torch.module is not None:
        return _resample_by_torch(_torch.module, rgb, height, width)
    since = time.thread_time()
    resized = resample_by_numpy(rgb, height, width)
    if rgb.shape[0] * rgb.shape[1] >= LARGE_PIXELS:
        _torch.seconds += time.thread_time() - since
    if _torch.seconds > TORCH_PAYS_SECONDS or "torch" in sys.modules:
        _torch.fetch()
    return resized


def _resample_by_torch(torch: Any, rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    # The strides of this order mean "channels last", for which torch has a kernel that reads pixels as stored.
    frames = torch.from_numpy(np.require(rgb, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    with torch.inference_mode():
        resized = torch.nn.functional.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
    array: NDArray[np.uint8] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return array


def resample_by_numpy(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return what `resample` returns, without torch."""
    old_height, old_width = rgb.shape[:2]
    precision = max(_filter(old_height, height).precision, _filter(old_width, width).precision)
    dtype = np.dtype(np.float32 if precision <= MAX_FLOAT32_PRECISION else np.float64)
    down, across = _axis(old_height, height, dtype), _axis(old_width, width, dtype)
    resized = np.empty((height, width, 3), np.uint8)
    step = max(1, STRIPE_PIXELS * len(down.blocks) // (old_height * old_width))
    for start in range(0, len(down.blocks), step):
        blocks = down.blocks[start : start + step]
        first, stop = blocks[0].inputs.start, blocks[-1].inputs.stop
        planes = np.empty((3, stop - first, old_width), np.uint8)
        cv2.split(np.ascontiguousarray(rgb[first:stop]), list(planes))
        planes ^= 128  # minus 128, as int8
        pixels = planes.view(np.int8).astype(dtype).reshape(-1, old_width)
        narrow = np.empty((3, stop - first, width), dtype)
        rows_of_narrow = narrow.reshape(-1, width)
        for outputs, inputs, weights in across.blocks:
            np.matmul(pixels[:, inputs], weights, out=rows_of_narrow[:, outputs])
        narrow += across.offsets
        np.floor(narrow, out=narrow)

        rows = slice(blocks[0].outputs.start, blocks[-1].outputs.stop)
        small = np.empty((3, rows.stop - rows.start, width), dtype)
        for outputs, inputs, weights in blocks:
            of_small = small[:, outputs.start - rows.start : outputs.stop - rows.start]
            np.matmul(weights.T, narrow[:, inputs.start - first : inputs.stop - first], out=of_small)
        small += down.offsets[rows, None]
        planes = np.floor(small, out=small).astype(np.int8).view(np.uint8)
        planes ^= 128
        cv2.merge(list(planes), resized[rows])
    return resized


@lru_cache(maxsize=16)
def _axis(num_inputs: int, num_outputs: int, dtype: np.dtype[Any]) -> _Axis:
    starts, weights, precision = _filter(num_inputs, num_outputs)
    shares = (weights / 2**precision).astype(dtype)  # exact
    blocks = []
    for first in range(0, num_outputs, BLOCK):
        outputs = range(first, min(first + BLOCK, num_outputs))
        inputs = slice(int(starts[first]), min(int(starts[outputs[-1]]) + weights.shape[1], num_inputs))
        matrix = np.zeros((inputs.stop - inputs.start, len(outputs)), dtype)
        for column, output in enumerate(outputs):
            taps = matrix[starts[output] - inputs.start :, column][: weights.shape[1]]
            taps[:] = shares[output, : len(taps)]
        blocks.append(_Block(slice(first, outputs.stop), inputs, matrix))
    # 0.5 rounds to nearest. The rest is left of the 128, since the rounded weights do not quite add up to 1.
    return _Axis(blocks, (0.5 + 128 * (weights.sum(axis=1) / 2**precision - 1)).astype(dtype))


class _Filter(NamedTuple):
    """The weights of a resize along one axis."""

    starts: NDArray[np.int64]
    """(outputs,), the first input pixel of each."""
    weights: NDArray[np.int64]
    """(outputs, taps)."""
    precision: int


@lru_cache(maxsize=16)
def _filter(num_inputs: int, num_outputs: int) -> _Filter:
    scale = num_inputs / num_outputs
    support = max(scale, 1.0)
    centres = scale * (np.arange(num_outputs) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    stops = np.minimum((centres + support + 0.5).astype(np.int64), num_inputs)
    inputs = starts[:, None] + np.arange((stops - starts).max())
    distances = np.abs(inputs - centres[:, None] + 0.5) * (1.0 / support)
    triangle = np.where((inputs < stops[:, None]) & (distances < 1), 1 - distances, 0.0)
    shares = triangle / triangle.sum(axis=1, keepdims=True)
    precision = 0
    while precision < MAX_PRECISION and int(0.5 + shares.max() * 2 ** (precision + 1)) < 2**WEIGHT_BITS:
        precision += 1
    return _Filter(starts, (shares * 2**precision + 0.5).astype(np.int64), precision)
