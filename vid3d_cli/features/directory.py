"""`--out feats/`: separate files for each video, in a tree that mirrors the input's; several workers may share it.

    recipe.json, videos.jsonl, failures.jsonl   of workers that share the directory: .workers/NAME.videos.jsonl, …
    a/b.npz                                     "features" (or "rgb", "flow"), the seconds of every row, the recipe

`--layout video_features` uses the file names of v-iashin/video_features, for programs that read its output:

    a/b_rgb.npy, a/b_flow.npy   (N, 1024)
    a/b_fps.npy                 () frames per second after resampling
    a/b_timestamps_ms.npy       (N,) the END of each clip, as in that project
    a/b_index.jsonl, a/b_recipe.json
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

from ..durable import AppendedFile, AtomicFile, read_records, remove_abandoned, remove_files
from ..errors import OutputError
from .entries import (
    SPAN_COLUMNS,
    VideoEntry,
    VideoFeatures,
    checksum,
    index_line,
    json_lines,
    parse_entries,
    span_arrays,
    span_of_line,
    spans_of,
    video_key,
)
from .store import Recipe, Store, read_recipe, refuse_damaged, write_recipe
from .table import MATRICES

WORKERS = ".workers"
"""Directory of the workers' journals, separate from the features, which may have any name."""


class TreeStore(Store):
    """Base class of the layouts of a directory.

    Args:
        path: the directory.
        worker: name of this worker, if several share the directory; each has its own journal.
    """

    has_files_per_video = True

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
        """The list of failures of this worker."""
        return self._own("failures.jsonl")

    @property
    def _journal_path(self) -> Path:
        return self._own("videos.jsonl")

    def _own(self, name: str) -> Path:
        return self.path / WORKERS / f"{self._worker}.{name}" if self._worker else self.path / name

    def own_paths(self) -> list[Path]:
        return [self._journal_path, self.path / "recipe.json"]

    def journal_paths(self) -> list[Path]:
        return paths_of_all(self.path, "videos.jsonl")

    def _failures_paths(self) -> Iterable[Path]:
        return paths_of_all(self.path, "failures.jsonl")

    def recipe(self) -> dict[str, Any] | None:
        self._recipe = self._recipe or read_recipe(self.path / "recipe.json")
        return self._recipe

    def entries(self) -> list[VideoEntry]:
        """Return the entries of all workers, each video once."""
        entries = [entry for entry in self._journalled() if self.is_whole(entry)]
        return sorted(entries, key=lambda entry: PurePosixPath(entry.stem).parts)

    def _journalled(self) -> list[VideoEntry]:
        found: dict[str, VideoEntry] = {}
        for path in self.journal_paths():
            for key, entry in {e.key: e for e in parse_entries(read_records(path)[0], path)}.items():
                if key not in found or not self._holds(found[key]):
                    found[key] = entry
        return list(found.values())

    def _holds(self, entry: VideoEntry) -> bool:
        """Whether the files of a video belong to this entry; another worker may have replaced them."""
        try:
            return checksum(self.read(entry).matrices) == entry.crc32
        except OutputError:
            return False

    @abstractmethod
    def is_whole(self, entry: VideoEntry) -> bool:
        """Whether the files of a video exist and can be opened; their rows are not read."""

    @abstractmethod
    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        """Return the files of a video."""

    def beside(self, stem: str, ending: str) -> Path:
        """Return the path of a file of a video."""
        path = PurePosixPath(stem)
        return self.path / path.with_name(path.name + ending)

    # Writing ---------------------------------------------------------------------------------------------------------

    def conflicting_files(self, stems: Collection[str]) -> list[Path]:
        recipe = {"streams": ("rgb", "flow")}
        return [path for stem in stems for path in self.files(stem, recipe) if path.exists()]

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        self._journal = AppendedFile.locked(self._journal_path, self.path)
        for directory, _, _ in os.walk(self.path):
            remove_abandoned(Path(directory))
        if not anew:
            refuse_damaged(self._journal_path)
            ends = read_records(self._journal_path)[1]
            self._journal.cut(ends[-1] if ends else 0)

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        self._has_made_recipe = self.recipe() is None
        write_recipe(self.path / "recipe.json", recipe, self.path)

    def write(self, features: VideoFeatures) -> None:
        recipe = self.recipe()
        assert recipe is not None and self._journal is not None
        self._journal.check_name()  # else new files would go into a new directory, without the earlier ones
        self._has_made_recipe = False  # from now on it stays, since it marks the files as an output
        self.write_files(features, recipe)
        self._pending.append(features.entry)

    @abstractmethod
    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        """Write the files of a video, each complete or not at all."""

    def commit(self) -> None:
        self._sync_failures()
        if self._pending:
            assert self._journal is not None
            self._journal.append(json_lines(self._pending))
            self._journal.sync()
            self._pending.clear()

    def check(self, features: VideoFeatures) -> None:
        """Accept any shape: each video has its own matrix."""

    def close(self) -> None:
        super().close()
        self._pending.clear()
        if self._journal is None:
            return
        if not self._journal.size:
            remove_files([self._journal_path])
            if self._has_made_recipe and not self._worker:  # another worker may be starting
                remove_files([self.path / "recipe.json"])
        self._journal.close()
        self._journal = None
        with suppress(OSError):
            (self.path / WORKERS).rmdir()

    def clear(self) -> None:
        """Delete the files that the journals name, in any layout, and no other file."""
        assert self._journal is not None
        recipe, entries = self.recipe(), self._journalled()
        self._journal.cut(0)
        remove_files(path for path in self.journal_paths() if path != self._journal_path)
        remove_files(self._failures_paths())
        if recipe is not None:
            was = TREES[recipe["layout"]](self.path)
            remove_files(path for entry in entries for path in was.files(entry.stem, recipe))
        remove_files([self.path / "recipe.json"])
        self._recipe = None


class DirectoryStore(TreeStore):
    """One .npz per video."""

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        return [self.beside(stem, ".npz")]

    def is_whole(self, entry: VideoEntry) -> bool:
        return zipfile.is_zipfile(self.beside(entry.stem, ".npz"))

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, ".npz")
        try:
            with np.load(path, allow_pickle=False) as stored:
                spans = spans_of({name: stored[name] for name in SPAN_COLUMNS})
                return VideoFeatures(entry, {name: stored[name] for name in MATRICES if name in stored}, spans)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise OutputError(f"{path}: cannot be read: {error}") from None

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        arrays = {
            **features.matrices,
            **span_arrays(features.spans),
            "num_lost_frames": np.array(features.entry.num_lost_frames),
            "video": np.array(features.entry.video),
            "recipe": np.array(json.dumps(recipe)),
        }
        with AtomicFile(self.beside(features.entry.stem, ".npz")) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


class VideoFeaturesStore(TreeStore):
    """The files of `--layout video_features`."""

    layout = "video_features"

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        arrays = [f"_{name}.npy" for name in (*recipe["streams"], "fps", "timestamps_ms")]
        return [self.beside(stem, ending) for ending in (*arrays, "_index.jsonl", "_recipe.json")]

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
        entry, spans = features.entry, features.spans
        lines = [index_line(row, entry.video, span) for row, span in enumerate(spans)]
        for ending, text in {"_recipe.json": json.dumps(recipe), "_index.jsonl": "\n".join(lines)}.items():
            with AtomicFile(self.beside(entry.stem, ending)) as file:
                file.write(text.encode() + b"\n")
        end_ms = np.array([span.end_seconds * 1000 for span in spans])
        for name, array in {"fps": np.array(entry.fps), "timestamps_ms": end_ms, **features.matrices}.items():
            with AtomicFile(self.beside(entry.stem, f"_{name}.npy")) as file:
                np.save(file, array)


TREES: dict[str, type[TreeStore]] = {tree.layout: tree for tree in (DirectoryStore, VideoFeaturesStore)}
"""By `FeatureFormat.layout`."""


# Several workers -----------------------------------------------------------------------------------------------------


def paths_of_all(directory: Path, name: str) -> list[Path]:
    """Return the existing journals of this name of all workers of a directory."""
    return [path for path in (directory / name, *sorted((directory / WORKERS).glob(f"*.{name}"))) if path.exists()]


class JournalTail:
    """Tracks which videos the workers of a directory settle (finish or fail) from now on.

    Args:
        directory: of the output.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = {path: path.stat().st_size for path in self._paths()}
        failures = paths_of_all(directory, "failures.jsonl")
        self._old = {line for path in failures for line in _whole_lines(path, 0)}
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
