"""Compare TV-L1 in torch with OpenCV's: the distance between the fields, and the time per pair.

    python benchmarks/tvl1.py [--reference DIR] [--device cuda] [--pairs 16]

DIR holds .npz files with prev, next (H, W) uint8 and flow (H, W, 2), OpenCV's with its default parameters. Prints two
Markdown tables: the end-point error of every pair, and the time of a pair alone and of a stack as vid3d
passes it. OpenCV's row needs opencv-contrib-python. The methods take turns, so that other work on the machine slows
both alike.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from flow import DEFAULT_REFERENCE, Pair, mean_end_point_error, read_pairs
from numpy.typing import NDArray

from vid3d_cli.flow.methods import create_flow
from vid3d_cli.flow.tvl1 import tvl1_flow

NUM_PAIRS_ALONE = 5
"""Pairs timed alone in each turn: all of the reference."""

Stack = NDArray[np.uint8]
FlowOfPairs = Callable[[Stack, Stack], NDArray[np.float32]]
"""prev, following (N, H, W) → (N, H, W, 2)."""


def contrib_tvl1() -> FlowOfPairs | None:
    """Return OpenCV's own, or None if this OpenCV is not the contrib build."""
    contrib: Any = getattr(cv2, "optflow", None)
    if contrib is None:
        return None
    tvl1 = contrib.DualTVL1OpticalFlow_create()
    return lambda prev, following: np.stack(
        [tvl1.calc(one, other, None) for one, other in zip(prev, following, strict=True)]
    )


@dataclass
class Times:
    """The times of a method, one per turn."""

    wall: list[float] = field(default_factory=list)
    """Seconds per pair."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds per pair, of all threads: other work on the machine hardly changes them."""

    def add(self, compute: FlowOfPairs, prev: Stack, following: Stack) -> None:
        """Time one call."""
        cpu, wall = time.process_time(), time.perf_counter()
        compute(prev, following)
        self.wall.append((time.perf_counter() - wall) / len(prev))
        self.cpu.append((time.process_time() - cpu) / len(prev))

    def __str__(self) -> str:
        return f"{1000 * statistics.mean(self.wall):.0f} | {1000 * statistics.mean(self.cpu):.0f}"


def print_errors(pairs: Sequence[Pair], methods: dict[str, FlowOfPairs]) -> None:
    """Print a row per pair, a column per method."""
    print(f"| pair | mean motion, px | {' | '.join(f'EPE of {name}, px' for name in methods)} |")
    print("| --- | ---: |" + " ---: |" * len(methods))
    rows = []
    for pair in pairs:
        flows = (compute(pair.prev[None], pair.following[None])[0] for compute in methods.values())
        rows.append([pair.mean_motion_px, *(mean_end_point_error(flow, pair.tvl1) for flow in flows)])
        print(f"| {pair.name} | {rows[-1][0]:.2f} | {' | '.join(f'{error:.4f}' for error in rows[-1][1:])} |")
    motion, *errors = (statistics.mean(column) for column in zip(*rows, strict=True))
    print(f"| mean | {motion:.2f} | {' | '.join(f'{error:.4f}' for error in errors)} |\n")


def print_times(prev: Stack, following: Stack, methods: dict[str, FlowOfPairs], num_rounds: int) -> None:
    """Print a row per method."""
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
    parser.add_argument("--pairs", type=int, help="pairs per call; by default as many as vid3d passes")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each method, whose mean is printed")
    options = parser.parse_args()

    pairs = read_pairs(options.reference)
    methods: dict[str, FlowOfPairs] = {
        f"torch {torch.__version__}, {options.device}": functools.partial(tvl1_flow, device=options.device)
    }
    if contrib := contrib_tvl1():
        methods[f"OpenCV {cv2.__version__}"] = contrib
    print_errors(pairs, methods)  # also warms them up
    height, width = (min(pair.prev.shape[axis] for pair in pairs) for axis in (0, 1))
    num_pairs = options.pairs or create_flow("tvl1", options.device).pairs_per_call
    several = list(itertools.islice(itertools.cycle(pairs), num_pairs))
    prev = np.stack([pair.prev[:height, :width] for pair in several])
    following = np.stack([pair.following[:height, :width] for pair in several])
    print_times(prev, following, methods, options.rounds)


if __name__ == "__main__":
    main()
