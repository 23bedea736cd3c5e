"""How clip models run: PyTorch or OpenVINO behind the contract `base.Runtime`.

Importing this module imports no torch, so that wrong options fail at once.
"""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..suggest import check_known

if TYPE_CHECKING:
    from ..clips.preprocess import Views
    from ..models.clip_model import ClipModel
    from .base import Runtime

RUNTIMES = ("auto", "torch", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
DEVICES = "auto, cpu, cuda, cuda:1, cuda:0,1, cuda:all, mps"
FP16_NEEDS_GPU = "fp16 needs a GPU (a CPU takes minutes per clip): use --precision bf16 or fp32"

Form = tuple[tuple[int, ...], str]
"""Shape (T, H, W, C) and NumPy's type string of a network's clips."""

_NUMBER = "(0|[1-9][0-9]*)"
_DEVICE = re.compile(rf"auto|(cpu|mps)(:0)?|cuda(:all|:{_NUMBER}(,{_NUMBER})*)?")

_GPU_FILE = re.compile("nvidia|nvhost-gpu|nvgpu|nvmap|dxg|kfd")


def has_openvino() -> bool:
    """Return whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def check_runtime_options(
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002  (torch's name)
    num_threads: int | None = None,
) -> None:
    """Check everything about a choice of runtime that can be checked without torch.

    Whether a GPU is present is checked by `select_runtime`, which imports torch.

    Args:
        runtime: one of `RUNTIMES`.
        device: see `check_device`.
        precision: one of `PRECISIONS`.
        compile: compile the networks with torch.
        num_threads: CPU threads; None is one per core.

    Raises:
        UsageError: an unknown name, options that contradict each other, or a missing package.
    """
    check_known(runtime, RUNTIMES, f"unknown runtime '{runtime}'")
    check_device(device)
    check_precision(precision)
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"at least 1 thread is needed, got {num_threads}")
    if runtime == "openvino":
        if device not in ("auto", "cpu", "cpu:0"):
            raise UsageError(f"openvino runs on the CPU, not on '{device}': use --runtime torch or --device cpu")
        if compile:
            raise UsageError("openvino always compiles: use --compile with --runtime torch, or leave it out")
        if not has_openvino():
            raise UsageError("openvino is not installed: pip install 'vid3d[openvino]'")
    if precision == "fp16" and (runtime == "openvino" or device.startswith("cpu")):
        raise UsageError(FP16_NEEDS_GPU)


def check_device(name: str) -> None:
    """Raise UsageError unless a name has the form of one of `DEVICES` and names each GPU once."""
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"unknown device '{name}': choose one of {DEVICES}")
    indexes = name.partition(":")[2].split(",")
    if len(set(indexes)) < len(indexes):
        raise UsageError(f"device '{name}' names a GPU twice: name each one once")


def check_precision(name: str) -> None:
    """Raise UsageError unless a precision is one of `PRECISIONS`."""
    check_known(name, PRECISIONS, f"unknown precision '{name}'")


def select_runtime(
    name: str = "auto",
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002  (torch's name)
    num_threads: int | None = None,
) -> str:
    """Return the runtime to use, "torch" or "openvino", after checking all options.

    "auto" selects OpenVINO on a CPU if it is installed and `compile` is off, else torch. torch, whose import takes a
    second, is asked only where it may find a GPU or will run the networks.

    Raises:
        UsageError: see `check_runtime_options`; or a GPU that is not present or cannot be used, fp16 without one, or no
            compiler for `compile`.
    """
    check_runtime_options(name, device, precision, compile, num_threads)
    if name == "openvino":
        return name
    prefers_openvino = name == "auto" and not compile and has_openvino()
    if prefers_openvino and (device.startswith("cpu") or (device == "auto" and not may_have_gpu())):
        select_cpu_precision(precision)
        return "openvino"
    from .compiling import check_compiler
    from .devices import select_devices, select_precision

    devices = select_devices(device)
    select_precision(precision, *devices)
    if compile:
        check_compiler(devices[0].type)
    return "openvino" if prefers_openvino and devices[0].type == "cpu" else "torch"


def may_have_gpu() -> bool:
    """Return whether torch may find a CUDA or ROCm GPU, without importing it.

    A GPU of this machine shows as a device file of its driver: NVIDIA's, that of its Jetsons, that of WSL, or AMD's. A
    GPU that another machine lends may show only in the driver's library, which images with CUDA also hold without one.
    """
    if hides_gpus():
        return False
    if any(_GPU_FILE.match(path.name) for path in Path("/dev").iterdir()):
        return True
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except (OSError, AttributeError):
        return False


def hides_gpus() -> bool:
    """Return whether the user hides all GPUs with CUDA_VISIBLE_DEVICES, the usual way to ask for the CPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def select_cpu_precision(name: str) -> str:
    """Return the precision on a CPU: "fp32" or "bf16"; "auto" is fp32.

    Raises:
        UsageError: the precision is unknown, or fp16.
    """
    check_precision(name)
    if name == "fp16":
        raise UsageError(FP16_NEEDS_GPU)
    return "fp32" if name == "auto" else name


def create_runtime(
    models: Mapping[str, ClipModel],
    *,
    name: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    views: Views | None = None,
    compile: bool = False,  # noqa: A002  (torch's name)
    num_threads: int | None = None,
    identities: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    forms: Mapping[str, Form] | None = None,
) -> Runtime:
    """Return a runtime that runs the clip models of a two-stream model.

    Args:
        models: by stream; changed in place into forms that run faster and give the same outputs. OpenVINO asks for a
            model only if the cache does not have it.
        name: one of `RUNTIMES`; see `select_runtime`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; "cuda:0,1" or "cuda:all" for several GPUs.
        precision: "fp32", "bf16", "fp16", or "auto", which is fp32 on a CPU.
        batch_size: clips per batch; None is 1 on a CPU and 8 on a GPU.
        views: the crops to run of each clip; None runs clips as they are.
        compile: compile the networks with torch, which takes about a minute at the first clip.
        num_threads: CPU threads; None is one per core.
        identities: by stream, a text that identifies the model: weights digest, backbone, variant, layer, pooling and
            normalisation. OpenVINO finds a cached network by it. A stream without one is converted at every start.
        cache_dir: where OpenVINO caches converted networks; None is "openvino" beside the weights.
        forms: by stream, the form of the clips to come if it is known: OpenVINO compiles cached networks for them in
            the background.

    Raises:
        UsageError: see `select_runtime`.
    """
    name = select_runtime(name, device=device, precision=precision, compile=compile, num_threads=num_threads)
    if name == "torch":
        from .base import MultiDeviceRuntime
        from .cache import use_private_inductor_cache
        from .devices import select_devices, select_precision
        from .torch import TorchRuntime

        if compile:
            use_private_inductor_cache()
        devices = select_devices(device)
        replicas = [models, *(copy.deepcopy(models) for _ in devices[1:])]
        runtimes = [
            TorchRuntime(
                replica,
                device=str(selected),
                precision=select_precision(precision, *devices),  # the same on all GPUs, even if they differ
                batch_size=batch_size,
                views=views,
                compile=compile,
                num_threads=num_threads,
            )
            for replica, selected in zip(replicas, devices, strict=True)
        ]
        return runtimes[0] if len(runtimes) == 1 else MultiDeviceRuntime(runtimes)
    from .cache import NetworkCache
    from .openvino import OpenVINORuntime

    return OpenVINORuntime(
        models,
        precision=precision,
        batch_size=batch_size,
        views=views,
        num_threads=num_threads,
        identities=identities,
        cache=NetworkCache(cache_dir),
        forms=forms,
    )
