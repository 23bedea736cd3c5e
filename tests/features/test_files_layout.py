"""The layout "files": what a preset can name, crops, and jobs of a preset."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import PurePosixPath
from unittest.mock import Mock

import numpy as np
import pytest
from test_stores import FILE, RECIPE, files_below, make_result
from videos import write_video

import vid3d_cli.features.files
from vid3d_cli.api import extract as vid3d_extract
from vid3d_cli.errors import CheckpointError, OutputError, OutputExists, RecipeDiffers, UsageError
from vid3d_cli.features.entries import VideoFeatures
from vid3d_cli.features.format import FeatureFormat
from vid3d_cli.features.inspection import describe_damage, find_problems
from vid3d_cli.features.merging import merge
from vid3d_cli.features.recipes import refuse_other_recipe
from vid3d_cli.features.stores import create_store, open_store, open_unchecked
from vid3d_cli.presets import Files, find_preset
from vid3d_cli.records import STREAMS as STREAM_NAMES

# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "stem", "path"),
    [
        ("{stem}.npy", "v_a", "v_a.npy"),
        ("v_{id}.npy", "v_a", "v_a.npy"),
        ("v_{id}.npy", "sub/a.b", "sub/v_a.b.npy"),
        ("{id}.npy", "v_", "v_.npy"),
        ("x/{stem}__{crop}.npz", "sub/{crop}", "x/sub/{crop}__3.npz"),
    ],
)
def test_names_of_files(names, stem, path):
    assert str(Files(names).path(stem, "rgb", 3)) == path


def test_names_of_streams():
    files = Files("{stream}/{stem}_{stream}.npz", streams={"flow": "Flow"})
    assert [str(files.path("d/a", stream)) for stream in ("rgb", "flow")] == ["rgb/d/a_rgb.npz", "Flow/d/a_Flow.npz"]


WRONG = [
    ({"names": "../{stem}.npy"}, "outside of the directory"),
    ({"names": "/{stem}.npy"}, "outside of the directory"),
    ({"names": "a/../../{stem}.npy"}, "outside of the directory"),
    ({"names": "a//{stem}.npy"}, "outside of the directory"),
    ({"names": "..\\{stem}.npy"}, "outside of the directory"),
    ({"names": "{stem}\0.npy"}, "control characters"),
    ({"names": "x\n/{stem}.npy"}, "control characters"),
    ({"names": ".vid3d/{stem}.npy"}, "hidden"),
    ({"names": ".{stem}.npy"}, "hidden"),
    ({"names": "{stem}{other}.npy"}, "other braces than {stem}, {id}, {stream}, {crop}"),
    ({"names": "{stem.__class__}.npy"}, "other braces"),
    ({"names": "{st{stem}em}.npy"}, "other braces"),
    ({"names": "all.npy"}, "no {stem} or {id} after the last /"),
    ({"names": "{stem}/{id}.npy"}, "{stem} or {id} before the last /"),
    ({"names": "{stem}.txt"}, "'.txt'.*choose one of .npy, .npz"),
    ({"names": "{stem}.npy", "axes": "NTD"}, "unknown axes 'NTD'"),
    ({"names": "{stem}.npy", "dtype": "float64"}, "unknown dtype 'float64'"),
    ({"names": "{stem}__{crop}.npy", "axes": "TCD"}, "{crop}, and the axes TCD"),
    ({"names": "{stem}.npy", "annotations": "nope"}, "unknown annotations 'nope'"),
    ({"names": "{stem}{crop}.npy"}, "so near the video"),
    ({"names": "{crop}{id}.npy"}, "so near the video"),
    ({"names": "{stem}1{crop}.npy"}, "so near the video"),
    (
        {"names": "{stem}{stream}.npy", "streams": {"rgb": "x", "flow": "ax"}},
        "so near the video",
    ),
    ({"names": "{stem}.npz", "key": "../x"}, "the key '../x', which is no name"),
    ({"names": "{stem}.npz", "key": "file"}, "the key 'file'"),
    ({"names": "{stem}_{stream}.npy", "streams": {"rgb": ".."}}, "the names .. and flow for"),
    ({"names": "{stem}_{stream}.npy", "streams": {"rgb": "flow"}}, "the names flow and flow for"),
    ({"names": "{stem}_{stream}.npy", "streams": {"RGB": "x"}}, "for the streams rgb and flow"),
]


@pytest.mark.parametrize(("fields", "named"), WRONG)
def test_files_that_cannot_be_are_refused(fields, named):
    with pytest.raises(UsageError, match=named) as error:
        Files(**fields)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("fields", "named"), WRONG)
def test_a_recipe_with_such_files_is_not_read(tmp_path, fields, named):
    """It may come from a stranger."""
    write(tmp_path / "feats", Files("{stem}.npy"), make_result("in/a.mp4"))
    path = tmp_path / "feats/.vid3d/recipe.json"
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps({**recipe, "files": {**recipe["files"], **fields}}))
    with pytest.raises(OutputError, match=r"recipe\.json: damaged"):
        open_store(tmp_path / "feats")


@pytest.mark.parametrize(
    "change", [{"preset": 5}, {"stride": 0}, {"stride": "8"}, {"concat": False}, {"files": {"names": 5}}]
)
def test_a_recipe_with_other_types_is_not_read(tmp_path, change):
    write(tmp_path / "feats", Files("{stem}.npy"), make_result("in/a.mp4"))
    path = tmp_path / "feats/.vid3d/recipe.json"
    recipe = json.loads(path.read_text())
    for text in (json.dumps({**recipe, **change}), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(OutputError, match=r"recipe\.json: damaged"):
            open_store(tmp_path / "feats")


@pytest.mark.parametrize("streams", [{}, {"rgb": "a", "flow": "b_a"}, {"rgb": "1", "flow": "x1"}])
@pytest.mark.parametrize(
    "names",
    [
        *("{stem}.npy", "{stem}_{crop}.npy", "{crop}_{id}.npy", "{crop}/{stem}.npy", "{stream}/{stem}__{crop}.npy"),
        *("{stem}{crop}.npy", "{stem}_{stream}.npy", "{stem}{stream}.npy", "{stem}_{stream}{crop}.npy"),
    ],
)
def test_no_two_videos_share_a_file(names, streams):
    """Whatever their names; one video has no file twice."""
    try:
        files = Files(names, streams=streams)
    except UsageError:
        return
    stems = ["".join(parts) for n in range(1, 5) for parts in itertools.product("a1_b", repeat=n)]
    streams = STREAM_NAMES if "{stream}" in names else ("",)
    crops = range(14) if files.has_file_per_crop else (0,)
    paths = [files.path(stem, stream, crop) for stem in stems for stream in streams for crop in crops]
    assert len(paths) == len({*paths})


# Stores --------------------------------------------------------------------------------------------------------------


def with_crops(result, num_crops=3):
    """The same result with the features of every crop: (crops, D)."""
    clips = tuple(
        replace(
            clip,
            features={name: np.stack([row + 8 * i for i in range(num_crops)]) for name, row in clip.features.items()},
        )
        for clip in result.clips
    )
    return replace(result, clips=clips, recipe=replace(RECIPE, keeps_crops=True))


def write(out, files, *results):
    form = FeatureFormat(files.dtype, files.concat, "files", files)
    with create_store(str(out), layout="files") as store:
        recipe = form.describe(results[0].recipe)
        store.prepare([PurePosixPath(result.video).stem for result in results], recipe)
        store.begin(recipe)
        for result in results:
            store.write(VideoFeatures.of(result, PurePosixPath(PurePosixPath(result.video).stem), FILE, form))
            store.commit()
        store.finish()


def rows_of(out):
    with open_store(out) as store:
        return {entry.stem: store.read(entry).matrices for entry in store.entries()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_file_for_each_crop(tmp_path, dtype):
    files = Files("{stream}/{stem}__{crop}.npy", dtype=dtype, streams={"rgb": "RGB", "flow": "Flow"})
    results = [with_crops(make_result(f"in/{name}.mp4", n, seed=n)) for n, name in ((2, "a"), (5, "b"))]
    write(tmp_path / "feats", files, *results)
    shown = [path for path in files_below(tmp_path / "feats") if not path.startswith(".vid3d/")]
    assert shown == sorted(f"{s}/{v}__{crop}.npy" for s in ("RGB", "Flow") for v in "ab" for crop in range(3))
    for result, name in zip(results, "ab", strict=True):
        for stream, folder in files.streams.items():
            for crop in range(3):
                array = np.load(tmp_path / f"feats/{folder}/{name}__{crop}.npy")
                assert (array.dtype.name, array.flags.c_contiguous) == (dtype, True)
                np.testing.assert_array_equal(array, [clip.features[stream][crop] for clip in result.clips])
            np.testing.assert_array_equal(rows_of(tmp_path / "feats")[name][stream], result.features(stream))
    with open_store(tmp_path / "feats") as store:
        assert list(find_problems(store)) == []


def test_names_are_parsed_once_and_not_for_every_video(tmp_path, monkeypatch):
    parsed = []
    parse = vid3d_cli.features.files.files_of
    write(tmp_path / "feats", Files("{stem}.npy"), *(make_result(f"in/{name}.mp4", 2) for name in "abc"))
    monkeypatch.setattr(vid3d_cli.features.files, "files_of", lambda recipe: parsed.append(recipe) or parse(recipe))
    assert len(rows_of(tmp_path / "feats")) == 3
    assert len(parsed) == 1


def test_crops_side_by_side_in_a_file(tmp_path):
    result = with_crops(make_result("in/a.mp4", 2))
    write(tmp_path / "feats", Files("{stem}_i3d.npy", axes="TCD"), result)
    np.testing.assert_array_equal(np.load(tmp_path / "feats/a_i3d.npy"), result.features())
    np.testing.assert_array_equal(rows_of(tmp_path / "feats")["a"]["features"], result.features())


FORMS = {
    "a__1.npy": Files("{stem}__{crop}.npy"),
    "a.npz": Files("{stem}.npz", axes="TCD"),
}


@pytest.mark.parametrize("harm", ["missing", "cut off", "changed", "another"])
@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_file_is_reported_and_its_video_extracted_again(tmp_path, name, harm):
    results = [with_crops(make_result(f"in/{stem}.mp4", 2, seed=i)) for i, stem in enumerate("ab")]
    write(tmp_path / "feats", FORMS[name], *results)
    path = tmp_path / "feats" / name
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "another":
        path.write_bytes(path.with_name(name.replace("a", "b", 1)).read_bytes())
    else:
        path.write_bytes(data[:-9] if harm == "cut off" else data[:-300] + bytes(300))
    with open_unchecked(tmp_path / "feats") as store:
        problems = [problem.what for problem in find_problems(store) if problem.is_damage]
        assert len(problems) == 1
        assert "in/a.mp4" in problems[0]
        if harm in ("missing", "cut off"):
            assert "1 listed videos are missing or damaged: in/a.mp4" in describe_damage(store)
    notes = []
    with create_store(str(tmp_path / "feats"), layout="files") as store:
        store.on_mended = notes.append
        store.prepare(["a"], store.recipe())
        assert [entry.stem for entry in store.entries()] == ["b"]
    write(tmp_path / "feats", FORMS[name], results[0])
    assert path.read_bytes()[-9:] == data[-9:]
    with open_store(tmp_path / "feats") as store:
        assert list(find_problems(store)) == []


@pytest.mark.parametrize("layouts", [("vid3d", "files"), ("files", "vid3d"), ("files", "video_features")])
def test_a_directory_has_one_layout(tmp_path, layouts):
    first, second = layouts
    (tmp_path / "feats" / (".vid3d" if first == "files" else "")).mkdir(parents=True)
    (tmp_path / "feats" / (".vid3d" if first == "files" else "") / "recipe.json").touch()
    with pytest.raises(OutputExists, match=f"feats: has features in the layout {first}: delete it, or choose another"):
        create_store(str(tmp_path / "feats"), layout=second)


def test_the_preset_of_a_directory_is_named(tmp_path):
    """Of the layout alone, nobody knew what to add."""
    result = make_result("in/a.mp4")
    result = replace(result, recipe=replace(result.recipe, preset="ms-tcn, but stride 2"))
    write(tmp_path / "feats", Files("{stem}.npy"), result)
    advice = r"made with preset ms-tcn, but stride 2: add --preset ms-tcn without --layout, or choose another directory"
    with pytest.raises(OutputExists, match=f"feats: {advice}$"):
        create_store(str(tmp_path / "feats"))
    with open_store(tmp_path / "feats") as store:
        there = store.recipe()
    with pytest.raises(RecipeDiffers, match=r"recipe:\n  preset: ms-tcn, but stride 2 there, tsp now\n  dtype: "):
        refuse_other_recipe(tmp_path / "feats", there, {**there, "preset": "tsp", "dtype": "float16"})
    refuse_other_recipe(tmp_path / "feats", there, {**there, "preset": "tsp"})


def test_files_of_others_are_neither_replaced_nor_deleted(tmp_path):
    (tmp_path / "feats").mkdir()
    np.save(tmp_path / "feats/a__2.npy", np.zeros(3))
    np.save(tmp_path / "feats/a.npy", np.zeros(3))
    before = (tmp_path / "feats/a__2.npy").read_bytes()
    with pytest.raises(OutputExists, match=r"a__2\.npy: already exists"):
        write(tmp_path / "feats", FORMS["a__1.npy"], with_crops(make_result("in/a.mp4")))
    assert files_below(tmp_path) == ["feats/a.npy", "feats/a__2.npy"]
    assert (tmp_path / "feats/a__2.npy").read_bytes() == before
    (tmp_path / "feats/a__2.npy").unlink()
    write(tmp_path / "feats", FORMS["a__1.npy"], with_crops(make_result("in/a.mp4")))
    recipe = tmp_path / "feats/.vid3d/recipe.json"
    for harm in (lambda: None, lambda: recipe.write_text("{")):
        harm()
        with create_store(str(tmp_path / "feats"), layout="files") as store:
            store.prepare(["a"], overwrite=True)
    assert files_below(tmp_path) == ["feats/a.npy"]


# Jobs ----------------------------------------------------------------------------------------------------------------

PRESET = """
summary = "a test"
values = "layout"
sources = ["https://example.org"]

[options]
model = "i3d"
window = 16
stride = 8
{options}

[files]
{files}

[centre]
first = 8
step = 8
"""


@pytest.fixture
def job(vid3d, tmp_path, tiny_model):
    """Run `vid3d extract` with a preset of these files, on a.mp4 and sub/v_b.mp4."""
    (tmp_path / "in/sub").mkdir(parents=True)
    write_video(tmp_path / "in/a.mp4", num_frames=40)
    shutil.copy(tmp_path / "in/a.mp4", tmp_path / "in/sub/v_b.mp4")

    def run(files, *options, preset="", out="feats"):
        (tmp_path / "my.toml").write_text(PRESET.format(files=files, options=preset))
        return vid3d("extract", "in", "--preset", "my.toml", "--out", out, *options)

    return run


STREAMS = 'names = "{stream}/{stem}.npy"\naxes = "DT"\nstreams = {rgb = "RGB", flow = "Flow"}'


def test_a_job_writes_the_files_and_resumes_without_the_preset(job, vid3d, tmp_path):
    assert job(STREAMS).exit_code == 0
    shown = sorted(path.relative_to(tmp_path / "feats").as_posix() for path in tmp_path.glob("feats/[!.]*/**/*.npy"))
    assert shown == ["Flow/a.npy", "Flow/sub/v_b.npy", "RGB/a.npy", "RGB/sub/v_b.npy"]
    assert np.load(tmp_path / "feats/RGB/a.npy").shape == (9, 4)
    assert "2 of 2 videos done before" in job(STREAMS).stderr
    assert "2 of 2 videos done before" in job(STREAMS, "--claim").stderr
    (tmp_path / "my.toml").unlink()
    rows = rows_of(tmp_path / "feats")
    assert {name: rows["sub/v_b"][name].shape for name in rows["a"]} == {"rgb": (4, 9), "flow": (4, 6)}
    times = [json.loads(line) for line in (tmp_path / "feats/.vid3d/videos/a.jsonl").read_text().splitlines()[1:]]
    assert [line["start_seconds"] for line in times] == [0, 0.32, 0.64, 0.96]
    info = json.loads(vid3d("features", "info", "feats", "--format", "json").stdout)
    assert info["matrices"]["rgb"] == {"shape": [8, 9], "dtype": "float32"}
    for words in (["convert", "feats", "f.npy"], ["convert", "feats", "c", "--layout", "files"], ["check", "feats"]):
        assert vid3d("features", *words).exit_code == 0
    np.testing.assert_array_equal(np.load("f_rgb.npy"), np.concatenate([rows["a"]["rgb"], rows["sub/v_b"]["rgb"]]))
    assert (tmp_path / "c/RGB/sub/v_b.npy").read_bytes() == (tmp_path / "feats/RGB/sub/v_b.npy").read_bytes()


CROPS = 'names = "{stem}__{crop}.npy"'


@pytest.mark.parametrize(
    ("files", "preset", "options", "named"),
    [
        (CROPS, "", [], r"\{stem\}__\{crop\}.npy \(TD\) hold every crop: add --keep-crops"),
        ('names = "{stem}.npy"\naxes = "TCD"', "", [], r"\(TCD\) hold every crop: add --keep-crops"),
        (CROPS, "", ["--keep-crops", "--crops", ",".join(["tl"] * 15)], "at most 14 crops, not 15"),
        ('names = "{stem}.npy"', "", ["--keep-crops", "--crops", "3"], "no crops: leave out --keep-crops"),
        ('names = "{stem}.npy"', "", ["--layer", "Mixed_5c", "--pool", "none"], "--pool none gives maps"),
        ('names = "{stem}.npy"', "", ["--no-concat"], "hold both streams: add --layout vid3d"),
        ('names = "../{stem}.npy"', "", [], r"my\.toml: files '\.\./\{stem\}\.npy' cannot have a folder"),
        ('names = "{stem}.npy"\naxis = 1', "", [], r"my\.toml: not a preset: files has unknown keys: axis"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry"])
def test_files_that_do_not_fit_the_options_are_usage_errors(job, files, preset, options, named, more, tmp_path):
    result = job(files, *options, *more, preset=preset)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(named, result.stderr)
    assert not (tmp_path / "feats").exists()


@pytest.mark.parametrize("layout", ["files", "vid3d"])
def test_a_job_that_writes_nothing_leaves_no_folder(job, vid3d, tmp_path, monkeypatch, layout):
    job('names = "{stem}.npy"', "--dry-run")
    (tmp_path / "mine").mkdir()
    fails = Mock(side_effect=CheckpointError("no weights"))
    monkeypatch.setattr("vid3d_cli.run.load.build_model", fails)
    words = ["--preset", "my.toml", "--layout", layout]
    for out in ("new/feats", "mine"):
        assert vid3d("extract", "gone.mp4", *words, "--out", out).exit_code == 1
        assert vid3d("extract", "in", *words, "--out", out).exit_code == 3
    assert (list((tmp_path / "mine").iterdir()), (tmp_path / "new").exists()) == ([], False)


def test_a_preset_needs_a_directory(job, tmp_path):
    result = job('names = "{stem}.npy"', out="feats.npy")
    assert (result.exit_code, "give a directory instead of feats.npy, or --layout vid3d" in result.stderr) == (2, True)
    assert job('names = "{stem}.npy"', "--layout", "vid3d", out="feats.npy").exit_code == 0
    assert np.load(tmp_path / "feats.npy").shape == (8, 15)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--overwrite"]], ids=["run", "dry", "overwrite"])
def test_videos_that_would_share_a_file_are_refused(job, tmp_path, more):
    shutil.copy(tmp_path / "in/a.mp4", tmp_path / "in/sub/b.mp4")
    result = job('names = "{id}.npy"', *more)
    assert result.exit_code == 2
    assert "in/sub/b.mp4 and in/sub/v_b.mp4 would both be written to sub/b.npy" in result.stderr
    assert not (tmp_path / "feats").exists()


def test_names_do_not_depend_on_what_else_is_listed(job, vid3d, tmp_path):
    """A loader looks for <id>.npy in one folder."""
    job('names = "{stem}.npy"', "--dry-run")
    (tmp_path / "list.txt").write_text("in/sub/v_b.mp4\nin/a.mp4\n")
    for i, videos in enumerate((["in/a.mp4", "in/sub/v_b.mp4"], ["in/sub/v_b.mp4", "in/a.mp4"], ["@list.txt"])):
        assert vid3d("extract", *videos, "--preset", "my.toml", "--out", f"{i}/").exit_code == 0
        assert sorted(path.name for path in (tmp_path / str(i)).glob("[!.]*")) == ["a.npy", "v_b.npy"]
    assert (
        vid3d("extract", "in/sub", "in/a.mp4", "--preset", "my.toml", "--layout", "vid3d", "--out", "o").exit_code == 0
    )
    assert (tmp_path / "o/sub/v_b.npz").exists()
    vid3d_extract("in", out="p", preset="my.toml")
    vid3d_extract(["in/sub/v_b.mp4", "in/a.mp4"], out="q", preset="my.toml")
    assert [(tmp_path / path).exists() for path in ("p/sub/v_b.npy", "q/v_b.npy")] == [True, True]


@pytest.mark.parametrize("other", ["in/sub/a.mp4", "in/a.avi"])
def test_named_videos_that_would_share_a_file_are_refused(job, vid3d, tmp_path, other):
    job('names = "{stem}.npy"', "--dry-run")
    shutil.copy(tmp_path / "in/a.mp4", tmp_path / other)
    result = vid3d("extract", "in/a.mp4", other, "--preset", "my.toml", "--out", "feats")
    assert result.exit_code == 2
    assert f"in/a.mp4 and {other} would both be written as a: rename one" in result.stderr
    assert not (tmp_path / "feats").exists()


def test_a_video_does_not_replace_the_file_of_an_earlier_one(job, vid3d, tmp_path):
    assert job('names = "{id}.npy"').exit_code == 0
    before = rows_of(tmp_path / "feats")
    (tmp_path / "in/sub/v_b.mp4").rename(tmp_path / "in/sub/b.mp4")
    result = job('names = "{id}.npy"')
    assert (result.exit_code, "would both be written to sub/b.npy" in result.stderr) == (2, True)
    assert rows_of(tmp_path / "feats").keys() == before.keys()


def test_merging_shards(job, vid3d, tmp_path):
    """Two directories of the same preset become one."""
    assert job(STREAMS).exit_code == 0
    (tmp_path / "in/a.mp4").unlink()
    assert job(STREAMS, out="other").exit_code == 0
    assert vid3d("features", "merge", "feats", "other", "--out", "all", "--layout", "files").exit_code == 0
    assert files_below(tmp_path / "all") == files_below(tmp_path / "feats")
    assert vid3d("features", "convert", "feats", "f.npz").exit_code == 0
    result = vid3d("features", "convert", "f.npz", "again", "--layout", "files")
    assert (result.exit_code, "has no files of a preset" in result.stderr) == (2, True)


@pytest.mark.parametrize("option", ["--concat", "--no-concat"])
def test_a_preset_says_whether_streams_are_side_by_side(job, vid3d, tmp_path, option):
    assert job(STREAMS).exit_code == 0
    result = vid3d("features", "convert", "feats", "g/", "--layout", "files", option)
    assert (result.exit_code, "leave out --[no-]concat" in result.stderr) == (2, True)
    assert not (tmp_path / "g").exists()


def test_a_merge_does_not_replace_the_file_of_another_video(tmp_path):
    files = Files("{id}.npy")
    for i, stem in enumerate(("a", "v_a")):
        write(tmp_path / stem, files, make_result(f"in/{stem}.mp4", seed=i))
    with pytest.raises(UsageError, match=r"in/a\.mp4 and in/v_a\.mp4 would both be written to a\.npy"):
        merge(
            [open_store(tmp_path / "a"), open_store(tmp_path / "v_a")], create_store(f"{tmp_path}/all", layout="files")
        )
    assert not [path for path in files_below(tmp_path) if path.startswith("all")]


def test_the_presets_that_come_with_vid3d_have_files():
    assert find_preset("actionformer-thumos").files.suffix in (".npy", ".npz")
