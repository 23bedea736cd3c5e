"""Weights + backbone + normalisation = ClipModel; checkpoints are read safely and fitted strictly."""

from __future__ import annotations

import itertools
import pickle
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError, UnknownModel, UsageError, WeightsError, WeightsUnavailable
from ..records import STREAMS
from .backbones import BACKBONES, Backbone, BackboneOutput, KeyRules, Stepwise, find_variant
from .manifest import Normalisation, find_model, model_entries
from .tf_checkpoint import is_tf_checkpoint, read_tf_checkpoint
from .weights import pull

StateDict = dict[str, Tensor]

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pyth", ".tar", ".pickle", ".pkl", ".safetensors")

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
        variant: another form of the backbone, one of its `variants`, or "default"; None is that of the model, if `name`
            or `weights` names one.

    Returns:
        A module that maps normalised clips (N, C, T, H, W) to `features` (N, D) and `logits` (N, K).

    Raises:
        UnknownModel: no such backbone or model.
        UsageError: no such stream or variant.
        WeightsError: the weights cannot be had, are unsafe, or do not fit; the message names the first offenders.
    """
    if variant is None:
        variant = next((v for model in (name, weights) if (v := _variant_of_model(model))), None)
    name = name if name in BACKBONES else find_model(name).backbone
    backbone = BACKBONES[name]
    if stream not in STREAMS:
        raise UsageError(f"unknown stream '{stream}': choose one of {', '.join(STREAMS)}")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"a network needs at least 1 class, got {num_classes}")
    options = _build_options(name, variant)
    if weights is None:
        return backbone.build(stream, num_classes or 400, **options).eval()
    path = find_weights(weights, stream)
    published = read_checkpoint(path)
    state = convert_keys(published, backbone)
    net = backbone.build(stream, num_classes or count_classes(state, backbone) or 400, **options)
    try:
        load_strictly(net, state, path, name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {_suggest(published, name, stream, path)}") from None
    return net.eval()


def _variant_of_model(model: str | Path | None) -> str | None:
    """The variant that the weights of a model take; None where it is no model's name, but a backbone's or a file's."""
    known = {entry.name: entry.variant for entry in model_entries().values()}
    return known.get(str(model))


def _build_options(name: str, variant: str | None) -> Mapping[str, Any]:
    found = find_variant(name, variant)
    return BACKBONES[name].variants[found] if found else {}


def count_classes(state: StateDict, backbone: Backbone) -> int | None:
    """K, by the classifier's weight, if it is there."""
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
        if "TorchScript" in reason:
            raise CheckpointError(
                f"{path}: refused, nothing in it was run: it is a TorchScript program; save the state dict of its model"
            ) from None
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
    """Bring published tensor names to ours.

    The file's layout is the one whose renaming yields the classifier's name; of a part of a file, the one that yields
    the most other names of which the network has some.
    """
    layouts = [rename_keys(state, rules) for rules in backbone.key_layouts.values()]
    for renamed in layouts:
        if backbone.classifier in renamed:
            return renamed
    if not layouts:
        return state
    with torch.device("meta"):
        own = backbone.build(STREAMS[0], 1).state_dict().keys()
    return max([state, *layouts], key=lambda renamed: len(own & renamed.keys()))


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


def load_strictly(net: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Load a state dict of which nothing may be missing, left over or misshapen.

    Batch norm's counters are left aside: older files lack them. `name` is the network's in messages.

    Raises:
        CheckpointError: names the first offenders of each kind.
    """
    if misfits := describe_misfits(net.state_dict(), state):
        raise CheckpointError(f"{path}: does not fit {name}: {misfits}")
    net.load_state_dict({name: t for name, t in state.items() if not is_counter(name)}, strict=False)


def describe_misfits(own: Mapping[str, Tensor], state: StateDict) -> str:
    """Which tensors keep a state dict from being the network's own: how many of each kind, the first; "" if none do."""
    own = {name: t for name, t in own.items() if not is_counter(name)}
    state = {name: t for name, t in state.items() if not is_counter(name)}
    misfits = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "misshapen": [
            f"{name} (file {tuple(t.shape)}, network {tuple(own[name].shape)})"
            for name, t in state.items()
            if name in own and t.shape != own[name].shape
        ],
    }
    return "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in misfits.items() if names)


def recognise(published: StateDict) -> list[tuple[str, str, str | None, int]]:
    """The networks that a checkpoint is a whole one of: (backbone, stream, variant, number of classes)."""
    found: list[tuple[str, str, str | None, int]] = []
    for name, backbone in BACKBONES.items():
        state = convert_keys(published, backbone)
        if num_classes := count_classes(state, backbone):
            for variant, stream in itertools.product((None, *backbone.variants), STREAMS):
                with torch.device("meta"):
                    net = backbone.build(stream, num_classes, **_build_options(name, variant))
                if not describe_misfits(net.state_dict(), state):
                    found.append((name, stream, variant, num_classes))
    return found


def recognise_layout(published: StateDict, backbone: Backbone) -> str | None:
    """The publisher whose tensor names a checkpoint has."""
    for layout, rules in backbone.key_layouts.items():
        if backbone.classifier in rename_keys(published, rules):
            return layout
    return None


def suggest_model(published: StateDict, name: str) -> str:
    """The model of the manifest whose input a checkpoint of the backbone `name` was trained on, by its tensor names."""
    layout = recognise_layout(published, BACKBONES[name])
    for entry in model_entries().values():
        if entry.backbone == name and entry.layout is not None and entry.layout == layout:
            return name if entry.default else entry.name
    return name


def _suggest(published: StateDict, name: str, stream: str, path: Path) -> str:
    """What to do with a checkpoint that does not fit this stream of the backbone `name`."""
    if found := recognise(published):
        backbone, other, variant, num_classes = found[0]
        if (backbone, other, variant) == (name, stream, None):
            return f"It has {num_classes} classes: leave num_classes out"
        model = suggest_model(published, backbone)
        what = f"--model {model}" + (f" --variant {variant}" if variant else "")
        fits = f"It fits {backbone}'s {other} stream with {num_classes} classes"
        return f"{fits}: try {what} --streams {other} --weights {other}={shlex.quote(str(path))}"
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
        # In place after the first: a long stretch of frames has hundreds of megabytes.
        if x.dtype == torch.uint8:
            share = x.float().div_(255)
        else:
            assert self.bound_px is not None
            share = x.clamp(-self.bound_px, self.bound_px).add_(self.bound_px).div_(2 * self.bound_px)
        x = share.mul_(high - low).add_(low)
        return (x.flip(1) if self.is_bgr else x).sub_(self.mean).div_(self.std)


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
        is_dense: answer for every step in time of a `Stepwise` backbone: features (N, D, S), logits (N, K, S).
    """

    def __init__(
        self, backbone: nn.Module, normalise: Normalise, tap: LayerTap | None = None, is_dense: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.normalise, self.tap, self.is_dense = backbone, normalise, tap, is_dense

    def forward(self, clips: Tensor) -> BackboneOutput:
        """(N, T, H, W, C) uint8, or float32 pixels of flow → features (N, D) or what the tap takes, logits (N, K)."""
        if clips.ndim != 5:
            raise ShapeError(f"clips must be (N, T, H, W, C), got {tuple(clips.shape)}")
        # Moving C to the front is free and leaves the memory channels-last, as the convolutions like it.
        x = self.normalise(clips.permute(0, 4, 1, 2, 3))
        if self.is_dense:
            assert isinstance(self.backbone, Stepwise)
            return self.backbone.steps(x)
        output: BackboneOutput = self.backbone(x)
        return output if self.tap is None else output._replace(features=self.tap.features())
