"""The command line: stdout, stderr, exit codes, and that no finished work is lost."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyNet
from videos import write_audio, write_video

import vid3d_cli
from vid3d_cli import __version__
from vid3d_cli.cli.options import parse_weights
from vid3d_cli.errors import UsageError
from vid3d_cli.features.stores import open_store
from vid3d_cli.models.manifest import find_model
from vid3d_cli.predictions.formats import FORMATS
from vid3d_cli.predictions.lines import JsonLines
from vid3d_cli.predictions.records import prediction_records

COMMANDS = ["demo", "classify", "extract", "eval", "flow", "probe", "models"]
WEIGHTS_COMMANDS = ["list", "pull", "verify", "path", "add"]


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_names_every_command(vid3d):
    result = vid3d("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in [*COMMANDS, "weights"])


@pytest.mark.parametrize("command", [[c] for c in COMMANDS] + [["weights", c] for c in WEIGHTS_COMMANDS])
def test_every_command_has_help_with_an_example(vid3d, command):
    result = vid3d(*command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example: vid3d {' '.join(command)}\b", result.stdout)


def test_version(vid3d):
    assert vid3d("--version").stdout == f"vid3d {__version__}\n"


# classify ------------------------------------------------------------------------------------------------------------


def test_classify_writes_json_lines_into_a_pipe(vid3d, tiny_model, video):
    result = vid3d("classify", video, "--window", 16, "--topk", 2)
    assert (result.exit_code, result.stderr) == (0, "vid3d: i3d.kinetics400: rgb + flow, fp32, PyTorch on the CPU\n")
    records = lines_of(result)
    assert [r["clip"] for r in records] == [0, 1, 2, None]
    assert [(r["start_seconds"], r["end_seconds"]) for r in records] == [(0, 0.64), (0.64, 1.28), (1.28, 1.6), (0, 1.6)]
    for record in records:
        assert list(record) == ["video", "clip", "start_seconds", "end_seconds", "rgb", "flow", "fused"]
        assert [len(record[s]) for s in ("rgb", "flow", "fused")] == [2, 2, 2]
        assert set(record["rgb"][0]) == {"label", "score", "logit"}
        assert record["fused"][0]["logit"] == max(p["logit"] for p in record["fused"])


def test_classify_fuses_by_weights(vid3d, tiny_model, video):
    def fused(*options):
        (record,) = lines_of(vid3d("classify", video, "--per", "video", "--topk", 400, *options))
        return {p["label"]: p["logit"] for p in record["fused"]}, record

    even, record = fused()
    rgb, flow = ({p["label"]: p["logit"] for p in record[s]} for s in ("rgb", "flow"))
    assert even == pytest.approx({label: rgb[label] + flow[label] for label in rgb}, abs=2e-6)
    assert fused("--fuse", "2:0.5")[0] == pytest.approx({k: 2 * rgb[k] + 0.5 * flow[k] for k in rgb}, abs=2e-6)
    _, on_probs = fused("--fuse-on", "probs")
    scores = {s: {p["label"]: p["score"] for p in on_probs[s]} for s in ("rgb", "flow", "fused")}
    mean = {label: (scores["rgb"][label] + scores["flow"][label]) / 2 for label in rgb}
    assert scores["fused"] == pytest.approx(mean, abs=2e-6)


def test_classify_formats_hold_the_same(vid3d, tiny_model, video, tmp_path):
    options = ["classify", video, "--topk", 2, "--window", 20]
    records = lines_of(vid3d(*options))
    rows = list(csv.DictReader(io.StringIO(vid3d(*options, "--format", "csv").stdout)))
    assert len(rows) == len(records) * 3 * 2
    assert [r["label"] for r in rows[:2]] == [p["label"] for p in records[0]["rgb"]]
    assert {r["clip"] for r in rows} == {"0", "1", ""}
    result = vid3d(*options, "-o", tmp_path / "out.jsonl")
    assert result.stdout == ""
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == records
    table = vid3d(*options, "--format", "table").stdout
    assert "whole video" in table
    assert records[0]["fused"][0]["label"][:10] in table


def test_clips_are_written_before_the_video_ends(vid3d, tiny_model, video, monkeypatch):
    happened = []
    forward, write = TinyNet.forward, JsonLines._write_all
    monkeypatch.setattr(TinyNet, "forward", lambda net, clips: (happened.append("run"), forward(net, clips))[1])
    monkeypatch.setattr(
        JsonLines, "_write_all", lambda writer, records: (happened.append("write"), write(writer, records))
    )
    options = {"streams": "rgb", "window": 10, "fps": "native"}
    result = vid3d("classify", video, "--streams", "rgb", "--window", 10, "--fps", "native", "--batch-size", 1)
    assert happened[happened.index("write") :] == ["write", *["run", "write"] * 3, "write"]  # 4 clips, then the video
    assert lines_of(result) == list(prediction_records(vid3d_cli.classify(video, **options), k=5))


@pytest.mark.exhaustive
def test_dense_windows_are_written_once(vid3d, video):
    options = {"model": "s3d_mini", "window": 16, "stride": 8, "dense": True}
    result = vid3d("classify", video, "--model", "s3d_mini", "--window", 16, "--stride", 8, "--dense")
    assert lines_of(result) == list(prediction_records(vid3d_cli.classify(video, **options), k=5))


def test_a_video_that_fails_midway_has_written_its_clips(vid3d, tiny_model, video, monkeypatch, tmp_path):
    forward, write, written = TinyNet.forward, JsonLines._write_all, []

    def give_nan_once(net, clips):
        if len(written) == 2:
            written.append("nan")
            return forward(net, clips * float("nan"))
        return forward(net, clips)

    monkeypatch.setattr(TinyNet, "forward", give_nan_once)
    monkeypatch.setattr(
        JsonLines, "_write_all", lambda writer, records: (written.append("clip"), write(writer, records))
    )
    other = write_video(tmp_path / "other.mp4", num_frames=10)
    options = ["--streams", "rgb", "--window", 10, "--batch-size", 1, "--fps", "native", "--jobs", 1]
    for output in ([], ["-o", "out.jsonl"]):
        written.clear()
        result = vid3d("classify", video, other, *options, *output)
        text = (tmp_path / "out.jsonl").read_text() if output else result.stdout
        records = [json.loads(line) for line in text.splitlines()]
        assert [(Path(r["video"]).name, r["clip"]) for r in records] == [
            ("video.mp4", 0), ("video.mp4", 1), ("other.mp4", 0), ("other.mp4", None),
        ]  # fmt: skip
        assert (result.exit_code, "video.mp4: the network's scores are not finite" in result.stderr) == (1, True)


def test_the_suffix_of_the_output_chooses_the_format(vid3d, tiny_model, video, tmp_path):
    options = ["classify", video, "--topk", 1, "--per", "video", "--streams", "rgb"]
    for name, form in {"a.csv": "csv", "a.JSONL": "jsonl"}.items():
        assert vid3d(*options, "-o", name).exit_code == 0
        assert (tmp_path / name).read_text() == vid3d(*options, "--format", form).stdout
    assert vid3d(*options, "-o", "a.txt", "--format", "csv").exit_code == 0
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "a.csv").read_text()
    suffixes = ", ".join(f".{form}" for form in FORMATS)
    for name, message in {
        "a.xyz": f"a.xyz: the suffix names no format; choose one of {suffixes}, or add --format",
        "a": f"a has no suffix: choose one of {suffixes}; for a directory, add --format",
    }.items():
        result = vid3d(*options, "-o", name)
        assert (result.exit_code, result.stderr) == (2, f"vid3d: error: {message}\n")


def test_a_dash_is_stdout(vid3d, tiny_model, video, tmp_path):
    before = set(tmp_path.iterdir())
    options = ["classify", video, "--topk", 1, "--per", "video", "--streams", "rgb"]
    assert vid3d(*options, "-o", "-").stdout == vid3d(*options).stdout
    assert [r["video"] for r in lines_of(vid3d("classify", "no.mp4", "--failures", "-", "-o", "x.csv"))] == ["no.mp4"]
    assert vid3d(*options, "--failures", "-").exit_code == 2
    for command in (["extract", video], ["flow", video], ["features", "convert", "x.npy"]):
        result = vid3d(*command, "--out" if command[0] != "features" else "-", "-")
        assert result.exit_code == 2
    assert "features need a file or a directory, not stdout" in vid3d("extract", video, "--out", "-").stderr
    assert set(tmp_path.iterdir()) == before


def test_one_stream_alone(vid3d, tiny_model, video):
    (record,) = lines_of(vid3d("classify", video, "--streams", "rgb", "--per", "video"))
    assert "flow" not in record
    assert record["fused"] == record["rgb"]


# extract -------------------------------------------------------------------------------------------------------------


def test_extract_writes_a_matrix_and_an_index(vid3d, tiny_model, video, tmp_path):
    result = vid3d("extract", video, "--out", "feats.npy", "--window", 16, "--stride", 8)
    assert (result.exit_code, result.stdout) == (0, "")
    features = np.load(tmp_path / "feats.npy", mmap_mode="r")
    index = [json.loads(line) for line in (tmp_path / "feats.index.jsonl").read_text().splitlines()]
    assert features.shape == (4, 9 + 6)
    assert features.dtype == np.float32
    assert [line["row"] for line in index] == [0, 1, 2, 3]
    assert list(index[0]) == [
        "row", "video", "clip", "start_seconds", "end_seconds", "start_frame", "num_valid_frames",
    ]  # fmt: skip
    recipe = json.loads((tmp_path / "feats.recipe.json").read_text())
    assert (recipe["window"], recipe["stride"], recipe["model"]) == (16, 8, "i3d.kinetics400")
    assert set(recipe["streams"]) == {"rgb", "flow"}
    assert len(recipe["streams"]["rgb"]["weights_sha256"]) == 64
    assert {"vid3d", "torch", "av", "opencv", "numpy"} <= set(recipe["versions"])


def test_extract_into_a_directory_mirrors_the_tree(vid3d, tiny_model, tmp_path):
    for folder in ("a", "b/c"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_video(tmp_path / "in" / folder / "same name.mp4", num_frames=10)
    assert vid3d("extract", "in", "--out", "out/", "--dtype", "float16").exit_code == 0
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.npz"))
    assert [str(path) for path in files] == ["a/same name.npz", "b/c/same name.npz"]
    with np.load(tmp_path / "out" / files[0]) as arrays:
        assert arrays["features"].dtype == np.float16
        assert str(arrays["video"]) == "in/a/same name.mp4"
        assert json.loads(str(arrays["recipe"]))["window"] == 64


def test_extract_as_video_features_does(vid3d, tiny_model, video, tmp_path):
    options = ["--layout", "video_features", "--window", 16, "--fps", "native"]
    assert vid3d("extract", video, "--out", "out", *options).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "recipe.json", "video_flow.npy", "video_fps.npy", "video_index.jsonl", "video_recipe.json", "video_rgb.npy",
        "video_timestamps_ms.npy", "videos.jsonl",
    ]  # fmt: skip
    assert np.load(tmp_path / "out/video_fps.npy") == 25
    np.testing.assert_allclose(np.load(tmp_path / "out/video_timestamps_ms.npy"), [640, 1280, 1600])


def test_nothing_is_overwritten_without_the_option(vid3d, tiny_model, video, tmp_path):
    (tmp_path / "feats.npy").write_bytes(b"precious")
    result = vid3d("extract", video, "--out", "feats.npy")
    assert result.exit_code == 2
    assert "feats.npy: already exists" in result.stderr
    assert "--overwrite" in result.stderr
    assert (tmp_path / "feats.npy").read_bytes() == b"precious"
    assert vid3d("extract", video, "--out", "feats.npy", "--overwrite").exit_code == 0
    assert np.load(tmp_path / "feats.npy").shape[0] == 1


# Failures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Unusable files, and the class of each failure."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    write_audio(tmp_path / "sound.m4a")
    return {
        "empty.mp4": "EmptyFile",
        "text.mp4": "NotAVideo",
        "sound.m4a": "NoVideoStream",
        "gone.mp4": "VideoNotFound",
    }


def test_a_failed_video_fails_alone_and_its_list_is_an_input(vid3d, tiny_model, video, broken, tmp_path):
    result = vid3d("extract", *list(broken)[:2], video, *list(broken)[2:], "--out", "f.npy", "--failures", "bad.jsonl")
    assert result.exit_code == 1
    assert np.load(tmp_path / "f.npy").shape[0] == 1
    failures = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {f["video"]: f["error"] for f in failures} == broken
    assert all(f["message"] and "\n" not in f["message"] for f in failures)
    assert "4 of 5 videos failed" in result.stderr
    assert "@bad.jsonl" in result.stderr
    write_video(tmp_path / "gone.mp4", num_frames=10)
    again = vid3d("classify", "@bad.jsonl", "--per", "video")
    assert again.exit_code == 1
    assert [record["video"] for record in lines_of(again)] == ["gone.mp4"]


@pytest.mark.parametrize("content", ["notes\n", '{"video": "a.mp4"}\n', '{"video": "a", "error": "b", "message": ""'])
def test_a_list_of_failures_replaces_nothing_else(vid3d, tiny_model, video, tmp_path, content):
    (tmp_path / "bad.jsonl").write_text(content)
    for command in (["classify", "no.mp4"], ["extract", "no.mp4", "--out", "f.npy"]):
        result = vid3d(*command, "--failures", "bad.jsonl")
        assert (result.exit_code, "bad.jsonl: already exists, and is no list of failures" in result.stderr) == (2, True)
    assert (tmp_path / "bad.jsonl").read_text() == content
    (tmp_path / "bad.jsonl").write_text("")
    for name in ("no.mp4", "not.mp4"):
        assert vid3d("classify", name, "--failures", "bad.jsonl").exit_code == 1
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["video"] == "not.mp4"
    assert vid3d("classify", video, "--failures", "/dev/null").exit_code == 1
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize(
    ("out", "options", "listed", "written"),
    [
        ("f.npy", [], "f.failures.jsonl", ["f.npy"]),
        ("f.npy", ["--no-concat"], "f.failures.jsonl", ["f_rgb.npy", "f_flow.npy"]),
        ("f.npy", ["--shard", "1/1"], "f.shard-1-of-1.failures.jsonl", ["f.shard-1-of-1.npy"]),
        ("f.npz", [], "f.npz.failures.jsonl", ["f.npz"]),
        ("f/", [], "f/failures.jsonl", ["f"]),
    ],
)
def test_extract_names_the_files_that_exist(vid3d, tiny_model, video, tmp_path, out, options, listed, written):
    (tmp_path / "empty.mp4").touch()
    result = vid3d("extract", video, "empty.mp4", "--out", out, *options)
    assert f"1 of 2 videos failed; listed in {listed}; retry with --redo-failed\n" in result.stderr
    assert result.stderr.endswith(f"1 clip of 1 video → {' and '.join(written)}\n")
    assert all((tmp_path / name).exists() for name in [listed, *written])


@pytest.mark.parametrize("arguments", [["--device", "bogus"], ["--window", "4"], ["--weights", "rgb=gone.pt"], []])
def test_a_command_that_cannot_start_touches_no_file(vid3d, tiny_model, tmp_path, arguments):
    files = {"keep.jsonl": b'{"video": "gone.mp4"}\n', "bad.jsonl": b'{"video": "gone.mp4"}\n'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = vid3d("classify", "gone.mp4", "-o", "keep.jsonl", "--failures", "bad.jsonl", *arguments)
    assert result.exit_code == (3 if "--weights" in arguments else 2)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert vid3d("classify", "gone.mp4", "-o", "keep.jsonl", "--overwrite").exit_code == 1
    assert (tmp_path / "keep.jsonl").read_bytes() == files["keep.jsonl"]


def test_outputs_are_checked_before_weights_are_fetched(vid3d, video, monkeypatch):
    monkeypatch.setattr("vid3d_cli.models.weights.pull", lambda file, **_: pytest.fail("downloaded for nothing"))
    assert vid3d("extract", video, "--out", "feats.txt").exit_code == 2
    assert vid3d("classify", video, "--device", "bogus").exit_code == 2


def test_missing_videos_are_found_before_weights_are_fetched(vid3d, video, monkeypatch):
    fetched = []
    monkeypatch.setattr("vid3d_cli.models.weights.pull", lambda file, **_: fetched.append(file) or sys.exit(3))
    for command in (["classify"], ["extract", "--out", "f.npy"]):
        result = vid3d(*command, "no.mp4", "not.mp4")
        assert (result.exit_code, result.stderr.count("no such file"), fetched) == (1, 2, [])
        assert "2 of 2 videos failed" in result.stderr
        assert "None" not in result.stderr
    assert vid3d("classify", "no.mp4", video).exit_code == 3
    assert fetched


def test_another_recipe_is_refused_before_weights_are_fetched(vid3d, tiny_model, video, monkeypatch):
    assert vid3d("extract", video, "--out", "f.npy").exit_code == 0
    monkeypatch.setattr("vid3d_cli.models.weights.pull", lambda file, **_: pytest.fail("downloaded for nothing"))
    result = vid3d("extract", video, "--out", "f.npy", "--model", "i3d.charades")
    assert (result.exit_code, "model: i3d.kinetics400 there, i3d.charades now" in result.stderr) == (2, True)


def test_names_that_are_not_utf8(vid3d, tiny_model, tmp_path):
    video = write_video(tmp_path / os.fsdecode(b"caf\xe9.mp4"), num_frames=10)
    for form in ("jsonl", "csv"):
        assert vid3d("classify", video, "-o", f"out.{form}").exit_code == 0
    (record,) = [r for r in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()) if r["clip"] is None]
    assert record["video"] == str(video)
    assert rb"caf\udce9.mp4" in (tmp_path / "out.csv").read_bytes()


def test_an_unwritable_list_of_failures_is_refused_first(vid3d, tiny_model, video, tmp_path):
    (tmp_path / "folder").mkdir()
    result = vid3d("extract", video, "--out", "f.npy", "--failures", "folder")
    assert (result.exit_code, "folder: cannot be written: it is a directory" in result.stderr) == (1, True)
    assert vid3d("extract", video, "--out", "f.npy", "--failures", "f.npy").exit_code == 2
    assert vid3d("classify", video, "-o", "o", "--failures", "./o").exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "video.mp4", "checkpoint.pt"}


def test_scores_that_are_not_finite_are_a_failure_of_the_video(vid3d, tiny_model, video, monkeypatch):
    import conftest

    real = conftest.TinyNet.forward
    monkeypatch.setattr(conftest.TinyNet, "forward", lambda net, clips: real(net, clips * float("nan")))
    result = vid3d("classify", video)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not finite" in result.stderr


@pytest.mark.parametrize("name", ["[abc] x.mp4", "dir[/x].mp4", ":cat:.mp4", "n" * 240 + ".mp4"])
def test_names_with_special_characters(vid3d, tiny_model, tmp_path, name):
    video = write_video(tmp_path / "v.mp4", num_frames=5).rename(tmp_path / name.replace("/", "_"))
    table = vid3d("classify", video.name, "--format", "table")
    assert (table.exit_code, video.name[:60] in table.stdout) == (0, True)
    assert vid3d("probe", video.name, "--format", "table").exit_code == 0
    assert vid3d("extract", video.name, "--out", "out/").exit_code == 0


def test_pipes_in_a_directory_are_skipped(vid3d, tiny_model, tmp_path):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", num_frames=5)
    os.mkfifo(tmp_path / "in" / "b.mp4")
    assert [record["video"] for record in lines_of(vid3d("classify", "in", "--per", "video"))] == ["in/a.mp4"]


def test_a_job_without_results_leaves_no_output(vid3d, tiny_model, broken, tmp_path):
    before = set(tmp_path.iterdir())
    assert vid3d("extract", "empty.mp4", "--out", "f.npy").exit_code == 1
    assert set(tmp_path.iterdir()) - before == {tmp_path / "f.failures.jsonl"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topk", "0"], "--topk 0: give 1 or more"),
        (["--per", "frame"], "--per frame: choose one of clip, video"),
        (["--format", "xml"], f"--format xml: choose one of table, {', '.join(FORMATS)}"),
        (["--model", "i3d.kinetic400"], "did you mean 'i3d.kinetics400'"),
        (["--weights", "i3d.pt"], "write rgb=FILE or flow=FILE"),
        (["--fuse", "1"], "such as 1:1"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--precision", "fp8"], "--precision fp8: choose one of fp32, bf16, fp16, auto"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
        (["--window", "-1"], "--window -1: give 1 or more"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_usage_errors(vid3d, tiny_model, video, arguments, message):
    result = vid3d("classify", video, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert re.fullmatch("vid3d: error: .*\n", result.stderr)


def test_missing_weights(vid3d, video, monkeypatch, tmp_path):
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    for command in (["classify", video], ["extract", video, "--out", "f.npy"], ["weights", "path", "i3d"]):
        result = vid3d(*command)
        assert (result.exit_code, result.stdout) == (3, "")
        for needed in (
            "rgb_imagenet.pt",
            str(tmp_path / "cache"),
            "flow_imagenet.pt",
            "https://",
            "unset VID3D_OFFLINE, then: vid3d weights pull i3d.kinetics400\n",
            "--weights rgb=FILE --weights flow=FILE",
            f"--model s3d_mini; it recognises {find_model('s3d_mini').num_classes} motions of the camera",
        ):
            assert needed in result.stderr
        assert result.stderr.count(", and no source gave them") == (command[0] != "weights")
    assert vid3d("classify", video, "--weights", "rgb=nope.pt").exit_code == 3


def test_lists_on_standard_input(vid3d, tiny_model, tmp_path):
    for name in ("one.mp4", "with space.mp4"):
        write_video(tmp_path / name, num_frames=5)
    newline = vid3d("classify", "-", "--per", "video", stdin=b"one.mp4\nwith space.mp4\n")
    nul = vid3d("classify", "-0", "-", "--per", "video", stdin=b"one.mp4\0with space.mp4\0")
    assert [r["video"] for r in lines_of(newline)] == ["one.mp4", "with space.mp4"]
    assert newline.stdout == nul.stdout
    assert vid3d("classify", "-0", "one.mp4").exit_code == 2


def test_global_flags_are_accepted_anywhere(vid3d, tiny_model, video, broken):
    for arguments in (["-q", "classify", "--window", "-1", "x"], ["classify", "--window", "-1", "x", "-q"]):
        assert vid3d(*arguments).exit_code == 2
    assert vid3d("classify", "--window", "x", "x", "-q").exit_code == 2
    for arguments in (["--debug", "classify", "empty.mp4"], ["classify", "empty.mp4", "--debug"]):
        assert "Traceback" in vid3d(*arguments).stderr
    assert "Traceback" not in vid3d("classify", "empty.mp4").stderr
    said = vid3d("--debug", "classify", "--flow-files", "\x1b[31m", "empty.mp4")
    assert "Traceback" in said.stderr and "\x1b" not in said.stderr
    lines = vid3d("--debug", "-q", "--log-json", "classify", "empty.mp4").stderr.splitlines()
    assert "Traceback" in "".join(json.loads(line)["message"] for line in lines)
    said = {flag: vid3d("classify", video, flag).stderr for flag in ("-v", "-q")}
    assert "rgb + flow, fp32, PyTorch on the CPU" in said["-v"]
    assert "40 frames, 1 clip" in said["-v"]
    assert said["-q"] == ""


def test_parse_weights():
    assert parse_weights(["rgb=a=b.pt", "flow=c.pt"]) == {"rgb": "a=b.pt", "flow": "c.pt"}
    for bad in ("a.pt", "audio=a.pt", "rgb="):
        with pytest.raises(UsageError):
            parse_weights([bad])


# probe, flow, models -------------------------------------------------------------------------------------------------


def test_probe(vid3d, video, broken):
    result = vid3d("probe", video, "empty.mp4")
    assert result.exit_code == 1
    (info,) = lines_of(result)
    assert (info["width"], info["height"], info["fps"], info["rotation_degrees"]) == (64, 48, 25, 0)
    assert (info["num_frames_declared"], info["num_frames_decoded"], info["num_decode_failures"]) == (40, 40, 0)
    assert "empty.mp4" in result.stderr
    assert json.loads(vid3d("probe", video, "--format", "json").stdout) == [info]
    table = vid3d("probe", video, "--format", "table").stdout
    assert "64×48" in table
    assert "40" in table
    assert json.loads(vid3d("probe", video, "--no-decode").stdout)["num_frames_decoded"] is None


def test_flow_forms(vid3d, video, tmp_path):
    for out in ("flow.npz", "film.mp4", "images/"):
        assert vid3d("flow", video, "--out", out, "--end", 0.2).exit_code == 0
    with np.load(tmp_path / "flow.npz") as arrays:
        assert arrays["flow"].shape == (4, 256, 341, 2)
    assert len(list((tmp_path / "images").glob("flow_x_*.jpg"))) == 4
    result = vid3d("flow", video, "--out", "flow.npz")
    assert (result.exit_code, "--overwrite" in result.stderr) == (2, True)
    assert vid3d("flow", video, "--out", "flow.bmp").exit_code == 2
    assert vid3d("flow", video, "--out", "x.npz", "--flow", "tvl2").exit_code == 2
    assert vid3d("flow", video, "--out", "x.npz", "--dtype", "banana").exit_code == 2
    assert vid3d("extract", video, "--out", "").exit_code == 2


def test_models_lists_what_the_manifest_has(vid3d):
    rows = {row["model"]: row for row in lines_of(vid3d("models"))}
    assert rows["i3d.kinetics400"]["classes"] == 400
    assert rows["i3d.kinetics400"]["parameters"] == {"rgb": 12_697_264, "flow": 12_675_312}
    assert [p["top1"] for p in rows["i3d.kinetics400"]["published"][:3]] == [71.1, 63.4, 74.2]


# eval ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(vid3d, tiny_model, tmp_path):
    """Four videos; the labels of the first two are the model's predictions, the others' are wrong."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        write_video(tmp_path / "in" / f"{i}.mp4", num_frames=10 + i)
    records = lines_of(vid3d("classify", "in", "--per", "video", "--topk", 400))
    found = [record["fused"][0 if i < 2 else -1]["label"] for i, record in enumerate(records)]
    rows = [f'in/{i}.mp4,"{label}"' for i, label in enumerate(found)]
    (tmp_path / "labels.csv").write_text("video,label\n" + "\n".join(rows) + "\n")
    return found


def test_eval_measures_every_stream(vid3d, labelled):
    result = vid3d("eval", "--labels", "labels.csv", "in", "--sweep-fusion")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["num_videos"] == 4
    assert set(report["metrics"]) == {"rgb", "flow", "fused"}
    assert report["metrics"]["fused"]["top1"] == 0.5
    assert sum(n for row in report["confusion"].values() for n in row.values()) == 4
    assert set(report["confusion"]) == set(labelled)
    assert report["fusion_sweep"]["1.0:0.0"] == report["metrics"]["rgb"]


def test_the_title_of_eval_is_one_line(vid3d, labelled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = vid3d("eval", "--labels", "labels.csv", "in", "--format", "table").stdout.splitlines()
    assert shown[0].endswith(" on 4 videos, percent")
    assert "confusion of the fused scores" in shown


def test_eval_reads_labels_from_standard_input(vid3d, labelled, tmp_path):
    arguments = ["eval", "in", "--streams", "rgb", "--labels"]
    piped = vid3d(*arguments, "-", stdin=(tmp_path / "labels.csv").read_bytes())
    assert (piped.exit_code, piped.stdout) == (0, vid3d(*arguments, "labels.csv").stdout)
    both = vid3d("eval", "-", "--labels", "-", stdin=b"")
    assert (both.exit_code, "not both" in both.stderr) == (2, True)


def test_eval_reports_labels_that_do_not_fit(vid3d, labelled, tmp_path):
    (tmp_path / "some.csv").write_text(f'video,label\n0,"{labelled[0]}"\n')
    result = vid3d("eval", "--labels", "some.csv", "in")
    assert json.loads(result.stdout)["num_videos"] == 1
    assert "skipping 3 videos without a label" in result.stderr
    (tmp_path / "more.csv").write_text(f'video,label\n0,"{labelled[0]}"\n8,zumba\n9,zumba\n')
    assert "skipping 2 labels of more.csv without a video" in vid3d("eval", "--labels", "more.csv", "in").stderr
    (tmp_path / "no.csv").write_bytes(b"\x93NUMPY")
    result = vid3d("eval", "--labels", "no.csv", "in")
    assert (result.exit_code, "not a text file: give a CSV file with" in result.stderr) == (2, True)
    (tmp_path / "none.csv").write_text("video,label\nother.mp4,zumba\n")
    result = vid3d("eval", "--labels", "none.csv", "in")
    assert (result.exit_code, "has no label for the 4 videos given" in result.stderr) == (2, True)
    (tmp_path / "unknown.csv").write_text("video,label\n0,zumbaa\n")
    result = vid3d("eval", "--labels", "unknown.csv", "in")
    assert (result.exit_code, "did you mean 'zumba'" in result.stderr) == (2, True)


# As a process --------------------------------------------------------------------------------------------------------

# Runs the command line with TinyNet in place of the network, and slow enough to be interrupted.
SLOW = """
import signal, sys, time, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where these are ignored: nohup, cron, CI
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for number in {ignored}:
    signal.signal(number, signal.SIG_IGN)
sys.path.insert(0, {tests!r})
import vid3d_cli.models.clip_model, vid3d_cli.models.weights, vid3d_cli.runtimes, vid3d_cli.cli
from conftest import TinyNet
from vid3d_cli.runtimes.torch import TorchRuntime
vid3d_cli.models.clip_model.create_model = lambda name, *, stream, **_: TinyNet(stream).eval()
vid3d_cli.models.weights.pull = lambda file, **_: pathlib.Path({checkpoint!r})
vid3d_cli.runtimes.has_openvino = lambda: False
start = TorchRuntime.start
TorchRuntime.start = lambda self, clips: (time.sleep({seconds}), start(self, clips))[1]
vid3d_cli.cli.main()
"""


def start(tmp_path, *arguments, seconds=0.0, ignored=(), **options):
    checkpoint = tmp_path / "stand-in.pt"
    checkpoint.write_bytes(b"x")
    tests = str(Path(__file__).parents[1])
    script = SLOW.format(tests=tests, checkpoint=str(checkpoint), seconds=seconds, ignored=ignored)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=tmp_path, **{**pipes, **options})


@pytest.mark.parametrize(
    ("out", "number", "code"),
    [
        ("f.npy", 2, 130),
        pytest.param("f.npz", 15, 143, marks=pytest.mark.exhaustive),
        pytest.param("f/", 2, 130, marks=pytest.mark.exhaustive),
        pytest.param("f.npy", 1, 143, marks=pytest.mark.exhaustive),
        pytest.param("f/", 15, 143, marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_job_keeps_finished_videos_and_resumes(tmp_path, out, number, code):
    for i in range(8):
        write_video(tmp_path / f"{i}.mp4", num_frames=20)
    videos = [f"{i}.mp4" for i in range(8)]
    arguments = ["extract", *videos, "--out", out, "--window", 10, "--failures", "bad.jsonl", "-v"]
    process = start(tmp_path, *arguments, seconds=0.5)
    for line in process.stderr:
        if line.startswith(b"vid3d: debug: 1.mp4"):  # two of eight are done
            break
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    told = {1: b"terminated (SIGHUP)", 2: b"interrupted", 15: b"terminated (SIGTERM)"}
    assert told[number] + b"\n" in stderr
    assert b"Traceback" not in stderr
    not_done = [json.loads(line)["video"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    num_done = 8 - len(not_done)
    assert 2 <= num_done < 8
    assert not_done == videos[num_done:]
    assert f"{num_done} videos of 8 kept in {out.rstrip('/')}; run the same command to resume".encode() in stderr
    assert not (tmp_path / "f.npz").exists()  # it appears only when it is complete
    process = start(tmp_path, *arguments)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"{num_done} of 8 videos done before; {8 - num_done} left".encode() in stderr
    with open_store(str(tmp_path / out)) as store:
        assert [entry.video for entry in store.entries()] == videos
        assert [entry.num_rows for entry in store.entries()] == [2] * 8
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.exhaustive
def test_signals_that_nohup_and_cron_ignore_stay_ignored(tmp_path):
    for i in range(8):
        write_video(tmp_path / f"{i}.mp4", num_frames=20)
    arguments = ["extract", *[f"{i}.mp4" for i in range(8)], "--out", "f/", "--window", 10, "-v"]
    process = start(tmp_path, *arguments, seconds=0.5, ignored=(1, 2))
    for line in process.stderr:
        if line.startswith(b"vid3d: debug: 1.mp4"):
            process.send_signal(1)
            process.send_signal(2)
        if line.startswith(b"vid3d: debug: 3.mp4"):
            process.terminate()
            break
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, b"terminated (SIGTERM)" in stderr) == (143, True)
    with open_store(tmp_path / "f") as store:
        assert 4 <= len(store.entries()) < 8


@pytest.mark.exhaustive
def test_a_closed_terminal_ends_a_job_cleanly(tmp_path):
    """Also if stdout and stderr are that terminal, so that every message fails."""
    for i in range(8):
        write_video(tmp_path / f"{i}.mp4", num_frames=20)
    screen, terminal = pty.openpty()
    arguments = ["extract", *[f"{i}.mp4" for i in range(8)], "--out", "f/", "--window", 10, "--failures", "bad.jsonl"]
    session = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0)}
    process = start(tmp_path, *arguments, seconds=0.5, stdin=terminal, stdout=terminal, stderr=terminal, **session)
    os.close(terminal)
    while len(list((tmp_path / "f").glob("*.npz"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.close(screen)
    assert process.wait(timeout=30) == 143
    not_done = (tmp_path / "bad.jsonl").read_text().splitlines()
    with open_store(tmp_path / "f") as store:
        assert 2 <= len(store.entries()) == 8 - len(not_done)


@pytest.mark.exhaustive
def test_a_full_disk_below_stdout_is_one_line(tmp_path):
    write_video(tmp_path / "0.mp4", num_frames=10)
    with Path("/dev/full").open("w") as full:
        process = start(tmp_path, "classify", "0.mp4", stdout=full)
        stderr = process.communicate()[1]
    assert process.returncode == 1
    _, error = stderr.splitlines()  # after the line that names the device
    assert error == b"vid3d: error: the results cannot be written: No space left on device"


def test_a_closed_pipe_is_not_a_traceback(tmp_path):
    for i in range(3):
        write_video(tmp_path / f"{i}.mp4", num_frames=10)
    process = start(tmp_path, "classify", *[f"{i}.mp4" for i in range(3)])
    assert json.loads(process.stdout.readline())["video"] == "0.mp4"
    process.stdout.close()
    stderr = process.stderr.read()
    process.wait(timeout=20)
    assert b"Traceback" not in stderr
    assert b"Exception" not in stderr
    assert process.returncode == 141
