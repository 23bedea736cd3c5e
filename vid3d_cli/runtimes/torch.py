"""The PyTorch runtime: on a CPU, a CUDA GPU or Apple's MPS; eager, or compiled by TorchInductor."""

from __future__ import annotations

import itertools
import logging
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
from ..errors import Vid3dError
from ..models.backbones import BackboneOutput
from ..models.clip_model import ClipModel
from ..records import Clip, ClipOutput
from .base import Answer, DeviceRuntime
from .compiling import compile_errors_explained
from .devices import select_devices, select_precision
from .folding import fold_batch_norms
from .transfer import CudaTransfer, Transfer

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRuntime(DeviceRuntime):
    """Runs the clip models of a two-stream model with PyTorch on one device, the first that `device` names.

    The arguments are those of `create_runtime`. Below fp32 convolutions run under autocast; outputs are float32. A
    batch that does not fit into a GPU's memory is halved, and so are all later ones. Compiled networks are slower than
    oneDNN on a CPU in fp32, 3.5 against 2.6 s of one core for a clip of I3D, and as fast in bf16.
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
        self._needs_onednn = self.device.type == "cpu" and has_onednn and not compile
        self._transfer = CudaTransfer(self.device) if self.device.type == "cuda" else Transfer(self.device)
        self.num_in_flight = self._transfer.num_in_flight
        self._models = {stream: _to_channels_last(model.eval().to(self.device)) for stream, model in models.items()}
        self._ready: dict[str, Callable[[Tensor], BackboneOutput]] = {}
        self._shapes_seen: set[tuple[str, torch.Size]] = set()

    @property
    def description(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name}{', compiled,' if self.is_compiled else ''} on {where}"

    def _start_batch(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        try:
            return super()._start_batch(clips)
        except torch.cuda.OutOfMemoryError:
            pass  # retry below: while an exception is handled, its traceback keeps the batch in memory
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
        if self.is_compiled:  # pad the batch: another size would be compiled again
            clips = [*clips, *itertools.repeat(clips[-1], self.batch_size - num_clips)]
        batch = self._transfer.stack(clips)
        net = self._prepare(stream, batch)
        shape = (stream, batch.shape)
        with self._computing(is_repeated=shape in self._shapes_seen):
            self._shapes_seen.add(shape)
            output = net(self._transfer.upload(batch))
            wait = self._transfer.download([output.features[:num_clips], output.logits[:num_clips]])
        return lambda: Answer(*wait())

    @contextmanager
    def _computing(self, *, is_repeated: bool) -> Iterator[None]:
        """Set torch's modes for a forward pass."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(compile_errors_explained())
            if self.device.type == "cuda":
                # cuDNN benchmarks its algorithms for shapes that repeat; with --resize-only each video has its own.
                # TF32 would round the operands of fp32 convolutions to 10 bits.
                may_round = self.precision != "fp32"
                stack.enter_context(cudnn.flags(enabled=True, benchmark=is_repeated, allow_tf32=may_round))
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, AUTOCAST_DTYPES[self.precision]))
            elif self._needs_onednn:
                stack.enter_context(_OneDnn())
            yield

    def _prepare(self, stream: str, clips: Tensor) -> Callable[[Tensor], BackboneOutput]:
        """Return the network of a stream, folded and compiled at its first clips."""
        if stream not in self._ready:
            model = self._models[stream]
            # MPS has no float64 to fold in. In fp16 a weight divided by a large deviation may underflow.
            if self.device.type != "mps" and self.precision != "fp16":
                fold_batch_norms(model, clips)
            # Else TorchInductor's tools print a line on machines that have CUDA's files and no GPU.
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            options: dict[str, Any] = {"freezing": True}  # treat weights as constants, laid out for this processor
            self._ready[stream] = torch.compile(model, dynamic=False, options=options) if self.is_compiled else model
        return self._ready[stream]


def _to_channels_last(model: ClipModel) -> ClipModel:
    """Lay 3-D kernels out channels-last, which is fastest; `Module.to` fails if there are 2-D ones, too."""
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


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
