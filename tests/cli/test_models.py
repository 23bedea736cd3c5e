"""`vid3d models`: the table, and the details of one model."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from vid3d_cli.cli import formats, models
from vid3d_cli.cli.models import (
    describe_accuracy,
    example_command,
    model_details,
    model_row,
)
from vid3d_cli.models import manifest
from vid3d_cli.models.registry import BACKBONES

MODELS = manifest.model_entries()


@pytest.fixture
def rows(vid3d):
    """Return the table's rows by model."""
    result = vid3d("models")
    assert (result.exit_code, result.stderr) == (0, "")
    return {row["model"]: row for row in map(json.loads, result.stdout.splitlines())}


@pytest.fixture
def on_terminal(vid3d, monkeypatch):
    """Run a command as on a terminal of some columns and return its lines."""

    def run(columns, *args):
        for module in (formats, models):
            monkeypatch.setattr(module, "stdout_is_terminal", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        result = vid3d(*args)
        assert result.exit_code == 0, result.stderr
        return result.stdout.splitlines()

    return run


# The table -----------------------------------------------------------------------------------------------------------


def test_every_model_has_a_row(vid3d, rows):
    assert list(rows) == list(MODELS)
    for spelling in (["list"], ["--format", "jsonl"], ["list", "", "--format", "jsonl"]):
        assert vid3d("models", *spelling).stdout == vid3d("models").stdout
    assert json.loads(vid3d("models", "--format", "json").stdout) == list(rows.values())


def test_a_row_shows_the_facts_of_the_manifest(rows):
    row = rows["i3d.kinetics400"]
    assert (row["default"], row["streams"], row["unpublished"]) == (True, ["rgb", "flow"], {})
    assert row["clip"] == {"frames": 64, "stride": 64, "fps": 25.0}
    assert row["input"] == {"resize_px": 256, "antialias": True, "crop_px": 224}
    assert row["parameters"] == {"rgb": 12_697_264, "flow": 12_675_312}
    assert row["multiply_adds"] == {"rgb": 111_150_686_208, "flow": 102_338_977_792}
    assert (row["feature_dim"], row["classes"], row["dataset"]) == (1024, 400, "Kinetics-400")
    assert row["published"][2]["top1"] == 74.2 and "logits summed 1:1" in row["published"][2]["protocol"]


def test_a_row_shows_which_weights_are_on_disk(rows, monkeypatch, tmp_path):
    assert rows["s3d.kinetics400"]["streams"] == ["rgb"]
    assert rows["s3d.kinetics400"]["unpublished"] == {"flow": "Nobody published flow weights of S3D."}
    assert (rows["fstcn.own"]["dataset"], rows["c3d.ucf101"]["dataset"]) == (None, "UCF-101 split 1")
    assert (rows["fstcn.own"]["streams"], list(rows["fstcn.own"]["unpublished"])) == ([], ["rgb", "flow"])
    assert rows["s3d_mini.camera_motion"]["on_disk"] == {"rgb": True, "flow": True}
    assert rows["s3d_g.howto100m"]["classes"] is None
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "empty"))
    assert model_row(MODELS["s3d.kinetics400"])["on_disk"] == {"rgb": False}
    place = tmp_path / "empty" / "weights" / "s3d.kinetics400" / "s3d-d76dad2f.pth"
    place.parent.mkdir(parents=True)
    place.touch()
    assert model_row(MODELS["s3d.kinetics400"])["on_disk"] == {"rgb": True}


def test_accuracy_is_the_first_published_of_each_stream():
    accuracy = {name: describe_accuracy(model_row(entry)) for name, entry in MODELS.items()}
    assert accuracy["i3d.kinetics400"] == ("71.1 / 63.4 / 74.2", "K400 test, whole videos")
    assert accuracy["s3d.kinetics400_kylemin"] == ("67.3", "K400 val, 1 clip")
    assert accuracy["p3d199.kinetics400"] == ("72.1 / 61.2", "K400 val")
    assert accuracy["c3d.ucf101"] == ("83.1", "UCF-101 split 1, 10 clips")
    assert accuracy["slowfast_r50.kinetics400"] == ("76.9", "K400 val, 10 × 3 views")
    assert accuracy["s3d_mini.camera_motion"] == ("94.8 / 94.2 / 95.6", "rendered, 1 clip")
    assert accuracy["ltc.own"] == ("–", "")


def test_a_model_has_one_line_with_its_whole_name(on_terminal):
    lines = on_terminal(40, "models")  # too narrow, and yet nothing is folded
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1 : len(MODELS) + 1]] == list(MODELS)
    told = {line.split()[0]: line for line in lines if line}
    assert re.search(r"i3d.kinetics400 \* +rgb✓? flow✓? +64 at 25/s +400 +71\.1/63\.4/74\.2$", told["i3d.kinetics400"])
    assert re.search(r" rgb✓ flow✓ +16 at 12\.5/s +10 ", told["s3d_mini.camera_motion"])
    assert re.search(r" own +.* any +–$", told["two_stream.own"])
    assert re.search(r" none +–$", told["s3d_g.howto100m"])
    assert "*" not in told["i3d.charades"]


def test_a_part_of_the_name_selects_models(vid3d):
    found = [json.loads(line)["model"] for line in vid3d("models", "S3D").stdout.splitlines()]
    assert found == [name for name in MODELS if "s3d" in name]
    assert vid3d("models", "ig65m", "--format", "table").stdout.splitlines()[1].startswith("r2plus1d_34.ig65m ")
    wrong = vid3d("models", "i2d.kinetics400")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "no model has 'i2d.kinetics400' in its name: did you mean 'i3d.kinetics400'?" in wrong.stderr
    assert "did you mean 'show'?" in vid3d("models", "shwo").stderr


def test_the_table_needs_no_torch():
    code = (
        "import sys; from vid3d_cli.cli import main\n"
        "sys.argv = ['vid3d', 'models', '--format', 'table']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "slowfast_r50" in done.stdout


# One model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", MODELS.values(), ids=lambda e: e.name)
def test_show_prints_everything(vid3d, entry):
    result = vid3d("models", "show", entry.name, "--format", "table")
    assert (result.exit_code, result.stderr) == (0, "")
    backbone = manifest.backbone_entries()[entry.backbone]
    net = BACKBONES[entry.backbone]
    wanted = [entry.name, backbone.summary, backbone.paper, backbone.stated, entry.code, entry.notes, entry.licence]
    wanted += [f"--layer {' '.join(net.layers)}", *net.variants]
    for stream in entry.streams.values():
        wanted += [f"{stream.num_parameters:,} parameters", stream.normalisation.describe(), stream.unpublished]
        for part in stream.weights.parts if stream.weights else ():
            wanted += [part.file_name, part.git_blob or "", part.sha256 or "", *(s.describe() for s in part.sources)]
    for metric in entry.metrics:
        wanted += [metric.protocol, metric.source]
    assert [text for text in wanted if text not in result.stdout] == []


def test_show_json_has_the_same_facts(vid3d):
    result = vid3d("models", "show", "--format", "json", "c3d.sports1m")
    row = json.loads(result.stdout)
    assert row == json.loads(json.dumps(model_details(MODELS["c3d.sports1m"])))
    assert vid3d("models", "show", "c3d.sports1m").stdout == result.stdout
    assert {key: row[key] for key in ("variant", "variants", "resize")} == {
        "variant": "caffe",
        "variants": ["default", "caffe"],
        "resize": "128 × 171 px (h × w), bilinear",
    }
    assert row["other_models"] == ["c3d.ucf101"]
    assert row["layers"][-2:] == ["fc6", "fc7"]
    assert row["files"]["rgb"]["parts"][0]["path"] is None
    assert row["files"]["flow"]["parts"] == []


def test_show_of_a_backbone_without_weights_names_the_classes_of_its_sizes(vid3d):
    shown = vid3d("models", "show", "fstcn", "--format", "table").stdout
    line = re.search("^classes +(.*)$", shown, re.MULTILINE)[1]
    assert line == "those of your checkpoint (sizes assume the 101 classes of UCF-101)"
    assert not re.search("^trained on", shown, re.MULTILINE)


def test_show_names_the_variant_of_the_weights(vid3d):
    plain = "for own weights; default is the plain form"
    assert f"--variant default tcl3 tcl5: {plain}\n" in vid3d("models", "show", "fstcn", "--format", "table").stdout
    caffe = "without --variant, these weights and own ones take caffe"
    assert (
        f"--variant default A B C caffe: {plain}; {caffe}\n"
        in vid3d("models", "show", "p3d199", "--format", "table").stdout
    )
    assert "--variant" not in vid3d("models", "show", "i3d", "--format", "table").stdout


def test_a_backbone_name_means_its_default_model(vid3d):
    assert vid3d("models", "show", "r2plus1d_34").stdout == vid3d("models", "show", "r2plus1d_34.kinetics400").stdout


def test_show_of_an_unknown_model(vid3d):
    result = vid3d("models", "show", "i3d.kinetic400")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'i3d.kinetics400'?" in result.stderr


def test_lines_are_wrapped_but_copyable_text_is_not(on_terminal):
    entry = MODELS["i3d.kinetics400_scratch"]
    lines = on_terminal(80, "models", "show", entry.name)
    copied = [part.git_blob for file in entry.files for part in file.parts]
    copied += [source.url for file in entry.files for part in file.parts for source in part.sources]
    assert [text for text in copied if text not in "\n".join(lines)] == []
    assert {line.strip() for line in lines if len(line) > 80} <= set(copied)


@pytest.mark.parametrize("entry", MODELS.values(), ids=lambda e: e.name)
def test_the_example_uses_existing_names(vid3d, entry, tmp_path):
    words = shlex.split(example_command(model_details(entry)))
    command, options = words[1], dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
    assert (words[0], words[-1]) == ("vid3d", "video.mp4")
    assert command == ("classify" if entry.has_classes else "extract")
    assert manifest.find_model(options["--model"]) is entry
    assert ("--weights" in options) == (not entry.files)
    help_text = vid3d(command, "--help").stdout
    assert all(option in help_text for option in options)
