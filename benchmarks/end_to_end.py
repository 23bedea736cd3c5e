"""Compare `vid3d extract` with its network alone: start-up, reading, waiting, memory.

    python benchmarks/end_to_end.py                            # I3D, one stream and both: some minutes on 2 cores
    python benchmarks/end_to_end.py --precision bf16 --streams both VIDEO

Runs the command in a process, with untrained weights (speed does not depend on their values), and then the same clips,
read beforehand, through the same network in this process. Prints a Markdown table with one row per run:

- s: the whole process; network: as `-v` reports it; alone: the same clips without readers, after a warm-up;
- beyond: the rest of the process's time: imports, weights, the first pass, reading, waiting, writing;
- waited: share of the network's time in which it had no clip; readers: seconds of all their threads together;
- a minute: seconds that a minute of this video takes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from decode import SHARED, render

from vid3d_cli.models.manifest import find_model
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.run.load import Networks, load
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.run.threads import count_cores
from vid3d_cli.runtimes.estimate import save_random_weights
from vid3d_cli.video.process import probe

VIDEOS = ("v_GGSY1Qvo990.mp4", "arm_wrestling.mp4")
"""320×240, 355 frames; 340×256, 280 frames."""


@dataclass(frozen=True)
class Run:
    """The time and memory of a process."""

    seconds: float
    peak_mb: float
    spent: dict[str, float]
    """Seconds by stage, as `-v` reports them."""
    num_frames: int
    num_clips: int


def default_videos(directory: Path) -> list[str]:
    """Return the videos of the checkout, or a rendered one of 340×256."""
    if SHARED.is_dir():
        return [str(SHARED / name) for name in VIDEOS]
    render(directory / "rendered.mp4", 340, 256)
    return [str(directory / "rendered.mp4")]


def extract(video: str, out: Path, arguments: list[str]) -> Run:
    """Run the command and return the times that it reports."""
    command = [sys.executable, "-m", "vid3d_cli", "extract", video, "--out", str(out), "--overwrite", "-v", *arguments]
    with (out.parent / "said").open("w+") as said:
        started = time.perf_counter()
        streams = [(os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=streams)
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text}")
    stages = re.search(r"^vid3d: debug: (decode .*)$", text, re.MULTILINE)
    counts = re.search(r": (\d+) frames?, (\d+) clips?", text)
    assert stages is not None and counts is not None
    spent = {stage: float(found) for stage, found in re.findall(r"(\w+) ([\d.]+) s", stages[1])}
    return Run(seconds, usage.ru_maxrss / 1024, spent, int(counts[1]), int(counts[2]))


def network_alone(networks: Networks, video: str) -> float:
    """Return the seconds that the network takes for all clips of a video."""
    with ClipReader(networks.plan, video) as reader:
        clips = list(reader)
    runtime = networks.runtime
    runtime.run(clips[: runtime.batch_size])  # the first batch is slower
    started = time.perf_counter()
    for first in range(0, len(clips), runtime.batch_size):
        runtime.run(clips[first : first + runtime.batch_size])
    return time.perf_counter() - started


def table_row(video: str, run: Run, alone: float, streams: str, fps: float) -> str:
    """Return the row of one run and its network."""
    network, waited = run.spent["network"], run.spent["waited"]
    readers = ", ".join(f"{stage} {run.spent[stage]:.1f}" for stage in ("decode", "resize", "flow"))
    cells = [
        f"{Path(video).name}, {streams}",
        f"{run.num_frames} / {run.num_clips}",
        f"{run.seconds:.1f}",
        f"{network:.1f} (alone {alone:.1f})",
        f"{run.seconds - alone:.1f}",
        f"{run.seconds / alone:.2f} ×",
        f"{waited / (waited + network):.1%}",
        readers,
        f"{run.num_frames / run.seconds:.1f}",
        f"{60 * fps * run.seconds / run.num_frames:.0f}",
        f"{run.peak_mb:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO")
    parser.add_argument("--model", default=Options.model)
    parser.add_argument("--streams", default="rgb,both", help="rows for each of these")
    parser.add_argument("--device", default=Options.device)
    parser.add_argument("--precision", default=Options.precision)
    parser.add_argument("--runs", type=int, default=1, help="runs of each; the fastest counts")
    asked = parser.parse_args()
    entry = find_model(asked.model)
    print("| video | frames / clips | s | network, s | beyond, s | s / alone | waited | readers, s |", end="")
    print(" frames/s | s a minute | peak MB |")
    print(f"| --- |{' ---: |' * 10}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["VID3D_CACHE"] = str(directory / "cache")
        weights: dict[str, str | Path] = {}
        for stream in entry.streams:
            weights[stream] = path = directory / f"{stream}.safetensors"
            save_random_weights(path, entry.backbone, stream, entry.variant)
        arguments = ["--model", asked.model, "--device", asked.device, "--precision", asked.precision]
        for streams in asked.streams.split(","):
            own = {stream: path for stream, path in weights.items() if streams in (stream, "both")}
            flags = [word for stream, path in own.items() for word in ("--weights", f"{stream}={path}")]
            options = Options(asked.model, streams, own, device=asked.device, precision=asked.precision)
            networks = load(Plan.make(options))
            for video in asked.videos or default_videos(directory):
                out = directory / "feats.npy"
                extract(video, out, [*arguments, *flags, "--streams", streams, "--end", "3"])  # networks are converted
                runs = [extract(video, out, [*arguments, *flags, "--streams", streams]) for _ in range(asked.runs)]
                run = min(runs, key=lambda run: run.seconds)
                fps = float(networks.plan.fps or probe(video, decode=False).fps)
                print(table_row(video, run, network_alone(networks, video), streams, fps), flush=True)
    print(f"\n{networks.runtime.description}, {networks.runtime.precision}, {count_cores()} cores")


if __name__ == "__main__":
    main()
