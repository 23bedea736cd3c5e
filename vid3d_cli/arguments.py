"""Checks arguments against type hints, so that a wrong one is a UsageError and not an error from deep inside."""

from __future__ import annotations

import functools
import inspect
import os
import re
import reprlib
from collections.abc import Callable, Iterable, KeysView, Mapping, ValuesView
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsageError
from .suggest import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

hints_of = functools.cache(get_type_hints)
"""Returns the resolved type hints of a class or function."""

_NAMES: dict[Any, str] = {
    str: "a str",
    int: "an int",
    float: "a number",
    bool: "True or False",
    NoneType: "None",
    Path: "a path",
    os.PathLike: "a path",
    Callable: "a function",
}


def checked(function: F) -> F:
    """Return a function that checks its arguments against its type hints before it runs.

    Wrong types, missing arguments and unknown names raise UsageError. NumPy's numbers become Python's.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = (name for name in kwargs if name not in signature.parameters)
            hint = did_you_mean(next(unknown, ""), signature.parameters)
            problem = f"{error}: {hint}" if hint else error
            raise UsageError(f"{function.__qualname__.removesuffix('.__init__')}: {problem}") from None
        hints = hints_of(function)
        for name in given.arguments.keys() & hints.keys():
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                given.arguments[name] = check(name, given.arguments[name], hints[name])
        return function(*given.args, **given.kwargs)

    return call  # type: ignore[return-value]


def check(name: str, value: Any, hint: Any) -> Any:
    """Return a value that fits a type hint; if it does not, as a plain value of Python, see `_plain`.

    Args:
        name: name of the argument, for the message.
        value: what the caller gave.
        hint: a type without unresolved names, see `hints_of`.

    Raises:
        UsageError: the value has another type.
    """
    for candidate in (value, _plain(value)):
        if fits(candidate, hint):
            return candidate
    raise UsageError(f"{name}={reprlib.repr(value)}: give {_describe(hint)}")


def _plain(value: Any) -> Any:
    """Return NumPy's numbers and lists, exact numbers, and keys of a dict as the numbers and lists of Python."""
    if hasattr(value, "tolist") and not isinstance(value, type) and getattr(value, "ndim", 2) < 2:
        return value.tolist()
    if isinstance(value, (Fraction, Decimal)):
        with suppress(OverflowError, ValueError):
            return float(value)
    return list(value) if isinstance(value, (KeysView, ValuesView)) else value


def check_fields(values: Any, kind: type) -> None:
    """Check the fields of a dataclass, even a frozen one, against the type hints of a class; see `check`."""
    for name, hint in hints_of(kind).items():
        value = check(name, getattr(values, name), hint)
        object.__setattr__(values, name, value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a hint. An int is also a float; a bool is no number, and a str is no list."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (str, Path, os.PathLike):  # no name holds a NUL
        return isinstance(value, str if kind is str else os.PathLike) and "\0" not in str(value)
    if not isinstance(value, kind):
        return False
    if issubclass(kind, Mapping):
        return all(fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items())
    if parts and kind.__module__ == "collections.abc" and kind is not Callable:  # items of an iterator are not drawn
        is_list = not isinstance(value, (str, bytes, Mapping))
        return is_list and all(fits(item, parts[0]) for item in (value if hasattr(value, "__len__") else ()))
    return True


def _describe(hint: Any) -> str:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(_describe(part) for part in parts))
    if kind in _NAMES:
        return _NAMES[kind]
    if kind.__name__ == "ndarray":
        return "an array"
    items = [re.sub(r"\ban? ", "", _describe(part)) for part in parts]
    if issubclass(kind, Mapping):
        return f"a dict of {items[0]} to {items[1]}"
    return f"a list of {items[0]}" if issubclass(kind, Iterable) and parts else f"a {kind.__name__}"
