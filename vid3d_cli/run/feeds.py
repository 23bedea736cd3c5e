"""Threads that read clips of several videos ahead while the networks run."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from ..plan import Plan
from ..records import Clip, ClipOutput
from ..video.process import Decoders
from ..workers import Workers
from .reader import ClipReader, DecodedClips, open_clips

MIN_ROOM = 2
"""Minimum number of clips read ahead per video; a dense run, whose clips are long, reads one."""

STOP_SECONDS = 5.0
"""Time for all readers to stop; those that hang (ready-made flow on a dead drive) are left behind."""


class Feeds:
    """The open videos, in list order; at most `jobs` of them are still being read.

    Args:
        plan: what to read of each.
        videos: paths or URLs, drawn when they are due to be read.
        jobs: how many are read at the same time.
        workers: threads that resize frames and compute flow.
        decoders: processes that decode.
    """

    def __init__(self, plan: Plan, videos: Iterable[str], jobs: int, workers: Workers, decoders: Decoders) -> None:
        self.workers = workers
        self._decoders = decoders
        self._plan = plan
        self._waiting = iter(videos)
        self._jobs = jobs
        self._room = 1 if plan.dense else MIN_ROOM
        self._open: list[Feed] = []

    def set_batch_size(self, num_clips: int) -> None:
        """Read this many clips of every video ahead while the networks run."""
        for feed in self._open:
            feed.widen(num_clips - self._room)
        self._room = max(self._room, num_clips)

    def first(self) -> Feed | None:
        """Return the video whose result is due; None after the last."""
        self._open_more()
        return self._open[0] if self._open else None

    def drop_first(self) -> None:
        """Drop the first video, and open the next one."""
        del self._open[0]
        self._open_more()

    def take(self, num_clips: int) -> list[tuple[Feed, Clip]]:
        """Return the next clips, at most this many and all of one shape, each with its video."""
        batch: list[tuple[Feed, Clip]] = []
        for feed in self._in_turn():
            while len(batch) < num_clips and (clip := feed.peek()) and (not batch or are_alike(batch[0][1], clip)):
                batch.append((feed, feed.take()))
            if not feed.is_drained:
                break
        return batch

    def has_clip_ready(self) -> bool:
        """Whether the next clip is ready, so that `take` need not wait for its first."""
        for feed in self._in_turn():
            if not feed.is_ready:
                return False
            if feed.peek() is not None:
                return True
        return False

    def _in_turn(self) -> Iterator[Feed]:
        """Yield the open videos, then open more if all earlier ones are drained."""
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
            feed = Feed(video, self._plan, self.workers, self._decoders, self._room)
            self._open.append(feed)  # before its thread starts, so that an interrupt here leaves none behind
            feed.start()

    def __enter__(self) -> Feeds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for feed in self._open:
            feed.ask_to_stop()
        self._decoders.close()
        self.workers.close()  # a reader that waits for them ends now, not at its next clip
        deadline = time.monotonic() + STOP_SECONDS
        for feed in self._open:
            feed.join(deadline)


def are_alike(first: Clip, second: Clip) -> bool:
    """Whether two clips fit into one batch."""
    return _form(first) == _form(second)


def _form(clip: Clip) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {stream: (frames.shape, frames.dtype) for stream, frames in clip.streams.items()}


class Feed:
    """One video being read by a thread into a short queue of clips."""

    reader: ClipReader | DecodedClips

    def __init__(self, video: str, plan: Plan, workers: Workers, decoders: Decoders, room: int) -> None:
        self.video = video
        self.num_expected_clips: int | None = None
        self.outputs: list[ClipOutput] = []
        self.error: Exception | None = None  # why reading ended early
        self.is_drained = False
        self.num_pending = 0  # clips whose outputs are still to come
        self._next: Clip | None = None
        self._plan = plan
        self._workers = workers
        self._decoders = decoders
        self._clips: queue.SimpleQueue[Clip | Exception | None] = queue.SimpleQueue()
        # Permits to put a clip there. A semaphore could stay locked after an interrupt.
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.widen(room)
        self._is_stopped = False
        self._thread = threading.Thread(target=self._read, name=f"read {video}", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def _read(self) -> None:
        if self._is_stopped:
            return
        try:
            with open_clips(self._plan, self.video, self._workers, self._decoders) as self.reader:
                self.num_expected_clips = self.reader.num_expected_clips
                for clip in self.reader:
                    self._room.get()
                    if self._is_stopped:
                        return
                    self._clips.put(clip)
        except Exception as error:  # any error fails this video only
            self._clips.put(error)
        else:
            self._clips.put(None)

    def widen(self, num_clips: int) -> None:
        """Allow this many more clips to be read ahead."""
        for _ in range(num_clips):
            self._room.put(None)

    @property
    def is_ready(self) -> bool:
        """Whether `peek` returns at once."""
        return self._next is not None or self.is_drained or not self._clips.empty()

    @property
    def is_done(self) -> bool:
        """Whether all clips are read and have outputs."""
        return self.is_drained and self.num_pending == 0

    def peek(self) -> Clip | None:
        """Wait for the next clip and return it, without taking it; None after the last, and when reading failed."""
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
        """Take the clip that `peek` returned."""
        clip, self._next = self._next, None
        assert clip is not None
        return clip

    def give_up(self, error: Exception) -> None:
        """Stop reading: the network cannot take this video."""
        self.ask_to_stop()
        self._next, self.is_drained, self.error = None, True, error

    def ask_to_stop(self) -> None:
        """Ask the thread to close the video and end."""
        self._is_stopped = True
        self.widen(1)  # it may be waiting for a permit

    def join(self, deadline: float) -> None:
        """Wait until the thread has ended, or until a deadline of the monotonic clock."""
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
