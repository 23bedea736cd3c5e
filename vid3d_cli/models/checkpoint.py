"""Reads checkpoint files safely, converts published tensor names to ours, and loads them strictly."""

from __future__ import annotations

import argparse
import itertools
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, WeightsError
from ..records import STREAMS
from .manifest import model_entries
from .registry import BACKBONES, Backbone, KeyRules
from .tf_checkpoint import is_tf_checkpoint, read_tf_checkpoint

StateDict = dict[str, Tensor]

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".pyth", ".tar", ".pickle", ".pkl", ".safetensors")

# Where training scripts put the state dict in what they save.
WRAPPER_KEYS = ("state_dict", "model_state", "model_state_dict", "model")


def read_checkpoint(path: Path) -> StateDict:
    """Return the tensors of a checkpoint file by name, without running code from the file.

    Args:
        path: .pt, .pth, .pth.tar, .safetensors or TensorFlow's .index.

    Raises:
        CheckpointError: the file is missing or damaged, holds anything but tensors, or asks to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's long warnings; the errors below say the same in one line
            return _read(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"it would run code, by importing '{found[1]}'"
            if found
            else "it is no PyTorch checkpoint, or an unsafe one"
        )
        raise CheckpointError(
            f"{path}: refused: {what}. Save the state dict alone: torch.save(model.state_dict(), …), or .safetensors"
        ) from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "no such file" if missing else f"cannot be read: {error.strerror or error}"
        raise CheckpointError(f"{path}: {what}") from None
    except Exception as error:  # a damaged file makes the readers raise anything: struct.error, AssertionError, …
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if "TorchScript" in reason:
            raise CheckpointError(
                f"{path}: refused: it is a TorchScript program. Save the state dict of its model"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({reason})") from None


def _read(path: Path) -> StateDict:
    if is_tf_checkpoint(path):
        return {name: torch.from_numpy(array) for name, array in read_tf_checkpoint(path).items()}
    if path.suffix == ".safetensors":
        return unwrap(safetensors.torch.load_file(path), path)
    _refuse_bomb(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training script: values alone
        return unwrap(torch.load(path, map_location="cpu", weights_only=True), path)


def _refuse_bomb(path: Path) -> None:
    """Raise CheckpointError for a zip archive that unpacks to many times its size; torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(entry.file_size for entry in archive.infolist())
        if num_bytes > 4 * path.stat().st_size:
            raise CheckpointError(f"{path}: refused: it would unpack to {num_bytes} bytes, many times its size")


def unwrap(saved: Any, path: Path) -> StateDict:
    """Return the state dict inside what a training script saved, without the prefix that DataParallel adds.

    Raises:
        CheckpointError: there is no state dict.
    """
    for key in WRAPPER_KEYS:
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping) or not saved or not all(isinstance(v, Tensor) for v in saved.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors)")
    for name, tensor in saved.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: refused: {name} {tuple(tensor.shape)} is larger than its data in the file")
    return {str(name).removeprefix("module."): tensor for name, tensor in saved.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def convert_keys(state: StateDict, backbone: Backbone) -> StateDict:
    """Return a published state dict under our tensor names.

    The file's layout is the one whose rules give the classifier's name. If the classifier is missing, it is the one
    whose rules give most of the network's other names.
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
    """Return a state dict with a layout's rules applied to all names; a name that becomes empty is dropped."""
    return {new: tensor for name, tensor in state.items() if (new := _rename(name, rules))}


def _rename(name: str, rules: KeyRules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def count_classes(state: StateDict, backbone: Backbone) -> int | None:
    """Return K, from the shape of the classifier's weight; None if the weight is missing."""
    classifier = state.get(backbone.classifier)
    return classifier.shape[0] if classifier is not None and classifier.ndim else None


def is_counter(name: str) -> bool:
    """Whether a tensor is batch norm's `num_batches_tracked`, which inference does not use."""
    return name.endswith("num_batches_tracked")


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def load_strictly(net: nn.Module, state: StateDict, path: Path, name: str) -> None:
    """Load a complete state dict into a network.

    Batch norm's counters are optional: older files lack them.

    Args:
        net: the network; changed in place.
        state: tensors under our names.
        path: the file, for the error.
        name: name of the network, for the error.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; the text names the first three of each.
    """
    if misfits := describe_misfits(net.state_dict(), state):
        raise CheckpointError(f"{path}: does not fit {name}: {misfits}")
    net.load_state_dict({name: t for name, t in state.items() if not is_counter(name)}, strict=False)


def describe_misfits(own: Mapping[str, Tensor], state: StateDict) -> str:
    """Return how a state dict differs from the network's own, in one line; empty if it fits."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Recognising
# ---------------------------------------------------------------------------------------------------------------------


def recognise(published: StateDict) -> list[tuple[str, str, str | None, int]]:
    """Return the networks that a state dict fits: (backbone, stream, variant, number of classes)."""
    found: list[tuple[str, str, str | None, int]] = []
    for name, backbone in BACKBONES.items():
        state = convert_keys(published, backbone)
        if num_classes := count_classes(state, backbone):
            for variant, stream in itertools.product((None, *backbone.variants), STREAMS):
                with torch.device("meta"):
                    net = backbone.build(stream, num_classes, **(backbone.variants[variant] if variant else {}))
                if not describe_misfits(net.state_dict(), state):
                    found.append((name, stream, variant, num_classes))
    return found


def recognise_layout(published: StateDict, backbone: Backbone) -> str | None:
    """Return the publisher whose tensor names a state dict has."""
    for layout, rules in backbone.key_layouts.items():
        if backbone.classifier in rename_keys(published, rules):
            return layout
    return None


def suggest_model(published: StateDict, name: str) -> str:
    """Return the model of the backbone `name` whose input a state dict was trained on, by its tensor names."""
    layout = recognise_layout(published, BACKBONES[name])
    for entry in model_entries().values():
        if entry.backbone == name and entry.layout is not None and entry.layout == layout:
            return name if entry.default else entry.name
    return name


def suggest_options(published: StateDict, name: str, stream: str, path: Path) -> str:
    """Return advice, with options to type, for a checkpoint that does not fit this stream of the backbone `name`."""
    if found := recognise(published):
        backbone, other, variant, num_classes = found[0]
        if (backbone, other, variant) == (name, stream, None):
            return f"It has {num_classes} classes: leave num_classes out"
        model = suggest_model(published, backbone)
        what = f"--model {model}" + (f" --variant {variant}" if variant else "")
        fits = f"It fits {backbone}'s {other} stream with {num_classes} classes"
        return f"{fits}: try {what} --streams {other} --weights {other}={shlex.quote(str(path))}"
    layouts = ", ".join(BACKBONES[name].key_layouts)
    known = f"vid3d reads these layouts of {name}: {layouts}" if layouts else f"{name} has no published layout"
    return f"Check that the file is complete and belongs to {name}. {known}"
