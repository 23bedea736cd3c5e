"""Peak memory of `vid3d extract` on a short and on a long video: it is bounded by the window, not by the video.

    python benchmarks/memory.py                    # one minute against two hours, both streams: about 10 minutes
    python benchmarks/memory.py --minutes 1 10

Makes the videos (64 × 48 at 25 fps) and untrained weights of the real network in a temporary directory, and runs the
command as a process of its own. A long stride keeps the network's share of the time small: every frame is decoded,
resized and flowed all the same.
"""

from __future__ import annotations

import argparse
import os
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


def run(video: Path, weights: dict[str, Path], stride: int, streams: str) -> tuple[float, float]:
    """Peak resident memory in MB and seconds of one extraction."""
    out = video.with_suffix(".npy")
    command = [sys.executable, "-m", "vid3d_cli", "extract", str(video), "--out", str(out), "--stride", str(stride)]
    command += ["--streams", streams]
    for stream, path in weights.items():
        if streams in (stream, "both"):
            command += ["--weights", f"{stream}={path}"]
    started = time.perf_counter()
    process = os.spawnv(os.P_NOWAIT, sys.executable, command)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    """Print one row a video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs=2, default=[1, 120])
    parser.add_argument("--streams", default="both")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        weights = {}
        for stream in ("rgb", "flow"):
            weights[stream] = Path(directory) / f"{stream}.pt"
            torch.save(vid3d_cli.create_model("i3d", stream=stream).state_dict(), weights[stream])
        print("| video | clips | peak memory, MB | time, s |\n| ---: | ---: | ---: | ---: |")
        for minutes in options.minutes:
            video = Path(directory) / f"{minutes:g}.mp4"
            write_video(video, minutes)
            num_frames = round(minutes * 60 * FPS)
            stride = max(64, num_frames // 20)
            peak_mb, seconds = run(video, weights, stride, options.streams)
            num_clips = len(np.load(video.with_suffix(".npy"), mmap_mode="r"))
            print(f"| {minutes:g} min | {num_clips} | {peak_mb:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
