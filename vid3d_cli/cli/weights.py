"""`vid3d weights …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_OK, EXIT_WEIGHTS, WeightsError
from . import inflate
from .batch import fetch_weights
from .command import App
from .console import log
from .formats import ListFormat, Record, is_table, print_columns, print_records

if TYPE_CHECKING:
    from ..models.manifest import WeightsFile

app = App(help="List, download, verify and add the checkpoints of the models; inflate 2-D ones.")

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model, or one stream of it: i3d.kinetics400:rgb")]


@app.command("list")
def list_(form: ListFormat = None) -> None:
    """List all checkpoint files and whether they are on disk.

    Example: vid3d weights list
    """
    from ..models.digests import cache_dir
    from ..models.weights import is_on_disk, path_on_disk, weights_path

    rows = [
        {
            "name": file.name,
            "size": file.describe_size(),
            "size_bytes": file.size_bytes,
            "on_disk": is_on_disk(file),
            "how": _how(file),
            "digest": file.has_digest,
            "path": str(path_on_disk(file) or weights_path(file)),
            "sources": [source.describe() for source in file.sources],
        }
        for file in _all_files()
    ]
    print_records(rows, form, _print_table)
    if is_table(form):
        log.info("cache: %s; set VID3D_CACHE to change it", cache_dir())


@app.command()
def pull(name: Name) -> None:
    """Download the checkpoints of a model and verify them.

    If no digest was published, vid3d records the sha256 of the first download and compares later ones with it.
    VID3D_OFFLINE=1 forbids downloads. VID3D_CACHE names the directory, ~/.cache/vid3d without it.

    Example: vid3d weights pull i3d.kinetics400
    """
    from ..models import manifest, weights

    for path in weights.find_all(manifest.parse_weights_name(name), fetch_weights):
        typer.echo(str(path))


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Default: all on disk.")] = None,
) -> None:
    """Verify the checkpoints on disk against the published digests, or those recorded at the first download.

    Example: vid3d weights verify
    """
    from ..models import manifest, weights

    files = manifest.parse_weights_name(name) if name else [f for f in _all_files() if weights.is_on_disk(f)]
    code = EXIT_OK
    for file in files:
        try:
            path = weights.locate(file, afresh=True)
            typer.echo(f"{file.name}\t{'ok' if file.has_digest else 'ok, as first seen'}\t{path}")
        except WeightsError as error:
            log.error("%s", error)
            code = EXIT_WEIGHTS
    if not files:
        log.info("no checkpoints on disk; download some with: vid3d weights pull i3d.kinetics400")
    raise typer.Exit(code)


@app.command()
def path(name: Name) -> None:
    """Verify a model's checkpoints and print their paths.

    Example: vid3d weights path i3d.kinetics400:rgb
    """
    from ..models import manifest, weights

    for path in weights.find_all(manifest.parse_weights_name(name), weights.locate):
        typer.echo(str(path))


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published file, downloaded by other means.")],
) -> None:
    """Verify a checkpoint that was downloaded by other means, and add it to the cache.

    If no digest was published, the file must fit the network. Add the two files of a TensorFlow checkpoint one by one.

    Example: vid3d weights add i3d.kinetics400 rgb_imagenet.pt
    """
    from ..models import weights

    added = weights.add(name, file, check=_check_fit)
    typer.echo(f"{added.name}\t{weights.weights_path(added)}")


def _check_fit(file: WeightsFile, path: Path) -> None:
    """Raise CheckpointError if a checkpoint does not fit this model's stream."""
    from ..models.clip_model import create_model
    from ..models.manifest import find_model

    entry = find_model(file.model)
    create_model(entry.backbone, stream=file.stream, num_classes=entry.num_classes, weights=path, variant=entry.variant)


def _how(file: WeightsFile) -> str:
    """Return how a user gets the file."""
    from ..models.manifest import PackagedSource

    if any(isinstance(source, PackagedSource) for source in file.sources):
        return "installed"
    return "pull" if file.is_fetched else "by hand, then add"


app.command()(inflate.inflate)


def _print_table(rows: list[Record]) -> None:
    print_columns(
        [
            {
                "name": row["name"],
                "size": row["size"],
                "on disk": "yes" if row["on_disk"] else "no",
                "digest": "published" if row["digest"] else "first seen",
                "how to get it": row["how"],
            }
            for row in rows
        ]
    )


def _all_files() -> list[WeightsFile]:
    from ..models.manifest import model_entries

    return [file for entry in model_entries().values() for file in entry.files]
