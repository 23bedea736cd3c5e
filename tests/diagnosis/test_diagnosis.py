"""Mistakes of other people's scripts are found by name; see `foreign` for how their features are made."""

import cv2
import foreign
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vid3d_cli
from vid3d_cli import diagnosis
from vid3d_cli.cli import app
from vid3d_cli.diagnosis import diagnose
from vid3d_cli.diagnosis.published import check_array, readings
from vid3d_cli.errors import NoFrames, TooLarge, UsageError
from vid3d_cli.models.clip_model import create_model
from vid3d_cli.options import Options
from vid3d_cli.presets import with_preset
from vid3d_cli.video.reader import VideoReader

MEANS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(autouse=True)
def _decode_here(monkeypatch):
    """Decode in this process, where a decoder process takes 0.3 s to start."""

    class Here(diagnosis.Decoders):
        def open(self, video, **options):
            reader = VideoReader(video, **options)
            frames = iter(reader)
            frames_of = type("Frames", (), {"__next__": lambda _: next(frames), "close": lambda _: reader.close()})()
            frames_of.info, frames_of.time_base = reader.info, reader.time_base
            return frames_of

    monkeypatch.setattr(diagnosis, "Decoders", Here)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return str(foreign.write_scene(tmp_path_factory.mktemp("scene") / "a.mp4"))


@pytest.fixture(scope="module")
def frames(video):
    """By rate: (T, H, W, 3)."""
    return {fps: foreign.read_frames(video, fps) for fps in (None, "12.5", "25", "15")}


def net(stream="rgb"):
    return create_model("s3d_mini", stream=stream, weights="s3d_mini")


def rgb(
    frames, *, fps="12.5", size=128, kernel="pillow", side=112, eps=1e-3, bgr=False, scale=(), centred=False, **clips
):
    """Features of rgb by the model's recipe, but for the mistakes that are given."""
    if centred:
        frames = {fps: np.concatenate([frames[fps][[0] * 8], frames[fps], frames[fps][[-1] * 7]])}
    pictures = foreign.resize(frames[fps], size, kernel)
    pictures = foreign.crop(pictures, side) if side else pictures
    pictures = pictures[..., ::-1] if bgr else pictures
    return foreign.run(
        foreign.with_eps(net(), eps), foreign.scale_pixels(pictures, *scale), **{"window": 16, "stride": 16, **clips}
    )


def flow(frames, *, compute=foreign.dis, bound=8, axes=(0, 1), sign=1, before_resize=False, low=-1):
    """Features of flow by the model's recipe, but for the mistakes that are given."""
    if before_resize:
        fields = [cv2.resize(field, (156, 128)) for field in foreign.flow_of(frames["12.5"], compute)]
    else:
        fields = foreign.flow_of(foreign.resize(frames["12.5"], 128), compute)
    fields = foreign.crop(np.stack(fields), 112)
    fields = low + (1 - low) / 2 * (1 + foreign.scale_flow(sign * fields[..., list(axes)], bound))
    return foreign.run(net("flow"), fields, window=16, stride=16)


MISTAKES = {
    "stride": ({"stride": 8}, ["stride 8"]),
    "offset": ({"offset": 1}, ["offset +1 frame"]),
    "offset of 3": ({"offset": 3}, ["offset +3 frames"]),
    "frame rate": ({"fps": "25"}, ["fps 25"]),
    "native frame rate": ({"fps": None}, ["fps native"]),
    "window": ({"window": 24}, ["window 24"]),
    "no crop": ({"side": None}, ["crop none"]),
    "resize without aspect": ({"size": (171, 128)}, ["resize without aspect 171x128"]),
    "whole frame to the crop": ({"size": (112, 112)}, ["resize without aspect 112x112"]),
    "short side": ({"size": 112}, ["resize 112"]),
    "interpolation": ({"kernel": cv2.INTER_LINEAR}, ["interpolation bilinear"]),
    "Lanczos": ({"kernel": "lanczos"}, ["interpolation lanczos"]),
    "centred": ({"centred": True}, ["clips centred"]),
    "range": ({"scale": (0, 1)}, ["range [0, 1]"]),
    "range of bytes": ({"scale": (0, 255)}, ["range [0, 255]"]),
    "mean and deviation": ({"scale": (0, 1, *MEANS)}, [f"range [0, 1], minus {MEANS[0]}, divided by {MEANS[1]}"]),
    "channel order": ({"bgr": True}, ["channels BGR"]),
    "spread": ({"window": 32, "picks": np.linspace(0, 31, 16).astype(int)}, ["spread 16 of 32 frames"]),
    "eps": ({"eps": 1e-5}, ["eps 1e-05"]),
    "resize and offset": ({"size": (171, 128), "offset": 1}, ["offset +1 frame", "resize without aspect 171x128"]),
    "rate and stride": ({"fps": "25", "stride": 8}, ["fps 25", "stride 8"]),
    "range and channel order": ({"scale": (0, 1), "bgr": True}, ["channels BGR", "range [0, 1]"]),
    "rate and range": ({"fps": "15", "scale": (0, 1)}, ["fps 15", "range [0, 1]"]),
    "all of these": (
        {"fps": None, "stride": 8, "offset": 1, "size": (171, 128)},
        ["fps native", "offset +1 frame", "resize without aspect 171x128", "stride 8"],
    ),
    "crop and eps": ({"side": None, "eps": 1e-5}, ["crop none", "eps 1e-05"]),
}


QUICK = ("frame rate",)


def of(stream, **others):
    return Options(model="s3d_mini", streams=stream, **others)


def names(result):
    return sorted(map(str, result.closest))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.exhaustive) for n in MISTAKES])
def test_a_mistake_of_rgb_is_named(video, frames, name):
    mistake, found = MISTAKES[name]
    result = diagnose(of("rgb"), video, rgb(frames, **mistake))
    assert names(result) == found
    assert result.verdict == "explained"
    assert result.cosine > max(0.99999, result.yours)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "lefts"), [(3, (0, 22, 44)), (10, (0, 44))])
def test_the_mean_of_crops_is_named(video, frames, number, lefts):
    """Three of the long side; or the corners and the centre, and their mirror images."""
    pictures = foreign.resize(frames["12.5"], 128)
    corners = [pictures[:, y : y + 112, x : x + 112] for y in ((8,) if number == 3 else (0, 16)) for x in lefts]
    views = corners if number == 3 else [*corners, foreign.crop(pictures, 112)]
    views = views if number == 3 else [*views, *(view[:, :, ::-1] for view in views)]
    rows = [foreign.run(net(), foreign.scale_pixels(view), window=16, stride=16) for view in views]
    result = diagnose(of("rgb"), video, np.mean(rows, axis=0))
    assert (len(rows), names(result), result.verdict) == (number, [f"crops {number}"], "explained")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ({"compute": foreign.farneback}, ["flow farneback"]),
        ({"bound": 20}, ["flow bound 20 px"]),
        ({"low": 0}, ["flow range (0, 1)"]),
        ({"sign": -1}, ["flow axes -x, -y"]),
        ({"axes": (1, 0)}, ["flow axes y, x"]),
        ({"before_resize": True}, ["flow-size source"]),
        ({"compute": foreign.farneback, "bound": 20}, ["flow bound 20 px", "flow farneback"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else " ".join(value),
)
def test_a_mistake_of_flow_is_named(video, frames, mistake, found):
    result = diagnose(of("flow"), video, flow(frames, **mistake))
    assert (names(result), result.verdict) == (found, "explained")


@pytest.mark.exhaustive
def test_a_mistake_of_each_stream_is_named(video, frames):
    """What both streams share is found on rgb."""
    rows = np.hstack([flow(frames, bound=20), rgb(frames, bgr=True)])
    result = diagnose(of("both"), video, rows.T.astype(np.float16))
    found = ["axes (D, T)", "channels BGR", "flow bound 20 px", "streams flow, rgb"]
    assert (names(result), result.verdict) == (found, "explained")


def test_right_features_are_confirmed_without_a_search(video, frames):
    """Those of another decoder and another resize, stored in float16."""
    right = rgb(frames)
    runs = []
    result = diagnose(of("rgb"), video, right.astype(np.float16), on_progress=lambda *done: runs.append(done))
    assert (result.verdict, result.closest, result.tried) == ("same", (), 1)
    assert (len(runs), result.rows) == (4, 3)
    assert result.yours == result.cosine > 0.99999
    assert result.describe().startswith("same: cosine 1.00000")
    assert "3 rows fit stride 16, window 16 at 12.5 fps without the tail: --tail drop" in result.describe()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def right(frames):
    """Of rgb and flow, concatenated."""
    return np.hstack([rgb(frames), flow(frames)])


NOISE = np.random.default_rng(0).uniform(0, 2, 512)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows.T, ["axes (D, T)"]),
        (unit, ["rows of length 1"]),
        (lambda rows: np.hstack([unit(rows[:, :256]), unit(rows[:, 256:])]), ["rows of length 1 in each stream"]),
        (lambda rows: rows / 10, ["rows times 0.1"]),
        (lambda rows: np.roll(rows, 256, axis=1), ["streams flow, rgb"]),
        (lambda rows: rows[:, :256], ["streams rgb"]),
        (lambda rows: rows[:, 256:], ["streams flow"]),
        (lambda rows: np.stack([rows[::-1], rows], axis=1), ["crop 2 of 2"]),
        (lambda rows: np.stack([rows * NOISE, rows * (2 - NOISE)], axis=1), ["crops mean of several"]),
        (lambda rows: rows[:, :, None, None], []),
    ],
)
def test_the_form_of_the_rows_is_named_without_a_search(video, right, change, found):
    result = diagnose(of("both"), video, change(right))
    assert (names(result), result.verdict, result.tried) == (found, "explained" if found else "same", 1)


def test_several_things_of_the_form_are_named_at_once(video, frames):
    result = diagnose(of("both"), video, unit(flow(frames)).T)
    assert names(result) == ["axes (D, T)", "rows of length 1", "streams flow"]
    assert (result.verdict, result.tried) == ("explained", 1)


@pytest.mark.exhaustive
def test_rows_that_start_later_are_named(video, frames):
    result = diagnose(of("rgb", stride=7), video, rgb(frames, stride=7)[1:])
    assert names(result) == ["offset +7 frames"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("others", ["another video", "other weights", "noise"])
def test_unrelated_features_are_not_explained_and_end(video, frames, tmp_path, others):
    if others == "another video":
        rows = rgb({"12.5": foreign.read_frames(foreign.write_scene(tmp_path / "b.mp4", seed=1), "12.5")})
    elif others == "other weights":
        torch.manual_seed(0)
        pixels = foreign.scale_pixels(foreign.crop(foreign.resize(frames["12.5"], 128), 112))
        rows = foreign.run(create_model("s3d_mini"), pixels, window=16, stride=16)
    else:
        rows = abs(np.random.default_rng(0).normal(size=(3, 256)))
    runs = []
    result = diagnose(of("rgb"), video, rows, on_progress=lambda *done: runs.append(done))
    assert result.verdict == "unexplained"
    assert len(runs) <= runs[0][1] == diagnosis.MAX_RUNS + 8
    assert f"not explained by {result.tried} recipes" in result.describe()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 256), np.int64), "holds int64: give features, as float16 or float32"),
        (np.zeros(256), r"is \(256,\): give \(rows, features\)"),
        (np.zeros((0, 256)), r"is \(0, 256\): give \(rows, features\)"),
        (np.full((2, 256), np.nan), "512 numbers that are NaN or infinite"),
        (np.zeros((3, 2048)), "has 512 .both streams., 256 .rgb. or 256 .flow. numbers: choose the --model"),
        (np.zeros((3, 2, 2, 256)), r"give \(rows, features\), or \(rows, crops, features\)"),
    ],
)
def test_an_array_without_such_rows_is_one_line(video, rows, message):
    with pytest.raises(UsageError, match=message) as raised:
        diagnose(of("both"), video, rows)
    assert "\n" not in str(raised.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"fps": "native"}, {"start_seconds": 1.3, "stride": 5}, {"crops": 3}])
def test_the_search_starts_from_the_rows_of_extract(video, options):
    """Byte by byte: frames that are held and replayed are those that a run reads."""
    (extracted,) = vid3d_cli.extract(video, model="s3d_mini", streams="rgb", runtime="torch", **options)
    result = diagnose(of("rgb", **options), video, extracted.features())
    assert (result.verdict, result.error, result.rows) == ("same", 0, min(4, len(extracted.clips)))


@pytest.mark.exhaustive
def test_held_frames_that_fill_the_memory_leave_rows_out(video, frames, monkeypatch):
    monkeypatch.setattr(vid3d_cli.diagnosis.rows, "MAX_FRAMES_BYTES", 90 * 176 * 144 * 3)
    result = diagnose(of("rgb"), video, rgb(frames))
    assert (result.verdict, result.rows) == ("close", 2)
    assert "memory holds the frames of no more rows" in result.describe()
    monkeypatch.setattr(vid3d_cli.diagnosis.rows, "MAX_FRAMES_BYTES", 10 * 176 * 144 * 3)
    with pytest.raises(TooLarge, match="compare a smaller copy of the video"):
        diagnose(of("rgb"), video, rgb(frames))


def test_a_mistake_is_named_though_the_first_rows_are_still(tmp_path):
    still = foreign.write_scene(tmp_path / "still.mp4", num_frames=60, num_still=80)
    rows = rgb({"12.5": foreign.read_frames(still, "12.5")}, stride=8)
    assert [change.name for change in diagnose(of("rgb"), str(still), rows).closest] == ["stride"]


def test_rows_that_agree_are_not_the_same_if_their_number_differs(video, frames):
    rows = rgb(frames)[:1]
    result = diagnose(of("rgb", stride=32), video, rows)
    assert (result.verdict, result.rows) == ("close", 1)
    assert result.describe().splitlines()[1:] == [
        "the compared rows agree, the number of rows differs",
        "1 row does not fit stride 32, window 16 at 12.5 fps, which gives 2",
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("fps", ["25", "12.5"])
def test_the_frames_of_ffmpegs_fps_filter_are_named(video, fps):
    right = rgb({fps: foreign.filter_frames(video, fps)}, fps=fps, stride=8)
    result = diagnose(of("rgb", fps=fps, stride=8), video, right)
    assert (names(result), result.verdict) == (["rounding nearest"], "explained")
    assert result.cosine > 0.9999


@pytest.mark.exhaustive
def test_frames_that_were_stored_as_jpeg_are_close(video, frames):
    right = rgb({"12.5": foreign.store_as_jpeg(frames["12.5"])})
    result = diagnose(of("rgb"), video, right)
    assert (result.verdict, names(result)) == ("close", [])
    assert "your recipe, up to the rounding of stored frames" in result.describe()


@pytest.mark.exhaustive
def test_a_search_ends_in_time(video, frames, monkeypatch):
    monkeypatch.setattr(diagnosis, "MAX_SECONDS", 0)
    result = diagnose(of("rgb"), video, rgb(frames, stride=8))
    assert (result.verdict, result.closest) == ("unexplained", ())
    assert "the search ended after 0 minutes" in result.describe()


PRESET = """
summary = "a program"
values = "layout"
sources = ["https://example.org"]

[options]
model = "s3d_mini"
{options}

[files]
names = "{names}"
{files}

[centre]
first = 8
step = 16
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("options", "names_of", "files"),
    [
        ("", "{stem}.npy", 'axes = "DT"'),
        ("", "{stem}_{stream}.npy", ""),
        ('streams = "rgb"\ncrops = "tl,br,brm"\nkeep_crops = true', "{stem}__{crop}.npy", ""),
        ('streams = "rgb"\ncrops = "tl,br"\nkeep_crops = true', "{stem}.npy", 'axes = "TCD"'),
        ("crops = 3\nkeep_crops = true", "{stream}/{stem}__{crop}.npy", 'streams = {rgb = "RGB"}'),
    ],
)
def test_each_file_of_a_preset_is_the_same(video, tmp_path, options, names_of, files):
    preset = tmp_path / "own.toml"
    preset.write_text(PRESET.format(options=options, names=names_of, files=files))
    words = ["--preset", str(preset), "--runtime", "torch"]
    CliRunner().invoke(app, ["extract", video, *words, "-o", str(tmp_path / "f")], catch_exceptions=False)
    found = sorted((tmp_path / "f").rglob("a*.npy"))
    assert found
    for number, path in enumerate(found):
        result = diagnose(with_preset({"preset": str(preset), "runtime": "torch"}), video, np.load(path))
        assert (result.verdict, names(result)) == ("same", []), path
        if "{crop}" in names_of:
            assert f"those of crop {path.stem[-1]} (" in result.describe()
        else:
            assert number in (0, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mistake", "flags", "typed"),
    [
        ({"window": 24}, "--window 24 --stride 8", {"window": 24, "stride": 8}),
        ({"fps": None, "offset": 2}, "--start 0.05", {"start_seconds": 0.05}),
    ],
)
def test_what_to_type_gives_the_rows(video, frames, mistake, flags, typed):
    fps = "native" if "fps" in mistake else "12.5"
    right = rgb(frames, **{"stride": 8, **mistake})
    (change,) = diagnose(of("rgb", stride=8, fps=fps), video, right).closest
    assert change.sentence.endswith(f": {flags}")
    assert diagnose(of("rgb", **{"stride": 8, "fps": fps, **typed}), video, right).verdict == "same"


def test_only_the_first_rows_are_read():
    """A file may be larger than memory."""
    rows = np.zeros((1000, 10, 256), np.float16)
    rows[4:] = np.nan
    (*_, mean) = found = readings(check_array(rows), {"rgb": 256}, "m")
    assert (len(found), mean.num_rows, mean.rows["rgb"].shape) == (11, 1000, (4, 256))


@pytest.mark.exhaustive
def test_a_start_after_the_end_is_one_line(video, frames):
    with pytest.raises(NoFrames, match="no frame starts at 5 s or later; give an earlier --start"):
        diagnose(of("rgb", start_seconds=5), video, rgb(frames))
