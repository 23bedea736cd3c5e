"""The digests of files that are kept, and when a file is hashed again. A start is a process that knows nothing yet."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from vid3d_cli.errors import ChecksumMismatch
from vid3d_cli.models import digests, weights
from vid3d_cli.models.manifest import PackagedSource, WeightsFile

CONTENT = b"weights, more or less" * 60_000


@pytest.fixture
def hashed(monkeypatch):
    """The number of bytes of each file that is hashed."""
    sizes, digest_stream = [], digests.digest_stream

    def counted(stream):
        sizes.append(os.fstat(stream.fileno()).st_size)
        return digest_stream(stream)

    monkeypatch.setattr(digests, "digest_stream", counted)
    return sizes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, in which the digests of files of any age are kept."""
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -60.0)
    monkeypatch.setattr(digests, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def start(monkeypatch):
    """Make this process forget what it knows of files."""
    return lambda: monkeypatch.setattr(digests, "_known", {})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rgb.pt"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_hashed_once(path, hashed, start):
    expected = digests.digest_path(path)
    for _ in range(3):
        start()
        assert digests.digest_path(path) == expected
        assert digests.file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    assert hashed == [len(CONTENT)]


def change_a_byte(path):
    path.write_bytes(CONTENT[:-1] + b"?")


def change_a_byte_and_put_the_time_back(path):
    facts = path.stat()
    change_a_byte(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace_it(path):
    facts, other = path.stat(), path.with_name("other")
    change_a_byte(other)
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [change_a_byte, change_a_byte_and_put_the_time_back, replace_it])
def test_a_changed_file_is_hashed_again(path, hashed, start, change):
    before = digests.file_sha256(path)
    change(path)
    start()
    assert digests.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before
    assert len(hashed) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"sha256": "0"}', b"\xff"])
def test_a_damaged_entry_is_hashed_again(path, cache, hashed, start, content):
    expected = digests.digest_path(path)
    (entry,) = (cache / "digests").iterdir()
    entry.write_bytes(content)
    start()
    assert digests.digest_path(path) == expected
    assert len(hashed) == 2
    start()
    assert digests.digest_path(path) == expected
    assert len(hashed) == 2


def test_the_digests_of_a_file_that_may_still_change_are_not_kept(path, cache, monkeypatch):
    """A second change within the clock's grain would leave all times as they are."""
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 2.0)
    digests.digest_path(path)
    assert not cache.exists()


@pytest.mark.parametrize("times", ["mtime", "zero"])
def test_times_of_an_image_do_not_tell_versions_apart(path, cache, hashed, start, monkeypatch, times):
    """squashfs gives every version of a file the same time in whole seconds, and numbers files in sequence."""
    real, seconds = path.stat(), 1_700_000_000 if times == "mtime" else 0

    def stat(self, **options):
        facts = SimpleNamespace(st_dev=real.st_dev, st_ino=7, st_size=real.st_size, st_mtime=seconds, st_ctime=seconds)
        return SimpleNamespace(**vars(facts), st_mtime_ns=seconds * 10**9, st_ctime_ns=seconds * 10**9)

    monkeypatch.setattr(type(path), "stat", stat)
    before = digests.file_sha256(path)
    change_a_byte(path)
    start()
    assert digests.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before
    assert not os.path.exists(cache)  # noqa: PTH110  (`Path.stat` is not the real one here)


def test_no_home_directory_only_costs_time(path, hashed, start, monkeypatch):
    """As in a container whose user has none: a user's own checkpoint needs no cache."""
    for variable in ("VID3D_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    for _ in range(2):
        assert digests.file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
        start()
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(path, cache, hashed, start):
    cache.write_text("not a directory")
    for _ in range(2):
        assert digests.file_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
        start()
    assert len(hashed) == 2


def test_a_file_that_rotted_is_found_afresh(path, start, monkeypatch, tmp_path):
    """Bits that change on the disk change no time: `vid3d weights verify` reads whatever is known."""
    monkeypatch.setattr(weights, "data_path", lambda: tmp_path)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    file = WeightsFile("i3d.test", "rgb", "rgb.pt", (PackagedSource("rgb.pt"),), sha256=sha256)
    assert weights.locate(file) == path
    (entry,) = (tmp_path / "cache" / "digests").iterdir()
    change_a_byte(path)
    entry.rename(entry.with_name(digests._name(path.stat())))  # as if no time had changed
    start()
    assert weights.locate(file) == path
    with pytest.raises(ChecksumMismatch):
        weights.verify_file(path, file, afresh=True)
