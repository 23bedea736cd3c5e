"""`vid3d classify`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..durable import STDOUT
from ..errors import UsageError
from ..options import Options
from ..predictions.formats import FORMATS
from ..suggest import check_known
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
from .console import log, plural, stdout_is_terminal
from .options import takes_options

if TYPE_CHECKING:
    from ..predictions.formats import Choices, Writer

OUTPUT, SEGMENTS = "Output", "Segments"
"""Groups of options in the help."""

TABLE = "table"
_FORMATS = (TABLE, *FORMATS)


@takes_options
def classify(
    videos: Videos,
    options: Options,
    topk: Annotated[int, typer.Option(min=1, help="Classes to list per stream.")] = 5,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"Format of stdout and of directories: {', '.join(_FORMATS)}. A file has that of its suffix.",
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
        bool,
        typer.Option("--segments", help="Write segments (which class is seen from when to when) instead of clips."),
    ] = False,
    per: Annotated[
        str,
        typer.Option(
            metavar="clip|video",
            help="Write a record for every clip and the video, or only for the video.",
            rich_help_panel=OUTPUT,
        ),
    ] = "clip",
    details: Annotated[
        bool,
        typer.Option(
            "--details",
            help="Print a table of every clip, with the best classes of each stream.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    smooth: Annotated[
        int, typer.Option(min=1, metavar="CLIPS", help="Average over so many clips.", rich_help_panel=SEGMENTS)
    ] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
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
    embed: Annotated[
        bool, typer.Option("--embed", help="Put the video itself into an .html report.", rich_help_panel=OUTPUT)
    ] = False,
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

    rule = SegmentRule(smooth, threshold, min_seconds, multi_label)
    choices = Choices(rule, topk, per, segments, embed, options.allow_playlists, timeout or None)
    paths = out or [STDOUT]
    if embed and form != "html" and "html" not in map(format_of, paths):
        raise UsageError("--embed is for a report: add --out report.html")
    if form is not None:
        check_known(form, _FORMATS, f"--format {form}")
    has_table = STDOUT in paths and (form == TABLE or (form is None and stdout_is_terminal()))
    if form == TABLE:
        if not has_table:
            raise UsageError("--format table is for stdout: leave out --out, or add --out -")
        form = None
    if details and not has_table:
        raise UsageError(
            "--details is for the table on stdout: add --format table" + " --out -" * (STDOUT not in paths)
        )
    if segments and (details or per != "clip"):
        raise UsageError(f"--segments replaces clips: leave out {'--details' if details else '--per'}")
    sources = find_videos(videos, nul_separated)
    plan = make_plan(options)
    plan.check_classes()
    names = {str(source.output_stem): source.video for source in sources}
    files = [path for path in paths if path != STDOUT] if has_table else paths
    with ExitStack() as stack:
        outputs = stack.enter_context(open_outputs(files, form, choices, names, overwrite=overwrite))
        refuse_same_file(failures, *outputs.files, *paths)
        if has_table:
            outputs.writers.insert(0, _make_table(choices, details))
            stack.callback(outputs.writers[0].close)
        if rule != SegmentRule() and not segments and not any(writer.holds_segments for writer in outputs.writers):
            raise UsageError("--smooth, --threshold, --min-seconds and --multi-label are for segments: add --segments")
        code = run_classes(
            plan,
            sources,
            lambda source, result: outputs.write(result, str(source.output_stem)),
            on_clips=outputs.write_clips,
            jobs=jobs,
            timeout=timeout,
            failures=failures,
        )
    for path in files if outputs.num_videos else []:
        if path.is_dir():
            log.info("wrote %s to %s/", plural(outputs.num_videos, "file"), path)
        elif path != STDOUT:
            log.info("wrote %s", path)
    raise typer.Exit(code)


def _make_table(choices: Choices, details: bool) -> Writer:
    from .tables import PredictionTables
    from .timeline import Timeline

    return (PredictionTables if details else Timeline)(sys.stdout, choices)
