"""`vid3d extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_SOME_FAILED, OutputError, UsageError
from ..options import TIMEOUT_SECONDS, Options
from .batch import (
    Engine,
    Failures,
    Jobs,
    NulSeparated,
    RayAddress,
    Timeout,
    Videos,
    count,
    find_videos,
    make_pipeline,
    open_engine,
    refuse_same_file,
    run_batch,
)
from .console import log
from .options import takes_pipeline_options

if TYPE_CHECKING:
    from ..jobs.claims import Claims
    from ..jobs.extraction import Extraction
    from ..video.sources import Source

_BATCH = "Batch jobs"


@takes_pipeline_options
def extract(
    videos: Videos,
    options: Options,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="feats.npy, .npz, .h5, .parquet, or a directory; what is there already is gone on with.",
            show_default=False,
        ),
    ],
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Features of this layer; see: vid3d models show.", show_default="before the classifier"
        ),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(metavar="avg|max|none|spatial", help="A layer's map: mean, maximum, as it is, mean over space."),
    ] = Options.pool,
    keep_crops: Annotated[
        bool, typer.Option("--keep-crops", help="Features of every crop, (N, crops, D), not their mean.")
    ] = False,
    layout: Annotated[
        str, typer.Option(metavar="vid3d|video_features", help="File names and arrays in a directory.")
    ] = "vid3d",
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of the features on disk.")] = "float32",
    concat: Annotated[bool, typer.Option(help="One matrix with rgb and flow side by side, or one each.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew, and remove what is there.", rich_help_panel=_BATCH)
    ] = False,
    redo_failed: Annotated[
        bool, typer.Option("--redo-failed", help="Try failed videos again.", rich_help_panel=_BATCH)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List videos, clips, rows, bytes and time; run no network.", rich_help_panel=_BATCH
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|slurm", help="Work on one of n parts of about equal duration.", rich_help_panel=_BATCH
        ),
    ] = None,
    claim: Annotated[
        bool,
        typer.Option(
            "--claim", help="Share the list with all workers that write to this directory.", rich_help_panel=_BATCH
        ),
    ] = False,
    stale_after: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="With --claim: a worker that is silent for so long is taken for dead.",
            show_default="60",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
    engine: Engine = "local",
    ray_address: RayAddress = None,
) -> None:
    """Extract one feature vector per clip and stream, with the seconds it describes and the recipe.

    The same command goes on where it stopped.

    Example: vid3d extract --out feats.npy videos/
    """
    from ..features.format import FeatureFormat
    from ..features.stores import create_store
    from ..jobs.extraction import Extraction

    sources = find_videos(videos, nul_separated)
    if stale_after is not None and not claim:
        raise UsageError("--stale-after is for workers that share a list: add --claim")
    if claim and engine == "ray":
        raise UsageError("--engine ray shares the videos out among its workers by itself: leave --claim out")
    form = FeatureFormat(dtype, concat, layout)
    worker, sources = _select_part(sources, out, shard, claim=claim, overwrite=overwrite, dry_run=dry_run)
    store = create_store(out, layout=layout, worker=worker)
    for own in (store.failures_path, *store.own_paths()):
        refuse_same_file(failures, own)
    pipeline = make_pipeline(options)
    if dry_run:
        from .dry_run import print_plan

        print_plan(
            pipeline, sources, store, form, overwrite=overwrite, redo_failed=redo_failed, timeout=timeout or None
        )
        return
    claims = None if worker is None or not claim else _make_claims(out, worker, stale_after)
    with (
        open_engine(engine, ray_address, pipeline) as run,
        Extraction(pipeline, sources, store, form, overwrite=overwrite, redo_failed=redo_failed, claims=claims) as job,
    ):
        _tell_what_is_there(job, len(sources), out)
        try:
            code = run_batch(
                pipeline,
                job.pending,
                job.write,
                on_failure=job.fail,
                rounds=job.rounds(),
                jobs=jobs,
                timeout=timeout,
                failures_path=failures,
                on_end=job.finish,
                run=run,
            )
        except (OutputError, KeyboardInterrupt):
            job.stop()
            kept = f"{count(job.progress.skipped + job.progress.safe, 'video')} of {len(sources)}"
            log.error("%s kept in %s; the same command goes on from there", kept, out)
            raise
    _tell_the_end(job, str(store.path))
    raise typer.Exit(EXIT_SOME_FAILED if job.progress.skipped_failed else code)


def _select_part(
    sources: list[Source], out: str, shard: str | None, *, claim: bool, overwrite: bool, dry_run: bool
) -> tuple[str | None, list[Source]]:
    """The name of this worker among several, and the videos that are its part."""
    from ..features.stores import is_directory

    if shard is None and not claim:
        return None, sources
    if shard is not None and claim:
        raise UsageError("--shard gives every worker its part, --claim lets them take what is left: choose one")
    if overwrite and is_directory(out):
        raise UsageError(f"--overwrite would remove what other workers write to {out}: remove it before they start")
    if claim:
        from ..jobs.claims import worker_name

        if not is_directory(out):
            raise UsageError(
                f"--claim is for a directory that the workers share: --out feats/, and when all have ended: "
                f"vid3d features convert feats/ {out}"
            )
        return worker_name(), sources
    from ..jobs.shards import Shard, select_shard

    part = Shard.parse(shard or "")
    plans = Path(out) / ".shards" if is_directory(out) else Path(out).with_name(f".{Path(out).name}.shards")
    selected = select_shard(sources, part, plans, keeps=not dry_run)
    log.info("%s: %s of %d", part.name, count(len(selected), "video"), len(sources))
    return part.name, selected


def _make_claims(out: str, worker: str, stale_after: float | None) -> Claims:
    from ..jobs.claims import STALE_SECONDS, Claims

    return Claims(Path(out), worker, STALE_SECONDS if stale_after is None else stale_after)


def _tell_what_is_there(job: Extraction, num_videos: int, out: str) -> None:
    before = job.progress
    if before.changed:
        log.info("%s: %s changed since and made anew", out, count(before.changed, "video"))
    if before.skipped or before.skipped_failed:
        log.info(
            "%s: %d of %s there already%s; %d left",
            out,
            before.skipped,
            count(num_videos, "video"),
            f", {before.skipped_failed} failed before (again with --redo-failed)" if before.skipped_failed else "",
            len(job.pending),
        )


def _tell_the_end(job: Extraction, out: str) -> None:
    done = job.progress
    if done.done:
        log.info("%s of %s → %s", count(done.clips, "clip"), count(done.done, "video"), out)
    if done.lost_frames:
        damaged = count(len(done.lost_frames), "video")
        log.warning("%s damaged: how many frames each lost says vid3d features info %s", damaged, out)
