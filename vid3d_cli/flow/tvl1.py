"""TV-L1 optical flow without OpenCV's contrib build, on the CPU or on GPUs; `tvl1_solver` has the method.

    prev, following  (N, H, W) uint8  →  (N, H, W, 2) float32: pixels, channel 0 is x (right), 1 is y (down)

A CPU solves one pair in each thread. A GPU solves a batch of pairs, on a stream of its own: networks that run on the
same GPU neither wait for it nor keep it waiting.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ..device_memory import download, is_out_of_memory, page_locked
from ..errors import ShapeError, UsageError, Vid3dWarning
from .fields import check_grey
from .tvl1_solver import solve

CPU_PAIRS_PER_CALL = 8
"""One pair for each thread of most CPUs. With more threads, several calls at once keep them busy."""

GPU_BATCH_SIZE = 64
"""Pairs of 340×256 px that a GPU solves together. They take about 1 GB; of a larger size, fewer pairs do."""

GPU_BATCH_PX = GPU_BATCH_SIZE * 340 * 256


class Tvl1Flow:
    """TV-L1 flow of consecutive frames, see `methods.FlowFunction`.

    Args:
        device: "cpu", or GPUs in torch's notation, separated by commas ("cuda:0,cuda:1"): calls take turns on them.
    """

    def __init__(self, device: str) -> None:
        self.pairs_per_call = CPU_PAIRS_PER_CALL if device.startswith("cpu") else GPU_BATCH_SIZE
        self._devices = device.split(",")

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return the flow (n, H, W, 2) of grey frames (n+1, H, W)."""
        check_grey(grey)
        device = self._devices[next(_turns) % len(self._devices)]
        return tvl1_flow(grey[:-1], grey[1:], device=device)


_turns = itertools.count()
"""Of all flow functions together: videos that are read side by side begin on different GPUs."""


def tvl1_flow(prev: NDArray[np.uint8], following: NDArray[np.uint8], *, device: str = "cpu") -> NDArray[np.float32]:
    """Return the flow of pairs of frames.

    On a CPU, a pair's flow is the same whatever pairs are beside it. On a GPU its last bits may differ.

    Args:
        prev: (N, H, W).
        following: (N, H, W), one frame step later.
        device: where to compute: the CPU, with as many threads as torch uses, or a GPU, which solves one batch at a
            time, however many threads call. A GPU that runs out of memory solves half as many pairs at a time from
            then on; the CPU takes over when there is too little for one.

    Returns:
        (N, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down).

    Raises:
        ShapeError: the arrays are not two stacks of grey frames of one shape.
        UsageError: torch cannot use the device.
    """
    if (
        prev.shape != following.shape
        or prev.ndim != 3
        or 0 in prev.shape[1:]
        or prev.dtype != np.uint8
        or following.dtype != np.uint8
    ):
        raise ShapeError(
            "TV-L1 needs two stacks of grey frames (N, H, W) uint8 of one size, "
            f"got {prev.shape} {prev.dtype} and {following.shape} {following.dtype}"
        )
    flow = np.empty((*prev.shape, 2), np.float32)

    @torch.inference_mode()
    def solve_pair(pair: int) -> None:
        frames = (torch.from_numpy(stack[pair : pair + 1].astype(np.float32, "C")) for stack in (prev, following))
        flow[pair] = solve(*frames)[0].permute(1, 2, 0).numpy()

    num_solved = 0 if device == "cpu" else _find_gpu(device).solve(prev, following, flow)
    list(_workers().map(solve_pair, range(num_solved, len(flow))))  # the list raises what a worker raised
    return flow


class _Gpu:
    """A GPU, which all callers share.

    Args:
        device: of type "cuda".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()  # one batch at a time fills a GPU, and its memory
        self._batch_px = GPU_BATCH_PX

    def solve(self, prev: NDArray[np.uint8], following: NDArray[np.uint8], flow: NDArray[np.float32]) -> int:
        """Write the flow of pairs, and return of how many: not of all if there is too little memory for one."""
        pair_px = math.prod(prev.shape[1:])
        start = 0
        with self._lock:
            while start < len(flow):
                num_pairs = min(len(flow) - start, max(1, self._batch_px // pair_px))
                batch = slice(start, start + num_pairs)
                try:
                    flow[batch] = self._solve_batch(prev[batch], following[batch])
                    start += num_pairs
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if num_pairs == 1:
                        reason = str(error).splitlines()[0]
                        message = f"{self._device} has no memory for TV-L1, the slower CPU computes it: {reason}"
                        warnings.warn(message, Vid3dWarning, stacklevel=3)
                        break
                    self._batch_px = num_pairs // 2 * pair_px
        return start

    @torch.inference_mode()
    def _solve_batch(self, prev: NDArray[np.uint8], following: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.cuda.stream(self._stream):
            frames = page_locked((2, *prev.shape), torch.uint8)
            np.stack([prev, following], out=frames.numpy())
            on_gpu = frames.to(self._device, non_blocking=True).float()
            wait = download([solve(on_gpu[0], on_gpu[1]).permute(0, 2, 3, 1)])
        return wait()[0]


_gpus: dict[torch.device, _Gpu] = {}


def _find_gpu(name: str) -> _Gpu:
    try:
        device = torch.empty(0, device=name).device
        if device.type != "cuda":
            raise RuntimeError("choose cpu or cuda")
        with _lock:
            if device not in _gpus:
                _gpus[device] = _Gpu(device)
            return _gpus[device]
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise UsageError(f"cannot compute flow on '{name}': {str(error).splitlines()[0]}") from None


torch.get_num_threads()  # fixes the number for the importing thread, before `_workers` changes the default

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _workers() -> ThreadPoolExecutor:
    """Return a pool of as many threads as torch uses, shared by all callers. Inside each, torch uses one thread.

    An operation on an image takes microseconds. If torch split it among threads, they would wait for each other most
    of the time: 1.3 times as fast on two idle cores, 15 times slower when another process runs on one of them.
    """
    global _pool
    with _lock:
        if _pool is None:
            num_threads = torch.get_num_threads()
            is_started = threading.Barrier(num_threads + 1)

            def use_one_thread() -> None:
                torch.set_num_threads(1)  # sets the default of threads that have not asked yet …
                torch.get_num_threads()  # … and this thread asks now …
                is_started.wait()

            _pool = ThreadPoolExecutor(num_threads, "tvl1", initializer=use_one_thread)
            for _ in range(num_threads):
                _pool.submit(int)  # starts a thread
            is_started.wait()
            torch.set_num_threads(num_threads)  # … so the default can go back
        return _pool


def _forget_workers() -> None:
    """Reset what a forked process does not share with its parent: the threads, and the GPUs."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()
    _gpus.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
