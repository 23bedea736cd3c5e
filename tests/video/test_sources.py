"""Arguments, globs and lists → videos and output stems."""

import io
import json
import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli.errors import UsageError
from vid3d_cli.video.sources import Source, find_sources


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working directory with videos and other files."""
    monkeypatch.chdir(tmp_path)
    for name in [
        "videos/b.mp4",
        "videos/a.AVI",
        "videos/deep/er/c.webm",
        "videos/notes.txt",
        "videos/.hidden.mp4",
        "videos/.cache/d.mp4",
        "videos/._a.avi",
        "other/e e.mkv",
        "top.mp4",
    ]:
        make(name)
    return tmp_path


def make(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()


def videos(*arguments: str, **options) -> list[str]:
    return [source.video for source in find_sources(arguments, **options)]


def stems(*arguments: str, **options) -> list[str]:
    return [str(source.output_stem) for source in find_sources(arguments, **options)]


def listed(data: bytes, **options) -> list[str]:
    return videos("-", stdin=io.BytesIO(data), **options)


# Arguments -----------------------------------------------------------------------------------------------------------


def test_files_as_written_in_the_order_given(tree):
    assert videos("top.mp4", "./other/e e.mkv") == ["top.mp4", "./other/e e.mkv"]


def test_a_missing_file_is_a_source(tree):
    assert find_sources(["gone.mp4"]) == [Source("gone.mp4", PurePosixPath("gone"))]


def test_a_directory_is_searched_sorted_without_hidden_names(tree):
    assert videos("videos") == videos("videos/") == ["videos/a.AVI", "videos/b.mp4", "videos/deep/er/c.webm"]


def test_a_named_file_may_have_any_suffix(tree):
    assert videos("videos/notes.txt", "videos/.hidden.mp4") == ["videos/notes.txt", "videos/.hidden.mp4"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("videos/*.mp4", ["videos/b.mp4"]),
        ("**/*.webm", ["videos/deep/er/c.webm"]),
        ("videos/**/*.[mw]*", ["videos/b.mp4", "videos/deep/er/c.webm"]),
        ("videos/*", ["videos/a.AVI", "videos/b.mp4", "videos/deep/er/c.webm"]),
        ("videos/**", ["videos/a.AVI", "videos/b.mp4", "videos/deep/er/c.webm"]),
        ("videos/*.txt", ["videos/notes.txt"]),
        ("?op.mp4", ["top.mp4"]),
    ],
)
def test_globs(tree, pattern, expected):
    assert videos(pattern) == expected
    assert videos(str(tree / pattern)) == [str(tree / name) for name in expected]


def test_a_file_whose_name_looks_like_a_glob(tree):
    make("clip[1].mp4")
    make("clip1.mp4")
    make("what?.mp4")
    assert videos("clip[1].mp4", "what?.mp4") == ["clip[1].mp4", "what?.mp4"]


def test_a_video_is_listed_once(tree):
    assert videos("videos/b.mp4", "videos", "./videos/../videos/a.AVI", str(tree / "top.mp4"), "top.mp4") == [
        "videos/b.mp4",
        "videos/a.AVI",
        "videos/deep/er/c.webm",
        str(tree / "top.mp4"),
    ]


def test_linked_directories_are_followed_once(tree):
    (tree / "videos/deep/loop").symlink_to(tree / "videos")
    (tree / "videos/linked").symlink_to(tree / "other")
    assert videos("videos")[-1] == "videos/linked/e e.mkv"
    assert len(videos("videos")) == 4


@pytest.mark.parametrize("url", ["https://host/a.mp4", "rtsp://host:554/live", "file:///a/b.mp4"])
def test_urls(url):
    assert videos(url, url) == [url]


# Lists ---------------------------------------------------------------------------------------------------------------


def test_a_list_of_lines():
    assert listed(b"a.mp4\n\n  \nb b.mp4\r\n./c.mp4") == ["a.mp4", "b b.mp4", "./c.mp4"]


def test_a_list_with_zero_bytes():
    names = [b"a.mp4", b"new\nline.mp4", b" led.mp4"]
    assert listed(b"\0".join(names), nul_separated=True) == [name.decode() for name in names]
    assert listed(b"\0".join(names)) == [name.decode() for name in names]  # recognised without being told


def test_names_that_are_not_utf8():
    (name,) = listed(b"\xff\xfe\xe9.mp4\n")
    assert os.fsencode(name) == b"\xff\xfe\xe9.mp4"


def test_a_list_in_a_file(tree):
    (tree / "list.txt").write_text("top.mp4\nother/e e.mkv\n")
    assert videos("@list.txt", "videos/b.mp4") == ["top.mp4", "other/e e.mkv", "videos/b.mp4"]
    (tree / "bom.txt").write_bytes(b"\xef\xbb\xbftop.mp4\r\n")
    assert videos("@bom.txt") == ["top.mp4"]


def test_entries_are_literal_files_directories_and_urls(tree):
    assert listed(b"*.mp4\nvideos\nhttps://h/x.mp4\n@list.txt\n-\n") == [
        "*.mp4",
        "videos/a.AVI",
        "videos/b.mp4",
        "videos/deep/er/c.webm",
        "https://h/x.mp4",
        "@list.txt",
        "-",
    ]


def test_a_failures_file_feeds_back_in():
    failures = [{"video": v, "error": "NotAVideo", "message": "…"} for v in ("a b.mp4", "é.mp4", "https://h/x")]
    for is_ascii in (True, False):
        data = "\n".join(json.dumps(f, ensure_ascii=is_ascii) for f in failures)
        assert listed(data.encode()) == ["a b.mp4", "é.mp4", "https://h/x"]
    odd = os.fsdecode(b"\xff.mp4")
    assert listed(json.dumps({"video": odd}).encode()) == [odd]


def test_a_name_with_braces(tree):
    assert listed(b"{a}.mp4\n") == ["{a}.mp4"]
    make('{"clip": 1}')
    assert listed(b'{"clip": 1}\n') == ['{"clip": 1}']


@pytest.mark.parametrize("entry", [b'{"vidoe": 1}', b'{"video": 1}'])
def test_a_record_without_a_video_is_named(entry):
    """Before: it was a video of that name."""
    with pytest.raises(UsageError, match=r'^stdin, line 2: a JSON object needs "video"'):
        listed(b"a.mp4\n" + entry)


def test_a_file_called_at_something(tree):
    make("@home.mp4")
    assert videos("@home.mp4") == ["@home.mp4"]


def test_comments(tree):
    assert listed(b"# my videos\na.mp4\n#b.mp4\n # c.mp4\n") == ["a.mp4", "#b.mp4"]
    make(" # c.mp4")
    assert listed(b" # c.mp4\n  # d.mp4\n") == [" # c.mp4"]
    make("# my videos")
    assert listed(b"# my videos\na.mp4\n") == ["# my videos", "a.mp4"]
    assert listed(b"# my files\0a.mp4\0") == ["# my files", "a.mp4"]


@pytest.mark.parametrize("entry", [b'{"a":' * 1500, b'{"video": "\\ud800.mp4"}'])
def test_json_that_is_no_name_is_a_name(entry):
    """Before: "internal error: RecursionError" and UnicodeEncodeError, for one line of a list."""
    assert listed(entry) == [entry.decode()]


@pytest.mark.parametrize("way", ["-", "@endless"])
def test_a_list_without_end_is_not_read_into_memory(tree, monkeypatch, way):
    """Before: vid3d classify @/dev/zero, or @video.mp4 of 12 GB, took all memory."""
    monkeypatch.setattr("vid3d_cli.video.sources.MAX_LIST_BYTES", 1000)
    (tree / "endless").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="longer than a list of videos may be"), Path("/dev/zero").open("rb") as zeros:
        find_sources([way], stdin=zeros)


def test_a_name_that_no_file_can_have_is_a_source_that_fails():
    """Before: "internal error: OSError: File name too long", for the whole batch."""
    assert len(videos("x" * 300 + ".mp4", "x\0y.mp4", "a.mp4")) == 3


# Usage errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no videos given"),
        ([""], "empty name"),
        (["empty"], "no video in the directory empty"),
        (["nothing/*.mp4"], r"no video matches nothing/\*.mp4"),
        (["videos/*.mov"], "no video matches"),
        (["@gone.txt"], "cannot read the list gone.txt"),
        (["@videos"], "cannot read the list videos"),
        (["@"], "cannot read the list"),
        (["@empty.txt"], "no videos in @empty.txt"),
        (["@clip.bin"], "not a list"),
        (["-"], "no videos in standard input"),
    ],
)
def test_usage_errors_say_what_to_do(tree, arguments, words):
    (tree / "empty").mkdir()
    make("empty.txt")
    (tree / "clip.bin").write_bytes(bytes(range(1, 256)).replace(b"\n", b"") * 99)
    with pytest.raises(UsageError, match=words):
        find_sources(arguments, stdin=io.BytesIO())


# Output stems --------------------------------------------------------------------------------------------------------


def test_one_directory_is_the_base(tree):
    assert stems("videos") == ["a", "b", "deep/er/c"]
    assert stems(str(tree / "videos")) == ["a", "b", "deep/er/c"]
    os.chdir("videos/deep")
    assert stems("..") == ["a", "b", "deep/er/c"]


def test_the_deepest_common_directory_of_several(tree):
    assert stems("videos", "other") == ["videos/a", "videos/b", "videos/deep/er/c", "other/e e"]
    assert stems("videos/b.mp4", "videos/deep/er/c.webm") == ["b", "deep/er/c"]
    assert stems("videos/deep/er/c.webm") == ["c"]
    assert stems("top.mp4", str(tree / "other")) == ["top", "other/e e"]
    os.chdir("videos")
    assert stems("../other/e e.mkv", "b.mp4") == ["other/e e", "videos/b"]


def test_the_fixed_part_of_a_glob_is_its_base(tree):
    assert stems("videos/**/*.webm") == ["deep/er/c"]
    assert stems("videos/deep/*/*.webm") == ["er/c"]
    assert stems("*.mp4") == ["top"]


def test_shared_stems_keep_their_suffix(tree):
    for name in ("s/x.mp4", "s/x.avi", "s/y.mp4", "s/x.mp4.mkv", "s/d/x.mp4"):
        make(name)
    assert stems("s") == ["d/x", "x.avi", "x.mp4", "x.mp4.mkv", "y"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [("clip.v2.mp4", "clip.v2"), ("take 1.5", "take 1.5"), ("..mp4", "..mp4"), (".mp4", ".mp4"), ("noext", "noext")],
)
def test_suffixes(tree, name, stem):
    assert stems(name) == [stem]


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("https://host.org/a/b%20c.mp4", "host.org/a/b_20c"),
        ("https://user:secret@host:8080/../a/./x.mp4", "host_8080/a/x"),
        ("https://host/watch?v=1&t=2", "host/watch_03713529"),
        ("https://host/a.mp4?token=secret", "host/a_1359227d"),
        ("https://host/", "host"),
        ("rtsp://[::1]:554/live", "_1_554/live"),
        ("file:///a/b.mp4", "a/b"),
        ("x://", "url"),
    ],
)
def test_stems_of_urls(url, stem):
    assert stems(url) == [stem]


def test_urls_that_differ_only_in_unsafe_characters():
    assert stems("http://h/a$1", "http://h/a&1", "http://h/a_1") == ["h/a_1", "h/a_1_2", "h/a_1_3"]


@pytest.mark.parametrize(
    "names",
    [
        ["https://h/watch?v=" + "q" * 5000, "https://h/watch?v=" + "q" * 4999],
        ["https://h/" + "x" * 400 + ".mp4?a", "https://h/" + "x" * 400 + ".mp4?b", "https://h/" + "x" * 401 + ".mp4?a"],
        ["https://h" + "/a" * 3000, "https://h" + "/a" * 3001],
        ["x" * 251 + ".mp4", "x" * 251 + ".avi", "x" * 250 + ".mp4"],
        ["é" * 125 + ".mp4", "é" * 124 + "e.mp4"],
        ["." + "x" * 254, "a." + "y" * 253],
    ],
)
def test_long_names_stay_apart_and_leave_room_for_suffixes(names):
    """Before: one such video stopped the whole batch (252 bytes and .npy.part), and every rerun of it."""
    found = stems(*names)
    assert len(set(found)) == len(names)
    assert found == stems(*names)
    assert all(len(os.fsencode(part)) <= 200 for stem in found for part in stem.split("/"))
    assert all(len(stem) <= 1100 for stem in found)


def test_a_stem_holds_no_password():
    """Before: the token of a signed URL was the name of a file that people share."""
    assert not any(word in stems("https://me:hunter2@h/a.mp4?token=s3cret#s3cret")[0] for word in ("hunter2", "s3cret"))


names = st.text("ab.é *?[]\\_-@{\"'\udcff", min_size=1, max_size=4).filter(lambda name: name.strip("."))
directories = st.lists(st.one_of(names, st.just("..")), max_size=3)
paths = st.builds(lambda parents, name: "/".join([*parents, name]), directories, names)


@given(st.lists(st.one_of(paths, paths.map("/x/".__add__), paths.map("http://h/".__add__)), min_size=1, max_size=8))
def test_stems_are_unique_relative_and_stay_inside(listed_names):
    data = b"\0".join(os.fsencode(name) for name in listed_names)
    try:
        sources = find_sources(["-"], stdin=io.BytesIO(data), nul_separated=True)
    except UsageError:  # nothing but blank names
        return
    found = [source.output_stem for source in sources]
    assert len(set(found)) == len(found)
    for stem in found:
        assert not stem.is_absolute()
        assert stem.parts
        assert ".." not in stem.parts


def test_a_directory_without_a_video_in_a_list_is_one_source_that_fails(tmp_path, monkeypatch):
    """`find -name '*.mp4'` lists directories of such names too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "b.mp4").touch()
    sources = find_sources(["-"], stdin=io.BytesIO(b"a.mp4\0b.mp4\0"), nul_separated=True)
    assert [source.video for source in sources] == ["a.mp4", "b.mp4"]
