"""Where predictions go: files whose suffix names the format, directories with a file per video, stdout."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from ..durable import STDOUT, AtomicFile, open_output, output_errors, refuse_existing
from ..errors import UsageError
from .formats import Choices, Writer, find_writer, format_of, list_suffixes

if TYPE_CHECKING:
    from ..records import ClipOutput
    from ..results import VideoResult


@dataclass(frozen=True)
class Target:
    """What `-o` names, in one format."""

    path: Path
    form: str
    is_directory: bool
    """Whether it gets a file per video."""

    @property
    def overview(self) -> Path | None:
        """The file that shows all videos of a directory, if the format has one."""
        index = find_writer(self.form).index
        return self.path / index.file_name if index is not None and self.is_directory else None

    def file_of(self, name: str) -> Path:
        """Return the file that holds a video."""
        return self.path / f"{name}.{self.form}" if self.is_directory else self.path

    def files(self, videos: Mapping[str, str]) -> list[Path]:
        """Return all files; raise UsageError if the format does not suit the output."""
        kind = find_writer(self.form)
        if self.path == STDOUT and kind.is_binary:
            raise UsageError(f"{self.form} cannot go to stdout: name a file, as in --out x.{self.form}")
        if self.is_directory:
            files = list(map(self.file_of, videos))
            if self.overview in files:
                video = list(videos.values())[files.index(self.overview)]
                raise UsageError(
                    f"{video}: its file would be {self.overview}, the overview of all videos: rename the video"
                )
            return [*files, *filter(None, [self.overview])]
        if not kind.holds_many and len(videos) > 1:
            raise UsageError(
                f"{'stdout' if self.path == STDOUT else self.path}: {self.form} holds one video, and there are "
                f"{len(videos)}: name a directory, as in --out out/ --format {self.form}"
            )
        return [self.path]


class Outputs:
    """The open outputs of a run."""

    def __init__(self, targets: Sequence[Target], videos: Mapping[str, str]) -> None:
        self.targets = targets
        self.files = [file for target in targets for file in target.files(videos)]
        """All files that will be written, and "-" for stdout."""
        self.writers: list[Writer] = []
        self.num_videos = 0
        """How many videos were written."""
        self.videos = videos
        self.before = {file: _identity(file) for file in self.files}
        """What each file was at the start, see `_identity`."""

    def written(self, target: Target) -> list[Path]:
        """Return the files that are new since the start."""
        return [file for file in target.files(self.videos) if _identity(file) not in (None, self.before[file])]

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        """Write clips before their video is done, where the format can."""
        for writer in self.writers:
            writer.write_clips(video, clips, labels)

    def write(self, result: VideoResult, name: str) -> None:
        """Write a video to all outputs, see `Writer.write`."""
        # Those that read the video again come first: if that fails, no record may confirm the video.
        for writer in sorted(self.writers, key=lambda writer: not isinstance(writer, _FilePerVideo)):
            writer.write(result, name)
        self.num_videos += 1


class _FilePerVideo(Writer):
    """Writes each video to a file of its own, which appears whole when the video is done; an overview, at the end."""

    def __init__(self, target: Target, choices: Choices, videos: Mapping[str, str], overwrite: bool) -> None:
        self._target, self._names, self._overwrite = target, list(videos), overwrite
        self._kind = find_writer(target.form)
        self.choices, self.path = choices, None
        self._index = None if self._kind.index is None or target.overview is None else self._kind.index(choices)
        self._is_empty = True

    def write(self, result: VideoResult, name: str) -> None:
        path = self._target.file_of(name)
        with open_output(path, overwrite=self._overwrite, keep_partial=False, keep_empty=True) as stream:
            writer = self._kind(stream, self.choices, path)
            writer.overview = self._target.overview
            writer.write(result, name)
            writer.close()
        if self._index is not None:
            self._index.add(result, name)
            self._is_empty = False

    def close(self) -> None:
        if self._index is not None and not self._is_empty:
            with open_output(self._target.overview, overwrite=self._overwrite) as stream:
                self._index.write(stream, self._names)


@contextmanager
def open_outputs(
    paths: Sequence[str | Path],
    forms: Sequence[str],
    choices: Choices,
    videos: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> Iterator[Outputs]:
    """Open the outputs of a run; at the end of the block they are complete.

    A file to which no video was written does not appear.

    Args:
        paths: files, directories, or "-" for stdout. A name with a slash at its end is a directory.
        forms: formats of stdout, of directories, and of files whose suffix names none.
        choices: what is written.
        videos: the name of each video, see `Writer.write`, and its path or URL.
        overwrite: whether files may exist.

    Raises:
        UsageError: a file without a format, several videos for a format that holds one, a path that is given twice, or
            an output that is also a video.
        OutputExists: a file exists.
        OutputError: it cannot be written.
    """
    targets = [target for path in paths for target in _find_targets(os.fspath(path), forms)]
    if targets and (unused := set(forms) - {target.form for target in targets}):
        raise UsageError(f"--format {min(unused)}: the suffix of {paths[0]} names the format; leave one of them out")
    outputs = Outputs(targets, videos)
    _refuse_same_files(outputs)
    refuse_existing([file for file in outputs.files if file != STDOUT], overwrite)
    _check_places(outputs.files)
    with ExitStack() as stack:
        for target in targets:
            outputs.writers.append(writer := _open(target, choices, outputs, overwrite, stack))
            stack.callback(writer.close)  # finished videos are written even after an interrupt
        yield outputs


def _find_targets(name: str, forms: Sequence[str]) -> list[Target]:
    path = Path(name)
    if path == STDOUT:
        return [Target(path, form, False) for form in forms or ["jsonl"]]
    is_named_directory = name.endswith("/") or path.is_dir()
    is_directory = is_named_directory or not (path.suffix or path.exists())
    form = None if is_directory else format_of(path)
    if form is not None or forms:
        return [Target(path, form, is_directory) for form in (forms if form is None else [form])]
    if is_named_directory:
        raise UsageError(f"{path} is a directory: add --format, as in --format vtt")
    if is_directory:
        raise UsageError(f"{path} has no suffix: choose one of {list_suffixes()}; for a directory, add --format")
    raise UsageError(f"{path}: the suffix names no format; choose one of {list_suffixes()}, or add --format")


def _open(target: Target, choices: Choices, outputs: Outputs, overwrite: bool, stack: ExitStack) -> Writer:
    kind, path = find_writer(target.form), target.path
    if path != STDOUT and (target.is_directory or not kind.holds_many):
        return _FilePerVideo(target, choices, outputs.videos, overwrite)
    is_new = not path.exists()
    stream = stack.enter_context(
        # An interrupted run without a video does not replace an earlier file.
        open_output(path, overwrite=overwrite, keep_partial=lambda: is_new or outputs.num_videos > 0)
    )
    return kind(stream, choices, None if path == STDOUT else path)


def _check_places(files: Sequence[Path]) -> None:
    """Raise OutputError now, not when the first video is done, for a file that cannot be written."""
    file_in = {file.parent: file for file in files if file != STDOUT}
    there = {next(place for place in (p, *p.parents) if place.exists()): file for p, file in file_in.items()}
    for place, file in there.items():
        with output_errors(file):
            TemporaryFile(dir=place).close()
    for file in files:
        if file.exists() and not file.is_file():
            AtomicFile(file).discard()  # raises


def _refuse_same_files(outputs: Outputs) -> None:
    seen = set()
    for file in outputs.files:
        if (absolute := file.parent.resolve() / file.name) in seen:
            raise UsageError(
                f"{'stdout' if file == STDOUT else file} would be written twice: leave out one --out or --format"
            )
        seen.add(absolute)
    there = {identity: file for file, identity in outputs.before.items() if identity is not None}
    for video in outputs.videos.values() if there else []:
        if (identity := _identity(Path(video))) and identity in there:
            raise UsageError(f"{there[identity]} is one of the videos: choose another name for --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is equal for all names of a file; None if it does not exist."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino
