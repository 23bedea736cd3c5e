"""`--out dir/`: files of their own for every video, in a tree that mirrors the input's; several workers may share it.

recipe.json, videos.jsonl, failures.jsonl   of workers that share the work: .workers/NAME.videos.jsonl, …
a/b.npz                                     "features" (or "rgb", "flow") and the seconds of every row

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

from ..durable import AtomicFile, remove_abandoned
from ..errors import OutputError, UsageError
from .appending import AppendedFile, read_records, refuse_damaged
from .entries import (
    SPAN_COLUMNS,
    VideoEntry,
    VideoFeatures,
    checksum,
    index_line,
    span_arrays,
    span_of_line,
    spans_of,
    video_key,
)
from .format import FEATURES
from .store import FeatureStore, Recipe, open_locked, read_recipe, remove_files, write_recipe

WORKERS = ".workers"
"""Folder of the journals of workers that share a directory: apart from the features, whose names may be any."""


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
        self._worker = worker
        self._journal: AppendedFile | None = None
        self._pending: list[VideoEntry] = []
        self._recipe: dict[str, Any] | None = None
        self._has_made_recipe = False

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        """Of this worker."""
        return self._own("failures.jsonl")

    @property
    def journal_path(self) -> Path:
        """Of this worker."""
        return self._own("videos.jsonl")

    def _own(self, name: str) -> Path:
        return self.path / WORKERS / f"{self._worker}.{name}" if self._worker else self.path / name

    def recipe(self) -> dict[str, Any] | None:
        self._recipe = self._recipe or read_recipe(self.path / "recipe.json")
        return self._recipe

    def entries(self) -> list[VideoEntry]:
        """Of all workers; what two of them did stands once."""
        return [entry for entry in self._journalled() if self.is_whole(entry)]

    def _journalled(self) -> list[VideoEntry]:
        found: dict[str, VideoEntry] = {}
        for path in self.journal_paths():
            of_worker = {e.key: e for e in map(VideoEntry.from_json, read_records(path)[0])}
            for key, entry in of_worker.items():
                if key not in found or not self._holds(found[key]):
                    found[key] = entry
        return list(found.values())

    def _holds(self, entry: VideoEntry) -> bool:
        """Whether the files of a video are those that this entry tells of: another worker may have made them anew."""
        try:
            return checksum(self.read(entry).matrices) == entry.crc32
        except OutputError:
            return False

    def journal_paths(self) -> list[Path]:
        """Of all workers."""
        return paths_of_all(self.path, "videos.jsonl")

    def _failure_paths(self) -> Iterable[Path]:
        return paths_of_all(self.path, "failures.jsonl")

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

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        self._journal = open_locked(self.journal_path, self.path)
        for directory, _, _ in os.walk(self.path):
            remove_abandoned(Path(directory))
        if not anew:
            refuse_damaged(self.journal_path)
            ends = read_records(self.journal_path)[1]
            self._journal.cut(ends[-1] if ends else 0)

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        self._has_made_recipe = self.recipe() is None
        write_recipe(self.path / "recipe.json", recipe, self.path)

    def write(self, features: VideoFeatures) -> None:
        recipe = self.recipe()
        assert recipe is not None and self._journal is not None
        self._journal.check_name()  # else the files would go into a new directory, without all that was there
        self._has_made_recipe = False  # it tells whose these files are
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
        if not self._journal.size:
            remove_files([self.journal_path])
            if self._has_made_recipe and not self._worker:  # another worker may just be starting
                remove_files([self.path / "recipe.json"])
        self._journal.close()
        self._journal = None
        with suppress(OSError):
            (self.path / WORKERS).rmdir()

    def clear(self) -> None:
        """Remove what the journals name, in whatever layout, and no other file."""
        assert self._journal is not None
        recipe, entries = self.recipe(), self._journalled()
        self._journal.cut(0)
        remove_files(path for path in self.journal_paths() if path != self.journal_path)
        remove_files(self._failure_paths())
        if recipe is not None:
            was = next(tree for tree in TreeStore.__subclasses__() if tree.layout == recipe["layout"])(self.path)
            for entry in entries:
                remove_files(was.files(entry.stem, recipe))
        remove_files([self.path / "recipe.json"])
        self._recipe = None

    def own_paths(self) -> list[Path]:
        return [self.journal_path, self.path / "recipe.json"]

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


def paths_of_all(directory: Path, name: str) -> list[Path]:
    """The journals of this name of all workers of a directory, those that are there."""
    return [path for path in (directory / name, *sorted((directory / WORKERS).glob(f"*.{name}"))) if path.exists()]


class JournalTail:
    """What the workers of a directory have settled since this was made: done or failed.

    Args:
        directory: of the output.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = {path: path.stat().st_size for path in self._paths()}
        failures = paths_of_all(directory, "failures.jsonl")
        self._old = {line for path in failures for line in _whole_lines(path, 0)}
        self.keys: set[str] = set()
        """Of these videos, see `entries.video_key`; as of the last `read`, and what was added."""
        self.key_of_stem: dict[str, str] = {}
        """Whose file is which, of videos that were done since."""

    def _paths(self) -> list[Path]:
        return paths_of_all(self._directory, "videos.jsonl") + paths_of_all(self._directory, "failures.jsonl")

    def read(self) -> None:
        """Look what is new."""
        for path in self._paths():
            with suppress(FileNotFoundError):
                start = self._ends.get(path, 0)
                if path.stat().st_size < start:  # a worker that has ended has shortened its list
                    start = 0
                for line in _whole_lines(path, start):
                    start += len(line)
                    if line not in self._old:
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


def save_npz(file: Any, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as .npz."""
    np.savez(file, **dict(arrays))
