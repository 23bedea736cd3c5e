"""The options of a run: default, help and command-line form of each, defined once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from .arguments import check_fields
from .errors import UsageError
from .flow import METHODS

MODEL, CLIPS, FLOW, MACHINE = "Model", "Frames and clips", "Optical flow", "Machine"
"""The groups of options in the help."""

_RUNS = ("classify", "extract", "evaluate", "bench")
"""The commands that run networks in the runtime and precision that the user wants."""


def option(default: Any, help: str, group: str, **cli: Any) -> Any:  # noqa: A002  (as Typer calls it)
    """Declare an option.

    Args:
        default: None means the value the model was trained with, unless `help` says otherwise.
        help: one sentence, for the command line and for `help(Options)`.
        group: one of the groups above.
        **cli: facts for the command line: `flags`, `metavar`, `min`, `shown` (the default, in words), `type` (if it
            differs from Python's), `commands` (those that have the option; by default all), and `common` (if
            `--help` shows it, as well as `--help-all`).
    """
    default_factory = {"default_factory": dict} if default == {} else {"default": default}
    return field(**default_factory, metadata={"help": help, "group": group, **cli})


@dataclass(frozen=True)
class Options:
    """The options of a run. `Plan.make` checks them and fills in the model's defaults."""

    model: str = option("i3d", "Model; see: vid3d models", MODEL, flags=("--model", "-m"), metavar="MODEL", common=True)
    streams: str = option(
        "both", "Streams to run; both means all that have weights.", MODEL, metavar="rgb|flow|both", common=True
    )
    weights: Mapping[str, str | Path] = option(
        {},
        "Your own checkpoint for a stream, as in rgb=my.pt; repeatable.",
        MODEL,
        metavar="STREAM=FILE",
        common=True,
        type=list[str] | None,
    )
    preset: str | None = option(
        None,
        "Settings and files that a program wants; other options override it; see: vid3d presets.",
        MODEL,
        metavar="PRESET",
        common=True,
        commands=("extract", "verify"),
    )
    variant: str | None = option(
        None, "Variant of the backbone, for your own checkpoints; see: vid3d models show.", MODEL, metavar="VARIANT"
    )
    labels: str | Path | Sequence[str] | None = option(
        None,
        "Class names of your own checkpoint, one per line.",
        MODEL,
        metavar="FILE",
        type=Path | None,
        commands=("classify",),
    )
    fps: str | float | Fraction | None = option(
        None, "Frames per second to read.", CLIPS, metavar="native|N", shown="the model's", type=str | None, common=True
    )
    start_seconds: float | str = option(
        0.0, "Where to start reading: seconds, or 1:30.", CLIPS, flags=("--start",), metavar="TIME", type=str
    )
    end_seconds: float | str | None = option(
        None,
        "Where to stop reading: seconds, or 1:30.",
        CLIPS,
        flags=("--end",),
        metavar="TIME",
        shown="end of video",
        type=str | None,
    )
    window: int | None = option(
        None, "Frames in a clip.", CLIPS, metavar="FRAMES", min=1, shown="the model's", common=True
    )
    stride: int | None = option(
        None,
        "Frames from the start of one clip to the start of the next.",
        CLIPS,
        metavar="FRAMES",
        min=1,
        shown="the window",
        common=True,
    )
    tail: str = option(
        "pad",
        "Frames after the last full clip: repeat the last frame, drop them (not the only clip), or loop them.",
        CLIPS,
        metavar="pad|drop|loop",
    )
    centred: bool = option(
        False, "Centre a clip on every stride-th frame; the first and the last frame repeat at the ends.", CLIPS
    )
    spread: str | int | None = option(
        None,
        "Run N frames of each clip, spread evenly over it; N:M as HERO's extractor spreads them, see docs/video.md.",
        CLIPS,
        metavar="N|N:M",
        shown="all",
        type=str | None,
    )
    colour_matrix: str = option(
        "tags",
        "YUV matrix: the video's tag, BT.601 if it has none; guess: BT.709 for untagged HD.",
        CLIPS,
        metavar="tags|guess|bt601|bt709",
    )
    deinterlace: bool = option(False, "Deinterlace interlaced videos.", CLIPS)
    square_pixels: bool = option(False, "Change the width to the shape that players show.", CLIPS)
    dense: bool = option(
        False, "Pool windows from one pass over the video: faster if they overlap; the numbers differ.", CLIPS
    )
    resize: int | str | None = option(
        None,
        "Resize frames to this short side, or to width x height whatever their aspect.",
        CLIPS,
        metavar="PX|WxH",
        shown="the model's",
        type=str | None,
    )
    interpolation: str | None = option(
        None,
        "Interpolation of the resize: torchvision's antialiased, OpenCV's bilinear, or Pillow's Lanczos.",
        CLIPS,
        metavar="antialiased|bilinear|lanczos",
        shown="the model's",
    )
    crops: int | str = option(
        "1",
        "Crops of a frame: the centre, 3 along the long side, 10 with mirrored corners, or a list, as in tl,tr,c,tlm.",
        CLIPS,
        metavar="1|3|10|LIST",
        type=str,
    )
    resize_only: bool = option(False, "Run whole frames, without a crop.", CLIPS)
    layer: str | None = option(
        None,
        "Extract the features of this layer; see: vid3d models show.",
        CLIPS,
        metavar="LAYER",
        shown="before the classifier",
        commands=("extract", "verify"),
    )
    pool: str = option(
        "avg",
        "Pooling of a layer's map: mean, maximum, none, or the mean over space.",
        CLIPS,
        metavar="avg|max|none|spatial",
        commands=("extract", "verify"),
    )
    keep_crops: bool = option(
        False,
        "Keep the features of every crop, (N, crops, D), instead of their mean.",
        CLIPS,
        commands=("extract", "verify"),
    )
    flow: str = option("dis", f"Flow method: {', '.join(METHODS)}.", FLOW, metavar="METHOD")
    flow_files: str | Path | None = option(
        None,
        "Read ready-made flow instead: flow_x_00001.jpg …, or .npz.",
        FLOW,
        metavar="DIR|NPZ",
        type=Path | None,
    )
    flow_bound_px: float | None = option(
        None,
        "Displacement in pixels that ready-made flow images store as 0 and 255.",
        FLOW,
        flags=("--flow-bound",),
        metavar="PX",
        min=0.01,
        shown="the model's",
    )
    flow_size: str = option(
        "resized",
        "Frames that flow is computed on; with source, the field is resized and its vectors keep their length.",
        FLOW,
        metavar="resized|source",
    )
    quantise_flow: bool = option(False, "Round flow to 8 bits, as the training data was.", FLOW)
    fuse: str = option(
        "1:1", "Weights of the late fusion.", MODEL, metavar="RGB:FLOW", commands=("classify", "evaluate")
    )
    fuse_on: str = option(
        "logits", "What the fusion sums.", MODEL, metavar="logits|probs", commands=("classify", "evaluate")
    )
    device: str = option(
        "auto",
        "Where the networks run; several GPUs: cuda:0,1 or cuda:all.",
        MACHINE,
        metavar="auto|cpu|cuda[:i]|mps",
        common=True,
    )
    runtime: str = option(
        "auto",
        "What runs the networks; auto: OpenVINO on a CPU if installed, else torch.",
        MACHINE,
        metavar="auto|torch|openvino",
        commands=_RUNS,
    )
    compile: bool = option(False, "Compile the networks with torch; pays off in long jobs.", MACHINE, commands=_RUNS)
    threads: int | None = option(
        None, "CPU threads for the networks.", MACHINE, metavar="N", min=1, shown="one per core"
    )
    precision: str = option(
        "auto",
        "Precision of the networks; auto: bf16 or fp16 on a GPU that is fast in it, else fp32.",
        MACHINE,
        metavar="fp32|bf16|fp16|auto",
        commands=_RUNS,
    )
    batch_size: int | None = option(
        None, "Clips in a batch.", MACHINE, metavar="N", min=1, shown="1 on a CPU, 8 on a GPU", commands=_RUNS
    )
    allow_playlists: bool = option(
        False, "Let playlists (HLS, ffconcat) open the files and addresses that they name.", MACHINE
    )

    __hash__ = None  # type: ignore[assignment]  # `weights` is a dict, which may change

    def __post_init__(self) -> None:
        facts = {field.name: field.metadata for field in fields(Options)}
        check_fields(self, Options)
        for name, fact in facts.items():
            value = getattr(self, name)
            if "min" in fact and value is not None and not fact["min"] <= value < math.inf:
                unit = {"FRAMES": " frames", "SECONDS": " seconds", "PX": " pixels"}.get(fact.get("metavar", ""), "")
                raise UsageError(f"{name}={value:g}: give {fact['min']:g} or more{unit}")


def _describe(name: str, facts: Mapping[str, Any]) -> str:
    metavar = facts.get("metavar", "")
    values = f" One of {metavar.replace('|', ', ')}." if "|" in metavar and metavar == metavar.lower() else ""
    default = f" Default: {facts['shown']}." if "shown" in facts else ""
    return f"    {name}: {facts['help']}{values}{default}"


Options.__doc__ = f"""{Options.__doc__}

Attributes:
{chr(10).join(_describe(field.name, field.metadata) for field in fields(Options))}
"""
