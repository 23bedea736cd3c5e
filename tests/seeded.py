"""Checkpoints and inputs that are drawn from seeds, and what the original network answered for them.

`data/<case>.npz` hold "case" (JSON: backbone, stream, layout, seeds, input shape, published tensor names and their
shapes), "features" and "logits". Every tensor has a generator of its own, seeded by the case and the CRC-32 of its
name, so that neither the order nor the choice of tensors matters.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def case_names():
    """All cases, by the names of their files."""
    return sorted(path.stem for path in DATA.glob("*.npz") if "case" in np.load(path).files)


class SeededCase:
    """One case; its tensors are drawn when they are asked for."""

    def __init__(self, name):
        with np.load(DATA / f"{name}.npz") as stored:
            self.facts = json.loads(str(stored["case"]))
            self.features, self.logits = stored.get("features"), stored["logits"]

    def state_dict(self):
        """Published tensor name → array."""
        return {name: draw(name, shape, self.facts["weight_seed"]) for name, shape in self.facts["shapes"].items()}

    def clips(self):
        """(N, C, T, H, W) float32 in [-1, 1)."""
        generator = np.random.default_rng([self.facts["input_seed"], 7])
        return generator.uniform(-1, 1, self.facts["input_shape"]).astype(np.float32)


def draw(name, shape, seed):
    """One tensor: He-scaled kernels, scales and variances around 1, small offsets."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = 0.1 if len(shape) < 2 else math.sqrt(2 / math.prod(shape[1:]))
    return (scale * generator.standard_normal(shape)).astype(np.float32)
