"""The colours of classes."""

import re

from vid3d_cli.predictions.colours import class_colours


def test_each_class_has_one_colour_and_the_first_21_differ():
    labels = [f"class {n}" for n in range(30)]
    colours = class_colours([*labels, *labels])
    assert list(colours) == labels
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())
    assert len({*list(colours.values())[:21]}) == 21


def test_more_labels_change_no_earlier_colour():
    assert class_colours(["b", "a", "c"]) | class_colours(["b", "a"]) == class_colours(["b", "a", "c"])
