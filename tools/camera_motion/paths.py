"""Paths of the virtual camera, one kind per class of camera motion.

Lengths are pixels of an image whose short side is 240 (320×240); `CameraPath.scaled` converts them to another size.
Classes are named by the motion of the camera, so the content moves the other way:

    pan-right       content moves left          zoom-in         content grows
    tilt-up         content moves down          roll-clockwise  content turns counter-clockwise
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CLASSES = (
    "static",
    "pan-left",
    "pan-right",
    "tilt-up",
    "tilt-down",
    "zoom-in",
    "zoom-out",
    "roll-clockwise",
    "roll-counterclockwise",
    "shake",
)
"""In the order of the logits."""

SHORT_SIDE_PX = 240
"""Of the picture that lengths refer to."""

REFERENCE_FPS = 25
"""Speeds below are given per frame at this rate."""

PAN_PX_PER_FRAME = (0.4, 6.0)
ZOOM_PER_FRAME = (0.0025, 0.015)
ROLL_DEGREES_PER_FRAME = (0.22, 2.2)
SHAKE_RMS_PX = (1.1, 5.0)

LEVER_PX = 80
"""How far from the centre a turn or zoom is compared with a shift: half way to the corner."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class CameraPath:
    """The camera at every frame."""

    x_px: Values
    """(T,) how far right of the start the camera looks."""
    y_px: Values
    """(T,) how far below the start the camera looks."""
    log_zoom: Values
    """(T,) logarithm of the magnification."""
    roll_radians: Values
    """(T,) how far the camera is turned clockwise."""

    def __len__(self) -> int:
        return len(self.x_px)

    def scaled(self, short_side_px: int) -> CameraPath:
        """Return the same path over an image of another size."""
        factor = short_side_px / SHORT_SIDE_PX
        return replace(self, x_px=self.x_px * factor, y_px=self.y_px * factor)

    def to_world(self, t: int, height: int, width: int, *, depth: float = 1.0, dolly: float = 1.0) -> Values:
        """Return the affine map from the image's pixels to the world's.

        Args:
            t: index of the frame.
            height: of the picture in pixels.
            width: of the picture in pixels.
            depth: how much faster than the background this layer shifts.
            dolly: how much faster than the background this layer grows, as an exponent.

        Returns:
            (2, 3); the world's origin is where the camera looks at the start.
        """
        zoom, angle = np.exp(self.log_zoom[t] * dolly), self.roll_radians[t]
        # The content turns counter-clockwise by the angle, so the picture's axes turn clockwise in the world.
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        shift = np.array([self.x_px[t], self.y_px[t]]) * depth - turn @ centre
        return np.hstack([turn, shift[:, None]])


def still_path(num_frames: int) -> CameraPath:
    """Return the path of a camera that does not move."""
    return CameraPath(*(np.zeros(num_frames) for _ in range(4)))


def steady_path(label: str, num_frames: int, *, speed: float, fps: float = REFERENCE_FPS) -> CameraPath:
    """Return the path of a camera that moves at one speed.

    Args:
        label: a class other than "shake".
        num_frames: T.
        speed: per frame at 25 fps: pixels at short side 240, degrees of roll, or the zoom's factor minus 1.
        fps: frames per second of the path.
    """
    progress = np.arange(num_frames) * (REFERENCE_FPS / fps)
    return _along(label, speed * progress)


def shaking_path(
    rng: np.random.Generator, times_seconds: Values, *, rms_px: float, roll_rms_degrees: float = 0.0, kind: str = "any"
) -> CameraPath:
    """Return the path of a hand-held camera: jitter around one place.

    Args:
        rng: source of randomness.
        times_seconds: (T,) of the frames.
        rms_px: root mean square of the distance from the mean place, per axis.
        roll_rms_degrees: the same of the turn.
        kind: "white" (independent in every frame), "hand" (sines of 2 to 8 Hz), "walk" (a walk that returns), or "any".
    """
    if kind == "any":
        kind = str(rng.choice(["white", "hand", "walk"]))
    axes = np.stack([_jitter(rng, times_seconds, kind) for _ in range(3)])
    balance = rng.uniform(0.45, 1.0, 2)
    x, y = axes[:2] * (rms_px * balance / balance.max())[:, None]
    return CameraPath(x, y, np.zeros_like(x), axes[2] * np.radians(roll_rms_degrees))


def _jitter(rng: np.random.Generator, times: Values, kind: str) -> Values:
    """Return a (T,) signal with zero mean and unit root mean square."""
    if kind == "hand":
        frequencies, phases = rng.uniform(2.0, 8.0, 4), rng.uniform(0, 2 * np.pi, 4)
        signal = np.sin(2 * np.pi * frequencies * times[:, None] + phases) @ rng.uniform(0.3, 1, 4)
    elif kind == "walk":
        keep = np.exp(-np.diff(times, prepend=times[0]) / rng.uniform(0.03, 0.15))
        signal = np.zeros(len(times))
        for t in range(1, len(times)):
            signal[t] = keep[t] * signal[t - 1] + np.sqrt(1 - keep[t] ** 2) * rng.normal()
    else:
        signal = rng.normal(size=len(times)) if rng.random() < 0.5 else rng.uniform(-1, 1, len(times))
    signal = signal - signal.mean()
    return signal / max(float(np.sqrt(np.mean(signal**2))), 1e-6)


def random_path(rng: np.random.Generator, label: str, times_seconds: Values) -> CameraPath:
    """A path of a class as a person might move: speed that varies, a little drift beside the main motion, some jitter.

    Args:
        rng: source of randomness.
        label: one of `CLASSES`.
        times_seconds: (T,) of the frames, from 0.
    """
    if label == "shake":
        roll = rng.uniform(0, 0.6) if rng.random() < 0.4 else 0.0
        return shaking_path(rng, times_seconds, rms_px=_log_uniform(rng, *SHAKE_RMS_PX), roll_rms_degrees=roll)
    if label == "static":
        return _random_still(rng, times_seconds)
    progress = REFERENCE_FPS * _varying_progress(rng, times_seconds)
    speed, shift_speed = _random_speed(rng, label)
    path = _along(label, speed * progress)
    drift = rng.uniform(-1, 1, 2) * _drift_share(rng, label) * shift_speed
    if label.startswith("pan"):
        drift[0] = 0
    elif label.startswith("tilt"):
        drift[1] = 0
    side = _along("roll-clockwise", progress * rng.normal(0, 0.05) * np.degrees(shift_speed / LEVER_PX))
    path = _add(path, CameraPath(drift[0] * progress, drift[1] * progress, 0 * progress, side.roll_radians))
    if rng.random() < 0.6:
        rms_px = min(rng.uniform(0, 0.6), 0.6 * shift_speed)
        path = _add(path, shaking_path(rng, times_seconds, rms_px=rms_px, roll_rms_degrees=0.1 * rng.random()))
    return path


def _random_still(rng: np.random.Generator, times_seconds: Values) -> CameraPath:
    path = still_path(len(times_seconds))
    if rng.random() < 0.5:
        path = shaking_path(rng, times_seconds, rms_px=rng.uniform(0, 0.35), roll_rms_degrees=0.03)
    if rng.random() < 0.3:
        x, y = REFERENCE_FPS * rng.uniform(-0.06, 0.06, 2)[:, None] * times_seconds
        path = _add(path, replace(still_path(len(x)), x_px=x, y_px=y))
    return path


def _random_speed(rng: np.random.Generator, label: str) -> tuple[float, float]:
    """A class's speed in its own unit per reference frame, and the shift at the lever that it amounts to, in pixels."""
    if label.startswith("zoom"):
        speed = _log_uniform(rng, *ZOOM_PER_FRAME)
        return speed, speed * LEVER_PX
    if label.startswith("roll"):
        speed = _log_uniform(rng, *ROLL_DEGREES_PER_FRAME)
        return speed, float(np.radians(speed)) * LEVER_PX
    speed = _log_uniform(rng, *PAN_PX_PER_FRAME)
    return speed, speed


def _drift_share(rng: np.random.Generator, label: str) -> float:
    """How strong a shift may be beside the main motion; of zoom and roll it moves the centre by as many levers."""
    if rng.random() < 0.4:
        return 0.0
    return 0.25 if label.startswith(("pan", "tilt")) else 0.5


def _varying_progress(rng: np.random.Generator, times: Values) -> Values:
    """Seconds of motion done at every frame: the speed swings by up to a half, or rises or falls."""
    kind = rng.integers(0, 3)
    span = max(float(times[-1]), 1e-3)
    if kind == 0:
        speed = np.ones(len(times))
    elif kind == 1:
        depth = rng.uniform(0.1, 0.5)
        speed = 1 + depth * np.sin(2 * np.pi * times * rng.uniform(0.2, 1.0) + rng.uniform(0, 2 * np.pi))
    else:
        speed = 1 + rng.uniform(-0.6, 0.6) * (times / span - 0.5) * 2
    return np.concatenate([[0], np.cumsum(np.diff(times) * (speed[1:] + speed[:-1]) / 2)])


def _along(label: str, amount: Values) -> CameraPath:
    """The path that has done so much of a class's motion: pixels, degrees, or logarithms of zoom."""
    zero = np.zeros_like(amount)
    paths = {
        "static": CameraPath(zero, zero, zero, zero),
        "pan-left": CameraPath(-amount, zero, zero, zero),
        "pan-right": CameraPath(amount, zero, zero, zero),
        "tilt-up": CameraPath(zero, -amount, zero, zero),
        "tilt-down": CameraPath(zero, amount, zero, zero),
        "zoom-in": CameraPath(zero, zero, amount, zero),
        "zoom-out": CameraPath(zero, zero, -amount, zero),
        "roll-clockwise": CameraPath(zero, zero, zero, np.radians(amount)),
        "roll-counterclockwise": CameraPath(zero, zero, zero, -np.radians(amount)),
    }
    return paths[label]


def _add(first: CameraPath, second: CameraPath) -> CameraPath:
    return CameraPath(
        first.x_px + second.x_px,
        first.y_px + second.y_px,
        first.log_zoom + second.log_zoom,
        first.roll_radians + second.roll_radians,
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
