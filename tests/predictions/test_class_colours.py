"""The colours of classes."""

import re

import numpy as np
import pytest

from vid3d_cli.predictions.colours import DARK, LIGHT, class_colours, ink_on


def test_each_class_has_one_colour_and_the_first_24_differ():
    labels = [f"class {n}" for n in range(30)]
    colours = class_colours([*labels, *labels])
    assert list(colours) == labels
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())
    assert len({*list(colours.values())[:24]}) == 24


def test_more_labels_change_no_earlier_colour():
    assert class_colours(["b", "a", "c"]) | class_colours(["b", "a"]) == class_colours(["b", "a", "c"])


def luminance(colour):
    levels = np.array(list(bytes.fromhex(colour[1:]))) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(("hues", "page"), [(LIGHT, "#ffffff"), (DARK, "#181b1f")])
def test_colours_are_seen_on_their_page_and_text_is_read_on_them(hues, page):
    def contrast(*colours):
        low, high = sorted(map(luminance, colours))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(hue, page) for hue in hues) > 2.6
    assert min(contrast(hue, ink_on(hue)) for hue in hues) > 4.5
