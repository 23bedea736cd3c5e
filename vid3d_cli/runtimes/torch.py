"""The PyTorch runtime: on a CPU, a CUDA GPU or Apple's MPS; eager, or compiled by TorchInductor."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from ..clips.preprocess import Crop, Views
from ..device_memory import is_out_of_memory
from ..errors import Vid3dError
from ..models.backbones import BackboneOutput
from ..models.clip_model import ClipModel
from .base import Answer, DeviceRuntime
from .compiling import compile_errors_explained
from .devices import select_devices, select_precision
from .folding import fold_batch_norms
from .transfer import CudaTransfer, Transfer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What convolutions compute in, by precision."""

_Result = TypeVar("_Result")


class TorchRuntime(DeviceRuntime):
    """Runs the clip models of a two-stream model with PyTorch on one device, the first that `device` names.

    The arguments are those of `create_runtime`. Below fp32 only convolutions are of that precision, not the last pool
    and the classifier. A batch that does not fit into a GPU's memory is halved, and so are all later ones. Compiled
    networks are slower than oneDNN on a CPU in fp32, 3.5 against 2.6 s of one core for a clip of I3D, and as fast in
    bf16.
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
        compile: bool = False,  # noqa: A002  (torch's name)
        num_threads: int | None = None,
    ) -> None:
        self.device = select_devices(device)[0]
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else 8
        super().__init__(models, select_precision(precision, self.device), batch_size, views)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.is_compiled = compile
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._needs_onednn = self.device.type == "cpu" and self.precision == "fp32" and has_onednn and not compile
        self._transfer = CudaTransfer(self.device) if self.device.type == "cuda" else Transfer(self.device)
        self.num_in_flight = self._transfer.num_in_flight
        self._models = {stream: model.eval() for stream, model in models.items()}
        self._ready: dict[str, Callable[[Tensor], BackboneOutput]] = {}
        self._shapes_seen: set[tuple[str, torch.Size]] = set()

    @property
    def description(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name}{', compiled,' if self.is_compiled else ''} on {where}"

    def start_stream(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], list[Answer]]:
        return self._start_stacked(stream, self._transfer.stack(clips))

    def _start_stacked(self, stream: str, batch: Tensor) -> Callable[[], list[Answer]]:
        """Start the network on the clips (N, T, H, W, C) of a batch on the host, `batch_size` at a time."""
        started: list[Callable[[], list[Answer]]] = []
        while len(batch):
            part = batch[: self.batch_size]
            wait = self._halve_if_too_large(len(part), self._start_part, stream, part)
            if wait is not None:
                started.append(wait if self.device.type == "cpu" else self._retrying(stream, part, wait))
                batch = batch[len(part) :]

        def join() -> list[Answer]:
            parts = [wait() for wait in started]
            return parts[0] if len(parts) == 1 else [_concatenate(views) for views in zip(*parts, strict=True)]

        return join

    def _retrying(self, stream: str, part: Tensor, wait: Callable[[], list[Answer]]) -> Callable[[], list[Answer]]:
        """Return `wait`, which also may run out of memory. The part is a copy: no clip is held until then."""

        def wait_or_retry() -> list[Answer]:
            answers = self._halve_if_too_large(len(part), wait)
            return self._start_stacked(stream, part)() if answers is None else answers

        return wait_or_retry

    def _halve_if_too_large(self, num_clips: int, work: Callable[..., _Result], *args: Any) -> _Result | None:
        """Return the result of some work on a part of a batch; if memory is too short, halve the batches: None."""
        try:
            return work(*args)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).rpartition(" raised:\n")[2].partition("\n")[0]  # not the compiler that passes it on
        # Not above: while an exception is handled, its traceback keeps tensors in memory.
        if num_clips == 1:
            raise Vid3dError(
                f"{self.device}: out of memory with a single clip ({reason}): try --precision bf16, "
                "a shorter --window, or --device cpu"
            )
        self.batch_size = min(self.batch_size, num_clips // 2)
        self._transfer.drain()
        return None

    def _start_part(self, stream: str, clips: Tensor) -> Callable[[], list[Answer]]:
        crops: Sequence[Crop | None] = [None]
        if self.views is not None:
            crops = self.views.place(clips.shape[2], clips.shape[3])
        num_clips, is_flow = len(clips), stream == "flow"
        if stream not in self._ready:
            self._ready[stream] = self._prepare(stream, _cut(clips[:1].to("meta"), crops[0], is_flow))
        net = self._ready[stream]
        with self._computing((stream, clips.shape)):
            uploaded = self._transfer.upload(clips)
            if self.is_compiled:  # pad the batch: another size would be compiled again
                padding = uploaded[-1:].expand(self.batch_size - num_clips, *uploaded.shape[1:])
                uploaded = torch.cat([uploaded, padding])
            outputs = [net(_cut(uploaded, crop, is_flow)) for crop in crops]
            wait = self._transfer.download([tensor[:num_clips] for output in outputs for tensor in output])

        def answers() -> list[Answer]:
            arrays = iter(wait())
            return [Answer(*pair) for pair in zip(arrays, arrays, strict=True)]

        return answers

    @contextmanager
    def _computing(self, shape: tuple[str, torch.Size]) -> Iterator[None]:
        """Set torch's modes for a forward pass."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(compile_errors_explained())
            if self.device.type == "cuda":
                # cuDNN's benchmark may choose other algorithms in the next run, whose last bits differ: not in fp32.
                # It is worth its time for shapes that repeat; with --resize-only each video has its own.
                is_fp32 = self.precision == "fp32"
                stack.enter_context(cuda_settings(shape in self._shapes_seen and not is_fp32, is_fp32))
                self._shapes_seen.add(shape)
            elif self._needs_onednn:
                stack.enter_context(_OneDnn())
            try:
                yield
            except NotImplementedError as error:
                if self.device.type != "mps":
                    raise
                reason = str(error).partition(". ")[0]
                raise Vid3dError(
                    f"torch {self.version} cannot run this network on MPS ({reason}): use torch 2.9 or later, "
                    "set PYTORCH_ENABLE_MPS_FALLBACK=1, or try --device cpu"
                ) from error

    def _prepare(self, stream: str, clips: Tensor) -> Callable[[Tensor], BackboneOutput]:
        """Return the fast form of a network, for clips like these; their values are not used."""
        model, dtype = self._models[stream], DTYPES[self.precision]
        fold_batch_norms(model, clips, dtype)
        if self.precision != "fp32":
            model = copy.deepcopy(model)  # rounded weights are not what the caller's model has
            model.reduce_precision(dtype)
        model.is_channels_last = self.device.type == "cpu" or self._has_tensor_cores()
        if self.device.type == "cpu":
            _lay_out(model, {5: torch.channels_last_3d})
        elif model.is_channels_last:
            _lay_out(model, {4: torch.channels_last, 5: torch.channels_last_3d})
        model.to(self.device)
        # Else TorchInductor's tools print a line on machines that have CUDA's files and no GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        options: dict[str, Any] = {"freezing": True}  # treat weights as constants, laid out for this processor
        return torch.compile(model, dynamic=False, options=options) if self.is_compiled else model

    def _has_tensor_cores(self) -> bool:
        """Return whether convolutions run on tensor cores, which need the channels last in memory."""
        is_cuda = self.device.type == "cuda" and self.precision != "fp32"
        return is_cuda and torch.cuda.get_device_capability(self.device) >= (7, 0)


def _cut(clips: Tensor, crop: Crop | None, is_flow: bool) -> Tensor:
    """Return a square of clips (N, T, H, W, C) where they are, as `Crop.cut` does of arrays; None is all of them."""
    if crop is None:
        return clips
    square = clips[:, :, crop.top : crop.top + crop.size_px, crop.left : crop.left + crop.size_px]
    if not crop.mirrored:
        return square.contiguous()
    square = square.flip(3)
    if is_flow:
        x = square[..., 0]
        x.copy_(255 - x if x.dtype == torch.uint8 else -x)
    return square


def _concatenate(answers: Sequence[Answer]) -> Answer:
    return Answer(*(np.concatenate(arrays) for arrays in zip(*answers, strict=True)))


def _lay_out(model: ClipModel, formats: Mapping[int, torch.memory_format]) -> None:
    """Change the memory formats of kernels, by their number of axes; `Module.to` takes only one format."""
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


@contextmanager
def cuda_settings(is_benchmarked: bool, is_deterministic: bool) -> Iterator[None]:
    """Choose cuDNN's algorithms as told, and compute float32 without TF32, which rounds operands to 10 bits.

    A caller, or TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, may have allowed TF32.
    """
    settings: list[tuple[Any, str, Any]] = [
        (cudnn, "allow_tf32", False),
        (cudnn, "benchmark", is_benchmarked),
        (cudnn, "deterministic", is_deterministic),
    ]
    if hasattr(cudnn, "conv"):  # from torch 2.9 on; the older names must agree, or Dynamo and Inductor cannot read them
        backends: Any = torch.backends
        places = (backends.mkldnn.matmul, backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn)
        settings += [(place, "fp32_precision", "ieee") for place in places]
    matmul_precision = _read(torch.get_float32_matmul_precision, "highest")
    before = [(place, name, _read(partial(getattr, place, name), True)) for place, name, _ in settings]
    try:
        torch.set_float32_matmul_precision("highest")
        for place, name, value in settings:
            setattr(place, name, value)
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        for place, name, value in before:
            setattr(place, name, value)


def _read(setting: Callable[[], Any], default: Any) -> Any:
    """Return a setting, or torch's default if a caller who uses the newer names has made the older unreadable."""
    try:
        return setting()
    except RuntimeError:
        return default


class _OneDnn(TorchFunctionMode):
    """Runs all float32 convolutions on a CPU with oneDNN.

    By default PyTorch runs convolutions of a single clip with N · C · T · H ≤ 20480 as matrix products in one
    thread: a third of I3D's time, and half of S3D's.

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
