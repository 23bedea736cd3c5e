"""The contract that all runtimes keep."""

import weakref

import numpy as np
import pytest
import torch
from tiny import K, Tiny, by_hand, check_outputs, facts, make_clips, make_models, tiny_model, wide_clips
from torch import nn

from vid3d_cli.clips.preprocess import Views, parse_crops, place_crops
from vid3d_cli.errors import CheckpointError, ShapeError, UsageError
from vid3d_cli.flow.fields import quantise_flow
from vid3d_cli.models.clip_model import ClipModel, LayerTap, Normalise, pool_map
from vid3d_cli.models.registry import BACKBONES, POOLS
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes import create_runtime, has_openvino

each_runtime = pytest.mark.parametrize(
    "runtime",
    ["torch", pytest.param("openvino", marks=pytest.mark.skipif(not has_openvino(), reason="needs openvino"))],
)


def create(runtime, models=None, **options):
    """A runtime of some models, or of the default ones; OpenVINO converts the latter once per clip shape."""
    identities = {"rgb": "tiny rgb", "flow": "tiny flow"} if models is None else None
    options = {"name": runtime, "device": "cpu", "identities": identities, **options}
    return create_runtime(models or make_models(), **options)


@each_runtime
@pytest.mark.parametrize(("num_clips", "batch_size"), [(0, None), (1, None), (5, 1), (5, 2), (3, 8)])
def test_each_clip_gets_its_own_output(runtime, num_clips, batch_size):
    clips = make_clips(num_clips)
    check_outputs(clips, create(runtime, batch_size=batch_size).run(clips))


@each_runtime
def test_outputs_stay_the_same_when_more_clips_run(runtime):
    clips = make_clips(4)
    created = create(runtime)
    outputs = created.run(clips)
    created.run(clips[::-1])
    check_outputs(clips, outputs)


@each_runtime
def test_clips_of_other_shapes_and_types_may_follow(runtime):
    created = create(runtime)
    for clips in (make_clips(1), long_clips(10), make_clips(1), make_clips(1)):
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
@pytest.mark.parametrize(
    ("stream", "crops", "are_kept"),
    [
        ("rgb", 10, False),
        ("flow", 10, True),
        ("rgb", 3, True),
        ("flow", 3, False),
        ("flow", "br,tlm,c", True),
        ("rgb", "trm,tl", True),
        ("rgb", "br", False),
    ],
)
def test_logits_are_averaged_over_crops_and_features_averaged_or_kept(runtime, stream, crops, are_kept):
    names = parse_crops(crops)
    clips, views = wide_clips(stream, 3), Views(names, 8, are_kept)
    outputs = create(runtime, {stream: tiny_model(stream)}, views=views, batch_size=2).run(clips)
    cut = [crop.cut(clips[2].streams[stream], is_flow=stream == "flow") for crop in place_crops(names, 9, 14, 8)]
    expected = [by_hand(Clip(clips[2].span, {stream: square}))[stream] for square in cut]
    features = np.stack([answer[0] for answer in expected])
    assert len(names) == 1 or features.std(0).max() > 1e-3  # the crops do differ
    np.testing.assert_allclose(outputs[2].features[stream], features if are_kept else features.mean(0), atol=1e-5)
    np.testing.assert_allclose(outputs[2].logits[stream], np.mean([answer[1] for answer in expected], 0), atol=1e-5)


@each_runtime
@pytest.mark.parametrize("pool", POOLS)
def test_features_of_a_layer(runtime, pool):
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
def test_one_thread_and_two_give_the_same_results(runtime):
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
def test_name_version_and_description(runtime):
    created = create(runtime)
    assert (created.name, created.description) == (runtime, f"{runtime} on cpu")
    assert (created.precision, created.batch_size) == ("fp32", 1)
    assert created.version.startswith(("2.", "20"))


@each_runtime
def test_batch_sizes_below_one_are_refused(runtime):
    for batch_size in (0, -1):
        with pytest.raises(UsageError, match=f"at least 1, got {batch_size}"):
            create(runtime, batch_size=batch_size)


@each_runtime
def test_clips_that_a_network_cannot_take(runtime):
    net = BACKBONES["s3d_mini"].build("rgb", K).eval()
    (clip,) = make_clips(1, streams=("rgb",))
    with pytest.raises(ShapeError, match="17 × 17 px"):
        create(runtime, {"rgb": ClipModel(net, Normalise(facts()))}).run([clip])


@each_runtime
def test_started_work_holds_no_clip(runtime):
    clips = make_clips(1)
    frames = weakref.ref(clips[0].streams["rgb"])
    wait = create(runtime).start(clips)
    clips.clear()
    assert frames() is None
    check_outputs(make_clips(1), wait())
