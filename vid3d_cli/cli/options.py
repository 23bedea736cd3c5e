"""The options that every command shares which runs a model, written down once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..options import Options

Fuse = Annotated[str, typer.Option(metavar="RGB:FLOW", help="Weights of the late fusion.")]
FuseOn = Annotated[str, typer.Option(metavar="logits|probs", help="What is summed.")]

_OF_SOME_COMMANDS = ("fuse", "fuse_on", "class_names", "layer", "pool", "keep_crops")

_MODEL, _CLIPS, _FLOW, _MACHINE = "Model", "Frames and clips", "Optical flow", "Machine"


def _template(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model; see: vid3d models", rich_help_panel=_MODEL)
    ] = Options.model,
    streams: Annotated[
        str, typer.Option(metavar="rgb|flow|both", help="Streams to run.", rich_help_panel=_MODEL)
    ] = Options.streams,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STREAM=FILE", help="Own checkpoint, as in rgb=my.pt; repeatable.", rich_help_panel=_MODEL
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Form of the backbone, for own checkpoints; see: models show.", rich_help_panel=_MODEL
        ),
    ] = Options.variant,
    fps: Annotated[
        str | None,
        typer.Option(
            metavar="native|N", help="Frames per second to read.", show_default="the model's", rich_help_panel=_CLIPS
        ),
    ] = None,
    start: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="Where to start reading.", rich_help_panel=_CLIPS)
    ] = Options.start_seconds,
    end: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Where to stop.", show_default="end of video", rich_help_panel=_CLIPS),
    ] = Options.end_seconds,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="FRAMES", help="Frames a clip.", show_default="the model's", rich_help_panel=_CLIPS
        ),
    ] = Options.window,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="FRAMES", help="Frames from clip to clip.", show_default="the window", rich_help_panel=_CLIPS
        ),
    ] = Options.stride,
    tail: Annotated[
        str,
        typer.Option(
            metavar="pad|drop|loop",
            help="Frames after the last whole clip: repeat the last one, leave out, repeat all.",
            rich_help_panel=_CLIPS,
        ),
    ] = Options.tail,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense",
            help="Pool windows from one pass over the video: fast where they overlap; other numbers.",
            rich_help_panel=_CLIPS,
        ),
    ] = Options.dense,
    crops: Annotated[
        int,
        typer.Option(
            metavar="1|3|10",
            help="Squares of a frame to run: centre, along the long side, corners and mirrored.",
            rich_help_panel=_CLIPS,
        ),
    ] = Options.crops,
    resize_only: Annotated[
        bool, typer.Option("--resize-only", help="Run whole frames, without a crop.", rich_help_panel=_CLIPS)
    ] = Options.resize_only,
    flow: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="dis, dis-ultrafast, dis-fast, dis-medium, farneback or tvl1.", rich_help_panel=_FLOW
        ),
    ] = Options.flow,
    flow_files: Annotated[
        Path | None,
        typer.Option(metavar="DIR|NPZ", help="Ready-made flow: flow_x_00001.jpg …, or .npz.", rich_help_panel=_FLOW),
    ] = Options.flow_files,
    flow_bound: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="PX",
            help="Bound of ready-made flow images.",
            show_default="the model's",
            rich_help_panel=_FLOW,
        ),
    ] = Options.flow_bound_px,
    quantise_flow: Annotated[
        bool, typer.Option("--quantise-flow", help="Round flow to 8 bits, as training data was.", rich_help_panel=_FLOW)
    ] = Options.quantise_flow,
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda[:i]|mps",
            help="Where the network runs; on several GPUs: cuda:0,1 or cuda:all.",
            rich_help_panel=_MACHINE,
        ),
    ] = Options.device,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="auto|torch|openvino",
            help="auto: OpenVINO on a CPU where it is installed, else torch.",
            rich_help_panel=_MACHINE,
        ),
    ] = Options.runtime,
    compile: Annotated[  # noqa: A002  (as torch calls it)
        bool,
        typer.Option("--compile", help="Compile the networks with torch: for long jobs.", rich_help_panel=_MACHINE),
    ] = Options.compile,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of a CPU, for the networks.", show_default="one a core", rich_help_panel=_MACHINE),
    ] = Options.threads,
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|bf16|fp16|auto", help="auto: bf16 on a GPU that has it, else fp32.", rich_help_panel=_MACHINE
        ),
    ] = Options.precision,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Clips at a time.", show_default="1 on a CPU, 8 on a GPU", rich_help_panel=_MACHINE),
    ] = Options.batch_size,
) -> None: ...


def takes_pipeline_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all parameters of `_template` as options, handed to it as one `pipeline.Options`.

    The command declares a parameter `options` where they are to stand; those of `_OF_SOME_COMMANDS` that it has are
    added to it.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(_template, eval_str=True).parameters

    @wraps(command)
    def wrapper(**values: Any) -> None:
        picked = {name: values.pop(name) for name in shared}
        added = {name: values.pop(name) for name in _OF_SOME_COMMANDS if name in values}
        command(**values, options=_to_options(**picked, **added))

    parameters = [p for p in own if p.name != "options"] + list(shared.values())
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _to_options(
    *,
    weights: list[str] | None,
    start: float,
    end: float | None,
    flow_bound: float | None,
    class_names: Path | None = None,
    **same_name: Any,
) -> Options:
    return Options(
        weights=parse_weights(weights or []),
        labels=class_names,
        start_seconds=start,
        end_seconds=end,
        flow_bound_px=flow_bound,
        **same_name,
    )


def parse_weights(values: list[str]) -> dict[str, str]:
    """["rgb=a.pt", "flow=b.pt"] → {"rgb": "a.pt", "flow": "b.pt"}.

    Raises:
        UsageError: no stream named.
    """
    parsed = {}
    for value in values:
        stream, equals, path = value.partition("=")
        if stream not in ("rgb", "flow") or not equals or not path:
            raise UsageError(f"--weights {value}: write rgb=FILE or flow=FILE")
        parsed[stream] = path
    return parsed
