"""Where predictions go: files whose suffix names the format, directories with a file per video, stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from ..durable import STDOUT, AtomicFile, open_output, output_errors, refuse_existing
from ..errors import UsageError
from .formats import Choices, Writer, find_writer, format_of, unknown_format

if TYPE_CHECKING:
    from ..records import ClipOutput
    from ..results import VideoResult


class Outputs:
    """The open outputs of a run."""

    def __init__(self, writers: Sequence[Writer], files: Sequence[Path]) -> None:
        self.writers = list(writers)
        self.files = list(files)
        """All files that will be written, and "-" for stdout."""
        self.num_videos = 0
        """How many videos were written."""

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        """Write clips before their video is done, where the format can."""
        for writer in self.writers:
            writer.write_clips(video, clips, labels)

    def write(self, result: VideoResult, name: str) -> None:
        """Write a video to all outputs, see `Writer.write`."""
        for writer in self.writers:
            writer.write(result, name)
        self.num_videos += 1


class _FilePerVideo(Writer):
    """Writes each video to a file of its own, which appears whole when the video is done; an overview, at the end."""

    def __init__(
        self, path: Path, form: str, choices: Choices, names: Sequence[str], overwrite: bool, overview: Path | None
    ) -> None:
        self._target, self._form, self._names, self._overwrite = path, form, names, overwrite
        self._kind = find_writer(form)
        self.choices, self.path, self.holds_segments = choices, None, self._kind.holds_segments
        self.overview = overview
        self._index = None if self._kind.index is None or overview is None else self._kind.index(choices)
        self._is_empty = True

    def write(self, result: VideoResult, name: str) -> None:
        path = _file_of(self._target, self._form, name)
        with open_output(path, overwrite=self._overwrite, keep_partial=False, keep_empty=True) as stream:
            writer = self._kind(stream, self.choices, path)
            writer.overview = self.overview
            writer.write(result, name)
            writer.close()
        if self._index is not None:
            self._index.add(result, name)
            self._is_empty = False

    def close(self) -> None:
        if self._index is not None and not self._is_empty:
            with open_output(self.overview, overwrite=self._overwrite) as stream:
                self._index.write(stream, self._names)


@contextmanager
def open_outputs(
    paths: Sequence[Path], form: str | None, choices: Choices, videos: Mapping[str, str], *, overwrite: bool = False
) -> Iterator[Outputs]:
    """Open the outputs of a run; at the end of the block they are complete.

    A file to which no video was written does not appear.

    Args:
        paths: files, directories, or "-" for stdout.
        form: format of stdout, of directories, and of files whose suffix names none.
        choices: what is written.
        videos: the name of each video, see `Writer.write`, and its path or URL.
        overwrite: whether files may exist.

    Raises:
        UsageError: a file without a format, several videos for a format that holds one, a path that is given twice, or
            an output that is also a video.
        OutputExists: a file exists.
        OutputError: it cannot be written.
    """
    forms = [(path, _form_of(path, form)) for path in paths]
    if form is not None and paths and not any(map(_takes_form, paths)):
        raise UsageError(f"--format {form}: the suffix of {paths[0]} names the format; leave one of them out")
    files = [file for path, its_form in forms for file in _files_of(path, its_form, videos)]
    _refuse_same_files(files, videos)
    refuse_existing([file for file in files if file != STDOUT], overwrite)
    outputs = Outputs([], files)
    with ExitStack() as stack:
        for path, its_form in forms:
            writer = _open(path, its_form, choices, list(videos), overwrite, stack)
            outputs.writers.append(writer)
            stack.callback(_close, writer, outputs)  # finished videos are written even after an interrupt
        yield outputs


def _open(path: Path, form: str, choices: Choices, names: Sequence[str], overwrite: bool, stack: ExitStack) -> Writer:
    kind = find_writer(form)
    if path == STDOUT:
        return kind(stack.enter_context(open_output(path)), choices)
    if kind.holds_many and not _is_directory(path):
        stream = stack.enter_context(open_output(path, overwrite=overwrite))
        return kind(stream, choices, path)
    # A path that cannot be written fails now, not when the first video is done.
    if _is_directory(path):
        with output_errors(path):
            TemporaryFile(dir=next(place for place in (path, *path.absolute().parents) if place.exists())).close()
    else:
        AtomicFile(path).discard()
    return _FilePerVideo(path, form, choices, names, overwrite, _overview_of(path, form))


def _close(writer: Writer, outputs: Outputs) -> None:
    if outputs.num_videos or writer.path is None:
        writer.close()


def _files_of(path: Path, form: str, videos: Mapping[str, str]) -> list[Path]:
    """Return the files of an output; raise UsageError if the format does not suit it."""
    kind = find_writer(form)
    if path == STDOUT and kind.is_binary:
        raise UsageError(f"{form} cannot go to stdout: name a file, as in --out x.{form}")
    if path != STDOUT and _is_directory(path):
        overview = _overview_of(path, form)
        return [*(_file_of(path, form, name) for name in videos), *([] if overview is None else [overview])]
    if not kind.holds_many and len(videos) > 1:
        raise UsageError(
            f"{'stdout' if path == STDOUT else path}: {form} holds one video, and there are {len(videos)}: "
            f"name a directory, as in --out out/ --format {form}"
        )
    return [path]


def _file_of(path: Path, form: str, name: str) -> Path:
    return path / f"{name}.{form}" if _is_directory(path) else path


def _overview_of(path: Path, form: str) -> Path | None:
    """Return the file that shows all videos of a directory, if the format has one."""
    index = find_writer(form).index
    return path / index.file_name if index is not None and _is_directory(path) else None


def _refuse_same_files(files: Sequence[Path], videos: Mapping[str, str]) -> None:
    seen = set()
    for file in files:
        if (absolute := file.absolute()) in seen:
            raise UsageError(f"--out names {file} twice: leave one of them out")
        seen.add(absolute)
    there = {_identity(file): file for file in files if file.exists()}
    for video in videos.values() if there else []:
        if (identity := _identity(Path(video))) and identity in there:
            raise UsageError(f"{there[identity]} is one of the videos: choose another name for --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is equal for all names of a file; None if it does not exist."""
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino


def _is_directory(path: Path) -> bool:
    return path != STDOUT and (path.is_dir() or not (path.suffix or path.exists()))


def _takes_form(path: Path) -> bool:
    return path == STDOUT or _is_directory(path) or format_of(path) is None


def _form_of(path: Path, form: str | None) -> str:
    its_form = form if _takes_form(path) else format_of(path)
    if its_form is not None:
        return its_form
    if path == STDOUT:
        return "jsonl"
    if _is_directory(path):
        raise UsageError(f"{path} is a directory: add --format, as in --format vtt")
    raise unknown_format(path)
