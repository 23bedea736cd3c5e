"""How many threads do what: the cores are shared out, not fought over.

The network's own threads (torch's, OpenVINO's) are as many as there are cores. On a CPU it is nearly always the slowest
part, and readers, which wait once a few clips are ready, take the little that they need from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2

CORES_PER_JOB = 4
"""A video's own thread (RGB, clips) has about a quarter of the work of reading; the rest is resizing and flow."""

MAX_JOBS = 8
"""Each open video holds some clips, 36 MB each with both streams of I3D."""


@dataclass(frozen=True)
class Shares:
    """Numbers of threads."""

    jobs: int
    """Videos that are read at the same time, each by a thread of its own; FFmpeg adds those that it decodes with."""
    workers: int
    """That resize frames and compute flow, for all videos together."""


def share_threads(num_cores: int, jobs: int | None = None) -> Shares:
    """Share the cores out among readers.

    Args:
        num_cores: that this process may use.
        jobs: as asked for; None picks: at least the video at hand and the next one.

    >>> [share_threads(n).jobs for n in (1, 2, 8, 16, 64)]
    [2, 2, 2, 4, 8]
    """
    picked = min(max(2, num_cores // CORES_PER_JOB), MAX_JOBS)
    return Shares(picked if jobs is None else jobs, num_cores)


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Have OpenCV compute each flow in the thread that asks for it.

    The frames are too small for more: DIS takes 1.7 ms a pair at 340×256 by one thread and 2.4 ms by two. It is the
    same flow.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
