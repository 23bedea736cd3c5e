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
from ..predictions.formats import FORMATS, TABLE
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
    from ..predictions.outputs import Outputs

OUTPUT, SEGMENTS = "Output", "Segments"
"""Groups of options in the help."""

_FORMATS = (TABLE, *FORMATS)


@takes_options
def classify(
    videos: Videos,
    options: Options,
    topk: Annotated[int, typer.Option(min=1, help="Classes to list per stream.")] = 5,
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"Format of stdout and directories: {', '.join(_FORMATS)}. A file has that of its suffix. Repeatable.",
            show_default="table on a terminal, jsonl in a pipe",
        ),
    ] = None,
    out: Annotated[
        list[str] | None,  # a Path loses the slash at the end of a directory
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
    from ..predictions.formats import Choices, check_choices
    from ..predictions.outputs import open_outputs
    from ..segments import SegmentRule

    rule = SegmentRule(smooth, threshold, min_seconds, multi_label)
    choices = Choices(rule, topk, per, segments, embed, options.allow_playlists, timeout or None)
    paths = out or [str(STDOUT)]
    has_stdout = STDOUT in map(Path, paths)
    for form in forms or ():
        check_known(form, _FORMATS, f"--format {form}")
    has_table = has_stdout and (TABLE in forms if forms else stdout_is_terminal())
    if forms and TABLE in forms and not has_table:
        raise UsageError("--format table is for stdout: leave out --out, or add --out -")
    if details and not has_table:
        raise UsageError("--details is for the table on stdout: add --format table" + " --out -" * (not has_stdout))
    if details and segments:
        raise UsageError("--segments replaces clips: leave out --details")
    sources = find_videos(videos, nul_separated)
    plan = make_plan(options)
    plan.check_classes()
    names = {str(source.output_stem): source.video for source in sources}
    file_forms = [form for form in forms or () if form != TABLE]
    files = [path for path in paths if Path(path) != STDOUT] if has_table else paths
    with ExitStack() as at_end, ExitStack() as stack:
        outputs = stack.enter_context(open_outputs(files, file_forms, choices, names, overwrite=overwrite))
        refuse_same_file(failures, *outputs.files, *map(Path, paths))
        check_choices(choices, {*(target.form for target in outputs.targets), *[TABLE] * has_table}, _name_option)
        at_end.callback(_log_written, outputs)
        if has_table:
            outputs.writers.insert(0, _make_table(choices, details))
            stack.callback(outputs.writers[0].close)
        code = run_classes(
            plan,
            sources,
            lambda source, result: outputs.write(result, str(source.output_stem)),
            on_clips=outputs.write_clips,
            jobs=jobs,
            timeout=timeout,
            failures=failures,
        )
    raise typer.Exit(code)


def _name_option(choice: str) -> str:
    return "--topk" if choice == "k" else f"--{choice.replace('_', '-')}"


def _log_written(outputs: Outputs) -> None:
    for target in outputs.targets:
        files = outputs.written(target)
        if target.is_directory and files:
            overview = f"; open {target.overview}" if target.overview in files else ""
            count = plural(len(files) - bool(overview), f".{target.form} file")
            log.info("wrote %s to %s/%s", count, target.path, overview)
        elif files:
            log.info("wrote %s", target.path)


def _make_table(choices: Choices, details: bool) -> Writer:
    from .tables import PredictionTables
    from .timeline import Timeline

    return (PredictionTables if details else Timeline)(sys.stdout, choices)
