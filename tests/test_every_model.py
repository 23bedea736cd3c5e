"""Every model of the manifest from a video file to predictions and features, both streams, in one command each."""

import json
import math

import numpy as np
import pytest
import torch
from videos import write_video

import vid3d_cli.model
from vid3d_cli.backbones import BACKBONES
from vid3d_cli.manifest import model_entries

# Models that differ in their weights alone take the same way.
WAYS = {(entry.backbone, entry.variant, entry.clip_length): name for name, entry in model_entries().items()}


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Options that give every stream of a model an own checkpoint of the right form."""

    def weights_of(model):
        entry, options = model_entries()[model], []
        for stream in entry.streams:
            path = tmp_path / f"{stream}.pt"
            path.write_bytes(f"stands for an untrained {stream} network".encode())
            options += ["--weights", f"{stream}={path}"]
        return options

    def read_checkpoint(path):
        torch.manual_seed(0)
        variants = BACKBONES[entry_of[0].backbone].variants
        form = variants[entry_of[0].variant] if entry_of[0].variant else {}
        return BACKBONES[entry_of[0].backbone].build(path.stem, entry_of[0].num_classes, **form).state_dict()

    entry_of = []
    monkeypatch.setattr(vid3d_cli.model, "read_checkpoint", read_checkpoint)
    return lambda model: (entry_of.insert(0, model_entries()[model]), weights_of(model))[1]


@pytest.mark.parametrize("model", WAYS.values())
def test_one_command_gives_features_of_both_streams(model, untrained, vid3d, tmp_path):
    entry = model_entries()[model]
    video = write_video(tmp_path / "video.mp4", num_frames=10, fps=5, width=64, height=48)
    result = vid3d("extract", "--out", "feats.npz", "--model", model, *untrained(model), video)
    assert result.exit_code == 0, result.stderr
    stored = np.load(tmp_path / "feats.npz")
    num_clips = math.ceil(2 * entry.fps / entry.clip_stride)
    assert stored["features"].shape == (num_clips, len(entry.streams) * BACKBONES[entry.backbone].feature_dim)
    assert np.isfinite(stored["features"]).all()
    assert np.ptp(stored["features"][0]) > 0
    recipe = json.loads(str(stored["recipe"]))
    assert recipe["model"] == model
    assert list(recipe["streams"]) == list(entry.streams)


@pytest.mark.parametrize("model", ["c3d.ucf101", "two_stream.own"])
def test_one_command_gives_predictions(model, untrained, vid3d, tmp_path):
    video = write_video(tmp_path / "video.mp4", num_frames=10, fps=5, width=64, height=48)
    result = vid3d("classify", "--model", model, *untrained(model), video)
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["clip"] is None
    assert len(last["rgb"]) == len(last["flow"]) == len(last["fused"]) == 5
