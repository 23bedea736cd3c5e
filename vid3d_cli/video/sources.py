"""Turns command line arguments into the list of videos, with an output path for each.

    videos/  "raw/**/*.mp4"  -  @list.txt  https://…  → Source, Source, …

No video is opened here: a missing or broken one is still a source, and fails later.
"""

from __future__ import annotations

import glob
import hashlib
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
"""Suffixes, in lower case, of the videos in a directory."""

MAX_NAME_BYTES = 8192
"""Maximum length of a name in a list; a longer one means that the file is no list, such as a video."""

MAX_LIST_BYTES = 2**28
"""Maximum length of a list, which is read as a whole: some million names."""

MAX_PART_BYTES = 200
"""Maximum length of an output's name: file systems take 255 bytes, of which suffixes and temporary names need some."""

MAX_URL_PATH_BYTES = 1000
"""Maximum length of the path that a URL becomes."""


@dataclass(frozen=True)
class Source:
    """A video, and the path of its outputs."""

    video: str
    """Path or URL to open, as the user wrote it."""
    output_stem: PurePosixPath
    """Path of its outputs in an output directory, without suffix: relative, no "..", unique among the sources."""


@dataclass(frozen=True)
class _Found:
    """A video before the common directory of all videos is known."""

    video: str
    base: Path | None
    """The directory that its argument searched, absolute; None for a URL."""

    @property
    def key(self) -> str:
        """Equal for all spellings of the same path."""
        return self.video if self.base is None else str(_absolute(self.video))


def find_sources(
    arguments: Sequence[str],
    *,
    stdin: BinaryIO | None = None,
    nul_separated: bool = False,
    each_alone: bool = False,
) -> list[Source]:
    """Return the videos that the arguments name, each once, in the order of their first mention.

        clip.mp4 https://…   itself, whether it exists or not
        videos/              every video below it, sorted; hidden ones are skipped
        "raw/**/*.mp4"       every match; without a suffix in its last part, only videos (`VIDEO_EXTENSIONS`)
        - @list.txt          a list: one file, directory or URL per line, or a JSON object with a "video" key

    Args:
        arguments: as the user typed them.
        stdin: read for `-`; None for that of the process.
        nul_separated: names on stdin end with a zero byte, as `find -print0` writes them, and not with a newline.
        each_alone: stems do not depend on the other arguments: the name of a video that is named, the path below a
            directory or pattern.

    Raises:
        UsageError: no videos: a directory or pattern without a video, a list that cannot be read; with `each_alone`,
            two videos with the same stem.
    """
    found: dict[str, _Found] = {}
    for argument in arguments:
        for one in _find(argument, stdin, nul_separated):
            found.setdefault(one.key, one)
    if not found and arguments:
        lists = " and ".join("standard input" if argument == "-" else argument for argument in arguments)
        raise UsageError(f"no videos in {lists}: give one name per line")
    if not found:
        raise UsageError("no videos given: name files, directories, URLs, @list.txt, or - to read names from stdin")
    stems = (_stems_alone if each_alone else _output_stems)(list(found.values()))
    return [Source(one.video, stem) for one, stem in zip(found.values(), stems, strict=True)]


def source_of(video: str) -> Source:
    """Return the source of one path or URL, which need not exist."""
    found = _Found(video, base=None if is_url(video) else _absolute(video).parent)
    return Source(video, *_output_stems([found]))


def _absolute(name: str | Path) -> Path:
    """Return the absolute path without "..", without resolving links: a link gets its own outputs."""
    return Path(os.path.abspath(name))  # noqa: PTH100


def is_url(name: str) -> bool:
    """Whether a name is a URL with a scheme, not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def without_password(video: str) -> str:
    """Return a URL without user name and password; a path as it is."""
    return re.sub(r"^([^/]*//)[^/?#]*@", r"\1", video) if is_url(video) else video


# From names to videos ------------------------------------------------------------------------------------------------


def _find(argument: str, stdin: BinaryIO | None, nul_separated: bool) -> Iterator[_Found]:
    if argument == "-":
        file = stdin or (sys.stdin.buffer if sys.stdin else io.BytesIO())
        yield from _find_listed(_read_list(file, "stdin"), "stdin", nul_separated)
    elif argument.startswith("@") and (os.path.exists(argument[1:]) or not os.path.exists(argument)):  # noqa: PTH110
        yield from _find_listed(_read_list_file(argument), argument, nul_separated=False)
    elif glob.has_magic(argument) and not is_url(argument) and not os.path.lexists(argument):
        yield from _find_matches(argument)
    else:
        yield from _find_literal(argument)


def _find_literal(name: str) -> Iterator[_Found]:
    if not name:
        raise UsageError("an empty name: is a shell variable unset? Name a file, a directory or a URL")
    if is_url(name):
        yield _Found(name, base=None)
    elif os.path.isdir(name):  # noqa: PTH112  (Path raises an error for a name that is too long)
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
    """Yield the matches of a glob pattern, expanded as by a shell with `**`."""
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
"""A list of names never contains these; a video that is passed as a list does."""


def _videos_below(directory: str) -> list[str]:
    """Return the paths of all videos in a directory tree, sorted; links are followed, each real directory once."""

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
    """Whether the path is a pipe, a socket or a device, where reading would block. Broken links fail later."""
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


def _read_list(file: BinaryIO, origin: str) -> bytes:
    data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise UsageError(f"{origin} is longer than a list of videos may be: split it, or name a video without @")
    return data


def _read_list_file(argument: str) -> bytes:
    try:
        with Path(argument[1:]).open("rb") as file:
            return _read_list(file, argument)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot read the list {argument[1:] or '@'}: {reason}; after @ give a text file with one video per line"
        ) from error


def _find_listed(data: bytes, origin: str, nul_separated: bool) -> Iterator[_Found]:
    """Yield the videos of a list. Entries are literal: nothing is expanded, as a list is not typed in a shell.

    Lines that begin with "# ", or with blanks before it, are comments, unless there is a file of that name or names end
    with zero bytes.
    """
    # No name contains a zero byte, so a single one shows how names are separated.
    is_nul_separated = nul_separated or b"\0" in data
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\0" if is_nul_separated else b"\n")
    for number, line in enumerate(lines, 1):
        entry = line if is_nul_separated else line.removesuffix(b"\r")
        if not entry.strip():
            continue
        if not is_nul_separated and entry.lstrip().startswith(b"# ") and not os.path.lexists(entry):
            continue
        name = _listed_name(entry, f"{origin}, line {number}")
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES or set(name) & CONTROL_CHARACTERS:
            raise UsageError(f"{origin} is not a list of videos: give one name per line, or name a video without @")
        try:
            yield from _find_literal(name)
        except UsageError:  # a directory without a video, as find -name '*.mp4' may list: it fails later, alone
            yield _Found(name, base=_absolute(name).parent)


def _listed_name(entry: bytes, place: str) -> str:
    text = os.fsdecode(entry)
    if text.lstrip().startswith("{") and not os.path.lexists(text):
        try:
            record = json.loads(text)
            return os.fsdecode(os.fsencode(record["video"]))  # a name that no file can have is an error here
        except (KeyError, TypeError):
            raise UsageError(f'{place}: a JSON object needs "video", with the name of a video') from None
        except (ValueError, RecursionError):
            return text
    return text


# Output stems --------------------------------------------------------------------------------------------------------


def _output_stems(found: Sequence[_Found]) -> list[PurePosixPath]:
    """Return a relative path for each video: its place below the deepest directory that all arguments share.

    a/x.mp4 and a/x.avi would share the stem a/x: they keep their full names.
    """
    bases = {one.base for one in found if one.base is not None}
    root = Path(os.path.commonpath(bases)) if bases else Path()
    full_names = [_below(root, one) for one in found]
    stems = [_without_suffix(name) for name in full_names]
    while True:
        # Repeated, because a full name may be the stem of another video: x.mp4, x.avi, x.mp4.mkv.
        counts = Counter(stems)
        clashing = [i for i, stem in enumerate(stems) if counts[stem] > 1 and stem != full_names[i]]
        if not clashing:
            return _numbered(stems)
        for i in clashing:
            stems[i] = full_names[i]


def _stems_alone(found: Sequence[_Found]) -> list[PurePosixPath]:
    """Return the path of each video below its argument, without suffix; of a URL, the last part.

    Raises:
        UsageError: two videos have the same.
    """
    taken: dict[PurePosixPath, str] = {}
    for one in found:
        stem = _without_suffix(PurePosixPath(_url_path(one.video).name) if one.base is None else _below(one.base, one))
        if (other := taken.setdefault(stem, one.video)) != one.video:
            both = f"{without_password(other)} and {without_password(one.video)}"
            raise UsageError(
                f"{both} would both be written as {stem}: rename one, leave one out, or give the directory above both"
            )
    return list(taken)


def _numbered(stems: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Number stems that are not unique yet: URLs that differ only in unsafe characters."""
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
    *parents, name = Path(one.key).relative_to(root).parts or (".",)
    return PurePosixPath(*parents, _shorten(name))


def _url_path(url: str) -> PurePosixPath:
    """Return host and path of a URL as a safe path, without user name and password; a digest stands for its query."""
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname or ''}{f'_{parts.port}' if parts.port else ''}"
        path, query = parts.path, parts.query
    except ValueError:  # not a valid URL; opening it fails with the reason
        host, path, query = "url", url.partition("://")[2].rpartition("@")[2], ""
    segments = [re.sub(r"[^\w.-]+", "_", segment) for segment in (host, *path.split("/"))]
    names = [_shorten(segment) for segment in segments if segment.strip(".")] or ["url"]
    if len("/".join(names).encode()) > MAX_URL_PATH_BYTES:
        names = [names[0], _digest(path)]
    if query:  # it may hold a password, and may have any length
        names[-1] = _with_digest(names[-1], query)
    return PurePosixPath(*names)


def _shorten(name: str) -> str:
    """Return a name of at most `MAX_PART_BYTES`; a digest takes the place of what is cut."""
    data = os.fsencode(name)
    if len(data) <= MAX_PART_BYTES:
        return name
    suffix = Path(name).suffix if _has_video_extension(name) else ""
    room = MAX_PART_BYTES - 2 * len(_with_digest("", "")) - len(suffix)  # there may be a query too
    return _with_digest(data[:room].decode("utf-8", "ignore") + suffix, name)


def _with_digest(name: str, of: str) -> str:
    suffix = Path(name).suffix if _has_video_extension(name) else ""
    return f"{name.removesuffix(suffix)}_{_digest(of)}{suffix}"


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    """Drop the suffix, unless it is a number ("take 1.5") or nothing would be left ("..mp4")."""
    suffix = path.suffix
    stem = path.name.removesuffix(suffix)
    if suffix[1:].isdigit() or not stem.strip("."):
        return path
    return path.with_name(stem)
