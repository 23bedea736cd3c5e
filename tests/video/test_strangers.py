"""What a stranger's file or URL may open. Each test says what an attacker got before."""

import http.server
from pathlib import Path

import pytest
from serving import serve
from videos import write_video

from vid3d_cli.errors import NotAVideo, VideoError
from vid3d_cli.video.process import Decoders, probe
from vid3d_cli.video.reader import VideoReader


def count_frames(video, **options) -> int:
    with VideoReader(str(video), **options) as reader:
        return sum(1 for _ in reader)


def hls(segment) -> str:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n"


@pytest.fixture
def private(tmp_path):
    """A transport stream that no playlist may reach."""
    (tmp_path / "private").mkdir()
    return write_video(tmp_path / "private" / "a.ts", num_frames=5)


@pytest.fixture
def server():
    """A web server: `server.pages[path]` is a body, or the address to redirect to; `server.requests` has the paths."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            page = self.server.pages.get(self.path, b"")
            self.send_response(200 if isinstance(page, bytes) else 302)
            if isinstance(page, str):
                self.send_header("Location", page)
                page = b""
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args):
            pass

    with serve(Handler) as server:
        yield server


# Files that name other files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["walk.m3u8", "walk.ts"])
@pytest.mark.parametrize("way", ["{path}", "file://{path}", "../private/a.ts"])
def test_a_local_playlist_opens_no_other_file(tmp_path, private, name, way):
    """Before: the features of any .ts of the machine, named by its absolute path, in the output of walk.m3u8."""
    (tmp_path / "in").mkdir()
    playlist = tmp_path / "in" / name
    playlist.write_text(hls(way.format(path=private)))
    with pytest.raises(NotAVideo):
        count_frames(playlist)


def test_a_local_playlist_calls_no_server(tmp_path, private, server):
    """Before: a request to any address that this machine reaches, from inside its network."""
    server.pages["/a.ts"] = private.read_bytes()
    playlist = tmp_path / "walk.m3u8"
    playlist.write_text(hls(f"{server.url}/a.ts"))
    with pytest.raises(NotAVideo, match=r"names other files or addresses.*--allow-playlists"):
        count_frames(playlist)
    assert server.requests == []
    assert count_frames(playlist, allow_playlists=True) == 5


def test_a_playlist_that_is_allowed_opens(tmp_path, private):
    playlist = tmp_path / "walk.m3u8"
    playlist.write_text(hls(private))
    assert count_frames(playlist, allow_playlists=True) == 5
    with pytest.raises(NotAVideo, match="--allow-playlists"):
        probe(playlist)
    assert probe(playlist, allow_playlists=True).num_frames_decoded == 5


def test_a_concat_list_named_mp4_opens_no_sibling(tmp_path):
    """Before: the frames of private.mp4, which lies beside walk.mp4, under the name walk.mp4."""
    write_video(tmp_path / "private.mp4", num_frames=4)
    path = tmp_path / "walk.mp4"
    path.write_text("ffconcat version 1.0\nfile private.mp4\n")
    with pytest.raises(NotAVideo, match="--allow-playlists"):
        count_frames(path)
    assert count_frames(path, allow_playlists=True) == 4


def test_an_image_name_opens_no_sequence(tmp_path):
    """Before: all pictures x001.png, x002.png … of the directory, as frames of a file named x%03d.png."""
    import cv2
    import numpy as np

    for name in ("x001.png", "x002.png", "x%03d.png", "x*.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((16, 16, 3), np.uint8))
    assert count_frames(tmp_path / "x%03d.png") == count_frames(tmp_path / "x*.png") == 1


@pytest.mark.parametrize("allow_playlists", [False, True])
def test_a_session_file_opens_no_port(tmp_path, allow_playlists):
    """Before: FFmpeg read an SDP file named .mp4; where rtp is allowed it listens on the port that the file names."""
    path = tmp_path / "walk.mp4"
    path.write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    with pytest.raises(NotAVideo):
        count_frames(path, allow_playlists=allow_playlists)


def test_an_external_track_of_a_movie_is_not_opened(tmp_path, private):
    """An MP4 may say that its samples lie in another file (dref); FFmpeg must keep ignoring that."""
    content = write_video(tmp_path / "a.mp4", num_frames=5).read_bytes()
    inside = b"url \0\0\0\1"  # flag 1: in this file
    assert content.count(inside) == 1
    path = tmp_path / "walk.mp4"
    path.write_bytes(content.replace(inside, b"alis\0\0\0\0"))
    assert count_frames(path) == 5  # its own samples


# Names that look like protocols --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "concat:private.mp4",
        "subfile,,start,0,end,0,,:private.mp4",
        "async:private.mp4",
        "crypto:private.mp4",
        "cache:private.mp4",
        "file:private.mp4",
        "data:video;base64,AAAA",
        "http:x",
        "pipe:0",
        "fd:0",
        "tee:x",
    ],
)
def test_a_path_is_never_a_protocol(tmp_path, monkeypatch, name):
    """Shown before and kept: the file of that name opens, if there is one, and nothing else."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "private.mp4", num_frames=4)
    with pytest.raises(VideoError, match="no such file"):
        count_frames(name)
    write_video(tmp_path / "own.mp4", num_frames=2).rename(name)
    assert count_frames(name) == 2


@pytest.mark.parametrize(
    "url",
    [
        "file://{path}",
        "async://file:{path}",
        "cache://{path}",
        "concat://{path}",
        "crypto://{path}",
        "subfile,,start,0,end,0,,://{path}",
        "ftp://127.0.0.1:9/a.mp4",
        "gopher://127.0.0.1:9/a.mp4",
        "rtmp://127.0.0.1:9/a",
        "rtp://127.0.0.1:9",
        "rtsp://127.0.0.1:9/a",
        "smb://127.0.0.1/a.mp4",
        "tcp://127.0.0.1:9?listen",
        "udp://127.0.0.1:9",
        "unix:///run/docker.sock",
        "pipe://0",
    ],
)
def test_only_http_and_https_are_opened(tmp_path, url):
    """Before: a line of a list could open local files through a URL, sockets of this machine, and listening ports."""
    path = write_video(tmp_path / "a.mp4", num_frames=2)
    with pytest.raises(VideoError, match=r"only http and https|no such file"):
        count_frames(url.format(path=path))


# Servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["file://{path}", "file:{path}", "concat:{path}", "gopher://127.0.0.1:{port}/a.mp4", "ftp://127.0.0.1:{port}/a"],
)
def test_a_redirect_stays_with_http(tmp_path, server, target):
    """What an attacker would get: a local file as the video of a URL, or requests to other services."""
    path = write_video(tmp_path / "a.mp4", num_frames=2)
    server.pages["/a.mp4"] = target.format(path=path, port=server.server_port)
    with pytest.raises(NotAVideo):
        count_frames(f"{server.url}/a.mp4")
    assert server.requests == ["/a.mp4"]


def test_a_redirect_within_http_is_followed(tmp_path, server):
    server.pages["/b.mp4"] = write_video(tmp_path / "a.mp4", num_frames=2).read_bytes()
    server.pages["/a.mp4"] = f"{server.url}/b.mp4"
    assert count_frames(f"{server.url}/a.mp4") == 2
    assert count_frames(f"{server.url.replace('http', 'HTTP')}/a.mp4") == 2


def test_offline_opens_no_url(server, monkeypatch):
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    with pytest.raises(NotAVideo, match="VID3D_OFFLINE is set"):
        count_frames(f"{server.url}/a.mp4")
    assert server.requests == []


def test_a_playlist_of_a_server_needs_to_be_allowed(private, server):
    """Before: a URL of a video could make this machine request any other address."""
    server.pages = {"/a.m3u8": hls("/seg.ts").encode(), "/seg.ts": private.read_bytes()}
    with pytest.raises(NotAVideo, match="--allow-playlists"):
        count_frames(f"{server.url}/a.m3u8")
    assert server.requests == ["/a.m3u8"]
    assert count_frames(f"{server.url}/a.m3u8", allow_playlists=True) == 5


def test_a_playlist_of_a_server_never_opens_files(private, server):
    """What an attacker would get with --allow-playlists: the features of local files."""
    server.pages["/a.m3u8"] = hls(f"file://{private}").encode()
    with pytest.raises(NotAVideo):
        count_frames(f"{server.url}/a.m3u8", allow_playlists=True)


# One rule for all ways to read a video -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_pipe_is_no_video(name):
    """`vid3d probe /dev/stdin` once worked where `classify` did not."""
    with pytest.raises(NotAVideo, match=r"from standard input or a pipe; save it to a file first"):
        count_frames(name)
    with pytest.raises(NotAVideo, match="save it to a file first"):
        probe(name)


def test_every_way_refuses_and_allows_alike(tmp_path, private, decoder_processes, tiny_model, vid3d):
    from vid3d_cli import classify

    playlist = tmp_path / "walk.m3u8"
    playlist.write_text(hls(private))
    ways = {
        "probe": ("probe", playlist),
        "flow": ("flow", playlist, "--out", "flow.npz"),
        "classify": ("classify", playlist),
        "extract": ("extract", playlist, "--out", "feats.npy", "--streams", "rgb"),
        "dry run": ("extract", playlist, "--out", "none.npy", "--dry-run"),
    }
    for way, command in ways.items():
        done = vid3d(*map(str, command))
        assert "--allow-playlists" in done.stdout + done.stderr, way
        again = ["--redo-failed"] if way == "extract" else []
        done = vid3d(*map(str, command), *again, "--allow-playlists")
        assert done.exit_code == 0, (way, done.stderr)
    with pytest.raises(NotAVideo, match="--allow-playlists"):
        classify(playlist)
    assert classify(playlist, allow_playlists=True).num_frames == 5


def test_decoder_processes_get_the_rule(private, tmp_path):
    playlist = Path(tmp_path / "walk.m3u8")
    playlist.write_text(hls(private))
    with Decoders(allow_playlists=True) as decoders, decoders.open(str(playlist)) as frames:
        assert len(list(frames)) == 5
