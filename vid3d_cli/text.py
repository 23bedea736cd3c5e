"""Text for terminals: names of files and labels may hold characters that a terminal obeys."""

from __future__ import annotations

import re

# Control characters, what changes the direction of writing or is invisible, bytes of names that are not UTF-8, and the
# two other characters that XML 1.0 cannot hold and FFmpeg refuses.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]")


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text with control characters as visible escapes: "\x1b" for ESC, "\n" for a newline.

    Args:
        text: any text.
        keep: control characters that stay as they are.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]
