"""Compare reading with plain PyAV: the cost of times, processes, resizing, flow and threads.

    python benchmarks/decode.py [VIDEO …]

Prints a Markdown table with one row per video: frames per second of a bare PyAV loop that decodes to RGB arrays, then
the times of the following, as multiples of its time:

- frames: `VideoReader`, which adds times, rotation and tolerance of damage, at the native rate;
- process: the same frames through a decoder process;
- resized: the frames at the size that I3D takes, by one thread;
- resized + flow: the same with the DIS flow between them, by one thread;
- n workers: the same by as many threads as there are cores, as a run reads.

Without arguments it reads the videos beside the checkout, and renders one for each size that none of them has. Every
round times each contestant once and the table shows medians of ratios, so other load affects all of them alike.
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
from vid3d_cli.plan import Plan
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.run.threads import count_cores, one_opencv_thread
from vid3d_cli.video.process import DecodedVideo, Decoders, probe
from vid3d_cli.video.reader import VideoReader
from vid3d_cli.video.writer import write_video
from vid3d_cli.workers import Workers

SHARED = Path(__file__).resolve().parents[2] / "shared" / "videos"
SIZES = ((320, 240), (340, 256), (1280, 720), (1920, 1080))
MAX_FRAMES = 128
"""Frames read of every video; two windows of I3D."""

NUM_ROUNDS = 5


def render(path: Path, width: int, height: int, num_frames: int = MAX_FRAMES) -> None:
    """Write a video of moving noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
    scene = cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    starts = (3 * i % width for i in range(num_frames))
    write_video(path, (np.asarray(scene[:, x : x + width], np.uint8) for x in starts), fps=Fraction(25))


def default_videos(directory: Path) -> Iterator[str]:
    """Yield one video of every size."""
    missing = set(SIZES)
    for path in sorted(SHARED.glob("*.*")):
        info = probe(str(path))
        if (info.num_frames_declared or 0) >= 64:  # shorter ones end too soon to measure
            missing.discard((info.width, info.height))
            yield str(path)
    for width, height in sorted(missing):
        path = directory / f"rendered-{width}x{height}.mp4"
        render(path, width, height)
        yield str(path)


def read_plainly(video: str) -> int:
    """Read frames with a plain PyAV loop; return their number."""
    num_frames = 0
    with av.open(video) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in itertools.islice(container.decode(video=0), MAX_FRAMES):
            frame.to_ndarray(format="rgb24")
            num_frames += 1
    return num_frames


def read_frames(frames: VideoReader | DecodedVideo) -> None:
    """Read frames in this process or from a decoder process."""
    with frames as reader:
        for _ in itertools.islice(reader, MAX_FRAMES):
            pass


def read_clips(video: str, streams: str, num_workers: int) -> None:
    """Read clips at the native rate."""
    plan = Plan.make(Options(streams=streams, fps="native"))
    with one_opencv_thread(), Workers(num_workers) as workers, ClipReader(plan, video, workers) as reader:
        for _ in reader:
            if reader.num_frames >= MAX_FRAMES:
                break


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def table_row(video: str, num_cores: int, decoders: Decoders) -> str:
    """Measure one video; return its row of the table."""
    contestants: list[Callable[[], object]] = [
        lambda: read_plainly(video),
        lambda: read_frames(VideoReader(video)),
        lambda: read_frames(decoders.open(video)),
        lambda: read_clips(video, "rgb", 0),
        lambda: read_clips(video, "both", 0),
        lambda: read_clips(video, "rgb", num_cores),
        lambda: read_clips(video, "both", num_cores),
    ]
    num_frames = read_plainly(video)
    rounds = [[seconds(contestant) for contestant in contestants] for _ in range(NUM_ROUNDS)]
    plain = statistics.median(times[0] for times in rounds)
    ratios = [statistics.median(times[i] / times[0] for times in rounds) for i in range(1, len(contestants))]
    info = probe(video)
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
    print("| video | frames | plain PyAV, frames/s | frames | process | resized | resized + flow |", end="")
    print(f" resized, {workers} | resized + flow, {workers} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as directory, Decoders() as decoders:
        for video in options.videos or default_videos(Path(directory)):
            print(table_row(video, num_cores, decoders), flush=True)


if __name__ == "__main__":
    main()
