"""`.html`: a page that shows one video: player, timeline, curves, segments, recipe."""

from __future__ import annotations

import base64
import logging
import mimetypes
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ...durable import read_errors
from ...errors import TooLarge, UsageError, VideoError
from ...records import FUSED, rank
from ...segments import Curves, Segment, find_segments
from ...text import printable
from ...video.process import Decoders
from ...video.sources import is_url
from ..formats import Writer
from ..views import choose_classes, name_of, shown_streams
from .overview import Overview
from .pages import generate, to_inert_json
from .thumbnails import Thumbnail, read_thumbnails

if TYPE_CHECKING:
    from ...results import VideoResult
    from ...segments import SegmentRule
    from ...video.reader import VideoInfo

_log = logging.getLogger(__name__)

MAX_POINTS = 1000
"""Of a curve; more cells are averaged."""
MAX_SEGMENTS = 2000
"""Of a stream; the longest are kept."""

MAX_EMBEDDED_BYTES = 350 * 2**20
"""Browsers take data: URIs of up to 512 MB, and base64 adds a third."""


class Report(Writer):
    """Writes one HTML file that works offline, beside the video or with the video in it (`choices.embed`)."""

    holds_many = False
    index = Overview

    def write(self, result: VideoResult, name: str) -> None:
        if not result.labels:
            raise UsageError(f"{printable(result.video)}: its model has no classes to report")
        info, thumbnails = self._read_video(result)
        mark = secrets.token_hex(16)  # stands for the embedded video while the page is made
        source, why_no_player = self._find_source(result.video, mark)
        data = {
            "offset": 0.0 if info is None else info.start_offset_seconds,
            "size": [16, 9] if info is None else [info.width, info.height],
            "thumbnails": [[_thousandths(t), base64.b64encode(jpeg).decode()] for t, jpeg in thumbnails],
            **describe_scores(result, self.choices.rule),
        }
        recipe = asdict(result.recipe)
        if recipe["fps"] != "native":
            recipe["fps"] = f"{result.fps:g}"  # 12.5, not 25/2
        pieces = generate(
            "page.html",
            "page.js",
            result=result,
            title=printable(name_of(result.video)),
            best=[(printable(p.label), p.score) for p in rank(result.logits[FUSED], result.labels, 3)],
            info=info,
            source=source,
            why_no_player=why_no_player,
            rule=self.choices.rule,
            recipe=sorted(_flat(recipe), key=lambda entry: "." in entry[0]),
            overview=None if self.overview is None else "../" * name.count("/") + self.overview.name,
            data=to_inert_json(data),
        )
        for piece in pieces:
            before, found, after = piece.partition(mark)
            self.stream.write(before)
            if found:
                self._embed(Path(result.video))
                self.stream.write(after)

    def _find_source(self, video: str, mark: str) -> tuple[str | None, str | None]:
        """Return the address of the video as the page sees it; or why there is none, as a sentence."""
        if is_url(video):
            return None, "The video is not a local file, so this page has no player."
        path = Path(os.path.abspath(video))  # noqa: PTH100  (links stay)
        if not path.is_file():
            return None, "The video is gone, or is no file that can be read again, so this page has no player."
        if self.choices.embed:
            if path.stat().st_size > MAX_EMBEDDED_BYTES:
                size, limit = path.stat().st_size // 2**20, MAX_EMBEDDED_BYTES // 2**20
                raise TooLarge(video, f"{size} MB are too much to embed, browsers play {limit}: leave out --embed")
            kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
            return f"data:{kind};base64,{mark}", None
        if self.path is None:
            return f"file://{quote(os.fsencode(path))}", None
        folder = os.path.abspath(self.path.parent)  # noqa: PTH100
        return quote(os.fsencode(os.path.relpath(path, folder))), None

    def _read_video(self, result: VideoResult) -> tuple[VideoInfo | None, list[Thumbnail]]:
        """Return its facts and thumbnails; without them, the page still shows the scores."""
        video, choices = result.video, self.choices
        if not is_url(video) and Path(video).exists() and not Path(video).is_file():  # a pipe or a camera
            return None, []
        try:
            with Decoders(choices.timeout, allow_playlists=choices.allow_playlists) as decoders:
                return read_thumbnails(decoders, video, result.start_seconds, result.end_seconds)
        except VideoError as error:
            if choices.embed:
                raise
            _log.warning("%s; its report has no thumbnails", error)
            return None, []

    def _embed(self, path: Path) -> None:
        with read_errors(path), path.open("rb") as file:
            while data := file.read(3 * 2**18):
                self.stream.write(base64.b64encode(data).decode())


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and values of a recipe, with dots between the levels."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value != "":
            yield f"{prefix}{key}", printable(str(value) if not isinstance(value, bool) else ("no", "yes")[value])


# Scores --------------------------------------------------------------------------------------------------------------


def describe_scores(result: VideoResult, rule: SegmentRule) -> dict[str, Any]:
    """Return the segments and curves of a result as compact values: times in ms, scores in thousandths."""
    streams: list[dict[str, Any]] = []
    classes: list[int] = []
    labels: list[str] = []
    *others, first = shown_streams(result)
    for stream in [first, *others]:
        curves = result.curves(stream, rule.smooth)
        segments = find_segments(curves, result.labels, stream, rule)
        if not streams:
            seen = [segment.label for segment in segments]
            order = {label: place for place, label in reversed(list(enumerate(seen)))}
            classes = choose_classes(curves, segments, result.labels)
            classes.sort(key=lambda k: order.get(result.labels[k], len(seen)))
            labels = [result.labels[k] for k in classes]
        kept = longest(segments)
        labels += sorted({segment.label for segment in kept}.difference(labels))
        number_of = {label: number for number, label in reversed(list(enumerate(labels)))}
        numbers = [
            [_thousandths(s.start_seconds), _thousandths(s.end_seconds), number_of[s.label], _thousandths(s.score)]
            for s in kept
        ]
        cells = Curves(curves.bounds, curves.scores[:, classes]).averaged(MAX_POINTS)
        streams.append(
            {
                "name": stream,
                "num_segments": len(segments),
                "segments": numbers,
                "bounds": [_thousandths(seconds) for seconds in cells.bounds],
                "curves": [[_thousandths(score) for score in curve] for curve in cells.scores.T],
            }
        )
    start = _thousandths(result.start_seconds)
    return {
        "start": start,
        "end": max(_thousandths(result.end_seconds), start + 1),
        "labels": [printable(label) for label in labels],  # those with a colour come first
        "num_classes": len(classes),
        "streams": streams,
    }


def longest(segments: list[Segment]) -> list[Segment]:
    """Return the longest segments, as many as a page shows, in their order."""
    if len(segments) <= MAX_SEGMENTS:
        return segments
    kept = sorted(range(len(segments)), key=lambda i: segments[i].start_seconds - segments[i].end_seconds)
    return [segments[i] for i in sorted(kept[:MAX_SEGMENTS])]


def _thousandths(value: float) -> int:
    return round(1000 * float(value))
