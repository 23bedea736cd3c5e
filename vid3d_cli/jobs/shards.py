"""`--shard 3/16`: one list of videos in n parts, of about equal duration, that n workers find without talking.

Who comes first measures the videos and writes down which shard each is in; the others read it. So a file that can be
opened here and not there, or a list in another order, makes no difference: no video is left out or taken twice.
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

from ..errors import OutputError, UsageError, VideoError
from ..features.entries import video_key
from ..features.store import write_once
from ..video.reader import probe
from ..video.sources import Source, is_url

UNKNOWN_SECONDS = 60.0
"""What a video counts that does not tell its duration: URLs are not opened for it."""

_PROBING_THREADS = 8


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a list."""

    number: int
    """From 1 to `count`."""
    count: int

    @property
    def name(self) -> str:
        """As in shard-03-of-16: sorted like the numbers."""
        return f"shard-{self.number:0{len(str(self.count))}d}-of-{self.count}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """Read "3/16", or "slurm" for the place of this task in its Slurm array.

        Raises:
            UsageError: neither.
        """
        if text == "slurm":
            return cls._of_slurm(environ)
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise UsageError(f"--shard {text}: write i/n, as in 3/16, or slurm inside a Slurm array")
        number, count = int(match[1]), int(match[2])
        if not 1 <= number <= count:
            raise UsageError(
                f"--shard {text}: shards are counted from 1 to n: give 1/{max(count, 1)} to {count}/{count}"
            )
        return cls(number, count)

    @classmethod
    def _of_slurm(cls, environ: Mapping[str, str]) -> Shard:
        """Source: sbatch's manual, "Output environment variables"."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
        try:
            task, first, last, count = (int(environ[name]) for name in names)
            step = int(environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        except (KeyError, ValueError):
            raise UsageError("--shard slurm: no task of a Slurm array: submit it with sbatch --array=1-16") from None
        if (last - first) // step + 1 != count:
            raise UsageError(
                "--shard slurm: this array has gaps, and its tasks would share the work out anew; to repeat tasks of "
                "an earlier array give each its place, as in --shard $SLURM_ARRAY_TASK_ID/16"
            )
        return cls((task - first) // step + 1, count)


def select_shard(sources: Sequence[Source], shard: Shard, plans: Path, *, keeps: bool = True) -> list[Source]:
    """The videos of one shard, in the order of the list.

    Args:
        sources: of the whole list, in any order. A video that was not in the list when the plan was made goes into the
            shard that its name says.
        shard: which part.
        plans: a directory of this output alone, which all workers share; who is in which shard is written down there.
        keeps: whether to write it down.

    Raises:
        OutputError: it cannot be written or read there.
    """
    path = plans / f"shards-of-{shard.count}.json"
    numbers = _read_plan(path) if path.exists() else balance(_durations(sources), shard.count)
    if keeps and not path.exists():
        write_once(path, json.dumps(numbers).encode())
        numbers = _read_plan(path)  # another worker's, if it was quicker
    return [source for source in sources if _number(video_key(source.video), numbers, shard.count) == shard.number]


def _number(key: str, numbers: Mapping[str, int], count: int) -> int:
    if key in numbers:
        return numbers[key]
    return 1 + int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") % count


def balance(seconds: Mapping[str, float], num_shards: int) -> dict[str, int]:
    """Put the longest video that is left into the shard that has least, whatever the order they came in.

    Returns:
        The number of the shard, from 1, of each name.

    Source: Graham, "Bounds on multiprocessing timing anomalies" (1969): at most 4/3 of the best possible.
    """
    loads = [(0.0, 0, number) for number in range(1, num_shards + 1)]
    numbers = {}
    for name in sorted(seconds, key=lambda name: (-seconds[name], name)):
        load, num_videos, number = heapq.heappop(loads)
        numbers[name] = number
        heapq.heappush(loads, (load + seconds[name], num_videos + 1, number))
    return numbers


def _durations(sources: Sequence[Source]) -> dict[str, float]:
    videos = [source.video for source in sources]
    with ThreadPoolExecutor(_PROBING_THREADS) as pool:
        seconds = pool.map(_duration, videos)
        return {video_key(video): s for video, s in zip(videos, seconds, strict=True)}


def _duration(video: str) -> float:
    if is_url(video):
        return UNKNOWN_SECONDS
    try:
        seconds = probe(video, decode=False).duration_seconds
    except VideoError:
        return 0.0  # it will fail as quickly in its shard
    return UNKNOWN_SECONDS if seconds is None else seconds


def _read_plan(path: Path) -> dict[str, int]:
    try:
        plan: dict[str, int] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {error}; remove it when no worker runs") from None
    return plan
