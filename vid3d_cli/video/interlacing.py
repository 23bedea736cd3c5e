"""Deinterlaces frames with FFmpeg's filter bwdif."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator

import av
import av.error
from av.filter import Graph

from ..errors import NotAVideo
from .clock import Timed

Frames = Iterator[Timed[av.VideoFrame]]


def deinterlace(video: str, frames: Iterable[Timed[av.VideoFrame]]) -> Frames:
    """Yield the same frames with the same times; those that are marked as interlaced are deinterlaced.

    Raises:
        NotAVideo: FFmpeg cannot deinterlace frames of this size or pixel format.
    """
    waiting: deque[Timed[av.VideoFrame]] = deque()  # the filter holds a frame until it has the next one
    graph, kind = None, None
    try:
        for timed in frames:
            frame = timed.item
            new_kind = (frame.width, frame.height, frame.format.name)
            if graph is None or kind != new_kind:
                yield from _filter(graph, None, waiting)
                graph, kind = _create_graph(frame), new_kind
            waiting.append(timed)
            yield from _filter(graph, frame, waiting)
        yield from _filter(graph, None, waiting)
    except av.error.FFmpegError as error:
        raise NotAVideo(video, f"its frames cannot be deinterlaced ({error}); leave out --deinterlace") from error


def _create_graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    # "send_frame": one frame for each, not one for each field.
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    return graph


def _filter(graph: Graph | None, frame: av.VideoFrame | None, waiting: deque[Timed[av.VideoFrame]]) -> Frames:
    """Push a frame, or None for the end, and yield what comes out."""
    if graph is None:
        return
    graph.vpush(frame)
    with contextlib.suppress(BlockingIOError, EOFError):
        while True:
            deinterlaced = graph.vpull()
            yield dataclasses.replace(waiting.popleft(), item=deinterlaced)
