"""`vid3d demo` with the embedded model: offline, and mostly right."""

import json
import re
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
import typer

from vid3d_cli.flow.fields import to_grey
from vid3d_cli.flow.methods import optical_flow
from vid3d_cli.video.demo import MOTION_SECONDS, MOTIONS, render
from vid3d_cli.video.reader import VideoReader


@pytest.mark.exhaustive
def test_demo_shows_the_main_job(vid3d, monkeypatch, tmp_path):
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "no such cache"))
    result = vid3d("demo")
    assert (result.exit_code, result.stderr.count("error")) == (0, 0), result.stderr
    assert re.findall(r"^\$ vid3d (\w+)", result.stdout, re.MULTILINE) == ["classify", "extract"]
    assert f"{len(MOTIONS)} of {len(MOTIONS)} segments right" in result.stdout
    assert len(result.stdout.splitlines()) <= 24, "it does not fit on a screen"
    index = (tmp_path / "vid3d-demo/feats.index.jsonl").read_text().splitlines()
    assert len(np.load(tmp_path / "vid3d-demo/feats.npy")) == len(index) == 2 * len(MOTIONS)
    records = [json.loads(line) for line in (tmp_path / "vid3d-demo/segments.jsonl").read_text().splitlines()]
    assert records[-1]["stream"] == "fused"
    assert records[-1]["end_seconds"] == pytest.approx(len(MOTIONS) * MOTION_SECONDS)
    (link,) = re.findall(r"file://\S+", result.stdout)
    assert Path(url2pathname(urlsplit(link).path)).samefile("vid3d-demo/report.html")
    assert vid3d("demo").exit_code == 0  # again into the same directory


@pytest.mark.parametrize("name", ["camera.mp4", "report.html", "feats.npy"])
def test_the_demo_replaces_only_its_own_files(vid3d, monkeypatch, tmp_path, name):
    """Before: `vid3d demo -o mine` replaced mine/camera.mp4 without a word."""
    monkeypatch.setattr("vid3d_cli.video.demo.render", partial(render, motions=["static"]))
    runs = []

    def stop():
        raise typer.Exit

    monkeypatch.setattr("vid3d_cli.cli.demo._run", lambda *words: runs.append(words[0]) or stop())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    result = vid3d("demo", "-o", "mine")
    assert (result.exit_code, runs) == (2, [])
    assert f"mine/{name}: already exists" in result.stderr
    assert "--overwrite" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]
    vid3d("demo", "-o", "mine", "--overwrite")
    vid3d("demo", "-o", "mine")  # its own files
    assert runs == ["classify", "classify"]


def test_a_place_that_cannot_be_written_is_a_usage_error(vid3d, monkeypatch, tmp_path):
    monkeypatch.setattr("vid3d_cli.video.demo.render", partial(render, motions=["static"]))
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "camera.mp4").mkdir(parents=True)
    for out in ("file", "file/below", "folder"):
        result = vid3d("demo", "--out", out)
        assert (result.exit_code, f"cannot write to {out} (" in result.stderr) == (2, True)


def test_the_rendered_camera_does_what_its_label_says(tmp_path):
    """Checks mean flow, its divergence and its curl in the middle of every segment."""
    motions = render(tmp_path / "camera.mp4")
    with VideoReader(str(tmp_path / "camera.mp4")) as reader:
        frames = [to_grey(frame.rgb) for frame in reader]
    assert len(frames) == round(motions[-1].end_seconds * 25)
    y, x = np.mgrid[:240, :320] - np.array([120, 160])[:, None, None]
    for motion in motions:
        start = round(motion.start_seconds * 25) + 8
        flow = optical_flow(np.stack(frames[start : start + 40])).mean(0)
        right, down = flow[..., 0].mean(), flow[..., 1].mean()
        outwards = (flow[..., 0] * x + flow[..., 1] * y).mean() / np.hypot(x, y).mean()
        clockwise = (flow[..., 1] * x - flow[..., 0] * y).mean() / np.hypot(x, y).mean()
        speeds = {"pan-left": right, "pan-right": -right, "tilt-up": down, "tilt-down": -down}
        speeds |= {"zoom-in": outwards, "zoom-out": -outwards, "roll-counterclockwise": clockwise}
        speeds |= {"roll-clockwise": -clockwise}
        if motion.label in speeds:
            assert max(speeds, key=lambda label: speeds[label]) == motion.label
            assert speeds[motion.label] > 0.3
        else:
            assert max(map(abs, speeds.values())) < 0.3
