"""Inflates 2-D ImageNet networks to 3-D: an initialisation for training, not a trained action model.

    googlenet → i3d, s3d      resnet18 → r3d_18, mc3_18      resnet50 → i3d_r50, p3d63      resnet101 → p3d131
    resnet152 → p3d199

A k×k kernel becomes t×k×k, repeated in time and divided by t. So a clip of one repeated frame gives what the image
gives (Carreira & Zisserman 2017, section 2.1). Convolutions in time only, which a 2-D network does not have, start so
that they do not change such a clip: as the mean over their window, or as zero beside a shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..durable import AtomicFile
from ..errors import CheckpointError, UsageError
from .backbones import TemporalPart
from .checkpoint import StateDict, describe_misfits, is_counter, rename_keys
from .registry import BACKBONES, Backbone


@dataclass(frozen=True)
class Inflated:
    """A 3-D network that starts from a 2-D one."""

    net: nn.Module
    image_network: str
    """The 2-D network, as in "googlenet"."""
    from_image: tuple[str, ...]
    """Tensors that come from it."""
    random: tuple[str, ...]
    """Randomly initialised tensors: a new classifier, and those that `only` leaves out."""


def inflate(
    image: StateDict,
    name: str,
    *,
    stream: str = "rgb",
    num_classes: int | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
) -> Inflated:
    """Return a 3-D initialisation made from a 2-D checkpoint.

    Args:
        image: torchvision's state dict of a network that the backbone can start from.
        name: name of the backbone.
        stream: "rgb", or "flow", whose first kernels are the mean over the colours in both channels.
        num_classes: K; None keeps the classes and the classifier of the 2-D network.
        only: prefixes of the tensors to inflate, the rest is initialised at random; empty inflates all.
        seed: seed of the randomly initialised tensors.

    Raises:
        UsageError: the backbone cannot start from a 2-D network, or has no tensors with such a prefix.
        CheckpointError: the file is no complete checkpoint of a network that the backbone can start from.
    """
    backbone = BACKBONES[name]
    image_network, image = _recognise(image, name)
    keeps_classifier = num_classes in (None, len(image[backbone.classifier]))
    net = _build(backbone, stream, num_classes or len(image[backbone.classifier]), seed)
    state = {key: tensor for key, tensor in net.state_dict().items() if not is_counter(key)}
    head = backbone.classifier.removesuffix("weight")
    if unknown := [start for start in only if not any(key.startswith(start) for key in state)]:
        starts = ", ".join(dict.fromkeys(key.split(".")[0] for key in state))
        raise UsageError(f"{name} has no tensors that begin with '{unknown[0]}'; they begin with: {starts}")
    chosen = [key for key in state if key.startswith(tuple(only) or "")]
    temporal = set(_start_still(net, chosen))
    from_image = [key for key in chosen if key in image and (keeps_classifier or not key.startswith(head))]
    net.load_state_dict({key: to_3d(image[key], state[key].shape) for key in from_image}, strict=False)
    random = [key for key in state if key not in temporal and key not in from_image]
    return Inflated(net.eval(), image_network, tuple(from_image), tuple(random))


def to_3d(kernel: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a 2-D network's tensor in the shape of the 3-D network's.

    Args:
        kernel: (O, I, h, w); the vector of a batch norm or a bias, (O,); or a fully connected layer, (O, I).
        shape: (O, I, t, h, w) repeats the kernel in time and divides it by t. With another I, every input channel gets
            the mean over the colours. A fully connected layer becomes (O, I, 1, 1, 1).
    """
    if len(shape) == 5 and kernel.ndim == 2:
        kernel = kernel[:, :, None, None]
    if len(shape) < 5:
        return kernel
    if kernel.shape[1] != shape[1]:
        kernel = kernel.mean(1, keepdim=True).expand(-1, shape[1], -1, -1)
    return kernel[:, :, None].repeat(1, 1, shape[2], 1, 1) / shape[2]


def save_inflated(inflated: Inflated, out: Path) -> None:
    """Write the network as .safetensors, with a note of its origin in the header.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in inflated.net.state_dict().items()}
    facts = {"vid3d": f"{inflated.image_network} inflated to 3-D: an initialisation, not trained on video"}
    with AtomicFile(out) as file:
        file.write(safetensors.torch.save(tensors, facts))


def _build(backbone: Backbone, stream: str, num_classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return backbone.build(stream, num_classes)


def _recognise(image: StateDict, name: str) -> tuple[str, StateDict]:
    """Return the 2-D network of a checkpoint, and its tensors under the names of the backbone."""
    networks = BACKBONES[name].image_networks
    if not networks:
        able = ", ".join(other for other, backbone in BACKBONES.items() if backbone.image_networks)
        raise UsageError(f"{name} cannot start from a 2-D network; these can: {able}")
    misfits = []
    for network, rules in networks.items():
        renamed = {key: tensor for key, tensor in rename_keys(image, rules).items() if not is_counter(key)}
        classifier = renamed.get(BACKBONES[name].classifier)
        with torch.device("meta"):
            net = BACKBONES[name].build("rgb", len(classifier) if classifier is not None and classifier.ndim else 1)
        shapes = _image_shapes(net)
        head = BACKBONES[name].classifier
        shapes[head] = shapes[head].flatten(1)  # fully connected in the 2-D network
        misfit = describe_misfits(shapes, renamed)
        if not misfit:
            return network, renamed
        misfits.append(f"not {network} ({misfit})")
    raise CheckpointError(
        f"{name} starts from torchvision's {' or '.join(networks)}; this checkpoint is {', '.join(misfits)}"
    )


def _image_shapes(net: nn.Module) -> StateDict:
    """Return the tensors that a 2-D network must have for a 3-D one, on the meta device."""
    temporal = {key for keys, _ in _temporal_parts(net) for key in keys}
    shapes = {}
    for key, tensor in net.state_dict().items():
        if key not in temporal and not is_counter(key):
            shapes[key] = tensor[:, :, 0] if tensor.ndim == 5 else tensor
    return shapes


def _start_still(net: nn.Module, chosen: Sequence[str]) -> Iterator[str]:
    """Set the chosen convolutions in time so that they keep a still clip; yield the names of their tensors."""
    for keys, part in _temporal_parts(net):
        if set(keys) <= set(chosen):
            part.start_still()
            yield from keys


def _temporal_parts(net: nn.Module) -> Iterator[tuple[list[str], TemporalPart]]:
    """Yield the tensor names of the convolutions in time only, each list with its block."""
    for prefix, module in net.named_modules():
        if isinstance(module, TemporalPart):
            parts = tuple(f"{prefix}.{part}." for part in module.temporal)
            yield [key for key in net.state_dict() if key.startswith(parts) and not is_counter(key)], module
