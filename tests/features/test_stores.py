"""The contract of every feature format: plain libraries read what was committed, and nothing else."""

import gc
import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from disks import _fast_disk, file_size_limit  # noqa: F401
from formats import FILES as FILES_OF
from formats import FORMATS, concat_of, skip_without_package, split
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.durable import refuse_existing
from vid3d_cli.errors import FeatureShapeMismatch, OutputError, OutputExists, RecipeDiffers, UsageError
from vid3d_cli.features.committer import Committer
from vid3d_cli.features.entries import FailedVideo, VideoFeatures, checksum
from vid3d_cli.features.format import FeatureFormat
from vid3d_cli.features.growing import GrowingNpy
from vid3d_cli.features.merging import merge
from vid3d_cli.features.stores import EXPORTS, create_store, open_store
from vid3d_cli.features.table import Table
from vid3d_cli.recipe import Recipe, StreamRecipe
from vid3d_cli.records import ClipOutput, ClipSpan, VideoFailure
from vid3d_cli.results import VideoResult
from vid3d_cli.video.fingerprint import Fingerprint

D, K = 6, 4
LABELS = ("a", "b", "c", "d")
SPAN_COLUMNS = ("clip", "start_seconds", "end_seconds", "start_frame", "num_valid_frames")

RECIPE = Recipe(
    model="i3d.kinetics400",
    streams={s: StreamRecipe(f"i3d.kinetics400:{s}", "ab" * 32, "to [-1, 1]") for s in ("rgb", "flow")},
    fps="30000/1001",
    start_seconds=0.0,
    end_seconds=None,
    window=64,
    stride=16,
    tail="pad",
    resize="short side 256 px – bilinear",
    crops="centre 224 px",
    keeps_crops=False,
    variant=None,
    features="pooled",
    flow=None,
    runtime="torch on cpu",
    precision="fp32",
    versions={"vid3d": "0.1.0"},
    numerics=1,  # as in recipes from before this key
)


def make_result(video, num_clips=2, streams=("rgb", "flow"), seed=0):
    """Features that float16 can say exactly, and times that it cannot."""
    rng = np.random.default_rng(seed)
    clips = tuple(
        ClipOutput(
            ClipSpan(i, 16 * i, 64 - i, 16 * i * 1001 / 30000, (16 * i + 64 - i) * 1001 / 30000),
            {stream: rng.integers(-500, 500, D).astype(np.float32) for stream in streams},
            {stream: np.zeros(K, np.float32) for stream in (*streams, "fused")},
        )
        for i in range(num_clips)
    )
    logits = {stream: np.zeros(K, np.float32) for stream in (*streams, "fused")}
    return VideoResult(video, clips, logits, LABELS, 30000 / 1001, 100, 3, RECIPE)


RESULTS = {
    PurePosixPath("a"): make_result("in/a.mp4", 2, seed=1),
    PurePosixPath("sub/deep/b"): make_result("in/sub/deep/b.mp4", 1, seed=2),
    PurePosixPath("c"): make_result("in/c.mov", 3, seed=3),
}


FILE = Fingerprint(123, 456, "ab" * 32)
STORES = (*FORMATS, *FILES_OF)
TREES = STORES[4:]
every_format = pytest.mark.parametrize("name", STORES)
concat_or_not = pytest.mark.parametrize("concat", [True, False], ids=["concat", "apart"])


@pytest.fixture(autouse=True)
def _skip_what_is_not_installed(request):
    if hasattr(request.node, "callspec"):
        skip_without_package(*request.node.callspec.params.values())


def make_store(directory, name="feats.npy"):
    layout = split(name)[1]
    return create_store(str(directory / name.split("+")[0]), layout=layout)


def make_form(name="feats.npy", dtype="float32", concat=True):
    files = FILES_OF.get(name)
    return FeatureFormat(dtype, concat_of(name, concat), split(name)[1], files)


def features_of(result, stem, form):
    return VideoFeatures.of(result, PurePosixPath(stem), FILE, form)


def write(store, results=RESULTS, form=None, *, ends=True):
    """Write videos as a job does: each committed by itself."""
    form = form or make_form()
    with store:
        store.begin(form.describe(RECIPE))
        for stem, result in results.items():
            store.write(features_of(result, stem, form))
            store.commit()
        if ends:
            store.finish()


def files_below(directory):
    """Every file, as a path relative to the directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def contents_below(directory):
    return {path: (directory / path).read_bytes() for path in files_below(directory)}


def matrix_of(result, stream):
    """(N, D), row by row from the record."""
    return np.array([clip.features[stream] for clip in result.clips])


def expected_matrices(result, concat, streams=("rgb", "flow")):
    parts = {stream: matrix_of(result, stream) for stream in streams}
    return {"features": np.hstack(list(parts.values()))} if concat else parts


def span_of(clip):
    span = asdict(clip.span)
    return {"clip": span.pop("index"), **span}


def load(path, **options):
    return np.load(path, allow_pickle=False, **options)


# Each reader uses the format's own library and nothing of ours, and gives (matrices of all rows, columns of all rows).


def read_npy(out, names):
    lines = [json.loads(line) for line in out.with_suffix(".index.jsonl").read_text("utf-8").splitlines()]
    assert [line["row"] for line in lines] == list(range(len(lines)))
    assert all(list(line) == ["row", "video", *SPAN_COLUMNS] for line in lines)
    paths = {name: out if name == "features" else out.with_name(f"{out.stem}_{name}.npy") for name in names}
    columns = {column: [line[column] for line in lines] for column in ("video", *SPAN_COLUMNS)}
    return {name: load(path, mmap_mode="r") for name, path in paths.items()}, columns


def read_npz(out, names):
    with load(out) as stored:
        assert sorted(stored) == sorted([*names, "video", "recipe", "videos", *SPAN_COLUMNS])
        return {n: stored[n] for n in names}, {c: stored[c].tolist() for c in ("video", *SPAN_COLUMNS)}


def read_h5(out, names):
    h5py = pytest.importorskip("h5py")
    with h5py.File(out) as stored:
        assert sorted(stored) == sorted([*names, "video", "videos", *SPAN_COLUMNS])
        columns = {name: stored[name][:].tolist() for name in SPAN_COLUMNS}
        return {n: stored[n][:] for n in names}, {"video": [os.fsdecode(v) for v in stored["video"]], **columns}


def read_parquet(out, names):
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(out)
    assert table.column_names == ["video", *SPAN_COLUMNS, *names]
    matrices = {n: np.array(table[n].to_pylist()) for n in names}
    return matrices, {c: table[c].to_pylist() for c in ("video", *SPAN_COLUMNS)}


def read_directory(out, names):
    parts, columns = {n: [] for n in names}, {c: [] for c in ("video", *SPAN_COLUMNS)}
    for stem in RESULTS:
        with load(out / f"{stem}.npz") as stored:
            assert sorted(stored) == sorted([*names, "video", "recipe", "videos", "num_lost_frames", *SPAN_COLUMNS])
            assert stored["num_lost_frames"] == 3
            for n in names:
                parts[n].append(stored[n])
            columns["video"] += [str(stored["video"])] * len(stored["clip"])
            for c in SPAN_COLUMNS:
                columns[c] += stored[c].tolist()
    return {n: np.concatenate(p) for n, p in parts.items()}, columns


def read_video_features(out, names):
    out = out.with_name("feats")
    parts, columns = {n: [] for n in names}, {c: [] for c in ("video", *SPAN_COLUMNS)}
    for stem, result in RESULTS.items():
        assert load(out / f"{stem}_fps.npy") == 30000 / 1001
        ends = [clip.span.end_seconds * 1000 for clip in result.clips]
        np.testing.assert_allclose(load(out / f"{stem}_timestamps_ms.npy"), ends, rtol=1e-12)
        for n in names:
            parts[n].append(load(out / f"{stem}_{n}.npy"))
        for line in map(json.loads, (out / f"{stem}_index.jsonl").read_text().splitlines()):
            for c in columns:
                columns[c].append(line[c])
    return {n: np.concatenate(p) for n, p in parts.items()}, columns


def read_files(name, out, names):
    files, out = FILES_OF[name], out.with_name("feats")
    parts, columns = {n: [] for n in names}, {c: [] for c in ("video", *SPAN_COLUMNS)}
    for stem in RESULTS:
        for n in names:
            if name == "feats+npz":
                stored = load(out / f"{stem}.npz")
                assert list(stored) == ["i3d"]
                parts[n].append(stored["i3d"].T)
                assert stored["i3d"].flags.c_contiguous
            else:
                parts[n].append(load(out / files.streams[n] / f"{stem}.npy"))
        with (out / ".vid3d" / "videos" / f"{stem}.jsonl").open() as lines:
            assert json.loads(next(lines))["entry"]["stem"] == str(stem)
            for line in map(json.loads, lines):
                for c in columns:
                    columns[c].append(line[c])
    return {n: np.concatenate(p) for n, p in parts.items()}, columns


READERS = dict(
    zip(FORMATS, [read_npy, read_npz, read_h5, read_parquet, read_directory, read_video_features], strict=True)
) | {name: partial(read_files, name) for name in FILES_OF}


def read_plainly(directory, name, concat=True):
    concat = concat_of(name, concat)
    return READERS[name](directory / name, ["features"] if concat else ["rgb", "flow"])


def assert_holds(directory, name, results=RESULTS, concat=True, dtype="float32"):
    """By the format's own library, and by ours."""
    concat = concat_of(name, concat)
    matrices, columns = read_plainly(directory, name, concat)
    rows = {n: [] for n in matrices}
    for result in results.values():
        for n, expected in expected_matrices(result, concat).items():
            rows[n].append(expected)
    for n, matrix in matrices.items():
        assert matrix.dtype == dtype or name == "feats.parquet"
        np.testing.assert_array_equal(matrix, np.concatenate(rows[n]))
    clips = [(result.video, clip) for result in results.values() for clip in result.clips]
    assert columns["video"] == [video for video, _ in clips]
    for column in SPAN_COLUMNS:
        assert columns[column] == [span_of(clip)[column] for _, clip in clips]  # seconds to the last digit
    assert_store_holds(directory / name.split("+")[0], results, concat, dtype)


def assert_store_holds(out, results=RESULTS, concat=True, dtype="float32"):
    store = open_store(str(out))
    with store:
        entries = store.entries()
        items = sorted(results.items()) if store.has_files_per_video else list(results.items())
        assert [entry.video for entry in entries] == [result.video for _, result in items]
        for entry, (stem, result) in zip(entries, items, strict=True):
            found = store.read(entry)
            assert (entry.stem, entry.num_rows, entry.fps) == (str(stem), len(result.clips), 30000 / 1001)
            assert (entry.num_frames, entry.num_lost_frames, entry.file) == (100, 3, FILE)
            assert found.spans == [clip.span for clip in result.clips]
            assert entry.crc32 == checksum(found.matrices)
            assert {m.dtype.name for m in found.matrices.values()} == {dtype}
            for n, expected in expected_matrices(result, concat).items():
                np.testing.assert_array_equal(found.matrices[n], expected)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@concat_or_not
@every_format
def test_what_was_written_is_read_back(tmp_path, name, concat, dtype):
    form = make_form(name, dtype, concat)
    write(make_store(tmp_path, name), form=form)
    assert_holds(tmp_path, name, concat=concat, dtype=dtype)
    assert open_store(str(tmp_path / name.split("+")[0])).recipe() == json.loads(json.dumps(form.describe(RECIPE)))


FILES = {
    "feats.npy": ["feats.index.jsonl", "feats.npy", "feats.recipe.json", "feats.videos.jsonl"],
    "feats": ["feats/a.npz", "feats/c.npz", "feats/recipe.json", "feats/sub/deep/b.npz", "feats/videos.jsonl"],
    "feats+video_features": sorted(
        ["feats/recipe.json", "feats/videos.jsonl"]
        + [
            f"feats/{stem}_{what}"
            for stem in RESULTS
            for what in ("rgb.npy", "flow.npy", "fps.npy", "timestamps_ms.npy", "index.jsonl", "recipe.json")
        ]
    ),
    **{
        name: sorted(
            ["feats/.vid3d/recipe.json", "feats/.vid3d/videos.jsonl"]
            + [f"feats/.vid3d/videos/{stem}.jsonl" for stem in RESULTS]
            + [f"feats/{form.format(stem)}" for stem in RESULTS for form in forms]
        )
        for name, forms in {
            "feats+streams": ["RGB/{}.npy", "Flow/{}.npy"],
            "feats+npz": ["{}.npz"],
        }.items()
    },
}


@every_format
def test_no_other_files_are_left(tmp_path, name):
    write(make_store(tmp_path, name), form=make_form(name))
    assert files_below(tmp_path) == FILES.get(name, [name])


@every_format
def test_one_stream_is_written_alone(tmp_path, name):
    result = make_result("a.mp4", streams=("flow",))
    form = make_form(name, concat=False)
    recipe = replace(RECIPE, streams={"flow": RECIPE.streams["rgb"]})
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(recipe))
        store.write(features_of(result, "a", form))
        store.commit()
        store.finish()
    with open_store(str(tmp_path / name.split("+")[0])) as store:
        (entry,) = store.entries()
        found = store.read(entry).matrices
        (matrix,) = found if form.concat else ["flow"]
        assert list(found) == [matrix]
        np.testing.assert_array_equal(found[matrix], matrix_of(result, "flow"))


@pytest.mark.parametrize("name", FORMATS[:5])
def test_maps_of_a_layer_keep_their_shape(tmp_path, name):
    rng = np.random.default_rng(0)
    maps = [rng.random((5, 2, 3, 4), np.float32) for _ in range(3)]
    clips = tuple(
        ClipOutput(ClipSpan(i, 0, 1, 0.0, 1.0), {"rgb": m}, {"rgb": np.zeros(K, np.float32)})
        for i, m in enumerate(maps)
    )
    result = replace(make_result("a.mp4"), clips=clips)
    write(make_store(tmp_path, name), {"a": result}, make_form(name))
    with open_store(str(tmp_path / name)) as store:
        (entry,) = store.entries()
        np.testing.assert_array_equal(store.read(entry).matrices["features"], np.stack(maps))


def test_result_features_are_concatenated_rgb_first_whatever_the_order_of_the_record():
    result = make_result("a.mp4", streams=("flow", "rgb"))
    np.testing.assert_array_equal(result.features(), np.hstack([matrix_of(result, "rgb"), matrix_of(result, "flow")]))
    np.testing.assert_array_equal(result.features("flow"), matrix_of(result, "flow"))


# ---------------------------------------------------------------------------------------------------------------------
# Video by video
# ---------------------------------------------------------------------------------------------------------------------


@every_format
def test_a_resumed_job_ends_with_the_files_of_an_undisturbed_one(tmp_path, name):
    (tmp_path / "whole").mkdir()
    write(make_store(tmp_path / "whole", name), form=make_form(name))
    for num_before in range(len(RESULTS) + 1):
        directory = tmp_path / f"after-{num_before}"
        directory.mkdir()
        items = list(RESULTS.items())
        if num_before:
            write(make_store(directory, name), dict(items[:num_before]), make_form(name), ends=False)
            with make_store(directory, name) as store:
                assert {entry.stem for entry in store.entries()} == {str(stem) for stem, _ in items[:num_before]}
        write(make_store(directory, name), dict(items[num_before:]), make_form(name))
        assert contents_below(directory) == contents_below(tmp_path / "whole")


@every_format
def test_a_finished_output_takes_more_videos(tmp_path, name):
    items = list(RESULTS.items())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(make_store(tmp_path / "a", name), form=make_form(name))
    for item in items:
        write(make_store(tmp_path / "b", name), dict([item]), make_form(name))
    assert contents_below(tmp_path / "a") == contents_below(tmp_path / "b")


@every_format
def test_rows_that_were_not_committed_are_dropped(tmp_path, name):
    form = make_form(name)
    items = list(RESULTS.items())
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write(features_of(items[0][1], items[0][0], form))
        store.commit()
        before = [entry.stem for entry in make_store(tmp_path, name).entries()]
        store.write(features_of(items[1][1], items[1][0], form))
    assert before == [entry.stem for entry in make_store(tmp_path, name).entries()] == ["a"]
    write(make_store(tmp_path, name), dict(items[1:]), form)
    assert_holds(tmp_path, name)


def test_a_matrix_can_be_loaded_at_any_time(tmp_path):
    """Its header never promises more rows than there are."""
    form = make_form()
    sizes = []
    with make_store(tmp_path) as store:
        store.begin(form.describe(RECIPE))
        for stem, result in RESULTS.items():
            store.write(features_of(result, stem, form))
            sizes.append(len(load(tmp_path / "feats.npy", mmap_mode="r")))
            store.commit()
            sizes.append(len(load(tmp_path / "feats.npy", mmap_mode="r")))
    assert sizes == [0, 2, 2, 3, 3, 6]


@every_format
def test_a_video_that_is_extracted_again_keeps_its_place(tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), form=form)
    newer = {**RESULTS, PurePosixPath("a"): make_result("in/a.mp4", 5, seed=8)}
    write(make_store(tmp_path, name), {PurePosixPath("a"): newer[PurePosixPath("a")]}, form, ends=False)
    with make_store(tmp_path, name) as store:  # before the job has ended, too
        assert {e.stem: e.num_rows for e in store.entries()} == {"a": 5, "sub/deep/b": 1, "c": 3}
    write(make_store(tmp_path, name), {}, form)
    assert_store_holds(tmp_path / name.split("+")[0], newer, concat_of(name))
    if name.startswith("feats."):
        assert_holds(tmp_path, name, newer)


@pytest.mark.parametrize("moment", ["rewriting", "moving"])
def test_an_interrupted_compaction_loses_nothing(tmp_path, monkeypatch, moment):
    write(make_store(tmp_path))
    newer = {**RESULTS, PurePosixPath("a"): make_result("in/a.mp4", 5, seed=8)}
    original = Path.replace

    def replace_or_die(path, target):
        if moment == "rewriting" and Path(path).name.endswith("rewriting"):
            raise KeyboardInterrupt
        if moment == "moving" and Path(path).name == "feats.npy" and Path(target).parent == tmp_path:
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt):
        write(make_store(tmp_path), {PurePosixPath("a"): newer[PurePosixPath("a")]})
    monkeypatch.undo()
    write(make_store(tmp_path), {})
    assert_holds(tmp_path, "feats.npy", newer)
    assert files_below(tmp_path) == FILES["feats.npy"]


@pytest.mark.parametrize("nth_write", range(1, 11))
def test_a_disk_that_fails_during_a_compaction_costs_no_row(tmp_path, monkeypatch, nth_write):
    newer = {**RESULTS, PurePosixPath("a"): make_result("in/a.mp4", 5, seed=8)}
    write(make_store(tmp_path))
    write(make_store(tmp_path), {PurePosixPath("a"): newer[PurePosixPath("a")]}, ends=False)
    calls, real = iter(range(1, 1000)), os.pwrite

    def pwrite(handle, data, position):
        if next(calls) == nth_write:
            raise OSError(28, "No space left on device")
        return real(handle, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with suppress(OutputError), make_store(tmp_path) as store:
        store.lock()
        store.finish()
    assert next(calls) > nth_write, "there are fewer writes: lower the range"
    monkeypatch.undo()
    write(make_store(tmp_path), {})
    assert_holds(tmp_path, "feats.npy", newer)
    assert files_below(tmp_path) == FILES["feats.npy"]


@every_format
def test_a_job_without_a_video_leaves_no_file(tmp_path, name):
    write(make_store(tmp_path, name), {}, make_form(name), ends=False)
    assert files_below(tmp_path) == []


@every_format
def test_overwriting_removes_what_was_there(tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), {PurePosixPath("old"): make_result("old.mp4", 7, seed=9)}, form)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write_failure(failed("in/x.mp4"))
        store.commit()
    store = make_store(tmp_path, name)
    assert store.prepare(["a"], overwrite=True) is None
    write(store, form=form)
    assert_holds(tmp_path, name)
    assert files_below(tmp_path) == FILES.get(name, [name])


@pytest.mark.parametrize("harm", ["no journal", "no header", "empty"])
def test_overwriting_needs_nothing_of_what_was_there(tmp_path, harm):
    if harm == "empty":
        (tmp_path / "feats.npy").touch()
    else:
        write(make_store(tmp_path))
        if harm == "no journal":
            (tmp_path / "feats.videos.jsonl").unlink()
        else:
            data = (tmp_path / "feats.npy").read_bytes()
            (tmp_path / "feats.npy").write_bytes(bytes(128) + data[128:])
    store = make_store(tmp_path)
    store.prepare(["a"], overwrite=True)
    write(store)
    assert_holds(tmp_path, "feats.npy")


def test_a_damaged_line_before_the_last_is_an_error_and_nothing_is_cut(tmp_path):
    write(make_store(tmp_path))
    lines = (tmp_path / "feats.videos.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "feats.videos.jsonl").write_bytes(b"".join([lines[0], b"{damaged\n", lines[2]]))
    before = contents_below(tmp_path)
    with pytest.raises(OutputError, match="damaged after line 1"), make_store(tmp_path) as store:
        store.begin(make_form().describe(RECIPE))
    assert contents_below(tmp_path) == before


@pytest.mark.parametrize("name", TREES)
def test_if_two_workers_did_a_video_the_entry_of_the_files_there_counts(tmp_path, name):
    """Whatever their names: here the older one's comes first and last in their order."""
    form = make_form(name)
    layout = split(name)[1]
    for workers in (("a", "z"), ("z", "a")):
        directory = tmp_path / "".join(workers)
        for seed, worker in enumerate(workers):
            newest = make_result("in/a.mp4", 2 + seed, seed=seed)
            with create_store(str(directory), layout=layout, worker=worker) as store:
                store.begin(form.describe(RECIPE))
                store.write(features_of(newest, "a", form))
                store.commit()
                store.finish()
        assert_store_holds(directory, {PurePosixPath("a"): newest}, form.concat)


@pytest.mark.parametrize("stem", ["videos", "failures", "videos.x", "recipe", ".workers", "x.videos", "failures.y"])
@pytest.mark.parametrize("name", TREES)
def test_no_name_of_a_video_is_taken_for_a_journal(tmp_path, name, stem):
    form = make_form(name)
    results = {PurePosixPath(stem): make_result(f"in/{stem}.mp4")}
    layout = split(name)[1]
    for worker in (None, "w"):
        with create_store(str(tmp_path / "feats"), layout=layout, worker=worker) as store:
            store.begin(form.describe(RECIPE))
            store.write(features_of(results[PurePosixPath(stem)], stem, form))
            store.commit()
            store.finish()
        assert_store_holds(tmp_path / "feats", results, form.concat)


def test_workers_that_start_together_agree_on_a_recipe(tmp_path):
    results = []
    barrier = threading.Barrier(6)

    def begin(stride):
        store = create_store(str(tmp_path / "feats"), worker=f"w{stride}")
        barrier.wait()
        try:
            with store:
                store.begin(make_form("feats").describe(replace(RECIPE, stride=stride)))
                results.append(stride)
        except RecipeDiffers:
            pass

    threads = [threading.Thread(target=begin, args=(stride,)) for stride in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recipe = json.loads((tmp_path / "feats" / "recipe.json").read_text())
    assert results == [recipe["stride"]]


@every_format
def test_rows_of_another_recipe_are_refused_and_the_differences_listed(tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), form=form)
    before = contents_below(tmp_path)
    newer = {s: replace(stream, weights_sha256="cd" * 32) for s, stream in RECIPE.streams.items()}
    other = replace(RECIPE, stride=8, streams=newer)
    with pytest.raises(RecipeDiffers) as error, make_store(tmp_path, name) as store:
        store.begin(form.describe(other))
    for part in ("stride: 16 there, 8 now", "streams.rgb.weights_sha256", "--overwrite"):
        assert part in str(error.value)
    assert contents_below(tmp_path) == before


def as_the_old_code_wrote_it(recipe):
    """Before recipes had `numerics`, and whole versions and paths were compared."""
    return {key: value for key, value in recipe.items() if key != "numerics"}


@every_format
def test_rows_made_elsewhere_by_the_old_code_are_resumed(tmp_path, name):
    """Only what decides numbers is compared; the recipe stays that of the first rows."""
    form, items = make_form(name), list(RESULTS.items())
    first = as_the_old_code_wrote_it(form.describe(RECIPE))
    moved = {s: replace(stream, weights=f"/elsewhere/{s}.pt") for s, stream in RECIPE.streams.items()}
    now = form.describe(replace(RECIPE, streams=moved, runtime="torch on cuda", versions={"vid3d": "0.9", "av": "17"}))
    for ends in (False, True):  # resume a killed job, then a finished output
        with make_store(tmp_path, name) as store:
            assert store.prepare(["a"]) in (None, json.loads(json.dumps(first)))
            for recipe in (first, now) if not ends else (now,):
                store.begin(recipe)
            store.write(features_of(items[int(ends)][1], items[int(ends)][0], form))
            store.commit()
            if ends:
                store.finish()
    write(make_store(tmp_path, name), dict(items[2:]), form)
    assert_holds(tmp_path, name)
    assert open_store(str(tmp_path / name.split("+")[0])).recipe() == json.loads(json.dumps(first))
    with pytest.raises(RecipeDiffers, match="numerics: 1 there, 2 now"), make_store(tmp_path, name) as store:
        store.begin(form.describe(replace(RECIPE, numerics=2)))


@every_format
def test_two_writers_at_once_are_refused(tmp_path, name):
    pytest.importorskip("fcntl")
    form = make_form(name)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        with pytest.raises(UsageError, match="another vid3d is writing"), make_store(tmp_path, name) as other:
            other.begin(form.describe(RECIPE))
        for stem, result in RESULTS.items():
            store.write(features_of(result, stem, form))
        store.commit()
        store.finish()
    assert_holds(tmp_path, name)


def test_without_its_journal_an_output_is_not_written_to(tmp_path):
    write(make_store(tmp_path))
    (tmp_path / "feats.videos.jsonl").unlink()
    before = contents_below(tmp_path)
    with pytest.raises(OutputError, match=r"feats\.videos\.jsonl: missing"), make_store(tmp_path) as store:
        store.begin(make_form().describe(RECIPE))
    assert contents_below(tmp_path) == before


@pytest.mark.parametrize("name", ["feats.npy", "feats.npz"])
def test_features_of_another_shape_are_refused_before_anything_is_written(tmp_path, name):
    form = make_form(name)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.check(features_of(RESULTS[PurePosixPath("a")], "a", form))
        odd = features_of(make_result("odd.mp4", streams=("rgb",)), "odd", form)
        with pytest.raises(FeatureShapeMismatch, match=r"have shape \(6,\), earlier ones \(12,\)"):
            store.check(odd)


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


def failed(video, error="NotAVideo"):
    return FailedVideo.of(VideoFailure(video, error, "it is broken"), FILE, PurePosixPath("a"))


@every_format
def test_failures_are_listed_until_their_video_is_done(tmp_path, name):
    form = make_form(name)
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        store.write_failure(failed("in/a.mp4"))
        store.write_failure(failed("in/x.mp4"))
        store.write_failure(failed("in/x.mp4", "NoFrames"))
        store.commit()
        path = store.failures_path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["video"], line["error"]) for line in lines] == [
        ("in/a.mp4", "NotAVideo"),
        ("in/x.mp4", "NotAVideo"),
        ("in/x.mp4", "NoFrames"),
    ]
    assert [f.error for f in make_store(tmp_path, name).failures()] == ["NotAVideo", "NoFrames"]
    write(make_store(tmp_path, name), form=form)
    with open_store(str(tmp_path / name.split("+")[0])) as store:
        assert store.failures() == [failed("in/x.mp4", "NoFrames")]
    assert len(path.read_text().splitlines()) == 1
    write(make_store(tmp_path, name), {PurePosixPath("x"): make_result("in/x.mp4")}, form)
    assert not path.exists()


def test_workers_of_one_directory_keep_their_own_lists(tmp_path):
    form = make_form("feats")
    for worker, stem, bad in (("one", "a", "in/x.mp4"), ("two", "c", "in/y.mp4")):
        with create_store(str(tmp_path / "feats"), worker=worker) as store:
            store.begin(form.describe(RECIPE))
            store.write(features_of(RESULTS[PurePosixPath(stem)], stem, form))
            store.write_failure(failed(bad))
            store.commit()
            store.finish()
    assert {"feats/.workers/one.videos.jsonl", "feats/.workers/two.failures.jsonl"} <= set(files_below(tmp_path))
    with open_store(str(tmp_path / "feats")) as store:
        assert [entry.stem for entry in store.entries()] == ["a", "c"]
        assert [f.video for f in store.failures()] == ["in/x.mp4", "in/y.mp4"]


# ---------------------------------------------------------------------------------------------------------------------
# Disks that fail
# ---------------------------------------------------------------------------------------------------------------------


LONG_RESULTS = {
    PurePosixPath("a"): RESULTS[PurePosixPath("a")],
    PurePosixPath("long"): make_result("in/long.mp4", 2000, seed=7),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit_bytes", [0, 100, 9000])
@every_format
def test_a_full_disk_is_one_error_and_committed_videos_stay(tmp_path, name, limit_bytes):
    form = make_form(name)
    with file_size_limit(limit_bytes), pytest.raises(OutputError, match="cannot be written") as error:
        write(make_store(tmp_path, name), LONG_RESULTS, form)
    assert str(tmp_path / "feats") in str(error.value)
    assert "\n" not in str(error.value)
    del error
    gc.collect()  # a file that is dropped with unwritten data would complain here
    kept = [entry.stem for entry in make_store(tmp_path, name).entries()]
    assert kept == (["a"] if limit_bytes == 9000 else [])
    left = {stem: result for stem, result in LONG_RESULTS.items() if str(stem) not in kept}
    write(make_store(tmp_path, name), left, form)
    assert_store_holds(tmp_path / name.split("+")[0], LONG_RESULTS, concat_of(name))


@pytest.mark.parametrize("name", ["feats.npy", "feats.npz"])
def test_a_file_that_vanishes_while_it_is_written_is_an_error(tmp_path, name):
    """Writing to a file without a name succeeds, and is in vain."""
    form = make_form(name)
    with pytest.raises(OutputError, match="removed or replaced it"), make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        for stem, result in RESULTS.items():
            store.write(features_of(result, stem, form))
            store.commit()
            for path in tmp_path.rglob("*.npy"):
                path.unlink()


@every_format
def test_a_directory_that_cannot_be_made_is_an_output_error(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be (written|read)"):
        write(make_store(tmp_path / "file", name), form=make_form(name))
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("name", [*FORMATS[:4]])
def test_files_of_other_programs_conflict(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    store = make_store(tmp_path, name)
    assert store.conflicting_files(["a"]) == [tmp_path / name]
    if name != "feats.npy":
        with pytest.raises(OutputError, match="cannot be read"):
            store.recipe()


def test_an_npz_of_another_program_cannot_be_read(tmp_path):
    write(make_store(tmp_path, "feats.npz"))
    whole = (tmp_path / "feats.npz").read_bytes()
    path = tmp_path / "feats.npz"

    def save_array():
        with path.open("wb") as file:
            np.save(file, np.zeros(3))

    for harm in (
        save_array,
        lambda: np.savez(path, recipe=np.array("hello")),
        lambda: np.savez(path, recipe=np.array('{"model": 1}'), videos=np.frombuffer(b"[1]\n", np.uint8)),
        lambda: np.savez_compressed(path, rgb=np.zeros(9)),
        lambda: path.write_bytes(whole[:200]),
    ):
        harm()
        with (
            pytest.raises(OutputError, match="cannot be read"),
            make_store(tmp_path, "feats.npz") as s,
        ):
            s.recipe()
            s.entries()


@pytest.mark.parametrize("name", ["feats.npy", "feats", "feats+video_features"])
@pytest.mark.parametrize("stem", ["../../outside", "/outside", "a/../../outside"])
def test_a_list_of_videos_names_no_file_outside_of_its_output(tmp_path, name, stem):
    write(make_store(tmp_path, name), form=make_form(name))
    (journal,) = tmp_path.rglob("*videos.jsonl")
    journal.write_text(journal.read_text().replace('"sub/deep/b"', f'"{stem}"'))
    with pytest.raises(OutputError, match=r"its list of videos is damaged: .*lies outside"):
        make_store(tmp_path, name).entries()


def test_a_list_of_videos_with_another_key_is_damaged(tmp_path):
    write(make_store(tmp_path))
    journal = tmp_path / "feats.videos.jsonl"
    journal.write_text(journal.read_text().replace('"num_rows"', '"num_rowz"', 1))
    with pytest.raises(OutputError, match="its list of videos is damaged"):
        make_store(tmp_path).entries()


def test_a_matrix_of_python_objects_is_not_read(tmp_path):
    """Its bytes would be taken for pointers."""
    write(make_store(tmp_path))
    path = tmp_path / "feats.npy"
    path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'|O' "))
    with pytest.raises(OutputError, match="holds Python objects"):
        make_store(tmp_path).entries()


def test_the_recipe_of_an_npz_is_read_without_its_rows(tmp_path):
    write(make_store(tmp_path, "feats.npz"))
    path = tmp_path / "feats.npz"
    data = bytearray(path.read_bytes())
    data[200] ^= 1  # in the rows, which a zip archive checks when it reads them
    path.write_bytes(data)
    with open_store(str(path)) as store:
        assert store.recipe()["model"] == RECIPE.model
        (first, *_) = store.entries()
        with pytest.raises(OutputError, match="cannot be read"):
            store.read(first)


def test_a_new_format_is_three_functions_and_a_line(tmp_path, monkeypatch):
    """Written, resumed, extended and converted like those that come with vid3d."""

    class JsonFormat:
        @staticmethod
        def check(): ...

        @staticmethod
        def write(table, file):
            arrays = {**table.matrices, **table.spans}
            columns = {name: [array.dtype.name, array.tolist()] for name, array in arrays.items()}
            text = json.dumps({"recipe": table.recipe, "videos": table.videos.decode(), "columns": columns})
            file.write(text.encode())

        @staticmethod
        def read(path):
            stored = json.loads(path.read_bytes())
            columns = {name: np.array(values, dtype) for name, (dtype, values) in stored["columns"].items()}
            matrices = {name: columns.pop(name) for name in list(columns) if name in ("features", "rgb", "flow")}
            return Table(stored["recipe"], stored["videos"].encode(), matrices, columns)

    monkeypatch.setitem(EXPORTS, ".json", JsonFormat)
    for item in RESULTS.items():
        write(make_store(tmp_path, "feats.json"), dict([item]))
    assert files_below(tmp_path) == ["feats.json"]
    assert_store_holds(tmp_path / "feats.json")
    merge([open_store(str(tmp_path / "feats.json"))], make_store(tmp_path, "feats.npz"))
    assert_holds(tmp_path, "feats.npz")
    (tmp_path / "feats.json").write_text("{}")
    with pytest.raises(OutputError, match=r"feats\.json: cannot be read"):
        open_store(str(tmp_path / "feats.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Committer
# ---------------------------------------------------------------------------------------------------------------------


@every_format
def test_a_committer_writes_all_that_it_is_given(tmp_path, name):
    form, safe = make_form(name), []
    with make_store(tmp_path, name) as store:
        store.begin(form.describe(RECIPE))
        with Committer(store, safe.extend) as committer:
            for stem, result in RESULTS.items():
                committer.put(features_of(result, stem, form))
            committer.put(failed("in/x.mp4"))
        names = [item.video if isinstance(item, FailedVideo) else item.entry.video for item in safe]
        assert names == [*(result.video for result in RESULTS.values()), "in/x.mp4"]
        store.finish()
    assert_holds(tmp_path, name)


def test_a_committer_raises_the_error_of_a_full_disk_and_stops_writing(tmp_path, monkeypatch):
    form, safe = make_form(), []
    with make_store(tmp_path) as store:
        store.begin(form.describe(RECIPE))

        def fail(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        committer = Committer(store, safe.extend)
        with pytest.raises(OutputError, match="No space left"):
            for _ in range(50):
                committer.put(features_of(RESULTS[PurePosixPath("a")], "a", form))
        committer.close()
        monkeypatch.undo()
    assert safe == []
    assert files_below(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "with space",
    "v1.2.final",
    "ünï 跳舞 🎬",
    ".hidden",
    "trailing.",
    "a'b\"c;$(d)",
    "-dash",
    "per%cent",
    "new\nline",
]
UNDECODABLE = os.fsdecode(b"caf\xe9")  # Latin-1 in a file system that is read as UTF-8


@pytest.mark.parametrize("stem", [*ODD_NAMES, UNDECODABLE])
@every_format
def test_videos_of_any_name(tmp_path, name, stem):
    results = {
        PurePosixPath(folder, stem): make_result(f"in/{PurePosixPath(folder, stem)}.mp4", seed=i)
        for i, folder in enumerate(("", "sub"))
    }
    write(make_store(tmp_path, name), results, make_form(name))
    assert_store_holds(tmp_path / name.split("+")[0], results, concat_of(name))


@pytest.mark.parametrize("stem", ODD_NAMES)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY", ".h5", ".parquet"])
def test_outputs_of_any_name(tmp_path, stem, suffix):
    out = tmp_path / "new" / "folder" / (stem + suffix)
    write(create_store(str(out)))
    assert_store_holds(out)
    beside = set() if suffix.lower() != ".npy" else {f"{stem}.{x}" for x in FILES_BESIDE}
    assert set(files_below(out.parent)) == {stem + suffix} | beside


FILES_BESIDE = ("index.jsonl", "recipe.json", "videos.jsonl")


def test_a_name_without_a_suffix_or_an_existing_directory_is_a_directory(tmp_path):
    (tmp_path / "is.npy").mkdir()
    for name in ("plain", "slash.npz/", "is.npy"):
        write(create_store(f"{tmp_path}/{name}"))
        assert "a.npz" in files_below(tmp_path / name)


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        ("feats.txt", {}, "feats.txt.*x.npy, x.npz, x.h5, x.hdf5, x.parquet"),
        ("", {}, "empty"),
        ("feats.npy", {"layout": "video_features"}, "feats.npy must be a directory"),
    ],
)
def test_outputs_that_do_not_exist_are_usage_errors(out, options, named):
    with pytest.raises(UsageError, match=named):
        create_store(out, **options)


@pytest.mark.parametrize(
    ("values", "named"), [(("float64",), "'float64'.*float32"), (("float32", True, "flat"), "'flat'.*video_features")]
)
def test_formats_that_do_not_exist_are_usage_errors(values, named):
    with pytest.raises(UsageError, match=named):
        FeatureFormat(*values)


@pytest.mark.parametrize("name", ["missing.npy", "missing.npz", "empty"])
def test_a_missing_output_cannot_be_opened(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no such file|wrote no features there"):
        open_store(str(tmp_path / name))


def test_existing_files_are_refused(tmp_path):
    (tmp_path / "there").touch()
    refuse_existing([tmp_path / "there"], overwrite=True)
    refuse_existing([tmp_path / "new"], overwrite=False)
    with pytest.raises(OutputExists, match=r"there: already exists.*--overwrite"):
        refuse_existing([tmp_path / "there", tmp_path / "new"], overwrite=False)


# ---------------------------------------------------------------------------------------------------------------------
# GrowingNpy
# ---------------------------------------------------------------------------------------------------------------------


def grow(path, parts):
    matrix = GrowingNpy(path)
    for part in parts:
        matrix.append_rows(part)
    matrix.promise(sum(map(len, parts)))
    matrix.sync()
    matrix.close()
    return load(path)


@pytest.mark.parametrize("num_rows", [1, 9, 10, 99, 100, 99_999, 100_000, 1_000_001])
def test_the_number_of_rows_grows_in_place(tmp_path, num_rows):
    rows = np.arange(num_rows, dtype=np.uint8).reshape(-1, 1)
    np.testing.assert_array_equal(grow(tmp_path / "a.npy", [rows[:1], rows[1:9], rows[9:]]), rows)
    np.testing.assert_array_equal(load(tmp_path / "a.npy", mmap_mode="r"), rows)
    assert (tmp_path / "a.npy").stat().st_size % 64 == num_rows % 64  # the header keeps the data aligned


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from([(), (1,), (6,), (2, 3), (1024, 2, 7, 7), (10, 100000, 100000, 0)]),
    st.sampled_from(["float32", "float16", "int64", ">f4"]),
)
def test_appended_rows_follow_each_other(tmp_path_factory, sizes, row_shape, dtype):
    shape = row_shape if np.prod(row_shape) < 100 else (*row_shape[:-1], 0)
    parts = [np.random.default_rng(i).integers(0, 99, (n, *shape)).astype(dtype) for i, n in enumerate(sizes)]
    stored = grow(tmp_path_factory.mktemp("npy") / "a.npy", parts)
    np.testing.assert_array_equal(stored, np.concatenate(parts))
    assert stored.dtype == dtype


def test_rows_of_any_memory_layout_are_stored_as_they_look(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [np.asfortranarray(rows), rows[::-1], rows[:, ::-1]]
    np.testing.assert_array_equal(grow(tmp_path / "a.npy", parts), np.concatenate(parts))


@pytest.mark.parametrize(("out", "package"), [("f.h5", "h5py"), ("f.parquet", "pyarrow")])
def test_a_missing_package_is_an_error_before_anything_runs(vid3d, monkeypatch, video, out, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = vid3d("extract", video, "--out", out, "--model", "s3d_mini")
    assert (result.exit_code, f"needs {package}: pip install" in result.stderr) == (2, True)
