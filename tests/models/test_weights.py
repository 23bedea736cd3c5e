"""The way from the manifest's facts to a verified file. Every server here is on 127.0.0.1."""

import contextlib
import dataclasses
import hashlib
import http.server
import logging
import resource
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from serving import serve

from vid3d_cli.errors import (
    EXIT_WEIGHTS,
    CheckpointError,
    ChecksumMismatch,
    OutputError,
    UsageError,
    WeightsUnavailable,
)
from vid3d_cli.models import download, manifest, weights
from vid3d_cli.models.digests import cache_dir, file_sha256
from vid3d_cli.models.manifest import HubSource, ManualSource, PackagedSource, UrlSource, WeightsFile

CONTENT = b"weights, more or less" * 60_000  # more than one chunk
OTHER = CONTENT[::-1] + b"!"


def git_blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def weights_file(*sources, content=CONTENT, **changes):
    fields = {
        "model": "i3d.test",
        "stream": "rgb",
        "file_name": "rgb.pt",
        "size_bytes": len(content),
        "git_blob": git_blob(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sources": sources,
    }
    return WeightsFile(**{**fields, **changes})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no settings from outside, and no way out of this machine."""
    import huggingface_hub.constants

    proxies = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")
    for variable in ("VID3D_OFFLINE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", *proxies):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    resolve = socket.getaddrinfo

    def resolve_local_only(host, *args, **kwargs):
        if host not in ("127.0.0.1", b"127.0.0.1", "localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_local_only)
    return tmp_path / "cache"


@pytest.fixture
def server():
    """A web server whose pages are `server.pages[path] = (status, body, declared length)`; it counts requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            status, body, length = self.server.pages.get(self.path, (404, b"", 0))
            self.server.requests.append((self.path, self.headers["User-Agent"]))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            # what the Hub's own answers carry
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    with serve(Handler) as server:
        yield server


@pytest.fixture
def good(server):
    server.pages["/good"] = (200, CONTENT, len(CONTENT))
    return UrlSource(f"{server.url}/good")


@pytest.fixture
def bad(server):
    server.pages["/bad"] = (200, CONTENT[:-1] + b"?", len(CONTENT))
    return UrlSource(f"{server.url}/bad")


def files_below(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*")) if directory.exists() else []


def test_every_file_has_its_own_place():
    files = [part for entry in manifest.model_entries().values() for file in entry.files for part in file.parts]
    paths = [weights.weights_path(file) for file in files] + [weights.first_seen_path(file) for file in files]
    assert len(set(paths)) == 2 * len(files)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("VID3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "vid3d"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "vid3d"
    monkeypatch.setenv("VID3D_CACHE", "relative")
    assert cache_dir().is_absolute()


@pytest.mark.parametrize("content", [b"", CONTENT], ids=["empty", "a megabyte"])
def test_verify_file_returns_the_sha256(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert weights.verify_file(path, weights_file(content=content)) == hashlib.sha256(content).hexdigest()
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_agrees_on_the_blob_id(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    weights.verify_file(path, weights_file(size_bytes=None, sha256=None, git_blob=blob))


@pytest.mark.parametrize("only", ["size_bytes", "git_blob", "sha256"])
def test_each_fact_alone_catches_a_wrong_file(tmp_path, only):
    path = tmp_path / "x"
    path.write_bytes(CONTENT + b"?")
    unknown = dict.fromkeys({"size_bytes", "git_blob", "sha256"} - {only})
    with pytest.raises(ChecksumMismatch) as caught:
        weights.verify_file(path, weights_file(UrlSource("https://x"), **unknown))
    text = str(caught.value)
    assert text.count("expected") == text.count("found") == 1
    assert str(getattr(weights_file(), only)) in text
    assert "vid3d weights pull i3d.test:rgb" in text
    assert caught.value.exit_code == EXIT_WEIGHTS


def test_a_published_prefix_of_the_sha256_is_enough(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert weights.verify_file(path, weights_file(git_blob=None, sha256=digest[:8])) == digest


def test_a_sha256_is_known_without_the_network(good, server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert weights.known_sha256(weights_file(good)) == digest
    partial = weights_file(good, sha256=digest[:8])
    unknown = weights_file(HAND, **UNKNOWN)
    for file in (partial, unknown):
        assert weights.known_sha256(file) is None
    put(partial)
    for file in (partial, unknown):
        assert weights.known_sha256(file) == digest
        assert not weights.first_seen_path(file).exists()  # planning writes nothing
    put(partial, OTHER)
    assert weights.known_sha256(partial) is None
    assert server.requests == []


def test_verify_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsUnavailable, match="cannot be read: No such file"):
        weights.verify_file(tmp_path / "x", weights_file())


def test_locate_writes_nothing_and_says_what_to_type(cache):
    file = manifest.parse_weights_name("i3d.kinetics400:flow")[0]
    with pytest.raises(WeightsUnavailable) as caught:
        weights.locate(file)
    text = str(caught.value)
    assert "weights i3d.kinetics400:flow (flow_imagenet.pt, about 50.8 MB) are not on this machine" in text
    assert str(cache / "weights" / "i3d.kinetics400" / "flow_imagenet.pt") in text
    assert all(source.url in text for source in file.sources)
    assert "vid3d weights pull i3d.kinetics400\n" in text
    assert "vid3d weights add i3d.kinetics400 FILE" in text
    assert "--weights flow=FILE" in text
    assert not cache.exists()


def test_locate_finds_a_file_put_there_by_hand(good):
    file = weights_file(good)
    path = weights.weights_path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert weights.locate(file) == path


def test_locate_refuses_a_damaged_file(good):
    file = weights_file(good)
    path = weights.weights_path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:1000])
    with pytest.raises(WeightsUnavailable) as caught:
        weights.locate(file)
    assert f"{path}\n    exists, but is damaged" in str(caught.value)


def test_packaged_weights_need_no_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "data_path", lambda: tmp_path)
    (tmp_path / "w.pt").write_bytes(CONTENT)
    file = weights_file(PackagedSource("w.pt"))
    assert weights.locate(file) == weights.pull(file) == tmp_path / "w.pt"
    assert not cache.exists()
    (tmp_path / "w.pt").unlink()
    with pytest.raises(WeightsUnavailable, match="reinstall vid3d"):
        weights.pull(file)


def test_pull_then_locate(server, good, cache):
    seen = []
    file = weights_file(good)
    path = weights.pull(file, progress=lambda done, total: seen.append((done, total)))
    assert path == weights.locate(file) == cache / "weights" / "i3d.test" / "rgb.pt"
    assert path.read_bytes() == CONTENT
    assert files_below(cache) == ["weights", "weights/i3d.test", "weights/i3d.test/rgb.pt"]
    assert seen == sorted(seen) and seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) > 1
    assert weights.pull(file) == path
    assert len(server.requests) == 1
    assert server.requests[0][1].startswith("vid3d")


def test_pull_tries_the_next_source(server, good, bad):
    assert weights.pull(weights_file(bad, UrlSource(f"{server.url}/missing"), good)).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/bad", "/missing", "/good"]


def test_pull_replaces_a_damaged_file(good):
    file = weights_file(good)
    path = weights.weights_path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<html>please log in</html>")
    assert weights.pull(file).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((200, CONTENT[:-1] + b"?", len(CONTENT)), "gave a damaged or different file"),
        ((200, CONTENT[:5000], len(CONTENT)), f"the connection broke after 5000 of {len(CONTENT)} bytes"),
        ((404, b"", 0), "the server answered HTTP 404"),
        ((503, b"", 0), "the server answered HTTP 503"),
    ],
    ids=["wrong content", "truncated", "404", "503"],
)
def test_failed_download_leaves_nothing(server, cache, page, reason):
    server.pages["/x"] = page
    source = UrlSource(f"{server.url}/x")
    with pytest.raises(WeightsUnavailable) as caught:
        weights.pull(weights_file(source))
    assert f"{source.url}\n    {reason}\n" in str(caught.value)
    assert "and no source gave them:" in str(caught.value)
    assert files_below(cache) == ["weights", "weights/i3d.test"]


def test_a_failed_download_keeps_the_users_file(bad):
    file = weights_file(bad)
    path = weights.weights_path(file)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(WeightsUnavailable, match="exists, but is damaged"):
        weights.pull(file)
    assert path.read_bytes() == b"mine"


def test_interrupted_download_leaves_nothing(good, cache):
    def interrupt(num_bytes, total_bytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.pull(weights_file(good), progress=interrupt)
    assert files_below(cache) == ["weights", "weights/i3d.test"]


def test_a_cache_that_cannot_be_written(good, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsUnavailable, match=r"(?s)cannot be written: Not a directory.*set VID3D_CACHE"):
        weights.pull(weights_file(good))


def test_full_disk_is_not_blamed_on_the_source(good, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with pytest.raises(WeightsUnavailable, match=r"(?s)be written: File too large.*set VID3D_CACHE") as caught:
            weights.pull(weights_file(good))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == EXIT_WEIGHTS
    assert files_below(cache) == ["weights", "weights/i3d.test"]


@pytest.mark.parametrize("variable", ["VID3D_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_tries_nothing(server, good, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(WeightsUnavailable, match=f"not tried: {variable} is set"):
        weights.pull(weights_file(HubSource("a/b", "c.pt", "0" * 40), good))
    assert server.requests == []


HUB = HubSource("owner/repo", "dir/rgb.pt", "0" * 40)
HUB_PATH = f"/owner/repo/resolve/{'0' * 40}/dir/rgb.pt"


@pytest.fixture
def hub(server, monkeypatch):
    """huggingface_hub itself, talking to the server on this machine."""
    from huggingface_hub import constants, file_download

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    # where versions before 1.0 look
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    return server


def test_hub_download(hub, cache, capfd):
    hub.pages[HUB_PATH] = (200, CONTENT, len(CONTENT))
    path = weights.pull(weights_file(HUB))
    assert path.read_bytes() == CONTENT
    assert files_below(cache) == ["weights", "weights/i3d.test", "weights/i3d.test/rgb.pt"]
    assert capfd.readouterr() == ("", "")


def test_hub_sends_the_wrong_file(hub, good):
    hub.pages[HUB_PATH] = (200, b"?" * len(CONTENT), len(CONTENT))
    assert weights.pull(weights_file(HUB, good)).read_bytes() == CONTENT


def test_hub_does_not_know_the_file(hub, capfd):
    with pytest.raises(WeightsUnavailable, match="the server answered HTTP 404"):
        weights.pull(weights_file(HUB))
    assert capfd.readouterr() == ("", "")


def test_unreachable_hub_fails_fast(capfd):
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"resolve/0{40}/dir/rgb\.pt\n    Name or service not known"):
        weights.pull(weights_file(HUB))
    assert time.monotonic() - start < 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("offline", [False, True])
def test_hub_cache_is_used_without_network(tmp_path, monkeypatch, offline):
    snapshot = tmp_path / "hub" / "models--owner--repo" / "snapshots" / HUB.revision / HUB.file
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(CONTENT)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights.pull(weights_file(HUB)).read_bytes() == CONTENT


# Files of which no digest was published: the one seen first is held on to --------------------------------------------

UNKNOWN = {"size_bytes": None, "git_blob": None, "sha256": None}
HAND = ManualSource("https://drive.example/x", "Ask nicely.")


@pytest.fixture
def said(monkeypatch):
    """What the tool says on the way, as a list that grows."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("vid3d_cli")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return messages


def put(file, content=CONTENT):
    path = weights.weights_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_first_download_is_recorded(hub, cache, said):
    hub.pages[HUB_PATH] = (200, CONTENT, len(CONTENT))
    file = weights_file(HUB, **UNKNOWN)
    path = weights.pull(file)
    folder = "weights/i3d.test"
    assert files_below(cache) == ["weights", folder, f"{folder}/rgb.pt", f"{folder}/rgb.pt.sha256"]
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert weights.first_seen_path(file).read_text() == f"{digest}  rgb.pt\n"
    assert len(said) == 1 and digest[:12] in said[0] and "no digest of i3d.test:rgb was published" in said[0]
    assert weights.pull(file) == weights.locate(file) == path
    assert len(said) == 1


def test_a_file_put_there_by_hand_is_recorded(said):
    file = weights_file(HAND, **UNKNOWN)
    path = put(file)
    assert weights.locate(file) == weights.pull(file) == path
    assert weights.first_seen_path(file).exists() and len(said) == 1


def test_a_published_digest_needs_no_record(good, cache):
    weights.pull(weights_file(good))
    assert not list(cache.rglob("*.sha256"))


def test_a_file_that_changed_is_refused():
    file = weights_file(HAND, **UNKNOWN)
    path = put(file)
    weights.locate(file)
    put(file, OTHER)
    with pytest.raises(WeightsUnavailable) as caught:
        weights.locate(file)
    text = str(caught.value)
    assert f"{path}\n    exists, but is damaged, or not the file of i3d.test:rgb that vid3d saw first" in text
    assert f"delete {path}.sha256" in text
    with pytest.raises(ChecksumMismatch, match=r"(?s)saw first.*expected.*found.*vid3d weights add i3d\.test:rgb FILE"):
        weights.verify_file(path, file)
    weights.first_seen_path(file).unlink()
    assert weights.locate(file) == path


def test_a_download_must_be_the_one_seen_first(hub, cache):
    hub.pages[HUB_PATH] = (200, CONTENT, len(CONTENT))
    file = weights_file(HUB, **UNKNOWN)
    weights.pull(file).unlink()
    hub.pages[HUB_PATH] = (200, OTHER, len(OTHER))
    with pytest.raises(WeightsUnavailable, match=r"gave what is damaged, or not the file .* saw first"):
        weights.pull(file)
    assert not weights.weights_path(file).exists()
    hub.pages[HUB_PATH] = (200, CONTENT, len(CONTENT))
    assert weights.pull(file).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_no_obstacle(monkeypatch, said):
    file = weights_file(HAND, **UNKNOWN)
    path = put(file)

    def refuse(target):
        raise OutputError(f"{target}: cannot be written: Read-only file system")

    monkeypatch.setattr(weights, "AtomicFile", refuse)
    assert weights.locate(file) == path
    assert not weights.first_seen_path(file).exists()
    assert "is not recorded: " in said[0] and "Read-only file system" in said[0]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64], ids=["empty", "no digest", "no text"])
def test_a_damaged_record_is_named(content):
    file = weights_file(HAND, **UNKNOWN)
    put(file)
    weights.first_seen_path(file).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"rgb\.pt\.sha256 .*delete it, and vid3d records a new one"):
        weights.locate(file)


@pytest.mark.parametrize("has_digest", [True, False])
@pytest.mark.parametrize(
    "url", ["https://elsewhere/x", "http://elsewhere/x", "ftp://here/x", "file:///etc/passwd", "HTTP://here/x"]
)
def test_no_redirection_leaves_https(url, has_digest):
    """Before: where a digest is known, anyone on the way could see and change what http or ftp brought."""
    handler = download._OnlyToHttps(may_use_http=has_digest)
    request = urllib.request.Request("https://here/x")
    if url.startswith("https:"):
        assert handler.redirect_request(request, None, 302, "Found", {}, url).full_url == url
    else:
        with pytest.raises(download.SourceError, match=f"redirects to {url}, which is not https"):
            handler.redirect_request(request, None, 302, "Found", {}, url)


def test_the_manifest_names_https_only():
    for entry in manifest.model_entries().values():
        for file in entry.files:
            sources = [source for part in file.parts for source in part.sources]
            assert all(s.url.startswith("https://") for s in sources if isinstance(s, (HubSource, UrlSource))), entry


class Endless(http.server.BaseHTTPRequestHandler):
    """Sends without an end, and says nothing or anything of its length."""

    def do_GET(self):
        self.send_response(200)
        if self.path != "/":
            self.send_header("Content-Length", self.path[1:])
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(bytes(2**16))

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("length", ["", "1000000000000", str(2 * len(CONTENT)), "-1", "much"])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_server_that_sends_more_is_cut_off(server, cache, monkeypatch, length, size):
    """Before: a server could fill the disk; the published size was compared afterwards."""
    server.RequestHandlerClass = Endless
    monkeypatch.setattr(download, "_MAX_BYTES", 3 * len(CONTENT) // 2)
    received = []
    file = weights_file(UrlSource(f"{server.url}/{length}"), size_bytes=size)
    with pytest.raises(WeightsUnavailable):
        weights.pull(file, progress=lambda num_bytes, _: received.append(num_bytes))
    assert max(received, default=0) <= 1.5 * len(CONTENT)
    assert not list(cache.rglob("*.p*t*"))


def test_a_link_in_the_cache_is_replaced_and_not_followed(good, cache, tmp_path):
    """What an attacker who may write to the cache would get: a file of the user's overwritten."""
    file, mine = weights_file(good), tmp_path / "thesis.txt"
    mine.write_text("mine")
    weights.weights_path(file).parent.mkdir(parents=True)
    weights.weights_path(file).symlink_to(mine)
    assert weights.pull(file).read_bytes() == CONTENT
    assert mine.read_text() == "mine"


def test_no_token_is_sent(server, good, monkeypatch, tmp_path):
    """What a mirror or the target of a redirection would get: the user's token of the Hugging Face Hub."""
    seen = []

    class Listening(server.RequestHandlerClass):
        def do_GET(self):  # noqa: N802
            seen.append(dict(self.headers))
            super().do_GET()

    server.RequestHandlerClass = Listening
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    for name, value in {"HF_TOKEN": "secret", "HUGGING_FACE_HUB_TOKEN": "secret", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    weights.pull(weights_file(good))
    assert seen
    assert "secret" not in str(seen) and "Authorization" not in str(seen)


def test_redirections_are_followed_where_a_digest_is_known(server, good):
    class Redirect(server.RequestHandlerClass):
        def send_response(self, code):
            super().send_response(302 if self.path == "/moved" else code)
            if self.path == "/moved":
                self.send_header("Location", good.url)

    server.RequestHandlerClass = Redirect
    server.pages["/moved"] = (302, b"", 0)
    moved = UrlSource(f"{server.url}/moved")
    assert weights.pull(weights_file(moved)).read_bytes() == CONTENT
    with pytest.raises(WeightsUnavailable, match=f"redirects to {good.url}, which is not https"):
        weights.pull(weights_file(moved, file_name="other.pt", **UNKNOWN))


# Files that a person gets --------------------------------------------------------------------------------------------


def test_manual_sources_are_never_fetched(server, good, cache):
    file = weights_file(ManualSource(good.url, "Ask nicely."))
    for get in (weights.pull, weights.locate):
        with pytest.raises(WeightsUnavailable) as caught:
            get(file)
        text = str(caught.value)
        assert "are not on this machine.\nDownload by hand" in text
        assert f"  {good.url}\n    Ask nicely.\n" in text
        assert "vid3d weights add i3d.test FILE" in text
        assert "pull" not in text
    assert server.requests == []
    assert not cache.exists()


def test_a_manual_source_is_named_when_the_others_fail(bad):
    with pytest.raises(WeightsUnavailable) as caught:
        weights.pull(weights_file(bad, HAND))
    text = str(caught.value)
    assert "and no source gave them:" in text and "gave a damaged" in text
    assert "Download by hand, in a browser:\n  https://drive.example/x\n    Ask nicely.\n" in text


# Checkpoints of two files --------------------------------------------------------------------------------------------


@pytest.fixture
def pair(server):
    """A checkpoint with an index, both published."""
    for name, content in (("data", CONTENT), ("index", b"index")):
        server.pages[f"/{name}"] = (200, content, len(content))
    index = weights_file(UrlSource(f"{server.url}/index"), content=b"index", file_name="x.index")
    return weights_file(UrlSource(f"{server.url}/data"), file_name="x.data-00000-of-00001", index=index)


def test_pull_gets_both_files(pair, cache):
    path = weights.pull(pair)
    assert path == weights.locate(pair) == weights.weights_path(pair)
    assert path.read_bytes() == CONTENT
    assert (path.parent / "x.index").read_bytes() == b"index"
    assert weights.is_on_disk(pair)


def test_a_missing_index_is_named_and_fetched(pair):
    weights.pull(pair)
    index = weights.weights_path(pair.index)
    index.write_bytes(b"other")
    with pytest.raises(WeightsUnavailable, match=r"\(x\.index, 0\.0 MB\) are not on this machine"):
        weights.locate(pair)
    index.unlink()
    assert not weights.is_on_disk(pair)
    weights.pull(pair)
    assert weights.is_on_disk(pair)


@pytest.fixture
def two_streams(monkeypatch):
    """A model whose rgb file is CONTENT and whose flow file is CONTENT reversed."""
    flow = weights_file(content=CONTENT[::-1], stream="flow", file_name="flow.pt")
    return install(monkeypatch, weights_file(), flow)


def install(monkeypatch, *files):
    """Have the manifest hold one model, i3d.test, with these files."""
    entry = manifest.find_model("i3d.kinetics400")
    streams = {file.stream: dataclasses.replace(entry.streams[file.stream], weights=file) for file in files}
    entry = dataclasses.replace(entry, name="i3d.test", streams=streams)
    for module in (manifest, weights):
        monkeypatch.setattr(module, "model_entries", lambda: {"i3d.test": entry})
    return entry


def never(file, path):
    raise AssertionError("a digest decides")


@pytest.mark.parametrize("name", ["i3d", "i3d.test", "i3d.test:flow"])
def test_add_recognises_the_stream(two_streams, tmp_path, cache, name):
    path = tmp_path / "download(1)"
    path.write_bytes(CONTENT[::-1])
    file = weights.add(name, path, check=never)
    assert file.name == "i3d.test:flow"
    assert weights.locate(file).read_bytes() == CONTENT[::-1]
    assert files_below(cache) == ["weights", "weights/i3d.test", "weights/i3d.test/flow.pt"]
    assert path.exists()


def test_add_a_wrong_file(two_streams, tmp_path, cache):
    path = tmp_path / "x.pt"
    path.write_bytes(b"my own network")
    with pytest.raises(ChecksumMismatch) as caught:
        weights.add("i3d.test", path, check=never)
    text = str(caught.value)
    assert two_streams.streams["rgb"].weights.sha256 in text
    assert two_streams.streams["flow"].weights.sha256 in text
    assert hashlib.sha256(b"my own network").hexdigest() in text
    assert f"--weights rgb={path}" in text
    assert not cache.exists()


def test_add_the_other_streams_file(two_streams, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT)
    with pytest.raises(ChecksumMismatch, match=r"It is i3d\.test:rgb\. Type: vid3d weights add i3d\.test:rgb"):
        weights.add("i3d.test:flow", path, check=never)


def test_add_a_file_that_is_not_there(two_streams, tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        weights.add("i3d.test", tmp_path / "x.pt", check=never)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        weights.add("i3d.test", tmp_path, check=never)


def test_add_both_files_of_a_checkpoint_one_after_the_other(monkeypatch, pair, tmp_path):
    install(monkeypatch, pair)
    for name, content in (("a", b"index"), ("b", CONTENT)):
        (tmp_path / name).write_bytes(content)
        assert not weights.is_on_disk(pair)
        weights.add("i3d.test", tmp_path / name, check=never)
    assert weights.locate(pair).read_bytes() == CONTENT


@pytest.fixture
def two_unknown(monkeypatch):
    """A model with files of which no digest was published."""
    flow = weights_file(HAND, stream="flow", file_name="flow.pt", **UNKNOWN)
    return install(monkeypatch, weights_file(HAND, **UNKNOWN), flow)


def fits(wanted):
    """A check by which a file fits one stream alone."""

    def check(file, path):
        if file.stream != wanted:
            raise CheckpointError(f"{path}: not {file.stream}")

    return check


def test_add_without_a_digest_goes_by_what_fits(two_unknown, tmp_path, cache):
    path = tmp_path / "download(1)"
    path.write_bytes(CONTENT)
    file = weights.add("i3d.test", path, check=fits("flow"))
    assert file.name == "i3d.test:flow"
    assert weights.locate(file).read_bytes() == CONTENT
    folder = "weights/i3d.test"
    assert files_below(cache) == ["weights", folder, f"{folder}/flow.pt", f"{folder}/flow.pt.sha256"]


def test_add_without_a_digest_refuses_what_does_not_fit(two_unknown, tmp_path, cache):
    path = tmp_path / "x.html"
    path.write_bytes(b"<html>sign in</html>")
    with pytest.raises(ChecksumMismatch) as caught:
        weights.add("i3d.test", path, check=fits("none"))
    text = str(caught.value)
    assert f"{path}: not rgb" in text and f"{path}: not flow" in text
    assert "--weights" not in text  # it would not fit as a file of one's own either
    assert not cache.exists()


def test_add_another_file_than_the_one_seen_first(two_unknown, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT)
    file = weights.add("i3d.test:rgb", path, check=fits("rgb"))
    assert weights.add("i3d.test:rgb", path, check=fits("rgb")) == file
    path.write_bytes(OTHER)
    with pytest.raises(ChecksumMismatch, match=r"(?s)expected.*found.*saw first.*rgb\.pt\.sha256"):
        weights.add("i3d.test:rgb", path, check=fits("rgb"))
    assert weights.locate(file).read_bytes() == CONTENT
    weights.first_seen_path(file).unlink()
    weights.add("i3d.test:rgb", path, check=fits("rgb"))
    assert weights.locate(file).read_bytes() == OTHER


def test_add_tries_the_file_on_the_network(vid3d, tmp_path, cache):
    import torch

    from vid3d_cli.models.clip_model import create_model

    for stream in ("rgb", "flow"):
        torch.save(create_model("s3d_g", stream=stream, num_classes=512).state_dict(), tmp_path / f"{stream}.pth")
    refused = vid3d("weights", "add", "s3d_g", tmp_path / "flow.pth")
    assert (refused.exit_code, refused.stdout) == (EXIT_WEIGHTS, "")
    assert "is not a published file of s3d_g" in refused.stderr and "misshapen: conv1" in refused.stderr
    assert not cache.exists()
    added = vid3d("weights", "add", "s3d_g", tmp_path / "rgb.pth")
    place = cache / "weights" / "s3d_g.howto100m" / "s3d_howto100m.pth"
    assert (added.exit_code, added.stdout) == (0, f"s3d_g.howto100m:rgb\t{place}\n")
    assert "no digest of s3d_g.howto100m:rgb was published" in added.stderr
    assert vid3d("weights", "verify", "s3d_g").stdout == f"s3d_g.howto100m:rgb\tok, as first seen\t{place}\n"
    with place.open("r+b") as stream:
        stream.write(b"?")
    changed = vid3d("weights", "verify")
    assert (changed.exit_code, "saw first" in changed.stderr) == (EXIT_WEIGHTS, True)


def test_a_model_without_weights_has_none_to_fetch(vid3d):
    for command in ("pull", "path", "verify"):
        result = vid3d("weights", command, "fstcn")
        assert (result.exit_code, result.stdout) == (EXIT_WEIGHTS, "")
        assert "there are no public weights of fstcn. Nobody published weights of FstCN." in result.stderr


def test_the_list_says_how_to_come_by_each_file(vid3d):
    import json

    rows = {row["name"]: row for row in map(json.loads, vid3d("weights", "list").stdout.splitlines())}
    found = {name: rows[name]["how"] for name in ("i3d.kinetics400:flow", "p3d199.kinetics400:rgb")}
    assert found == {"i3d.kinetics400:flow": "pull", "p3d199.kinetics400:rgb": "by hand, then add"}
    assert rows["s3d_mini.camera_motion:rgb"]["how"] == "installed" and rows["s3d_mini.camera_motion:rgb"]["on_disk"]
    assert (rows["slowfast_r50.kinetics400:rgb"]["digest"], rows["i3d.kinetics400:rgb"]["digest"]) == (False, True)
    assert "s3d.kinetics400:flow" not in rows
