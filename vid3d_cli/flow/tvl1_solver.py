"""TV-L1 in torch, on the CPU or a GPU: the flow of OpenCV's DualTVL1.

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

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..device_memory import download
from .tvl1_kernels import MEDIAN_SIDE_PX, fuse, is_cpu, iterate, iterate_without_lock, median, read_at

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
MIN_SIDE_PX = 16
"""The pyramid has no level with a shorter side, except the full size."""

PX_PER_W = THETA / TAU
"""The flow is held as w = τ/θ u, see `_Scale`."""

ITERATIONS_PER_CHECK = 5
"""How often the host asks a GPU how many pairs still move."""

STAYING_SHARE = 0.75
"""Pairs at rest leave the batch when at most this share of it moves: to leave costs as much as 1.5 iterations."""


def solve(prev: Tensor, following: Tensor) -> Tensor:
    """Return the flow (N, 2, H, W) of frames (N, H, W) float32, 0 to 255; on the CPU, of one pair."""
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
        # On the device: a copy from the host would wait for it.
        position = (torch.arange(side, dtype=torch.float64, device=image.device) + 0.5) * step - 0.5
        position = position.clamp(0, image.shape[dim] - 1)
        before = position.long()
        share = (position - before).to(image)
        share = share.unsqueeze(-1) if dim == -2 else share
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
        self.fields = (self.w_padded, self.q_x_padded, self.q_y_padded, self.f_offset, self.f_slope, self.g)
        # The length of w's change, as one vector, at which a pair is at rest.
        rest = torch.full((), EPSILON_PX / PX_PER_W * math.sqrt(self.height * self.width), device=device)
        self.constants = (self.height, TAU, LAMBDA * THETA, rest)
        self.image(self.w)[:] = flow / PX_PER_W

    def image(self, flat: Tensor) -> Tensor:
        """View (N, C, S) as (N, C, H, W)."""
        return flat.unflatten(-1, (self.height, self.row))[..., : self.width]  # type: ignore[no-any-return, no-untyped-call]

    def solve(self) -> Tensor:
        """Return the flow (N, 2, H, W) in pixels."""
        minimise = self._minimise_alone if is_cpu(self.w) else self._minimise_together
        for _ in range(NUM_WARPS):
            self._linearise()
            self.is_moving.fill_(True)
            minimise()
        return self.image(self.w) * PX_PER_W

    def _linearise(self) -> None:
        """Read the second frame where the flow points, and set f and g for there."""
        flow = self.image(self.w)
        x, y = (torch.add(at, flow[:, i], alpha=PX_PER_W) for i, at in enumerate((self._x, self._y)))
        read = read_at(self._following, x, y)
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

    def _minimise_alone(self) -> None:
        """Iterate until the one pair is at rest."""
        for _ in range(MAX_ROUNDS):
            for channel in self.image(self.w)[0].numpy():
                cv2.medianBlur(channel, MEDIAN_SIDE_PX, channel)
            iterate_without_lock(*self.fields, self.is_moving, *self.constants, ITERATIONS_PER_ROUND, True)
            if not self.is_moving:
                return

    def _minimise_together(self) -> None:
        """Iterate until every pair is at rest, and go on with fewer when many are.

        The pairs that move come to lie in front: `batch` is a view of them. The host asks for their number after each
        check's iterations and reads the answer after the next ones, so that the GPU always has work.
        """
        num_pairs = len(self.is_moving)
        places = torch.arange(num_pairs, device=self.w.device)  # which pair lies where
        stores = (*self.fields, self.is_moving, places)
        answer: Callable[[], list[NDArray[np.int64]]] | None = None
        checks_per_round = ITERATIONS_PER_ROUND // ITERATIONS_PER_CHECK
        for check in range(MAX_ROUNDS * checks_per_round):
            *fields, is_moving, _ = batch = [store[:num_pairs] for store in stores]
            if check % checks_per_round == 0:
                fuse(median)(self.image(fields[0][..., : self.g.shape[-1]]), is_moving)
            for _ in range(ITERATIONS_PER_CHECK):
                fuse(iterate)(*fields, is_moving, *self.constants, 1, False)
            if answer is not None:
                num_moving = int(answer()[0])
                if not num_moving:
                    break
                # torch.compile would make code of its own for one pair.
                if max(2, num_moving) <= STAYING_SHARE * num_pairs:
                    to_front = torch.argsort(is_moving.flatten().byte(), descending=True, stable=True)
                    for store in batch:
                        store.copy_(store.index_select(0, to_front))
                    num_pairs = max(2, num_moving)
            answer = download([self.is_moving[:num_pairs].sum()])
        if num_pairs < len(self.is_moving):
            back = torch.argsort(places)
            for store in self.fields[:3]:  # the others are set anew at the next warp
                store.copy_(store.index_select(0, back))
