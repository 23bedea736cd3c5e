"""Finds, downloads and verifies the checkpoint files of the manifest.

    WeightsFile → locate() or pull() → a path

vid3d verifies a file before it uses it or adds it to the cache. If its publisher gives no digest, vid3d records the
sha256 of the first file beside that file, and compares later ones with it. `checkpoint.py` reads the content.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..durable import AtomicFile
from ..errors import CheckpointError, ChecksumMismatch, OutputError, UsageError, WeightsError, WeightsUnavailable
from ..offline import is_on
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
"""Called with the bytes received so far and the bytes in total (None: not known)."""

Find = Callable[[WeightsFile], Path]
"""Finds or downloads a checkpoint, like `pull` and `locate`."""

Check = Callable[[WeightsFile, Path], None]
"""Raises CheckpointError if a file does not fit the network of this entry."""

_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 4 << 30  # of a file whose size is not published
_NETWORK_TIMEOUT_SECONDS = 10.0
_OFFLINE_VARIABLES = ("VID3D_OFFLINE", "HF_HUB_OFFLINE")


def cache_dir() -> Path:
    """Return $VID3D_CACHE, else $XDG_CACHE_HOME/vid3d, else ~/.cache/vid3d. The directory need not exist."""
    try:
        if own := os.environ.get("VID3D_CACHE"):
            return Path(own).expanduser().absolute()
        if xdg := os.environ.get("XDG_CACHE_HOME"):
            return Path(xdg).expanduser().absolute() / "vid3d"
        return Path("~/.cache/vid3d").expanduser()
    except RuntimeError as error:  # a user without a home directory, as in some containers
        raise UsageError(f"no directory for weights ({error}): set VID3D_CACHE to a directory") from None


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


@dataclass(frozen=True)
class _Digests:
    """What identifies the content of a file."""

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
        """Return the lines of an error: expected and found, for every fact that the manifest holds."""
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


_hashed: dict[tuple[int, ...], _Digests] = {}
"""The files that this process has hashed, by device, inode, size and time of change: a rename changes none of them."""


def _digest(stream: BinaryIO) -> _Digests:
    """Return the digests of an open file, which is hashed once in a process."""
    facts = os.fstat(stream.fileno())
    key = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
    if key not in _hashed:
        # usedforsecurity: git chose SHA-1, and FIPS builds of Python refuse it otherwise
        blob = hashlib.sha1(b"blob %d\0" % facts.st_size, usedforsecurity=False)
        sha256 = hashlib.sha256()
        stream.seek(0)
        while chunk := stream.read(_CHUNK_BYTES):
            blob.update(chunk)
            sha256.update(chunk)
        _hashed[key] = _Digests(facts.st_size, blob.hexdigest(), sha256.hexdigest())
    return _hashed[key]


def _digest_path(path: Path) -> _Digests:
    try:
        with path.open("rb") as stream:
            return _digest(stream)
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be read: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of any file, 64 hex digits; an unchanged file is hashed once in a process.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    return _digest_path(path).sha256


def known_sha256(file: WeightsFile) -> str | None:
    """Return the sha256 of a file, 64 hex digits, without the network: the published one, or that of the file on disk.

    None if only a part of it was published, or nothing, and no verified file is on disk.
    """
    if file.sha256 is not None and len(file.sha256) == 64:
        return file.sha256
    path, _ = _look_up(file, records=False)  # planning writes nothing
    return None if path is None else file_sha256(path)


def verify_file(path: Path, file: WeightsFile) -> str:
    """Check that a file is the one that the manifest names or, without a published digest, the one seen first.

    Returns:
        The sha256 of the file, 64 hex digits.

    Raises:
        ChecksumMismatch: size or digests differ.
        WeightsUnavailable: the file cannot be read.
    """
    return _verify(_digest_path(path), path, file)


def _verify(digests: _Digests, path: Path, file: WeightsFile) -> str:
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


def locate(file: WeightsFile) -> Path:
    """Return the path of a verified file on this machine: in the cache, or in the installed package.

    Its index, if it has one, is verified too.

    Raises:
        WeightsUnavailable: the file is missing or is another one; the text says what to type.
    """
    return find_all(file.parts, _locate_part)[0]


def _locate_part(file: WeightsFile) -> Path:
    path, problems = _look_up(file)
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


def _look_up(file: WeightsFile, *, records: bool = True) -> tuple[Path | None, list[str]]:
    """Return the path of the verified file; or None, and what is wrong with each file in its place.

    Unless `records` is False, the digest of a file without a published one is recorded, and compared from then on.
    """
    problems = []
    for path in _places(file):
        # False also if a directory of the path cannot be read
        if not os.path.lexists(path):
            continue
        try:
            digest = verify_file(path, file)
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
        lines.append("Without a download:    --model s3d_mini; it recognises 10 motions of the camera, and no actions")
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
    for source in file.sources:
        if isinstance(source, ManualSource):
            continue
        try:
            with _add_to_cache(file) as out:
                _fetch(source, file, progress, out)
            return weights_path(file)
        except ChecksumMismatch:
            what = "a damaged or different file" if _expected(file) is file else f"what is {_describe_other(file)}"
            problems.append(f"{source.describe()}\n    gave {what}")
        except _SourceError as error:
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
        digests = _digest_path(path)
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


def _misfit(file: WeightsFile, path: Path, digests: _Digests, check: Check) -> str | None:
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
    name: str, path: Path, candidates: Sequence[WeightsFile], digests: _Digests, problems: Sequence[str]
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
            sha256 = _verify(_digest(out), path, file)
    except OutputError as error:
        raise WeightsUnavailable(
            f"weights {file.name}: {error}\n"
            f"Free some space or get write access there, or set VID3D_CACHE to another directory."
        ) from error
    _record_first_seen(file, sha256)


class _SourceError(Exception):
    """A source did not give the file; the text is the short reason."""


class _OnlyToHttps(urllib.request.HTTPRedirectHandler):
    """Refuses redirections that leave https, and those of http, as of a local mirror, to anything but http and https.

    Args:
        may_use_http: whether http may redirect to http: a digest vouches for the content where no certificate does.
    """

    def __init__(self, may_use_http: bool) -> None:
        self._may_use_http = may_use_http

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme, req.type, self._may_use_http) != ("http", "http", True):
            raise _SourceError(f"redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(source: Source, file: WeightsFile, progress: Progress | None, out: BinaryIO) -> None:
    """Write a file from one source.

    Raises:
        _SourceError: the source did not give it.
        OutputError: it cannot be written.
    """
    if isinstance(source, PackagedSource):
        raise _SourceError("is missing or damaged: reinstall vid3d")
    try:
        if isinstance(source, HubSource):
            _fetch_hub(source, file, progress, out)
        elif isinstance(source, UrlSource):
            _download(source.url, file, progress, out)
    except (_SourceError, OutputError):
        raise
    except Exception as error:  # of urllib, or of the libraries below huggingface_hub
        raise _SourceError(_short_reason(error)) from error


def _fetch_hub(source: HubSource, file: WeightsFile, progress: Progress | None, out: BinaryIO) -> None:
    import huggingface_hub  # takes 70 ms, which only this source needs

    # The user's own Hub cache may hold the file, also on a machine without network.
    cached = huggingface_hub.try_to_load_from_cache(source.repo, source.file, revision=source.revision)
    if isinstance(cached, str):
        with contextlib.suppress(WeightsError):
            verify_file(Path(cached), file)
            with Path(cached).open("rb") as stream:
                shutil.copyfileobj(stream, out)
            return
    # Follows HF_ENDPOINT. hf_hub_download is not used: it retries an unreachable Hub for 23 s.
    _download(huggingface_hub.hf_hub_url(source.repo, source.file, revision=source.revision), file, progress, out)


def offline_variable() -> str | None:
    """Return the variable of the environment that forbids downloads, if one does."""
    return next(filter(is_on, _OFFLINE_VARIABLES), None)


def _require_network() -> None:
    if variable := offline_variable():
        raise _SourceError(f"not tried: {variable} is set")


def _download(url: str, file: WeightsFile, progress: Progress | None, out: BinaryIO) -> None:
    _require_network()
    request = urllib.request.Request(url, headers={"User-Agent": f"vid3d/{__version__}"})
    opener = urllib.request.build_opener(_OnlyToHttps(may_use_http=file.has_digest))
    max_bytes = file.size_bytes or _MAX_BYTES
    with opener.open(request, timeout=_NETWORK_TIMEOUT_SECONDS) as response:
        length = response.headers.get("Content-Length")
        total_bytes = int(length) if length else file.size_bytes
        num_bytes = 0
        while chunk := response.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise _SourceError(f"sends more than {max_bytes} bytes: it is not the published file")
            out.write(chunk)
            if progress is not None:
                progress(num_bytes, total_bytes)
    if length and num_bytes < int(length):
        raise _SourceError(f"the connection broke after {num_bytes} of {length} bytes")


def _short_reason(error: BaseException) -> str:
    """Return why a download failed, in a few words: the innermost cause."""
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return f"the server answered HTTP {status}"
    # urllib keeps the cause in `reason`, requests in its first argument, others in `__cause__`
    for inner in (error.__cause__, getattr(error, "reason", None), *error.args[:1]):
        if isinstance(inner, BaseException):
            return _short_reason(inner)
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text.splitlines()[0])[:160]
