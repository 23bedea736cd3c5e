"""`vid3d features`: inspecting, checking, merging, converting and comparing every format."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from disks import _fast_disk  # noqa: F401
from formats import FORMATS, skip_without_package, split

from vid3d_cli.cli import formats
from vid3d_cli.errors import EXIT_SOME_FAILED, EXIT_USAGE, OutputError, UsageError
from vid3d_cli.features.entries import FailedVideo, VideoFeatures
from vid3d_cli.features.format import FeatureFormat
from vid3d_cli.features.merging import merge
from vid3d_cli.features.store import read_verified
from vid3d_cli.features.stores import create_store, open_store
from vid3d_cli.recipe import Recipe, StreamRecipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.video.fingerprint import Fingerprint

D = 6
STREAMS = ("rgb", "flow")
RECIPE = Recipe(
    model="i3d.kinetics400",
    streams={s: StreamRecipe(f"i3d.kinetics400:{s}", "ab" * 32, "to [-1, 1]") for s in STREAMS},
    fps="25",
    start_seconds=0.0,
    end_seconds=None,
    window=16,
    stride=8,
    tail="pad",
    resize="short side 256 px, bilinear",
    crops="centre 224 px",
    keeps_crops=False,
    variant=None,
    features="pooled",
    flow="dis",
    runtime="torch on cpu",
    precision="fp32",
    versions={"vid3d": "0.1.0"},
    numerics=1,  # as in recipes from before this key
)
NUM_CLIPS = {"in/a.mp4": 2, "in/sub/deep/b.mp4": 1, "in/c.mov": 3}
VIDEOS = list(NUM_CLIPS)

every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(autouse=True)
def _skip_what_is_not_installed(request):
    if hasattr(request.node, "callspec"):
        skip_without_package(*request.node.callspec.params.values())


def make_result(video, num_clips=None, *, dim=D, value=None, num_lost=0):
    """Clips of 16 frames every 8 at 25 fps; the same video has the same features."""
    rng = np.random.default_rng(list(os.fsencode(video)))
    num_clips = num_clips or NUM_CLIPS.get(video, 2)
    clips = tuple(
        ClipOutput(
            ClipSpan(i, 8 * i, 16, 8 * i / 25, (8 * i + 16) / 25),
            {
                s: np.full(dim, value, np.float32) if value else rng.normal(0, 9, dim).astype(np.float32)
                for s in STREAMS
            },
            {s: np.zeros(4, np.float32) for s in (*STREAMS, "fused")},
        )
        for i in range(num_clips)
    )
    logits = {s: np.zeros(4, np.float32) for s in (*STREAMS, "fused")}
    return VideoResult(video, clips, logits, ("a", "b", "c", "d"), 25.0, 8 * num_clips + 8, num_lost, RECIPE)


def stem_of(video):
    return PurePosixPath(video).relative_to("in").with_suffix("")


def write(
    out, videos=VIDEOS, *, concat=True, dtype="float32", recipe=RECIPE, worker=None, failed=(), ends=True, results=None
):
    """Write an output as a job does, and give its name for the command line."""
    out, layout = split(str(out))
    form = FeatureFormat(dtype, concat, layout)
    with create_store(out, layout=form.layout, worker=worker) as store:
        store.begin(form.describe(recipe))
        for video in videos:
            result = (results or {}).get(video) or make_result(video)
            store.write(VideoFeatures.of(result, stem_of(video), Fingerprint.of(video), form))
        for video in failed:
            store.write_failure(FailedVideo(video, "NotAVideo", "not a video", None))
        store.commit()
        if ends:
            store.finish()
    return out


def contents(out):
    """[(video, {name: rows}, spans)] in the order that merging reads them; every row is checked."""
    with open_store(str(out).partition("+")[0]) as store:
        wholes = [(entry, read_verified(store, entry)) for entry in store.entries()]
        return [(e.video, {n: np.array(m).tolist() for n, m in w.matrices.items()}, list(w.spans)) for e, w in wholes]


def files_below(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(formats, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize("name", ["info", "get", "check", "merge", "convert", "compare"])
def test_every_command_has_help_with_an_example(vid3d, name):
    result = vid3d("features", name, "--help")
    assert result.exit_code == 0
    assert f"Example: vid3d features {name} " in result.stdout


# info ----------------------------------------------------------------------------------------------------------------


@every_format
def test_info_summarises_the_contents(vid3d, tmp_path, name):
    results = {"in/a.mp4": make_result("in/a.mp4", 5, num_lost=7)}
    out = write(tmp_path / name, results=results, failed=["in/x.mp4", "in/y.mp4"])
    found = json.loads(vid3d("features", "info", out).stdout)
    num_rows = 5 + sum(len(make_result(v).clips) for v in VIDEOS[1:])
    assert (found["videos"], found["rows"]) == (3, num_rows)
    frames = sum(r.num_frames for r in (results["in/a.mp4"], *map(make_result, VIDEOS[1:])))
    assert found["seconds"] == pytest.approx(frames / 25)
    widths = {"rgb": D, "flow": D} if "video_features" in name else {"features": 2 * D}
    assert found["matrices"] == {n: {"shape": [num_rows, w], "dtype": "float32"} for n, w in widths.items()}
    assert (found["recipe"]["model"], found["recipe"]["window"]) == ("i3d.kinetics400", 16)
    assert found["failures"] == {"NotAVideo": 2}
    assert found["lost_frames"] == {"in/a.mp4": 7}
    assert found["unfinished"] is None


@pytest.mark.parametrize("name", ["feats.npz", "feats.h5", "feats.parquet"])
def test_info_reports_a_job_that_has_not_ended(vid3d, tmp_path, name):
    out = write(tmp_path / name, ends=False)
    found = json.loads(vid3d("features", "info", out).stdout)
    assert found["videos"] == 3
    assert found["unfinished"].startswith(f"rows are collected in {tmp_path / name}.part: ")


@pytest.mark.parametrize("how", ["rows too many", "header behind"])
def test_info_reports_rows_that_a_killed_job_left(vid3d, tmp_path, how):
    out = Path(write(tmp_path / "feats.npy"))
    if how == "rows too many":
        out.write_bytes(out.read_bytes() + bytes(2 * D * 4))
    else:
        header = out.read_bytes()
        out.write_bytes(header.replace(b"'shape': (6, 12)", b"'shape': (5, 12)"))
        assert len(np.load(out)) == 5
    found = json.loads(vid3d("features", "info", out).stdout)
    assert found["rows"] == 6
    assert "the 6 that count: a job is running, or was interrupted" in found["unfinished"]


def test_info_is_a_table_on_a_terminal(vid3d, tmp_path, terminal):
    results = {"in/a.mp4": make_result("in/a.mp4", num_lost=7)}
    shown = vid3d("features", "info", write(tmp_path / "feats.npy", results=results, failed=["in/x.mp4"])).stdout
    for words in (
        "6 × 12 float32", "i3d.kinetics400:flow, sha256 abababababab…", "16 frames every 8, tail pad", "1 NotAVideo",
        "in/a.mp4: 7 frames lost", "vid3d 0.1.0", "25 per second; short side 256 px", "torch on cpu, fp32",
    ):  # fmt: skip
        assert words in shown


@pytest.mark.parametrize(("name", "words"), [("no.npy", "no such file"), ("x.npy", "wrote no features there")])
def test_files_of_other_programs_are_no_output(vid3d, tmp_path, name, words):
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    result = vid3d("features", "info", name)
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr


@pytest.mark.exhaustive
def test_every_command_takes_names_that_are_not_utf8(tmp_path):
    video = os.fsdecode(b"in/\xff.mp4")
    out = write(tmp_path / "feats.npy", [video], results={video: make_result(video, num_lost=1)})

    def run(*words, on_terminal=False):
        script = f"from vid3d_cli.cli import formats, main; formats.stdout_is_terminal = lambda: {on_terminal}; main()"
        argv = [sys.executable, "-c", script, "features", *words]
        done = subprocess.run(argv, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for words in (["info", out], ["get", out, b"\xff"]):
        assert rb"in/\xff.mp4" in run(*words, on_terminal=True)
        assert rb"in/\udcff.mp4" in run(*words)
    run("convert", out, "feats/")
    assert tmp_path / "feats" / os.fsdecode(b"\xff.npz") in (tmp_path / "feats").iterdir()
    run("check", "feats/")
    assert rb"in/\udcff.mp4" in run("compare", out, "feats/", "--per-row")


def test_damage_to_one_video_does_not_hide_the_others(vid3d, tmp_path):
    out = Path(write(tmp_path / "feats.npy"))
    flip(out, 128 + 3)
    assert json.loads(vid3d("features", "info", out).stdout)["matrices"]["features"]["shape"] == [6, 2 * D]
    assert len(vid3d("features", "get", out, "b").stdout.splitlines()) == 1
    for words in (["get", out, "a"], ["compare", out, out]):
        result = vid3d("features", *words)
        assert result.exit_code == EXIT_SOME_FAILED
        assert "in/a.mp4: its rows were changed or damaged" in result.stderr


# get -----------------------------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize(
    "asked", ["in/sub/deep/b.mp4", "./in/sub//deep/b.mp4", "sub/deep/b", "deep/b.mp4", "b.mp4", "b"]
)
def test_get_finds_a_video_by_path_stem_or_ending(vid3d, tmp_path, name, asked):
    out = write(tmp_path / name)
    lines = [json.loads(line) for line in vid3d("features", "get", out, asked).stdout.splitlines()]
    result = make_result("in/sub/deep/b.mp4")
    names = list(STREAMS) if "video_features" in name else ["features"]
    assert [list(line) for line in lines] == [
        ["video", "clip", "start_seconds", "end_seconds", "start_frame", "num_valid_frames", *names]
    ] * len(result.clips)
    for line, clip in zip(lines, result.clips, strict=True):
        assert line["video"] == result.video
        assert (line["clip"], line["start_seconds"]) == (clip.span.index, clip.span.start_seconds)
        row = [value for n in names for value in line[n]]
        assert row == np.concatenate([clip.features[s] for s in STREAMS]).tolist()


def test_get_prefers_the_exact_name_and_refuses_to_guess(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy", ["in/a.mp4", "in/x/a.mp4", "in/y/b.mp4", "in/y/a.mp4"])
    assert json.loads(vid3d("features", "get", out, "in/a.mp4").stdout.splitlines()[0])["video"] == "in/a.mp4"
    assert json.loads(vid3d("features", "get", out, "a").stdout.splitlines()[0])["video"] == "in/a.mp4"  # the stem
    result = vid3d("features", "get", out, "a.mp4")
    assert result.exit_code == EXIT_USAGE
    assert "'a.mp4' matches 3 videos: in/a.mp4, in/x/a.mp4, in/y/a.mp4; give more of the path" in result.stderr
    result = vid3d("features", "get", out, "/elsewhere/b.mp4")
    assert result.exit_code == EXIT_USAGE
    assert "none of the 4 videos is '/elsewhere/b.mp4'; there is in/y/b.mp4" in result.stderr


def test_get_at_gives_all_clips_that_cover_a_second(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy", ["in/a.mp4"], results={"in/a.mp4": make_result("in/a.mp4", 4)})

    def clips(seconds):
        return [json.loads(x)["clip"] for x in vid3d("features", "get", out, "a", "--at", seconds).stdout.splitlines()]

    assert clips(0) == [0]
    assert clips(0.32) == [0, 1]  # 8 / 25: the second one starts
    assert clips(0.64) == [1, 2]  # 16 / 25: the first one ends
    assert clips(1.5) == [3]
    result = vid3d("features", "get", out, "a", "--at", 1.6)
    assert result.exit_code == EXIT_USAGE
    assert "in/a.mp4: no clip covers 1.6 s: its 4 clips lie between 0 and 1.6 s" in result.stderr


def test_get_is_a_table_on_a_terminal(vid3d, tmp_path, terminal):
    out = write(tmp_path / "feats.npy", ["in/a.mp4"], results={"in/a.mp4": make_result("in/a.mp4", 2, value=1.5)})
    shown = vid3d("features", "get", out, "a").stdout
    assert "in/a.mp4" in shown
    assert "0.32 – 0.96" in shown
    assert shown.count("1.5 1.5 1.5 1.5 … (12)") == 2


# check ---------------------------------------------------------------------------------------------------------------


@every_format
def test_check_finds_no_damage_in_a_good_output(vid3d, tmp_path, name):
    out = write(tmp_path / name)
    result = vid3d("features", "check", "--format", "table", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{out}: 6 rows of 3 videos: no damage\n"


@pytest.mark.parametrize("name", [*FORMATS, "apart.npy"])
def test_check_finds_a_flipped_byte(vid3d, tmp_path, name):
    video = "in/sub/deep/b.mp4"
    out = write(tmp_path / name, concat=name != "apart.npy")
    row = make_result(video).clips[-1].features["flow"]
    is_hit = False
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and (position := path.read_bytes().find(row.tobytes())) >= 0:
            flip(path, position + 5)
            is_hit = True
    assert is_hit or name == "feats.parquet"
    if name == "feats.parquet":  # its numbers are encoded
        import pyarrow.parquet as pq

        group = pq.ParquetFile(out).metadata.row_group(0)
        column = group.column(group.num_columns - 1)
        flip(Path(out), column.data_page_offset + column.total_compressed_size // 2)
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    if name == "feats.npz":  # zip has a checksum of its own, of all rows
        assert "cannot be read" in result.stderr
    else:
        assert "in/" in result.stderr
        assert "problem" in result.stdout
    if name not in ("feats.npz", "feats.parquet"):
        assert f"error: {out}: {video}: its rows " in result.stderr
        assert result.stderr.count("error:") == 1
        assert f"vid3d features convert {out} new" in result.stderr
        assert result.stdout == f"{out}: 6 rows of 3 videos: 1 problem found\n"


def test_check_names_the_videos_whose_rows_are_cut_off(vid3d, tmp_path):
    out = Path(write(tmp_path / "feats.npy"))
    os.truncate(out, out.stat().st_size - 1)
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert f"error: {out}: has 5 of the 6 rows that {tmp_path}/feats.videos.jsonl lists: restore" in result.stderr
    assert "in/c.mov: its rows are missing or cut off" in result.stderr
    assert "in/a.mp4" not in result.stderr


@pytest.mark.parametrize("name", ["feats", "feats+video_features"])
def test_check_names_the_videos_whose_files_are_gone(vid3d, tmp_path, name):
    out = Path(write(tmp_path / name))
    next(out.glob("sub/deep/b.npz"), out / "sub/deep/b_rgb.npy").unlink()
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "in/sub/deep/b.mp4: its rows are missing" in result.stderr
    assert result.stderr.count("error:") == 1


@pytest.mark.parametrize(("name", "journal"), [("feats.npy", "feats.videos.jsonl"), ("feats", "feats/videos.jsonl")])
def test_check_reports_a_damaged_journal_but_no_incomplete_last_line(vid3d, tmp_path, name, journal):
    out, journal = write(tmp_path / name), tmp_path / journal
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"{nonsense\n" + lines[2])
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert f"{journal}: damaged after line 1" in result.stderr
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    if name == "feats.npy":  # the header never promises more than is committed
        Path(out).write_bytes(Path(out).read_bytes().replace(b"'shape': (6, 12)", b"'shape': (3, 12)"))
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == 0  # a job was killed there; its rows do not count, and are made again
    assert "interrupted" in result.stderr
    assert "of 2 videos: no damage" in result.stdout


def test_check_sees_clips_that_changed_places(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy")
    index = tmp_path / "feats.index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[:-2], lines[-1], lines[-2]]))
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "in/c.mov: its rows cannot be read" in result.stderr
    assert "its line for row 4 is of row 5 of in/c.mov" in result.stderr


def test_check_sees_numbers_that_are_not_finite(vid3d, tmp_path, monkeypatch):
    """Older versions wrote them."""
    monkeypatch.setattr(
        FeatureFormat, "matrices", lambda form, result: {"features": result.features().astype(form.dtype)}
    )
    results = {"in/a.mp4": make_result("in/a.mp4", value=1e6)}
    with np.errstate(over="ignore"):
        out = write(tmp_path / "feats.npy", dtype="float16", results=results)
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "in/a.mp4: features contains NaN or infinity; float16 ends at 65504" in result.stderr
    assert result.stderr.count("error:") == 1


@pytest.mark.parametrize(("crops", "code"), [("centre 224 px", EXIT_SOME_FAILED), ("none", 0)])
def test_check_sees_rows_of_another_shape_unless_frames_were_seen_whole(vid3d, tmp_path, crops, code):
    results = {"in/a.mp4": make_result("in/a.mp4", dim=4)}
    out = write(tmp_path / "feats", results=results, recipe=replace(RECIPE, crops=crops))
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == code
    assert ("has rows of (12,) float32, expected (8,) float32" in result.stderr) == bool(code)


def test_check_warns_of_videos_that_were_changed_since(vid3d, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.mp4").write_bytes(b"a video")
    out = write(tmp_path / "feats.npy", ["in/a.mp4", "in/b.mp4"])  # the working directory is tmp_path
    assert vid3d("features", "check", "--format", "table", out).stderr == ""
    (tmp_path / "in" / "a.mp4").write_bytes(b"another")
    (tmp_path / "in" / "b.mp4").unlink()
    result = vid3d("features", "check", "--format", "table", out)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "in/a.mp4: the video changed after its rows were made" in result.stderr
    assert "in/b.mp4" not in result.stderr


def test_check_continues_with_the_other_files(vid3d, tmp_path):
    whole, damaged = write(tmp_path / "whole.npy"), Path(write(tmp_path / "damaged.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-30])
    result = vid3d("features", "check", "--format", "table", damaged, whole)
    assert result.exit_code == EXIT_SOME_FAILED
    assert f"{damaged}: cannot be read" in result.stderr
    assert f"{whole}: 6 rows of 3 videos: no damage" in result.stdout


# merge and convert ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), list(product(FORMATS, FORMATS)))
def test_convert_keeps_rows_times_and_failures(vid3d, tmp_path, source, target):
    failed = ["in/x.mp4"]
    out = write(tmp_path / "from" / source, failed=failed)
    expected = contents(write(tmp_path / "expected" / target, [v for v, _, _ in contents(out)], failed=failed))
    name, _, layout = f"{tmp_path / 'to' / target}".partition("+")
    options = ["--layout", layout] if layout else ["--concat"]
    result = vid3d("features", "convert", out, name, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"vid3d: 6 rows of 3 videos → {name}; 1 failed\n"
    assert contents(name) == expected
    with open_store(name) as store, open_store(str(tmp_path / "expected" / target).partition("+")[0]) as other:
        assert store.recipe() == other.recipe()
        assert store.failures() == other.failures() != []
    assert vid3d("features", "check", "--format", "table", name).exit_code == 0


@every_format
def test_merged_shards_are_the_single_run_to_the_byte(vid3d, tmp_path, name):
    alone = tmp_path / "alone"
    write(alone / name, concat="video_features" not in name)
    parts = [write(tmp_path / shard, [video]) for shard, video in zip(("1.npy", "2.h5", "3"), VIDEOS, strict=True)]
    out, _, layout = str(tmp_path / "merged" / name).partition("+")
    result = vid3d("features", "merge", *parts, "--out", out, *(["--layout", layout] if layout else []))
    assert result.exit_code == 0, result.stderr
    if name == "feats.h5":  # holds times of its own
        assert contents(out) == contents(alone / name)
    else:
        assert files_below(tmp_path / "merged") == files_below(alone)


def test_a_merged_directory_does_not_depend_on_who_did_what(vid3d, tmp_path):
    merged = []
    for shares in ([VIDEOS[:1], VIDEOS[1:]], [[VIDEOS[2], VIDEOS[0]], [VIDEOS[1]]]):
        directory = tmp_path / str(len(merged))
        for worker, videos in enumerate(shares):
            write(directory / "feats", videos, worker=f"w{worker}", failed=[f"in/x{worker}.mp4"])
        assert vid3d("features", "convert", directory / "feats", directory / "all" / "feats.npy").exit_code == 0
        merged.append(files_below(directory / "all"))
    assert merged[0] == merged[1]
    assert b"in/x1.mp4" in merged[0]["feats.failures.jsonl"]


def test_a_video_in_several_parts_is_written_once_and_is_no_failure(vid3d, tmp_path):
    a = write(tmp_path / "a.npy", VIDEOS[:2], failed=[VIDEOS[2], "in/x.mp4"])
    b = write(tmp_path / "b.npz", VIDEOS[1:], failed=["in/x.mp4"])
    result = vid3d("features", "merge", a, b, "--out", "all.npy")
    assert result.stderr == "vid3d: 6 rows of 3 videos → all.npy; 1 in several files, written once; 1 failed\n"
    assert [video for video, _, _ in contents(tmp_path / "all.npy")] == VIDEOS
    failures = [json.loads(line)["video"] for line in (tmp_path / "all.failures.jsonl").read_text().splitlines()]
    assert failures == ["in/x.mp4"]


def test_parts_of_another_recipe_are_refused_and_the_differences_listed(vid3d, tmp_path):
    a = write(tmp_path / "a.npy", VIDEOS[:1])
    b = write(tmp_path / "b.npy", VIDEOS[1:], recipe=replace(RECIPE, stride=16))
    c = write(tmp_path / "c.npy", VIDEOS[1:], dtype="float16")
    for part, words in ((b, "stride: 8 there, 16 here"), (c, "dtype: float32 there, float16 here")):
        result = vid3d("features", "merge", a, part, "--out", "all.npy")
        assert result.exit_code == EXIT_USAGE
        assert f"{part}: made with another recipe than {a}:\n  {words}" in result.stderr
    assert vid3d("features", "convert", b, "all.npy").exit_code == 0
    result = vid3d("features", "convert", a, "all.npy")
    assert result.exit_code == EXIT_USAGE
    assert "stride: 16 there, 8 now" in result.stderr
    assert vid3d("features", "convert", a, "all.npy", "--overwrite").exit_code == 0
    assert contents("all.npy") == contents(a)


def test_parts_made_in_different_places_are_merged_with_a_warning(vid3d, tmp_path):
    a = write(tmp_path / "a.npy", VIDEOS[:1])
    path, journal = tmp_path / "a.recipe.json", tmp_path / "a.videos.jsonl"
    path.write_text(path.read_text().replace(', "numerics": 1', ""))  # as the old code wrote it
    journal.write_text(re.sub(r', "record_crc32": .*}', "}", journal.read_text()))
    first = json.loads(path.read_text())
    assert "numerics" not in first
    elsewhere = replace(RECIPE, runtime="torch on cuda", versions={"vid3d": "0.2.0"})
    b = write(tmp_path / "b.h5", VIDEOS[1:], recipe=elsewhere)
    result = vid3d("features", "merge", a, b, "--out", "all.npy")
    assert result.exit_code == 0
    assert "warning: all.npy: the rows have the same recipe but different provenance" in result.stderr
    assert "runtime: torch on cpu and torch on cuda; versions.vid3d: 0.1.0 and 0.2.0" in result.stderr
    assert [video for video, _, _ in contents("all.npy")] == VIDEOS
    assert json.loads((tmp_path / "all.recipe.json").read_text()) == first
    differences = json.loads(vid3d("features", "compare", a, b).stdout)["recipe"]
    assert differences["runtime"] == {"a": "torch on cpu", "b": "torch on cuda"}
    c = write(tmp_path / "c.npy", VIDEOS[1:], recipe=replace(RECIPE, numerics=2))
    assert "numerics: 1 there, 2 here" in vid3d("features", "merge", a, c, "--out", "more.npy").stderr


@every_format
def test_an_interrupted_merge_is_resumed(tmp_path, name, monkeypatch):
    monkeypatch.setattr("vid3d_cli.features.merging.COMMIT_VIDEOS", 1)
    videos = [f"in/{i}.mp4" for i in range(6)]
    parts = [write(tmp_path / f"{i}.npy", videos[3 * i : 3 * i + 3], failed=[f"in/x{i}.mp4"]) for i in range(2)]
    out, _, layout = name.partition("+")

    def run(directory, on_video=lambda: None):
        target = create_store(str(tmp_path / directory / out), layout=layout or "vid3d")
        return merge([open_store(part) for part in parts], target, on_video=on_video)

    for stop in (1, 4):
        calls = iter(range(stop))

        def interrupt(calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run("again", interrupt)
    merged = run("again")
    assert 0 < merged.num_there < 6
    assert merged.num_there + merged.num_videos == 6
    run("once")
    assert contents(tmp_path / "again" / out) == contents(tmp_path / "once" / out)
    if name != "feats.h5":
        assert files_below(tmp_path / "again") == files_below(tmp_path / "once")
    assert run("again").num_videos == 0


def test_damaged_rows_are_left_out_unless_another_part_has_them(vid3d, tmp_path):
    a = Path(write(tmp_path / "a.npy"))
    flip(a, 128 + 3)
    result = vid3d("features", "convert", a, "whole.npy")
    assert result.exit_code == EXIT_SOME_FAILED
    assert "left out: in/a.mp4: its rows were changed or damaged" in result.stderr
    assert [video for video, _, _ in contents(tmp_path / "whole.npy")] == VIDEOS[1:]
    b = write(tmp_path / "b.npy", VIDEOS[:1])
    result = vid3d("features", "merge", a, b, "--out", "all.npy")
    assert result.exit_code == 0, result.stderr
    assert sorted(video for video, _, _ in contents(tmp_path / "all.npy")) == sorted(VIDEOS)


def test_if_all_rows_are_damaged_nothing_is_written(vid3d, tmp_path):
    a = Path(write(tmp_path / "a.npy", VIDEOS[:1]))
    flip(a, 128 + 3)
    for out in ("to/all.npy", "to/all.npz", "to/all/"):
        assert vid3d("features", "convert", a, out).exit_code == EXIT_SOME_FAILED
        assert [p for p in (tmp_path / "to").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("overwrite", [True, False])
@every_format
def test_an_output_is_not_merged_into_itself(vid3d, tmp_path, name, overwrite):
    out = write(tmp_path / name)
    before = files_below(tmp_path)
    other = write(tmp_path / "other" / "x.npy", ["in/d.mp4"])
    result = vid3d("features", "merge", other, out, "--out", f"./{Path(out).name}", *["--overwrite"] * overwrite)
    assert result.exit_code == EXIT_USAGE
    assert "is an input too" in result.stderr
    assert {k: v for k, v in files_below(tmp_path).items() if not k.startswith("other")} == before


def test_videos_that_would_share_a_file_are_refused_for_a_directory_only(tmp_path):
    a, b = write(tmp_path / "a.npy", ["in/a.mp4"]), write(tmp_path / "b.npy", ["in/a.mov"])
    parts = [open_store(a), open_store(b)]
    with pytest.raises(UsageError, match=r"in/a.mp4 and in/a.mov would share .*: write one file"):
        merge(parts, create_store(f"{tmp_path}/all/"))
    assert merge(parts, create_store(str(tmp_path / "all.npy"))).num_videos == 2


def test_files_of_other_programs_are_not_replaced(vid3d, tmp_path):
    out = write(tmp_path / "a.npy")
    (tmp_path / "mine.npz").write_text("mine")
    result = vid3d("features", "convert", out, "mine.npz")
    assert result.exit_code == EXIT_USAGE or result.exit_code == EXIT_SOME_FAILED
    assert (tmp_path / "mine.npz").read_text() == "mine"


def test_streams_are_split_and_joined_again(vid3d, tmp_path):
    out = write(tmp_path / "a.npy")
    assert vid3d("features", "convert", out, "apart.npy", "--no-concat").exit_code == 0
    rgb = [clip.features["rgb"] for video in VIDEOS for clip in make_result(video).clips]
    np.testing.assert_array_equal(np.load(tmp_path / "apart_rgb.npy"), rgb)
    assert vid3d("features", "check", "--format", "table", "apart.npy").exit_code == 0
    assert vid3d("features", "convert", "apart.npy", "joined.npy", "--concat").exit_code == 0
    for suffix in (".npy", ".index.jsonl", ".videos.jsonl", ".recipe.json"):
        assert (tmp_path / f"joined{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_kept_crops_are_split_by_numbers_not_by_crops(tmp_path):
    rng = np.random.default_rng(0)
    recipe = replace(RECIPE, keeps_crops=True, crops="3 of 224 px, kept")
    result = make_result("in/a.mp4", 2)
    clips = tuple(
        replace(c, features={s: rng.normal(size=(3, D)).astype(np.float32) for s in STREAMS}) for c in result.clips
    )
    result = replace(result, clips=clips, recipe=recipe)
    out = write(tmp_path / "a.npy", ["in/a.mp4"], recipe=recipe, results={"in/a.mp4": result})
    merge([open_store(out)], create_store(str(tmp_path / "b.npy")), concat=False)
    np.testing.assert_array_equal(np.load(tmp_path / "b_flow.npy"), [clip.features["flow"] for clip in clips])


def test_streams_of_odd_width_are_not_split(vid3d, tmp_path):
    results = {"in/a.mp4": make_result("in/a.mp4")}
    clips = tuple(replace(c, features={"rgb": np.ones(3, np.float32), "flow": np.ones(2, np.float32)}) for c in
                  results["in/a.mp4"].clips)  # fmt: skip
    out = write(tmp_path / "a.npy", ["in/a.mp4"], results={"in/a.mp4": replace(results["in/a.mp4"], clips=clips)})
    result = vid3d("features", "convert", out, "feats/", "--layout", "video_features")
    assert result.exit_code == EXIT_USAGE
    assert "rows of 5 numbers cannot be split into rgb and flow" in result.stderr


def test_a_row_that_cannot_be_read_is_an_output_error(tmp_path):
    out = Path(write(tmp_path / "feats", VIDEOS[:1]))
    with open_store(str(out)) as store:
        (entry,) = store.entries()
        (out / "a.npz").write_bytes(b"PK nonsense")
        with pytest.raises(OutputError, match=r"in/a.mp4: its rows cannot be read"):
            read_verified(store, entry)


# compare -------------------------------------------------------------------------------------------------------------


def compare(vid3d, *args):
    result = vid3d("features", "compare", *args)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result, lines[:-1], lines[-1] if lines else None


@pytest.mark.parametrize(("a", "b"), list(product(FORMATS, ["feats.npy", "feats+video_features"])))
def test_the_same_features_are_alike_in_any_format(vid3d, tmp_path, a, b):
    a, b = write(tmp_path / "1" / a), write(tmp_path / "2" / b, reversed(VIDEOS))
    result, rows, total = compare(vid3d, a, b)
    assert (result.exit_code, rows) == (0, [])
    assert (total["rows"], total["rows_only"], total["videos_only"]) == (6, {"a": 0, "b": 0}, {"a": 0, "b": 0})
    assert list(total["matrices"]) == list(STREAMS)
    for values in total["matrices"].values():
        assert [values[f"{which}_cosine"] for which in ("min", "median", "mean")] == pytest.approx([1, 1, 1], abs=1e-12)
        assert values["max_relative_difference"] == 0
    assert set(total["recipe"]) <= {"layout", "concat"}


def with_rgb(video, rows):
    result = make_result(video, len(rows))
    clips = zip(result.clips, rows, strict=True)
    features = [{"rgb": np.array(row, np.float32), "flow": np.ones(2, np.float32)} for row in rows]
    return replace(result, clips=tuple(replace(c, features=f) for (c, _), f in zip(clips, features, strict=True)))


def test_compare_measures_cosine_and_relative_difference(vid3d, tmp_path):
    a = write(tmp_path / "a.npy", ["in/a.mp4"], results={"in/a.mp4": with_rgb("in/a.mp4", [[1, 0], [3, 4], [0, 0]])})
    b = write(tmp_path / "b.npy", ["in/a.mp4"], results={"in/a.mp4": with_rgb("in/a.mp4", [[0, 2], [-3, -4], [0, 0]])})
    _, rows, total = compare(vid3d, a, b, "--per-row")
    assert [(r["video"], r["clip"], r["start_seconds"]) for r in rows] == [
        ("in/a.mp4", i, 8 * i / 25) for i in range(3)
    ]
    assert [r["cosine"]["rgb"] for r in rows] == pytest.approx([0, -1, 1])
    assert [r["relative_difference"]["rgb"] for r in rows] == pytest.approx([1, 2, 0])
    assert [r["cosine"]["flow"] for r in rows] == pytest.approx([1, 1, 1])
    assert total["matrices"]["rgb"] == pytest.approx(
        {"min_cosine": -1, "median_cosine": 0, "mean_cosine": 0, "max_relative_difference": 2}
    )


def test_compare_counts_rows_of_one_side_and_lists_recipe_differences(vid3d, tmp_path, monkeypatch):
    a = write(tmp_path / "a.npy", VIDEOS)
    results = {"in/c.mov": make_result("in/c.mov", 1)}
    b = write(tmp_path / "b.npy", ["in/c.mov", "in/d.mp4"], recipe=replace(RECIPE, precision="bf16"), results=results)
    _, _, total = compare(vid3d, a, b)
    num_rows = {video: len(make_result(video).clips) for video in [*VIDEOS, "in/d.mp4"]}
    only_a = num_rows["in/a.mp4"] + num_rows["in/sub/deep/b.mp4"] + num_rows["in/c.mov"] - 1
    assert total["rows"] == 1
    assert total["rows_only"] == {"a": only_a, "b": num_rows["in/d.mp4"]}
    assert total["videos_only"] == {"a": 2, "b": 1}
    assert total["recipe"] == {"precision": {"a": "fp32", "b": "bf16"}}
    monkeypatch.setattr(formats, "stdout_is_terminal", lambda: True)
    shown = vid3d("features", "compare", a, b, "--per-row").stdout
    assert "in/c.mov  0.00 s: rgb 1.000000 (0.0e+00), flow 1.000000 (0.0e+00)" in shown
    assert f"only in {a}: {only_a} rows, among them all rows of 2 videos" in " ".join(shown.split())
    assert "precision: fp32 in" in shown


def test_published_features_without_an_index_are_compared_in_order(vid3d, tmp_path):
    a = write(tmp_path / "a.npy")
    published = np.array(np.load(a), np.float64)
    published[2] *= 3
    np.save(tmp_path / "published.npy", published)
    for first, second in ((a, "published.npy"), ("published.npy", a)):
        _, rows, total = compare(vid3d, first, second, "--per-row")
        assert [r["video"] for r in rows] == [v for v in VIDEOS for _ in make_result(v).clips]
        assert [r["cosine"]["features"] for r in rows] == pytest.approx([1] * 6)
        assert [r["relative_difference"]["features"] for r in rows] == pytest.approx([0, 0, 2 / 3, 0, 0, 0])
        assert total["rows"] == 6
    shutil.copy(a, tmp_path / "bare.npy")
    _, rows, total = compare(vid3d, "bare.npy", "published.npy", "--per-row")
    assert [(r["video"], r["clip"]) for r in rows] == [(None, i) for i in range(6)]
    assert total["matrices"]["features"]["max_relative_difference"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((5, 2 * D)), "6 rows and 5 rows: without an index"),
        (np.ones((6, D)), "rows of 12 numbers and of 6 cannot be compared"),
        (np.ones(6), "an array (6,) of float64, not a matrix"),
    ],
)
def test_compare_says_why_nothing_can_be_compared(vid3d, tmp_path, matrix, words):
    np.save(tmp_path / "published.npy", matrix)
    result = vid3d("features", "compare", write(tmp_path / "a.npy"), "published.npy")
    assert result.exit_code == EXIT_SOME_FAILED
    assert words in result.stderr


def test_compare_of_other_videos_is_an_error(vid3d, tmp_path):
    a, b = write(tmp_path / "a.npy", VIDEOS[:1]), write(tmp_path / "b.npy", VIDEOS[1:])
    result, _, total = compare(vid3d, a, b)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "no row in common" in result.stderr
    assert (total["rows"], total["matrices"]) == (0, {})


def test_numbers_that_are_not_finite_are_null(vid3d, tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, np.nan], [1.0, 2.0]]))
    np.save(tmp_path / "b.npy", np.ones((2, 2)))
    _, rows, total = compare(vid3d, "a.npy", "b.npy", "--per-row")
    assert rows[0]["cosine"] == {"features": None}
    assert rows[1]["cosine"]["features"] == pytest.approx(3 / 10**0.5)
    assert total["matrices"]["features"]["min_cosine"] is None
