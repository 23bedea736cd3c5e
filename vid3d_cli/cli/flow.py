"""`vid3d flow`."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

import typer

from ..errors import UsageError
from ..flow import METHODS
from ..video import TIMEOUT_SECONDS
from .batch import AllowPlaylists, Timeout
from .console import log, plural
from .output import out_option


def flow(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="File or URL.", show_default=False)],
    out: Annotated[
        str,
        out_option("x.npz, a video to watch (x.mp4), or a directory of images."),
    ],
    method: Annotated[
        str,
        typer.Option("--flow", metavar="METHOD", help=f"Flow method: {', '.join(METHODS)}."),
    ] = "dis",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where tvl1 runs.")] = "auto",
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
        float, typer.Option(min=0.01, metavar="PX", help="Motion that a video shows in full colour.")
    ] = 10.0,
    dtype: Annotated[str, typer.Option(metavar="float16|float32", help="Type of the numbers in the .npz.")] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    allow_playlists: AllowPlaylists = False,
) -> None:
    """Compute optical flow and write it as .npz, as images that other tools read, or as a video to watch.

    Example: vid3d flow video.mp4 --out flow.mp4
    """
    from ..clips.preprocess import describe_resize
    from ..flow.methods import create_flow, describe_flow, find_flow_method
    from ..flow.writers import FORMS, open_flow_output
    from ..run.flow import write_flow
    from ..run.reader import flow_device
    from ..video.clock import parse_fps, parse_seconds
    from ..video.process import Decoders
    from .bars import Bar

    if out == "-":
        raise UsageError(f"flow cannot go to standard output: name {FORMS}")
    if device not in ("auto", "cpu") and not find_flow_method(method).can_use_gpu:
        raise UsageError(f"{method} runs on the CPU: leave out --device, or choose --flow tvl1")
    compute = create_flow(method, flow_device(method, device))
    rate = parse_fps(fps)
    start_seconds, end_seconds = parse_seconds(start, "--start"), None if end is None else parse_seconds(end, "--end")
    with (
        Decoders(timeout or None, allow_playlists=allow_playlists) as decoders,
        decoders.open(video, fps=rate, start_seconds=start_seconds, end_seconds=end_seconds) as frames,
    ):
        output = open_flow_output(
            out,
            fps=rate or Fraction(frames.info.fps).limit_denominator(1001),
            bound_px=bound,
            max_px=max_motion,
            recipe={
                "video": video,
                "flow": describe_flow(method),
                "fps": fps,
                "resize": describe_resize(short_side),
            },
            overwrite=overwrite,
            dtype=dtype,
        )
        with Bar(frames, total=frames.num_expected_frames, unit="frames") as shown:
            num_pairs = write_flow(shown, output, compute, short_side_px=short_side)
        if frames.num_lost_frames:
            log.warning("%s: %s lost to damage", video, plural(frames.num_lost_frames, "frame"))
    log.info("%s → %s", plural(num_pairs, "flow field"), out)
