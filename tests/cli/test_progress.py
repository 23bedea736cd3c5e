"""What a terminal shows while a job runs."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import tty

import pytest
import torch

from vid3d_cli.cli import bars
from vid3d_cli.cli.bars import Bar
from vid3d_cli.cli.progress import EventPrinter
from vid3d_cli.jobs.events import ClipsDone, Progress, VideoDone
from vid3d_cli.models.manifest import parse_weights_name
from vid3d_cli.runtimes import devices


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Return the last line on a terminal that is 70 characters wide."""
    monkeypatch.setattr(bars, "shows_bars", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    return lambda: re.split(r"[\r\n]+", capsys.readouterr().err.rstrip())[-1].strip()


def show(printer, progress, num_done, num_expected=40):
    progress.clips = num_done
    printer(ClipsDone("a.mp4", num_done, num_expected, progress))


def test_the_bar_says_what_it_waits_for_and_no_rate_before_it_knows_one(terminal, monkeypatch):
    (file,) = parse_weights_name("i3d:rgb")
    seen = []

    def pull(file, progress):
        seen.append(terminal())
        for num_bytes in (1e6, 25e6):
            progress(num_bytes, 50e6)
            seen.append(terminal())

    monkeypatch.setattr("vid3d_cli.models.weights.pull", pull)
    with EventPrinter(2, "i3d") as printer:
        assert terminal() == "loading i3d …"
        printer.fetch(file)
        assert seen == [
            "downloading rgb weights, 50.9 MB …",
            "downloading rgb weights, 1 of 50 MB …",
            "downloading rgb weights, 25 of 50 MB …",
        ]
        assert terminal() == "loading i3d …"
        progress = Progress(2)
        show(printer, progress, 1)
        assert terminal() == "0/2 videos: 1/~80 clips [00:00]"
        progress.started -= 4
        show(printer, progress, 20)
        assert terminal().startswith("0/2 videos: 20/~80 clips [")
        progress.started -= 6
        show(printer, progress, 40)
        assert re.match(r"0/2 videos:  50%\|.*\| 40/~80 clips \[\d\d:\d\d<\d\d:\d\d, +\d+\.\d+ clips", terminal())
        progress.done = 1
        printer(VideoDone("a.mp4", 40, 40, 0, progress))
        assert terminal().startswith("1/2 videos:")


def test_an_unknown_length_has_no_end(terminal):
    with EventPrinter(1, "i3d") as printer:
        progress = Progress(1)
        show(printer, progress, 3, None)
        assert terminal() == "3 clips [00:00]"
        progress.started -= 10
        show(printer, progress, 30, None)
        assert re.fullmatch(r"30 clips \[\d\d:\d\d, +\d+\.\d+ clips/s\]", terminal())


def on_screen(text):
    """Return the lines that a terminal shows at the end."""
    return [re.sub(r"^.*\r(?=[^\r])", "", line).rstrip() for line in text.replace("\r\n", "\n").split("\n")]


def test_the_last_video_takes_the_bar_away(monkeypatch, capsys):
    """Before: the shell's prompt stood behind "1/1 clips [00:00]"; after a failure the bar was drawn again."""
    monkeypatch.setattr(bars, "shows_bars", lambda: True)
    with EventPrinter(1, "i3d") as printer:
        progress = Progress(1)
        progress.started -= 1
        show(printer, progress, 1, 1)
        progress.done = 1
        printer(VideoDone("a.mp4", 1, 40, 0, progress))
        assert on_screen(capsys.readouterr().err) == [""]
        printer(ClipsDone("a.mp4", 1, 1, progress))
    assert capsys.readouterr().err == ""


def test_no_download_is_announced_that_is_forbidden(terminal, monkeypatch):
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    monkeypatch.setattr("vid3d_cli.models.weights.pull", lambda file, progress: terminal())
    with EventPrinter(1, "i3d") as printer:
        assert "downloading" not in printer.fetch(parse_weights_name("i3d:rgb")[0])


def test_a_bar_shows_no_rate_at_first(terminal, monkeypatch):
    """Before: "0%| | 0/2 [00:00<?, ?video/s]", and "1/3195 [00:01<1:11:47, 1.35s/frame]" after one frame."""
    with Bar(total=3000, unit="frames") as bar:
        assert terminal() == "0/3000 frames [00:00]"
        bar.count_from(6)
        bar.n = 2
        bar.refresh()
        assert terminal() == "2/3000 frames [00:06]"
        bar.n = 6
        bar.refresh()
        assert re.fullmatch(r"0%\|.*\| 6/3000 frames \[00:06<\d\d:\d\d, +1\.\d\d frames/s\]", terminal())


def test_a_terminal_without_a_size_has_a_bar(video, tmp_path):
    pid, terminal = pty.fork()
    if not pid:
        tty.setcbreak(2)
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
        os.execv(sys.executable, [sys.executable, "-m", "vid3d_cli", "flow", video, "-o", str(tmp_path / "x.npz")])
    text = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(terminal, 9999):
            text += part
    assert os.waitpid(pid, 0)[1] == 0, text
    assert b"0/40 frames [00:00]" in text
    assert [line[:6] for line in on_screen(text.decode())] == ["vid3d:", ""]


def test_the_first_line_says_why_the_gpu_is_not_used(vid3d, tiny_model, video, monkeypatch):
    problem = devices.Problem("the memory of NVIDIA T4 is full", "end the other processes", torch.device("cuda:0"))
    monkeypatch.setattr(devices, "_choose_device", lambda: (torch.device("cpu"), [problem]))
    monkeypatch.setattr("vid3d_cli.runtimes.may_have_gpu", lambda: True)
    lines = [
        "vid3d: warning: cuda:0 is not used: the memory of NVIDIA T4 is full: end the other processes",
        "vid3d: i3d.kinetics400: rgb, fp32, PyTorch on the CPU",
    ]
    assert vid3d("classify", video, "--streams", "rgb").stderr.splitlines() == lines
    assert vid3d("classify", video, "--streams", "rgb", "--device", "cpu").stderr.splitlines() == lines[1:]
    assert vid3d("-q", "classify", video, "--streams", "rgb").stderr == ""
