"""Runs a plan over a list of videos; a failed video is reported and the others continue."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from ..durable import AtomicFile, read_records
from ..errors import OutputExists, VideoError, VideoNotFound
from ..features.entries import without_secrets
from ..plan import Fetch, Plan
from ..records import ClipOutput, VideoFailure, to_json
from ..results import VideoResult
from ..run import local
from ..run.engines import Run
from ..run.local import Results
from ..timings import StageSeconds
from ..video import TIMEOUT_SECONDS
from ..video.sources import Source, is_url
from .events import ClipsDone, JobSummary, OnEvent, Progress, Started, VideoDone, VideoFailed, Waiting, Warned


class Batch:
    """A run over the videos of a command, with its progress and failures.

    Args:
        plan: what to do with each video.
        sources: all videos.
        on_result: takes a result; a VideoError from it fails that video, and False leaves it to another worker.
        on_failure: called with a video that failed.
        on_start: called when the networks are loaded; it may raise for networks that do not suit the command.
        run: `run.local.run`, or its like on a Ray cluster.
        jobs: see `run.local.run`.
        timeout: see `run.local.run`.
        fetch: see `run.local.run`.
        failures_path: file that lists the failed videos, as JSON lines that `@FILE` reads; "-" is stdout.
        on_event: called with every event.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Source],
        on_result: Callable[[Source, VideoResult], object],
        *,
        on_failure: Callable[[Source, VideoFailure], None] = lambda source, failure: None,
        on_start: Callable[[Results], None] = lambda results: None,
        run: Run = local.run,
        jobs: int | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
        fetch: Fetch | None = None,
        failures_path: Path | None = None,
        on_event: OnEvent = lambda event: None,
    ) -> None:
        self.progress = Progress(len(sources))
        self.failures: list[VideoFailure] = []
        self.lost_frames: dict[str, int] = {}
        self._plan = plan
        self._sources = {source.video: source for source in sources}
        self._left = dict.fromkeys(self._sources)
        self._on_result, self._on_failure, self._on_start = on_result, on_failure, on_start
        self._run, self._jobs, self._timeout, self._fetch = run, jobs, timeout, fetch
        self._failures_path, self._on_event = failures_path, on_event
        self._spent = StageSeconds()
        self._results: Results | None = None
        self._num_clips_before = 0  # of the videos before the current one
        self._num_clips_done = 0
        self._warned: set[str] = set()

    def work(self, rounds: Iterable[Iterable[Source]] | None = None) -> None:
        """Run the plan over all videos.

        Args:
            rounds: the same videos, drawn one by one. If other workers share them, each round draws those left.

        Raises:
            OutputExists: the list of failures would replace another file.
            Vid3dError: an error that ends the whole job; see `run.local.run`.
        """
        # Opened first: a list that cannot be written fails now, not at the end of the job.
        failures_file = None if self._failures_path is None else _open_failures(self._failures_path)
        try:
            self._plan.check_videos(list(self._left))
            for message in self._plan.warnings:
                self._on_event(Warned(message))
            if self._run is local.run and all(map(_is_missing, self._left)):
                for video in list(self._left):
                    local.report_failure(video, VideoNotFound(video, "no such file"), self._fail)
                rounds = []  # no weights are fetched for nothing
            for number, drawn in enumerate([list(self._sources.values())] if rounds is None else rounds):
                if number == 1:
                    self._on_event(Waiting())
                self._work(drawn)
        except KeyboardInterrupt:
            interrupted = [VideoFailure(video, "Interrupted", "not reached, or not finished") for video in self._left]
            _write_failures([*self.failures, *interrupted], failures_file)
            raise
        except BaseException:
            if isinstance(failures_file, AtomicFile):
                failures_file.discard()
            raise
        _write_failures(self.failures, failures_file)

    def _work(self, drawn: Iterable[Source]) -> None:
        options = {} if self._results is None else {"networks": self._results.networks}
        results = self._run(
            self._plan,
            (source.video for source in drawn),
            jobs=self._jobs,
            timeout=self._timeout,
            fetch=self._fetch,
            on_failure=self._fail,
            on_clips=self._count_clips,
            spent=self._spent,
            **options,
        )
        with closing(results):
            if self._results is None:
                self._start(results)
            for result in results:
                self._take(result)

    def _start(self, results: Results) -> None:
        self._results = results
        self._on_start(results)
        for message in results.warnings:
            self._on_event(Warned(message))
        self.progress.started = Progress(0).started
        self._on_event(Started(self.progress, results.recipe))

    def _count_clips(self, video: str, num_done: int, num_expected: int | None, clips: Sequence[ClipOutput]) -> None:
        self.progress.clips = self._num_clips_before + num_done
        self._on_event(ClipsDone(video, num_done, num_expected, self.progress, clips))

    def _take(self, result: VideoResult) -> None:
        video = result.video
        try:
            is_taken = self._on_result(self._sources[video], result) is not False
        except VideoError as error:
            self._fail(VideoFailure(video, type(error).__name__, error.message), error)
            return
        if not is_taken:  # another worker does it
            self._num_clips_before = self.progress.clips
            return
        self._left.pop(video, None)  # only now: an interrupted write is listed as not finished
        self.progress.done += 1
        self._num_clips_done += len(result.clips)
        self._num_clips_before = self.progress.clips
        for message in result.warnings:
            if message not in self._warned:
                self._warned.add(message)
                self._on_event(Warned(f"{video}: {message}; not said again for other videos"))
        if result.num_lost_frames:
            self.lost_frames[video] = result.num_lost_frames
        self._on_event(VideoDone(video, len(result.clips), result.num_frames, result.num_lost_frames, self.progress))

    def _fail(self, failure: VideoFailure, error: Exception) -> None:
        self._left.pop(failure.video, None)
        self.failures.append(failure)
        self.progress.failed += 1
        self._num_clips_before = self.progress.clips
        self._on_event(VideoFailed(failure, error, self.progress))
        self._on_failure(self._sources[failure.video], failure)

    def summary(self, *, has_ended: bool) -> JobSummary:
        """Return the outcome of the run and the seconds of each stage."""
        return JobSummary(
            has_ended=has_ended,
            progress=self.progress.as_record(),
            failures=tuple(self.failures),
            lost_frames=dict(self.lost_frames),
            stage_seconds=self._spent.by_stage(),
            model=self._plan.model,
            versions={} if self._results is None else dict(self._results.recipe.versions),
            num_clips=self._num_clips_done,
            num_videos=self.progress.num_videos,
        )


def _is_missing(video: str) -> bool:
    return not is_url(video) and not os.path.lexists(video)


def _open_failures(path: Path) -> AtomicFile | TextIO:
    """Open a list of failures; an earlier list may be replaced.

    Raises:
        OutputExists: the file is something else.
    """
    if str(path) == "-":
        return sys.stdout
    file = AtomicFile(path)
    records, ends = read_records(path)
    is_list = all({"video", "error", "message"} <= record.keys() for record in records)
    if path.exists() and not (is_list and path.stat().st_size == (ends[-1] if ends else 0)):
        file.discard()
        raise OutputExists(f"{path}: already exists, and is no list of failures; choose another name")
    return file


def _write_failures(failures: Iterable[VideoFailure], file: AtomicFile | TextIO | None) -> None:
    lines = [to_json(asdict(without_secrets(failure))) + "\n" for failure in failures]
    if isinstance(file, AtomicFile):
        with file:
            file.writelines(line.encode() for line in lines)
    elif file is not None:
        file.writelines(lines)
        file.flush()
