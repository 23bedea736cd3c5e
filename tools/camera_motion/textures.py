"""Procedural images for the virtual world: families of texture, drawn at any size from a seeded generator.

    random_texture(rng, height, width)  →  (height, width, 3) uint8
    random_mask(rng, height, width)     →  (height, width) uint8, 0 or 255: the outline of an object

Equal seeds give equal images.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def fractal_noise(rng: np.random.Generator, height: int, width: int, roughness: float) -> NDArray[np.float32]:
    """Return noise of several octaves, a (height, width) field in [0, 1].

    Args:
        rng: source of randomness.
        height: pixels.
        width: pixels.
        roughness: how much weaker each finer octave is, 0 (one smooth hill) to 1 (as strong).
    """
    total = np.zeros((height, width), np.float32)
    weight, cells = 1.0, int(rng.integers(2, 5))
    while cells < min(height, width) // 2 and weight > 0.02:
        grid = rng.random((cells + 1, cells * width // height + 1), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * roughness, cells * 2
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _random_colour(rng: np.random.Generator) -> NDArray[np.float32]:
    grey = rng.uniform(10, 245)
    return np.clip(grey + rng.normal(0, rng.choice([5.0, 25.0, 60.0]), 3), 0, 255).astype(np.float32)


def _colour_between(rng: np.random.Generator, share: NDArray[np.float32]) -> Picture:
    """Return a field in [0, 1] painted with a ramp through three colours."""
    ramp = np.stack([_random_colour(rng) for _ in range(3)])
    levels = np.linspace(0, 2, 256)
    below = np.minimum(levels.astype(int), 1)
    table = ramp[below] + (levels - below)[:, None] * (ramp[below + 1] - ramp[below])
    index = np.clip(share * 255, 0, 255).astype(np.uint8)
    return table.astype(np.uint8)[index]


def clouds(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return fractal noise: walls, sky, grass, gravel."""
    return _colour_between(rng, fractal_noise(rng, height, width, rng.uniform(0.35, 0.95)))


def smooth(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return low texture: a plain surface with a soft gradient and few faint marks."""
    share = fractal_noise(rng, height, width, rng.uniform(0.1, 0.4))
    picture = _colour_between(rng, 0.5 + rng.uniform(0.15, 0.5) * (share - 0.5))
    for _ in range(int(rng.integers(2, 9))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        radius = int(rng.integers(2, max(3, height // 12)))
        shade = picture[min(centre[1], height - 1), centre[0]] + rng.normal(0, 35, 3)
        cv2.circle(picture, centre, radius, np.clip(shade, 0, 255).tolist(), -1, cv2.LINE_AA)
    return picture


def voronoi(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return patches around random points, each in its own colour: stones, fields, panes."""
    num_points = int(rng.integers(12, 250))
    seeds = np.full((height, width), 255, np.uint8)
    seeds[rng.integers(0, height, num_points), rng.integers(0, width, num_points)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5)
    base, spread = _random_colour(rng), rng.uniform(10, 60)
    palette = np.clip(base + rng.normal(0, spread, (labels.max() + 1, 3)), 0, 255).astype(np.float32)
    picture = palette[labels] - rng.uniform(0, 1) * np.minimum(distance, 40)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def stripes(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return bricks, boards or tiles: a grid of slightly bent lines."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 60)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = 25 * fractal_noise(rng, height, width, 0.4)
    along = (x * np.cos(angle) + y * np.sin(angle) + bend) / period
    across = (y * np.cos(angle) - x * np.sin(angle) + bend) / (period * rng.uniform(1, 3))
    across = across + 0.5 * (np.floor(along) % 2)  # every other row is shifted, as bricks are
    joint = rng.uniform(0.03, 0.3)
    share = ((along % 1 > joint) & (across % 1 > joint)).astype(np.float32)
    tone = np.sin(np.floor(along) * 12.9 + np.floor(across) * 78.2) * 0.5 + 0.5  # a tone for each brick
    share = 0.15 + share * (0.35 + 0.3 * tone)
    return _colour_between(rng, np.clip(share + 0.2 * fractal_noise(rng, height, width, 0.8), 0, 1).astype(np.float32))


def strokes(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return writing and thin lines on a page."""
    picture = smooth(rng, height, width)
    letters = "abcdefghikmnoprstuvwxyzABCDEFGHKLMNRST0123456789"
    for _ in range(int(rng.integers(8, 60))):
        colour = _random_colour(rng).tolist()
        x, y = int(rng.integers(-20, width)), int(rng.integers(0, height))
        text = "".join(rng.choice(list(letters), int(rng.integers(2, 10))))
        size, weight = rng.uniform(0.3, 2.0), int(rng.integers(1, 4))
        if rng.random() < 0.7:
            cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, weight, cv2.LINE_AA)
        else:
            steps = rng.normal(0, 25, (8, 2)).cumsum(0) + np.array([x, y])
            cv2.polylines(picture, [steps.astype(np.int32)], False, colour, weight, cv2.LINE_AA)
    return picture


def dead_leaves(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return shapes that hide one another, few large and many small, as in natural images."""
    picture = clouds(rng, height, width)
    smallest, largest = 3.0, height * rng.uniform(0.15, 0.5)
    for _ in range(int(rng.integers(60, 300))):
        # the density of sizes falls with the third power, as in Lee, Mumford & Huang 2001
        size = smallest / np.sqrt(1 - rng.random() * (1 - (smallest / largest) ** 2))
        size = max(size, largest * rng.random() ** 4)
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        _draw_shape(rng, picture, centre, float(size))
    shade = 0.6 + 0.4 * fractal_noise(rng, height, width, 0.7)
    return (picture * shade[..., None]).astype(np.uint8)


def _draw_shape(rng: np.random.Generator, picture: Picture, centre: tuple[int, int], size: float) -> None:
    colour, kind = _random_colour(rng).tolist(), rng.integers(0, 3)
    if kind == 0:
        axes = (max(1, int(size)), max(1, int(size * rng.uniform(0.3, 1))))
        cv2.ellipse(picture, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    else:
        num_corners = 4 if kind == 1 else int(rng.integers(3, 8))
        angles = np.sort(rng.uniform(0, 2 * np.pi, num_corners)) if kind == 2 else np.arange(4) * np.pi / 2 + 0.7
        corners = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.4, 1.2)], 1) * size + centre
        cv2.fillPoly(picture, [corners.astype(np.int32)], colour, cv2.LINE_AA)


def room(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return large plain areas with straight edges (wall, floor, furniture) and detail in few places."""
    picture = smooth(rng, height, width)
    edge = int(height * rng.uniform(0.4, 0.8))
    picture[edge:] = smooth(rng, height, width)[edge:]
    for _ in range(int(rng.integers(4, 16))):
        h, w = (max(2, int(rng.uniform(0.05, 0.4) * min(height, width))) for _ in range(2))
        top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        patch = rng.choice([smooth, clouds, strokes, stripes])(rng, max(h, 24), max(w, 24))  # type: ignore[arg-type]
        picture[top : top + h, left : left + w] = patch[:h, :w]
    return picture


FAMILIES: dict[str, tuple[Callable[[np.random.Generator, int, int], Picture], float]] = {
    "clouds": (clouds, 0.15),
    "smooth": (smooth, 0.1),
    "voronoi": (voronoi, 0.1),
    "stripes": (stripes, 0.1),
    "strokes": (strokes, 0.1),
    "dead leaves": (dead_leaves, 0.25),
    "room": (room, 0.2),
}
"""Every family, with the probability that it is drawn."""


def random_texture(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return an image of a random family, or of two side by side, with random contrast and brightness."""
    families = [function for function, _ in FAMILIES.values()]
    weights = [weight for _, weight in FAMILIES.values()]
    picture = families[rng.choice(len(families), p=weights)](rng, height, width)
    if rng.random() < 0.25:
        other = families[rng.choice(len(families), p=weights)](rng, height, width)
        cv2.copyTo(other, _threshold(fractal_noise(rng, height, width, 0.5), 0.5), picture)
    deviation, brightness = np.exp(rng.uniform(np.log(12), np.log(70))), rng.uniform(50, 180)
    contrast = min(deviation / max(float(picture.std()), 1.0), 3.0)
    levels = np.clip((np.arange(256) - picture.mean()) * contrast + brightness, 0, 255).astype(np.uint8)
    picture = cv2.LUT(picture, levels)
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 2.5))
    return np.asarray(picture, np.uint8)


def _threshold(field: NDArray[np.float32], level: float) -> Picture:
    return np.where(field > level, 255, 0).astype(np.uint8)


def random_mask(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return the outline of an object that fills most of the image: a body of ellipses and limbs, 0 or 255."""
    mask = np.zeros((height, width), np.uint8)
    centre = np.array([width / 2, height / 2])
    size = np.array([width, height])
    body = (centre + rng.normal(0, 0.04, 2) * size).astype(int).tolist()
    axes = (size * rng.uniform(0.2, 0.42, 2)).astype(int).tolist()
    cv2.ellipse(mask, body, axes, 0, 0, 360, 255, -1)
    for _ in range(int(rng.integers(0, 5))):
        end = (centre + rng.uniform(-0.45, 0.45, 2) * size).astype(int).tolist()
        cv2.line(mask, body, end, 255, max(2, int(min(height, width) * rng.uniform(0.06, 0.2))))
    return mask


def random_cover(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Return the foreground of a wide scene: scattered patches, 5 to 35 % of the area, 0 or 255."""
    field = fractal_noise(rng, height, width, rng.uniform(0.3, 0.7))
    level = float(np.quantile(field[::4, ::4], 1 - rng.uniform(0.05, 0.35)))
    return _threshold(field, level)
