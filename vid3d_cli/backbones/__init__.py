"""The networks, one file each.

A backbone module offers `build(stream, num_classes)`, which returns an nn.Module that maps normalised clips
(N, C, T, H, W) to a `BackboneOutput`; `CLASSIFIER`, the name of the last layer's weight, whose first axis is the number
of classes; and `KEY_LAYOUTS`, the published names of its tensors.
"""

from __future__ import annotations

from types import ModuleType

from . import i3d
from ._layers import BackboneOutput

__all__ = ["BACKBONES", "BackboneOutput"]

BACKBONES: dict[str, ModuleType] = {"i3d": i3d}
