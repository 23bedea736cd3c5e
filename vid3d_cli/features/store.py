"""What all outputs of `vid3d extract` can do, whatever their format: the contract that tests/test_outputs.py holds.

recipe.json        what the rows were made by; written first, it says whose files these are
rows               data, on disk before ...
videos.jsonl       ... the line of their video: what has no line there does not count
failures.jsonl     videos without rows, and why: a list that vid3d takes as its input
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..durable import AtomicFile, cannot_write
from ..errors import OddFeatures, OutputError, OutputExists, RecipeDiffers, UsageError
from ..video.fingerprint import is_same_file
from .appending import AppendedFile, read_records
from .entries import FailedVideo, VideoEntry, VideoFeatures

Recipe = Mapping[str, Any]
"""`FeatureFormat.describe`."""


class FeatureStore(ABC):
    """Features of many videos under one name, added to video by video.

    Reading needs nothing but the path. To write: `lock`, `begin`, `write` and `commit` as often as there is something,
    `finish` when the job is done, and `close` in any case.

    Args:
        path: as given with `--out`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failures: AppendedFile | None = None
        self._row_shapes: dict[str, tuple[int, ...]] = {}

    # Reading ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def recipe(self) -> dict[str, Any] | None:
        """What the rows were made by; None where nothing is there yet."""

    @abstractmethod
    def entries(self) -> list[VideoEntry]:
        """The videos whose rows are there, whole, in the order of their rows."""

    @abstractmethod
    def read(self, entry: VideoEntry) -> VideoFeatures:
        """All that is stored of a video; matrices may be views of the file.

        Raises:
            OutputError: it is not as it was written.
        """

    @property
    @abstractmethod
    def failures_path(self) -> Path:
        """Where failures are listed."""

    def failures(self) -> list[FailedVideo]:
        """The videos that failed last: they have no rows, or those of the file that they were before."""
        failed = {video.key: video for path in self._failure_paths() for video in _read_failures(path)}
        done = {entry.key: entry for entry in self.entries()} if failed else {}
        return [video for key, video in failed.items() if key not in done or _is_newer(video, done[key])]

    def _failure_paths(self) -> Iterable[Path]:
        return [self.failures_path]

    # Writing ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def foreign(self, stems: Collection[str]) -> list[Path]:
        """What is in the way of an output that is not there yet: files that are no part of one.

        Args:
            stems: of the videos that are to be written.
        """

    @abstractmethod
    def lock(self, *, anew: bool = False) -> None:
        """Be its only writer, and cut off what a job that was killed has left half done.

        Args:
            anew: leave all as it is: it will be removed by `clear`.

        Raises:
            UsageError: another process is writing to it.
            OutputError: it cannot be written, or is damaged.
        """

    @abstractmethod
    def begin(self, recipe: Recipe) -> None:
        """Be ready to write rows of a recipe."""

    @abstractmethod
    def write(self, features: VideoFeatures) -> None:
        """Add a video, or replace its rows; it counts from the next `commit` on."""

    @abstractmethod
    def commit(self) -> None:
        """Have the disk hold what was written, the lines of the videos last."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all that is there, for `--overwrite`."""

    def take_place(self, stems: Collection[str], *, overwrite: bool) -> dict[str, Any] | None:
        """Find out what is there before anything is written, and remove it if it may be.

        Args:
            stems: see `foreign`.
            overwrite: start anew.

        Returns:
            The recipe of what stays there; None where nothing does.

        Raises:
            OutputExists: files that are no output of ours are in the way.
            UsageError: another process is writing to it.
        """
        in_the_way = [] if self._has_recipe() else self.foreign(stems)
        if in_the_way and not self._has_recipe():  # another worker may just have begun
            if not overwrite:
                why = "already there, and not of vid3d extract; choose another name, or add --overwrite"
                raise OutputExists(f"{in_the_way[0]}: {why}")
            remove_files(in_the_way)
        self.lock(anew=overwrite)
        if overwrite:
            self.clear()
        return self.recipe()  # another job may have ended since

    def _has_recipe(self) -> bool:
        try:
            return self.recipe() is not None
        except OutputError:  # a file of this name that is something else
            return False

    @abstractmethod
    def own_paths(self) -> list[Path]:
        """The files that no other output may be given as, beside `failures_path`."""

    def check(self, features: VideoFeatures) -> None:
        """Raise OddFeatures for rows that do not go into one matrix with those before."""
        for name, rows in features.matrices.items():
            shape = self._row_shapes.setdefault(name, rows.shape[1:])
            if rows.shape[1:] != shape:
                raise OddFeatures(
                    features.entry.video,
                    f"its features of shape {rows.shape[1:]} do not go into one matrix with those before, of "
                    f"{shape}: pool them, or write to a directory",
                )

    def write_failure(self, failed: FailedVideo) -> None:
        """List a video that has no rows."""
        if self._failures is None:
            self._failures = AppendedFile(self.failures_path)
            ends = read_records(self.failures_path)[1]
            self._failures.cut(ends[-1] if ends else 0)
        self._failures.append(failed.to_json().encode() + b"\n")

    def finish(self) -> None:
        """The job has ended: leave only what a reader wants to find. What is done since is no failure any more."""
        self._close_failures()
        own = {video.key: video for video in _read_failures(self.failures_path)}
        left = [video for video in self.failures() if video == own.get(video.key)]
        if left:
            with AtomicFile(self.failures_path) as file:
                file.writelines(video.to_json().encode() + b"\n" for video in left)
        else:
            self.failures_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give back what is open; what was written and not committed is dropped."""
        self._close_failures()

    def _close_failures(self) -> None:
        if self._failures is not None:
            self._failures.close()
            self._failures = None

    def _sync_failures(self) -> None:
        if self._failures is not None:
            self._failures.sync()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_newer(failed: FailedVideo, entry: VideoEntry) -> bool:
    """Whether a video failed after its rows were made: it is the file that failed, and not that of the rows."""
    return failed.file is not None and failed.file != entry.file and failed.file.is_of(failed.video)


def _read_failures(path: Path) -> list[FailedVideo]:
    lines = (line for line in read_records(path)[0] if {"video", "error", "message"} <= line.keys())
    return [FailedVideo.from_json(line) for line in lines]


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise OutputExists for the first of the paths that is there, unless they may be overwritten."""
    existing = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputExists(f"{existing[0]}{more}: already there; choose another name, or add --overwrite")


def is_done(entry: VideoEntry) -> bool:
    """Whether rows are still those of their video: it is the same file, or has gone, and could not be read again."""
    has_gone = entry.file is not None and not os.path.lexists(entry.video)
    return has_gone or is_same_file(entry.file, entry.video)


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe of a file; None where there is none.

    Raises:
        UsageError: it is something else.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            recipe = json.loads(path.read_bytes())
        except ValueError:
            recipe = None
        if not isinstance(recipe, dict) or "model" not in recipe:
            raise UsageError(f"{path}: not the recipe of an output of vid3d extract")
        return recipe
    return None


def write_recipe(path: Path, recipe: Recipe, out: Path) -> None:
    """Write it where it is not yet; of several workers that start together, one does.

    Raises:
        RecipeDiffers: there is another one.
    """
    if not path.exists():
        write_once(path, json.dumps(recipe).encode() + b"\n")
    there = read_recipe(path)
    if there is not None:
        refuse_other_recipe(out, there, recipe)


def write_once(path: Path, data: bytes) -> None:
    """Write a file, unless another process has been quicker; it appears whole."""
    file = AtomicFile(path)
    try:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.part, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        file.discard()


def refuse_other_recipe(out: Path, there: Recipe, now: Recipe) -> None:
    """Raise RecipeDiffers, with what differs, for rows that would not be like those that are there."""
    differences = recipe_differences(there, now)
    if differences:
        lines = "".join(f"\n  {name}: {old} there, {new} now" for name, (old, new) in differences.items())
        raise RecipeDiffers(f"{out}: made by another recipe:{lines}\nChoose another name, or add --overwrite")


def recipe_differences(there: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """The values that differ, by name; those of nested ones as streams.rgb.weights."""
    old, new = _flat(there), _flat(json.loads(json.dumps(now)))
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def remove_files(paths: Iterable[Path]) -> None:
    """Delete files, those that are there."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None


def open_locked(path: Path, out: Path) -> AppendedFile:
    """Open a file that only one process may write to; the lock ends with the process, however that ends.

    Raises:
        UsageError: another process has it.
    """
    import fcntl

    file = AppendedFile(path)
    try:
        fcntl.flock(file.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"{out}: another vid3d is writing to it; wait for it, or share the work with --shard or --claim"
        ) from None
    except OSError:
        pass  # a file system without locks: there is nothing better to go by
    return file
