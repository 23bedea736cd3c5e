"""`--out feats/`: separate files for each video, in a tree that mirrors the input's; several workers may share it.

    recipe.json, videos.jsonl, failures.jsonl   of workers that share the directory: .workers/NAME.videos.jsonl, …
    a/b.npz                                     "features" (or "rgb", "flow"), the seconds of every row, the recipe,
                                                "videos": its line of videos.jsonl, from which a lost one is restored

`--layout video_features` uses the file names of v-iashin/video_features, for programs that read its output:

    a/b_rgb.npy, a/b_flow.npy   (N, 1024)
    a/b_fps.npy                 () frames per second after resampling
    a/b_timestamps_ms.npy       (N,) the END of each clip, as in that project
    a/b_index.jsonl, a/b_recipe.json    the recipe also has the line of videos.jsonl, as "entry"
"""

from __future__ import annotations

import json
import os
import zipfile
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile, read_errors, read_records, remove_abandoned, remove_files
from ..errors import OutputError
from ..records import STREAMS, ClipSpan
from .entries import (
    SPAN_COLUMNS,
    Recipe,
    VideoEntry,
    VideoFeatures,
    checksum,
    index_line,
    json_lines,
    parse_entries,
    parse_index,
    span_arrays,
    spans_of,
)
from .journals import WORKERS, paths_of_all
from .npy import RESUMES
from .npz import open_npz
from .recipes import RESTORE, read_recipe, write_recipe
from .store import Store, read_verified, refuse_damaged_journal
from .table import MATRICES


class TreeStore(Store):
    """Base class of the layouts of a directory.

    Args:
        path: the directory.
        worker: name of this worker, if several share the directory; each has its own journal.
    """

    has_files_per_video = True
    home = ""
    """Folder of the recipe and the lists, below the directory."""
    marker: str
    """Ending of the file that holds the entry of its video, and is written last."""
    markers = ""
    """Folder of these files, below the directory."""

    def __init__(self, path: Path, worker: str | None = None) -> None:
        super().__init__(path)
        self._worker = worker
        self._pending: list[VideoEntry] = []
        self._left_out: dict[str, OutputError] = {}
        self._recipe: dict[str, Any] | None = None
        self._has_made_recipe = False
        self._made_folders: list[Path] = []

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def failures_path(self) -> Path:
        """The list of failures of this worker."""
        return self._own("failures.jsonl")

    @property
    def _journal_path(self) -> Path:
        return self._own("videos.jsonl")

    def _own(self, name: str) -> Path:
        home = self.path / self.home
        return home / WORKERS / f"{self._worker}.{name}" if self._worker else home / name

    @property
    def recipe_path(self) -> Path:
        return self.path / self.home / "recipe.json"

    def own_paths(self) -> list[Path]:
        return [self._journal_path, self.recipe_path]

    def journal_paths(self) -> list[Path]:
        return paths_of_all(self.path / self.home, "videos.jsonl")

    def _failures_paths(self) -> Iterable[Path]:
        return paths_of_all(self.path / self.home, "failures.jsonl")

    def recipe(self) -> dict[str, Any] | None:
        self._recipe = self._recipe or read_recipe(self.recipe_path)
        return self._recipe

    def entries(self) -> list[VideoEntry]:
        """Return the entries of all workers, each video once; not those that `lock` found damaged."""
        entries = [entry for entry in self._journalled() if entry.key not in self._left_out and self.is_whole(entry)]
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
        """Whether the files of a video exist and have their size; their rows are not read."""

    @abstractmethod
    def stored_lines(self, path: Path) -> tuple[Any, Any]:
        """Return the recipe, and the line of the journal, that a file with the `marker` holds; any error without."""

    def _stored(self, path: Path) -> tuple[Recipe, VideoEntry] | None:
        with suppress(Exception):  # a file of an older version, or whatever other programs wrote there
            recipe, line = self.stored_lines(path)
            return recipe, parse_entries([line], path)[0]
        return None

    @abstractmethod
    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        """Return the files of a video."""

    def beside(self, stem: str, ending: str) -> Path:
        """Return the path of a file of a video."""
        path = PurePosixPath(stem)
        return self.path / path.with_name(path.name + ending)

    def marker_path(self, stem: str) -> Path:
        """Return the path of the file of a video that is written last."""
        return self.beside(str(PurePosixPath(self.markers, stem)), self.marker)

    # Writing ---------------------------------------------------------------------------------------------------------

    def conflicting_files(self, stems: Collection[str], recipe: Recipe | None = None) -> list[Path]:
        return [path for stem in stems for path in self.files(stem, recipe or _ANY_RECIPE) if path.exists()]

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        if not anew:
            self.refuse_incomplete()
        home = self.path / self.home
        self._made_folders = [folder for folder in (home, *home.parents) if not folder.exists()]
        with self._locked(self._journal_path) as journal:
            for directory, _, _ in os.walk(self.path):
                remove_abandoned(Path(directory))
            if not anew:
                refuse_damaged_journal(self._journal_path)
                journalled = self._journalled()
                self._leave_out_damaged(journalled)
                ends = read_records(self._journal_path)[1]
                journal.cut(ends[-1] if ends else 0)
                self._list_unlisted(journalled)
                if self._left_out:
                    what = f"damaged videos, {len(self._left_out)}, do not count until they are extracted again"
                    self.on_mended(f"{self.path}: {what}: {next(iter(self._left_out.values()))}")

    def _leave_out_damaged(self, journalled: Sequence[VideoEntry]) -> None:
        """Leave out videos whose files are damaged, or newer than their line because a job was killed in between."""
        for entry, error in self._damaged(journalled):
            if not self.is_whole(entry):
                continue
            path = self.marker_path(entry.stem)
            recipe, stored = self._stored(path) or (self.recipe(), entry)
            if recipe != self.recipe():  # of the other videos too
                raise OutputError(
                    f"{self.recipe_path}: not the recipe that the rows of {path} were made with; {RESTORE}"
                )
            if stored.key != entry.key:  # no job does this, and the next one would replace it
                raise OutputError(
                    f"{path}: holds the rows of {stored.video}, not of {entry.video}; put its own file back, or delete "
                    "it"
                )
            self._left_out[entry.key] = error

    def describe_unfinished(self) -> str | None:
        unlisted = list(self._unlisted({entry.stem for entry in self._journalled()}))
        what = f"it has {len(unlisted)} more videos, which its videos.jsonl does not list"
        return f"{what}: {RESUMES}" if unlisted else None

    def _list_unlisted(self, journalled: Sequence[VideoEntry]) -> None:
        """Add the whole files that no journal lists: of a killed job, or of a journal that was removed or cut off."""
        if self.recipe() is None or self._worker:  # other workers may be about to list theirs
            return
        added = []
        for entry in self._unlisted({e.stem for e in journalled if e.key not in self._left_out}):
            with suppress(OutputError):
                read_verified(self, entry)
                added.append(entry)
                self._left_out.pop(entry.key, None)
        if added:
            assert self._journal is not None
            self._journal.append(json_lines(added))
            self._journal.sync()
            self.on_mended(f"{self.path}: has rows of {len(added)} videos that no list named, as {added[0].video}")

    def _unlisted(self, listed: Collection[str]) -> Iterator[VideoEntry]:
        """Yield the entries that files at their own places hold, without those of some stems."""
        folder = self.path / self.markers
        for path in sorted(folder.rglob(f"*{self.marker}")):
            stem = path.relative_to(folder).as_posix().removesuffix(self.marker)
            if stem not in listed and (stored := self._stored(path)) is not None and stored[1].stem == stem:
                yield stored[1]

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        self._has_made_recipe = self.recipe() is None
        write_recipe(self.recipe_path, recipe, self.path)
        if self._has_made_recipe:  # the old one and the lists may have been lost
            self._list_unlisted(self._journalled())

    def write(self, features: VideoFeatures) -> None:
        recipe = self.recipe()
        assert recipe is not None and self._journal is not None
        self._journal.check_name()  # else new files would go into a new directory, without the earlier ones
        self._has_made_recipe = False  # from now on it stays, since it marks the files as an output
        features = features.sealed(recipe)
        self.write_files(features, recipe)
        self._left_out.pop(features.entry.key, None)
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
                remove_files([self.recipe_path])
        self._release()
        for folder in [self.path / self.home / WORKERS, *([] if self._worker else self._made_folders)]:
            with suppress(OSError):  # it holds files, or is not there
                folder.rmdir()

    def clear(self) -> None:
        """Delete the files of the videos that the journals or the files themselves name, and no other file."""
        assert self._journal is not None
        stems = set()
        for journal in self.journal_paths():
            for line in read_records(journal)[0]:
                with suppress(OutputError):  # a damaged list must not keep the output from starting over
                    stems.add(parse_entries([line], journal)[0].stem)
        recipe = self.recipe() if self._has_recipe() else None
        self._journal.cut(0)
        remove_files(path for path in self.journal_paths() if path != self._journal_path)
        remove_files(self._failures_paths())
        for tree in (type(self),) if self.home else (DirectoryStore, VideoFeaturesStore):
            if recipe is None or recipe["layout"] == tree.layout:
                tree(self.path).remove(stems, recipe)
        remove_files([self.recipe_path])
        self._recipe = None

    def remove(self, stems: Collection[str], recipe: Recipe | None) -> None:
        """Delete the files of these videos, and of those that no journal lists; without a recipe, only marked ones."""
        for stem in (*stems, *[entry.stem for entry in self._unlisted(stems)]):
            if recipe is not None or self.marker_path(stem).exists():
                stored = self._stored(self.marker_path(stem))
                remove_files(self.files(stem, recipe or (stored[0] if stored else _ANY_RECIPE)))


_ANY_RECIPE = {"streams": STREAMS}


class DirectoryStore(TreeStore):
    """One .npz per video."""

    marker = ".npz"

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        return [self.beside(stem, ".npz")]

    def is_whole(self, entry: VideoEntry) -> bool:
        return zipfile.is_zipfile(self.beside(entry.stem, ".npz"))

    def stored_lines(self, path: Path) -> tuple[Any, Any]:
        with open_npz(path) as stored:
            return json.loads(str(stored["recipe"])), json.loads(stored["videos"].tobytes())

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, ".npz")
        with read_errors(path), open_npz(path) as stored:
            spans = spans_of({name: stored[name] for name in SPAN_COLUMNS})
            return VideoFeatures(entry, {name: stored[name] for name in MATRICES if name in stored}, spans)

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        arrays = {
            **features.matrices,
            **span_arrays(features.spans),
            "num_lost_frames": np.array(features.entry.num_lost_frames),
            "video": np.array(features.entry.video),
            "recipe": np.array(json.dumps(recipe)),
            "videos": np.frombuffer(json_lines([features.entry]), np.uint8),
        }
        with AtomicFile(self.beside(features.entry.stem, ".npz")) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


class VideoFeaturesStore(TreeStore):
    """The files of `--layout video_features`."""

    layout = "video_features"
    marker = "_recipe.json"

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        arrays = [f"_{name}.npy" for name in (*recipe["streams"], "fps", "timestamps_ms")]
        return [self.beside(stem, ending) for ending in (*arrays, "_index.jsonl", "_recipe.json")]

    def is_whole(self, entry: VideoEntry) -> bool:
        with suppress(Exception):  # NumPy raises various errors for damaged files
            lines = self.beside(entry.stem, "_index.jsonl").read_bytes().splitlines()
            lengths = {len(lines), *map(len, self._matrices(entry.stem).values())}
            return lengths == {entry.num_rows} and all(p.exists() for p in self.files(entry.stem, self.recipe() or {}))
        return False

    def stored_lines(self, path: Path) -> tuple[Any, Any]:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise ValueError("too long for a recipe")
        recipe = json.loads(path.read_bytes())
        return recipe, recipe.pop("entry")

    def _matrices(self, stem: str) -> dict[str, NDArray[Any]]:
        streams = (self.recipe() or {}).get("streams", ())
        return {s: np.load(self.beside(stem, f"_{s}.npy"), mmap_mode="r") for s in streams}

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, "_index.jsonl")
        with read_errors(path):
            spans = parse_index(path.read_bytes().splitlines(), entry, 0)
            stored = {name: np.load(self.beside(entry.stem, f"_{name}.npy")) for name in ("fps", "timestamps_ms")}
            if stored["fps"] != entry.fps or stored["timestamps_ms"].tolist() != _end_ms(spans).tolist():
                raise ValueError("its frame rate or times are not those of its index")
            return VideoFeatures(entry, self._matrices(entry.stem), spans)

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        entry, spans = features.entry, features.spans
        lines = [index_line(row, entry.video, span) for row, span in enumerate(spans)]
        arrays = {"fps": np.array(entry.fps), "timestamps_ms": _end_ms(spans), **features.matrices}
        for name, array in arrays.items():
            with AtomicFile(self.beside(entry.stem, f"_{name}.npy")) as file:
                np.save(file, array)
        texts = {"_index.jsonl": "\n".join(lines), "_recipe.json": json.dumps({**recipe, "entry": asdict(entry)})}
        for ending, text in texts.items():  # the entry last: it marks the files as whole
            with AtomicFile(self.beside(entry.stem, ending)) as file:
                file.write(text.encode() + b"\n")


_MAX_RECIPE_BYTES = 1 << 20


def _end_ms(spans: Sequence[ClipSpan]) -> NDArray[np.float64]:
    return np.array([span.end_seconds * 1000 for span in spans])
