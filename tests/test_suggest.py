"""Suggestions for names that are mistyped, in any case."""

import pytest

from vid3d_cli.errors import UsageError
from vid3d_cli.models.manifest import find_model
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.suggest import check_known, did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("RGB", ["rgb", "flow", "both"], "rgb"),
        ("mixed_4f", BACKBONES["i3d"].layers, "Mixed_4f"),
        ("--widow", ["--flow", "--window"], "--window"),
        ("extarct", ["classify", "extract"], "extract"),
        ("Mixed_9z", BACKBONES["i3d"].layers, ""),  # as close to Mixed_5b as to Mixed_5c
        ("zumba", ["pad", "drop"], ""),
        ("", ["pad"], ""),
        ("pad", [], ""),
    ],
)
def test_the_closest_name_is_suggested(name, known, meant):
    assert did_you_mean(name, known) == (f"did you mean '{meant}'?" if meant else "")


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("Pad", ["pad", "drop"], "what: did you mean 'pad'? Choose one of pad, drop"),
        ("x", ["pad", "drop"], "what: choose one of pad, drop"),
        ("a\nx", ["a\nb"], "what: did you mean 'a\\nb'? Choose one of a\\nb"),
        ("name_4", [f"name_{i}x" for i in range(9)], "what: did you mean 'name_4x'?"),
    ],
)
def test_a_long_list_is_not_repeated_beside_the_suggestion(name, known, text):
    with pytest.raises(UsageError) as error:
        check_known(name, known, "what")
    assert str(error.value) == text
    check_known(known[0], known, "what")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"model": "I3D"}, "'i3d'"),
        ({"model": "i3d.Kinetics400"}, "'i3d.kinetics400'"),
        ({"layer": "mixed_4f"}, "'Mixed_4f'"),
        ({"streams": "RGB"}, "'rgb'"),
        ({"tail": "Pad"}, "'pad'"),
        ({"layer": "Mixed_4f", "pool": "Max"}, "'max'"),
        ({"flow": "TVL1"}, "'tvl1'"),
        ({"precision": "FP32"}, "'fp32'"),
        ({"runtime": "Torch"}, "'torch'"),
        ({"fuse_on": "logit"}, "'logits'"),
    ],
)
def test_every_option_suggests(options, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        Plan.make(Options(**{"model": "s3d_mini", **options}))


def test_models_are_suggested_in_any_case():
    with pytest.raises(UsageError, match=r"unknown model 'ZZZ'\. See: vid3d models"):
        find_model("ZZZ")
    with pytest.raises(UsageError, match=r"did you mean 's3d_mini'\? See: vid3d models"):
        find_model("S3D_mini")
