"""Resizes and crops frames to the size that a network was trained on; they stay uint8."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import TooLarge, UsageError
from .resampling import resample

_Scalar = TypeVar("_Scalar", bound=np.generic)

INTERPOLATIONS = {"antialiased": "antialiased bilinear", "bilinear": "bilinear", "lanczos": "Lanczos"}
"""Interpolations of `resize`, as options name them and as recipes do."""

MAX_RESIZED_PIXELS = 2**24
"""Largest resized frame: at 256 px, a frame 250 times as long as wide still fits."""


def parse_resize(size: int | str) -> int | tuple[int, int]:
    """Return "256", the short side, or "340x256", width × height, in the form of `resized_size`: 256 or (256, 340).

    Raises:
        UsageError: it is neither, or larger than `MAX_RESIZED_PIXELS`.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(size), re.ASCII)
    if found is None:
        raise UsageError(f"--resize {size}: give the pixels of the short side (256), or width x height (340x256)")
    width, height = int(found[1]), int(found[2] or found[1])
    if width * height > MAX_RESIZED_PIXELS:
        limit = math.isqrt(MAX_RESIZED_PIXELS)
        raise UsageError(f"--resize {size}: frames would be too large, give at most {limit} or {limit}x{limit}")
    return (height, width) if found[2] else height


def resized_size(height: int, width: int, size_px: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels after a resize.

    Args:
        height: height of the frame.
        width: width of the frame.
        size_px: length of the short side; the long side keeps the aspect ratio, rounded down, as in torchvision. Or
            (height, width), which ignores the aspect ratio.
    """
    if not isinstance(size_px, int):
        return size_px
    if height <= width:
        return size_px, int(size_px * width / height)
    return int(size_px * height / width), size_px


def check_resized_size(video: str, height: int, width: int, size_px: int | tuple[int, int]) -> None:
    """Raise TooLarge if a resize would make frames larger than `MAX_RESIZED_PIXELS`; see `resized_size`."""
    resized_height, resized_width = resized_size(height, width, size_px)
    if resized_height * resized_width > MAX_RESIZED_PIXELS:
        raise TooLarge(
            video,
            f"frames of {width}×{height} px would be resized to {resized_width}×{resized_height}: "
            "crop the video first, or give width and height, as in --resize 340x256",
        )


def resize(
    rgb: NDArray[np.uint8], size_px: int | tuple[int, int], interpolation: str = "antialiased"
) -> NDArray[np.uint8]:
    """Return a frame resized.

    Args:
        rgb: (H, W, 3) uint8.
        size_px: see `resized_size`; a frame that already has this size is returned as it is.
        interpolation: "antialiased": a bilinear filter that widens when it shrinks, with the bytes of torchvision (see
            `resampling`). "bilinear": between the four nearest pixels, as OpenCV does, and torchvision and
            pytorchvideo in training. "lanczos": Pillow's, once named `Image.ANTIALIAS`.

    Returns:
        (H', W', 3) uint8.
    """
    height, width = resized_size(rgb.shape[0], rgb.shape[1], size_px)
    if (height, width) == rgb.shape[:2]:
        return rgb
    if interpolation == "antialiased":
        return resample(rgb, height, width)
    resized: Any
    if interpolation == "lanczos":
        from PIL import Image

        resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS)
    else:
        resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def describe_resize(size_px: int | tuple[int, int], interpolation: str = "antialiased") -> str:
    """Return a resize in words, for the recipe: "short side 256 px, antialiased bilinear"."""
    what = f"short side {size_px} px" if isinstance(size_px, int) else f"{size_px[0]} × {size_px[1]} px (h × w)"
    return f"{what}, {INTERPOLATIONS[interpolation]}"


@dataclass(frozen=True)
class Crop:
    """A square of a frame, mirrored or not. Pixel coordinates."""

    top: int
    left: int
    size_px: int
    mirrored: bool = False
    """Flip left and right, and negate horizontal flow."""

    def cut(self, frames: NDArray[_Scalar], *, is_flow: bool = False) -> NDArray[_Scalar]:
        """Return a copy of the square of frames (…, H, W, C), or of flow (…, H, W, 2) in float32 pixels or uint8."""
        rows = slice(self.top, self.top + self.size_px)
        columns = slice(self.left, self.left + self.size_px)
        square: NDArray[_Scalar] = frames[..., rows, columns, :].copy()
        if self.mirrored:
            square = square[..., ::-1, :].copy()
        if self.mirrored and is_flow:
            square[..., 0] = 255 - square[..., 0] if square.dtype == np.uint8 else np.negative(square[..., 0])
        return square


_PLACES = {"tl": (0, 0), "tr": (0, 2), "c": (1, 1), "bl": (2, 0), "br": (2, 2), "start": (1, 0), "end": (1, 2)}
"""Names of crops: halves of the margin above, and to the left. "start" and "end" are those of a wide frame."""

CENTRE = ("c",)

CROPS = {
    "1": CENTRE,
    "3": ("start", "c", "end"),
    "10": ("tl", "tr", "bl", "br", "c", "trm", "tlm", "brm", "blm", "cm"),
}
"""The crops that a number stands for, see `place_crops`. 10 are in the order of torchvision's `ten_crop`."""


def parse_crops(crops: int | str) -> tuple[str, ...]:
    """Return the names of crops that a number of `CROPS` or a list, "tl,tr,c", stands for; see `place_crops`.

    Raises:
        UsageError: it is neither.
    """
    text = str(crops)
    names = CROPS.get(text) or tuple(name.strip() for name in text.split(","))
    if not all(name.removesuffix("m") in _PLACES for name in names):
        places = ", ".join(_PLACES)
        raise UsageError(f"--crops {text}: give {', '.join(CROPS)}, or a list of {places}, mirrored with an m: tl,tlm")
    return names


def describe_crops(names: tuple[str, ...]) -> str:
    """Return crops as in a recipe: "10", or in full, "tl, tr, c"."""
    return next((number for number, known in CROPS.items() if known == names), ", ".join(names))


ROUNDINGS = ("down", "even")
"""Where the centre of an odd margin lies: half a pixel up and left; or rounded half to even, as torchvision does."""


def place_crops(names: Sequence[str], height: int, width: int, size_px: int, rounding: str = "down") -> list[Crop]:
    """Return the crops of a frame.

    Args:
        names: "tl", "tr", "bl" and "br", the corners, "c", the centre, "start" and "end" of the long side. With an m,
            as in "tlm", the same square is mirrored.
        height: height of the resized frame, at least `size_px`.
        width: width of the resized frame, at least `size_px`.
        size_px: side of a square.
        rounding: one of `ROUNDINGS`; a mirrored square is cut from the mirrored frame.

    Returns:
        A crop for each name.
    """
    bottom, right = height - size_px, width - size_px

    def at(margin: int, halves: int) -> int:
        return round(margin * halves / 2) if rounding == "even" else margin * halves // 2

    crops = []
    for name in names:
        place, mirrored = name.removesuffix("m"), name.endswith("m")
        y, x = _PLACES[place]
        if place in ("start", "end") and height > width:
            y, x = x, y
        left = right - at(right, 2 - x) if mirrored else at(right, x)
        crops.append(Crop(at(bottom, y), left, size_px, mirrored))
    return crops


@dataclass(frozen=True)
class Views:
    """Several crops of each clip, which run one by one. Their scores are averaged."""

    names: tuple[str, ...]
    """See `place_crops`."""
    size_px: int
    """Side of a square."""
    are_kept: bool = False
    """Keep the features of each crop apart, rather than average them."""
    rounding: str = "down"
    """One of `ROUNDINGS`."""

    def place(self, height: int, width: int) -> list[Crop]:
        """Return the crops of a frame of this size."""
        return place_crops(self.names, height, width, self.size_px, self.rounding)

    def cut(self, clips: Sequence[NDArray[Any]], *, is_flow: bool = False) -> Iterator[list[NDArray[Any]]]:
        """Yield the clips (T, H, W, C), all of one size, cut to one crop after the other; see `place_crops`."""
        for crop in self.place(clips[0].shape[1], clips[0].shape[2]):
            yield [crop.cut(frames, is_flow=is_flow) for frames in clips]
