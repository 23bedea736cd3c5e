"""`vid3d demo`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from ..video.demo import Motion

MODEL = "s3d_mini.camera_motion"


def demo(
    out: Annotated[
        Path, typer.Option("--out", "--output", "-o", metavar="DIR", help="Directory of the video and the results.")
    ] = Path("vid3d-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of another video.")] = False,
) -> None:
    """Try vid3d offline: render a video of camera motions, find them, write a report, and extract features.

    The model comes with vid3d. It recognises camera motions (pan, tilt, zoom, roll, shake, static) and nothing else.

    Example: vid3d demo
    """
    import numpy as np

    from ..durable import refuse_existing
    from ..video.demo import render

    video, segments, report, features = (
        out / name for name in ("camera.mp4", "segments.jsonl", "report.html", "feats.npy")
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as place:
            rendered = Path(place) / "camera.mp4"
            truth = render(rendered)
            if not video.exists() or video.read_bytes() != rendered.read_bytes():  # else the demo ran here before
                refuse_existing([video, segments, report, *out.glob("feats.*")], overwrite)
            rendered.replace(video)
    except OSError as error:
        raise UsageError(f"the demo cannot write to {out} ({error.strerror}): name a directory with --out") from None
    typer.echo(f"rendered {video}: {truth[-1].end_seconds:.1f} s, a virtual camera moves over a random scene")
    _run("classify", video, "--model", MODEL, "--segments", "-o", segments, "-o", report, "--overwrite")
    _run("extract", video, "--model", MODEL, "--out", features, "--overwrite")
    records = map(json.loads, segments.read_text("utf-8").splitlines())
    _print_timeline([record for record in records if record["stream"] == "fused"], truth)
    shape = " × ".join(map(str, np.load(features, mmap_mode="r").shape))
    typer.echo(f"Features:       {features}, {shape}; {features.with_suffix('.index.jsonl').name} has their seconds")
    typer.echo(f"Report:         {report.resolve().as_uri()}    (open it in a browser)")
    typer.echo(f"Your own video: vid3d classify VIDEO -o report.html --model {MODEL}")
    typer.echo("Human actions:  vid3d classify VIDEO -o report.html    (downloads I3D's weights, 100 MB)")


def _run(*words: object) -> None:
    """Run a vid3d command in this process and show it."""
    from . import app

    command = [str(word) for word in words]
    typer.echo(f"$ vid3d {shlex.join(command)}")
    code = app(command, standalone_mode=False)
    if code != EXIT_OK:
        raise typer.Exit(code)


def _print_timeline(segments: list[dict[str, Any]], truth: list[Motion]) -> None:
    """Print the segments beside the camera's true motions."""
    from rich.text import Text

    from .tables import make_console, make_table

    table = make_table("seconds", "true", "found", "score", narrow=["seconds", "score"])
    num_right = 0
    for segment in segments:
        start, end = segment["start_seconds"], segment["end_seconds"]
        label = next(motion.label for motion in truth if (start + end) / 2 < motion.end_seconds)
        is_right = segment["label"] == label
        num_right += is_right
        found = Text(segment["label"])
        found.append(" ✓" if is_right else " ✗", "green" if is_right else "red")
        table.add_row(f"{start:.2f} – {end:.2f}", label, found, f"{segment['score']:.1%}")
    console = make_console()
    console.print()
    console.print(table)
    console.print(f"\n{num_right} of {len(segments)} segments right\n")
