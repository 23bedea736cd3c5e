"""A corpus of broken and odd videos, each with the expected result; all are generated.

write_corpus(directory)      # → [(path, case), …]: every case as a file below the directory
[case.name for case in CASES if case.error is None]
"""

from __future__ import annotations

import functools
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from videos import draw_index, write_audio, write_video

from vid3d_cli.errors import (
    EmptyFile,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    TooLarge,
    TruncatedVideo,
    VideoError,
    VideoNotFound,
)

NUM_FRAMES = 24
"""Frames of a video by default; two groups of pictures (GOPs)."""


@dataclass(frozen=True)
class Case:
    """A file, and the result of reading it."""

    name: str
    """Name of the file; odd bytes as lone surrogates."""
    make: Callable[[Path], object]
    """Writes the file."""
    error: type[VideoError] | None = None
    """The error that reading ends with, before the first frame."""
    num_frames: range = range(0)
    """How many frames it may have at its own rate; one number if nothing is damaged."""
    num_lost: range = range(1)
    """How many frames may be counted as lost or damaged; 0 if nothing is damaged."""
    shows: tuple[int, ...] | None = None
    """The numbers that its frames show; None if they cannot be read (too small, damaged)."""
    encoder: str | None = None
    """The FFmpeg encoder that writes it."""
    is_no_file: bool = False
    """A directory: `vid3d extract` searches it for videos."""

    def __str__(self) -> str:
        return ascii(self.name)


def can_write(case: Case) -> bool:
    """Whether this PyAV has the encoder."""
    if case.encoder is None:
        return True
    try:
        av.Codec(case.encoder, "w")
    except av.error.FFmpegError:
        return False
    return True


def write_corpus(directory: Path) -> list[tuple[Path, Case]]:
    """Write every case that this PyAV can write."""
    files = []
    for case in CASES:
        if can_write(case):
            path = directory / case.name
            case.make(path)
            files.append((path, case))
    return files


# The kinds of cases --------------------------------------------------------------------------------------------------


def _unusable(name: str, error: type[VideoError], data: bytes | Callable[[], bytes]) -> Case:
    return Case(name, lambda path: path.write_bytes(data() if callable(data) else data), error=error)


def _whole(name: str, data: Callable[[], bytes], num_frames: int = NUM_FRAMES) -> Case:
    """An intact video: every frame is read, and none is counted as lost."""
    return Case(
        name,
        lambda path: path.write_bytes(data()),
        num_frames=range(num_frames, num_frames + 1),
        shows=tuple(range(num_frames)),
    )


def _encoded(
    name: str,
    codec: str,
    pixel_format: str,
    *,
    num_frames: int = 5,
    width: int = 64,
    height: int = 48,
    is_readable: bool = True,
    **options: str,
) -> Case:
    """An intact video in another format; `is_readable` if its frames are large enough to read their numbers."""
    return Case(
        name,
        lambda path: _encode(
            path, codec, pixel_format, num_frames=num_frames, width=width, height=height, options=options
        ),
        num_frames=range(num_frames, num_frames + 1),
        shows=tuple(range(num_frames)) if is_readable else None,
        encoder=codec,
    )


def _written(name: str, shows: range | tuple[int, ...] = range(NUM_FRAMES), **options: object) -> Case:
    """An intact video as `write_video` writes it."""
    return Case(
        name,
        lambda path: write_video(path, **({"num_frames": NUM_FRAMES} | options)),  # type: ignore[arg-type]
        num_frames=range(len(shows), len(shows) + 1),
        shows=tuple(shows),
    )


def _damaged(name: str, data: Callable[[], bytes], *, frames: range, lost: range) -> Case:
    return Case(name, lambda path: path.write_bytes(data()), num_frames=frames, num_lost=lost)


# Their parts ---------------------------------------------------------------------------------------------------------


@functools.cache
def video_bytes(suffix: str, *, is_index_first: bool = False, **options: object) -> bytes:
    """Return a video of 24 frames without B-frames, in two GOPs; by default, MP4's index is at its end."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a{suffix}"
        flags = {"movflags": "faststart"} if is_index_first and suffix in (".mp4", ".mov") else None
        defaults = {"num_frames": NUM_FRAMES, "num_b_frames": 0, "options": flags}
        return write_video(path, **(defaults | options)).read_bytes()  # type: ignore[arg-type]


@functools.cache
def _encoded_bytes(suffix: str, codec: str, pixel_format: str, width: int = 64, height: int = 48) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a{suffix}"
        _encode(path, codec, pixel_format, num_frames=NUM_FRAMES, width=width, height=height, options={})
        return path.read_bytes()


@functools.cache
def _audio_bytes(suffix: str, *, with_cover: bool = False) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a{suffix}"
        return write_audio(path, cover=draw_index(1) if with_cover else None).read_bytes()


def _encode(
    path: Path, codec: str, pixel_format: str, *, num_frames: int, width: int, height: int, options: dict[str, str]
) -> None:
    """Encode frames in any pixel format; the suffix decides the container."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1"} | options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 25)
        for index in range(num_frames):
            shown = av.VideoFrame.from_ndarray(draw_index(index, width=width, height=height), format="rgb24")
            frame = shown.reformat(format=pixel_format)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _position(data: bytes, mark: bytes, occurrence: int = 0) -> int:
    """Return the position of a mark; occurrences count from 0."""
    position = -1
    for _ in range(occurrence + 1):
        position = data.index(mark, position + 1)
    return position


def _cut_after(data: bytes, mark: bytes, extra: int = 0, occurrence: int = 0) -> bytes:
    """Cut a file `extra` bytes after a mark."""
    return data[: _position(data, mark, occurrence) + len(mark) + extra]


def packets(data: bytes) -> list[tuple[int, int]]:
    """Return position and size of every packet of the video stream."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with av.open(file.name) as container:
            found = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    return [(position, size) for position, size in found if position is not None]


def _cut_in_packet(data: bytes, number: int) -> bytes:
    """Cut a file in the middle of a video packet."""
    position, size = packets(data)[number]
    return data[: position + size // 2]


def flip(data: bytes, seed: int, *, num_bytes: int = 1, start: int = 0, stop: int | None = None) -> bytes:
    """Change some bytes in a part of a file."""
    rng = np.random.default_rng(seed)
    flipped = bytearray(data)
    for position in rng.integers(start, len(data) if stop is None else stop, num_bytes):
        flipped[position] ^= int(rng.integers(1, 256))
    return bytes(flipped)


def _flipped_frames(suffix: str, seed: int) -> bytes:
    """Flip bytes between the first packet and the index after the last one."""
    data = video_bytes(suffix, is_index_first=True)
    found = packets(data)
    return flip(data, seed, num_bytes=12, start=sum(found[0]), stop=sum(found[-1]))


@functools.cache
def _fragmented() -> bytes:
    """Return an MP4 of two fragments, one for each GOP."""
    with tempfile.TemporaryDirectory() as directory:
        flags = {"movflags": "frag_keyframe+empty_moov"}
        path = write_video(Path(directory) / "a.mp4", num_frames=NUM_FRAMES, num_b_frames=0, options=flags)
        return path.read_bytes()


def _with_edit_list(*, first_frame: int, num_frames: int) -> bytes:
    """Return an MP4, index first, whose edit list shows only some of its frames."""
    data = bytearray(video_bytes(".mp4", is_index_first=True))
    position = _position(data, b"elst") + 8  # version, flags
    num_edits, _, _ = struct.unpack_from(">III", data, position)
    assert num_edits == 1
    movie_timescale = struct.unpack_from(">I", data, _position(data, b"mvhd") + 16)[0]
    media_timescale = struct.unpack_from(">I", data, _position(data, b"mdhd") + 16)[0]
    struct.pack_into(">Ii", data, position + 4, num_frames * movie_timescale // 25, first_frame * media_timescale // 25)
    return bytes(data)


def _avi_with_empty_places(places: tuple[int, ...]) -> bytes:
    """Return an AVI with frames dropped at recording: empty chunks, also in its index."""
    data = video_bytes(".avi", gop=1)
    start = _position(data, b"movi") + 4
    head, chunks, position = data[:start], [], start
    while data[position : position + 4] == b"00dc":
        (size,) = struct.unpack_from("<I", data, position + 4)
        chunks.append(data[position + 8 : position + 8 + size])
        position += 8 + size + size % 2
    body, index = b"", b""
    for number, whole in enumerate(chunks):
        chunk = b"" if number in places else whole
        index += struct.pack("<4sIII", b"00dc", 16, 4 + len(body), len(chunk))
        body += struct.pack("<4sI", b"00dc", len(chunk)) + chunk + bytes(len(chunk) % 2)
    tail = struct.pack("<4sI", b"idx1", len(index)) + index
    head = head[: start - 8] + struct.pack("<I", 4 + len(body)) + head[start - 4 :]
    return b"RIFF" + struct.pack("<I", len(head) + len(body) + len(tail) - 8) + head[8:] + body + tail


def _png(width: int, height: int) -> bytes:
    """Return a grey PNG that announces a size but has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _with_avi_size(width: int, height: int) -> bytes:
    """Return a raw AVI whose header announces another size."""
    data = bytearray(_encoded_bytes(".avi", "rawvideo", "bgr24"))
    struct.pack_into("<ii", data, _position(data, b"strf") + 12, width, height)
    return bytes(data)


def _write_unreadable(path: Path) -> None:
    path.write_bytes(video_bytes(".mp4"))
    path.chmod(0)


def _two_sizes(suffix: str, codec: str, pixel_format: str) -> bytes:
    return _encoded_bytes(suffix, codec, pixel_format) + _encoded_bytes(suffix, codec, pixel_format, 128, 96)


# The corpus ----------------------------------------------------------------------------------------------------------


def _truncated() -> Iterator[Case]:
    mp4, first = video_bytes(".mp4"), video_bytes(".mp4", is_index_first=True)
    mkv, avi, flv = video_bytes(".mkv"), video_bytes(".avi"), video_bytes(".flv")
    yield _unusable("mp4 cut in the first box's name.mp4", NotAVideo, mp4[:6])
    yield _unusable("mp4 cut in ftyp.mp4", TruncatedVideo, mp4[:14])
    yield _unusable("mp4 cut in mdat, index missing.mp4", TruncatedVideo, lambda: _cut_in_packet(mp4, 12))
    yield _unusable("mp4 cut in moov.mp4", TruncatedVideo, _cut_after(mp4, b"moov", 60))
    yield _unusable("mp4 cut in stbl.mp4", TruncatedVideo, _cut_after(mp4, b"stsz", 20))
    yield _unusable("mp4 with index first, cut in moov.mp4", TruncatedVideo, _cut_after(first, b"moov", 60))
    yield _unusable("mp4 with index first, cut in mdat's header.mp4", NoFrames, _cut_after(first, b"mdat"))
    yield _damaged(
        "mp4 with index first, cut in mdat.mp4",
        lambda: _cut_in_packet(first, 12),
        frames=range(12, 14),
        lost=range(12, 13),
    )
    yield _damaged(
        "mp4 with index first, cut between packets.mp4",
        lambda: first[: sum(packets(first)[12])],
        frames=range(13, 14),
        lost=range(11, 12),
    )
    yield _damaged(
        "mp4 with sound and index first, cut in mdat.mp4",
        lambda: _cut_in_packet(video_bytes(".mp4", is_index_first=True, with_audio=True), 16),
        frames=range(10, 18),
        lost=range(7, 15),
    )
    yield _damaged(
        "mp4 in fragments, cut in mdat.mp4",
        lambda: _cut_in_packet(_fragmented(), 18),
        frames=range(18, 20),
        lost=range(6, 7),
    )
    for extra in (4, 40, 100):  # FFmpeg by itself opens some of these
        yield _damaged(
            f"mp4 in fragments, cut {extra} bytes into moof.mp4",
            functools.partial(lambda e: _cut_after(_fragmented(), b"moof", e, occurrence=1), extra),
            frames=range(12, 13),
            lost=range(1),
        )
    yield _unusable("mov cut in mdat.mov", TruncatedVideo, lambda: _cut_in_packet(video_bytes(".mov"), 12))
    yield _unusable("mkv cut in the EBML header.mkv", NotAVideo, mkv[:20])
    yield _unusable("mkv cut in the tracks.mkv", NotAVideo, _cut_after(mkv, b"\x16\x54\xae\x6b", 20))
    yield _unusable("mkv cut before the first frame.mkv", NoFrames, _cut_after(mkv, b"\x1f\x43\xb6\x75", 8))
    for suffix in (".mkv", ".webm"):
        yield _damaged(
            f"{suffix[1:]} cut in a cluster{suffix}",
            functools.partial(lambda s: _cut_in_packet(video_bytes(s), 15), suffix),
            frames=range(14, 17),
            lost=range(2),
        )
    yield _unusable("webm cut in the EBML header.webm", NotAVideo, video_bytes(".webm")[:12])
    yield _unusable("avi cut in RIFF.avi", NotAVideo, avi[:10])
    yield _unusable("avi cut in hdrl.avi", NotAVideo, _cut_after(avi, b"strh", 20))
    yield _unusable("avi cut before the first frame.avi", NoFrames, _cut_after(avi, b"movi"))
    yield _damaged("avi cut in movi.avi", lambda: _cut_in_packet(avi, 15), frames=range(15, 17), lost=range(8, 10))
    yield _whole("avi without idx1.avi", lambda: avi[: _position(avi, b"idx1")])
    yield _damaged(
        "ts cut in the middle of a packet.ts",
        lambda: video_bytes(".ts")[: 188 * (len(video_bytes(".ts")) // 188 * 2 // 3) + 77],
        frames=range(10, 20),
        lost=range(3),
    )
    yield _unusable("ts cut before the first frame.ts", NoFrames, lambda: video_bytes(".ts")[: 188 * 3])
    yield _unusable("flv cut in the header.flv", NotAVideo, flv[:7])
    yield _damaged("flv cut in a tag.flv", lambda: _cut_in_packet(flv, 15), frames=range(14, 17), lost=range(2))
    yield _damaged(
        "mpeg-ps cut.mpg",
        lambda: (data := _encoded_bytes(".mpg", "mpeg2video", "yuv420p"))[: len(data) // 2 + 5],
        frames=range(6, 20),
        lost=range(3),
    )
    yield _unusable("asf cut in the header.wmv", NotAVideo, lambda: _encoded_bytes(".wmv", "wmv2", "yuv420p")[:300])
    yield _damaged(
        "gif cut.gif",
        lambda: (data := _encoded_bytes(".gif", "gif", "rgb8"))[: len(data) * 2 // 3],
        frames=range(6, 22),
        lost=range(3),
    )


def _flipped() -> Iterator[Case]:
    for suffix in (".mp4", ".mkv", ".webm", ".avi", ".ts", ".flv"):
        yield _damaged(
            f"flipped bytes in the frames{suffix}",
            functools.partial(_flipped_frames, suffix, 6),
            frames=range(1, NUM_FRAMES + 1),
            lost=range(NUM_FRAMES + 1),
        )


def _not_what_they_say() -> Iterator[Case]:
    yield _unusable("empty.mp4", EmptyFile, b"")
    yield _unusable("one byte.mp4", NotAVideo, b"\0")
    yield _unusable("zeros.mp4", NotAVideo, bytes(5000))
    yield _unusable("noise.avi", NotAVideo, np.random.default_rng(0).bytes(9999))
    yield _unusable("text.mp4", NotAVideo, b"Not a video.\n" * 99)
    yield _unusable("text.txt", NotAVideo, b"clip.mp4\n" * 99)
    yield _unusable("page of an error.mp4", NotAVideo, b"<!DOCTYPE html><html><body>403 Forbidden</body></html>\n" * 9)
    yield _unusable("subtitles.mp4", NoVideoStream, b"1\n00:00:00,000 --> 00:00:02,000\nHello.\n\n" * 3)
    yield _unusable("archive.mp4", NotAVideo, b"PK\x03\x04" + np.random.default_rng(1).bytes(3000))
    yield _whole("webm named.mp4", lambda: video_bytes(".webm"))
    yield _whole("mp4 named.avi", lambda: video_bytes(".mp4"))
    yield _whole("mp4 without suffix", lambda: video_bytes(".mp4"))
    yield _whole("avi named.txt", lambda: video_bytes(".avi"))
    yield _whole("gif named.mp4", lambda: _encoded_bytes(".gif", "gif", "rgb8"))
    yield _whole("still%03d.png", lambda: _still("png", "rgb24"), 1)
    yield _whole("png named.mp4", lambda: _still("png", "rgb24"), 1)
    yield _whole("jpeg named.mp4", lambda: _still("mjpeg", "yuvj420p"), 1)
    yield _unusable("sound.m4a", NoVideoStream, lambda: _audio_bytes(".m4a"))
    yield _unusable("mp3 named.mp4", NoVideoStream, lambda: _audio_bytes(".mp3"))
    yield _unusable("wav named.mp4", NoVideoStream, lambda: _audio_bytes(".wav"))
    yield _unusable("sound with a cover.mp3", NoVideoStream, lambda: _audio_bytes(".mp3", with_cover=True))


def _still(codec: str, pixel_format: str) -> bytes:
    """Return an image file that shows 0."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pixel_format, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(draw_index(0), format="rgb24").reformat(format=pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])


def _pixel_formats() -> Iterator[Case]:
    yield _encoded("h264 10 bits.mp4", "libx264", "yuv420p10le")
    yield _encoded("h264 4-2-2 10 bits.mkv", "libx264", "yuv422p10le")
    yield _encoded("h264 grey.mp4", "libx264", "gray")
    yield _encoded("h264 rgb.mkv", "libx264rgb", "rgb24")
    yield _encoded("hevc 10 bits.mp4", "libx265", "yuv420p10le", **{"x265-params": "log-level=none:pools=1"})
    yield _encoded("ffv1 grey 16 bits.mkv", "ffv1", "gray16le")
    yield _encoded("ffv1 rgb 16 bits.mkv", "ffv1", "rgb48le")
    yield _encoded("ffv1 yuv 16 bits.mkv", "ffv1", "yuv420p16le")
    yield _encoded("ffv1 alpha 16 bits.mkv", "ffv1", "rgba64le")
    yield _encoded("png rgb 16 bits.mov", "png", "rgb48be")
    yield _encoded("png grey 16 bits.mov", "png", "gray16be")
    yield _encoded("png alpha.mov", "png", "rgba")
    yield _encoded("png black and white.mov", "png", "monob")
    yield _encoded("vp9 alpha.webm", "libvpx-vp9", "yuva420p", deadline="realtime")
    yield _encoded("animation with alpha.mov", "qtrle", "argb")
    yield _encoded("prores 4-2-2 10 bits.mov", "prores_ks", "yuv422p10le")
    yield _encoded("raw 10 bits.mov", "v210", "yuv422p10le")
    yield _encoded("raw.avi", "rawvideo", "bgr24")
    yield _encoded("motion jpeg 4-2-2.avi", "mjpeg", "yuvj422p")


def _sizes() -> Iterator[Case]:
    yield _encoded("odd size.mkv", "ffv1", "yuv420p", width=63, height=47)
    yield _encoded("one pixel.mkv", "ffv1", "bgr0", width=1, height=1, is_readable=False)
    yield _encoded("four pixels.mp4", "libx264", "yuv420p", width=2, height=2, is_readable=False)
    yield _encoded(
        "tall.mp4", "libx264", "yuv420p", num_frames=2, width=16, height=4000, is_readable=False, preset="ultrafast"
    )
    yield _encoded("wide.avi", "mpeg4", "yuv420p", num_frames=2, width=4000, height=16)
    yield _encoded("8K.mp4", "mjpeg", "yuvj420p", num_frames=2, width=8192, height=4320, is_readable=False)
    yield _unusable("too large.y4m", TooLarge, b"YUV4MPEG2 W16000 H12000 F25:1 C420jpeg\nFRAME\n" + bytes(999))
    yield _unusable("too large for FFmpeg.y4m", NotAVideo, b"YUV4MPEG2 W30000 H30000 F25:1 C420jpeg\nFRAME\n")
    yield _unusable("too large.png", NoFrames, _png(16000, 12000))
    yield _unusable("too large.avi", NoFrames, lambda: _with_avi_size(16000, 12000))
    yield _written("one frame.mp4", range(1), num_frames=1)
    yield _written("one frame.avi", range(1), num_frames=1)
    yield _written("one frame.webm", range(1), num_frames=1)
    yield _written("one frame.ts", range(1), num_frames=1)


def _times() -> Iterator[Case]:
    offbeat = (0, 0.1, 0.5, 0.52, 0.54, 1.0)
    yield _written("variable rate.mp4", range(6), times_seconds=offbeat)
    yield _written("variable rate.mkv", range(6), times_seconds=offbeat)
    yield _written("1001ths.mp4", fps=Fraction(30000, 1001))
    for suffix, codec, pixel_format in (
        (".h264", "libx264", "yuv420p"),
        (".m4v", "mpeg4", "yuv420p"),
        (".mjpeg", "mjpeg", "yuvj420p"),
        (".y4m", "wrapped_avframe", "yuv420p"),
    ):
        yield _encoded(f"no times{suffix}", codec, pixel_format, num_frames=12)
    for suffix in (".mp4", ".mkv", ".ts"):
        late = tuple(1000 + Fraction(i, 25) for i in range(12))
        yield _written(f"offset times{suffix}", range(12), times_seconds=late)
    yield _written("b-frames before zero.mp4", num_b_frames=3)
    wrap = Fraction(2**33, 90000)  # transport streams count 90,000ths in 33 bits
    yield _written("wrapped times.ts", range(75), times_seconds=[wrap - 2 + Fraction(i, 25) for i in range(75)])
    edited = _with_edit_list(first_frame=4, num_frames=10)
    for name, end in {"edit list": len(edited), "edit list, cut behind what it shows": packets(edited)[18][0]}.items():
        yield Case(
            f"{name}.mp4",
            functools.partial(lambda end, path: path.write_bytes(edited[:end]), end),
            num_frames=range(10, 11),
            shows=tuple(range(4, 14)),
        )
    yield _damaged(
        "edit list, cut in what it shows.mp4",
        lambda: edited[: packets(edited)[10][0]],
        frames=range(6, 7),
        lost=range(4, 5),
    )
    for name, places in {"in the middle": (5, 6, 13), "at the end": (22, 23)}.items():
        shows = tuple(i for i in range(NUM_FRAMES) if i not in places)
        yield Case(
            f"dropped frames {name}.avi",
            functools.partial(lambda places, path: path.write_bytes(_avi_with_empty_places(places)), places),
            num_frames=range(len(shows), len(shows) + 1),
            shows=shows,
        )


def _layouts() -> Iterator[Case]:
    yield _written("on its side.mp4", rotation_degrees=90)
    yield _written("mirrored.mp4", is_mirrored=True)
    yield _encoded("interlaced.mp4", "libx264", "yuv420p", **{"x264-params": "tff=1"})
    yield _encoded("interlaced.mpg", "mpeg2video", "yuv420p", flags="+ilme+ildct")
    for suffix, codec, pixel_format in (
        (".h264", "libx264", "yuv420p"),
        (".ts", "libx264", "yuv420p"),
        (".mjpeg", "mjpeg", "yuvj420p"),
    ):
        yield Case(
            f"two sizes{suffix}",
            functools.partial(lambda form, path: path.write_bytes(_two_sizes(*form)), (suffix, codec, pixel_format)),
            num_frames=range(2 * NUM_FRAMES, 2 * NUM_FRAMES + 1),
            shows=tuple(range(NUM_FRAMES)) * 2,
            encoder=codec,
        )


def _names() -> Iterator[Case]:
    # fmt: off
    for name in (
        "a b.mp4", "quote's \"two\".mp4", "line\nbreak.mp4", "tab\t.mp4", "-dash.mp4", "--out.mp4", "@list.mp4",
        "*?[a].mp4", "take:2.mp4", "100%d.mp4", "$HOME `id` ;.mp4", "back\\slash.mp4", "été-日本-🎬.mp4",
        "not utf-8 \udcff\udce9.mp4", "a" * 251 + ".mp4", ".hidden.mp4", "UPPER.MP4",
    ):
        yield _whole(name, lambda: video_bytes(".mp4", num_frames=5), 5)
    # fmt: on
    yield Case("directory.mp4", Path.mkdir, error=NotAVideo, is_no_file=True)
    yield Case("broken link.mp4", lambda path: path.symlink_to("none.mp4"), error=VideoNotFound)
    if os.geteuid() != 0:  # root may read everything
        yield Case("unreadable.mp4", _write_unreadable, error=NotAVideo)
    yield Case("link to itself.mp4", lambda path: path.symlink_to(path.name), error=NotAVideo)


CASES = [
    *_truncated(),
    *_flipped(),
    *_not_what_they_say(),
    *_pixel_formats(),
    *_sizes(),
    *_times(),
    *_layouts(),
    *_names(),
]
