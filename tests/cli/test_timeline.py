"""The tables of `vid3d classify`, as a terminal emulator and a pipe show them."""

import io
import re

import numpy as np
import pytest

from vid3d_cli.cli import console
from vid3d_cli.cli.tables import PredictionTables
from vid3d_cli.cli.timeline import Timeline
from vid3d_cli.predictions.formats import Choices
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.segments import SegmentRule

NAMES = ("pan-left", "跳舞 dancing", "\x1b[31mred\n" + "x" * 99)
RECIPE = Recipe(
    "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
)


def make_result(labels, video="a.mp4"):
    """Return a result with clips of 1 s; each has a label, from "012", of 75 %."""
    clips = []
    for i, best in enumerate(labels):
        logits = np.log(np.float32([0.75 if str(k) == best else 0.125 for k in range(3)]))
        clips.append(ClipOutput(ClipSpan(i, 25 * i, 25, float(i), i + 1.0), {}, {"rgb": logits, "fused": logits}))
    mean = np.mean([clip.logits["fused"] for clip in clips], axis=0)
    return VideoResult(video, tuple(clips), {"rgb": mean, "fused": mean}, NAMES, 25.0, 25 * len(clips), 0, RECIPE)


class Tty(io.StringIO):
    def isatty(self):
        return True


def make_table(stream, kind=Timeline, k=1, **choices):
    rule = choices.pop("rule", SegmentRule())
    return kind(stream, Choices(rule, k, **choices))


def write_clips(table, result, first, end):
    table.write_clips(result.video, result.clips[first:end], result.labels)


def lines_of(text):
    """Return (times, label, score) of the lines, and other lines as they are."""
    lines = (
        re.fullmatch(r" *(\S+ – \S+|whole video) +(.*?) +(\d+\.\d)% ?█*[▏▎▍▌▋▊▉]?", line) for line in text.splitlines()
    )
    return [line.groups() if line else text for line, text in zip(lines, text.splitlines(), strict=True)]


@pytest.fixture(autouse=True)
def _columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


def test_neighbours_of_one_class_are_one_line_which_is_printed_when_it_is_complete():
    stream, result = io.StringIO(), make_result("00100")
    table = make_table(stream)
    write_clips(table, result, 0, 1)
    assert lines_of(stream.getvalue()) == ["a.mp4"]
    write_clips(table, result, 1, 3)
    assert lines_of(stream.getvalue())[1:] == [("0:00.0 – 0:02.0", "pan-left", "75.0")]
    table.write(result, "a")
    assert lines_of(stream.getvalue()) == [
        "a.mp4",
        ("0:00.0 – 0:02.0", "pan-left", "75.0"),
        ("0:02.0 – 0:03.0", "跳舞 dancing", "75.0"),
        ("0:03.0 – 0:05.0", "pan-left", "75.0"),
        "",
        ("whole video", "pan-left", "63.3"),
    ]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_on_a_terminal_the_last_line_grows_in_place(batch):
    pyte = pytest.importorskip("pyte")
    screen = pyte.Screen(80, 20)
    screen.set_mode(pyte.modes.LNM)
    stream, result, plain = Tty(), make_result("00011"), io.StringIO()
    table = make_table(stream)
    for first in range(0, 5, batch):
        write_clips(table, result, first, first + batch)
        done = min(5, first + batch)
        pyte.Stream(screen).feed(stream.getvalue())
        stream.seek(stream.truncate(0))
        shown = lines_of("\n".join(line.rstrip() for line in screen.display).rstrip())
        assert shown[-1][0].endswith(f"– 0:0{done}.0")
        assert len(shown) == (2 if done <= 3 else 3)
    table.write(result, "a")
    pyte.Stream(screen).feed(stream.getvalue())
    make_table(plain).write(result, "a")
    shown = [line.replace("跳 舞 ", "跳舞").rstrip() for line in screen.display]  # pyte fills wide cells
    assert [line for line in shown if line] == [line for line in plain.getvalue().splitlines() if line]


def test_a_message_below_a_growing_line_is_not_erased(capsys):
    pyte = pytest.importorskip("pyte")
    screen = pyte.Screen(80, 20)
    screen.set_mode(pyte.modes.LNM)
    stream, result = Tty(), make_result("000")
    table = make_table(stream)
    console.set_verbosity(verbose=False, quiet=False)
    write_clips(table, result, 0, 1)
    console.log.warning("look here")
    stream.write(capsys.readouterr().err)
    write_clips(table, result, 1, 2)
    write_clips(table, result, 2, 3)
    table.close()
    pyte.Stream(screen).feed(stream.getvalue())
    lines = [line.split() for line in screen.display if line.strip()]
    assert [line[2] for line in lines[1:]] == ["0:01.0", "look", "0:03.0"]


def test_a_video_that_fails_midway_has_its_lines_and_no_whole_video():
    stream = io.StringIO()
    table = make_table(stream)
    write_clips(table, make_result("001"), 0, 3)
    table.write(make_result("2", video="b.mp4"), "b")
    write_clips(table, make_result("0", video="c.mp4"), 0, 1)
    table.close()
    lines = lines_of(stream.getvalue())
    assert [line if isinstance(line, str) else line[0] for line in lines] == [
        *["a.mp4", "0:00.0 – 0:02.0", "0:02.0 – 0:03.0", ""],
        *["b.mp4", "0:00.0 – 0:01.0", "", "whole video", ""],
        *["c.mp4", "0:00.0 – 0:01.0"],
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lines_fit_and_scores_stand_in_one_column(monkeypatch, width):
    cells = pytest.importorskip("rich.cells")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    make_table(stream, k=3).write(make_result("012", video="a\x1b\u202e.mp4"), "a")
    heading, *lines = stream.getvalue().splitlines()
    assert heading == r"a\x1b\u202e.mp4"
    assert "\x1b" not in stream.getvalue()
    assert r"\x1b[31mred\nxxx"[: width - 45] in stream.getvalue()
    assert ("…" in stream.getvalue()) == (r"x" * 99 not in stream.getvalue())
    lines = [line for line in lines if line]
    assert len(lines) == 6
    assert max(map(cells.cell_len, lines)) <= min(width, 100)
    assert len({cells.cell_len(line[: line.index("%")]) for line in lines}) == 1


def test_times_beyond_an_hour():
    result = make_result("01")
    late = [
        ClipOutput(ClipSpan(i, 0, 16, seconds, seconds + 1), {}, clip.logits)
        for i, (clip, seconds) in enumerate(zip(result.clips, (599.96, 35999.0), strict=True))
    ]
    stream = io.StringIO()
    table = make_table(stream)
    table.write_clips("a.mp4", late, NAMES)
    table.close()
    assert [line[0] for line in lines_of(stream.getvalue())[1:]] == ["10:00.0 – 5:05:00.0", "5:05:00.0 – 10:00:00.0"]


@pytest.mark.parametrize(
    "rule, times",
    [
        (SegmentRule(), ["0:00.0 – 0:02.0", "0:02.0 – 0:03.0", "0:03.0 – 0:04.0"]),
        (SegmentRule(min_seconds=1.5), ["0:00.0 – 0:04.0"]),
        (SegmentRule(threshold=0.9), []),
        (SegmentRule(multi_label=True), ["0:00.0 – 0:02.0", "0:02.0 – 0:03.0", "0:03.0 – 0:04.0"]),
        (SegmentRule(multi_label=True, threshold=0.1), ["0:00.0 – 0:04.0"] * 3),
    ],
)
def test_segments_are_lines(rule, times):
    stream, result = io.StringIO(), make_result("0010")
    table = make_table(stream, rule=rule, segments=True)
    write_clips(table, result, 0, 4)
    assert stream.getvalue() == ""
    table.write(result, "a")
    lines = lines_of(stream.getvalue())
    assert lines[0] == "a.mp4"
    assert [line[0] for line in lines[1:-2]] == times or (lines[1:-2], times) == (["no segments"], [])
    assert lines[-1][0] == "whole video"


def test_no_color_is_respected(monkeypatch):
    coloured, plain = Tty(), Tty()
    make_table(coloured).write(make_result("0"), "a")
    monkeypatch.setenv("NO_COLOR", "1")
    make_table(plain).write(make_result("0"), "a")
    assert "\x1b[36m" in coloured.getvalue()
    assert "\x1b[36m" not in plain.getvalue()


def test_the_table_of_details_grows_by_rows_of_the_same_columns():
    stream = io.StringIO()
    table = make_table(stream, PredictionTables)
    for video in ("a.mp4", "b.mp4"):
        result = make_result("02", video=video)
        for i in range(2):
            write_clips(table, result, i, i + 1)
            assert f"{i}.00 – {i + 1}.00" in stream.getvalue()
        table.write(result, "a")
    lines = stream.getvalue().splitlines()
    assert [sum(name in line for line in lines) for name in ("a.mp4", "b.mp4", "seconds", "whole")] == [1, 1, 2, 2]
    assert len({line.index("75.0%") for line in lines if "75.0%" in line}) == 1
