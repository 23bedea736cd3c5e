"""TV-L1 optical flow in torch, on the CPU or a GPU: the flow of OpenCV's DualTVL1, without the contrib build.

    prev, following  (N, H, W) uint8  →  (N, H, W, 2) float32: pixels, channel 0 is x (right), 1 is y (down)

Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007), as OpenCV computes it
(opencv_contrib, modules/optflow/src/tvl1flow.cpp, without illumination changes: gamma 0). For every scale of a
pyramid, coarse to fine, `NUM_WARPS` times:

    I1 and ∇I1 are read at x + u₀, which gives the brightness error near u₀: ρ(u) = I1 + ∇I1·(u - u₀) - I0
    until u moves by less than `EPSILON_PX`, or `MAX_ROUNDS` × `ITERATIONS_PER_ROUND` times:
        u ← u + TH(u) + θ div p                                TH: step along ∇I1 to ρ = 0, at most λθ|∇I1| long
        p ← (p + τ/θ ∇u) / (1 + τ/θ |∇u|)                      one p for each component of u
    with a 5×5 median of u before every round

The arithmetic differs from OpenCV's in the last bits only. On average over a field that makes 0.01 px, because warps
end an iteration earlier or later, and pixels without texture drift with the rounding. OpenCV 4.14 and 5.0 differ by
0.01 to 0.02 px.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ShapeError, UsageError
from .fields import check_grey

# OpenCV's default parameters.
TAU = 0.25
"""τ, the time step of the dual ascent."""
LAMBDA = 0.15
"""λ, the weight of the brightness error against smoothness."""
THETA = 0.3
"""θ, how loosely the two halves of the problem are coupled."""
NUM_SCALES = 5
"""Levels of the pyramid, with the full size."""
SCALE_STEP = 0.8
"""Size of a level, relative to the next finer one."""
NUM_WARPS = 5
"""Linearisations per scale."""
EPSILON_PX = 0.01
"""Root mean square change at which a warp ends."""
MAX_ROUNDS = 10
"""OpenCV's outerIterations: rounds per warp, each after a median filter."""
ITERATIONS_PER_ROUND = 30
"""OpenCV's innerIterations."""
MEDIAN_SIDE_PX = 5
"""Window of the median filter."""
MIN_SIDE_PX = 16
"""The pyramid has no level with a shorter side, except the full size."""

PX_PER_W = THETA / TAU
"""The flow is held as w = τ/θ u, see `_Scale`."""

CPU_PAIRS_PER_CALL = 8
"""One pair for each thread of most CPUs. With more threads, several calls at once keep them busy."""

GPU_BATCH_SIZE = 64
"""Pairs of 340×256 px that a GPU solves together. They take about 1 GB; of a larger size, fewer pairs do."""

GPU_BATCH_PX = GPU_BATCH_SIZE * 340 * 256

GPU_ITERATIONS_PER_CHECK = 10
"""How often the host asks a GPU whether any pair still moves: it has to wait for the answer."""


class Tvl1Flow:
    """TV-L1 flow of consecutive frames, see `methods.FlowFunction`.

    Args:
        device: "cpu", or a GPU in torch's notation ("cuda:0").
    """

    def __init__(self, device: str) -> None:
        self.pairs_per_call = CPU_PAIRS_PER_CALL if device.startswith("cpu") else GPU_BATCH_SIZE
        self._device = device

    def __call__(self, grey: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Return the flow (n, H, W, 2) of grey frames (n+1, H, W)."""
        check_grey(grey)
        return tvl1_flow(grey[:-1], grey[1:], device=self._device)


def tvl1_flow(
    prev: NDArray[np.uint8],
    following: NDArray[np.uint8],
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Return the flow of pairs of frames.

    Args:
        prev: (N, H, W).
        following: (N, H, W), one frame step later.
        device: where to compute. The CPU solves `torch.get_num_threads()` batches at once, each in one thread. A GPU
            solves one batch at a time, however many threads call.
        batch_size: pairs that are solved together. The default is 1 on the CPU, where more are not faster, and as
            many as have `GPU_BATCH_PX` on a GPU. The last bits of a flow may depend on the size of its batch, but
            never on the other pairs in it.

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
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise UsageError(f"cannot compute flow on '{device}': {str(error).splitlines()[0]}") from None
    if batch_size is None:
        batch_size = 1 if device.type == "cpu" else max(1, GPU_BATCH_PX // math.prod(prev.shape[1:]))
    flow = np.empty((*prev.shape, 2), np.float32)

    @torch.inference_mode()
    def solve(start: int) -> None:
        batch = slice(start, start + batch_size)
        frames = [torch.from_numpy(stack[batch].astype(np.float32, "C")).to(device) for stack in (prev, following)]
        flow[batch] = _solve(frames[0], frames[1]).permute(0, 2, 3, 1).cpu().numpy()

    starts = range(0, len(flow), batch_size)
    if device.type == "cpu":
        list(_workers().map(solve, starts))  # the list raises what a worker raised
    else:
        for start in starts:
            with _gpu_lock:
                solve(start)
    return flow


_gpu_lock = threading.Lock()
"""One batch at a time fills a GPU, and its memory."""

torch.get_num_threads()  # fixes the number for the importing thread, before `_workers` changes the default

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _workers() -> ThreadPoolExecutor:
    """Return a pool of as many threads as torch uses, shared by all callers. Inside each, torch uses one thread.

    An operation on an image takes microseconds. If torch split it among threads, they would wait for each other most
    of the time: 1.3 times as fast on two idle cores, 15 times slower when another process runs on one of them.
    """
    global _pool
    with _pool_lock:
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
    """Reset the pool: a forked process has none of its parent's threads."""
    global _pool, _pool_lock, _gpu_lock
    _pool, _pool_lock, _gpu_lock = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def _solve(prev: Tensor, following: Tensor) -> Tensor:
    """Return the flow (N, 2, H, W) of frames (N, H, W) float32, 0 to 255."""
    levels = [_pyramid(prev), _pyramid(following)]
    flow = torch.zeros_like(levels[0][-1]).unsqueeze(1).repeat(1, 2, 1, 1)
    for prev, following in zip(*map(reversed, levels), strict=True):
        height, width = prev.shape[-2:]
        if flow.shape[-2:] != prev.shape[-2:]:
            steps = (flow.shape[-2] / height, flow.shape[-1] / width)
            flow = _resize(flow, (height, width), steps) / SCALE_STEP
        flow = _Scale(prev, following, flow).solve()
    return flow


def _pyramid(frame: Tensor) -> list[Tensor]:
    """Return (N, H, W) and its smaller versions, each made from the one before."""
    frames = [frame]
    while len(frames) < NUM_SCALES:
        size = [round(side * SCALE_STEP) for side in frames[-1].shape[-2:]]
        if min(size) < MIN_SIDE_PX:
            break
        # Not the ratio of the rounded sizes: OpenCV is given the factor.
        frames.append(_resize(frames[-1], size, (1 / SCALE_STEP,) * 2))
    return frames


def _resize(image: Tensor, size: Sequence[int], steps: Sequence[float]) -> Tensor:
    """Return what cv2.resize gives with INTER_LINEAR: no smoothing, edges repeated.

    Args:
        image: (…, H, W).
        size: height and width of the result.
        steps: distance between neighbours of the result, in old pixels; down and right.
    """
    for dim, side, step in zip((-2, -1), size, steps, strict=True):
        position = (torch.arange(side, dtype=torch.float64) + 0.5) * step - 0.5
        position = position.clamp(0, image.shape[dim] - 1)
        before = position.long()
        share = (position - before).to(image)
        share = share.unsqueeze(-1) if dim == -2 else share
        before = before.to(image.device)
        after = (before + 1).clamp(max=image.shape[dim] - 1)
        image = torch.lerp(image.index_select(dim, before), image.index_select(dim, after), share)
    return image


def _centred_gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W) → change per pixel to the right and down; at an edge half the one-sided difference, as in OpenCV."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return right / 2, down / 2


class _Scale:
    """A batch of N pairs at one scale of the pyramid.

    Images lie flat, S = H · (W+1) values, with a column of zeros on the right: so the neighbours of all pixels are at
    one distance in memory. The flow u is held as w = τ/θ u and the dual variable p as q = τ p, which needs the fewest
    factors:

        w ← w + f g + div q        q ← (q + τ ∇w) / (1 + |∇w|)

    where f g is TH: f steps of g = τ/θ ∇I1 bring the brightness error to 0. f is linear in w, clamped to ±λθ.

    Args:
        prev: (N, H, W), 0 to 255.
        following: the same shape.
        flow: (N, 2, H, W) px, where to start.
    """

    def __init__(self, prev: Tensor, following: Tensor, flow: Tensor) -> None:
        num_pairs, self.height, self.width = prev.shape
        self.row = self.width + 1
        size, device = self.height * self.row, prev.device
        self._prev = prev[:, None]
        # I1, ∂I1/∂x, ∂I1/∂y: (N, 3, H, W), interleaved.
        self._following = torch.stack([following, *_centred_gradient(following)], dim=-1).permute(0, 3, 1, 2)
        self._x = torch.arange(self.width, dtype=torch.float32, device=device)
        self._y = torch.arange(self.height, dtype=torch.float32, device=device)[:, None]

        def zeros(num_channels: int, padding: int = 0) -> Tensor:
            return torch.zeros(num_pairs, num_channels, size + padding, device=device)

        # A row that stays zero gives the edges their neighbours: below w, above q.
        self.w_padded, self.q_x_padded, self.q_y_padded = (zeros(2, self.row) for _ in range(3))
        self.w = self.w_padded[..., :size]
        self.f_offset, self.f_slope, self.g = zeros(1), zeros(2), zeros(2)
        self.is_moving = torch.ones(num_pairs, 1, 1, dtype=torch.bool, device=device)
        """(N, 1, 1): the pairs that are not done. The others stay as they are."""
        self.image(self.w)[:] = flow / PX_PER_W

    def image(self, flat: Tensor) -> Tensor:
        """View (N, C, S) as (N, C, H, W)."""
        return flat.unflatten(-1, (self.height, self.row))[..., : self.width]  # type: ignore[no-any-return, no-untyped-call]

    def solve(self) -> Tensor:
        """Return the flow (N, 2, H, W) in pixels."""
        for _ in range(NUM_WARPS):
            self._linearise()
            self._minimise()
        return self.image(self.w) * PX_PER_W

    def _linearise(self) -> None:
        """Read the second frame where the flow points, and set f and g for there."""
        flow = self.image(self.w)
        x, y = (torch.add(at, flow[:, i], alpha=PX_PER_W) for i, at in enumerate((self._x, self._y)))
        read = _read_at(self._following, x, y)
        self.image(self.g)[:] = read[:, 1:]
        (g_x, g_y), (slope_x, slope_y), (w_x, w_y) = (
            (field[:, :1], field[:, 1:]) for field in (self.g, self.f_slope, self.w)
        )
        factor = torch.mul(g_x, g_x, out=self.f_offset).addcmul_(g_y, g_y)
        factor.clamp_(min=torch.finfo(torch.float32).eps).reciprocal_().neg_()  # -1 / |∇I1|²
        torch.mul(self.g, factor, out=self.f_slope).mul_(PX_PER_W)
        self.g.div_(PX_PER_W)
        # The brightness error is known for this flow; the offset is what f would be for none.
        self.image(self.f_offset).mul_(read[:, :1] - self._prev)
        self.f_offset.addcmul_(slope_x, w_x, value=-1).addcmul_(slope_y, w_y, value=-1)

    def _minimise(self) -> None:
        """Iterate until every pair is at rest. A pair at rest stays as it is while others move on."""
        rest = torch.tensor(EPSILON_PX / PX_PER_W * math.sqrt(self.height * self.width), device=self.w.device)
        self.is_moving.fill_(True)
        for _ in range(MAX_ROUNDS):
            _filter(self.image(self.w), self.is_moving)
            self.iterate(ITERATIONS_PER_ROUND, rest)
            if not self.is_moving.any():
                return

    def iterate(self, num_iterations: int, rest: Tensor) -> None:
        """Move w and q until all pairs are at rest.

        Args:
            num_iterations: at most.
            rest: (), the length of w's change, as one vector, at which a pair is at rest.
        """
        fields = (self.w_padded, self.q_x_padded, self.q_y_padded, self.f_offset, self.f_slope, self.g)
        constants = (self.is_moving, self.height, TAU, LAMBDA * THETA, rest)
        if _is_cpu(self.w):
            _iterate_without_lock(*fields, *constants, num_iterations, True)
            return
        for i in range(1, num_iterations + 1):
            _fuse(_iterate)(*fields, *constants, 1, False)
            if i % GPU_ITERATIONS_PER_CHECK == 0 and not self.is_moving.any():
                return


def _iterate(
    w_padded: Tensor,
    q_x_padded: Tensor,
    q_y_padded: Tensor,
    f_offset: Tensor,
    f_slope: Tensor,
    g: Tensor,
    is_moving: Tensor,
    height: int,
    tau: float,
    limit: float,
    rest: Tensor,
    num_iterations: int,
    may_end: bool,
) -> None:
    """Move w and q in place, and clear `is_moving` of the pairs that come to rest; see `_Scale`.

    Only Python that both TorchScript and torch.compile know. Memory for the terms is taken once for all iterations: on
    a CPU, new pages would cost more than the arithmetic. With `may_end` it returns as soon as all pairs are at rest;
    on a GPU, every such check would be waited for.
    """
    size = g.shape[-1]
    row = w_padded.shape[-1] - size
    w, q_x, q_y = w_padded[:, :, :size], q_x_padded[:, :, row:], q_y_padded[:, :, row:]
    w_right, w_below = w_padded[:, :, 1 : size + 1], w_padded[:, :, row:]
    q_x_left, q_y_above = q_x_padded[:, :, row - 1 : -1], q_y_padded[:, :, :-row]
    w_x, w_y, slope_x, slope_y = w[:, :1], w[:, 1:], f_slope[:, :1], f_slope[:, 1:]
    f, change, divisor = torch.empty_like(f_offset), torch.empty_like(g), torch.empty_like(g)
    dw_dx, dw_dy = torch.empty_like(g), torch.empty_like(g)
    beyond_right = dw_dx.view(-1, 2, height, row)[:, :, :, -2:]
    beyond_bottom = dw_dy[:, :, -row:]
    is_masked = w.shape[0] > 1 or not may_end  # one pair alone needs no mask if the loop ends with it
    for _ in range(num_iterations):
        torch.addcmul(f_offset, slope_x, w_x, out=f).addcmul_(slope_y, w_y).clamp_(-limit, limit)
        torch.sub(q_x, q_x_left, out=change)
        change.add_(q_y).sub_(q_y_above).addcmul_(f, g)
        if is_masked:
            change.mul_(is_moving)
        w.add_(change)
        torch.sub(w_right, w, out=dw_dx)
        torch.sub(w_below, w, out=dw_dy)
        beyond_right.zero_()
        beyond_bottom.zero_()
        if is_masked:
            dw_dx.mul_(is_moving)
            dw_dy.mul_(is_moving)
        torch.mul(dw_dx, dw_dx, out=divisor).addcmul_(dw_dy, dw_dy).sqrt_().add_(1)
        q_x.add_(dw_dx, alpha=tau).div_(divisor)
        q_y.add_(dw_dy, alpha=tau).div_(divisor)
        is_moving.logical_and_(torch.linalg.vector_norm(change, dim=[1, 2], keepdim=True) > rest)
        if may_end and not bool(is_moving.any()):
            return


def _script(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function with TorchScript, or return it as it is if this torch has no TorchScript any more.

    TorchScript runs the whole loop without Python's lock. Otherwise the lock changes hands between any two operations,
    and the threads wait for each other. torch.compile would halve the time, but it compiles for half a minute, and its
    code holds the lock.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.compile
        try:
            scripted: Callable[..., None] = torch.jit.script(function)
        except Exception:  # unknown: whatever a later version raises
            return function
    return scripted


_iterate_without_lock = _script(_iterate)


@functools.cache
def _fuse(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function for a GPU with torch.compile, or return it as it is if there is no compiler."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import, and the CPU does not need it

    compiled: Callable[..., None] | None = torch.compile(function, dynamic=True)

    def run(*args: object) -> None:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*args)
            except TorchDynamoException as error:
                warnings.warn(f"TV-L1 is slow, because it cannot be compiled: {error}", RuntimeWarning, stacklevel=2)
                compiled = None
        return function(*args)

    return run


# What the CPU leaves to OpenCV, and a GPU computes in torch.


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _read_at(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return images (N, C, H, W) at positions (N, H, W), as cv2.remap with INTER_CUBIC does; zero outside."""
    if not _is_cpu(images):
        # As OpenCV 5; older versions round positions to 1/32 px. Three times slower than OpenCV on the CPU.
        height, width = images.shape[-2:]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    read = torch.empty(images.permute(0, 2, 3, 1).shape)  # OpenCV interleaves channels
    for image, to_x, to_y, out in zip(images, x, y, read, strict=True):
        cv2.remap(image.permute(1, 2, 0).numpy(), to_x.numpy(), to_y.numpy(), cv2.INTER_CUBIC, out.numpy())
    return read.permute(0, 3, 1, 2)


def _filter(flow: Tensor, is_moving: Tensor) -> None:
    """Replace the flow (N, 2, H, W) of moving pairs by its median, as cv2.medianBlur does; edges repeated."""
    if not _is_cpu(flow):
        _fuse(_filter_by_torch)(flow, is_moving)
        return
    for pair, moves in zip(flow.numpy(), is_moving, strict=True):
        for channel in pair if moves else ():
            cv2.medianBlur(channel, MEDIAN_SIDE_PX, channel)


def _filter_by_torch(flow: Tensor, is_moving: Tensor) -> None:
    """`_filter` by minima and maxima of whole images."""
    height, width = flow.shape[-2:]
    padded = F.pad(flow, (MEDIAN_SIDE_PX // 2,) * 4, mode="replicate")
    # Neighbours share the columns of their windows, so these are sorted once. Of a table whose columns and rows are
    # sorted, the value in row r and column c has (r+1)(c+1) values up to it and (5-r)(5-c) from it on: if one of
    # these is above 13, it is not the median of the 25.
    columns = _sort([padded[..., row : row + height, :] for row in range(MEDIAN_SIDE_PX)])
    candidates = []
    for r, column_values in enumerate(columns):
        row = _sort([column_values[..., column : column + width] for column in range(MEDIAN_SIDE_PX)])
        candidates += [value for c, value in enumerate(row) if max((r + 1) * (c + 1), (5 - r) * (5 - c)) <= 13]
    # As many small as large ones are gone. Of any 8 of the 13 left, the smallest and the largest are not the median.
    kept, waiting = _without_extremes(candidates[:8]), candidates[8:]
    while waiting:
        kept = _without_extremes([*kept, waiting.pop()])
    flow.copy_(torch.where(is_moving[..., None], kept[0], flow))


def _sort(values: list[Tensor]) -> list[Tensor]:
    """Sort pixel by pixel: the first image of the result is the smallest everywhere."""
    values = list(values)
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            _order(values, i, i + 1)
    return values


def _without_extremes(values: list[Tensor]) -> list[Tensor]:
    """Drop the smallest and the largest, pixel by pixel."""
    values = list(values)
    for i in range(1, len(values)):
        _order(values, 0, i)
    for i in range(1, len(values) - 1):
        _order(values, i, -1)
    return values[1:-1]


def _order(values: list[Tensor], low: int, high: int) -> None:
    values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
