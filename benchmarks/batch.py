"""Measure the overhead of a job over many short videos, beside decoding, flow and the networks.

    python benchmarks/batch.py                           # 500 videos of 2 s, both streams of s3d_mini: some minutes
    python benchmarks/batch.py --videos 100 --out feats

Renders the videos, runs `vid3d extract` on them in a process, and reads the summary of --log-json. Everything waits for
the networks' thread. So the overhead is the time that this thread spends neither on the networks nor waiting for clips
(decoding, resizing, flow): start-up (imports and loading the networks, the same for a job of any length), writing and
bookkeeping.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decode import render

FPS = 25


def make_videos(directory: Path, num_videos: int, seconds: float) -> None:
    """Write one video of 340×256, and copies of it under other names."""
    directory.mkdir()
    first = directory / "00000.mp4"
    render(first, 340, 256, num_frames=round(seconds * FPS))
    for i in range(1, num_videos):
        shutil.copyfile(first, directory / f"{i:05d}.mp4")


def main() -> None:
    """Print one row per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", nargs="+", default=["feats.npy", "feats"])
    parser.add_argument("--model", default="s3d_mini")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_videos(directory / "videos", options.videos, options.seconds)
        names = (
            "output",
            "videos",
            "clips",
            "process, s",
            "job, s",
            "networks",
            "waiting",
            "start, end",
            "else",
            "share",
        )
        print(f"| {' | '.join(names)} |\n| --- {'| ---: ' * (len(names) - 1)}|")
        for out in options.out:
            command = [sys.executable, "-m", "vid3d_cli", "extract", "--log-json", "--model", options.model]
            started = time.perf_counter()
            ended = subprocess.run(
                [*command, "--out", str(directory / out), str(directory / "videos")],
                stderr=subprocess.PIPE,
                check=False,
            )
            wall = time.perf_counter() - started
            if ended.returncode:
                sys.exit(ended.stderr.decode()[-1000:])
            lines = [json.loads(line) for line in ended.stderr.splitlines()]
            summary = next(line for line in lines if line.get("event") == "summary")
            spent, seconds = summary["stage_seconds"], summary["seconds"]
            rest = wall - spent["network"] - spent["waited"]
            times = (wall, seconds, spent["network"], spent["waited"], wall - seconds, rest)
            row = (out, options.videos, summary["clips"], *(f"{t:.1f}" for t in times), f"{rest / wall:.1%}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
