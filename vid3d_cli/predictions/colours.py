"""The colours of classes, shared by the report, the film and the picture."""

from __future__ import annotations

from collections.abc import Sequence

# Told apart with any colour vision, on light and on dark; their black is left out. Neighbours here differ the most.
# Source: Okabe and Ito, "Color Universal Design", 2008.
_HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")

_SHADES = ((0, 0.0), (255, 0.5), (0, 0.4))
"""A grey level, and how much of it is mixed into a hue: the hues themselves, lighter ones, darker ones."""


def class_colours(labels_in_order: Sequence[str]) -> dict[str, str]:
    """Return a colour for each class, as "#rrggbb". The first 21 classes have different ones; later ones repeat them.

    Args:
        labels_in_order: those that are shown, the most important first. For equal colours in all outputs of a video:
            the labels of its fused segments by start, then those of other streams. Repeated labels count once.
    """
    palette = [_mix(hue, *shade) for shade in _SHADES for hue in _HUES]
    return {label: palette[n % len(palette)] for n, label in enumerate(dict.fromkeys(labels_in_order))}


def _mix(hue: str, grey: int, share: float) -> str:
    levels = bytes.fromhex(hue[1:])
    return "#" + bytes(round(level + share * (grey - level)) for level in levels).hex()
