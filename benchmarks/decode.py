"""Reading against plain PyAV: what times, resizing, flow and threads add to decoding.

    python benchmarks/decode.py [VIDEO …]

Prints a Markdown table, a row a video: frames per second of a bare PyAV loop that decodes to RGB arrays, then, as
multiples of its time, those of

- frames: `VideoReader`, which adds times, rotation and tolerance of damage, at the native rate;
- resized: the frames at the size that I3D takes, by one thread;
- resized + flow: and the DIS flow between them, by one thread;
- n workers: the same by as many threads as there are cores, as a run reads.

Without videos: those beside the checkout, and rendered ones for sizes that none of them has. Every round times each
contestant once and the table has medians of ratios, so what else runs here slows all of them alike.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vid3d_cli.options import Options
from vid3d_cli.run.pipeline import Pipeline
from vid3d_cli.run.threads import count_cores, one_opencv_thread
from vid3d_cli.video.reader import VideoReader, probe
from vid3d_cli.video.writer import Film
from vid3d_cli.workers import Workers

SHARED = Path(__file__).resolve().parents[2] / "shared" / "videos"
SIZES = ((320, 240), (340, 256), (1280, 720), (1920, 1080))
MAX_FRAMES = 128
"""Of every video; two windows of I3D."""

NUM_ROUNDS = 5


def render(path: Path, width: int, height: int, num_frames: int = MAX_FRAMES) -> None:
    """Write a film of noise that moves."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
    scene = cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    film = Film(path, fps=Fraction(25))
    film.open()
    for i in range(num_frames):
        start = 3 * i % width
        film.write(np.ascontiguousarray(scene[:, start : start + width], np.uint8))
    film.finish()
    film.close()


def default_videos(directory: Path) -> Iterator[str]:
    """One video of every size."""
    missing = set(SIZES)
    for path in sorted(SHARED.glob("*.*")):
        info = probe(str(path), decode=False)
        if (info.num_frames_declared or 0) >= 64:  # shorter ones are over before they are measured
            missing.discard((info.width, info.height))
            yield str(path)
    for width, height in sorted(missing):
        path = directory / f"rendered-{width}x{height}.mp4"
        render(path, width, height)
        yield str(path)


def read_plainly(video: str) -> int:
    """What a PyAV loop does; returns the number of frames."""
    num_frames = 0
    with av.open(video) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in itertools.islice(container.decode(video=0), MAX_FRAMES):
            frame.to_ndarray(format="rgb24")
            num_frames += 1
    return num_frames


def read_frames(video: str) -> None:
    """Frames of the tool."""
    with VideoReader(video) as reader:
        for _ in itertools.islice(reader, MAX_FRAMES):
            pass


def read_clips(video: str, streams: str, num_workers: int) -> None:
    """Clips of the tool, at the native rate."""
    pipeline = Pipeline(Options(streams=streams, fps="native"))
    with one_opencv_thread(), Workers(num_workers) as workers, pipeline.open_clips(video, workers) as reader:
        for _ in reader:
            if reader.num_frames >= MAX_FRAMES:
                break


def seconds(call: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def table_row(video: str, num_cores: int) -> str:
    """Measure one video."""
    contestants: list[Callable[[], object]] = [
        lambda: read_plainly(video),
        lambda: read_frames(video),
        lambda: read_clips(video, "rgb", 0),
        lambda: read_clips(video, "both", 0),
        lambda: read_clips(video, "rgb", num_cores),
        lambda: read_clips(video, "both", num_cores),
    ]
    num_frames = read_plainly(video)
    rounds = [[seconds(contestant) for contestant in contestants] for _ in range(NUM_ROUNDS)]
    plain = statistics.median(times[0] for times in rounds)
    ratios = [statistics.median(times[i] / times[0] for times in rounds) for i in range(1, len(contestants))]
    info = probe(video, decode=False)
    cells = [f"{info.width}×{info.height} {info.codec}", str(num_frames), f"{num_frames / plain:.0f}"]
    return f"| {' | '.join(cells + [f'{ratio:.2f} ×' for ratio in ratios])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO")
    options = parser.parse_args()
    num_cores = count_cores()
    workers = f"{num_cores} worker{'s' if num_cores > 1 else ''}"
    print(f"PyAV {av.__version__}, OpenCV {cv2.__version__}, {num_cores} cores, medians of {NUM_ROUNDS} rounds\n")
    print("| video | frames | plain PyAV, frames/s | frames | resized | resized + flow |", end="")
    print(f" resized, {workers} | resized + flow, {workers} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as directory:
        for video in options.videos or default_videos(Path(directory)):
            print(table_row(video, num_cores), flush=True)


if __name__ == "__main__":
    main()
