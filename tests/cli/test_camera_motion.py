"""The camera-motion model: the world it is trained on, its training, and the checkpoint that is shipped."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vid3d_cli as vid3d
from vid3d_cli.errors import ChecksumMismatch
from vid3d_cli.flow.fields import to_grey
from vid3d_cli.flow.methods import optical_flow
from vid3d_cli.models import manifest, weights
from vid3d_cli.models.clip_model import create_model

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MODEL = "s3d_mini.camera_motion"
MAX_BYTES = 4_000_000

sys.path.insert(0, str(TOOLS))

from camera_motion.dataset import CROP_PX, FLOW_BOUND_PX, NORMALISATION, SHORT_SIDE_PX, TICK_FPS, to_streams  # noqa: E402
from camera_motion.paths import CLASSES, shaking_path, steady_path  # noqa: E402
from camera_motion.render import NUM_TICKS, apply_camera, render_clip, write_video  # noqa: E402
from camera_motion.textures import dead_leaves  # noqa: E402
from camera_motion.training import SYMMETRIES, Sample, measure, pad_tail  # noqa: E402

# right, down, growth, clockwise turn of the picture: the opposite of what the camera does, but for the zoom
SIGNS = {
    "static": (0, 0, 0, 0),
    "pan-left": (1, 0, 0, 0),
    "pan-right": (-1, 0, 0, 0),
    "tilt-up": (0, 1, 0, 0),
    "tilt-down": (0, -1, 0, 0),
    "zoom-in": (0, 0, 1, 0),
    "zoom-out": (0, 0, -1, 0),
    "roll-clockwise": (0, 0, 0, -1),
    "roll-counterclockwise": (0, 0, 0, 1),
    "shake": (0, 0, 0, 0),
}
SPEEDS = {"static": 0, "pan": 2, "tilt": 2, "zoom": 0.01, "roll": 1}  # as in `steady_path`


def motion_of(label, num_frames=17):
    """(T, 4) measured by DIS in a clip of this class over a picture, at 12.5 frames per second."""
    picture = dead_leaves(np.random.default_rng(3), 480, 640)
    if label == "shake":
        path = shaking_path(np.random.default_rng(0), np.arange(num_frames) / 12.5, rms_px=3, kind="white")
    else:
        path = steady_path(label, num_frames, speed=SPEEDS[label.split("-")[0]], fps=12.5)
    frames = apply_camera(picture, path, 240, 320)
    return measure(optical_flow(np.stack([to_grey(frame) for frame in frames])))


class TestWorld:
    @pytest.mark.parametrize("label", CLASSES)
    def test_the_image_moves_as_its_class_says(self, label):
        motion = motion_of(label)
        mean = motion.mean(0)
        for found, sign in zip(mean, SIGNS[label], strict=True):
            assert found * sign > 0.5 if sign else abs(found) < 0.45
        if label == "shake":
            assert motion[:, :2].std(0).min() > 2
        elif label == "static":
            assert np.abs(motion).max() < 0.05

    def test_a_pan_has_the_given_speed(self):
        # 2 px a frame at 25 fps is 4 px a tick at 12.5
        assert motion_of("pan-right").mean(0)[0] == pytest.approx(-4, abs=0.1)

    @pytest.mark.parametrize("index", [1, 8])
    def test_seed_and_index_determine_a_clip(self, index):
        first, again, other = (render_clip(index, seed=seed) for seed in (5, 5, 6))
        assert first.label == CLASSES[index]
        assert len(first.frames) == NUM_TICKS
        assert np.array_equal(first.frames, again.frames)
        assert first.frames.shape != other.frames.shape or not np.array_equal(first.frames, other.frames)

    def test_encoded_clips_have_the_same_number_of_frames(self):
        clip = render_clip(2, seed=5, encoded=True)
        assert clip.encoded and len(clip.frames) == NUM_TICKS


class TestSymmetries:
    """A mirrored, turned or reversed clip is a clip of the class that the swap says: measured, not derived."""

    @pytest.mark.parametrize("symmetry", SYMMETRIES, ids=lambda s: s.__name__)
    @pytest.mark.parametrize("label", CLASSES)
    def test_swapped_label_fits_the_swapped_flow(self, symmetry, label):
        picture = dead_leaves(np.random.default_rng(4), 300, 300)
        if label == "shake":
            pytest.skip("has no direction")
        path = steady_path(label, 6, speed=SPEEDS[label.split("-")[0]], fps=12.5)
        flow = optical_flow(np.stack([to_grey(frame) for frame in apply_camera(picture, path, 128, 128)]))
        swapped = symmetry(Sample(flow, CLASSES.index(label), measure(flow)), is_flow=True)
        assert np.allclose(swapped.motion.mean(0), measure(swapped.clip).mean(0), atol=0.1)
        for found, sign in zip(measure(swapped.clip).mean(0), SIGNS[CLASSES[swapped.label]], strict=True):
            assert found * sign > 0.3 if sign else abs(found) < 0.3

    def test_short_clips_are_padded_as_the_pipeline_pads(self):
        frames = render_clip(1, seed=5).frames
        whole, short = to_streams(frames), to_streams(frames[:7])
        for stream, clip in whole.items():
            padded = pad_tail(Sample(clip, 1, np.zeros((16, 4), np.float32)), 7, is_flow=stream == "flow")
            assert np.array_equal(padded.clip, short[stream])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("short")
    command = [sys.executable, str(TOOLS / "train_camera_motion.py"), "--short", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return out


@pytest.mark.exhaustive
class TestTraining:
    def test_losses_fall(self, short_run):
        metrics = json.loads((short_run / f"{MODEL}.metrics.json").read_text())
        for losses in metrics["losses"].values():
            assert losses[-1] < losses[0] - 0.1

    def test_its_checkpoints_can_be_loaded(self, short_run):
        for stream in ("rgb", "flow"):
            net = create_model("s3d_mini", stream=stream, weights=short_run / f"{MODEL}.{stream}.safetensors")
            assert net.feature_dim > 0
        assert "tools/train_camera_motion.py" in (short_run / f"{MODEL}.md").read_text("utf-8")


class TestCheckpoint:
    def test_it_is_in_the_package_and_small(self):
        files = [stream.weights for stream in manifest.find_model(MODEL).streams.values()]
        paths = [weights.locate(file) for file in files]
        assert sum(path.stat().st_size for path in paths) <= MAX_BYTES
        assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == [file.sha256 for file in files]

    def test_a_damaged_checkpoint_is_refused(self, tmp_path):
        file = manifest.find_model(MODEL).streams["flow"].weights
        content = bytearray(weights.locate(file).read_bytes())
        content[-1] ^= 1
        (tmp_path / file.file_name).write_bytes(content)
        with pytest.raises(ChecksumMismatch):
            weights.verify_file(tmp_path / file.file_name, file)

    def test_the_manifest_says_how_it_was_trained(self):
        entry = manifest.find_model(MODEL)
        assert manifest.read_labels(entry) == CLASSES
        assert (entry.fps, entry.clip_length) == (TICK_FPS, NUM_TICKS - 1)
        assert (entry.resize_px, entry.crop_px) == (SHORT_SIDE_PX, CROP_PX)
        assert entry.streams["flow"].normalisation.bound_px == FLOW_BOUND_PX
        assert {s: e.normalisation.describe() for s, e in entry.streams.items()} == {
            s: n.describe() for s, n in NORMALISATION.items()
        }

    def test_the_card_describes_this_checkpoint(self):
        folder = manifest.data_path()
        metrics = json.loads((folder / f"{MODEL}.metrics.json").read_text("utf-8"))
        for stream, entry in manifest.find_model(MODEL).streams.items():
            assert metrics["files"][stream]["sha256"] == entry.weights.sha256
        card = (folder / f"{MODEL}.md").read_text("utf-8")
        assert metrics["commit"] in card and f"seed {metrics['plan']['seed']}" in card

    def test_it_recognises_camera_motion(self, tmp_path):
        files = []
        for index in range(20):
            clip = render_clip(index, seed=77, encoded=False)
            files.append(tmp_path / f"{index}.mp4")
            write_video(files[-1], clip.frames[:16], fps=12.5)  # one clip: a 17th frame would be a clip of its own
        results = list(vid3d.extract(files, model=MODEL))
        found = [CLASSES[int(result.logits["fused"].argmax())] for result in results]
        assert np.mean([found[i] == CLASSES[i % 10] for i in range(20)]) >= 0.8
