"""`vid3d models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import stdout_is_terminal

if TYPE_CHECKING:
    from ..manifest import ModelEntry


def models(
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines; the default in a pipe.")] = False,
) -> None:
    """List the models: streams, classes, clips, published accuracy, licence, on disk or not.

    Example: vid3d models
    """
    from ..manifest import model_entries

    rows = [model_row(entry) for entry in model_entries().values()]
    if as_json or not stdout_is_terminal():
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    _print_table(rows)


def model_row(entry: ModelEntry) -> dict[str, Any]:
    """What is told of a model; the README's table is made of the same."""
    from ..weights import is_on_disk

    return {
        "model": entry.name,
        "default": entry.default,
        "streams": list(entry.streams),
        "classes": entry.num_classes,
        "clip": f"{entry.clip_length} × {entry.crop_px}² at {float(entry.fps):g} fps",
        "parameters": {stream: s.num_parameters for stream, s in entry.streams.items()},
        "published": [
            {"stream": m.stream, "on": f"{m.dataset} {m.split}", **m.scores, "protocol": m.protocol, "source": m.source}
            for m in entry.metrics
        ],
        "licence": entry.licence,
        "on_disk": {stream: is_on_disk(s.weights) for stream, s in entry.streams.items()},
    }


def describe_accuracy(row: dict[str, Any]) -> str:
    """Published top-1 of the streams on the first data set named: "71.1 / 63.4 / 74.2 (Kinetics-400 test)"."""
    if not row["published"]:
        return "not published"
    on = row["published"][0]["on"]
    scores = [f"{m['top1']:g}" for m in row["published"] if m["on"] == on]
    return f"{' / '.join(scores)} ({on})"


def _print_table(rows: list[dict[str, Any]]) -> None:
    from .tables import make_console, make_table

    table = make_table(
        "model", "streams", "classes", "clip", "published top-1 %", "licence", "on disk", narrow=["classes"]
    )
    table.columns[0].no_wrap = True
    for row in rows:
        name = row["model"] + (" (default)" if row["default"] else "")
        on_disk = ", ".join(stream for stream, there in row["on_disk"].items() if there) or "no"
        licence = row["licence"].split(" (")[0]
        table.add_row(
            name, ", ".join(row["streams"]), str(row["classes"]), row["clip"], describe_accuracy(row), licence, on_disk
        )
    console = make_console()
    console.print(table)
    console.print(
        "Top-1 for rgb / flow / fused as its authors published it; vid3d measured camera_motion alone. "
        "Licences are the repositories'."
    )
