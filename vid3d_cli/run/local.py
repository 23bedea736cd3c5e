"""This machine: threads read the clips of the current video and of the next ones while the network works.

a process a video, `jobs` at a time:  packets → frames
a thread a video:                                  ├───────────────────→ clips ──┐
workers, shared by all videos:                     └→ resized → flow ─┘          │
the caller's thread:                                       results ← network ← batches

A network on a GPU works beside the caller's thread: that starts the next batch before it waits for the oldest.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import ResourceError, ShapeError, UsageError, VideoError, WeightsError
from ..options import TIMEOUT_SECONDS
from ..records import Clip, ClipOutput, VideoFailure, VideoResult
from ..timings import StageSeconds
from ..video.process import Decoders
from ..workers import Workers
from .pipeline import ClipReader, Pipeline
from .threads import count_cores, one_opencv_thread, share_threads

if TYPE_CHECKING:
    from ..runtimes.base import Runtime

OnClips = Callable[[int, "int | None"], None]
"""Called after every batch with the clips of this video done so far and expected in all (None: unknown)."""

OnFailure = Callable[[VideoFailure, Exception], None]

MIN_ROOM = 2
"""Clips of every video that are read ahead, at least; one where they are the long ones of a dense run."""

STOP_SECONDS = 5.0
"""For readers that hang (ready-made flow on a dead drive), all together: none must hold the job when this is over."""


def run(
    pipeline: Pipeline,
    videos: Iterable[str],
    *,
    jobs: int | None = None,
    timeout: float | None = TIMEOUT_SECONDS,
    on_failure: OnFailure | None = None,
    on_clips: OnClips | None = None,
    spent: StageSeconds | None = None,
) -> Generator[VideoResult, None, None]:
    """Run the pipeline over videos, in their order; the networks are loaded at the call.

    Where a video has too few clips for a batch, those of the next ones fill it. Memory holds a few clips of `jobs`
    videos, however long they are. Closing the iterator stops all reading.

    Args:
        pipeline: what to do with each.
        videos: paths or URLs, drawn when they are due to be read; see `Pipeline.check_videos`.
        jobs: how many videos are read at the same time; None: see `threads.share_threads`.
        timeout: seconds for which a decoder may get no further while its frames are waited for, before the video fails;
            None: for ever.
        on_failure: is told of a video that failed, and the others go on; None raises the failure.
        on_clips: is told of progress within a video.
        spent: the time of every stage is added there.

    Raises:
        UsageError: no jobs or no time, or options that do not suit the videos or this machine.
        WeightsError: weights that cannot be had or used.
        ResourceError: while iterating: no more processes or open files are to be had.
    """
    check_run(jobs, timeout)
    results = _run(pipeline, videos, jobs, timeout, on_failure, on_clips, StageSeconds() if spent is None else spent)
    next(results)  # loads the networks: what is wrong with them is told now
    return cast("Generator[VideoResult, None, None]", results)


def check_run(jobs: int | None, timeout: float | None) -> None:
    """Raise UsageError for no jobs or no time."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"at least 1 job is needed, got {jobs}")
    if timeout is not None and not timeout > 0:
        raise UsageError(f"a decoder needs some time, got {timeout:g} s")


def _run(
    pipeline: Pipeline,
    videos: Iterable[str],
    jobs: int | None,
    timeout: float | None,
    on_failure: OnFailure | None,
    on_clips: OnClips | None,
    spent: StageSeconds,
) -> Generator[VideoResult | None, None, None]:
    """First None, when the networks are loaded; then the results."""
    shares = share_threads(count_cores(), jobs)
    with (
        one_opencv_thread(),
        Workers(shares.workers, spent) as workers,
        Decoders(timeout) as decoders,
        _Feeds(pipeline, videos, shares.jobs, workers, decoders) as feeds,
    ):
        feeds.first()  # clips are read while the networks are loaded: importing torch alone takes longer
        started = _Started(pipeline.runtime, spent)
        feeds.set_batch_size(started.batch_size)
        yield None
        while feed := feeds.first():
            _run_clips(feed, feeds, started, on_clips)
            outcome = _pool(feed, pipeline)
            feeds.drop_first()
            if isinstance(outcome, Exception):
                tell(feed.video, outcome, on_failure)
            else:
                yield outcome
            del feed, outcome  # the features of a whole video


def _run_clips(feed: _Feed, feeds: _Feeds, started: _Started, on_clips: OnClips | None) -> None:
    """Have the networks work until they have answered for every clip of the first video.

    Clips of other videos fill the last batch, and where several batches may be in work, more of them keep the networks
    busy while their answers are waited for: those that are at hand, so that no result waits for the next video.
    """

    def report() -> None:
        if on_clips is not None and feed.outputs:
            on_clips(len(feed.outputs), feed.num_expected_clips)

    report()  # clips of this video may have filled the last batch of the one before
    while not feed.is_done:
        if started and (started.is_full or not feeds.has_clip_ready()):
            started.finish_oldest()
            report()
        elif started or feed.peek() is not None:
            started.start(feeds.take(started.batch_size))


class _Started:
    """The batches that the networks have been given and have not answered yet, oldest first."""

    def __init__(self, runtime: Runtime, spent: StageSeconds) -> None:
        self._runtime = runtime
        self._spent = spent
        self._batches: deque[tuple[list[_Feed], Callable[[], list[ClipOutput]]]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether another batch would only wait behind these."""
        return len(self) >= self._runtime.num_in_flight

    @property
    def batch_size(self) -> int:
        """Clips at a time; less after a GPU ran out of memory."""
        return self._runtime.batch_size

    def start(self, batch: Sequence[tuple[_Feed, Clip]]) -> None:
        """Begin with clips of one shape, each with the video that it is of."""
        owners = [owner for owner, _ in batch]
        with self._at_the_cost_of(owners):
            self._batches.append((owners, self._runtime.start([clip for _, clip in batch])))
            for owner in owners:
                owner.num_pending += 1

    def finish_oldest(self) -> None:
        """Wait for the answer, and hand every video its part."""
        owners, wait = self._batches.popleft()
        for owner in owners:
            owner.num_pending -= 1
        with self._at_the_cost_of(owners):
            for owner, output in zip(owners, wait(), strict=True):
                owner.outputs.append(output)

    @contextmanager
    def _at_the_cost_of(self, owners: Sequence[_Feed]) -> Iterator[None]:
        """Frames of a size that the network cannot take are the fault of these videos alone."""
        try:
            with self._spent.during("network"):
                yield
        except ShapeError as error:
            for owner in owners:
                owner.give_up(error)


def _pool(feed: _Feed, pipeline: Pipeline) -> VideoResult | Exception:
    if feed.error is not None:
        return feed.error
    try:
        return pipeline.pool(feed.reader.summary(), feed.outputs)
    except VideoError as error:
        return error


def tell(video: str, error: Exception, on_failure: OnFailure | None) -> None:
    """Tell of a video that failed.

    Raises:
        Vid3dError: nobody wants to be told, or it is not the fault of this video.
    """
    if on_failure is None or isinstance(error, (UsageError, WeightsError, ResourceError)):
        raise error from None
    message = error.message if isinstance(error, VideoError) else str(error) or type(error).__name__
    on_failure(VideoFailure(video, type(error).__name__, message), error)


class _Feeds:
    """The videos at hand, in their order: at most `jobs` that are being read, and before them those that are read."""

    def __init__(
        self, pipeline: Pipeline, videos: Iterable[str], jobs: int, workers: Workers, decoders: Decoders
    ) -> None:
        self.workers = workers
        self._decoders = decoders
        self._pipeline = pipeline
        self._waiting = iter(videos)
        self._jobs = jobs
        self._room = MIN_ROOM if pipeline.dense_plan is None else 1
        self._open: list[_Feed] = []

    def set_batch_size(self, num_clips: int) -> None:
        """Have so many clips of every video read ahead, while the network works on those before."""
        for feed in self._open:
            feed.widen(num_clips - self._room)
        self._room = max(self._room, num_clips)

    def first(self) -> _Feed | None:
        """The video whose result is due; None after the last."""
        self._open_more()
        return self._open[0] if self._open else None

    def drop_first(self) -> None:
        """Go on to the next one."""
        del self._open[0]
        self._open_more()

    def take(self, num_clips: int) -> list[tuple[_Feed, Clip]]:
        """The next clips, at most so many and of one shape, and which video each is of."""
        batch: list[tuple[_Feed, Clip]] = []
        for feed in self._in_turn():
            while len(batch) < num_clips and (clip := feed.peek()) and (not batch or are_alike(batch[0][1], clip)):
                batch.append((feed, feed.take()))
            if not feed.is_drained:
                break
        return batch

    def has_clip_ready(self) -> bool:
        """Whether the next clip has been read, so that `take` finds its first one at once."""
        for feed in self._in_turn():
            if not feed.is_ready:
                return False
            if feed.peek() is not None:
                return True
        return False

    def _in_turn(self) -> Iterator[_Feed]:
        """The open videos, then more, as long as those before are drained."""
        for index in itertools.count():
            self._open_more()
            if index >= len(self._open):
                return
            yield self._open[index]

    def _open_more(self) -> None:
        while sum(not feed.is_drained for feed in self._open) < self._jobs:
            video = next(self._waiting, None)
            if video is None:
                return
            feed = _Feed(video, self._pipeline, self.workers, self._decoders, self._room)
            self._open.append(feed)  # before its thread begins, so that none is forgotten when we are interrupted here
            feed.start()

    def __enter__(self) -> _Feeds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for feed in self._open:
            feed.ask_to_stop()
        self._decoders.close()
        self.workers.close()  # whoever asks them for a frame now ends at once, and not with his next clip
        deadline = time.monotonic() + STOP_SECONDS
        for feed in self._open:
            feed.join(deadline)


def are_alike(first: Clip, second: Clip) -> bool:
    """Whether two clips can be in one batch."""
    return _form(first) == _form(second)


def _form(clip: Clip) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {stream: (frames.shape, frames.dtype) for stream, frames in clip.streams.items()}


class _Feed:
    """One video being read by a thread into a short queue of clips."""

    reader: ClipReader

    def __init__(self, video: str, pipeline: Pipeline, workers: Workers, decoders: Decoders, room: int) -> None:
        self.video = video
        self.num_expected_clips: int | None = None
        self.outputs: list[ClipOutput] = []
        self.error: Exception | None = None  # why reading ended before its time
        self.is_drained = False
        self.num_pending = 0  # clips that the networks have been given and have not answered
        self._next: Clip | None = None
        self._pipeline = pipeline
        self._workers = workers
        self._decoders = decoders
        self._clips: queue.SimpleQueue[Clip | Exception | None] = queue.SimpleQueue()
        # Permits to put a clip there. A semaphore's lock would stay locked if an interrupt came in the wrong moment.
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.widen(room)
        self._is_stopped = False
        self._thread = threading.Thread(target=self._read, name=f"read {video}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def _read(self) -> None:
        if self._is_stopped:
            return
        try:
            with self._pipeline.open_clips(self.video, self._workers, self._decoders) as self.reader:
                self.num_expected_clips = self.reader.num_expected_clips
                for clip in self.reader:
                    self._room.get()
                    if self._is_stopped:
                        return
                    self._clips.put(clip)
        except Exception as error:  # whatever a file does to its decoder, it costs that file alone
            self._clips.put(error)
        else:
            self._clips.put(None)

    def widen(self, num_clips: int) -> None:
        """Let so many more clips be read ahead."""
        for _ in range(num_clips):
            self._room.put(None)

    @property
    def is_ready(self) -> bool:
        """Whether `peek` would not have to wait."""
        return self._next is not None or self.is_drained or not self._clips.empty()

    @property
    def is_done(self) -> bool:
        """Whether nothing more will become of it: all is read, and all is answered."""
        return self.is_drained and self.num_pending == 0

    def peek(self) -> Clip | None:
        """Wait for the next clip, and leave it there; None after the last, and when reading failed."""
        if self._next is None and not self.is_drained:
            with self._workers.spent.during("waited"):
                item = self._clips.get()
            if isinstance(item, Clip):
                self._next = item
                self.widen(1)
            else:
                self.is_drained, self.error = True, item
        return self._next

    def take(self) -> Clip:
        """The clip that `peek` found."""
        clip, self._next = self._next, None
        assert clip is not None
        return clip

    def give_up(self, error: Exception) -> None:
        """Read no further: the network cannot take this video."""
        self.ask_to_stop()
        self._next, self.is_drained, self.error = None, True, error

    def ask_to_stop(self) -> None:
        """Have the thread close the video and end, soon."""
        self._is_stopped = True
        self.widen(1)  # it may be waiting there

    def join(self, deadline: float) -> None:
        """Wait until it has, or where it hangs until a time of the monotonic clock."""
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
