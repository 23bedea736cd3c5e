"""Check segments where the truth is known: films of all ten camera motions in a random order.

    python tools/check_segments.py                                       # 20 films of a fresh seed
    python tools/check_segments.py --seed 7 --films 5 --stride 8 --smooth 1 3

A film shows each motion once, over a scene of its own. For each length of the motions, stride and rule, this prints
how many of the nine boundaries of a film are found within one stride of the truth, between segments of the right
labels; how many films have all boundaries, and the true labels in their order; and how much of the time is labelled
right.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from camera_motion.paths import CLASSES

import vid3d_cli as vid3d
from vid3d_cli.records import FUSED
from vid3d_cli.segments import Segment, SegmentRule
from vid3d_cli.video.demo import Motion, render

MODEL = "s3d_mini.camera_motion"
FPS = 12.5  # of the model


@dataclass(frozen=True)
class Score:
    """How well the segments of a film fit the truth."""

    errors_seconds: tuple[float, ...]
    """Of each true boundary: the distance to a found boundary between the same two labels; infinite without one."""
    is_exact: bool
    """Whether the segments have the true labels in the true order."""
    right_share: float
    """Share of the time with the right label."""
    wrong: Counter[tuple[str, str]]
    """Seconds by true and found label where they differ."""


def shuffled_motions(seed: int) -> list[str]:
    """Return all labels in a random order."""
    return [CLASSES[i] for i in np.random.default_rng(seed).permutation(len(CLASSES))]


def compare(found: Sequence[Segment], truth: Sequence[Motion]) -> Score:
    """Compare segments of one stream with the truth."""
    places = {(a.label, b.label): b.start_seconds for a, b in itertools.pairwise(found)}
    errors = [
        abs(places.get((a.label, b.label), np.inf) - b.start_seconds)  # each label comes once in the truth
        for a, b in itertools.pairwise(truth)
    ]
    wrong: Counter[tuple[str, str]] = Counter()
    right = 0.0
    for motion, segment in itertools.product(truth, found):
        shared = min(motion.end_seconds, segment.end_seconds) - max(motion.start_seconds, segment.start_seconds)
        if shared > 0 and motion.label == segment.label:
            right += shared
        elif shared > 0:
            wrong[motion.label, segment.label] += shared
    is_exact = [s.label for s in found] == [m.label for m in truth]
    return Score(tuple(errors), is_exact, right / truth[-1].end_seconds, wrong)


def classify_films(
    folder: Path, seeds: Sequence[int], motion_seconds: float, stride: int
) -> list[tuple[vid3d.VideoResult, list[Motion]]]:
    """Render and classify a film for each seed; return the results and the truth."""
    files = [folder / f"{seed}.mp4" for seed in seeds]
    truths = [render(file, int(file.stem), shuffled_motions(int(file.stem)), motion_seconds) for file in files]
    return list(zip(vid3d.extract(files, model=MODEL, stride=stride), truths, strict=True))


def describe(scores: Sequence[Score], stride_seconds: float) -> str:
    """Return the cells of a row."""
    errors = np.array([score.errors_seconds for score in scores])
    is_near = errors <= stride_seconds + 1e-6
    found = errors[np.isfinite(errors)]
    return (
        f"{is_near.sum()} of {is_near.size} ({is_near.mean():.1%}) | {sum(is_near.all(1))} of {len(scores)} | "
        f"{sum(s.is_exact for s in scores)} of {len(scores)} | {np.median(found):.2f}, {found.max():.2f} s | "
        f"{np.mean([s.right_share for s in scores]):.1%}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the first film; the default is fresh")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.56, 4.0], help="length of each motion")
    parser.add_argument("--stride", type=int, nargs="+", default=[16, 8, 4], help="in frames of 1/12.5 s")
    parser.add_argument("--smooth", type=int, nargs="+", default=[1, 3], help="clips")
    parser.add_argument("--min-seconds", type=float, nargs="+", default=[0.0, 1.0])
    arguments = parser.parse_args()
    seed = np.random.SeedSequence().entropy % 10**6 if arguments.seed is None else arguments.seed
    seeds = range(seed, seed + arguments.films)
    print(f"{arguments.films} films, seeds {seeds[0]} to {seeds[-1]}\n")
    print(
        "| motion | stride | --smooth | --min-seconds | boundaries within a stride | films with all | films with all "
        "labels in order | median and largest error | time labelled right |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for motion_seconds, stride in itertools.product(arguments.seconds, arguments.stride):
        with tempfile.TemporaryDirectory() as folder:
            films = classify_films(Path(folder), seeds, motion_seconds, stride)
        for smooth, min_seconds in itertools.product(arguments.smooth, arguments.min_seconds):
            rule = SegmentRule(smooth=smooth, min_seconds=min_seconds)
            scores = [compare(result.segments_by(rule, [FUSED]), truth) for result, truth in films]
            print(
                f"| {motion_seconds:g} s | {stride} | {smooth} | {min_seconds:g} s | "
                f"{describe(scores, stride / FPS)} |",
                flush=True,
            )
            if (smooth, min_seconds) == (arguments.smooth[0], arguments.min_seconds[0]):
                wrong = sum((score.wrong for score in scores), Counter())
                worst = ", ".join(f"{true} as {found} {s:.0f} s" for (true, found), s in wrong.most_common(8))
                print(f"wrong at {motion_seconds:g} s, stride {stride}: {worst}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
