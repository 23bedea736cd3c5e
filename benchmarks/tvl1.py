"""Compare TV-L1 in torch with OpenCV's: how far apart the fields lie, and how long a pair takes.

    python benchmarks/tvl1.py [--reference DIR] [--device cuda] [--pairs 16]

DIR holds .npz files with prev, next (H, W) uint8 and flow (H, W, 2), OpenCV's with its default parameters. Prints two
Markdown tables: the end-point error of every pair, and the time of a pair alone and among as many as `align_streams`
hands out at a time. OpenCV's row needs opencv-contrib-python. The methods take turns, so that whatever else the
machine does meets them alike.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vid3d_cli.flow.methods import mean_end_point_error
from vid3d_cli.flow.tvl1 import pairs_per_call, tvl1_flow_of_pairs

DEFAULT_REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "flow"

NUM_PAIRS_ALONE = 5
"""Timed alone, each turn: all of the reference."""

Stack = NDArray[np.uint8]
FlowOfPairs = Callable[[Stack, Stack], NDArray[np.float32]]
"""prev, following (N, H, W) → (N, H, W, 2)."""


def contrib_tvl1() -> FlowOfPairs | None:
    """OpenCV's own, where this OpenCV is the contrib build."""
    contrib: Any = getattr(cv2, "optflow", None)
    if contrib is None:
        return None
    tvl1 = contrib.DualTVL1OpticalFlow_create()
    return lambda prev, following: np.stack(
        [tvl1.calc(one, other, None) for one, other in zip(prev, following, strict=True)]
    )


def read_pairs(directory: Path) -> dict[str, tuple[Stack, Stack, NDArray[np.float32]]]:
    """Name → prev, next, flow; exits with a message when there is none."""
    pairs = {}
    for path in sorted(directory.glob("*.npz")):
        with np.load(path) as arrays:
            pairs[path.stem] = arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)
    return pairs or sys.exit(f"no reference pairs (*.npz with prev, next, flow) in {directory}")


@dataclass
class Times:
    """What the turns of a method took."""

    wall: list[float] = field(default_factory=list)
    """Seconds a pair."""
    cpu: list[float] = field(default_factory=list)
    """The same, of all threads: hardly touched by what else the machine does."""

    def add(self, compute: FlowOfPairs, prev: Stack, following: Stack) -> None:
        """Take a turn."""
        cpu, wall = time.process_time(), time.perf_counter()
        compute(prev, following)
        self.wall.append((time.perf_counter() - wall) / len(prev))
        self.cpu.append((time.process_time() - cpu) / len(prev))

    def __str__(self) -> str:
        return f"{1000 * statistics.mean(self.wall):.0f} | {1000 * statistics.mean(self.cpu):.0f}"


def print_errors(pairs: dict[str, tuple[Stack, Stack, NDArray[np.float32]]], methods: dict[str, FlowOfPairs]) -> None:
    """A row a pair, a column a method."""
    print(f"| pair | mean motion, px | {' | '.join(f'EPE of {name}, px' for name in methods)} |")
    print("| --- | ---: |" + " ---: |" * len(methods))
    rows = []
    for name, (prev, following, flow) in pairs.items():
        motion = mean_end_point_error(flow, np.zeros_like(flow))
        flows = (compute(prev[None], following[None])[0] for compute in methods.values())
        rows.append([motion, *(mean_end_point_error(other, flow) for other in flows)])
        print(f"| {name} | {motion:.2f} | {' | '.join(f'{error:.4f}' for error in rows[-1][1:])} |")
    motion, *errors = (statistics.mean(column) for column in zip(*rows, strict=True))
    print(f"| mean | {motion:.2f} | {' | '.join(f'{error:.4f}' for error in errors)} |\n")


def print_times(prev: Stack, following: Stack, methods: dict[str, FlowOfPairs], num_rounds: int) -> None:
    """A row a method."""
    alone, stacked = ({name: Times() for name in methods} for _ in range(2))
    for _ in range(num_rounds):
        for name, compute in methods.items():
            stacked[name].add(compute, prev, following)
        for i in range(min(len(prev), NUM_PAIRS_ALONE)):
            for name, compute in methods.items():
                alone[name].add(compute, prev[i : i + 1], following[i : i + 1])
    size = f"{prev.shape[2]}×{prev.shape[1]} px, {torch.get_num_threads()} threads"
    print(f"| {size} | ms, a pair alone | of the CPU | ms a pair, {len(prev)} at once | of the CPU |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in methods:
        print(f"| {name} | {alone[name]} | {stacked[name]} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", type=Path, default=DEFAULT_REFERENCE, help="directory of reference pairs")
    parser.add_argument("--device", default="cpu", help="where torch computes")
    parser.add_argument("--batch-size", type=int, help="pairs that torch solves together")
    parser.add_argument("--pairs", type=int, help="pairs in a call; by default as many as the pipeline has there")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each method; their mean counts")
    options = parser.parse_args()

    pairs = read_pairs(options.reference)
    methods: dict[str, FlowOfPairs] = {
        f"torch {torch.__version__}, {options.device}": functools.partial(
            tvl1_flow_of_pairs, device=options.device, batch_size=options.batch_size
        )
    }
    if contrib := contrib_tvl1():
        methods[f"OpenCV {cv2.__version__}"] = contrib
    print_errors(pairs, methods)  # which warms them up, too
    height, width = (min(prev.shape[axis] for prev, _, _ in pairs.values()) for axis in (0, 1))
    num_pairs = options.pairs or pairs_per_call(options.device)
    several = list(itertools.islice(itertools.cycle(pairs.values()), num_pairs))
    prev, following = (np.stack([frames[i][:height, :width] for frames in several]) for i in (0, 1))
    print_times(prev, following, methods, options.rounds)


if __name__ == "__main__":
    main()
