"""What a person sees beside the results: messages and progress bars, all on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

log = logging.getLogger("vid3d_cli")


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


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Errors only, warnings and notices, or everything."""
    log.handlers[:] = [_Handler()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def stdout_is_terminal() -> bool:
    """Whether results go to a person: as tables, not as JSON lines."""
    return sys.stdout.isatty()


def shows_bars() -> bool:
    """Bars are drawn only for a person: on a terminal, and not with -q."""
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO)


class BatchProgress:
    """A bar in clips over many videos; its total is what headers promise, for unopened videos the mean."""

    def __init__(self, num_videos: int) -> None:
        from tqdm import tqdm

        self._num_videos, self._num_done, self._num_clips, self._now = num_videos, 0, 0, 0
        self._bar: Any = tqdm(
            total=None, unit="clip", disable=not shows_bars(), file=sys.stderr, dynamic_ncols=True, leave=False
        )

    def on_clips(self, num_done: int, num_expected: int | None) -> None:
        """Some clips of the video at hand are done."""
        if num_expected is not None:
            num_clips = self._num_clips + max(num_expected, num_done)
            self._bar.total = round(num_clips * self._num_videos / (self._num_done + 1))
        self._bar.update(num_done - self._now)
        self._now = num_done

    def paused(self) -> AbstractContextManager[Any]:
        """Take the bar off the terminal while something else is printed."""
        manager: AbstractContextManager[Any] = self._bar.external_write_mode(file=sys.stdout)
        return manager

    def next_video(self) -> None:
        """The video at hand is finished, or failed."""
        self._num_done += 1
        self._num_clips, self._now = self._num_clips + self._now, 0
        if self._num_videos > 1:
            self._bar.set_description(f"{self._num_done}/{self._num_videos} videos")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


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
