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

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AppendedFile, AtomicFile, read_errors, read_records, remove_abandoned, remove_files
from ..errors import OutputError
from ..records import ClipSpan, to_json
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
    readable,
    span_arrays,
    spans_of,
    video_key,
)
from .journals import WORKERS, paths_of_all
from .npy import RESUMES
from .npz import open_npz
from .recipes import RESTORE, read_recipe, write_recipe
from .store import Store, read_verified, refuse_damaged
from .table import MATRICES


class TreeStore(Store):
    """Base class of the layouts of a directory.

    Args:
        path: the directory.
        worker: name of this worker, if several share the directory; each has its own journal.
    """

    has_files_per_video = True
    endings: tuple[str, ...]
    """Of the file that holds the entry of its video, and of the one with the longest name."""

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

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.json"

    def own_paths(self) -> list[Path]:
        return [self._journal_path, self.recipe_path]

    def journal_paths(self) -> list[Path]:
        return paths_of_all(self.path, "videos.jsonl")

    def _failures_paths(self) -> Iterable[Path]:
        return paths_of_all(self.path, "failures.jsonl")

    def recipe(self) -> dict[str, Any] | None:
        self._recipe = self._recipe or read_recipe(self.recipe_path)
        return self._recipe

    def entries(self) -> list[VideoEntry]:
        """Return the entries of all workers, each video once.

        Raises:
            OutputError: files have changed places.
        """
        entries = [entry for entry in self._journalled() if self._has_files(entry)]
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

    def _has_files(self, entry: VideoEntry) -> bool:
        """Whether the files of a video exist and can be opened; their rows are not read."""
        try:
            video = self.video_of(entry.stem)
        except Exception:  # damaged files count as missing ones: the video is extracted again
            return False
        if video_key(readable(video)) != video_key(readable(entry.video)):
            path = self.beside(entry.stem, self.endings[0])
            raise OutputError(
                f"{path}: holds the rows of {video}, not of {entry.video}; put its own file back, or delete it"
            )
        return True

    @abstractmethod
    def video_of(self, stem: str) -> str:
        """Return the video, perhaps `readable`, whose rows the files of a stem hold; any error if some are missing."""

    @abstractmethod
    def stored_entry(self, path: Path) -> bytes | None:
        """Return the journal line that a file with the first of `endings` holds; None in those of older versions."""

    def _compare(self, entry: VideoEntry, stored: Mapping[str, Any] | None, recipe: Recipe) -> None:
        """Raise ValueError unless entry and recipe in the files of a video are those of the directory."""
        if recipe != self.recipe() or (stored and parse_entries([stored], self.path) != [entry]):
            raise ValueError("its recipe or its entry is not that of the directory")

    @abstractmethod
    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        """Return the files of a video."""

    def beside(self, stem: str, ending: str) -> Path:
        """Return the path of a file of a video; a name that is too long is cut, and ends in a digest."""
        *folders, name = PurePosixPath(stem).parts
        longest = max(len(ending) for ending in self.endings)
        return self.path.joinpath(*(_shorten(folder, 0) for folder in folders), _shorten(name, longest) + ending)

    # Writing ---------------------------------------------------------------------------------------------------------

    def conflicting_files(self, stems: Collection[str]) -> list[Path]:
        recipe = {"streams": ("rgb", "flow")}
        return [path for stem in stems for path in self.files(stem, recipe) if path.exists()]

    def lock(self, *, anew: bool = False) -> None:
        if self._journal is not None:
            return
        if not anew:
            self.refuse_incomplete()
        is_new = not self._journal_path.exists()
        self._journal = AppendedFile.locked(self._journal_path, self.path)
        try:
            for directory, _, _ in os.walk(self.path):
                remove_abandoned(Path(directory))
            if not anew:
                refuse_damaged(self._journal_path)
                self.refuse_damaged(self.entries())
                ends = read_records(self._journal_path)[1]
                self._journal.cut(ends[-1] if ends else 0)
                self._list_unlisted()
        except BaseException:  # nothing may be cut or removed by `close`
            self._journal.close()
            self._journal = None
            if is_new:
                self._journal_path.unlink(missing_ok=True)
            raise

    def refuse_incomplete(self) -> None:
        super().refuse_incomplete()
        if not self.recipe_path.exists():
            for path in self.path.rglob(f"*{self.endings[0]}"):
                with suppress(Exception):  # whatever other programs wrote there
                    if self.stored_entry(path):
                        break
            else:
                return
            raise OutputError(
                f"{self.recipe_path}: missing, and without it the rows of {path} cannot be used; {RESTORE}"
            )

    def describe_unfinished(self) -> str | None:
        listed = {entry.stem for entry in self._journalled()}
        unlisted = [path for path in self.path.rglob(f"*{self.endings[0]}") if self._unlisted(path, listed)]
        what = f"it has {len(unlisted)} more videos, which its videos.jsonl does not list"
        return f"{what}: {RESUMES}" if unlisted else None

    def _list_unlisted(self) -> None:
        """Add the whole files that no journal lists: of a killed job, or of a journal that was removed or cut off."""
        assert self._journal is not None
        if self.recipe() is None or self._worker:  # other workers may be about to list theirs
            return
        listed = {entry.stem for entry in self._journalled()}
        lines = [
            line for path in sorted(self.path.rglob(f"*{self.endings[0]}")) if (line := self._unlisted(path, listed))
        ]
        self._journal.append(b"".join(lines))
        self._journal.sync()

    def _unlisted(self, path: Path, listed: Collection[str]) -> bytes | None:
        """Return the journal line of a file, if it is a whole one of this output and not listed."""
        if str(path.relative_to(self.path)).removesuffix(self.endings[0]) in listed:
            return None
        with suppress(Exception):  # whatever other programs wrote there
            line = self.stored_entry(path)
            (entry,) = parse_entries([json.loads(line or b"")], path)
            if entry.stem not in listed and self.beside(entry.stem, self.endings[0]) == path:
                read_verified(self, entry)
                return line
        return None

    def begin(self, recipe: Recipe) -> None:
        self.lock()
        self._has_made_recipe = self.recipe() is None
        write_recipe(self.recipe_path, recipe, self.path)

    def write(self, features: VideoFeatures) -> None:
        recipe = self.recipe()
        assert recipe is not None and self._journal is not None
        self._journal.check_name()  # else new files would go into a new directory, without the earlier ones
        self._has_made_recipe = False  # from now on it stays, since it marks the files as an output
        features = features.sealed(recipe)
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
                remove_files([self.recipe_path])
        self._journal.close()
        self._journal = None
        with suppress(OSError):
            (self.path / WORKERS).rmdir()

    def clear(self) -> None:
        """Delete the files that the journals name, in any layout, and no other file."""
        assert self._journal is not None
        recipe, entries = self.recipe() if self._has_recipe() else None, self._journalled()
        self._journal.cut(0)
        remove_files(path for path in self.journal_paths() if path != self._journal_path)
        remove_files(self._failures_paths())
        if recipe is not None:
            was = TREES[recipe["layout"]](self.path)
            remove_files(path for entry in entries for path in was.files(entry.stem, recipe))
        remove_files([self.recipe_path])
        self._recipe = None


_MAX_NAME_BYTES = 255
"""Of a file or directory, in almost all file systems."""


def _shorten(name: str, ending_bytes: int) -> str:
    data = os.fsencode(name)
    if len(data) + ending_bytes <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return data[: _MAX_NAME_BYTES - ending_bytes - 17].decode("utf-8", "ignore") + f"-{digest}"


class DirectoryStore(TreeStore):
    """One .npz per video."""

    endings = (".npz",)

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        return [self.beside(stem, ".npz")]

    def video_of(self, stem: str) -> str:
        with open_npz(self.beside(stem, ".npz")) as stored:
            return str(stored["video"])

    def stored_entry(self, path: Path) -> bytes | None:
        with open_npz(path) as stored:
            return stored["videos"].tobytes() if "videos" in stored else None

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path = self.beside(entry.stem, ".npz")
        with read_errors(path), open_npz(path) as stored:
            spans = spans_of({name: stored[name] for name in SPAN_COLUMNS})
            line = json.loads(stored["videos"].tobytes()) if "videos" in stored else None
            self._compare(entry, line, json.loads(str(stored["recipe"])))
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
    endings = ("_recipe.json", "_timestamps_ms.npy")

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        arrays = [f"_{name}.npy" for name in (*recipe["streams"], "fps", "timestamps_ms")]
        return [self.beside(stem, ending) for ending in (*arrays, "_index.jsonl", "_recipe.json")]

    def video_of(self, stem: str) -> str:
        files = self.files(stem, self.recipe() or {})
        lines = self.beside(stem, "_index.jsonl").read_bytes().splitlines()
        lengths = {len(m) for m in self._matrices(stem).values()}
        if lengths != {len(lines)} or not all(path.exists() for path in files):
            raise ValueError("its files are missing or cut off")
        return str(json.loads(lines[0])["video"])

    def stored_entry(self, path: Path) -> bytes | None:
        entry = json.loads(path.read_bytes()).get("entry")
        return f"{to_json(entry)}\n".encode() if entry else None

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
            recipe = json.loads(self.beside(entry.stem, "_recipe.json").read_bytes())
            self._compare(entry, recipe.pop("entry", None), recipe)
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


def _end_ms(spans: Sequence[ClipSpan]) -> NDArray[np.float64]:
    return np.array([span.end_seconds * 1000 for span in spans])


TREES: dict[str, type[TreeStore]] = {tree.layout: tree for tree in (DirectoryStore, VideoFeaturesStore)}
"""By `FeatureFormat.layout`."""
