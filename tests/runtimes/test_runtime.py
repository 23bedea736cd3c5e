"""Normalisation against its formula, and the runtimes with networks small enough to check by hand."""

import copy
import importlib.util
import shutil
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vid3d_cli.clips.preprocess import Views, place_crops
from vid3d_cli.errors import CheckpointError, ShapeError, UsageError, Vid3dError
from vid3d_cli.flow.methods import quantise_flow
from vid3d_cli.models.backbones import BACKBONES, BackboneOutput
from vid3d_cli.models.clip_model import POOLS, ClipModel, LayerTap, Normalisation, Normalise, pool_map
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes import create_runtime, select_runtime
from vid3d_cli.runtimes.base import Runtime
from vid3d_cli.runtimes.folding import fold_batch_norms
from vid3d_cli.runtimes.several import SeveralRuntime
from vid3d_cli.runtimes.torch import TorchRuntime, select_device, select_devices, select_precision
from vid3d_cli.runtimes.transfer import CudaTransfer, Transfer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts(**changes):
    fields = {
        "range": (-1.0, 1.0),
        "mean": None,
        "std": None,
        "channel_order": "RGB",
        "bound_px": None,
        "flow_method": None,
        "quantised": False,
    }
    return Normalisation(**{**fields, **changes})


def normalise(x, **changes):
    """(N, C, T, H, W) → the same in float64."""
    y = Normalise(facts(**changes))(torch.from_numpy(x))
    assert y.dtype == torch.float32
    return y.double().numpy()


def every_byte(num_channels):
    """All 256 values in every channel, in an order of its own in each."""
    channels = [np.roll(np.arange(256, dtype=np.uint8), 10 * c) for c in range(num_channels)]
    return np.stack(channels).reshape(1, num_channels, 4, 8, 8)


def per_channel(values):
    return np.float64(values).reshape(1, -1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Normalise
# ---------------------------------------------------------------------------------------------------------------------


def test_rgb_to_plus_minus_one():
    x = every_byte(3)
    np.testing.assert_allclose(normalise(x), x / np.float64(127.5) - 1, atol=1e-6)


def test_rgb_with_mean_and_deviation():
    x = every_byte(3)
    expected = (x / np.float64(255) - per_channel(IMAGENET_MEAN)) / per_channel(IMAGENET_STD)
    np.testing.assert_allclose(normalise(x, range=(0, 1), mean=IMAGENET_MEAN, std=IMAGENET_STD), expected, atol=1e-5)


def test_bgr_swaps_first_and_subtracts_the_mean_of_b_g_r_then():
    x = every_byte(3)
    y = normalise(x, range=(0, 255), mean=(104, 117, 123), channel_order="BGR")
    red, green, blue = x.astype(np.float64)[0]
    np.testing.assert_allclose(y[0], [blue - 104, green - 117, red - 123], atol=1e-4)


def test_flow_is_truncated_and_scaled_whatever_its_sign():
    values = np.float32([-1e9, -20.5, -20, -10, -0.5, 0, 0.5, 5, 20, 20.5, 1e9, 7])
    x = np.stack([values, -values]).reshape(1, 2, 3, 2, 2)
    expected = np.clip(x.astype(np.float64), -20, 20) / 20
    np.testing.assert_allclose(normalise(x, channel_order=None, bound_px=20), expected, atol=1e-6)


def test_flow_to_another_bound_and_range():
    x = np.linspace(-40, 40, 64, dtype=np.float32).reshape(1, 2, 2, 4, 4)
    expected = np.clip(x.astype(np.float64), -15, 15) * 128 / 15  # a flow image of 0 … 256 minus 128
    np.testing.assert_allclose(normalise(x, range=(-128, 128), channel_order=None, bound_px=15), expected, atol=1e-4)


def test_quantised_flow_spans_the_same_range():
    x = every_byte(2)
    np.testing.assert_allclose(normalise(x, channel_order=None, bound_px=20), x / np.float64(127.5) - 1, atol=1e-6)


def test_quantised_flow_lies_half_a_step_from_the_flow_it_was():
    flow = np.random.default_rng(0).uniform(-25, 25, (1, 2, 3, 8, 8)).astype(np.float32)
    options = {"channel_order": None, "bound_px": 20}
    difference = np.abs(normalise(quantise_flow(flow, 20), **options) - normalise(flow, **options))
    assert 0 < difference.max() <= 1 / 255 + 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# ClipModel and TorchRuntime
# ---------------------------------------------------------------------------------------------------------------------

K = 5


class Tiny(nn.Module):
    """A convolution, means over halves of time, a classifier: every clip has an answer of its own."""

    def __init__(self, num_channels, max_batch=10**9):
        super().__init__()
        torch.manual_seed(num_channels)
        self.conv = nn.Conv3d(num_channels, 4, 3)
        self.head = nn.Linear(8, K)
        self.max_batch = max_batch
        self.batches, self.dtypes, self.grad = [], set(), set()

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.max_batch:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        x = self.conv(x).relu()
        self.dtypes.add(x.dtype)
        self.grad.add(torch.is_grad_enabled())
        half = x.shape[2] // 2
        features = torch.cat([x[:, :, :half].mean((2, 3, 4)), x[:, :, half:].mean((2, 3, 4))], 1)
        return BackboneOutput(features.float(), self.head(features).float())


def make_clips(num_clips, streams=("rgb", "flow")):
    rng = np.random.default_rng(7)
    arrays = {
        "rgb": lambda: rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "flow": lambda: rng.normal(0, 12, (6, 8, 8, 2)).astype(np.float32),
    }
    return [
        Clip(ClipSpan(i, 4 * i, 6, i / 2, i / 2 + 1), {stream: arrays[stream]() for stream in streams})
        for i in range(num_clips)
    ]


def make_models(streams=("rgb", "flow"), **options):
    normalisations = {"rgb": facts(), "flow": facts(channel_order=None, bound_px=20.0)}
    channels = {"rgb": 3, "flow": 2}
    return {s: ClipModel(Tiny(channels[s], **options), Normalise(normalisations[s])) for s in streams}


def make_runtime(models=None, **options):
    return TorchRuntime(models or make_models(), **{"device": "cpu", "precision": "fp32", **options})


def by_hand(clip):
    """What Tiny answers for one clip, in float64."""
    answers = {}
    for stream, x in clip.streams.items():
        x = x.astype(np.float64)
        x = x / 127.5 - 1 if stream == "rgb" else np.clip(x, -20, 20) / 20
        net = Tiny(x.shape[-1]).double()
        with torch.no_grad():
            y = net.conv(torch.from_numpy(x).permute(3, 0, 1, 2)[None]).relu().numpy()[0]
            half = y.shape[1] // 2
            features = np.concatenate([y[:, :half].mean((1, 2, 3)), y[:, half:].mean((1, 2, 3))])
            answers[stream] = features, net.head.weight.numpy() @ features + net.head.bias.numpy()
    return answers


def check_outputs(clips, outputs, rtol=1e-5, atol=1e-5):
    assert [output.span for output in outputs] == [clip.span for clip in clips]
    for clip, output in zip(clips, outputs, strict=True):
        assert list(output.features) == list(output.logits) == list(clip.streams)
        for stream, (features, logits) in by_hand(clip).items():
            assert output.features[stream].dtype == output.logits[stream].dtype == np.float32
            np.testing.assert_allclose(output.features[stream], features, rtol=rtol, atol=atol)
            np.testing.assert_allclose(output.logits[stream], logits, rtol=rtol, atol=atol)


@pytest.mark.parametrize("num_clips", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7, 100])
def test_every_batch_size_gives_each_clip_its_own_answer(num_clips, batch_size):
    clips = make_clips(num_clips)
    models = make_models()
    check_outputs(clips, make_runtime(models, batch_size=batch_size).run(clips))
    assert sum(models["rgb"].backbone.batches) == num_clips
    assert max(models["rgb"].backbone.batches, default=1) == min(batch_size or 1, num_clips or 1)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_one_stream_runs_alone(stream):
    clips = make_clips(3, streams=(stream,))
    check_outputs(clips, make_runtime(make_models(streams=(stream,))).run(clips))


def test_outputs_are_plain_arrays_that_stay_when_the_next_batch_is_run():
    clips = make_clips(4, streams=("rgb",))
    runtime = make_runtime(make_models(streams=("rgb",)), batch_size=2)
    outputs = runtime.run(clips)
    before = [output.features["rgb"].copy() for output in outputs]
    runtime.run(clips[::-1])
    for output, features in zip(outputs, before, strict=True):
        np.testing.assert_array_equal(output.features["rgb"], features)


def test_no_gradients_are_kept():
    models = make_models()
    make_runtime(models).run(make_clips(2))
    assert models["rgb"].backbone.grad == {False}


def test_the_networks_are_put_into_eval_mode():
    models = make_models()
    models["rgb"].train()
    make_runtime(models)
    assert not models["rgb"].backbone.training


def test_clips_of_the_wrong_rank_are_a_shape_error():
    with pytest.raises(ShapeError, match=r"\(N, T, H, W, C\), got \(6, 8, 8, 3\)"):
        make_models()["rgb"](torch.zeros(6, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(8, [8, 4, 2, 2, 2, 2, 2, 1]), (7, [7, 3, 1] + [1] * 10), (2, [2, 2, 2, 2, 2, 1])]
)
def test_out_of_memory_halves_the_batch_for_good(batch_size, expected):
    clips = make_clips(11, streams=("rgb",))
    models = make_models(streams=("rgb",), max_batch=2)
    runtime = make_runtime(models, batch_size=batch_size)
    check_outputs(clips, runtime.run(clips))
    assert models["rgb"].backbone.batches == expected
    models["rgb"].backbone.batches.clear()
    check_outputs(clips[:4], runtime.run(clips[:4]))
    assert models["rgb"].backbone.batches == [expected[-2]] * (4 // expected[-2])  # no second attempt with more


def test_out_of_memory_in_the_second_stream_gives_all_clips_once():
    clips = make_clips(5)
    models = make_models()
    models["flow"].backbone.max_batch = 2
    check_outputs(clips, make_runtime(models, batch_size=4).run(clips))


def test_out_of_memory_with_one_clip_says_what_to_try():
    runtime = make_runtime(make_models(streams=("rgb",), max_batch=0), batch_size=4)
    with pytest.raises(Vid3dError, match=r"cpu: out of memory with a single clip.*--precision bf16.*--window") as error:
        runtime.run(make_clips(3, streams=("rgb",)))
    assert "\n" not in str(error.value)


def test_bf16_computes_in_bf16_and_answers_in_float32():
    clips = make_clips(3)
    models = make_models()
    check_outputs(clips, make_runtime(models, precision="bf16", batch_size=2).run(clips), rtol=0.05, atol=0.05)
    assert [model.backbone.dtypes for model in models.values()] == [{torch.bfloat16}] * 2
    assert {parameter.dtype for model in models.values() for parameter in model.parameters()} == {torch.float32}


def test_fp32_computes_in_float32():
    models = make_models()
    make_runtime(models).run(make_clips(1))
    assert models["rgb"].backbone.dtypes == {torch.float32}


# ---------------------------------------------------------------------------------------------------------------------
# Device and precision
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def num_gpus(monkeypatch):
    """Call with a number: so many CUDA GPUs are here, as far as PyTorch says, and no MPS."""

    def pretend(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("number", "name", "expected"),
    [
        (0, "auto", "cpu"),
        (1, "auto", "cuda:0"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
)
def test_devices_that_are_here(num_gpus, number, name, expected):
    num_gpus(number)
    assert str(select_device(name)) == expected
    assert [str(device) for device in select_devices(name)] == [expected]


@pytest.mark.parametrize(
    ("number", "name", "expected"),
    [
        (4, "cuda:0,1", ["cuda:0", "cuda:1"]),
        (4, "cuda:3,0,2", ["cuda:3", "cuda:0", "cuda:2"]),
        (3, "cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        (1, "cuda:all", ["cuda:0"]),
    ],
)
def test_several_devices(num_gpus, number, name, expected):
    num_gpus(number)
    assert [str(device) for device in select_devices(name)] == expected


@pytest.mark.parametrize(
    ("number", "name", "named"),
    [
        (0, "gpu", "unknown device 'gpu'.*auto, cpu, cuda"),
        (0, "", "unknown device ''.*auto, cpu, cuda"),
        (0, "cuda:x", "unknown device 'cuda:x'"),
        (0, "meta", "'meta'.*auto, cpu, cuda"),
        (0, "cuda", "'cuda' is not here.*--device cpu"),
        (1, "cuda:1", "'cuda:1' is not here"),
        (0, "mps", "'mps' is not here"),
    ],
)
def test_devices_that_are_not(num_gpus, number, name, named):
    num_gpus(number)
    for select in (select_device, select_devices, lambda name: select_runtime(device=name)):
        with pytest.raises(UsageError, match=named) as error:
            select(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("number", "name", "named"),
    [
        (2, "cuda:0,2", "'cuda:2' is not here.*'cuda': 2.*--device cpu"),
        (0, "cuda:0,1", "'cuda:0' is not here"),
        (0, "cuda:all", "'cuda:all'.*no CUDA GPU here.*--device cpu"),
        (2, "cuda:1,1", "'cuda:1,1' names a GPU twice"),
        (2, "cuda:0,x", "unknown device 'cuda:x'.*cuda:0,1, cuda:all"),
        (2, "cuda:0,", "unknown device 'cuda:'"),
        (2, "cuda:0,all", "unknown device 'cuda:all'"),
        (2, "cpu,cuda:0", "unknown device 'cpu,cuda:0'"),
        (2, "cuda,cpu", "unknown device 'cuda,cpu'"),
    ],
)
def test_several_devices_that_are_not(num_gpus, number, name, named):
    num_gpus(number)
    with pytest.raises(UsageError, match=named) as error:
        select_runtime(device=name)
    assert "\n" not in str(error.value)


@pytest.fixture
def capability(monkeypatch):
    """Call with the compute capability of each GPU by its number; (8, 0) and more compute in bf16."""

    def pretend(*of_gpus):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: of_gpus[device.index or 0])

    return pretend


AMPERE, VOLTA = (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("name", "devices", "capabilities", "expected"),
    [
        ("auto", ["cpu"], [AMPERE], "fp32"),
        ("auto", ["cuda"], [AMPERE], "bf16"),
        ("auto", ["cuda"], [VOLTA], "fp32"),
        ("auto", ["cuda:1"], [AMPERE, VOLTA], "fp32"),
        ("auto", ["cuda:0", "cuda:1"], [AMPERE, (9, 0)], "bf16"),
        ("auto", ["cuda:0", "cuda:1"], [AMPERE, VOLTA], "fp32"),
        ("auto", ["mps"], [AMPERE], "fp32"),
        ("fp32", ["cuda"], [AMPERE], "fp32"),
        ("bf16", ["cpu"], [VOLTA], "bf16"),
        ("fp16", ["cuda"], [AMPERE], "fp16"),
    ],
)
def test_precisions(capability, name, devices, capabilities, expected):
    capability(*capabilities)
    assert select_precision(name, *map(torch.device, devices)) == expected


@pytest.mark.parametrize("name", ["", "fp64", "BF16", "float32"])
def test_unknown_precisions_are_told_the_known_ones(name):
    with pytest.raises(UsageError, match=f"'{name}'.*fp32, bf16, fp16, auto"):
        select_precision(name, torch.device("cpu"))


@pytest.mark.parametrize(("device", "expected"), [("cpu", 1), ("auto", 1)])
def test_a_cpu_takes_one_clip_at_a_time_unless_told_otherwise(num_gpus, device, expected):
    num_gpus(0)
    assert make_runtime(device=device, precision="auto").batch_size == expected
    assert make_runtime(device=device, batch_size=3).batch_size == 3


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_clips_is_a_usage_error(batch_size):
    with pytest.raises(UsageError, match=str(batch_size)):
        make_runtime(batch_size=batch_size)


# ---------------------------------------------------------------------------------------------------------------------
# Every runtime
# ---------------------------------------------------------------------------------------------------------------------

has_openvino = importlib.util.find_spec("openvino") is not None

each_runtime = pytest.mark.parametrize(
    "runtime",
    ["torch", pytest.param("openvino", marks=pytest.mark.skipif(not has_openvino, reason="openvino is not installed"))],
)


def create(runtime, models=None, **options):
    return create_runtime(models or make_models(), **{"name": runtime, "device": "cpu", **options})


@each_runtime
@pytest.mark.parametrize(("num_clips", "batch_size"), [(0, None), (1, None), (5, 1), (5, 2), (3, 8)])
def test_every_runtime_gives_each_clip_its_own_answer(runtime, num_clips, batch_size):
    clips = make_clips(num_clips)
    check_outputs(clips, create(runtime, batch_size=batch_size).run(clips))


@each_runtime
def test_outputs_stay_when_a_runtime_goes_on(runtime):
    clips = make_clips(4)
    created = create(runtime)
    outputs = created.run(clips)
    created.run(clips[::-1])
    check_outputs(clips, outputs)


@each_runtime
def test_clips_of_other_shapes_and_types_may_follow(runtime):
    created = create(runtime)
    for clips in (make_clips(1), long_clips(10), make_clips(1), long_clips(4), make_clips(1)):
        check_outputs(clips, created.run(clips))
    flow = make_clips(1)[0].streams["flow"]
    quantised = Clip(ClipSpan(0, 0, 6, 0, 1), {"rgb": make_clips(1)[0].streams["rgb"], "flow": quantise_flow(flow, 20)})
    as_floats = quantised.streams["flow"].astype(np.float32) / 255 * 40 - 20
    (output,) = created.run([quantised])
    (expected,) = created.run([Clip(quantised.span, {**quantised.streams, "flow": as_floats})])
    np.testing.assert_allclose(output.features["flow"], expected.features["flow"], atol=1e-5)


def long_clips(num_frames):
    rng = np.random.default_rng(num_frames)
    streams = {
        "rgb": rng.integers(0, 256, (num_frames, 8, 8, 3), dtype=np.uint8),
        "flow": rng.normal(0, 12, (num_frames, 8, 8, 2)).astype(np.float32),
    }
    return [Clip(ClipSpan(0, 0, num_frames, 0, 1), streams)]


@each_runtime
@pytest.mark.parametrize("are_kept", [False, True])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_every_runtime_runs_the_views(runtime, stream, are_kept):
    clips, views = wide_clips(stream, 3), Views(10, 8, are_kept)
    outputs = create(runtime, {stream: tiny_model(stream)}, views=views, batch_size=2).run(clips)
    cut = [crop.cut(clips[2].streams[stream], is_flow=stream == "flow") for crop in place_crops(10, 9, 14, 8)]
    expected = [by_hand(Clip(clips[2].span, {stream: square}))[stream] for square in cut]
    features = np.stack([answer[0] for answer in expected])
    np.testing.assert_allclose(outputs[2].features[stream], features if are_kept else features.mean(0), atol=1e-5)
    np.testing.assert_allclose(outputs[2].logits[stream], np.mean([answer[1] for answer in expected], 0), atol=1e-5)


@each_runtime
@pytest.mark.parametrize("pool", POOLS)
def test_every_runtime_taps_layers(runtime, pool):
    net = Tiny(3)
    clips = make_clips(2, streams=("rgb",))
    x = torch.from_numpy(np.stack([clip.streams["rgb"] for clip in clips])).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        expected = pool_map(net.conv(x), pool).numpy()
    outputs = create(runtime, {"rgb": ClipModel(net, Normalise(facts()), LayerTap(net, "conv", pool))}).run(clips)
    np.testing.assert_allclose(np.stack([output.features["rgb"] for output in outputs]), expected, atol=1e-5)
    for clip, output in zip(clips, outputs, strict=True):
        np.testing.assert_allclose(output.logits["rgb"], by_hand(clip)["rgb"][1], atol=1e-5)


@each_runtime
def test_one_thread_and_two_give_the_same(runtime):
    before = torch.get_num_threads()
    clips = make_clips(2)
    try:
        for num_threads in (1, 2):
            check_outputs(clips, create(runtime, num_threads=num_threads).run(clips))
    finally:
        torch.set_num_threads(before)


@each_runtime
def test_streams_of_different_classes_cannot_be_fused(runtime):
    models = make_models()
    models["flow"].backbone.head = nn.Linear(8, K + 1)
    with pytest.raises(CheckpointError, match=r"rgb 5, flow 6.*--streams"):
        create(runtime, models).run(make_clips(1))


@each_runtime
def test_what_a_runtime_says_of_itself(runtime):
    created = create(runtime)
    assert (created.name, created.description) == (runtime, f"{runtime} on cpu")
    assert (created.precision, created.batch_size) == ("fp32", 1)
    assert created.version.startswith(("2.", "20"))


@each_runtime
def test_a_batch_of_no_clips_is_refused_by_every_runtime(runtime):
    with pytest.raises(UsageError, match="at least 1, got 0"):
        create(runtime, batch_size=0)


@each_runtime
def test_clips_that_a_network_cannot_take_are_its_own_error(runtime):
    net = BACKBONES["s3d_mini"].build("rgb", K).eval()
    (clip,) = make_clips(1, streams=("rgb",))
    with pytest.raises(ShapeError, match="17 × 17 px"):
        create(runtime, {"rgb": ClipModel(net, Normalise(facts()))}).run([clip])


@pytest.mark.parametrize(
    ("options", "is_installed", "expected"),
    [
        ({}, True, "openvino"),
        ({}, False, "torch"),
        ({"device": "cpu", "precision": "bf16"}, True, "openvino"),
        ({"compile": True}, True, "torch"),
        ({"name": "torch"}, True, "torch"),
        ({"name": "openvino"}, True, "openvino"),
    ],
)
def test_a_cpu_runs_openvino_where_it_is_installed(monkeypatch, num_gpus, options, is_installed, expected):
    num_gpus(0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_installed else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert select_runtime(**options) == expected


@pytest.mark.parametrize(("options", "expected"), [({}, "torch"), ({"device": "cpu"}, "openvino")])
def test_a_gpu_runs_torch(monkeypatch, num_gpus, capability, options, expected):
    num_gpus(1)
    capability(AMPERE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert select_runtime(**options) == expected
    assert select_runtime("openvino") == "openvino"  # asked for by name, it takes the CPU


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "onnx"}, "'onnx'.*auto, torch, openvino"),
        ({"name": "openvino", "device": "cuda"}, "on a CPU, not on 'cuda'.*--runtime torch"),
        ({"name": "openvino", "device": "cuda:0,1"}, "on a CPU, not on 'cuda:0,1'.*--runtime torch"),
        ({"name": "openvino", "compile": True}, "--compile is for --runtime torch"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
        ({"precision": "fp64"}, "'fp64'"),
        ({"device": "tpu"}, "'tpu'"),
        ({"num_threads": 0}, "at least 1 thread"),
    ],
)
def test_choices_that_do_not_fit_are_told_before_a_model_is_loaded(monkeypatch, num_gpus, capability, options, named):
    num_gpus(2)
    capability(AMPERE, AMPERE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=named) as error:
        select_runtime(**options)
    assert "\n" not in str(error.value)


def test_openvino_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'vid3d\[openvino\]'"):
        select_runtime("openvino")


@each_runtime
def test_work_that_was_started_holds_no_clip(runtime):
    clips = make_clips(1)
    frames = weakref.ref(clips[0].streams["rgb"])
    wait = create(runtime).start(clips)
    clips.clear()
    assert frames() is None
    check_outputs(make_clips(1), wait())


# ---------------------------------------------------------------------------------------------------------------------
# Several batches in work, several devices
# ---------------------------------------------------------------------------------------------------------------------


class LateTransfer(Transfer):
    """A GPU's, as far as a CPU can tell: what is downloaded is not there until it was waited for."""

    num_in_flight = 2

    def __init__(self, device):
        super().__init__(device)
        self.num_waiting = self.num_drained = 0

    def download(self, tensors):
        arrived = [np.full(tensor.shape, np.nan, np.float32) for tensor in tensors]
        self.num_waiting += 1

        def wait():
            self.num_waiting -= 1
            for array, tensor in zip(arrived, tensors, strict=True):
                array[...] = tensor.numpy()
            return arrived

        return wait

    def drain(self):
        self.num_drained += 1


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr("vid3d_cli.runtimes.torch.create_transfer", LateTransfer)


def test_a_cpu_has_one_batch_in_work_and_a_gpu_two(late):
    assert create("torch").num_in_flight == 2
    assert Runtime.num_in_flight == Transfer.num_in_flight == 1


@pytest.mark.parametrize("views", [None, Views(3, 8)])
def test_starting_waits_for_nothing(late, views):
    clips = make_clips(6) if views is None else wide_clips("rgb", 6)
    models = make_models() if views is None else {"rgb": tiny_model("rgb")}
    runtime = make_runtime(models, batch_size=2, views=views)
    waiting = [runtime.start(clips[i : i + 2]) for i in (0, 2, 4)]
    assert runtime._transfer.num_waiting == 3 * (2 if views is None else 3)  # streams, or views of one
    outputs = [output for wait in waiting for output in wait()]
    assert runtime._transfer.num_waiting == 0
    expected = make_runtime(copy.deepcopy(models), views=views).run(clips)
    for one, other in zip(outputs, expected, strict=True):
        assert one.span == other.span
        for stream in one.features:
            np.testing.assert_allclose(one.features[stream], other.features[stream], atol=1e-6)
            np.testing.assert_allclose(one.logits[stream], other.logits[stream], atol=1e-6)


def test_more_clips_than_a_batch_are_started_as_several():
    clips, models = make_clips(5), make_models()
    wait = make_runtime(models, batch_size=2).start(clips)
    assert models["rgb"].backbone.batches == [2, 2, 1]
    check_outputs(clips, wait())


def test_out_of_memory_spares_the_batches_in_work(late):
    clips, models = make_clips(9), make_models()
    runtime = make_runtime(models, batch_size=4)
    first = runtime.start(clips[:4])
    models["flow"].backbone.max_batch = 2
    second, third = runtime.start(clips[4:8]), runtime.start(clips[8:])
    assert (runtime._transfer.num_drained, runtime.batch_size) == (1, 2)
    assert models["flow"].backbone.batches == [4, 4, 2, 2, 1]
    check_outputs(clips, first() + second() + third())


def test_batches_go_to_the_devices_in_turn():
    clips, models = make_clips(7), [make_models() for _ in range(3)]
    runtime = SeveralRuntime([make_runtime(on_one, batch_size=1) for on_one in models])
    waiting = [runtime.start([clip]) for clip in clips]
    assert [on_one["flow"].backbone.batches for on_one in models] == [[1] * 3, [1] * 2, [1] * 2]
    check_outputs(clips, [output for wait in waiting for output in wait()])


def test_several_devices_give_what_one_gives():
    clips = make_clips(9)
    expected = make_runtime(batch_size=2).run(clips)
    outputs = SeveralRuntime([make_runtime(batch_size=2) for _ in range(2)]).run(clips)
    for one, other in zip(outputs, expected, strict=True):
        assert one.span == other.span
        for stream in ("rgb", "flow"):
            np.testing.assert_array_equal(one.features[stream], other.features[stream])
            np.testing.assert_array_equal(one.logits[stream], other.logits[stream])


def test_a_device_that_ran_out_of_memory_makes_all_batches_smaller():
    clips, models = make_clips(10, ("rgb",)), [make_models(("rgb",)) for _ in range(2)]
    models[1]["rgb"].backbone.max_batch = 2
    runtime = SeveralRuntime([make_runtime(on_one, batch_size=4) for on_one in models])
    check_outputs(clips, runtime.run(clips))
    assert [on_one["rgb"].backbone.batches for on_one in models] == [[4, 2], [4, 2, 2]]
    assert runtime.batch_size == 2


def test_what_several_devices_say_of_themselves(monkeypatch):
    gpus = ["NVIDIA H200", "NVIDIA H200", "NVIDIA A100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpus[device.index])

    def several(*indexes):
        runtimes = [make_runtime() for _ in indexes]
        for runtime, index in zip(runtimes, indexes, strict=True):
            runtime.device, runtime.num_in_flight = torch.device("cuda", index), 2
        return SeveralRuntime(runtimes)

    alike = several(0, 1)
    assert alike.description == several(1).description == "torch on NVIDIA H200"  # the recipe does not tell how many
    assert (alike.name, alike.version, alike.precision, alike.num_in_flight) == ("torch", torch.__version__, "fp32", 4)
    assert several(0, 2).description == several(2, 1, 0).description == "torch on NVIDIA A100 and torch on NVIDIA H200"


def test_every_device_has_networks_of_its_own(monkeypatch):
    devices = [torch.device("cpu")] * 3
    monkeypatch.setattr("vid3d_cli.runtimes.torch.select_devices", lambda name: devices)
    net = Tiny(3)
    models = {"rgb": ClipModel(net, Normalise(facts()), LayerTap(net, "conv", "avg"))}
    clips = make_clips(6, streams=("rgb",))
    expected = make_runtime(copy.deepcopy(models)).run(clips)
    runtime = create_runtime(models, name="torch", device="cuda:0,1,2")
    waiting = [runtime.start([clip]) for clip in clips]
    assert net.batches == [1, 1]  # a third of them
    for wait, output in zip(waiting, expected, strict=True):
        np.testing.assert_array_equal(wait()[0].features["rgb"], output.features["rgb"])


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@needs_cuda
def test_a_gpu_gives_what_a_cpu_gives():
    torch.manual_seed(0)
    net = shake(BACKBONES["s3d_mini"].build("rgb", K))
    models = {"rgb": ClipModel(net, Normalise(facts()))}
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 16, 112, 112, 3), dtype=np.uint8)
    clips = [Clip(ClipSpan(i, 0, 16, 0.0, 1.0), {"rgb": array}) for i, array in enumerate(frames)]
    expected = make_runtime(copy.deepcopy(models)).run(clips)
    runtimes = [make_runtime(copy.deepcopy(models), device="cuda", batch_size=2) for _ in range(2)]
    for runtime in (*runtimes, SeveralRuntime(runtimes)):
        waiting = [runtime.start(clips[i : i + 2]) for i in range(0, 7, 2)]  # the third form is tried out by cuDNN
        outputs = [output for wait in waiting for output in wait()]
        for one, other in zip(outputs, expected, strict=True):
            assert one.span == other.span
            for kind in ("features", "logits"):
                exact = getattr(other, kind)["rgb"]
                assert np.abs(getattr(one, kind)["rgb"] - exact).max() <= 1e-3 * np.abs(exact).max()


@needs_cuda
def test_the_host_does_not_wait_for_a_gpu():
    device = torch.device("cuda:0")
    transfer = CudaTransfer(device)
    arrays = [np.full((64, 64), i, np.float32) for i in range(8)]
    assert transfer.stack(arrays).is_pinned()

    def start():
        return transfer.download([transfer.upload(transfer.stack(arrays)) + 1])

    start()()  # what is allocated and loaded at the first time does wait
    torch.cuda._sleep(2_000_000_000)  # cycles, about a second
    wait = start()
    assert not torch.cuda.current_stream(device).query()
    (found,) = wait()
    np.testing.assert_array_equal(found, np.stack(arrays) + 1)
    assert not torch.from_numpy(found).is_pinned()  # what is kept of a video is plain memory


# ---------------------------------------------------------------------------------------------------------------------
# Faster on a CPU
# ---------------------------------------------------------------------------------------------------------------------


def shake(net):
    """Give the batch norms numbers of their own, as training does."""
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            for tensor, low, high in [
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
                (norm.weight.data, 0.5, 2),
                (norm.bias.data, -0.5, 0.5),
            ]:
                tensor.uniform_(low, high, generator=generator)
    return net.eval()


def fold(net, x):
    """How many norms were folded, after a check that the answer is the same."""
    with torch.inference_mode():
        before = net(x)
    num_folded = fold_batch_norms(net, x)
    with torch.inference_mode():
        after = net(x)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    return num_folded


@pytest.mark.parametrize("name", ["i3d", "s3d_mini", "r2plus1d_18", "p3d63"])
def test_all_batch_norms_of_a_network_are_folded(name):
    torch.manual_seed(0)
    net = shake(BACKBONES[name].build("rgb", K))
    num_norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
    side_px = 193 if name == "i3d" else 32
    assert fold(net, torch.rand(1, 3, 9, side_px, side_px)) == num_norms > 0
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())


class Pairs(nn.Module):
    """Two convolutions and norms, in a forward pass of the test's making."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 1, bias=False)
        self.norm_a, self.norm_b = nn.BatchNorm3d(2), nn.BatchNorm3d(2)
        self._forward = forward
        shake(self)

    def forward(self, x):
        return self._forward(self, x)


def residual(net, x):
    y = net.a(x)
    return net.norm_a(y) + y


@pytest.mark.parametrize(
    ("forward", "num_folded"),
    [
        (lambda net, x: net.norm_b(net.b(net.norm_a(net.a(x)).relu())), 2),
        (lambda net, x: net.norm_a(net.b(x)), 1),  # by what happens, not by name
        (lambda net, x: F.relu(net.norm_b(F.conv3d(x, net.b.weight, net.b.bias)), inplace=True), 1),
        (lambda net, x: net.norm_b(F.conv3d(x, net.b.weight, None)), 0),  # has no use for a bias
        (lambda net, x: net.norm_b(F.conv3d(x, net.b.weight.abs(), net.b.bias)), 0),
        (lambda net, x: net.a(net.norm_a(x)), 0),
        (lambda net, x: net.norm_a(net.a(x).relu()), 0),
        (residual, 0),
        (lambda net, x: net.norm_a(net.a(x)) + net.norm_b(net.a(x)), 0),
        (lambda net, x: net.norm_a(net.a(x)) + net.norm_a(net.b(x)), 0),
    ],
)
def test_a_norm_is_folded_where_nothing_else_sees_the_convolution(forward, num_folded):
    assert fold(Pairs(forward), torch.randn(2, 2, 3, 4, 4)) == num_folded


@pytest.mark.parametrize("tapped", ["a", "norm_a"])
@pytest.mark.parametrize("pool", ["avg", "none"])
def test_what_a_tap_sees_is_not_folded(tapped, pool):
    net, x = Pairs(lambda net, x: net.norm_b(net.b(net.norm_a(net.a(x))))), torch.randn(2, 2, 3, 4, 4)
    tap = LayerTap(net, tapped, pool)
    with torch.inference_mode():
        net(x)
        before = tap.features()
        assert fold_batch_norms(net, x) == 1
        net(x)
        torch.testing.assert_close(tap.features(), before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_small_convolutions_are_onednns_too():
    models = make_models(("rgb",))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        make_runtime(models).run(make_clips(1, ("rgb",)))
    called = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in called
    assert not [name for name in called if "slow_conv" in name]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_networks_give_the_same():
    clips = make_clips(3, streams=("rgb",))
    runtime = make_runtime(make_models(("rgb",)), compile=True, batch_size=2)
    assert runtime.description == "torch, compiled, on cpu"
    check_outputs(clips, runtime.run(clips))


def test_compiling_without_a_compiler_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for create_it in (lambda: make_runtime(compile=True), lambda: select_runtime("torch", compile=True)):
        with pytest.raises(UsageError, match=r"there is no no-such-compiler.*CXX"):
            create_it()


# ---------------------------------------------------------------------------------------------------------------------
# Views and layers
# ---------------------------------------------------------------------------------------------------------------------


def wide_clips(stream, num_clips, height=9, width=14):
    rng = np.random.default_rng(0)
    shape = (num_clips, 6, height, width, 3 if stream == "rgb" else 2)
    arrays = rng.integers(0, 256, shape, np.uint8) if stream == "rgb" else rng.normal(0, 9, shape).astype(np.float32)
    return [Clip(ClipSpan(i, 0, 6, 0.0, 1.0), {stream: array}) for i, array in enumerate(arrays)]


@pytest.mark.parametrize("num_crops", [3, 10])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_scores_are_the_mean_over_crops_and_features_may_be_kept(stream, num_crops):
    model = tiny_model(stream)
    clips = wide_clips(stream, 3)
    crops = place_crops(num_crops, 9, 14, 8)
    alone = TorchRuntime({stream: model}, device="cpu")
    by_crop = [
        alone.run([Clip(c.span, {stream: crop.cut(c.streams[stream], is_flow=stream == "flow")}) for c in clips])
        for crop in crops
    ]
    averaged = TorchRuntime({stream: model}, device="cpu", batch_size=2, views=Views(num_crops, 8)).run(clips)
    kept = TorchRuntime({stream: model}, device="cpu", batch_size=2, views=Views(num_crops, 8, True)).run(clips)
    for i in range(3):
        features = np.stack([outputs[i].features[stream] for outputs in by_crop])
        assert features.std(0).max() > 1e-3  # the crops do differ
        np.testing.assert_allclose(kept[i].features[stream], features, atol=1e-6)
        np.testing.assert_allclose(averaged[i].features[stream], features.mean(0), atol=1e-6)
        logits = np.stack([outputs[i].logits[stream] for outputs in by_crop]).mean(0)
        np.testing.assert_allclose(averaged[i].logits[stream], logits, atol=1e-6)
        np.testing.assert_allclose(kept[i].logits[stream], logits, atol=1e-6)


def tiny_model(stream):
    range_ = facts() if stream == "rgb" else facts(channel_order=None, bound_px=20.0)
    return ClipModel(Tiny(3 if stream == "rgb" else 2), Normalise(range_))


@pytest.mark.parametrize("pool", POOLS)
def test_a_layers_map_is_pooled_as_asked(pool):
    net, x = Tiny(3), torch.rand(2, 3, 6, 8, 8)
    model = ClipModel(net, Normalise(facts()), LayerTap(net, "conv", pool))
    clips = torch.randint(0, 256, (2, 6, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        plain = ClipModel(net, Normalise(facts()))(clips)
        output = model(clips)
        x = net.conv(model.normalise(clips.permute(0, 4, 1, 2, 3))).numpy().astype(np.float64)
    expected = {"avg": x.mean((2, 3, 4)), "max": x.max((2, 3, 4)), "none": x, "spatial": x.mean((3, 4))}[pool]
    np.testing.assert_allclose(output.features.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(output.logits, plain.logits)


def test_a_layer_is_taken_before_the_next_one_works_in_place():
    net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    tap = LayerTap(net, "0", "none")
    with torch.inference_mode():
        net(torch.randn(1, 3, 2, 4, 4))
    assert (tap.features() < 0).any()


def test_a_vector_is_left_as_it_is_whatever_the_pooling():
    x = torch.randn(2, 5)
    for pool in POOLS:
        torch.testing.assert_close(pool_map(x, pool), x)
