"""`vid3d eval`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import Options
from ..video import TIMEOUT_SECONDS
from .batch import Failures, Jobs, NulSeparated, Timeout, Videos, find_videos, make_plan, run_classes
from .console import log, plural
from .formats import ObjectFormat, Record, print_record
from .options import takes_options

if TYPE_CHECKING:
    from ..results import VideoResult
    from ..video.sources import Source

_MAX_CONFUSION_COLUMNS = 16
_NUM_CONFUSIONS_LISTED = 10


@takes_options
def evaluate(
    videos: Videos,
    options: Options,
    labels: Annotated[
        Path,
        typer.Option(
            metavar="CSV",
            help="CSV with columns video,label, or Kinetics annotations; - reads standard input.",
            show_default=False,
        ),
    ],
    sweep_fusion: Annotated[
        bool, typer.Option("--sweep-fusion", help="Evaluate fusion weights from 1:0 to 0:1.")
    ] = False,
    class_names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names of your checkpoint, one per line.", show_default=False),
    ] = None,
    form: ObjectFormat = None,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Evaluate a model on labelled videos: top-1, top-5, mean class accuracy, mAP, confusion.

    It prints them for each stream and for their fusion.

    Example: vid3d eval --labels labels.csv videos/
    """
    from ..predictions.evaluation import class_numbers, find_label, read_label_table

    if str(labels) == "-" and "-" in videos:
        raise UsageError("standard input gives the labels or the list of videos, not both: name a file for one of them")
    table = read_label_table(labels)
    sources = find_videos(videos, nul_separated)
    names = {name: name for name in table}
    name_of = {s.video: name for s in sources if (name := find_label(names, s.video, s.output_stem)) is not None}
    label_of = {video: table[name] for video, name in name_of.items()}
    if not label_of:
        raise UsageError(
            f"{labels} has no label for the {plural(len(sources), 'video')} given: its video column must name them"
        )
    if unlabelled := len(sources) - len(label_of):
        log.warning("skipping %s without a label", plural(unlabelled, "video"))
    if unused := len({*table} - {*name_of.values()}):
        log.warning("skipping %s of %s without a video", plural(unused, "label"), labels)
    plan = make_plan(replace(options, labels=class_names))
    plan.check_classes()
    if plan.labels is not None:  # else the checkpoint may have classes of its own, which are checked at the end
        class_numbers(list(label_of.values()), plan.labels)
    if sweep_fusion and len(plan.networks) < 2:
        raise UsageError("--sweep-fusion needs both streams")
    results: list[VideoResult] = []

    def keep(_: Source, result: VideoResult) -> None:
        results.append(result)

    labelled = [source for source in sources if source.video in label_of]
    code = run_classes(plan, labelled, keep, jobs=jobs, timeout=timeout, failures=failures)
    if results:
        report = make_report(results, label_of, options.fuse_on if sweep_fusion else None)
        print_record(report, form, _print_report)
    raise typer.Exit(code)


def make_report(results: list[VideoResult], label_of: dict[str, str], sweep_on: str | None) -> dict[str, Any]:
    """Return the report as plain values; `sweep_on` is "logits" or "probs" for a fusion sweep, or None."""
    import numpy as np

    from ..predictions import evaluation
    from ..records import FUSED

    classes = results[0].labels
    targets = evaluation.class_numbers([label_of[result.video] for result in results], classes)
    logits = {stream: np.stack([r.logits[stream] for r in results]) for stream in results[0].logits}
    counts = evaluation.confusion(logits[FUSED], targets)
    report: dict[str, Any] = {
        "model": results[0].recipe.model,
        "num_videos": len(results),
        "metrics": {stream: asdict(evaluation.evaluate(x, targets)) for stream, x in logits.items()},
        "confusion": {
            classes[true]: {classes[found]: int(counts[true, found]) for found in np.flatnonzero(counts[true])}
            for true in np.unique(targets)
        },
    }
    if sweep_on is not None:
        streams = {stream: x for stream, x in logits.items() if stream != FUSED}
        sweep = evaluation.sweep_fusion(streams, targets, sweep_on)
        report["fusion_sweep"] = {weights: asdict(metrics) for weights, metrics in sweep.items()}
    return report


def _print_report(report: Record) -> None:
    from .tables import make_console

    console = make_console()
    # A title of a table would be as narrow as the table.
    console.print(f"{report['model']} on {plural(report['num_videos'], 'video')}, percent", style="bold")
    console.print(_metrics_table("stream", report["metrics"]))
    if "fusion_sweep" in report:
        console.print("fusion", style="bold")
        console.print(_metrics_table("rgb:flow", report["fusion_sweep"]))
    console.print("confusion of the fused scores", style="bold")
    console.print(_confusion_table(report["confusion"]))


def _metrics_table(first: str, rows: dict[str, dict[str, float]]) -> Any:
    from .tables import make_table

    names = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class", "mean_average_precision": "mAP"}
    table = make_table(first, *names.values(), narrow=list(names.values()))
    for name, metrics in rows.items():
        table.add_row(name, *[f"{metrics[key]:.1%}".rstrip("%") for key in names])
    return table


def _confusion_table(confusion: dict[str, dict[str, int]]) -> Any:
    """Return the whole matrix if it fits, else the most frequent mistakes."""
    from .tables import make_table

    classes = list(dict.fromkeys([*confusion, *(found for row in confusion.values() for found in row)]))
    if len(classes) <= _MAX_CONFUSION_COLUMNS:
        numbers = [str(i) for i in range(len(classes))]
        table = make_table("true ↓  recognised →", *numbers, narrow=numbers)
        for i, true in enumerate(classes):
            row = confusion.get(true, {})
            table.add_row(f"{i} {true}", *[str(row[found]) if found in row else "·" for found in classes])
        return table
    mistakes = [(n, true, found) for true, row in confusion.items() for found, n in row.items() if found != true]
    table = make_table("true", "recognised as", "videos", title="most frequent mistakes", narrow=["videos"])
    for n, true, found in sorted(mistakes, reverse=True)[:_NUM_CONFUSIONS_LISTED]:
        table.add_row(true, found, str(n))
    return table
