"""Late fusion and pooling against their formulas in float64."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli import Fusion, top_k
from vid3d_cli.errors import UsageError
from vid3d_cli.fusion import pool_video, softmax
from vid3d_cli.records import ClipOutput, ClipSpan

RGB = np.float32([1.0, -2.0, 0.5, 3.25])
FLOW = np.float32([-0.25, 4.0, 0.125, 1.0])

logits_drawn = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8).map(np.float32)


def exact_softmax(logits):
    """Return softmax in Python's own floats, shifted so that nothing overflows."""
    highest = max(map(float, logits))
    exp = [math.exp(float(x) - highest) for x in logits]
    return np.array(exp) / math.fsum(exp)


@pytest.mark.parametrize(
    ("text", "rgb", "flow"),
    [("1:1", 1, 1), ("1:1.5", 1, 1.5), ("0:1", 0, 1), ("2:0", 2, 0), (" 1 : 2 ", 1, 2), (".5:1e-1", 0.5, 0.1)],
)
def test_weights_are_parsed_as_rgb_then_flow(text, rgb, flow):
    assert dict(Fusion.parse(text).weights) == {"rgb": rgb, "flow": flow}


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":1", "1:1:1", "a:b", "1,1", "-1:1", "1:-0.5", "0:0", "nan:1", "1:nan", "inf:1", "1:inf"]
)
def test_invalid_weights_are_refused_with_the_value(text):
    with pytest.raises(UsageError) as error:
        Fusion.parse(text)
    assert f"'{text}'" in str(error.value)
    assert "1:1" in str(error.value)


def test_fusing_on_an_unknown_quantity_is_refused():
    with pytest.raises(UsageError, match=r"'scores'.*logits, probs"):
        Fusion.parse("1:1", on="scores")


def test_one_to_one_is_the_sum_of_the_logits():
    fused = Fusion.parse("1:1")({"rgb": RGB, "flow": FLOW})
    np.testing.assert_array_equal(fused, np.float32([0.75, 2.0, 0.625, 4.25]))
    assert fused.dtype == np.float32


def test_weights_belong_to_streams_in_any_order():
    fusion = Fusion.parse("2:0.5")
    expected = np.float32([1.875, -2.0, 1.0625, 7.0])
    np.testing.assert_array_equal(fusion({"rgb": RGB, "flow": FLOW}), expected)
    np.testing.assert_array_equal(fusion({"flow": FLOW, "rgb": RGB}), expected)


@pytest.mark.parametrize(("text", "rgb", "flow"), [("1:1", 0.5, 0.5), ("1:3", 0.25, 0.75), ("0:2", 0.0, 1.0)])
def test_on_probs_the_score_is_the_weighted_mean_of_the_probabilities(text, rgb, flow):
    fused = Fusion.parse(text, on="probs")({"rgb": RGB, "flow": FLOW})
    expected = rgb * exact_softmax(RGB) + flow * exact_softmax(FLOW)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(softmax(fused), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(fused), expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["1:1", "1:3", "0:1"])
def test_on_probs_confident_streams_give_finite_logits_and_no_warning(text):
    """A probability too small for float32 still has a finite logit, which JSON can hold."""
    rgb, flow = np.float32([1e4, -1e4, 0]), np.float32([200, 50, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = Fusion.parse(text, on="probs")({"rgb": rgb, "flow": flow})
    assert np.isfinite(fused).all()


@pytest.mark.parametrize("on", ["logits", "probs"])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_single_stream_is_its_own_fusion(on, stream):
    np.testing.assert_array_equal(Fusion.parse("1:7", on=on)({stream: RGB}), RGB)


def clip_output(index, **logits):
    span = ClipSpan(index, index * 4, 4, index * 0.5, index * 0.5 + 0.5)
    return ClipOutput(span, {stream: np.float32([index]) for stream in logits}, logits)


@pytest.mark.parametrize("on", ["logits", "probs"])
@pytest.mark.parametrize("num_clips", [1, 2, 5])
def test_a_videos_logits_are_the_mean_over_its_clips(num_clips, on):
    rng = np.random.default_rng(num_clips)
    rgb, flow = rng.normal(size=(2, num_clips, 4)).astype(np.float32)
    clips = [clip_output(i, rgb=rgb[i], flow=flow[i]) for i in range(num_clips)]
    fusion = Fusion.parse("1:2", on=on)
    fused_clips, pooled = pool_video(clips, fusion)

    assert list(pooled) == ["rgb", "flow", "fused"]
    assert all(logits.dtype == np.float32 for logits in pooled.values())
    mean_rgb, mean_flow = rgb.astype(np.float64).mean(0), flow.astype(np.float64).mean(0)
    np.testing.assert_allclose(pooled["rgb"], mean_rgb, rtol=1e-5)
    np.testing.assert_allclose(pooled["flow"], mean_flow, rtol=1e-5)
    if on == "logits":
        np.testing.assert_allclose(pooled["fused"], mean_rgb + 2 * mean_flow, rtol=1e-5, atol=1e-6)
    else:  # pooling comes first, then fusion
        mean = (exact_softmax(mean_rgb) + 2 * exact_softmax(mean_flow)) / 3
        np.testing.assert_allclose(softmax(pooled["fused"]), mean, rtol=1e-5)

    assert [clip.span for clip in fused_clips] == [clip.span for clip in clips]
    for i, clip in enumerate(fused_clips):
        assert list(clip.logits) == ["rgb", "flow", "fused"]
        np.testing.assert_array_equal(clip.logits["fused"], fusion({"rgb": rgb[i], "flow": flow[i]}))
        np.testing.assert_array_equal(clip.features["rgb"], [i])
    assert all("fused" not in clip.logits for clip in clips)  # the arguments stay unchanged


def test_pooling_one_stream_reports_it_as_fused_too():
    _, pooled = pool_video([clip_output(0, flow=RGB), clip_output(1, flow=FLOW)], Fusion.parse("1:1"))
    assert list(pooled) == ["flow", "fused"]
    np.testing.assert_array_equal(pooled["fused"], np.float32([0.375, 1.0, 0.3125, 2.125]))
    np.testing.assert_array_equal(pooled["fused"], pooled["flow"])


@given(logits_drawn)
def test_softmax_is_the_textbook_formula(logits):
    np.testing.assert_allclose(softmax(logits), exact_softmax(logits), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1e4, -1e4], [1, 0]),
        ([-1e4, -1e4], [0.5, 0.5]),
        ([1e4, 1e4, 0], [0.5, 0.5, 0]),
        ([-1e4, -1e4 - math.log(3)], [0.75, 0.25]),
    ],
)
def test_softmax_of_huge_logits(logits, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = softmax(np.float32(logits))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3)


def test_softmax_works_row_by_row():
    rows = softmax(np.stack([RGB, FLOW]))
    np.testing.assert_allclose(rows, [exact_softmax(RGB), exact_softmax(FLOW)], rtol=1e-5)


@given(logits_drawn, st.integers(0, 10))
def test_top_k_is_a_sort_by_score_then_by_label_order(logits, k):
    labels = [f"label {i}" for i in range(len(logits))]
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    best = top_k(logits, labels, k)
    assert [p.label for p in best] == [labels[i] for i in expected]
    assert [p.logit for p in best] == [logits[i] for i in expected]
    np.testing.assert_allclose([p.score for p in best], exact_softmax(logits)[expected], rtol=1e-5, atol=1e-30)


def test_equal_scores_keep_the_order_of_the_labels():
    best = top_k(np.float32([1, 2, 1, 2, 2]), ["a", "b", "c", "d", "e"], 4)
    assert [p.label for p in best] == ["b", "d", "e", "a"]
