"""Normalisation against its formulas in float64."""

import numpy as np
import pytest
import torch

from vid3d_cli.flow.fields import quantise_flow
from vid3d_cli.models.clip_model import Normalise
from vid3d_cli.models.manifest import Normalisation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts(**changes):
    return Normalisation(**{"range": (-1.0, 1.0), "channel_order": "RGB", **changes})


def normalise(x, **changes):
    """Normalise (N, C, T, H, W) and return float64."""
    y = Normalise(facts(**changes))(torch.from_numpy(x))
    assert y.dtype == torch.float32
    return y.double().numpy()


def every_byte(num_channels):
    """All 256 values in every channel, in a different order in each."""
    channels = [np.roll(np.arange(256, dtype=np.uint8), 10 * c) for c in range(num_channels)]
    return np.stack(channels).reshape(1, num_channels, 4, 8, 8)


def per_channel(values):
    return np.float64(values).reshape(1, -1, 1, 1, 1)


def test_rgb_to_plus_minus_one():
    x = every_byte(3)
    np.testing.assert_allclose(normalise(x), x / np.float64(127.5) - 1, atol=1e-6)


def test_rgb_with_mean_and_deviation():
    x = every_byte(3)
    expected = (x / np.float64(255) - per_channel(IMAGENET_MEAN)) / per_channel(IMAGENET_STD)
    np.testing.assert_allclose(normalise(x, range=(0, 1), mean=IMAGENET_MEAN, std=IMAGENET_STD), expected, atol=1e-5)


def test_bgr_swaps_channels_before_it_subtracts_the_mean():
    x = every_byte(3)
    y = normalise(x, range=(0, 255), mean=(104, 117, 123), channel_order="BGR")
    red, green, blue = x.astype(np.float64)[0]
    np.testing.assert_allclose(y[0], [blue - 104, green - 117, red - 123], atol=1e-4)


def test_flow_is_truncated_and_scaled():
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


def test_quantised_flow_is_within_half_a_step_of_the_flow():
    flow = np.random.default_rng(0).uniform(-25, 25, (1, 2, 3, 8, 8)).astype(np.float32)
    options = {"channel_order": None, "bound_px": 20}
    difference = np.abs(normalise(quantise_flow(flow, 20), **options) - normalise(flow, **options))
    assert 0 < difference.max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("pixels", {}),
        ("pixels", {"range": (0, 1), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}),
        ("pixels", {"range": (0, 255), "mean": (104, 117, 123), "channel_order": "BGR"}),
        ("flow", {"channel_order": None, "bound_px": 20}),
        ("flow", {"range": (0, 255), "channel_order": None, "bound_px": 15, "mean": (128, 120), "std": (2, 3)}),
        ("quantised", {"channel_order": None, "bound_px": 20}),
    ],
)
def test_reduced_precision_rounds_the_float32_result_once(dtype, kind, changes):
    x = torch.from_numpy(every_byte(3 if kind == "pixels" else 2)).to(memory_format=torch.channels_last_3d)
    if kind == "flow":
        x = (x.float() - 128) / 4
    layer = Normalise(facts(**changes))
    exact = layer(x)
    layer.dtype = dtype
    reduced = layer(x)
    assert reduced.dtype == dtype and reduced.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(reduced.float(), exact, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-4)
