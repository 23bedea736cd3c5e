"""Frames that move by a known amount, and the distance between flow fields."""

from pathlib import Path

import cv2
import numpy as np

DATA = Path(__file__).parent / "data"
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "flow"


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random image with full contrast."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def shifted_pair(dx: int, dy: int, height: int = 80, width: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two frames whose content moves by dx to the right and dy down."""
    big = texture(height + 40, width + 40, seed)
    return big[20 : 20 + height, 20 : 20 + width], big[20 - dy : 20 - dy + height, 20 - dx : 20 - dx + width]


def different_pairs(num_pairs, height=24, width=37):
    """Pairs that come to rest after different numbers of iterations, one of them at once."""
    pairs = [shifted_pair(i % 4, -(i % 3), height, width, seed=i) for i in range(num_pairs)]
    return tuple(np.stack(frames) for frames in zip(*pairs, strict=True))


def mean_end_point_error(flow: np.ndarray, reference: np.ndarray) -> float:
    """The mean distance between the vectors of two fields, in pixels."""
    return float(np.linalg.norm(np.asarray(flow, np.float64) - reference, axis=-1).mean())


def recorded_pair():
    """A crop of a real video, and what OpenCV 5.0.0 (contrib) computed for it."""
    with np.load(DATA / "tvl1_pair.npz") as arrays:
        return arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)
