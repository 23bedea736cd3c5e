"""Segments as subtitles: a cue per fused segment, with the label and the score.

Sources: WebVTT (https://www.w3.org/TR/webvtt1/); SubRip has no specification, its readers agree on this form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from ..records import FUSED
from ..segments import Segment
from ..text import printable
from .formats import Writer

if TYPE_CHECKING:
    from ..results import VideoResult

WORD_JOINER = "\u2060"
"""Invisible; behind a character that players obey, it makes that character plain text."""


class _Subtitles(Writer):
    """Writes the cues of one video."""

    holds_many = False
    head: ClassVar[str] = ""

    def write(self, result: VideoResult, name: str) -> None:
        segments = result.segments_by(self.choices.rule, [FUSED])
        self.stream.write(self.head or ("" if segments else "\n"))  # a file without cues exists, too
        for number, segment in enumerate(segments, start=1):
            start, end = (_clock(ms) for ms in span_ms(segment))
            label = printable(segment.label).replace("\\", f"\\{WORD_JOINER}")  # mpv breaks the line at \N
            self.write_cue(number, start, end, f"{label} ({100 * segment.score:.0f} %)")

    def write_cue(self, number: int, start: str, end: str, text: str) -> None:
        raise NotImplementedError


class Vtt(_Subtitles):
    """WebVTT, for browsers and players."""

    head = "WEBVTT\n\n"

    def write_cue(self, number: int, start: str, end: str, text: str) -> None:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        self.stream.write(f"{start} --> {end}\n{text}\n\n")


class Srt(_Subtitles):
    """SubRip, for players."""

    def write_cue(self, number: int, start: str, end: str, text: str) -> None:
        # Players obey HTML (<i>, &lt;), ASS ({\an8}) and "-->", and there is no escape. They hide all in braces.
        text = re.sub(r"<|&(?=#?\w+;)|--(?=>)", rf"\g<0>{WORD_JOINER}", text.replace("{", "(").replace("}", ")"))
        self.stream.write(f"{number}\n{start.replace('.', ',')} --> {end.replace('.', ',')}\n{text}\n\n")


def span_ms(segment: Segment) -> tuple[int, int]:
    """Return the start and the end of a segment in whole milliseconds; it lasts at least one."""
    start = round(1000 * segment.start_seconds)
    return start, max(start + 1, round(1000 * segment.end_seconds))


def _clock(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"
