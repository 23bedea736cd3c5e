"""Chooses the devices that networks run on, and the precision that suits them."""

from __future__ import annotations

import torch

from ..errors import UsageError
from . import FP16_NEEDS_GPU, check_device, check_precision


def select_devices(name: str) -> list[torch.device]:
    """Return the devices that a device name stands for.

    "auto" is the first CUDA GPU if there is one, else the CPU. "cuda:0,1" and "cuda:all" are several GPUs.

    Raises:
        UsageError: the name is malformed, or a device is not present.
    """
    check_device(name)
    if name == "auto":
        return [torch.device("cuda:0" if torch.cuda.is_available() else "cpu")]
    kind, _, indexes = name.partition(":")
    num_present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    wanted = list(range(num_present[kind])) if indexes == "all" else [int(i) for i in indexes.split(",") if i]
    if missing := [i for i in wanted or [0] if i >= num_present[kind]]:
        absent = f"{kind}:{missing[0]}" if wanted else name
        raise UsageError(
            f"device '{absent}' was not found: torch {torch.__version__} finds {num_present[kind]} {kind} devices: "
            "try --device cpu"
        )
    return [torch.device(kind, i) for i in wanted] or [torch.device(kind)]


def select_precision(name: str, *devices: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16"; "auto" is bf16 if all devices are GPUs that support it, else fp32.

    Raises:
        UsageError: the precision is unknown, or fp16 on a CPU.
    """
    check_precision(name)
    if name == "auto":
        return "bf16" if all(_supports_bf16(device) for device in devices) else "fp32"
    if name == "fp16" and any(device.type == "cpu" for device in devices):
        raise UsageError(FP16_NEEDS_GPU)
    return name


def _supports_bf16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    # `torch.cuda.is_bf16_supported` asks the current GPU only.
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
