"""Downloads checkpoint files from the sources that the manifest names."""

from __future__ import annotations

import contextlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OutputError, WeightsError
from ..offline import is_on
from ..version import __version__
from .digests import digest_path
from .manifest import HubSource, PackagedSource, Source, UrlSource, WeightsFile

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes received so far and the bytes in total (None: not known)."""

_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 4 << 30  # of a file whose size is not published
_NETWORK_TIMEOUT_SECONDS = 10.0
_OFFLINE_VARIABLES = ("VID3D_OFFLINE", "HF_HUB_OFFLINE")


class SourceError(Exception):
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
            raise SourceError(f"redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(source: Source, file: WeightsFile, progress: Progress | None, out: BinaryIO) -> None:
    """Write a file from one source.

    Raises:
        SourceError: the source did not give it.
        OutputError: it cannot be written.
    """
    if isinstance(source, PackagedSource):
        raise SourceError("is missing or damaged: reinstall vid3d")
    try:
        if isinstance(source, HubSource):
            _fetch_hub(source, file, progress, out)
        elif isinstance(source, UrlSource):
            _download(source.url, file, progress, out)
    except (SourceError, OutputError):
        raise
    except Exception as error:  # of urllib, or of the libraries below huggingface_hub
        raise SourceError(_short_reason(error)) from error


def _fetch_hub(source: HubSource, file: WeightsFile, progress: Progress | None, out: BinaryIO) -> None:
    import huggingface_hub  # takes 70 ms, which only this source needs

    # The user's own Hub cache may hold the file, also on a machine without network.
    cached = huggingface_hub.try_to_load_from_cache(source.repo, source.file, revision=source.revision)
    if isinstance(cached, str):
        with contextlib.suppress(WeightsError):
            if digest_path(Path(cached)).fits(file):
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
        raise SourceError(f"not tried: {variable} is set")


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
                raise SourceError(f"sends more than {max_bytes} bytes: it is not the published file")
            out.write(chunk)
            if progress is not None:
                progress(num_bytes, total_bytes)
    if length and num_bytes < int(length):
        raise SourceError(f"the connection broke after {num_bytes} of {length} bytes")


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
