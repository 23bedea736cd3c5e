"""This machine: threads read the clips of the current video and of the next ones while the network works."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from ..errors import UsageError, VideoError, WeightsError
from ..pipeline import ClipReader, Pipeline
from ..records import Clip, ClipOutput, VideoFailure, VideoResult

DEFAULT_JOBS = 2  # the video at hand and the next one

OnClips = Callable[[int, "int | None"], None]
"""Called after every batch with the clips of this video done so far and expected in all (None: unknown)."""

OnFailure = Callable[[VideoFailure, Exception], None]

_STOP_POLL_SECONDS = 0.2


def run(
    pipeline: Pipeline,
    videos: Sequence[str],
    *,
    jobs: int | None = None,
    on_failure: OnFailure | None = None,
    on_clips: OnClips | None = None,
) -> Generator[VideoResult, None, None]:
    """Run the pipeline over videos, in their order; the networks are loaded at the call.

    Memory holds a few clips of `jobs` videos, however long they are. Closing the iterator stops all reading.

    Args:
        pipeline: what to do with each.
        videos: paths or URLs.
        jobs: how many videos are read at the same time; None is 2, the one at hand and the next.
        on_failure: is told of a video that failed, and the others go on; None raises the failure.
        on_clips: is told of progress within a video.

    Raises:
        UsageError: no jobs, or options that do not suit the videos or this machine.
        WeightsError: weights that cannot be had or used.
    """
    num_jobs = DEFAULT_JOBS if jobs is None else jobs
    if num_jobs < 1:
        raise UsageError(f"at least 1 job is needed, got {jobs}")
    pipeline.check_videos(videos)
    pipeline.runtime  # noqa: B018  (loaded here, so that what is wrong with it is told before a video is read)
    return _run(pipeline, videos, num_jobs, on_failure, on_clips)


def _run(
    pipeline: Pipeline, videos: Sequence[str], num_jobs: int, on_failure: OnFailure | None, on_clips: OnClips | None
) -> Generator[VideoResult, None, None]:
    waiting = iter(videos)
    feeds: deque[_Feed] = deque()
    try:
        for _ in range(num_jobs):
            _start_next(waiting, feeds, pipeline)
        while feeds:
            try:
                yield _finish(feeds[0], pipeline, on_clips)
            except (_ReadingFailed, VideoError) as failed:
                error = failed.error if isinstance(failed, _ReadingFailed) else failed
                if on_failure is None or isinstance(error, (UsageError, WeightsError)):
                    raise error from None
                message = error.message if isinstance(error, VideoError) else str(error) or type(error).__name__
                on_failure(VideoFailure(feeds[0].video, type(error).__name__, message), error)
            feeds.popleft()
            _start_next(waiting, feeds, pipeline)
    finally:
        for feed in feeds:
            feed.ask_to_stop()
        for feed in feeds:
            feed.join()


def _start_next(waiting: Iterator[str], feeds: deque[_Feed], pipeline: Pipeline) -> None:
    video = next(waiting, None)
    if video is not None:
        feeds.append(_Feed(video, pipeline))


def _finish(feed: _Feed, pipeline: Pipeline, on_clips: OnClips | None) -> VideoResult:
    outputs: list[ClipOutput] = []
    while batch := feed.take(pipeline.runtime.batch_size):
        outputs += pipeline.runtime.run(batch)
        if on_clips is not None:
            on_clips(len(outputs), feed.num_expected_clips)
    return pipeline.pool(feed.reader, outputs)


class _ReadingFailed(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Feed:
    """One video being read by a thread into a short queue of clips."""

    reader: ClipReader

    def __init__(self, video: str, pipeline: Pipeline) -> None:
        self.video = video
        self.num_expected_clips: int | None = None
        self._pipeline = pipeline
        # Room for the batch that the network takes next, while it works on the one before.
        room = max(2, pipeline.runtime.batch_size)
        self._clips: queue.Queue[Clip | Exception | None] = queue.Queue(room)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"read {video}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._pipeline.open_clips(self.video) as self.reader:
                self.num_expected_clips = self.reader.num_expected_clips
                for clip in self.reader:
                    if not self._put(clip):
                        return
        except Exception as error:  # whatever a file does to its decoder, it costs that file alone
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: Clip | Exception | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._clips.put(item, timeout=_STOP_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def take(self, num_clips: int) -> list[Clip]:
        """The next clips, at most so many; none after the last."""
        batch: list[Clip] = []
        while len(batch) < num_clips:
            item = self._clips.get()
            if isinstance(item, Exception):
                raise _ReadingFailed(item)
            if item is None:
                self._clips.put(None)  # for the next call
                break
            batch.append(item)
        return batch

    def ask_to_stop(self) -> None:
        """Have the thread close the video and end, soon."""
        self._stopped.set()

    def join(self) -> None:
        """Wait until it has."""
        self._thread.join(timeout=5)  # a decoder that hangs must not hold the whole job
