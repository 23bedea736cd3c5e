"""Computes the optical flow of a video: of all its pairs, into an output, or of some that are spread over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import islice, pairwise
from math import ceil, inf

import numpy as np

from ..clips.streams import StreamFrame, align_streams
from ..errors import DecoderHangs, VideoError
from ..flow.drawing import SHEET_PAIRS
from ..flow.methods import FlowFunction
from ..flow.writers import FlowWriter
from ..records import Frame
from ..video.pixels import PixelOptions
from ..video.process import Decoders, probe
from ..video.reader import VideoInfo
from ..workers import Workers
from .threads import count_cores, one_opencv_thread

LEAST_MAX_MOTION_PX = 0.5
"""Full colour never stands for less: in a video without motion, noise must not look like one."""

_PIXELS_PERCENT, _PAIRS_PERCENT = 95, 80
"""See `find_max_motion`."""


def write_flow(
    frames: Iterable[Frame],
    output: AbstractContextManager[FlowWriter],
    compute: FlowFunction,
    *,
    short_side_px: int,
    with_frames: bool = False,
) -> int:
    """Write the flow of every pair of consecutive frames, and return the number of pairs.

    Args:
        frames: in time order.
        output: what `open_flow_output` returns.
        compute: what `create_flow` returns.
        short_side_px: size to which the short side of the frames is resized first.
        with_frames: whether the output gets the frames too.

    Raises:
        OutputError: the output cannot be written.
        ShapeError: the frames change their shape.
    """
    with output as writer, one_opencv_thread(), Workers(count_cores()) as workers:
        aligned = align_streams(
            frames,
            size_px=short_side_px,
            crop=None,
            rgb=with_frames,
            flow=lambda _, grey: compute(grey),
            pairs_per_call=compute.pairs_per_call,
            workers=workers,
        )
        for entry, _ in pairwise(aligned):  # the last frame has no motion of its own
            writer.write(entry.streams["flow"], entry.seconds, entry.streams.get("rgb"))
    return writer.num_pairs


def sample_pairs(
    decoders: Decoders,
    info: VideoInfo,
    compute: FlowFunction,
    *,
    short_side_px: int,
    fps: Fraction | None,
    start_seconds: float,
    end_seconds: float | None,
    pixels: PixelOptions,
) -> list[StreamFrame]:
    """Return up to `SHEET_PAIRS` frames that are spread over a video, with the flow from each to the next.

    Args:
        decoders: open the video at each of them.
        info: of the video.
        compute: what `create_flow` returns.
        short_side_px: size to which the short side of the frames is resized first.
        fps: frames per second, see `Decoders.open`, as for the other arguments.
        start_seconds: where to begin.
        end_seconds: where to end; None for the end of the video.
        pixels: how stored frames become RGB.

    Raises:
        VideoError: the video cannot be used. Damaged places are left out.
    """
    duration = info.duration_seconds or probe(info.video, decoders=decoders).duration_seconds or 0.0
    rate = float(fps or info.fps)
    # 0.01: header times are rounded.
    end, first = (ceil(at * rate - 0.01) for at in (min(duration, end_seconds or inf), start_seconds))
    num_pairs = max(1, end - first - 1)
    found: dict[float, StreamFrame] = {}
    for index in sorted({first + num_pairs * (2 * n + 1) // (2 * SHEET_PAIRS) for n in range(SHEET_PAIRS)}):
        at = max(start_seconds, (index - 0.5) / rate)
        try:
            with decoders.open(info.video, fps=fps, start_seconds=at, end_seconds=end_seconds, pixels=pixels) as frames:
                pair = list(islice(frames, 2))
        except DecoderHangs:  # it would hang at every place
            raise
        except VideoError:
            continue
        aligned = align_streams(pair, size_px=short_side_px, crop=None, rgb=True, flow=lambda _, grey: compute(grey))
        found.update({entry.seconds: entry for entry, _ in pairwise(aligned)})
    return [found[seconds] for seconds in sorted(found)]


def write_pairs(pairs: Iterable[StreamFrame], output: AbstractContextManager[FlowWriter]) -> int:
    """Write pairs that `sample_pairs` found, and return their number; see `write_flow`."""
    with output as writer:
        for pair in pairs:
            writer.write(pair.streams["flow"], pair.seconds, pair.streams["rgb"])
    return writer.num_pairs


def find_max_motion(pairs: Sequence[StreamFrame]) -> float:
    """Return the motion that full colour should show, in pixels per frame step, to two digits.

    In 80 % of the pairs that move, 95 % of the pixels move at most so far: neither wrong vectors nor a few shakes of
    the camera pale the rest.
    """
    motions = [np.percentile(np.hypot(*np.moveaxis(p.streams["flow"], -1, 0)), _PIXELS_PERCENT) for p in pairs]
    moving = [motion for motion in motions if motion > LEAST_MAX_MOTION_PX]
    return float(f"{np.percentile(moving, _PAIRS_PERCENT):.2g}") if moving else LEAST_MAX_MOTION_PX
