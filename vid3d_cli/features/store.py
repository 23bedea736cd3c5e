"""The contract of all outputs of `vid3d extract`; tests/features/test_stores.py checks it for every format."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ..durable import (
    AppendedFile,
    AtomicFile,
    damaged_lines,
    output_errors,
    read_records,
    remove_files,
)
from ..errors import FeatureShapeMismatch, OutputError, OutputExists, UsageError
from ..video.fingerprint import is_same_file
from .entries import (
    FailedVideo,
    Recipe,
    VideoEntry,
    VideoFeatures,
    checksum,
    json_lines,
    parse_failures,
    record_checksum,
)
from .recipes import RESTORE, read_recipe

MAX_VERIFIED = 64
"""Videos whose rows are compared with their checksums before a job adds to an output."""


class Store(ABC):
    """Features of many videos under one path, added video by video.

        with create_store("feats.npy") as store:
            store.prepare(stems, recipe)    # locks the output; returns the recipe of the existing rows
            store.begin(recipe)         # writes the recipe, or compares it
            store.write(features)       # as often as needed, or write_failure(failed)
            store.commit()              # syncs everything; a crash loses only later rows
            store.finish()              # completes the output at the end of the job

    `recipe`, `entries`, `read` and `failures` need only the path. Each output has

        recipe.json       the recipe of the rows, written first: it marks the files as an output of vid3d
        rows              synced before the line of their video
        videos.jsonl      a line per video; rows of a video without a line do not count
        failures.jsonl    videos without rows, and why; vid3d accepts it as a list of videos

    Args:
        path: path of the output, as given with `--out`.
    """

    layout = "vid3d"
    """See `FeatureFormat`."""
    has_files_per_video = False
    """Whether each video has its own files, named by its stem."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_mended: Callable[[str], None] = lambda message: None
        """Called with a sentence about what `lock` or `begin` mended."""
        self._journal: AppendedFile | None = None
        self._failures: AppendedFile | None = None
        self._row_shapes: dict[str, tuple[int, ...]] = {}

    # Reading ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def recipe(self) -> dict[str, Any] | None:
        """Return the recipe of the rows; None if the output does not exist."""

    @abstractmethod
    def entries(self) -> list[VideoEntry]:
        """Return the videos whose rows are complete, in the order of their rows; in a directory, of their stems."""

    @abstractmethod
    def read(self, entry: VideoEntry) -> VideoFeatures:
        """Return the rows of a video; matrices may be views of the file.

        Raises:
            OutputError: they are damaged.
        """

    @property
    @abstractmethod
    def failures_path(self) -> Path:
        """The list of failures that this store writes."""

    @property
    @abstractmethod
    def recipe_path(self) -> Path:
        """The recipe, or the file that holds it."""

    @abstractmethod
    def own_paths(self) -> list[Path]:
        """Return the files that no other option may name, besides `failures_path`."""

    @abstractmethod
    def journal_paths(self) -> list[Path]:
        """Return the existing lists of videos with rows: JSON lines, see `VideoEntry`."""

    def refuse_incomplete(self) -> None:
        """Raise OutputError if files are missing or cut off, so that a job would lose rows; it names what to restore.

        Nothing is written. Files of one video in a directory do not count: a job extracts it again.
        """
        read_recipe(self.recipe_path)
        refuse_without(self.recipe_path, self.journal_paths())
        _read_failures(self.failures_path)

    def describe_unfinished(self) -> str | None:
        """Return a sentence about a running or interrupted job; None if there is no such job."""
        return None

    def failures(self) -> list[FailedVideo]:
        """Return the failed videos: those without rows, and those that failed after their file changed."""
        failed = {video.key: video for path in self._failures_paths() for video in _read_failures(path)}
        done = {entry.key: entry for entry in self.entries()} if failed else {}
        return [video for key, video in failed.items() if key not in done or _is_newer(video, done[key])]

    def _failures_paths(self) -> Iterable[Path]:
        return [self.failures_path]

    # Writing ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def conflicting_files(self, stems: Collection[str], recipe: Recipe | None = None) -> list[Path]:
        """Return the files that a new output would replace and that do not belong to this one.

        Args:
            stems: stems of the videos that will be written.
            recipe: recipe of the rows that will be written; None: the streams are side by side.

        Raises:
            OutputExists: a file belongs to another output.
        """

    @abstractmethod
    def lock(self, *, anew: bool = False) -> None:
        """Become the only writer, and drop what a killed job did not commit.

        Args:
            anew: whether to drop nothing, because `clear` follows.

        Raises:
            UsageError: another process is writing to the output.
            OutputError: the output cannot be written, or is damaged.
        """

    @abstractmethod
    def begin(self, recipe: Recipe) -> None:
        """Prepare to write rows of this recipe. A resumed output keeps its recipe.

        Raises:
            RecipeDiffers: the existing rows have another recipe.
        """

    @abstractmethod
    def write(self, features: VideoFeatures) -> None:
        """Add a video, or replace its rows; it counts after the next `commit`."""

    @abstractmethod
    def commit(self) -> None:
        """Sync everything written so far, the lines of the videos last."""

    @abstractmethod
    def clear(self) -> None:
        """Delete the output; the lock stays."""

    def prepare(
        self, stems: Collection[str], recipe: Recipe | None = None, *, overwrite: bool = False
    ) -> dict[str, Any] | None:
        """Lock the output before anything is written; with `overwrite`, delete it.

        Args:
            stems: see `conflicting_files`.
            recipe: see `conflicting_files`.
            overwrite: start over, and also replace files that belong to no output.

        Returns:
            The recipe of the existing rows, for a comparison; None if there are none.

        Raises:
            OutputExists: other files have the names of this output.
            UsageError: another process is writing to it.
        """
        self._refuse_a_file_as_directory()
        conflicts = self.conflicting_files(stems, recipe) if overwrite or not self._has_recipe() else []
        if overwrite:
            for path in self._failures_paths():
                _read_failures(path)  # `clear` deletes it, if it is ours
        elif conflicts and not self._has_recipe():  # another worker may have begun meanwhile
            self.refuse_incomplete()
            raise OutputExists(
                f"{conflicts[0]}: already exists, and vid3d extract did not write it, or it is damaged; choose "
                "another name, or add --overwrite"
            )
        with output_errors(self.path):
            self.lock(anew=overwrite)
            if overwrite:
                remove_files(conflicts)
                self.clear()
        return self.recipe()  # read again, since another job may have ended meanwhile

    def _refuse_a_file_as_directory(self) -> None:
        for directory in ([self.path] if self.has_files_per_video else []) + list(self.path.parents):
            if directory.exists() and not directory.is_dir():
                raise UsageError(f"{self.path}: cannot be written: {directory} is a file, not a directory")

    def _has_recipe(self) -> bool:
        try:
            return self.recipe() is not None
        except (OutputError, UsageError):  # this file is not an output, or damaged
            return False

    @contextmanager
    def _locked(self, journal: Path) -> Iterator[AppendedFile]:
        """Lock the journal; if the block raises, release it as it was, so that `close` cuts and removes nothing."""
        is_new = not journal.exists()
        self._journal = AppendedFile.locked(journal, self.path)
        try:
            yield self._journal
        except BaseException:
            self._release()
            if is_new:
                journal.unlink(missing_ok=True)
            raise

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _damaged(self, entries: Sequence[VideoEntry]) -> Iterator[tuple[VideoEntry, OutputError]]:
        """Compare about `MAX_VERIFIED` videos with the rows that were written; yield those that differ."""
        for entry in {e.key: e for e in [*entries[:: len(entries) // MAX_VERIFIED + 1], *entries[-1:]]}.values():
            try:
                read_verified(self, entry)
            except OutputError as error:
                yield entry, error

    def refuse_taken_stems(self, videos: Mapping[str, str]) -> None:
        """Raise UsageError if a video would replace the files of another one.

        Args:
            videos: keys of the videos that will be written, by their stems.
        """
        for entry in self.entries() if self.has_files_per_video else []:
            if videos.get(entry.stem, entry.key) != entry.key:
                raise UsageError(
                    f"{self.path / entry.stem} belongs to {entry.video}, and {videos[entry.stem]} would replace it: "
                    "name the directory that holds both videos, or choose another output"
                )

    def check(self, features: VideoFeatures) -> None:
        """Raise FeatureShapeMismatch if rows do not fit into one matrix with earlier rows."""
        for name, rows in features.matrices.items():
            shape = self._row_shapes.setdefault(name, rows.shape[1:])
            if rows.shape[1:] != shape:
                raise FeatureShapeMismatch(
                    features.entry.video,
                    f"its features have shape {rows.shape[1:]}, earlier ones {shape}, and one matrix cannot hold both: "
                    "pool them, or write to a directory",
                )

    def write_failure(self, failed: FailedVideo) -> None:
        """Record a failed video."""
        if self._failures is None:
            _read_failures(self.failures_path)
            self._failures = AppendedFile(self.failures_path)
            ends = read_records(self.failures_path)[1]
            self._failures.cut(ends[-1] if ends else 0)
        self._failures.append(json_lines([failed]))

    def finish(self) -> None:
        """Complete the output at the end of a job; videos that now have rows leave the list of failures."""
        self._close_failures()
        own = {video.key: video for video in _read_failures(self.failures_path)}
        left = [video for video in self.failures() if video == own.get(video.key)]
        if left:
            with AtomicFile(self.failures_path) as file:
                file.write(json_lines(left))
        else:
            self.failures_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files; what was not committed is dropped."""
        self._close_failures()

    def _close_failures(self) -> None:
        if self._failures is not None:
            self._failures.close()
            self._failures = None

    def _sync_failures(self) -> None:
        if self._failures is not None:
            self._failures.sync()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path})"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read_failures(path: Path) -> list[FailedVideo]:
    _refuse_damaged(path, ", or no list of failures; move it away: its videos are tried again")
    return parse_failures(read_records(path)[0], path)


def _is_newer(failed: FailedVideo, entry: VideoEntry) -> bool:
    """Whether a video failed after its rows were made: its current file is the failed one, not that of the rows."""
    return failed.file is not None and failed.file != entry.file and failed.file.is_of(failed.video)


def read_verified(store: Store, entry: VideoEntry) -> VideoFeatures:
    """Return the rows of a video, after comparing them with their checksums.

    Raises:
        OutputError: they are damaged, or cannot be read.
    """
    try:
        features = store.read(entry)
    except Exception as error:  # a damaged file can make libraries raise anything
        raise OutputError(f"{entry.video}: its rows cannot be read: {error}") from error
    num_rows = {len(features.spans), *(len(rows) for rows in features.matrices.values())}
    if num_rows != {entry.num_rows}:
        raise OutputError(f"{entry.video}: has {min(num_rows)} of its {entry.num_rows} rows")
    if checksum(features.matrices) != entry.crc32:
        raise OutputError(f"{entry.video}: its rows were changed or damaged: their checksum differs")
    record = record_checksum(entry, features.spans, store.recipe() or {})
    if entry.record_crc32 not in (None, record):
        raise OutputError(f"{entry.video}: its entry, its times or the recipe were changed: their checksum differs")
    return features


def is_done(entry: VideoEntry) -> bool:
    """Whether rows are up to date: the file of their video has not changed, or is gone."""
    is_gone = entry.file is not None and not os.path.lexists(entry.video)
    return is_gone or is_same_file(entry.file, entry.video)


def refuse_without(path: Path, files: Iterable[Path]) -> None:
    """Raise OutputError if a file is missing that others, which are not empty, cannot be used without."""
    if not path.exists() and (there := [file for file in files if file.exists() and file.stat().st_size]):
        raise OutputError(f"{path}: missing, and without it {there[0]} cannot be used; {RESTORE}")


def refuse_damaged_journal(path: Path) -> None:
    """Raise OutputError if a list of videos has a damaged line before its last one."""
    _refuse_damaged(path, f", so that later videos cannot be read; {RESTORE}")


def _refuse_damaged(path: Path, advice: str) -> None:
    num_good, damaged = damaged_lines(path)
    if damaged and (damaged[0].endswith(b"\n") or damaged[0][:1] != b"{"):  # else a job was killed as it wrote it
        raise OutputError(f"{path}: damaged after line {num_good}{advice}")
