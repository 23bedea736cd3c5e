"""Write the model card: a training run rewrites the measured part and keeps the text below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MARK = "<!-- Above: written by tools/train_camera_motion.py. Below: by hand, kept. -->"

TEXT = """\
# s3d_mini.camera_motion

This model recognises what the camera does in a clip: {classes}. Classes are named by what the *camera* does:
pan-right moves the image left, tilt-up moves it down, zoom-in makes it grow, roll-clockwise turns it
counter-clockwise; shake is hand-held jitter without a trend. It has two S3D streams, rgb and flow, with a quarter of
the channels: {num_parameters} parameters, {size_mb:.1f} MB in float16. It is ours, Apache-2.0, and was trained
from scratch on rendered images: it contains nobody's footage.

    vid3d classify --model {model} video.mp4

## Data

`tools/camera_motion/` renders all clips from seeded noise. A scene has a background, up to two nearer layers
(parallax) and up to three objects. Textures come from seven families: clouds, low texture, Voronoi patches, bricks
and stripes, writing, dead leaves, rooms. Objects move, grow and turn by themselves; the camera follows some of them.
Light flickers, drifts, switches, fades or moves over the scene. Lenses blur and darken the corners, exposures smear,
sensors are noisy, and some clips have static bars and logos. Three clips in ten are compressed with H.264 or MPEG-4
at random quality. The short side is one of eight sizes from 160 to 360 px, the frame rate one of eight from 15 to 60.

Camera speeds, per frame at 25 fps and 320×240: pan and tilt 0.4 to 6 px, zoom 0.25 to 1.5 %, roll 0.22 to 2.2°.
Speeds are constant or vary. Pans may drift sideways by up to a quarter; zooms and rolls may be off-centre; most clips
have hand-held jitter. Shake is 1.1 to 5 px rms: new in every frame, or at 2 to 8 Hz, or wandering. A static camera
may move by 0.35 px rms.

## Training

Training uses {train_clips} clips of 16 frames at 12.5 fps (short side 128, crop 112), calibration {val_clips} of
another seed, and the figures below {test_clips} of a third. All clips go through the preprocessing code of inference
(DIS flow in pixels, truncated at ±8). Sixteen exact symmetries (mirrors, transposition, reversed time) augment them,
with the labels changed accordingly; tails are padded as at inference; rgb varies in colour and contrast, flow in
speed.

The optimiser is AdamW, batch 8, bfloat16. Epochs: rgb {rgb_rounds}, flow {flow_rounds}. A "+" restarts the optimiser,
"/2" means clips of half the size, and the rate falls in the last two epochs of a round. rgb's stem starts as filters
of motion energy (Adelson & Bergen 1985). Pixels alone teach motion slowly, so training adds three heads that are
removed afterwards: one predicts the image's mean shift, growth and turn, and two predict flow in 7×7 cells from rgb's
maps.

Finally the classifier of each stream is scaled by one factor (rgb {rgb:.2f}, flow {flow:.2f}), chosen on the
calibration clips so that logits summed 1:1 explain the labels best. The fusion is then calibrated; a single stream is
underconfident.

- seed {seed}, one thread per stream
- commit `{commit}` ("-dirty" means with uncommitted changes)
- {machine}
- rendering {render_s} s (0 if cached by an earlier run); training rgb {rgb_s} s beside flow {flow_s} s

## Held-out synthetic clips

One clip of 16 frames each; seed {test_seed}, not used for training or calibration.

{synthetic}

## Real footage

{real}

## Retrain

    python tools/train_camera_motion.py --cache DIR \\
        --seed {seed} --clips {train_clips} --rgb {rgb_rounds} --flow {flow_rounds}
    python tools/check_camera_motion.py

The first command writes both checkpoints, the metrics and this card, and prints the digests for
`weights/manifest.toml`.

{mark}
"""

REAL_TEXT = """\
`tools/check_camera_motion.py` moves a virtual camera over real videos: 72 frames at 25 fps, 320×240, encoded as
H.264, one label per clip. Pan and tilt are 0.8 to 2.2 px per frame, zoom 0.4 to 0.9 %, roll 0.35 to 1°, shake 2 to 4
px. Clips use frozen frames of all videos, and running frames of the two videos whose own camera is static.

"""


def update_card(path: Path, metrics: dict[str, Any]) -> None:
    """Write the card and keep the text below its mark."""
    kept = path.read_text("utf-8").partition(MARK)[2].strip() if path.is_file() else ""
    text = render_card(metrics)
    path.write_text(text + (f"\n{kept}\n" if kept else ""), "utf-8")


def render_card(metrics: dict[str, Any]) -> str:
    """Return the measured part of the card."""
    plan, files, real = metrics["plan"], metrics["files"].values(), metrics["real"]
    return TEXT.format(
        model=metrics["model"],
        classes=", ".join(metrics["classes"]),
        num_parameters=" + ".join(f"{facts['num_parameters']:,}" for facts in files),
        size_mb=sum(facts["size_bytes"] for facts in files) / 1e6,
        rgb_rounds=plan["rounds"]["rgb"],
        flow_rounds=plan["rounds"]["flow"],
        **plan,
        rgb=metrics["factors"]["rgb"],
        flow=metrics["factors"]["flow"],
        commit=metrics["commit"],
        machine=json.dumps(metrics["machine"]).strip("{}").replace('"', ""),
        render_s=metrics["seconds"]["render"],
        rgb_s=metrics["seconds"]["rgb"],
        flow_s=metrics["seconds"]["flow"],
        test_seed=10 * plan["seed"] + 3,
        synthetic=metrics["synthetic"]["tables"],
        real=REAL_TEXT + real["tables"] if real else "Not measured in this run.",
        mark=MARK,
    )
