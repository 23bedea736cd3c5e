"""`vid3d flow`."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

import typer

from ..errors import UsageError
from .batch import count
from .console import log, shows_bars


def flow(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="File or URL.", show_default=False)],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="x.npz, a film to look at (x.mp4), or a directory of images.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str,
        typer.Option("--flow", metavar="METHOD", help="dis, dis-ultrafast, dis-fast, dis-medium, farneback or tvl1."),
    ] = "dis",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where tvl1 runs.")] = "auto",
    fps: Annotated[str, typer.Option(metavar="native|N", help="Frames per second to read.")] = "native",
    start: Annotated[float, typer.Option(metavar="SECONDS", min=0.0, help="Where to start reading.")] = 0.0,
    end: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Where to stop.", show_default="end of video")
    ] = None,
    short_side: Annotated[int, typer.Option(min=16, metavar="PX", help="Resize the short side to this first.")] = 256,
    bound: Annotated[float, typer.Option(min=0.01, metavar="PX", help="What images store as 0 and 255.")] = 20.0,
    max_motion: Annotated[
        float, typer.Option(min=0.01, metavar="PX", help="Motion that a film shows in full colour.")
    ] = 10.0,
    dtype: Annotated[str, typer.Option(metavar="float16|float32", help="Of the .npz.")] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")] = False,
) -> None:
    """Compute optical flow and write it as .npz, as images that other tools read, or as a film to look at.

    Example: vid3d flow video.mp4 --out flow.mp4
    """
    from itertools import pairwise

    from tqdm import tqdm

    from ..clips.preprocess import describe_resize
    from ..clips.streams import align_streams
    from ..flow.methods import create_flow, describe_flow, find_flow_method
    from ..flow.writers import open_flow_output
    from ..run.pipeline import flow_device
    from ..run.threads import count_cores, one_opencv_thread
    from ..video.reader import VideoReader, parse_fps
    from ..workers import Workers

    if dtype not in ("float16", "float32"):
        raise UsageError(f"--dtype {dtype}: choose float16 or float32")
    if device not in ("auto", "cpu") and not find_flow_method(method).can_use_gpu:
        raise UsageError(f"{method} runs on the CPU: leave --device out, or take --flow tvl1")
    compute = create_flow(method, flow_device(method, device))
    rate = parse_fps(fps)
    with VideoReader(video, fps=rate, start_seconds=start, end_seconds=end) as reader:
        recipe = {
            "video": video,
            "flow": describe_flow(method),
            "fps": fps,
            "resize": describe_resize(short_side),
        }
        output = open_flow_output(
            out,
            fps=rate or Fraction(reader.info.fps).limit_denominator(1001),
            bound_px=bound,
            max_px=max_motion,
            recipe=recipe,
            overwrite=overwrite,
            dtype=dtype,
        )
        num_expected = reader.num_expected_frames
        frames = tqdm(reader, total=num_expected, unit="frame", disable=not shows_bars(), leave=False)
        with output, one_opencv_thread(), Workers(count_cores()) as workers:
            aligned = align_streams(
                frames,
                size_px=short_side,
                crop_px=None,
                rgb=False,
                flow=lambda _, grey: compute(grey),
                pairs_per_call=compute.pairs_per_call,
                workers=workers,
            )
            for entry, _ in pairwise(aligned):  # the last one has no motion of its own
                output.write(entry.streams["flow"], entry.seconds)
        if reader.num_decode_failures:
            log.warning("%s: %s lost to damage", video, count(reader.num_decode_failures, "frame"))
    log.info("%s → %s", count(output.num_pairs, "flow field"), out)
