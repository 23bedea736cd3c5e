"""Shared parts of the commands over many videos: arguments, plan, progress, exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..durable import STDOUT
from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from ..options import Options
from .console import download_bar, log
from .progress import EventPrinter

if TYPE_CHECKING:
    from ..jobs.events import Event
    from ..models.manifest import WeightsFile
    from ..plan import Plan
    from ..records import ClipOutput
    from ..results import VideoResult
    from ..run.local import Results
    from ..video.sources import Source

BATCH = "Batch jobs"
"""A group of options in the help. Options without a group are the common ones, which `--help` shows."""

Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO…",
        help="Files, directories, globs, URLs; - reads a list from standard input, @FILE from a file.",
        show_default=False,
    ),
]
NulSeparated = Annotated[
    bool, typer.Option("-0", "--null", help="Names on standard input end with a NUL byte.", rich_help_panel=BATCH)
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Videos read at the same time.",
        show_default="2 to 8, depending on the cores; with a GPU, one per core, up to 32",
        rich_help_panel="Machine",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Fail a video whose decoder stalls this long; 0: never.",
        rich_help_panel="Machine",
    ),
]
AllowPlaylists = Annotated[
    bool,
    typer.Option(
        "--allow-playlists",
        help="Let playlists (HLS, ffconcat) open the files and addresses that they name.",
        rich_help_panel="Machine",
    ),
]
Engine = Annotated[
    str,
    typer.Option(metavar="local|ray", help="Run here, or on a Ray cluster.", rich_help_panel="Machine"),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of the cluster: auto, or host:port.",
        show_default="$RAY_ADDRESS, else a local Ray",
        rich_help_panel="Machine",
    ),
]
Failures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write failed videos here as JSON lines, - is stdout; retry them with @FILE.",
        show_default=False,
        rich_help_panel=BATCH,
    ),
]


def make_plan(options: Options) -> Plan:
    """Return the plan for the options; the import is late so that `--help` is fast."""
    from ..plan import Plan

    return Plan.make(options)


def fetch_weights(file: WeightsFile) -> Path:
    """Return the path of a published checkpoint; download it with a progress bar if it is not on disk."""
    from ..models.weights import pull

    with download_bar(file.name) as on_bytes:
        return pull(file, progress=on_bytes)


def find_videos(arguments: list[str], nul_separated: bool, *, each_alone: bool = False) -> list[Source]:
    """Return the videos that the arguments name, including those listed on standard input; see `find_sources`."""
    from ..video.sources import find_sources

    if nul_separated and "-" not in arguments:
        raise UsageError("-0 needs a list on standard input: add - to the arguments")
    stdin = typer.get_binary_stream("stdin")
    return find_sources(arguments, stdin=stdin, nul_separated=nul_separated, each_alone=each_alone)


def run_classes(
    plan: Plan,
    sources: list[Source],
    on_result: Callable[[Source, VideoResult], None],
    *,
    on_clips: Callable[[str, Sequence[ClipOutput], Sequence[str]], None] | None = None,
    jobs: int | None,
    timeout: float,
    failures: Path | None,
) -> int:
    """Classify videos; a failed video is reported and the others continue.

    Args:
        plan: what to do with each video.
        sources: all videos.
        on_result: called with each result.
        on_clips: called with the video, the clips that are done, and the class names.
        jobs: see `run.local.run`.
        timeout: see `run.local.run`; 0 for none.
        failures: file that lists the failed videos.

    Returns:
        The exit code.

    Raises:
        UsageError: the networks have no classes.
    """
    from ..jobs.batch import Batch
    from ..jobs.events import ClipsDone, Finished
    from ..records import FUSED
    from ..run.load import name_classes

    def check(results: Results) -> None:
        assert results.networks is not None
        results.networks.check_classes()

    def show(event: Event) -> None:
        printer(event)
        if isinstance(event, ClipsDone) and event.clips and on_clips is not None:
            with printer.paused():
                on_clips(event.video, event.clips, name_classes(plan, len(event.clips[0].logits[FUSED])))

    def take(source: Source, result: VideoResult) -> None:
        with printer.paused():
            on_result(source, result)

    plan.check_classes()
    with EventPrinter(len(sources), plan.model) as printer:
        batch = Batch(
            plan,
            sources,
            take,
            on_start=check,
            jobs=jobs,
            timeout=timeout or None,
            fetch=printer.fetch,
            failures_path=failures,
            on_event=show,
        )
        has_ended = False
        try:
            batch.work()
            has_ended = True
        finally:
            printer(Finished(batch.summary(has_ended=has_ended)))
    return report_failures(
        len(batch.failures), len(sources), failures, "; to list them for a retry, add --failures FILE"
    )


def report_failures(num_failed: int, num_videos: int, failures: Path | None, else_advise: str) -> int:
    """Log how many videos failed and how to retry them; return the exit code."""
    if num_failed and num_videos > 1:
        advice = f"; listed in {failures}; retry them with @{failures}" if failures else else_advise
        log.error("%d of %d videos failed%s", num_failed, num_videos, "" if failures == STDOUT else advice)
    return EXIT_SOME_FAILED if num_failed else EXIT_OK
