"""`vid3d demo`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK

if TYPE_CHECKING:
    from ..video.demo import Segment

MODEL = "s3d_mini.camera_motion"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the film and the results go.")] = Path(
        "vid3d-demo"
    ),
) -> None:
    """See the tool work, offline: a rendered film of camera motions, classified and turned into features.

    The model comes with vid3d. It tells camera motions apart (pan, tilt, zoom, roll, shake, static), nothing else.

    Example: vid3d demo
    """
    import numpy as np

    from ..video.demo import render

    out.mkdir(parents=True, exist_ok=True)
    film, predictions, features = out / "camera.mp4", out / "predictions.jsonl", out / "feats.npy"
    truth = render(film)
    typer.echo(f"rendered {film}: {truth[-1].end_seconds:.1f} s of a virtual camera over a made-up scene")
    _run("classify", film, "--model", MODEL, "-o", predictions, "--overwrite")
    _run("extract", film, "--model", MODEL, "--out", features, "--overwrite")
    clips = [r for r in map(json.loads, predictions.read_text("utf-8").splitlines()) if r["clip"] is not None]
    num_right = _print_timeline(clips, truth)
    shape = " × ".join(map(str, np.load(features, mmap_mode="r").shape))
    typer.echo(f"\n{num_right} of {len(clips)} clips right. Features: {features}, {shape}; which row is which seconds:")
    typer.echo(f"{features.with_suffix('.index.jsonl')}")
    typer.echo(f"\nYour own film:  vid3d classify VIDEO --model {MODEL}")
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
    """Print what was found beside what is true; returns how many clips the fused scores got right."""
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
        answer = Text(f"{fused['label']} {fused['score']:.0%}")
        answer.append(" ✓" if is_right else " ✗", "green" if is_right else "red")
        seconds = f"{clip['start_seconds']:.2f} – {clip['end_seconds']:.2f}"
        table.add_row(seconds, label, rgb["label"], flow["label"], answer)
    console = make_console()
    console.print()
    console.print(table)
    return num_right
