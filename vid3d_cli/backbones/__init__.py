"""The networks, one file each, and the registry of their names.

A network is an nn.Module that maps normalised clips (N, C, T, H, W) to a `BackboneOutput`.
"""

from __future__ import annotations

from . import i3d, s3d
from ._layers import Backbone, BackboneOutput, KeyRules

BACKBONES: dict[str, Backbone] = {**i3d.BACKBONES, **s3d.BACKBONES}

__all__ = ["BACKBONES", "Backbone", "BackboneOutput", "KeyRules"]
