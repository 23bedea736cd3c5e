"""vid3d calls nobody: not on import, not while it works, not to report how it is used."""

import json
import subprocess
import sys

import pytest

WATCH = """
import json, sys
calls = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        calls.append(f"{event} {arguments}")
sys.addaudithook(watch)
sys.argv = ["vid3d", *sys.argv[1:]]
from vid3d_cli.cli import main
try:
    main()
finally:
    sys.stdout.flush()
    print(json.dumps(calls), file=sys.stderr)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "words",
    [
        ("classify", "video.mp4", "--model", "s3d_mini", "--runtime", "torch"),
        ("classify", "video.mp4", "--model", "s3d_mini", "--runtime", "openvino"),
        ("extract", "video.mp4", "--model", "s3d_mini", "--out", "feats.npy"),
        ("flow", "video.mp4", "--out", "flow.npz"),
        ("weights", "list"),
        ("weights", "verify"),
        ("extract", "http://127.0.0.1:9/a.mp4", "--out", "none.npy", "--model", "i3d", "--streams", "rgb"),
    ],
    ids=" ".join,
)
def test_no_command_calls_out(video, words, monkeypatch):
    """The last one wants a checkpoint that is not here; VID3D_OFFLINE keeps it from looking for it."""
    monkeypatch.setenv("VID3D_OFFLINE", "1")
    if "openvino" in words:
        pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", WATCH, *words], capture_output=True, text=True, cwd=video.parent)
    assert done.returncode == (3 if "i3d" in words else 0), done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_the_hub_is_imported_without_a_word():
    code = WATCH.replace("main()\n", "import huggingface_hub\n").replace("vid3d_cli.cli import main", "os import path")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []
