"""`vid3d probe`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError, VideoError
from ..video import TIMEOUT_SECONDS
from .batch import NulSeparated, Timeout, Videos, find_videos
from .console import log, stdout_is_terminal

if TYPE_CHECKING:
    from ..video.reader import VideoInfo


def probe(
    videos: Videos,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="table|json|jsonl", help="Output format; default: table on a terminal, else jsonl."
        ),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(help="Decode the video to count its frames; otherwise read only the header."),
    ] = True,
    nul_separated: NulSeparated = False,
    timeout: Timeout = TIMEOUT_SECONDS,
) -> None:
    """Show codec, size, rotation, frame rate, decoded and declared frames, and lost or damaged frames of videos.

    Example: vid3d probe video.mp4
    """
    from ..records import to_json
    from ..video.process import Decoders
    from ..video.process import probe as probe_video

    if form not in (None, "table", "json", "jsonl"):
        raise UsageError(f"--format {form}: choose table, json or jsonl")
    infos, code = [], EXIT_OK
    form = form or ("table" if stdout_is_terminal() else "jsonl")
    sources = find_videos(videos, nul_separated)
    with Decoders(timeout or None) as decoders:
        for source in sources:
            try:
                info = probe_video(source.video, decode=decode, decoders=decoders)
            except VideoError as error:
                log.error("%s", error)
                code = EXIT_SOME_FAILED
                continue
            infos.append(info)
            if form == "jsonl":
                typer.echo(to_json(_to_record(info)))
    if form == "json":
        typer.echo(to_json([_to_record(info) for info in infos]))
    if form == "table" and infos:
        _print_table(infos)
    raise typer.Exit(code)


def _to_record(info: VideoInfo) -> dict[str, Any]:
    return asdict(info) | {"num_decode_failures": info.num_lost_frames}  # the key of the first versions


def _print_table(infos: list[VideoInfo]) -> None:
    from .tables import make_console, make_table

    narrow = ("codec", "size", "rotation", "fps", "seconds", "frames", "lost or damaged")
    table = make_table("video", *narrow, narrow=narrow)
    for info in infos:
        frames = _or_dash(info.num_frames_decoded)
        if info.num_frames_declared != info.num_frames_decoded:
            frames += f" of {_or_dash(info.num_frames_declared)}"
        table.add_row(
            info.video,
            info.codec,
            f"{info.width}×{info.height}",
            f"{info.rotation_degrees}°",
            f"{info.fps:.4g}",
            _or_dash(info.duration_seconds, ".2f"),
            frames,
            _or_dash(info.num_lost_frames),
        )
    make_console().print(table)


def _or_dash(value: float | None, spec: str = "") -> str:
    return "–" if value is None else format(value, spec)
