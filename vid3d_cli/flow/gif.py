"""Encodes an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

_TICK = Fraction(1, 100)
"""The unit of time of a GIF, in seconds."""


def encode_gif(images: Sequence[NDArray[np.uint8]], seconds: Sequence[float]) -> bytes:
    """Return an animation that loops, in the 256 colours that suit all its images.

    Args:
        images: (H, W, 3), of one size; at least one.
        seconds: when each appears, increasing by at least 0.02 s.
    """
    height, width = images[0].shape[:2]
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=_TICK)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=full:reserve_transparent=0")
    # An ordered pattern stays where it is: error diffusion would flicker, and make every frame differ everywhere.
    apply, sink = graph.add("paletteuse", "dither=bayer:bayer_scale=4:diff_mode=rectangle"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(apply, 1, 0)
    palette.link_to(apply, 0, 1)
    apply.link_to(sink)
    graph.configure()

    data = io.BytesIO()
    last_ticks = round((seconds[-1] - seconds[-2]) / _TICK) if len(seconds) > 1 else 1
    options = {"loop": "0", "final_delay": str(last_ticks)}
    with av.open(data, "w", format="gif", options=options) as container:
        stream = container.add_stream("gif", rate=100)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "pal8", _TICK
        for image, at in zip(images, seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round((at - seconds[0]) / _TICK), _TICK
            graph.push(frame)
        graph.push(None)
        for _ in images:  # the palette is known after the last one
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return data.getvalue()
