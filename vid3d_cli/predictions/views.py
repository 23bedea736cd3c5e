"""What the views of a result for people have in common: the report, the picture and the timeline of a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..records import FUSED, STREAMS
from ..segments import Curves, Segment
from ..video.sources import is_url

if TYPE_CHECKING:
    from ..results import VideoResult

_MAX_CURVES = 8
_LEAST_PEAK = 0.1
"""A class without a segment has a curve if its score is ever that high."""


def shown_streams(result: VideoResult) -> list[str]:
    """Return the streams to show, the most important last: fused, unless it is the copy of the only one."""
    ran = [stream for stream in STREAMS if stream in result.logits]
    return ran if len(ran) == 1 else [*ran, FUSED]


def name_of(video: str) -> str:
    """Return the file name, of a URL too; without the rest of a URL, which may hold passwords."""
    return PurePath(urlsplit(video).path).name or "video" if is_url(video) else PurePath(video).name


def clock(seconds: float, digits: int = 1) -> str:
    """Return "0:05.2" or "1:02:05.2"; with `digits=0`, "0:05" or "1:02:05"."""
    units = round(10**digits * seconds)
    minutes, rest = divmod(units, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 10**digits:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


def seconds_of(segments: Sequence[Segment]) -> dict[str, float]:
    """Return how long each class is seen."""
    seconds: dict[str, float] = {}
    for segment in segments:
        seconds[segment.label] = seconds.get(segment.label, 0) + segment.end_seconds - segment.start_seconds
    return seconds


def choose_classes(curves: Curves, segments: Sequence[Segment], labels: Sequence[str]) -> list[int]:
    """Return the classes that get a curve, 1 to 8: those seen longest, then those of the highest mean score."""
    seconds = seconds_of(segments)
    means, peaks = curves.scores.mean(axis=0), curves.scores.max(axis=0)
    found = [k for k, label in enumerate(labels) if label in seconds or peaks[k] >= _LEAST_PEAK]
    found.sort(key=lambda k: (seconds.get(labels[k], 0), means[k]), reverse=True)
    return found[:_MAX_CURVES] or [int(means.argmax())]
