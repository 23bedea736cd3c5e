"""The OpenVINO runtime: every network, its precisions, and its cache on disk.

What all runtimes have in common is in test_every_runtime.py.
"""

import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from seeded import SeededCase
from tiny import Tiny, check_outputs, facts, make_clips, make_models, shake

from vid3d_cli.errors import UsageError, Vid3dError
from vid3d_cli.models.clip_model import ClipModel, LayerTap, Normalise, create_model
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes import create_runtime, has_openvino
from vid3d_cli.runtimes.cache import NetworkCache

if not has_openvino():  # importorskip would import it with its telemetry, which forks this process at every conversion
    pytest.skip("needs openvino", allow_module_level=True)

from vid3d_cli.runtimes.openvino import OpenVINORuntime, import_openvino

import_openvino()


def relative_difference(answer, expected):
    return np.abs(answer - expected).max() / np.abs(expected).max()


def rgb_clip(num_frames, height, width):
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return Clip(ClipSpan(0, 0, num_frames, 0.0, 1.0), {"rgb": frames})


# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------

# Small and odd, so that paddings differ between axes.
SIZES = {"i3d": (11, 193, 197), "s3d_g": (10, 66, 70)}

QUICK = {"s3d"}
"""The others take long to convert: only in the exhaustive tests. The quick reference case below is I3D."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.exhaustive]) for name in BACKBONES]
)
def test_every_network_gives_the_same_results_as_in_torch(name):
    backbone = BACKBONES[name]
    num_frames, side_px = backbone.clip
    fixed = (num_frames, side_px, side_px)
    clip = rgb_clip(*(fixed if backbone.is_fixed_size else SIZES.get(name, (max(11, backbone.min_frames), 65, 70))))
    torch.manual_seed(0)
    net = shake(backbone.build("rgb", 7))
    path = list(backbone.layers.values())[1]
    with torch.inference_mode():
        clips = torch.from_numpy(clip.streams["rgb"][None])
        model = ClipModel(net, Normalise(facts()), LayerTap(net, path, "spatial"))
        expected = model(clips)
    (output,) = OpenVINORuntime({"rgb": model}).run([clip])
    assert relative_difference(output.logits["rgb"], expected.logits[0].numpy()) < 1e-4
    assert relative_difference(output.features["rgb"], expected.features[0].numpy()) < 1e-4


@pytest.fixture(scope="module")
def reference():
    """I3D with seeded weights, a clip of uint8, and PyTorch's outputs for it."""
    case = SeededCase("i3d_rgb_piergiaj_23f")
    net = create_model("i3d", num_classes=len(case.logits[0]))
    net.load_state_dict({key: torch.from_numpy(array) for key, array in case.state_dict().items()})
    frames = ((case.clips()[0].transpose(1, 2, 3, 0) + 1) * 127.5).round().astype(np.uint8)
    model = ClipModel(net, Normalise(facts()))
    with torch.inference_mode():
        expected = model(torch.from_numpy(frames[None]))
    return model, Clip(ClipSpan(0, 0, len(frames), 0.0, 1.0), {"rgb": frames}), expected


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_reference_case_in_fp32(reference, num_threads):
    model, clip, expected = reference
    (output,) = OpenVINORuntime({"rgb": model}, num_threads=num_threads).run([clip])
    assert relative_difference(output.features["rgb"], expected.features[0].numpy()) < 1e-5
    assert relative_difference(output.logits["rgb"], expected.logits[0].numpy()) < 1e-5


def test_a_reference_case_in_bf16(reference):
    model, clip, expected = reference
    try:
        runtime = OpenVINORuntime({"rgb": model}, precision="bf16")
    except UsageError as error:
        pytest.skip(str(error))
    assert runtime.precision == "bf16"
    (output,) = runtime.run([clip])
    features, exact = output.features["rgb"], expected.features[0].numpy()
    assert features.dtype == np.float32
    assert 1e-4 < relative_difference(features, exact) < 0.05  # it does round
    assert features @ exact / np.linalg.norm(features) / np.linalg.norm(exact) > 0.9999
    assert output.logits["rgb"].argmax() == expected.logits[0].argmax()


def test_a_cpu_without_bf16(monkeypatch):
    monkeypatch.setattr("openvino.Core.get_property", lambda core, device, name: ["FP32"])
    with pytest.raises(UsageError, match="use --precision fp32"):
        OpenVINORuntime(make_models(), precision="bf16")


def test_a_network_that_openvino_cannot_convert():
    class Odd(Tiny):
        def forward(self, x):
            return super().forward(torch.special.airy_ai(x))

    with pytest.raises(Vid3dError, match=r"openvino .* cannot convert Odd \(.*airy.*--runtime torch") as error:
        OpenVINORuntime({"rgb": ClipModel(Odd(3), Normalise(facts()))}).run(make_clips(1, ("rgb",)))
    assert "\n" not in str(error.value)


@pytest.mark.exhaustive
def test_conversion_sends_no_telemetry():
    """In a new process: another test may have imported openvino with its telemetry in this one."""
    code = """
from tiny import *
from vid3d_cli.runtimes.openvino import OpenVINORuntime
OpenVINORuntime({"rgb": make_models()["rgb"]}).run(make_clips(1, ("rgb",)))
import sys
print(*sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    imported = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert "openvino.tools.ovc.telemetry_stub" in imported
    assert not [name for name in imported if name.split(".")[0] == "openvino_telemetry"]


# ---------------------------------------------------------------------------------------------------------------------
# The cache on disk
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def conversions(monkeypatch):
    """The streams whose network was converted, in order."""
    converted = []
    original = OpenVINORuntime._convert

    def convert(runtime, stream, form):
        converted.append(stream)
        return original(runtime, stream, form)

    monkeypatch.setattr(OpenVINORuntime, "_convert", convert)
    return converted


def run(directory, clips=None, models=None, **options):
    """Create a runtime and run it, as a new process would."""
    identities = {"rgb": "first", "flow": "second"}
    options = {"name": "openvino", "identities": identities, "cache_dir": directory, **options}
    return create_runtime(models or make_models(), **options).run(clips or make_clips(2))


def test_a_network_is_converted_once(tmp_path, conversions):
    check_outputs(make_clips(2), run(tmp_path / "new" / "cache"))
    assert sorted(conversions) == ["flow", "rgb"]
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 2
    check_outputs(make_clips(2), run(tmp_path / "new" / "cache"))
    assert len(conversions) == 2


def test_the_cache_is_beside_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path))
    run(None)
    assert len(list((tmp_path / "openvino").glob("*.zip"))) == 2


def test_a_cached_network_needs_no_model(tmp_path, conversions):
    class Unbuilt(dict):
        def __getitem__(self, stream):
            pytest.fail(f"the {stream} model is built")

    clips = make_clips(1)
    expected = run(tmp_path, clips)
    forms = {stream: (frames.shape, frames.dtype.str) for stream, frames in clips[0].streams.items()}
    for known in ({}, forms, {"rgb": ((9, 9, 9, 3), "|u1")}):  # the last one is a wrong guess
        (output,) = run(tmp_path, clips, Unbuilt(make_models()), forms=known)
        for stream in forms:
            assert np.array_equal(output.logits[stream], expected[0].logits[stream])
    assert len(conversions) == 2


def test_without_an_identity_nothing_is_cached(tmp_path, conversions):
    for _ in range(2):
        run(tmp_path, identities={"rgb": "first"})
    assert conversions.count("rgb") == 1
    assert conversions.count("flow") == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_another_identity_shape_type_or_version_is_another_entry(tmp_path, conversions, monkeypatch):
    (clip,) = make_clips(1, streams=("flow",))
    bytes_of = {"flow": np.zeros(clip.streams["flow"].shape, np.uint8)}
    short = {"flow": clip.streams["flow"][:4]}
    models = {"flow": make_models()["flow"]}
    run(tmp_path, [clip], models)
    for number, change in enumerate(
        [
            lambda: run(tmp_path, [clip], models, identities={"flow": "third"}),
            lambda: run(tmp_path, [Clip(clip.span, bytes_of)], models),
            lambda: run(tmp_path, [Clip(clip.span, short)], models),
            lambda: (monkeypatch.setattr("openvino.__version__", "1.0"), run(tmp_path, [clip], models)),
            lambda: (
                monkeypatch.setattr("vid3d_cli.runtimes.openvino.version", lambda package: "2.99.0"),
                run(tmp_path, [clip], models),
            ),
            lambda: (monkeypatch.setattr("vid3d_cli.runtimes.cache.__version__", "9"), run(tmp_path, [clip], models)),
            lambda: (monkeypatch.setattr("vid3d_cli.runtimes.cache.code_digest", str), run(tmp_path, [clip], models)),
        ],
        2,
    ):
        change()
        assert len(conversions) == number


def test_both_precisions_share_an_entry(tmp_path, conversions):
    run(tmp_path)
    try:
        run(tmp_path, precision="bf16")
    except UsageError as error:
        pytest.skip(str(error))
    assert len(conversions) == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_the_weights(path):
    with zipfile.ZipFile(path) as archive:
        (weights,) = (info for info in archive.infolist() if info.filename.endswith(".bin"))
    content = bytearray(path.read_bytes())
    content[weights.header_offset + 200] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def replace_the_files(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.xml", b"<net/>")


@pytest.mark.parametrize("damage", [cut, flip_a_bit_of_the_weights, empty, replace_the_files])
def test_a_damaged_entry_is_converted_again(tmp_path, conversions, damage):
    clips = make_clips(1, streams=("rgb",))
    models = {"rgb": make_models()["rgb"]}
    run(tmp_path, clips, models)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    check_outputs(clips, run(tmp_path, clips, models))
    assert len(conversions) == 2
    check_outputs(clips, run(tmp_path, clips, models))
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, conversions):
    (tmp_path / "file").write_text("not a directory")
    for _ in range(2):
        check_outputs(make_clips(2), run(tmp_path / "file" / "cache"))
    assert len(conversions) == 4


def test_reading_while_others_write_gives_a_complete_entry(tmp_path):
    files, shared = {"model.bin": bytes(range(256)) * 4000}, tmp_path / "cache"

    def write_and_read(_):
        NetworkCache(shared).write("key", files)
        return NetworkCache(shared).read("key", "model.bin")

    with ThreadPoolExecutor(4) as pool:
        assert all(read == [files["model.bin"]] for read in pool.map(write_and_read, range(20)))
    assert len(list(shared.iterdir())) == 1  # no half-written entry is left


def test_the_least_recently_used_entry_is_deleted(tmp_path):
    kept = NetworkCache(tmp_path / "cache", max_bytes=3500)
    files = {"model.bin": bytes(1000)}
    for age, key in enumerate("abc"):
        kept.write(key, files)
        os.utime(kept._path(key), (age, age))
    assert kept.read("a", "model.bin") == [bytes(1000)]  # so b is the least recently used
    kept.write("d", files)
    assert [key for key in "abcd" if kept.read(key, "model.bin")] == ["a", "c", "d"]
    kept.write("e", {"model.bin": bytes(10000)})
    assert [key for key in "abcde" if kept.read(key, "model.bin")] == ["e"]  # larger than the limit, but the newest


def test_four_compiled_networks_are_held_at_a_time(conversions):
    runtime = OpenVINORuntime({"rgb": make_models()["rgb"]})
    shapes = [(num_frames, 8, 8) for num_frames in (4, 6, 8, 10, 12)]
    for shape in (*shapes[:4], shapes[0], shapes[4], shapes[0]):
        runtime.run([rgb_clip(*shape)])
    assert len(conversions) == 5  # the first shape was used again, and stayed
    runtime.run([rgb_clip(*shapes[1])])
    assert len(conversions) == 6
