"""Writes the optical flow of a video."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import pairwise

from ..clips.streams import align_streams
from ..flow.methods import FlowFunction
from ..flow.writers import FlowWriter
from ..records import Frame
from ..workers import Workers
from .threads import count_cores, one_opencv_thread


def write_flow(
    frames: Iterable[Frame], output: AbstractContextManager[FlowWriter], compute: FlowFunction, *, short_side_px: int
) -> int:
    """Write the flow of every pair of consecutive frames, and return the number of pairs.

    Args:
        frames: in time order.
        output: what `open_flow_output` returns.
        compute: what `create_flow` returns.
        short_side_px: size to which the short side of the frames is resized first.

    Raises:
        OutputError: the output cannot be written.
        ShapeError: the frames change their shape.
    """
    with output as writer, one_opencv_thread(), Workers(count_cores()) as workers:
        aligned = align_streams(
            frames,
            size_px=short_side_px,
            crop_px=None,
            rgb=False,
            flow=lambda _, grey: compute(grey),
            pairs_per_call=compute.pairs_per_call,
            workers=workers,
        )
        for entry, _ in pairwise(aligned):  # the last frame has no motion of its own
            writer.write(entry.streams["flow"], entry.seconds)
    return writer.num_pairs
