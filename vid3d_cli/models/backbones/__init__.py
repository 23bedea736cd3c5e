"""The networks, one file each; `models.registry` names them.

A network is an nn.Module, made of (in_channels, num_classes), that maps normalised clips (N, C, T, H, W) to a
`BackboneOutput`.
"""

from ._layers import BackboneOutput, Stepwise, TemporalPart

__all__ = ["BackboneOutput", "Stepwise", "TemporalPart"]
