"""The networks, one file each; `models.registry` names them.

A network is an nn.Module, made of (in_channels, num_classes), that maps normalised clips (N, C, T, H, W) to a
`BackboneOutput`.

Its convolutions may have weights in bfloat16 or float16, and clips and maps of that type: `ClipModel.reduce_precision`.
Fully connected layers and the classifier keep float32 weights, so the forward pass converts what they get, before the
last pool: `maps.float()`. A network with `compares_pixels` subtracts pixels before its first convolution: its clips
are float32, and it converts the difference.
"""

from ._layers import BackboneOutput, Stepwise, TemporalPart

__all__ = ["BackboneOutput", "Stepwise", "TemporalPart"]
