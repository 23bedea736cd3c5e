"""`vid3d presets`: the table, and everything about one; a user's own file."""

import json
from pathlib import Path

import pytest

from vid3d_cli.cli import formats, models
from vid3d_cli.plan import Plan
from vid3d_cli.presets import VALUES, find_preset, preset_names, with_preset

OWN = """
summary = "two lines of a stranger\\u001b[31m"
values = "recipe"
unknown = "The eps."
sources = ["https://example.org/a.py", "https://example.org/b.py"]

[options]
model = "s3d_mini.camera_motion"
fps = 15
window = 16
stride = 4
square_pixels = true
crops = 10
keep_crops = true
{options}

[files]
{files}

[centre]
first = 7.5
step = 4
"""


@pytest.fixture
def own(tmp_path):
    def write(files='names = "v_{id}__{crop}.npz"\nkey = "feat"', options=""):
        text = OWN.replace("{files}", files).replace("{options}", options)
        (tmp_path / "own.toml").write_text(text)
        return "own.toml"

    return write


@pytest.fixture
def on_terminal(vid3d, monkeypatch):
    for module in (formats, models):
        monkeypatch.setattr(module, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    return lambda *words: vid3d("presets", *words).stdout


def test_every_preset_has_a_row(vid3d):
    rows = [json.loads(line) for line in vid3d("presets").stdout.splitlines()]
    assert [row["preset"] for row in rows] == preset_names()
    assert vid3d("presets", "list").stdout == vid3d("presets").stdout
    (row,) = map(json.loads, vid3d("presets", "opentad", "--format", "jsonl").stdout.splitlines()[:1])
    assert row["preset"] == "actionformer-thumos"
    for row in rows:
        plan = Plan.make(with_preset({"preset": row["preset"]}))
        assert (row["model"], row["streams"], row["window"], row["stride"]) == (
            plan.model, list(plan.networks), plan.window, plan.stride,
        )  # fmt: skip
        assert row["values"] in VALUES


def test_a_table_on_a_terminal(on_terminal):
    text = on_terminal()
    assert all(name in text for name in preset_names())
    assert "16/4 @ native" in text and "values: what is known of the numbers" in text


@pytest.mark.parametrize("name", preset_names())
def test_the_details_of_a_preset(vid3d, on_terminal, name):
    preset, row = find_preset(name), json.loads(vid3d("presets", "show", name, "--format", "json").stdout)
    assert row["options"] == json.loads(json.dumps(preset.options))
    assert row["sources"] == list(preset.sources)
    text = " ".join(on_terminal("show", name).split())
    for part in (preset.unknown, str(preset.centre), *preset.sources, VALUES[preset.values], row["shape"][-1]):
        assert str(part) in text
    assert f"vid3d extract --preset {name} --out feats/ videos/" in text


def test_the_details_of_an_own_file(vid3d, on_terminal, own):
    row = json.loads(vid3d("presets", "show", own(), "--format", "json").stdout)
    assert row["example"] == [f"v_video__{crop}.npz" for crop in range(10)]
    assert (row["shape"], row["key"], row["fps"]) == (["T", 512], "feat", "15")
    text = " ".join(on_terminal("show", own()).split())
    assert "\x1b[31m" not in text
    assert "(T, 512) float32, the array 'feat'" in text
    assert "(7.5 + 4·i) / fps" in text
    assert "vid3d extract --preset own.toml --out feats/ videos/" in text


@pytest.mark.parametrize(
    ("files", "shape", "example"),
    [
        ('names = "{stem}.npy"\naxes = "TCD"', ["T", 10, 512], ["video.npy"]),
        ('names = "{stream}/{id}_{crop}.npy"\naxes = "DT"', [256, "T"],
         [f"{stream}/video_{crop}.npy" for stream in ("rgb", "flow") for crop in range(10)]),
    ],
)  # fmt: skip
def test_shapes_and_names_of_files(vid3d, own, files, shape, example):
    row = json.loads(vid3d("presets", "show", own(files), "--format", "json").stdout)
    assert (row["shape"], row["example"]) == (shape, example)


def test_only_a_run_shows_the_width_of_a_layer(vid3d, own):
    row = json.loads(vid3d("presets", "show", own(options='layer = "Conv_2c"'), "--format", "json").stdout)
    assert row["shape"] == ["T", "D"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ms-tnc"], "no preset has 'ms-tnc' in its name"),
        (["show", "actionformer-thumo"], "did you mean 'actionformer-thumos'"),
        (["show", "gone.toml"], "gone.toml: no such file"),
        (["sho", "x"], "did you mean 'show'"),
    ],
)
def test_what_is_no_preset(vid3d, words, named):
    result = vid3d("presets", *words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert named in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("first = 7.5", "first = nan", "its numbers must be finite"),
        ("step = 4", "step = 1e999", "its numbers must be finite"),
        ("first = 7.5", f"first = {10**400}", "centre.first must be of type float"),
        ('"recipe"', '"verified"', "unknown values 'verified'"),
    ],
)
def test_values_that_no_preset_of_a_user_has(vid3d, own, old, new, named):
    path = Path(own())
    path.write_text(path.read_text().replace(old, new))
    result = vid3d("presets", "show", str(path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert named in result.stderr


@pytest.mark.parametrize(
    ("preset", "change", "named", "fix"),
    [
        ("rtfm", "--crops 1 --layout vid3d", "--keep-crops needs several crops", "--no-keep-crops"),
        ("ms-tcn", "--tail drop", "--centred repeats the first and the last frame", "--no-centred"),
        ("tsp", "--no-concat", "tsp: the files 'v_{id}.npy' hold both streams", "--layout vid3d"),
        ("bmt", "--concat", "bmt: the files '{stem}_{stream}.npy' hold one stream each", "--layout vid3d"),
    ],
)
def test_a_change_that_does_not_fit_names_what_else_to_change(vid3d, video, preset, change, named, fix):
    words = ["extract", str(video), "--preset", preset, "--out", "feats/", "--dry-run", *change.split()]
    refused = vid3d(*words)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert named in refused.stderr and fix in refused.stderr
    assert vid3d(*words, *fix.split()).exit_code == 0


@pytest.mark.parametrize(
    ("files", "options", "named"),
    [
        ('names = "{stem}{what}.npy"', "", "own.toml: files '{stem}{what}.npy' cannot have other braces"),
        ('names = "{stem}.npy"', "windw = 3", "own.toml: a preset has no option 'windw': did you mean 'window'"),
        ('names = "{stem}.npy"', "allow_playlists = true", "a preset has no option 'allow_playlists'"),
        ('names = "{stem}.npy"', 'weights = {rgb = "/etc/passwd"}', "a preset has no option 'weights'"),
        ('names = "{stem}.npy"', 'flow_files = "in"', "a preset has no option 'flow_files'"),
        ('names = "{stem}.npy"', 'labels = "in.txt"', "a preset has no option 'labels'"),
        ('names = "{stem}.npy"\nannotations = "nope"', "", "unknown annotations 'nope'"),
        ('names = "{stem}.npy"', 'tail = "Pad"', "own.toml: unknown tail 'Pad'"),
        ('names = "{stem}.npy"\n[more]\nx = ' + 10**5 * "[", "", "own.toml: not a preset: its brackets are nested too"),
        (f'names = "{{stem}}.npy" # {2**20 * "x"}', "", "own.toml: not a preset: it is larger than 1 MB"),
        ('names = "{stem}.npy"\n[more]', "", "own.toml: not a preset: it has unknown keys: more"),
    ],
)
def test_files_that_are_no_presets(vid3d, own, files, options, named):
    result = vid3d("presets", "show", own(files, options))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert named in result.stderr
