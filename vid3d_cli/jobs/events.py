"""The events of a running job, one dataclass each, passed to `on_event`.

Example:
    def show(event):
        if isinstance(event, VideoDone):
            print(event.video, event.num_clips)

    vid3d.extract("videos/", out="feats.npy", on_event=show)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..recipe import Recipe
from ..records import ClipOutput, VideoFailure


@dataclass
class Progress:
    """The progress of a job; it changes while the job runs."""

    num_videos: int
    """Videos that this run works on."""
    done: int = 0
    failed: int = 0
    clips: int = 0
    """Clips done so far, including those of the current video."""
    started: float = field(default_factory=time.monotonic, repr=False)
    """Time when the networks were loaded, by the monotonic clock; rates count from here."""

    @property
    def left(self) -> int:
        """Videos that are neither done nor failed."""
        return self.num_videos - self.done - self.failed

    @property
    def seconds(self) -> float:
        """Seconds since `started`."""
        return time.monotonic() - self.started

    def as_record(self) -> dict[str, Any]:
        """Return plain values for progress lines and summaries."""
        return {
            "done": self.done,
            "failed": self.failed,
            "left": self.left,
            "clips": self.clips,
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(self.clips / max(self.seconds, 1e-9), 3),
        }


@dataclass(frozen=True)
class Resumed:
    """The output has rows or failures of earlier runs."""

    out: str
    num_videos: int
    """Videos of the whole list."""
    num_left: int
    num_done: int
    """Videos that were done before and have not changed."""
    num_failed: int
    """Videos that failed before and have not changed; they are skipped."""
    num_changed: int
    """Videos that were done before and have changed; they are extracted again."""


@dataclass(frozen=True)
class ShardSelected:
    """A shard of the list was selected."""

    name: str
    num_videos: int
    """Videos of the shard."""
    num_listed: int
    """Videos of the whole list."""


@dataclass(frozen=True)
class Started:
    """The networks are loaded."""

    progress: Progress
    """Changes while the job runs."""
    recipe: Recipe = field(repr=False)


@dataclass(frozen=True)
class ClipsDone:
    """Some clips of a video are done."""

    video: str
    num_done: int
    num_expected: int | None
    """Clips expected from the header; None if it does not say."""
    progress: Progress = field(repr=False)
    clips: Sequence[ClipOutput] = field(default=(), repr=False)
    """The clips done since the last event, in time order, with "fused" logits; none in a dense run."""


@dataclass(frozen=True)
class VideoDone:
    """A video is done."""

    video: str
    num_clips: int
    num_frames: int
    num_lost_frames: int
    progress: Progress = field(repr=False)


@dataclass(frozen=True)
class VideoFailed:
    """A video failed; the others continue."""

    failure: VideoFailure
    exception: Exception = field(repr=False)
    progress: Progress = field(repr=False)


@dataclass(frozen=True)
class Waiting:
    """All videos left are claimed by other workers; if a worker dies, its claims expire."""


@dataclass(frozen=True)
class Warned:
    """The job works but may not do what the user intended."""

    message: str


@dataclass(frozen=True)
class JobSummary:
    """The outcome of a job."""

    has_ended: bool
    """Whether every video is done or has failed; else the job was interrupted."""
    progress: Mapping[str, Any]
    """See `Progress.as_record`."""
    failures: tuple[VideoFailure, ...] = ()
    """Videos that failed in this run."""
    lost_frames: Mapping[str, int] = field(default_factory=dict)
    """Damaged videos of this run, and how many frames each lost."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per stage, summed over all threads."""
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of vid3d and the packages it ran with; empty if no network was loaded."""
    num_clips: int = 0
    """Clips of the videos done in this run."""
    out: str | None = None
    """The output; None for a run without one."""
    files: tuple[str, ...] = ()
    """The existing files of the matrices, if the output is not a directory; `--no-concat` writes one per stream."""
    failures_path: str | None = None
    """The output's list of failed videos; None if there is none."""
    num_videos: int = 0
    """Videos of the whole list, or of the shard."""
    num_kept: int = 0
    """Videos whose rows are committed, including those of earlier runs."""
    num_skipped_failed: int = 0
    """Videos that failed in an earlier run and were not retried."""

    __hash__ = None  # type: ignore[assignment]  # `progress` is a dict, which may change

    def __repr__(self) -> str:
        counts = f"{self.done} done, {self.failed} failed, {self.progress['left']} left, {self.num_clips} clips"
        return f"JobSummary({f'{self.out}: ' if self.out else ''}{counts})"

    @property
    def done(self) -> int:
        """Videos done in this run."""
        return int(self.progress["done"])

    @property
    def failed(self) -> int:
        """Videos that failed in this run."""
        return int(self.progress["failed"])


@dataclass(frozen=True)
class Finished:
    """The job has ended, or was interrupted."""

    summary: JobSummary


Event: TypeAlias = ShardSelected | Resumed | Started | ClipsDone | VideoDone | VideoFailed | Waiting | Warned | Finished
OnEvent = Callable[[Any], None]
"""Called with every event, in the thread of the job."""
