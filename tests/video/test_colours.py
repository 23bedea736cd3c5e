"""Colours, interlacing and the shape of pixels, against float64 arithmetic and OpenCV."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from videos import write_video
from yuv import FULL, LIMITED, WEIGHTS, exact_rgb, make_frame, middles, patches, read_frame, write_frames

import vid3d_cli
from vid3d_cli.errors import NotAVideo, UsageError
from vid3d_cli.jobs.events import Warned
from vid3d_cli.video.clock import Timed
from vid3d_cli.video.interlacing import deinterlace
from vid3d_cli.video.pixels import PixelOptions
from vid3d_cli.video.process import probe
from vid3d_cli.video.reader import VideoReader
from vid3d_cli.video.rgb import RgbConverter

FAST = ("yuv420p", "yuvj420p", "yuv422p", "yuva420p")
"""Pixel formats of which every extractor has swscale's numbers, with their bias."""


def first_rgb(path, **options):
    with VideoReader(str(path), pixels=PixelOptions(**options)) as frames:
        return next(iter(frames)).rgb


def differences(path, matrix, **options):
    """Mean and maximum of the grey levels between our RGB and the exact one."""
    difference = np.abs(middles(first_rgb(path, **options)) - middles(exact_rgb(read_frame(path), matrix)))
    return difference.mean(), difference.max()


# Colours -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour_range", [0, LIMITED, FULL])
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv422p", "yuv444p", "yuva420p", "nv12", "yuv420p10le", "yuv422p10le", "yuv444p12le"],
)
def test_tags_of_matrix_and_range_are_followed(tmp_path, pixel_format, matrix, colour_range):
    path = write_frames(tmp_path / "a.mkv", [make_frame(patches(), pixel_format, matrix, colour_range)])
    mean, largest = differences(path, matrix)
    assert (mean < 1.2 and largest <= 3.5) if pixel_format in FAST else (mean < 0.6 and largest <= 1.5)
    wrong = "bt470bg" if matrix == "bt709" else "bt709"
    assert differences(path, wrong)[0] > mean + 0.2  # the bound tells matrices apart


@pytest.mark.parametrize("pixel_format", ["p010le", "yuv420p", "yuv422p10le"])
def test_every_frame_is_converted_by_its_own_tags(pixel_format):
    frames = [
        make_frame(patches(), pixel_format, matrix, colour_range)
        for matrix in ("bt709", "bt470bg", "bt2020nc")
        for colour_range in (LIMITED, FULL)
    ]
    expected = [
        exact_rgb(frame, matrix)
        for frame, matrix in zip(frames, np.repeat(["bt709", "bt470bg", "bt2020nc"], 2), strict=True)
    ]
    converter = RgbConverter("a.mkv", frames[0])
    for frame, exact in zip(frames, expected, strict=True):
        assert np.abs(middles(converter.convert(frame)) - middles(exact)).mean() < 1.2


@pytest.mark.parametrize(
    ("pixel_format", "colour_range"), [("gray", 0), ("gray", LIMITED), ("gray", FULL), ("gray10le", LIMITED)]
)
def test_grey_is_of_full_range_unless_it_is_tagged(tmp_path, pixel_format, colour_range):
    path = write_frames(tmp_path / "a.mkv", [make_frame(patches(), pixel_format, "bt709", colour_range)])
    assert differences(path, "bt709")[1] <= 1.2


@pytest.mark.parametrize("pixel_format", ["rgb24", "rgba", "pal8"])
def test_rgb_stays_as_it_is(tmp_path, pixel_format):
    path = write_frames(tmp_path / "a.mov", [make_frame(patches(), pixel_format)])
    for matrix in ("tags", "bt709"):
        assert np.array_equal(first_rgb(path, colour_matrix=matrix), patches())


def test_motion_jpeg_is_bt601_of_full_range(tmp_path):
    path = write_frames(tmp_path / "a.mkv", [make_frame(patches(), "yuvj420p", "untagged", FULL)])
    assert differences(path, "bt470bg")[0] < 1.2


def test_alpha_is_dropped(tmp_path):
    see_through = np.dstack([patches(), np.zeros((96, 128), np.uint8)])
    path = write_frames(tmp_path / "a.mov", [av.VideoFrame.from_ndarray(see_through, format="rgba")])
    assert np.array_equal(first_rgb(path), patches())
    assert probe(str(path)).has_alpha


@pytest.mark.parametrize(
    ("width", "height", "guess"), [(1280, 32, "bt709"), (32, 592, "bt709"), (1264, 576, "bt470bg")]
)
def test_untagged_is_bt601_of_any_size_unless_guessed(width, height, guess):
    frame = make_frame(patches(height, width), "yuv420p10le")
    for option, matrix in {"tags": "bt470bg", "guess": guess, "bt601": "bt470bg", "bt709": "bt709"}.items():
        exact = exact_rgb(frame, matrix)
        converted = RgbConverter("a.mkv", frame, options=PixelOptions(option)).convert(
            make_frame(patches(height, width), "yuv420p10le")
        )
        assert np.abs(middles(converted) - middles(exact)).mean() < 0.5, option


def test_guess_follows_tags(tmp_path):
    path = write_frames(tmp_path / "a.mkv", [make_frame(patches(), "yuv444p", "bt2020nc")])
    assert differences(path, "bt2020nc", colour_matrix="guess")[0] < 0.5


def test_pixels_are_those_of_opencv(tmp_path):
    """OpenCV follows tags from version 4.13 on."""
    path = write_frames(tmp_path / "a.mkv", [make_frame(patches(), "yuv420p", "bt709", LIMITED)])
    _, bgr = cv2.VideoCapture(str(path)).read()
    by_tags, by_bt601 = first_rgb(path), first_rgb(path, colour_matrix="bt601")
    follows_tags = tuple(map(int, cv2.__version__.split(".")[:2])) >= (4, 13)
    assert np.array_equal(by_tags if follows_tags else by_bt601, bgr[:, :, ::-1])
    assert np.abs(by_tags - by_bt601.astype(float)).mean() > 5


def test_reserved_tags_count_as_no_tags():
    frame = make_frame(patches(), "yuv444p")
    exact = exact_rgb(frame, "bt470bg")
    frame.colorspace, frame.color_trc, frame.color_primaries = 3, 3, 0
    assert np.abs(middles(RgbConverter("a.mkv", frame).convert(frame)) - middles(exact)).max() <= 1.5


def test_a_matrix_that_cannot_be_converted_is_named_and_can_be_replaced():
    frame = make_frame(patches(), "yuv444p")
    frame.colorspace = 8
    with pytest.raises(NotAVideo, match="yuv444p, ycgco, does not convert to RGB"):
        RgbConverter("a.mkv", frame).convert(frame)
    RgbConverter("a.mkv", frame, options=PixelOptions("bt709")).convert(frame)


def test_an_unknown_matrix_is_a_usage_error(video, pool):
    with pytest.raises(UsageError, match="unknown colour matrix 'bt6O1': choose one of tags, guess, bt601, bt709"):
        VideoReader(str(video), pixels=PixelOptions("bt6O1"))
    with pytest.raises(UsageError, match="unknown colour matrix"):
        vid3d_cli.make_plan(model="s3d_mini", colour_matrix="bt6O1")


# Interlacing ---------------------------------------------------------------------------------------------------------


def moving_bar(index, height=96, width=128):
    """A bright bar that moves 3 pixels from one field to the next."""
    image = np.full((height, width, 3), 40, np.uint8)
    for field in (0, 1):
        left = 10 + (2 * index + field) * 3
        image[field::2, left : left + 20] = 220
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")


def write_interlaced(path):
    return write_frames(path, [moving_bar(i) for i in range(6)], "mpeg4", flags="+ildct+ilme")


def combs(rgb):
    """How much lines differ from the mean of their neighbours."""
    grey = rgb.mean(-1)
    return np.abs(2 * grey[1:-1] - grey[:-2] - grey[2:]).mean()


def test_interlaced_frames_keep_their_times_and_lose_their_combs(tmp_path, pool):
    path = str(write_interlaced(tmp_path / "a.mkv"))
    assert probe(path).is_interlaced
    with VideoReader(path, fps=Fraction(50)) as frames:
        stored = list(frames)
    for open_video in (VideoReader, pool.open):
        with open_video(path, fps=Fraction(50), pixels=PixelOptions(deinterlace=True)) as frames:
            repaired = list(frames)
        assert [(f.index, f.seconds, f.end_seconds) for f in repaired] == [
            (f.index, f.seconds, f.end_seconds) for f in stored
        ]
        assert all(
            combs(frame.rgb) < 1 < 10 < combs(before.rgb) for frame, before in zip(repaired, stored, strict=True)
        )


def test_progressive_frames_are_not_deinterlaced(video):
    with VideoReader(str(video)) as before, VideoReader(str(video), pixels=PixelOptions(deinterlace=True)) as after:
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(before, after, strict=True))


def test_deinterlacing_survives_a_change_of_size():
    frames = [make_frame(patches(h, w), "yuv420p") for h, w in [(96, 128)] * 2 + [(48, 64)] + [(96, 128)] * 3]
    for frame in frames:
        frame.time_base = Fraction(1, 25)
    timed = [Timed(Fraction(i), Fraction(i + 1), frame) for i, frame in enumerate(frames)]
    done = list(deinterlace("a.ts", iter(timed)))
    assert [(t.start, t.end) for t in done] == [(t.start, t.end) for t in timed]
    assert [t.item.width for t in done] == [128, 128, 64, 128, 128, 128]


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rotation", "stored", "shown"), [(0, (96, 128), (96, 192)), (90, (128, 96), (192, 96))])
def test_square_pixels_change_the_stored_width(tmp_path, pool, rotation, stored, shown):
    frames = [make_frame(patches(), "yuv420p")] * 2
    path = str(write_frames(tmp_path / "a.mp4", frames, "mpeg4", aspect=Fraction(3, 2), rotation=rotation))
    info = probe(path)
    assert (info.pixel_aspect, info.height, info.width) == (1.5, *stored)
    for open_video in (VideoReader, pool.open):
        for square_pixels, size in ((False, stored), (True, shown)):
            with open_video(path, pixels=PixelOptions(square_pixels=square_pixels)) as read:
                assert [frame.rgb.shape for frame in read] == [(*size, 3)] * 2
                assert (read.info.height, read.info.width) == size


def test_an_implausible_aspect_is_ignored(tmp_path):
    frames = [make_frame(patches(), "yuv420p")]
    path = write_frames(tmp_path / "a.mp4", frames, "mpeg4", aspect=Fraction(1, 100))
    assert av.open(str(path)).streams.video[0].sample_aspect_ratio == Fraction(1, 100)
    assert first_rgb(path, square_pixels=True).shape == (96, 128, 3)


def test_a_late_start_keeps_the_size_of_the_first_frame(tmp_path, pool):
    """The frame after the seek may have another size."""
    small, large = (
        write_video(
            tmp_path / f"{w}.ts", num_frames=250, width=w, height=3 * w // 4, codec="mpeg2video", num_b_frames=0
        )
        for w in (64, 128)
    )
    path = tmp_path / "a.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    for open_video in (VideoReader, pool.open):
        with open_video(str(path), start_seconds=8.0) as frames:
            assert {frame.rgb.shape for frame in frames} == {(48, 64, 3)}


# What is said --------------------------------------------------------------------------------------------------------


def test_probe_shows_tags(tmp_path):
    frame = make_frame(patches(), "yuv420p10le", "bt2020nc", LIMITED)
    frame.color_trc = 16
    info = probe(str(write_frames(tmp_path / "a.mkv", [frame])))
    assert (info.bit_depth, info.colour_matrix, info.colour_range) == (10, "bt2020nc", "limited")
    assert (info.transfer, info.is_hdr, info.has_alpha, info.is_interlaced) == ("smpte2084", True, False, False)
    (warning,) = PixelOptions().warnings(info)
    assert warning.startswith("it is HDR")


def test_the_table_of_probe_names_what_is_unusual(vid3d, tmp_path):
    write_interlaced(tmp_path / "a.mkv")
    assert "untagged, interlaced" in " ".join(vid3d("probe", "a.mkv", "--format", "table").stdout.split())


def test_a_job_warns_once_and_not_if_the_option_is_given(decoder_processes, tiny_model, tmp_path):
    for name in "ab":
        write_interlaced(tmp_path / f"{name}.mkv")
    options = {"model": "s3d_mini", "streams": "rgb"}
    events = []
    vid3d_cli.extract(tmp_path, out=tmp_path / "f.npy", on_event=events.append, **options)
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert "a.mkv: it is interlaced" in warning and "--deinterlace" in warning
    events.clear()
    vid3d_cli.extract(tmp_path, out=tmp_path / "g.npy", on_event=events.append, deinterlace=True, **options)
    assert [event for event in events if isinstance(event, Warned)] == []
    assert vid3d_cli.open_store(str(tmp_path / "g.npy")).recipe()["pixels"] == "deinterlaced"
    rows = [np.load(tmp_path / f"{name}.npy") for name in "fg"]
    assert not np.allclose(*rows)
