"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..predictions.formats import Choices, Writer
from ..predictions.records import Record, clip_records, prediction_records, streams_of
from ..records import ClipOutput
from ..text import printable

if TYPE_CHECKING:
    from ..results import VideoResult

_SECONDS_WIDTH = len("1000.00 – 1000.00")
_LABEL_WIDTH = 40


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command group handles it; rich would exit with 1

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            shown = text if control else printable(text, keep="\n")
            yield Segment(shown.encode(self.encoding, "replace").decode(self.encoding), style, control)


class _Table(Table):
    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def make_console(file: TextIO | None = None) -> Console:
    """Return a console that prints names unchanged, such as "[/x]" and ":cat:", but shows their control characters."""
    return _Console(file=file, highlight=False, markup=False, emoji=False)


def make_table(*columns: str, title: str | None = None, narrow: Sequence[str] = ()) -> Table:
    """Return an empty table, which escapes names; columns in `narrow` are right-aligned and keep their width."""
    table = _Table(
        title=title and printable(title),
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


class PredictionTables(Writer):
    """Prints one table per video: a row per clip as it is done, then the whole video."""

    def __init__(self, stream: TextIO, choices: Choices) -> None:
        super().__init__(stream, choices)
        self._console = make_console(stream)
        self._video: str | None = None  # whose table has begun
        self._num_written = 0

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        """Print clips before their video is done."""
        if self.choices.per == "clip":
            self._print(clip_records(video, clips, labels, self.choices.k))
            self._num_written += len(clips)

    def write(self, result: VideoResult, name: str) -> None:
        """Print the rest of a video."""
        self._print(prediction_records(result, k=self.choices.k, per=self.choices.per, skip=self._num_written))
        self._num_written = 0

    def _print(self, records: Iterable[Record]) -> None:
        for record in records:
            streams = streams_of(record)
            if len(streams) == 2:  # with one stream, the fusion equals it
                streams.pop("fused")
            is_first = record["video"] != self._video
            table = make_table("seconds", *streams, title=record["video"] if is_first else None, narrow=["seconds"])
            # Each row is a table of its own: it must not wait for the widths of later rows.
            table.show_header = is_first
            widths = [_SECONDS_WIDTH, *[min(_LABEL_WIDTH, self._console.width // len(streams) - 8)] * len(streams)]
            for column, width in zip(table.columns, widths, strict=True):
                column.width = width
            table.add_row(_span(record), *[_top(predictions) for predictions in streams.values()])
            if not is_first:
                self._console.print()
            self._console.print(table)
            self._video = None if record["clip"] is None else record["video"]
        self._console.file.flush()


def _span(record: Record) -> Text:
    if record["clip"] is None:
        return Text("whole video", style="bold")
    return Text(f"{record['start_seconds']:.2f} – {record['end_seconds']:.2f}")


def _top(predictions: list[dict[str, Any]]) -> Text:
    """Return the classes, one per line, the best in bold."""
    lines = [f"{p['score']:6.1%} {printable(p['label'])}" for p in predictions]
    text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
    text.stylize("bold", 0, len(lines[0]))
    return text
