"""The film, `-o labelled.mp4`, read back by PyAV."""

import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from broken import CASES
from disks import file_size_limit
from PIL import ImageFont
from videos import damage, read_index, write_video

import vid3d_cli.predictions.overlay as overlay_module
import vid3d_cli.video.audio as audio_module
from vid3d_cli.errors import DecoderHangs, NotAVideo, OutputError, UsageError, VideoNotFound
from vid3d_cli.predictions.colours import DARK, class_colours
from vid3d_cli.predictions.formats import Choices
from vid3d_cli.predictions.outputs import open_outputs
from vid3d_cli.predictions.overlay import Overlay, _choose_font, _shorten, _sweep
from vid3d_cli.recipe import Recipe
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.results import VideoResult
from vid3d_cli.segments import Segment, SegmentRule
from vid3d_cli.video.audio import AudioCopy
from vid3d_cli.video.process import Decoders, probe

LABELS = ("running", "jumping", "日本語 --> </script> \n\u202e\udcff 🎉 שלום")


def make_result(video, end_seconds=1.2, classes=(0, 1, 2), start_seconds=0.0):
    """Return a result whose clips, of equal length, show these classes one after the other."""
    bounds = np.linspace(start_seconds, end_seconds, len(classes) + 1).tolist()
    clips = []
    for n, k in enumerate(classes):
        logits = {"rgb": np.float32([5 * (i == k) for i in range(len(LABELS))])}
        logits["fused"] = logits["rgb"]
        span = ClipSpan(n, 16 * n, 16, bounds[n], bounds[n + 1])
        clips.append(ClipOutput(span, {"rgb": np.zeros(2, np.float32)}, logits))
    recipe = Recipe(
        "i3d", {}, "25", 0.0, None, 16, 16, "pad", "none", "centre", False, None, "pooled", None, "torch", "fp32", {}
    )
    return VideoResult(str(video), tuple(clips), clips[0].logits, LABELS, 25.0, 30, 0, recipe)


def film(video, path, **choices):
    make_result(video).save(path, **choices)
    return path


def read_times(path):
    """Exact times of all frames, from the start of the file."""
    with av.open(str(path)) as container:
        start = Fraction(container.start_time or 0, 1_000_000)
        return [frame.pts * frame.time_base - start for frame in container.decode(video=0)]


def read_frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read_audio(path, track=0):
    """Time and bytes of every audio packet."""
    with av.open(str(path)) as container:
        start = Fraction(container.start_time or 0, 1_000_000)
        packets = container.demux(container.streams.audio[track])
        return [(p.pts * p.time_base - start, bytes(p)) for p in packets if p.size]


OFFBEAT = (0, 0.1, 0.5, 0.52, 0.54, 1.0, 1.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("variable.mp4", {"times_seconds": OFFBEAT}),
        ("late.ts", {"times_seconds": [1000 + Fraction(i, 25) for i in range(12)]}),
        pytest.param("variable.mkv", {"times_seconds": OFFBEAT}, marks=pytest.mark.exhaustive),
        pytest.param("ntsc.mp4", {"fps": Fraction(30000, 1001)}, marks=pytest.mark.exhaustive),
    ],
)
def test_frames_keep_their_times_exactly(tmp_path, name, options):
    source = write_video(tmp_path / name, **options)
    times = read_times(film(source, tmp_path / "film.mp4"))
    assert times == read_times(source)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")


def test_audio_is_copied_and_keeps_its_offset(tmp_path):
    late = [Fraction(20001, 60000) + Fraction(i, 25) for i in range(25)]
    source = write_video(tmp_path / "a.mp4", times_seconds=late, with_audio=True, options={"movie_timescale": "60000"})
    path = film(source, tmp_path / "film.mp4")
    assert read_times(path) == read_times(source) == late
    assert read_audio(path) == read_audio(source)
    assert len(read_audio(path)) > 50
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # browsers play it at once


def _write_with_tracks(path, codecs, seconds=1, start_seconds=0.0):
    """Write a video of one second with audio tracks of some codecs, which start later."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        tracks = [container.add_stream(codec, rate=48000, layout="mono") for codec in codecs]
        for number, track in enumerate(tracks):
            wave = np.sin(np.arange(48000 * seconds) * 2 * np.pi * 300 * (number + 1) / 48000)
            frame = av.AudioFrame.from_ndarray((wave[None] * 2e4).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), round(48000 * start_seconds)
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
        for _ in range(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))))
        container.mux(video.encode(None))
    return path


def test_audio_that_mp4_cannot_hold_becomes_aac_at_its_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))  # nothing is left there by a film that is stopped
    source = _write_with_tracks(tmp_path / "a.mkv", ["pcm_s16le", "mp3"], seconds=2, start_seconds=0.25)
    path = film(source, tmp_path / "film.mp4")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with av.open(str(path)) as container:
        assert [s.codec_context.name for s in container.streams.audio] == ["aac", "mp3float"]
        frames = list(container.decode(audio=0))
    sound = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    begins_seconds = float(frames[0].pts * frames[0].time_base) + np.flatnonzero(np.abs(sound) > 0.2)[0] / 48000
    assert begins_seconds == pytest.approx(0.25, abs=0.002)
    assert abs(len(sound) / 48000 - 2) < 0.05  # it is longer than the video
    spectrum = np.abs(np.fft.rfft(sound[4800:52800]))
    assert abs(int(spectrum.argmax()) - 300) <= 1
    assert [data for _, data in read_audio(path, 1)] == [data for _, data in read_audio(source, 1)]


@pytest.mark.exhaustive
def test_damaged_audio_fails_nothing(tmp_path):
    source = _write_with_tracks(tmp_path / "a.ts", ["aac"])
    with av.open(str(source)) as container:
        payloads = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    data = source.read_bytes()
    for payload in payloads[3:6]:
        data = data.replace(payload[:50], bytes(50))
    source.write_bytes(data)
    film(source, tmp_path / "film.mp4")
    assert len(read_times(tmp_path / "film.mp4")) == 25
    assert len(read_audio(tmp_path / "film.mp4")) >= len(payloads) / 2


@pytest.mark.exhaustive
def test_only_tracks_that_do_not_decode_are_left_out(tmp_path, caplog):
    source = _write_with_tracks(tmp_path / "a.mkv", ["mp3", "tta"])
    data = source.read_bytes()
    for _, payload in read_audio(source, 1):
        data = data.replace(payload, b"\xff" * len(payload))
    source.write_bytes(data)
    path = film(source, tmp_path / "film.mp4")
    assert "cannot read them: 1" in caplog.text
    assert read_audio(path) == read_audio(source)
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1


@pytest.mark.exhaustive
def test_a_track_of_an_unknown_codec_is_left_out_with_a_warning(tmp_path, caplog):
    source = _write_with_tracks(tmp_path / "a.mkv", ["flac"])
    source.write_bytes(source.read_bytes().replace(b"A_FLAC", b"A_FLUX"))
    assert len(read_times(film(source, tmp_path / "film.mp4"))) == 25
    assert "cannot read them: 1" in caplog.text


def test_audio_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, caplog, monkeypatch):
    source = _write_with_tracks(tmp_path / "a.mkv", ["mp3"])
    ask = audio_module._ask
    monkeypatch.setattr(audio_module, "_ask", lambda video, decoders: ask(f"{video}?", decoders))
    path = film(source, tmp_path / "film.mp4")
    assert "its audio is left out" in caplog.text
    assert len(read_times(path)) == 25
    with av.open(str(path)) as container:
        assert not container.streams.audio


@pytest.mark.exhaustive
def test_audio_whose_decoder_dies_ends_there(tmp_path, caplog):
    source = _write_with_tracks(tmp_path / "a.mkv", ["flac"], seconds=60)
    with Decoders(20) as decoders, av.open(str(tmp_path / "film.mp4"), "w") as target:
        audio = AudioCopy(probe(str(source), decode=False), decoders)
        audio.begin(target, Fraction(0))
        audio.copy_until(Fraction(1))
        for decoder in decoders._lent:
            decoder.process.kill()
        audio.copy_until(None)
    assert "its audio is left out from there on" in caplog.text
    assert 10 < len(read_audio(tmp_path / "film.mp4")) < len(read_audio(source))


def _cut_between_keyframes(tmp_path):
    """Write a transport stream with a flash and a beep at 2 s, which begins between two keyframes."""
    whole = tmp_path / "whole.ts"
    with av.open(str(whole), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 64, 48, "yuv420p", 25
        audio = container.add_stream("mp2", rate=48000, layout="mono")
        wave = np.zeros(48000 * 4, np.int16)
        wave[96000:100800] = 20000 * np.sin(np.arange(4800) / 8)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        sound = [*audio.encode(frame), *audio.encode(None)]
        for n in range(100):
            level = 255 if 50 <= n < 53 else 20
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8))))
            while sound and sound[0].pts * sound[0].time_base < (n + 1) / 25:
                container.mux(sound.pop(0))
        container.mux(video.encode(None))
    cut = tmp_path / "cut.ts"
    data = whole.read_bytes()
    cut.write_bytes(data[: 188 * 3] + data[len(data) // 8 // 188 * 188 :])  # with its tables
    return cut


def _flash_and_beep_seconds(path):
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        flash = next(float(f.time) for f in frames if f.to_ndarray(format="gray")[:20].mean() > 150)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0].astype(float)) > 0.1)
            if len(loud):
                return flash, float(frame.time) + loud[0] / 48000
    raise AssertionError("no beep")


def test_audio_stays_with_the_picture_of_a_video_that_was_cut_between_keyframes(tmp_path):
    source = _cut_between_keyframes(tmp_path)
    flash, beep = _flash_and_beep_seconds(source)
    assert abs(flash - beep) < 0.05
    flash, beep = _flash_and_beep_seconds(film(source, tmp_path / "film.mp4"))
    assert abs(flash - beep) < 0.05
    with av.open(str(source)) as container:  # a cut that decoders show from its first keyframe on
        first = next(container.decode(video=0)).time
        start = container.start_time / 1e6
    assert probe(str(source), decode=False).start_offset_seconds == pytest.approx(first - start, abs=0.001)
    assert first - start > 0.2


def test_this_process_opens_nothing_of_the_video(tmp_path, monkeypatch):
    source = _write_with_tracks(tmp_path / "a.mkv", ["pcm_s16le"])
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda file, *args, **kw: opened.append(str(file)) or real(file, *args, **kw))
    film(source, tmp_path / "film.mp4")
    assert opened
    assert not [name for name in opened if name.endswith("a.mkv")]


def test_a_video_that_stalls_fails_after_the_timeout(tmp_path):
    source = write_video(tmp_path / "a.mp4")
    choices = Choices(SegmentRule(), timeout=0.001)
    with (
        pytest.raises(DecoderHangs),
        open_outputs([tmp_path / "film.mp4"], [], choices, {"a": str(source)}) as outputs,
    ):
        outputs.write(make_result(source), "a")
    assert not (tmp_path / "film.mp4").exists()


def _near(pixel, colour):
    return np.abs(pixel.astype(int) - np.array(list(bytes.fromhex(colour[1:])))).max() < 40


def test_labels_and_playhead_are_drawn_at_their_time(tmp_path):
    source = write_video(tmp_path / "a.mp4", num_frames=30, width=320, height=240, options={})
    frames = read_frames(film(source, tmp_path / "film.mp4"))
    assert [read_index(frame[:180]) >= 0 for frame in frames] == [True] * 30
    y = 240 - 7 - 2  # on the timeline
    colours = list(class_colours(LABELS, DARK).values())
    for frame in frames[3:8]:  # the playhead is elsewhere
        assert all(_near(frame[y, x], colour) for x, colour in zip((100, 170, 290), colours, strict=True))
    for n in (2, 12, 22):  # the chip has the colour of the current label
        assert _near(frames[n][213, 10], colours[n // 10])
        assert frames[n][y, 7 + round(306 * n / 30)].min() > 150  # the playhead is white
    text = [frame[205:222, 24:120].astype(int) for frame in frames]
    assert np.abs(text[2] - text[12]).max() > 100  # another label
    assert np.abs(text[4] - text[6]).mean() < 25  # the same one, on another frame


def test_frames_outside_the_clips_have_no_label_and_are_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vid3d_cli.predictions.film._PROGRESS_SECONDS", 0)
    caplog.set_level("INFO")
    source = write_video(tmp_path / "a.mp4", num_frames=30, width=320, height=240)
    result = make_result(source, start_seconds=0.4, end_seconds=0.8, classes=(0,))
    result.save(tmp_path / "film.mp4")
    frames = read_frames(tmp_path / "film.mp4")
    assert len(frames) == 30
    assert "50 % written" in caplog.text
    has_label = [_near(frame[213, 10], class_colours(LABELS, DARK)["running"]) for frame in frames]
    assert [n for n, seen in enumerate(has_label) if seen] == list(range(10, 20))


def test_a_rotated_video_is_upright_without_a_tag(tmp_path):
    source = write_video(tmp_path / "a.mp4", width=240, height=320, rotation_degrees=90, num_frames=5)
    frames = read_frames(film(source, tmp_path / "film.mp4"))
    assert frames[0].shape == (320, 240, 3)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0
    assert np.abs(frames[3][:200].astype(int) - 40).mean() < 20  # 3 in binary: only the lower row is bright


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [
        (8, 6, 8),
        pytest.param(64, 48, 5, marks=pytest.mark.exhaustive),
        pytest.param(340, 255, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_small_videos_are_enlarged_and_one_frame_is_enough(tmp_path, width, height, factor):
    source = write_video(tmp_path / "a.mkv", num_frames=1, width=width, height=height, codec="ffv1")
    (frame,) = read_frames(film(source, tmp_path / "film.mp4"))
    assert frame.shape[:2] == (height * factor + height * factor % 2, width * factor)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert float(container.streams.video[0].duration * container.streams.video[0].time_base) == pytest.approx(0.04)


@pytest.mark.exhaustive
def test_lost_frames_leave_a_gap(tmp_path):
    source = write_video(tmp_path / "a.mp4", gop=1, num_b_frames=0)
    whole = read_times(source)
    film(damage(source, [4, 5, 6]), tmp_path / "film.mp4")
    times = read_times(tmp_path / "film.mp4")
    assert set(times) < set(whole)
    assert len(times) >= 24


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [c for c in CASES if c.num_frames is not None and c.error is None], ids=str)
def test_strange_videos_become_films(tmp_path, case):
    source = tmp_path / case.name
    try:
        case.make(source)
    except (av.error.FFmpegError, ValueError, OSError):
        pytest.skip("cannot be written here")
    film(source, tmp_path / "film.mp4")
    times = read_times(tmp_path / "film.mp4")
    assert len(times) in case.num_frames
    assert times == sorted(set(times))


def test_sources_that_cannot_be_read_again(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(NotAVideo, match="a second time"):
        film(tmp_path / "pipe.mp4", tmp_path / "film.mp4")
    with pytest.raises(VideoNotFound):
        film(tmp_path / "gone.mp4", tmp_path / "film.mp4")
    assert not (tmp_path / "film.mp4").exists()


def test_the_source_is_never_replaced(tmp_path):
    source = write_video(tmp_path / "a.mp4")
    before = source.read_bytes()
    (tmp_path / "b.mp4").symlink_to(source)
    for target in (source, tmp_path / "b.mp4"):
        with pytest.raises(UsageError):
            film(source, target, overwrite=True)
    assert source.read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path):
    source = _write_with_tracks(tmp_path / "a.mkv", ["mp3"], seconds=30)
    before = sorted(tmp_path.iterdir())
    with file_size_limit(210_000), pytest.raises(OutputError, match=r"film\.mp4: cannot be written"):
        film(source, tmp_path / "film.mp4")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.exhaustive
def test_a_playlist_opens_nothing_unless_it_is_allowed(tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=10)
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(NotAVideo, match="playlist"):
        film(playlist, tmp_path / "film.mp4")
    assert len(read_times(film(playlist, tmp_path / "film.mp4", allow_playlists=True))) == 10


# Drawing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (6, 8), (48, 64), (240, 320), (1000, 30), (2160, 3840)])
def test_every_size_and_label_can_be_drawn(size):
    segments = [Segment(i / 9, 1 - i / 9, f"{label} {'long ' * 40}", 0.9, "fused") for i, label in enumerate(LABELS)]
    overlay = Overlay(*size, [*segments, Segment(0, 0, "none", 0.0, "fused")], 0.0)
    frame = np.full((*size, 3), 255, np.uint8)
    drawn = overlay.draw(frame, 0.3)
    assert drawn.shape[:2] == overlay.size
    assert frame.min() == 255
    assert drawn[-1].max() < 200  # the band


def test_overlapping_classes_have_a_row_each():
    segments = [Segment(0, 1, label, score, "fused") for label, score in (("b", 0.5), ("a", 0.9))]
    one, two = (Overlay(240, 320, segments[:n], 1.0).draw(np.full((240, 320, 3), 255, np.uint8), 0.5) for n in (1, 2))
    assert (two[:, 0, 0] < 255).sum() > (one[:, 0, 0] < 255).sum()  # a higher band
    colours = class_colours(["b", "a"], DARK)
    column = two[:, 10].astype(int).tolist()
    where = {label: column.index(list(bytes.fromhex(colours[label][1:]))) for label in "ab"}
    assert where["a"] < where["b"]  # the best first


def test_the_best_of_many_segments_are_shown_without_comparing_all():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 100, 20_000)
    segments = [Segment(t, t + rng.uniform(0, 0.01), f"{n}", rng.random(), "fused") for n, t in enumerate(starts)]
    began = time.process_time()
    bounds, shown = _sweep(segments)
    assert time.process_time() - began < 2  # comparing all takes minutes
    assert shown[0] == shown[-1] == []
    for n in range(0, len(bounds), 997):
        expected = [s for s in segments if s.start_seconds <= bounds[n] < s.end_seconds]
        assert shown[n + 1] == sorted(expected, key=lambda s: -s.score)[:3]


def test_a_long_label_is_cut_where_it_ends_to_fit():
    font = ImageFont.load_default(20)
    text = "run " * 2000
    began = time.process_time()
    short = _shorten(text, font, 300)
    assert time.process_time() - began < 1
    assert short.endswith("…")
    assert font.getlength(short) <= 300 < font.getlength(text[: len(short) + 1] + "…")
    assert _shorten(text, font, 1) == ""


def test_characters_without_a_glyph_become_escapes(monkeypatch):
    monkeypatch.setattr(overlay_module, "_FONTS", ("",))
    _choose_font.cache_clear()
    assert _choose_font("high jump", 20)[0] == "high jump"
    assert _choose_font("pêche 跳", 20)[0] == r"peche \u8df3"
    assert _choose_font("a\nb\udcff", 20)[0] == r"a\nb\xff"
    _choose_font.cache_clear()


# Memory --------------------------------------------------------------------------------------------------------------

_PEAK = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_film import make_result
make_result(sys.argv[2], end_seconds=float(sys.argv[4])).save(sys.argv[3])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # ru_maxrss counts the parent's before
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_video(tmp_path):
    peaks = []
    for num_frames in (300, 3000):
        source = write_video(
            tmp_path / f"{num_frames}.mp4", num_frames=num_frames, width=320, height=240, with_audio=True
        )
        paths = ":".join(path for path in sys.path if path)
        arguments = [paths, source, tmp_path / f"film {num_frames}.mp4", str(num_frames / 25)]
        done = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 10_000  # KiB
