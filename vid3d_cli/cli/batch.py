"""Running a model over the videos of a command line: progress, failures, exit code."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError, VideoError
from ..options import Options
from .console import BatchProgress, download_bar, log, writes_json

if TYPE_CHECKING:
    from ..durable import AtomicFile
    from ..models.manifest import WeightsFile
    from ..records import VideoFailure, VideoResult
    from ..run.pipeline import Pipeline
    from ..video.sources import Source

    Run = Callable[..., Generator[VideoResult, None, None]]
    """Called as `engines.local.run`."""

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
Timeout = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Give a video up whose decoder brings no frame for so long; 0: never.",
        rich_help_panel="Machine",
    ),
]
Engine = Annotated[
    str,
    typer.Option(metavar="local|ray", help="Run here, or over a Ray cluster; see README.", rich_help_panel="Machine"),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of the cluster: auto, host:port.",
        show_default="$RAY_ADDRESS, else a Ray of this machine",
        rich_help_panel="Machine",
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
    from ..run.pipeline import Pipeline

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
    from ..models.weights import pull

    with download_bar(file.name) as on_bytes:
        return pull(file, progress=on_bytes)


def count(number: int, noun: str) -> str:
    """1 clip, 2 clips."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def find_videos(arguments: list[str], nul_separated: bool) -> list[Source]:
    """The videos that the arguments stand for, and standard input where it is asked for."""
    from ..video.sources import find_sources

    if nul_separated and "-" not in arguments:
        raise UsageError("-0 is for a list on standard input: add - to the arguments")
    return find_sources(arguments, stdin=typer.get_binary_stream("stdin"), nul_separated=nul_separated)


@contextmanager
def open_engine(name: str, ray_address: str | None, pipeline: Pipeline) -> Iterator[Run]:
    """What runs the pipeline over videos: `engines.local.run`, or its like on a Ray cluster.

    Raises:
        UsageError: an unknown name, an address without a cluster, or what `engines.ray.Cluster` cannot do.
    """
    if name not in ("local", "ray"):
        raise UsageError(f"unknown engine '{name}': choose local or ray")
    if name == "local":
        from ..run import local

        if ray_address is not None:
            raise UsageError("--ray-address is where a cluster is: add --engine ray")
        yield local.run
        return
    from ..run.ray import Cluster

    with Cluster(ray_address) as cluster:
        cluster.prepare(pipeline)  # before its recipe is asked for, which would load the networks here
        yield cluster.run


def run_batch(
    pipeline: Pipeline,
    sources: Sequence[Source],
    on_result: Callable[[Source, VideoResult], None],
    *,
    jobs: int | None,
    timeout: float,
    failures_path: Path | None,
    on_failure: Callable[[Source, VideoFailure], None] | None = None,
    rounds: Iterable[Iterable[Source]] | None = None,
    run: Run | None = None,
    on_end: Callable[[], None] = lambda: None,
) -> int:
    """Run the model over all videos; a failed one is reported, and the others go on.

    Args:
        pipeline: what to do with each.
        sources: all videos.
        on_result: takes what was found; a VideoError from it is a failure of that video.
        on_failure: is told of a video that failed.
        jobs: see `engines.local.run`.
        timeout: see `engines.local.run`, 0 for none.
        failures_path: of the list of failed videos.
        rounds: of the same videos, drawn one by one: where others work on them too, they may have to be asked again.
        run: of `open_engine`; None is that of this machine.
        on_end: is called when all videos are done or have failed, before the summary.

    Returns:
        The exit code.
    """
    from ..durable import AtomicFile

    # Opened first: a list that cannot be written is told now, not after a night.
    failures_file = None if failures_path is None else AtomicFile(failures_path)
    batch = _Batch(pipeline, sources, on_result, on_failure, jobs, timeout, run)
    try:
        pipeline.check_videos([source.video for source in sources])
        for number, drawn in enumerate([sources] if rounds is None else rounds):
            if number == 1:
                log.info("waiting for videos that other workers have; theirs are taken over if they die")
            batch.work(drawn)
        on_end()
        batch.has_ended = True
    except KeyboardInterrupt:
        _write_failures(batch.failures + [_interrupted(video) for video in batch.left], failures_file)
        raise
    except BaseException:
        if failures_file is not None:
            failures_file.discard()
        raise
    finally:
        batch.progress.close()
        batch.log_summary()
    _write_failures(batch.failures, failures_file)
    if batch.failures and len(sources) > 1:
        advice = f"again: @{failures_path}" if failures_path else "keep a list to feed back in with --failures FILE"
        log.error("%d of %d videos failed; %s", len(batch.failures), len(sources), advice)
    return EXIT_SOME_FAILED if batch.failures else EXIT_OK


class _Batch:
    """The videos of a command, what became of them, and what is said of it."""

    def __init__(
        self,
        pipeline: Pipeline,
        sources: Sequence[Source],
        on_result: Callable[[Source, VideoResult], None],
        on_failure: Callable[[Source, VideoFailure], None] | None,
        jobs: int | None,
        timeout: float,
        run: Run | None,
    ) -> None:
        from ..run import local
        from ..timings import StageSeconds

        self.failures: list[VideoFailure] = []
        self.left = {source.video: source for source in sources}
        self.progress = BatchProgress(len(sources))
        self._pipeline, self._on_result, self._on_failure = pipeline, on_result, on_failure
        self._jobs, self._timeout = jobs, timeout
        self._run = run or local.run
        self._spent = StageSeconds()
        self._is_set_up = False
        self.has_ended = False

    def work(self, drawn: Iterable[Source]) -> None:
        """Run the model over some of the videos."""
        with _objects_that_stay():
            results = self._run(
                self._pipeline,
                (source.video for source in drawn),
                jobs=self._jobs,
                timeout=self._timeout or None,
                on_failure=self._fail,
                on_clips=self.progress.on_clips,
                spent=self._spent,
            )
        if not self._is_set_up:
            self._is_set_up = True
            self.progress.begin()
            _log_set_up(self._pipeline)
        with closing(results):
            for result in results:
                self._take(result)

    def _take(self, result: VideoResult) -> None:
        video, num_lost = result.video, result.num_decode_failures
        if num_lost:
            fields = {"event": "damage", "video": video, "num_lost_frames": num_lost}
            log.warning("%s: %s lost to damage", video, count(num_lost, "frame"), extra={"fields": fields})
        try:
            with self.progress.paused():
                self._on_result(self.left[video], result)
        except VideoError as error:
            self._fail(_failure(video, error), error)
            return
        del self.left[video]  # only now: an interrupted write is listed as not finished
        log.debug("%s: %s, %s", video, count(result.num_frames, "frame"), count(len(result.clips), "clip"))
        self.progress.next_video()

    def _fail(self, failure: VideoFailure, error: Exception) -> None:
        self.failures.append(failure)
        source = self.left.pop(failure.video)
        fields = {"event": "failure", "video": failure.video, "error": failure.error, "reason": failure.message}
        log.error("%s: %s", failure.video, failure.message, extra={"fields": fields})
        log.debug("as follows", exc_info=error)
        self.progress.next_video(has_failed=True)
        if self._on_failure is not None:
            self._on_failure(source, failure)

    def log_summary(self) -> None:
        """Tell what was done and where the time went, with the versions that did it; broken off or not."""
        summary = self.progress.summary()
        if self.has_ended:  # what others have done meanwhile is not left
            summary |= {"left": 0, "done_by_others": summary["left"]}
        fields = {
            "event": "summary",
            "has_ended": self.has_ended,
            **summary,
            "stage_seconds": self._spent.by_stage(),
            "model": self._pipeline.entry.name,
            "versions": dict(self._pipeline.recipe.versions) if self._is_set_up else {},
        }
        log.log(logging.INFO if writes_json() else logging.DEBUG, "%s", self._spent, extra={"fields": fields})


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
        raise UsageError(f"--failures {failures} is a file of the output itself: give it a name of its own")


def _failure(video: str, error: VideoError) -> VideoFailure:
    from ..records import VideoFailure

    return VideoFailure(video, type(error).__name__, error.message)


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
