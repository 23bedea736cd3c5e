"""`vid3d extract --dry-run` predicts what the job does, without running a network."""

import json
import os
import subprocess
import sys

import pytest
import torch
from videos import cut, write_video

import vid3d_cli.models.weights
import vid3d_cli.runtimes
from vid3d_cli.cli import dry_run
from vid3d_cli.cli.dry_run import describe_bytes
from vid3d_cli.errors import EXIT_SOME_FAILED, EXIT_USAGE
from vid3d_cli.features.format import FeatureFormat
from vid3d_cli.jobs import planning
from vid3d_cli.models.clip_model import ClipModel, LayerTap, Normalise, create_model
from vid3d_cli.models.manifest import find_model
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.runtimes import estimate
from vid3d_cli.runtimes.estimate import clip_cost

I3D_BYTES = 2 * 1024 * 4
"""Bytes of a row of both streams."""


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    """Fix the measured speed of the machine."""
    monkeypatch.setattr(estimate, "matrix_product_rate", lambda device, precision: 1e12)


@pytest.fixture
def plan(vid3d):
    """Return the lines of the videos, and the line of totals."""

    def run(*args):
        result = vid3d("extract", *args, "--dry-run")
        assert result.exit_code == 0, result.stderr
        *videos, totals = map(json.loads, result.stdout.splitlines())
        assert totals.pop("event") == "plan"
        return videos, totals

    return run


def files_below(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--window", 16, "--stride", 5],
        ["--window", 16, "--tail", "drop"],
        ["--window", 16, "--fps", "10"],
        ["--window", 16, "--fps", "native", "--start", 0.5, "--end", 1.25],
        ["--window", 16, "--stride", 8, "--dense"],
        ["--window", 16, "--dtype", "float16", "--no-concat"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_it_predicts_the_rows_that_the_job_writes(vid3d, plan, tiny_model, tmp_path, options):
    for i, (num_frames, fps) in enumerate([(40, 25), (70, 30), (7, 25)]):
        write_video(tmp_path / f"{i}.mp4", num_frames=num_frames, fps=fps)
    args = ["0.mp4", "1.mp4", *([] if "--start" in options else ["2.mp4"]), "--out", "f.npy", *options]
    videos, totals = plan(*args)
    numbers = I3D_BYTES // (2 if "float16" in options else 1)
    assert [v["bytes"] for v in videos] == [v["rows"] * numbers for v in videos]
    assert totals["rows"] == sum(v["rows"] for v in videos)
    if "--dense" in options:
        assert totals["clips"] < totals["rows"]
        return  # TinyNet cannot
    assert totals["clips"] == totals["rows"]
    assert vid3d("extract", *args).exit_code == 0
    entries = [json.loads(line) for line in (tmp_path / "f.videos.jsonl").read_text().splitlines()]
    assert [(v["rows"], v["frames"]) for v in videos] == [(e["num_rows"], e["num_frames"]) for e in entries]


def test_totals_add_up_and_the_time_counts_the_networks(plan, tiny_model, video):
    videos, totals = plan(video, "--out", "f.npy", "--window", 64, "--estimate")
    (planned,) = videos
    entry = find_model("i3d")
    assert planned["multiply_adds"] == sum(entry.streams[s].multiply_adds for s in ("rgb", "flow"))
    assert (planned["seconds"], planned["frames"], planned["clips"]) == (1.6, 40, 1)
    assert totals["estimate"]["seconds"] == pytest.approx(2 * planned["multiply_adds"] / 1e12)
    assert "networks only" in totals["estimate"]["rests_on"]
    assert "1,000 GFLOP/s in fp32 on cpu" in totals["estimate"]["rests_on"]
    _, crops = plan(video, "--out", "f.npy", "--crops", 10, "--keep-crops", "--estimate")
    assert (crops["bytes"], crops["multiply_adds"]) == (10 * totals["bytes"], 10 * totals["multiply_adds"])


@pytest.mark.parametrize("num_frames", [16, 24])
@pytest.mark.parametrize(
    ("layer", "pool", "is_dense"),
    [(None, "avg", False), (None, "avg", True), ("first", "none", False), ("first", "spatial", False)],
)
def test_shapes_are_those_of_the_real_network(layer, pool, is_dense, num_frames):
    entry = find_model("s3d_mini.camera_motion")
    backbone = BACKBONES[entry.backbone]
    layer = layer and next(iter(backbone.layers))
    net = create_model(entry.backbone, stream="flow")
    tap = layer and LayerTap(net, backbone.layers[layer], pool)
    normalisation = entry.streams["flow"].normalisation
    with torch.inference_mode():
        model = ClipModel(net, Normalise(normalisation), tap, is_dense)
        expected = model(torch.zeros(1, num_frames, 64, 96, 2)).features.shape[1:]
    cost = clip_cost(
        entry.backbone, "flow", normalisation, (num_frames, 64, 96), layer=layer, pool=pool, is_dense=is_dense
    )
    assert cost.feature_shape == tuple(expected[:-1] if is_dense else expected)
    assert cost.multiply_adds > 0


def test_whole_frames_of_two_sizes_have_rows_of_two_sizes(plan, tiny_model, tmp_path):
    write_video(tmp_path / "a.mp4", width=64, height=48)
    write_video(tmp_path / "b.mp4", width=96, height=48)
    options = ["--out", "f/", "--resize-only", "--layer", "Mixed_4f", "--pool", "none", "--streams", "rgb"]
    videos, _ = plan("a.mp4", "b.mp4", *options)
    a, b = ((256, int(256 * ratio)) for ratio in (64 / 48, 2))
    assert [v["bytes"] for v in videos] == [832 * 16 * -(-h // 16) * -(-w // 16) * 4 for h, w in (a, b)]


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (4e15, "4000.0 TB")])
def test_bytes_are_readable(number, text):
    assert describe_bytes(number) == text


# What it does not do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["f.npy", "f.npz", "f/"])
def test_it_needs_no_weights_runs_no_network_and_writes_nothing(plan, video, tmp_path, monkeypatch, out):
    def refuse(*args, **options):
        raise AssertionError("not in a dry run")

    monkeypatch.setattr(vid3d_cli.models.weights, "pull", refuse)
    monkeypatch.setattr(vid3d_cli.runtimes, "create_runtime", refuse)
    before = files_below(tmp_path)
    videos, _ = plan(video, "--out", out)
    assert [v["rows"] for v in videos] == [1]
    assert files_below(tmp_path) == before


def test_incompatible_options_are_refused(vid3d, tiny_model, video):
    for options, words in ((["--layer", "Mixed_9z"], "has no layer"), (["--device", "gpu"], "unknown device")):
        result = vid3d("extract", video, "--out", "f.npy", "--dry-run", *options)
        assert result.exit_code == EXIT_USAGE
        assert words in result.stderr


# Videos that cannot be read ------------------------------------------------------------------------------------------


def test_unreadable_videos_are_listed_with_their_reason(vid3d, plan, tiny_model, video, tmp_path):
    cut(write_video(tmp_path / "cut.mp4"), keep=0.5)
    (tmp_path / "empty.mp4").touch()
    lines, totals = plan(video, "cut.mp4", "empty.mp4", "nowhere.mp4", "--out", "f.npy")
    assert [line.get("error") for line in lines] == [None, "TruncatedVideo", "EmptyFile", "VideoNotFound"]
    assert lines[3] == {"video": "nowhere.mp4", "error": "VideoNotFound", "message": "no such file"}
    assert (totals["videos"], totals["cannot_be_opened"], totals["rows"]) == (4, 3, 1)
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines[1:]))
    assert plan("@list.jsonl", "--out", "f.npy")[0] == lines[1:]


@pytest.mark.parametrize(("span", "seconds"), [([0.1, 0.9], 0.8), ([0.4, 99], 1.2)])
def test_seconds_are_those_read(plan, tiny_model, video, span, seconds):
    (line,), totals = plan(video, "--out", "f.npy", "--start", span[0], "--end", span[1])
    assert (line["seconds"], line["frames"], totals["seconds"]) == (seconds, 25 * seconds, seconds)


def test_a_start_after_the_end_is_a_failure(plan, tiny_model, video):
    (line,), totals = plan(video, "--out", "f.npy", "--start", 5)
    assert (line["error"], totals["cannot_be_opened"]) == ("NoFrames", 1)
    assert "nothing to read from 5 s on" in line["message"]
    assert totals["estimate"] is None


def test_totals_leave_out_videos_of_unknown_length(plan, tiny_model, video, tmp_path):
    write_video(tmp_path / "raw.h264", codec="libx264")
    (a, b), totals = plan(video, "raw.h264", "--out", "f.npy")
    assert (a["rows"], b["rows"], b["bytes"]) == (1, None, None)
    assert (totals["unknown_length"], totals["rows"]) == (1, 1)


def test_names_that_are_not_utf8(plan, tiny_model, tmp_path):
    name = os.fsdecode(b"\xff.mp4")
    write_video(tmp_path / "a.mp4").rename(tmp_path / name)
    (line,), _ = plan(str(tmp_path), "--out", "f.npy")
    assert line["video"] == str(tmp_path / name)


# Existing outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["f.npy", "f.npz", "f/"])
def test_finished_videos_are_left_out(vid3d, plan, tiny_model, tmp_path, out):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    assert vid3d("extract", "a.mp4", "broken.mp4", "--out", out).exit_code == EXIT_SOME_FAILED
    everything = ["a.mp4", "broken.mp4", "b.mp4", "--out", out]
    lines, totals = plan(*everything)
    assert [line["video"] for line in lines] == ["b.mp4"]
    assert (totals["done_before"], totals["failed_before"]) == (1, 1)
    assert [line["video"] for line in plan(*everything, "--redo-failed")[0]] == ["broken.mp4", "b.mp4"]
    assert [line["video"] for line in plan(*everything, "--overwrite")[0]] == ["a.mp4", "broken.mp4", "b.mp4"]
    write_video(tmp_path / "a.mp4", num_frames=50)  # another file
    lines, totals = plan(*everything)
    assert [line["video"] for line in lines] == ["a.mp4", "b.mp4"]
    assert totals["done_before"] == 0


def test_another_recipe_is_refused_as_by_the_job(vid3d, plan, tiny_model, video):
    assert vid3d("extract", video, "--out", "f.npy", "--window", 16).exit_code == 0
    result = vid3d("extract", video, "--out", "f.npy", "--window", 20, "--dry-run")
    assert result.exit_code == EXIT_USAGE
    assert "window: 16 there, 20 now" in result.stderr
    assert len(plan(video, "--out", "f.npy", "--window", 20, "--overwrite")[0]) == 1


# On a terminal -------------------------------------------------------------------------------------------------------


def test_on_a_terminal_it_is_a_table_with_totals(vid3d, tiny_model, video, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "MAX_LISTED", 2)
    monkeypatch.setenv("COLUMNS", "120")
    for i in range(4):
        os.link(video, tmp_path / f"{i}.mp4")
    (tmp_path / "empty.mp4").touch()
    words = ["--dry-run", "--estimate", "--format", "table"]
    result = vid3d("extract", *[f"{i}.mp4" for i in range(4)], "empty.mp4", "--out", "f.npy", *words)
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "0.mp4 1.6 40 1 1 8.2 kB" in lines
    assert not any(line.startswith("2.mp4") for line in lines)
    assert "… and 2 more; a pipe gets all" in lines
    assert "4 videos 6.4 160 4 4 32.8 kB" in lines
    assert "empty.mp4: the file is empty (0 bytes); fetch it again" in lines
    assert "1 video cannot be opened" in lines
    assert any(line.startswith("about 2 s: networks only") for line in lines)
    ask = "for the time, add --estimate"
    assert ask not in lines
    assert vid3d("extract", video, "--out", "f.npy", "--dry-run", "--format", "table").stdout.endswith(f"{ask}\n")


def test_headers_are_read_on_demand(tiny_model, video, monkeypatch):
    """A list of 100,000 videos is neither opened nor held at once."""
    opened = []
    read = planning._read_header
    monkeypatch.setattr(planning, "_HANDED_OUT_AT_A_TIME", 2)
    monkeypatch.setattr(planning, "_read_header", lambda p, v, d: opened.append(v) or read(p, v, d))
    plans = planning.plan_videos(Plan.make(Options()), [str(video)] * 100_000, FeatureFormat())
    assert next(plans).rows == 1
    plans.close()
    assert len(opened) == 2


@pytest.mark.parametrize("name", [name for name in BACKBONES if "own" not in name])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_registry_gives_the_bytes_of_the_network(name, stream):
    """A dry run loads no network: the registry has the width of its features."""
    entry = find_model(name)
    facts = entry.streams.get(stream) or entry.streams["rgb"]
    if stream not in entry.streams:
        pytest.skip("no such stream")
    frames = min(entry.clip_length, 16) if not BACKBONES[name].is_fixed_size else entry.clip_length
    cost = clip_cost(name, stream, facts.normalisation, (frames, entry.crop_px, entry.crop_px), variant=entry.variant)
    assert cost.feature_shape == (BACKBONES[name].feature_dim,)


def test_without_an_estimate_torch_is_not_imported(video):
    code = (
        "import sys\nfrom vid3d_cli.cli import app\n"
        f"app(['extract', {str(video)!r}, '--out', 'f.npy', '--dry-run'], standalone_mode=False)\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, totals = map(json.loads, done.stdout.splitlines())
    assert (totals["rows"], totals["multiply_adds"], totals["estimate"]) == (1, None, None)


@pytest.mark.parametrize("option", [["--estimate"], ["--format", "table"]])
def test_an_estimate_and_its_format_are_for_a_dry_run(vid3d, tiny_model, video, option):
    result = vid3d("extract", video, "--out", "f.npy", *option)
    assert (result.exit_code, f"{option[0]} needs --dry-run" in result.stderr) == (EXIT_USAGE, True)


def test_digests_unknown_without_weights_are_unchecked(plan, vid3d, tiny_model, video):
    """A checkpoint that was never downloaded has no digest to compare; "auto" precision adopts the output's."""
    assert vid3d("extract", video, "--out", "f.npy", "--window", 16, "--streams", "flow").exit_code == 0
    _, totals = plan(video, "--out", "f.npy", "--window", 16, "--streams", "flow")
    assert (totals["videos"], totals["done_before"]) == (0, 1)
    assert totals["unchecked"] == ["flow"]
