"""`vid3d probe`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, VideoError
from ..video import TIMEOUT_SECONDS
from .batch import AllowPlaylists, NulSeparated, Timeout, Videos, find_videos
from .console import log
from .formats import ListFormat, Record, or_dash, print_records

if TYPE_CHECKING:
    from ..video.reader import VideoInfo


def probe(
    videos: Videos,
    form: ListFormat = None,
    decode: Annotated[
        bool,
        typer.Option(help="Decode the video to count its frames; otherwise read only the header."),
    ] = True,
    nul_separated: NulSeparated = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    allow_playlists: AllowPlaylists = False,
) -> None:
    """Show codec, size, frame rate, decoded and declared frames, lost or damaged frames, and pixels of videos.

    Example: vid3d probe video.mp4
    """
    from ..video.process import Decoders
    from ..video.process import probe as probe_video

    code = EXIT_OK

    def probe_all() -> Iterator[Record]:
        nonlocal code
        for source in find_videos(videos, nul_separated):
            try:
                yield _to_record(probe_video(source.video, decode=decode, decoders=decoders))
            except VideoError as error:
                log.error("%s", error)
                code = EXIT_SOME_FAILED

    with Decoders(timeout or None, allow_playlists=allow_playlists) as decoders:
        print_records(probe_all(), form, _print_table)
    raise typer.Exit(code)


def _to_record(info: VideoInfo) -> Record:
    return asdict(info) | {"is_hdr": info.is_hdr, "num_decode_failures": info.num_lost_frames}  # the latter: old name


def _print_table(records: list[Record]) -> None:
    from .tables import make_console, make_table

    narrow = ("codec", "size", "fps", "seconds", "frames", "lost or damaged")
    table = make_table("video", *narrow, "pixels", narrow=narrow)
    for info in records:
        frames = or_dash(info["num_frames_decoded"])
        if info["num_frames_declared"] != info["num_frames_decoded"]:
            frames += f" of {or_dash(info['num_frames_declared'])}"
        table.add_row(
            info["video"],
            info["codec"],
            f"{info['width']}×{info['height']}",
            f"{info['fps']:.4g}",
            or_dash(info["duration_seconds"], ".2f"),
            frames,
            or_dash(info["num_decode_failures"]),
            _describe_pixels(info),
        )
    if records:
        make_console().print(table)


def _describe_pixels(info: Record) -> str:
    """Return the tagged matrix, and what is unusual."""
    facts = {
        info["colour_matrix"] or "untagged": True,
        f"{info['bit_depth']} bit": info["bit_depth"] != 8,
        "full range": info["colour_range"] == "full",
        "HDR": info["is_hdr"],
        "alpha": info["has_alpha"],
        "interlaced": info["is_interlaced"],
        f"aspect {info['pixel_aspect']:.3g}": info["pixel_aspect"] != 1,
        f"turned {info['rotation_degrees']}°": info["rotation_degrees"] != 0,
    }
    return ", ".join(fact for fact, holds in facts.items() if holds)
