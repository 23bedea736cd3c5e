"""Imported only by the process that jobs are forked from: torch loads many of its parts during the first run."""

import tempfile
from pathlib import Path

import killable
from videos import write_video

import vid3d_cli
import vid3d_cli.run.feeds

with tempfile.TemporaryDirectory() as _directory:
    _video = write_video(Path(_directory, "video.mp4"), num_frames=12)
    _checkpoint = Path(_directory, killable.CHECKPOINT)
    _checkpoint.write_bytes(b"stands in for a verified checkpoint")
    killable.use_tiny_net(_checkpoint)
    _reader = vid3d_cli.run.feeds.open_clips
    killable.decode_in_threads()
    list(vid3d_cli.extract(str(_video), streams="rgb", window=10))
    vid3d_cli.run.feeds.open_clips = _reader
