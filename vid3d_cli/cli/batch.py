"""Shared parts of the commands over many videos: arguments, plan, progress, exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from ..options import Options
from .console import download_bar, log
from .progress import EventPrinter

if TYPE_CHECKING:
    from ..models.manifest import WeightsFile
    from ..plan import Plan
    from ..records import VideoResult
    from ..run.local import Results
    from ..video.sources import Source

Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO…",
        help="Files, directories, globs, URLs; - reads a list from standard input, @FILE from a file.",
        show_default=False,
    ),
]
NulSeparated = Annotated[bool, typer.Option("-0", "--null", help="Names on standard input end with a NUL byte.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Videos read at the same time.",
        show_default="2 to 8, depending on the cores",
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
        metavar="FILE", help="Write failed videos here as JSON lines; retry them with @FILE.", show_default=False
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


def find_videos(arguments: list[str], nul_separated: bool) -> list[Source]:
    """Return the videos that the arguments name, including those listed on standard input."""
    from ..video.sources import find_sources

    if nul_separated and "-" not in arguments:
        raise UsageError("-0 needs a list on standard input: add - to the arguments")
    return find_sources(arguments, stdin=typer.get_binary_stream("stdin"), nul_separated=nul_separated)


def run_classes(
    plan: Plan,
    sources: list[Source],
    on_result: Callable[[Source, VideoResult], None],
    *,
    jobs: int | None,
    timeout: float,
    failures: Path | None,
) -> int:
    """Classify videos; a failed video is reported and the others continue.

    Args:
        plan: what to do with each video.
        sources: all videos.
        on_result: called with each result.
        jobs: see `run.local.run`.
        timeout: see `run.local.run`; 0 for none.
        failures: file that lists the failed videos.

    Returns:
        The exit code.

    Raises:
        UsageError: the networks have no classes.
    """
    from ..jobs.batch import Batch
    from ..jobs.events import Finished

    def check(results: Results) -> None:
        assert results.networks is not None
        results.networks.check_classes()

    def take(source: Source, result: VideoResult) -> None:
        with printer.paused():
            on_result(source, result)

    plan.check_classes()
    with EventPrinter(len(sources)) as printer:
        batch = Batch(
            plan,
            sources,
            take,
            on_start=check,
            jobs=jobs,
            timeout=timeout or None,
            fetch=fetch_weights,
            failures_path=failures,
            on_event=printer,
        )
        has_ended = False
        try:
            batch.work()
            has_ended = True
        finally:
            printer(Finished(batch.summary(has_ended=has_ended)))
    return report_failures(len(batch.failures), len(sources), failures)


def report_failures(num_failed: int, num_videos: int, failures: Path | None) -> int:
    """Log how many videos failed and how to retry them; return the exit code."""
    if num_failed and num_videos > 1:
        advice = f"retry them with @{failures}" if failures else "to list them for a retry, add --failures FILE"
        log.error("%d of %d videos failed; %s", num_failed, num_videos, advice)
    return EXIT_SOME_FAILED if num_failed else EXIT_OK
