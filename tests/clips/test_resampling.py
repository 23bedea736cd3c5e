"""The resize against torch's kernel for uint8, byte by byte."""

import sys
import threading
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.clips import resampling
from vid3d_cli.clips.resampling import resample, resample_by_numpy


def by_torch(rgb, height, width):
    images = torch.from_numpy(rgb)[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def image(kind, height, width, seed=0):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3)
    if kind == "noise":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "extremes":  # where sums are largest
        return (rng.random(shape) < rng.choice([0.01, 0.5, 0.99])).astype(np.uint8) * 255
    return np.full(shape, kind, np.uint8)


sides = st.one_of(st.integers(1, 9), st.integers(1, 150))
kinds = st.sampled_from(["noise", "extremes", 0, 255])


@settings(max_examples=250, deadline=None)
@given(sides, sides, sides, sides, kinds, st.integers(0, 9), st.sampled_from([1, 500, 2**18]))
def test_any_size_gives_the_bytes_of_torch(height, width, new_height, new_width, kind, seed, stripe_pixels):
    rgb = image(kind, height, width, seed)
    with mock.patch.object(resampling, "STRIPE_PIXELS", stripe_pixels):
        resized = resample_by_numpy(rgb, new_height, new_width)
    np.testing.assert_array_equal(resized, by_torch(rgb, new_height, new_width))
    assert resized.flags.c_contiguous


@pytest.mark.parametrize("kind", ["noise", "extremes", 0, 255])
@pytest.mark.parametrize(
    ("size", "new_size"),
    [
        *(((1080, 1920), (256, 455)), ((1920, 1080), (455, 256)), ((240, 320), (256, 341)), ((480, 640), (128, 171))),
        *(
            ((700, 900), (86, 111)),
            ((1200, 1100), (75, 69)),
            ((1100, 60), (11, 3)),
            ((3, 2100), (1, 7)),
            ((1, 1), (9, 5)),
        ),
    ],
)
def test_videos_and_strong_shrinking_give_the_bytes_of_torch(size, new_size, kind):
    """Down to 1/300, where only float64 holds the sums."""
    rgb = image(kind, *size)
    np.testing.assert_array_equal(resample_by_numpy(rgb, *new_size), by_torch(rgb, *new_size))


@pytest.mark.parametrize("num_inputs", [16, 21, 42, 201])
def test_sums_beside_the_rounding_edge_give_the_bytes_of_torch(num_inputs):
    """From 21 pixels on, float32 would round such sums to the wrong side."""
    _, (weights, _), precision = resampling._filter(num_inputs, 2)
    rows = np.random.default_rng(0).integers(200, 256, (16, num_inputs), dtype=np.uint8)
    two = [0, num_inputs // 4]
    rows[:, two] = 0
    levels = np.arange(256)
    of_two = levels[:, None] * weights[two[0]] + levels * weights[two[1]]
    above_edge = ((rows[:, : len(weights)] @ weights)[:, None, None] + of_two + 2 ** (precision - 1)) % 2**precision
    row, *pair = np.nonzero(np.minimum(above_edge, 2**precision - above_edge) <= 4)
    rows = rows[row]
    rows[:, two] = np.transpose(pair)
    rgb = np.repeat(rows[..., None], 3, axis=2)
    assert len(rgb) > 1
    np.testing.assert_array_equal(resample_by_numpy(rgb, len(rgb), 2), by_torch(rgb, len(rgb), 2))


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_outputs", [112, 128, 171, 224, 256, 341, 455])
def test_every_length_of_a_row_gives_the_bytes_of_torch(num_outputs):
    """Rounding decides some weights, which differ where it is done in another order."""
    noise = image("noise", 64, 2160)
    for num_inputs in range(1, 2161):
        rgb = np.ascontiguousarray(noise[:, :num_inputs])
        np.testing.assert_array_equal(resample_by_numpy(rgb, 64, num_outputs), by_torch(rgb, 64, num_outputs))


HD = (720, 1280)


def resample_twice(rgb):
    """Resize once before torch may be there, and once after its import has ended."""
    before = resample(rgb, 40, 71)
    for thread in threading.enumerate():
        if thread.name == "vid3d torch":
            thread.join()
    np.testing.assert_array_equal(resample(rgb, 40, 71), before)
    return before


@pytest.fixture
def fresh(monkeypatch):
    """The state of a new process."""
    monkeypatch.setattr(resampling, "_torch", resampling._Torch())
    return resampling._torch


def test_torch_takes_over_where_it_is_here_and_gives_the_same_bytes(fresh):
    rgb = image("noise", 90, 160)
    np.testing.assert_array_equal(resample_twice(rgb), resample_by_numpy(rgb, 40, 71))
    assert fresh.module is torch
    rgb.flags.writeable = False  # as in a frame of shared memory
    resample_twice(rgb[:, ::-1])


@pytest.mark.parametrize(("size", "seconds", "expected"), [(HD, 0.0, True), (HD, 9.0, False), ((480, 640), 0.0, False)])
def test_a_process_imports_torch_once_it_has_spent_long_on_large_frames(monkeypatch, fresh, size, seconds, expected):
    monkeypatch.setattr(resampling, "TORCH_PAYS_SECONDS", seconds)
    monkeypatch.delitem(sys.modules, "torch")
    with mock.patch.object(fresh, "fetch") as fetch:
        resample(image("noise", *size), 40, 71)
    assert fetch.called == expected


@pytest.mark.parametrize("error", [ImportError("libtorch_cpu.so: cannot allocate memory"), MemoryError()])
def test_a_failing_import_leaves_numpy_in_place(monkeypatch, fresh, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(resampling, "TORCH_PAYS_SECONDS", 0.0)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [mock.Mock(find_spec=fail)])
    resample_twice(image("noise", *HD))
    assert fresh.module is None


def test_a_kernel_with_other_bytes_is_not_used(monkeypatch, fresh):
    monkeypatch.setattr(resampling, "_resample_by_torch", lambda _, rgb, *size: resample_by_numpy(rgb, *size) ^ 1)
    resample_twice(image("noise", 90, 160))
    assert fresh.module is None


def test_a_failing_thread_leaves_numpy_in_place(monkeypatch, fresh):
    monkeypatch.setattr(threading.Thread, "start", mock.Mock(side_effect=RuntimeError("can't start new thread")))
    resample_twice(image("noise", 90, 160))
    assert fresh.module is None
