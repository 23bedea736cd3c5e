"""Estimates of a network's time: the multiply-adds of a clip, and the speed of this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.clip_model import ClipModel, LayerTap, Normalise, create_model
from ..models.manifest import Normalisation
from ..models.registry import BACKBONES, IN_CHANNELS, find_variant
from .devices import select_devices
from .torch import DTYPES

_NUM_CLASSES = 400
"""Any number will do: the classifier is a thousandth of the work."""

MATRIX_SIZE = 2048
MEASURED_SECONDS = 0.6
"""Seconds to measure, per precision; at least one product is measured."""


class ClipCost(NamedTuple):
    """The features and the work of one clip in one network."""

    feature_shape: tuple[int, ...]
    """(D,), or the shape that a layer's tap takes; in a dense run, of one window."""
    multiply_adds: int


def clip_cost(
    name: str,
    stream: str,
    normalisation: Normalisation,
    clip: tuple[int, int, int],
    *,
    variant: str | None = None,
    layer: str | None = None,
    pool: str = "avg",
    is_dense: bool = False,
) -> ClipCost:
    """Count a network's features and multiply-adds on torch's meta device: no weights are read, nothing is computed.

    Args:
        name: backbone name.
        stream: "rgb" or "flow".
        normalisation: how the input is normalised.
        clip: (T, H, W), frames and pixels.
        variant: variant of the backbone; None is the plain form.
        layer: the layer that features are taken from; None is the vector that feeds the classifier.
        pool: one of `clip_model.POOLS`.
        is_dense: count a dense run; see `ClipModel`.
    """
    backbone, found = BACKBONES[name], find_variant(name, variant)
    dtype = torch.uint8 if stream == "rgb" else torch.float32
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net = backbone.build(stream, _NUM_CLASSES, **(backbone.variants[found] if found else {})).eval()
        tap = None if layer is None else LayerTap(net, backbone.layers[layer], pool)
        model = ClipModel(net, Normalise(normalisation), tap, is_dense)
        features = model(torch.empty((1, *clip, IN_CHANNELS[stream]), dtype=dtype)).features
    shape = tuple(features.shape[1:-1] if is_dense else features.shape[1:])
    return ClipCost(shape, counter.get_total_flops() // 2)


def matrix_product_rate(device: str, precision: str) -> float:
    """Measure how fast this machine multiplies large matrices, which bounds the speed of every network.

    Args:
        device: see `select_devices`; the first one is measured.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        Floating point operations per second, two per multiply-add; the best of several products.
    """
    selected = select_devices(device)[0]
    size = (MATRIX_SIZE, MATRIX_SIZE)
    a, b = (torch.rand(size, device=selected).to(DTYPES[precision]) for _ in range(2))
    strip = a[:256]
    _seconds(strip, b)  # warms up threads and libraries
    if _seconds(strip, b) > MEASURED_SECONDS / 8:  # a CPU that emulates this precision
        a = strip
    started, best = time.perf_counter(), float("inf")
    while time.perf_counter() - started < MEASURED_SECONDS:
        best = min(best, _seconds(a, b))
    return 2 * len(a) * MATRIX_SIZE**2 / best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        float((a @ b)[0, 0])  # waits for a GPU
    return time.perf_counter() - started


def save_random_weights(path: Path, backbone: str, stream: str, variant: str | None) -> None:
    """Write a checkpoint of seeded random weights, to time a network whose trained weights are not on disk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_model(backbone, stream=stream, variant=variant)
    safetensors.torch.save_file(net.state_dict(), path)
