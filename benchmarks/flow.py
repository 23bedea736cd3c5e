"""Compare every flow method with OpenCV's TV-L1: how far it lies from it, and how long a pair takes.

    python benchmarks/flow.py [--reference DIR]

DIR holds .npz files with prev, next (H, W) uint8 and flow (H, W, 2), TV-L1's with its default parameters. Prints a
Markdown table. Times are medians of warm calls in this process, so they say nothing about reading the video.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vid3d_cli.flow import FLOW_METHODS, FlowFunction, create_flow, mean_end_point_error

DEFAULT_REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "flow"
NUM_TIMED_CALLS = 7
"""Per pair; the first, which allocates buffers, is not counted."""


@dataclass(frozen=True)
class Pair:
    """Two frames and TV-L1's flow between them."""

    name: str
    prev: NDArray[np.uint8]
    following: NDArray[np.uint8]
    tvl1: NDArray[np.float32]

    @property
    def mean_motion_px(self) -> float:
        """Mean length of TV-L1's vectors."""
        return mean_end_point_error(self.tvl1, np.zeros_like(self.tvl1))


def read_pairs(directory: Path) -> list[Pair]:
    """Read every pair of a reference directory; exits with a message when there is none."""
    paths = sorted(directory.glob("*.npz"))
    if not paths:
        sys.exit(
            f"no reference pairs (*.npz with prev, next, flow) in {directory}: name their directory by --reference"
        )
    pairs = []
    for path in paths:
        with np.load(path) as arrays:
            pairs.append(Pair(path.stem, arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)))
    return pairs


def median_milliseconds(compute: FlowFunction, pairs: Sequence[Pair], num_threads: int) -> float:
    """Median time of one warm call over all pairs."""
    cv2.setNumThreads(num_threads)
    seconds = []
    for pair in pairs:
        compute(pair.prev, pair.following)
        for _ in range(NUM_TIMED_CALLS):
            start = time.perf_counter()
            compute(pair.prev, pair.following)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def table_row(name: str, compute: FlowFunction, pairs: Sequence[Pair], num_threads: int) -> str:
    """Measure one method."""
    errors = [mean_end_point_error(compute(pair.prev, pair.following), pair.tvl1) for pair in pairs]
    one, several = (median_milliseconds(compute, pairs, threads) for threads in (1, num_threads))
    spread = f"{statistics.mean(errors):.2f} ({min(errors):.2f}–{max(errors):.2f})"
    return f"| {name} | {spread} | {one:.1f} | {several:.1f} |"


def contrib_tvl1() -> FlowFunction | None:
    """OpenCV's own TV-L1, where this OpenCV is the contrib build."""
    contrib: Any = getattr(cv2, "optflow", None)
    if contrib is None:
        return None
    tvl1 = contrib.DualTVL1OpticalFlow_create()
    return lambda prev, following: np.asarray(tvl1.calc(prev, following, None), dtype=np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, default=DEFAULT_REFERENCE, help="directory of reference pairs")
    pairs = read_pairs(parser.parse_args().reference)
    num_threads = cv2.getNumThreads()
    methods = {name: create_flow(name) for name in FLOW_METHODS}
    if tvl1 := contrib_tvl1():
        methods["OpenCV TV-L1 (contrib)"] = tvl1

    motions = [pair.mean_motion_px for pair in pairs]
    sizes = " and ".join(sorted({f"{pair.prev.shape[1]}×{pair.prev.shape[0]}" for pair in pairs}))
    print(f"{len(pairs)} pairs of {sizes} px, OpenCV {cv2.__version__}; mean motion by TV-L1 ", end="")
    print(f"{statistics.mean(motions):.2f} px ({min(motions):.2f}–{max(motions):.2f} over pairs)\n")
    print(
        "| method | mean EPE vs TV-L1, px (min–max over pairs) | ms/pair, 1 thread |",
        f"ms/pair, {num_threads} threads |",
    )
    print("| --- | ---: | ---: | ---: |")
    for name, compute in methods.items():
        print(table_row(name, compute, pairs, num_threads))


if __name__ == "__main__":
    main()
