"""Suggests the name that a user meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .errors import UsageError
from .text import printable

MAX_LISTED = 8
"""Names that are listed beside the closest one."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the closest known name, whatever its case; "" if none or several are close."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=2)
    likeness = [difflib.SequenceMatcher(None, word, name.lower()).ratio() for word in close]
    return f"did you mean '{printable(by_lower[close[0]])}'?" if len(set(likeness)) == len(close) > 0 else ""


def check_known(name: str, known: Iterable[str], problem: str) -> None:
    """Raise UsageError unless a name is known.

    Args:
        name: what the user wrote.
        known: all names.
        problem: begins the message, as in "unknown tail 'Pad'"; the closest name follows, and all names if they are few
            or none is close.
    """
    known = list(known)
    if name not in known:
        hint, names = did_you_mean(name, known), ", ".join(map(printable, known))
        if hint and len(known) <= MAX_LISTED:
            hint += f" Choose one of {names}"
        raise UsageError(f"{problem}: {hint or f'choose one of {names}'}")
