"""Options + manifest → Plan: what does not fit is refused, defaults are filled in, and the recipe needs no network."""

import pickle
import subprocess
import sys
from dataclasses import asdict, fields, replace
from fractions import Fraction
from pathlib import Path

import pytest

from vid3d_cli import Options, Plan, UsageError, make_plan
from vid3d_cli.clips.preprocess import CROPS
from vid3d_cli.errors import CheckpointError
from vid3d_cli.recipe import deciding_differences, provenance_differences


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "i3d.kinetic400"}, "did you mean 'i3d.kinetics400'"),
        ({"streams": "audio"}, "unknown stream 'audio'"),
        ({"tail": "mirror"}, "unknown tail 'mirror'"),
        ({"flow": "diss"}, "diss"),
        ({"fps": "fast"}, "fast"),
        ({"fuse": "1:1:1"}, "two numbers"),
        ({"fuse": "0:0"}, "two numbers"),
        ({"fuse_on": "ranks"}, "choose one of logits, probs"),
        ({"start_seconds": 2.0, "end_seconds": 1.0}, "after the start"),
        ({"flow_files": "x", "start_seconds": 2.0}, "cannot be used with --start"),
        ({"centred": True, "tail": "drop"}, "give --no-centred, or --tail pad"),
        ({"centred": True, "dense": True}, "give --no-dense, or give --no-centred"),
        ({"spread": 8, "dense": True}, "give --no-dense, or leave out --spread"),
        ({"spread": "16:32", "centred": True}, "--spread 16:32 .* give --no-centred"),
        ({"spread": "16:32", "tail": "loop"}, "--spread 16:32 .* give --tail pad"),
        ({"spread": "8:"}, "--spread 8:: give a number of frames"),
        ({"spread": "8:16:32"}, "give a number of frames"),
        ({"spread": 0}, "--spread 0: give a number of frames"),
        ({"spread": 4}, "i3d needs a spread of at least 9 frames, got 4"),
        ({"spread": 10_001}, "--spread: a window of 10001 frames needs more than 6 GB"),
        ({"model": "c3d", "window": 32, "spread": 8}, "c3d takes only clips of 16 frames"),
    ],
)
def test_incompatible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        make_plan(**options)


def test_own_weights_that_do_not_fit_are_refused():
    with pytest.raises(CheckpointError, match=r"rgb=nope\.pt: no such file"):
        make_plan(weights={"rgb": "nope.pt"})
    with pytest.raises(UsageError, match="weights were given for 'flow'"):
        make_plan(weights={"flow": "nope.pt"}, streams="rgb")


def test_an_unknown_option_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown option 'windw'"):
        make_plan(windw=3)


def test_defaults_come_from_the_manifest():
    plan = make_plan()
    assert (plan.window, plan.stride, plan.fps) == (64, 64, Fraction(25))
    assert make_plan(window=16).stride == 16
    assert make_plan(stride=8).window == 64


def test_a_plan_pickles_and_cannot_be_changed():
    plan = make_plan(model="s3d_mini", window=32, fps="30000/1001")
    assert pickle.loads(pickle.dumps(plan)) == plan
    with pytest.raises(AttributeError):
        plan.window = 3
    assert isinstance(plan, Options)


def test_a_plan_and_its_recipe_need_no_torch():
    code = (
        "import sys, vid3d_cli as v\n"
        "print(v.make_plan(model='s3d_mini', dense=True).recipe.dense, v.make_plan().recipe.model)\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "i3d.kinetics400" in done.stdout


def test_the_recipe_of_a_plan_is_that_of_its_results(video, tiny_model):
    import vid3d_cli

    plan = make_plan(streams="rgb", window=9).fetch()
    result = next(vid3d_cli.extract(video, streams="rgb", window=9))
    assert plan.recipe.precision is None
    known = {"precision": result.recipe.precision, "runtime": result.recipe.runtime, "versions": result.recipe.versions}
    assert asdict(replace(plan.recipe, **known)) == asdict(result.recipe)
    assert result.recipe.runtime and result.recipe.versions["vid3d"]


# Recipes in two parts ------------------------------------------------------------------------------------------------


def recipe_of(**options):
    return asdict(make_plan(model="s3d_mini", precision="fp32", **options).recipe)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"window": 8}, "window"),
        ({"fps": "native"}, "fps"),
        ({"tail": "drop"}, "tail"),
        ({"crops": 3}, "crops"),
        ({"streams": "rgb"}, "streams.flow.weights_sha256"),
        ({"flow": "farneback"}, "flow"),
        ({"quantise_flow": True}, "flow"),
        ({"dense": True}, "dense"),
        ({"end_seconds": 3.0}, "end_seconds"),
        ({"centred": True}, "centred"),
        ({"spread": 16}, "spread"),
    ],
)
def test_what_decides_numbers_is_a_difference(options, key):
    before, now = recipe_of(), recipe_of(**options)
    assert key in deciding_differences(before, now)


def test_where_features_came_from_is_no_difference():
    now = recipe_of()
    before = {**now, "runtime": "torch on an old GPU", "versions": {"numpy": "1.0", "python": "3.10.1"}}
    before["streams"] = {name: {**net, "weights": f"elsewhere/{name}.pt"} for name, net in now["streams"].items()}
    now = {**now, "runtime": "openvino on cpu", "versions": {"numpy": "2.0", "python": "3.10.1", "openvino": "1"}}
    assert deciding_differences(before, now) == {}
    assert set(provenance_differences(before, now)) == {
        "runtime",
        "versions.numpy",
        "streams.rgb.weights",
        "streams.flow.weights",
    }


def test_a_folder_of_ready_made_flow_says_where_from_and_its_bound_decides(tmp_path):
    here, there = recipe_of(flow_files=tmp_path / "a"), recipe_of(flow_files=tmp_path / "b, images of bound 3 px")
    assert deciding_differences(here, there) == {}
    before, now = provenance_differences(here, there)["flow"]
    assert (Path(before).name, Path(now).name) == ("a", "b, images of bound 3 px")
    assert "flow" in deciding_differences(here, recipe_of(flow_files=tmp_path / "a", flow_bound_px=3.0))


def test_a_recipe_without_numerics_is_of_the_first(monkeypatch):
    now = {**recipe_of(), "numerics": 1}
    old = {key: value for key, value in now.items() if key != "numerics"}
    assert deciding_differences(old, now) == {}
    assert deciding_differences(old, {**now, "numerics": 2}) == {"numerics": (1, 2)}


def test_what_is_not_known_yet_is_no_difference():
    now = recipe_of()
    unknown = {
        **now,
        "precision": None,
        "streams": {n: {**s, "weights_sha256": None} for n, s in now["streams"].items()},
    }
    assert deciding_differences(now, unknown) == {}


@pytest.mark.parametrize("name", ["./w.pt", "w.pt", "absolute", "copy.pt"])
def test_the_same_checkpoint_by_another_name_is_the_same_recipe(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file in ("w.pt", "copy.pt"):
        Path(file).write_bytes(b"weights")
    first = asdict(make_plan(streams="rgb", weights={"rgb": "w.pt"}).recipe)
    path = str(tmp_path / "w.pt") if name == "absolute" else name
    assert deciding_differences(first, asdict(make_plan(streams="rgb", weights={"rgb": path}).recipe)) == {}
    Path("w.pt").write_bytes(b"other weights")
    assert "streams.rgb.weights_sha256" in deciding_differences(
        first, asdict(make_plan(streams="rgb", weights={"rgb": "w.pt"}).recipe)
    )


def test_recipes_from_before_centred_clips_and_spread_frames_stay():
    now = recipe_of()
    assert deciding_differences({key: now[key] for key in now if key not in ("centred", "spread")}, now) == {}


def test_only_the_frames_that_the_network_gets_must_suit_it():
    assert make_plan(model="c3d", window=32, spread=16).num_clip_frames == 16
    assert make_plan(window=2, spread=9).recipe.spread == "9"
    assert make_plan(spread="32:64").recipe.spread == "32:64"


@pytest.mark.parametrize(
    ("options", "times"),
    [({"window": 21, "stride": 1}, "21"), ({"stride": 10}, "6.4"), ({"spread": 32, "stride": 8}, "4")],
)
def test_a_warning_says_how_often_centred_clips_compute_a_frame(options, times):
    plan = make_plan(centred=True, **options)
    (warning,) = plan.warnings
    assert warning == f"--centred with stride {plan.stride} computes every frame {times} times"
    assert make_plan(**{**options, "stride": 64}, centred=True).warnings == []
    assert make_plan(**options).warnings == []


def test_another_model_than_the_presets_is_a_warning():
    """Before: with s3d_mini, the network saw under half of the height, and nothing said so."""
    (warning,) = make_plan(preset="moment-detr", model="s3d_mini").warnings
    assert "is for slowfast_r50.kinetics400: with s3d_mini.camera_motion, rows may have another length" in warning
    assert warning.endswith("the resize, 224, may not fit crops of 112 px")
    (warning,) = make_plan(preset="bmt", model="r3d_18", streams="rgb").warnings
    assert warning.endswith("may have another length")
    for options in ({}, {"model": "i3d"}):
        assert make_plan(preset="actionformer-thumos", stride=16, **options).warnings == []


def test_warnings_name_the_stream_that_is_left_out():
    (warning,) = Plan.make(Options(model="r3d_18")).warnings
    assert "r3d_18.kinetics400 runs on rgb alone: there are no public flow weights" in warning
    assert Plan.make(Options(model="r3d_18", streams="rgb")).warnings == []


# Every option --------------------------------------------------------------------------------------------------------

LEAVES_NUMBERS = {
    "labels",
    "fuse",
    "fuse_on",
    "device",
    "runtime",
    "compile",
    "threads",
    "batch_size",
    "allow_playlists",
    "preset",
}
"""Options that change no feature beyond its last digits."""

OTHER_VALUES = {
    "model": {"model": "r3d_18"},
    "streams": {"streams": "rgb"},
    "weights": {"weights": {"rgb": "own.pt"}},
    "variant": {"variant": "top_heavy_i3d", "model": "s3d", "weights": {"rgb": "own.pt"}},
    "fps": {"fps": "native"},
    "start_seconds": {"start_seconds": 1.0},
    "end_seconds": {"end_seconds": 1.0},
    "window": {"window": 24},
    "stride": {"stride": 4},
    "tail": {"tail": "loop"},
    "centred": {"centred": True},
    "spread": {"spread": 24},
    "colour_matrix": {"colour_matrix": "guess"},
    "deinterlace": {"deinterlace": True},
    "square_pixels": {"square_pixels": True},
    "dense": {"dense": True},
    "resize": {"resize": "340x256"},
    "interpolation": {"interpolation": "lanczos"},
    "crops": {"crops": 10},
    "resize_only": {"resize_only": True},
    "layer": {"layer": "Mixed_4f"},
    "pool": {"layer": "Mixed_4f", "pool": "max"},
    "keep_crops": {"crops": 3, "keep_crops": True},
    "flow": {"flow": "tvl1"},
    "flow_files": {"flow_files": "flow"},
    "flow_bound_px": {"flow_files": "flow", "flow_bound_px": 3.0},
    "flow_size": {"flow_size": "source"},
    "quantise_flow": {"quantise_flow": True},
    "precision": {"precision": "bf16"},
}


def test_every_option_is_known_to_decide_numbers_or_not():
    assert OTHER_VALUES.keys() | LEAVES_NUMBERS == {field.name for field in fields(Options)}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_an_option_that_decides_numbers_is_in_the_recipe(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("own.pt").write_bytes(b"weights")
    with_it = {"model": "s3d_mini", "precision": "fp32", **OTHER_VALUES[name]}
    without = {key: value for key, value in with_it.items() if key != name or key in ("model", "precision")}
    without |= {"model": "s3d_mini"} if name == "model" else {}
    without |= {"precision": "fp32"} if name == "precision" else {}
    if name == "keep_crops":
        without["crops"] = 3
    with_it, without = (asdict(make_plan(**options).recipe) for options in (with_it, without))
    assert deciding_differences(with_it, without)


def test_class_names_are_not_read_without_end(tmp_path):
    """Before: --labels of a file without end took all memory."""
    (tmp_path / "own.pt").write_bytes(b"weights")
    with pytest.raises(UsageError, match="too long for a file of class names"):
        Plan.make(Options("r3d_18", streams="rgb", weights={"rgb": tmp_path / "own.pt"}, labels="/dev/zero"))


def test_a_preset_with_a_number_is_not_changed_by_the_same_number_as_text(tmp_path):
    preset = tmp_path / "mine.toml"
    options = 'model = "s3d_mini"\ncrops = 10\nresize = 256\nfps = 25'
    text = f'summary = "mine"\nvalues = "layout"\nsources = []\n[options]\n{options}\n[files]\nnames = "{{stem}}.npy"\n'
    preset.write_text(text + "[centre]\nfirst = 8\nstep = 16\n")
    plan = make_plan(preset=str(preset), crops="10", resize="256", fps="25")
    assert plan.preset == str(preset)
    assert (plan.crop_names, plan.resize_px) == (CROPS["10"], 256)
    assert make_plan(preset=str(preset), crops="tl,tr").preset == f"{preset}, but crops tl,tr"
