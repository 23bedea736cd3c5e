"""How clip models execute: one file a runtime, all with the contract of `base.Runtime`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..clips.preprocess import Views
from ..errors import UsageError
from ..models.weights import cache_dir as default_cache_dir

if TYPE_CHECKING:
    from ..models.clip_model import ClipModel
    from .base import Runtime

RUNTIMES = ("auto", "torch", "openvino")


def has_openvino() -> bool:
    """Whether OpenVINO is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def select_runtime(
    name: str = "auto",
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002  (as torch calls it)
    num_threads: int | None = None,
) -> str:
    """The runtime to use, "torch" or "openvino"; tells everything that is wrong with a choice before a model is loaded.

    "auto" is OpenVINO on a CPU where it is installed and nothing is to be compiled, else torch.

    Raises:
        UsageError: an unknown name, device or precision, or ones that are not here or do not fit each other.
    """
    from .torch import check_compiler, select_devices, select_precision

    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime '{name}': choose one of {', '.join(RUNTIMES)}")
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"at least 1 thread is needed, got {num_threads}")
    if name == "openvino" and device == "auto":
        device = "cpu"
    selected = select_devices(device)
    select_precision(precision, *selected)
    is_cpu = selected[0].type == "cpu"
    is_installed = has_openvino()
    if name == "auto":
        name = "openvino" if is_cpu and is_installed and not compile else "torch"
    elif name == "openvino":
        if not is_cpu:
            raise UsageError(f"openvino runs on a CPU, not on '{device}': use --runtime torch, or --device cpu")
        if compile:
            raise UsageError("openvino compiles its networks anyway: --compile is for --runtime torch")
        if not is_installed:
            raise UsageError("openvino is not installed: pip install 'vid3d[openvino]'")
    if compile:
        check_compiler()
    return name


def create_runtime(
    models: Mapping[str, ClipModel],
    *,
    name: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    views: Views | None = None,
    compile: bool = False,  # noqa: A002  (as torch calls it)
    num_threads: int | None = None,
    identities: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
) -> Runtime:
    """A runtime for the clip models of a two-stream model.

    Args:
        models: per stream; they are changed in place, into forms that run fast and answer the same.
        name: one of `RUNTIMES`; see `select_runtime`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps"; "cuda:0,1" or "cuda:all" for several GPUs.
        precision: "fp32", "bf16", "fp16" or "auto", which is fp32 on a CPU.
        batch_size: clips at a time; None is 1 on a CPU and 8 elsewhere.
        views: how many crops of each clip are run, and what becomes of their features; None runs clips as they are.
        compile: have torch compile the networks, which takes a minute or so at the first clip.
        num_threads: of a CPU; None is one a core.
        identities: per stream, what tells its model from all others: the digest of the weights, the backbone, variant,
            layer, pooling and normalisation. By it OpenVINO finds the network that was converted at an earlier start;
            that of a stream without one is converted at every start.
        cache_dir: where converted networks are kept; None is "openvino" beside the weights.

    Raises:
        UsageError: see `select_runtime`.
    """
    name = select_runtime(name, device=device, precision=precision, compile=compile, num_threads=num_threads)
    if name == "torch":
        from .several import SeveralRuntime
        from .torch import TorchRuntime, select_devices, select_precision

        devices = select_devices(device)
        replicas = [models, *(copy.deepcopy(models) for _ in devices[1:])]
        runtimes = [
            TorchRuntime(
                replica,
                device=str(selected),
                precision=select_precision(precision, *devices),  # one for all, of whatever age each is
                batch_size=batch_size,
                views=views,
                compile=compile,
                num_threads=num_threads,
            )
            for replica, selected in zip(replicas, devices, strict=True)
        ]
        return runtimes[0] if len(runtimes) == 1 else SeveralRuntime(runtimes)
    from .cache import NetworkCache
    from .openvino import OpenVINORuntime

    return OpenVINORuntime(
        models,
        precision=precision,
        batch_size=batch_size,
        views=views,
        num_threads=num_threads,
        identities=identities,
        cache=NetworkCache(cache_dir or default_cache_dir() / "openvino"),
    )
