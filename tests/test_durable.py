"""Files that survive a crash, and the errors of a disk that does not take them."""

import os
import stat
import threading

import pytest
from disks import _fast_disk, file_size_limit  # noqa: F401

from vid3d_cli.durable import AppendedFile, AtomicFile, damaged_lines, read_records, remove_abandoned, write_once
from vid3d_cli.errors import OutputError, UsageError


def files_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


# AtomicFile ----------------------------------------------------------------------------------------------------------


def test_an_atomic_file_appears_when_it_is_committed(tmp_path):
    target = tmp_path / "new" / "a.bin"
    file = AtomicFile(target)
    assert file.write(b"one") == 3
    assert not target.exists()
    file.seek(1)
    file.write(b"NE")
    file.seek(0)
    assert file.read() == b"oNE"
    file.commit()
    assert target.read_bytes() == b"oNE"
    assert file.closed
    assert files_below(tmp_path) == ["new/a.bin"]


def test_an_atomic_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    file = AtomicFile(target)
    file.write(b"x" * 100)
    synced_sizes = []
    real = os.fsync

    def fsync(descriptor):
        synced_sizes.append(os.fstat(descriptor).st_size)
        assert len(synced_sizes) == 1 or target.exists()  # then the directory
        assert len(synced_sizes) > 1 or not target.exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    file.commit()
    assert synced_sizes[0] == 100


def test_an_atomic_file_replaces_an_older_one_at_once(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"older")
    with AtomicFile(target) as file:
        file.write(b"newer")
        file.flush()
        assert target.read_bytes() == b"older"
    assert target.read_bytes() == b"newer"


@pytest.mark.parametrize("error_type", [ValueError, KeyboardInterrupt])
def test_an_atomic_file_is_gone_when_its_block_raises(tmp_path, error_type):
    target = tmp_path / "a.bin"
    target.write_bytes(b"older")
    with pytest.raises(error_type), AtomicFile(target) as file:
        file.write(b"half")
        raise error_type
    assert file.closed
    assert files_below(tmp_path) == ["a.bin"]
    assert target.read_bytes() == b"older"


def test_discarding_twice_or_after_a_commit_changes_nothing(tmp_path):
    file = AtomicFile(tmp_path / "a.bin")
    file.discard()
    file.discard()
    assert files_below(tmp_path) == []
    file = AtomicFile(tmp_path / "a.bin")
    file.commit()
    file.discard()
    assert files_below(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with AtomicFile(tmp_path / "a.bin"):
            pass
        (tmp_path / "b.bin").touch()
        assert os.umask(umask) == umask  # it is left as it was
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "b.bin")]
    assert modes == [mode, mode]


@pytest.mark.parametrize("num_files", [100, pytest.param(3000, marks=pytest.mark.exhaustive)])
def test_a_file_being_written_is_never_removed_as_abandoned(tmp_path, num_files):
    """Another worker looks for those at any time, also between the making of a file and its lock."""
    is_over = threading.Event()

    def tidy():
        while not is_over.is_set():
            remove_abandoned(tmp_path)

    thread = threading.Thread(target=tidy)
    thread.start()
    try:
        for i in range(num_files):
            with AtomicFile(tmp_path / f"{i}.bin"):
                pass
    finally:
        is_over.set()
        thread.join()
    assert len(files_below(tmp_path)) == num_files
    (tmp_path / ".vid3d-old.part").touch()
    remove_abandoned(tmp_path)
    assert len(files_below(tmp_path)) == num_files


def test_two_writers_of_one_target_do_not_mix(tmp_path):
    first, second = AtomicFile(tmp_path / "a.bin"), AtomicFile(tmp_path / "a.bin")
    first.write(b"first")
    second.write(b"second")
    first.commit()
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    second.commit()
    assert (tmp_path / "a.bin").read_bytes() == b"second"


@pytest.mark.parametrize("num_bytes", [50, 100_000])
def test_every_way_to_write_to_a_full_disk_is_an_output_error(tmp_path, num_bytes):
    ways = {
        "write": lambda file: file.write(b"x" * num_bytes),
        "flush": lambda file: file.flush(),
        "seek": lambda file: file.seek(0),
        "commit": lambda file: file.commit(),
    }
    with file_size_limit(10):
        for last in ("flush", "seek", "commit"):
            file = AtomicFile(tmp_path / "a.bin")
            try:
                with pytest.raises(OutputError, match=r"a\.bin: cannot be written"):
                    for way in ("write", last):
                        ways[way](file)
            finally:
                file.discard()
            assert files_below(tmp_path) == []


def test_no_umask_is_set_while_other_threads_create_files(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
    with AtomicFile(tmp_path / "a.bin"):
        pass


def test_of_several_who_write_once_one_does(tmp_path):
    threads = [threading.Thread(target=write_once, args=(tmp_path / "a", b"%d" % i * 1000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = (tmp_path / "a").read_bytes()
    assert len(written) == 1000
    assert len(set(written)) == 1
    write_once(tmp_path / "a", b"too late")
    assert (tmp_path / "a").read_bytes() == written
    assert files_below(tmp_path) == ["a"]


# AppendedFile --------------------------------------------------------------------------------------------------------


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path):
    file = AppendedFile(tmp_path / "new" / "a")
    file.append(b"1234")
    with file_size_limit(10), pytest.raises(OutputError, match="cannot be written"):
        file.append(b"5" * 20)
    file.append(b"56")
    file.sync()
    file.close()
    assert (tmp_path / "new" / "a").read_bytes() == b"123456"


@pytest.mark.parametrize("harm", ["unlink", "replace"])
def test_a_file_that_lost_its_name_is_an_error(tmp_path, harm):
    file = AppendedFile(tmp_path / "a")
    file.append(b"in vain")
    (tmp_path / "b").touch()
    (tmp_path / "a").unlink() if harm == "unlink" else (tmp_path / "b").replace(tmp_path / "a")
    with pytest.raises(OutputError, match="another program removed or replaced it"):
        file.sync()
    file.close()


def test_only_one_can_lock_a_file(tmp_path):
    first = AppendedFile.locked(tmp_path / "a", tmp_path / "feats.npy")
    with pytest.raises(UsageError, match=r"feats\.npy: another vid3d is writing to it"):
        AppendedFile.locked(tmp_path / "a", tmp_path / "feats.npy")
    first.close()
    AppendedFile.locked(tmp_path / "a", tmp_path / "feats.npy").close()


@pytest.mark.parametrize(
    ("data", "num_good", "num_damaged"),
    [
        (b"", 0, 0),
        (b'{"a": 1}\n{"b": 2}\n', 2, 0),
        (b'{"a": 1}\n{"b": 2}', 1, 1),
        (b'{"a": 1}\n{"b"\n{"c": 3}\n', 1, 2),
        (b'{"a": 1}\n[1]\n', 1, 1),
        (b"\xff\n", 0, 1),
    ],
)
def test_records_end_at_the_first_damaged_line(tmp_path, data, num_good, num_damaged):
    (tmp_path / "a").write_bytes(data)
    records, ends = read_records(tmp_path / "a")
    assert (len(records), len(ends)) == (num_good, num_good)
    assert data[: ends[-1] if ends else 0].count(b"\n") == num_good
    found, damaged = damaged_lines(tmp_path / "a")
    assert (found, len(damaged)) == (num_good, num_damaged)
    assert read_records(tmp_path / "missing") == ([], [])
