"""Renders a video with known camera motions, for `vid3d demo`: noise, shapes and a virtual camera."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .writer import write_video

FPS = 25
WIDTH_PX, HEIGHT_PX = 320, 240
MOTION_SECONDS = 2.56

MOTIONS = ("static", "pan-right", "tilt-up", "zoom-in", "roll-clockwise", "shake", "pan-left", "zoom-out")
"""What the camera does in the demo, in this order. In pan-right, the camera moves right and the image left."""

PAN_PX, TILT_PX, ZOOM, ROLL_DEGREES, SHAKE_PX = 1.6, 1.4, 1.007, 0.6, 3.0
"""Per frame, at the size of the video."""


@dataclass(frozen=True)
class Motion:
    """A camera motion of the video."""

    label: str
    start_seconds: float
    end_seconds: float


@dataclass
class _Camera:
    """The virtual camera: centre of its view in the scene, magnification, roll."""

    x_px: float
    y_px: float
    zoom: float = 1.0
    clockwise_degrees: float = 0.0

    def move(self, motion: str) -> None:
        """Move by one frame, along the camera's own axes."""
        right = {"pan-right": PAN_PX, "pan-left": -PAN_PX}.get(motion, 0.0) / self.zoom
        down = {"tilt-down": TILT_PX, "tilt-up": -TILT_PX}.get(motion, 0.0) / self.zoom
        angle = np.deg2rad(self.clockwise_degrees)
        self.x_px += right * np.cos(angle) - down * np.sin(angle)
        self.y_px += right * np.sin(angle) + down * np.cos(angle)
        self.zoom *= {"zoom-in": ZOOM, "zoom-out": 1 / ZOOM}.get(motion, 1.0)
        turn = {"roll-clockwise": ROLL_DEGREES, "roll-counterclockwise": -ROLL_DEGREES}
        self.clockwise_degrees += turn.get(motion, 0.0)

    def view(self, scene: NDArray[np.uint8], jitter_px: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return what the camera sees, (H, W, 3); the scene turns the other way."""
        angle = np.deg2rad(self.clockwise_degrees)
        turn = self.zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = np.array([self.x_px, self.y_px]) + jitter_px
        shift = np.array([WIDTH_PX, HEIGHT_PX]) / 2 - turn @ centre
        matrix = np.column_stack([turn, shift])
        seen = cv2.warpAffine(scene, matrix, (WIDTH_PX, HEIGHT_PX), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(seen, np.uint8)


def render(
    path: Path, seed: int = 0, motions: Sequence[str] = MOTIONS, motion_seconds: float = MOTION_SECONDS
) -> list[Motion]:
    """Write the video.

    Args:
        path: .mp4, or another suffix of `writer.VIDEO_CODECS`.
        seed: random seed of the scene and the shake.
        motions: what the camera does, of the labels of `s3d_mini.camera_motion`.
        motion_seconds: how long each motion takes; rounded to frames of 1/25 s.

    Returns:
        The true camera motions, in the order of time.
    """
    num_frames = round(motion_seconds * FPS)  # of each motion
    write_video(path, _frames(np.random.default_rng(seed), motions, num_frames), fps=Fraction(FPS))
    bounds = [i * num_frames / FPS for i in range(len(motions) + 1)]
    return [Motion(label, bounds[i], bounds[i + 1]) for i, label in enumerate(motions)]


def _frames(rng: np.random.Generator, motions: Sequence[str], num_frames: int) -> Iterator[NDArray[np.uint8]]:
    scene = _make_scene(rng)
    camera = _Camera(scene.shape[1] / 2, scene.shape[0] / 2)
    for motion in motions:
        for _ in range(num_frames):
            jitter_px = rng.normal(0, SHAKE_PX, 2) if motion == "shake" else np.zeros(2)
            yield camera.view(scene, jitter_px)
            camera.move(motion)


def _make_scene(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return noise at several scales, grey with a little colour, with discs and boxes on it."""
    height, width = 3 * HEIGHT_PX, 3 * WIDTH_PX
    scene = np.full((height, width, 3), 128.0, np.float32)
    for cell_px, strength in ((160, 50), (40, 30), (10, 20), (3, 12)):
        cells = (height // cell_px + 2, width // cell_px + 2)
        noise = rng.normal(0, strength, (*cells, 1)) + rng.normal(0, strength / 3, (*cells, 3))
        scene += cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    image = scene.clip(0, 255).astype(np.uint8)
    for _ in range(90):
        x, y, size = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(6, 40))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.circle(image, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, (x, y), (x + size, y + int(rng.integers(6, 40))), colour, -1)
    return image
