"""The forms in which commands print records: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from .console import stdout_is_terminal

Record = Mapping[str, Any]

_HELP = "Output format."
ListFormat = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="table|json|jsonl", help=_HELP, show_default="table on a terminal, jsonl in a pipe"
    ),
]
ObjectFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="table|json", help=_HELP, show_default="table on a terminal, json in a pipe"),
]


def is_table(form: str | None) -> bool:
    """Whether to print a table: the user asked for one, or for nothing, on a terminal."""
    return form == "table" or (form is None and stdout_is_terminal())


def print_records(records: Iterable[Record], form: str | None, print_table: Callable[[list[Record]], None]) -> None:
    """Print records as a table, a JSON array, or JSON lines, each as soon as it is there."""
    from ..records import to_json

    if is_table(form):
        print_table(list(records))
    elif form == "json":
        typer.echo(to_json(list(records)))
    else:
        for record in records:
            typer.echo(to_json(record))


def print_record(record: Record, form: str | None, print_table: Callable[[Record], None]) -> None:
    """Print one record as a table or a JSON object."""
    from ..records import to_json

    print_table(record) if is_table(form) else typer.echo(to_json(record))


def print_columns(rows: list[dict[str, str]]) -> None:
    """Print a line per row, in columns; cells stay whole, however narrow the terminal, so that they can be copied."""
    rows = [{name: name for name in rows[0]}, *rows]
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    for row in rows:
        typer.echo("  ".join(cell.ljust(widths[name]) for name, cell in row.items()).rstrip())


def or_dash(value: float | None, spec: str = "") -> str:
    """Return a formatted number, or a dash for None."""
    return "–" if value is None else format(value, spec)
