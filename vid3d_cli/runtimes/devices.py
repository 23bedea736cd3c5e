"""Chooses the devices that networks run on and the precision that suits them, and says which GPUs cannot be used."""

from __future__ import annotations

import functools
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..errors import UsageError
from . import check_device, check_precision, hides_gpus, select_cpu_precision

_DRIVER_FILE = Path("/sys/module/nvidia/version")
_OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""By CUDA version. Source: NVIDIA, "CUDA Compatibility", table 1 of "Minor Version Compatibility"."""


@dataclass(frozen=True)
class Problem:
    """A reason why a GPU cannot be used."""

    what: str
    """A sentence: "the NVIDIA driver 470.256.02 is too old for torch 2.15.0, which needs CUDA 13.2"."""
    fix: str
    """An imperative: "update it to 580 or newer"."""
    device: torch.device | None = None
    """The GPU; None: all of them."""
    gives_wrong_numbers: bool = False
    """Whether the GPU computes, but wrongly."""

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def find_problems() -> list[Problem]:
    """Return why GPUs of this machine cannot be used, after a small convolution on each; [] if there is no GPU."""
    if hides_gpus():
        return []
    if problem := _start_cuda():
        return [problem]
    return [problem for gpu in _list_gpus() if (problem := _try_gpu(gpu))]


def explain_choice(name: str) -> list[str]:
    """Return why `select_devices` passes over GPUs, one sentence each; [] if it takes the first, or there is none."""
    problems = _choose_device()[1] if name == "auto" else []
    return [f"{problem.device or 'the GPU'} is not used: {problem}" for problem in problems]


def select_devices(name: str) -> list[torch.device]:
    """Return the devices that a device name stands for.

    "auto" is the first CUDA GPU that can be used, or else the CPU. "cuda:0,1" and "cuda:all" are several GPUs.

    Raises:
        UsageError: the name is malformed, or a device is not present or cannot be used.
    """
    check_device(name)
    if name == "auto":
        return [_choose_device()[0]]
    kind, _, indexes = name.partition(":")
    if kind == "cuda" and (problem := _start_cuda()):
        raise UsageError(f"device '{name}' cannot be used: {problem}; or try --device cpu")
    num_present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    wanted = list(range(num_present[kind])) if indexes == "all" else [int(i) for i in indexes.split(",") if i]
    if missing := [i for i in wanted or [0] if i >= num_present[kind]]:
        absent = f"{kind}:{missing[0]}" if wanted else name
        raise UsageError(
            f"device '{absent}' was not found: torch {torch.__version__} finds {num_present[kind]} {kind} devices: "
            "try --device cpu"
        )
    devices = [torch.device(kind, i) for i in wanted] or [torch.device(kind)]
    for device in devices:
        if device.type == "cuda" and (problem := _try_gpu(device)):
            raise UsageError(f"device '{device}' cannot be used: {problem}; or try --device cpu")
    return devices


def select_precision(name: str, *devices: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16"; "auto" is the fastest that all devices have, and fp32 on a CPU and on MPS.

    NVIDIA GPUs have bf16 from compute capability 8.0 on (A100, RTX 30xx), and tensor cores for fp16 from 7.0 on (V100,
    T4, RTX 20xx).

    Raises:
        UsageError: the precision is unknown, or one that a device does not have.
    """
    check_precision(name)
    if name == "auto":
        return min((_fastest_precision(device) for device in devices), key=("fp32", "fp16", "bf16").index)
    for device in devices:
        if device.type == "cpu":
            select_cpu_precision(name)
        if device.type == "cuda" and name in _unusable_precisions(device):
            what = "computes NaN in fp16" if name == "fp16" else "has no bf16"
            best = _fastest_precision(device)
            raise UsageError(f"{torch.cuda.get_device_name(device)} {what}: use --precision {best}")
    return name


def _fastest_precision(device: torch.device) -> str:
    if device.type != "cuda":
        return "fp32"
    has_tensor_cores = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
    usable = ["bf16", "fp16"] if has_tensor_cores else []
    return next((name for name in usable if name not in _unusable_precisions(device)), "fp32")


def _unusable_precisions(gpu: torch.device) -> list[str]:
    """Return the precisions that a GPU does not have, or has and computes NaN in."""
    if torch.version.hip is not None:
        return []
    capability = torch.cuda.get_device_capability(gpu)
    if capability >= (8, 0):
        return []
    # Of 7.5, only these have tensor cores. The others (GTX 16xx, T1000, MX450) give NaN: pytorch #58123, #77955.
    is_turing = capability == (7, 5)
    gives_nan = is_turing and not re.search(r"RTX|\b(T4G?|T40)\b", torch.cuda.get_device_name(gpu))
    return ["bf16", "fp16"] if gives_nan else ["bf16"]


# GPUs that cannot be used --------------------------------------------------------------------------------------------


def _list_gpus() -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _choose_device() -> tuple[torch.device, list[Problem]]:
    """Return the first GPU that can be used, or else the CPU, and why not the GPUs before it."""
    if hides_gpus():
        return torch.device("cpu"), []
    if problem := _start_cuda():
        return torch.device("cpu"), [problem]
    problems: list[Problem] = []
    for gpu in _list_gpus():
        if (problem := _try_gpu(gpu)) is None:
            return gpu, problems
        problems.append(problem)
    return torch.device("cpu"), problems


def _start_cuda() -> Problem | None:
    """Return why CUDA does not start; None if it does, and if there is no sign of a GPU."""
    driver = driver_version()
    if torch.version.cuda is None and torch.version.hip is None:
        if not driver:
            return None
        what = f"torch {torch.__version__} is built for CPUs"
        return Problem(what, "install a torch for CUDA: see https://pytorch.org/get-started/locally")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several lines about architectures: `_try_gpu` says it in one
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        warnings.filterwarnings("ignore", "CUDA initialization: ")  # said again wherever torch counts GPUs
        has_gpu = driver or not re.search("no NVIDIA driver|No (CUDA|HIP) GPUs", str(error))
        return _explain(error) if has_gpu else None
    return None


def driver_version() -> str:
    """Return the version of the NVIDIA driver that Linux has loaded; "" if there is none, or under WSL."""
    try:
        return _DRIVER_FILE.read_text("utf-8").strip()
    except OSError:
        return ""


def _try_gpu(gpu: torch.device) -> Problem | None:
    """Return why a GPU cannot be used; None if it can."""
    try:
        total = _convolve_on(gpu)
    except RuntimeError as error:
        return _explain(error, gpu)
    if total != 27:
        what = f"{torch.cuda.get_device_name(gpu)} computes wrongly: a sum is {total:g} instead of 27"
        return Problem(what, "use another device, and have this one checked", gpu, gives_wrong_numbers=True)
    return None


@functools.cache  # not the errors: a GPU that was full may be free later, and one that works may be full later
def _convolve_on(gpu: torch.device) -> float:
    """Return the sum of 27 ones, by a convolution: it fails if kernels of torch or cuDNN do not run there."""
    ones = torch.ones(1, 1, 3, 3, 3, device=gpu)
    with torch.inference_mode():
        return float(F.conv3d(ones, ones))


_CAUSES = (
    (
        "driver on your system is too old",
        "the NVIDIA driver {driver}is too old for torch {torch}, which needs CUDA {cuda}",
        "update the driver to {oldest_driver} or newer",
    ),
    (
        "no NVIDIA driver",
        "this process cannot reach the NVIDIA driver",
        "if it runs in a container, start that with --gpus all",
    ),
    (
        "No (CUDA|HIP) GPUs",
        "the driver shows no GPU (CUDA_VISIBLE_DEVICES is {visible})",
        "unset CUDA_VISIBLE_DEVICES; start a container with --gpus all; ask Slurm for a GPU with --gres",
    ),
    ("Error 802|not yet initialized", "the NVSwitch fabric of the GPUs is not ready", "start nvidia-fabricmanager"),
    (
        "Error 803|unsupported display driver",
        "the NVIDIA driver was updated while it was loaded",
        "restart the machine",
    ),
    (
        "Error 804|forward compatibility",
        "the CUDA compatibility library suits only data-centre GPUs",
        "take it out of LD_LIBRARY_PATH, or update the driver",
    ),
    (
        "Error 999|CUDA unknown error|driver initialization failed",
        "the NVIDIA driver does not answer",
        "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm, or restart the machine",
    ),
    ("forked", "CUDA was started before this process was forked", "use multiprocessing's start method spawn"),
    (
        "no kernel image",
        "torch {torch} has no code for {name}, architecture {architecture}; it has {architectures}",
        "install one that has: see https://pytorch.org/get-started/previous-versions",
    ),
    ("out of memory", "the memory of {name} is full", "end the other processes that nvidia-smi shows"),
    (
        "busy or unavailable",
        "{name} is taken by another process, or is in MIG mode and has no instance",
        "see nvidia-smi",
    ),
    (
        "(?i)cudnn",
        "cuDNN does not run on {name} ({error})",
        "restore the one that torch needs: pip install --force-reinstall torch torchvision",
    ),
    ("", "CUDA fails on {name} ({error})", "see nvidia-smi, and restart the machine if nothing else helps"),
)
"""(pattern of torch's or CUDA's error, what it means, what to do); the first that matches counts.

Source: c10/cuda/CUDAFunctions.cpp, the issues of PyTorch, and NVIDIA's list of CUDA errors.
"""


def _explain(error: Exception, gpu: torch.device | None = None) -> Problem:
    """Return what an error of CUDA's start or of a first computation means."""
    what, fix = next((what, fix) for pattern, what, fix in _CAUSES if re.search(pattern, str(error)))
    driver, visible = driver_version(), os.environ.get("CUDA_VISIBLE_DEVICES")
    known = {
        "name": "the GPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": f"{driver} " if driver else "",
        "oldest_driver": _OLDEST_DRIVERS.get(str(torch.version.cuda).partition(".")[0], "the newest"),
        "visible": "not set" if visible is None else repr(visible),
        "error": str(error).strip().partition("\n")[0].rpartition("set an error? ")[2],
    }
    if gpu is not None:
        known["name"] = torch.cuda.get_device_name(gpu)
        known["architecture"] = "sm_{}{}".format(*torch.cuda.get_device_capability(gpu))
        known["architectures"] = ", ".join(torch.cuda.get_arch_list())
    return Problem(what.format_map(known), fix.format_map(known), gpu)
