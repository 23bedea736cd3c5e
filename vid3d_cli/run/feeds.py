"""Reads clips of several videos ahead while the networks run.

    a thread per video:  clip → permit ──→ arrivals, one queue of all videos ──→ Feed.clips ──→ batch
                                  ↑                                                               │
                                  └───────────────────────────────────────────────────────────────┘

Readers share the permits. A reader that is faster than the others uses more of them, so that it can fill a batch alone.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from ..plan import Plan
from ..records import Clip, ClipOutput
from ..video.process import Decoders
from ..workers import Workers
from .reader import ReadVideo, open_clips

CLIPS_AHEAD = 2
"""Clips read ahead per open video on average, or batches if that is more; 1 in a dense run, whose clips are long."""

MAX_HELD_BYTES = 256 * 2**20
"""Results that wait for an earlier video may take about this much memory; then no more videos are opened."""

VIDEO_BYTES = 100_000
"""Estimated memory of a video whose result waits, beside the arrays of its outputs."""

STOP_SECONDS = 5.0
"""Time for all readers to stop; those that hang (ready-made flow on a dead drive) are left behind."""


class Feeds:
    """The open videos, in list order; at most `jobs` of them are being read.

    Args:
        plan: what to read of each.
        videos: paths or URLs, drawn when they are due to be read.
        jobs: how many are read at the same time.
        workers: threads that resize frames and compute flow.
        decoders: processes that decode.
    """

    def __init__(self, plan: Plan, videos: Iterable[str], jobs: int, workers: Workers, decoders: Decoders) -> None:
        self.plan, self.workers, self.decoders = plan, workers, decoders
        # Simple queues stay usable after an interrupt; a semaphore or a condition could stay locked.
        self.arrivals: queue.SimpleQueue[tuple[Feed, Clip | ReadVideo | Exception]] = queue.SimpleQueue()
        self.permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._jobs = self._batch_size = self._num_permits = 0
        self._num_read = self._num_clips = 0
        self._waiting = iter(videos)
        self._due: deque[Feed] = deque()  # all whose results are not out
        self._reading: list[Feed] = []  # those with clips, or with more to come
        self._ending: list[Feed] = []  # those given up whose threads have not ended
        self.widen(jobs, 1)

    def widen(self, jobs: int, batch_size: int) -> None:
        """Read this many videos at the same time, and enough clips ahead for batches of this size."""
        num_permits = (1 if self.plan.dense else CLIPS_AHEAD) * max(jobs, batch_size)
        for _ in range(num_permits - self._num_permits):
            self.permits.put(None)
        for _ in range(jobs - self._jobs):
            self.turns.put(None)
        self._jobs, self._batch_size, self._num_permits = jobs, batch_size, num_permits

    def first(self) -> Feed | None:
        """Return the video whose result is due; None after the last."""
        self._open_more()
        return self._due[0] if self._due else None

    def drop_first(self) -> None:
        """Drop the first video, whose result is out."""
        self._ending = [feed for feed in (*self._ending, self._due.popleft()) if feed.thread.is_alive()]
        self._open_more()

    def wait(self) -> None:
        """Wait until a reader delivers something."""
        with self.workers.spent.during("waited"):
            arrived = self.arrivals.get()
        self._sort(*arrived)

    def receive(self) -> None:
        """Take in what the readers have delivered, and open the next videos."""
        while not self.arrivals.empty():
            self._sort(*self.arrivals.get())
        self._open_more()

    def _sort(self, feed: Feed, arrived: Clip | ReadVideo | Exception) -> None:
        if not isinstance(arrived, Clip):
            feed.end(arrived)
            self._num_read += 1
            return
        self._num_clips += 1
        if feed.is_drained:  # given up
            self.permits.put(None)
        else:
            feed.clips.append(arrived)
            feed.form = _form(arrived)

    def take(self, num_clips: int) -> list[tuple[Feed, Clip]]:
        """Return a batch: clips of one shape, those of the earliest videos first, each with its video.

        It has fewer than `num_clips` only if no open video can add to it. It is empty if it is worth waiting.
        """
        self._reading = [feed for feed in self._reading if feed.clips or not feed.is_drained]
        ready: dict[Form, list[tuple[Feed, Clip]]] = {}
        for feed in self._reading:
            for form, clips in itertools.islice(itertools.groupby(feed.clips, _form), 1):
                ready.setdefault(form, []).extend((feed, clip) for clip in clips)
        has_permits = sum(len(feed.clips) for feed in self._reading) < self._num_permits
        growing = {feed.form for feed in self._reading if has_permits and not feed.is_drained}
        for form, batch in ready.items():
            if len(batch) >= num_clips or not growing & {form, None}:
                for feed, _ in batch[:num_clips]:
                    feed.clips.popleft()
                    self.permits.put(None)
                return batch[:num_clips]
        return []

    def give_up(self, feed: Feed, error: Exception) -> None:
        """Stop reading a video: the network cannot take it."""
        for _ in feed.clips:
            self.permits.put(None)
        feed.clips.clear()
        feed.end(error)

    def _open_more(self) -> None:
        # Short videos end while this thread waits for a batch: one batch more of them waits for its turn.
        num_spare = min(self._jobs, self._batch_size * self._num_read // max(1, self._num_clips))
        while sum(not feed.is_drained for feed in self._reading) < self._jobs + num_spare and self._may_hold_more():
            video = next(self._waiting, None)
            if video is None:
                return
            feed = Feed(video, self)
            self._due.append(feed)  # before its thread starts, so that an interrupt here leaves none behind
            self._reading.append(feed)
            feed.thread.start()

    def _may_hold_more(self) -> bool:
        return sum(feed.num_bytes for feed in itertools.islice(self._due, 1, None)) < MAX_HELD_BYTES

    def __enter__(self) -> Feeds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for feed in self._due:
            feed.is_drained = True
        self.permits.put(None)  # every reader that waits takes it, and puts it back
        self.turns.put(None)
        self.decoders.close()
        self.workers.close()  # a reader that waits for them ends now, not at its next clip
        deadline = time.monotonic() + STOP_SECONDS
        for feed in (*self._ending, *self._due):
            if feed.thread.is_alive():
                feed.thread.join(max(0.0, deadline - time.monotonic()))


Form = tuple[tuple[str, tuple[int, ...], str], ...]
"""What the clips of a batch have in common: streams, shapes and types."""


def _form(clip: Clip) -> Form:
    return tuple((stream, frames.shape, frames.dtype.str) for stream, frames in clip.streams.items())


class Feed:
    """One open video: a thread reads its clips; the outputs of those that ran are collected."""

    def __init__(self, video: str, feeds: Feeds) -> None:
        self.video = video
        self.num_expected_clips: int | None = None
        self.clips: deque[Clip] = deque()  # not yet in a batch
        self.form: Form | None = None  # of its latest clip
        self.num_pending = 0  # clips whose outputs are still to come
        self.outputs: list[ClipOutput] = []
        self.num_bytes = VIDEO_BYTES
        self.is_drained = False  # no more clips come; its thread stops
        self.facts: ReadVideo | Exception | None = None  # of the video that is drained, or why its reading failed
        self.thread = threading.Thread(target=self._read, args=(feeds,), name=f"read {video}", daemon=True)

    def _read(self, feeds: Feeds) -> None:
        facts: ReadVideo | Exception
        feeds.turns.get()
        try:
            if self.is_drained:
                return
            with open_clips(feeds.plan, self.video, feeds.workers, feeds.decoders) as reader:
                self.num_expected_clips = reader.num_expected_clips
                for clip in reader:
                    feeds.permits.get()
                    if self.is_drained:
                        feeds.permits.put(None)
                        return
                    feeds.arrivals.put((self, clip))
                    del clip  # its memory is free once the network has it
                facts = reader.summary()
        except Exception as error:  # any error fails this video only
            facts = error
        finally:
            feeds.turns.put(None)
        feeds.arrivals.put((self, facts))

    def end(self, facts: ReadVideo | Exception) -> None:
        """Take no more clips; the first error stays."""
        self.is_drained = True
        if not isinstance(self.facts, Exception):
            self.facts = facts

    @property
    def is_done(self) -> bool:
        """Whether all clips are read and have outputs."""
        return self.is_drained and not self.clips and self.num_pending == 0

    def add(self, output: ClipOutput) -> None:
        """Add the output of its next clip."""
        self.outputs.append(output)
        self.num_bytes += sum(
            values.nbytes for by_stream in (output.features, output.logits) for values in by_stream.values()
        )
