"""Results: short in print, equal by value, and plain in JSON."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest

import vid3d_cli as vid3d
from vid3d_cli.errors import UsageError
from vid3d_cli.features.entries import VideoFeatures
from vid3d_cli.jobs import events
from vid3d_cli.records import Clip, ClipOutput, ClipSpan, Frame

MODEL = "s3d_mini.camera_motion"
SPAN = ClipSpan(0, 0, 4, 0.0, 0.16)


@pytest.fixture
def result(tiny_model, video):
    return vid3d.classify(video, model=MODEL, window=16)


def changed(value):
    """Return a dataclass with one number of one of its arrays changed."""
    copy = pickle.loads(pickle.dumps(value))
    for field in dataclasses.fields(value):
        for array in [*getattr(getattr(copy, field.name), "values", list)()]:
            if isinstance(array, np.ndarray):
                array.flat[-1] += 1
                return copy
    raise AssertionError("no array")


def test_a_result_is_printed_on_a_short_line(result, video):
    assert re.fullmatch(rf"VideoResult\({re.escape(str(video))}, 2 clips, [a-z-]+ \d+ %\)", repr(result))
    assert repr(result.clips[0]).endswith(
        "features={rgb: (9,) float32, flow: (6,) float32}, "
        "logits={rgb: (10,) float32, flow: (10,) float32, fused: (10,) float32})"
    )
    frame = Frame(0, 0.0, 0.04, np.zeros((4, 6, 3), np.uint8))
    assert repr(frame) == "Frame(index=0, seconds=0.0, end_seconds=0.04, rgb=(4, 6, 3) uint8)"
    assert repr(Clip(SPAN, {"rgb": np.zeros((2, 4, 6, 3), np.uint8)})).endswith("streams={rgb: (2, 4, 6, 3) uint8})")
    assert repr(vid3d.make_plan(model=MODEL)) == f"Plan({MODEL}, rgb + flow, 12.5 fps, window 16, stride 16)"


def test_what_a_job_prints_is_short(tiny_model, video, tmp_path):
    printed = []
    summary = vid3d.extract(video, out=tmp_path / "f.npy", model=MODEL, on_event=lambda e: printed.append(repr(e)))
    assert [text for text in printed if len(text) > 250 or "\n" in text] == []
    assert "VideoDone(" in "".join(printed)
    assert repr(summary) == f"JobSummary({tmp_path / 'f.npy'}: 1 done, 0 failed, 0 left, 2 clips)"
    with vid3d.open_store(tmp_path / "f.npy") as store:
        assert repr(store) == f"NpyStore({tmp_path / 'f.npy'})"
        (entry,) = store.entries()
        rows = store.read(entry)
        assert "features: (2, 15) float32" in repr(rows)
        assert rows == store.read(entry)


@pytest.mark.parametrize(
    "value",
    [
        ClipOutput(SPAN, {"rgb": np.float32([1, 2])}, {"rgb": np.float32([3])}),
        Clip(SPAN, {"rgb": np.zeros((1, 2, 2, 3), np.uint8)}),
        VideoFeatures(None, {"features": np.zeros((1, 4), np.float32)}, [SPAN]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_are_compared_by_value(value):
    assert value == pickle.loads(pickle.dumps(value))
    assert value != changed(value)
    assert value != dataclasses.replace(value, **{dataclasses.fields(value)[1].name: {}})
    assert value != 3


def test_results_are_compared_by_value(result, video):
    assert result == vid3d.classify(video, model=MODEL, window=16)
    assert result == pickle.loads(pickle.dumps(result))
    assert result != changed(result)
    assert result != vid3d.classify(video, model=MODEL, window=12)
    assert result != dataclasses.replace(result, clips=(result.clips[0], changed(result.clips[1])))


def test_what_holds_arrays_or_dicts_has_no_hash(result):
    plan = vid3d.make_plan(model=MODEL)
    summary = events.JobSummary(True, {"done": 0})
    for value in (result, result.clips[0], result.recipe, plan, vid3d.Options(), plan.fusion, summary):
        with pytest.raises(TypeError, match=f"unhashable type: '{type(value).__name__}'"):
            hash(value)


def test_a_result_converts_to_the_records_of_classify(result, video, vid3d):
    lines = vid3d("classify", video, "--model", MODEL, "--window", 16, "--topk", 3).stdout.splitlines()
    *clips, whole = map(json.loads, lines)
    converted = result.to_dict(3)
    assert json.loads(json.dumps(converted)) == converted == {**whole, "clips": clips}
    assert len(result.to_dict()["fused"]) == 5
    with pytest.raises(UsageError, match="k=-1: give 0 or more"):
        result.to_dict(k=-1)


def test_an_embedding_has_no_classes(tiny_model, video):
    (result,) = vid3d.extract(video, model="s3d_g.howto100m", streams="rgb")
    assert result.labels == ()
    assert re.fullmatch(r"VideoResult\(.*, \d+ clips?\)", repr(result))
    assert result.to_dict()["fused"] == []


def test_features_of_a_stream_that_did_not_run(tiny_model, video):
    result = vid3d.classify(video, model=MODEL, streams="rgb")
    with pytest.raises(vid3d.UsageError, match=r"stream='audio': choose one of rgb, or None for all"):
        result.features("audio")
    with pytest.raises(vid3d.UsageError, match="stream=3: give a str or None"):
        result.features(3)


# Videos --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tiny_model, video, tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / "v" / name).write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", ["v", "v/", "v/*.mp4", ["v/a.mp4", "v"], ("v/a.mp4", "v/a.mp4", "v/b.mp4"), "@list"])
def test_folders_globs_and_lists_stand_for_their_videos(videos, tmp_path, given):
    (tmp_path / "list").write_text("v/a.mp4\nv/b.mp4\n")
    assert [result.video for result in vid3d.extract(given, model=MODEL)] == ["v/a.mp4", "v/b.mp4"]


def test_classify_takes_one_video(videos):
    message = r"v names 2 videos, and classify takes one: iterate over extract\('v'\), which yields a result for each"
    with pytest.raises(vid3d.UsageError, match=message):
        vid3d.classify("v", model=MODEL)
    assert vid3d.classify("v/a*", model=MODEL).video == "v/a.mp4"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no videos given"),
        ("", "an empty name"),
        ("none*.mp4", "no video matches"),
        (b"v/a.mp4", "videos=b'v/a.mp4': give a str or a path or a list of"),
        ([None], r"videos=\[None\]"),
        (iter(["v/a.mp4", None]), r"videos=\['v/a.mp4', None\]"),
    ],
)
def test_what_names_no_video_is_a_usage_error(videos, given, message):
    with pytest.raises(vid3d.UsageError, match=message):
        vid3d.extract(given, model=MODEL)


def test_a_missing_file_is_a_failed_video(videos):
    failures = []
    assert not [*vid3d.extract("gone.mp4", model=MODEL, on_failure=lambda failure, _: failures.append(failure))]
    assert [failure.error for failure in failures] == ["VideoNotFound"]
