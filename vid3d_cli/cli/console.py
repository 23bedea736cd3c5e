"""Messages and progress bars, printed to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import typer

from ..text import printable

log = logging.getLogger("vid3d_cli")

MIN_SECONDS, MIN_DONE = 5.0, 3
"""Work after which a rate is known: the first results include waiting for the first frames."""

_COLOURS = {logging.ERROR: "red", logging.WARNING: "yellow"}


class _JsonHandler(logging.Handler):
    """Prints one JSON object per line: time, level, message, and the fields of the record; "event" names its kind."""

    def emit(self, record: logging.LogRecord) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line = {"time": now, "level": record.levelname.lower(), "message": self.format(record)}
        print(json.dumps({**line, **getattr(record, "fields", {})}), file=sys.stderr, flush=True)


class _Handler(logging.Handler):
    """Prints above a progress bar, not into it."""

    num_messages = 0
    """How many messages this process has printed."""

    def emit(self, record: logging.LogRecord) -> None:
        _Handler.num_messages += 1
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}:"
        if prefix and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            prefix = typer.style(prefix, _COLOURS.get(record.levelno), bold=True)
        text = " ".join(filter(None, ["vid3d:", prefix, self.format(record)]))  # with the traceback, if there is one
        bar_module = sys.modules.get("tqdm")
        if bar_module is not None:
            bar_module.tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        # A newline in a name must not look like another message; one in an error's text is ours.
        record = copy(record)  # other handlers see it as it is
        if isinstance(record.args, tuple):
            record.args = tuple(printable(str(x)) if isinstance(x, (str, Path)) else x for x in record.args)
        return printable(super().format(record), keep="\n\t")


def count_messages() -> int:
    """Return how many messages were printed, which may stand below what stdout shows."""
    return _Handler.num_messages


def set_verbosity(verbose: bool, quiet: bool, as_json: bool = False) -> None:
    """Set what is logged (errors, also notices, or everything) and how (text or JSON lines)."""
    log.handlers[:] = [_JsonHandler() if as_json else _Handler()]
    log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def stdout_is_terminal() -> bool:
    """Whether stdout is a terminal, which gets tables instead of JSON lines."""
    return sys.stdout.isatty()


def shows_bars() -> bool:
    """Whether to draw bars: on a terminal, and not with -q."""
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO) and not writes_json()


def writes_json() -> bool:
    """Whether messages are JSON lines."""
    return any(isinstance(handler, _JsonHandler) for handler in log.handlers)


def plural(number: int, noun: str) -> str:
    """Return "1 clip", "2 clips"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a duration as text: "40 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def download_bar(name: str) -> Iterator[Any]:
    """Yield the progress callback for `weights.pull`; its bar appears with the first bytes."""
    from .bars import Bar

    with ExitStack() as stack:
        bar: Any = None

        def on_bytes(num_received: int, num_total: int | None) -> None:
            nonlocal bar
            if bar is None:
                bar = Bar(desc=f"{name}: ", unit="B", unit_scale=True)
                stack.callback(bar.close)
            bar.total = num_total
            bar.update(num_received - bar.n)

        yield on_bytes
