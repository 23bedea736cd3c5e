"""Shares the cores out among the readers of a run.

The network's runtime (torch, OpenVINO) uses one thread per core. On a CPU the network is nearly always the slowest
part; readers take little of its time, since they wait once a few clips are ready. With a GPU, reading is the slowest
part and gets all cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2

MAX_JOBS, MAX_JOBS_WITH_GPU = 8, 32
"""Each reader takes 90 MB, 200 MB in full HD, and four clips on average, 35 MB each with both streams of I3D."""

WORKERS_PER_JOB = 4
"""At 340×256 pixels, flow takes up to four times as long as decoding, which one thread does."""


@dataclass(frozen=True)
class Shares:
    """The numbers of readers and threads of a run."""

    jobs: int
    """Videos that are read at the same time; FFmpeg adds the threads that it decodes with."""
    workers: int
    """Threads per reader that resize frames and compute flow."""


def share_threads(num_cores: int, jobs: int | None = None, *, has_gpu: bool = False) -> Shares:
    """Return the numbers of readers and threads for some cores.

    Args:
        num_cores: cores that this process may use.
        jobs: requested number; None for at least two, the current video and the next one.
        has_gpu: the networks leave the cores to the readers: one video per core keeps them busy even where a reader
            only decodes.

    >>> [share_threads(n).jobs for n in (1, 2, 4, 16, 64)]
    [2, 2, 2, 4, 8]
    >>> [share_threads(n, has_gpu=True).jobs for n in (1, 2, 4, 16, 64)]
    [2, 2, 4, 16, 32]
    >>> [share_threads(n).workers for n in (1, 2, 4, 16, 64)]
    [1, 2, 4, 4, 4]
    """
    if jobs is None and has_gpu:
        jobs = min(max(2, num_cores), MAX_JOBS_WITH_GPU)
    elif jobs is None:
        jobs = min(max(2, num_cores // WORKERS_PER_JOB), MAX_JOBS)
    return Shares(jobs, min(num_cores, WORKERS_PER_JOB))


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
