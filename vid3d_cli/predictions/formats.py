"""The formats of predictions: a file suffix, and the class that writes it.

To add a format, write a `Writer` in a file of its own and add a line to `FORMATS`. The command line reads `FORMATS` for
its help, so this module imports nothing heavy; a writer is imported when it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from ..errors import UsageError
from ..video import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from ..records import ClipOutput
    from ..results import VideoResult
    from ..segments import SegmentRule

FORMATS = {
    "jsonl": "lines:JsonLines",
    "csv": "lines:Csv",
    "json": "datasets:ActivityNet",
    "vtt": "subtitles:Vtt",
    "srt": "subtitles:Srt",
    "eaf": "elan:Eaf",
    "boris": "boris:Boris",
    "fiftyone.json": "datasets:FiftyOne",
    "html": "report.page:Report",
    "mp4": "film:Film",
    "png": "picture:Png",
    "svg": "picture:Svg",
    "pdf": "picture:Pdf",
}
"""Name of a format, which is its suffix without the dot, and "module:class" in this folder."""

TABLE = "table"
"""What a terminal shows; only the command line can write it."""

_HOLD_CLIPS = frozenset({TABLE, "jsonl", "csv"})
"""Formats that hold clips, or segments if asked; all others hold segments."""

_USED_BY = {"per": _HOLD_CLIPS, "k": {*_HOLD_CLIPS, "png", "svg", "pdf"}, "embed": {"html"}}
"""Choices that only some formats use."""


@dataclass(frozen=True)
class Choices:
    """What is written of a result."""

    rule: SegmentRule
    """How scores become segments."""
    k: int = 5
    """Classes per stream, best first."""
    per: str = "clip"
    """"clip" or "video": which records `.jsonl` and `.csv` hold."""
    segments: bool = False
    """Whether they hold segments instead."""
    embed: bool = False
    """Whether a report holds the video itself."""
    allow_playlists: bool = False
    """Whether a video that is read again may be a playlist that opens other files and addresses."""
    timeout: float | None = TIMEOUT_SECONDS
    """Seconds without progress before a video that is read again fails; None for no limit."""


class Index(ABC):
    """Collects what a directory's overview shows of each of its files."""

    file_name: ClassVar[str]

    def __init__(self, choices: Choices) -> None:
        self.choices = choices

    @abstractmethod
    def add(self, result: VideoResult, name: str) -> None:
        """Take a video whose file is written; a few hundred bytes of it are kept."""

    @abstractmethod
    def write(self, stream: TextIO, names: Sequence[str]) -> None:
        """Write the overview.

        Args:
            stream: text stream, UTF-8.
            names: of all videos; those without a file failed, or were not reached.
        """


class Writer(ABC):
    """Writes results in one format.

    Args:
        stream: text stream, UTF-8, which is not closed. A binary format writes to `stream.buffer`.
        choices: what is written.
        path: where the file will appear; None for stdout.
    """

    holds_many: ClassVar[bool] = True
    """Whether a file may hold several videos."""
    index: ClassVar[type[Index] | None] = None
    """Writes the overview of a directory of such files, if the format has one."""
    is_binary: ClassVar[bool] = False
    """Whether it must not go to a terminal or a pipe."""
    overview: Path | None = None
    """The overview that will list this file."""

    def __init__(self, stream: TextIO, choices: Choices, path: Path | None = None) -> None:
        self.stream, self.choices, self.path = stream, choices, path

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:  # noqa: B027
        """Append clips before their video is done, if the format can.

        Args:
            video: path or URL as given.
            clips: the clips done since the last call, with "fused" logits.
            labels: class names, in the order of the logits.
        """

    @abstractmethod
    def write(self, result: VideoResult, name: str) -> None:
        """Append a video.

        Args:
            result: its scores.
            name: its name in the file: the path below the input directory, without suffix; unique among the videos.

        Raises:
            VideoError: its frames are needed, and cannot be read.
            OutputError: the file cannot be written.
        """

    def close(self) -> None:  # noqa: B027  (most formats have no end)
        """Write the end of the file, if the format has one."""


def format_of(path: Path) -> str | None:
    """Return the format that the suffix of a file names, or None; the longest suffix counts."""
    known = [form for form in FORMATS if path.name.lower().endswith(f".{form}") and path.name.lower() != f".{form}"]
    return max(known, key=len, default=None)


def find_writer(form: str) -> type[Writer]:
    """Return the class that writes a format."""
    module, name = FORMATS[form].split(":")
    writer: type[Writer] = getattr(import_module(f".{module}", __package__), name)
    return writer


def list_suffixes(forms: Iterable[str] = FORMATS) -> str:
    """Return ".vtt, .srt"."""
    return ", ".join(f".{form}" for form in forms)


def check_choices(choices: Choices, forms: Set[str], called: Callable[[str], str]) -> None:
    """Raise UsageError for a choice that has no effect.

    Args:
        choices: what is written.
        forms: of the outputs; `TABLE` is one.
        called: returns what the user calls a choice, such as "--topk" for "k".
    """
    for name, users in _USED_BY.items():
        if getattr(choices, name) == getattr(Choices, name):
            continue
        if users.isdisjoint(forms):
            known = list_suffixes(form for form in FORMATS if form in users)
            raise UsageError(f"{called(name)} is for {known}: leave it out")
        if choices.segments and (name == "per" or forms <= {"jsonl", "csv"}):
            raise UsageError(f"{called('segments')} replaces clips: leave out {called(name)}")
    if forms <= _HOLD_CLIPS and not choices.segments and choices.rule != type(choices.rule)():
        names = ", ".join(map(called, ("smooth", "threshold", "min_seconds")))
        raise UsageError(f"{names} and {called('multi_label')} are for segments: add {called('segments')}")
