"""`vid3d presets …`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..suggest import did_you_mean
from .command import App
from .console import log
from .features import input_lines
from .formats import ListFormat, ObjectFormat, Record, print_record, print_records
from .models import ListGroup, print_details
from .options import out_option

if TYPE_CHECKING:
    from ..plan import Plan
    from ..presets import Files, Preset

app = App(
    cls=ListGroup,
    help="List the presets, or show everything about one; 'list' may be left out.\n\n"
    "Example: vid3d presets show actionformer-thumos",
)

_VIDEO = "video"
"""Stem of the video in an example."""


@app.command("list")
def list_(
    part: Annotated[
        str, typer.Argument(metavar="[PART]", help="Only presets with this in their name or programs.")
    ] = "",
    form: ListFormat = None,
) -> None:
    """List the presets: programs, window, stride and frame rate, what is known of the values.

    Example: vid3d presets
    """
    from ..presets import matching_presets, preset_names

    matching = matching_presets(part)
    if not matching:
        hint = did_you_mean(part, ["show", "list", *preset_names()])
        raise UsageError(f"no preset has '{part}' in its name or programs: {hint or 'see vid3d presets'}")
    print_records([preset_row(preset, plan_of(preset)) for preset in matching], form, _print_table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PRESET", help="A preset, or your own file: NAME.toml.")],
    form: ObjectFormat = None,
) -> None:
    """Show everything about a preset: options, files, the centre of a row, what is unknown, sources.

    Example: vid3d presets show actionformer-thumos
    """
    from ..presets import find_preset

    print_record(preset_details(find_preset(name)), form, _print_details)


def plan_of(preset: Preset) -> Plan:
    """Return the plan of a preset's options."""
    from ..plan import Plan

    try:
        return Plan.make(preset.usual)
    except UsageError as error:
        raise UsageError(f"{preset.name}: {error}") from None


def preset_row(preset: Preset, plan: Plan) -> dict[str, Any]:
    """Return the facts of a preset that `vid3d presets` and docs/presets.md show."""
    files = preset.files
    return {
        "preset": preset.name,
        "programs": preset.summary,
        "model": plan.model,
        "streams": list(plan.networks),
        "window": plan.window,
        "stride": plan.stride,
        "fps": plan.recipe.fps,
        "file": files.names,
        "shape": _file_shape(files, plan),
        "dtype": files.dtype,
        "row_centre": str(preset.centre),
        "values": preset.values,
    }


def _file_shape(files: Files, plan: Plan) -> list[str | int]:
    """Return the shape of a file; "T" is the number of rows, "D" the numbers of a layer, which only a run shows."""
    from ..models.registry import BACKBONES

    num_streams = len(plan.networks) if files.concat else 1
    width = BACKBONES[plan.backbone].feature_dim * num_streams if plan.layer is None else "D"
    sizes: dict[str, str | int] = {"T": "T", "C": len(plan.crop_names), "D": width}
    return [sizes[axis] for axis in files.axes]


def describe_windows(row: Record) -> str:
    """Return window, stride and frame rate: "16/4 @ native"."""
    return f"{row['window']}/{row['stride']} @ {row['fps']}"


def _print_table(rows: list[Record]) -> None:
    from .tables import make_console, make_table

    table = make_table("preset", "programs", "clips", "values")
    for column in ("preset", "clips", "values"):
        next(c for c in table.columns if c.header == column).no_wrap = True
    for row in rows:
        table.add_row(row["preset"], row["programs"], describe_windows(row), row["values"])
    make_console().print(table)
    typer.echo(
        "\nclips: window/stride @ frames per second   values: what is known of the numbers\n"
        "Network, files and all else about one: vid3d presets show PRESET"
    )


def preset_details(preset: Preset) -> dict[str, Any]:
    """Return everything about a preset."""
    from ..presets import VALUES

    plan, files = plan_of(preset), preset.files
    recipe = dataclasses.asdict(plan.recipe)
    unknown_yet = ("runtime", "precision", "versions", "preset")
    streams = [""] if files.concat else list(plan.networks)
    crops = range(len(plan.crop_names) if files.has_file_per_crop else 1)
    return {
        **preset_row(preset, plan),
        "meaning": VALUES[preset.values],
        "unknown": preset.unknown,
        "options": dict(preset.options),
        "recipe": {name: value for name, value in recipe.items() if name not in unknown_yet},
        "axes": files.axes,
        "key": None if files.suffix == ".npy" else files.key,
        "example": [str(files.path(_VIDEO, stream, crop)) for stream in streams for crop in crops],
        "annotations": files.annotations or None,
        "sources": list(preset.sources),
    }


def _print_details(row: Record) -> None:
    gap = ("", "")
    key = f", the array '{row['key']}'" if row["key"] else ""
    files = row["example"] if len(row["example"]) < 3 else [row["example"][0], "…", row["example"][-1]]
    lines = [
        ("values", f"{row['values']}: {row['meaning']}"),
        *([("unknown", row["unknown"])] if row["unknown"] else []),
        gap,
        *input_lines(row["recipe"]),
        gap,
        ("files", f"{row['file']}: of {_VIDEO}.mp4, {' '.join(files)}"),
        ("each", f"({', '.join(map(str, row['shape']))}) {row['dtype']}{key}; T rows"),
        ("row i", f"its middle is at {row['row_centre']} seconds; .vid3d/videos/{_VIDEO}.jsonl has the times"),
        gap,
        *[("sources" if i == 0 else "", source) for i, source in enumerate(row["sources"])],
        gap,
        ("example", f"vid3d extract --preset {row['preset']} --out feats/ videos/"),
        *([("labels", "vid3d presets annotations feats/ --out annotations/")] if row["annotations"] else []),
    ]
    print_details(f"{row['preset']}: {row['programs']}", lines)


@app.command("annotations")
def annotations_(
    features: Annotated[str, typer.Argument(metavar="FEATS", help="Output of vid3d extract --preset.")],
    out: Annotated[Path, out_option("Directory to write to.")],
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Part of the data set that the videos are.",
            show_default="train; ActionFormer and OpenTAD need a name",
        ),
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

    class_names = read_class_names(classes) if classes else ()
    paths = write_annotations(features, out, subset=subset, classes=class_names, overwrite=overwrite)
    names = [str(path.relative_to(out)) for path in paths]
    listed = ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    log.info("wrote %s to %s; the labels in them are for you to fill in", listed, out)
