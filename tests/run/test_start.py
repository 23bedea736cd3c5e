"""Starts that find their networks known: no torch, no checkpoint read, and the same rows, errors and warnings."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from videos import write_video

import vid3d_cli.run.load
import vid3d_cli.runtimes.cache
from vid3d_cli.errors import CheckpointError, UsageError
from vid3d_cli.models import digests
from vid3d_cli.models.manifest import parse_weights_name
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.models.weights import pull
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.run.load import load
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.runtimes import has_openvino

pytestmark = pytest.mark.skipif(not has_openvino(), reason="needs openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, in which the digests of files of any age are kept."""
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", -60.0)
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch):
    """The streams whose model was built, in order."""
    streams, build_model = [], vid3d_cli.run.load.build_model

    def build(plan, stream, checkpoint):
        streams.append(stream)
        return build_model(plan, stream, checkpoint)

    monkeypatch.setattr(vid3d_cli.run.load, "build_model", build)
    return streams


def own_weights(tmp_path, **num_classes):
    """Return random checkpoints of S3D mini by stream, with these numbers of classes."""
    paths = {stream: tmp_path / f"{stream}.pt" for stream in num_classes}
    for stream, count in num_classes.items():
        torch.save(BACKBONES["s3d_mini"].build(stream, count).state_dict(), paths[stream])
    return paths


def make_plan(**options):
    return Plan.make(Options(**{"model": "s3d_mini", "device": "cpu", **options}))


CHILD = """
import json, os, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from vid3d_cli.cli import app
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["vid3d", *arguments]
    try:
        app()
    except SystemExit as error:
        assert not error.code, error
print(json.dumps([sorted(sys.modules), opened]))
"""


def test_a_second_start_imports_no_torch_and_reads_no_checkpoint(tmp_path, vid3d, cache):
    video, weights = write_video(tmp_path / "a.mp4", num_frames=16, width=170, height=128), tmp_path / "own.safetensors"
    shutil.copy(pull(parse_weights_name("s3d_mini:rgb")[0]), weights)
    options = ["--model", "s3d_mini", "--streams", "rgb", "--weights", f"rgb={weights}", "--device", "cpu", video]
    assert "converted the rgb network" in vid3d("extract", *options, "--out", "first.npy").stderr
    extract, classify = [["extract", *options, "--out", "second.npy"], ["classify", *options]]
    commands = json.dumps([[str(argument) for argument in command] for command in (extract, classify)])
    child = subprocess.run(
        [sys.executable, "-c", CHILD, commands],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    modules, opened = json.loads(child.stdout.splitlines()[-1])
    assert "openvino" in modules
    assert not {"torch", "safetensors"} & set(modules)
    assert str(weights) not in opened
    assert np.array_equal(np.load(tmp_path / "second.npy"), np.load(tmp_path / "first.npy"))


def test_a_changed_checkpoint_is_read(tmp_path, built):
    for num_classes in (3, 4):
        weights = own_weights(tmp_path, rgb=num_classes)
        plan = make_plan(streams="rgb", weights=weights)
        assert load(plan).num_classes == num_classes
        assert plan.networks["rgb"].sha256 == hashlib.sha256(weights["rgb"].read_bytes()).hexdigest()
    assert built == ["rgb", "rgb"]


def test_models_are_built_once(tmp_path, built):
    weights = own_weights(tmp_path, rgb=3, flow=3)
    networks = [load(make_plan(weights=weights)) for _ in range(2)]
    assert built == ["rgb", "flow"]
    assert [network.num_classes for network in networks] == [3, 3]
    assert networks[0].recipe == networks[1].recipe


def test_models_are_built_again_where_facts_are_damaged_or_of_other_code(tmp_path, built, cache, monkeypatch):
    weights = own_weights(tmp_path, rgb=3)
    load(make_plan(streams="rgb", weights=weights))
    (entry,) = (cache / "openvino").iterdir()
    entry.write_bytes(entry.read_bytes()[:-20])
    assert load(make_plan(streams="rgb", weights=weights)).num_classes == 3
    assert len(built) == 2
    monkeypatch.setattr(vid3d_cli.runtimes.cache, "code_digest", lambda: "other code")
    assert load(make_plan(streams="rgb", weights=weights)).num_classes == 3
    assert len(built) == 3


@pytest.mark.parametrize("files", [{}, {"other": b"{}"}, {"facts.json": b"[1]"}, {"facts.json": b'{"other": 1}'}])
def test_models_are_built_again_where_an_entry_has_other_content(tmp_path, built, cache, files):
    weights = own_weights(tmp_path, rgb=3)
    for _ in range(2):
        assert load(make_plan(streams="rgb", weights=weights)).num_classes == 3
        (entry,) = (cache / "openvino").iterdir()
        with ZipFile(entry, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    assert len(built) == 2


def test_errors_and_warnings_come_again_without_a_model(tmp_path, built):
    weights = own_weights(tmp_path, rgb=3, flow=4)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"different numbers of classes \(rgb 3, flow 4\)"):
            load(make_plan(weights=weights))
        with pytest.raises(UsageError, match="labels has 2 class names and the checkpoint has 3 classes"):
            load(make_plan(streams="rgb", weights={"rgb": weights["rgb"]}, labels=("walk", "run")))
    assert built == ["rgb", "flow"]


@pytest.mark.parametrize("options", [{}, {"quantise_flow": True}, {"crops": 3}, {"window": 8}])
def test_clips_have_the_forms_that_networks_are_compiled_for(tmp_path, options):
    """A wrong form costs the time of a compilation, and nothing else would show it."""
    plan = make_plan(**options)
    video = write_video(tmp_path / "a.mp4", num_frames=16, width=170, height=128)
    with ClipReader(plan, str(video)) as reader:
        clip = next(iter(reader))
    cut = {stream: frames[:, : plan.crop_px, : plan.crop_px] for stream, frames in clip.streams.items()}
    forms = {stream: (frames.shape, frames.dtype.str) for stream, frames in cut.items()}
    assert vid3d_cli.run.load._forms(plan) == forms
