"""One contract over every feature format: what was written is read back with plain NumPy, whole or not at all."""

import contextlib
import errno
import gc
import io
import json
import os
import stat
from dataclasses import asdict
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.errors import OutputError, OutputExists, UsageError
from vid3d_cli.outputs import npy
from vid3d_cli.outputs.atomic import AtomicFile
from vid3d_cli.outputs.features import FeatureFormat, open_features
from vid3d_cli.outputs.npy import GrowingNpy
from vid3d_cli.records import ClipOutput, ClipSpan, Recipe, StreamRecipe, VideoResult

D, K = 6, 4
LABELS = ("a", "b", "c", "d")
SPAN_COLUMNS = ("clip", "start_seconds", "end_seconds", "start_frame", "num_valid_frames")

RECIPE = Recipe(
    model="i3d.kinetics400",
    streams={"rgb": StreamRecipe("i3d.kinetics400:rgb", "ab" * 32, "RGB to [-1, 1]")},
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


def open_output(
    out, *, dtype="float32", concat=True, layout="vid3d", stems=RESULTS, streams=("rgb", "flow"), **options
):
    form = FeatureFormat(dtype, concat)
    options = {"overwrite": False, **options}
    return open_features(str(out), form, layout=layout, stems=list(stems), streams=streams, **options)


def load(path, **options):
    return np.load(path, allow_pickle=False, **options)


def files_below(directory, hidden=True):
    """Every file, as a path relative to the directory; "hidden" ones are those that wait for their commit."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir()]
    return sorted(str(path) for path in paths if hidden or not path.name.startswith("."))


def matrix_of(result, stream):
    """(N, D), row by row from the record."""
    return np.array([clip.features[stream] for clip in result.clips])


def span_of(clip):
    span = asdict(clip.span)
    return {"clip": span.pop("index"), **span}


# Each reader gives a list of (video name, {matrix name: rows}, list of spans), and the recipe, as the files say them.


def read_npy(out, concat):
    index = [json.loads(line) for line in out.with_suffix(".index.jsonl").read_text("utf-8").splitlines()]
    assert [line["row"] for line in index] == list(range(len(index)))
    assert all(list(line) == ["row", "video", *SPAN_COLUMNS] for line in index)
    paths = {"features": out} if concat else {s: out.with_name(f"{out.stem}_{s}.npy") for s in ("rgb", "flow")}
    matrices = {name: load(path, mmap_mode="r") for name, path in paths.items()}
    recipe = json.loads(out.with_suffix(".recipe.json").read_text("utf-8"))
    return split_rows(matrices, index), recipe


def read_npz(out, concat):
    with load(out) as stored:
        names = ["features"] if concat else ["rgb", "flow"]
        assert sorted(stored) == sorted([*names, "video", "recipe", *SPAN_COLUMNS])
        index = [
            {"video": str(stored["video"][row]), **{name: stored[name][row].item() for name in SPAN_COLUMNS}}
            for row in range(len(stored["video"]))
        ]
        return split_rows({name: stored[name] for name in names}, index), json.loads(str(stored["recipe"]))


def split_rows(matrices, index):
    assert {len(matrix) for matrix in matrices.values()} == {len(index)}
    videos = list(dict.fromkeys(line["video"] for line in index))
    found = []
    for video in videos:
        rows = [row for row, line in enumerate(index) if line["video"] == video]
        spans = [{name: index[row][name] for name in SPAN_COLUMNS} for row in rows]
        found.append((video, {name: matrix[rows] for name, matrix in matrices.items()}, spans))
    return found


def read_directory(out, concat):
    found, recipes = [], []
    for stem in RESULTS:
        with load(out / f"{stem}.npz") as stored:
            names = ["features"] if concat else ["rgb", "flow"]
            assert sorted(stored) == sorted([*names, "video", "recipe", "num_decode_failures", *SPAN_COLUMNS])
            assert stored["num_decode_failures"] == 3
            spans = [{name: stored[name][row].item() for name in SPAN_COLUMNS} for row in range(len(stored[names[0]]))]
            found.append((str(stored["video"]), {name: stored[name] for name in names}, spans))
            recipes.append(json.loads(str(stored["recipe"])))
    assert recipes == [recipes[0]] * len(recipes)
    return found, recipes[0]


READERS = {"feats.npy": read_npy, "feats.npz": read_npz, "feats": read_directory}
ONE_FILE_FORMATS = [("feats.npy", True), ("feats.npy", False), ("feats.npz", True), ("feats.npz", False)]
FORMATS = [*ONE_FILE_FORMATS, ("feats", True), ("feats", False)]

one_file_formats = pytest.mark.parametrize(("name", "concat"), ONE_FILE_FORMATS)


def files_of(name, concat):
    """Which files a job of all RESULTS leaves."""
    if name == "feats.npy":
        matrices = ["feats.npy"] if concat else ["feats_flow.npy", "feats_rgb.npy"]
        return sorted([*matrices, "feats.index.jsonl", "feats.recipe.json"])
    return ["feats.npz"] if name == "feats.npz" else sorted(f"feats/{stem}.npz" for stem in RESULTS)


def write_all(output, results=RESULTS):
    for stem, result in results.items():
        output.write(result, stem)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_what_was_written_is_read_back(tmp_path, name, concat, dtype):
    output = open_output(tmp_path / name, concat=concat, dtype=dtype)
    write_all(output)
    output.commit()

    assert files_below(tmp_path) == files_of(name, concat)
    found, recipe = READERS[name](tmp_path / name, concat)
    assert recipe == asdict(RECIPE)
    assert [video for video, _, _ in found] == [result.video for result in RESULTS.values()]
    for (_, matrices, spans), result in zip(found, RESULTS.values(), strict=True):
        rgb, flow = matrix_of(result, "rgb"), matrix_of(result, "flow")
        expected = {"features": np.hstack([rgb, flow])} if concat else {"rgb": rgb, "flow": flow}
        assert {matrix.dtype.name for matrix in matrices.values()} == {dtype}
        for matrix_name, matrix in expected.items():
            np.testing.assert_array_equal(matrices[matrix_name], matrix)
        assert spans == [span_of(clip) for clip in result.clips]  # seconds to the last digit


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_video_features_layout_is_that_of_video_features(tmp_path, dtype):
    output = open_output(tmp_path / "feats", layout="video_features", dtype=dtype)
    write_all(output)
    output.commit()

    whats = ("rgb", "flow", "fps", "timestamps_ms")
    expected = sorted(
        [f"feats/{stem}_{what}.npy" for stem in RESULTS for what in whats]
        + [f"feats/{stem}_recipe.json" for stem in RESULTS]
    )
    assert files_below(tmp_path) == expected
    for stem in RESULTS:
        assert json.loads((tmp_path / "feats" / f"{stem}_recipe.json").read_text("utf-8")) == asdict(RECIPE)
    for stem, result in RESULTS.items():
        stored = {what: load(tmp_path / "feats" / f"{stem}_{what}.npy") for what in whats}
        for stream in ("rgb", "flow"):
            assert stored[stream].dtype == dtype
            np.testing.assert_array_equal(stored[stream], matrix_of(result, stream))
        assert stored["fps"].shape == ()
        assert stored["fps"] == 30000 / 1001
        ends = [(16 * i + 64 - i) * 1001 / 30000 * 1000 for i in range(len(result.clips))]
        np.testing.assert_allclose(stored["timestamps_ms"], ends, rtol=1e-12)


@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_one_stream_is_written_alone(tmp_path, name, concat):
    result = make_result("a.mp4", streams=("flow",))
    stem = PurePosixPath("a")
    output = open_output(tmp_path / name, concat=concat, streams=("flow",), stems=[stem])
    output.write(result, stem)
    output.commit()
    if name == "feats.npy":
        matrix = load(tmp_path / ("feats.npy" if concat else "feats_flow.npy"))
    else:
        with load(tmp_path / ("feats.npz" if name == "feats.npz" else "feats/a.npz")) as stored:
            assert {"rgb", "flow", "features"} & set(stored) == {"features" if concat else "flow"}
            matrix = stored["features" if concat else "flow"]
    np.testing.assert_array_equal(matrix, matrix_of(result, "flow"))


def test_result_features_are_concatenated_rgb_first_whatever_the_order_of_the_record():
    result = make_result("a.mp4", streams=("flow", "rgb"))
    np.testing.assert_array_equal(result.features(), np.hstack([matrix_of(result, "rgb"), matrix_of(result, "flow")]))
    np.testing.assert_array_equal(result.features("flow"), matrix_of(result, "flow"))


def test_recipe_json_has_its_keys_in_order():
    assert list(json.loads(RECIPE.to_json())) == list(asdict(RECIPE))
    assert "\n" not in RECIPE.to_json()


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all
# ---------------------------------------------------------------------------------------------------------------------


@one_file_formats
def test_nothing_appears_before_the_commit(tmp_path, name, concat):
    output = open_output(tmp_path / name, concat=concat)
    assert files_below(tmp_path, hidden=False) == []
    write_all(output)
    assert files_below(tmp_path, hidden=False) == []
    output.commit()
    assert files_below(tmp_path) == files_of(name, concat)


@pytest.mark.parametrize("num_videos", [0, 2])
@one_file_formats
def test_discard_leaves_an_empty_directory(tmp_path, name, concat, num_videos):
    output = open_output(tmp_path / name, concat=concat)
    write_all(output, dict(list(RESULTS.items())[:num_videos]))
    output.discard()
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("layout", ["vid3d", "video_features"])
@pytest.mark.parametrize("end", ["commit", "discard"])
def test_in_a_directory_the_videos_that_are_done_stay(tmp_path, layout, end):
    output = open_output(tmp_path / "feats", layout=layout)
    output.write(RESULTS[PurePosixPath("a")], PurePosixPath("a"))
    done = files_below(tmp_path)
    assert done == (
        ["feats/a.npz"]
        if layout == "vid3d"
        else [
            "feats/a_flow.npy",
            "feats/a_fps.npy",
            "feats/a_recipe.json",
            "feats/a_rgb.npy",
            "feats/a_timestamps_ms.npy",
        ]
    )
    getattr(output, end)()
    assert files_below(tmp_path) == done


@pytest.mark.parametrize("layout", ["vid3d", "video_features"])
def test_a_directory_of_no_video_holds_no_file(tmp_path, layout):
    open_output(tmp_path / "feats", layout=layout).commit()
    assert files_below(tmp_path) == []


@one_file_formats
def test_no_rows_make_no_file(tmp_path, name, concat):
    open_output(tmp_path / name, concat=concat).commit()
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_an_existing_output_is_refused_and_left_alone(tmp_path, name, concat):
    for existing in files_of(name, concat):
        (tmp_path / existing).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / existing).write_text("older")
        with pytest.raises(OutputExists, match=r"already there.*--overwrite") as error:
            open_output(tmp_path / name, concat=concat)
        assert str(tmp_path / existing) in str(error.value)
        assert files_below(tmp_path) == [existing]
        assert (tmp_path / existing).read_text() == "older"
        (tmp_path / existing).unlink()


@pytest.mark.parametrize("what", ["rgb", "flow", "fps", "timestamps_ms"])
def test_any_existing_file_of_the_video_features_layout_is_refused(tmp_path, what):
    existing = tmp_path / "feats" / f"c_{what}.npy"
    existing.parent.mkdir()
    existing.write_text("older")
    with pytest.raises(OutputExists, match=f"c_{what}.npy"):
        open_output(tmp_path / "feats", layout="video_features")


@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_overwrite_replaces_all_files(tmp_path, name, concat):
    older = {stem: make_result("older.mp4", 7, seed=9) for stem in RESULTS}
    for results in (older, RESULTS):
        output = open_output(tmp_path / name, concat=concat, overwrite=True)
        write_all(output, results)
        output.commit()
    found, _ = READERS[name](tmp_path / name, concat)
    assert [video for video, _, _ in found] == [result.video for result in RESULTS.values()]
    assert files_below(tmp_path) == files_of(name, concat)


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


@pytest.fixture
def fail_fsync(monkeypatch):
    """Call with n: the n-th fsync from now on, and every later one, finds the disk full."""

    def start(nth):
        calls = iter(range(1, 1000))
        real = os.fsync

        def fsync(descriptor):
            if next(calls) >= nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return start


def write_to_the_end(out, results=RESULTS, **options):
    """As `vid3d extract` does: what fails while writing is discarded, what fails in commit is over."""
    output = open_output(out, **options)
    try:
        write_all(output, results)
    except OutputError:
        output.discard()
        raise
    output.commit()


LONG_RESULTS = {PurePosixPath("a"): make_result("in/a.mp4", 2000), PurePosixPath("b"): make_result("in/b.mp4", 2000)}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("results", "limit_bytes"),
    [(RESULTS, 0), (RESULTS, 100), (LONG_RESULTS, 0), (LONG_RESULTS, 9000)],
    ids=["short-0", "short-100", "long-0", "long-9000"],
)
@pytest.mark.parametrize(
    ("name", "concat", "layout"), [*((*form, "vid3d") for form in FORMATS), ("feats", False, "video_features")]
)
def test_a_full_disk_is_one_error_and_no_file(tmp_path, name, concat, layout, limit_bytes, results):
    options = {"concat": concat, "layout": layout, "stems": results}
    with file_size_limit(limit_bytes), pytest.raises(OutputError, match="cannot be written") as error:
        write_to_the_end(tmp_path / name, results, **options)
    assert str(tmp_path / "feats") in str(error.value)
    assert "\n" not in str(error.value)
    whole = {"feats/a_recipe.json", "feats/a_fps.npy"} if layout == "video_features" else set()
    assert set(files_below(tmp_path)) <= whole
    del error
    gc.collect()  # a file that is dropped with unwritten data would complain here


ONE_RESULT = {PurePosixPath("a"): make_result("in/a.mp4", 3, seed=9)}
NUM_FILES = {("feats.npy", True): 3, ("feats.npy", False): 4}  # of one video; otherwise 1

nth_file_of_every_format = pytest.mark.parametrize(
    ("name", "concat", "nth"), [(*form, 1 + i) for form in FORMATS for i in range(NUM_FILES.get(form, 1))]
)


@nth_file_of_every_format
def test_a_disk_that_cannot_sync_leaves_no_file(tmp_path, fail_fsync, name, concat, nth):
    fail_fsync(nth)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        write_to_the_end(tmp_path / name, ONE_RESULT, concat=concat, stems=ONE_RESULT)
    assert files_below(tmp_path) == []


@nth_file_of_every_format
def test_a_failed_overwrite_leaves_the_older_files_as_they_were(tmp_path, fail_fsync, name, concat, nth):
    """Above all no new matrix beside the old index."""
    newer = {PurePosixPath("a"): make_result("newer.mp4", 2)}
    write_to_the_end(tmp_path / name, ONE_RESULT, concat=concat, stems=ONE_RESULT)
    before = {path: (tmp_path / path).read_bytes() for path in files_below(tmp_path)}
    assert len(before) == NUM_FILES.get((name, concat), 1)
    fail_fsync(nth)
    with pytest.raises(OutputError, match="cannot be written"):
        write_to_the_end(tmp_path / name, newer, concat=concat, stems=newer, overwrite=True)
    assert {path: (tmp_path / path).read_bytes() for path in files_below(tmp_path)} == before


@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_a_directory_that_cannot_be_made_is_an_output_error(tmp_path, name, concat):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_to_the_end(tmp_path / "file" / name, concat=concat)
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "concat", "in_the_way"),
    [
        ("feats.npy", True, "feats.index.jsonl"),
        ("feats.npy", True, "feats.recipe.json"),
        ("feats.npy", False, "feats_flow.npy"),
        ("feats", True, "feats/a.npz"),
    ],
)
def test_a_directory_in_the_place_of_a_file_is_an_output_error(tmp_path, name, concat, in_the_way):
    (tmp_path / in_the_way / "kept").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written") as error:
        write_to_the_end(tmp_path / name, ONE_RESULT, concat=concat, stems=ONE_RESULT, overwrite=True)
    assert str(tmp_path / in_the_way) in str(error.value)
    assert (tmp_path / in_the_way / "kept").is_dir()
    written = files_below(tmp_path)
    assert not any(path.endswith(".part") for path in written)
    assert "feats.index.jsonl" not in written


def test_an_output_whose_second_file_cannot_be_made_leaves_nothing(tmp_path):
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 5) + ".npy"  # the index has a longer name than the matrix
    with pytest.raises(OutputError, match="cannot be written"):
        open_output(tmp_path / name)
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
@pytest.mark.parametrize(("name", "concat"), FORMATS)
def test_videos_of_any_name(tmp_path, name, concat, stem):
    stems = [PurePosixPath(stem), PurePosixPath("sub", stem)]
    results = {s: make_result(f"in/{s}.mp4", seed=i) for i, s in enumerate(stems)}
    write_to_the_end(tmp_path / name, results, concat=concat, stems=stems)
    if name == "feats":
        for i, s in enumerate(stems):
            with load(tmp_path / "feats" / s.parent / f"{stem}.npz") as stored:
                assert str(stored["video"]) == f"in/{s}.mp4"
                np.testing.assert_array_equal(
                    stored["features"][:, :D] if concat else stored["rgb"], matrix_of(results[stems[i]], "rgb")
                )
    else:
        found, _ = READERS[name](tmp_path / name, concat)
        assert [video for video, _, _ in found] == [f"in/{s}.mp4" for s in stems]


@pytest.mark.parametrize("stem", [*ODD_NAMES, UNDECODABLE])
def test_videos_of_any_name_in_the_video_features_layout(tmp_path, stem):
    stems = [PurePosixPath(stem), PurePosixPath("sub", stem)]
    results = {s: make_result(f"in/{s}.mp4", seed=i) for i, s in enumerate(stems)}
    write_to_the_end(tmp_path / "feats", results, layout="video_features", stems=stems)
    for s, result in results.items():
        np.testing.assert_array_equal(load(tmp_path / "feats" / f"{s}_flow.npy"), matrix_of(result, "flow"))


@pytest.mark.parametrize("stem", ODD_NAMES)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".NPY"])
def test_outputs_of_any_name(tmp_path, stem, suffix):
    out = tmp_path / "new" / "folder" / (stem + suffix)
    write_to_the_end(out)
    with contextlib.closing(io.BytesIO(out.read_bytes())) as file:
        stored = load(file)
        features = stored if suffix != ".npz" else stored["features"]
    assert features.shape == (6, 2 * D)
    beside = {stem + suffix} | (set() if suffix == ".npz" else {f"{stem}.index.jsonl", f"{stem}.recipe.json"})
    assert set(files_below(out.parent)) == beside


def test_a_name_without_a_suffix_or_an_existing_directory_is_a_directory(tmp_path):
    (tmp_path / "is.npy").mkdir()
    for name in ("plain", "slash.npz/", "is.npy"):
        write_to_the_end(f"{tmp_path}/{name}")
        assert files_below(tmp_path / name) == sorted(f"{stem}.npz" for stem in RESULTS)


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        ("feats.txt", {}, "feats.txt.*x.npy, x.npz"),
        ("feats.npy", {"layout": "video_features"}, "feats.npy must be a directory"),
        ("feats", {"layout": "flat"}, "'flat'.*vid3d, video_features"),
        ("feats", {"dtype": "float64"}, "'float64'.*float32, float16"),
    ],
)
def test_outputs_that_do_not_exist_are_usage_errors(tmp_path, out, options, named):
    with pytest.raises(UsageError, match=named):
        open_output(tmp_path / out, **options)
    assert files_below(tmp_path) == []


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
        assert not target.exists()
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
    with AtomicFile(path) as file:
        matrix = GrowingNpy(file)
        for part in parts:
            matrix.append(part)
        matrix.finish(sum(map(len, parts)))
    return load(path)


@pytest.mark.parametrize("num_rows", [1, 9, 10, 99, 100, 99_999, 100_000, 1_000_001])
def test_the_number_of_rows_grows_in_place(tmp_path, num_rows):
    rows = np.arange(num_rows, dtype=np.uint8).reshape(-1, 1)
    np.testing.assert_array_equal(grow(tmp_path / "a.npy", [rows[:1], rows[1:9], rows[9:]]), rows)
    np.testing.assert_array_equal(load(tmp_path / "a.npy", mmap_mode="r"), rows)
    assert (tmp_path / "a.npy").stat().st_size % 64 == num_rows % 64  # the header keeps the data aligned


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 12), max_size=6),
    st.sampled_from([(), (1,), (6,), (2, 3)]),
    st.sampled_from(["float32", "float16", "int64", ">f4"]),
)
def test_parts_are_put_one_below_the_other(tmp_path_factory, sizes, row_shape, dtype):
    parts = [np.random.default_rng(i).integers(0, 99, (n, *row_shape)).astype(dtype) for i, n in enumerate(sizes)]
    stored = grow(tmp_path_factory.mktemp("npy") / "a.npy", parts)
    if parts:
        np.testing.assert_array_equal(stored, np.concatenate(parts))
        assert stored.dtype == dtype
    else:
        assert len(stored) == 0


def test_rows_of_any_memory_layout_are_stored_as_they_look(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    parts = [np.asfortranarray(rows), rows[::-1], rows[:, ::-1]]
    np.testing.assert_array_equal(grow(tmp_path / "a.npy", parts), np.concatenate(parts))


def interrupt_on_call(monkeypatch, owner, name, nth):
    """Have a function do its work and then be interrupted, the nth time."""
    calls, real = [], getattr(owner, name)

    def interrupted(*args):
        calls.append(args)
        result = real(*args)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


@one_file_formats
@pytest.mark.parametrize("where", ["rows", "index"])
def test_an_interrupted_write_leaves_whole_videos(tmp_path, monkeypatch, name, concat, where):
    """Rows of features, lines of the index and columns all end with the video before."""
    output = open_output(tmp_path / name, concat=concat)
    output.write(make_result("in/a.mp4", 3), PurePosixPath("a"))
    if where == "rows":
        interrupt_on_call(monkeypatch, GrowingNpy, "append", 1)
    elif name == "feats.npy":
        interrupt_on_call(monkeypatch, npy, "to_json", 2)
    else:
        pytest.skip("an .npz has no index")
    with pytest.raises(KeyboardInterrupt):
        output.write(make_result("in/b.mp4", 4), PurePosixPath("b"))
    monkeypatch.undo()
    output.commit()
    found, _ = READERS[name](tmp_path / name, concat)
    assert [(video, len(spans)) for video, _, spans in found] == [("in/a.mp4", 3)]
