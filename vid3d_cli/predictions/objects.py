"""Formats that are one JSON object with an entry per video."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..records import to_json
from .formats import Writer

if TYPE_CHECKING:
    from ..results import VideoResult


class JsonObject(Writer):
    """Writes the entry of each video when it is done; `close` makes the object whole, also after Ctrl-C."""

    member: ClassVar[str]
    """The object's last member, which holds the entries by the names of the videos."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._next = ""  # what separates the next entry from the text before; empty before the first text

    @abstractmethod
    def head(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the other members; `labels` are the class names, none if no video is done."""

    @abstractmethod
    def entry(self, result: VideoResult) -> Any:
        """Return what the file holds of a video."""

    def to_json(self, value: Any) -> str:
        """Return a value as JSON on one line."""
        return to_json(value)

    def write(self, result: VideoResult, name: str) -> None:
        entry = f"{self.to_json(name)}: {self.to_json(self.entry(result))}"
        self._write_head(result.labels)
        self.stream.write(f"{self._next}{entry}")
        self.stream.flush()
        self._next = ",\n"

    def close(self) -> None:
        if self._next or self.path is None:  # a file without a video does not appear
            self._write_head(())
            self.stream.write("\n}}\n")

    def _write_head(self, labels: Sequence[str]) -> None:
        if not self._next:
            self.stream.write(self.to_json({**self.head(labels), self.member: {}}).removesuffix("}}"))
            self._next = "\n"
