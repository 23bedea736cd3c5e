"""`vid3d classify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from .output import STDOUT, format_of, open_output

if TYPE_CHECKING:
    from ..records import ClipOutput, VideoResult
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
            "--format",
            metavar="|".join(FORMATS),
            help="Output format; default: the suffix of --output, else table on a terminal, else jsonl.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="FILE", help="Write to this file; - is stdout.", show_default="stdout"
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
    from ..jobs.extraction import refuse_same_file
    from ..predictions.files import clip_records, prediction_records
    from .tables import PredictionTables

    output = None if output == STDOUT else output
    if form is None and output is not None:
        form = format_of(output, WRITERS)
    form = form or ("table" if stdout_is_terminal() else "jsonl")
    sources = find_videos(videos, nul_separated)
    plan = make_plan(options)
    plan.check_classes()
    refuse_same_file(failures, output or STDOUT)
    num_printed: Counter[str] = Counter()  # records by video

    def print_clips(video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        printer.write(clip_records(video, clips, labels, topk))
        num_printed[video] += len(clips)

    def print_result(_: Source, result: VideoResult) -> None:
        printer.write(prediction_records(result, k=topk, per=per, skip=num_printed[result.video]))
        num_printed[result.video] += 1

    with open_output(output, overwrite=overwrite) as stream:
        printer = PredictionTables(stream) if form == "table" else WRITERS[form](stream)
        try:
            code = run_classes(
                plan,
                sources,
                print_result,
                on_clips=print_clips if per == "clip" else None,
                jobs=jobs,
                timeout=timeout,
                failures=failures,
            )
        finally:  # finished clips are written even after an interrupt
            if num_printed or output is None:
                printer.close()
    raise typer.Exit(code)
