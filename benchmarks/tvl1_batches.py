"""Count the work of TV-L1 on a GPU, without one: how much of it is for pairs that are at rest already.

    python benchmarks/tvl1_batches.py VIDEO… [--pairs 64] [--batch-sizes 8 64]

Prints a Markdown table: for every batch size, the iterations of all pixels of all pairs, as multiples of those before
each pair comes to rest. "to the worst": every batch iterates until all of its pairs rest, and looks every 10
iterations. "leaving": as vid3d does it. The CPU runs what a GPU would, a second a pair.
"""

from __future__ import annotations

import argparse
import math
from itertools import islice
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vid3d_cli.clips.preprocess import resize
from vid3d_cli.flow import tvl1_kernels, tvl1_solver
from vid3d_cli.flow.fields import to_grey
from vid3d_cli.video.reader import VideoReader

SHORT_SIDE_PX = 256
ITERATIONS_PER_LOOK = 10


class Work:
    """Adds up iterations times pixels."""

    def __init__(self) -> None:
        self.needed = self.to_the_worst = self.leaving = 0

    def count(self, prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> None:
        """Solve a batch as a GPU does, and count."""
        longest = 0

        def iterate(*arguments: Tensor) -> None:
            nonlocal longest
            w, is_moving = arguments[0], arguments[6]
            self.leaving += w.numel()
            self.needed += int(is_moving.sum()) * w[0].numel()
            longest += bool(is_moving.any())
            tvl1_kernels.iterate(*arguments)

        def minimise(scale: tvl1_solver._Scale) -> None:
            nonlocal longest
            longest = 0
            minimise_together(scale)
            num_iterations = math.ceil(longest / ITERATIONS_PER_LOOK) * ITERATIONS_PER_LOOK
            self.to_the_worst += num_iterations * scale.w_padded.numel()

        minimise_together = tvl1_solver._Scale._minimise_together
        frames = (torch.from_numpy(stack.astype(np.float32)) for stack in (prev, following))
        with (
            mock.patch.multiple(
                tvl1_solver,
                is_cpu=lambda _: False,
                fuse=lambda function: function,
                download=lambda tensor: tensor.clone().numpy,
                iterate=iterate,
            ),
            mock.patch.object(tvl1_solver._Scale, "_minimise_together", minimise),
            torch.inference_mode(),
        ):
            tvl1_solver.solve(*frames)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--pairs", type=int, default=64, help="of every video, from its start")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 64])
    options = parser.parse_args()
    greys = []
    for video in options.videos:
        with VideoReader(video) as frames:
            greys.append([to_grey(resize(frame.rgb, SHORT_SIDE_PX)) for frame in islice(frames, options.pairs + 1)])
    num_pairs = sum(len(grey) - 1 for grey in greys)
    print(f"| {num_pairs} pairs of {len(greys)} videos, in batches of | to the worst | leaving | saved |")
    print("| ---: | ---: | ---: | ---: |")
    for batch_size in options.batch_sizes:
        work = Work()
        for grey in greys:
            for start in range(0, len(grey) - 1, batch_size):
                run = np.stack(grey[start : start + batch_size + 1])
                work.count(run[:-1], run[1:])
        before, now = (iterations / work.needed for iterations in (work.to_the_worst, work.leaving))
        print(f"| {batch_size} | {before:.2f} × | {now:.2f} × | {1 - now / before:.0%} |", flush=True)


if __name__ == "__main__":
    main()
