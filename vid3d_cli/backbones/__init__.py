"""The networks, one file each, and the registry of their names.

A network is an nn.Module that maps normalised clips (N, C, T, H, W) to a `BackboneOutput`.
"""

from __future__ import annotations

from . import c3d, fstcn, i3d, ltc, p3d, resnet3d, s3d, s3d_g, slowfast, two_stream
from ._layers import Backbone, BackboneOutput, KeyRules, TemporalPart

BACKBONES: dict[str, Backbone] = {
    **i3d.BACKBONES,
    **s3d.BACKBONES,
    **s3d_g.BACKBONES,
    **p3d.BACKBONES,
    **resnet3d.BACKBONES,
    **c3d.BACKBONES,
    **ltc.BACKBONES,
    **fstcn.BACKBONES,
    **slowfast.BACKBONES,
    **two_stream.BACKBONES,
}

__all__ = ["BACKBONES", "Backbone", "BackboneOutput", "KeyRules", "TemporalPart"]
