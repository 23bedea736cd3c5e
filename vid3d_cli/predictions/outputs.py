"""Where predictions go: files whose suffix names the format, directories with a file per video, stdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..durable import STDOUT, open_output, refuse_existing
from ..errors import UsageError
from .formats import Choices, Writer, find_writer, format_of, unknown_format

if TYPE_CHECKING:
    from ..results import VideoResult


class Directory(Writer):
    """Writes a file per video into a directory; its name is the video's, with the suffix of the format.

    The overview of the videos done, if the format has one, is written at the end.

    Raises:
        OutputExists: a file exists.
        UsageError: a video has the name of the overview.
    """

    is_binary = True

    def __init__(self, path: Path, form: str, choices: Choices, names: Sequence[str], overwrite: bool) -> None:
        self._directory, self._form, self._choices, self._overwrite = path, form, choices, overwrite
        self._names, self._is_empty = names, True
        self._index = find_writer(form).make_index(choices)
        paths = [self._path_of(name) for name in names]
        if self._index is not None:
            overview = path / self._index.file_name
            if overview in paths:
                raise UsageError(f"{overview} is the overview of all videos: rename the video of that name")
            paths.append(overview)
        refuse_existing(paths, overwrite)

    def _path_of(self, name: str) -> Path:
        return self._directory / f"{name}.{self._form}"

    def write(self, result: VideoResult, name: str) -> None:
        path = self._path_of(name)
        with open_output(path, overwrite=self._overwrite, keep_partial=False) as stream:
            writer = find_writer(self._form)(stream, self._choices, path)
            writer.write(result, name)
            writer.close()
        if self._index is not None:
            self._index.add(result, name)
            self._is_empty = False

    def close(self) -> None:
        if self._index is not None and not self._is_empty:
            with open_output(self._directory / self._index.file_name, overwrite=self._overwrite) as stream:
                self._index.write(stream, self._names)


@contextmanager
def open_outputs(
    paths: Sequence[Path], form: str | None, choices: Choices, names: Sequence[str], *, overwrite: bool = False
) -> Iterator[list[Writer]]:
    """Open the outputs of a run; at the end of the block they are complete.

    Args:
        paths: files, directories, or "-" for stdout.
        form: format of stdout, of directories, and of files whose suffix names none.
        choices: what is written.
        names: of the videos, see `Writer.write`.
        overwrite: whether files may exist.

    Raises:
        UsageError: a file without a format, several videos for a format that holds one, or a path that is given twice.
        OutputExists: a file exists.
        OutputError: it cannot be written.
    """
    forms = {path: _form_of(path, form) for path in paths}
    if len(forms) < len(paths):
        raise UsageError(f"--out {next(path for path in paths if paths.count(path) > 1)} is given twice")
    if form is not None and forms and not any(_takes_form(path) for path in paths):
        raise UsageError(f"--format {form}: the suffix of {paths[0]} names the format; leave one of them out")
    with ExitStack() as stack:
        writers: list[Writer] = []
        for path, its_form in forms.items():
            kind = find_writer(its_form)
            if _is_directory(path):
                writers.append(Directory(path, its_form, choices, names, overwrite))
                continue
            if not kind.holds_many and len(names) > 1:
                raise UsageError(
                    f"{path}: a .{its_form} file holds one video, and there are {len(names)}: "
                    f"name a directory, as in --out {path.parent / 'out'}/ --format {its_form}"
                )
            if kind.is_binary and path == STDOUT:
                raise UsageError(f"{its_form} cannot go to stdout: name a file, as in --out x.{its_form}")
            stream = stack.enter_context(open_output(path, overwrite=overwrite, keep_partial=kind.holds_many))
            writers.append(kind(stream, choices, None if path == STDOUT else path))
        try:
            yield writers
        finally:  # finished videos are written even after an interrupt
            for writer in writers:
                writer.close()


def _is_directory(path: Path) -> bool:
    return path != STDOUT and (path.is_dir() or not path.suffix)


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
