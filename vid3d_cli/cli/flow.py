"""`vid3d flow`."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from ..durable import refuse_existing
from ..errors import UsageError
from ..flow import METHODS
from ..video import TIMEOUT_SECONDS
from ..video.pixels import MATRICES, PixelOptions
from .batch import AllowPlaylists, Timeout
from .console import log, plural
from .options import out_option

PIXELS = "Pixels"
"""A group of options in the help."""


def flow(
    context: typer.Context,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="File or URL.", show_default=False)],
    out: Annotated[
        str,
        out_option("x.npz, a directory of images, or to look at: a video (x.mp4), x.gif, or x.png with a few pairs."),
    ],
    method: Annotated[
        str,
        typer.Option("--flow", metavar="METHOD", help=f"Flow method: {', '.join(METHODS)}."),
    ] = "dis",
    device: Annotated[
        str,
        typer.Option(metavar="auto|cpu|cuda[:i]", help="Where tvl1 runs; several GPUs: cuda:0,1 or cuda:all."),
    ] = "auto",
    fps: Annotated[str, typer.Option(metavar="native|N", help="Frames per second to read.")] = "native",
    start: Annotated[str, typer.Option(metavar="TIME", help="Where to start reading: seconds, or 1:30.")] = "0",
    end: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Where to stop: seconds, or 1:30.", show_default="end of video"),
    ] = None,
    short_side: Annotated[int, typer.Option(min=16, metavar="PX", help="Resize the short side to this first.")] = 256,
    bound: Annotated[
        float, typer.Option(min=0.01, metavar="PX", help="Displacement that images store as 0 and 255.")
    ] = 20.0,
    max_motion: Annotated[
        str, typer.Option(metavar="auto|PX", help="Motion per frame that is shown in full colour.")
    ] = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", help="Show the colours alone, without the video and the colour wheel.")
    ] = False,
    colour_matrix: Annotated[
        str,
        typer.Option(
            metavar="|".join(MATRICES),
            help="YUV matrix: the video's tag, BT.601 if it has none; guess: BT.709 for untagged HD.",
            rich_help_panel=PIXELS,
        ),
    ] = "tags",
    deinterlace: Annotated[
        bool, typer.Option("--deinterlace", help="Deinterlace interlaced videos.", rich_help_panel=PIXELS)
    ] = False,
    square_pixels: Annotated[
        bool,
        typer.Option(
            "--square-pixels", help="Change the width to the shape that players show.", rich_help_panel=PIXELS
        ),
    ] = False,
    dtype: Annotated[str, typer.Option(metavar="float16|float32", help="Type of the numbers in the .npz.")] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    allow_playlists: AllowPlaylists = False,
) -> None:
    """Compute optical flow and write it as .npz, as images that other tools read, or in colours to look at.

    Example: vid3d flow video.mp4 --out flow.mp4
    """
    from ..clips.preprocess import describe_resize
    from ..flow.methods import create_flow, describe_flow, find_flow_method
    from ..flow.writers import FORMS, GIF_SECONDS, SHOWN, open_flow_output, suffix_of
    from ..run.flow import find_max_motion, sample_pairs, write_flow, write_pairs
    from ..run.reader import flow_device
    from ..video.clock import check_span, parse_fps, parse_seconds
    from ..video.container import is_rereadable
    from ..video.process import Decoders
    from ..video.sources import is_url
    from .bars import Bar

    if out == "-":
        raise UsageError(f"flow cannot go to standard output: name {FORMS}")
    if device not in ("auto", "cpu") and not find_flow_method(method).can_use_gpu:
        raise UsageError(f"{method} runs on the CPU: leave out --device, or choose --flow tvl1")
    suffix = suffix_of(out)
    for option, suffixes, forms in (
        ("bound", {""}, "a directory of images"),
        ("dtype", {".npz"}, ".npz"),
        ("max_motion", set(SHOWN), "videos, .gif and .png"),
        ("plain", set(SHOWN) - {".png"}, "videos and .gif"),
    ):
        source = context.get_parameter_source(option)
        if suffix not in suffixes and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{option.replace('_', '-')} is for {forms}: leave it out for {out}")
    max_px = _parse_max_motion(max_motion)
    needs_sample = suffix == ".png" or (suffix in SHOWN and max_px is None)
    if needs_sample and not is_url(video) and Path(video).exists() and not is_rereadable(video):
        advice = "" if suffix == ".png" else ", or give --max-motion"
        raise UsageError(f"{video}: a pipe or a camera cannot be read twice: save it to a file first{advice}")
    compute = create_flow(method, flow_device(method, device))
    rate = parse_fps(fps)
    start_seconds, end_seconds = parse_seconds(start, "--start"), None if end is None else parse_seconds(end, "--end")
    check_span(rate, start_seconds, end_seconds)
    pixels = PixelOptions(colour_matrix, deinterlace, square_pixels)
    if suffix in SHOWN:
        refuse_existing([Path(out)], overwrite)
    is_cut = suffix == ".gif" and (end_seconds is None or end_seconds > start_seconds + GIF_SECONDS)
    reading: dict[str, Any] = {
        "fps": rate,
        "start_seconds": start_seconds,
        "end_seconds": start_seconds + GIF_SECONDS if is_cut else end_seconds,
        "pixels": pixels,
    }
    with (
        Decoders(timeout or None, allow_playlists=allow_playlists) as decoders,
        decoders.open(video, **reading) as frames,
    ):
        if is_cut and (frames.info.duration_seconds or inf) > start_seconds + GIF_SECONDS:
            log.info("%s shows only %d s: choose which with --start", out, GIF_SECONDS)
        for warning in pixels.warnings(frames.info):
            log.warning("%s: %s", video, warning)
        pairs = []
        if needs_sample:
            pairs = sample_pairs(decoders, frames.info, compute, short_side_px=short_side, **reading)
        max_px = find_max_motion(pairs) if max_px is None else max_px
        output = open_flow_output(
            out,
            fps=rate or Fraction(frames.info.fps).limit_denominator(1001),
            bound_px=bound,
            max_px=max_px,
            recipe={
                "video": video,
                "flow": describe_flow(method),
                "fps": fps,
                "resize": describe_resize(short_side),
                **({"pixels": pixels.describe()} if pixels.describe() else {}),
            },
            overwrite=overwrite,
            dtype=dtype,
        )
        if suffix == ".png":
            num_pairs = write_pairs(pairs, output)
        else:
            with Bar(frames, total=frames.num_expected_frames, unit="frames") as shown:
                num_pairs = write_flow(shown, output, compute, short_side_px=short_side, with_frames=not plain)
        if frames.num_lost_frames:
            log.warning("%s: %s lost to damage", video, plural(frames.num_lost_frames, "frame"))
    scale = f"; hue shows direction, full colour is a motion of {max_px:g} px per frame" if suffix in SHOWN else ""
    log.info("%s → %s%s", plural(num_pairs, "flow field"), out, scale)


def _parse_max_motion(text: str) -> float | None:
    """Return pixels, or None for "auto"."""
    if text == "auto":
        return None
    with suppress(ValueError):
        if 0 < (pixels := float(text)) < inf:
            return pixels
    raise UsageError(f"--max-motion {text}: give pixels per frame (3, 0.5), or auto")
