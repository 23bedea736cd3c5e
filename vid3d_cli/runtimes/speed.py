"""What a machine can do, and networks to measure it by whose weights are not there."""

from __future__ import annotations

import time
from pathlib import Path

import safetensors.torch
import torch

from ..models.clip_model import create_model
from .torch import AUTOCAST_DTYPES, select_device

MATRIX_SIZE = 2048
MEASURED_SECONDS = 0.6
"""Per precision; at least one product."""


def matrix_product_rate(device: str, precision: str) -> float:
    """How fast this machine multiplies large matrices: the bound of every network.

    Args:
        device: see `select_device`.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        Floating point operations a second, two for every multiply-add; the best of some products.
    """
    selected = select_device(device)
    size = (MATRIX_SIZE, MATRIX_SIZE)
    a, b = (torch.rand(size, device=selected).to(AUTOCAST_DTYPES.get(precision, torch.float32)) for _ in range(2))
    strip = a[:256]
    _seconds(strip, b)  # wakes threads and libraries
    if _seconds(strip, b) > MEASURED_SECONDS / 8:  # a CPU that only emulates this precision
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
    """Write an untrained checkpoint, always the same: it takes as long as a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_model(backbone, stream=stream, variant=variant)
    safetensors.torch.save_file(net.state_dict(), path)
