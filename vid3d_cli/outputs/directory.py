"""`--out dir/`: files of their own for every video, in a tree that mirrors the input's; several workers may share it.

recipe.json, videos.jsonl, failures.jsonl       videos.WORKER.jsonl, … where the work is shared
a/b.npz                                         "features" (or "rgb", "flow") and the seconds of every row

`--layout video_features` has the file names of v-iashin/video_features, for programs that read its output:

<stem>_rgb.npy, <stem>_flow.npy   (N, 1024)
<stem>_fps.npy                    () frames per second read
<stem>_timestamps_ms.npy          (N,) the END of each clip, as there
<stem>_index.jsonl, <stem>_recipe.json
"""

from __future__ import annotations

import json
import os
import zipfile
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError, UsageError
from .appending import AppendedFile, read_records
from .atomic import AtomicFile, remove_abandoned
from .entries import (
    SPAN_COLUMNS,
    VideoEntry,
    VideoFeatures,
    index_line,
    span_arrays,
    span_of_line,
    spans_of,
    video_key,
)
from .format import FEATURES
from .store import FeatureStore, Recipe, open_locked, read_recipe, remove_files, write_recipe


class TreeStore(FeatureStore):
    """What the layouts of a directory share.

    Args:
        path: the directory.
        worker: name of the one of several that writes here; each has a journal of its own.
    """

    layout: str
    """See `FeatureFormat`."""

    def __init__(self, path: Path, worker: str | None = None) -> None:
        super().__init__(path)
        self._worker = f".{worker}" if worker else ""
        self._journal: AppendedFile | None = None
        self._pending: list[VideoEntry] = []
        self._recipe: dict[str, Any] | None = None

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        """Of this worker."""
        return self.path / f"failures{self._worker}.jsonl"

    @property
    def journal_path(self) -> Path:
        return self.path / f"videos{self._worker}.jsonl"

    def recipe(self) -> dict[str, Any] | None:
        self._recipe = self._recipe or read_recipe(self.path / "recipe.json")
        return self._recipe

    def entries(self) -> list[VideoEntry]:
        """Of all workers; what two of them did stands once."""
        return [entry for entry in self._journalled() if self.is_whole(entry)]

    def _journalled(self) -> list[VideoEntry]:
        lines = (line for path in self.journal_paths() for line in read_records(path)[0])
        return list({entry.key: entry for entry in map(VideoEntry.from_json, lines)}.values())

    def journal_paths(self) -> list[Path]:
        """Of all workers."""
        return sorted(self.path.glob("videos.jsonl")) + sorted(self.path.glob("videos.*.jsonl"))

    def _failure_paths(self) -> Iterable[Path]:
        return sorted(self.path.glob("failures*.jsonl"))

    @abstractmethod
    def is_whole(self, entry: VideoEntry) -> bool:
        """Whether the files of a video are there and can be read; their rows are not looked at."""

    @abstractmethod
    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        """The files of a video."""

    def beside(self, stem: str, what: str) -> Path:
        """The path of a file of a video: the stem and an ending."""
        path = PurePosixPath(stem)
        return self.path / path.with_name(path.name + what)

    # Writing ---------------------------------------------------------------------------------------------------------

    def foreign(self, stems: Collection[str]) -> list[Path]:
        recipe = {"layout": "vid3d", "streams": ("rgb", "flow")}
        return [path for stem in stems for path in self.files(stem, recipe) if path.exists()]

    def lock(self) -> None:
        if self._journal is None:
            self._journal = open_locked(self.journal_path, self.path)
            for directory, _, _ in os.walk(self.path):
                remove_abandoned(Path(directory))
            ends = read_records(self.journal_path)[1]
            self._journal.cut(ends[-1] if ends else 0)

    def begin(self, recipe: Recipe, *, dropping: Collection[str] = ()) -> None:
        """Files of videos that are out of date stay until their new ones replace them."""
        self.lock()
        write_recipe(self.path / "recipe.json", recipe, self.path)

    def write(self, features: VideoFeatures) -> None:
        recipe = self.recipe()
        assert recipe is not None
        self.write_files(features, recipe)
        self._pending.append(features.entry)

    @abstractmethod
    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        """Write the files of a video, each whole or not at all."""

    def commit(self) -> None:
        self._sync_failures()
        if self._pending:
            assert self._journal is not None
            self._journal.append(b"".join(entry.to_json().encode() + b"\n" for entry in self._pending))
            self._journal.sync()
            self._pending.clear()

    def check(self, features: VideoFeatures) -> None:
        """Every video has a matrix of its own, of any shape."""

    def close(self) -> None:
        super().close()
        self._pending.clear()
        if self._journal is None:
            return
        is_empty = not self._journal.size
        self._close_journal()
        if is_empty:
            remove_files([self.journal_path])
            if not self._worker and not self.journal_paths():  # another worker may just be starting
                remove_files([self.path / "recipe.json"])

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def clear(self) -> None:
        """Remove what the journals name, in whatever layout, and no other file."""
        recipe, entries = self.recipe(), self._journalled()
        self._close_journal()
        remove_files(self.journal_paths())
        if recipe is not None:
            was = next(tree for tree in TreeStore.__subclasses__() if tree.layout == recipe["layout"])(self.path)
            for entry in entries:
                remove_files(was.files(entry.stem, recipe))
        remove_files([self.path / "recipe.json"])
        self._recipe = None

    def refuse_taken_stems(self, videos: Mapping[str, str]) -> None:
        """Raise UsageError where a video would take the place of another one.

        Args:
            videos: keys of videos, by stem.
        """
        for entry in self.entries():
            if videos.get(entry.stem, entry.key) != entry.key:
                raise UsageError(
                    f"{self.path / entry.stem} is of {entry.video}, and {videos[entry.stem]} would take its place: "
                    "name the folder that holds both, or another --out"
                )


class DirectoryStore(TreeStore):
    """One .npz a video."""

    layout = "vid3d"

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        return [self.beside(stem, ".npz")]

    def is_whole(self, entry: VideoEntry) -> bool:
        return zipfile.is_zipfile(self.beside(entry.stem, ".npz"))

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, ".npz")
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = [name for name in (FEATURES, "rgb", "flow") if name in stored]
                spans = spans_of({name: stored[name] for name in SPAN_COLUMNS})
                return VideoFeatures(entry, {name: stored[name] for name in names}, spans)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise OutputError(f"{path}: cannot be read: {error}") from None

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        with AtomicFile(self.beside(features.entry.stem, ".npz")) as file:
            arrays = {
                **features.matrices,
                **span_arrays(features.spans),
                "num_lost_frames": np.array(features.entry.num_lost_frames),
                "video": np.array(features.entry.video),
                "recipe": np.array(json.dumps(recipe)),
            }
            save_npz(file, arrays)


class VideoFeaturesStore(TreeStore):
    """The files of `--layout video_features`; see the head of this file."""

    layout = "video_features"

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        whats = [f"_{what}.npy" for what in (*recipe["streams"], "fps", "timestamps_ms")]
        return [self.beside(stem, what) for what in (*whats, "_index.jsonl", "_recipe.json")]

    def is_whole(self, entry: VideoEntry) -> bool:
        try:
            if not all(path.exists() for path in self.files(entry.stem, self.recipe() or {})):
                return False
            return all(len(m) == entry.num_rows for m in self._matrices(entry).values())
        except (OSError, ValueError, EOFError):
            return False

    def _matrices(self, entry: VideoEntry) -> dict[str, NDArray[Any]]:
        streams = (self.recipe() or {}).get("streams", ())
        return {s: np.load(self.beside(entry.stem, f"_{s}.npy"), mmap_mode="r") for s in streams}

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, "_index.jsonl")
        try:
            spans = [span_of_line(line) for line in path.read_bytes().splitlines()]
            return VideoFeatures(entry, self._matrices(entry), spans)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise OutputError(f"{path}: cannot be read: {error}") from None

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        stem, entry = features.entry.stem, features.entry
        lines = [index_line(row, entry.video, span) for row, span in enumerate(features.spans)]
        self._write_text(stem, "_recipe.json", json.dumps(recipe))
        self._write_text(stem, "_index.jsonl", "\n".join(lines))
        end_ms = np.array([span.end_seconds * 1000 for span in features.spans])
        for what, array in {"fps": np.array(entry.fps), "timestamps_ms": end_ms, **features.matrices}.items():
            with AtomicFile(self.beside(stem, f"_{what}.npy")) as file:
                np.save(file, array)

    def _write_text(self, stem: str, what: str, text: str) -> None:
        with AtomicFile(self.beside(stem, what)) as file:
            file.write(text.encode() + b"\n")


class JournalTail:
    """What the workers of a directory have settled since this was made: done or failed.

    Args:
        directory: of the output.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = {path: path.stat().st_size for path in self._paths()}
        failures = directory.glob("failures*.jsonl")
        self._old = {line for path in failures for line in _whole_lines(path, 0)}
        self._keys: set[str] = set()

    def _paths(self) -> list[Path]:
        return sorted([*self._directory.glob("videos*.jsonl"), *self._directory.glob("failures*.jsonl")])

    def keys_since(self) -> set[str]:
        """The keys of these videos; see `entries.video_key`."""
        for path in self._paths():
            with suppress(FileNotFoundError):
                start = self._ends.get(path, 0)
                if path.stat().st_size < start:  # a worker that has ended has shortened its list
                    start = 0
                for line in _whole_lines(path, start):
                    start += len(line)
                    if line not in self._old:
                        self._keys.add(video_key(json.loads(line)["video"]))
                self._ends[path] = start
        return self._keys


def _whole_lines(path: Path, start: int) -> list[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        return [line for line in file if line.endswith(b"\n")]


def save_npz(file: Any, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as .npz."""
    np.savez(file, **dict(arrays))
