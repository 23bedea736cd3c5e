"""Timelines as PNG, SVG and PDF: what they show, read back by XML and image parsers."""

import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vid3d_cli import Fusion
from vid3d_cli.fusion import pool_video
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult

matplotlib = pytest.importorskip("matplotlib")

HOSTILE = [
    "$x^2$ \\frac{",
    "a\nb\x1b[31m",
    "<b>&</script>",
    "😀🦄",
    "跳舞",
    "שלום",
    "\u202eevil",
    "\udcff\uffff",
    "-->",
]

forms = pytest.mark.parametrize("form", ["png", "svg", pytest.param("pdf", marks=pytest.mark.exhaustive)])


def make_result(best, labels, *, streams=("rgb", "flow"), video="dir/film.mp4", seconds=1.0):
    """A result whose clip i, a second long, shows class best[i]."""
    clips = [
        ClipOutput(
            ClipSpan(i, 16 * i, 16, seconds * i, seconds * (i + 1)),
            {stream: np.zeros(2, np.float32) for stream in streams},
            {stream: 6 * np.eye(len(labels), dtype=np.float32)[k] for stream in streams},
        )
        for i, k in enumerate(best)
    ]
    fused, pooled = pool_video(clips, Fusion.parse("1:1", "logits"))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return VideoResult(video, fused, pooled, tuple(labels), 25.0, 16 * len(clips), 0, recipe)


def texts_of(path):
    return [node.text for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_an_svg_has_its_texts_as_text(tmp_path):
    make_result([0] * 10 + [1] * 10 + [2], ["walk", "run", "a rare and short one"]).save(tmp_path / "a.svg")
    texts = texts_of(tmp_path / "a.svg")
    assert [texts.count(text) for text in ("film.mp4", "rgb", "flow", "fused", "walk", "run")] == [1, 1, 1, 1, 3, 3]
    assert texts.count("a rare and short one") == 1  # in the legend: it does not fit into its blocks
    assert {"score", "time (s)", "0", "0.5", "1"} <= set(texts)


def test_the_title_of_a_url_has_no_password(tmp_path):
    make_result([0, 1], ["walk", "run"], video="http://user:secret@host").save(tmp_path / "a.svg")
    assert not any("secret" in text for text in texts_of(tmp_path / "a.svg"))


def test_a_single_stream_has_one_row(tmp_path):
    make_result([0, 1], ["walk", "run"], streams=("flow",)).save(tmp_path / "a.svg")
    assert {"rgb", "flow", "fused"} & set(texts_of(tmp_path / "a.svg")) == {"flow"}


@pytest.mark.parametrize(("num_clips", "expected"), [(90, "80"), (400, "1:00"), (7300, "1:00:00")])
def test_the_time_axis_suits_the_length(tmp_path, num_clips, expected):
    make_result([0] * num_clips, ["walk", "run"]).save(tmp_path / "a.svg")
    assert expected in texts_of(tmp_path / "a.svg")


def test_blocks_have_the_times_of_the_segments(tmp_path):
    """Blocks without text, in the pixels of a PNG: one class for a quarter of the time, then another."""
    make_result([0] * 25 + [1] * 75, ["i", "j"], streams=("rgb",)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        row = np.asarray(image.convert("RGB"))[round(image.height * 0.185)]  # of the blocks, above their text
    is_coloured = np.ptp(row.astype(int), axis=1) > 100
    first, last = np.flatnonzero(is_coloured)[[0, -1]]
    width_px = 7 * 300
    assert (first / width_px, last / width_px) == pytest.approx((0.6 / 7, 1 - 0.25 / 7), abs=0.003)
    colours = row[first + 5], row[last - 5]
    assert tuple(colours[0]) != tuple(colours[1])
    share = (row[is_coloured] == colours[0]).all(axis=1).sum() / is_coloured.sum()
    assert share == pytest.approx(0.25, abs=0.01)


@forms
def test_equal_results_give_equal_files(tmp_path, form):
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        make_result([0, 0, 1], ["walk", "run"]).save(tmp_path / f"{name}.{form}")
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
    assert dict(matplotlib.rcParams) == before


@forms
def test_names_and_labels_are_inert(tmp_path, form):
    video = "dir/$a$ 😀 <b>\udcff\n.mp4"
    result = make_result([k for k in range(len(HOSTILE)) for _ in range(9)], HOSTILE, video=video)
    with warnings.catch_warnings(), matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        warnings.simplefilter("error")
        result.save(tmp_path / f"a.{form}")
    if form == "svg":
        texts = texts_of(tmp_path / "a.svg")
        assert "$a$ 😀 <b>\\xff\\n.mp4" in texts
        escaped = {"a\\nb\\x1b[31m", "\\u202eevil", "\\xff\\uffff"}
        assert {"$x^2$ \\frac{", "<b>&</script>", "😀🦄", "跳舞", "שלום", "-->", *escaped} <= set(texts)


def test_a_pdf_embeds_its_fonts_as_text(tmp_path):
    make_result([0, 1], ["walk", "run"]).save(tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/CIDFontType2" in data or b"/TrueType" in data
    assert b"CreationDate" not in data


@pytest.mark.parametrize(
    ("best", "num_classes", "options"),
    [
        ([0], 1, {}),
        (range(50), 50, {}),
        pytest.param([k % 7 for k in range(2000)], 7, {}, marks=pytest.mark.exhaustive),
        ([0, 1, 2], 3, {"threshold": 1.0}),
        ([k % 3 for k in range(30)], 3, {"multi_label": True, "threshold": 0.0}),
    ],
)
def test_any_number_of_segments_and_classes_is_drawn(tmp_path, best, num_classes, options):
    make_result(list(best), [f"class number {k}" for k in range(num_classes)]).save(tmp_path / "a.svg", **options)
    assert (tmp_path / "a.svg").stat().st_size < 1_500_000
    height = float(ET.parse(tmp_path / "a.svg").getroot().get("height").removesuffix("pt")) / 72
    assert height < 7


def test_a_clip_of_no_length_is_drawn(tmp_path):
    make_result([0], ["walk", "run"], seconds=0.0).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 2100


def test_overlapping_classes_have_lanes_of_their_own(tmp_path):
    heights = []
    for name, multi_label in (("one", False), ("all", True)):
        make_result([0, 1, 2], ["a", "b", "c"]).save(tmp_path / f"{name}.png", multi_label=multi_label, threshold=0.0)
        with Image.open(tmp_path / f"{name}.png") as image:
            heights.append(image.height / 300)
    assert heights[1] - heights[0] == pytest.approx(3 * 2 * 0.2, abs=0.02)  # two lanes more in each of three rows


def test_many_overlapping_classes_are_named_in_the_legend(tmp_path):
    make_result(list(range(14)), [f"k{k}" for k in range(14)]).save(tmp_path / "a.svg", multi_label=True, threshold=0.0)
    texts = texts_of(tmp_path / "a.svg")
    assert [texts.count(f"k{k}") for k in range(14)] == [1] * 14


def test_without_matplotlib_nothing_runs(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None\nfrom vid3d_cli.cli import main\nmain()"
    (tmp_path / "a.mp4").write_bytes(b"never read")
    arguments = ["classify", "a.mp4", "--model", "s3d_mini", "-o", "x.png"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    message = 'vid3d: error: a timeline as a picture needs matplotlib: pip install "vid3d[plots]"\n'
    assert (done.returncode, done.stderr) == (2, message)
