"""Features from strangers, broken disks and odd numbers: one clear error each, and nothing outside is touched."""

import errno
import io
import json
import os
import zipfile
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from disks import _fast_disk  # noqa: F401
from formats import FORMATS, skip_without_package, split
from test_no_row_is_lost import JOBS, Outputs, are_equal, restore, rows_of, run_job
from test_stores import RECIPE, features_of, make_form, make_result, make_store, write

from vid3d_cli.errors import NoFeatures, OutputError, OutputExists, UsageError, Vid3dError
from vid3d_cli.features.entries import FailedVideo, VideoFeatures, parse_entries, video_key
from vid3d_cli.features.inspection import find_problems
from vid3d_cli.features.journals import JournalTail
from vid3d_cli.features.merging import merge
from vid3d_cli.features.stores import create_store, open_store, open_unchecked
from vid3d_cli.records import VideoFailure

every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(autouse=True)
def _skip_what_is_not_installed(request):
    if hasattr(request.node, "callspec"):
        skip_without_package(*request.node.callspec.params.values())


def out_of(directory, name):
    return directory / split(name)[0]


def problems_of(out):
    with open_unchecked(str(out)) as store:
        return [problem.what for problem in find_problems(store) if problem.is_damage]


# Disks ---------------------------------------------------------------------------------------------------------------

WRITING = ("pwrite", "fsync", "ftruncate", "replace", "unlink", "rmdir", "mkdir", "link", "open")


def fail_nth_write(patch, nth):
    """Make the nth call that changes a file raise EIO; return the calls so far."""
    calls = []

    def failing(real, name):
        def call(*args, **kwargs):
            if name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                calls.append(name)
                if len(calls) == nth:
                    raise OSError(errno.EIO, "Input/output error")
            return real(*args, **kwargs)

        return call

    for name in WRITING:
        patch.setattr(os, name, failing(getattr(os, name), name))
    return calls


def check_that_each_failing_write_is_one_error(directory, name, step):
    """A job that adds a video, after another one that replaced the rows of a video and was killed."""
    outputs = Outputs(directory, name, True, "killed")
    with outputs.store("f") as store:
        store.begin(outputs.form.describe(RECIPE))
        store.write(features_of(make_result("in/a.mp4", 2, seed=97), "a", outputs.form))
        store.commit()
    files = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    for nth in count(1, step):
        restore(directory, files)
        with pytest.MonkeyPatch.context() as patch:
            calls = fail_nth_write(patch, nth)
            with suppress(Vid3dError):  # and no other error
                run_job(outputs.store("f"), outputs.form, JOBS[0])
        run_job(outputs.store("f"), outputs.form, JOBS[0])
        found = rows_of(outputs.path("f"))
        assert all(are_equal(found[stem], outputs.rows[stem]) for stem in ("a", "sub/b", "c")), (nth, calls[-1])
        assert not [p for p in directory.rglob(".*") if "rewrit" in p.name or p.suffix == ".part"]
        if len(calls) < nth:  # none failed
            break
    assert nth > 10


@pytest.mark.parametrize("name", ["feats.npy", "feats"])
def test_a_write_that_fails_is_one_error_and_costs_no_row(tmp_path, name):
    check_that_each_failing_write_is_one_error(tmp_path, name, step=5)


@pytest.mark.exhaustive
@every_format
def test_any_write_that_fails_is_one_error_and_costs_no_row(tmp_path, name):
    check_that_each_failing_write_is_one_error(tmp_path, name, step=1)


# Strangers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["|O", "<i8", "<f8", ">f4"])
def test_a_matrix_of_other_numbers_is_refused_by_every_reader(tmp_path, dtype):
    """With objects, the bytes of the file would be pointers."""
    write(make_store(tmp_path))
    path = tmp_path / "feats.npy"
    path.write_bytes(path.read_bytes().replace(b"'<f4'", f"'{dtype}'".encode().ljust(5)))
    for use in (lambda s: s.entries(), lambda s: s.prepare(["a"]), lambda s: list(find_problems(s))):
        with pytest.raises(OutputError, match=r"rows of|Python objects"), make_store(tmp_path) as store:
            use(store)


@pytest.mark.parametrize("name", ["feats.npz", "feats.h5", "feats.parquet", "feats", "feats+video_features"])
def test_other_numbers_in_other_formats_are_refused_too(tmp_path, name, monkeypatch):
    monkeypatch.setattr("vid3d_cli.features.entries._DTYPES", (np.dtype("int64"), np.dtype("float64")))
    form, result = make_form(name), make_result("in/a.mp4")
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        features = features_of(replace_dtype(monkeypatch, form, result), "a", form)
        store.write(features)
        store.commit()
        if "+" in name or name == "feats":
            store.finish()
    monkeypatch.undo()
    with pytest.raises(OutputError, match="rows of float64"), open_store(str(out_of(tmp_path, name))) as store:
        for entry in store.entries():
            store.read(entry)


def replace_dtype(monkeypatch, form, result):
    matrices = {n: m.astype("float64") for n, m in form.matrices(result).items()}
    monkeypatch.setattr(type(form), "matrices", lambda form, result: matrices)
    return result


@pytest.mark.parametrize("stem", ["../../x", "/x", "a/../../x", "nul\0", "", "."])
def test_no_list_of_videos_names_a_file_elsewhere(stem):
    line = {**dict.fromkeys(("row", "num_rows", "num_frames", "num_lost_frames", "crc32"), 1), "fps": 25.0}
    with pytest.raises(OutputError, match="lies outside the output"):
        parse_entries([{**line, "video": "a.mp4", "file": None, "stem": stem}], Path("x"))


@every_format
def test_features_of_a_stranger_are_never_written_elsewhere(tmp_path, name, monkeypatch):
    """What an attacker would get: a file beside the output that the victim converts to."""
    monkeypatch.setattr("vid3d_cli.features.entries._check", lambda entry: None)
    evil = VideoFeatures.of(make_result("in/a.mp4"), PurePosixPath("../escaped"), None, make_form(name))
    (tmp_path / "in").mkdir()
    with make_store(tmp_path / "in", name) as store:
        store.begin(make_form(name).describe(RECIPE))
        store.write(evil)
        store.commit()
        store.finish()
    monkeypatch.undo()
    for path in tmp_path.rglob("escaped*"):  # written by the attacker
        path.unlink()
    with pytest.raises(OutputError, match="lies outside the output"):
        merge([open_store(str(out_of(tmp_path / "in", name)))], create_store(str(tmp_path / "victim/")))
    with suppress(Vid3dError):
        make_store(tmp_path / "in", name).prepare(["a"], overwrite=True)
    assert not list(tmp_path.rglob("escaped*"))


def npy_header(shape, descr="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("bomb", ["zip", "header"])
@pytest.mark.parametrize("name", ["feats.npz", "feats"])
def test_a_bomb_is_one_error_and_takes_little_memory(tmp_path, name, bomb):
    write(make_store(tmp_path, name))
    path = tmp_path / ("feats.npz" if name == "feats.npz" else "feats/a.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                if key != "features":
                    np.lib.format.write_array(file, array)
                elif bomb == "header":
                    file.write(npy_header((10**12, 12)))
                else:
                    file.write(npy_header((10**6, 12)))
                    file.write(bytes(48 * 10**6))
    if name == "feats.npz":
        with pytest.raises(OutputError, match=r"feats\.npz: .*cannot be read: (it announces|.*allocate|.*array data)"):
            open_store(str(path)).read(open_store(str(path)).entries()[0])
    else:
        assert any("in/a.mp4" in what for what in problems_of(tmp_path / "feats"))


def test_a_bomb_of_hdf5_or_parquet_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    write(make_store(tmp_path, "feats.h5"))
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        del file["videos"]
        file.create_dataset("videos", (10**9,), dtype=h5py.string_dtype(), chunks=(10**6,))
    with pytest.raises(OutputError, match="it announces"):
        open_store(str(tmp_path / "feats.h5"))


# Names ---------------------------------------------------------------------------------------------------------------


@every_format
def test_no_file_holds_the_password_of_a_url(tmp_path, name):
    url = "https://me:s3cret@host/a.mp4?t=1"
    form = make_form(name)
    assert video_key(url) == video_key("https://host/a.mp4?t=1") == "https://host/a.mp4?t=1"
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write(VideoFeatures.of(make_result(url), PurePosixPath("host/a"), None, form))
        store.write_failure(
            FailedVideo.of(VideoFailure(url + "x", "NotAVideo", f"{url}x: no"), None, PurePosixPath("a"))
        )
        store.commit()
        store.finish()
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"s3cret" in data for data in contents)
    with open_store(str(out_of(tmp_path, name))) as store:
        assert [entry.key for entry in store.entries()] == [video_key(url)]
        assert [failed.message for failed in store.failures()] == ["https://host/a.mp4?t=1x: no"]


# What check sees -----------------------------------------------------------------------------------------------------


def change(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("feats.npy", "feats.index.jsonl", b'"end_seconds": 2.1', b'"end_seconds": 9.1'),
        ("feats.npy", "feats.index.jsonl", b"in/a.mp4", b"in/b.mp4"),
        ("feats.npy", "feats.videos.jsonl", b"in/a.mp4", b"in/b.mp4"),
        ("feats.npy", "feats.videos.jsonl", b'"num_lost_frames": 3', b'"num_lost_frames": 0'),
        ("feats.npy", "feats.videos.jsonl", b'"num_rows"', b'"num_rowz"'),
        ("feats.npy", "feats.recipe.json", b'"window": 64', b'"window": 65'),
        ("feats.npy", "feats.recipe.json", b"torch on cpu", b"torch on gpu"),
        ("feats", "feats/recipe.json", b'"window": 64', b'"window": 65'),
        ("feats+video_features", "feats/a_index.jsonl", b'"end_seconds": 2.1', b'"end_seconds": 9.1'),
        ("feats+video_features", "feats/a_timestamps_ms.npy", b"\x40", b"\x41"),
        ("feats+video_features", "feats/a_fps.npy", b"\x40", b"\x41"),
    ],
)
def test_check_sees_every_change(vid3d, tmp_path, name, file, old, new):
    write(make_store(tmp_path, name), form=make_form(name))
    change(tmp_path / file, old, new)
    result = vid3d("features", "check", split(name)[0])
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "internal error" not in result.stderr


def test_check_sees_a_renamed_video_in_a_column(vid3d, tmp_path):
    h5py = pytest.importorskip("h5py")
    write(make_store(tmp_path, "feats.h5"))
    with h5py.File(tmp_path / "feats.h5", "r+") as file:
        file["video"][0] = "in/other.mp4"
    result = vid3d("features", "check", "feats.h5")
    assert result.exit_code == 1
    assert "rows of in/a.mp4 are marked as those of in/other.mp4" in result.stderr


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [(np.nan, "float32", "not finite"), (np.inf, "float16", "not finite"), (7e4, "float16", "65504")],
)
@every_format
def test_numbers_that_a_file_cannot_hold_fail_the_video(name, value, dtype, words):
    result = make_result("in/a.mp4")
    result.clips[1].features["flow"][3] = value
    with pytest.raises(NoFeatures, match=words):
        features_of(result, "a", make_form(name, dtype))


# Jobs ----------------------------------------------------------------------------------------------------------------


def test_a_failure_like_an_old_one_counts_as_settled(tmp_path):
    """Else every worker of --claim --redo-failed tries every broken video again."""
    form, failed = make_form("feats"), FailedVideo("in/x.mp4", "NotAVideo", "it is broken", None)

    def fail(worker):
        with create_store(str(tmp_path / "feats"), worker=worker) as store:
            store.begin(form.describe(RECIPE))
            store.write(features_of(make_result(f"in/{worker}.mp4"), worker, form))
            store.write_failure(failed)
            store.commit()

    fail("old")
    tail = JournalTail(tmp_path / "feats")
    tail.read()
    assert "in/x.mp4" not in tail.keys
    fail("new")
    tail.read()
    assert "in/x.mp4" in tail.keys


@every_format
def test_a_merge_into_other_features_is_refused(tmp_path, name):
    for folder, stem in (("one", "a"), ("two", "b")):
        (tmp_path / folder).mkdir()
        write(make_store(tmp_path / folder, name), {stem: make_result(f"in/{stem}.mp4")}, make_form(name))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    one = [open_store(str(out_of(tmp_path / "one", name)))]
    with pytest.raises(OutputExists, match=r"with rows of in/b\.mp4 that are not in the input.*--overwrite"):
        merge(one, make_store(tmp_path / "two", name))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    merge(one, make_store(tmp_path / "two", name), overwrite=True)
    with open_store(str(out_of(tmp_path / "two", name))) as store:
        assert [entry.video for entry in store.entries()] == ["in/a.mp4"]


@every_format
def test_provenance_of_rows_that_were_added_elsewhere_is_recorded(vid3d, tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), {"a": make_result("in/a.mp4")}, form)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write(
            VideoFeatures.of(make_result("in/b.mp4"), PurePosixPath("b"), None, form, {"runtime": "torch on cuda"})
        )
        store.commit()
        store.finish()
    assert problems_of(out_of(tmp_path, name)) == []
    assert json.loads(vid3d("features", "info", split(name)[0]).stdout)["elsewhere"] == [{"runtime": "torch on cuda"}]


@pytest.mark.parametrize("name", ["file/feats.npy", "file/feats.npz", "file", "file/sub/"])
def test_a_file_in_the_place_of_a_directory_is_a_usage_error(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UsageError, match="/file is a file, not a directory"),
        create_store(f"{tmp_path}/{name}") as store,
    ):
        store.prepare(["a"])
    assert (tmp_path / "file").read_text() == "in the way"


def test_reading_never_speaks_of_writing(vid3d, tmp_path):
    for words in (["info", "video.mp4"], ["compare", "video.mp4", "rgb.pt"], ["check", "video.mp4"]):
        result = vid3d("features", *words)
        assert result.exit_code == 2
        assert "video.mp4: not features: give an output of vid3d extract" in result.stderr
