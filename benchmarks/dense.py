"""Overlapping windows with and without `--dense`: clips per second, and how well the results agree.

    python benchmarks/dense.py                                      # i3d and s3d, seeded weights: about half an hour
    python benchmarks/dense.py --models s3d_mini.camera_motion --clips 64/8 32/8 16/8 16/4 --streams both

Runs the whole pipeline, including decoding, on --videos, and prints a Markdown table. Times are sums over all videos,
after a warm-up on the first clip of each. Cosines compare the features of each window, top-1 its label. Seeded weights
are random: they show how much the structure of a network, not a trained one, depends on neighbouring frames instead of
zero padding. "unlike" is the mean cosine of clips of different videos, the baseline for "cosine": it is high for random
weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vid3d_cli.models.manifest import PackagedSource, find_model
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.records import FUSED
from vid3d_cli.results import VideoResult
from vid3d_cli.run import local
from vid3d_cli.run.load import load
from vid3d_cli.run.reader import ClipReader

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_VIDEOS = ROOT.parent / "shared" / "videos"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def seeded_weights(model: str, stream: str, directory: Path) -> Path:
    """Write a checkpoint of seeded values, as the tests draw them, and return its path."""
    sys.path.insert(0, str(ROOT / "tests"))
    from seeded import draw

    path = directory / f"{model}.{stream}.pt"
    if not path.exists():
        entry = find_model(model)
        with torch.device("meta"):
            shapes = BACKBONES[entry.backbone].build(stream, entry.num_classes).state_dict()
        state = {name: torch.from_numpy(np.asarray(draw(name, tuple(t.shape), 1))) for name, t in shapes.items()}
        torch.save(state, path)
    return path


def run(options: Options, videos: Sequence[str], clock: Callable[[], float]) -> tuple[list[VideoResult], float]:
    """Return the results of all videos and the seconds they took."""
    plan = Plan.make(options)
    networks = load(plan)
    for video in videos:  # warm-up: allocates memory, and compiles the networks for each clip length
        with ClipReader(plan, video) as reader:
            networks.runtime.run([next(iter(reader))])
    start = clock()
    results = list(local.run(plan, videos, networks=networks))
    return results, clock() - start


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each pair of rows of two matrices."""
    of_rows: NDArray[np.float32] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return of_rows


def unlike(features: Sequence[NDArray[np.float32]]) -> float:
    """Return the mean cosine of the clips of different videos."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in features]
    return float(np.mean([(a @ b.T).mean() for a, b in combinations(units, 2)])) if len(units) > 1 else float("nan")


def labels(results: Sequence[VideoResult]) -> NDArray[np.int64]:
    """Return the best fused class of every clip."""
    return np.array([clip.logits[FUSED].argmax() for result in results for clip in result.clips])


def table_row(model: str, clips: str, videos: Sequence[str], directory: Path, arguments: argparse.Namespace) -> str:
    """Measure one network at one window and stride."""
    window, stride = map(int, clips.split("/"))
    streams, clock = arguments.streams, CLOCKS[arguments.clock]
    entry = find_model(model)
    names = [stream for stream in entry.streams if streams in (stream, "both")]
    files = [entry.streams[name].weights for name in names]
    is_embedded = all(file and any(isinstance(source, PackagedSource) for source in file.sources) for file in files)
    weights = {} if is_embedded else {name: seeded_weights(model, name, directory) for name in names}
    each = Options(
        model=model,
        streams=streams,
        weights=weights,
        window=window,
        stride=stride,
        runtime=arguments.runtime,
        device=arguments.device,
        precision="fp32",
    )
    one_by_one, seconds = run(each, videos, clock)
    pooled, dense_seconds = run(replace(each, dense=True), videos, clock)
    features = [result.features() for result in one_by_one]
    like = cosines(np.concatenate(features), np.concatenate([result.features() for result in pooled]))
    same = (labels(one_by_one) == labels(pooled)).mean()
    cells = (
        model if is_embedded else f"{model}, seeded",
        one_by_one[0].recipe.runtime,
        clips,
        len(like),
        f"{len(like) / seconds:.2f}",
        f"{len(like) / dense_seconds:.2f}",
        f"{seconds / dense_seconds:.1f}",
        f"{like.mean():.4f}",
        f"{like.min():.4f}",
        f"{unlike(features):.4f}",
        f"{100 * same:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["i3d", "s3d"])
    parser.add_argument("--clips", nargs="+", default=["64/64", "64/32", "64/16", "64/8"], metavar="WINDOW/STRIDE")
    parser.add_argument("--streams", default="rgb")
    parser.add_argument("--videos", type=Path, nargs="+", default=[DEFAULT_VIDEOS], help="files or directories")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that is busy with other work"
    )
    arguments = parser.parse_args()
    videos = [str(file) for path in arguments.videos for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if not videos:
        sys.exit(f"no videos in {', '.join(map(str, arguments.videos))}")
    print(f"{len(videos)} videos, {torch.get_num_threads()} threads, fp32, seconds by the {arguments.clock} clock\n")
    names = ("model", "runtime", "window/stride", "clips", "clips/s", "clips/s, dense", "ratio")
    print(f"| {' | '.join((*names, 'cosine, mean', 'cosine, min', 'unlike', 'same top-1, %'))} |")
    print("| --- | --- |" + 9 * " ---: |")
    with tempfile.TemporaryDirectory() as directory:
        for model in arguments.models:
            for clips in arguments.clips:
                row = table_row(model, clips, videos, Path(directory), arguments)
                print(row, flush=True)


if __name__ == "__main__":
    main()
