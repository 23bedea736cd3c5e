"""The options of a run: default, help and command-line form of each, defined once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

MODEL, CLIPS, FLOW, MACHINE = "Model", "Frames and clips", "Optical flow", "Machine"
"""The groups of options in the help."""


def option(default: Any, help: str, group: str, **cli: Any) -> Any:  # noqa: A002  (as Typer calls it)
    """Declare an option.

    Args:
        default: None means the value the model was trained with, unless `help` says otherwise.
        help: one sentence, for the command line and for `help(Options)`.
        group: one of the groups above.
        **cli: facts for the command line: `flags`, `metavar`, `min`, `shown` (the default, in words), `type` (if it
            differs from Python's), and `commands` (those that have the option; by default all).
    """
    default_factory = {"default_factory": dict} if default == {} else {"default": default}
    return field(**default_factory, metadata={"help": help, "group": group, **cli})


@dataclass(frozen=True)
class Options:
    """The options of a run. `Plan.make` checks them and fills in the model's defaults."""

    model: str = option("i3d", "Model; see: vid3d models", MODEL, flags=("--model", "-m"))
    streams: str = option("both", "Streams to run; both means all that have weights.", MODEL, metavar="rgb|flow|both")
    weights: Mapping[str, str | Path] = option(
        {},
        "Your own checkpoint for a stream, as in rgb=my.pt; repeatable.",
        MODEL,
        metavar="STREAM=FILE",
        type=list[str] | None,
    )
    variant: str | None = option(
        None, "Variant of the backbone, for your own checkpoints; see: vid3d models show.", MODEL, metavar="NAME"
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
        None, "Frames per second to read.", CLIPS, metavar="native|N", shown="the model's", type=str | None
    )
    start_seconds: float = option(0.0, "Where to start reading.", CLIPS, flags=("--start",), metavar="SECONDS", min=0.0)
    end_seconds: float | None = option(
        None, "Where to stop reading.", CLIPS, flags=("--end",), metavar="SECONDS", shown="end of video"
    )
    window: int | None = option(None, "Frames in a clip.", CLIPS, metavar="FRAMES", min=1, shown="the model's")
    stride: int | None = option(
        None,
        "Frames from the start of one clip to the start of the next.",
        CLIPS,
        metavar="FRAMES",
        min=1,
        shown="the window",
    )
    tail: str = option(
        "pad",
        "Frames after the last full clip: repeat the last frame, drop them (not the only clip), or loop them.",
        CLIPS,
        metavar="pad|drop|loop",
    )
    dense: bool = option(
        False, "Pool windows from one pass over the video: faster if they overlap; the numbers differ.", CLIPS
    )
    crops: int = option(
        1, "Crops of a frame: the centre, 3 along the long side, or 10 with mirrored corners.", CLIPS, metavar="1|3|10"
    )
    resize_only: bool = option(False, "Run whole frames, without a crop.", CLIPS)
    layer: str | None = option(
        None,
        "Extract the features of this layer; see: vid3d models show.",
        CLIPS,
        metavar="NAME",
        shown="before the classifier",
        commands=("extract",),
    )
    pool: str = option(
        "avg",
        "Pooling of a layer's map: mean, maximum, none, or the mean over space.",
        CLIPS,
        metavar="avg|max|none|spatial",
        commands=("extract",),
    )
    keep_crops: bool = option(
        False, "Keep the features of every crop, (N, crops, D), instead of their mean.", CLIPS, commands=("extract",)
    )
    flow: str = option(
        "dis", "Flow method: dis, dis-ultrafast, dis-fast, dis-medium, farneback or tvl1.", FLOW, metavar="METHOD"
    )
    flow_files: Path | None = option(
        None, "Read ready-made flow instead: flow_x_00001.jpg …, or .npz.", FLOW, metavar="DIR|NPZ"
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
    quantise_flow: bool = option(False, "Round flow to 8 bits, as the training data was.", FLOW)
    fuse: str = option(
        "1:1", "Weights of the late fusion.", MODEL, metavar="RGB:FLOW", commands=("classify", "evaluate")
    )
    fuse_on: str = option(
        "logits", "What the fusion sums.", MODEL, metavar="logits|probs", commands=("classify", "evaluate")
    )
    device: str = option(
        "auto", "Where the networks run; several GPUs: cuda:0,1 or cuda:all.", MACHINE, metavar="auto|cpu|cuda[:i]|mps"
    )
    runtime: str = option(
        "auto",
        "What runs the networks; auto: OpenVINO on a CPU if installed, else torch.",
        MACHINE,
        metavar="auto|torch|openvino",
    )
    compile: bool = option(False, "Compile the networks with torch; pays off in long jobs.", MACHINE)
    threads: int | None = option(None, "CPU threads for the networks.", MACHINE, min=1, shown="one per core")
    precision: str = option(
        "auto",
        "Precision of the networks; auto: bf16 on a GPU that has it, else fp32.",
        MACHINE,
        metavar="fp32|bf16|fp16|auto",
    )
    batch_size: int | None = option(None, "Clips in a batch.", MACHINE, min=1, shown="1 on a CPU, 8 on a GPU")


def _describe(name: str, facts: Mapping[str, Any]) -> str:
    metavar = facts.get("metavar", "")
    values = f" One of {metavar.replace('|', ', ')}." if "|" in metavar and metavar == metavar.lower() else ""
    default = f" Default: {facts['shown']}." if "shown" in facts else ""
    return f"    {name}: {facts['help']}{values}{default}"


Options.__doc__ = f"""{Options.__doc__}

Attributes:
{chr(10).join(_describe(field.name, field.metadata) for field in fields(Options))}
"""
