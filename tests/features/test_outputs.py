"""One contract over every feature format: what was committed is read back by plain libraries, all else never was."""

import contextlib
import gc
import json
import os
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.durable import AtomicFile, remove_abandoned
from vid3d_cli.errors import OddFeatures, OutputError, OutputExists, RecipeDiffers, UsageError
from vid3d_cli.features.committer import Committer
from vid3d_cli.features.entries import FailedVideo, VideoFeatures, checksum
from vid3d_cli.features.format import FeatureFormat
from vid3d_cli.features.npy import GrowingNpy
from vid3d_cli.features.store import refuse_existing
from vid3d_cli.features.stores import create_store, open_store
from vid3d_cli.recipe import Recipe, StreamRecipe
from vid3d_cli.records import ClipOutput, ClipSpan, VideoFailure, VideoResult
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
FORMATS = ["feats.npy", "feats.npz", "feats.h5", "feats.parquet", "feats", "feats/video_features"]
"""The last one is the directory in the layout of this name."""

every_format = pytest.mark.parametrize("name", FORMATS)
concat_or_not = pytest.mark.parametrize("concat", [True, False], ids=["concat", "apart"])
needs = {"feats.h5": "h5py", "feats.parquet": "pyarrow"}


@pytest.fixture(autouse=True)
def _skip_what_is_not_installed(request):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name in needs:
        pytest.importorskip(needs[name])


def make_store(directory, name="feats.npy"):
    layout = "video_features" if name.endswith("video_features") else "vid3d"
    return create_store(str(directory / name.split("/")[0]), layout=layout)


def make_form(name="feats.npy", dtype="float32", concat=True):
    return FeatureFormat(dtype, concat, "video_features" if name.endswith("video_features") else "vid3d")


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
            assert sorted(stored) == sorted([*names, "video", "recipe", "num_lost_frames", *SPAN_COLUMNS])
            assert stored["num_lost_frames"] == 3
            for n in names:
                parts[n].append(stored[n])
            columns["video"] += [str(stored["video"])] * len(stored["clip"])
            for c in SPAN_COLUMNS:
                columns[c] += stored[c].tolist()
    return {n: np.concatenate(p) for n, p in parts.items()}, columns


def read_video_features(out, names):
    out = out.parent
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


READERS = dict(
    zip(FORMATS, [read_npy, read_npz, read_h5, read_parquet, read_directory, read_video_features], strict=True)
)


def read_plainly(directory, name, concat=True):
    concat = concat and not name.endswith("video_features")
    return READERS[name](directory / name, ["features"] if concat else ["rgb", "flow"])


def assert_holds(directory, name, results=RESULTS, concat=True, dtype="float32"):
    """By the format's own library, and by ours."""
    concat = concat and not name.endswith("video_features")
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
    assert_store_holds(directory / name.split("/")[0], results, concat, dtype)


def assert_store_holds(out, results=RESULTS, concat=True, dtype="float32"):
    store = open_store(str(out))
    with store:
        entries = store.entries()
        assert [entry.video for entry in entries] == [result.video for result in results.values()]
        for entry, (stem, result) in zip(entries, results.items(), strict=True):
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
    assert open_store(str(tmp_path / name.split("/")[0])).recipe() == json.loads(json.dumps(form.describe(RECIPE)))


FILES = {
    "feats.npy": ["feats.index.jsonl", "feats.npy", "feats.recipe.json", "feats.videos.jsonl"],
    "feats": ["feats/a.npz", "feats/c.npz", "feats/recipe.json", "feats/sub/deep/b.npz", "feats/videos.jsonl"],
    "feats/video_features": sorted(
        ["feats/recipe.json", "feats/videos.jsonl"]
        + [
            f"feats/{stem}_{what}"
            for stem in RESULTS
            for what in ("rgb.npy", "flow.npy", "fps.npy", "timestamps_ms.npy", "index.jsonl", "recipe.json")
        ]
    ),
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
    with open_store(str(tmp_path / name.split("/")[0])) as store:
        (entry,) = store.entries()
        found = store.read(entry).matrices
        assert list(found) == ["flow"]
        np.testing.assert_array_equal(found["flow"], matrix_of(result, "flow"))


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


def test_recipe_json_has_its_keys_in_order():
    assert list(json.loads(RECIPE.to_json())) == list(asdict(RECIPE))
    assert "\n" not in RECIPE.to_json()


# ---------------------------------------------------------------------------------------------------------------------
# Video by video
# ---------------------------------------------------------------------------------------------------------------------


@every_format
def test_a_job_goes_on_where_it_stopped_and_nobody_sees_a_difference(tmp_path, name):
    (tmp_path / "whole").mkdir()
    write(make_store(tmp_path / "whole", name), form=make_form(name))
    for num_before in range(len(RESULTS) + 1):
        directory = tmp_path / f"after-{num_before}"
        directory.mkdir()
        items = list(RESULTS.items())
        if num_before:
            write(make_store(directory, name), dict(items[:num_before]), make_form(name), ends=False)
            with make_store(directory, name) as store:
                assert [entry.stem for entry in store.entries()] == [str(stem) for stem, _ in items[:num_before]]
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
def test_what_was_not_committed_never_was(tmp_path, name):
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
def test_rows_that_are_made_anew_replace_the_older_ones(tmp_path, name):
    form = make_form(name)
    write(make_store(tmp_path, name), form=form)
    newer = {**RESULTS, PurePosixPath("a"): make_result("in/a.mp4", 5, seed=8)}
    write(make_store(tmp_path, name), {PurePosixPath("a"): newer[PurePosixPath("a")]}, form, ends=False)
    with make_store(tmp_path, name) as store:  # before the job has ended, too
        assert {e.stem: e.num_rows for e in store.entries()} == {"a": 5, "sub/deep/b": 1, "c": 3}
    write(make_store(tmp_path, name), {}, form)
    assert_store_holds(tmp_path / name.split("/")[0], newer, not name.endswith("video_features"))
    if name.startswith("feats."):
        assert_holds(tmp_path, name, newer)


@pytest.mark.parametrize("moment", ["rewriting", "moving"])
def test_a_rewrite_that_is_interrupted_loses_nothing(tmp_path, monkeypatch, moment):
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


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_that_was_cut_anywhere_is_gone_on_with(tmp_path_factory, data):
    """As after a loss of power: each file may end anywhere, but for what was committed before what it still holds."""
    directory = tmp_path_factory.mktemp("cut")
    write(make_store(directory))
    whole = contents_below(directory)
    for name in ("feats.npy", "feats.index.jsonl", "feats.videos.jsonl"):
        size = data.draw(st.integers(0, len(whole[name])), name)
        (directory / name).write_bytes(whole[name][:size])
    with make_store(directory) as store:
        store.lock()
        kept = [entry.stem for entry in store.entries()]
        assert kept == [str(stem) for stem in RESULTS][: len(kept)]
        for entry in store.entries():
            assert checksum(store.read(entry).matrices) == entry.crc32
    left = {stem: result for stem, result in RESULTS.items() if str(stem) not in kept}
    write(make_store(directory), left)
    assert contents_below(directory) == whole


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
    assert store.take_place(["a"], overwrite=True) is None
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
    store.take_place(["a"], overwrite=True)
    write(store)
    assert_holds(tmp_path, "feats.npy")


def test_a_damaged_line_with_others_behind_it_is_told_and_nothing_is_cut(tmp_path):
    write(make_store(tmp_path))
    lines = (tmp_path / "feats.videos.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "feats.videos.jsonl").write_bytes(b"".join([lines[0], b"{damaged\n", lines[2]]))
    before = contents_below(tmp_path)
    with pytest.raises(OutputError, match="damaged after line 1"), make_store(tmp_path) as store:
        store.begin(make_form().describe(RECIPE))
    assert contents_below(tmp_path) == before


@pytest.mark.parametrize("name", FORMATS[4:])
def test_of_two_workers_who_did_a_video_the_one_counts_whose_files_are_there(tmp_path, name):
    """Whatever their names: here the older one's comes first and last in their order."""
    form = make_form(name)
    layout = "video_features" if name.endswith("video_features") else "vid3d"
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
@pytest.mark.parametrize("name", FORMATS[4:])
def test_no_name_of_a_video_is_taken_for_a_journal(tmp_path, name, stem):
    form = make_form(name)
    results = {PurePosixPath(stem): make_result(f"in/{stem}.mp4")}
    layout = "video_features" if name.endswith("video_features") else "vid3d"
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
def test_rows_of_another_recipe_are_refused_with_the_difference(tmp_path, name):
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


def test_a_lost_journal_costs_no_rows(tmp_path):
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
        with pytest.raises(OddFeatures, match=r"shape \(6,\) do not go into one matrix with those before, of \(12,\)"):
            store.check(odd)


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


def failed(video, error="NotAVideo"):
    return FailedVideo.of(VideoFailure(video, error, "it is broken"), FILE)


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
    with open_store(str(tmp_path / name.split("/")[0])) as store:
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


@contextlib.contextmanager
def file_size_limit(num_bytes):
    """The operating system refuses to make any file longer, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LONG_RESULTS = {
    PurePosixPath("a"): RESULTS[PurePosixPath("a")],
    PurePosixPath("long"): make_result("in/long.mp4", 2000, seed=7),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit_bytes", [0, 100, 9000])
@every_format
def test_a_full_disk_is_one_error_and_costs_nothing_that_was_done(tmp_path, name, limit_bytes):
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
    assert_store_holds(tmp_path / name.split("/")[0], LONG_RESULTS, not name.endswith("video_features"))


@pytest.mark.parametrize("name", ["feats.npy", "feats.npz"])
def test_a_file_that_vanishes_meanwhile_is_told_of(tmp_path, name):
    """Writing to a file without a name succeeds, and is in vain."""
    form = make_form(name)
    with pytest.raises(OutputError, match="removed or replaced by someone else"), make_store(tmp_path, name) as store:
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
def test_what_is_no_output_of_ours_is_told_from_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    store = make_store(tmp_path, name)
    assert store.foreign(["a"]) == [tmp_path / name]
    if name != "feats.npy":
        with pytest.raises(OutputError, match="cannot be read"):
            store.recipe()


def test_an_npz_of_somebody_else_is_told_from_ours(tmp_path):
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
            pytest.raises(OutputError, match=r"cannot be read|not an \.npz of vid3d"),
            make_store(tmp_path, "feats.npz") as s,
        ):
            s.recipe()
            s.entries()


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


def test_a_committer_tells_of_a_full_disk_and_writes_no_more(tmp_path, monkeypatch):
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
    assert_store_holds(tmp_path / name.split("/")[0], results, not name.endswith("video_features"))


@pytest.mark.parametrize("stem", ODD_NAMES)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY", ".h5", ".parquet"])
def test_outputs_of_any_name(tmp_path, stem, suffix):
    if f"feats{suffix}" in needs:
        pytest.importorskip(needs[f"feats{suffix}"])
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
        ("feats.txt", {}, "feats.txt.*x.npy, x.npz, x.h5, x.parquet"),
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
def test_what_is_not_there_cannot_be_opened(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no such file|no features of vid3d"):
        open_store(str(tmp_path / name))


def test_existing_files_are_refused(tmp_path):
    (tmp_path / "there").touch()
    refuse_existing([tmp_path / "there"], overwrite=True)
    refuse_existing([tmp_path / "new"], overwrite=False)
    with pytest.raises(OutputExists, match=r"there: already there.*--overwrite"):
        refuse_existing([tmp_path / "there", tmp_path / "new"], overwrite=False)


# ---------------------------------------------------------------------------------------------------------------------
# AtomicFile
# ---------------------------------------------------------------------------------------------------------------------


def test_an_atomic_file_appears_when_it_is_committed(tmp_path):
    target = tmp_path / "new" / "a.bin"
    file = AtomicFile(target)
    assert file.write(b"one") == 3
    assert not target.exists()
    file.seek(1)
    file.write(b"NE")
    file.seek(0)
    assert file.read() == b"oNE"
    file.commit()
    assert target.read_bytes() == b"oNE"
    assert file.closed
    assert files_below(tmp_path) == ["new/a.bin"]


def test_an_atomic_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    file = AtomicFile(target)
    file.write(b"x" * 100)
    synced_sizes = []
    real = os.fsync

    def fsync(descriptor):
        synced_sizes.append(os.fstat(descriptor).st_size)
        assert len(synced_sizes) == 1 or target.exists()  # then the directory
        assert len(synced_sizes) > 1 or not target.exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    file.commit()
    assert synced_sizes[0] == 100


def test_an_atomic_file_replaces_an_older_one_at_once(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"older")
    with AtomicFile(target) as file:
        file.write(b"newer")
        file.flush()
        assert target.read_bytes() == b"older"
    assert target.read_bytes() == b"newer"


@pytest.mark.parametrize("error_type", [ValueError, KeyboardInterrupt])
def test_an_atomic_file_is_gone_when_its_block_raises(tmp_path, error_type):
    target = tmp_path / "a.bin"
    target.write_bytes(b"older")
    with pytest.raises(error_type), AtomicFile(target) as file:
        file.write(b"half")
        raise error_type
    assert file.closed
    assert files_below(tmp_path) == ["a.bin"]
    assert target.read_bytes() == b"older"


def test_discarding_twice_or_after_a_commit_does_no_harm(tmp_path):
    file = AtomicFile(tmp_path / "a.bin")
    file.discard()
    file.discard()
    assert files_below(tmp_path) == []
    file = AtomicFile(tmp_path / "a.bin")
    file.commit()
    file.discard()
    assert files_below(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with AtomicFile(tmp_path / "a.bin"):
            pass
        (tmp_path / "b.bin").touch()
        assert os.umask(umask) == umask  # it is left as it was
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "b.bin")]
    assert modes == [mode, mode]


def test_a_part_is_never_taken_for_an_abandoned_one(tmp_path):
    """Another worker looks for those at any time, also between the making of a file and its lock."""
    is_over = threading.Event()

    def tidy():
        while not is_over.is_set():
            remove_abandoned(tmp_path)

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        for i in range(1000):
            with AtomicFile(tmp_path / f"{i}.bin"):
                pass
    finally:
        is_over.set()
        thread.join()
    assert len(files_below(tmp_path)) == 1000
    (tmp_path / ".vid3d-old.part").touch()
    remove_abandoned(tmp_path)
    assert len(files_below(tmp_path)) == 1000


def test_two_writers_of_one_target_do_not_mix(tmp_path):
    first, second = AtomicFile(tmp_path / "a.bin"), AtomicFile(tmp_path / "a.bin")
    first.write(b"first")
    second.write(b"second")
    first.commit()
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    second.commit()
    assert (tmp_path / "a.bin").read_bytes() == b"second"


@pytest.mark.parametrize("num_bytes", [50, 100_000])
def test_every_way_to_write_to_a_full_disk_is_an_output_error(tmp_path, num_bytes):
    ways = {
        "write": lambda file: file.write(b"x" * num_bytes),
        "flush": lambda file: file.flush(),
        "seek": lambda file: file.seek(0),
        "commit": lambda file: file.commit(),
    }
    with file_size_limit(10):
        for last in ("flush", "seek", "commit"):
            file = AtomicFile(tmp_path / "a.bin")
            try:
                with pytest.raises(OutputError, match=r"a\.bin: cannot be written"):
                    for way in ("write", last):
                        ways[way](file)
            finally:
                file.discard()
            assert files_below(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# GrowingNpy
# ---------------------------------------------------------------------------------------------------------------------


def grow(path, parts):
    matrix = GrowingNpy(path)
    for part in parts:
        matrix.append(part)
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
def test_parts_are_put_one_below_the_other(tmp_path_factory, sizes, row_shape, dtype):
    shape = row_shape if np.prod(row_shape) < 100 else (*row_shape[:-1], 0)
    parts = [np.random.default_rng(i).integers(0, 99, (n, *shape)).astype(dtype) for i, n in enumerate(sizes)]
    stored = grow(tmp_path_factory.mktemp("npy") / "a.npy", parts)
    np.testing.assert_array_equal(stored, np.concatenate(parts))
    assert stored.dtype == dtype


def test_rows_of_any_memory_layout_are_stored_as_they_look(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [np.asfortranarray(rows), rows[::-1], rows[:, ::-1]]
    np.testing.assert_array_equal(grow(tmp_path / "a.npy", parts), np.concatenate(parts))
