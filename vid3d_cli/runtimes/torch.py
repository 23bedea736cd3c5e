"""PyTorch: on a CPU, a CUDA GPU or Apple's MPS; eager, or compiled by TorchInductor."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from ..clips.preprocess import Views
from ..errors import UsageError, Vid3dError
from ..models.backbones import BackboneOutput
from ..models.clip_model import ClipModel
from ..records import Clip, ClipOutput
from .base import Answer, DeviceRuntime
from .folding import fold_batch_norms
from .transfer import create_transfer

DEVICES = "auto, cpu, cuda, cuda:1, cuda:0,1, cuda:all, mps"
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_devices(name: str) -> list[torch.device]:
    """The devices of that name: several for "cuda:0,1" and "cuda:all", else the one of `select_device`.

    Raises:
        UsageError: a name that no device has, a device that is not here, or one that is named twice.
    """
    if name == "cuda:all":
        num_gpus = torch.cuda.device_count()
        if num_gpus == 0:
            raise UsageError(f"device '{name}': torch {torch.__version__} sees no CUDA GPU here: try --device cpu")
        return [torch.device("cuda", i) for i in range(num_gpus)]
    if not name.startswith("cuda:"):
        return [select_device(name)]
    devices = [select_device(f"cuda:{index}") for index in name.removeprefix("cuda:").split(",")]
    if len(set(devices)) < len(devices):
        raise UsageError(f"device '{name}' names a GPU twice: name each once")
    return devices


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


def select_precision(name: str, *devices: torch.device) -> str:
    """One of fp32, bf16, fp16; "auto" is bf16 where all devices are GPUs that compute in it, else fp32.

    Raises:
        UsageError: an unknown name.
    """
    if name == "auto":
        return "bf16" if all(_computes_in_bf16(device) for device in devices) else "fp32"
    if name not in ("fp32", *AUTOCAST_DTYPES):
        raise UsageError(f"unknown precision '{name}': choose one of fp32, bf16, fp16, auto")
    if name == "fp16" and any(device.type == "cpu" for device in devices):
        raise UsageError("fp16 is for GPUs (a CPU takes minutes for a clip): use bf16 or fp32")
    return name


def _computes_in_bf16(device: torch.device) -> bool:
    """Of this GPU; `torch.cuda.is_bf16_supported` tells it of the current one alone."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def check_compiler() -> None:
    """Raise UsageError where TorchInductor would find no C++ compiler."""
    name = os.environ.get("CXX", "g++")  # the one that it looks for, on Linux and on a Mac
    if shutil.which(name) is None:
        raise UsageError(f"compiling needs a C++ compiler, and there is no {name} here: install one, or set CXX to it")


class TorchRuntime(DeviceRuntime):
    """Runs the clip models of a two-stream model on one device.

    Args:
        models: per stream; they are changed in place, into forms that run fast here and answer the same.
        device: see `select_device`.
        precision: see `select_precision`; below fp32 the convolutions run under autocast, their results are float32.
        batch_size: clips at a time; None is 1 on a CPU and 8 elsewhere. Halved for good when a GPU runs out of memory.
        views: how many crops of each clip are run, and what becomes of their features; None runs clips as they are.
        compile: have TorchInductor compile the networks at the first clip, which takes a minute or so. Not for a CPU in
            fp32: its code is slower than oneDNN's, 3.5 against 2.6 s of one core for a clip of I3D; in bf16 they draw.
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
        self._transfer = create_transfer(self.device)
        self.num_in_flight = self._transfer.num_in_flight
        self._models = {stream: _to_channels_last(model.eval().to(self.device)) for stream, model in models.items()}
        self._ready: dict[str, Callable[[Tensor], BackboneOutput]] = {}
        self._forms_seen: set[tuple[str, torch.Size]] = set()

    @property
    def description(self) -> str:
        """What runs where, for the recipe."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name}{', compiled,' if self.is_compiled else ''} on {where}"

    def _start_batch(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        """In smaller batches from now on, where the GPU's memory is too small for this one."""
        try:
            return super()._start_batch(clips)
        except torch.cuda.OutOfMemoryError:
            pass  # the rest happens outside: while an exception is handled, its traceback keeps the batch alive
        if len(clips) == 1:
            raise Vid3dError(
                f"{self.device}: out of memory with a single clip; try --precision bf16, a shorter --window, "
                "or --device cpu"
            )
        self.batch_size = len(clips) // 2
        self._transfer.drain()
        return self.start(clips)

    def start_stream(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], Answer]:
        num_clips = len(clips)
        if self.is_compiled:  # another size would be compiled anew
            clips = [*clips, *itertools.repeat(clips[-1], self.batch_size - num_clips)]
        batch = self._transfer.stack(clips)
        net = self._prepared(stream, batch)
        with self._rules(is_repeated=self._has_seen(stream, batch.shape)):
            output = net(self._transfer.upload(batch))
            wait = self._transfer.download([output.features[:num_clips], output.logits[:num_clips]])
        return lambda: Answer(*wait())

    def _has_seen(self, stream: str, form: torch.Size) -> bool:
        if (stream, form) in self._forms_seen:
            return True
        self._forms_seen.add((stream, form))
        return False

    @contextmanager
    def _rules(self, *, is_repeated: bool) -> Iterator[None]:
        """How torch is to compute."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.device.type == "cuda":
                # cuDNN tries its algorithms out for forms of batches that come again; videos that are only resized have
                # one each. And fp32 means fp32: by itself it rounds the operands of a convolution to TF32's 10 bits.
                may_round = self.precision != "fp32"
                stack.enter_context(cudnn.flags(enabled=True, benchmark=is_repeated, allow_tf32=may_round))
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, AUTOCAST_DTYPES[self.precision]))
            elif self._needs_onednn:
                stack.enter_context(_OneDnn())
            yield

    def _prepared(self, stream: str, clips: Tensor) -> Callable[[Tensor], BackboneOutput]:
        """The network as it runs; what depends on the clips is decided at the first ones."""
        if stream not in self._ready:
            model = self._models[stream]
            # MPS has no float64 to fold in. In fp16 a weight may become too small for it when a large variance goes in.
            if self.device.type != "mps" and self.precision != "fp16":
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
    in one thread: a third of I3D's time, and half of S3D's.

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
