"""Reads TOML into dataclasses, which are its schema."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


_MAX_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not TOML in UTF-8, or too large.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("it is larger than 1 MB")
    try:
        content: dict[str, Any] = tomllib.loads(data.decode())
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    return content


def parse(kind: Any, value: Any, where: str) -> Any:
    """Return a value of TOML as a dataclass: a table has a key for every field without a default, and no unknown key.

    Args:
        kind: the dataclass, or the type of one of its fields.
        value: as `read_toml` returns it.
        where: what to call the value in an error.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type; the text names it.
    """
    origin, args = get_origin(kind), [arg for arg in get_args(kind) if arg is not types.NoneType]
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _read_table(kind, value, where)
    elif origin in (Union, types.UnionType):
        if len(args) == 1:
            return parse(args[0], value, where)
        for arg in args:
            try:
                return parse(arg, value, where)
            except ValueError:
                continue
    elif origin is tuple:
        if isinstance(value, list) and (... in args or len(args) == len(value)):
            return tuple(parse(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, dict):
            return {key: parse(args[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is Fraction:
        try:
            return Fraction(value if isinstance(value, str) else "")
        except (ValueError, ZeroDivisionError):
            pass
    # not isinstance, because TOML's true is Python's True, which is an int
    elif type(value) is kind or (kind is float and type(value) is int):
        with suppress(OverflowError):  # an integer of 400 digits is no float
            return kind(value)
    expected = " or ".join(arg.__name__ for arg in (args if origin in (Union, types.UnionType) else [kind]))
    raise ValueError(f"{where} must be of type {expected}, got {value!r}")


def _read_table(kind: Any, table: dict[str, Any], where: str) -> Any:
    hints, within = get_type_hints(kind), f"{where}." if where else ""
    if unknown := table.keys() - hints.keys():
        raise ValueError(f"{where or 'it'} has unknown keys: {', '.join(sorted(unknown))}")
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in table:
            raise ValueError(f"{within}{field.name} is missing")
    return kind(**{key: parse(hints[key], value, f"{within}{key}") for key, value in table.items()})
