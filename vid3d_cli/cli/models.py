"""`vid3d models …`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..suggest import check_known, did_you_mean
from .command import App, Group
from .console import stdout_is_terminal
from .formats import ListFormat, ObjectFormat, Record, print_columns, print_record, print_records

if TYPE_CHECKING:
    from ..models.manifest import ModelEntry, StreamEntry, WeightsFile


class ListGroup(Group):
    """Commands `list` and `show`, of which "list" may be left out."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if len(args) > 1 and not any(arg.startswith("-") for arg in args[:2]) and not ctx.resilient_parsing:
            check_known(args[0], self.commands, f"{ctx.command_path} has no command '{args[0]}'")
        return super().parse_args(ctx, args)


app = App(
    cls=ListGroup,
    help="List the models, or show everything about one; 'list' may be left out.\n\nExample: vid3d models s3d",
)

SHORT_NAMES = {"Kinetics-400": "K400", "rendered camera motion held-out": "rendered"}
"""Names of datasets in tables."""


@app.command("list")
def list_(
    part: Annotated[
        str, typer.Argument(metavar="[PART]", help="Only models with this in their name.", show_default=False)
    ] = "",
    form: ListFormat = None,
) -> None:
    """List the models: streams, frames of a clip, classes, published accuracy.

    Example: vid3d models s3d
    """
    from ..models.manifest import model_entries

    entries = model_entries().values()
    rows = [model_row(entry) for entry in entries if part.lower() in entry.name.lower()]
    if not rows:
        hint = did_you_mean(part, ["show", "list", *(e.backbone for e in entries), *(e.name for e in entries)])
        raise UsageError(f"no model has '{part}' in its name: {hint or 'see vid3d models'}")
    print_records(rows, form, _print_table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model, or a backbone for its default model.")],
    form: ObjectFormat = None,
) -> None:
    """Show everything about a model: paper, recipe, weights, published accuracy, layers, variants.

    Example: vid3d models show i3d
    """
    from ..models.manifest import find_model

    print_record(model_details(find_model(name)), form, _print_details)


def model_row(entry: ModelEntry) -> dict[str, Any]:
    """Return the facts of a model that `vid3d models` and the README's table show."""
    from ..models.registry import BACKBONES
    from ..models.weights import is_on_disk

    streams = entry.streams.items()
    return {
        "model": entry.name,
        "default": entry.default,
        "streams": list(entry.published_streams),
        "unpublished": {name: stream.unpublished for name, stream in streams if stream.weights is None},
        "on_disk": {file.stream: is_on_disk(file) for file in entry.files},
        "clip": {"frames": entry.clip_length, "stride": entry.clip_stride, "fps": float(entry.fps)},
        "input": {"resize_px": entry.resize_px, "antialias": entry.antialias, "crop_px": entry.crop_px},
        "parameters": {name: stream.num_parameters for name, stream in streams},
        "multiply_adds": {name: stream.multiply_adds for name, stream in streams},
        "feature_dim": BACKBONES[entry.backbone].feature_dim,
        "classes": entry.num_classes if entry.has_classes else None,
        "dataset": entry.dataset if entry.files else None,
        "published": [
            {
                **{"stream": metric.stream, "dataset": metric.dataset, "split": metric.split},
                **metric.scores,
                **{"views": metric.views, "protocol": metric.protocol, "source": metric.source},
            }
            for metric in entry.metrics
        ],
        "licence": entry.licence,
    }


def describe_clip(row: Record) -> str:
    """Return the frames of a clip and their rate: "64 at 25/s"."""
    return f"{row['clip']['frames']} at {row['clip']['fps']:g}/s"


def describe_classes(row: Record) -> str:
    """Return the number of classes: "400"; "any" if the user gives the weights; "none" for an embedding."""
    if row["classes"] is None:
        return "none"
    return str(row["classes"]) if row["streams"] else "any"


def describe_accuracy(row: Record) -> tuple[str, str]:
    """Return the published top-1 of each stream and its data: ("71.1 / 63.4", "K400 test, whole videos")."""
    from ..records import FUSED, STREAMS

    if not row["published"]:
        return "–", ""
    place = _place(row["published"][0])
    on = {m["stream"]: m for m in reversed(row["published"]) if _place(m) == place}  # the first one of each stream
    scores = [f"{on[stream]['top1']:.1f}" for stream in (*STREAMS, FUSED) if stream in on]
    for name, short in SHORT_NAMES.items():
        place = place.replace(name, short)
    return " / ".join(scores), place


def _place(metric: dict[str, Any]) -> str:
    return f"{metric['dataset']} {metric['split']}" + (f", {metric['views']}" if metric["views"] else "")


def _cells(row: Record) -> dict[str, str]:
    """Return a model's line of the table, by column; it fits into 80 characters."""
    streams = [stream + ("✓" if row["on_disk"][stream] else "") for stream in row["streams"]]
    return {
        "model": row["model"] + (" *" if row["default"] else ""),
        "streams": " ".join(streams) or "own",
        "frames": describe_clip(row),
        "classes": describe_classes(row),
        "top-1 %": describe_accuracy(row)[0].replace(" ", ""),
    }


def _print_table(rows: list[Record]) -> None:
    print_columns([_cells(row) for row in rows])
    typer.echo(
        "\n* default of its backbone   ✓ on disk   own: give your weights with --weights\n"
        "Top-1 of rgb/flow/fused, as published. All about one: vid3d models show MODEL"
    )


def model_details(entry: ModelEntry) -> dict[str, Any]:
    """Return everything that vid3d knows about a model."""
    from ..clips.preprocess import describe_resize
    from ..models.manifest import backbone_entries, model_entries
    from ..models.registry import BACKBONES, DEFAULT_VARIANT

    about, net = backbone_entries()[entry.backbone], BACKBONES[entry.backbone]
    return {
        **model_row(entry),
        "backbone": entry.backbone,
        "sizes_are_with": f"{entry.num_classes} classes of {entry.dataset}",
        "summary": about.summary,
        "paper": about.paper,
        "code": entry.code,
        "notes": entry.notes,
        "labels": entry.labels_file,
        "variant": entry.variant,
        "resize": describe_resize(entry.resize_px, entry.interpolation),
        "files": {name: _stream_details(stream) for name, stream in entry.streams.items()},
        "stated": about.stated,
        "layers": list(net.layers),
        "variants": [DEFAULT_VARIANT, *net.variants] if net.variants else [],
        "other_models": [e.name for e in model_entries().values() if e.backbone == entry.backbone and e is not entry],
    }


def _stream_details(stream: StreamEntry) -> dict[str, Any]:
    facts = stream.normalisation
    trained_on = f"{facts.flow_method}{', stored in 8 bits' if facts.quantised else ''}" if facts.flow_method else None
    return {
        "normalisation": facts.describe(),
        "flow": trained_on,
        "parts": [_file_details(part) for part in stream.weights.parts] if stream.weights else [],
        "unpublished": stream.unpublished,
    }


def _file_details(file: WeightsFile) -> dict[str, Any]:
    from ..models.weights import path_on_disk

    path = path_on_disk(file)
    return {
        "file": file.file_name,
        "size": file.describe_size(),
        "git_blob": file.git_blob,
        "sha256": file.sha256,
        "sources": [source.describe() for source in file.sources],
        "path": str(path) if path else None,
    }


def _print_details(row: Record) -> None:
    print_details(f"{row['model']}: {row['summary']}", _detail_lines(row))


def print_details(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Print a title and (label, text) pairs, with the texts in a column of their own."""
    from .tables import make_console

    console = make_console()
    width = console.width if stdout_is_terminal() else sys.maxsize
    console.print(title, style="bold", soft_wrap=True)
    indent = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        # Addresses, digests and commands must stay copyable: the terminal wraps what is longer than a line.
        wrapped = textwrap.wrap(text, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)
        for i, part in enumerate(wrapped or [""]):
            console.print(f"{'' if i else label:{indent}}{part}".rstrip(), soft_wrap=True)


def _detail_lines(row: Record) -> list[tuple[str, str]]:
    """Return (label, text) pairs in reading order."""
    clip, gap = row["clip"], ("", "")
    classes = f"{row['classes']} classes" if row["classes"] else "an embedding, no classes"
    own = f"those of your checkpoint (sizes assume the {row['sizes_are_with']})"
    lines = [
        ("paper", row["paper"]),
        ("code", row["code"] or "none was published"),
        ("trained on", f"{row['dataset']}; {classes}") if row["streams"] else ("classes", own),
        ("licence", row["licence"]),
        ("notes", row["notes"]),
        gap,
        ("clips", f"{clip['frames']} frames at {clip['fps']:g} fps, one every {clip['stride']} frames"),
        ("size", f"{row['resize']}; centre crop {row['input']['crop_px']} px"),
    ]
    for stream, details in row["files"].items():
        trained_on = f" (trained on {details['flow']})" if details["flow"] and stream in row["streams"] else ""
        lines.append((f"{stream} input", details["normalisation"] + trained_on))
    for stream, details in row["files"].items():
        parameters, giga = f"{row['parameters'][stream]:,}", row["multiply_adds"][stream] / 1e9
        lines += [gap, (f"{stream} network", f"{parameters} parameters, {giga:.2f} G multiply-adds per clip")]
        for part in details["parts"]:
            lines += _file_lines(part)
        if details["unpublished"]:
            lines.append(("weights", f"no public weights. {details['unpublished']}"))
    if row["stated"]:
        lines += [gap, ("paper states", row["stated"])]
    if row["published"]:
        lines += [gap, *((f"{metric['stream']} accuracy", _describe_metric(metric)) for metric in row["published"])]
    layers = " ".join(row["layers"])
    lines += [gap, ("features", f"{row['feature_dim']} wide, pooled; or those of a layer: --layer {layers}")]
    if row["variants"]:
        form = "for own weights; default is the plain form"
        if row["variant"]:
            form += f"; without --variant, these weights and own ones take {row['variant']}"
        lines.append(("variants", f"--variant {' '.join(row['variants'])}: {form}"))
    if row["other_models"]:
        lines.append(("see also", " ".join(row["other_models"])))
    return [*lines, ("example", example_command(row))]


def _file_lines(part: dict[str, Any]) -> list[tuple[str, str]]:
    where = f"on disk: {part['path']}" if part["path"] else "not on disk"
    lines = [f"{part['file']}, {part['size']}", where, *part["sources"]]
    if part["git_blob"]:
        lines.append(f"git blob {part['git_blob']}")
    if part["sha256"]:
        lines.append(f"sha256 {part['sha256']}" + ("" if len(part["sha256"]) == 64 else "…"))
    if not part["git_blob"] and not part["sha256"]:
        lines.append(
            "no digest was published: vid3d records the sha256 of the first download and compares later ones with it"
        )
    return [("weights", lines[0]), *(("", line) for line in lines[1:])]


def _describe_metric(metric: dict[str, Any]) -> str:
    scores = ", ".join(
        f"{name.replace('top', 'top-')} {metric[name]:g} %" for name in ("top1", "top5") if name in metric
    )
    return f"{scores} on {metric['dataset']} {metric['split']}: {metric['protocol']} ({metric['source']})"


def example_command(row: Record) -> str:
    """Return the command that runs this model."""
    name = row["backbone"] if row["default"] else row["model"]
    if row["classes"] is None:
        return f"vid3d extract --model {name} --out feats.npy video.mp4"
    own = "" if row["streams"] else " --weights rgb=my_rgb.pt"
    return f"vid3d classify --model {name}{own} video.mp4"
