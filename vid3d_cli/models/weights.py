"""Finds, downloads and verifies the checkpoint files of the manifest.

    WeightsFile → locate() or pull() → a path

vid3d verifies a file before it uses it or adds it to the cache. If its publisher gives no digest, vid3d records the
sha256 of the first file beside that file, and compares later ones with it. `checkpoint.py` reads the content.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..durable import AtomicFile
from ..errors import CheckpointError, ChecksumMismatch, OutputError, UsageError, WeightsUnavailable
from .digests import Digests, cache_dir, digest_path, digest_stream, file_sha256
from .manifest import ManualSource, PackagedSource, WeightsFile, data_path, model_entries, parse_weights_name

if TYPE_CHECKING:
    from .download import Progress

_log = logging.getLogger("vid3d_cli")

Find = Callable[[WeightsFile], Path]
"""Finds or downloads a checkpoint, like `pull` and `locate`."""

Check = Callable[[WeightsFile, Path], None]
"""Raises CheckpointError if a file does not fit the network of this entry."""

WITHOUT_DOWNLOAD = "Without a download:    --model s3d_mini; it recognises 10 motions of the camera, and no actions"
"""Last line of the advice for checkpoints that are missing."""


def weights_path(file: WeightsFile) -> Path:
    """Return the path of a file in the cache, whether it exists or not."""
    return cache_dir() / "weights" / file.model / file.file_name


def first_seen_path(file: WeightsFile) -> Path:
    """Return the path where vid3d records the sha256 of a file without a published digest, as sha256sum writes it."""
    return weights_path(file).with_name(f"{file.file_name}.sha256")


def _expected(file: WeightsFile) -> WeightsFile:
    """Return the file with the digest to check: a published one, or that of the file seen first."""
    if file.has_digest:
        return file
    path = first_seen_path(file)
    try:
        digest = path.read_text("ascii")[:64]
    except FileNotFoundError:
        return file
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(f"{path} cannot be read ({error}): delete it, and vid3d records a new one") from error
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise WeightsUnavailable(f"{path} contains no sha256: delete it, and vid3d records a new one")
    return replace(file, sha256=digest)


def _record_first_seen(file: WeightsFile, sha256: str) -> None:
    """Record the sha256 of a file without a published digest, unless one is recorded."""
    path = first_seen_path(file)
    if file.has_digest or path.exists():
        return
    what = f"no digest of {file.name} was published: the sha256 of this file, {sha256[:12]}…,"
    try:
        with AtomicFile(path) as out:
            out.write(f"{sha256}  {file.file_name}\n".encode("ascii"))
    except OutputError as error:
        _log.info("%s is not recorded: %s", what, error)
    else:
        _log.info("%s is recorded in %s and checked from now on", what, path)


def known_sha256(file: WeightsFile) -> str | None:
    """Return the sha256 of a file, 64 hex digits, without the network: the published one, or that of the file on disk.

    None if only a part of it was published, or nothing, and no verified file is on disk.
    """
    if file.sha256 is not None and len(file.sha256) == 64:
        return file.sha256
    path, _ = _look_up(file, records=False)  # planning writes nothing
    return None if path is None else file_sha256(path)


def verify_file(path: Path, file: WeightsFile, *, afresh: bool = False) -> str:
    """Check that a file is the one that the manifest names or, without a published digest, the one seen first.

    Args:
        path: the file.
        file: what it should be.
        afresh: hash it even if its digests are known.

    Returns:
        The sha256 of the file, 64 hex digits.

    Raises:
        ChecksumMismatch: size or digests differ.
        WeightsUnavailable: the file cannot be read.
    """
    return _verify(digest_path(path, afresh=afresh), path, file)


def _verify(digests: Digests, path: Path, file: WeightsFile) -> str:
    expected = _expected(file)
    if not digests.fits(expected):
        what = f"the published file of {file.name}" if expected is file else _describe_first_seen(file)
        raise ChecksumMismatch(
            f"{path} is not {what}:\n{digests.compare(expected)}\n"
            f"Delete it and type: vid3d weights {f'pull {file.name}' if file.is_fetched else f'add {file.name} FILE'}"
        )
    return digests.sha256


def _describe_first_seen(file: WeightsFile) -> str:
    return f"the file of {file.name} that vid3d saw first (to accept another one, delete {first_seen_path(file)})"


def locate(file: WeightsFile, *, afresh: bool = False) -> Path:
    """Return the path of a verified file on this machine: in the cache, or in the installed package.

    Its index, if it has one, is verified too.

    Args:
        file: what to find.
        afresh: hash it even if its digests are known.

    Raises:
        WeightsUnavailable: the file is missing or is another one; the text says what to type.
    """
    return find_all(file.parts, lambda part: _locate_part(part, afresh))[0]


def _locate_part(file: WeightsFile, afresh: bool) -> Path:
    path, problems = _look_up(file, afresh=afresh)
    if path is None:
        raise _missing(file, problems)
    return path


def find_all(files: Iterable[WeightsFile], find: Find | None = None) -> list[Path]:
    """Return the paths of checkpoints, as `find` does; one error names all files that are missing.

    After the first file that cannot be found, the others are looked for only on disk.

    Args:
        files: checkpoints of one model.
        find: finds or downloads one of them; None for `pull`.

    Raises:
        WeightsUnavailable: files are missing; the text says what to type.
    """
    paths: list[Path] = []
    missing: dict[WeightsFile, list[str]] = {}
    for file in files:
        try:
            paths.append(locate(file) if missing else (find or pull)(file))
        except _Missing as error:
            missing |= error.files
    if missing:
        raise _Missing(missing)
    return paths


def _places(file: WeightsFile) -> Iterator[Path]:
    """Yield the paths where a file may be: in the installed package, then in the cache."""
    for source in file.sources:
        if isinstance(source, PackagedSource):
            yield data_path() / source.packaged
    yield weights_path(file)


def path_on_disk(file: WeightsFile) -> Path | None:
    """Return the path of a file of that name, unverified; None if there is none."""
    return next((path for path in _places(file) if path.is_file()), None)


def is_on_disk(file: WeightsFile) -> bool:
    """Whether a file of that name exists, and its index if it has one; `locate` also verifies them."""
    return all(path_on_disk(part) is not None for part in file.parts)


def _look_up(file: WeightsFile, *, records: bool = True, afresh: bool = False) -> tuple[Path | None, list[str]]:
    """Return the path of the verified file; or None, and what is wrong with each file in its place.

    Unless `records` is False, the digest of a file without a published one is recorded, and compared from then on.
    """
    problems = []
    for path in _places(file):
        # False also if a directory of the path cannot be read
        if not os.path.lexists(path):
            continue
        try:
            digest = verify_file(path, file, afresh=afresh)
            if records:
                _record_first_seen(file, digest)
        except ChecksumMismatch:
            problems.append(f"{path}\n    exists, but is {_describe_other(file)}")
        except WeightsUnavailable as error:
            problems.append(str(error))
        else:
            return path, []
    return None, problems


def _describe_other(file: WeightsFile) -> str:
    """Return what is wrong with a file that failed `verify_file`."""
    if _expected(file) is file:
        return "damaged or a different file (wrong size or digest)"
    return f"damaged, or not {_describe_first_seen(file)}"


class _Missing(WeightsUnavailable):
    """Files of one model that are not on this machine; the text says what to type.

    Args:
        files: the files, and lines that say what is wrong with each.
    """

    def __init__(self, files: dict[WeightsFile, list[str]]) -> None:
        self.files = files
        super().__init__("\n".join([*chain(*files.values()), *_advise(list(files))]))


def _missing(file: WeightsFile, problems: Iterable[str], *, is_tried: bool = False) -> _Missing:
    """Return the error of a file: why it is missing, whether a download was tried, and where it is published."""
    what = f"weights {file.name} ({file.file_name}, {file.describe_size()}) are not on this machine"
    lines = [f"{what}, and no source gave them:" if is_tried else f"{what}.", *(f"  {what}" for what in problems)]
    by_hand = [source for source in file.sources if isinstance(source, ManualSource)]
    if not is_tried and file.is_fetched:
        lines += ["Published at:", *(f"  {source.describe()}" for source in file.sources if source not in by_hand)]
    if by_hand:
        lines += ["Download by hand, in a browser:", *(f"  {source.page}\n    {source.how}" for source in by_hand)]
    return _Missing({file: lines})


def _advise(files: Sequence[WeightsFile]) -> list[str]:
    """Return lines: where to put missing files, what to type, and what works without them."""
    from .download import offline_variable

    model, them = files[0].model, "it" if len(files) == 1 else "them"
    add = f"vid3d weights add {model} FILE"
    if any(file.is_fetched for file in files):
        unset = f"unset {variable}, then: " if (variable := offline_variable()) else ""
        lines = [
            f"With a connection:     {unset}vid3d weights pull {model}",
            f"From another machine:  download {them} there, then{'' if len(files) == 1 else ' for each'}: {add}",
        ]
    else:
        lines = [f"Then:                  {add}"]
    lines += [f"{'':23}(or copy it to {weights_path(file)})" for file in files]
    lines.append(f"A file of your own:    {' '.join(dict.fromkeys(f'--weights {file.stream}=FILE' for file in files))}")
    if not any(isinstance(source, PackagedSource) for file in files for source in file.sources):
        lines.append(WITHOUT_DOWNLOAD)
    return lines


def pull(file: WeightsFile, *, progress: Progress | None = None) -> Path:
    """Return the path of a verified file, downloaded if it is not on this machine, and its index if it has one.

    Tries each source in turn and verifies a file before it appears in the cache.

    Args:
        file: what to download.
        progress: called while bytes arrive.

    Raises:
        WeightsUnavailable: no source gave the file, or the cache cannot be written; the text says what to type.
    """
    return find_all(file.parts, lambda part: _pull_part(part, progress))[0]


def _pull_part(file: WeightsFile, progress: Progress | None) -> Path:
    path, problems = _look_up(file)
    if path is not None:
        return path
    from .download import SourceError, fetch  # imports ssl, which takes 30 ms

    for source in file.sources:
        if isinstance(source, ManualSource):
            continue
        try:
            with _add_to_cache(file) as out:
                fetch(source, file, progress, out)
            return weights_path(file)
        except ChecksumMismatch:
            what = "a damaged or different file" if _expected(file) is file else f"what is {_describe_other(file)}"
            problems.append(f"{source.describe()}\n    gave {what}")
        except SourceError as error:
            problems.append(f"{source.describe()}\n    {error}")
    raise _missing(file, problems, is_tried=file.is_fetched)


def add(name: str, path: Path, *, check: Check) -> WeightsFile:
    """Copy a file that was downloaded by other means into the cache, verified.

    Args:
        name: "model:stream", or a model; its stream is then found by the file's digest.
        path: the file.
        check: tries a file without a published digest on the network, to find its stream.

    Returns:
        The manifest's entry of the file.

    Raises:
        UsageError: there is no such model, stream or file.
        ChecksumMismatch: the file is none of the model's files.
        WeightsUnavailable: the cache cannot be written, or the model has no public weights.
    """
    candidates = [part for file in parse_weights_name(name) for part in file.parts]
    try:
        digests = digest_path(path)
    except WeightsUnavailable as error:
        raise UsageError(str(error)) from error
    problems: list[str] = []
    for file in candidates:
        problem = _misfit(file, path, digests, check)
        if problem is None:
            with _add_to_cache(file) as out, path.open("rb") as stream:
                shutil.copyfileobj(stream, out)
            return file
        problems += [f"{file.name} ({file.file_name}):", problem]
    raise ChecksumMismatch(_not_published_message(name, path, candidates, digests, problems))


def _misfit(file: WeightsFile, path: Path, digests: Digests, check: Check) -> str | None:
    """Return why a file is not the one of this entry; None if it is."""
    expected = _expected(file)
    if not digests.fits(expected):
        seen = "" if expected is file else f"\n  expected is {_describe_first_seen(file)}"
        return digests.compare(expected) + seen
    if not file.has_digest:
        try:
            check(file, path)
        except CheckpointError as error:
            return f"  {error}"
    return None


def _not_published_message(
    name: str, path: Path, candidates: Sequence[WeightsFile], digests: Digests, problems: Sequence[str]
) -> str:
    lines = [f"{path} is not a published file of {name}.", *problems]
    known = [part for entry in model_entries().values() for file in entry.files for part in file.parts]
    if others := [file for file in known if file.has_digest and digests.fits(file)]:
        lines.append(f"It is {others[0].name}. Type: vid3d weights add {others[0].name} {path}")
    elif all(file.has_digest for file in candidates):
        own = f"--weights {candidates[0].stream}={path}"
        lines.append(f"Download it again, or use it unverified, as your own file: {own}")
    else:
        lines.append("Download it again.")
    return "\n".join(lines)


@contextlib.contextmanager
def _add_to_cache(file: WeightsFile) -> Iterator[BinaryIO]:
    """Verify the file that the block writes and add it to the cache; after an error, leave nothing behind."""
    path = weights_path(file)
    try:
        with AtomicFile(path) as out:
            yield out
            out.flush()
            sha256 = _verify(digest_stream(out), path, file)
    except OutputError as error:
        raise WeightsUnavailable(
            f"weights {file.name}: {error}\n"
            f"Free some space or get write access there, or set VID3D_CACHE to another directory."
        ) from error
    _record_first_seen(file, sha256)
