"""What a person sees beside the results: messages and progress bars, all on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

log = logging.getLogger("vid3d_cli")


PROGRESS_SECONDS = 30.0
"""Between two lines that tell how far a job is, where no bar is drawn; the first one comes earlier."""

FIRST_PROGRESS_SECONDS = 5.0


class _JsonHandler(logging.Handler):
    """One JSON object a line: time, level, message, and the fields of the record, of which "event" says what it is."""

    def emit(self, record: logging.LogRecord) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line = {"time": now, "level": record.levelname.lower(), "message": self.format(record)}
        print(json.dumps({**line, **getattr(record, "fields", {})}), file=sys.stderr, flush=True)


class _Handler(logging.Handler):
    """Prints above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"vid3d: {prefix}{self.format(record)}"  # with the traceback, if there is one
        bar_module = sys.modules.get("tqdm")
        if bar_module is not None:
            bar_module.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)


def set_verbosity(verbose: bool, quiet: bool, as_json: bool = False) -> None:
    """Errors only, warnings and notices, or everything; for a person or as JSON lines."""
    log.handlers[:] = [_JsonHandler() if as_json else _Handler()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def stdout_is_terminal() -> bool:
    """Whether results go to a person: as tables, not as JSON lines."""
    return sys.stdout.isatty()


def shows_bars() -> bool:
    """Bars are drawn only for a person: on a terminal, and not with -q."""
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO) and not writes_json()


def writes_json() -> bool:
    """Whether messages go to a program."""
    return any(isinstance(handler, _JsonHandler) for handler in log.handlers)


class BatchProgress:
    """How far a job over many videos is: a bar in clips on a terminal, else a line now and then.

    The bar's total is what headers promise, and for unopened videos the mean.
    """

    def __init__(self, num_videos: int) -> None:
        from tqdm import tqdm

        self._num_videos, self._num_ended, self._num_failed = num_videos, 0, 0
        self._num_clips, self._now, self._num_expected = 0, 0, 0
        self._started = time.monotonic()
        self._next_line = self._started + FIRST_PROGRESS_SECONDS
        self._bar: Any = tqdm(
            total=None, unit="clip", disable=not shows_bars(), file=sys.stderr, dynamic_ncols=True, leave=False
        )

    def begin(self) -> None:
        """The networks are loaded: rates count from here."""
        self._started = time.monotonic()

    def on_clips(self, num_done: int, num_expected: int | None) -> None:
        """Some clips of the video at hand are done."""
        if num_expected is not None:
            num_clips = self._num_clips + max(num_expected, num_done)
            self._num_expected = round(num_clips * self._num_videos / (self._num_ended + 1))
            self._bar.total = self._num_expected
        self._bar.update(num_done - self._now)
        self._now = num_done
        self._tell()

    def paused(self) -> AbstractContextManager[Any]:
        """Take the bar off the terminal while something else is printed."""
        manager: AbstractContextManager[Any] = self._bar.external_write_mode(file=sys.stdout)
        return manager

    def next_video(self, *, has_failed: bool = False) -> None:
        """The video at hand is finished, or failed."""
        self._num_ended += 1
        self._num_failed += has_failed
        self._num_clips, self._now = self._num_clips + self._now, 0
        if self._num_videos > 1:
            self._bar.set_description(f"{self._num_ended}/{self._num_videos} videos")
        self._tell()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def summary(self) -> dict[str, Any]:
        """Where the job is, as plain values."""
        seconds = time.monotonic() - self._started
        num_clips = self._num_clips + self._now
        return {
            "done": self._num_ended - self._num_failed,
            "failed": self._num_failed,
            "left": self._num_videos - self._num_ended,
            "clips": num_clips,
            "seconds": round(seconds, 3),
            "clips_per_second": round(num_clips / max(seconds, 1e-9), 3),
        }

    def _tell(self) -> None:
        if not self._bar.disable or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + PROGRESS_SECONDS
        now = self.summary()
        seconds_left = self._seconds_left(now["seconds"])
        log.info(
            "%d of %d videos done, %d failed, %d left; %.2f clips/s%s",
            now["done"],
            self._num_videos,
            now["failed"],
            now["left"],
            now["clips_per_second"],
            "" if seconds_left is None else f"; about {duration(seconds_left)} left",
            extra={"fields": {"event": "progress", **now, "seconds_left": seconds_left}},
        )

    def _seconds_left(self, seconds: float) -> float | None:
        """By clips as long as headers promise any, else by videos."""
        num_clips = self._num_clips + self._now
        if num_clips and self._num_expected >= num_clips:
            return round(seconds * (self._num_expected / num_clips - 1), 1)
        return round(seconds * (self._num_videos / self._num_ended - 1), 1) if self._num_ended else None


def duration(seconds: float) -> str:
    """A time that a person reads: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def download_bar(name: str) -> Iterator[Any]:
    """A bar in bytes that appears with the first of them; gives the callback that `weights.pull` reports to."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: Any = None

        def on_bytes(num_received: int, num_total: int | None) -> None:
            nonlocal bar
            if bar is None:
                bar = tqdm(desc=name, unit="B", unit_scale=True, disable=not shows_bars(), file=sys.stderr, leave=False)
                stack.callback(bar.close)
            bar.total = num_total
            bar.update(num_received - bar.n)

        yield on_bytes
