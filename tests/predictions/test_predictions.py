"""What `vid3d classify` writes, read back by the standard library's parsers."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from vid3d_cli.predictions.files import CSV_COLUMNS, WRITERS, prediction_records, streams_of

from vid3d_cli import Fusion
from vid3d_cli.fusion import pool_video
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult

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


def test_json_lines_hold_one_record_per_line_unescaped():
    text = io.StringIO()
    writer = WRITERS["jsonl"](text)
    results = [make_result(), make_result(video="b.mp4")]
    for result in results:
        writer.write(prediction_records(result, k=2))
    writer.close()
    assert text.getvalue().endswith("\n")
    expected = [record for result in results for record in prediction_records(result, k=2)]
    assert [json.loads(line) for line in text.getvalue().splitlines()] == expected
    assert "ünïcode" in text.getvalue()
    assert "跳舞" in text.getvalue()


def test_json_lines_are_flushed_after_each_video():
    raw = io.BytesIO()
    writer = WRITERS["jsonl"](io.TextIOWrapper(raw, encoding="utf-8"))
    writer.write(prediction_records(make_result(), k=2))
    assert len(raw.getvalue().splitlines()) == 3


@pytest.mark.parametrize("num_videos", [0, 1, 3])
def test_a_json_array_is_valid_for_any_number_of_videos(num_videos):
    text = io.StringIO()
    writer = WRITERS["json"](text)
    for _ in range(num_videos):
        writer.write(prediction_records(make_result(), k=2))
    writer.close()
    assert json.loads(text.getvalue()) == list(prediction_records(make_result(), k=2)) * num_videos
    assert text.getvalue().endswith("]\n")


@pytest.mark.parametrize("streams", [("rgb", "flow"), ("rgb",)])
def test_csv_equals_the_records(streams):
    text = io.StringIO(newline="")
    result = make_result(streams=streams)
    writer = WRITERS["csv"](text)
    writer.write(prediction_records(result, k=3))
    writer.close()
    assert "\r" not in text.getvalue()
    assert text.getvalue().splitlines()[0] == ",".join(CSV_COLUMNS)
    lines = list(csv.DictReader(io.StringIO(text.getvalue(), newline="")))
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


def test_csv_without_videos_is_its_header():
    text = io.StringIO()
    WRITERS["csv"](text).close()
    assert text.getvalue() == "video,clip,start_seconds,end_seconds,stream,rank,label,score,logit\n"


def test_streams_of_a_record_end_with_the_fusion():
    record = {"fused": [3], "flow": [2], "video": "a", "rgb": [1]}
    assert list(streams_of(record).items()) == [("rgb", [1]), ("flow", [2]), ("fused", [3])]


def test_confident_streams_fused_on_probabilities_are_still_json():
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    logits = [{"rgb": np.float32([300, 0, 0, 0]), "flow": np.float32([300, 0, 0, 0])}]
    text = io.StringIO()
    WRITERS["jsonl"](text).write(prediction_records(make_result(fuse_on="probs", logits=logits), k=4))
    for line in text.getvalue().splitlines():
        assert json.loads(line, parse_constant=refuse)["fused"][0]["score"] == 1


def test_the_formats_are_known_without_numpy():
    code = "import sys; from vid3d_cli.predictions.files import WRITERS; print('numpy' in sys.modules, *WRITERS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "json", "jsonl", "csv"]


def test_csv_of_any_name_is_read_back():
    """Before: a CR in a name split its line in two, and a byte that is not UTF-8 made pandas refuse the whole file."""
    pandas = pytest.importorskip("pandas")
    names = ["a\rb", "a\nb", "a\r\nb", 'quote",comma', "=1+2", "+x", "-y", "@z", " lead", "é", "\udcff"]
    text = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape", newline="")
    writer = WRITERS["csv"](text)
    for name in names:
        writer.write([{**record, "video": name} for record in prediction_records(make_result(), k=1, per="video")])
    text.flush()
    assert isinstance(text.buffer, io.BytesIO)
    frame = pandas.read_csv(io.BytesIO(text.buffer.getvalue()))
    assert list(dict.fromkeys(frame["video"])) == [*names[:-1], r"\udcff"]
