"""What a result gives in Python: its best classes, tables, files, and a timeline in a notebook."""

import inspect
import itertools
import json
import re
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from test_arguments import ODD, call

import vid3d_cli as vid3d
from vid3d_cli.durable import OutputError
from vid3d_cli.errors import OutputExists
from vid3d_cli.fusion import pool_video
from vid3d_cli.predictions.formats import FORMATS
from vid3d_cli.predictions.notebook import MAX_SEGMENTS
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan

LABELS = ("jump", "run", "swim")
HOSTILE = ["</title><script>alert(1)</script>", "a --> b & 'c' \"d\"", "<b>\n\x00\x1b[31m\udcff\u202e🎬 שלום"]


def make_result(best, streams=("rgb", "flow"), video="dir/a.mp4", labels=LABELS, seconds=2.0):
    """Return a result whose clips, of so many seconds, each have one class with most of the score."""
    clips = [
        ClipOutput(
            ClipSpan(i, 50 * i, 50, seconds * i, seconds * (i + 1)),
            {stream: np.float32([i, 0]) for stream in streams},
            {stream: np.eye(len(labels), dtype=np.float32)[k] * (4 if stream == "rgb" else 2) for stream in streams},
        )
        for i, k in enumerate(best)
    ]
    clips, logits = pool_video(clips, vid3d.Fusion.parse("1:1", "logits"))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 50, 50, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return vid3d.VideoResult(video, clips, logits, tuple(labels), 25.0, 50 * len(best), 0, recipe)


RESULT = make_result([0, 0, 2, 0])


def test_the_best_classes_of_a_stream():
    assert [p.label for p in RESULT.top()] == ["jump", "swim", "run"]
    assert RESULT.top(2) == vid3d.top_k(RESULT.logits["fused"], LABELS, 2)
    assert RESULT.top(1, stream="flow") == vid3d.top_k(RESULT.logits["flow"], LABELS, 1)
    with pytest.raises(vid3d.UsageError, match=r"stream='rgbb': did you mean 'rgb'\?"):
        RESULT.top(1, stream="rgbb")
    with pytest.raises(vid3d.UsageError, match=r"stream='flow': choose one of rgb, fused"):
        make_result([0], ["rgb"]).curves("flow")
    assert RESULT.top(0) == []


def test_the_segments_of_a_stream():
    assert RESULT.segments(stream="flow") == [s for s in RESULT.segments() if s.stream == "flow"] != []
    with pytest.raises(vid3d.UsageError, match=r"stream='flow': choose one of rgb, fused"):
        make_result([0], ["rgb"]).segments(stream="flow")


def test_names_and_labels_are_printed_on_one_line_without_codes():
    result = make_result([0], video="a\n\x1b[31m.mp4", labels=["run\r\u202e", "b", "c"])
    assert repr(result) == r"VideoResult(a\n\x1b[31m.mp4, 1 clip, run\r\u202e 100 %)"


@pytest.mark.parametrize("method", ["top", "to_dict", "to_pandas", "segments", "curves", "features", "save"])
def test_odd_arguments_work_or_are_usage_errors(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(RESULT, method)
    usual = {"path": "x.csv", "overwrite": True} if method == "save" else {}
    for name, value in itertools.product(inspect.signature(function).parameters, ODD):
        call(function, **{**usual, name: value})
    assert "typo" in call(function, **usual, typo=1)


# Tables and files ----------------------------------------------------------------------------------------------------


def test_the_table_has_the_rows_of_the_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    RESULT.save(tmp_path / "a.csv", k=2)
    saved = pandas.read_csv(tmp_path / "a.csv", dtype={"clip": "Int64"})
    table = RESULT.to_pandas(2)
    pandas.testing.assert_frame_equal(table, saved)
    assert len(table) == 5 * 3 * 2  # 4 clips and the video, 3 streams
    best = table[(table.stream == "fused") & (table["rank"] == 1) & table["clip"].notna()]
    assert list(best.label) == ["jump", "jump", "swim", "jump"]
    assert pandas.DataFrame(RESULT.segments()).columns[0] == "start_seconds"


def test_a_table_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(vid3d.UsageError, match=r"^to_pandas needs pandas: pip install pandas$"):
        RESULT.to_pandas()


DRAWN = ("html", "mp4", "png", "svg", "pdf")  # they take longer


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.exhaustive] if form in DRAWN else []) for form in FORMATS]
)
def test_every_format_is_saved(video, tmp_path, form):
    result = make_result([0, 2], video=str(video), seconds=0.8)
    path = tmp_path / "out" / f"a.{form}"
    try:
        result.save(str(path))
    except vid3d.UsageError as error:
        assert "pip install" in str(error)
        pytest.skip(str(error))
    written = path.read_bytes()
    assert written
    with pytest.raises(OutputExists, match=r"a\.\S+: already exists; choose another name, or give overwrite=True"):
        result.save(path)
    assert path.read_bytes() == written
    path.write_bytes(b"old")
    result.save(path, overwrite=True)
    assert path.read_bytes()[:8] == written[:8]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("path", "choices", "message"),
    [
        ("a.doc", {}, r"^a\.doc: give a file with one of the suffixes \.jsonl, \.csv"),
        ("a", {}, "give a file with one of the suffixes"),
        (".csv", {}, "give a file with one of the suffixes"),
        ("-", {}, "give a file with one of the suffixes"),
        ("folder", {}, "give a file with one of the suffixes"),
        ("a.csv", {"per": "clips"}, r"^per='clips': did you mean 'clip'\? Choose one of clip, video$"),
        ("a.csv", {"k": -1}, "^k=-1: give 0 or more$"),
        ("a.csv", {"threshold": 2}, "^threshold=2: give a score from 0 to 1$"),
        ("a.csv", {"min_seconds": 1}, "min_seconds and multi_label are for segments: add segments=True$"),
        ("a.csv", {"embed": True}, r"^embed=True is for \.html: leave it out$"),
        ("a.vtt", {"k": 3}, r"^k is for \.jsonl, \.csv, \.png, \.svg, \.pdf: leave it out$"),
        ("a.eaf", {"per": "video"}, r"^per is for \.jsonl, \.csv: leave it out$"),
        ("a.csv", {"per": "video", "segments": True}, "^segments=True replaces clips: leave out per$"),
        ("a.csv", {"k": 3, "segments": True}, "^segments=True replaces clips: leave out k$"),
        ("a.csv", {"form": "vtt"}, "save: got an unexpected keyword argument 'form'"),
        ("a.csv", {"min_second": 1}, "argument 'min_second': did you mean 'min_seconds'[?]$"),
    ],
)
def test_what_cannot_be_saved(tmp_path, monkeypatch, path, choices, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(vid3d.UsageError, match=message):
        RESULT.save(path, **choices)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match=r"folder\.csv: cannot be written: it is a directory"):
        RESULT.save(tmp_path / "folder.csv", overwrite=True)


def test_saved_segments_follow_the_rule(tmp_path):
    RESULT.save(tmp_path / "a.jsonl", segments=True, min_seconds=3)
    segments = RESULT.segments(min_seconds=3)
    assert len(segments) < len(RESULT.segments())
    saved = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [(s["stream"], s["label"], s["start_seconds"], s["end_seconds"]) for s in saved] == [
        (s.stream, s.label, s.start_seconds, s.end_seconds) for s in segments
    ]


def test_a_file_without_segments_is_empty_and_replaces_an_old_one(tmp_path):
    (tmp_path / "a.jsonl").write_text("old")
    RESULT.save(tmp_path / "a.jsonl", segments=True, threshold=1, overwrite=True)
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_a_video_is_not_replaced_by_its_predictions(tmp_path):
    video = tmp_path / "a.csv"
    video.write_bytes(b"frames")
    (tmp_path / "link.csv").symlink_to(video)
    for name in ("a.csv", "link.csv"):
        with pytest.raises(vid3d.UsageError, match=rf"{name} is the video itself: choose another name"):
            replace(RESULT, video=str(video)).save(tmp_path / name, overwrite=True)
    assert video.read_bytes() == b"frames"


# Notebooks -----------------------------------------------------------------------------------------------------------


def picture(result):
    return ElementTree.fromstring(result._repr_html_())


def shown(root, tag):
    return [element.text for element in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def test_a_notebook_shows_segments_and_the_best_classes():
    root = picture(RESULT)
    spans = ["jump\n0:00.0 – 0:04.0", "swim\n0:04.0 – 0:06.0", "jump\n0:06.0 – 0:08.0"]
    assert shown(root, "title")[-3:] == [f"{span}, 100 %" for span in spans]
    texts = shown(root, "text")
    assert texts[0] == "a.mp4"
    assert [text for text in texts if text in ("rgb", "flow", "fused")] == ["rgb", "flow", "fused"]
    best = RESULT.top()
    assert texts[-6:] == [text for p in best for text in (p.label, f"{100 * p.score:.0f} %")]


def test_segments_lie_where_their_seconds_are():
    """The widths of the bars are in the ratio of the seconds, and each class has one colour in all rows."""
    root = picture(make_result([0, 0, 2, 1], streams=["rgb"]))
    groups = [(g.get("fill"), float(g[1].get("x")), float(g[1].get("width"))) for g in root if g.tag.endswith("}g")]
    (_, x0, width), (_, x1, _), (_, x2, last) = groups
    assert (x1 - x0) / (x2 - x1) == pytest.approx(2, abs=0.01)
    assert width == pytest.approx(2 * last, abs=1.2)  # a pixel lies between
    assert len({fill for fill, _, _ in groups}) == 3
    assert "fused" not in shown(root, "text")  # it equals the only stream


@pytest.mark.parametrize("video", ["a.mp4", f"dir/{HOSTILE[2]}.mp4", "https://a.b/v.mp4?token=secret"])
def test_names_are_only_text(video):
    result = make_result([0, 1, 2] * 3, labels=HOSTILE, video=video, seconds=40.0)
    root = picture(result)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "g", "title", "rect", "text"}
    assert {
        name for element in root.iter() for name in element.attrib if name.startswith("on") or "href" in name
    } == set()
    titles = [title.partition("\n")[0] for title in shown(root, "title")[:3]]
    assert titles == [*HOSTILE[:2], r"<b>\n\x00\x1b[31m\xff\u202e🎬 שלום"]
    html = result._repr_html_()
    html.encode()
    assert "secret" not in html
    assert "<script" not in html


def test_a_long_video_has_a_small_picture():
    num_clips = 5 * MAX_SEGMENTS
    result = make_result([i % 3 for i in range(num_clips)], seconds=36_000 / num_clips, labels=["a" * 30, "b", "c"])
    html = result._repr_html_()
    assert len(html.encode()) < 200_000
    assert len(shown(ElementTree.fromstring(html), "title")) == 3 * MAX_SEGMENTS
    assert re.findall(r">(\d+:00:00)<", html)[-1] == "10:00:00"


@pytest.mark.parametrize("seconds", [0.0, 0.04, 1.0, 59.99, 3_599.99, 1e6])
def test_a_video_of_any_length_has_a_picture(seconds):
    root = picture(make_result([1], seconds=seconds))
    numbers = [float(element.get(name)) for element in root.iter() for name in ("x", "width") if element.get(name)]
    assert all(0 <= number <= 760 for number in numbers)
    assert len(shown(root, "text")) < 40


def test_an_embedding_has_no_timeline():
    result = replace(RESULT, labels=(), video="<i>.mp4")
    assert result._repr_html_() == "<pre>VideoResult(&lt;i&gt;.mp4, 4 clips)</pre>"
    with pytest.raises(vid3d.UsageError, match="i3d gives an embedding and has no classes to save"):
        result.save("x.csv")
