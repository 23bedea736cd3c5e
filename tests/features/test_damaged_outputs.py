"""Every tool refuses an output with missing, cut off or damaged files; info and check describe it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from disks import _fast_disk  # noqa: F401
from formats import skip_without_package
from test_tools import VIDEOS, terminal, write  # noqa: F401

import vid3d_cli
from vid3d_cli.errors import EXIT_SOME_FAILED, EXIT_USAGE, OutputError
from vid3d_cli.features.stores import open_unchecked

HARMS = {
    "feats.npy": ("feats.npy", 300, "has 3 of the 6 rows that {dir}/feats.videos.jsonl lists: restore the file"),
    "apart.npy": ("apart_flow.npy", None, "missing; it holds the 6 rows"),
    "index.npy": ("index.index.jsonl", 500, "has 3 of the 6 rows that"),
    "journal.npy": ("journal.videos.jsonl", 300, "lists 2 of the 6 rows|lists 2 rows"),
    "gone": (
        "gone/sub/deep/b.npz",
        None,
        "the files of 1 listed videos are missing or damaged: in/sub/deep/b.mp4; rest",
    ),
    "cut": (
        "cut/a.npz",
        100,
        "the files of 1 listed videos are missing or damaged: in/a.mp4; restore them, or run the same",
    ),
    "x+video_features": ("x/c_flow.npy", None, "files of 1 listed videos are missing or damaged: in/c.mov"),
    "list": (
        "list/videos.jsonl",
        None,
        "list/videos.jsonl: missing; restore it, or run the same vid3d extract command",
    ),
    "recipe.npy": ("recipe.recipe.json", 50, "recipe.recipe.json: damaged, cut off, or not a recipe of vid3d extract"),
    "gone.npy": ("gone.recipe.json", None, "gone.recipe.json: missing"),
    "feats.npz": (
        "feats.npz",
        500,
        "cannot be read: File is not a zip file; it is damaged, cut off, or not from vid3d",
    ),
    "feats.h5": (
        "feats.h5",
        500,
        "; it is damaged, cut off, or not from vid3d extract: restore the file, or start over",
    ),
    "feats.parquet": (
        "feats.parquet",
        500,
        "not a parquet file; it is damaged, cut off, or not from vid3d extract: res",
    ),
}


def harmed(directory, name):
    """Write an output, harm one of its files, and return its path and a part of the message."""
    skip_without_package(name)
    out = write(directory / name, concat=name != "apart.npy")
    file, size, message = HARMS[name]
    os.truncate(directory / file, size) if size else (directory / file).unlink()
    return out, message.format(dir=directory)


def matches(message, text):
    return any(part in text for part in message.split("|"))


@pytest.mark.parametrize("name", HARMS)
def test_no_tool_leaves_out_rows_without_a_word(vid3d, tmp_path, name):
    out, message = harmed(tmp_path, name)
    whole = write(tmp_path / "whole.npy")
    target = tmp_path / "new.npy"
    for words in (
        ["convert", out, target],
        ["merge", whole, out, "--out", target],
        ["compare", whole, out],
        ["get", out, VIDEOS[1]],
        ["info", out],
        ["check", out],
    ):
        result = vid3d("features", *words)
        assert result.exit_code == EXIT_SOME_FAILED, words
        names_videos = words[0] == "check" and "listed videos" in message
        assert matches("its rows are missing or cut off" if names_videos else message, result.stderr), words
        assert not target.exists()
    with pytest.raises(OutputError) as error:
        vid3d_cli.open_store(out)
    assert matches(message, str(error.value))


def test_a_damaged_list_is_refused_wherever_the_damage_is(vid3d, tmp_path):
    for name, journal in (("feats.npy", "feats.videos.jsonl"), ("feats", "feats/videos.jsonl")):
        for line in range(3):
            out, path = write(tmp_path / str(line) / name), tmp_path / str(line) / journal
            lines = path.read_bytes().splitlines(keepends=True)
            lines[line] = lines[line].replace(b'"stem"', b'"stem')
            path.write_bytes(b"".join(lines))
            result = vid3d("features", "convert", out, tmp_path / "new.h5")
            assert result.exit_code == EXIT_SOME_FAILED
            assert f"{path}: damaged after line {line}, so that later videos cannot be read; restore" in result.stderr


def test_a_list_that_ends_early_is_a_warning(vid3d, tmp_path):
    out = write(tmp_path / "feats")
    journal = tmp_path / "feats/videos.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    for words in (["convert", out, "new.npy"], ["check", out]):
        result = vid3d("features", *words)
        assert result.exit_code == 0
        assert f"warning: {out}: it has 2 more videos, which its videos.jsonl does not list: a job is" in result.stderr
    assert json.loads(vid3d("features", "info", out).stdout)["unfinished"].startswith("it has 2 more videos")


def test_outputs_whose_files_are_being_replaced_are_not_read(vid3d, tmp_path):
    """A job was killed between two renames, see `NpyStore.compact`."""
    out = Path(write(tmp_path / "feats.npy"))
    (tmp_path / ".feats.npy.rewritten").mkdir()
    shutil.copy(write(tmp_path / "one" / "feats.npy", VIDEOS[:1]), out)
    result = vid3d("features", "convert", out, "new.npy")
    assert result.exit_code == EXIT_SOME_FAILED
    assert "feats.npy: a job is replacing its files, or was interrupted: run the same" in result.stderr


def test_damaged_outputs_can_be_opened_to_describe_them(tmp_path):
    out, _ = harmed(tmp_path, "gone")
    with open_unchecked(out) as store:
        assert len(store.entries()) == 2


# Words ---------------------------------------------------------------------------------------------------------------


def test_a_mistyped_video_gets_a_hint(vid3d, tmp_path):
    result = vid3d("features", "get", write(tmp_path / "feats.npy"), "im/a.mp4")
    assert result.exit_code == EXIT_USAGE
    assert "none of the 3 videos is 'im/a.mp4': did you mean 'in/a.mp4'?" in result.stderr


def test_an_output_without_rows_says_so(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy")
    for name in ("feats.npy", "feats.index.jsonl", "feats.videos.jsonl"):
        (tmp_path / name).unlink()
    result = vid3d("features", "get", out, "a.mp4")
    assert result.exit_code == EXIT_USAGE
    assert "there is no 'a.mp4': no video has rows yet" in result.stderr


def test_differences_are_said_in_words(vid3d, tmp_path, terminal):  # noqa: F811
    a = write(tmp_path / "a.npy")
    b = Path(write(tmp_path / "b.npy"))
    recipe = json.loads(b.with_suffix(".recipe.json").read_bytes())
    del recipe["streams"]["flow"]
    b.with_suffix(".recipe.json").write_text(json.dumps({**recipe, "flow": None, "concat": False}))
    b.rename(tmp_path / "b_rgb.npy")
    for line in vid3d("features", "merge", a, b, "--out", "new.npy").stderr.splitlines():
        assert "None" not in line
    result = vid3d("features", "merge", a, b, "--out", "new.npy")
    assert "streams.flow.weights_sha256: abab" in result.stderr
    assert " there, no flow stream here" in result.stderr
    assert "flow: dis there, none here" in result.stderr
    write(tmp_path / "c.npy", VIDEOS[:1], concat=False)
    result = vid3d("features", "merge", a, "--out", "c.npy")
    assert "concat: no there, yes now" in result.stderr
    assert f"concat: yes in {a}, no in {tmp_path}/c.npy" in vid3d("features", "compare", a, tmp_path / "c.npy").stdout


def test_each_row_of_info_has_its_own_name(vid3d, tmp_path, terminal):  # noqa: F811
    shown = vid3d("features", "info", write(tmp_path / "feats.npy", concat=False)).stdout.splitlines()
    names = [line[: shown[0].index("/") - 1].strip() for line in shown]
    names = [name for name in names if name and "─" not in name]
    assert len(names) == len(set(names))
    assert {"rgb matrix", "flow matrix", "rgb stream", "flow stream", "flow method"} <= {*names}


def test_messages_of_convert_name_no_option_that_it_lacks(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy")
    for words in ([out, out], [out, "y.npy", "--layout", "video_features"], [out, "y.gif"]):
        result = vid3d("features", "convert", *words)
        assert result.exit_code == EXIT_USAGE
        assert "--out" not in result.stderr


def test_a_conversion_with_nothing_to_do_says_so(vid3d, tmp_path):
    out = write(tmp_path / "feats.npy")
    assert "6 rows of 3 videos → " in vid3d("features", "convert", out, "new").stderr
    assert "nothing to add: new already has 3 videos of the input" in vid3d("features", "convert", out, "new").stderr
