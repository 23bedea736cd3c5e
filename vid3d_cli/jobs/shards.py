"""`--shard 3/16`: splits a list of videos into n parts of about equal duration.

The first worker saves which shard each video is in, and the others read that. So every video is in exactly one shard,
even if the workers' lists differ in order, or a file opens on one machine only.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..durable import write_once
from ..errors import OutputError, UsageError, VideoError
from ..features.entries import video_key
from ..video.process import TIMEOUT_SECONDS, Decoders, probe
from ..video.sources import Source, is_url
from .locking import only_one

UNKNOWN_SECONDS = 60.0
"""Assumed for a video whose header has no duration, and for URLs, which are not opened."""

_PROBING_THREADS = 8


@dataclass(frozen=True)
class Shard:
    """One of several parts of a list."""

    number: int
    """From 1 to `count`."""
    count: int

    @property
    def name(self) -> str:
        """A name such as shard-03-of-16; names sort like numbers."""
        return f"shard-{self.number:0{len(str(self.count))}d}-of-{self.count}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """Return the shard for "3/16", or for "slurm" that of this task in its Slurm array.

        Raises:
            UsageError: the text is neither, or there is no such shard.
        """
        if text == "slurm":
            return cls._of_slurm(environ)
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise UsageError(f"--shard {text}: write i/n, as in 3/16, or slurm inside a Slurm array")
        number, count = int(match[1]), int(match[2])
        if not 1 <= number <= count:
            raise UsageError(f"--shard {text}: shards count from 1 to n: give 1/{max(count, 1)} to {count}/{count}")
        return cls(number, count)

    @classmethod
    def _of_slurm(cls, environ: Mapping[str, str]) -> Shard:
        """Source: sbatch's manual, "Output environment variables"."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
        try:
            task, first, last, count = (int(environ[name]) for name in names)
            step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        except (KeyError, ValueError):
            raise UsageError("--shard slurm works inside a Slurm array only: submit with sbatch --array=1-16") from None
        if (last - first) // step + 1 != count:
            raise UsageError(
                "--shard slurm: this array has gaps. To repeat tasks of an earlier array, give each its shard: "
                "--shard $SLURM_ARRAY_TASK_ID/16"
            )
        return cls((task - first) // step + 1, count)


def select_shard(
    sources: Sequence[Source],
    shard: Shard,
    plans: Path,
    *,
    keep: bool = True,
    timeout: float | None = TIMEOUT_SECONDS,
    allow_playlists: bool = False,
) -> list[Source]:
    """Return the videos of one shard, in list order.

    The first worker probes the videos and saves which shard each is in; the others wait for it and read that.

    Args:
        sources: the whole list, in any order. A video that is missing in the saved plan goes into the shard that a
            hash of its name selects.
        shard: which part.
        plans: the directory of the plan, which all workers of this output share.
        keep: whether to save the plan.
        timeout: seconds without progress before a video counts as unreadable; None for no limit.
        allow_playlists: let playlists open the files and addresses that they name.

    Raises:
        OutputError: the plan cannot be written or read.
    """

    def assign() -> dict[str, int]:
        with Decoders(timeout, allow_playlists=allow_playlists) as decoders:
            return balance(_probe_durations(sources, decoders), shard.count)

    path = plans / f"shards-of-{shard.count}.json"
    if keep and not path.exists():
        with only_one(path.with_suffix(".lock")):
            if not path.exists():
                write_once(path, json.dumps(assign()).encode())
    numbers = _read_plan(path) if path.exists() else assign()
    return [source for source in sources if _number(video_key(source.video), numbers, shard.count) == shard.number]


def _number(key: str, numbers: Mapping[str, int], count: int) -> int:
    if key in numbers:
        return numbers[key]
    return 1 + int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") % count


def balance(seconds: Mapping[str, float], num_shards: int) -> dict[str, int]:
    """Assign each video, longest first, to the shortest shard so far; the order of the list does not matter.

    Returns:
        The shard of each name, from 1.

    Source: Graham, "Bounds on multiprocessing timing anomalies" (1969): at most 4/3 of the best possible.
    """
    loads = [(0.0, 0, number) for number in range(1, num_shards + 1)]
    numbers = {}
    for name in sorted(seconds, key=lambda name: (-seconds[name], name)):
        load, num_videos, number = heapq.heappop(loads)
        numbers[name] = number
        heapq.heappush(loads, (load + seconds[name], num_videos + 1, number))
    return numbers


def _probe_durations(sources: Sequence[Source], decoders: Decoders) -> dict[str, float]:
    videos = [source.video for source in sources]
    with ThreadPoolExecutor(_PROBING_THREADS) as pool:
        seconds = pool.map(lambda video: _probe_duration(video, decoders), videos)
        return {video_key(video): s for video, s in zip(videos, seconds, strict=True)}


def _probe_duration(video: str, decoders: Decoders) -> float:
    if is_url(video):
        return UNKNOWN_SECONDS
    try:
        seconds = probe(video, decode=False, decoders=decoders).duration_seconds
    except VideoError:
        return 0.0  # it fails as quickly in its shard
    return UNKNOWN_SECONDS if seconds is None else seconds


def _read_plan(path: Path) -> dict[str, int]:
    try:
        plan: dict[str, int] = dict(json.loads(path.read_bytes()).items())
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(f"{path}: cannot be read: {error}; delete it when no worker is running") from None
    return plan
