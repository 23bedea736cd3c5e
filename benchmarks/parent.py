"""Measure what a run costs this process: the readers run as usual, and a fake network drops every clip.

    python benchmarks/parent.py                          # rendered videos; some minutes
    python benchmarks/parent.py VIDEO … --end 60
    PYTHONPATH=/path/of/another/checkout python benchmarks/parent.py       # the same readers of another version

Prints a Markdown table with one row for each case, the fastest of some runs:

- parent: CPU milliseconds of this process a frame (user and system), with the start of the decoder processes (15 ms a
  run); readers: those of the decoder processes;
- MB: peak resident memory of the largest decoder process, and of this process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decode import render

from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.records import Clip, ClipOutput
from vid3d_cli.run import local
from vid3d_cli.run.threads import count_cores
from vid3d_cli.runtimes.base import Runtime


class DroppingRuntime(Runtime):
    """Drops every clip."""

    name, version, description = "none", "0", "none"

    def start(self, clips: Sequence[Clip]) -> Callable[[], list[ClipOutput]]:
        """Return at once."""
        outputs = [ClipOutput(clip.span, {}, {}) for clip in clips]
        return lambda: outputs


class DroppingNetworks:
    """Stands in for `run.load.Networks`; the result of a video is its number of frames."""

    warnings = ()

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe, self.runtime = plan, plan.recipe, DroppingRuntime("fp32", 1)

    def pool(self, read: Any, outputs: Sequence[ClipOutput]) -> int:
        """Return the number of frames."""
        return int(read.num_frames)


@dataclass(frozen=True)
class Cost:
    """Milliseconds of CPU and seconds of a run."""

    parent_ms: float
    readers_ms: float
    seconds: float
    num_frames: int
    reader_mb: float


def cpu_ms(who: int) -> float:
    """Return the CPU time so far, user and system."""
    usage = resource.getrusage(who)
    return 1000 * (usage.ru_utime + usage.ru_stime)


def children_mb() -> float:
    """Return the peak memory of the largest process of this one; 0 where there is no /proc."""
    peaks = [0.0]
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            status = Path(f"/proc/{pid}/status").read_text()
            peaks += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


def measure(plan: Plan, videos: Sequence[str], jobs: int | None) -> Cost:
    """Read all videos once."""
    before = cpu_ms(resource.RUSAGE_SELF), cpu_ms(resource.RUSAGE_CHILDREN), time.perf_counter()
    num_frames, reader_mb = 0, 0.0
    networks: Any = DroppingNetworks(plan)
    results: Any = local.run(plan, videos, networks=networks, jobs=jobs)
    for frames in results:
        num_frames += frames
        if time.perf_counter() - before[2] > 0.5 or len(videos) == 1:
            reader_mb = max(reader_mb, children_mb())
    return Cost(  # the generator has ended, and its processes with it
        cpu_ms(resource.RUSAGE_SELF) - before[0],
        cpu_ms(resource.RUSAGE_CHILDREN) - before[1],
        time.perf_counter() - before[2],
        num_frames,
        reader_mb,
    )


def table_row(name: str, plan: Plan, videos: Sequence[str], asked: argparse.Namespace) -> str:
    """Measure one case and return its row: the smallest value of each column."""
    runs = [measure(plan, videos, asked.jobs) for _ in range(asked.runs)]
    num_frames = runs[0].num_frames
    cells = [
        name,
        f"{len(videos)} × {num_frames // len(videos)}",
        f"{min(run.parent_ms for run in runs) / num_frames:.3f}",
        f"{min(run.readers_ms for run in runs) / num_frames:.2f}",
        f"{num_frames / min(run.seconds for run in runs):.0f}",
        f"{max(run.reader_mb for run in runs):.0f}",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--model", default="i3d")
    parser.add_argument("--end", help="where to stop reading: seconds, or 1:30")
    asked = parser.parse_args()
    print(f"{asked.model}'s clips, {count_cores()} cores, {local.__file__}\n")
    print("| videos | frames | parent, ms/frame | readers, ms/frame | frames/s | reader, MB | parent, MB |")
    print(f"| --- |{' ---: |' * 6}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        cases = {Path(video).name: [video] for video in asked.videos}
        if not cases:
            for width, height, num_frames in ((340, 256, 1280), (1920, 1080, 192)):
                path = directory / f"{width}x{height}.mp4"
                render(path, width, height, num_frames)
                cases[f"{width}×{height}"] = [str(path)]
            render(directory / "short.mp4", 340, 256, 50)
            cases["340×256, 2 s each"] = [str(directory / "short.mp4")] * 40
        for streams in ("rgb", "both"):
            plan = Plan.make(Options(asked.model, streams, fps="native", end_seconds=asked.end))
            for case, videos in cases.items():
                print(table_row(f"{case}, {streams}", plan, videos, asked), flush=True)


if __name__ == "__main__":
    main()
