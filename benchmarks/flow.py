"""Compare every flow method with OpenCV's TV-L1: its error, and the time per pair.

    python benchmarks/flow.py [--reference DIR]

DIR holds .npz files with prev, next (H, W) uint8 and flow (H, W, 2), OpenCV's TV-L1 with default parameters. Prints a
Markdown table. Each method is timed as `align_streams` uses it, warm and on the CPU: workers compute runs of
`pairs_per_call` pairs, with one OpenCV thread each. The time does not include reading the video.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vid3d_cli.flow.methods import FLOW_METHODS, FlowFunction, PairByPair, create_flow
from vid3d_cli.run.threads import count_cores
from vid3d_cli.workers import Workers

DEFAULT_REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "flow"
CONTRIB = "OpenCV TV-L1 (contrib)"
NUM_ROUNDS = 5
"""Timed rounds through all pairs; one more before them allocates buffers."""
MIN_PAIRS = 8
"""Repetitions of each reference pair in a round, forwards and backwards in turn."""


def mean_end_point_error(flow: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the mean distance between the vectors of two fields, in pixels."""
    return float(np.linalg.norm(np.asarray(flow, np.float64) - reference, axis=-1).mean())


@dataclass(frozen=True)
class Pair:
    """Two frames and TV-L1's flow between them."""

    name: str
    prev: NDArray[np.uint8]
    following: NDArray[np.uint8]
    tvl1: NDArray[np.float32]

    @property
    def mean_motion_px(self) -> float:
        """Mean length of TV-L1's vectors, in pixels."""
        return mean_end_point_error(self.tvl1, np.zeros_like(self.tvl1))


def read_pairs(directory: Path) -> list[Pair]:
    """Read every pair of a reference directory, or exit with a message if there is none."""
    pairs = []
    for path in sorted(directory.glob("*.npz")):
        with np.load(path) as arrays:
            pairs.append(Pair(path.stem, arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)))
    return pairs or sys.exit(
        f"no reference pairs (*.npz with prev, next, flow) in {directory}: give their directory with --reference"
    )


def create_method(name: str) -> FlowFunction:
    """Return a method of vid3d, or OpenCV's own TV-L1, which only the contrib build has."""
    if name != CONTRIB:
        return create_flow(name)
    optflow: Any = cv2.optflow  # type: ignore[attr-defined]
    return PairByPair(lambda: functools.partial(optflow.DualTVL1OpticalFlow_create().calc, flow=None))


def median_milliseconds(name: str, pairs: Sequence[Pair], num_threads: int) -> float:
    """Return the median time per pair over all rounds. It sets the threads of this process for good."""
    cv2.setNumThreads(1)
    torch.set_num_threads(num_threads)
    compute = create_method(name)
    num_pairs = compute.pairs_per_call
    num_runs = -(-MIN_PAIRS // num_pairs) * num_threads
    runs = [
        np.stack([pair.prev, pair.following] * num_pairs)[: num_pairs + 1] for pair in pairs for _ in range(num_runs)
    ]
    milliseconds = []
    with Workers(num_threads) as workers:
        for _ in range(1 + NUM_ROUNDS):
            start = time.perf_counter()
            for wait in [workers.start("flow", compute, run) for run in runs]:
                wait()
            milliseconds.append(1000 * (time.perf_counter() - start) / (len(runs) * num_pairs))
    return statistics.median(milliseconds[1:])


def table_row(name: str, pairs: Sequence[Pair], num_threads: int) -> str:
    """Measure one method and return its row."""
    compute = create_method(name)
    flows = (compute(np.stack([pair.prev, pair.following]))[0] for pair in pairs)
    errors = [mean_end_point_error(flow, pair.tvl1) for flow, pair in zip(flows, pairs, strict=True)]
    spread = f"{statistics.mean(errors):.2f} ({min(errors):.2f}–{max(errors):.2f})"
    times = (_in_a_process(name, pairs, threads) for threads in (1, num_threads))
    return f"| {name} | {spread} | {' | '.join(f'{time:.1f}' for time in times)} |"


def _in_a_process(name: str, pairs: Sequence[Pair], num_threads: int) -> float:
    """Run `median_milliseconds` in a new process, since torch cannot reduce its threads afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(median_milliseconds, name, pairs, num_threads).result()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, default=DEFAULT_REFERENCE, help="directory of reference pairs")
    pairs = read_pairs(parser.parse_args().reference)
    num_threads = count_cores()
    methods = [*FLOW_METHODS, CONTRIB] if hasattr(cv2, "optflow") else list(FLOW_METHODS)

    motions = [pair.mean_motion_px for pair in pairs]
    sizes = " and ".join(sorted({f"{pair.prev.shape[1]}×{pair.prev.shape[0]}" for pair in pairs}))
    print(f"{len(pairs)} pairs of {sizes} px, OpenCV {cv2.__version__}; mean motion by TV-L1 ", end="")
    print(f"{statistics.mean(motions):.2f} px ({min(motions):.2f}–{max(motions):.2f} over pairs)\n")
    print(
        "| method | mean EPE vs TV-L1, px (min–max over pairs) | ms/pair, 1 thread |",
        f"ms/pair, {num_threads} threads |",
    )
    print("| --- | ---: | ---: | ---: |")
    for name in methods:
        print(table_row(name, pairs, num_threads), flush=True)


if __name__ == "__main__":
    main()
