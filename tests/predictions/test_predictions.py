"""What `vid3d classify` writes, read back by the standard library's parsers."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from vid3d_cli import Fusion
from vid3d_cli.errors import OutputError, OutputExists, UsageError
from vid3d_cli.fusion import pool_video
from vid3d_cli.predictions.formats import FORMATS, Choices, Writer, find_writer, format_of
from vid3d_cli.predictions.lines import CSV_COLUMNS, SEGMENT_COLUMNS
from vid3d_cli.predictions.outputs import open_outputs
from vid3d_cli.predictions.records import prediction_records, segment_record, streams_of
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.segments import SegmentRule

LABELS = ("abseiling", 'saying "hi", loudly', "pêche à la ligne", "跳舞")
# Sums of halves, so that means and fusions are exact.
CLIP_LOGITS = [
    {"rgb": np.float32([1, 0, 2, -1]), "flow": np.float32([0, 3, 0, 0])},
    {"rgb": np.float32([2, 0, 0, -1]), "flow": np.float32([0, 0, 1, 6])},
]


def make_result(
    streams=("rgb", "flow"), video="dir/cafe, ünïcode.mp4", fuse="1:1", fuse_on="logits", logits=CLIP_LOGITS
):
    clips = [
        ClipOutput(
            ClipSpan(i, 16 * i, 16, 0.64 * i, 0.64 * i + 2 / 3),
            {stream: np.zeros(2, np.float32) for stream in streams},
            {stream: by_stream[stream] for stream in streams},
        )
        for i, by_stream in enumerate(logits)
    ]
    fused, pooled = pool_video(clips, Fusion.parse(fuse, fuse_on))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return VideoResult(video, fused, pooled, LABELS, 25.0, 32, 0, recipe)


def named(predictions):
    return [(p["label"], p["logit"]) for p in predictions]


def test_records_are_one_per_clip_then_one_for_the_video():
    first, second, whole = prediction_records(make_result(), k=2)
    assert list(first) == ["video", "clip", "start_seconds", "end_seconds", "rgb", "flow", "fused"]
    assert [r["video"] for r in (first, second, whole)] == ["dir/cafe, ünïcode.mp4"] * 3
    assert [r["clip"] for r in (first, second, whole)] == [0, 1, None]
    assert [(r["start_seconds"], r["end_seconds"]) for r in (first, second, whole)] == [
        (0, 0.666667),
        (0.64, 1.306667),
        (0, 1.306667),
    ]
    abseiling, saying, fishing, dancing = LABELS
    assert named(first["rgb"]) == [(fishing, 2), (abseiling, 1)]
    assert named(first["flow"]) == [(saying, 3), (abseiling, 0)]
    assert named(first["fused"]) == [(saying, 3), (fishing, 2)]
    assert named(second["fused"]) == [(dancing, 5), (abseiling, 2)]
    assert named(whole["rgb"]) == [(abseiling, 1.5), (fishing, 1)]
    assert named(whole["flow"]) == [(dancing, 3), (saying, 1.5)]
    assert named(whole["fused"]) == [(dancing, 2), (abseiling, 1.5)]  # a tie with saying: label order


def test_scores_are_softmax_over_all_classes_not_over_the_top_k():
    (whole,) = prediction_records(make_result(), k=1, per="video")
    (best,) = whole["rgb"]
    assert list(best) == ["label", "score", "logit"]
    exp = np.exp(np.float64([1.5, 0, 1, -1]))
    assert best["score"] == pytest.approx(exp[0] / exp.sum(), abs=1e-6)


def test_per_video_yields_only_the_last_record():
    *_, whole = prediction_records(make_result(), k=3)
    assert list(prediction_records(make_result(), k=3, per="video")) == [whole]


def test_k_above_the_number_of_classes_gives_them_all():
    (whole,) = prediction_records(make_result(), k=99, per="video")
    for stream in ("rgb", "flow", "fused"):
        assert sorted(p["label"] for p in whole[stream]) == sorted(LABELS)
        assert sum(p["score"] for p in whole[stream]) == pytest.approx(1, abs=1e-5)


def test_one_stream_is_reported_with_the_fusion_and_without_the_other():
    (whole,) = prediction_records(make_result(streams=("flow",)), k=1, per="video")
    assert list(whole) == ["video", "clip", "start_seconds", "end_seconds", "flow", "fused"]
    assert whole["fused"] == whole["flow"]


def make_writer(form, stream, **choices):
    return find_writer(form)(stream, Choices(SegmentRule(), **choices))


def write_all(form, results, **choices):
    """Return what a format writes of results."""
    text = io.StringIO(newline="")
    writer = make_writer(form, text, **choices)
    for result in results:
        writer.write(result, "name")
    writer.close()
    return text.getvalue()


def test_json_lines_hold_one_record_per_line_unescaped():
    results = [make_result(), make_result(video="b.mp4")]
    text = write_all("jsonl", results, k=2)
    assert text.endswith("\n")
    expected = [record for result in results for record in prediction_records(result, k=2)]
    assert [json.loads(line) for line in text.splitlines()] == expected
    assert "ünïcode" in text
    assert "跳舞" in text


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_clips_are_flushed_when_they_are_done_and_written_once(form):
    raw, result = io.BytesIO(), make_result()
    writer = make_writer(form, io.TextIOWrapper(raw, "utf-8", newline=""), k=1)
    sizes = []
    for clip in result.clips:
        writer.write_clips(result.video, [clip], LABELS)
        sizes.append(len(raw.getvalue()))
    writer.write(result, "name")
    assert 0 < sizes[0] < sizes[1] < len(raw.getvalue())
    assert raw.getvalue().decode() == write_all(form, [result], k=1)


@pytest.mark.parametrize("streams", [("rgb", "flow"), ("rgb",)])
def test_csv_equals_the_records(streams):
    result = make_result(streams=streams)
    text = write_all("csv", [result], k=3)
    assert "\r" not in text
    assert text.splitlines()[0] == ",".join(CSV_COLUMNS)
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [
        {
            "video": record["video"],
            "clip": "" if record["clip"] is None else str(record["clip"]),
            "start_seconds": str(record["start_seconds"]),
            "end_seconds": str(record["end_seconds"]),
            "stream": stream,
            "rank": str(rank),
            "label": p["label"],
            "score": str(p["score"]),
            "logit": str(p["logit"]),
        }
        for record in prediction_records(result, k=3)
        for stream in (*streams, "fused")
        for rank, p in enumerate(record[stream], start=1)
    ]
    assert lines == expected
    assert len(lines) == 3 * (len(streams) + 1) * 3  # records × streams and fusion × ranks


def test_segments_are_records_in_every_line_format():
    result = make_result()
    expected = [segment_record(result.video, segment) for segment in result.segments()]
    assert [list(record) for record in expected] == [
        ["video", "start_seconds", "end_seconds", "label", "score", "stream"]
    ] * len(expected)
    text = write_all("jsonl", [result], segments=True)
    assert [json.loads(line) for line in text.splitlines()] == expected
    rows = list(csv.DictReader(io.StringIO(write_all("csv", [result], segments=True), newline="")))
    assert rows == [{name: str(record[name]) for name in SEGMENT_COLUMNS} for record in expected]


@pytest.mark.parametrize(
    "segments, header",
    [
        (False, "video,clip,start_seconds,end_seconds,stream,rank,label,score,logit\n"),
        (True, "video,start_seconds,end_seconds,stream,label,score\n"),
    ],
)
def test_csv_without_videos_is_its_header(segments, header):
    assert write_all("csv", [], segments=segments) == header


def test_streams_of_a_record_end_with_the_fusion():
    record = {"fused": [3], "flow": [2], "video": "a", "rgb": [1]}
    assert list(streams_of(record).items()) == [("rgb", [1]), ("flow", [2]), ("fused", [3])]


def test_confident_streams_fused_on_probabilities_are_still_json():
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    logits = [{"rgb": np.float32([300, 0, 0, 0]), "flow": np.float32([300, 0, 0, 0])}]
    for line in write_all("jsonl", [make_result(fuse_on="probs", logits=logits)], k=4).splitlines():
        assert json.loads(line, parse_constant=refuse)["fused"][0]["score"] == 1


def test_the_formats_are_known_without_numpy():
    code = "import sys; from vid3d_cli.predictions.formats import FORMATS; print('numpy' in sys.modules, *FORMATS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", *FORMATS]


def test_csv_of_any_name_is_read_back():
    """Before: a CR in a name split its line in two, and a byte that is not UTF-8 made pandas refuse the whole file."""
    pandas = pytest.importorskip("pandas")
    names = ["a\rb", "a\nb", "a\r\nb", 'quote",comma', "=1+2", "+x", "-y", "@z", " lead", "é", "\udcff"]
    text = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape", newline="")
    writer = make_writer("csv", text, k=1, per="video")
    for name in names:
        writer.write(make_result(video=name), "name")
    text.flush()
    assert isinstance(text.buffer, io.BytesIO)
    frame = pandas.read_csv(io.BytesIO(text.buffer.getvalue()))
    assert list(dict.fromkeys(frame["video"])) == [*names[:-1], r"\udcff"]


# Outputs --------------------------------------------------------------------------------------------------------------


class OneVideo(Writer):
    """A format of one video a file, which fails for a video of the name "broken"."""

    holds_many = False

    def write(self, result, name):
        self.stream.write(f"{name}\n")
        if result.video == "broken":
            raise OutputError("broken")

    def close(self):
        self.stream.write("end\n")


@pytest.fixture
def one_video(monkeypatch):
    monkeypatch.setitem(FORMATS, "one", "lines:OneVideo")
    monkeypatch.setattr("vid3d_cli.predictions.lines.OneVideo", OneVideo, raising=False)


def open_them(*paths, form=None, names=("a",), overwrite=False):
    videos = {name: f"{name}.mp4" for name in names}
    return open_outputs(paths, [form] if form else [], Choices(SegmentRule()), videos, overwrite=overwrite)


def test_the_longest_suffix_names_the_format(monkeypatch, tmp_path):
    monkeypatch.setitem(FORMATS, "long.csv", "lines:Csv")
    names = {"a.csv": "csv", "A.JSONL": "jsonl", "a.b.csv": "csv", "a.long.csv": "long.csv", "a": None, ".csv": None}
    assert {name: format_of(tmp_path / name) for name in names} == names


def test_a_directory_gets_a_file_per_video_each_when_it_is_done(tmp_path, one_video):
    out = tmp_path / "out"
    with open_them(out, form="one", names=["a", "deep/b", "c"]) as outputs:
        outputs.write(make_result(), "a")
        assert (out / "a.one").read_text() == "a\nend\n"
        outputs.write(make_result(), "deep/b")
        with pytest.raises(OutputError):
            outputs.write(make_result(video="broken"), "c")
    files = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert files == {"a.one": "a\nend\n", "deep/b.one": "deep/b\nend\n"}  # and no temporary file
    with pytest.raises(OutputExists, match=r"a\.one \(and 1 more\)"), open_them(out, form="one", names=["a", "deep/b"]):
        pass
    with open_them(out, form="one", names=["a"], overwrite=True) as outputs:
        outputs.write(make_result(), "a")


def test_a_slash_makes_a_directory_which_may_get_several_formats(tmp_path):
    with open_outputs([f"{tmp_path}/d.csv/"], ["csv", "vtt"], Choices(SegmentRule()), {"a": "a.mp4"}) as outputs:
        outputs.write(make_result(), "a")
    assert sorted(path.name for path in (tmp_path / "d.csv").iterdir()) == ["a.csv", "a.vtt"]


def test_a_run_that_fails_keeps_what_is_done(tmp_path, one_video):
    lines, one = tmp_path / "a.jsonl", tmp_path / "a.one"
    with pytest.raises(RuntimeError), open_them(lines, one) as outputs:
        outputs.write(make_result(), "a")
        outputs.write_clips("b", make_result().clips, LABELS)
        raise RuntimeError
    assert len(lines.read_text().splitlines()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.one"]


def test_outputs_without_a_video_do_not_appear(tmp_path, one_video):
    with open_them(tmp_path / "a.csv", tmp_path / "a.one") as outputs, pytest.raises(OutputError):
        outputs.writers[1].write(make_result(video="broken"), "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "paths, forms, message",
    [
        (
            ["a.one"],
            "",
            "{}/a.one: one holds one video, and there are 2: name a directory, as in --out out/ --format one",
        ),
        (["a.jsonl", "a.jsonl"], "", "{}/a.jsonl would be written twice: leave out one --out or --format"),
        (["out", "out/a.csv"], "csv", "{}/out/a.csv would be written twice: leave out one --out or --format"),
        (["a.jsonl"], "csv", "--format csv: the suffix of {}/a.jsonl names the format; leave one of them out"),
        (["a.xyz"], "", "{}/a.xyz: the suffix names no format; choose one of .jsonl, .csv"),
        (["out"], "", "{}/out has no suffix: choose one of .jsonl, .csv, "),
        (["out/"], "", "{}/out is a directory: add --format, as in --format vtt"),
        (["d.csv/"], "", "{}/d.csv is a directory: add --format, as in --format vtt"),
        (["a.csv/"], "csv", "{}/a.csv/b.csv: cannot be written: Not a directory"),
        (["-"], "csv jsonl", "stdout would be written twice: leave out one --out or --format"),
        (["a.xyz"], "csv jsonl", "{}/a.xyz would be written twice: leave out one --out or --format"),
        (["out/"], "csv csv", "{}/out/a.csv would be written twice: leave out one --out or --format"),
        (["a.csv"], "", "{}/a.csv is one of the videos: choose another name for --out"),
        (["b.mp4/x.jsonl"], "", "{}/b.mp4/x.jsonl: cannot be written: "),
        (["b.mp4/x"], "csv", "{}/b.mp4/x/b.csv: cannot be written: Not a directory"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, monkeypatch, one_video, paths, forms, message):
    monkeypatch.chdir(tmp_path)
    paths = [path if path == "-" else f"{tmp_path}/{path}" for path in paths]
    for video in ("a.csv", "b.mp4"):
        (tmp_path / video).write_text(video)
    videos = {"a": "a.csv", "b": str(tmp_path / "b.mp4")}
    opened = open_outputs(paths, forms.split(), Choices(SegmentRule()), videos, overwrite=True)
    with pytest.raises((UsageError, OutputError)) as raised, opened:
        pytest.fail("the networks would run")
    assert message.format(tmp_path) in str(raised.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "a.csv", "b.mp4": "b.mp4"}
