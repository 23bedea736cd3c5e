"""TV-L1 optical flow in torch: OpenCV's DualTVL1 without the contrib build, on the CPU or a GPU.

    prev, following  (N, H, W) uint8  →  (N, H, W, 2) float32: pixels, channel 0 is x (right), 1 is y (down)

Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007), as OpenCV computes it
(opencv_contrib, modules/optflow/src/tvl1flow.cpp, without illumination changes: gamma 0). For every scale of a
pyramid, coarse to fine, `num_warps` times:

    I1 and ∇I1 are read at x + u₀, and give the brightness error near u₀: ρ(u) = I1 + ∇I1·(u - u₀) - I0
    until u moves by less than `epsilon` px, or `max_rounds` × `iterations_per_round` times:
        u ← u + TH(u) + θ div p                                TH: step along ∇I1 to ρ = 0, at most λθ|∇I1| long
        p ← (p + τ/θ ∇u) / (1 + τ/θ |∇u|)                      one p for each component of u
    with a 5×5 median of u before every round

The arithmetic differs from OpenCV's in the last bits only. On average over a field that makes 0.01 px, because warps
end an iteration earlier or later and pixels without texture drift where the rounding sends them. OpenCV 4.14 and 5.0
lie 0.01 to 0.02 px apart.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ShapeError

MIN_SIDE_PX = 16
"""The pyramid ends before a side gets shorter than this."""

MEDIAN_SIDE_PX = 5
"""Window of the median filter."""

CPU_PAIRS_PER_CALL = 8
"""So that the threads of most CPUs have one to solve; of more, several calls at once keep them busy."""

GPU_BATCH_SIZE = 64
"""Pairs of 340×256 px that a GPU solves together; they take about 1 GB, and so do fewer of a larger size."""

GPU_BATCH_PX = GPU_BATCH_SIZE * 340 * 256

GPU_ITERATIONS_PER_CHECK = 10
"""How often a GPU is asked whether any pair still moves: the answer has to be waited for."""


@dataclass(frozen=True)
class Tvl1Parameters:
    """What OpenCV calls the same, with its defaults."""

    tau: float = 0.25
    """τ, the time step of the dual ascent."""
    lambda_: float = 0.15
    """λ, the weight of the brightness error against smoothness."""
    theta: float = 0.3
    """θ, how loosely the two halves of the problem are coupled."""
    num_scales: int = 5
    """Pictures of the pyramid, the full size among them."""
    scale_step: float = 0.8
    """Size of a scale, relative to the next finer one."""
    num_warps: int = 5
    """Linearisations a scale."""
    epsilon: float = 0.01
    """Root mean square change in pixels at which a warp ends."""
    max_rounds: int = 10
    """OpenCV's outerIterations: rounds a warp, each after a median filter."""
    iterations_per_round: int = 30
    """OpenCV's innerIterations."""

    def __str__(self) -> str:
        return (
            f"tau {self.tau}, lambda {self.lambda_}, theta {self.theta}, {self.num_scales} scales of "
            f"{self.scale_step}, {self.num_warps} warps of {self.max_rounds}×{self.iterations_per_round} iterations, "
            f"epsilon {self.epsilon}, median {MEDIAN_SIDE_PX}"
        )


DEFAULT_PARAMETERS = Tvl1Parameters()


def pairs_per_call(device: torch.device | str) -> int:
    """With how many pairs at once TV-L1 is fast on a device."""
    return CPU_PAIRS_PER_CALL if torch.device(device).type == "cpu" else GPU_BATCH_SIZE


def tvl1_flow(
    grey: NDArray[np.uint8],
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    parameters: Tvl1Parameters = DEFAULT_PARAMETERS,
) -> NDArray[np.float32]:
    """Compute the flow of every pair of consecutive frames.

    Args:
        grey: (T, H, W).
        device: see `tvl1_flow_of_pairs`.
        batch_size: see `tvl1_flow_of_pairs`.
        parameters: of the method.

    Returns:
        (T-1, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down). Entry t is frame t → t+1.

    Raises:
        ShapeError: not a stack of at least one grey frame.
    """
    if grey.ndim != 3 or 0 in grey.shape or grey.dtype != np.uint8:
        raise ShapeError(f"expected grey frames (T, H, W) uint8 with T ≥ 1, got {grey.shape} {grey.dtype}")
    return tvl1_flow_of_pairs(grey[:-1], grey[1:], device=device, batch_size=batch_size, parameters=parameters)


def tvl1_flow_of_pairs(
    prev: NDArray[np.uint8],
    following: NDArray[np.uint8],
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    parameters: Tvl1Parameters = DEFAULT_PARAMETERS,
) -> NDArray[np.float32]:
    """Compute the flow of pairs of frames.

    Args:
        prev: (N, H, W).
        following: (N, H, W), one frame step later.
        device: where to compute. On the CPU `torch.get_num_threads()` batches are solved at once, each by one thread,
            elsewhere one batch, however many threads ask.
        batch_size: pairs that are solved together, in memory too; by default one on the CPU, where more are not
            faster, and as many as have `GPU_BATCH_PX` elsewhere. The last bits of a flow may depend on it, and so on
            a GPU on the number of pairs; but no pair on what the others of its batch hold.
        parameters: of the method.

    Returns:
        (N, H, W, 2), pixels per frame step; channel 0 is x (right), 1 is y (down).

    Raises:
        ShapeError: not two equal stacks of grey frames.
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
    device = torch.device(device)
    if batch_size is None:
        batch_size = 1 if device.type == "cpu" else max(1, GPU_BATCH_PX // math.prod(prev.shape[1:]))
    flow = np.empty((*prev.shape, 2), np.float32)

    @torch.inference_mode()
    def solve(start: int) -> None:
        batch = slice(start, start + batch_size)
        frames = [torch.from_numpy(stack[batch].astype(np.float32, "C")).to(device) for stack in (prev, following)]
        flow[batch] = _solve(frames[0], frames[1], parameters).permute(0, 2, 3, 1).cpu().numpy()

    starts = range(0, len(flow), batch_size)
    if device.type == "cpu":
        list(_workers().map(solve, starts))  # a list, because an error shows only in the answer
    else:
        for start in starts:
            with _gpu_lock:
                solve(start)
    return flow


_gpu_lock = threading.Lock()
"""One batch at a time fills a GPU, and its memory."""

torch.get_num_threads()  # this thread, the engine's, now has its own count, whatever `_workers` does to that of others

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _workers() -> ThreadPoolExecutor:
    """As many threads as torch uses, shared by all callers; in each of them, torch itself uses one.

    An operation on a picture takes microseconds. Were it split among threads, they would wait for each other most of
    the time: 1.3 times as fast on two idle cores, 15 times slower when something else runs on one of them.
    """
    global _pool
    with _pool_lock:
        if _pool is None:
            num_threads = torch.get_num_threads()
            is_started = threading.Barrier(num_threads + 1)

            def use_one_thread() -> None:
                torch.set_num_threads(1)  # of every thread that first asks from now on …
                torch.get_num_threads()  # … as this one does …
                is_started.wait()

            _pool = ThreadPoolExecutor(num_threads, "tvl1", initializer=use_one_thread)
            for _ in range(num_threads):
                _pool.submit(int)  # starts a thread
            is_started.wait()
            torch.set_num_threads(num_threads)  # … until here
        return _pool


def _forget_workers() -> None:
    """A forked process has none of its parent's threads."""
    global _pool, _pool_lock, _gpu_lock
    _pool, _pool_lock, _gpu_lock = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def _solve(prev: Tensor, following: Tensor, parameters: Tvl1Parameters) -> Tensor:
    """Frames (N, H, W) float32, 0 to 255, → flow (N, 2, H, W)."""
    frames = [_pyramid(prev, parameters), _pyramid(following, parameters)]
    flow = torch.zeros_like(frames[0][-1]).unsqueeze(1).repeat(1, 2, 1, 1)
    for prev, following in zip(*map(reversed, frames), strict=True):
        height, width = prev.shape[-2:]
        if flow.shape[-2:] != prev.shape[-2:]:
            steps = (flow.shape[-2] / height, flow.shape[-1] / width)
            flow = _resize(flow, (height, width), steps) / parameters.scale_step
        flow = _Scale(prev, following, flow, parameters).solve()
    return flow


def _pyramid(frame: Tensor, parameters: Tvl1Parameters) -> list[Tensor]:
    """(N, H, W) → the same and its smaller versions, each made from the last."""
    frames = [frame]
    while len(frames) < parameters.num_scales:
        size = [round(side * parameters.scale_step) for side in frames[-1].shape[-2:]]
        if min(size) < MIN_SIDE_PX:
            break
        # Not the ratio of the rounded sizes: OpenCV is given the factor.
        frames.append(_resize(frames[-1], size, (1 / parameters.scale_step,) * 2))
    return frames


def _resize(picture: Tensor, size: Sequence[int], steps: Sequence[float]) -> Tensor:
    """cv2.resize with INTER_LINEAR: no smoothing, edges repeated.

    Args:
        picture: (…, H, W).
        size: of the result.
        steps: distance of neighbours of the result, in old pixels; down and right.
    """
    for dim, side, step in zip((-2, -1), size, steps, strict=True):
        position = (torch.arange(side, dtype=torch.float64) + 0.5) * step - 0.5
        position = position.clamp(0, picture.shape[dim] - 1)
        before = position.long()
        share = (position - before).to(picture)
        share = share.unsqueeze(-1) if dim == -2 else share
        before = before.to(picture.device)
        after = (before + 1).clamp(max=picture.shape[dim] - 1)
        picture = torch.lerp(picture.index_select(dim, before), picture.index_select(dim, after), share)
    return picture


def _centred_gradient(picture: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W) → change per pixel to the right and down; at an edge half the one-sided difference, as in OpenCV."""
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    return right / 2, down / 2


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _read_at(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """cv2.remap with INTER_CUBIC: pictures (N, C, H, W) at positions (N, H, W), zero outside."""
    if not _is_cpu(pictures):
        return _read_by_torch(pictures, x, y)
    read = torch.empty(pictures.permute(0, 2, 3, 1).shape)  # OpenCV interleaves channels
    for picture, to_x, to_y, out in zip(pictures, x, y, read, strict=True):
        cv2.remap(picture.permute(1, 2, 0).numpy(), to_x.numpy(), to_y.numpy(), cv2.INTER_CUBIC, out.numpy())
    return read.permute(0, 3, 1, 2)


def _read_by_torch(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of OpenCV 5; before, it rounds positions to 1/32 px. Takes three times as long on the CPU."""
    height, width = pictures.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="zeros", align_corners=False)


def _median_by_torch(pictures: Tensor) -> Tensor:
    """cv2.medianBlur of pictures (N, C, H, W), edges repeated; by minima and maxima of whole pictures."""
    height, width = pictures.shape[-2:]
    padded = F.pad(pictures, (MEDIAN_SIDE_PX // 2,) * 4, mode="replicate")
    # Neighbours share the columns of their windows, so these are sorted once. Of a table whose columns and rows are
    # sorted, the value in row r and column c has (r+1)(c+1) values up to it and (5-r)(5-c) from it on: where one of
    # these is above 13, it is not the median of the 25.
    columns = _sort([padded[..., row : row + height, :] for row in range(MEDIAN_SIDE_PX)])
    candidates = []
    for r, column_values in enumerate(columns):
        row = _sort([column_values[..., column : column + width] for column in range(MEDIAN_SIDE_PX)])
        candidates += [value for c, value in enumerate(row) if max((r + 1) * (c + 1), (5 - r) * (5 - c)) <= 13]
    # As many small as large ones are gone. Of any 8 of the 13 left, the smallest and the largest are not the median.
    kept, waiting = candidates[:8], candidates[8:]
    while True:
        kept = _without_extremes(kept)
        if not waiting:
            return kept[0]
        kept.append(waiting.pop())


def _sort(values: list[Tensor]) -> list[Tensor]:
    """Sort pixel by pixel: the first picture of the result is the smallest everywhere."""
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


class _Fields:
    """What an iteration reads and writes, for N pairs of pictures of H × W.

    Pictures lie flat, S = H · (W+1) values, with a column of zeros behind them: so the neighbours of all pixels are at
    one distance in memory. The flow u is held as w = τ/θ u and the dual variable p as q = τ p, which leaves the fewest
    factors:

        w ← w + f g + div q        q ← (q + τ ∇w) / (1 + |∇w|)

    where f g is TH: f steps of g = τ/θ ∇I1 bring the brightness error to 0. f is linear in w, but clamped to ±λθ.
    """

    def __init__(self, num_pairs: int, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self._row = width + 1
        self._size = height * self._row
        self._num_pairs, self._device = num_pairs, device

        # A row that stays zero gives the edges neighbours: below w, above q.
        self._w_padded, self._q_x_padded, self._q_y_padded = (self._zeros(2, self._row) for _ in range(3))
        self.w = self._w_padded[..., : self._size]
        self.q_x, self.q_y = self._q_x_padded[..., self._row :], self._q_y_padded[..., self._row :]
        self.f_offset, self.f_slope, self.g = self._zeros(1), self._zeros(2), self._zeros(2)
        self.channels = [(field[:, :1], field[:, 1:]) for field in (self.g, self.f_slope, self.w)]
        self.is_moving = torch.ones(num_pairs, 1, 1, dtype=torch.bool, device=device)
        """Pairs that are not done: the others stay as they are."""

    def _zeros(self, channels: int, padding: int = 0) -> Tensor:
        return torch.zeros(self._num_pairs, channels, self._size + padding, device=self._device)

    def picture(self, flat: Tensor) -> Tensor:
        """(N, C, S) → (N, C, H, W), the same memory."""
        return flat.unflatten(-1, (self.height, self._row))[..., : self.width]  # type: ignore[no-any-return, no-untyped-call]

    def filter(self) -> None:
        """Replace w by its median."""
        flow = self.picture(self.w)
        torch.where(self.is_moving[..., None], _fuse(_median_by_torch)(flow), flow, out=flow)

    def iterate(self, num_iterations: int, tau: float, limit: float, rest: float) -> None:
        """Move w and q, until all pairs are at rest.

        Args:
            num_iterations: at most.
            tau: τ.
            limit: λθ.
            rest: the length of w's change, as one vector, at which a pair is at rest.
        """
        padded = (self._w_padded, self._q_x_padded, self._q_y_padded)
        th = (self.f_offset, self.f_slope, self.g)
        for i in range(1, num_iterations + 1):
            self.is_moving &= _fuse(_iterate)(*padded, *th, self.is_moving, self.height, tau, limit) > rest
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
) -> Tensor:
    """Move w and q once; as the compiler likes it: expressions, and every field is written once.

    Returns:
        (N, 1, 1): the length of w's change.
    """
    size = g.shape[-1]
    row = w_padded.shape[-1] - size
    w, q_x, q_y = w_padded[..., :size], q_x_padded[..., row:], q_y_padded[..., row:]
    f = (f_offset + (f_slope * w).sum(1, keepdim=True)).clamp(-limit, limit)
    change = (f * g + q_x - q_x_padded[..., row - 1 : -1] + q_y - q_y_padded[..., :-row]) * is_moving
    w.add_(change)
    pixel = torch.arange(size, device=g.device)
    dw_dx = (w_padded[..., 1 : size + 1] - w) * (is_moving & (pixel % row < row - 2))
    dw_dy = (w_padded[..., row:] - w) * (is_moving & (pixel < (height - 1) * row))
    divisor = 1 + (dw_dx**2 + dw_dy**2).sqrt()
    q_x.copy_((q_x + tau * dw_dx) / divisor)
    q_y.copy_((q_y + tau * dw_dy) / divisor)
    length: Tensor = torch.linalg.vector_norm(change, dim=(1, 2), keepdim=True)
    return length


@functools.cache
def _fuse(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile, or the function itself where there is no compiler."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import, which the CPU can do without

    compiled: Callable[..., Tensor] | None = torch.compile(function, dynamic=True)

    def run(*args: Tensor | float) -> Tensor:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*args)
            except TorchDynamoException as error:
                warnings.warn(f"TV-L1 cannot be compiled, and so is slow: {error}", RuntimeWarning, stacklevel=2)
                compiled = None
        return function(*args)

    return run


class _CpuFields(_Fields):
    """The same, moved by operations in place, whose memory is taken once.

    Pages from the system would cost more than what is computed in them. torch.compile would halve the time, but for
    half a minute of compilation, and its code lets no other thread of Python run.
    """

    def __init__(self, num_pairs: int, height: int, width: int, device: torch.device) -> None:
        super().__init__(num_pairs, height, width, device)
        size, row = self._size, self._row
        _, (slope_x, slope_y), (w_x, w_y) = self.channels
        self._th = [self.f_offset, slope_x, w_x, slope_y, w_y, self.g]
        self._neighbours = [
            self._w_padded[..., 1 : size + 1],  # of w, right
            self._w_padded[..., row:],  # of w, below
            self._q_x_padded[..., row - 1 : -1],  # of q_x, left
            self._q_y_padded[..., :-row],  # of q_y, above
        ]
        dw_dx, dw_dy = self._zeros(2), self._zeros(2)
        edges = [dw_dx.view(num_pairs, 2, height, row)[..., -2:], dw_dy[..., -row:]]
        self._scratch = [self._zeros(1), self._zeros(2), dw_dx, dw_dy, *edges, self._zeros(2)]

    def filter(self) -> None:
        for pair, is_moving in zip(self.picture(self.w).numpy(), self.is_moving, strict=True):
            for channel in pair if is_moving else ():
                cv2.medianBlur(channel, MEDIAN_SIDE_PX, channel)

    def iterate(self, num_iterations: int, tau: float, limit: float, rest: float) -> None:
        fields = (self.w, self.q_x, self.q_y, self._th, self._neighbours, self._scratch, self.is_moving)
        _iterate_without_lock(*fields, num_iterations, tau, limit, rest)


def _iterate_in_place(
    w: Tensor,
    q_x: Tensor,
    q_y: Tensor,
    th: list[Tensor],
    neighbours: list[Tensor],
    scratch: list[Tensor],
    is_moving: Tensor,
    num_iterations: int,
    tau: float,
    limit: float,
    rest: float,
) -> None:
    """`_Fields.iterate`, in what TorchScript knows of Python."""
    f_offset, slope_x, w_x, slope_y, w_y, g = th
    w_right, w_below, q_x_left, q_y_above = neighbours
    f, change, dw_dx, dw_dy, beyond_right, beyond_bottom, divisor = scratch
    is_batch = w.shape[0] > 1
    for _ in range(num_iterations):
        torch.addcmul(f_offset, slope_x, w_x, out=f).addcmul_(slope_y, w_y).clamp_(-limit, limit)
        torch.sub(q_x, q_x_left, out=change)
        change.add_(q_y).sub_(q_y_above).addcmul_(f, g)
        if is_batch:
            change.mul_(is_moving)
        w.add_(change)
        torch.sub(w_right, w, out=dw_dx)
        torch.sub(w_below, w, out=dw_dy)
        beyond_right.zero_()
        beyond_bottom.zero_()
        if is_batch:
            dw_dx.mul_(is_moving)
            dw_dy.mul_(is_moving)
        torch.mul(dw_dx, dw_dx, out=divisor).addcmul_(dw_dy, dw_dy).sqrt_().add_(1)
        q_x.add_(dw_dx, alpha=tau).div_(divisor)
        q_y.add_(dw_dy, alpha=tau).div_(divisor)
        is_moving.logical_and_(torch.linalg.vector_norm(change, dim=[1, 2], keepdim=True) > rest)
        if not bool(is_moving.any()):
            return


def _script(function: Callable[..., None]) -> Callable[..., None]:
    """TorchScript, or where there is none any more the function itself: the threads then wait for each other.

    Between two operations Python's lock has to change hands. TorchScript runs the whole loop without it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torch.compile, which keeps the lock
        try:
            scripted: Callable[..., None] = torch.jit.script(function)
        except Exception:  # whatever a later version finds
            return function
    return scripted


_iterate_without_lock = _script(_iterate_in_place)


class _Scale:
    """A batch of pairs at one scale of the pyramid.

    Args:
        prev: (N, H, W), 0 to 255.
        following: the same shape.
        flow: (N, 2, H, W) px, where to start.
        parameters: of the method.
    """

    def __init__(self, prev: Tensor, following: Tensor, flow: Tensor, parameters: Tvl1Parameters) -> None:
        self._parameters = parameters
        self._prev = prev[:, None]
        # I1, ∂I1/∂x, ∂I1/∂y: (N, 3, H, W), interleaved.
        self._following = torch.stack([following, *_centred_gradient(following)], dim=-1).permute(0, 3, 1, 2)
        num_pairs, height, width = prev.shape
        self._x = torch.arange(width, dtype=torch.float32, device=prev.device)
        self._y = torch.arange(height, dtype=torch.float32, device=prev.device)[:, None]
        self._fields = (_CpuFields if _is_cpu(prev) else _Fields)(num_pairs, height, width, prev.device)
        self._px_per_w = parameters.theta / parameters.tau
        self._fields.picture(self._fields.w)[:] = flow / self._px_per_w

    def solve(self) -> Tensor:
        """The flow (N, 2, H, W) in pixels."""
        for _ in range(self._parameters.num_warps):
            self._linearise()
            self._minimise()
        return self._fields.picture(self._fields.w) * self._px_per_w

    def _linearise(self) -> None:
        """Read the second frame where the flow points, and set f and g for there."""
        fields, flow = self._fields, self._fields.picture(self._fields.w)
        x, y = (torch.add(at, flow[:, i], alpha=self._px_per_w) for i, at in enumerate((self._x, self._y)))
        read = _read_at(self._following, x, y)
        fields.picture(fields.g)[:] = read[:, 1:]
        (g_x, g_y), (slope_x, slope_y), (w_x, w_y) = fields.channels
        factor = torch.mul(g_x, g_x, out=fields.f_offset).addcmul_(g_y, g_y)
        factor.clamp_(min=torch.finfo(torch.float32).eps).reciprocal_().neg_()  # -1 / |∇I1|²
        torch.mul(fields.g, factor, out=fields.f_slope).mul_(self._px_per_w)
        fields.g.div_(self._px_per_w)
        # The brightness error is known for this flow; the offset is what f would be for none.
        fields.picture(fields.f_offset).mul_(read[:, :1] - self._prev)
        fields.f_offset.addcmul_(slope_x, w_x, value=-1).addcmul_(slope_y, w_y, value=-1)

    def _minimise(self) -> None:
        """Iterate until every pair has come to rest; one that has stays as it is while others move on."""
        parameters, fields = self._parameters, self._fields
        rest = parameters.epsilon / self._px_per_w * math.sqrt(fields.height * fields.width)
        fields.is_moving.fill_(True)
        for _ in range(parameters.max_rounds):
            fields.filter()
            limit = parameters.lambda_ * parameters.theta
            fields.iterate(parameters.iterations_per_round, parameters.tau, limit, rest)
            if not fields.is_moving.any():
                return
