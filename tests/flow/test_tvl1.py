"""TV-L1: near OpenCV's, the same in any batch, and every part of it against NumPy, OpenCV or the formula."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException

from vid3d_cli.errors import ShapeError
from vid3d_cli.flow import tvl1
from vid3d_cli.flow.methods import mean_end_point_error
from vid3d_cli.flow.tvl1 import DEFAULT_PARAMETERS, Tvl1Parameters, tvl1_flow, tvl1_flow_of_pairs

DATA = Path(__file__).parents[1] / "data"
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "flow"

# Rounding makes up to 0.01 px; OpenCV 4 reads frames at whole 1/32 px, which makes 0.01 to 0.02.
MAX_ERROR_PX = 0.05

needs_contrib = pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="this OpenCV is not the contrib build")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def texture(height, width, seed=0):
    """A smooth random picture with full contrast."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def shifted_pair(dx, dy, height=80, width=100, seed=0):
    """Two frames whose content moves by dx to the right and dy down."""
    big = texture(height + 40, width + 40, seed)
    return big[20 : 20 + height, 20 : 20 + width], big[20 - dy : 20 - dy + height, 20 - dx : 20 - dx + width]


def flow_of(prev, following, **options):
    return tvl1_flow_of_pairs(prev[None], following[None], **options)[0]


def recorded_pair():
    """A crop of a real video, and what OpenCV 5.0.0 (contrib) computed for it."""
    with np.load(DATA / "tvl1_pair.npz") as arrays:
        return arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)


@pytest.fixture
def on_gpu_paths(monkeypatch):
    """Everything that a GPU does otherwise, on the CPU and uncompiled."""
    monkeypatch.setattr(tvl1, "_is_cpu", lambda tensor: False)
    monkeypatch.setattr(tvl1, "_fuse", lambda function: function)


# The whole of it


def test_it_is_opencvs_flow():
    prev, following, expected = recorded_pair()
    assert mean_end_point_error(expected, np.zeros_like(expected)) > 3
    assert mean_end_point_error(flow_of(prev, following), expected) < MAX_ERROR_PX


def test_inside_a_crop_it_is_the_flow_of_the_whole_frame():
    with np.load(DATA / "flow_pair.npz") as arrays:
        prev, following, expected = arrays["prev"], arrays["next"], arrays["flow"].astype(np.float32)
    inside = np.s_[8:-8, 8:-8]
    assert mean_end_point_error(flow_of(prev, following)[inside], expected[inside]) < 0.1


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.npz")), ids=lambda path: path.stem)
def test_it_is_opencvs_flow_of_whole_frames(path):
    with np.load(path) as arrays:
        flow = flow_of(arrays["prev"], arrays["next"])
        assert mean_end_point_error(flow, arrays["flow"].astype(np.float32)) < MAX_ERROR_PX


@needs_contrib
@pytest.mark.parametrize("size", [(120, 160), (77, 51), (20, 300), (16, 16), (9, 40)])
def test_it_is_the_flow_of_the_opencv_that_is_here(size):
    prev, following = shifted_pair(2, -1, *size)
    expected = cv2.optflow.DualTVL1OpticalFlow_create().calc(prev.copy(), following.copy(), None)
    assert mean_end_point_error(flow_of(prev, following), expected) < MAX_ERROR_PX


@pytest.mark.parametrize("shift", [(3, -2), (-2, 1), (4, 0), (0, 4)])
def test_a_translation_is_found_with_x_right_and_y_down(shift):
    inside = flow_of(*shifted_pair(*shift))[16:-16, 16:-16]
    assert mean_end_point_error(inside, np.broadcast_to(np.float32(shift), inside.shape)) < 0.05


@pytest.mark.parametrize("picture", [texture(60, 70), np.full((60, 70), 90, np.uint8)])
def test_a_still_picture_does_not_move(picture):
    assert np.abs(flow_of(picture, picture.copy())).max() < 1e-3


@pytest.mark.parametrize("greys", [(0, 255), (90, 91)])
def test_uniform_frames_do_not_move_whatever_their_greys(greys):
    prev, following = (np.full((40, 50), grey, np.uint8) for grey in greys)
    np.testing.assert_array_equal(flow_of(prev, following)[8:-8, 8:-8], 0)


@pytest.mark.parametrize("height", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("width", [1, 3, 16, 19, 64])
def test_any_size_works(height, width):
    prev, following = shifted_pair(1, 0, height, width)
    flow = flow_of(prev, following)
    assert (flow.shape, flow.dtype) == ((height, width, 2), np.float32)
    assert np.isfinite(flow).all()


def test_frames_may_lie_in_memory_as_they_like():
    prev, following = shifted_pair(2, 1, 40, 50)
    strided = np.stack([prev, following], axis=-1)
    np.testing.assert_array_equal(flow_of(strided[..., 0], strided[..., 1]), flow_of(prev.copy(), following.copy()))
    flipped = flow_of(prev[::-1].copy(), following[::-1].copy())
    np.testing.assert_array_equal(flow_of(prev[::-1], following[::-1]), flipped)


def test_fewer_iterations_give_another_flow():
    pair = shifted_pair(3, 1, 40, 50)
    few = flow_of(*pair, parameters=replace(DEFAULT_PARAMETERS, num_warps=1, max_rounds=1, iterations_per_round=2))
    assert mean_end_point_error(few, flow_of(*pair)) > 0.5


def test_parameters_name_every_value():
    values = [str(value) for value in vars(Tvl1Parameters(0.1, 0.2, 0.4, 3, 0.7, 2, 0.05, 6, 8)).values()]
    described = str(Tvl1Parameters(0.1, 0.2, 0.4, 3, 0.7, 2, 0.05, 6, 8))
    assert len(values) == 9 and all(value in described for value in values)


# Batches and threads


def different_pairs(num_pairs, height=24, width=37):
    """Pairs that come to rest after different numbers of iterations, one of them at once."""
    pairs = [shifted_pair(i % 4, -(i % 3), height, width, seed=i) for i in range(num_pairs)]
    return tuple(np.stack(frames) for frames in zip(*pairs, strict=True))


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_a_pair_is_the_same_in_any_batch(batch_size):
    prev, following = different_pairs(5)
    alone = np.stack([flow_of(*pair) for pair in zip(prev, following, strict=True)])
    np.testing.assert_allclose(tvl1_flow_of_pairs(prev, following, batch_size=batch_size), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_a_pair_does_not_see_the_others_of_its_batch(device):
    """Bit for bit: neither their pictures, nor how long they move, nor where in the batch it is."""
    prev, following = different_pairs(5)
    batches = [[0, 1, 2], [3, 0, 4], [2, 4, 0], [0, 0, 0]]
    solved = [tvl1_flow_of_pairs(prev[batch], following[batch], batch_size=3, device=device) for batch in batches]
    for batch, flow in zip(batches, solved, strict=True):
        np.testing.assert_array_equal(flow[batch.index(0)], solved[0][0])


def count_solved_at_once(monkeypatch, device, num_pairs=7, size=(20, 30)):
    """Have three threads ask for flow; how many batches were solved at the same time, at most, and of what sizes."""
    solving, most, sizes = 0, 0, []
    lock = threading.Lock()

    def solve(prev, following, parameters):
        nonlocal solving, most
        with lock:
            solving += 1
            most = max(most, solving)
            sizes.append(len(prev))
        time.sleep(0.02)
        with lock:
            solving -= 1
        return torch.zeros(len(prev), 2, *prev.shape[1:])

    monkeypatch.setattr(tvl1, "_solve", solve)
    frames = np.zeros((num_pairs + 1, *size), np.uint8)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: tvl1_flow(frames, device=device), range(3)))
    return most, sizes


def test_all_callers_together_use_no_more_cores_than_torch_has(monkeypatch):
    most, sizes = count_solved_at_once(monkeypatch, "cpu")
    assert min(2, torch.get_num_threads()) <= most <= torch.get_num_threads()
    assert sizes == [1] * 21


def test_a_gpu_solves_one_batch_at_a_time(monkeypatch):
    monkeypatch.setattr(tvl1, "GPU_BATCH_PX", 4 * 20 * 30 + 1)
    most, sizes = count_solved_at_once(monkeypatch, "meta")
    assert most == 1
    assert sorted(sizes) == [3] * 3 + [4] * 3
    assert count_solved_at_once(monkeypatch, "meta", num_pairs=2, size=(200, 300)) == (1, [1] * 6)


def test_nobody_is_warned_of_what_it_is_made_with():
    code = "import numpy; from vid3d_cli.flow.tvl1 import tvl1_flow; tvl1_flow(numpy.zeros((2, 20, 20), numpy.uint8))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_sequence_is_its_pairs():
    grey = np.stack([texture(50, 60)[2 * t : 2 * t + 40, :50] for t in range(4)])
    np.testing.assert_array_equal(tvl1_flow(grey), tvl1_flow_of_pairs(grey[:-1], grey[1:]))
    assert abs(np.median(tvl1_flow(grey)[..., 1]) + 2) < 0.1


def test_one_frame_and_no_pairs_give_no_flow():
    assert tvl1_flow(np.zeros((1, 20, 30), np.uint8)).shape == (0, 20, 30, 2)
    none = np.zeros((0, 20, 30), np.uint8)
    assert tvl1_flow_of_pairs(none, none).shape == (0, 20, 30, 2)


def test_several_threads_may_ask_at_once():
    prev, following = different_pairs(4)
    expected = tvl1_flow_of_pairs(prev, following)
    answers = {}

    def ask(name):
        answers[name] = tvl1_flow_of_pairs(prev, following)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(3):
        np.testing.assert_array_equal(answers[name], expected)


def test_the_rest_of_torch_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(tvl1, "_pool", None)
    num_threads = torch.get_num_threads()
    in_workers = set(tvl1._workers().map(lambda _: torch.get_num_threads(), range(8)))
    elsewhere = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (in_workers, torch.get_num_threads(), elsewhere) == ({1}, num_threads, [num_threads])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python warns of what is tested
def test_a_forked_process_starts_its_own_threads():
    prev, following = different_pairs(2, 20, 20)
    expected = tvl1_flow_of_pairs(prev, following)
    child = os.fork()
    if child == 0:
        threading.Timer(20, os._exit, (2,)).start()
        os._exit(0 if np.array_equal(tvl1_flow_of_pairs(prev, following), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("prev", "following"),
    [
        (np.zeros((1, 40, 40), np.uint8), np.zeros((1, 40, 41), np.uint8)),
        (np.zeros((2, 40, 40), np.uint8), np.zeros((1, 40, 40), np.uint8)),
        (np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)),
        (np.zeros((1, 40, 40), np.float32), np.zeros((1, 40, 40), np.float32)),
        (np.zeros((1, 0, 40), np.uint8), np.zeros((1, 0, 40), np.uint8)),
    ],
)
def test_what_is_no_stack_of_pairs_is_refused(prev, following):
    with pytest.raises(ShapeError, match="two stacks of grey frames"):
        tvl1_flow_of_pairs(prev, following)


@pytest.mark.parametrize("grey", [np.zeros((0, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4))])
def test_what_is_no_stack_of_frames_is_refused(grey):
    with pytest.raises(ShapeError, match="grey frames"):
        tvl1_flow(grey)


# What only a GPU runs


def test_what_a_gpu_runs_is_opencvs_flow_too(on_gpu_paths):
    prev, following, expected = recorded_pair()
    assert mean_end_point_error(flow_of(prev, following), expected) < MAX_ERROR_PX


def test_on_a_gpu_a_pair_is_the_same_in_any_batch(on_gpu_paths):
    prev, following = different_pairs(3)
    alone = np.stack([flow_of(*pair) for pair in zip(prev, following, strict=True)])
    np.testing.assert_allclose(tvl1_flow_of_pairs(prev, following, batch_size=3), alone, rtol=0, atol=1e-4)


@needs_cuda
def test_a_gpu_gives_what_the_cpu_gives():
    prev, following, expected = recorded_pair()
    flow = tvl1_flow_of_pairs(np.stack([prev] * 3), np.stack([following] * 3), device="cuda")
    assert mean_end_point_error(flow, np.stack([expected] * 3)) < MAX_ERROR_PX


both_kinds = pytest.mark.parametrize("kind", [tvl1._Fields, tvl1._CpuFields])


def random_fields(kind, num_pairs=2, height=9, width=13):
    """Every field random, zero where it has to be."""
    fields = kind(num_pairs, height, width, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    for field in (fields.w, fields.f_offset, fields.f_slope, fields.g, fields.q_x, fields.q_y):
        fields.picture(field).normal_(generator=random)
    fields.picture(fields.q_x)[..., -1] = 0
    fields.picture(fields.q_y)[..., -1, :] = 0
    return fields


@both_kinds
def test_an_iteration_is_the_formula(kind, on_gpu_paths):
    fields = random_fields(kind)
    w, q_x, q_y, f_offset, f_slope, g = (
        fields.picture(field).numpy().copy()
        for field in (fields.w, fields.q_x, fields.q_y, fields.f_offset, fields.f_slope, fields.g)
    )
    for _ in range(3):
        f = np.clip(f_offset + (f_slope * w).sum(1, keepdims=True), -0.045, 0.045)
        w = w + f * g + np.diff(q_x, axis=-1, prepend=0) + np.diff(q_y, axis=-2, prepend=0)
        right, down = np.diff(w, axis=-1, append=w[..., -1:]), np.diff(w, axis=-2, append=w[..., -1:, :])
        q_x, q_y = ((q + 0.25 * d) / (1 + np.hypot(right, down)) for q, d in ((q_x, right), (q_y, down)))
    fields.iterate(3, 0.25, 0.045, rest=0)
    for field, expected in ((fields.w, w), (fields.q_x, q_x), (fields.q_y, q_y)):
        np.testing.assert_allclose(fields.picture(field), expected, atol=1e-5)


@both_kinds
def test_a_pair_is_at_rest_once_it_changes_too_little(kind, on_gpu_paths, monkeypatch):
    monkeypatch.setattr(tvl1, "GPU_ITERATIONS_PER_CHECK", 1)
    fields, one_iteration = random_fields(kind), random_fields(kind)
    one_iteration.iterate(1, 0.25, 0.045, rest=0)
    changes = (one_iteration.w - fields.w).flatten(1).norm(dim=1)
    fields.iterate(30, 0.25, 0.045, rest=changes.max().item() + 1e-3)
    assert not fields.is_moving.any()
    torch.testing.assert_close(fields.w, one_iteration.w)

    fields = random_fields(kind)
    fields.iterate(1, 0.25, 0.045, rest=changes.mean().item())
    assert torch.equal(fields.is_moving.flatten(), changes > changes.mean())


@both_kinds
def test_a_pair_at_rest_stays(kind, on_gpu_paths):
    fields = random_fields(kind)
    fields.is_moving[1] = False
    everything = (fields._w_padded, fields._q_x_padded, fields._q_y_padded)
    before = [field.clone() for field in everything]
    fields.iterate(2, 0.25, 0.045, rest=0)
    assert fields.is_moving.flatten().tolist() == [True, False]
    for old, new in zip(before, everything, strict=True):
        assert not torch.equal(new[0], old[0])
        assert torch.equal(new[1], old[1])


@pytest.mark.parametrize("function", [tvl1._iterate, tvl1._median_by_torch])
def test_what_is_compiled_is_one_graph_with_the_same_result(function):
    def arguments():
        if function is tvl1._median_by_torch:
            return [torch.randn(2, 2, 9, 13, generator=torch.Generator().manual_seed(0))]
        fields = random_fields(tvl1._Fields)
        padded = [fields._w_padded, fields._q_x_padded, fields._q_y_padded]
        return [*padded, fields.f_offset, fields.f_slope, fields.g, fields.is_moving, fields.height, 0.25, 0.045]

    plain, compiled = arguments(), arguments()
    expected = function(*plain)
    torch.testing.assert_close(torch.compile(function, backend="aot_eager", fullgraph=True)(*compiled), expected)
    torch.testing.assert_close(compiled, plain)


def test_without_torchscript_the_result_is_the_same(monkeypatch):
    pair = shifted_pair(2, 1, 30, 40)
    expected = flow_of(*pair)

    def fail(function):
        raise RuntimeError("no TorchScript any more")

    monkeypatch.setattr(torch.jit, "script", fail)
    assert tvl1._script(tvl1._iterate_in_place) is tvl1._iterate_in_place
    assert tvl1._iterate_without_lock is not tvl1._iterate_in_place  # where the tests run it exists
    monkeypatch.setattr(tvl1, "_iterate_without_lock", tvl1._iterate_in_place)
    np.testing.assert_array_equal(flow_of(*pair), expected)


def test_without_a_compiler_it_runs_uncompiled(monkeypatch):
    def fail(*args):
        raise TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fail)
    run = tvl1._fuse.__wrapped__(torch.square)
    with pytest.warns(RuntimeWarning, match="no compiler"):
        assert run(torch.tensor(3.0)) == 9
    assert run(torch.tensor(2.0)) == 4  # no second warning: pytest would take it for an error


# The parts


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_the_divergence_is_the_negative_adjoint_of_the_gradient(height, width, seed):
    random = torch.Generator().manual_seed(seed)
    fields = tvl1._CpuFields(1, height, width, torch.device("cpu"))
    picture, x, y = torch.randn(3, 1, 2, height, width, generator=random)
    x[..., -1], y[..., -1, :] = 0, 0

    fields.picture(fields.w)[:] = picture
    fields.iterate(1, 0.25, 0.045, rest=0)  # with no q and no g it changes q alone
    right, down = (fields.picture(field).double() for field in fields._scratch[2:4])
    inner = (right * x + down * y).sum()

    fields.w.zero_()
    fields.is_moving.fill_(True)
    fields.picture(fields.q_x)[:], fields.picture(fields.q_y)[:] = x, y
    fields.iterate(1, 0.25, 0.045, rest=0)  # so w becomes div q
    assert inner.item() == pytest.approx(-(fields.picture(fields.w).double() * picture).sum().item(), abs=1e-3)


@pytest.mark.parametrize("size", [(64, 85), (37, 16), (17, 90)])
def test_resizing_is_opencvs(size):
    picture = texture(*size).astype(np.float32)
    smaller = cv2.resize(picture, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
    levels = tvl1._pyramid(torch.from_numpy(picture)[None], replace(DEFAULT_PARAMETERS, num_scales=2))
    if min(smaller.shape) < 16:
        assert len(levels) == 1
        return
    np.testing.assert_allclose(levels[1][0], smaller, atol=1e-3)
    steps = [small / large for small, large in zip(smaller.shape, size, strict=True)]
    larger = tvl1._resize(torch.from_numpy(smaller), size, steps)
    np.testing.assert_allclose(larger, cv2.resize(smaller, size[::-1], interpolation=cv2.INTER_LINEAR), atol=1e-3)


def test_the_pyramid_ends_before_16_px():
    sizes = [tuple(level.shape[1:]) for level in tvl1._pyramid(torch.zeros(1, 256, 340), DEFAULT_PARAMETERS)]
    assert sizes == [(256, 340), (205, 272), (164, 218), (131, 174), (105, 139)]
    assert len(tvl1._pyramid(torch.zeros(1, 25, 100), DEFAULT_PARAMETERS)) == 3  # 25, 20, 16, and not 13


def test_the_gradient_is_centred():
    picture = torch.from_numpy(texture(12, 9).astype(np.float32))
    right, down = tvl1._centred_gradient(picture[None])
    by_numpy = np.gradient(picture.numpy())
    np.testing.assert_allclose(right[0, :, 1:-1], by_numpy[1][:, 1:-1], atol=1e-4)
    np.testing.assert_allclose(down[0, 1:-1], by_numpy[0][1:-1], atol=1e-4)
    np.testing.assert_allclose(right[0, :, 0], by_numpy[1][:, 0] / 2, atol=1e-4)
    np.testing.assert_allclose(down[0, -1], by_numpy[0][-1] / 2, atol=1e-4)


def test_reading_between_pixels_is_opencvs():
    pictures = torch.from_numpy(np.stack([texture(30, 41, seed).astype(np.float32) for seed in range(3)]))[None]
    random = torch.Generator().manual_seed(0)
    x, y = 60 * torch.rand(2, 1, 30, 41, generator=random) - 10
    x, y = (32 * x).round() / 32, (32 * y).round() / 32  # what every version of OpenCV can tell apart
    expected = [cv2.remap(one.numpy(), x[0].numpy(), y[0].numpy(), cv2.INTER_CUBIC) for one in pictures[0]]
    for read in (tvl1._read_at, tvl1._read_by_torch):
        np.testing.assert_allclose(read(pictures, x, y)[0], np.stack(expected), atol=5e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 33)])
@pytest.mark.parametrize("num_greys", [3, 1000])
def test_the_median_is_numpys(size, num_greys):
    pictures = np.random.default_rng(0).integers(0, num_greys, (2, 2, *size)).astype(np.float32)
    padded = np.pad(pictures, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(2, 3)), axis=(-2, -1))
    np.testing.assert_array_equal(tvl1._median_by_torch(torch.from_numpy(pictures)), expected)
    fields = tvl1._CpuFields(2, *size, torch.device("cpu"))
    fields.picture(fields.w)[:] = torch.from_numpy(pictures)
    fields.is_moving[1] = False
    fields.filter()
    np.testing.assert_array_equal(fields.picture(fields.w), [expected[0], pictures[1]])
