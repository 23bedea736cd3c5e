"""Compare colours with float64 arithmetic and with the ffmpeg program, and show what the options about pixels change.

    python benchmarks/colours.py                  # one row per pixel format: some minutes with the ffmpeg program
    python benchmarks/colours.py --all            # one row per pixel format, matrix, range and size
    python benchmarks/colours.py --options VIDEO  # grey levels and features of s3d_mini with each option

Writes videos of patches of random colours in every pixel format, with every tag, and prints mean and largest
differences in grey levels (0 to 255) of our RGB and of ffmpeg's (`-pix_fmt rgb24`) from the exact RGB of the decoded
samples, and between the two, in the middle of patches. A row of several videos shows the worst of their means.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from yuv import FULL, LIMITED, WEIGHTS, exact_rgb, make_frame, middles, patches, read_frame, write_frames

from vid3d_cli.video.reader import VideoReader

YUV = ("yuv420p", "yuv422p", "yuv444p", "yuva420p", "nv12", "yuv420p10le", "yuv422p10le", "yuv444p12le")
GREY = ("gray", "gray10le")
RGB = ("rgb24", "rgba", "bgr0", "gbrp10le", "pal8")
RANGES = {0: "untagged", LIMITED: "limited", FULL: "full"}
SMALL, SIZES = (192, 320), ((576, 720), (720, 1280), (1080, 1920))  # pal8 allows for 256 colours


def cases() -> Iterator[tuple[str, str, int, tuple[int, int]]]:
    """Yield pixel format, matrix, range, height and width of every video."""
    for pixel_format in YUV + GREY:
        yield from itertools.product([pixel_format], WEIGHTS, RANGES, [SMALL])
    yield from (("yuv420p", "untagged", 0, size) for size in SIZES)
    yield "yuvj420p", "untagged", FULL, SMALL
    yield from ((pixel_format, "untagged", 0, SMALL) for pixel_format in RGB)


def by_ffmpeg(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the first frame as the ffmpeg program converts it; None without the program."""
    if shutil.which("ffmpeg") is None:
        return None
    command = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def differences(a: NDArray[np.generic], b: NDArray[np.generic]) -> tuple[float, float]:
    """Return mean and maximum."""
    difference = np.abs(a.astype(float) - b.astype(float))
    return float(difference.mean()), float(difference.max())


def measure(
    directory: Path, pixel_format: str, matrix: str, colour_range: int, size: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Return the differences ours – exact, ffmpeg – exact, ours – ffmpeg."""
    rgb = patches(*size)
    suffix = "mov" if pixel_format in ("rgb24", "rgba", "pal8") else "mkv"
    path = write_frames(directory / f"video.{suffix}", [make_frame(rgb, pixel_format, matrix, colour_range)])
    exact = middles(rgb if pixel_format in RGB else exact_rgb(read_frame(path), matrix))
    with VideoReader(str(path)) as reader:
        ours = next(iter(reader)).rgb
    ffmpeg = by_ffmpeg(path, ours.shape)
    ours = middles(ours)
    if ffmpeg is None:
        return [differences(ours, exact), None, None]
    ffmpeg = middles(ffmpeg)
    return [differences(ours, exact), differences(ffmpeg, exact), differences(ours, ffmpeg)]


def show(found: list[list[tuple[float, float] | None]]) -> str:
    """Return the cells of a row: the worst of several videos."""
    cells = []
    for column in zip(*found, strict=True):
        pairs = [pair for pair in column if pair is not None]
        cells.append(f"{max(p[0] for p in pairs):.2f} / {max(p[1] for p in pairs):.0f}" if pairs else "–")
    return " | ".join(cells)


def compare_options(video: str) -> None:
    """Print what each option changes in a video: grey levels, and the cosine of features of s3d_mini."""
    import cv2

    import vid3d_cli
    from vid3d_cli.video.pixels import PixelOptions

    print("| option | grey levels, mean / max | cosine of rgb features, mean / min | of flow features |")
    print("| --- | ---: | ---: | ---: |")
    plain, *results = (
        next(iter(vid3d_cli.extract(video, model="s3d_mini", **options)))
        for options in ({}, {"colour_matrix": "bt709"}, {"deinterlace": True}, {"square_pixels": True})
    )
    options = (PixelOptions("bt709"), PixelOptions(deinterlace=True), PixelOptions(square_pixels=True))
    for option, result in zip(options, results, strict=True):
        with (
            VideoReader(video, fps=Fraction(2)) as before,
            VideoReader(video, fps=Fraction(2), pixels=option) as after,
        ):
            pairs = [
                differences(cv2.resize(a.rgb, b.rgb.shape[1::-1]), b.rgb) for a, b in zip(before, after, strict=True)
            ]
        cells = [f"{np.mean([p[0] for p in pairs]):.2f} / {max(p[1] for p in pairs):.0f}"]
        for stream in ("rgb", "flow"):
            a, b = plain.features(stream), result.features(stream)
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            cells.append(f"{cosines.mean():.4f} / {cosines.min():.4f}")
        print(f"| {option.describe()} | {' | '.join(cells)} |")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--options", metavar="VIDEO")
    arguments = parser.parse_args()
    if arguments.options:
        compare_options(arguments.options)
        return
    print(
        "| pixel format | vid3d – exact, mean / max | ffmpeg – exact | vid3d – ffmpeg |\n| --- | ---: | ---: | ---: |"
    )

    def row(case: tuple[str, str, int, tuple[int, int]]) -> str:
        pixel_format, matrix, colour_range, (height, width) = case
        name = f"{pixel_format}, {width}×{height}" if height != SMALL[0] else pixel_format
        if arguments.all:
            return f"{name}, {matrix}, {RANGES[colour_range]}"
        return f"{name}, {RANGES[colour_range]}" if pixel_format in GREY else name

    with tempfile.TemporaryDirectory() as directory:
        for name, group in itertools.groupby(sorted(cases(), key=row), key=row):
            print(f"| {name} | {show([measure(Path(directory), *case) for case in group])} |", flush=True)


if __name__ == "__main__":
    main()
