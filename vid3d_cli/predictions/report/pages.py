"""Makes HTML pages from the templates in this folder: one file each, which asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...version import __version__
from ..colours import DARK, LIGHT, ink_on
from ..views import clock

FOLDER = Path(__file__).parent


def generate(template: str, script: str, **values: Any) -> Iterator[str]:
    """Yield a page in pieces that are valid UTF-8.

    Args:
        template: a file in this folder. It escapes all values.
        script: a file in this folder: the only script that the page runs.
        **values: what the template shows.
    """
    code, style = _read(script), _read("style.css") + _colour_rules()
    page = _templates().get_template(template)
    values |= {"style": Markup(style), "script": Markup(code), "script_hash": _hash(code), "version": __version__}
    for piece in page.generate(**values):
        yield piece.encode("utf-8", "backslashreplace").decode()


def to_inert_json(value: Any) -> Markup:
    """Return JSON that no HTML parser takes for markup, as the text of a <script type="application/json">."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: also U+2028 is an escape
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["time"] = clock
    return templates


def _colour_rules() -> str:
    """Return CSS for the classes k0 to k7 in light and dark schemes."""
    light, dark = (
        "".join(f".k{n}{{--c:{colour};--on:{ink_on(colour)}}}" for n, colour in enumerate(colours))
        for colours in (LIGHT, DARK)
    )
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _hash(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
