"""Jobs under full disks, limits, signals and hanging decoders; and the messages of running jobs."""

import json
import os
import re
import shutil
import signal

import pytest
from killable import run_job, start_job, wait_until
from videos import write_video

from vid3d_cli.cli import progress as progress_lines
from vid3d_cli.features.stores import open_store

OPTIONS = ("--model", "s3d_mini", "--streams", "rgb", "--window", "10", "--fps", "native")
NUM_VIDEOS = 40


@pytest.fixture
def videos(tmp_path):
    """Tiny videos, copies of each other."""
    (tmp_path / "v").mkdir()
    first = write_video(tmp_path / "v" / "00.mp4")
    for i in range(1, NUM_VIDEOS):
        shutil.copyfile(first, tmp_path / "v" / f"{i:02d}.mp4")
    return tmp_path / "v"


def messages(directory):
    text = (directory / "stderr.txt").read_text()
    assert "Traceback" not in text
    return text


def num_done(out):
    with open_store(str(out)) as store:
        return len(store.entries())


# Messages ------------------------------------------------------------------------------------------------------------


def show_progress_at_once(monkeypatch):
    monkeypatch.setattr(progress_lines, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(progress_lines, "MIN_SECONDS", 0.0)


def test_messages_as_json_lines(vid3d, tiny_model, videos, tmp_path, monkeypatch):
    show_progress_at_once(monkeypatch)
    (videos / "07.mp4").write_bytes(b"broken")
    result = vid3d("--log-json", "extract", videos, "--out", "f.npy", *OPTIONS)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    (started,) = [line for line in lines if line.get("event") == "started"]
    chosen = {"model": "s3d_mini.camera_motion", "runtime": "torch on cpu", "precision": "fp32"}
    assert started.items() >= chosen.items()
    assert started["message"] == "s3d_mini.camera_motion: rgb, fp32, PyTorch on the CPU"
    (failure,) = [line for line in lines if line.get("event") == "failure"]
    assert (failure["video"], failure["error"], failure["level"]) == (str(videos / "07.mp4"), "NotAVideo", "error")
    progress = [line for line in lines if line.get("event") == "progress"]
    assert [line["done"] + line["failed"] + line["left"] for line in progress] == [NUM_VIDEOS] * len(progress)
    assert progress[-1]["seconds_left"] == 0
    (summary,) = [line for line in lines if line.get("event") == "summary"]
    assert (summary["done"], summary["failed"], summary["left"]) == (NUM_VIDEOS - 1, 1, 0)
    assert summary["clips"] == 3 * (NUM_VIDEOS - 1)
    assert summary["stage_seconds"].keys() == {"decode", "resize", "flow", "network", "waited"}
    assert {"vid3d", "torch", "av"} <= summary["versions"].keys()
    assert summary["model"] == "s3d_mini.camera_motion"
    assert summary["has_ended"]


def test_an_interrupted_job_reports_its_progress(tmp_path, videos):
    command = ("--log-json", "extract", "v", "--out", "f", *OPTIONS)
    assert run_job(*command, cwd=tmp_path, limits={"RLIMIT_FSIZE": 9000}) == 1
    lines = [json.loads(line) for line in messages(tmp_path).splitlines()]
    (summary,) = [line for line in lines if line.get("event") == "summary"]
    assert not summary["has_ended"]
    assert summary["left"] > 0


@pytest.mark.parametrize("out", ["f.npz", "f.h5", "f.parquet"])
def test_a_full_disk_during_export_is_one_error(tmp_path, videos, out):
    pytest.importorskip({"f.h5": "h5py", "f.parquet": "pyarrow"}.get(out, "numpy"))
    command = ("extract", *sorted(f"v/{path.name}" for path in videos.iterdir())[:12], "--out", out, *OPTIONS)
    assert run_job(*command, cwd=tmp_path, limits={"RLIMIT_FSIZE": 5800}) == 1
    assert f"{out}: cannot be written: File too large" in messages(tmp_path)
    assert not (tmp_path / out).exists()
    assert run_job(*command, cwd=tmp_path) == 0
    assert num_done(tmp_path / out) == 12


def test_progress_is_printed_in_lines_without_a_terminal(vid3d, tiny_model, videos, monkeypatch):
    show_progress_at_once(monkeypatch)
    result = vid3d("extract", videos, "--out", "f.npy", *OPTIONS)
    assert f"10 of {NUM_VIDEOS} videos done, 0 failed, {NUM_VIDEOS - 10} left; " in result.stderr
    assert " clips/s; about " in result.stderr
    assert "left" not in vid3d("-q", "extract", videos, "--out", "g.npy", *OPTIONS).stderr


def test_a_short_job_prints_no_progress(vid3d, tiny_model, videos):
    assert " left; " not in vid3d("extract", videos / "00.mp4", "--out", "f.npy", *OPTIONS).stderr


def test_lost_frames_are_reported_and_stored(vid3d, decoder_processes, tiny_model, tmp_path):
    path = write_video(tmp_path / "cut.mp4", num_frames=60, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])
    result = vid3d("extract", path, "--out", "f.npy", *OPTIONS)
    assert result.exit_code == 0
    with open_store("f.npy") as store:
        (entry,) = store.entries()
    assert entry.num_lost_frames > 0
    assert 59 <= entry.num_frames + entry.num_lost_frames <= 61
    assert f"{entry.num_lost_frames} frames lost to damage" in result.stderr


# In trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "limit_bytes"), [("f.npy", 6000), ("f.npz", 6000), ("f", 9000)])
def test_a_full_disk_ends_the_job_and_keeps_finished_videos(tmp_path, videos, out, limit_bytes):
    command = ("extract", "v", "--out", out, *OPTIONS)
    assert run_job(*command, cwd=tmp_path, limits={"RLIMIT_FSIZE": limit_bytes}) == 1
    told = messages(tmp_path)
    assert "cannot be written: File too large" in told
    assert "run the same command to resume" in told
    assert 0 < num_done(tmp_path / out) < NUM_VIDEOS
    assert f"{num_done(tmp_path / out)} videos of {NUM_VIDEOS} kept in {out}" in told
    assert run_job(*command, cwd=tmp_path) == 0
    assert num_done(tmp_path / out) == NUM_VIDEOS


def test_too_many_open_files_end_the_job_and_fail_no_video(tmp_path, videos):
    command = ("extract", "v", "--out", "f.npy", *OPTIONS)
    limits = (16, 20, 24)
    codes = [run_job(*command, cwd=tmp_path, has_decoders=True, limits={"RLIMIT_NOFILE": limit}) for limit in limits]
    told = messages(tmp_path).lower()
    assert set(codes) - {0}
    assert told.count("too many open files") == len([code for code in codes if code])
    assert not (tmp_path / "f.failures.jsonl").exists()
    assert run_job(*command, cwd=tmp_path) == 0
    assert num_done(tmp_path / "f.npy") == NUM_VIDEOS


@pytest.mark.parametrize("out", ["out/f.npy", "out/f.h5", "out"])
def test_a_deleted_output_is_reported(tmp_path, videos, out):
    if out.endswith(".h5"):
        pytest.importorskip("h5py")
    job = start_job("extract", "v", "--out", out, *OPTIONS, cwd=tmp_path)
    wait_until(lambda: list((tmp_path / "out").rglob("*.videos.jsonl" if "." in out else "*.npz")), job)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    job.join()
    assert job.exitcode == 1
    # The second if it vanished while the file of a video was written.
    assert re.search("cannot be written: (another program removed or replaced it|No such file)", messages(tmp_path))


def test_an_unwritable_output_is_refused_before_any_work(tmp_path, videos):
    assert run_job("extract", "v", "--out", "/proc/self/feats.npy", *OPTIONS, cwd=tmp_path) == 1
    assert "/proc/self/feats" in messages(tmp_path)
    assert "cannot be written" in messages(tmp_path)


def test_a_second_signal_ends_the_job_at_once_without_damage(tmp_path, videos):
    command = ("extract", "v", "--out", "f.npy", *OPTIONS)
    job = start_job(*command, cwd=tmp_path)
    wait_until((tmp_path / "f.npy").exists, job)
    os.kill(job.pid, signal.SIGINT)
    os.kill(job.pid, signal.SIGTERM)
    job.join(10)
    assert job.exitcode in (130, 143)
    assert run_job(*command, cwd=tmp_path) == 0
    assert num_done(tmp_path / "f.npy") == NUM_VIDEOS


def test_a_hanging_decoder_fails_only_its_video(vid3d, decoder_processes, tiny_model, videos, tmp_path):
    (videos / "05.mp4").unlink()
    os.mkfifo(videos / "05.mp4")  # opening it never returns
    named = sorted(videos.iterdir())[:8]
    result = vid3d("extract", *named, "--out", "f.npy", "--timeout", "2", *OPTIONS)
    assert result.exit_code == 1
    assert "05.mp4: its reader made no progress for 2 s" in result.stderr
    assert num_done(tmp_path / "f.npy") == 7
    with open_store("f.npy") as store:
        assert [failed.error for failed in store.failures()] == ["DecoderHangs"]
