"""Measure the peak memory of `vid3d extract`: the window bounds it, not the length or number of videos.

    python benchmarks/memory.py                    # one minute against two hours, both streams: about 10 minutes
    python benchmarks/memory.py --minutes 1 10
    python benchmarks/memory.py --videos 1000 10000     # tiny ones in one run, with s3d_mini: about 15 minutes

Makes the videos (64 × 48 at 25 fps), and for the long ones untrained weights of the real network, in a temporary
directory, and runs the command in a process. A long stride keeps the network's share of the time small; every frame is
still decoded and resized, and its flow computed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

import vid3d_cli

FPS = 25


def write_video(path: Path, minutes: float) -> None:
    """Write a video of a moving pattern."""
    pattern = np.random.default_rng(0).integers(0, 255, (48, 256, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(round(minutes * 60 * FPS)):
            picture = np.ascontiguousarray(pattern[:, i % 192 : i % 192 + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def run(*arguments: str) -> tuple[float, float]:
    """Return the peak resident memory in MB and the seconds of one extraction."""
    command = [sys.executable, "-m", "vid3d_cli", "extract", "-q", *arguments]
    started = time.perf_counter()
    process = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def compare_lengths(directory: Path, lengths_minutes: list[float], streams: str) -> None:
    """Print one row per video."""
    weights = []
    for stream in ("rgb", "flow") if streams == "both" else (streams,):
        path = directory / f"{stream}.pt"
        torch.save(vid3d_cli.create_model("i3d", stream=stream).state_dict(), path)
        weights += ["--weights", f"{stream}={path}"]
    warm = directory / "warm.mp4"
    write_video(warm, 0.05)
    run(str(warm), "--out", str(warm.with_suffix(".npy")), "--streams", streams, *weights)  # OpenVINO converts, once
    print("| video | clips | peak memory, MB | time, s |\n| ---: | ---: | ---: | ---: |")
    for minutes in lengths_minutes:
        video = directory / f"{minutes:g}.mp4"
        write_video(video, minutes)
        stride = max(64, round(minutes * 60 * FPS) // 20)
        out = video.with_suffix(".npy")
        peak_mb, seconds = run(str(video), "--out", str(out), "--stride", str(stride), "--streams", streams, *weights)
        num_clips = len(np.load(out, mmap_mode="r"))
        print(f"| {minutes:g} min | {num_clips} | {peak_mb:.0f} | {seconds:.0f} |", flush=True)


def compare_numbers(directory: Path, numbers: list[int], streams: str) -> None:
    """Print one row per number of videos."""
    first = directory / "tiny.mp4"
    write_video(first, 0.5 / 60)
    print("| videos | clips | peak memory, MB | time, s |\n| ---: | ---: | ---: | ---: |")
    for number in numbers:
        videos = directory / str(number)
        videos.mkdir()
        for i in range(number):
            shutil.copyfile(first, videos / f"{i:06d}.mp4")
        out = directory / f"{number}.npy"
        peak_mb, seconds = run(str(videos), "--out", str(out), "--model", "s3d_mini", "--streams", streams)
        print(f"| {number} | {len(np.load(out, mmap_mode='r'))} | {peak_mb:.0f} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Compare lengths, or numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 120])
    parser.add_argument("--videos", type=int, nargs="+")
    parser.add_argument("--streams", default="both")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if options.videos:
            compare_numbers(Path(directory), options.videos, options.streams)
        else:
            compare_lengths(Path(directory), options.minutes, options.streams)


if __name__ == "__main__":
    main()
