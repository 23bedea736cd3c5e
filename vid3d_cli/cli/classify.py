"""`vid3d classify`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import typer

from ..errors import UsageError
from ..options import Options
from .batch import Failures, Jobs, NulSeparated, Videos, find_videos, make_pipeline, run_batch
from .options import takes_pipeline_options

if TYPE_CHECKING:
    from ..records import VideoResult
    from ..sources import Source

FORMATS = ("table", "json", "jsonl", "csv")


@takes_pipeline_options
def classify(
    videos: Videos,
    options: Options,
    topk: Annotated[int, typer.Option(min=1, help="Classes of each stream.")] = 5,
    per: Annotated[
        str, typer.Option(metavar="clip|video", help="A record for every clip and the video, or for the video alone.")
    ] = "clip",
    fuse: Annotated[str, typer.Option(metavar="RGB:FLOW", help="Weights of the late fusion.")] = "1:1",
    fuse_on: Annotated[str, typer.Option(metavar="logits|probs", help="What is summed.")] = "logits",
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="|".join(FORMATS), help="Default: table on a terminal, else jsonl."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write here, not to stdout.", show_default=False),
    ] = None,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
) -> None:
    """Recognise the actions in videos: rgb, flow and their fusion, for every clip and the whole video.

    Example: vid3d classify video.mp4 --topk 3 | jq .fused
    """
    if per not in ("clip", "video"):
        raise UsageError(f"--per {per}: choose clip or video")
    if form not in (None, *FORMATS):
        raise UsageError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    from ..outputs.predictions import prediction_records

    form = form or ("table" if output is None and sys.stdout.isatty() else "jsonl")
    sources = find_videos(videos, nul_separated)
    pipeline = make_pipeline(options)
    with ExitStack() as stack:
        printer = _make_printer(form, _open_output(output, stack))
        stack.callback(printer.close)  # what is done is whole, also when the rest was interrupted

        def print_result(_: Source, result: VideoResult) -> None:
            printer.write(prediction_records(result, k=topk, per=per))

        code = run_batch(pipeline, sources, print_result, jobs=jobs, failures_path=failures)
    raise typer.Exit(code)


class _Printer(Protocol):
    def write(self, records: Iterable[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


def _make_printer(form: str, stream: TextIO) -> _Printer:
    from ..outputs import predictions
    from .tables import PredictionTables

    if form == "table":
        return PredictionTables(stream)
    if form == "csv":
        return predictions.Csv(stream)
    return predictions.JsonArray(stream) if form == "json" else predictions.JsonLines(stream)


def _open_output(path: Path | None, stack: ExitStack) -> TextIO:
    """Standard output, or a file that appears when the stack unwinds."""
    from ..outputs.atomic import AtomicFile

    if path is None:
        return sys.stdout
    file = AtomicFile(path)
    stack.callback(file.commit)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    stack.callback(text.detach)
    return text
