"""Normalisation against its formula, and the PyTorch runtime with networks small enough to check by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from vid3d_cli.backbones import BackboneOutput
from vid3d_cli.errors import ShapeError, UsageError, Vid3dError
from vid3d_cli.flow import quantise_flow
from vid3d_cli.model import POOLS, ClipModel, LayerTap, Normalisation, Normalise, pool_map
from vid3d_cli.preprocess import Views, place_crops
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes.torch import TorchRuntime, select_device, select_precision

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
        features = torch.cat([half.mean((2, 3, 4)) for half in x.chunk(2, dim=2)], 1)
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
            features = np.concatenate([y[:, :2].mean((1, 2, 3)), y[:, 2:].mean((1, 2, 3))])
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
    with pytest.raises(UsageError, match=named) as error:
        select_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "device", "has_bf16", "expected"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp16", "cuda", True, "fp16"),
    ],
)
def test_precisions(monkeypatch, name, device, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert select_precision(name, torch.device(device)) == expected


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
