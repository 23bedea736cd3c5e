"""Frames and times of videos, whole and damaged, against frames that show their own number, PyAV and OpenCV.

Tests that take `way` hold for the reader in this process and for the decoder process.
"""

import contextlib
import math
import os
import subprocess
import sys
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import cut, damage, draw_index, read_index, write_audio, write_video

from vid3d_cli.clips.streams import align_streams
from vid3d_cli.errors import (
    ConnectionLost,
    DamagedVideo,
    EmptyFile,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    TruncatedVideo,
    UsageError,
    VideoError,
    VideoNotFound,
)
from vid3d_cli.flow.methods import create_flow
from vid3d_cli.records import Frame
from vid3d_cli.video import container as container_module
from vid3d_cli.video import passes as passes_module
from vid3d_cli.video.process import probe
from vid3d_cli.video.reader import VideoReader

SHARED_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"
CONTAINERS = ["mp4", "mov", "mkv", "avi", "ts", "webm", "flv"]


class InThisProcess:
    """Reads with VideoReader."""

    open = VideoReader

    def probe(self, video, *, decode=True):
        with VideoReader(video) as reader:
            return reader.count_frames() if decode else reader.info

    def read(self, path, **options):
        """All frames of a video."""
        with self.open(str(path), **options) as frames:
            return list(frames)


class InDecoderProcess(InThisProcess):
    """Reads through decoder processes."""

    def __init__(self, decoders):
        self.decoders = decoders
        self.open = decoders.open

    def probe(self, video, *, decode=True):
        return probe(video, decode=decode, decoders=self.decoders)


@pytest.fixture(params=["in this process", "decoder process"])
def way(request, pool):
    """One way into a video, then the other: way.open, way.read, way.probe."""
    return InThisProcess() if request.param == "in this process" else InDecoderProcess(pool)


def indices(frames: list[Frame]) -> list[int]:
    return [read_index(frame.rgb) for frame in frames]


def times(frames: list[Frame]) -> list[float]:
    return [frame.seconds for frame in frames]


# Whole videos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_frame_in_order_with_its_time(way, tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=40)
    frames = way.read(path)
    assert indices(frames) == list(range(40))
    assert [frame.index for frame in frames] == list(range(40))
    assert times(frames) == pytest.approx([i / 25 for i in range(40)])
    assert [f.end_seconds for f in frames] == pytest.approx([(i + 1) / 25 for i in range(40)])
    assert frames[0].rgb.shape == (48, 64, 3)
    assert frames[0].rgb.dtype == np.uint8
    assert all(frame.rgb.flags.c_contiguous for frame in frames)


@pytest.mark.parametrize("size", [(64, 48), (66, 50), (340, 256), (34, 18)])
def test_pixels_are_those_of_pyav(way, tmp_path, size):
    path = write_video(tmp_path / "a.mp4", num_frames=5, width=size[0], height=size[1])
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal([frame.rgb for frame in way.read(path)], expected)


def test_odd_size(way, tmp_path):
    path = write_video(tmp_path / "a.mkv", num_frames=5, width=63, height=47, codec="ffv1")
    frames = way.read(path)
    assert frames[0].rgb.shape == (47, 63, 3)
    assert indices(frames) == list(range(5))


def test_variable_frame_rate(way, tmp_path):
    steps = [0, 1, 1, 3, 7, 2, 1, 10, 1]
    shown = [i / 50 for i in accumulate(steps)]
    frames = way.read(write_video(tmp_path / "a.mp4", times_seconds=shown))
    assert times(frames) == pytest.approx(shown)
    assert [f.end_seconds for f in frames[:-1]] == times(frames[1:])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_times_are_relative_to_the_first_frame(way, tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", times_seconds=[7 + Fraction(i, 25) for i in range(10)])
    assert times(way.read(path)) == pytest.approx([i / 25 for i in range(10)], abs=1e-6)


def test_one_frame(way, tmp_path):
    (frame,) = way.read(write_video(tmp_path / "a.mp4", num_frames=1))
    assert (frame.seconds, frame.end_seconds) == pytest.approx((0, 0.04))
    assert indices(way.read(tmp_path / "a.mp4", fps=Fraction(100))) == [0] * 4


def test_an_image_is_a_video_of_one_frame(way, tmp_path):
    path = tmp_path / "still.png"
    cv2.imwrite(str(path), draw_index(77))
    assert indices(way.read(path)) == [77]


@pytest.mark.parametrize("rotation_degrees", [0, 90, 180, 270])
def test_rotation_as_opencv_applies_it(way, tmp_path, rotation_degrees):
    path = write_video(tmp_path / "a.mp4", num_frames=6, rotation_degrees=rotation_degrees)
    capture = cv2.VideoCapture(str(path))
    for frame in way.read(path):
        _, bgr = capture.read()
        assert read_index(frame.rgb) == read_index(bgr) == frame.index
        assert frame.rgb.shape == bgr.shape == (48, 64, 3)
        assert frame.rgb.flags.c_contiguous
    info = way.probe(str(path))
    assert (info.rotation_degrees, info.width, info.height) == (rotation_degrees, 64, 48)


@pytest.mark.parametrize("rotation_degrees", [0, 90, 180, 270])
def test_mirrored(way, tmp_path, rotation_degrees):
    path = write_video(tmp_path / "a.mp4", num_frames=6, rotation_degrees=rotation_degrees, is_mirrored=True)
    assert indices(way.read(path)) == list(range(6))


def test_later_sizes_are_scaled_to_the_first(way, tmp_path):
    small = write_video(tmp_path / "a.ts", num_frames=5)
    large = write_video(tmp_path / "b.ts", num_frames=5, width=128, height=96)
    small.write_bytes(small.read_bytes() + large.read_bytes())
    frames = way.read(small)
    assert {frame.rgb.shape for frame in frames} == {(48, 64, 3)}
    assert indices(frames) == [*range(5), *range(5)]
    assert times(frames) == pytest.approx([i / 25 for i in range(10)])  # though the second part's clock starts again
    compute = create_flow("dis")
    pairs = align_streams(frames, size_px=32, crop=None, rgb=True, flow=lambda _, grey: compute(grey))
    assert {pair.streams["flow"].shape for pair in pairs} == {(32, 42, 2)}  # across the change, too


@pytest.mark.parametrize("num_b_frames", [0, 1, 2])
def test_avi_times_are_regular(way, tmp_path, num_b_frames):
    path = write_video(tmp_path / "a.avi", num_frames=20, num_b_frames=num_b_frames)
    assert times(way.read(path)) == pytest.approx([i / 25 for i in range(20)])


# Info ----------------------------------------------------------------------------------------------------------------


def test_probe(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=40, with_audio=True)
    info = way.probe(str(path))
    assert info.video == str(path)
    assert (info.width, info.height, info.fps, info.pixel_format) == (64, 48, 25, "yuv420p")
    assert (info.num_frames_declared, info.num_frames_decoded, info.num_lost_frames) == (40, 40, 0)
    assert info.duration_seconds == pytest.approx(1.6)
    assert info.size_bytes == path.stat().st_size
    assert "mp4" in info.container
    header = way.probe(str(path), decode=False)
    assert (header.num_frames_declared, header.num_frames_decoded, header.num_lost_frames) == (40, None, None)


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("fps", [None, Fraction(10), Fraction(24), Fraction(60)])
def test_expected_frames(way, tmp_path, suffix, fps):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=50, fps=30)
    for span in ({}, {"start_seconds": 0.5, "end_seconds": 1.52}, {"start_seconds": 0.2}):
        with way.open(str(path), fps=fps, **span) as reader:
            error = {"avi": 2, "flv": 4}.get(suffix, 2 if fps is None else 0)  # whose last packets say too little
            assert reader.num_expected_frames == pytest.approx(len(list(reader)), abs=error)


def test_no_frame_ends_after_the_span(way, tmp_path):
    """Before: the last record of `--end 3` said "end_seconds": 3.04."""
    path = write_video(tmp_path / "a.mp4", num_frames=50, fps=30)
    for fps, end_seconds in ((None, 1.01), (10, 1.05)):
        with way.open(str(path), fps=fps, end_seconds=end_seconds) as reader:
            assert [frame.end_seconds for frame in reader][-1] == end_seconds


def test_expected_frames_of_a_variable_rate(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", times_seconds=[0, *(Fraction(i, 30) for i in range(2, 33))])
    with way.open(str(path), fps=Fraction(25)) as reader:
        frames = list(reader)
        assert reader.num_expected_frames == len(frames) == 28  # as of ffmpeg -r 25
        assert frames[-1].end_seconds == pytest.approx(1.1)


def test_counts_while_iterating(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=20)
    with VideoReader(str(path)) as reader:
        assert reader.num_frames_decoded == 0
        assert reader.info.width == 64
        for _ in reader:
            pass
        assert (reader.num_frames_decoded, reader.num_lost_frames) == (20, 0)


def test_every_iteration_starts_anew_and_close_ends_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=20)
    with VideoReader(str(path)) as reader:
        first = iter(reader)
        next(first)
        assert indices(list(reader)) == list(range(20))
        assert indices(list(reader)) == list(range(20))
        last = iter(reader)
        next(last)
    assert list(first) == list(last) == []
    reader.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_files_are_closed(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=30)

    def num_open() -> int:
        return sum(str(path) in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())

    VideoReader(str(path)).count_frames()
    list(VideoReader(str(path)))  # no context manager: the end of the iteration closes
    for _ in VideoReader(str(path)):
        break
    with VideoReader(str(path)) as reader:
        next(iter(reader))
    with pytest.raises(NoFrames):
        list(VideoReader(str(path), start_seconds=100))
    assert num_open() == 0


# Resampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24), Fraction(16)])
def test_resampling_to_its_own_rate_gives_every_frame_once(way, tmp_path, suffix, rate):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=60, fps=rate)
    frames = way.read(path, fps=rate)
    assert indices(frames) == list(range(60))
    assert times(frames) == [float(i / rate) for i in range(60)]


@pytest.mark.parametrize("fps", [Fraction(10), Fraction(50), Fraction(24000, 1001), Fraction(1), Fraction(1, 2)])
def test_resampling_shows_the_last_frame_at_each_tick(way, tmp_path, fps):
    path = write_video(tmp_path / "a.mp4", num_frames=60)
    frames = way.read(path, fps=fps)
    assert len(frames) == math.ceil(Fraction(60, 25) * fps)
    assert indices(frames) == [math.floor(k / fps * 25) for k in range(len(frames))]
    ends = [min(float((k + 1) / fps), 2.4) for k in range(len(frames))]  # the last tick ends with the video
    assert [f.end_seconds for f in frames] == ends


def test_repeated_frames_share_their_array(way, tmp_path):
    frames = way.read(write_video(tmp_path / "a.mp4", num_frames=3), fps=Fraction(50))
    assert frames[0].rgb is frames[1].rgb
    assert frames[1].rgb is not frames[2].rgb


def test_resampling_a_variable_rate(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", times_seconds=[0, 0.1, 0.5, 0.52, 0.54, 1.0])
    assert indices(way.read(path, fps=Fraction(10), end_seconds=1.05)) == [0, 1, 1, 1, 1, 2, 4, 4, 4, 4, 5]


# Spans ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("fps", [None, pytest.param(Fraction(10), marks=pytest.mark.exhaustive), Fraction(30)])
@pytest.mark.parametrize("is_offset", [False, True])
@pytest.mark.parametrize(
    "way", ["in this process", pytest.param("decoder process", marks=pytest.mark.exhaustive)], indirect=True
)
def test_a_span_is_a_part_of_the_whole(way, tmp_path, suffix, fps, is_offset):
    first = Fraction(3) if is_offset and suffix != "avi" else Fraction(0)
    path = write_video(tmp_path / f"a.{suffix}", times_seconds=[first + Fraction(i, 25) for i in range(225)])
    whole = way.read(path, fps=fps)
    for start, end in [(0.2, 0.6), (5.0, None), (6.28, 7.0), (8.5, 20.0)]:
        expected = [f for f in whole if start <= f.seconds < (end or math.inf)]
        frames = way.read(path, fps=fps, start_seconds=start, end_seconds=end)
        assert [f.index for f in frames] == list(range(len(expected)))
        assert [(f.seconds, f.end_seconds) for f in frames] == [(f.seconds, f.end_seconds) for f in expected]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, expected, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_a_late_start_seeks(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=225)
    with VideoReader(str(path), start_seconds=7) as reader:
        assert len(list(reader)) == 50
        assert reader.num_frames_decoded < 120


def test_an_inexact_seek_falls_back_to_the_beginning(tmp_path, monkeypatch):
    """Wherever a container seeks to, the frames are the same."""
    path = write_video(tmp_path / "a.mkv", num_frames=225)
    monkeypatch.setattr(passes_module, "SEEK_MARGIN_SECONDS", -1.5)
    with VideoReader(str(path), start_seconds=7) as reader:
        assert indices(list(reader)) == list(range(175, 225))
        assert reader.num_frames_decoded == 225


def test_a_reported_time_finds_its_frame_again(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=20, fps=30)
    for frame in way.read(path):
        again = way.read(path, start_seconds=frame.seconds, end_seconds=frame.end_seconds)
        assert indices(again) == [frame.index]


def test_start_beyond_the_end(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=25)
    for start in (1.0, 3.0, 60.0):
        with pytest.raises(NoFrames, match=r"1\.000 s long"):
            way.read(path, start_seconds=start)


def test_span_between_two_frames(way, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=25)
    with pytest.raises(NoFrames, match=r"between 0\.01 s and 0\.02 s"):
        way.read(path, start_seconds=0.01, end_seconds=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"start_seconds": -1},
        {"start_seconds": math.nan},
        {"start_seconds": 2, "end_seconds": 1},
        {"end_seconds": 0},
        {"fps": Fraction(0)},
    ],
)
def test_impossible_spans(way, options):
    with pytest.raises(UsageError, match="give"):
        way.open("a.mp4", **options)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("packet", [25, 30, 47])
def test_a_damaged_packet_is_counted_and_skipped(way, tmp_path, suffix, packet):
    path = damage(write_video(tmp_path / f"a.{suffix}", num_frames=48, num_b_frames=0), [packet])
    frames = way.read(path)
    assert len(frames) == 47
    expected = [i / 25 for i in range(48) if i != packet]
    assert times(frames) == pytest.approx(expected)  # the others keep their times
    seen = dict(zip(expected, indices(frames), strict=True))
    is_whole = [i < packet or i >= 36 for i in range(48)]  # frames are intact from the next keyframe on
    assert all(seen[i / 25] == i for i in range(48) if is_whole[i] and i != packet)
    info = way.probe(str(path))
    assert (info.num_frames_decoded, info.num_lost_frames) == (47, 1)


@pytest.mark.parametrize("packets", [[36], [39], [36, 37, 38]])
def test_damage_at_the_end_loses_no_other_frame(way, tmp_path, packets):
    path = damage(write_video(tmp_path / "a.avi", num_frames=40, num_b_frames=0), packets)
    info = way.probe(str(path))
    assert (info.num_frames_decoded, info.num_lost_frames) == (40 - len(packets), len(packets))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_a_cut_video_yields_the_frames_before_the_cut(way, tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=100, options={"movflags": "faststart"}, gop=5)
    cut(path, keep=0.8)
    frames = way.read(path)
    assert 50 < len(frames) < 90
    assert indices(frames)[:-3] == list(range(len(frames) - 3))
    info = way.probe(str(path))
    assert info.num_frames_decoded == len(frames)
    if suffix in ("mp4", "avi"):
        assert info.num_frames_declared in (100, None)


def test_a_damaged_time_does_not_make_a_video_days_long(way, tmp_path):
    path = write_video(tmp_path / "a.flv", num_frames=20, num_b_frames=0)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][10]
    assert data[position] == 9  # an FLV tag: type, 3 bytes of size, 3 of time in ms, 1 more (the highest) of time
    data[position + 7] = 0x10
    path.write_bytes(data)
    frames = way.read(path, fps=Fraction(25))
    assert indices(frames) == list(range(20))


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
@pytest.mark.parametrize("number", [1, 30, 59])
def test_one_damaged_time_changes_no_other(way, tmp_path, suffix, number):
    write_video(tmp_path / "whole.mkv", num_frames=60)
    path = remux(tmp_path / "whole.mkv", tmp_path / f"a.{suffix}", late_packet=number)
    frames = way.read(path)
    wrong = [f.seconds for i, f in enumerate(frames) if abs(f.seconds - i / 25) > 0.002]
    assert indices(frames) == list(range(60))
    assert len(wrong) <= 1
    assert np.all(np.diff(times(frames)) > 0)
    if number < 50:
        assert way.read(path, fps=Fraction(25))[-1].end_seconds == pytest.approx(60 / 25)


def remux(source: Path, path: Path, *, late_packet: int) -> Path:
    """Copy a video into another container, with one packet shown 40 s late."""
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size:
                packet.pts += (number == late_packet) * round(40 / packet.time_base)
                packet.stream = stream
                output.mux(packet)
    return path


@pytest.mark.parametrize("bit", [20, 23, 26, 33])
def test_a_flipped_bit_of_a_transport_stream_changes_one_time(way, tmp_path, bit):
    path = write_video(tmp_path / "a.ts", num_frames=60)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        start = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    header = data.index(b"\0\0\1\xe0", start)
    data[header + 9 + bit // 8] ^= 1 << bit % 8  # in the five bytes of the PTS
    path.write_bytes(data)
    frames = way.read(path)
    assert sum(abs(f.seconds - i / 25) > 0.002 for i, f in enumerate(frames)) <= 1
    assert len(frames) == 60


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("number", [0, 50])
def test_a_lost_keyframe_moves_no_other_frame(way, tmp_path, suffix, number):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=150, gop=50, num_b_frames=0)
    damage_frame(path, number)
    with way.open(str(path)) as reader:
        frames = list(reader)
        num_lost = reader.num_lost_frames
    if number == 0 and suffix == "ts":  # as if the recording began between two keyframes
        assert (len(frames), num_lost, frames[0].seconds, read_index(frames[0].rgb)) == (100, 0, 0, 50)
        return
    assert all(round(f.seconds * 25) == read_index(f.rgb) for f in frames if f.seconds < 1.9 or f.seconds > 4.1)
    assert abs(frames[-1].seconds - 149 / 25) < 0.002
    assert 149 <= len(frames) + num_lost <= 150
    if number == 0:
        assert (frames[0].seconds, len(frames)) == (pytest.approx(2.0), 100)
    assert way.read(path, start_seconds=5.4)[0].seconds == pytest.approx(5.4)


def damage_frame(path: Path, number: int) -> None:
    """Zero the payload of a video packet; in a transport stream, of the packets that carry it."""
    if path.suffix != ".ts":
        damage(path, [number], with_byte=0)
        return
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for start in range(positions[number], positions[number + 1], 188):
        if data[start + 1] & 0x1F or data[start + 2] != 0:  # not the tables
            payload = start + 4 + (data[start + 3] & 0x20 and 1 + data[start + 4])
            payload += (9 + data[payload + 8]) if data[start + 1] & 0x40 else 0
            data[payload : start + 188] = bytes(start + 188 - payload)
    path.write_bytes(data)


LEAD_IN = [
    ("ts", "libx264"),
    ("mpg", "mpeg2video"),
    pytest.param("ts", "mpeg2video", marks=pytest.mark.exhaustive),
    pytest.param("ts", "libx265", marks=pytest.mark.exhaustive),
]


@pytest.fixture
def write_intact(tmp_path):
    """Write an intact video; skip the test if this PyAV has no such encoder."""

    def write(suffix: str, codec: str, *, num_frames: int) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no encoder {codec}")
        size = {"width": 320, "height": 240} if suffix == "mpg" else {}  # of several packs in a group of pictures
        return write_video(tmp_path / f"a.{suffix}", num_frames=num_frames, gop=50, codec=codec, **size)

    return write


@pytest.mark.parametrize(("suffix", "codec"), LEAD_IN)
def test_a_span_of_an_intact_video_has_no_lost_frames(write_intact, suffix, codec):
    """A seek lands between two keyframes, and what comes before the next one does not decode."""
    path, num_decoded = write_intact(suffix, codec, num_frames=225), []
    for start in (5, 5.96, 6.6, 7.92, 8.6):
        with VideoReader(str(path), start_seconds=start, end_seconds=start + 0.2) as reader:
            assert indices(list(reader)) == [round(start * 25) + i for i in range(5)]
            assert reader.num_lost_frames == 0
            num_decoded.append(reader.num_frames_decoded)
    assert min(num_decoded) < 100


@pytest.mark.parametrize(("suffix", "codec"), [*LEAD_IN, ("h264", "libx264")])
def test_a_recording_that_begins_between_two_keyframes_has_no_lost_frames(write_intact, suffix, codec):
    path = write_intact(suffix, codec, num_frames=125)
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0)][10]
    data = path.read_bytes()
    position = data.rfind(b"\0\0\1\xba", 0, position) if suffix == "mpg" else position
    path.write_bytes(data[position:])
    with VideoReader(str(path)) as reader:
        frames = list(reader)
        assert reader.num_lost_frames == 0
    assert indices(frames)[0] in (50, 100)
    assert indices(frames) == list(range(indices(frames)[0], indices(frames)[0] + len(frames)))
    assert indices(frames)[-1] == 124
    assert times(frames) == pytest.approx([i / 25 for i in range(len(frames))])


@pytest.mark.parametrize("seed", range(6))
def test_lost_packets_of_a_transport_stream_are_counted(tmp_path, seed):
    path = write_video(tmp_path / "a.ts", num_frames=200, gop=50)
    data = path.read_bytes()
    start = 188 * int(np.random.default_rng(seed).integers(20, len(data) // 188 - 20))
    path.write_bytes(data[:start] + data[start + 8 * 188 :])
    with VideoReader(str(path)) as reader:
        frames = list(reader)
        assert reader.num_lost_frames > 0
        assert abs(len(frames) + reader.num_lost_frames - 200) <= 2
    assert all(abs(f.seconds * 25 - round(f.seconds * 25)) < 0.01 for f in frames)
    assert frames[-1].seconds == pytest.approx(199 / 25, abs=0.002)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_video_that_loses_most_of_its_frames_fails(way, tmp_path, suffix):
    path = damage(write_video(tmp_path / f"a.{suffix}", num_frames=40, num_b_frames=0, gop=1), range(3, 30))
    with pytest.raises(DamagedVideo, match="13 of 40 frames decode"):
        way.read(path)
    info = way.probe(str(path))
    assert (info.num_frames_decoded, info.num_lost_frames) == (13, 27)
    damage(write_video(tmp_path / f"b.{suffix}", num_frames=40, num_b_frames=0, gop=1), range(3, 20))
    assert len(way.read(tmp_path / f"b.{suffix}")) == 23


class Server(ThreadingHTTPServer):
    """Serves one file on 127.0.0.1; after `num_bytes` of it, counted from its start, it closes or stalls.

    Without `has_ranges`, it sends the whole file at every request and does not say how long it is.
    """

    def __init__(self, data: bytes, num_bytes: int, *, stalls: bool = False, has_ranges: bool = True) -> None:
        self.data, self.num_bytes, self.stalls, self.has_ranges = data, num_bytes, stalls, has_ranges
        self.is_over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        data, start = self.server.data, 0
        self.send_response(206 if self.server.has_ranges else 200)
        if self.server.has_ranges:
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Connection", "close")  # else FFmpeg may ask again on a connection that is closed
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[start : max(start, self.server.num_bytes)])
        if self.server.stalls:
            self.server.is_over.wait(30)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("suffix", "stalls"), [*((s, False) for s in ("mp4", "mkv", "ts", "webm", "avi")), ("mp4", True)]
)
def test_a_server_that_stops_early_fails_the_video(tmp_path, monkeypatch, suffix, stalls):
    path = write_video(
        tmp_path / f"a.{suffix}",
        num_frames=40,
        width=320,
        height=240,
        with_audio=True,
        options={"movflags": "faststart"},
    )
    data = path.read_bytes()
    with Server(data, len(data)) as server, VideoReader(server.url(path.name)) as reader:
        assert len(list(reader)) == 40
        assert reader.num_lost_frames == 0
    monkeypatch.setattr(container_module, "URL_TIMEOUT_SECONDS", 1.0)
    with Server(data, int(len(data) * 0.7), stalls=stalls) as server, pytest.raises((ConnectionLost, NoFrames)):
        list(VideoReader(server.url(path.name)))


@pytest.mark.parametrize("suffix", ["mp4", "ts", "webm"])
def test_a_cut_file_on_a_server_fails_only_if_the_server_cut_it(tmp_path, suffix):
    """A file that was cut before it was served is damaged, not cut off by the server."""
    path = write_video(tmp_path / f"a.{suffix}", num_frames=100, gop=5)
    data = path.read_bytes()
    with Server(data, 10**9) as server:
        server.data = data[: int(len(data) * 0.9)] if suffix != "mp4" else data
        with VideoReader(server.url(path.name)) as reader:
            assert len(list(reader)) > 80


@pytest.mark.parametrize("suffix", ["ts", "mpg", "avi", "h264", "mkv"])
def test_a_server_may_not_say_how_long_a_video_is(tmp_path, suffix):
    codec = {"mpg": "mpeg2video", "h264": "libx264"}.get(suffix)
    data = write_video(tmp_path / f"a.{suffix}", num_frames=40, codec=codec).read_bytes()
    with Server(data, len(data), has_ranges=False) as server, VideoReader(server.url(f"a.{suffix}")) as reader:
        assert len(list(reader)) == 40
        assert reader.num_lost_frames == 0


@pytest.mark.parametrize("says_size", [True, False])
def test_an_index_at_the_end_needs_a_server_with_ranges(tmp_path, monkeypatch, says_size):
    path = write_video(tmp_path / "a.mp4", num_frames=100, codec="mjpeg", width=640, height=480)
    data = path.read_bytes()
    send_response = _Handler.send_response

    def send_response_and_size(handler: _Handler, code: int) -> None:
        send_response(handler, code)
        if says_size:
            handler.send_header("Content-Length", str(len(data)))

    monkeypatch.setattr(_Handler, "send_response", send_response_and_size)
    with Server(data, len(data), has_ranges=False) as server, pytest.raises(NoFrames, match="index is at the end"):
        VideoReader(server.url("a.mp4"))


def test_a_jump_of_a_day_does_not_make_a_video_a_day_long(way, tmp_path):
    path = write_video(tmp_path / "a.mkv", times_seconds=[0, 0.04, 0.08, 0.12, 100_000])
    assert len(way.read(path, fps=Fraction(25))) == 5


@pytest.mark.parametrize(
    ("suffix", "gap_seconds", "options"),
    [("mp4", 4000, {}), ("mkv", 4000, {}), ("ts", 4000, {}), ("webm", 90, {"live": "1"}), ("mkv", 90, {"live": "1"})],
)
def test_gaps_that_frames_follow_are_kept(way, tmp_path, suffix, gap_seconds, options):
    """Also in a recording of a browser, or of a program that crashed, whose header has no duration ("live")."""
    expected = [i / 25 + gap_seconds * (i // 20) for i in range(60)]
    path = write_video(tmp_path / f"a.{suffix}", times_seconds=expected, options=options)
    assert (VideoReader(str(path)).info.duration_seconds is None) == bool(options)
    assert times(way.read(path)) == pytest.approx(expected, abs=0.001)


def test_raw_h264_is_timed_by_its_codec(way, tmp_path):
    path = write_video(tmp_path / "a.h264", num_frames=30, fps=30, codec="libx264")
    assert times(way.read(path)) == pytest.approx([i / 30 for i in range(30)])


def test_a_long_wait_within_the_declared_duration_is_believed(way, tmp_path):
    path = write_video(tmp_path / "slides.mp4", times_seconds=[0, 100, 400, 401])
    assert times(way.read(path)) == [0, 100, 400, 401]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in range(2, 12))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "webm"])
def test_damage_raises_only_video_errors(way, tmp_path, suffix, seed):
    path = write_video(tmp_path / f"a.{suffix}", num_frames=20, with_audio=suffix == "mp4")
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    spots = rng.integers(0, len(data), 1 + len(data) // 200)
    data[spots] = rng.integers(0, 256, len(spots))
    path.write_bytes(data.tobytes())
    try:
        frames = way.read(path, fps=[None, Fraction(10)][seed % 2])
    except VideoError as error:
        assert "\n" not in str(error)
    else:
        assert np.all(np.diff(times(frames)) > 0)


def test_damage_leaves_stderr_clean(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=48, num_b_frames=0)
    damage(tmp_path / "a.mp4", [5, 20])
    cut(write_video(tmp_path / "b.mp4"), keep=0.9)
    code = (
        "import sys; from vid3d_cli import errors, probe; from vid3d_cli.video.reader import VideoReader\n"
        "for name in sys.argv[1:]:\n"
        "    try: probe(name, decode=True); list(VideoReader(name))\n"
        "    except errors.VideoError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.mp4", tmp_path / "b.mp4"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("", "")


# Errors --------------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


UNUSABLE = {
    "missing": (lambda d: d / "none.mp4", VideoNotFound, "no such file"),
    "below a file": (lambda d: write(d / "f", b"x") / "none.mp4", VideoNotFound, "no such file"),
    "directory": (lambda d: d, NotAVideo, "directory"),
    "empty": (lambda d: write(d / "a.mp4", b""), EmptyFile, "0 bytes"),
    "text": (lambda d: write(d / "a.mp4", b"Not a video.\n" * 99), NotAVideo, "not a video"),
    "text as .txt": (lambda d: write(d / "a.txt", b"clip.mp4\n" * 99), NotAVideo, "text file"),
    "zeros": (lambda d: write(d / "a.mp4", bytes(5000)), NotAVideo, "not a video"),
    "noise": (lambda d: write(d / "a.avi", np.random.default_rng(0).bytes(9999)), NotAVideo, "not a video"),
    "audio only": (lambda d: write_audio(d / "a.m4a"), NoVideoStream, "only audio"),
    "cover picture": (lambda d: write_audio(d / "a.mp3", cover=draw_index(1)), NoVideoStream, "only a cover image"),
    "no moov": (lambda d: cut(write_video(d / "a.mp4"), keep=0.7), TruncatedVideo, "cut off"),
    "cut in moov": (lambda d: cut(write_video(d / "a.mp4"), keep=0.95), TruncatedVideo, "cut off"),
    "only ftyp": (lambda d: cut(write_video(d / "a.mp4"), keep=0.01), TruncatedVideo, "cut off"),
    "every packet damaged": (
        lambda d: damage(write_video(d / "a.mp4", num_frames=8, num_b_frames=0), range(8)),
        NoFrames,
        "no frame of it decodes",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_name_the_reason(way, tmp_path, case):
    make, error_class, words = UNUSABLE[case]
    path = str(make(tmp_path))
    for use in (way.open, way.probe):
        with pytest.raises(VideoError, match=words) as caught:
            use(path)
        assert type(caught.value) is error_class
        assert caught.value.video == path
        assert "\n" not in str(caught.value)


def test_no_permission(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=2)

    def refuse(*_args: object) -> None:  # chmod(0) does not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NotAVideo, match="permission denied"):
        VideoReader(str(path))


@pytest.mark.parametrize(
    ("url", "error_class"),
    [
        ("http://127.0.0.1:9/none.mp4", NotAVideo),  # the discard port: nobody listens
        ("nonsense://host/a.mp4", NotAVideo),
        ("file:///none/none.mp4", NotAVideo),
    ],
)
def test_urls_that_do_not_open(way, url, error_class):
    with pytest.raises(error_class) as caught:
        way.open(url)
    assert caught.value.video == url


def test_metadata_that_is_not_utf8(way, tmp_path):
    path = write_video(tmp_path / "a.mkv", num_frames=3, metadata={"title": "XXXXX"})
    assert b"XXXXX" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"XXXXX", "élève".encode("latin-1")))
    assert indices(way.read(path)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["take:2.mp4", "a b'\"$.mp4", "100%d.mp4", "été-日本.mp4", b"\xff\xfe.mp4", "-x.mp4"])
def test_odd_names(way, tmp_path, name):
    path = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    write_video(tmp_path / "a.mp4", num_frames=3).rename(path)
    assert indices(way.read(path)) == [0, 1, 2]


def test_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), num_frames=3).rename("x:y.mp4")
    assert indices(list(VideoReader("x:y.mp4"))) == [0, 1, 2]
    assert probe("x:y.mp4", decode=True).num_frames_decoded == 3


# Real videos ---------------------------------------------------------------------------------------------------------

needs_videos = pytest.mark.skipif(not SHARED_VIDEOS.exists(), reason="needs the clips beside the repository")


@needs_videos
@pytest.mark.parametrize("name", ["short_32_frames.mp4", "ucf_mpeg4.avi"])
def test_real_videos_as_opencv_reads_them(way, name):
    capture = cv2.VideoCapture(str(SHARED_VIDEOS / name))
    frames = way.read(SHARED_VIDEOS / name)
    for frame in frames:
        is_read, bgr = capture.read()
        assert is_read
        # OpenCV converts colours by other weights and interpolates chroma otherwise.
        assert np.abs(frame.rgb.astype(int) - bgr[..., ::-1]).mean() < 4
    assert not capture.read()[0]


@needs_videos
def test_packed_b_frames_of_ucf101_lie_on_a_regular_grid(way):
    frames = way.read(SHARED_VIDEOS / "ucf_mpeg4.avi")
    assert times(frames) == [i / 25 for i in range(164)]
    resampled = way.read(SHARED_VIDEOS / "ucf_mpeg4.avi", fps=Fraction(25))
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, resampled, strict=True))
