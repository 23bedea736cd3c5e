"""`vid3d presets …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command import App
from .console import log, plural
from .options import out_option

app = App(help="Prepare what the programs that load features want beside them.")


@app.command("annotations")
def annotations_(
    features: Annotated[str, typer.Argument(metavar="FEATS", help="Output of vid3d extract --preset.")],
    out: Annotated[Path, out_option("Directory to write to.")],
    subset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Part of the data set that the videos are.", show_default="training"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your class names, one per line.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files, and the labels in them.")
    ] = False,
) -> None:
    """Write the files with labels that a preset's program opens, for you to fill in: videos, rates, durations.

    Example: vid3d presets annotations feats/ --out annotations/
    """
    from ..features.annotations import write_annotations
    from ..plan import read_class_names

    names = read_class_names(classes) if classes else ()
    paths = write_annotations(features, out, subset=subset, classes=names, overwrite=overwrite)
    log.info("wrote %s to %s", plural(len(paths), "file"), out)
