"""Fixtures for tests that run the whole tool with a small stand-in for the network."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import typer.testing
from torch import nn
from typer.testing import CliRunner
from videos import write_video

import vid3d_cli.cli
import vid3d_cli.jobs.planning
import vid3d_cli.models.clip_model
import vid3d_cli.models.weights
import vid3d_cli.run.feeds
import vid3d_cli.runtimes
from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.models.manifest import find_model
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.run.threads import count_cores
from vid3d_cli.video.process import Decoders

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # share the cores among the workers
    torch.set_num_threads(max(1, count_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


class TinyNet(nn.Module):
    """Replaces I3D in tests that do not check its numbers: features are means over thirds of time and channels."""

    def __init__(self, stream, num_classes=400):
        super().__init__()
        self.Mixed_4f = nn.Identity()  # I3D has this layer too
        self.head = nn.Linear(3 * {"rgb": 3, "flow": 2}[stream], num_classes)

    def forward(self, clips):
        thirds = [part.mean((2, 3, 4)) for part in self.Mixed_4f(clips).tensor_split(3, dim=2)]
        features = torch.cat(thirds, 1)
        return BackboneOutput(features, self.head(features))


def tiny_net(name, stream):
    """Return a TinyNet with a model's number of classes, always the same."""
    torch.manual_seed(0)
    return TinyNet(stream, find_model(name).num_classes).eval()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep tests and the processes that they start away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VID3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def read_in_thread(plan, video, workers=None, decoders=None):
    """Replaces open_clips of a run: it reads in this process, where a decoder process takes 0.3 s to start."""
    return ClipReader(plan, video, workers)


@pytest.fixture
def decoder_processes():
    """Make `tiny_model` decode in processes, as runs do."""


@pytest.fixture(scope="module")
def pool():
    """Decoders for tests that do not harm them."""
    with Decoders(timeout=30) as decoders:
        yield decoders


@pytest.fixture
def tiny_model(monkeypatch, tmp_path, request):
    """Make every model a TinyNet in torch, with its checkpoints on disk; return the checkpoint's path."""
    monkeypatch.setattr(vid3d_cli.runtimes, "has_openvino", lambda: False)
    if "decoder_processes" not in request.fixturenames:
        monkeypatch.setattr(vid3d_cli.run.feeds, "open_clips", read_in_thread)
        monkeypatch.setattr(vid3d_cli.jobs.planning, "ClipReader", read_in_thread)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(b"stands in for a verified checkpoint")

    def create_model(name, *, stream, weights, variant=None):
        assert Path(weights) == checkpoint
        return tiny_net(name, stream)

    monkeypatch.setattr(vid3d_cli.models.clip_model, "create_model", create_model)
    monkeypatch.setattr(vid3d_cli.models.weights, "pull", lambda file, **_: checkpoint)
    return checkpoint


@pytest.fixture
def video(tmp_path):
    """A video of 40 frames at 25 fps."""
    return write_video(tmp_path / "video.mp4", num_frames=40)


@pytest.fixture(scope="session", autouse=True)
def _one_command():
    """Build the command line's parser once; CliRunner builds it for every call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.testing._get_command))
        yield


@pytest.fixture
def vid3d(monkeypatch, tmp_path):
    """Run the command line in this process: vid3d("classify", path, stdin=b"…").exit_code, .stdout, .stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vid3d"])

    def run(*args, stdin=None):
        return CliRunner().invoke(vid3d_cli.cli.app, [str(arg) for arg in args], input=stdin, catch_exceptions=False)

    return run
