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
    from ..video.demo import Segment

MODEL = "s3d_mini.camera_motion"


def demo(
    out: Annotated[
        Path, typer.Option("--out", "--output", "-o", metavar="DIR", help="Directory of the video and the results.")
    ] = Path("vid3d-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that the demo did not make.")] = False,
) -> None:
    """Try vid3d offline: render a video of camera motions, classify it and extract its features.

    The model comes with vid3d. It recognises camera motions (pan, tilt, zoom, roll, shake, static) and nothing else.

    Example: vid3d demo
    """
    import numpy as np

    from ..durable import refuse_existing
    from ..video.demo import render

    video, predictions, features = out / "camera.mp4", out / "predictions.jsonl", out / "feats.npy"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as place:
            rendered = Path(place) / "camera.mp4"
            truth = render(rendered)
            if not video.exists() or video.read_bytes() != rendered.read_bytes():  # else the demo ran here before
                refuse_existing([video, predictions, *out.glob("feats.*")], overwrite)
            rendered.replace(video)
    except OSError as error:
        raise UsageError(f"the demo cannot write to {out} ({error.strerror}): name a directory with --out") from None
    typer.echo(f"rendered {video}: {truth[-1].end_seconds:.1f} s, a virtual camera moves over a random scene")
    _run("classify", video, "--model", MODEL, "-o", predictions, "--overwrite")
    _run("extract", video, "--model", MODEL, "--out", features, "--overwrite")
    clips = [r for r in map(json.loads, predictions.read_text("utf-8").splitlines()) if r["clip"] is not None]
    num_right = _print_timeline(clips, truth)
    shape = " × ".join(map(str, np.load(features, mmap_mode="r").shape))
    typer.echo(f"\n{num_right} of {len(clips)} clips right. Features: {features}, {shape}. The seconds of each row:")
    typer.echo(f"{features.with_suffix('.index.jsonl')}")
    typer.echo(f"\nYour own video: vid3d classify VIDEO --model {MODEL}")
    typer.echo("Human actions:  vid3d classify VIDEO    (downloads I3D's weights, 100 MB)")


def _run(*words: object) -> None:
    """Run a vid3d command in this process and show it."""
    from . import app

    command = [str(word) for word in words]
    typer.echo(f"$ vid3d {shlex.join(command)}")
    code = app(command, standalone_mode=False)
    if code != EXIT_OK:
        raise typer.Exit(code)


def _print_timeline(clips: list[dict[str, Any]], truth: list[Segment]) -> int:
    """Print predictions beside the truth; return how many clips the fused scores got right."""
    from rich.text import Text

    from .tables import make_console, make_table

    table = make_table("seconds", "true", "rgb", "flow", "fused", narrow=["seconds"])
    num_right = 0
    for clip in clips:
        middle = (clip["start_seconds"] + clip["end_seconds"]) / 2
        label = next(s.label for s in truth if middle < s.end_seconds)
        rgb, flow, fused = (clip[stream][0] for stream in ("rgb", "flow", "fused"))
        is_right = fused["label"] == label
        num_right += is_right
        answer = Text(fused["label"])
        answer.append(" ✓" if is_right else " ✗", "green" if is_right else "red")
        seconds = f"{clip['start_seconds']:.2f} – {clip['end_seconds']:.2f}"
        table.add_row(seconds, label, rgb["label"], flow["label"], answer)
    console = make_console()
    console.print()
    console.print(table)
    return num_right
