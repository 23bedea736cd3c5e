"""Where a command writes: the option --out, and text to a file or to stdout."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import typer

from ..errors import UsageError

STDOUT = Path("-")
"""The file name that stands for stdout."""


def out_option(help: str) -> Any:  # noqa: A002  (as Typer calls it)
    """Return the required option that names the output of a command."""
    return typer.Option("--out", "--output", "-o", metavar="PATH", help=help, show_default=False)


def format_of(path: Path, formats: Collection[str]) -> str:
    """Return the format that the suffix of an output names.

    Raises:
        UsageError: it names none of `formats`.
    """
    if (form := path.suffix.lower().removeprefix(".")) in formats:
        return form
    suffixes = ", ".join(f".{name}" for name in formats)
    raise UsageError(f"{path}: the suffix names no format; choose one of {suffixes}, or add --format")


@contextmanager
def open_output(path: Path | None, *, overwrite: bool = False) -> Iterator[TextIO]:
    """Yield a text stream to stdout (None or "-"), or to a file that appears whole at the end of the block.

    What was written is kept even if the block raises; a file to which nothing was written does not appear.

    Args:
        path: path of the file.
        overwrite: whether the file may exist.

    Raises:
        OutputExists: the file exists.
        OutputError: it cannot be written, here or later.
    """
    from ..durable import AtomicFile
    from ..features.store import refuse_existing

    if path is None or path == STDOUT:
        yield sys.stdout
        return
    refuse_existing([path], overwrite)
    file = AtomicFile(path)
    # File names need not be UTF-8; their bytes are written as they are.
    stream = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
    try:
        yield stream
    finally:
        try:
            stream.detach()
        except BaseException:  # its last lines did not fit on the disk
            file.discard()
            raise
        file.commit() if file.tell() else file.discard()
