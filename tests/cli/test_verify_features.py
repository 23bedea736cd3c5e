"""The command line of `vid3d verify VIDEO --against FILE`; what it finds is tested with `vid3d_cli.diagnosis`."""

import json
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vid3d_cli.diagnosis import Diagnosis
from vid3d_cli.errors import EXIT_OK, EXIT_USAGE


def diagnosis(verdict):
    return Diagnosis(verdict, rows=4, yours=0.91, cosine=0.998, error=0.01, closest=(), tried=12, counted="4 rows fit")


@pytest.fixture
def diagnose(monkeypatch, tiny_model):
    """Replace the search; return the verdict to give, and the arguments of its calls."""
    calls = types.SimpleNamespace(verdict="same", seen=[])

    def diagnose(options, video, published, *, on_progress):
        on_progress(4, 240)
        calls.seen.append((options, video, published))
        return diagnosis(calls.verdict)

    Path("v.mp4").touch()
    monkeypatch.setitem(sys.modules, "vid3d_cli.diagnosis", types.SimpleNamespace(diagnose=diagnose))
    return calls


@pytest.mark.parametrize(("verdict", "code"), [("same", EXIT_OK), ("close", 1), ("explained", 1), ("unexplained", 1)])
def test_the_verdict_is_printed_and_decides_the_code(vid3d, diagnose, verdict, code):
    np.save("theirs.npy", np.ones((4, 8), np.float32))
    diagnose.verdict = verdict
    result = vid3d("verify", "v.mp4", "--against", "theirs.npy", "--format", "table")
    assert (result.exit_code, result.stdout) == (code, diagnosis(verdict).describe() + "\n")
    result = vid3d("verify", "v.mp4", "--against", "theirs.npy")
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (code, verdict)


def test_options_and_presets_of_extract_are_passed_on(vid3d, diagnose):
    np.save("theirs.npy", np.ones((4, 8), np.float32))
    words = ["--preset", "actionformer-thumos", "--stride", "2", "--layer", "Mixed_4f", "--pool", "max"]
    result = vid3d("verify", "v.mp4", "--against", "theirs.npy", *words)
    assert result.exit_code == EXIT_OK, result.stderr
    options, video, published = diagnose.seen[0]
    assert (options.window, options.stride, options.tail) == (16, 2, "drop")
    assert (options.layer, options.pool, video, published.shape) == ("Mixed_4f", "max", "v.mp4", (4, 8))


def test_an_archive_of_one_array_needs_no_key(vid3d, diagnose):
    rows = np.arange(32, dtype=np.float16).reshape(4, 8)
    np.savez_compressed("one.npz", features=rows)
    np.savez("two.npz", features=rows, fps=np.array(25.0))
    for words in (["one.npz"], ["one.npz", "--key", "features"], ["two.npz", "--key", "features"]):
        result = vid3d("verify", "v.mp4", "--against", *words)
        assert result.exit_code == EXIT_OK, result.stderr
        np.testing.assert_array_equal(diagnose.seen[-1][2], rows)


def test_a_missing_video_is_named_before_its_weights(vid3d, diagnose):
    np.save("theirs.npy", np.ones((4, 8), np.float32))
    result = vid3d("verify", "nosuch.mp4", "--against", "theirs.npy")
    assert (result.exit_code, result.stderr) == (EXIT_USAGE, "vid3d: error: nosuch.mp4: no such file\n")


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A directory with files that hold no array, or several."""
    directory = tmp_path_factory.mktemp("bad")
    rows = np.ones((4, 8), np.float32)
    np.save(directory / "good.npy", rows)
    np.savez(directory / "two.npz", rgb=rows, flow=rows)
    np.savez(directory / "escapes.npz", **{"a\x1b": rows, "b\nERROR ok": rows})
    (directory / "archive.npy").write_bytes((directory / "two.npz").read_bytes())
    np.savez(directory / "pickled.npz", features=np.array([print], object))
    np.save(directory / "pickled.npy", np.array([print], object))
    (directory / "empty.npy").write_bytes(b"")
    (directory / "text.npy").write_text("no array")
    (directory / "text.npz").write_text("no archive")
    (directory / "cut.npy").write_bytes((directory / "good.npy").read_bytes()[:-40])
    (directory / "cut.npz").write_bytes((directory / "two.npz").read_bytes()[:-40])
    (directory / "folder.npy").mkdir()
    with zipfile.ZipFile(directory / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as f:
        np.lib.format.write_array(f, np.zeros((40_000, 256), np.float32))
    return directory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "good.npy"], "name the video"),
        (["v.mp4", "--against", "good.npy", "--sample", "x.npy"], "--sample belongs to a model"),
        (["v.mp4", "--against", "nowhere.npy"], "nowhere.npy: no such file"),
        (["v.mp4", "--against", "two.npz"], "2 arrays; name one with --key: rgb, flow"),
        (["v.mp4", "--against", "two.npz", "--key", "rbg"], "no array 'rbg': did you mean 'rgb'"),
        (["v.mp4", "--against", "escapes.npz"], r"2 arrays; name one with --key: a\\x1b, b\\nERROR ok"),
        (["v.mp4", "--against", "escapes.npz", "--key", "b"], r"no array 'b': choose one of a\\x1b, b\\nERROR ok"),
        (["v.mp4", "--against", "good.npy", "--key", "x"], "only an .npz has named arrays"),
        *(
            (
                ["v.mp4", "--against", name, *(["--key", "features"] if "pickled.npz" in name else [])],
                f"{name}: no array",
            )
            for name in (
                *("pickled.npy", "pickled.npz", "empty.npy", "text.npy", "text.npz", "cut.npy", "cut.npz"),
                *("folder.npy", "bomb.npz", "archive.npy"),
            )
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(vid3d, diagnose, bad_files, monkeypatch, words, message):
    monkeypatch.chdir(bad_files)
    result = vid3d("verify", *words)
    assert result.exit_code == EXIT_USAGE, result.stderr
    assert re.search(message, result.stderr) and result.stderr.count("\n") == 1
    assert diagnose.seen == []


@pytest.mark.exhaustive
def test_the_search_runs_from_the_command_line(vid3d, video):
    words = ["--model", "s3d_mini.camera_motion", "--streams", "rgb", "--threads", "1"]
    assert vid3d("extract", "-o", "theirs.npy", video, *words, "--stride", "4").exit_code == EXIT_OK
    same = vid3d("verify", video, "--against", "theirs.npy", *words, "--stride", "4")
    assert (same.exit_code, json.loads(same.stdout)["verdict"]) == (EXIT_OK, "same"), same.stderr
    other = vid3d("verify", video, "--against", "theirs.npy", *words)
    found = json.loads(other.stdout)
    assert (other.exit_code, found["verdict"]) == (1, "explained")
    assert [(change["name"], change["yours"], change["theirs"]) for change in found["closest"]] == [
        ("stride", "16", "4")
    ]
