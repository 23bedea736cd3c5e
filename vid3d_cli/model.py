"""Weights + backbone + normalisation = ClipModel; checkpoints are read safely and fitted strictly."""

from __future__ import annotations

import itertools
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from .backbones import BACKBONES, Backbone, BackboneOutput, KeyRules
from .errors import CheckpointError, ShapeError, UnknownModel, UsageError, WeightsError, WeightsUnavailable
from .manifest import Normalisation, find_model
from .records import STREAMS
from .tf_checkpoint import is_tf_checkpoint, read_tf_checkpoint
from .weights import pull

StateDict = dict[str, Tensor]

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".tar", ".safetensors")

# Where training scripts put the state dict in what they save.
WRAPPER_KEYS = ("state_dict", "model_state", "model_state_dict", "model")


def create_model(
    name: str = "i3d",
    *,
    stream: str = "rgb",
    num_classes: int | None = None,
    weights: str | Path | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Build a backbone in eval mode.

    Args:
        name: of a backbone ("i3d") or a model ("i3d.kinetics400").
        stream: "rgb" (3 input channels) or "flow" (2).
        num_classes: K; None takes the checkpoint's number, or 400 without a checkpoint.
        weights: None (random), the name of a model in the manifest (downloaded when it is not on disk), or the path of
            a checkpoint (.pt, .pth, .pth.tar, .safetensors, TensorFlow's .index) in any published key layout that the
            backbone knows.
        variant: another form of the backbone, one of its `variants`.

    Returns:
        A module that maps normalised clips (N, C, T, H, W) to `features` (N, D) and `logits` (N, K).

    Raises:
        UnknownModel: no such backbone or model.
        UsageError: no such stream or variant.
        WeightsError: the weights cannot be had, are unsafe, or do not fit; the message names the first offenders.
    """
    if name not in BACKBONES:
        entry = find_model(name)
        name, variant = entry.backbone, variant or entry.variant
    backbone = BACKBONES[name]
    if stream not in STREAMS:
        raise UsageError(f"unknown stream '{stream}': choose one of {', '.join(STREAMS)}")
    options = _variant_options(name, variant)
    if weights is None:
        return backbone.build(stream, num_classes or 400, **options).eval()
    path = find_weights(weights, stream)
    published = read_checkpoint(path)
    state = convert_keys(published, backbone)
    net = backbone.build(stream, num_classes or _count_classes(state, backbone) or 400, **options)
    try:
        load_strictly(net, state, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_suggest(published, name, path)}") from None
    return net.eval()


def _variant_options(name: str, variant: str | None) -> Mapping[str, Any]:
    variants = BACKBONES[name].variants
    if variant is None:
        return {}
    if variant not in variants:
        known = f"choose one of {', '.join(variants)}" if variants else "it has none"
        raise UsageError(f"{name} has no variant '{variant}': {known}")
    return variants[variant]


def _count_classes(state: StateDict, backbone: Backbone) -> int | None:
    classifier = state.get(backbone.classifier)
    return classifier.shape[0] if classifier is not None and classifier.ndim else None


def find_weights(weights: str | Path, stream: str) -> Path:
    """The checkpoint file that a model name or a path stands for; a model's file is downloaded and verified."""
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


def read_checkpoint(path: Path) -> StateDict:
    """Read the tensors of a checkpoint file without running anything that it holds.

    Raises:
        CheckpointError: the file is missing, damaged, holds something other than tensors, or wants to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error says in one line what torch warns of at length
            return _read(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks to import '{found[1]}'" if found else "it is not a plain PyTorch checkpoint"
        raise CheckpointError(
            f"{path}: refused, nothing in it was run: {what}. Only files of plain tensors are read; "
            "save the state dict alone with torch.save(model.state_dict(), …) or as .safetensors"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file can make the readers raise anything: struct.error, AssertionError, …
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint, or a damaged one ({reason})") from None


def _read(path: Path) -> StateDict:
    if is_tf_checkpoint(path):
        return {name: torch.from_numpy(array) for name, array in read_tf_checkpoint(path).items()}
    if path.suffix == ".safetensors":
        return unwrap(safetensors.torch.load_file(path), path)
    return unwrap(torch.load(path, map_location="cpu", weights_only=True), path)


def unwrap(saved: Any, path: Path) -> StateDict:
    """Find the state dict in what a training script saved, and drop the prefix that DataParallel adds.

    Raises:
        CheckpointError: there is no state dict in it.
    """
    for key in WRAPPER_KEYS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in saved.items()}


def convert_keys(state: StateDict, backbone: Backbone) -> StateDict:
    """Bring published tensor names to ours: the layout whose renaming yields the classifier's name is the file's."""
    for rules in backbone.key_layouts.values():
        renamed = rename_keys(state, rules)
        if backbone.classifier in renamed:
            return renamed
    return state


def rename_keys(state: StateDict, rules: KeyRules) -> StateDict:
    """Apply a layout's rules to all names; a name of which nothing is left is dropped."""
    return {new: tensor for name, tensor in state.items() if (new := _rename(name, rules))}


def _rename(name: str, rules: KeyRules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def is_counter(name: str) -> bool:
    """Whether a tensor is batch norm's `num_batches_tracked`, which plays no part in inference."""
    return name.endswith("num_batches_tracked")


def load_strictly(net: nn.Module, state: StateDict, path: Path) -> None:
    """Load a state dict of which nothing may be missing, left over or misshapen.

    Batch norm's counters are left aside: older files lack them.

    Raises:
        CheckpointError: names the first offenders of each kind.
    """
    misfits = find_misfits(net, state)
    if any(misfits.values()):
        parts = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in misfits.items() if names]
        raise CheckpointError(f"{path}: does not fit {type(net).__name__}: {'; '.join(parts)}")
    net.load_state_dict({name: t for name, t in state.items() if not is_counter(name)}, strict=False)


def find_misfits(net: nn.Module, state: StateDict) -> dict[str, list[str]]:
    """The tensors that keep a state dict from being the network's, by kind: missing, unexpected, misshapen."""
    own = {name: t for name, t in net.state_dict().items() if not is_counter(name)}
    state = {name: t for name, t in state.items() if not is_counter(name)}
    return {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "misshapen": [
            f"{name} (file {tuple(t.shape)}, network {tuple(own[name].shape)})"
            for name, t in state.items()
            if name in own and t.shape != own[name].shape
        ],
    }


def recognise(published: StateDict) -> list[tuple[str, str, str | None]]:
    """The networks that a checkpoint is a whole one of: (backbone, stream, variant)."""
    found: list[tuple[str, str, str | None]] = []
    for name, backbone in BACKBONES.items():
        state = convert_keys(published, backbone)
        if num_classes := _count_classes(state, backbone):
            for variant, stream in itertools.product((None, *backbone.variants), STREAMS):
                with torch.device("meta"):
                    net = backbone.build(stream, num_classes, **_variant_options(name, variant))
                if not any(find_misfits(net, state).values()):
                    found.append((name, stream, variant))
    return found


def _suggest(published: StateDict, name: str, path: Path) -> str:
    """What to do with a checkpoint that does not fit the backbone `name`."""
    if found := recognise(published):
        backbone, stream, variant = found[0]
        what = f"--model {backbone}" + (f" --variant {variant}" if variant else "")
        num_classes = _count_classes(convert_keys(published, BACKBONES[backbone]), BACKBONES[backbone])
        fits = f"It fits {backbone}'s {stream} stream with {num_classes} classes"
        return f"{fits}: try {what} --weights {stream}={path}"
    layouts = ", ".join(BACKBONES[name].key_layouts)
    known = f"the published layouts that are read are: {layouts}" if layouts else "it has no published layout"
    return f"Is the file whole, and of {name}? Save the whole state dict; {known}"


class Normalise(nn.Module):
    """Pixels or flow, as the streams hold them, to what the network was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, facts: Normalisation) -> None:
        super().__init__()
        self.range, self.bound_px, self.is_bgr = facts.range, facts.bound_px, facts.channel_order == "BGR"
        self.register_buffer("mean", torch.tensor(facts.mean or [0.0]).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(facts.std or [1.0]).view(1, -1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W), RGB or quantised flow as uint8, or flow in pixels as float32 → float32.

        uint8 0 … 255 stands for the whole range, in flow too, where it is what 8-bit quantisation made of ± bound.
        """
        low, high = self.range
        if x.dtype == torch.uint8:
            share = x.float() / 255
        else:
            assert self.bound_px is not None
            share = (x.clamp(-self.bound_px, self.bound_px) + self.bound_px) / (2 * self.bound_px)
        x = share * (high - low) + low
        return ((x.flip(1) if self.is_bgr else x) - self.mean) / self.std


POOLS = ("avg", "max", "none", "spatial")
"""A layer's map (C, T, H, W) → its mean (C,), its maximum (C,), the map itself, or its mean over space (C, T)."""


class LayerTap:
    """Takes the features from inside a backbone.

    Args:
        backbone: the network; a forward hook is added to it.
        path: name of the module whose output is taken.
        pool: one of `POOLS`; an output that is a vector already, (N, D), is left as it is.
    """

    def __init__(self, backbone: nn.Module, path: str, pool: str) -> None:
        self._pool = pool
        self._taken: Tensor | None = None
        backbone.get_submodule(path).register_forward_hook(self._take)

    def _take(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Pooled or copied here, since the next layer may work in place.
        self._taken = pool_map(output, self._pool)

    def features(self) -> Tensor:
        """What the last forward pass gave, (N, …) float32."""
        assert self._taken is not None
        taken, self._taken = self._taken, None
        return taken


def pool_map(x: Tensor, pool: str) -> Tensor:
    """(N, C, T, H, W) → (N, …) float32, a copy; see `POOLS`. (N, D) stays (N, D)."""
    if x.ndim == 2 or pool == "none":
        return x.float().clone()
    if pool == "max":
        return x.float().amax((2, 3, 4))
    return x.float().mean((3, 4) if pool == "spatial" else (2, 3, 4))


class ClipModel(nn.Module):
    """Clips as the pipeline holds them → features and logits.

    Args:
        backbone: see `create_model`.
        normalise: runs on the device, so that frames travel as uint8.
        tap: where the features come from; None is the vector that feeds the classifier.
    """

    def __init__(self, backbone: nn.Module, normalise: Normalise, tap: LayerTap | None = None) -> None:
        super().__init__()
        self.backbone, self.normalise, self.tap = backbone, normalise, tap

    def forward(self, clips: Tensor) -> BackboneOutput:
        """(N, T, H, W, C) uint8, or float32 pixels of flow → features (N, D) or what the tap takes, logits (N, K)."""
        if clips.ndim != 5:
            raise ShapeError(f"clips must be (N, T, H, W, C), got {tuple(clips.shape)}")
        # Moving C to the front is free and leaves the memory channels-last, as the convolutions like it.
        output: BackboneOutput = self.backbone(self.normalise(clips.permute(0, 4, 1, 2, 3)))
        return output if self.tap is None else output._replace(features=self.tap.features())
