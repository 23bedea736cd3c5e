"""`vid3d weights …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, EXIT_WEIGHTS, WeightsError
from .console import download_bar, log, stdout_is_terminal

if TYPE_CHECKING:
    from ..manifest import WeightsFile

app = typer.Typer(no_args_is_help=True, help="List, fetch, verify and add the checkpoints of the models.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model, or one stream of it: i3d.kinetics400:rgb")]


@app.command("list")
def list_() -> None:
    """List all checkpoint files and whether they are on disk; JSON lines in a pipe.

    Example: vid3d weights list
    """
    from ..weights import cache_dir, is_on_disk, weights_path

    rows = [
        {
            "name": file.name,
            "size": file.describe_size(),
            "on_disk": is_on_disk(file),
            "path": str(weights_path(file)),
            "sources": [source.describe() for source in file.sources],
        }
        for file in _all_files()
    ]
    if not stdout_is_terminal():
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    _print_table(rows)
    log.info("kept in %s; set VID3D_CACHE to change that", cache_dir())


@app.command()
def pull(name: Name) -> None:
    """Download the checkpoints of a model and verify them.

    Example: vid3d weights pull i3d.kinetics400
    """
    from .. import manifest, weights

    for file in manifest.parse_weights_name(name):
        with download_bar(file.name) as on_bytes:
            path = weights.pull(file, progress=on_bytes)
        typer.echo(str(path))


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: all that are on disk.")] = None,
) -> None:
    """Check the checkpoints on disk against their published digests.

    Example: vid3d weights verify
    """
    from .. import manifest, weights

    files = manifest.parse_weights_name(name) if name else [f for f in _all_files() if weights.is_on_disk(f)]
    code = EXIT_OK
    for file in files:
        try:
            typer.echo(f"{file.name}\tok\t{weights.locate(file)}")
        except WeightsError as error:
            log.error("%s", error)
            code = EXIT_WEIGHTS
    if not files:
        log.info("no checkpoints on disk; fetch some with: vid3d weights pull i3d.kinetics400")
    raise typer.Exit(code)


@app.command()
def path(name: Name) -> None:
    """Print where the verified checkpoints of a model lie.

    Example: vid3d weights path i3d.kinetics400:rgb
    """
    from .. import manifest, weights

    for file in manifest.parse_weights_name(name):
        typer.echo(str(weights.locate(file)))


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published file, downloaded by other means.")],
) -> None:
    """File a checkpoint that was downloaded by other means, after verifying it.

    Example: vid3d weights add i3d.kinetics400 rgb_imagenet.pt
    """
    from .. import weights

    added = weights.add(name, file)
    typer.echo(f"{added.name}\t{weights.weights_path(added)}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from .tables import make_console, make_table

    table = make_table("name", "size", "on disk")
    for row in rows:
        table.add_row(row["name"], row["size"], "yes" if row["on_disk"] else "no")
    make_console().print(table)


def _all_files() -> list[WeightsFile]:
    from ..manifest import model_entries

    return [stream.weights for entry in model_entries().values() for stream in entry.streams.values()]
