"""What a terminal shows of names and labels that hold characters it would obey."""

import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli.errors import NotAVideo
from vid3d_cli.text import printable

ATTACKS = {
    "a title": "\x1b]0;owned\x07",
    "a link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard": "\x1b]52;c;cm0gLXJmIH4K\x07",
    "colour and a cleared screen": "\x1b[31m\x1b[2J",
    "an 8-bit escape": "\x9b2J",
    "an overwritten line": "real.mp4\rfake.mp4",
    "a forged message": "x.mp4\nvid3d: all videos done",
    "a reversed name": "\u202e4pm.exe",
    "erased letters": "ab\b\b",
    "marks of direction, which nobody sees": "a\u061c\u200e\u200f\ufeff.mp4",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_nothing_is_obeyed(attack):
    assert printable(attack).isprintable()
    assert str(NotAVideo(attack, "no")).isprintable()


def test_escapes_are_those_of_python():
    assert printable("\x1b[31m\n\t\x9b\u202e") == r"\x1b[31m\n\t\x9b\u202e"
    assert printable(os.fsdecode(b"\xff\xe9.mp4")) == r"\xff\xe9.mp4"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@given(st.text())
def test_text_without_control_characters_stays(text):
    shown = printable(text)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text
    assert not set(shown) & set(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2066]))


NAME = "\x1b]0;owned\x07\x9b31m\rx\u202e\ny"


@pytest.fixture
def terminal(monkeypatch):
    """Make commands print tables, as on a terminal."""
    from vid3d_cli.cli import classify, console, formats

    for module in (console, classify, formats):
        monkeypatch.setattr(module, "stdout_is_terminal", lambda: True)


def is_safe(text: str) -> bool:
    return set(text) <= set("\n").union(filter(str.isprintable, text)) and "owned" in text


@pytest.mark.parametrize("command", ["probe", "classify"])
def test_messages_show_the_name(vid3d, tiny_model, tmp_path, command):
    """Before: `vid3d probe downloads/` let a file's name set the title, clear the screen or forge a message."""
    (tmp_path / f"{NAME}.mp4").write_bytes(b"no video")
    done = vid3d(command, f"{NAME}.mp4")
    assert done.exit_code == 1
    assert is_safe(done.stderr), done.stderr
    assert not any(line.startswith("y") for line in done.stderr.splitlines())


@pytest.mark.parametrize("command", ["probe", "classify"])
def test_tables_show_the_name_and_labels(vid3d, tiny_model, terminal, tmp_path, video, command):
    """Before: a table of strangers' videos sent what their names say to the terminal; so did a file of labels."""
    video.rename(tmp_path / f"{NAME}.mp4")
    done = vid3d(command, f"{NAME}.mp4")
    assert done.exit_code == 0
    assert is_safe(done.stdout), done.stdout


def test_a_narrow_table_folds_the_shown_name(vid3d, terminal, tmp_path, video, monkeypatch):
    """Before: a newline was printed, and what no longer fitted after "\\x1b" was cut off."""
    monkeypatch.setenv("COLUMNS", "80")
    name = "\x1b[31mred\nnew" * 3 + ".mp4"
    video.rename(tmp_path / name)
    lines = vid3d("probe", name, "--format", "table").stdout.splitlines()
    assert "".join(line.split("  ")[0].strip() for line in lines[2:]) == printable(name)


def test_labels_are_shown(vid3d, tiny_model, terminal, tmp_path, video):
    (tmp_path / "labels.txt").write_text("\n".join(["\x1b[31m"] * 400))
    done = vid3d("classify", video, "--labels", "labels.txt", "--weights", f"rgb={tiny_model}", "--streams", "rgb")
    assert done.exit_code == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert r"\x1" in done.stdout


def test_records_keep_the_exact_name(vid3d, tmp_path, video):
    video.rename(tmp_path / f"{NAME}.mp4")
    done = vid3d("probe", f"{NAME}.mp4", "--format", "jsonl")
    assert json.loads(done.stdout)["video"] == f"{NAME}.mp4"
    assert set(done.stdout.encode()) & set(range(32)) == set(b"\n")


def test_ordinary_names_stay_as_they_are():
    for name in (string.printable[:95], "été-日本.mp4", "العربية.mp4", "🎬.mp4"):
        assert printable(name) == name
