"""What a network puts out and how much it computes: counted on torch's meta device, without weights or arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..models.backbones import BACKBONES, find_variant
from ..models.backbones._layers import IN_CHANNELS
from ..models.clip_model import ClipModel, LayerTap, Normalise
from ..models.manifest import Normalisation

_NUM_CLASSES = 400
"""The last layer is a thousandth of the work."""


class ClipCost(NamedTuple):
    """Of one clip in one network."""

    feature_shape: tuple[int, ...]
    """(D,), or what a layer's tap takes; in a dense run of each window."""
    multiply_adds: int


def clip_cost(
    name: str,
    stream: str,
    normalisation: Normalisation,
    clip: tuple[int, int, int],
    *,
    variant: str | None = None,
    layer: str | None = None,
    pool: str = "avg",
    is_dense: bool = False,
) -> ClipCost:
    """Count what a clip takes.

    Args:
        name: of the backbone.
        stream: "rgb" or "flow".
        normalisation: of the input.
        clip: (T, H, W).
        variant: one of the backbone's; None for the plain form.
        layer: the features' one, of those of the backbone; None for the vector that feeds the classifier.
        pool: see `model.POOLS`.
        is_dense: for each step in time of the clip, see `ClipModel`.
    """
    backbone, found = BACKBONES[name], find_variant(name, variant)
    dtype = torch.uint8 if stream == "rgb" else torch.float32
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net = backbone.build(stream, _NUM_CLASSES, **(backbone.variants[found] if found else {})).eval()
        tap = None if layer is None else LayerTap(net, backbone.layers[layer], pool)
        model = ClipModel(net, Normalise(normalisation), tap, is_dense)
        features = model(torch.empty((1, *clip, IN_CHANNELS[stream]), dtype=dtype)).features
    shape = tuple(features.shape[1:-1] if is_dense else features.shape[1:])
    return ClipCost(shape, counter.get_total_flops() // 2)
