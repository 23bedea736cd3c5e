"""Trains one stream with exact symmetries as augmentation, a classification loss and a motion loss.

A mirrored, turned or reversed clip shows another camera motion exactly, so each clip stands for sixteen:

    mirror left-right    pan-left ↔ pan-right, the rolls
    mirror top-bottom    tilt-up ↔ tilt-down, the rolls
    transpose            pan-right ↔ tilt-down, pan-left ↔ tilt-up, the rolls
    reverse the time     pans, tilts, zooms and rolls each become their opposite
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vid3d_cli.models.clip_model import ClipModel, Normalise
from vid3d_cli.models.registry import BACKBONES

from .dataset import CLIP_LENGTH, FLOW_BOUND_PX, NORMALISATION, ClipSet
from .paths import CLASSES

BACKBONE = "s3d_mini"
NUM_CELLS = 7

Array = NDArray[Any]


def _swap(*pairs: tuple[str, str]) -> NDArray[np.int64]:
    """Return (10,) the class that each class becomes."""
    table = np.arange(len(CLASSES))
    for first, second in pairs:
        a, b = CLASSES.index(first), CLASSES.index(second)
        table[a], table[b] = b, a
    return table


_PANS, _TILTS = ("pan-left", "pan-right"), ("tilt-up", "tilt-down")
_ZOOMS, _ROLLS = ("zoom-in", "zoom-out"), ("roll-clockwise", "roll-counterclockwise")
MIRRORED_X = _swap(_PANS, _ROLLS)
MIRRORED_Y = _swap(_TILTS, _ROLLS)
TRANSPOSED = _swap(("pan-right", "tilt-down"), ("pan-left", "tilt-up"), _ROLLS)
REVERSED = _swap(_PANS, _TILTS, _ZOOMS, _ROLLS)


@dataclass(frozen=True)
class Sample:
    """One training clip of one stream."""

    clip: Array
    """(T, H, W, C)."""
    label: int
    motion: NDArray[np.float32]
    """(T, 4) motion of the image at every tick, in pixels: right, down, growth, clockwise turn (see `measure`)."""
    field: Array | None = None
    """(T, 7, 7, 2) motion of each of 7×7 cells, in pixels right and down; None if not needed."""


def mirror_x(sample: Sample, *, is_flow: bool) -> Sample:
    """Return the sample mirrored left to right."""
    clip = sample.clip[:, :, ::-1]
    clip = clip * np.array([-1, 1], clip.dtype) if is_flow else clip
    field = None if sample.field is None else sample.field[:, :, ::-1] * np.float32([-1, 1])
    return Sample(clip, int(MIRRORED_X[sample.label]), sample.motion * np.float32([-1, 1, 1, -1]), field)


def mirror_y(sample: Sample, *, is_flow: bool) -> Sample:
    """Return the sample mirrored top to bottom."""
    clip = sample.clip[:, ::-1]
    clip = clip * np.array([1, -1], clip.dtype) if is_flow else clip
    field = None if sample.field is None else sample.field[:, ::-1] * np.float32([1, -1])
    return Sample(clip, int(MIRRORED_Y[sample.label]), sample.motion * np.float32([1, -1, 1, -1]), field)


def transpose(sample: Sample, *, is_flow: bool) -> Sample:
    """Return the sample with rows and columns swapped."""
    clip = sample.clip.swapaxes(1, 2)
    clip = clip[..., ::-1] if is_flow else clip
    motion = sample.motion[:, [1, 0, 2, 3]] * np.float32([1, 1, 1, -1])
    field = None if sample.field is None else sample.field.swapaxes(1, 2)[..., ::-1]
    return Sample(clip, int(TRANSPOSED[sample.label]), motion, field)


def reverse(sample: Sample, *, is_flow: bool) -> Sample:
    """Return the sample reversed in time; the motion between two frames is then the opposite."""
    clip = -sample.clip[::-1] if is_flow else sample.clip[::-1]
    field = None if sample.field is None else -sample.field[::-1]
    return Sample(clip, int(REVERSED[sample.label]), -sample.motion[::-1], field)


SYMMETRIES = (mirror_x, mirror_y, transpose, reverse)


def pad_tail(sample: Sample, num_valid: int, *, is_flow: bool) -> Sample:
    """Return the clip as the pipeline pads a video that ends earlier: the last entry repeats.

    The last frame's flow is the one before it, since it has no successor.
    """
    last = max(num_valid - 1 - int(is_flow), 0)
    order = np.minimum(np.arange(CLIP_LENGTH), last)
    motion_order = np.minimum(np.arange(CLIP_LENGTH), max(num_valid - 2, 0))
    field = None
    if sample.field is not None:  # a frozen image does not move
        field = sample.field * (np.arange(CLIP_LENGTH) < num_valid - 1)[:, None, None, None]
    return Sample(sample.clip[order], sample.label, sample.motion[motion_order], field)


def measure(flow: Array) -> NDArray[np.float32]:
    """Return the motion of the whole image, the target of the motion loss.

    Args:
        flow: (T, H, W, 2), pixels.

    Returns:
        (T, 4) float32: median shift right and down, mean growth and clockwise turn, in pixels at the edge.
    """
    small = flow[:, 4::8, 4::8].astype(np.float32)
    y, x = np.mgrid[-1 : 1 : small.shape[1] * 1j, -1 : 1 : small.shape[2] * 1j].astype(np.float32)
    shift = np.median(small, axis=(1, 2))
    u, v = np.moveaxis(small - shift[:, None, None], -1, 0)
    growth = np.median(u * x + v * y, axis=(1, 2)) * 2
    turn = np.median(v * x - u * y, axis=(1, 2)) * 2
    return np.stack([*shift.T, growth, turn], 1)


def measure_cells(flow: Array) -> NDArray[np.float32]:
    """Return the mean flow of 7×7 cells: (T, 112, 112, 2) → (T, 7, 7, 2) float32, pixels."""
    small = flow[:, 2::4, 2::4].astype(np.float32)
    num_frames, height, width = small.shape[:3]
    cells = small.reshape(num_frames, NUM_CELLS, height // NUM_CELLS, NUM_CELLS, width // NUM_CELLS, 2)
    return np.asarray(cells.mean((2, 4)))


def _motion_target(motion: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (8,) mean and spread over time, compressed so that slow motion counts."""
    return np.arcsinh(np.concatenate([motion.mean(0), motion.std(0)]) / 0.3).astype(np.float32)


@dataclass(frozen=True)
class Schedule:
    """The training options of a stream."""

    epochs: int
    shrink: int = 1
    """Factor by which clips are shrunk; smaller clips train faster."""
    minutes: float | None = None
    """Time limit; the cooling then starts earlier, after fewer epochs. The result equals that of a run with this number
    of `epochs` and no limit."""
    cooling_epochs: int = 2
    """Epochs at the end, in which the learning rate falls to zero; before that it is constant."""
    augment: bool = True
    """Whether to augment; without it a few clips are memorised within seconds, which tests the training."""
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up_steps: int = 200
    label_smoothing: float = 0.05
    motion_weight: float = 0.5
    """Weight of the motion loss, relative to the classification loss."""
    field_weight: float = 1.0
    """Weight of the loss that makes rgb predict the flow of every cell; classes alone teach motion slowly."""


@dataclass(frozen=True)
class Trained:
    """A stream after training."""

    state: dict[str, Tensor]
    """State dict of the backbone, float32."""
    losses: list[float]
    """Mean classification loss of every epoch."""
    seconds: float
    rounds: str = ""
    """The epochs that it took, as in `--flow`."""


def train_stream(
    stream: str, clips: ClipSet, schedule: Schedule, *, seed: int, state: dict[str, Tensor] | None = None
) -> Trained:
    """Train one stream.

    Args:
        stream: "rgb" or "flow".
        clips: clips to train on; the motion loss of both streams reads their flow.
        schedule: the training options.
        seed: seed of the weights, the order and the augmentation.
        state: state dict of the backbone to continue from; None starts from scratch.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, len(stream)])
    start = time.monotonic()
    model = new_model(stream, state).train().to(memory_format=torch.channels_last_3d)
    _compute_in_float32(model.backbone.features[-2:])
    if stream == "rgb" and state is None:
        start_from_motion_energy(model)
    motion_head = nn.Linear(model.backbone.feature_dim, 8)
    fields = _FieldLoss(model, clips) if stream == "rgb" else None
    parameters = [*model.parameters(), *motion_head.parameters(), *(fields.parameters() if fields else [])]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    rate = _Rate(schedule, num_steps=len(clips.labels) // schedule.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    motions = np.stack([measure(flow) for flow in clips.streams["flow"]])
    losses = []
    while len(losses) < rate.num_epochs:
        rate.plan(len(losses), time.monotonic() - start)
        sums = []
        for inputs, labels, targets, cells in _batches(rng, stream, clips, motions, fields, schedule):
            pictures = model.normalise(inputs)
            if stream == "rgb" and schedule.augment:
                pictures = _recolour(rng, pictures)
            if schedule.shrink > 1:
                pictures = F.avg_pool3d(pictures, (1, schedule.shrink, schedule.shrink))
            with torch.autocast("cpu", torch.bfloat16):
                output = model.backbone(pictures)
            loss = F.cross_entropy(output.logits, labels, label_smoothing=schedule.label_smoothing)
            motion_loss = F.smooth_l1_loss(motion_head(output.features), targets)
            total = loss + schedule.motion_weight * motion_loss
            if fields is not None:
                total = total + schedule.field_weight * fields(cells)
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            if torch.isfinite(nn.utils.clip_grad_norm_(parameters, 5.0)):
                optimiser.step()
            scheduler.step()
            sums.append((float(loss.detach()), float(motion_loss.detach()), float(total.detach())))
            if len(sums) % 100 == 0:
                print(f"{stream} step {len(sums)}: {np.mean(sums[-100:], axis=0).round(3)}", flush=True)
        mean_loss, mean_motion_loss, _ = np.mean(sums, axis=0)
        losses.append(float(mean_loss))
        seconds = time.monotonic() - start
        print(f"{stream} epoch {len(losses)}: {mean_loss:.3f} + {mean_motion_loss:.3f}, {seconds:.0f} s", flush=True)
    return Trained(dict(model.backbone.state_dict()), losses, time.monotonic() - start)


def new_model(stream: str, state: dict[str, Tensor] | None = None) -> ClipModel:
    """Return the network with its normalisation, as in inference."""
    backbone = BACKBONES[BACKBONE].build(stream, len(CLASSES))
    if state is not None:
        backbone.load_state_dict(state, strict=True)
    return ClipModel(backbone, Normalise(NORMALISATION[stream])).eval()


def start_from_motion_energy(model: ClipModel) -> None:
    """Initialise rgb's stem with filters that respond to moving edges.

    The 16 channels of 1×7×7 become edges of 4 orientations and 4 phases, and those of 7×1×1 the same orientations
    moving either way at two speeds: an edge filter whose phase turns with time.

    Source: Adelson & Bergen, Spatiotemporal energy models for the perception of motion, 1985.
    """
    spatial, temporal = (model.backbone.features[0][index][0].weight for index in (0, 1))
    y, x = torch.meshgrid(torch.arange(-3.0, 4.0), torch.arange(-3.0, 4.0), indexing="ij")
    window, lags = torch.exp(-(x**2 + y**2) / (2 * 2.0**2)), torch.arange(-3.0, 4.0)
    orientations, phases = [i * np.pi / 4 for i in range(4)], torch.arange(4) * np.pi / 2
    with torch.no_grad():
        temporal.zero_()
        for i, orientation in enumerate(orientations):
            along = 2 * np.pi / 8 * (x * np.cos(orientation) + y * np.sin(orientation))  # 8 px a wave
            for k, phase in enumerate(phases):
                edge = torch.cos(along - phase) * window
                spatial[4 * i + k] = (edge - edge.mean()) / edge.abs().sum() / 3 + 0.002 * torch.randn_like(spatial[0])
            for k, turn in enumerate((0.35, -0.35, 1.2, -1.2)):  # radians a frame
                weight = torch.cos(phases[:, None] - turn * lags) * torch.exp(-(lags**2) / (2 * 2.0**2))
                temporal[4 * i + k, 4 * i : 4 * i + 4, :, 0, 0] = weight / weight.abs().sum()
        temporal.add_(0.003 * torch.randn_like(temporal))
        # Batch norm removes the scale, but the first steps of Adam would change small weights too much.
        spatial.mul_(0.3 / spatial.std())
        temporal.mul_(0.3 / temporal.std())


class _FieldLoss(nn.Module):
    """A loss that makes two stages predict the flow of every cell; hooks read their maps, so the network is unchanged.

    Args:
        model: the network; its stages mixed 3c (T/2, 14×14) and mixed 4f (T/4, 7×7) are read.
        clips: clips whose flow is the target.
    """

    STAGES = (6, 12)

    def __init__(self, model: ClipModel, clips: ClipSet) -> None:
        super().__init__()
        self.cells = np.stack([measure_cells(flow) for flow in clips.streams["flow"]])  # (N, T, 7, 7, 2)
        stages = [model.backbone.features[index] for index in self.STAGES]
        self.heads = nn.ModuleList(nn.Conv3d(stage.out_channels, 2, 1) for stage in stages)
        self._maps: list[Tensor] = []
        for stage in stages:
            stage.register_forward_hook(lambda _module, _inputs, output: self._maps.append(output))

    def forward(self, cells: Tensor) -> Tensor:
        """Return the loss of the last forward pass's maps, for flow (N, 2, T, 7, 7) in pixels."""
        losses = []
        for head, features in zip(self.heads, self._maps, strict=True):
            found = F.adaptive_avg_pool3d(head(features.float()), (features.shape[2], NUM_CELLS, NUM_CELLS))
            wanted = F.adaptive_avg_pool3d(cells, found.shape[2:])
            losses.append(F.smooth_l1_loss(found, torch.asinh(wanted / 0.3)))
        self._maps.clear()
        return torch.stack(losses).sum()


def _compute_in_float32(stages: nn.Sequential) -> None:
    """Exclude these stages from autocast.

    Where two frames are left, torch 2.15's bfloat16 convolution in time gives gradients of NaN or noise.
    """

    def in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return forward(x.float())

        return run

    for stage in stages:
        stage.forward = in_float32(stage.forward)


class _Rate:
    """The share of the learning rate at every step: it rises, stays constant, and falls linearly."""

    def __init__(self, schedule: Schedule, num_steps: int) -> None:
        self.num_epochs = schedule.epochs
        self._schedule = schedule
        self._num_steps = num_steps  # of an epoch

    def plan(self, num_done: int, seconds: float) -> None:
        """Decide before an epoch whether the cooling starts with it."""
        minutes, cooling = self._schedule.minutes, self._schedule.cooling_epochs
        if minutes is None or not num_done or num_done + cooling >= self.num_epochs:
            return
        if seconds / num_done * (num_done + cooling + 1) > 60 * minutes:
            self.num_epochs = num_done + cooling

    def __call__(self, step: int) -> float:
        epochs_left = self.num_epochs - step / self._num_steps
        warm_up_steps = min(self._schedule.warm_up_steps, self._schedule.epochs * self._num_steps // 5)
        rise = min(1.0, (step + 1) / max(warm_up_steps, 1))
        return rise * min(1.0, max(0.0, epochs_left / self._schedule.cooling_epochs))


def _batches(
    rng: np.random.Generator,
    stream: str,
    clips: ClipSet,
    motions: NDArray[np.float32],
    fields: _FieldLoss | None,
    schedule: Schedule,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield normaliser inputs (N, C, T, H, W), labels (N,), motion targets (N, 8), cells (N, 2, T, 7, 7) or None."""
    order = rng.permutation(len(clips.labels))
    for start in range(0, len(order) - schedule.batch_size + 1, schedule.batch_size):
        samples = []
        for index in order[start : start + schedule.batch_size]:
            cells = None if fields is None else fields.cells[index]
            sample = Sample(clips.streams[stream][index], int(clips.labels[index]), motions[index], cells)
            samples.append(augment(rng, sample, is_flow=stream == "flow") if schedule.augment else sample)
        batch = torch.from_numpy(np.stack([s.clip for s in samples]))
        batch = batch.float() if stream == "flow" else batch
        labels = torch.tensor([s.label for s in samples])
        targets = torch.from_numpy(np.stack([_motion_target(s.motion) for s in samples]))
        grids = [s.field.astype(np.float32) for s in samples if s.field is not None]
        cells = torch.from_numpy(np.stack(grids)).permute(0, 4, 1, 2, 3) if grids else torch.empty(0)
        yield batch.permute(0, 4, 1, 2, 3), labels, targets, cells


def augment(rng: np.random.Generator, sample: Sample, *, is_flow: bool) -> Sample:
    """Return a sample with a random symmetry; sometimes padded at the end; with flow slightly slower or faster."""
    for symmetry in SYMMETRIES:
        if rng.random() < 0.5:
            sample = symmetry(sample, is_flow=is_flow)
    if rng.random() < 0.15:
        sample = pad_tail(sample, int(rng.integers(3, CLIP_LENGTH)), is_flow=is_flow)
    if is_flow:
        scale = np.float32(np.exp(rng.uniform(-0.2, 0.2)))
        clip = sample.clip.astype(np.float32) * scale
        sample = replace(sample, clip=np.clip(clip, -FLOW_BOUND_PX, FLOW_BOUND_PX), motion=sample.motion * scale)
    return sample


def _recolour(rng: np.random.Generator, clips: Tensor) -> Tensor:
    """Return clips (N, C, T, H, W) in [-1, 1] with other colours, contrast and brightness, constant within a clip."""
    for clip in clips:
        gain = float(np.exp(rng.normal(0, 0.25))) * (-1 if rng.random() < 0.1 else 1)
        clip.copy_((clip[torch.from_numpy(rng.permutation(3))] * gain + rng.normal(0, 0.15)).clamp(-1, 1))
    return clips


@torch.inference_mode()
def predict(model: ClipModel, clips: Array, batch_size: int = 8) -> NDArray[np.float32]:
    """Return the logits (N, 10) of clips (N, T, H, W, C) in the pipeline's form."""
    outputs = []
    for start in range(0, len(clips), batch_size):
        batch = torch.from_numpy(np.array(clips[start : start + batch_size]))
        outputs.append(model(batch if batch.dtype == torch.uint8 else batch.float()).logits)
    return torch.cat(outputs).numpy()
