"""The operations on whole images that TV-L1 spends its time on: the iteration, reading between pixels, the median.

The CPU leaves images to OpenCV, and the loop to TorchScript. A GPU computes everything in torch, compiled where there
is a compiler, and never makes the host wait.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

MEDIAN_SIDE_PX = 5
"""Window of the median filter."""


def is_cpu(tensor: Tensor) -> bool:
    """Say whether a tensor is in the host's memory."""
    return tensor.device.type == "cpu"


def iterate(
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
    is_alone: bool,
) -> None:
    """Move w and q in place, and clear `is_moving` of the pairs that come to rest; see `tvl1_solver._Scale`.

    Only Python that both TorchScript and torch.compile know. Memory for the terms is taken once for all iterations: on
    a CPU, new pages would cost more than the arithmetic. A pair that `is_alone` needs no mask: the loop ends when it
    comes to rest. A GPU would have to be waited for at every such check.
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
    for _ in range(num_iterations):
        torch.addcmul(f_offset, slope_x, w_x, out=f).addcmul_(slope_y, w_y).clamp_(-limit, limit)
        torch.sub(q_x, q_x_left, out=change)
        change.add_(q_y).sub_(q_y_above).addcmul_(f, g)
        if not is_alone:
            change.mul_(is_moving)
        w.add_(change)
        torch.sub(w_right, w, out=dw_dx)
        torch.sub(w_below, w, out=dw_dy)
        beyond_right.zero_()
        beyond_bottom.zero_()
        if not is_alone:
            dw_dx.mul_(is_moving)
            dw_dy.mul_(is_moving)
        torch.mul(dw_dx, dw_dx, out=divisor).addcmul_(dw_dy, dw_dy).sqrt_().add_(1)
        q_x.add_(dw_dx, alpha=tau).div_(divisor)
        q_y.add_(dw_dy, alpha=tau).div_(divisor)
        is_moving.logical_and_(torch.linalg.vector_norm(change, dim=[1, 2], keepdim=True) > rest)
        if is_alone and not bool(is_moving):
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


iterate_without_lock = _script(iterate)


@functools.cache
def fuse(function: Callable[..., None]) -> Callable[..., None]:
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


def read_at(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return images (N, C, H, W) at positions (N, H, W), as cv2.remap with INTER_CUBIC does; zero outside."""
    if not is_cpu(images):
        # As OpenCV 5; older versions round positions to 1/32 px. Three times slower than OpenCV on the CPU.
        height, width = images.shape[-2:]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    read = torch.empty(images.permute(0, 2, 3, 1).shape)  # OpenCV interleaves channels
    for image, to_x, to_y, out in zip(images, x, y, read, strict=True):
        cv2.remap(image.permute(1, 2, 0).numpy(), to_x.numpy(), to_y.numpy(), cv2.INTER_CUBIC, out.numpy())
    return read.permute(0, 3, 1, 2)


def median(flow: Tensor, is_moving: Tensor) -> None:
    """Replace the flow (N, 2, H, W) of moving pairs (N, 1, 1) by its median, as cv2.medianBlur does; edges repeated.

    For a GPU: minima and maxima of whole images.
    """
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
