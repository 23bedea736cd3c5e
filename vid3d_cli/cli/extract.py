"""`vid3d extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_SOME_FAILED, OutputError, UsageError
from ..options import Options
from ..video import TIMEOUT_SECONDS
from .batch import (
    BATCH,
    Engine,
    Failures,
    Jobs,
    NulSeparated,
    RayAddress,
    Timeout,
    Videos,
    find_videos,
    make_plan,
    report_failures,
)
from .console import log, plural
from .formats import is_table
from .options import is_given, out_option, takes_options
from .progress import EventPrinter

if TYPE_CHECKING:
    from ..jobs.events import JobSummary

_OUTPUT = "Output"


@takes_options
def extract(
    context: typer.Context,
    videos: Videos,
    options: Options,
    out: Annotated[
        str,
        out_option("feats.npy, .npz, .h5, .parquet, or a directory; an existing output is resumed."),
    ],
    layout: Annotated[
        str,
        typer.Option(
            metavar="vid3d|video_features|files",
            help="File names and arrays in a directory; files: those of the preset.",
            show_default="vid3d, or files with --preset",
            rich_help_panel=_OUTPUT,
        ),
    ] = "vid3d",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="float32|float16",
            help="Type of the features on disk.",
            show_default="float32, or the preset's",
            rich_help_panel=_OUTPUT,
        ),
    ] = "float32",
    concat: Annotated[
        bool,
        typer.Option(
            help="Write one matrix with rgb and flow side by side, or one per stream.",
            show_default="--concat, or the preset's",
            rich_help_panel=_OUTPUT,
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over and replace the output.")] = False,
    redo_failed: Annotated[
        bool, typer.Option("--redo-failed", help="Retry videos that failed before.", rich_help_panel=BATCH)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List videos, clips, rows and bytes; run no network."),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="With --dry-run: estimate the time of the networks.", rich_help_panel=BATCH),
    ] = False,
    plan_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="table|jsonl",
            help="Output format of --dry-run.",
            show_default="table on a terminal, jsonl in a pipe",
            rich_help_panel=BATCH,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|slurm", help="Work on one of n parts of about equal duration.", rich_help_panel=BATCH
        ),
    ] = None,
    claim: Annotated[
        bool,
        typer.Option(
            "--claim", help="Share the list with all workers that write to this directory.", rich_help_panel=BATCH
        ),
    ] = False,
    stale_after: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="With --claim: claims expire when their worker is silent for this long.",
            show_default="60",
            rich_help_panel=BATCH,
        ),
    ] = None,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    engine: Engine = "local",
    ray_address: RayAddress = None,
) -> None:
    """Extract one feature vector per clip and stream, with its times and the recipe.

    Run the same command again to resume an interrupted job.

    Example: vid3d extract --out feats.npy videos/
    """
    from ..features.format import FeatureFormat
    from ..jobs import extraction

    if (estimate or plan_format) and not dry_run:
        raise UsageError(f"{'--estimate' if estimate else '--format'} needs --dry-run")
    written = {"dtype": dtype, "concat": concat, "layout": layout}
    form = FeatureFormat.of(options.preset, {name: written[name] for name in written if is_given(context, name)})
    sources = find_videos(videos, nul_separated, each_alone=form.files is not None)
    plan = make_plan(options)
    if dry_run:
        from .dry_run import print_plan

        extraction.check_sharing(out, shard, claim=claim, stale_after=stale_after, overwrite=overwrite, engine=engine)
        store, part = extraction.open_part(
            plan, sources, out, form, shard, failures=failures, keep=False, timeout=timeout or None
        )
        skips = {"overwrite": overwrite, "redo_failed": redo_failed}
        print_plan(plan, part, store, form, is_table(plan_format), **skips, timeout=timeout or None, estimate=estimate)
        return
    with EventPrinter(len(sources), plan.model) as printer:
        try:
            summary = extraction.extract(
                plan,
                sources,
                out,
                form=form,
                overwrite=overwrite,
                redo_failed=redo_failed,
                shard=shard,
                claim=claim,
                stale_after=stale_after,
                failures=failures,
                jobs=jobs,
                timeout=timeout or None,
                engine=engine,
                ray_address=ray_address,
                fetch=printer.fetch,
                on_event=printer,
            )
        except (OutputError, KeyboardInterrupt):
            if (kept := printer.summary) is not None:
                what = f"{plural(kept.num_kept, 'video')} of {kept.num_videos} kept in {kept.out}"
                log.warning("%s; run the same command to resume", what if kept.num_kept else "no video is done yet")
            raise
    raise typer.Exit(_report(summary, failures))


def _report(summary: JobSummary, failures: Path | None) -> int:
    """Say what was done; return the exit code."""
    num_videos = summary.done + summary.failed + summary.progress["left"]
    listed = f"; listed in {summary.failures_path}; retry with --redo-failed" if summary.failures_path else ""
    code = report_failures(summary.failed, num_videos, failures, listed)
    if summary.done:
        clips, files = plural(summary.num_clips, "clip"), " and ".join(summary.files) or summary.out
        log.info("%s of %s → %s", clips, plural(summary.done, "video"), files)
    if summary.lost_frames:
        damaged = plural(len(summary.lost_frames), "video")
        log.warning("%s damaged; run 'vid3d features info %s' for lost frames", damaged, summary.out)
    return EXIT_SOME_FAILED if summary.num_skipped_failed else code
