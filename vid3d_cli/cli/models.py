"""`vid3d models …`."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import stdout_is_terminal

if TYPE_CHECKING:
    from rich.table import Table

    from ..manifest import Metric, ModelEntry, StreamEntry, WeightsFile

app = typer.Typer()

SHORT_NAMES = {"Kinetics-400": "K400", "rendered camera motion held-out": "rendered"}
"""Of what was classified, for tables."""

Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines; the default in a pipe.")] = False,
) -> None:
    """List the models: streams, clips, sizes, classes, published accuracy, licence, on disk or not.

    Example: vid3d models
    """
    if context.invoked_subcommand:
        return
    from ..manifest import model_entries

    rows = [model_row(entry) for entry in model_entries().values()]
    if as_json or not stdout_is_terminal():
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
        return
    _print_table(rows)


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, or a backbone for its default model.")],
    as_json: Json = False,
) -> None:
    """Show all that is known of a model: paper, recipe, weights, published accuracy, layers, variants.

    Example: vid3d models show i3d
    """
    from ..manifest import find_model

    row = model_details(find_model(name))
    if as_json or (context.parent and context.parent.params["as_json"]):
        typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        _print_details(row)


def model_row(entry: ModelEntry) -> dict[str, Any]:
    """What a table tells of a model; the README's is made of the same."""
    from ..manifest import backbone_entries
    from ..weights import is_on_disk

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
        "feature_dim": backbone_entries()[entry.backbone].feature_dim,
        "classes": entry.num_classes if entry.has_classes else None,
        "dataset": entry.dataset,
        "published": [_metric_row(metric) for metric in entry.metrics],
        "licence": entry.licence,
    }


def _metric_row(metric: Metric) -> dict[str, Any]:
    return {
        "stream": metric.stream,
        "dataset": metric.dataset,
        "split": metric.split,
        **metric.scores,
        "protocol": metric.protocol,
        "source": metric.source,
    }


def describe_clip(row: dict[str, Any]) -> str:
    """Frames and sides in pixels: "64 × 224²"."""
    return f"{row['clip']['frames']} × {row['input']['crop_px']}²"


def describe_size(row: dict[str, Any]) -> tuple[str, str]:
    """Parameters and multiply-adds of the rgb network: ("12.7 M", "111.2 G")."""
    stream = next(iter(row["parameters"]))
    return f"{row['parameters'][stream] / 1e6:.1f} M", f"{row['multiply_adds'][stream] / 1e9:.1f} G"


def describe_classes(row: dict[str, Any]) -> str:
    """Their number, or that there are none."""
    if row["classes"] is None:
        return "none"
    return str(row["classes"]) if row["streams"] else "any"


def describe_accuracy(row: dict[str, Any]) -> tuple[str, str]:
    """Published top-1 of the streams that have one, and on what: ("71.1 / 63.4 / 74.2", "K400 test")."""
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
    return f"{metric['dataset']} {metric['split']}"


def _describe_streams(row: dict[str, Any], joint: str) -> str:
    if not row["streams"]:
        return joint.join(["own", "weights"])
    published = [stream + ("✓" if row["on_disk"][stream] else "") for stream in row["streams"]]
    return joint.join(published + [f"no {stream}" for stream in row["unpublished"]])


def _print_table(rows: list[dict[str, Any]]) -> None:
    from .tables import make_console

    console = make_console()
    table = _make_table(rows, narrow=False)
    if console.measure(table, options=console.options.update(max_width=1000)).maximum > console.width:
        table = _make_table(rows, narrow=True)
    console.print(table)
    console.print(
        "* what the bare backbone name means   ✓ on disk   own weights: none to fetch, give yours (--weights)\n"
        "Parameters and multiply-adds (of one clip) are the rgb network's; width is that of the features.\n"
        "Top-1: rgb / flow / fused as published; vid3d measured only camera_motion. K400 is Kinetics-400.\n"
        "Licences are the repositories'. Papers, recipes, protocols, layers: vid3d models show NAME"
    )


def _make_table(rows: list[dict[str, Any]], *, narrow: bool) -> Table:
    """The table of models, with a line a model, or two."""
    from .tables import make_table

    joint = "\n" if narrow else " "

    def place(*pairs: tuple[str, str]) -> list[str]:
        """Numbers that belong together: one below the other, or in columns of their own."""
        return ["\n".join(pair) for pair in pairs] if narrow else [cell for pair in pairs for cell in pair]

    numbers = place(("params", "mult-adds"), ("width", "classes"))
    table = make_table("model", "streams", "clip", *numbers, "top-1 %", "licence", narrow=numbers)
    for row in rows:
        scores, on = describe_accuracy(row)
        table.add_row(
            (row["model"].replace(".", "\n.", 1) if narrow else row["model"]) + (" *" if row["default"] else ""),
            _describe_streams(row, joint),
            joint.join([describe_clip(row), f"{row['clip']['fps']:g} fps"]),
            *place(describe_size(row), (str(row["feature_dim"]), describe_classes(row))),
            joint.join([scores, on]),
            row["licence"].split(" (")[0] if row["streams"] else "–",
        )
    return table


def model_details(entry: ModelEntry) -> dict[str, Any]:
    """Everything that is known of a model. Imports torch, for the layers."""
    from ..backbones import BACKBONES
    from ..manifest import backbone_entries, model_entries
    from ..preprocess import describe_resize

    about, net = backbone_entries()[entry.backbone], BACKBONES[entry.backbone]
    return {
        **model_row(entry),
        "backbone": entry.backbone,
        "summary": about.summary,
        "paper": about.paper,
        "code": entry.code,
        "notes": entry.notes,
        "labels": entry.labels_file,
        "variant": entry.variant,
        "resize": describe_resize(entry.resize_px, antialias=entry.antialias),
        "files": {name: _stream_details(stream) for name, stream in entry.streams.items()},
        "stated": about.stated,
        "layers": list(net.layers),
        "variants": list(net.variants),
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
    from ..weights import path_on_disk

    path = path_on_disk(file)
    return {
        "file": file.file_name,
        "size": file.describe_size(),
        "git_blob": file.git_blob,
        "sha256": file.sha256,
        "sources": [source.describe() for source in file.sources],
        "path": str(path) if path else None,
    }


def _print_details(row: dict[str, Any]) -> None:
    from .tables import make_console

    console = make_console()
    width = console.width if stdout_is_terminal() else sys.maxsize
    console.print(f"{row['model']}: {row['summary']}", style="bold", soft_wrap=True)
    lines = _detail_lines(row)
    indent = max(len(label) for label, _ in lines) + 2
    for label, text in lines:
        # Whole addresses, digests and commands can be copied: what is longer than a line is left to the terminal.
        wrapped = textwrap.wrap(text, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)
        for i, part in enumerate(wrapped or [""]):
            console.print(f"{'' if i else label:{indent}}{part}".rstrip(), soft_wrap=True)


def _detail_lines(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, text), in the order of reading."""
    clip, gap = row["clip"], ("", "")
    classes = f"{row['classes']} classes" if row["classes"] else "an embedding, no classes"
    lines = [
        ("paper", row["paper"]),
        ("code", row["code"] or "none was published"),
        ("trained on", f"{row['dataset']}; {classes}" if row["streams"] else row["dataset"]),
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
        lines += [gap, (f"{stream} network", f"{parameters} parameters, {giga:.2f} G multiply-adds a clip")]
        for part in details["parts"]:
            lines += _file_lines(part)
        if details["unpublished"]:
            lines.append(("weights", f"no public weights. {details['unpublished']}"))
    if row["stated"]:
        lines += [gap, ("as stated", row["stated"])]
    if row["published"]:
        lines += [gap, *((f"{metric['stream']} accuracy", _describe_metric(metric)) for metric in row["published"])]
    layers = " ".join(row["layers"])
    lines += [gap, ("features", f"{row['feature_dim']} wide, pooled; or those of a layer: --layer {layers}")]
    if row["variants"]:
        form = f"; these weights take {row['variant']}" if row["variant"] else ""
        lines.append(("variants", f"with own weights, --variant {' '.join(row['variants'])}{form}"))
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
        lines.append("no digest was published: the sha256 of what is seen first is remembered")
    return [("weights", lines[0]), *(("", line) for line in lines[1:])]


def _describe_metric(metric: dict[str, Any]) -> str:
    scores = ", ".join(
        f"{name.replace('top', 'top-')} {metric[name]:g} %" for name in ("top1", "top5") if name in metric
    )
    return f"{scores} on {metric['dataset']} {metric['split']}: {metric['protocol']} ({metric['source']})"


def example_command(row: dict[str, Any]) -> str:
    """What to type to run this model."""
    name = row["backbone"] if row["default"] else row["model"]
    if row["classes"] is None:
        return f"vid3d extract --model {name} --out feats.npy video.mp4"
    own = "" if row["streams"] else " --weights rgb=my_rgb.pt"
    return f"vid3d classify --model {name}{own} video.mp4"
