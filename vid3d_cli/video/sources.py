"""What the user names on the command line → the list of videos, and where each one's outputs go.

    videos/  "raw/**/*.mp4"  -  @list.txt  https://…  → Source, Source, …

Only names are looked at here: a video that is missing or broken is still a source, and fails later as one video.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from ..errors import UsageError

# fmt: off
VIDEO_EXTENSIONS = frozenset({
    ".264", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".m1v", ".m2ts", ".m2v",
    ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt",
    ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
"""Suffixes, in lower case, by which videos are found in directories."""

MAX_NAME_BYTES = 8192
"""An entry of a list that is longer is no name: the "list" is something else, such as a video."""


@dataclass(frozen=True)
class Source:
    """One video to work on."""

    video: str
    """Path or URL to open, as the user wrote it."""
    output_stem: PurePosixPath
    """Where its outputs go below an output directory, without suffix: relative, no "..", unique among the sources."""


@dataclass(frozen=True)
class _Found:
    """A video before it is known which directory holds them all."""

    video: str
    base: Path | None
    """The directory from which its argument looked for it, absolute; None for a URL."""

    @property
    def key(self) -> str:
        """The same for every way to write the same path."""
        return self.video if self.base is None else str(_absolute(self.video))


def find_sources(
    arguments: Sequence[str], *, stdin: BinaryIO | None = None, nul_separated: bool = False
) -> list[Source]:
    """Find the videos that arguments stand for, each once, in the order in which they are first named.

        clip.mp4 https://…   itself, whether it exists or not
        videos/              every video below it, sorted; hidden ones are skipped
        "raw/**/*.mp4"       every match; without a suffix in its last part, only videos (`VIDEO_EXTENSIONS`)
        - @list.txt          a list: one file, directory or URL a line, or a JSON object with a "video" key

    Args:
        arguments: what the user typed.
        stdin: what `-` reads; None for the process's own.
        nul_separated: names on stdin end with a zero byte, not with a newline, as `find -print0` writes them.

    Raises:
        UsageError: nothing to work on: a directory or pattern without a video, a list that cannot be read.
    """
    found: dict[str, _Found] = {}
    for argument in arguments:
        for one in _find(argument, stdin, nul_separated):
            found.setdefault(one.key, one)
    if not found:
        raise UsageError("no videos given: name files, directories, URLs, @list.txt, or - to read names from stdin")
    stems = _output_stems(list(found.values()))
    return [Source(one.video, stem) for one, stem in zip(found.values(), stems, strict=True)]


def _absolute(name: str | Path) -> Path:
    """The absolute path without "..", by its text alone: a link is not its target, and gets outputs of its own."""
    return Path(os.path.abspath(name))  # noqa: PTH100


def is_url(name: str) -> bool:
    """Whether a name is an address with a scheme, rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


# From names to videos ------------------------------------------------------------------------------------------------


def _find(argument: str, stdin: BinaryIO | None, nul_separated: bool) -> Iterator[_Found]:
    if argument == "-":
        file = stdin or (sys.stdin.buffer if sys.stdin else io.BytesIO())
        yield from _find_listed(file.read(), "stdin", nul_separated)
    elif argument.startswith("@") and (Path(argument[1:]).exists() or not Path(argument).exists()):
        yield from _find_listed(_read_list(argument), argument, nul_separated=False)
    elif glob.has_magic(argument) and not is_url(argument) and not os.path.lexists(argument):
        yield from _find_matches(argument)
    else:
        yield from _find_literal(argument)


def _find_literal(name: str) -> Iterator[_Found]:
    if not name:
        raise UsageError("an empty name: is a shell variable unset? Name a file, a directory or a URL")
    if is_url(name):
        yield _Found(name, base=None)
    elif Path(name).is_dir():
        videos = _videos_below(name)
        if not videos:
            raise UsageError(
                f"no video in the directory {name}: looked for files with suffixes such as .mp4, .avi, .mkv and .webm; "
                f"for others, name the files or give a pattern such as '{Path(name) / '*.dat'}'"
            )
        yield from (_Found(video, base=_absolute(name)) for video in videos)
    else:
        yield _Found(name, base=_absolute(name).parent)


def _find_matches(pattern: str) -> Iterator[_Found]:
    """The matches of a glob pattern, as a shell with `**` would expand it."""
    fixed_parts = itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
    base = _absolute(Path(*fixed_parts))
    names_suffix = "." in Path(pattern).name
    num_found = 0
    for match in sorted(glob.glob(pattern, recursive=True), key=_by_parts):  # noqa: PTH207  # Path has no plain glob
        if Path(match).is_dir():
            videos = [] if names_suffix else _videos_below(match)
        else:
            videos = [match] if names_suffix or _has_video_extension(match) else []
        num_found += len(videos)
        yield from (_Found(video, base) for video in videos)
    if not num_found:
        raise UsageError(f"no video matches {pattern}: check it with ls, and quote it so that ** reaches vid3d")


CONTROL_CHARACTERS = {chr(code) for code in range(32)} - {"\t", "\n", "\r"}
"""What a list of names does not hold, and a video that was taken for one does."""


def _videos_below(directory: str) -> list[str]:
    """Paths of all videos in a directory tree, sorted; linked directories are followed, each real one once."""

    def fail(error: OSError) -> None:
        raise UsageError(f"cannot list the directory {error.filename}: {error.strerror}; check its permissions")

    videos = []
    seen = set()
    for parent, subdirectories, names in os.walk(directory, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up
            subdirectories.clear()
            continue
        seen.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        paths = [str(Path(parent) / n) for n in names if not n.startswith(".") and _has_video_extension(n)]
        videos += [path for path in paths if not _is_special(path)]
    return sorted(videos, key=_by_parts)


def _is_special(path: str) -> bool:
    """Whether it is a pipe, a socket or a device, on which reading would wait; broken links are not, and fail later."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _has_video_extension(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_EXTENSIONS


def _by_parts(path: str) -> tuple[str, ...]:
    """Sort key: directory by directory, so that a/x comes before a.b/x."""
    return Path(path).parts


# Lists ---------------------------------------------------------------------------------------------------------------


def _read_list(argument: str) -> bytes:
    try:
        return Path(argument[1:]).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read the list {argument[1:] or '@'}: {reason}; after @ give a text file with one video a line"
        ) from error


def _find_listed(data: bytes, origin: str, nul_separated: bool) -> Iterator[_Found]:
    """The videos of a list. Entries are taken literally: a list was not typed in a shell, so nothing is expanded."""
    # No name contains a zero byte, so one is proof enough.
    is_nul_separated = nul_separated or b"\0" in data
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\0" if is_nul_separated else b"\n"):
        entry = line if is_nul_separated else line.removesuffix(b"\r")
        if not entry.strip():
            continue
        name = _listed_name(entry)
        if len(os.fsencode(name)) > MAX_NAME_BYTES or set(name) & CONTROL_CHARACTERS:
            raise UsageError(f"{origin} is not a list of videos: give one name a line, or name a video without @")
        try:
            yield from _find_literal(name)
        except UsageError:  # a directory without a video, as find -name '*.mp4' may list: one failure, not the end
            yield _Found(name, base=_absolute(name).parent)


def _listed_name(entry: bytes) -> str:
    text = os.fsdecode(entry)
    if text.lstrip().startswith("{"):
        try:
            record = json.loads(text)
        except ValueError:
            return text
        if isinstance(record, dict) and isinstance(record.get("video"), str):
            return str(record["video"])
    return text


# Output stems --------------------------------------------------------------------------------------------------------


def _output_stems(found: Sequence[_Found]) -> list[PurePosixPath]:
    """A relative path for each video, mirroring the tree below the deepest directory that all arguments share.

    a/x.mp4 and a/x.avi would share the stem a/x: they keep their full names.
    """
    bases = {one.base for one in found if one.base is not None}
    root = Path(os.path.commonpath(bases)) if bases else Path()
    full_names = [_below(root, one) for one in found]
    stems = [_without_suffix(name) for name in full_names]
    while True:
        # Again, because a full name may be another one's stem: x.mp4, x.avi, x.mp4.mkv.
        counts = Counter(stems)
        clashing = [i for i, stem in enumerate(stems) if counts[stem] > 1 and stem != full_names[i]]
        if not clashing:
            return _numbered(stems)
        for i in clashing:
            stems[i] = full_names[i]


def _numbered(stems: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Number what is still not unique: URLs of which only unsafe characters differ."""
    taken = set(stems)
    seen: set[PurePosixPath] = set()
    unique = []
    for stem in stems:
        candidate, number = stem, 1
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        seen.add(candidate)
        unique.append(candidate)
    return unique


def _below(root: Path, one: _Found) -> PurePosixPath:
    if one.base is None:
        return _url_path(one.video)
    return PurePosixPath(*Path(one.key).relative_to(root).parts)


def _url_path(url: str) -> PurePosixPath:
    """host/path?query of a URL as a safe path; user name and password stay out of it."""
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}{f'_{parts.port}' if parts.port else ''}"
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    except ValueError:  # not a valid address; opening it will say so
        host, path = "url", url.partition("://")[2].rpartition("@")[2]
    segments = (re.sub(r"[^\w.-]+", "_", segment) for segment in (host, *path.split("/")))
    return PurePosixPath(*([s for s in segments if s.strip(".")] or ["url"]))


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    """Drop the suffix, unless it is only a number ("take 1.5") or nothing would be left ("..mp4")."""
    suffix = path.suffix
    stem = path.name.removesuffix(suffix)
    if suffix[1:].isdigit() or not stem.strip("."):
        return path
    return path.with_name(stem)
