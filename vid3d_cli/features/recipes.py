"""Recipes in the files of an output: read, written once, and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..durable import write_once
from ..errors import OutputError, RecipeDiffers, UsageError
from ..presets import DTYPES, Files
from ..recipe import deciding_differences, describe_value
from ..records import STREAMS
from ..toml_files import parse
from .entries import Recipe
from .format import LAYOUTS

RESTORE = "restore the file, or start over with --overwrite"


def parse_recipe(text: str | bytes) -> dict[str, Any] | None:
    """Return a recipe of vid3d extract; None for anything else."""
    with suppress(ValueError, TypeError, KeyError, UsageError, RecursionError):
        recipe = json.loads(text)
        has = {"model": str, "streams": dict, "concat": bool, "keeps_crops": bool, "features": str, "crops": str}
        is_whole = all(isinstance(recipe[name], kind) for name, kind in has.items())
        if (
            is_whole
            and {*recipe["streams"]} <= {*STREAMS}
            and isinstance(recipe["stride"], int)
            and recipe["stride"] > 0
            and isinstance(recipe.get("preset"), str | None)
            and recipe["layout"] in LAYOUTS
            and recipe["dtype"] in DTYPES
            and (recipe["layout"] != "files" or files_of(recipe).concat == recipe["concat"])
        ):
            return dict(recipe)
    return None


def files_of(recipe: Recipe) -> Files:
    """Return the files of a recipe of the layout "files", checked: names lie below the directory.

    Raises:
        UsageError, ValueError, KeyError: they are no files.
    """
    files: Files = parse(Files, recipe["files"], "files")
    return files


def read_recipe(path: Path) -> dict[str, Any] | None:
    """Return the recipe of a file; None if there is no file.

    Raises:
        OutputError: the file is not a recipe, or damaged.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from None
    recipe = parse_recipe(text)
    if recipe is None:
        raise OutputError(f"{path}: damaged, cut off, or not a recipe of vid3d extract; {RESTORE}")
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
        presets = there.get("preset"), now.get("preset")  # they say in a word why the rest differs
        lines = list_differences(({"preset": presets} if len({*presets}) > 1 else {}) | differences, "now")
        raise RecipeDiffers(f"{out}: made with another recipe:{lines}\nChoose another name, or add --overwrite")


def list_differences(differences: Mapping[str, tuple[Any, Any]], here: str) -> str:
    """Return a line for each difference between a recipe "there" and another one, which `here` names."""
    values = {name: [describe_value(name, value) for value in pair] for name, pair in differences.items()}
    return "".join(f"\n  {name}: {old} there, {new} {here}" for name, (old, new) in values.items())
