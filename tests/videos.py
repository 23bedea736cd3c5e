"""Small videos for tests, written with PyAV. Every frame shows its number, which `read_index` reads back.

path = write_video(tmp_path / "a.mp4", num_frames=30, fps=25)
[read_index(frame.rgb) for frame in VideoReader(str(path))]    # 0 1 2 … 29
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 2, 4  # an index is 8 bits: 2 rows of 4 blocks, the highest bit first
_DARK, _BRIGHT = 40, 210  # far enough apart to survive any compression


def draw_index(index: int, *, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Return an RGB image that shows an index (modulo 256) as dark and bright blocks."""
    bits = [(index >> bit) & 1 for bit in reversed(range(_ROWS * _COLUMNS))]
    blocks = np.where(np.reshape(bits, (_ROWS, _COLUMNS)), _BRIGHT, _DARK).astype(np.uint8)
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    return np.ascontiguousarray(np.repeat(blocks[rows][:, columns, None], 3, axis=2))


def read_index(rgb: NDArray[np.uint8]) -> int:
    """Return the index that an upright image of any size shows."""
    grey = rgb.mean(axis=2)
    height, width = grey.shape
    index = 0
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            y, x = (2 * row + 1) * height // (2 * _ROWS), (2 * column + 1) * width // (2 * _COLUMNS)
            block = grey[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            index = index * 2 + int(block.mean() > (_DARK + _BRIGHT) / 2)
    return index


def write_video(
    path: Path,
    *,
    num_frames: int = 30,
    fps: Fraction | int = 25,
    times_seconds: Sequence[Fraction | float] | None = None,
    width: int = 64,
    height: int = 48,
    codec: str | None = None,
    num_b_frames: int = 2,
    gop: int = 12,
    rotation_degrees: int = 0,
    is_mirrored: bool = False,
    with_audio: bool = False,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a video; the container follows from the suffix.

    Args:
        path: file to write.
        num_frames: how many frames; frame i shows i modulo 256.
        fps: frames per second.
        times_seconds: when each frame appears, for variable frame rates and offset starts; replaces `num_frames`.
        width: pixels of the upright frame.
        height: pixels of the upright frame.
        codec: FFmpeg's encoder; None for VP8 in .webm, MPEG-4 in .avi, else H.264, or MPEG-4 where the wheel lacks it.
        num_b_frames: B-frames between two others (H.264 and MPEG-4).
        gop: frames from one keyframe to the next.
        rotation_degrees: clockwise turn that makes the stored frame upright; a quarter turn stores it on its side.
        is_mirrored: after the turn, the frame must also be mirrored (left and right).
        with_audio: add a tone.
        options: of the container, such as {"movflags": "faststart"}.
        metadata: of the container, such as {"title": "Test"}.
    """
    codec = codec or _default_codec(path)
    fps = Fraction(fps)
    times = [Fraction(i) / fps for i in range(num_frames)] if times_seconds is None else times_seconds
    is_counted = times_seconds is None or path.suffix == ".avi"  # AVI has only multiples of 1/fps as times
    time_base = 1 / fps if is_counted else Fraction(1, 60000)
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        is_on_its_side = rotation_degrees % 180 == 90
        stream.width, stream.height = (height, width) if is_on_its_side else (width, height)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = num_b_frames
        stream.codec_context.options = {"threads": "1"} | ({"x264-params": "scenecut=0"} if codec == "libx264" else {})
        if rotation_degrees or is_mirrored:
            stream.set_display_rotation(-rotation_degrees, hflip=is_mirrored)
        if with_audio:
            _add_tone(container, float(times[-1]) + 1 / float(fps))
        for index, seconds in enumerate(times):
            shown = draw_index(index, width=width, height=height)
            stored = np.rot90(shown[:, ::-1] if is_mirrored else shown, k=rotation_degrees // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
            frame.pts, frame.time_base = round(Fraction(seconds) / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path, *, cover: NDArray[np.uint8] | None = None) -> Path:
    """Write half a second of sound, with a cover image if one is given (in .mp3: an attached picture)."""
    with av.open(str(path), "w") as container:
        if cover is not None:
            stream = container.add_stream("mjpeg", rate=25)
            stream.height, stream.width = cover.shape[:2]
            stream.pix_fmt = "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
        _add_tone(container, 0.5)
        if cover is not None:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            container.mux(stream.encode())
    return path


def cut(path: Path, *, keep: float) -> Path:
    """Cut a file after a part of its bytes, like a broken download."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damage(path: Path, packets: Sequence[int], *, with_byte: int = 0xFF) -> Path:
    """Overwrite the payload of some packets of the video stream, counted in the order of the file."""
    with av.open(str(path)) as container:
        payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    for number in packets:
        payload = payloads[number]
        assert data.count(payload) == 1, "the packet is not stored in one piece"
        data = data.replace(payload, bytes([with_byte]) * len(payload))
    path.write_bytes(data)
    return path


def _default_codec(path: Path) -> str:
    if path.suffix == ".webm":
        return "libvpx"
    return "libx264" if path.suffix != ".avi" and "libx264" in av.codecs_available else "mpeg4"


def _add_tone(container: av.container.OutputContainer, seconds: float) -> None:
    """Add a sine, in the default codec of the container."""
    rate = 48000
    stream = container.add_stream(container.default_audio_codec, rate=rate)
    stream.layout = "mono"
    num_samples = int(seconds * rate)
    wave = np.sin(np.arange(num_samples) * 2 * np.pi * 440 / rate)
    for start in range(0, num_samples, 1024):
        samples = (wave[None, start : start + 1024] * 20000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
