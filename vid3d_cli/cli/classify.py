"""`vid3d classify`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..options import Options
from ..predictions.files import WRITERS
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
    from ..durable import AtomicFile
    from ..records import VideoResult
    from ..video.sources import Source

FORMATS = ("table", *WRITERS)


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
            "--format", metavar="|".join(FORMATS), help="Output format; default: table on a terminal, else jsonl."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to this file instead of stdout.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Recognise actions in videos by rgb, flow and their fusion, for every clip and the whole video.

    Example: vid3d classify video.mp4 --topk 3 | jq .fused
    """
    if per not in ("clip", "video"):
        raise UsageError(f"--per {per}: choose clip or video")
    if form not in (None, *FORMATS):
        raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    from ..durable import AtomicFile
    from ..features.store import refuse_existing
    from ..jobs.extraction import refuse_same_file
    from ..predictions.files import prediction_records
    from .tables import PredictionTables

    form = form or ("table" if output is None and stdout_is_terminal() else "jsonl")
    sources = find_videos(videos, nul_separated)
    plan = make_plan(options)
    plan.check_classes()
    if output is not None:
        refuse_existing([output], overwrite)
    refuse_same_file(failures, *([] if output is None else [output]))
    file = None if output is None else AtomicFile(output)
    # File names need not be UTF-8; their bytes are written as they are.
    stream = sys.stdout if file is None else io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    printer = PredictionTables(stream) if form == "table" else WRITERS[form](stream)
    num_videos = 0

    def print_result(_: Source, result: VideoResult) -> None:
        nonlocal num_videos
        printer.write(list(prediction_records(result, k=topk, per=per)))
        num_videos += 1

    try:
        code = run_classes(plan, sources, print_result, jobs=jobs, timeout=timeout, failures=failures)
    finally:  # finished videos are written even after an interrupt
        printer.close()
        if file is not None and isinstance(stream, io.TextIOWrapper):
            _end(file, stream, is_empty=not num_videos)
    raise typer.Exit(code)


def _end(file: AtomicFile, stream: io.TextIOWrapper, *, is_empty: bool) -> None:
    try:
        stream.detach()
    except BaseException:  # its last lines did not fit on the disk
        file.discard()
        raise
    file.discard() if is_empty else file.commit()
