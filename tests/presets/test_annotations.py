"""Annotations to fill in: names, placeholders, and what is refused. The presets' tests read them as the loaders do."""

import json
from pathlib import Path

import pytest
from videos import write_video

from vid3d_cli.errors import EXIT_USAGE, UsageError
from vid3d_cli.features.annotations import WRITERS, Outline
from vid3d_cli.features.entries import FailedVideo, VideoEntry
from vid3d_cli.presets import ANNOTATIONS, Files

PRESET = """
summary = "mine"
values = "layout"
sources = []
[options]
model = "s3d_mini"
[files]
names = "{stem}.npy"
annotations = "{annotations}"
[centre]
first = 8
step = 16
"""


def preset(tmp_path, annotations):
    (tmp_path / "mine.toml").write_text(PRESET.replace("{annotations}", annotations))


def outline(tmp_path, stems, *, names="{stem}.npy", failed=(), subset=None, classes=(), stride=16):
    entries = [VideoEntry(f"in/{stem}.mp4", stem, 0, 3, 25.0, 50, 0, None, 0) for stem in stems]
    failures = [FailedVideo(f"in/{stem}.mp4", "Unreadable", "it is", None, stem) for stem in failed]
    return Outline(Files(names), tmp_path, stride, entries, failures, subset, classes)


def test_presets_name_the_writers():
    assert list(ANNOTATIONS) == list(WRITERS)


def test_activitynet_names_videos_as_its_loaders_do(tmp_path):
    given = outline(
        tmp_path, ["a", "v_b"], names="v_{id}.npy", failed=["v_c", "d"], classes=["x y", "z"], subset="training"
    )
    texts = WRITERS["activitynet"](given)
    database = json.loads(texts["annotations.json"])["database"]
    assert database == {
        key: {"subset": "training", "duration": 2.0, "fps": 25.0, "frame": 50, "annotations": []} for key in ("a", "b")
    }
    assert texts["missing_files.txt"] == "c\nd\n"
    with pytest.raises(UsageError, match="--subset: ActionFormer reads"):
        WRITERS["activitynet"](outline(tmp_path, ["a"]))
    assert texts["category_idx.txt"] == "x y\nz\n"
    assert "v_b" in WRITERS["activitynet"](outline(tmp_path, ["v_b"], subset="x"))["annotations.json"]


def test_activitynet_refuses_folders_behind_a_prefix(tmp_path):
    assert '"sub/a"' in WRITERS["activitynet"](outline(tmp_path, ["sub/a"], subset="x"))["annotations.json"]
    with pytest.raises(UsageError, match=r"sub/v_a: .* one folder"):
        WRITERS["activitynet"](outline(tmp_path, ["sub/v_a"], names="v_{id}.npy", subset="x"))


def test_ms_tcn_numbers_classes_and_lists_a_split(tmp_path):
    texts = WRITERS["ms-tcn"](outline(tmp_path, ["a"], subset="test", classes=["cut", "peel"]))
    assert texts == {
        "groundTruth/a.txt": "background\n" * 3,
        "mapping.txt": "0 background\n1 cut\n2 peel\n",
        "splits/test.split1.bundle": "a.txt\n",
    }


@pytest.mark.parametrize(("stem", "name", "what"), [("a.b", "cut", "first dot"), ("a", "cut it", "first space")])
def test_ms_tcn_refuses_names_that_it_cannot_read(stem, name, what, tmp_path):
    with pytest.raises(UsageError, match=what):
        WRITERS["ms-tcn"](outline(tmp_path, [stem], classes=[name]))


def test_missing_files_have_the_keys_of_the_features(tmp_path):
    given = outline(tmp_path, ["sub/v_a"], names="{id}.npy", failed=["sub/v_b"], subset="x")
    texts = WRITERS["activitynet"](given)
    assert list(json.loads(texts["annotations.json"])["database"]) == ["sub/a"]
    assert texts["missing_files.txt"] == "sub/b\n"


def test_annotations_follow_the_stride(tmp_path):
    for stride, end in ((16, 1.92), (8, 0.96), (20, 2.0)):  # 3 rows of a video of 2 s
        (line,) = WRITERS["moment-retrieval"](outline(tmp_path, ["a"], stride=stride)).values()
        assert json.loads(line)["relevant_windows"] == [[0, end]]
    assert WRITERS["anomaly-lists"](outline(tmp_path, ["a"], stride=8))["frames.txt"] == "a 24\n"


@pytest.mark.parametrize("annotations", ["ms-tcn", "anomaly-lists", "dense-captions"])
def test_control_characters_do_not_break_a_list(tmp_path, annotations):
    for name in ("x\ny", "x\ty", "x\x85y"):
        with pytest.raises(UsageError, match="has a control character"):
            WRITERS[annotations](outline(tmp_path, [name]))


def test_the_command_writes_once_and_never_over_labels(vid3d, tiny_model, tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=40)
    preset(tmp_path, "ms-tcn")
    assert vid3d("extract", "a.mp4", "--preset", "mine.toml", "--out", "feats/").exit_code == 0
    (tmp_path / "mine.toml").unlink()  # the output has all that is needed
    (tmp_path / "classes.txt").write_text("cut\n")
    command = ("presets", "annotations", "feats/", "--out", "meta", "--subset", "test", "--classes", "classes.txt")
    done = vid3d(*command)
    wrote = "vid3d: wrote groundTruth/a.txt, mapping.txt, splits/test.split1.bundle to meta; "
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{wrote}the labels in them are for you to fill in\n"
    labels = Path("meta/groundTruth/a.txt")
    assert labels.read_text() == "background\n" * 2
    labels.write_text("cut\ncut\n")
    again = vid3d(*command)
    assert again.exit_code == EXIT_USAGE
    assert "already exists" in again.stderr
    assert labels.read_text() == "cut\ncut\n"
    assert vid3d(*command, "--overwrite").exit_code == 0
    assert labels.read_text() == "background\n" * 2


def test_an_output_without_annotations_is_refused(vid3d, tiny_model, tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=20)
    preset(tmp_path, "")
    vid3d("extract", "a.mp4", "--preset", "mine.toml", "--layout", "vid3d", "--out", "plain/")
    vid3d("extract", "a.mp4", "--preset", "mine.toml", "--out", "feats/")
    for features, what in {"plain/": "has no files of a preset", "feats/": "its preset names no annotations"}.items():
        done = vid3d("presets", "annotations", features, "--out", "meta")
        assert done.exit_code == EXIT_USAGE
        assert what in done.stderr
    assert not Path("meta").exists()
