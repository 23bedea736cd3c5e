"""Shares the cores out among the threads of a run.

The network's runtime (torch, OpenVINO) uses one thread per core. On a CPU the network is nearly always the slowest
part; readers take little of its time, since they wait once a few clips are ready.
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
    """The numbers of threads of a run."""

    jobs: int
    """Videos that are read at the same time, each by a thread of its own; FFmpeg adds those that it decodes with."""
    workers: int
    """Threads that resize frames and compute flow, for all videos together."""


def share_threads(num_cores: int, jobs: int | None = None) -> Shares:
    """Return the numbers of threads for some cores.

    Args:
        num_cores: cores that this process may use.
        jobs: requested number; None for at least two, the current video and the next one.

    >>> [share_threads(n).jobs for n in (1, 2, 8, 16, 64)]
    [2, 2, 2, 4, 8]
    """
    picked = min(max(2, num_cores // CORES_PER_JOB), MAX_JOBS)
    return Shares(picked if jobs is None else jobs, num_cores)


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Make OpenCV compute each flow in the calling thread.

    The frames are too small for more threads: DIS takes 1.7 ms per pair at 340×256 with one thread and 2.4 ms with two.
    The flow is the same.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
