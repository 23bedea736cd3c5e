"""Segments as a BORIS project: an observation per video, with a state event per fused segment.

Source: BORIS 8, `EMPTY_PROJECT` and the indices of events in config.py (https://github.com/olivierfriard/BORIS).
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..errors import Vid3dError
from ..records import FUSED
from ..text import printable
from ..version import __version__
from ..video.process import probe
from ..video.sources import is_url, without_password
from .objects import JsonObject
from .subtitles import span_ms

if TYPE_CHECKING:
    from ..results import VideoResult
    from ..video.reader import VideoInfo

_KEYS = string.ascii_lowercase + string.digits + string.ascii_uppercase


class Boris(JsonObject):
    """Writes a project; its ethogram holds all classes."""

    member = "observations"

    def head(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "time_format": "hh:mm:ss",
            "project_date": _now(),
            "project_name": "",
            "project_description": f"Predictions of vid3d {__version__}",
            "project_format_version": "7.0",
            "subjects_conf": {},
            "behaviors_conf": {str(k): _behavior(k, label) for k, label in enumerate(labels)},
            "behavioral_categories": [],
            "behavioral_categories_config": {},
            "independent_variables": {},
            "coding_map": {},
            "behaviors_coding_map": [],
            "converters": {},
        }

    def entry(self, result: VideoResult) -> dict[str, Any]:
        path = self._media_path(result.video)
        info = _read_header(result.video)
        return {
            "file": {str(player): [path] if player == 1 else [] for player in range(1, 9)},
            "type": "MEDIA",
            "date": _now(),
            "description": f"vid3d {__version__}, {result.recipe.model}",
            "time offset": 0.0,
            "events": self._events(result, info),
            "observation time interval": [0, 0],
            "independent_variables": {},
            "visualize_spectrogram": False,
            "visualize_waveform": False,
            "media_creation_date_as_offset": False,
            "media_scan_sampling_duration": 0,
            "image_display_duration": 1,
            "close_behaviors_between_videos": False,
            # BORIS measures what is missing when it opens the observation.
            "media_info": {
                "length": {path: info.duration_seconds} if info and info.duration_seconds else {},
                "fps": {path: info.fps} if info else {},
                "hasVideo": {path: True},
                "hasAudio": {path: info.has_audio} if info else {},
                "offset": {"1": 0.0},
            },
        }

    def to_json(self, value: Any) -> str:
        return json.dumps(value)  # ASCII: BORIS reads a project in the encoding of the system

    def _events(self, result: VideoResult, info: VideoInfo | None) -> list[list[Any]]:
        """Return [seconds, subject, behavior, modifier, comment, frame index] of each start and stop, by time."""
        events: list[list[Any]] = []
        for segment in result.segments_by(self.choices.rule, [FUSED]):
            comments = (f"score {segment.score:.3f}", "")
            for ms, comment in zip(span_ms(segment), comments, strict=True):
                frame = "NA" if info is None else round(ms / 1000 * info.fps)
                events.append([ms / 1000, "", _code(segment.label), "", comment, frame])
        return sorted(events, key=lambda event: event[0])

    def _media_path(self, video: str) -> str:
        """Return where BORIS finds a video: relative if it lies below the project, else absolute."""
        if is_url(video):
            return without_password(video)
        folder = "" if self.path is None else os.path.join(self.path.absolute().parent, "")  # noqa: PTH118
        return os.path.abspath(video).removeprefix(folder)  # noqa: PTH100  (links stay)


def _behavior(number: int, label: str) -> dict[str, Any]:
    return {
        "type": "State event",
        "key": _KEYS[number : number + 1],  # the 63rd and later have none
        "code": _code(label),
        "description": "",
        "color": "",
        "category": "",
        "modifiers": {},
        "excluded": "",
        "coding map": "",
    }


def _code(label: str) -> str:
    """Return the name of a behavior; BORIS allows no "|" in it."""
    return printable(label).replace("|", "¦")


def _read_header(video: str) -> VideoInfo | None:
    try:
        return probe(video, decode=False)
    except Vid3dError:  # it was just read; the segments are worth more than its header
        return None


def _now() -> str:
    return datetime.now().isoformat(timespec="seconds")
