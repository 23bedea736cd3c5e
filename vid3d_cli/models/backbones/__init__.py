"""The networks, one file each, and the registry of their names.

A network is an nn.Module that maps normalised clips (N, C, T, H, W) to a `BackboneOutput`.
"""

from __future__ import annotations

from ...errors import UsageError
from . import c3d, fstcn, i3d, ltc, p3d, resnet3d, s3d, s3d_g, slowfast, two_stream
from ._layers import Backbone, BackboneOutput, KeyRules, Stepwise, TemporalPart

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

DEFAULT_VARIANT = "default"
"""What the plain form of every backbone is called."""


def find_variant(name: str, variant: str | None) -> str | None:
    """The variant of that name of the backbone `name`; None for the plain form.

    Raises:
        UsageError: it has no such variant.
    """
    variants = BACKBONES[name].variants
    if variant is None or variant == DEFAULT_VARIANT:
        return None
    if variant not in variants:
        raise UsageError(f"{name} has no variant '{variant}': choose one of {', '.join([DEFAULT_VARIANT, *variants])}")
    return variant


__all__ = [
    "BACKBONES",
    "DEFAULT_VARIANT",
    "Backbone",
    "BackboneOutput",
    "KeyRules",
    "Stepwise",
    "TemporalPart",
    "find_variant",
]
