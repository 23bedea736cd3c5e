"""The option --out."""

from __future__ import annotations

from typing import Any

import typer


def out_option(help: str) -> Any:  # noqa: A002  (as Typer calls it)
    """Return the required option that names the output of a command."""
    return typer.Option("--out", "--output", "-o", metavar="PATH", help=help, show_default=False)
