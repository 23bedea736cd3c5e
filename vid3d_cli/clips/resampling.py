"""Antialiased bilinear resampling of uint8 pictures, by torch: PIL's filter, in a fifth of its time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def resample(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize a picture with a triangle filter, which is widened on shrinking.

    It is what torchvision's v2 `resize` makes of a tensor. Its weights have 15 bits and PIL's 22, so of a thousand
    values about two differ from PIL's, by 1; so do machines with AVX2 from others.

    Args:
        rgb: (H, W, 3).
        height: of the result.
        width: of the result.

    Returns:
        (height, width, 3) uint8.
    """
    # In this order the strides say "channels last", for which there is a kernel that reads pixels as they lie.
    pictures = torch.from_numpy(np.require(rgb, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)
    with torch.inference_mode():
        resized = F.interpolate(pictures, size=(height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
