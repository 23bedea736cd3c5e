"""Fixtures for tests that run the whole tool with a small stand-in for the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from videos import write_video

import vid3d_cli.cli
import vid3d_cli.models.clip_model
import vid3d_cli.models.weights
import vid3d_cli.runtimes
from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.run.pipeline import Pipeline
from vid3d_cli.run.threads import count_cores

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the cores are shared out, not fought over
    torch.set_num_threads(max(1, count_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


class TinyNet(nn.Module):
    """Stands in for I3D where a test is not about its numbers: features are means over thirds of time and channels."""

    def __init__(self, stream, num_classes=400):
        super().__init__()
        self.Mixed_4f = nn.Identity()  # a layer that I3D has too
        self.head = nn.Linear(3 * {"rgb": 3, "flow": 2}[stream], num_classes)

    def forward(self, clips):
        thirds = [part.mean((2, 3, 4)) for part in self.Mixed_4f(clips).tensor_split(3, dim=2)]
        features = torch.cat(thirds, 1)
        return BackboneOutput(features, self.head(features))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests and the processes that they start leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VID3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny_model(monkeypatch, tmp_path):
    """Every model is a TinyNet in torch, and its checkpoints are on disk."""
    monkeypatch.setattr(vid3d_cli.runtimes, "has_openvino", lambda: False)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(b"stands in for a verified checkpoint")

    def create_model(name, *, stream, weights, num_classes=400, variant=None):
        assert Path(weights) == checkpoint
        torch.manual_seed(0)
        return TinyNet(stream).eval()

    monkeypatch.setattr(vid3d_cli.models.clip_model, "create_model", create_model)
    monkeypatch.setattr(vid3d_cli.models.weights, "pull", lambda file, **_: checkpoint)
    monkeypatch.setitem(Pipeline.__init__.__kwdefaults__, "fetch", lambda file: checkpoint)
    return checkpoint


@pytest.fixture
def video(tmp_path):
    """A video of 40 frames at 25 fps."""
    return write_video(tmp_path / "video.mp4", num_frames=40)


@pytest.fixture
def vid3d(monkeypatch, tmp_path):
    """Run the command line in this process: vid3d("classify", path, stdin=b"…").exit_code, .stdout, .stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vid3d"])

    def run(*args, stdin=None):
        return CliRunner().invoke(vid3d_cli.cli.app, [str(arg) for arg in args], input=stdin, catch_exceptions=False)

    return run
