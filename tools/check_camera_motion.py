"""Check the camera-motion model on real footage: a virtual camera over real frames gives clips with known labels.

    python tools/check_camera_motion.py                                   # the packaged checkpoint
    python tools/check_camera_motion.py --weights rgb=a.safetensors flow=b.safetensors --clips 300

Every clip is 72 frames at 25 fps, 320×240, encoded as H.264 and classified through the public API. A third of the
scenes is running footage from the two videos in ../shared/videos with a still camera (fullhd.mp4, ucf_mpeg4.avi); the
others are single frozen frames, since a video with a moving camera has no known label. Prints accuracy per class and a
confusion table in Markdown, and the predictions of each stream for fullhd.mp4 itself, which is static.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from camera_motion.paths import CLASSES, CameraPath, shaking_path, steady_path, still_path
from camera_motion.render import Frames, apply_camera, write_video
from camera_motion.report import STREAMS, accuracies, class_table, confusion_table
from numpy.typing import NDArray

import vid3d_cli as vid3d

MODEL = "s3d_mini.camera_motion"
DEFAULT_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"
STATIC_VIDEO = "fullhd.mp4"

NUM_FRAMES = 72
FPS = 25
HEIGHT, WIDTH = 240, 320
PAN_PX_PER_FRAME = (0.8, 2.2)
ZOOM_PER_FRAME = (0.004, 0.009)
ROLL_DEGREES_PER_FRAME = (0.35, 1.0)
JITTER_PX = (2.0, 4.0)


@dataclass(frozen=True)
class Scene:
    """The source of the frames under the virtual camera."""

    video: str
    share: float | None
    """Which moment is frozen, 0 to 1; None: the footage runs."""


SCENES = (
    Scene("fullhd.mp4", None),
    Scene("arm_wrestling.mp4", 0.1),
    Scene("ucf_mpeg4.avi", None),
    Scene("v_GGSY1Qvo990.mp4", 0.2),
    Scene("fullhd.mp4", None),
    Scene("short_32_frames.mp4", 0.5),
    Scene("ucf_mpeg4.avi", None),
    Scene("arm_wrestling.mp4", 0.98),
    Scene("fullhd.mp4", 0.6),
    Scene("v_GGSY1Qvo990.mp4", 0.95),
    Scene("ucf_mpeg4.avi", 0.5),
    Scene("v_GGSY1Qvo990.mp4", 0.55),
)


@dataclass(frozen=True)
class Answers:
    """The model's predictions for labelled clips."""

    logits: dict[str, NDArray[np.float32]]
    """Per stream and "fused", (N, 10)."""
    labels: NDArray[np.int64]
    names: list[str]
    """(N,) the scene of each clip."""


def read_scene(folder: Path, scene: Scene) -> Frames:
    """Return one image (H, W, 3), or at least `NUM_FRAMES` frames; a video that is too short runs back and forth."""
    with vid3d.VideoReader(str(folder / scene.video)) as reader:
        frames = [frame.rgb for frame in reader]
    if scene.share is not None:
        return frames[int(scene.share * (len(frames) - 1))]
    while len(frames) < NUM_FRAMES:
        frames = frames + frames[-2::-1]
    return np.stack(frames[:NUM_FRAMES])


def check_path(rng: np.random.Generator, label: str) -> CameraPath:
    """Return the path of a camera of this class, at a constant speed drawn from those above."""
    if label == "static":
        return still_path(NUM_FRAMES)
    if label == "shake":
        amplitude_px = rng.uniform(*JITTER_PX)
        # half of them within ± the amplitude, half with the amplitude as root mean square
        rms_px = amplitude_px if rng.random() < 0.5 else amplitude_px / np.sqrt(3)
        return shaking_path(rng, np.arange(NUM_FRAMES) / FPS, rms_px=rms_px)
    ranges = {"pan": PAN_PX_PER_FRAME, "tilt": PAN_PX_PER_FRAME, "zoom": ZOOM_PER_FRAME, "roll": ROLL_DEGREES_PER_FRAME}
    path = steady_path(label, NUM_FRAMES, speed=rng.uniform(*ranges[label.split("-")[0]]))
    return CameraPath(
        path.x_px - path.x_px.mean(),  # half of the way on either side of the image's centre
        path.y_px - path.y_px.mean(),
        path.log_zoom - path.log_zoom.min(),
        path.roll_radians - path.roll_radians.mean(),
    )


def real_clip(rng: np.random.Generator, label: str, pictures: Frames) -> Frames:
    """Return frames (72, 240, 320, 3) of real images, enlarged so that the virtual camera has room to move."""
    factor = rng.uniform(1.3, 2.0) * HEIGHT / min(pictures.shape[-3:-1])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    frames = pictures if pictures.ndim == 4 else pictures[None]
    resized = np.stack([cv2.resize(f, None, fx=factor, fy=factor, interpolation=method) for f in frames])
    return apply_camera(resized if pictures.ndim == 4 else resized[0], check_path(rng, label), HEIGHT, WIDTH)


def classify(files: Sequence[Path], weights: Mapping[str, Path]) -> dict[str, NDArray[np.float32]]:
    """Return the logits (N, 10) of each stream and the fusion, through the public API."""
    results = list(vid3d.extract(files, model=MODEL, weights=dict(weights)))
    return {stream: np.stack([result.logits[stream] for result in results]) for stream in STREAMS}


def check(videos: Path, weights: Mapping[str, Path], *, num_clips: int, seed: int) -> Answers:
    """Make the clips and classify them.

    Args:
        videos: directory of the real videos.
        weights: checkpoint per stream; empty for the packaged ones.
        num_clips: N; classes in turn.
        seed: seed of speeds and sizes.
    """
    scenes = {scene: read_scene(videos, scene) for scene in SCENES}
    names, labels = [], np.arange(num_clips) % len(CLASSES)
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for index, label in enumerate(labels):
            rng = np.random.default_rng([seed, index])
            scene = SCENES[(index // len(CLASSES) + index) % len(SCENES)]
            files.append(Path(directory) / f"{index:04}.mp4")
            write_video(files[-1], real_clip(rng, CLASSES[label], scenes[scene]), fps=FPS)
            names.append(f"{scene.video} {'running' if scene.share is None else f'frozen at {scene.share:.0%}'}")
        return Answers(classify(files, weights), labels, names)


def describe(answers: Answers, static: Mapping[str, str]) -> str:
    """Return the result in Markdown."""
    fused = answers.logits["fused"]
    lines = [class_table(answers.logits, answers.labels), "", "Fused:", "", confusion_table(fused, answers.labels), ""]
    is_running = np.array([name.endswith("running") for name in answers.names])
    for word, part in (("running footage", is_running), ("frozen frames", ~is_running)):
        found = accuracies({s: x[part] for s, x in answers.logits.items()}, answers.labels[part])
        lines.append(f"Over {word} ({part.sum()} clips): " + ", ".join(f"{s} {found[s]:.1f} %" for s in STREAMS) + ".")
    lines.append(f"{STATIC_VIDEO}, a static camera: " + ", ".join(f"{s} {label}" for s, label in static.items()) + ".")
    return "\n".join(lines)


def static_verdict(videos: Path, weights: Mapping[str, Path]) -> dict[str, str]:
    """Return each stream's prediction for the video with a still camera, with its probability."""
    result = vid3d.classify(videos / STATIC_VIDEO, model=MODEL, weights=dict(weights))
    best = {stream: vid3d.top_k(result.logits[stream], result.labels, 1)[0] for stream in STREAMS}
    return {stream: f"{found.label} ({found.score:.2f})" for stream, found in best.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], metavar="STREAM=FILE", help="checkpoints to check")
    parser.add_argument("--videos", type=Path, default=DEFAULT_VIDEOS, help="directory of real videos")
    parser.add_argument("--clips", type=int, default=120, help="how many clips")
    parser.add_argument("--seed", type=int, default=100, help="seed of speeds and sizes")
    parser.add_argument("--json", type=Path, help="write every clip's answer to this file")
    arguments = parser.parse_args()
    weights = {stream: Path(path) for stream, _, path in (text.partition("=") for text in arguments.weights)}
    answers = check(arguments.videos, weights, num_clips=arguments.clips, seed=arguments.seed)
    print(describe(answers, static_verdict(arguments.videos, weights)))
    for index, name in enumerate(answers.names):
        found = {s: CLASSES[answers.logits[s][index].argmax()] for s in STREAMS}
        if found["fused"] != CLASSES[answers.labels[index]]:
            print(f"wrong: {CLASSES[answers.labels[index]]} over {name}: {found}", file=sys.stderr)
    if arguments.json:
        record = {"labels": answers.labels.tolist(), "scenes": answers.names}
        arguments.json.write_text(json.dumps(record | {s: x.tolist() for s, x in answers.logits.items()}))


if __name__ == "__main__":
    main()
