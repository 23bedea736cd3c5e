"""`vid3d classify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..durable import STDOUT
from ..errors import UsageError
from ..options import Options
from ..predictions.formats import FORMATS
from ..video import TIMEOUT_SECONDS
from .batch import (
    Failures,
    Jobs,
    NulSeparated,
    Timeout,
    Videos,
    find_videos,
    make_plan,
    run_classes,
)
from .console import stdout_is_terminal
from .options import takes_options

if TYPE_CHECKING:
    from ..predictions.formats import Writer
    from ..records import ClipOutput
    from ..results import VideoResult
    from ..video.sources import Source

SEGMENTS = "Segments"
"""A group of options in the help."""


@takes_options
def classify(
    videos: Videos,
    options: Options,
    topk: Annotated[int, typer.Option(min=1, help="Classes to list per stream.")] = 5,
    per: Annotated[
        str,
        typer.Option(metavar="clip|video", help="Write a record for every clip and the video, or only for the video."),
    ] = "clip",
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(["table", *FORMATS]),
            help="Format of stdout and of directories; for a file, its suffix.",
            show_default="table on a terminal, jsonl in a pipe",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="PATH",
            help="A file, whose suffix names the format; a directory, for a file per video; - is stdout. Repeatable.",
            show_default="stdout",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")] = False,
    segments: Annotated[
        bool, typer.Option("--segments", help="Write segments, which class is seen from when to when, not clips.")
    ] = False,
    smooth: Annotated[
        int, typer.Option(min=1, metavar="CLIPS", help="Average over so many clips.", rich_help_panel=SEGMENTS)
    ] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            help="Least score of a segment, 0 to 1.",
            show_default="0, or 0.2 with --multi-label",
            rich_help_panel=SEGMENTS,
        ),
    ] = None,
    min_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Join segments of a class across shorter gaps; drop shorter segments.",
            rich_help_panel=SEGMENTS,
        ),
    ] = 0.0,
    multi_label: Annotated[
        bool,
        typer.Option("--multi-label", help="Let classes overlap; else one at a time.", rich_help_panel=SEGMENTS),
    ] = False,
    embed: Annotated[bool, typer.Option("--embed", help="Put the video itself into an .html report.")] = False,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Recognise actions in videos by rgb, flow and their fusion, for every clip and the whole video.

    Example: vid3d classify video.mp4 --topk 3 | jq .fused
    """
    from ..jobs.extraction import refuse_same_file
    from ..predictions.formats import Choices, format_of
    from ..predictions.outputs import open_outputs
    from ..segments import SegmentRule
    from .tables import PredictionTables

    rule = SegmentRule(smooth, threshold, min_seconds, multi_label)
    choices = Choices(rule, topk, per, segments, embed)
    paths = out or [STDOUT]
    if embed and form != "html" and "html" not in map(format_of, paths):
        raise UsageError("--embed is for a report: add --out report.html")
    refuse_same_file(failures, *paths)
    if form is None and stdout_is_terminal():
        form = "table" if out is None else None
    sources = find_videos(videos, nul_separated)
    plan = make_plan(options)
    plan.check_classes()

    def write_clips(video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        for writer in writers:
            writer.write_clips(video, clips, labels)

    def write(source: Source, result: VideoResult) -> None:
        for writer in writers:
            writer.write(result, str(source.output_stem))

    names = [str(source.output_stem) for source in sources]
    with ExitStack() as stack:
        writers: list[Writer]
        if form == "table":
            if paths != [STDOUT]:
                raise UsageError("--format table is for stdout: leave out --out")
            writers = [PredictionTables(sys.stdout, choices)]
        else:
            writers = stack.enter_context(open_outputs(paths, form, choices, names, overwrite=overwrite))
        code = run_classes(plan, sources, write, on_clips=write_clips, jobs=jobs, timeout=timeout, failures=failures)
    raise typer.Exit(code)
