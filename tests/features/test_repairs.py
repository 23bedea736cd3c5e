"""Outputs that a crash, a user or another program left in an odd state are resumed or replaced; nothing is lost."""

from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
from disks import _fast_disk  # noqa: F401
from formats import split
from test_no_row_is_lost import FakePlan
from test_stores import RECIPE, RESULTS, contents_below, features_of, make_form, make_result, make_store, write

from vid3d_cli.errors import OutputError, OutputExists
from vid3d_cli.features.entries import VideoFeatures
from vid3d_cli.features.inspection import find_problems
from vid3d_cli.features.store import read_verified
from vid3d_cli.features.stores import open_store
from vid3d_cli.jobs.extraction import Extraction
from vid3d_cli.records import VideoFailure
from vid3d_cli.video.fingerprint import Fingerprint
from vid3d_cli.video.sources import Source

TREES = ("feats", "feats+video_features", "feats+streams", "feats+npz")
every_tree = pytest.mark.parametrize("name", TREES)


def rows_in(directory, name="feats"):
    with open_store(str(directory / split(name)[0])) as store:
        return {entry.stem: read_verified(store, entry).matrices for entry in store.entries()}


def resume(directory, name, recipe=RECIPE):
    """Prepare and begin as a job does; return the videos that count, and what was mended."""
    with make_store(directory, name) as store:
        form, notes = make_form(name), []
        store.on_mended = notes.append
        store.prepare(["new"], form.describe(recipe))
        store.begin(form.describe(recipe))
        return [entry.stem for entry in store.entries()], notes


# A directory is never refused for the files of one video -------------------------------------------------------------


@every_tree
def test_a_job_killed_between_the_files_and_the_line_of_a_replaced_video_resumes(tmp_path, name):
    """Before: refused for good, "its recipe or its entry is not that of the directory"."""
    form = make_form(name)
    write(make_store(tmp_path, name), form=form)
    newer = Fingerprint(9, 9, "cd" * 32)
    features = VideoFeatures.of(make_result("in/a.mp4", 2, seed=77), PurePosixPath("a"), newer, form)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write(features)  # and no commit
    stems, notes = resume(tmp_path, name)
    assert (stems, len(notes)) == (["a", "c", "sub/deep/b"], 1)
    with open_store(str(tmp_path / "feats")) as store:
        entry = store.entries()[0]
        assert entry.file == newer  # done: its files hold the line that was not committed
        for key, rows in read_verified(store, entry).matrices.items():
            np.testing.assert_array_equal(rows, features.matrices[key])
        assert not [problem for problem in find_problems(store) if problem.is_damage]


@every_tree
def test_another_worker_that_starts_between_the_files_and_the_line_works(tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), form=form)
    files = contents_below(tmp_path)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write(VideoFeatures.of(make_result("in/a.mp4", 2, seed=77), PurePosixPath("a"), None, form))
        other = type(store)(tmp_path / "feats", "other")
        with other:
            other.prepare(["new"])
            assert [entry.stem for entry in other.entries()] == ["c", "sub/deep/b"]
        store.commit()
    assert contents_below(tmp_path).keys() == files.keys()
    assert rows_in(tmp_path, name).keys() == {"a", "c", "sub/deep/b"}


@every_tree
def test_a_damaged_file_costs_one_video(tmp_path, name):
    write(make_store(tmp_path, name), form=make_form(name))
    path = tmp_path / "feats" / {"feats+streams": "RGB/c.npy", "feats+video_features": "c_rgb.npy"}.get(name, "c.npz")
    data = bytearray(path.read_bytes())
    data[220 if path.suffix == ".npz" else -1] ^= 1  # in the rows
    path.write_bytes(data)
    stems, notes = resume(tmp_path, name)
    assert stems == ["a", "sub/deep/b"]
    assert "do not count until they are extracted again: in/c.mov: its rows" in notes[0]
    write(make_store(tmp_path, name), {PurePosixPath("c"): RESULTS[PurePosixPath("c")]}, make_form(name))
    assert resume(tmp_path, name) == (["a", "c", "sub/deep/b"], [])


def test_rows_of_another_video_are_not_replaced(tmp_path):
    """No crash leaves them in this place, and the next job would replace them."""
    write(make_store(tmp_path, "feats"))
    (tmp_path / "feats/c.npz").replace(tmp_path / "feats/a.npz")
    before = contents_below(tmp_path)
    with pytest.raises(OutputError, match=r"feats/a\.npz: holds the rows of in/c\.mov, not of in/a\.mp4"):
        resume(tmp_path, "feats")
    assert contents_below(tmp_path) == before


def test_resuming_opens_few_files(tmp_path, monkeypatch):
    """Before: each of three passes loaded every file."""
    results = {PurePosixPath(f"v{i:03}"): make_result(f"in/v{i}.mp4", 1) for i in range(130)}
    form = make_form("feats")
    with make_store(tmp_path, "feats") as store:
        store.begin(form.describe(RECIPE))
        for stem, result in results.items():
            store.write(features_of(result, stem, form))
        store.commit()
    opened, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path) or load(path, **options))
    with make_store(tmp_path, "feats") as store:
        store.prepare(["new"])
        assert len(store.entries()) == 130
    assert 40 < len(opened) < 70


# Starting over -------------------------------------------------------------------------------------------------------


@every_tree
@pytest.mark.parametrize("harm", ["recipe", "line", "no lines"])
def test_no_row_comes_back_after_overwrite(tmp_path, name, harm):
    write(make_store(tmp_path, name), form=make_form(name))
    recipe, journal = make_store(tmp_path, name).own_paths()[::-1]
    if harm == "recipe":
        recipe.write_bytes(recipe.read_bytes()[:40])
    elif harm == "line":
        journal.write_bytes(journal.read_bytes().replace(b'"num_rows"', b'"num_rowz"', 1))
        with pytest.raises(OutputError, match="list of videos is damaged: a line has other fields"):
            resume(tmp_path, name)
    else:
        journal.unlink()
    mine = tmp_path / "feats/a_mine.npy"
    mine.write_bytes(b"mine")
    with make_store(tmp_path, name) as store:
        store.prepare(["new"], overwrite=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert resume(tmp_path, name) == ([], [])


def test_rows_that_a_lost_list_named_are_listed_and_it_is_said(tmp_path):
    write(make_store(tmp_path, "feats"))
    for lost in ("videos.jsonl", "recipe.json"):
        (tmp_path / "feats" / lost).unlink()
    stems, notes = resume(tmp_path, "feats")
    assert stems == ["a", "c", "sub/deep/b"]
    assert "has rows of 3 videos that no list named, as in/a.mp4" in notes[0]


def test_a_directory_without_lists_is_not_searched(tmp_path, monkeypatch):
    write(make_store(tmp_path, "feats"))
    for lost in ("videos.jsonl", "recipe.json"):
        (tmp_path / "feats" / lost).unlink()
    monkeypatch.setattr(np, "load", lambda *args, **options: pytest.fail("opened a file"))
    with pytest.raises(Exception, match="vid3d extract wrote no features there"):
        open_store(str(tmp_path / "feats"))


def write_own(path, rows=5):
    np.save(path, np.full((rows, 6), 7, np.float32))
    return path.read_bytes()


def overwrite(directory, name, *, concat):
    with make_store(directory, name) as store:
        form = make_form(name, concat=concat)
        store.prepare(["a"], form.describe(RECIPE), overwrite=True)
        store.begin(form.describe(RECIPE))
        store.write(features_of(RESULTS[PurePosixPath("a")], "a", form))
        store.commit()
        store.finish()


def test_other_streams_never_go_into_a_matrix_of_somebody_else(tmp_path):
    """Before: np.load gave the stranger's rows, and the exit code was 0."""
    write(make_store(tmp_path))
    write_own(tmp_path / "feats_rgb.npy")
    with pytest.raises(OutputExists, match=r"x_rgb\.npy: already exists"), make_store(tmp_path, "x.npy") as store:
        write_own(tmp_path / "x_rgb.npy")
        store.begin(make_form(concat=False).describe(RECIPE))
    overwrite(tmp_path, "feats.npy", concat=False)
    with open_store(str(tmp_path / "feats.npy")) as store:
        (entry,) = store.entries()
        np.testing.assert_array_equal(np.load(tmp_path / "feats_rgb.npy"), store.read(entry).matrices["rgb"])


@pytest.mark.parametrize("exists", [True, False])
def test_another_output_is_never_overwritten_as_a_stream(tmp_path, exists):
    write(make_store(tmp_path, "feats_rgb.npy"))
    if exists:
        write(make_store(tmp_path))
    before = contents_below(tmp_path)
    with pytest.raises(OutputExists, match=r"feats_rgb\.npy: already exists, as another output"):
        overwrite(tmp_path, "feats.npy", concat=False)
    assert contents_below(tmp_path) == before


def test_overwriting_deletes_only_what_the_run_writes(tmp_path):
    files = {n: write_own(tmp_path / n) for n in ("feats_rgb.npy", "feats_flow.npy")}
    write(make_store(tmp_path))  # without --overwrite
    overwrite(tmp_path, "feats.npy", concat=True)
    assert {n: (tmp_path / n).read_bytes() for n in files} == files


@pytest.mark.parametrize("name", ["feats.npy", "feats.npz", *TREES])
def test_a_list_that_is_not_ours_is_never_deleted(tmp_path, name):
    write(make_store(tmp_path, name), form=make_form(name))
    store = make_store(tmp_path, name)
    store.failures_path.write_text('{"my": "list"}\n')
    before = contents_below(tmp_path)
    with pytest.raises(OutputError, match="not a list of failures"), store:
        store.prepare(["a"], overwrite=True)
    assert contents_below(tmp_path) == before


def test_a_matrix_in_the_place_of_collected_rows_is_refused(tmp_path):
    (tmp_path / "feats.npz.part").mkdir()
    data = write_own(tmp_path / "feats.npz.part/feats.npy")
    with pytest.raises(OutputExists, match=r"feats\.npz\.part/feats\.npy: already exists"):
        overwrite(tmp_path, "feats.npz", concat=True)
    assert (tmp_path / "feats.npz.part/feats.npy").read_bytes() == data


# The job -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--overwrite"], []])
@pytest.mark.parametrize("out", ["f.npy", "f.npz", "f"])
def test_missing_videos_touch_no_output(vid3d, tiny_model, video, tmp_path, out, arguments):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert vid3d("extract", video, "broken.mp4", "--out", out).exit_code == 1  # its list of failures stays too
    before = contents_below(tmp_path)
    result = vid3d("extract", "nope.mp4", "gone.mp4", "--out", out, *arguments)
    assert result.exit_code == 1
    assert result.stderr.count("no such file") == 2
    assert "listed in" not in result.stderr
    assert contents_below(tmp_path) == before


def test_a_job_says_what_it_mended(tmp_path):
    write(make_store(tmp_path, "feats"))
    (tmp_path / "feats/videos.jsonl").unlink()
    events, sources = [], [Source("in/new.mp4", PurePosixPath("new"))]
    store = make_store(tmp_path, "feats")
    with Extraction(FakePlan(), sources, store, make_form("feats"), False, False, None, None, events.append) as job:
        job.start(SimpleNamespace(recipe=RECIPE))
        job.fail(sources[0], VideoFailure("in/new.mp4", "NotAVideo", "it is broken"))
        job.finish()
    assert any("that no list named" in getattr(event, "message", "") for event in events)
