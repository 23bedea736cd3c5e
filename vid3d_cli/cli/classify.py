"""`vid3d classify`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import typer

from ..errors import UsageError
from ..options import TIMEOUT_SECONDS, Options
from .batch import (
    Failures,
    Jobs,
    NulSeparated,
    Timeout,
    Videos,
    find_videos,
    make_pipeline,
    refuse_same_file,
    run_batch,
)
from .console import stdout_is_terminal
from .options import Fuse, FuseOn, takes_pipeline_options

if TYPE_CHECKING:
    from ..durable import AtomicFile
    from ..records import VideoResult
    from ..video.sources import Source

FORMATS = ("table", "json", "jsonl", "csv")


@takes_pipeline_options
def classify(
    videos: Videos,
    options: Options,
    topk: Annotated[int, typer.Option(min=1, help="Classes of each stream.")] = 5,
    per: Annotated[
        str, typer.Option(metavar="clip|video", help="A record for every clip and the video, or for the video alone.")
    ] = "clip",
    fuse: Fuse = Options.fuse,
    fuse_on: FuseOn = Options.fuse_on,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="Class names of an own checkpoint, one a line.", show_default=False
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="|".join(FORMATS), help="Default: table on a terminal, else jsonl."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write here, not to stdout.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of -o.")] = False,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Recognise the actions in videos: rgb, flow and their fusion, for every clip and the whole video.

    Example: vid3d classify video.mp4 --topk 3 | jq .fused
    """
    if per not in ("clip", "video"):
        raise UsageError(f"--per {per}: choose clip or video")
    if form not in (None, *FORMATS):
        raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    from ..durable import AtomicFile
    from ..features.store import refuse_existing
    from ..predictions.files import prediction_records

    form = form or ("table" if output is None and stdout_is_terminal() else "jsonl")
    sources = find_videos(videos, nul_separated)
    pipeline = make_pipeline(options)
    pipeline.check_classes()
    if output is not None:
        refuse_existing([output], overwrite)
    refuse_same_file(failures, output)
    file = None if output is None else AtomicFile(output)
    # File names may be no UTF-8; their bytes are written as they are.
    stream = sys.stdout if file is None else io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    printer, num_videos = _make_printer(form, stream), 0

    def print_result(_: Source, result: VideoResult) -> None:
        nonlocal num_videos
        printer.write(list(prediction_records(result, k=topk, per=per)))
        num_videos += 1

    try:
        code = run_batch(pipeline, sources, print_result, jobs=jobs, timeout=timeout, failures_path=failures)
    finally:  # what is done is whole, also when the rest was interrupted
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


class _Printer(Protocol):
    def write(self, records: Iterable[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


def _make_printer(form: str, stream: TextIO) -> _Printer:
    from ..predictions import files as predictions
    from .tables import PredictionTables

    if form == "table":
        return PredictionTables(stream)
    if form == "csv":
        return predictions.Csv(stream)
    return predictions.JsonArray(stream) if form == "json" else predictions.JsonLines(stream)
