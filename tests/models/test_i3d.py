"""I3D's SAME padding; test_registry.py holds its numbers."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.models.backbones.i3d import MaxPool3D, Unit3D, same_padding


def tensorflow_padding(size, kernel, stride):
    """Source: TensorFlow's API guide on convolution, "Notes on padding": as many outputs as ceil(size / stride)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5))
def test_same_padding_is_tensorflows(size, kernel, stride):
    padding = same_padding(size, kernel, stride)
    assert padding == tensorflow_padding(size, kernel, stride)
    assert (size + sum(padding) - kernel) // stride + 1 == math.ceil(size / stride)


def windows_of(x, kernel, stride):
    """Zero-padded (…, T, H, W) → (…, T', H', W', kT, kH, kW)."""
    pads = [tensorflow_padding(*axis) for axis in zip(x.shape[-3:], kernel, stride, strict=True)]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 3) + pads)
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(-3, -2, -1))
    return views[..., :: stride[0], :: stride[1], :: stride[2], :, :, :]


sizes_drawn = st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 11))


@settings(max_examples=40, deadline=None)
@given(sizes_drawn, st.sampled_from([(7, 2), (3, 1), (1, 1)]), st.integers(0, 2**32 - 1))
def test_a_unit_is_convolution_of_the_zero_padded_clip_then_batch_norm_and_relu(size, kernel_and_stride, seed):
    kernel, stride = kernel_and_stride
    rng = np.random.default_rng(seed)
    unit = Unit3D(2, 3, kernel, stride).double().eval()
    with torch.no_grad():
        for tensor in (unit.conv3d.weight, unit.bn.weight, unit.bn.bias, unit.bn.running_mean):
            tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape)))
        unit.bn.running_var.copy_(torch.from_numpy(rng.uniform(1e-3, 1, 3)))
    x = rng.normal(size=(2, 2, *size))
    with torch.inference_mode():
        y = unit(torch.from_numpy(x)).numpy()

    windows = windows_of(x, (kernel,) * 3, (stride,) * 3)
    summed = np.einsum("ncthwijk,ocijk->nothw", windows, unit.conv3d.weight.detach().numpy())
    scale, offset, mean, variance = (
        tensor.detach().numpy().reshape(1, -1, 1, 1, 1)
        for tensor in (unit.bn.weight, unit.bn.bias, unit.bn.running_mean, unit.bn.running_var)
    )
    expected = np.maximum((summed - mean) / np.sqrt(variance + 1e-3) * scale + offset, 0)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    sizes_drawn,
    st.sampled_from([((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]),
    st.integers(0, 2**32 - 1),
)
def test_a_pool_is_the_maximum_of_the_zero_padded_clip(size, kernel_and_stride, seed):
    x = np.maximum(np.random.default_rng(seed).normal(size=(2, 3, *size)), 0)  # what comes out of a ReLU
    pooled = MaxPool3D(*kernel_and_stride)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(pooled, windows_of(x, *kernel_and_stride).max(axis=(-3, -2, -1)))
