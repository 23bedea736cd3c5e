"""What a run can be told; None stands for what the weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

TIMEOUT_SECONDS = 120.0
"""A decoder that gets no further for so long is taken to hang: it brings a frame in milliseconds, else."""


@dataclass(frozen=True)
class Options:
    """See the head of this file."""

    model: str = "i3d"
    """A model of the manifest; a bare backbone name means its default weights."""
    streams: str = "both"
    """"rgb", "flow", or "both" (all that the model has)."""
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    """Own checkpoint files per stream, in place of the manifest's."""
    variant: str | None = None
    """Another form of the backbone, for own checkpoints: see `vid3d models show`."""
    labels: str | Path | None = None
    """Class names, one a line, in the order of the logits; in place of the manifest's."""
    fps: str | float | Fraction | None = None
    """Frames per second to read, as 25, 29.97 or "30000/1001", or "native"."""
    start_seconds: float = 0.0
    """Where to start reading, relative to the first frame."""
    end_seconds: float | None = None
    """Where to stop reading; None is the end of the video."""
    window: int | None = None
    """Frames a clip."""
    stride: int | None = None
    """Frames from one clip's start to the next one's."""
    tail: str = "pad"
    """What becomes of the frames after the last whole clip: see `clips.sliding_clips`."""
    dense: bool = False
    """Run over long stretches and pool the windows from them: see `dense`."""
    crops: int = 1
    """Squares that are cut out of a frame: see `preprocess.place_crops`; their scores are averaged."""
    resize_only: bool = False
    """Show the network the whole resized frame, without a crop."""
    layer: str | None = None
    """Take the features from this layer of the backbone, not from before the classifier."""
    pool: str = "avg"
    """What becomes of a layer's map: see `model.POOLS`."""
    keep_crops: bool = False
    """Keep the features of every crop instead of their mean."""
    flow: str = "dis"
    """Optical flow method: see `flow.FLOW_METHODS`."""
    flow_files: Path | None = None
    """Ready-made flow to read instead of computing it: see `flow_files.open_flow_files`."""
    flow_bound_px: float | None = None
    """The displacement that ready-made flow images stored as 0 and 255."""
    quantise_flow: bool = False
    """Round flow to 8 bits, as the training data was."""
    fuse: str = "1:1"
    """Weights of rgb and flow in the late fusion."""
    fuse_on: str = "logits"
    """What is fused: "logits" or "probs"."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", several as "cuda:0,1" or "cuda:all", "mps"."""
    runtime: str = "auto"
    """"torch", "openvino", or "auto": OpenVINO on a CPU where it is installed."""
    compile: bool = False
    """Have torch compile the networks, which takes a minute or so at the start."""
    threads: int | None = None
    """Threads that the networks get of a CPU; None is one a core."""
    precision: str = "auto"
    """"fp32", "bf16", "fp16", "auto"."""
    batch_size: int | None = None
    """Clips the network takes at a time; None is 1 on a CPU and 8 on a GPU."""


class OptionValues(TypedDict, total=False):
    """The fields of `Options`, for functions that take them as keywords."""

    streams: str
    weights: Mapping[str, str | Path]
    variant: str | None
    labels: str | Path | None
    fps: str | float | Fraction | None
    start_seconds: float
    end_seconds: float | None
    window: int | None
    stride: int | None
    tail: str
    dense: bool
    crops: int
    resize_only: bool
    layer: str | None
    pool: str
    keep_crops: bool
    flow: str
    flow_files: Path | None
    flow_bound_px: float | None
    quantise_flow: bool
    fuse: str
    fuse_on: str
    device: str
    runtime: str
    compile: bool
    threads: int | None
    precision: str
    batch_size: int | None
