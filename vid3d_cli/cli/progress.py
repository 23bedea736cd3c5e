"""Prints the events of a job as messages and a progress bar."""

from __future__ import annotations

import gc
import logging
import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .console import MIN_DONE, MIN_SECONDS, duration, log, plural, writes_json

if TYPE_CHECKING:
    from pathlib import Path

    from ..jobs.events import JobSummary, Progress, Resumed
    from ..models.manifest import WeightsFile

PROGRESS_SECONDS = 30.0
"""Seconds between two progress lines if no bar is drawn."""


class EventPrinter:
    """Prints events: a bar of clips on a terminal, else a line every `PROGRESS_SECONDS`; a context manager.

    Before the first clip, the bar says what the job is waiting for. The bar's total is estimated from the headers of
    the videos opened so far.

    Args:
        num_videos: videos of the job.
        model: name of the model that is loaded first.
    """

    def __init__(self, num_videos: int, model: str) -> None:
        from .bars import Bar

        self.summary: JobSummary | None = None
        self._num_videos = num_videos
        self._num_clips_before = 0  # of the videos before the current one
        self._num_expected = 0
        self._next_line = time.monotonic() + PROGRESS_SECONDS
        self._model = model
        # torch makes 280,000 objects that stay: searching them again and again is a quarter of its import.
        gc.disable()
        self._bar = Bar(desc=f"loading {model} …", bar_format="{desc}", unit="clips")
        self._has_bar = not self._bar.disable

    def __call__(self, event: Any) -> None:
        """Print one event."""
        progress = getattr(event, "progress", None)
        if progress is not None and not progress.left:
            self._bar.close()
        getattr(self, f"_on_{type(event).__name__}")(event)

    def fetch(self, file: WeightsFile) -> Path:
        """Return the path of a published checkpoint; download it if it is not on disk, and say so."""
        from ..models.download import offline_variable
        from ..models.weights import is_on_disk, pull

        what = f"downloading {file.stream} weights"
        has_begun = False

        def on_bytes(num_received: int, num_total: int | None) -> None:
            nonlocal has_begun
            if not has_begun and not self._has_bar:
                log.info("%s, %s", what, file.describe_size())
            has_begun = True
            total = f" of {num_total / 1e6:.0f}" if num_total else ""
            self._say(f"{what}, {num_received / 1e6:.0f}{total} MB …")

        if not is_on_disk(file) and offline_variable() is None:
            self._say(f"{what}, {file.describe_size()} …")
        path = pull(file, progress=on_bytes)
        self._say(f"loading {self._model} …")
        return path

    def _say(self, text: str) -> None:
        self._bar.set_description_str(text)

    def paused(self) -> AbstractContextManager[Any]:
        """Take the bar off the terminal while something else is printed."""
        manager: AbstractContextManager[Any] = self._bar.external_write_mode(file=sys.stdout)
        return manager

    def __enter__(self) -> EventPrinter:
        return self

    def __exit__(self, *exception: object) -> None:
        gc.enable()
        self._bar.close()

    # One method an event ---------------------------------------------------------------------------------------------

    def _on_ShardSelected(self, event: Any) -> None:  # noqa: N802
        log.info("%s: %s of %d", event.name, plural(event.num_videos, "video"), event.num_listed)
        self._num_videos = event.num_videos

    def _on_Resumed(self, event: Resumed) -> None:  # noqa: N802
        self._num_videos = event.num_left
        if not event.num_left:
            self._bar.close()
        if event.num_changed:
            log.info("%s: %s changed since; extracting again", event.out, plural(event.num_changed, "video"))
        if event.num_done or event.num_failed:
            log.info(
                "%s: %d of %s done before%s; %d left",
                event.out,
                event.num_done,
                plural(event.num_videos, "video"),
                f", {event.num_failed} failed before (retry with --redo-failed)" if event.num_failed else "",
                event.num_left,
            )

    def _on_Started(self, event: Any) -> None:  # noqa: N802
        gc.enable()
        if "triton" not in sys.modules:  # its bindings would report leaks at exit
            gc.freeze()
        self._say("reading the first clips …")
        recipe = event.recipe
        fields = {"event": "started", "model": recipe.model, "runtime": recipe.runtime, "precision": recipe.precision}
        streams, runtime = " + ".join(recipe.streams), recipe.runtime.replace("on cpu", "on the CPU")
        runtime = runtime.replace("torch", "PyTorch").replace("openvino", "OpenVINO")
        log.info("%s: %s, %s, %s", recipe.model, streams, recipe.precision, runtime, extra={"fields": fields})
        for stream, network in recipe.streams.items():
            log.debug("%s weights: %s", stream, network.weights)

    def _on_Warned(self, event: Any) -> None:  # noqa: N802
        log.warning("%s", event.message)

    def _on_Waiting(self, event: Any) -> None:  # noqa: N802
        log.info("waiting for videos that other workers have claimed; if a worker dies, its claims expire")

    def _on_ClipsDone(self, event: Any) -> None:  # noqa: N802
        progress = event.progress
        if event.num_expected is not None:
            num_clips = self._num_clips_before + max(event.num_expected, event.num_done)
            num_ended = progress.done + progress.failed
            self._num_expected = round(num_clips * self._num_videos / (num_ended + 1))
            self._bar.total = self._num_expected or None
            self._bar.is_estimate = num_ended + 1 < self._num_videos
        self._show(progress)
        self._print_line(progress)

    def _on_VideoDone(self, event: Any) -> None:  # noqa: N802
        video = event.video
        if num_lost := event.num_lost_frames:
            fields = {"event": "damage", "video": video, "num_lost_frames": num_lost}
            log.warning("%s: %s lost to damage", video, plural(num_lost, "frame"), extra={"fields": fields})
        log.debug("%s: %s, %s", video, plural(event.num_frames, "frame"), plural(event.num_clips, "clip"))
        self._end_video(event.progress)

    def _on_VideoFailed(self, event: Any) -> None:  # noqa: N802
        failure = event.failure
        fields = {"event": "failure", "video": failure.video, "error": failure.error, "reason": failure.message}
        log.error("%s: %s", failure.video, failure.message, extra={"fields": fields})
        log.debug("traceback:", exc_info=event.exception)
        self._end_video(event.progress)

    def _on_Finished(self, event: Any) -> None:  # noqa: N802
        self._bar.close()
        self.summary = event.summary
        _print_summary(event.summary)

    def _end_video(self, progress: Progress) -> None:
        self._num_clips_before = progress.clips
        self._show(progress)
        self._print_line(progress)

    def _show(self, progress: Progress) -> None:
        """Show the clips on the bar, and their rate once it is known."""
        bar = self._bar
        if bar.disable:
            return
        bar.count_from(progress.seconds)
        bar.n, bar.bar_format = progress.clips, None
        num_ended = progress.done + progress.failed
        bar.set_description_str(f"{num_ended}/{self._num_videos} videos: " if self._num_videos > 1 else "")

    # Progress lines --------------------------------------------------------------------------------------------------

    def _print_line(self, progress: Progress) -> None:
        if self._has_bar or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + PROGRESS_SECONDS
        now = progress.as_record()
        seconds_left = self._estimate_seconds_left(progress)
        log.info(
            "%d of %d videos done, %d failed, %d left; %s, %.2f clips/s%s",
            now["done"],
            progress.num_videos,
            now["failed"],
            now["left"],
            plural(now["clips"], "clip"),
            now["clips_per_second"],
            f"; about {duration(seconds_left)} left" if seconds_left else "",
            extra={"fields": {"event": "progress", **now, "seconds_left": seconds_left}},
        )

    def _estimate_seconds_left(self, progress: Progress) -> float | None:
        """Estimate by clips if headers give their number, else by videos."""
        num_ended = progress.done + progress.failed
        if not _is_rate_known(progress):
            return None
        if progress.clips and self._num_expected >= progress.clips:
            return round(progress.seconds * (self._num_expected / progress.clips - 1), 1)
        return round(progress.seconds * (progress.num_videos / num_ended - 1), 1) if num_ended else None


def _is_rate_known(progress: Progress) -> bool:
    return progress.clips >= MIN_DONE and progress.seconds >= MIN_SECONDS


def _print_summary(summary: JobSummary) -> None:
    """Log the totals and the seconds of each stage."""
    progress = dict(summary.progress)
    if summary.has_ended:  # then other workers have done the rest
        progress |= {"left": 0, "done_by_others": progress["left"]}
    fields = {
        "event": "summary",
        "has_ended": summary.has_ended,
        **progress,
        "stage_seconds": summary.stage_seconds,
        "model": summary.model,
        "versions": summary.versions,
    }
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.stage_seconds.items())
    log.log(logging.INFO if writes_json() else logging.DEBUG, "%s", stages, extra={"fields": fields})
