"""What the backbones share: the shape of their answer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BackboneOutput(NamedTuple):
    """What every backbone returns for clips (N, C, T, H, W)."""

    features: Tensor
    """(N, D): the pooled vector that feeds the classifier."""
    logits: Tensor
    """(N, K): class scores before softmax."""
