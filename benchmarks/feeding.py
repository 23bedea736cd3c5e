"""Measure how well the scheduler feeds the networks from several readers, without videos, weights or load on the CPU.

    python benchmarks/feeding.py                                  # one and a half minutes
    PYTHONPATH=/path/to/an/older/checkout python benchmarks/feeding.py

Fake readers and fake networks of given speeds sleep; the scheduler between them (`run.local.run`) is the real one. A
batch takes the networks the same time however few clips it holds, as on a GPU.

Readers' speed: the clips of the list over the time in which `JOBS` readers could read it, each taking the next video
when it has read one; it accounts for readers that have nothing left to read at the end of the list. Share: the speed
achieved over that of the slower side, start and end of the run included.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from vid3d_cli.records import Clip, ClipOutput, ClipSpan
from vid3d_cli.run import feeds, local

JOBS = 4
FAST, SLOW = 40.0, 8.0
"""Speeds of readers, clips per second."""

LISTS = {
    "many short": [(4, FAST)] * 80,
    "few long": [(80, FAST)] * 4,
    "one long beside many short": [(80, FAST)] + [(4, FAST)] * 60,
    "one slow among fast": [(16, SLOW)] + [(4, FAST)] * 60,
    "one fast among slow": [(16, SLOW)] * 3 + [(80, FAST)],
}
"""Videos: numbers of clips, and clips per second of their readers."""

NETWORKS = (80.0, 150.0, 400.0)
"""Speeds of networks, clips per second."""

BATCHES = ((1, 1), (8, 1), (8, 2))
"""Clips per batch, and batches in flight."""


class Reader:
    """Yields the clips of a fake video at its speed; its name is a number of clips and their rate."""

    def __init__(self, plan: object, video: str, *_: object) -> None:
        self.video, self.num_expected_clips = video, None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Clip]:
        num_clips, rate = map(float, self.video.split())
        for index in range(int(num_clips)):
            time.sleep(1 / rate)
            yield Clip(ClipSpan(index, index, 1, 0.0, 0.0), {"rgb": np.zeros((1, 8, 8, 3), np.uint8)})

    def summary(self) -> str:
        """Return what the fake networks need."""
        return self.video


class Runtime:
    """Fake networks. One batch at a time runs in `start`; more run in the background, one after the other."""

    def __init__(self, rate: float, batch_size: int, num_in_flight: int) -> None:
        self.batch_size, self.num_in_flight = batch_size, num_in_flight
        self._seconds = batch_size / rate
        self._free_at = self._overslept = 0.0

    def start(self, clips: list[Clip]) -> Any:
        """Return a function that waits for the outputs."""
        self._free_at = ends_at = max(self._free_at, time.perf_counter() - self._overslept) + self._seconds
        spans = [clip.span for clip in clips]

        def wait() -> list[ClipOutput]:
            if (seconds_left := ends_at - time.perf_counter()) > 0:
                time.sleep(seconds_left)
                self._overslept = time.perf_counter() - ends_at
            return [ClipOutput(span, {}, {}) for span in spans]

        if self.num_in_flight == 1:
            wait()
        return wait


def reading_seconds(videos: list[tuple[int, float]]) -> float:
    """Return the time in which `JOBS` readers read the list."""
    free_at = [0.0] * JOBS
    for num_clips, rate in videos:
        heapq.heapreplace(free_at, free_at[0] + num_clips / rate)
    return max(free_at)


def run(videos: list[tuple[int, float]], runtime: Runtime) -> float:
    """Return the seconds of a run."""
    networks: Any = SimpleNamespace(
        runtime=runtime, pool=lambda read, outputs: (read, len(outputs)), recipe=None, warnings=()
    )
    plan: Any = SimpleNamespace(dense=False, allow_playlists=False)
    names = [f"{num_clips} {rate}" for num_clips, rate in videos]
    started = time.perf_counter()
    results: list[Any] = list(local.run(plan, names, jobs=JOBS, networks=networks))
    assert results == [(name, num_clips) for name, (num_clips, _) in zip(names, videos, strict=True)]
    return time.perf_counter() - started


def main() -> None:
    """Print a row per run."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    setattr(feeds, "open_clips" if hasattr(feeds, "open_clips") else "ClipReader", Reader)
    print(f"{JOBS} readers; clips/s\n")
    print("| videos | batch | in flight | readers | networks | achieved | share |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, videos in LISTS.items():
        num_clips = sum(clips for clips, _ in videos)
        readers = num_clips / reading_seconds(videos)
        for batch_size, num_in_flight in BATCHES:
            for rate in NETWORKS:
                achieved = num_clips / run(videos, Runtime(rate, batch_size, num_in_flight))
                share = achieved / min(readers, rate)
                figures = f"{readers:.0f} | {rate:.0f} | {achieved:.0f} | {share:.0%}"
                print(f"| {name} | {batch_size} | {num_in_flight} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
