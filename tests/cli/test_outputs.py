"""Where `vid3d classify` writes: several outputs at once, directories, and what is refused before the networks run."""

import csv
import json
import time
from contextlib import nullcontext

import pytest
from conftest import TinyNet
from disks import file_size_limit
from videos import write_video

import vid3d_cli.cli.classify
from vid3d_cli.predictions.outputs import Outputs
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.segments import SegmentRule

STARTED = "vid3d: i3d.kinetics400: rgb, fp32, PyTorch on the CPU\n"
OPTIONS = ("--streams", "rgb", "--window", 10, "--fps", "native")


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_outputs_of_one_run(vid3d, tiny_model, video, tmp_path):
    other = write_video(tmp_path / "b.mp4", num_frames=10)
    outputs = ["-o", "a.jsonl", "-o", "a.csv", "-o", "out", "-o", "-"]
    result = vid3d("classify", video, other, *OPTIONS, *outputs, "--format", "jsonl", "--topk", 1)
    assert result.exit_code == 0
    assert result.stderr == f"{STARTED}vid3d: wrote a.jsonl\nvid3d: wrote a.csv\nvid3d: wrote 2 .jsonl files to out/\n"
    assert result.stdout == (tmp_path / "a.jsonl").read_text()
    records = records_of(tmp_path / "a.jsonl")
    assert [r["clip"] for r in records] == [0, 1, 2, 3, None, 0, None]
    with (tmp_path / "a.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(records)
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"video.jsonl", "b.jsonl"}
    assert records_of(tmp_path / "out" / "video.jsonl") == records[:5]


def test_names_in_a_directory_mirror_the_input(vid3d, tiny_model, tmp_path):
    for name in ("in/a/x.mp4", "in/b/x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_video(tmp_path / name, num_frames=5)
    result = vid3d("classify", "in", *OPTIONS, "-o", "out", "--format", "csv")
    assert (result.exit_code, result.stderr) == (0, f"{STARTED}vid3d: wrote 2 .csv files to out/\n")
    assert sorted(path.name for path in (tmp_path / "out").glob("*/x.csv")) == ["x.csv"] * 2


def test_an_interrupted_run_keeps_the_files_of_finished_videos(vid3d, tiny_model, video, tmp_path, monkeypatch):
    other = write_video(tmp_path / "b.mp4", num_frames=40)
    forward = TinyNet.forward

    def interrupt_the_second(net, clips):
        if (tmp_path / "out" / "video.csv").exists():
            raise KeyboardInterrupt
        return forward(net, clips)

    def open_in_turn(plan, name, *_):
        while name == str(other) and not (tmp_path / "out" / "video.csv").exists():
            time.sleep(0.01)
        return ClipReader(plan, name)

    monkeypatch.setattr(TinyNet, "forward", interrupt_the_second)
    monkeypatch.setattr("vid3d_cli.run.feeds.open_clips", open_in_turn)
    result = vid3d(
        "classify", video, other, *OPTIONS, "--batch-size", 1, "-o", "out", "-o", "a.jsonl", "--format", "csv"
    )
    assert result.exit_code == 130
    written = [line for line in result.stderr.splitlines() if "wrote" in line]
    assert written == ["vid3d: wrote 1 .csv file to out/", "vid3d: wrote a.jsonl"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["video.csv"]
    assert [r["clip"] for r in records_of(tmp_path / "a.jsonl")][:5] == [0, 1, 2, 3, None]


def test_a_full_disk_ends_the_run_with_one_line_and_what_was_written(vid3d, tiny_model, video, tmp_path, monkeypatch):
    other = write_video(tmp_path / "b.mp4", num_frames=40)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.jsonl").write_text("old")
    write = Outputs.write

    def write_the_second_to_a_full_disk(outputs, result, name):
        with file_size_limit(1000) if name == "b" else nullcontext():
            write(outputs, result, name)

    monkeypatch.setattr(Outputs, "write", write_the_second_to_a_full_disk)
    result = vid3d("classify", video, other, *OPTIONS, "-o", "out", "--format", "jsonl", "--overwrite")
    assert (result.exit_code, result.stderr) == (
        1,
        f"{STARTED}vid3d: wrote 1 .jsonl file to out/\nvid3d: error: out/b.jsonl: cannot be written: File too large\n",
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.jsonl", "video.jsonl"]
    assert (tmp_path / "out" / "b.jsonl").read_text() == "old"


def test_a_table_on_stdout_beside_a_directory_of_two_formats(vid3d, tiny_model, video, tmp_path):
    formats = ["--format", "table", "--format", "vtt", "--format", "html"]
    result = vid3d("classify", video, *OPTIONS, "-o", "-", "-o", "d.x/", *formats)
    assert (result.exit_code, result.stderr) == (
        0,
        f"{STARTED}vid3d: wrote 1 .vtt file to d.x/\nvid3d: wrote 1 .html file to d.x/; open d.x/index.html\n",
    )
    assert "whole video" in result.stdout
    assert sorted(path.name for path in (tmp_path / "d.x").iterdir()) == ["index.html", "video.html", "video.vtt"]


def test_segments_are_written_for_every_stream(vid3d, tiny_model, video, tmp_path):
    result = vid3d("classify", video, *OPTIONS[2:], "--segments", "--smooth", 2, "-o", "a.jsonl", "-o", "a.csv")
    assert result.exit_code == 0
    records = records_of(tmp_path / "a.jsonl")
    made = vid3d_cli.classify(video, window=10, fps="native").segments_by(SegmentRule(2))
    assert [(r["stream"], r["label"], r["start_seconds"]) for r in records] == [
        (s.stream, s.label, round(s.start_seconds, 6)) for s in made
    ]
    assert list(dict.fromkeys(r["stream"] for r in records)) == ["rgb", "flow", "fused"]
    with (tmp_path / "a.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [r["label"] for r in records]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--smooth 3", "--smooth, --threshold, --min-seconds and --multi-label are for segments: add --segments"),
        ("--multi-label -o a.csv", "--multi-label are for segments: add --segments"),
        ("--min-seconds 1 --format table", "--multi-label are for segments: add --segments"),
        ("--segments --threshold 2", "--threshold 2: give 1 or less"),
        ("--segments --per video", "--segments replaces clips: leave out --per"),
        ("--segments --details --format table", "--segments replaces clips: leave out --details"),
        ("--details", "--details is for the table on stdout: add --format table"),
        ("--details -o a.csv", "--details is for the table on stdout: add --format table --out -"),
        ("--format table -o a.csv", "--format table is for stdout: leave out --out, or add --out -"),
        ("--format tabel", "--format tabel: did you mean 'table'?"),
        ("--format csv -o a.jsonl", "--format csv: the suffix of a.jsonl names the format; leave one of them out"),
        ("-o a.csv -o ./a.csv", "a.csv would be written twice: leave out one --out or --format"),
        ("-o out --format csv --failures out/video.csv", "--failures out/video.csv is also the output"),
        ("-o video.csv --overwrite --failures ./video.csv", "--failures video.csv is also the output"),
        ("-o out", "out has no suffix: choose one of .jsonl, .csv, .json, .vtt, .srt, .eaf, .boris, "),
        ("-o out", ", .pdf; for a directory, add --format"),
        ("-o .", ". is a directory: add --format, as in --format vtt"),
        ("-o d.csv/", "d.csv is a directory: add --format, as in --format vtt"),
        ("--per video -o x.vtt", "--per is for .jsonl, .csv: leave it out"),
        ("--topk 3 -o x.vtt", "--topk is for .jsonl, .csv, .png, .svg, .pdf: leave it out"),
        ("--topk 3 --segments", "--segments replaces clips: leave out --topk"),
        ("--embed", "--embed is for .html: leave it out"),
        ("--embed --format table", "--embed is for .html: leave it out"),
        ("-o a/ --format csv --format csv", "a/video.csv would be written twice: leave out one --out or --format"),
        ("--format csv --format jsonl", "stdout would be written twice: leave out one --out or --format"),
        ("-o video.mp4 --overwrite", "video.mp4 is one of the videos: choose another name for --out"),
        ("-o there.csv", "there.csv: already exists; choose another name, or add --overwrite"),
        ("-o video.mp4/x.csv", "video.mp4/x.csv: cannot be written"),
        ("-o video.mp4/x --format csv", "video.mp4/x/video.csv: cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_written_fails_before_the_networks_run(
    vid3d, tiny_model, video, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(vid3d_cli.cli.classify, "run_classes", lambda *_, **__: pytest.fail("the networks run"))
    (tmp_path / "there.csv").touch()
    before = set(tmp_path.rglob("*"))
    result = vid3d("classify", "video.mp4", *options.split())
    assert result.exit_code == (1 if "cannot be written" in message else 2)
    assert result.stderr.startswith("vid3d: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert set(tmp_path.rglob("*")) == before


def test_the_table_beside_a_file(vid3d, tiny_model, video, tmp_path):
    result = vid3d("classify", video, *OPTIONS, "-o", "-", "-o", "a.csv", "--format", "table")
    assert (result.exit_code, result.stderr) == (0, f"{STARTED}vid3d: wrote a.csv\n")
    assert "whole video" in result.stdout
    assert (tmp_path / "a.csv").exists()
    details = vid3d("classify", video, *OPTIONS, "--format", "table", "--details").stdout
    assert [line.split()[0] for line in details.splitlines() if " – " in line] == ["0.00", "0.40", "0.80", "1.20"]
