"""The journals of the workers that share a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .entries import video_key

WORKERS = ".workers"
"""Directory of the workers' journals, separate from the features, which may have any name."""


def paths_of_all(directory: Path, name: str) -> list[Path]:
    """Return the existing journals of this name of all workers of a directory."""
    return [path for path in (directory / name, *sorted((directory / WORKERS).glob(f"*.{name}"))) if path.exists()]


class JournalTail:
    """Tracks which videos the workers of a directory settle (finish or fail) from now on.

    Args:
        directory: that of the journals.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = {path: path.stat().st_size for path in self._paths()}
        failures = paths_of_all(directory, "failures.jsonl")
        self._old = {(path, line) for path in failures for line in _whole_lines(path, 0)}
        self.keys: set[str] = set()
        """Keys of the settled videos, see `entries.video_key`, as of the last `read`; the caller may add some."""
        self.key_of_stem: dict[str, str] = {}
        """The finished videos among them, by the stem of their files."""

    def _paths(self) -> list[Path]:
        return paths_of_all(self._directory, "videos.jsonl") + paths_of_all(self._directory, "failures.jsonl")

    def read(self) -> None:
        """Read the new lines of all journals."""
        for path in self._paths():
            with suppress(FileNotFoundError):
                start = self._ends.get(path, 0)
                if path.stat().st_size < start:  # a worker that ended has shortened its list
                    start = 0
                for line in _whole_lines(path, start):
                    start += len(line)
                    if (path, line) not in self._old:
                        self._add(json.loads(line))
                self._ends[path] = start

    def _add(self, line: Mapping[str, Any]) -> None:
        self.keys.add(video_key(line["video"]))
        if "stem" in line:
            self.key_of_stem[line["stem"]] = video_key(line["video"])


def _whole_lines(path: Path, start: int) -> list[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        return [line for line in file if line.endswith(b"\n")]
