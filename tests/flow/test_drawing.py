"""Flow to look at: side by side, as an animation, as a sheet; and the scale that is found from the video."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torchvision
from moving import texture
from PIL import Image

from vid3d_cli.clips.streams import StreamFrame
from vid3d_cli.errors import DecoderHangs, OutputExists
from vid3d_cli.flow.colour import flow_to_rgb
from vid3d_cli.flow.drawing import draw_pair, draw_sheet
from vid3d_cli.flow.methods import create_flow
from vid3d_cli.flow.writers import GIF_WIDTH_PX, open_flow_output
from vid3d_cli.run.flow import LEAST_MAX_MOTION_PX, find_max_motion, sample_pairs
from vid3d_cli.video.pixels import PixelOptions
from vid3d_cli.video.reader import VideoReader
from vid3d_cli.video.writer import write_video

HEIGHT, WIDTH = 120, 160


def write_moving(path, shift_px, *, num_frames=30, fps=25):
    """A texture whose content moves left by `shift_px` per frame."""
    scene = np.repeat(texture(HEIGHT, WIDTH + shift_px * num_frames)[..., None], 3, axis=-1)
    frames = (scene[:, shift_px * t : shift_px * t + WIDTH] for t in range(num_frames))
    write_video(path, frames, fps=Fraction(fps))
    return path


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_frame_stands_beside_the_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    flow = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, 2)).astype(np.float32)
    drawn = draw_pair(rgb, flow, 3.0)
    assert drawn.shape == (HEIGHT, 2 * WIDTH + 2, 3)
    np.testing.assert_array_equal(drawn[:, :WIDTH], rgb)
    np.testing.assert_array_equal(drawn[:50, WIDTH + 2 :], flow_to_rgb(flow, 3.0)[:50])  # the wheel is lower


def test_the_wheel_shows_each_direction_in_its_colour():
    """By torchvision's colours, which we did not write."""
    still = np.zeros((256, 256, 2), np.float32)
    drawn = draw_pair(np.zeros((256, 256, 3), np.uint8), still, 4.0)[:, 258:]
    is_wheel = (drawn.max(axis=2).astype(int) - drawn.min(axis=2)) > 60
    rows, columns = np.nonzero(is_wheel)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    assert (bottom - top, right - left) == (pytest.approx(50, abs=3), pytest.approx(50, abs=3))
    for x, y in [(1, 0), (0, 1), (-1, 0), (0, -1), (0.7, 0.7), (-0.7, 0.7)]:
        at = (round((top + bottom) / 2 + 0.8 * 25 * y), round((left + right) / 2 + 0.8 * 25 * x))
        field = torch.zeros(2, 1, 2)
        field[:, 0, 0] = 0.8 * torch.tensor([x, y])
        field[0, 0, 1] = 1.0  # torchvision scales to the longest vector
        expected = torchvision.utils.flow_to_image(field)[:, 0, 0].numpy()
        assert np.abs(drawn[at].astype(int) - expected).max() < 30, (x, y)


@pytest.mark.parametrize("shape", [(1, 1), (16, 400), (63, 80)])
def test_small_frames_have_no_room_for_the_wheel(shape):
    flow = np.ones((*shape, 2), np.float32)
    drawn = draw_pair(np.zeros((*shape, 3), np.uint8), flow, 2.0)
    np.testing.assert_array_equal(drawn[:, shape[1] + 2 :], flow_to_rgb(flow, 2.0))


@pytest.mark.parametrize("shape", [(40, 60), (500, 40), (1, 1), (300, 700)])
@pytest.mark.parametrize("num_pairs", [1, 5, 12])
def test_a_sheet_has_a_tile_per_pair(shape, num_pairs):
    pairs = [
        (np.full((*shape, 2), 2.0, np.float32), float(n), np.full((*shape, 3), 7, np.uint8)) for n in range(num_pairs)
    ]
    sheet = draw_sheet(pairs, 2.0)
    is_frame = (sheet == 7).all(axis=2)
    colour = flow_to_rgb(pairs[0][0], 2.0)[0, 0]
    assert is_frame.any()
    assert (sheet == colour).all(axis=2).any() or min(shape) == 1
    assert max(sheet.shape) < 2000


def write_gif(path, images, times, max_px=3.0):
    """Write fields and black frames, of (x, y) motions that fill the image, as a .gif."""
    with open_flow_output(path, fps=Fraction(25), bound_px=20, max_px=max_px, recipe={}) as output:
        for motion, seconds in zip(images, times, strict=True):
            field = np.broadcast_to(np.float32(motion), (40, 60, 2))
            output.write(field, seconds, np.zeros((40, 60, 3), np.uint8))
    with Image.open(path) as gif:
        shown = []
        for number in range(gif.n_frames):
            gif.seek(number)
            shown.append((gif.info["duration"], np.asarray(gif.convert("RGB"))))
        assert gif.info["loop"] == 0
    return shown


def test_an_animation_has_the_times_and_colours_that_were_given(tmp_path):
    motions = [(3, 0), (0, 3), (-3, 0), (0, -3), (1, 1)]
    shown = write_gif(tmp_path / "a.gif", motions, [3.0, 3.1, 3.2, 3.5, 3.6])
    assert [duration for duration, _ in shown] == [100, 100, 300, 100, 100]
    for motion, (_, image) in zip(motions, shown, strict=True):
        assert np.abs(image[20, 90].astype(int) - flow_to_rgb(np.float32([[motion]]), 3.0)[0, 0]).max() < 16
        assert image[20, 20].max() < 16  # the frame


def test_an_animation_keeps_time_at_a_variable_rate(tmp_path):
    times = [0.0, 5.0, *(5 + k / 240 for k in range(1, 481))]
    shown = write_gif(tmp_path / "a.gif", [(np.cos(t), np.sin(t)) for t in 9 * np.array(times)], times)
    durations = [duration for duration, _ in shown]
    assert (durations[0], min(durations), sum(durations)) == (5000, 100, 7100)


def test_an_animation_may_be_one_image(tmp_path):
    assert len(write_gif(tmp_path / "a.gif", [(1, 2)], [0.0])) == 1


def test_a_gif_is_small_slow_and_in_time(tmp_path):
    flow = np.ones((200, 320, 2), np.float32)
    with open_flow_output(tmp_path / "a.gif", fps=Fraction(30), bound_px=20, max_px=1, recipe={}) as output:
        for number in range(60):
            output.write(flow, number / 30, np.zeros((200, 320, 3), np.uint8))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.width == GIF_WIDTH_PX
        assert gif.n_frames <= 20  # equal images may be joined
        total = 0
        for number in range(gif.n_frames):
            gif.seek(number)
            total += gif.info["duration"]
    assert total == pytest.approx(2000, abs=50)


def test_the_scale_is_found_from_the_video_and_said(vid3d, tmp_path):
    write_moving(tmp_path / "a.mp4", 3)
    result = vid3d("flow", "a.mp4", "--out", "flow.mp4", "--short-side", HEIGHT)
    assert result.exit_code == 0, result.stderr
    said = float(result.stderr.partition("full colour is a motion of ")[2].split()[0])
    assert said == pytest.approx(3, abs=0.3)
    frames = frames_of(tmp_path / "flow.mp4")
    assert len(frames) == 29
    source, coloured = frames[10][:, :WIDTH], frames[10][:, WIDTH + 2 :]
    assert np.abs(source.astype(int) - frames_of(tmp_path / "a.mp4")[10]).mean() < 12
    left = flow_to_rgb(np.float32([[[-3, 0]]]), said)[0, 0].astype(int)
    assert np.abs(np.median(coloured[20:60, 40:100].reshape(-1, 3), axis=0) - left).max() < 30


def test_plain_colours_fill_the_frame(vid3d, tmp_path):
    write_moving(tmp_path / "a.mp4", 2, num_frames=4)
    result = vid3d("flow", "a.mp4", "--out", "flow.mp4", "--plain", "--short-side", HEIGHT, "--max-motion", 4)
    assert "full colour is a motion of 4 px per frame" in result.stderr
    assert frames_of(tmp_path / "flow.mp4")[0].shape == (HEIGHT, WIDTH, 3)


def test_a_sheet_shows_the_whole_video(vid3d, tmp_path):
    write_moving(tmp_path / "a.mp4", 2)
    result = vid3d("flow", "a.mp4", "--out", "flow.png", "--short-side", HEIGHT)
    assert (result.exit_code, "12 flow fields" in result.stderr) == (0, True), result.stderr
    with Image.open(tmp_path / "flow.png") as image:
        assert image.width > 4 * WIDTH


class Readers:
    """Stands in for Decoders, without processes."""

    def __init__(self):
        self.num_opened = 0

    def open(self, video, **options):
        self.num_opened += 1
        return VideoReader(video, **options)


def sampled(video, decoders, start_seconds=0.0, fps=None):
    return sample_pairs(
        decoders,
        VideoReader(video).info,
        create_flow("dis-ultrafast"),
        short_side_px=32,
        fps=fps,
        start_seconds=start_seconds,
        end_seconds=None,
        pixels=PixelOptions(),
    )


@pytest.mark.parametrize(
    ("num_frames", "start", "fps", "expected"),
    [
        (2, 0, None, [0]),
        (3, 0, None, [0, 1]),
        (6, 0, None, [0, 1, 2, 3, 4]),
        (6, 0.05, None, [2, 3, 4]),
        (6, 0, Fraction(50), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]),
        (13, 0, None, list(range(12))),
        (25, 0, None, list(range(1, 24, 2))),
    ],
)
def test_a_sheet_misses_no_pair_of_a_short_video(tmp_path, num_frames, start, fps, expected):
    video = write_moving(tmp_path / "a.mp4", 2, num_frames=num_frames)
    pairs = sampled(video, Readers(), start, fps)
    assert [pair.seconds for pair in pairs] == pytest.approx([index / 25 for index in expected])


def test_a_video_that_hangs_costs_one_timeout(tmp_path):
    class Hanging(Readers):
        def open(self, video, **options):
            self.num_opened += 1
            raise DecoderHangs(video, "no frame")

    decoders = Hanging()
    with pytest.raises(DecoderHangs):
        sampled(write_moving(tmp_path / "a.mp4", 2), decoders)
    assert decoders.num_opened == 1


@pytest.mark.parametrize(("out", "advice"), [("x.mp4", "or give --max-motion"), ("x.png", "save it to a file first\n")])
def test_a_pipe_is_not_read_twice(vid3d, tmp_path, out, advice):
    os.mkfifo(tmp_path / "a.ts")
    result = vid3d("flow", "a.ts", "--out", out, "--timeout", 1)
    assert (result.exit_code, advice in result.stderr) == (2, True), result.stderr


def pair_of(length_px):
    return StreamFrame(0.0, 0.04, {"flow": np.full((8, 8, 2), length_px / np.sqrt(2), np.float32)})


def test_the_scale_suits_most_pairs():
    assert find_max_motion([]) == LEAST_MAX_MOTION_PX
    assert find_max_motion([pair_of(0.01)] * 12) == LEAST_MAX_MOTION_PX
    assert find_max_motion([pair_of(3.14159)] * 12) == 3.1
    assert find_max_motion([pair_of(2)] * 11 + [pair_of(60)]) == 2
    assert find_max_motion([pair_of(0.1)] * 11 + [pair_of(6)]) == 6  # little happens, and this is shown
    pair = pair_of(2)
    pair.streams["flow"][0, :2] = 500  # a few wrong vectors
    assert find_max_motion([pair]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.mp4", "--max-motion", "fast"], "--max-motion fast: give pixels per frame"),
        (["--out", "x.mp4", "--max-motion", "0"], "--max-motion 0: give pixels per frame"),
        (["--out", "x.npz", "--plain"], "--plain is for videos and .gif"),
        (["--out", "x.png", "--plain"], "--plain is for videos and .gif"),
        (["--out", "x.npz", "--max-motion", "3"], "--max-motion is for videos, .gif and .png: leave it out for x.npz"),
        (["--out", "x.gif", "--dtype", "float16"], "--dtype is for .npz"),
        (["--out", "x/", "--dtype", "float32"], "--dtype is for .npz"),
        (["--out", "x.mp4", "--bound", "3"], "--bound is for a directory of images"),
        (["--out", "x.mp4", "--end", "inf"], "--end inf: give seconds"),
        (["--out", "x.mp4", "--colour-matrix", "bt2100"], "--colour-matrix bt2100: choose one of"),
    ],
)
def test_wrong_options_are_refused(vid3d, tmp_path, options, message):
    (tmp_path / "a.mp4").write_bytes(b"never read")
    result = vid3d("flow", "a.mp4", *options)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_what_exists_is_refused_before_the_video_is_read(vid3d, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"never read")
    (tmp_path / "x.png").write_bytes(b"mine")
    result = vid3d("flow", "a.mp4", "--out", "x.png")
    assert "x.png: already exists" in result.stderr
    assert OutputExists.__name__ not in result.stderr


def test_a_gif_of_a_long_video_shows_its_start_and_says_so(vid3d, tmp_path):
    write_video(tmp_path / "a.mp4", (np.zeros((32, 32, 3), np.uint8) for _ in range(50)), fps=Fraction(2))
    result = vid3d("flow", "a.mp4", "--out", "x.gif", "--short-side", 32)
    assert "x.gif shows only 20 s" in result.stderr
    assert "39 flow fields" in result.stderr
