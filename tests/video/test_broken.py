"""Broken and odd videos: none crashes, hangs or gives a wrong number of rows; errors name the reason."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from broken import CASES, Case, can_write, flip, packets, video_bytes, write_corpus
from videos import read_index

from vid3d_cli.clips.windows import count_clips, sliding_clips
from vid3d_cli.errors import DamagedVideo, VideoError
from vid3d_cli.features.entries import readable
from vid3d_cli.records import Frame
from vid3d_cli.video import container as container_module
from vid3d_cli.video.clock import MAX_JUMP_SECONDS
from vid3d_cli.video.reader import VideoInfo, VideoReader

WINDOW = 10
PYTHON_INTERNALS = re.compile(r"Traceback|Error\(|Errno|0x[0-9a-f]{6,}|<class|object at|site-packages|\bav[._]|None")
"""Internals that no message shows."""

good_cases = pytest.mark.parametrize("case", [case for case in CASES if case.error is None], ids=str)
bad_cases = pytest.mark.parametrize("case", [case for case in CASES if case.error is not None], ids=str)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[Case, Path]:
    """The file of every case."""
    return {case: path for path, case in write_corpus(tmp_path_factory.mktemp("corpus"))}


def path_of(case: Case, corpus: dict[Case, Path]) -> Path:
    if not can_write(case):
        pytest.skip(f"this PyAV has no encoder {case.encoder}")
    return corpus[case]


def read(path: Path, fps: Fraction | None = None) -> tuple[list[Frame], int]:
    """Return all frames, and the count of lost and damaged ones."""
    with VideoReader(str(path), fps=fps) as reader:
        return until_damaged(reader), reader.num_lost_frames


def until_damaged(reader: VideoReader) -> list[Frame]:
    """Return all frames, also of a video that has lost most of them."""
    frames: list[Frame] = []
    with contextlib.suppress(DamagedVideo):  # raised after the last frame
        frames.extend(reader)
    return frames


def probe(path: str) -> VideoInfo:
    with VideoReader(path) as reader:
        return reader.count_frames()


def test_the_corpus_is_large_enough():
    assert len(CASES) == len({case.name for case in CASES}) >= 60
    assert sum(can_write(case) for case in CASES) >= 40


# One by one ----------------------------------------------------------------------------------------------------------


@bad_cases
def test_broken_files_name_the_reason(case, corpus):
    path = str(path_of(case, corpus))
    for use in (VideoReader, probe):
        with pytest.raises(VideoError) as caught:
            use(path)
        assert type(caught.value) is case.error
        assert caught.value.video == path
        check_message(caught.value.message)


def check_message(message: str) -> None:
    assert message
    assert "\n" not in message
    assert not PYTHON_INTERNALS.search(message)


@good_cases
def test_every_decodable_frame_is_read(case, corpus):
    path = path_of(case, corpus)
    frames, num_lost = read(path)
    assert len(frames) in case.num_frames
    assert num_lost in case.num_lost
    if case.shows is not None:
        assert [read_index(frame.rgb) for frame in frames] == list(case.shows)
    assert len({frame.rgb.shape for frame in frames}) == 1
    assert all(frame.seconds < frame.end_seconds for frame in frames)
    info = probe(str(path))
    assert info.num_frames_decoded == len(frames)
    assert info.num_lost_frames in case.num_lost


@good_cases
def test_at_half_the_usual_rate(case, corpus):
    path = path_of(case, corpus)
    (*_, last), _ = read(path)
    resampled, _ = read(path, fps=Fraction(25, 2))
    rounding = 0.0025  # seconds, at most, of the sum of a time and a duration
    fewest = math.ceil((last.end_seconds - rounding) * 12.5)
    most = max(math.ceil(last.end_seconds * 12.5), math.floor((last.seconds + rounding) * 12.5) + 1)
    assert fewest <= len(resampled) <= most
    assert [frame.seconds for frame in resampled] == [float(k * Fraction(2, 25)) for k in range(len(resampled))]


def test_frames_that_grow_too_large_count_as_damaged(corpus, monkeypatch):
    (case,) = [case for case in CASES if case.name == "two sizes.mjpeg"]
    path = path_of(case, corpus)
    monkeypatch.setattr(container_module, "_DECODER_OPTIONS", {"max_pixels": str(64 * 48)})
    frames, num_lost = read(path)
    assert (len(frames), num_lost) == (24, 24)


# Lost frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"with_audio": True}, {"num_b_frames": 2}], ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_frames_after_a_cut_are_counted_as_lost(tmp_path, suffix, options):
    data = video_bytes(suffix, is_index_first=suffix != ".avi", num_frames=60, **options)
    found = packets(data)
    path = tmp_path / f"a{suffix}"
    for end in np.linspace(sum(found[1]), sum(found[-2]), 16, dtype=int):
        path.write_bytes(data[:end])
        frames, num_lost = read(path)
        assert len(frames) < 60
        assert len(frames) + num_lost in (60, 61)  # the frame that the cut goes through may be given, damaged
    path.write_bytes(data)
    assert read(path)[1] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_lost_frames_are_counted_after_a_seek(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    data = video_bytes(suffix, is_index_first=suffix == ".mp4", num_frames=300)
    path.write_bytes(data[: packets(data)[200][0]])
    with VideoReader(str(path), start_seconds=6) as reader:
        frames = until_damaged(reader)
        assert 40 < len(frames) <= 50
        assert len(frames) + reader.num_lost_frames == 150


def test_frames_after_the_span_are_not_lost(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(video_bytes(".mp4", is_index_first=True)[:-200])
    assert probe(str(path)).num_lost_frames
    with VideoReader(str(path), end_seconds=0.2) as reader:
        assert len(list(reader)) == 5
        assert reader.num_lost_frames == 0


SHARED_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"


@pytest.mark.skipif(not SHARED_VIDEOS.exists(), reason="needs the clips beside the repository")
@pytest.mark.parametrize("name", ["ucf_mpeg4.avi", "v_GGSY1Qvo990.mp4"])
def test_a_real_video_loses_frames_only_when_cut(tmp_path, name):
    path = SHARED_VIDEOS / name
    info = probe(str(path))
    assert (info.num_frames_decoded, info.num_lost_frames) == (info.num_frames_declared, 0)
    (tmp_path / name).write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    cut = probe(str(tmp_path / name))
    assert cut.num_frames_decoded < info.num_frames_declared
    assert cut.num_frames_decoded + cut.num_lost_frames - info.num_frames_declared in (0, 1)


# Whole jobs ----------------------------------------------------------------------------------------------------------


def extract(vid3d, paths: list[Path], *, streams: str):
    """Run `vid3d extract`; return its result, the video of each row, and the failures."""
    options = ("--out", "x.npy", "--failures", "bad.jsonl", "--streams", streams, "--window", WINDOW)
    result = vid3d("extract", "-0", "-", *options, stdin=b"\0".join(os.fsencode(path) for path in paths))
    assert Path("bad.jsonl").exists(), result.output
    rows = [json.loads(line) for line in Path("x.index.jsonl").read_text().splitlines()]
    failures = [json.loads(line) for line in Path("bad.jsonl").read_text().splitlines()]
    return result, [row["video"] for row in rows if "row" in row], failures


def num_rows(path: Path) -> int:
    frames, _ = read(path, fps=Fraction(25))
    return count_clips(len(frames), length=WINDOW, stride=WINDOW)


def test_a_job_over_the_corpus(corpus, vid3d, decoder_processes, tiny_model):
    files = {case: path for case, path in corpus.items() if not case.is_no_file}
    result, rows, failures = extract(vid3d, list(files.values()), streams="both")
    assert result.exit_code == 1
    assert {failure["video"]: failure["error"] for failure in failures} == {
        str(path): case.error.__name__ for case, path in files.items() if case.error is not None
    }
    assert len(failures) == len({failure["video"] for failure in failures})
    for failure in failures:
        check_message(failure["message"])
    assert Counter(rows) == {readable(str(path)): num_rows(path) for case, path in files.items() if case.error is None}
    assert len(np.load("x.npy")) == len(rows)
    assert "Traceback" not in result.output
    for case, path in files.items():
        if case.num_lost.start > 0:
            assert f"{path}: " in result.stderr, "its lost frames are not reported"


@pytest.mark.parametrize("num_videos", [15, pytest.param(60, marks=pytest.mark.exhaustive)])
def test_a_job_over_flipped_bytes(vid3d, decoder_processes, tiny_model, tmp_path, num_videos):
    data = flippable_video(".mp4")
    paths = [tmp_path / f"{seed}.mp4" for seed in range(num_videos)]
    for seed, path in enumerate(paths):
        path.write_bytes(flip(data, seed))
    result, rows, failures = extract(vid3d, paths, streams="rgb")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    failed = {failure["video"] for failure in failures}
    assert len(failures) == len(failed) > 0
    for failure in failures:
        check_message(failure["message"])
    assert Counter(rows) == {str(path): num_rows(path) for path in paths if str(path) not in failed}


# Flipped bytes -------------------------------------------------------------------------------------------------------

NUM_FLIPPED_FRAMES = 12

MAX_FRAMES = NUM_FLIPPED_FRAMES * (float(MAX_JUMP_SECONDS) * 25 + 1)
"""Of a video with flipped times: each frame may last as long as the longest believed jump."""


def flippable_video(suffix: str) -> bytes:
    return video_bytes(suffix, num_frames=NUM_FLIPPED_FRAMES, num_b_frames=2)


NUM_SEEDS = {".mp4": 500, ".webm": 200, ".avi": 200, ".ts": 200, ".mkv": 100, ".flv": 100}


def read_flipped(directory: Path, suffix: str, seeds: range) -> Counter[str]:
    """Read a video with flipped bytes for each seed, and check it; return what happened, counted."""
    data = flippable_video(suffix)
    path = directory / f"a{suffix}"
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        path.write_bytes(flip(data, seed, num_bytes=1 + seed % 3))
        try:
            info = probe(str(path))
            frames, num_lost = read(path, fps=[None, Fraction(25)][seed % 2])
        except VideoError as error:
            check_message(error.message)
            outcomes[type(error).__name__] += 1
            continue
        assert info.num_frames_decoded <= NUM_FLIPPED_FRAMES + 1, "invented frames"
        assert 0 < len(frames) <= MAX_FRAMES
        assert max(num_lost, info.num_lost_frames) <= NUM_FLIPPED_FRAMES
        clips = list(sliding_clips(frames, length=WINDOW, stride=WINDOW))
        assert len(clips) == count_clips(len(frames), length=WINDOW, stride=WINDOW)
        outcomes["frames lost" if num_lost else "whole"] += 1
    return outcomes


def check_outcomes(outcomes: Counter[str]) -> None:
    assert outcomes["whole"] > outcomes.total() / 10
    assert outcomes["whole"] < outcomes.total() * 0.99, "nothing was damaged: does the test still flip?"


def test_flipped_bytes_do_no_harm(tmp_path):
    outcomes: Counter[str] = Counter()
    for suffix, num_seeds in NUM_SEEDS.items():
        outcomes += read_flipped(tmp_path, suffix, range(num_seeds // 13))  # 100 in all
    check_outcomes(outcomes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", NUM_SEEDS)
def test_many_flipped_bytes_do_no_harm(tmp_path, suffix):
    check_outcomes(read_flipped(tmp_path, suffix, range(NUM_SEEDS[suffix])))
