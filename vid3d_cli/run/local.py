"""Runs a plan on this machine: first as the simplest loop, then with reading and networks in parallel.

`run_one_by_one` documents the loop, and tests compare `run` with it. `run` gives the same results in the same order,
and keeps the networks busy:

    a process per video, `jobs` at a time:  packets → frames → resized → flow → clips in shared memory
    a thread per video:                                    "clip 3 is in slot 1" ←──────────┘
                                                                 ↓
    the caller's thread:                        batches of any videos → network → results, in list order

Flow that a GPU can compute (TV-L1) is computed in this process: threads that all videos share resize and stack.

A GPU works in parallel with the caller's thread, which starts the next batch before it waits for the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import NoScores, ResourceError, ShapeError, UsageError, VideoError, WeightsError
from ..plan import Fetch, Plan
from ..recipe import Recipe
from ..records import Clip, ClipOutput, VideoFailure
from ..results import VideoResult
from ..timings import StageSeconds
from ..video.process import TIMEOUT_SECONDS, Decoders
from ..workers import Workers
from .feeds import Feed, Feeds
from .load import Networks, load
from .reader import ClipReader
from .threads import count_cores, one_opencv_thread, share_threads

if TYPE_CHECKING:
    from ..runtimes.base import Runtime


def run_one_by_one(plan: Plan, videos: Iterable[str]) -> Iterator[VideoResult]:
    """Yield the results of a plan over videos, in list order: one video, one clip, one thread at a time.

    Args:
        plan: what to do with each video.
        videos: paths or URLs.

    Raises:
        VideoError: a video cannot be used.
        WeightsError: checkpoints that are missing or do not fit.
    """
    networks = load(plan)
    for video in videos:
        with ClipReader(plan, video) as clips:
            outputs = [output for clip in clips for output in networks.runtime.run([clip])]
            yield networks.pool(clips.summary(), outputs)


OnClips = Callable[[str, int, "int | None", Sequence[ClipOutput]], None]
"""Called after every batch with the video, the number of its clips done so far, that of all its expected clips (None:
unknown), and the new outputs, in time order. A dense run counts stretches, which are no clips yet, and gives none.
"""

OnFailure = Callable[[VideoFailure, Exception], None]
"""Called with each failed video and its error."""


class Results(Iterator[VideoResult]):
    """The results of a run, in order; close it to stop all reading.

    Args:
        recipe: the plan's, with runtime, precision and versions filled in.
        warnings: warnings about checkpoints, one sentence each.
        generator: yields the results.
        networks: those that run here; None if they run on other machines.
    """

    def __init__(
        self,
        recipe: Recipe,
        warnings: Sequence[str],
        generator: Generator[Any, None, None],
        networks: Networks | None = None,
    ) -> None:
        self.recipe, self.warnings, self.networks = recipe, tuple(warnings), networks
        self._generator = generator

    def __repr__(self) -> str:
        return f"Results({self.recipe.model}, {' + '.join(self.recipe.streams)})"

    def __next__(self) -> VideoResult:
        result: VideoResult = next(self._generator)
        return result

    def close(self) -> None:
        """Stop all reading."""
        self._generator.close()


def run(
    plan: Plan,
    videos: Iterable[str],
    *,
    jobs: int | None = None,
    timeout: float | None = TIMEOUT_SECONDS,
    fetch: Fetch | None = None,
    on_failure: OnFailure | None = None,
    on_clips: OnClips | None = None,
    spent: StageSeconds | None = None,
    networks: Networks | None = None,
) -> Results:
    """Return the results of a plan over videos, in list order; the call loads the networks unless they are given.

    A batch holds clips of any open videos, those of the earliest ones first. Memory holds a few clips of `jobs` videos,
    whatever their length, and the outputs of later videos that wait for an earlier one (`feeds.MAX_HELD_BYTES`).

    Args:
        plan: what to do with each video.
        videos: paths or URLs, drawn when they are due to be read; see `Plan.check_videos`.
        jobs: how many videos are read at the same time; None: see `threads.share_threads`.
        timeout: seconds without progress before a video fails; None for no limit.
        fetch: finds or downloads a published checkpoint; None for `models.weights.pull`.
        on_failure: called with each failed video, and the run continues; None raises the failure.
        on_clips: called with the progress within a video.
        spent: collects the seconds of every stage.
        networks: networks of an earlier run of this plan; None loads them.

    Raises:
        UsageError: fewer than 1 job, a timeout of 0, or options that do not suit this machine.
        WeightsError: checkpoints that are missing or do not fit.
        ResourceError: while iterating: no more processes or open files.
    """
    check_run(jobs, timeout)
    spent = StageSeconds() if spent is None else spent
    generator = _run(plan, videos, jobs, timeout, fetch, on_failure, on_clips, spent, networks)
    loaded: Any = next(generator)  # the networks: their errors are raised here
    return Results(loaded.recipe, loaded.warnings, generator, loaded)


def check_run(jobs: int | None, timeout: float | None) -> None:
    """Raise UsageError for fewer than 1 job, or a timeout that is not positive."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"at least 1 job is needed, got {jobs}")
    if timeout is not None and not timeout > 0:
        raise UsageError(f"the timeout must be more than 0 s, got {timeout:g}")


def _run(
    plan: Plan,
    videos: Iterable[str],
    jobs: int | None,
    timeout: float | None,
    fetch: Fetch | None,
    on_failure: OnFailure | None,
    on_clips: OnClips | None,
    spent: StageSeconds,
    networks: Networks | None,
) -> Generator[Networks | VideoResult, None, None]:
    """Yield the networks when they are loaded, then the results."""
    num_cores = count_cores()
    shares = share_threads(num_cores, jobs)
    with (
        one_opencv_thread(),
        Workers(num_cores, spent) as workers,
        Decoders(timeout, allow_playlists=plan.allow_playlists) as decoders,
        Feeds(plan, videos, shares.jobs, workers, decoders) as feeds,
    ):
        feeds.first()  # clips are read while the networks are loaded: importing torch alone takes longer
        networks = load(plan, fetch) if networks is None else networks
        started = _Started(networks.runtime, feeds)
        has_cores_left = networks.runtime.num_in_flight > 1
        feeds.widen(share_threads(num_cores, jobs, has_gpu=has_cores_left).jobs, started.batch_size)
        yield networks
        while feed := feeds.first():
            _run_clips(feed, feeds, started, networks, on_clips)
            outcome = _pool(feed, networks)
            feeds.drop_first()
            if isinstance(outcome, Exception):
                report_failure(feed.video, outcome, on_failure)
            else:
                yield outcome
            del feed, outcome  # the features of a whole video


def _run_clips(feed: Feed, feeds: Feeds, started: _Started, networks: Networks, on_clips: OnClips | None) -> None:
    """Run the networks until every clip of the first video has its output.

    They take clips of any open video. While no batch is ready, the oldest one in flight is finished: no result waits
    for a reader.
    """
    num_reported = 0

    def report() -> None:
        nonlocal num_reported
        if on_clips is None or len(feed.outputs) == num_reported:
            return
        try:
            clips = networks.fuse(feed.video, feed.outputs[num_reported:])
        except NoScores as error:
            feeds.give_up(feed, error)
            return
        num_reported = len(feed.outputs)
        on_clips(feed.video, num_reported, feed.num_expected_clips, clips)

    report()  # batches of earlier videos may have held clips of this one
    while True:
        feeds.receive()
        if feed.is_done:
            return
        if not started.is_full and (batch := feeds.take(started.batch_size)):
            started.start(batch)
        elif started:
            started.finish_oldest()
            report()
        else:
            feeds.wait()


class _Started:
    """The batches in flight, oldest first."""

    def __init__(self, runtime: Runtime, feeds: Feeds) -> None:
        self._runtime, self._feeds = runtime, feeds
        self._batches: deque[tuple[list[Feed], Callable[[], list[ClipOutput]]]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether as many batches are in flight as the runtime takes."""
        return len(self) >= self._runtime.num_in_flight

    @property
    def batch_size(self) -> int:
        """Clips in a batch; fewer after a GPU ran out of memory."""
        return self._runtime.batch_size

    def start(self, batch: Sequence[tuple[Feed, Clip]]) -> None:
        """Start a batch of clips of one shape, each with its video."""
        owners = [owner for owner, _ in batch]
        with self._failing(owners):
            self._batches.append((owners, self._runtime.start([clip for _, clip in batch])))
            for owner in owners:
                owner.num_pending += 1

    def finish_oldest(self) -> None:
        """Wait for the oldest batch, and give every video its outputs."""
        owners, wait = self._batches.popleft()
        for owner in owners:
            owner.num_pending -= 1
        with self._failing(owners):
            for owner, output in zip(owners, wait(), strict=True):
                owner.add(output)

    @contextmanager
    def _failing(self, owners: Sequence[Feed]) -> Iterator[None]:
        """Fail these videos, and no others, if the network cannot run their frames."""
        try:
            with self._feeds.workers.spent.during("network"):
                yield
        except ShapeError as error:
            for owner in owners:
                self._feeds.give_up(owner, error)


def _pool(feed: Feed, networks: Networks) -> VideoResult | Exception:
    if isinstance(feed.facts, Exception):
        return feed.facts
    assert feed.facts is not None
    try:
        return networks.pool(feed.facts, feed.outputs)
    except VideoError as error:
        return error


def report_failure(video: str, error: Exception, on_failure: OnFailure | None) -> None:
    """Call `on_failure` with a failed video.

    Raises:
        Vid3dError: there is no `on_failure`, or the error ends the whole run.
    """
    if on_failure is None or isinstance(error, (UsageError, WeightsError, ResourceError)):
        raise error from None
    message = error.message if isinstance(error, VideoError) else str(error) or type(error).__name__
    on_failure(VideoFailure(video, type(error).__name__, message), error)
