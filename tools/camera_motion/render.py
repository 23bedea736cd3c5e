"""Renders the virtual world and its camera: layers of texture, moving objects, light, lens, sensor and codec.

    render_clip(index, seed=0)           →  SyntheticClip: frames (T, H, W, 3) uint8, label, when they appear
    apply_camera(picture, path, h, w)    →  frames of a real image, or of real frames, through a virtual camera
    write_video(path, frames, fps=25)    →  the frames as a file, through PyAV

The seed and the index alone determine a clip.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from vid3d_cli.video.reader import VideoReader

from .paths import CLASSES, SHORT_SIDE_PX, CameraPath, Values, random_path, shaking_path
from .textures import Picture, random_cover, random_mask, random_texture

Frames = NDArray[np.uint8]

TICK_FPS = Fraction(25, 2)
"""Frame rate that the network sees; a clip that is not encoded is rendered at these times only."""

NUM_TICKS = 17
"""16 frames of a clip, and one more for the flow of the last."""

SIZES = ((240, 320), (256, 340), (240, 426), (180, 240), (426, 240), (256, 256), (160, 284), (360, 640))
"""(height, width) in pixels, ..."""
SIZE_WEIGHTS = (0.3, 0.15, 0.15, 0.12, 0.1, 0.06, 0.07, 0.05)
"""... and the probability of each."""

FRAME_RATES = (15, 19.62, 24, 25, 29.97, 30, 50, 60)
RATE_WEIGHTS = (0.05, 0.05, 0.15, 0.3, 0.1, 0.2, 0.1, 0.05)

ENCODED_SHARE = 0.3
CODECS = ("libx264", "mpeg4")


@dataclass(frozen=True)
class SyntheticClip:
    """A rendered clip."""

    frames: Frames
    """(NUM_TICKS, H, W, 3), RGB, at `TICK_FPS`."""
    label: str
    """Class of the camera motion."""
    path: CameraPath
    """The camera at every rendered frame (all frames of the file, if the clip was encoded)."""
    encoded: bool
    """Whether the frames have been through a codec."""


@dataclass(frozen=True)
class _Layer:
    """A plane of the world."""

    texture: Picture
    mask: Picture | None
    """Where the plane is opaque; None: everywhere."""
    density: float
    """Texture pixels per world pixel."""
    depth: float
    """See `CameraPath.to_world`."""
    dolly: float

    def draw(self, picture: Picture, path: CameraPath, t: int) -> Picture:
        """Return the image with this layer in front of it."""
        height, width = picture.shape[:2]
        to_texture = path.to_world(t, height, width, depth=self.depth, dolly=self.dolly) * self.density
        to_texture[:, 2] += np.array(self.texture.shape[1::-1]) / 2
        return _warp_onto(picture, self.texture, self.mask, to_texture, cv2.BORDER_REFLECT_101)


@dataclass(frozen=True)
class _Thing:
    """An object that moves by itself."""

    texture: Picture
    mask: Picture
    places: NDArray[np.float64]
    """(T, 2) x and y of its centre, in world pixels, or image pixels if it is followed."""
    scales: Values
    """(T,) image pixels per texture pixel."""
    angles: Values
    """(T,) radians."""
    is_followed: bool
    """Whether the camera follows it; then it moves in image coordinates."""

    def draw(self, picture: Picture, path: CameraPath, t: int) -> Picture:
        """Return the image with this object in front of it."""
        height, width = picture.shape[:2]
        cos, sin = np.cos(self.angles[t]) / self.scales[t], np.sin(self.angles[t]) / self.scales[t]
        turn = np.array([[cos, -sin], [sin, cos]])
        centre = np.array(self.texture.shape[1::-1]) / 2
        from_world = np.hstack([turn, (centre - turn @ self.places[t])[:, None]])
        if self.is_followed:
            return _warp_onto(picture, self.texture, self.mask, from_world, cv2.BORDER_CONSTANT)
        to_world = np.vstack([path.to_world(t, height, width), [0, 0, 1]])
        return _warp_onto(picture, self.texture, self.mask, from_world @ to_world, cv2.BORDER_CONSTANT)


@dataclass(frozen=True)
class _Look:
    """The effects of light, lens and sensor on the frames."""

    gains: Values
    """(T,) brightness of the scene."""
    offsets: Values
    """(T,) added grey levels."""
    gamma: float
    shade: Picture | None
    """(H, W, 3) vignette, fixed to the lens; 255 passes all."""
    spot: NDArray[np.float32] | None
    """(T, 2) centre in pixels of a light that moves over the scene."""
    blur_px: float
    noise: NDArray[np.int16] | None
    """(H', W', 3), larger than the image: a part of it is added to each frame."""
    overlay: tuple[Picture, Picture] | None
    """Image and mask of fixed overlays: logo, bars."""
    num_exposures: int
    """Number of moments that a frame averages, as motion blur."""


def render_clip(
    index: int, *, seed: int = 0, label: str | None = None, num_ticks: int = NUM_TICKS, encoded: bool | None = None
) -> SyntheticClip:
    """Return one clip of a random world.

    Args:
        index: number of the clip; every ten in a row hold each class once.
        seed: seed of the clip's set.
        label: one of `CLASSES`; None takes the class of the index.
        num_ticks: frames at `TICK_FPS` to return.
        encoded: whether to pass it through a codec; None decides at random.
    """
    rng = np.random.default_rng([seed, index])
    label = label or CLASSES[index % len(CLASSES)]
    height, width = SIZES[rng.choice(len(SIZES), p=SIZE_WEIGHTS)]
    fps = float(rng.choice(FRAME_RATES, p=RATE_WEIGHTS))
    chance = rng.random() < ENCODED_SHARE
    is_encoded = chance if encoded is None else encoded
    tick_seconds = np.arange(num_ticks) / float(TICK_FPS)
    if is_encoded:
        times = np.arange(int(np.ceil(num_ticks * fps / float(TICK_FPS))) + 1) / fps
    else:  # a tick shows the last frame at its time
        times = np.floor(tick_seconds * fps + 1e-6) / fps
    frames, path = render_world(rng, label, times, height, width)
    if is_encoded:
        frames = _through_codec(rng, frames, fps)[:num_ticks]
    return SyntheticClip(frames, label, path, is_encoded)


def render_world(
    rng: np.random.Generator, label: str, times_seconds: Values, height: int, width: int
) -> tuple[Frames, CameraPath]:
    """Return the frames of a random world at the given times, and the camera's path.

    Args:
        rng: decides everything.
        label: one of `CLASSES`.
        times_seconds: (T,).
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        (T, H, W, 3) uint8 and the path in pixels of this size.
    """
    fine = _exposure_times(times_seconds, num_exposures := 3 if rng.random() < 0.25 else 1)
    path = random_path(rng, label, fine).scaled(min(height, width))
    layers: list[_Layer | _Thing] = list(_random_layers(rng, height, width))
    for _ in range(_num_things(rng, label)):
        layers.append(_random_thing(rng, fine, height, width))
    look = _random_look(rng, times_seconds, height, width, num_exposures)
    frames = np.empty((len(times_seconds), height, width, 3), np.uint8)
    for t in range(len(times_seconds)):
        moments = range(t * num_exposures, (t + 1) * num_exposures)
        frames[t] = _develop(rng, _expose(layers, path, moments, height, width), look, t)
    return frames, path


def _exposure_times(times: Values, num_exposures: int) -> Values:
    """Return moments within each frame's exposure, which lasts half a frame, at most one fiftieth of a second."""
    if num_exposures == 1:
        return times
    exposure_seconds = min(0.02, 0.5 * float(np.diff(times).min()))
    return (times[:, None] + np.linspace(0, exposure_seconds, num_exposures)).ravel()


def _expose(layers: Sequence[_Layer | _Thing], path: CameraPath, moments: range, height: int, width: int) -> Picture:
    pictures = []
    for t in moments:
        picture = np.zeros((height, width, 3), np.uint8)
        for layer in layers:
            picture = layer.draw(picture, path, t)
        pictures.append(picture)
    if len(pictures) == 1:
        return pictures[0]
    return np.mean(pictures, axis=0, dtype=np.float32).astype(np.uint8)


def _warp_onto(picture: Picture, texture: Picture, mask: Picture | None, to_texture: Values, border: int) -> Picture:
    size = (picture.shape[1], picture.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(texture, to_texture, size, flags=flags, borderMode=border)
    if mask is None:
        return np.asarray(warped, np.uint8)
    opaque = cv2.warpAffine(mask, to_texture, size, flags=flags, borderMode=border)
    cv2.copyTo(warped, cv2.threshold(opaque, 127, 255, cv2.THRESH_BINARY)[1], picture)
    return picture


def _random_layers(rng: np.random.Generator, height: int, width: int) -> list[_Layer]:
    density = rng.uniform(0.9, 1.4)
    size = (int(height * 1.5 * density), int(width * 1.5 * density))
    layers = [_Layer(random_texture(rng, *size), None, density, 1.0, 1.0)]
    for _ in range(int(rng.choice(3, p=[0.65, 0.25, 0.1]))):
        depth = layers[-1].depth * rng.uniform(1.1, 1.8)
        dolly = depth if rng.random() < 0.5 else 1.0  # a travelling camera, or a lens that zooms
        layers.append(_Layer(random_texture(rng, *size), random_cover(rng, *size), density, depth, dolly))
    return layers


def _num_things(rng: np.random.Generator, label: str) -> int:
    share = 0.75 if label == "static" else 0.55
    return int(rng.integers(1, 4)) if rng.random() < share else 0


def _random_thing(rng: np.random.Generator, times: Values, height: int, width: int) -> _Thing:
    short = min(height, width)
    tall = max(12, int(short * np.exp(rng.uniform(np.log(0.1), np.log(0.95)))))
    wide = max(12, int(min(tall * rng.uniform(0.3, 1.5), 0.7 * short)))
    is_followed = bool(rng.random() < 0.4)
    start = rng.uniform(-0.45, 0.45, 2) * (width, height)
    if is_followed:
        start = start + np.array([width / 2, height / 2])
    unit = short / SHORT_SIDE_PX
    velocity = rng.normal(0, 1, 2) * rng.choice([0.0, 25.0, 90.0]) * unit  # pixels per second
    sway = shaking_path(rng, times, rms_px=rng.choice([0.3, 2.0, 6.0]) * unit, kind=str(rng.choice(["hand", "walk"])))
    places = start + velocity * (times[:, None] - times.mean()) + np.stack([sway.x_px, sway.y_px], 1)
    growth = rng.normal(0, 0.15) if rng.random() < 0.3 else 0.0
    turn = rng.normal(0, 0.6) if rng.random() < 0.3 else 0.0
    return _Thing(
        texture=random_texture(rng, tall, wide),
        mask=random_mask(rng, tall, wide),
        places=places,
        scales=np.exp(growth * times),
        angles=turn * times + 0.08 * sway.x_px / (short * 0.1),
        is_followed=is_followed,
    )


def _random_look(rng: np.random.Generator, times: Values, height: int, width: int, num_exposures: int) -> _Look:
    gains, offsets = _random_light(rng, times)
    noise_sigma = float(rng.choice([0.0, rng.uniform(1, 5), rng.uniform(5, 14)], p=[0.4, 0.45, 0.15]))
    return _Look(
        gains=gains,
        offsets=offsets,
        gamma=float(np.exp(rng.normal(0, 0.25))),
        shade=_vignette(rng, height, width) if rng.random() < 0.25 else None,
        spot=_moving_spot(rng, times, height, width) if rng.random() < 0.1 else None,
        blur_px=float(rng.uniform(0.5, 2.0)) if rng.random() < 0.25 else 0.0,
        noise=_noise(rng, noise_sigma, height, width) if noise_sigma else None,
        overlay=_overlay(rng, height, width) if rng.random() < 0.12 else None,
        num_exposures=num_exposures,
    )


def _random_light(rng: np.random.Generator, times: Values) -> tuple[Values, Values]:
    gains, offsets = np.ones(len(times)), np.zeros(len(times))
    kind = rng.random()
    if kind < 0.12:  # flicker
        gains += rng.uniform(0.02, 0.12) * rng.normal(size=len(times))
    elif kind < 0.24:  # clouds, automatic exposure
        gains += rng.uniform(0.05, 0.3) * np.sin(2 * np.pi * times * rng.uniform(0.2, 1.5) + rng.uniform(0, 6))
    elif kind < 0.3:  # a lamp is switched
        gains[times > rng.uniform(0.1, 0.9) * times[-1]] *= rng.uniform(0.5, 1.6)
    elif kind < 0.36:  # fade to or from black
        ramp = np.clip(times / times[-1] * rng.uniform(0.4, 1.2) + rng.uniform(0, 0.4), 0.2, 1)
        gains *= ramp if rng.random() < 0.5 else ramp[::-1]
    return gains, offsets + rng.normal(0, 4)


def _vignette(rng: np.random.Generator, height: int, width: int) -> Picture:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot((x - width / 2) / width, (y - height / 2) / height) * 2
    shade = 255 * np.clip(1 - rng.uniform(0.15, 0.6) * distance**2, 0.1, 1)
    return np.repeat(shade.astype(np.uint8)[..., None], 3, axis=2)


def _moving_spot(rng: np.random.Generator, times: Values, height: int, width: int) -> NDArray[np.float32]:
    start, velocity = rng.uniform(0, 1, 2), rng.normal(0, 0.4, 2)
    return ((start + velocity * times[:, None]) * (width, height)).astype(np.float32)


def _noise(rng: np.random.Generator, sigma: float, height: int, width: int) -> NDArray[np.int16]:
    noise = rng.standard_normal((height + 64, width + 64, 3), np.float32) * sigma
    if rng.random() < 0.4:  # as a small sensor's, after its own smoothing
        noise = cv2.GaussianBlur(noise, (0, 0), 1.0) * 2
    return noise.astype(np.int16)


def _overlay(rng: np.random.Generator, height: int, width: int) -> tuple[Picture, Picture]:
    picture, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        bar = int(height * rng.uniform(0.07, 0.16))
        mask[:bar] = mask[-bar:] = 255
    else:
        size = int(min(height, width) * rng.uniform(0.08, 0.2))
        top, left = int(rng.integers(0, height - size)), int(rng.integers(0, width - size))
        picture[top : top + size, left : left + size] = random_texture(rng, 48, 48)[0, 0]
        cv2.putText(picture, "tv", (left, top + size // 2), cv2.FONT_HERSHEY_SIMPLEX, size / 50, (250, 250, 250), 2)
        mask[top : top + size, left : left + size] = 255
    return picture, mask


def _develop(rng: np.random.Generator, picture: Picture, look: _Look, t: int) -> Picture:
    """Return the image after light, lens and sensor."""
    levels = 255 * (np.arange(256) / 255) ** look.gamma * look.gains[t] + look.offsets[t]
    picture = cv2.LUT(picture, np.clip(levels, 0, 255).astype(np.uint8))  # type: ignore[assignment]
    height, width = picture.shape[:2]
    if look.spot is not None:
        y, x = np.ogrid[:height, :width]
        distance = ((x - look.spot[t, 0]) ** 2 + (y - look.spot[t, 1]) ** 2) / (0.25 * height) ** 2
        picture = np.clip(picture * (0.7 + 0.6 * np.exp(-distance))[..., None], 0, 255).astype(np.uint8)
    if look.shade is not None:
        picture = cv2.multiply(picture, look.shade, scale=1 / 255)  # type: ignore[assignment]
    if look.blur_px:
        picture = cv2.GaussianBlur(picture, (0, 0), look.blur_px)  # type: ignore[assignment]
    if look.noise is not None:
        top, left = rng.integers(0, 64, 2)
        grain = look.noise[top : top + height, left : left + width]
        picture = cv2.add(picture, np.ascontiguousarray(grain), dtype=cv2.CV_8U)  # type: ignore[assignment]
    if look.overlay is not None:
        cv2.copyTo(look.overlay[0], look.overlay[1], picture)
    return picture


def apply_camera(pictures: Frames, path: CameraPath, height: int, width: int, *, density: float = 1.0) -> Frames:
    """Return frames of real images through a virtual camera that starts at their centre.

    Args:
        pictures: (H', W', 3), one image, or (T, H', W', 3), running footage; the outside is mirrored.
        path: of T frames, in pixels of the output.
        height: of the output in pixels.
        width: of the output in pixels.
        density: pixels of the given images per pixel of the output, at zoom 1.

    Returns:
        (T, height, width, 3).
    """
    frames = np.empty((len(path), height, width, 3), np.uint8)
    for t in range(len(path)):
        layer = _Layer(pictures if pictures.ndim == 3 else pictures[t % len(pictures)], None, density, 1.0, 1.0)
        frames[t] = layer.draw(frames[t], path, t)
    return frames


def _through_codec(rng: np.random.Generator, frames: Frames, fps: float) -> Frames:
    """Return frames after encoding at a random quality and decoding by vid3d at `TICK_FPS`."""
    codec = CODECS[int(rng.random() < 0.35)]
    quality = int(rng.integers(18, 38)) if codec == "libx264" else int(rng.integers(2, 20))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "clip.mp4"
        write_video(path, frames, fps=fps, codec=codec, quality=quality)
        with VideoReader(str(path), fps=TICK_FPS) as reader:
            return np.stack([frame.rgb for frame in reader])


def write_video(path: Path, frames: Frames, *, fps: float, codec: str = "libx264", quality: int = 23) -> None:
    """Write frames to a file.

    Args:
        path: the container follows from the suffix.
        frames: (T, H, W, 3), RGB; odd sides lose a pixel.
        fps: frames per second.
        codec: "libx264", or "mpeg4" also where the build of FFmpeg lacks the former.
        quality: x264's constant rate factor, or MPEG-4's quantiser; lower is better.
    """
    codec = codec if codec in av.codecs_available else "mpeg4"
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        if codec == "libx264":
            context.options = {"crf": str(quality), "preset": "veryfast"}
        else:
            context.qmin = context.qmax = min(quality, 31)
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
