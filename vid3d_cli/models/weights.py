"""From what the manifest says to verified weights on disk.

    WeightsFile → locate() or pull() → a path

A file is used only after its digests were checked, and lies in the cache only if they were right. Where none were
published, the sha256 of the file that is seen first is written beside it and checked from then on. Nothing here knows
what is inside a checkpoint; `model.py` reads it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ChecksumMismatch, UsageError, WeightsError, WeightsUnavailable
from ..version import __version__
from .manifest import (
    HubSource,
    ManualSource,
    PackagedSource,
    Source,
    UrlSource,
    WeightsFile,
    data_path,
    model_entries,
    parse_weights_name,
)

_log = logging.getLogger("vid3d_cli")

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes received so far and the bytes in all (None: not known)."""

Check = Callable[[WeightsFile, Path], None]
"""Raises CheckpointError for a file that does not fit the network of this entry."""

_CHUNK_BYTES = 1 << 20
_NETWORK_TIMEOUT_SECONDS = 10.0
_OFFLINE_VARIABLES = ("VID3D_OFFLINE", "HF_HUB_OFFLINE")

# Errors of the cache's file system, not of a source: another source would meet them again.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


def cache_dir() -> Path:
    """$VID3D_CACHE, else $XDG_CACHE_HOME/vid3d, else ~/.cache/vid3d. It need not exist."""
    try:
        if own := os.environ.get("VID3D_CACHE"):
            return Path(own).expanduser().absolute()
        if xdg := os.environ.get("XDG_CACHE_HOME"):
            return Path(xdg).expanduser().absolute() / "vid3d"
        return Path("~/.cache/vid3d").expanduser()
    except RuntimeError as error:  # a user without a home, as in some containers
        raise UsageError(f"no directory for weights ({error}): set VID3D_CACHE to one") from None


def weights_path(file: WeightsFile) -> Path:
    """Where a downloaded file lies, or would lie."""
    return cache_dir() / "weights" / file.model / file.file_name


def first_seen_path(file: WeightsFile) -> Path:
    """Where the sha256 of a file without a published digest is remembered, in the format of sha256sum."""
    return weights_path(file).with_name(f"{file.file_name}.sha256")


def _known(file: WeightsFile) -> WeightsFile:
    """The file with the digest to hold against it: the published ones, or that of the file that was seen first."""
    if file.has_digest:
        return file
    path = first_seen_path(file)
    try:
        digest = path.read_text("ascii")[:64]
    except FileNotFoundError:
        return file
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(f"{path} cannot be read ({error}): delete it to have it written anew") from error
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise WeightsUnavailable(f"{path} holds no sha256: delete it to have it written anew")
    return replace(file, sha256=digest)


def _remember(file: WeightsFile, sha256: str) -> None:
    """Keep the sha256 of a file without a published digest, unless one is kept already."""
    path = first_seen_path(file)
    if file.has_digest or path.exists():
        return
    what = f"no digest of {file.name} was published: the sha256 of the file that is there now, {sha256[:12]}…,"
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as directory:
            part = Path(directory) / path.name
            part.write_text(f"{sha256}  {file.file_name}\n", "ascii")
            part.replace(path)
    except OSError as error:
        _log.info("%s cannot be remembered: %s", what, error.strerror or error)
    else:
        _log.info("%s is remembered in %s and checked from now on", what, path)


@dataclass(frozen=True)
class _Digests:
    """What identifies a file's content."""

    size_bytes: int
    git_blob: str
    sha256: str

    def fits(self, file: WeightsFile) -> bool:
        return (
            file.size_bytes in (None, self.size_bytes)
            and file.git_blob in (None, self.git_blob)
            and self.sha256.startswith(file.sha256 or "")
        )

    def compare(self, file: WeightsFile) -> str:
        """The lines of an error text: expected and found, for every fact that the manifest holds."""
        rows = [
            ("size", None if file.size_bytes is None else f"{file.size_bytes} bytes", f"{self.size_bytes} bytes"),
            ("git blob", file.git_blob, self.git_blob),
            ("sha256", file.sha256, self.sha256),
        ]
        return "\n".join(
            f"  {what + ':':<10}expected {expected}\n{'':<12}found    {found}"
            for what, expected, found in rows
            if expected is not None
        )


def _digest(path: Path) -> _Digests:
    try:
        size_bytes = path.stat().st_size
        # usedforsecurity: git's choice of SHA-1 is not ours, and FIPS builds of Python refuse it otherwise
        blob = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
        sha256 = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                blob.update(chunk)
                sha256.update(chunk)
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error.strerror}") from error
    return _Digests(size_bytes, blob.hexdigest(), sha256.hexdigest())


def file_sha256(path: Path) -> str:
    """The sha256 of any file, 64 hex digits: what tells one checkpoint from another in a recipe.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    return _digest(path).sha256


def verify_file(path: Path, file: WeightsFile) -> str:
    """Check that a file is the one that the manifest names, or, if it has no digest for it, the one seen first.

    Returns:
        The sha256 of the file, 64 hex digits.

    Raises:
        ChecksumMismatch: size or digests differ.
        WeightsUnavailable: the file cannot be read.
    """
    digests, known = _digest(path), _known(file)
    if not digests.fits(known):
        what = f"the published file of {file.name}" if known is file else _describe_first_seen(file)
        raise ChecksumMismatch(
            f"{path} is not {what}:\n{digests.compare(known)}\n"
            f"Delete it and type: vid3d weights {f'pull {file.name}' if file.is_fetched else f'add {file.name} FILE'}"
        )
    return digests.sha256


def _describe_first_seen(file: WeightsFile) -> str:
    return f"the file of {file.name} that was first seen here (to trust another one, delete {first_seen_path(file)})"


def locate(file: WeightsFile) -> Path:
    """Find a file without the network, and its index if it has one.

    Returns:
        Its path, verified: in the cache, or in the installed package.

    Raises:
        WeightsUnavailable: it is not there, or is another file; the text says what to do.
    """
    paths = []
    for part in file.parts:
        path, problems = _look_up(part)
        if path is None:
            raise WeightsUnavailable(_missing_message(part, problems))
        paths.append(path)
    return paths[0]


def _places(file: WeightsFile) -> Iterator[Path]:
    """Where a file may lie: what was installed with vid3d first, which needs no cache."""
    for source in file.sources:
        if isinstance(source, PackagedSource):
            yield data_path() / source.file
    yield weights_path(file)


def path_on_disk(file: WeightsFile) -> Path | None:
    """Where a file of that name lies, unverified; None: nowhere."""
    return next((path for path in _places(file) if path.is_file()), None)


def is_on_disk(file: WeightsFile) -> bool:
    """Whether a file of that name is there, and its index if it has one; `locate` also verifies them."""
    return all(path_on_disk(part) is not None for part in file.parts)


def _look_up(file: WeightsFile) -> tuple[Path | None, list[str]]:
    """Where the verified file is, or None and what is wrong with the files that stand in its place."""
    problems = []
    for path in _places(file):
        # False also where a directory of the path may not be read
        if not os.path.lexists(path):
            continue
        try:
            _remember(file, verify_file(path, file))
        except ChecksumMismatch:
            problems.append(f"{path}\n    is there, but is {_describe_other(file)}")
        except WeightsUnavailable as error:
            problems.append(str(error))
        else:
            return path, []
    return None, problems


def _describe_other(file: WeightsFile) -> str:
    """What a file is that failed `verify_file`."""
    if _known(file) is file:
        return "damaged or another file (wrong size or digest)"
    return f"damaged, or not {_describe_first_seen(file)}"


def _missing_message(file: WeightsFile, problems: Sequence[str], *, tried: bool = False) -> str:
    """The one text for weights that cannot be had: what, why, from where, whereto, and what to type."""
    what = f"weights {file.name} ({file.file_name}, {file.describe_size()}) are not on this machine"
    lines = [f"{what} and could not be fetched:" if tried else f"{what}."]
    lines += [f"  {problem}" for problem in problems]
    by_hand = [source for source in file.sources if isinstance(source, ManualSource)]
    if not tried and file.is_fetched:
        lines += ["Published at:", *(f"  {source.describe()}" for source in file.sources if source not in by_hand)]
    if by_hand:
        lines += ["To be had by hand, in a browser:", *(f"  {source.url}\n    {source.how}" for source in by_hand)]
    if file.is_fetched:
        lines += [
            f"With a connection:     vid3d weights pull {file.model}",
            f"From another machine:  download it there, then: vid3d weights add {file.model} FILE",
        ]
    else:
        lines.append(f"Then:                  vid3d weights add {file.model} FILE")
    lines += [
        f"                       (or copy it to {weights_path(file)})",
        f"A file of your own:    --weights {file.stream}=FILE",
    ]
    return "\n".join(lines)


def pull(file: WeightsFile, *, progress: Progress | None = None) -> Path:
    """Download a file, and its index if it has one, unless it is there already and right.

    Each source is tried in turn; a file is put in its place only after it was verified.

    Args:
        file: what to download.
        progress: called while bytes arrive.

    Returns:
        The path of the file.

    Raises:
        WeightsUnavailable: no source gave the file, or the cache cannot be written; the text says what to do.
    """
    paths = [_pull_part(part, progress) for part in file.parts]
    return paths[0]


def _pull_part(file: WeightsFile, progress: Progress | None) -> Path:
    path, problems = _look_up(file)
    if path is not None:
        return path
    for source in file.sources:
        if isinstance(source, ManualSource):
            continue
        try:
            with _place(file) as part:
                _fetch(source, file, progress, part)
            return weights_path(file)
        except ChecksumMismatch:
            what = "a damaged or different file" if _known(file) is file else f"what is {_describe_other(file)}"
            problems.append(f"{source.describe()}\n    gave {what}")
        except _SourceError as error:
            problems.append(f"{source.describe()}\n    {error}")
    raise WeightsUnavailable(_missing_message(file, problems, tried=file.is_fetched))


def add(name: str, path: Path, *, check: Check) -> WeightsFile:
    """Put a file that was downloaded by other means into the cache.

    Args:
        name: a model, whose stream is then recognised by the file's digest, or "model:stream".
        path: the file; it is copied.
        check: tries a file without a published digest on the network; of two streams it tells which one the file is.

    Returns:
        The manifest's entry of the file.

    Raises:
        UsageError: there is no such model, stream or file.
        ChecksumMismatch: it is none of the model's files.
        WeightsUnavailable: the cache cannot be written, or nobody published weights of the model.
    """
    candidates = [part for file in parse_weights_name(name) for part in file.parts]
    try:
        digests = _digest(path)
    except WeightsUnavailable as error:
        raise UsageError(str(error)) from error
    problems: list[str] = []
    for file in candidates:
        problem = _misfit(file, path, digests, check)
        if problem is None:
            with _place(file) as part:
                shutil.copyfile(path, part)
            return file
        problems += [f"{file.name} ({file.file_name}):", problem]
    raise ChecksumMismatch(_not_published_message(name, path, candidates, digests, problems))


def _misfit(file: WeightsFile, path: Path, digests: _Digests, check: Check) -> str | None:
    """Why a file is not the one of this entry; None: it is."""
    known = _known(file)
    if not digests.fits(known):
        seen = "" if known is file else f"\n  expected is {_describe_first_seen(file)}"
        return digests.compare(known) + seen
    if not file.has_digest:
        try:
            check(file, path)
        except CheckpointError as error:
            return f"  {error}"
    return None


def _not_published_message(
    name: str, path: Path, candidates: Sequence[WeightsFile], digests: _Digests, problems: Sequence[str]
) -> str:
    lines = [f"{path} is not a published file of {name}.", *problems]
    known = [part for entry in model_entries().values() for file in entry.files for part in file.parts]
    if others := [file for file in known if file.has_digest and digests.fits(file)]:
        lines.append(f"It is {others[0].name}. Type: vid3d weights add {others[0].name} {path}")
    elif all(file.has_digest for file in candidates):
        own = f"--weights {candidates[0].stream}={path}"
        lines.append(f"Download it again, or use it unverified, as a file of your own: {own}")
    else:
        lines.append("Download it again.")
    return "\n".join(lines)


@contextlib.contextmanager
def _place(file: WeightsFile) -> Iterator[Path]:
    """Have the block write a file beside its place; verify it and move it there, or leave nothing behind."""
    target = weights_path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=target.parent) as directory:
            part = Path(directory) / file.file_name
            yield part
            sha256 = verify_file(part, file)
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            part.replace(target)
            _remember(file, sha256)
    except OSError as error:
        raise WeightsUnavailable(
            f"weights {file.name} cannot be written to {target.parent}: {error.strerror or error}\n"
            f"Make room or give write access there, or set VID3D_CACHE to a directory that can be written."
        ) from error


class _SourceError(Exception):
    """A source did not give the file; the text is the short reason."""


class _OnlyToHttps(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to where no certificate vouches for what comes."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https:"):
            raise _SourceError(f"redirects to {newurl}, and no digest tells what that should give")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(source: Source, file: WeightsFile, progress: Progress | None, target: Path) -> None:
    """Get a file from one source that is not for hands alone.

    Raises:
        _SourceError: it was not to be had from there.
        OSError: it could not be written.
    """
    if isinstance(source, PackagedSource):
        raise _SourceError("is missing or damaged: reinstall vid3d")
    try:
        if isinstance(source, HubSource):
            _fetch_hub(source, file, target)
        elif isinstance(source, UrlSource):
            _download(source.url, file, progress, target)
    except _SourceError:
        raise
    except Exception as error:  # of whatever library huggingface_hub uses below it
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise _SourceError(_short_reason(error)) from error


def _fetch_hub(source: HubSource, file: WeightsFile, target: Path) -> None:
    import huggingface_hub  # here because it takes 70 ms, which only this source needs

    # The user's own Hub cache may hold the file, also on a machine without network.
    cached = huggingface_hub.try_to_load_from_cache(source.repo, source.file, revision=source.revision)
    if isinstance(cached, str):
        with contextlib.suppress(WeightsError):
            verify_file(Path(cached), file)
            shutil.copyfile(cached, target)
            return
    _require_network()
    url = huggingface_hub.hf_hub_url(source.repo, source.file, revision=source.revision)
    # hf_hub_download retries an unreachable Hub for 23 s; this asks once. No token: a stale one would be refused.
    huggingface_hub.get_hf_file_metadata(url, token=False, timeout=_NETWORK_TIMEOUT_SECONDS)
    downloaded = huggingface_hub.hf_hub_download(
        source.repo, source.file, revision=source.revision, local_dir=target.parent, token=False
    )  # it draws a bar of its own, on a terminal
    Path(downloaded).replace(target)


def _require_network() -> None:
    for variable in _OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _SourceError(f"not tried: {variable} is set")


def _download(url: str, file: WeightsFile, progress: Progress | None, target: Path) -> None:
    _require_network()
    request = urllib.request.Request(url, headers={"User-Agent": f"vid3d/{__version__}"})
    opener = urllib.request.build_opener(*([] if file.has_digest else [_OnlyToHttps]))
    with (
        opener.open(request, timeout=_NETWORK_TIMEOUT_SECONDS) as response,
        target.open("wb") as out,
    ):
        length = response.headers.get("Content-Length")
        total_bytes = int(length) if length else file.size_bytes
        num_bytes = 0
        while chunk := response.read(_CHUNK_BYTES):
            out.write(chunk)
            num_bytes += len(chunk)
            if progress is not None:
                progress(num_bytes, total_bytes)
    if length and num_bytes < int(length):
        raise _SourceError(f"the connection broke after {num_bytes} of {length} bytes")


def _short_reason(error: BaseException) -> str:
    """Why a download failed, in a few words: the innermost cause, which names the host's or the network's complaint."""
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return f"the server answered HTTP {status}"
    # urllib keeps the cause in `reason`, requests in its first argument, everybody else where Python does
    for inner in (error.__cause__, getattr(error, "reason", None), *error.args[:1]):
        if isinstance(inner, BaseException):
            return _short_reason(inner)
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text.splitlines()[0])[:160]
