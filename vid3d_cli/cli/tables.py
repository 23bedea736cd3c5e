"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..predictions.files import Record, streams_of
from ..text import printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command group handles it; rich would exit with 1

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, keep="\n"), style, control)


def make_console(file: TextIO | None = None) -> Console:
    """Return a console that prints names unchanged, such as "[/x]" and ":cat:", but shows their control characters."""
    return _Console(file=file, highlight=False, markup=False, emoji=False)


def make_table(*columns: str, title: str | None = None, narrow: Sequence[str] = ()) -> Table:
    """Return an empty table; the columns named in `narrow` are right-aligned and keep their width."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        is_narrow = column in narrow
        table.add_column(column, justify="right" if is_narrow else "left", no_wrap=is_narrow, overflow="fold")
    return table


class PredictionTables:
    """Prints one table per video: a row per clip, then the whole video."""

    def __init__(self, stream: TextIO) -> None:
        self._console = make_console(stream)

    def write(self, records: Iterable[Record]) -> None:
        """Print the records of one video; the last one is the whole video's."""
        *clips, whole = records
        streams = streams_of(whole)
        if len(streams) == 2:  # with one stream, the fusion equals it
            streams.pop("fused")
        table = make_table("seconds", *streams, title=whole["video"], narrow=["seconds"])
        for record in clips:
            table.add_row(_seconds(record), *[_top(record[name]) for name in streams], end_section=True)
        table.add_row(Text("whole video", style="bold"), *[_top(whole[name]) for name in streams])
        self._console.print(table)

    def close(self) -> None:
        """Do nothing: every table is already printed."""


def _seconds(record: Record) -> str:
    return f"{record['start_seconds']:.2f} – {record['end_seconds']:.2f}"


def _top(predictions: list[dict[str, Any]]) -> Text:
    """Return the classes, one per line, the best in bold."""
    lines = [f"{p['score']:6.1%} {p['label']}" for p in predictions]
    text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
    text.stylize("bold", 0, len(lines[0]))
    return text
