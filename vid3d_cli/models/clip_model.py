"""Makes networks that map clips to features and logits, from a model's name and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import checked
from ..errors import CheckpointError, ShapeError, UnknownModel, UsageError, WeightsUnavailable
from ..records import STREAMS
from ..suggest import check_known
from .backbones import BackboneOutput, Stepwise
from .checkpoint import (
    CHECKPOINT_SUFFIXES,
    convert_keys,
    count_classes,
    load_strictly,
    read_checkpoint,
    suggest_options,
)
from .manifest import Normalisation, find_model, model_entries
from .registry import BACKBONES, find_variant
from .tf_checkpoint import is_tf_checkpoint
from .weights import pull


@checked
def create_model(
    name: str = "i3d",
    *,
    stream: str = "rgb",
    num_classes: int | None = None,
    weights: str | Path | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Return a network in eval mode, with random or given weights.

    Args:
        name: name of a backbone ("i3d") or a model ("i3d.kinetics400").
        stream: "rgb" (3 input channels) or "flow" (2).
        num_classes: K; None takes the checkpoint's number, or 400 without a checkpoint.
        weights: None (random), the name of a model (its checkpoint is downloaded unless it is on disk), or the path of
            a checkpoint (.pt, .pth, .pth.tar, .safetensors, TensorFlow's .index) in any published layout of tensor
            names that the backbone knows.
        variant: one of the backbone's `variants`, or "default"; None takes the variant of the model that `name` or
            `weights` names.

    Returns:
        A module that maps normalised clips (N, C, T, H, W) to `features` (N, D) and `logits` (N, K), both float32.

    Raises:
        UnknownModel: there is no such backbone or model.
        UsageError: there is no such stream or variant.
        WeightsError: the weights cannot be downloaded, are unsafe, or do not fit; the text names the first tensors
            that do not.
    """
    if variant is None:
        of_model = {entry.name: entry.variant for entry in model_entries().values()}
        variant = of_model.get(name) or of_model.get(str(weights))
    name = name if name in BACKBONES else find_model(name).backbone
    backbone = BACKBONES[name]
    check_known(stream, STREAMS, f"unknown stream '{stream}'")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    found = find_variant(name, variant)
    options = backbone.variants[found] if found else {}
    if weights is None:
        return backbone.build(stream, num_classes or 400, **options).eval()
    path = find_weights(weights, stream)
    published = read_checkpoint(path)
    state = convert_keys(published, backbone)
    net = backbone.build(stream, num_classes or count_classes(state, backbone) or 400, **options)
    try:
        load_strictly(net, state, path, name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {suggest_options(published, name, stream, path)}") from None
    return net.eval()


def find_weights(weights: str | Path, stream: str) -> Path:
    """Return the checkpoint file of a path or a model's name; a model's file is downloaded and verified."""
    path = Path(weights)
    if path.is_file():
        return path
    try:
        entry = find_model(str(weights))
    except UnknownModel as error:
        if path.suffix in CHECKPOINT_SUFFIXES or is_tf_checkpoint(path) or len(path.parts) > 1:
            raise CheckpointError(f"{weights}: no such checkpoint file") from None
        raise error
    if stream not in entry.streams:
        raise UsageError(f"{entry.name} has no {stream} stream; it has: {', '.join(entry.streams)}")
    file = entry.streams[stream].weights
    if file is None:
        raise WeightsUnavailable(f"{entry.name}: {stream} has no public weights. {entry.streams[stream].unpublished}")
    return pull(file)


class Normalise(nn.Module):
    """Map uint8 pixels, or flow, to the input that the network was trained on."""

    mean: Tensor
    std: Tensor

    dtype = torch.float32
    """Of the result."""

    def __init__(self, facts: Normalisation) -> None:
        super().__init__()
        self.range, self.bound_px, self.is_bgr = facts.range, facts.bound_px, facts.channel_order == "BGR"
        for name, values in (("mean", facts.mean or [0.0]), ("std", facts.std or [1.0])):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return clips as the network's input.

        Args:
            x: (N, C, T, H, W): RGB as uint8, flow in pixels per frame step as float32, or flow as uint8, quantised so
                that 0 … 255 stands for -bound_px … bound_px.

        Returns:
            (N, C, T, H, W) of type `dtype`.
        """
        low, high = self.range
        if self.dtype is not torch.float32:
            return self._in_one_step(x)
        # In place after the first step: a long stretch of frames takes hundreds of megabytes.
        if x.dtype == torch.uint8:
            share = x.float().div_(255)
        else:
            assert self.bound_px is not None
            share = x.clamp(-self.bound_px, self.bound_px).add_(self.bound_px).div_(2 * self.bound_px)
        x = share.mul_(high - low).add_(low)
        return (x.flip(1) if self.is_bgr else x).sub_(self.mean).div_(self.std)

    def _in_one_step(self, x: Tensor) -> Tensor:
        """Normalise by one multiply-add in float32, which rounds to `dtype`: an eighth of the memory traffic."""
        low, high = self.range
        unit, middle = 255.0, low  # a value that is `high - low` away from the one that gives `middle`
        if x.dtype != torch.uint8:
            assert self.bound_px is not None
            x, unit, middle = x.clamp(-self.bound_px, self.bound_px), 2 * self.bound_px, (low + high) / 2
        x = x.flip(1) if self.is_bgr else x
        result = torch.empty_like(x, dtype=self.dtype)
        offset = middle - self.mean
        return torch.addcmul(offset.div_(self.std), x, self.std.reciprocal(), value=(high - low) / unit, out=result)


class LayerTap:
    """Keeps the output of a module inside a backbone as the features.

    Args:
        backbone: the network; it gets a forward hook.
        path: name of the module.
        pool: one of `registry.POOLS`; an output (N, D) stays as it is.
    """

    def __init__(self, backbone: nn.Module, path: str, pool: str) -> None:
        self._pool = pool
        self._taken: Tensor | None = None
        backbone.get_submodule(path).register_forward_hook(self._take)

    def _take(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Pooled or copied here, since the next layer may work in place.
        self._taken = pool_map(output, self._pool)

    def features(self) -> Tensor:
        """Return the features of the last forward pass, (N, …) float32."""
        assert self._taken is not None
        taken, self._taken = self._taken, None
        return taken


def pool_map(x: Tensor, pool: str) -> Tensor:
    """Return a pooled copy, (N, …) float32, of a map (N, C, T, H, W), as `registry.POOLS` says; (N, D) stays (N, D)."""
    if x.ndim == 2 or pool == "none":
        return x.float().clone()
    if pool == "max":
        return x.float().amax((2, 3, 4))
    return x.float().mean((3, 4) if pool == "spatial" else (2, 3, 4))


class ClipModel(nn.Module):
    """A network that takes clips as they are read from a video.

    Args:
        backbone: from `create_model`.
        normalise: makes the network's input, on the device, so that frames are copied there as uint8.
        tap: gives the features; None takes the vector that feeds the classifier.
        is_dense: return features (N, D, S) and logits (N, K, S) of the S steps in time of a `Stepwise` backbone.
    """

    def __init__(
        self, backbone: nn.Module, normalise: Normalise, tap: LayerTap | None = None, is_dense: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.normalise, self.tap, self.is_dense = backbone, normalise, tap, is_dense
        self.is_channels_last = True
        """Whether the network's input has its channels last in memory, as clips have."""

    def reduce_precision(self, dtype: torch.dtype) -> None:
        """Convert all convolutions but the classifier to bfloat16 or float16, for good. Outputs stay float32.

        Norms that could not be folded, pools of the last map, fully connected layers and the classifier stay in
        float32: rounded to bfloat16, logits between 8 and 16 would be 0.06 apart, and tie.
        """
        classifiers = {backbone.classifier.removesuffix(".weight") for backbone in BACKBONES.values()}
        for name, module in self.backbone.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)) and name not in classifiers:
                module.to(dtype)
        if not getattr(self.backbone, "compares_pixels", False):
            self.normalise.dtype = dtype

    def forward(self, clips: Tensor) -> BackboneOutput:
        """Return features (N, D), or what the tap gives, and logits (N, K).

        Args:
            clips: (N, T, H, W, C): uint8, or flow in pixels per frame step as float32.

        Raises:
            ShapeError: clips have another number of axes, or a size that the network does not accept.
        """
        if clips.ndim != 5:
            raise ShapeError(f"clips must be (N, T, H, W, C), got {tuple(clips.shape)}")
        clips = clips.permute(0, 4, 1, 2, 3)  # free, and leaves the memory channels-last
        x = self.normalise(clips if self.is_channels_last else clips.contiguous())
        if self.is_dense:
            assert isinstance(self.backbone, Stepwise)
            return self.backbone.steps(x)
        output: BackboneOutput = self.backbone(x)
        return output if self.tap is None else output._replace(features=self.tap.features())
