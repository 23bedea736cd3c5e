"""Running a model over the videos of a command line: progress, failures, exit code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError, VideoError
from ..options import Options
from .console import BatchProgress, download_bar, log

if TYPE_CHECKING:
    from ..manifest import WeightsFile
    from ..outputs.atomic import AtomicFile
    from ..pipeline import Pipeline
    from ..records import VideoFailure, VideoResult
    from ..sources import Source

Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO…",
        help="Files, directories, globs, URLs; - reads a list from standard input, @FILE from a file.",
        show_default=False,
    ),
]
NulSeparated = Annotated[bool, typer.Option("-0", "--null", help="The list on standard input ends its names with NUL.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Videos read at the same time.", show_default="2 to 8, by the cores", rich_help_panel="Machine"
    ),
]
Failures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write failed videos here, as JSON lines; feeds back in as @FILE.", show_default=False
    ),
]


def make_pipeline(options: Options) -> Pipeline:
    """Build the pipeline; weights that are not on disk are downloaded with a progress bar."""
    from ..pipeline import Pipeline

    pipeline = Pipeline(options, fetch=fetch_weights)
    for stream, why in pipeline.left_out.items():
        log.info(
            "%s runs on %s alone: there are no public %s weights. %s",
            pipeline.entry.name,
            pipeline.streams[0],
            stream,
            why,
        )
    return pipeline


def fetch_weights(file: WeightsFile) -> Path:
    """Find a published checkpoint, or download it with a progress bar."""
    from ..weights import pull

    with download_bar(file.name) as on_bytes:
        return pull(file, progress=on_bytes)


def count(number: int, noun: str) -> str:
    """1 clip, 2 clips."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def find_videos(arguments: list[str], nul_separated: bool) -> list[Source]:
    """The videos that the arguments stand for, and standard input where it is asked for."""
    from ..sources import find_sources

    if nul_separated and "-" not in arguments:
        raise UsageError("-0 is for a list on standard input: add - to the arguments")
    return find_sources(arguments, stdin=typer.get_binary_stream("stdin"), nul_separated=nul_separated)


def run_batch(
    pipeline: Pipeline,
    sources: list[Source],
    on_result: Callable[[Source, VideoResult], None],
    *,
    jobs: int | None,
    failures_path: Path | None,
) -> int:
    """Run the model over all videos; a failed one is reported, and the others go on.

    Returns:
        The exit code.
    """
    from ..engines import local
    from ..outputs.atomic import AtomicFile
    from ..records import VideoFailure
    from ..timings import StageSeconds

    # Opened first: a list that cannot be written is told now, not after a night.
    failures_file = None if failures_path is None else AtomicFile(failures_path)
    failures: list[VideoFailure] = []
    left = {source.video: source for source in sources}
    progress = BatchProgress(len(sources))
    spent = StageSeconds()

    def on_failure(failure: VideoFailure, error: Exception) -> None:
        failures.append(failure)
        del left[failure.video]
        log.error("%s: %s", failure.video, failure.message)
        log.debug("as follows", exc_info=error)
        progress.next_video()

    try:
        with _objects_that_stay():
            results = local.run(
                pipeline, list(left), jobs=jobs, on_failure=on_failure, on_clips=progress.on_clips, spent=spent
            )
        _log_set_up(pipeline)
        with closing(results):
            for result in results:
                if result.num_decode_failures:
                    log.warning("%s: %s skipped", result.video, count(result.num_decode_failures, "damaged packet"))
                try:
                    with progress.paused():
                        on_result(left[result.video], result)
                except VideoError as error:
                    on_failure(VideoFailure(result.video, type(error).__name__, error.message), error)
                    continue
                del left[result.video]  # only now: an interrupted write is listed as not finished
                num_frames, num_clips = count(result.num_frames, "frame"), count(len(result.clips), "clip")
                log.debug("%s: %s, %s", result.video, num_frames, num_clips)
                progress.next_video()
    except KeyboardInterrupt:
        _write_failures(failures + [_interrupted(video) for video in left], failures_file)
        raise
    except BaseException:
        if failures_file is not None:
            failures_file.discard()
        raise
    finally:
        progress.close()
    log.debug("%s", spent)
    _write_failures(failures, failures_file)
    if failures and len(sources) > 1:
        advice = f"again: @{failures_path}" if failures_path else "keep a list to feed back in with --failures FILE"
        log.error("%d of %d videos failed; %s", len(failures), len(sources), advice)
    return EXIT_SOME_FAILED if failures else EXIT_OK


@contextmanager
def _objects_that_stay() -> Iterator[None]:
    """Load what is there to the end of the process: torch alone makes 280,000 objects.

    Searching them for garbage, again and again while they are made and once more at the end, takes a quarter of the
    time of `import torch`.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if "triton" not in sys.modules:  # its bindings would complain of leaks at the end
            gc.freeze()


def refuse_same_file(failures: Path | None, output: Path | None) -> None:
    """Raise UsageError for a list of failures that would replace the output."""
    if failures is not None and output is not None and failures.absolute() == output.absolute():
        raise UsageError(f"--failures {failures} is the output itself: give it a name of its own")


def _interrupted(video: str) -> VideoFailure:
    from ..records import VideoFailure

    return VideoFailure(video, "Interrupted", "not reached, or not finished")


def _write_failures(failures: list[VideoFailure], file: AtomicFile | None) -> None:
    from ..records import to_json

    if file is not None:
        with file:
            file.writelines(to_json(asdict(failure)).encode() + b"\n" for failure in failures)


def _log_set_up(pipeline: Pipeline) -> None:
    for doubt in pipeline.doubts:
        log.warning("%s", doubt)
    log.debug("%s, %s, %s", pipeline.entry.name, pipeline.runtime.description, pipeline.runtime.precision)
    for stream, path in pipeline.checkpoints.items():
        log.debug("%s weights: %s", stream, path)
