"""The colours of classes, shared by the report, the film, the picture and the notebook."""

from __future__ import annotations

from collections.abc import Sequence

# For light and for dark pages, the same hues. The eight of a page differ by at least 9.9 (100 × OKLab) for normal and
# for colour-blind eyes, in the simulation of Machado et al., "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", 2009.
LIGHT = ("#084ba4", "#d64a08", "#18b08d", "#a1487a", "#c8961e", "#6077bb", "#54196e", "#7d2217")
DARK = ("#3273b3", "#f77f15", "#11bb7f", "#e4a9d1", "#f7f359", "#a1f7f7", "#a577f7", "#9b6344")

_SHADES = ((0, 0.0), (255, 0.5), (0, 0.4))
"""A grey level, and how much of it is mixed into a hue: the hues themselves, lighter ones, darker ones."""


def class_colours(labels_in_order: Sequence[str], hues: Sequence[str] = LIGHT) -> dict[str, str]:
    """Return a colour for each class, as "#rrggbb". The first 24 classes have different ones; later ones repeat them.

    Args:
        labels_in_order: those that are shown, the most important first. For equal colours in all outputs of a video:
            the labels of its fused segments by start, then those of other streams. Repeated labels count once.
        hues: `LIGHT` or `DARK`, for what is behind.
    """
    palette = [_mix(hue, *shade) for shade in _SHADES for hue in hues]
    return {label: palette[n % len(palette)] for n, label in enumerate(dict.fromkeys(labels_in_order))}


def ink_on(colour: str) -> str:
    """Return black or white, whichever is easier to read on a colour (the luminance of WCAG 2)."""
    red, green, blue = (level / 255 for level in bytes.fromhex(colour[1:]))
    return "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"


def _mix(hue: str, grey: int, share: float) -> str:
    levels = bytes.fromhex(hue[1:])
    return "#" + bytes(round(level + share * (grey - level)) for level in levels).hex()
