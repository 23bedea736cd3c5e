"""Recipes in the files of an output: read, written once, and compared."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..durable import write_once
from ..errors import OutputError, RecipeDiffers, UsageError
from ..recipe import deciding_differences
from ..records import STREAMS
from .entries import Recipe
from .format import DTYPES, LAYOUTS

RESTORE = "restore the file, or start over with --overwrite"


def parse_recipe(text: str | bytes) -> dict[str, Any] | None:
    """Return a recipe of vid3d extract; None for anything else."""
    with suppress(ValueError, TypeError, KeyError):
        recipe = json.loads(text)
        has = {"model": str, "streams": dict, "concat": bool, "keeps_crops": bool, "features": str, "crops": str}
        is_whole = all(isinstance(recipe[name], kind) for name, kind in has.items())
        if (
            is_whole
            and {*recipe["streams"]} <= {*STREAMS}
            and recipe["layout"] in LAYOUTS
            and recipe["dtype"] in DTYPES
        ):
            return dict(recipe)
    return None


def read_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe of a file; None if there is no file.

    Raises:
        UsageError: the file is not a recipe.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
    recipe = parse_recipe(text)
    if recipe is None:
        raise UsageError(f"{path}: not a recipe that vid3d extract wrote; {RESTORE}")
    return recipe


def write_recipe(path: Path, recipe: Recipe, out: Path) -> None:
    """Write a recipe, unless there is one; if several workers start together, one of them writes it.

    Raises:
        RecipeDiffers: the existing recipe gives other numbers.
    """
    if not path.exists():
        write_once(path, json.dumps(recipe).encode() + b"\n")
    there = read_recipe(path)
    if there is not None:
        refuse_other_recipe(out, there, recipe)


def refuse_other_recipe(out: Path, there: Recipe, now: Recipe) -> None:
    """Raise RecipeDiffers if two recipes give different numbers; the message lists the differences."""
    if differences := deciding_differences(there, now):
        lines = "".join(f"\n  {name}: {old} there, {new} now" for name, (old, new) in differences.items())
        raise RecipeDiffers(f"{out}: made with another recipe:{lines}\nChoose another name, or add --overwrite")
