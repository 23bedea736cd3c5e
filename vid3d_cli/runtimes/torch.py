"""PyTorch, eager: on a CPU, a CUDA GPU or Apple's MPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbones import BackboneOutput
from ..errors import CheckpointError, UsageError, Vid3dError
from ..model import ClipModel
from ..preprocess import Views
from ..records import Clip, ClipOutput

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


def check_classes(num_classes: Mapping[str, int]) -> None:
    """Raise CheckpointError for streams whose scores cannot be fused."""
    if len(set(num_classes.values())) > 1:
        counts = ", ".join(f"{stream} {count}" for stream, count in num_classes.items())
        raise CheckpointError(f"the streams have different numbers of classes ({counts}): run one with --streams")


def _to_channels_last(model: ClipModel) -> ClipModel:
    """Lay the kernels of 3-D convolutions out as these run fastest; `Module.to` fails where 2-D ones are among them."""
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


class TorchRuntime:
    """Runs the clip models of a two-stream model.

    Args:
        models: per stream.
        device: see `select_device`.
        precision: see `select_precision`; below fp32 the convolutions run under autocast, their results are float32.
        batch_size: clips at a time; None is 1 on a CPU and 8 elsewhere. Halved for good when a GPU runs out of memory.
        views: how many crops of each clip are run, and what becomes of their features; None runs clips as they are.
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
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, got {batch_size}")
        self.device = select_device(device)
        self.precision = select_precision(precision, self.device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.views = views
        self.models = {stream: _to_channels_last(model.eval().to(self.device)) for stream, model in models.items()}

    @property
    def description(self) -> str:
        """What runs where, for the recipe."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.name} on {where}"

    def run(self, clips: Sequence[Clip]) -> list[ClipOutput]:
        """Features and logits of every clip and stream.

        Args:
            clips: of equal shape.

        Raises:
            Vid3dError: not even one clip fits into the GPU's memory.
        """
        outputs: list[ClipOutput] = []
        while len(outputs) < len(clips):
            batch = clips[len(outputs) : len(outputs) + self.batch_size]
            try:
                outputs += self._run_batch(batch)
                continue
            except torch.cuda.OutOfMemoryError:
                pass  # the rest happens outside: while an exception is handled, its traceback keeps the batch alive
            if len(batch) == 1:
                raise Vid3dError(
                    f"{self.device}: out of memory with a single clip; try --precision bf16, a shorter --window, "
                    "or --device cpu"
                )
            self.batch_size = len(batch) // 2
            torch.cuda.empty_cache()
        return outputs

    def _run_batch(self, clips: Sequence[Clip]) -> list[ClipOutput]:
        outputs = {stream: self._run_views(stream, [clip.streams[stream] for clip in clips]) for stream in self.models}
        check_classes({stream: output.logits.shape[1] for stream, output in outputs.items()})
        features = {stream: output.features.cpu().numpy() for stream, output in outputs.items()}
        logits = {stream: output.logits.cpu().numpy() for stream, output in outputs.items()}
        return [
            ClipOutput(clip.span, {s: features[s][i] for s in features}, {s: logits[s][i] for s in logits})
            for i, clip in enumerate(clips)
        ]

    def _run_views(self, stream: str, clips: Sequence[NDArray[Any]]) -> BackboneOutput:
        if self.views is None:
            return self._forward(stream, clips)
        outputs = [self._forward(stream, view) for view in self.views.cut(clips, is_flow=stream == "flow")]
        features = torch.stack([output.features for output in outputs], 1)
        logits = torch.stack([output.logits for output in outputs])
        return BackboneOutput(features if self.views.are_kept else features.mean(1), logits.mean(0))

    def _forward(self, stream: str, clips: Sequence[NDArray[Any]]) -> BackboneOutput:
        batch: Tensor = torch.from_numpy(np.stack(clips))
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.device.type == "cuda" and self.precision == "fp32":
                # fp32 means fp32: without this cuDNN rounds the operands of a convolution to TF32's 10 bits.
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, AUTOCAST_DTYPES[self.precision]))
            output: BackboneOutput = self.models[stream](batch.to(self.device))
        return output
