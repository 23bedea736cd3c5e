"""PyTorch: on a CPU, a CUDA GPU or Apple's MPS; eager, or compiled by TorchInductor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backbones import BackboneOutput
from ..errors import UsageError, Vid3dError
from ..model import ClipModel
from ..preprocess import Views
from ..records import Clip, ClipOutput
from .base import Answer, Runtime
from .folding import fold_batch_norms

DEVICES = "auto, cpu, cuda, cuda:0 (or another number), mps"
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first CUDA GPU where there is one, else the CPU.

    Raises:
        UsageError: a name that no device has, or a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}': choose one of {DEVICES}") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unsupported device '{name}': choose one of {DEVICES}")
    num_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= num_devices[device.type]:
        raise UsageError(
            f"device '{name}' is not here (torch {torch.__version__} sees {num_devices}): try --device cpu"
        )
    return device


def select_precision(name: str, device: torch.device) -> str:
    """One of fp32, bf16, fp16; "auto" is bf16 on a GPU that computes in it, else fp32.

    Raises:
        UsageError: an unknown name.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if name not in ("fp32", *AUTOCAST_DTYPES):
        raise UsageError(f"unknown precision '{name}': choose one of fp32, bf16, fp16, auto")
    if name == "fp16" and device.type == "cpu":
        raise UsageError("fp16 is for GPUs (a CPU takes minutes for a clip): use bf16 or fp32")
    return name


def check_compiler() -> None:
    """Raise UsageError where TorchInductor would find no C++ compiler."""
    name = os.environ.get("CXX", "g++")  # the one that it looks for, on Linux and on a Mac
    if shutil.which(name) is None:
        raise UsageError(f"compiling needs a C++ compiler, and there is no {name} here: install one, or set CXX to it")


class TorchRuntime(Runtime):
    """Runs the clip models of a two-stream model.

    Args:
        models: per stream; they are changed in place, into forms that run fast here and answer the same.
        device: see `select_device`.
        precision: see `select_precision`; below fp32 the convolutions run under autocast, their results are float32.
        batch_size: clips at a time; None is 1 on a CPU and 8 elsewhere. Halved for good when a GPU runs out of memory.
        views: how many crops of each clip are run, and what becomes of their features; None runs clips as they are.
        compile: have TorchInductor compile the networks at the first clip, which takes a minute or so.
        num_threads: of a CPU, for all of this process's torch; None is torch's choice, one a core.
    """

    name = "torch"
    version = torch.__version__

    def __init__(
        self,
        models: Mapping[str, ClipModel],
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        views: Views | None = None,
        compile: bool = False,  # noqa: A002  (as torch calls it)
        num_threads: int | None = None,
    ) -> None:
        self.device = select_device(device)
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else 8
        super().__init__(models, select_precision(precision, self.device), batch_size, views)
        if compile:
            check_compiler()
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.is_compiled = compile
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._needs_onednn = self.device.type == "cpu" and has_onednn and not compile
        self._models = {stream: _to_channels_last(model.eval().to(self.device)) for stream, model in models.items()}
        self._ready: dict[str, Callable[[Tensor], BackboneOutput]] = {}

    @property
    def description(self) -> str:
        """What runs where, for the recipe."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name}{', compiled,' if self.is_compiled else ''} on {where}"

    def _run_batch(self, clips: Sequence[Clip]) -> list[ClipOutput]:
        """No outputs when the GPU's memory is too small for the batch: then the next one is smaller."""
        try:
            return super()._run_batch(clips)
        except torch.cuda.OutOfMemoryError:
            pass  # the rest happens outside: while an exception is handled, its traceback keeps the batch alive
        if len(clips) == 1:
            raise Vid3dError(
                f"{self.device}: out of memory with a single clip; try --precision bf16, a shorter --window, "
                "or --device cpu"
            )
        self.batch_size = len(clips) // 2
        torch.cuda.empty_cache()
        return []

    def start(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], Answer]:
        batch = torch.from_numpy(np.stack(clips))
        if self.is_compiled and len(batch) < self.batch_size:  # another size would be compiled anew
            batch = torch.cat([batch, batch[-1:].expand(self.batch_size - len(batch), -1, -1, -1, -1)])
        net = self._prepared(stream, batch)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.device.type == "cuda" and self.precision == "fp32":
                # fp32 means fp32: without this cuDNN rounds the operands of a convolution to TF32's 10 bits.
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, AUTOCAST_DTYPES[self.precision]))
            elif self._needs_onednn:
                stack.enter_context(_OneDnn())
            output = net(batch.to(self.device))

        def finish() -> Answer:
            n = len(clips)
            return Answer(output.features[:n].cpu().numpy(), output.logits[:n].cpu().numpy())

        return finish

    def _prepared(self, stream: str, clips: Tensor) -> Callable[[Tensor], BackboneOutput]:
        """The network as it runs; what depends on the clips is decided at the first ones."""
        if stream not in self._ready:
            model = self._models[stream]
            if self.device.type == "cpu":
                fold_batch_norms(model, clips)
            options: dict[str, Any] = {"freezing": True}  # weights become constants, laid out for the processor
            self._ready[stream] = torch.compile(model, dynamic=False, options=options) if self.is_compiled else model
        return self._ready[stream]


def _to_channels_last(model: ClipModel) -> ClipModel:
    """Lay the kernels of 3-D convolutions out as these run fastest; `Module.to` fails where 2-D ones are among them."""
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


class _OneDnn(TorchFunctionMode):
    """Has oneDNN do all float32 convolutions of a CPU.

    By itself PyTorch leaves those of a single clip whose N · C · T · H is at most 20480 to a loop of matrix products
    in one thread: a third of I3D's time, and most of P3D's.

    Source: pytorch `aten/src/ATen/native/Convolution.cpp`, `ConvParams::use_mkldnn`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d or func is F.conv3d:
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(
    input: Tensor,  # noqa: A002  (these are F.conv3d's names)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    def each_axis(sizes: int | Sequence[int]) -> Sequence[int]:
        return [sizes] * (weight.ndim - 2) if isinstance(sizes, int) else sizes

    return torch.mkldnn_convolution(
        input, weight, bias, each_axis(padding), each_axis(stride), each_axis(dilation), groups
    )
