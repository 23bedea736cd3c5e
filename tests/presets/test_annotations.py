"""Annotations to fill in: names, placeholders, and what is refused. The presets' tests read them as the loaders do."""

import json
from pathlib import Path

import pytest
from videos import write_video

from vid3d_cli.errors import EXIT_USAGE, UsageError
from vid3d_cli.features.annotations import WRITERS, Outline
from vid3d_cli.features.entries import FailedVideo, VideoEntry
from vid3d_cli.presets import find_preset, preset_names

PRESET = """
summary = "mine"
values = "layout"
sources = []
annotations = "{annotations}"
[options]
model = "s3d_mini"
[files]
names = "{names}"
[centre]
first = 8
step = 16
"""


def preset(tmp_path, annotations, names="{stem}.npy"):
    path = tmp_path / "mine.toml"
    path.write_text(PRESET.replace("{annotations}", annotations).replace("{names}", names))
    return find_preset(str(path))


def outline(tmp_path, annotations, stems, *, names="{stem}.npy", failed=(), subset=None, classes=()):
    entries = [VideoEntry(f"in/{stem}.mp4", stem, 0, 3, 25.0, 50, 0, None, 0) for stem in stems]
    failures = [FailedVideo(video, "Unreadable", "it is", None) for video in failed]
    return Outline(preset(tmp_path, annotations, names), tmp_path, entries, failures, subset, classes)


@pytest.mark.parametrize("name", preset_names())
def test_the_annotations_of_every_preset_are_known(name):
    assert find_preset(name).annotations in ("", *WRITERS)


def test_activitynet_names_videos_as_its_loaders_do(tmp_path):
    given = outline(
        tmp_path, "activitynet", ["a", "v_b"], names="v_{id}.npy", failed=["in/v_c.mp4", "d.mp4"], classes=["x y", "z"]
    )
    texts = WRITERS["activitynet"](given)
    database = json.loads(texts["annotations.json"])["database"]
    assert database == {
        key: {"subset": "training", "duration": 2.0, "fps": 25.0, "frame": 50, "annotations": []} for key in ("a", "b")
    }
    assert texts["missing_files.txt"] == "c\nd\n"
    assert texts["category_idx.txt"] == "x y\nz\n"
    assert "v_b" in WRITERS["activitynet"](outline(tmp_path, "activitynet", ["v_b"]))["annotations.json"]


def test_activitynet_refuses_folders_behind_a_prefix(tmp_path):
    assert '"sub/a"' in WRITERS["activitynet"](outline(tmp_path, "activitynet", ["sub/a"]))["annotations.json"]
    with pytest.raises(UsageError, match=r"sub/v_a: .* one folder"):
        WRITERS["activitynet"](outline(tmp_path, "activitynet", ["sub/v_a"], names="v_{id}.npy"))


def test_ms_tcn_numbers_classes_and_lists_a_split(tmp_path):
    texts = WRITERS["ms-tcn"](outline(tmp_path, "ms-tcn", ["a"], subset="test", classes=["cut", "peel"]))
    assert texts == {
        "groundTruth/a.txt": "background\n" * 3,
        "mapping.txt": "0 background\n1 cut\n2 peel\n",
        "splits/test.split1.bundle": "a.txt\n",
    }


@pytest.mark.parametrize(("stem", "name", "what"), [("a.b", "cut", "first dot"), ("a", "cut it", "first space")])
def test_ms_tcn_refuses_names_that_it_cannot_read(stem, name, what, tmp_path):
    with pytest.raises(UsageError, match=what):
        WRITERS["ms-tcn"](outline(tmp_path, "ms-tcn", [stem], classes=[name]))


def test_the_command_writes_once_and_never_over_labels(vid3d, tiny_model, tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=40)
    preset(tmp_path, "ms-tcn")
    assert vid3d("extract", "a.mp4", "--preset", "mine.toml", "--layout", "vid3d", "--out", "feats/").exit_code == 0
    (tmp_path / "classes.txt").write_text("cut\n")
    command = ("presets", "annotations", "feats/", "--out", "meta", "--subset", "test", "--classes", "classes.txt")
    done = vid3d(*command)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "vid3d: wrote 3 files to meta\n")
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
    preset(tmp_path, "nosuch")
    vid3d("extract", "a.mp4", "--model", "s3d_mini", "--out", "plain/")
    vid3d("extract", "a.mp4", "--preset", "mine.toml", "--layout", "vid3d", "--out", "feats/")
    for features, what in {"plain/": "made without a preset", "feats/": "unknown annotations 'nosuch'"}.items():
        done = vid3d("presets", "annotations", features, "--out", "meta")
        assert done.exit_code == EXIT_USAGE
        assert what in done.stderr
    preset(tmp_path, "")
    assert "no annotations that vid3d can prepare" in vid3d("presets", "annotations", "feats/", "--out", "meta").stderr
    assert not Path("meta").exists()
