"""The model's card: what was measured is written anew by every training run, what a person wrote below it stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MARK = "<!-- Above: written by tools/train_camera_motion.py. Below: by hand, kept. -->"

TEXT = """\
# s3d_mini.camera_motion

Says what the camera does in a shot: {classes}. Named by what the *camera* does: pan-right moves the picture left,
tilt-up moves it down, zoom-in makes it grow, roll-clockwise turns it counter-clockwise; shake is hand-held jitter
without a trend. Two S3D streams of a quarter of the channels (rgb and flow), {num_parameters} parameters,
{size_mb:.1f} MB in float16. Ours, Apache-2.0; trained from scratch on rendered pictures: no one's footage is in it.

    vid3d classify --model {model} video.mp4

## Data

Everything is rendered by `tools/camera_motion/` from seeded noise. A world has a background and up to two nearer layers
(parallax) of seven families of texture (clouds, low texture, Voronoi patches, bricks and stripes, writing, dead
leaves, rooms), and up to three objects that move, grow and turn by themselves, some of them followed by the camera.
Light flickers, drifts, is switched, fades or wanders over the scene; lenses blur and darken the corners; exposures
smear; sensors are noisy; bars and logos stand still on some screens; three clips in ten went through H.264 or MPEG-4
at random quality. Eight sizes from 160 to 360 px short side, eight frame rates from 15 to 60.

The camera's speed, per frame at 25 fps and 320×240: pan and tilt 0.4 to 6 px, zoom 0.25 to 1.5 %, roll 0.22 to 2.2°,
constant or varying, with drift of up to a quarter beside a pan, off-centre zooms and rolls, and hand-held jitter on
most; shake 1.1 to 5 px rms, anew in every frame, or 2 to 8 Hz, or wandering. A static camera may quiver by 0.35 px rms.

## Procedure

{train_clips} clips of 16 frames at 12.5 fps (short side 128, crop 112) for training, {val_clips} of another seed for
calibration, {test_clips} of a third for the figures below, all through the preprocessing code of inference (DIS flow
in pixels, truncated at ±8). Sixteen-fold augmentation by exact symmetries (mirrors, transposition, reversed time),
with the labels swapped accordingly; tails as the pipeline pads them; colours and contrast for rgb, speed for flow.
AdamW, batch 8, bfloat16; epochs: rgb {rgb_rounds}, flow {flow_rounds} (a "+" starts the optimiser anew, "/2" shows
the clips at half the size; in the last two epochs of a round the rate falls). rgb's stem starts as filters of motion
energy (Adelson & Bergen 1985). Beside the classification loss a head, thrown away afterwards, predicts the picture's
mean shift, growth and turn, and two more ask rgb's maps for the flow in 7×7 cells: pixels alone teach motion slowly.
Then one factor for each stream (rgb {rgb:.2f}, flow {flow:.2f}), chosen on the calibration clips so that logits summed
1:1 explain the labels best, is folded into the classifier. It makes the fusion calibrated; a stream alone is then
under-confident.

- seed {seed}, one thread a stream
- commit `{commit}` ("-dirty": and the working tree then on top of it)
- {machine}
- rendering {render_s} s (0: taken from an earlier run's cache); training rgb {rgb_s} s beside flow {flow_s} s

## Held-out synthetic clips

One clip of 16 frames each; seed {test_seed}, not seen in training or calibration.

{synthetic}

## Real footage

{real}

## Retrain

    python tools/train_camera_motion.py --cache DIR \\
        --seed {seed} --clips {train_clips} --rgb {rgb_rounds} --flow {flow_rounds}
    python tools/check_camera_motion.py

The first writes both checkpoints, the metrics and this card, and prints the digests for `weights/manifest.toml`.

{mark}
"""

REAL_TEXT = """\
`tools/check_camera_motion.py`: a virtual camera over real films, 72 frames at 25 fps, 320×240, encoded as H.264, one
label a film; pan and tilt 0.8 to 2.2 px a frame, zoom 0.4 to 0.9 %, roll 0.35 to 1°, shake 2 to 4 px. Frozen frames of
all films, running ones of the two whose own camera stands still.

"""


def update_card(path: Path, metrics: dict[str, Any]) -> None:
    """Write the card, keeping what stands below its mark."""
    kept = path.read_text("utf-8").partition(MARK)[2].strip() if path.is_file() else ""
    text = render_card(metrics)
    path.write_text(text + (f"\n{kept}\n" if kept else ""), "utf-8")


def render_card(metrics: dict[str, Any]) -> str:
    """The measured part of the card."""
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
