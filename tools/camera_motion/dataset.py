"""Rendered clips as the network sees them, preprocessed as in inference and cached on disk.

    cached_clips(folder, seed=1, num_clips=4000)  →  ClipSet: rgb, flow, labels, as memory-mapped arrays

Equal arguments give equal clips.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vid3d_cli.clips.preprocess import CENTRE, Views
from vid3d_cli.clips.streams import align_streams
from vid3d_cli.clips.windows import sliding_clips
from vid3d_cli.flow.methods import create_flow
from vid3d_cli.models.manifest import Normalisation
from vid3d_cli.records import Frame

from .paths import CLASSES
from .render import NUM_TICKS, TICK_FPS, Frames, render_clip

CLIP_LENGTH = NUM_TICKS - 1
"""Frames in a clip."""
SHORT_SIDE_PX = 128
CROP_PX = 112
FLOW_BOUND_PX = 8.0
"""At 128 px a fast camera moves the image by 6 px per tick; a narrow bound keeps slow motion visible."""

NORMALISATION = {
    "rgb": Normalisation((-1.0, 1.0), None, None, "RGB", None, None, False),
    "flow": Normalisation((-1.0, 1.0), None, None, None, FLOW_BOUND_PX, "DIS", False),
}
"""The same as in the manifest's entry of the model."""

CHANNELS = {"rgb": 3, "flow": 2}
DTYPES = {"rgb": np.uint8, "flow": np.float16}


@dataclass(frozen=True)
class ClipSet:
    """Clips and the classes of their camera motion."""

    streams: dict[str, NDArray[Any]]
    """"rgb": (N, 16, 112, 112, 3) uint8; "flow": (N, 16, 112, 112, 2) float16, in pixels."""
    labels: NDArray[np.int64]
    """(N,) indices into `CLASSES`."""


def to_streams(frames: Frames, *, flow_method: str = "dis") -> dict[str, NDArray[Any]]:
    """Return the first clip of some frames, made as the pipeline makes it.

    Args:
        frames: (T, H, W, 3), RGB, at 12.5 frames per second; fewer than 16 are padded.
        flow_method: see `vid3d_cli.flow.methods.FLOW_METHODS`.
    """
    tick = Fraction(1) / TICK_FPS
    records = (Frame(i, float(i * tick), float((i + 1) * tick), picture) for i, picture in enumerate(frames))
    compute = create_flow(flow_method)
    aligned = align_streams(
        records,
        size_px=SHORT_SIDE_PX,
        crop=Views(CENTRE, CROP_PX),
        rgb=True,
        flow=lambda _, grey: compute(grey),
        pairs_per_call=compute.pairs_per_call,
    )
    window = next(sliding_clips(aligned, length=CLIP_LENGTH, stride=CLIP_LENGTH))
    return {stream: np.stack([frame.streams[stream] for frame in window.frames]) for stream in CHANNELS}


def cached_clips(folder: Path, *, seed: int, num_clips: int, num_processes: int = 2) -> ClipSet:
    """Return rendered clips, or those of an earlier call with the same seed and number.

    Args:
        folder: directory of the cache; about 1 MB per clip.
        seed: seed of `render_clip`.
        num_clips: N; clip i shows class i modulo 10.
        num_processes: how many render at a time.
    """
    paths = {stream: folder / f"{stream}-{seed}-{num_clips}.npy" for stream in CHANNELS}
    done = folder / f"done-{seed}-{num_clips}.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for stream, path in paths.items():
            shape = (num_clips, CLIP_LENGTH, CROP_PX, CROP_PX, CHANNELS[stream])
            np.lib.format.open_memmap(path, "w+", DTYPES[stream], shape).flush()
        jobs = [(paths, seed, range(start, min(start + 20, num_clips))) for start in range(0, num_clips, 20)]
        _run(jobs, num_processes)
        done.write_text(json.dumps({"seed": seed, "clips": num_clips}))
    streams = {stream: np.load(path, mmap_mode="r") for stream, path in paths.items()}
    return ClipSet(streams, np.arange(num_clips) % len(CLASSES))


def _run(jobs: Iterable[tuple[dict[str, Path], int, range]], num_processes: int) -> None:
    if num_processes == 1:
        for job in jobs:
            _render_some(job)
        return
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        for _ in pool.imap_unordered(_render_some, jobs):
            pass


def _render_some(job: tuple[dict[str, Path], int, range]) -> None:
    paths, seed, indices = job
    cv2.setNumThreads(1)
    arrays = {stream: np.lib.format.open_memmap(path, "r+") for stream, path in paths.items()}
    for index in indices:
        streams = to_streams(render_clip(index, seed=seed).frames)
        for stream, array in arrays.items():
            array[index] = streams[stream]
