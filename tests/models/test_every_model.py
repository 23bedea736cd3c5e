"""Every model of the manifest from a video file to predictions and features, both streams, in one command each."""

import json
import math

import numpy as np
import pytest
import torch
from videos import write_video

import vid3d_cli.models.checkpoint
import vid3d_cli.models.clip_model
from vid3d_cli.models.manifest import model_entries
from vid3d_cli.models.registry import BACKBONES


def way_of(entry):
    """What the path from file to features depends on: models of one way differ in their weights alone."""
    inputs = tuple((stream, str(facts.normalisation)) for stream, facts in entry.streams.items())
    return entry.backbone, entry.variant, entry.clip_length, entry.fps, entry.resize_px, entry.antialias, inputs


WAYS = {way_of(entry): name for name, entry in model_entries().items()}
QUICK = ("s3d_mini.camera_motion",)


def exhaustive_but(quick, names):
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.exhaustive]) for name in names]


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Options that give every stream of a model an own checkpoint of the right form."""

    networks = {}

    def weights_of(model, variant=None):
        entry, options = model_entries()[model], []
        backbone, variant = BACKBONES[entry.backbone], variant or entry.variant
        for stream in entry.streams:
            torch.manual_seed(0)
            path = tmp_path / f"{stream}.pt"
            path.write_bytes(b"its digest stands in the recipe")
            form = backbone.variants[variant] if variant else {}
            networks[path] = backbone.build(stream, entry.num_classes, **form)
            options += ["--weights", f"{stream}={path}"]
        return options

    def read_checkpoint(path):
        return networks[path].state_dict()

    for module in (vid3d_cli.models.clip_model, vid3d_cli.models.checkpoint):
        monkeypatch.setattr(module, "read_checkpoint", read_checkpoint)
    return weights_of


@pytest.mark.parametrize("model", exhaustive_but(QUICK, WAYS.values()))
def test_one_command_gives_features_of_both_streams(model, untrained, vid3d, tmp_path):
    entry = model_entries()[model]
    video = write_video(tmp_path / "video.mp4", num_frames=6, fps=10, width=64, height=48)
    result = vid3d("extract", "--out", "feats.npz", "--model", model, *untrained(model), video)
    assert result.exit_code == 0, result.stderr
    stored = np.load(tmp_path / "feats.npz")
    num_clips = math.ceil(6 * entry.fps / 10 / entry.clip_stride)
    assert stored["features"].shape == (num_clips, len(entry.streams) * BACKBONES[entry.backbone].feature_dim)
    assert np.isfinite(stored["features"]).all()
    assert np.ptp(stored["features"][0]) > 0
    recipe = json.loads(str(stored["recipe"]))
    assert recipe["model"] == model
    assert list(recipe["streams"]) == list(entry.streams)


@pytest.mark.parametrize("model", exhaustive_but(QUICK, ["s3d_mini.camera_motion", "c3d.ucf101", "two_stream.own"]))
def test_one_command_gives_predictions(model, untrained, vid3d, tmp_path):
    video = write_video(tmp_path / "video.mp4", num_frames=10, fps=5, width=64, height=48)
    result = vid3d("classify", "--model", model, *untrained(model), video)
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["clip"] is None
    assert len(last["rgb"]) == len(last["flow"]) == len(last["fused"]) == 5


@pytest.mark.exhaustive
def test_a_variant_brings_its_own_clips(untrained, vid3d, tmp_path):
    video = write_video(tmp_path / "video.mp4", num_frames=10, fps=5, width=64, height=48)
    own = untrained("ltc.own", "60x71")
    result = vid3d("extract", "--out", "feats.npz", "--model", "ltc", "--variant", "60x71", *own, video)
    assert result.exit_code == 0, result.stderr
    recipe = json.loads(str(np.load(tmp_path / "feats.npz")["recipe"]))
    assert (recipe["window"], recipe["crops"]) == (60, "centre 71 px")
    assert recipe["resize"].startswith("81 × 108 px")


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", ["c3d.sports1m", "p3d199.kinetics400"])
def test_the_form_of_the_weights_is_run_and_recorded(model, untrained, vid3d, tmp_path):
    """A checkpoint does not tell which of the two it needs."""
    video = write_video(tmp_path / "video.mp4", num_frames=3, fps=10, width=64, height=48)
    own, forms = [*untrained(model)[:2], "--streams", "rgb"], {}
    for variant in ("caffe", "default"):
        named = ["--variant", variant] if variant == "default" else []
        result = vid3d("extract", "--out", f"{variant}.npz", "--model", model, *named, *own, video)
        assert result.exit_code == 0, result.stderr
        stored = np.load(tmp_path / f"{variant}.npz")
        forms[variant] = stored["features"], json.loads(str(stored["recipe"]))["variant"]
    assert [recorded for _, recorded in forms.values()] == ["caffe", None]
    assert np.abs(forms["caffe"][0] - forms["default"][0]).max() > 0.01 * np.abs(forms["caffe"][0]).max()
