"""TV-L1 as a GPU computes it, where there is none: on the CPU, on fake CUDA tensors, and with streams that are late."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from late_gpu import LateGpu
from moving import different_pairs, mean_end_point_error, recorded_pair
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from videos import write_video

from vid3d_cli.device_memory import download
from vid3d_cli.errors import UsageError, Vid3dWarning
from vid3d_cli.flow import tvl1, tvl1_kernels, tvl1_solver
from vid3d_cli.flow.tvl1 import Tvl1Flow, tvl1_flow
from vid3d_cli.runtimes import devices


def download_at_once(tensors):
    copies = [tensor.clone().numpy() for tensor in tensors]
    return lambda: copies


@pytest.fixture
def on_gpu_paths(monkeypatch):
    """Run on the CPU, uncompiled, what a GPU runs."""
    for file in (tvl1_kernels, tvl1_solver):
        monkeypatch.setattr(file, "is_cpu", lambda tensor: False)
    monkeypatch.setattr(tvl1_solver, "fuse", lambda function: function)
    monkeypatch.setattr(tvl1_solver, "download", download_at_once)


# The operations


def solve_together(prev, following):
    """What a GPU computes for a batch."""
    frames = (torch.from_numpy(stack.astype(np.float32)) for stack in (prev, following))
    with torch.inference_mode():
        return tvl1_solver.solve(*frames).permute(0, 2, 3, 1).numpy()


def test_the_operations_of_a_gpu_give_opencvs_flow(on_gpu_paths):
    prev, following, expected = recorded_pair()
    assert mean_end_point_error(solve_together(prev[None], following[None])[0], expected) < 0.05


def test_pairs_leave_the_batch_of_a_gpu_and_come_back_to_their_places(on_gpu_paths, monkeypatch):
    monkeypatch.setattr(tvl1_solver, "NUM_WARPS", 1)
    prev, following = different_pairs(5)
    order = [4, 3, 1, 0, 2, 0]
    alone = np.stack([solve_together(*pair)[0] for pair in zip(prev[:, None], following[:, None], strict=True)])
    sizes = []

    def iterate(*arguments):
        sizes.append(len(arguments[0]))
        tvl1_kernels.iterate(*arguments)

    monkeypatch.setattr(tvl1_solver, "iterate", iterate)
    np.testing.assert_allclose(solve_together(prev[order], following[order]), alone[order], rtol=0, atol=1e-4)
    assert set(sizes) > {len(order), 2}
    assert sum(sizes) < 0.8 * len(order) * len(sizes)


# The host and the GPU


@pytest.mark.parametrize("num_moving", [[3, 3, 2, 1, 0], [3] * 60, [0]])
def test_the_host_gives_a_gpu_more_work_before_it_waits_for_an_answer(num_moving, on_gpu_paths, monkeypatch):
    monkeypatch.setattr(tvl1_solver, "NUM_WARPS", 1)
    events, answers = [], iter(num_moving)

    def download(counts):
        events.append("ask")
        return lambda: events.append("wait") or [next(answers)]

    monkeypatch.setattr(tvl1_solver, "download", download)
    monkeypatch.setattr(tvl1_solver, "iterate", lambda *arguments: events.append("iterate"))
    monkeypatch.setattr(tvl1_solver, "median", lambda *arguments: None)
    frames = torch.zeros(3, 8, 9)
    tvl1_solver._Scale(frames, frames, torch.zeros(3, 2, 8, 9)).solve()
    work = ["iterate"] * tvl1_solver.ITERATIONS_PER_CHECK
    assert events == [*work, "ask", *[*work, "wait", "ask"] * 59][: len(events)]
    assert events.count("wait") == min(len(num_moving), 59)


class OnGpu(TorchDispatchMode):
    """Refuse operations with a tensor that is not on the GPU: copies from and to the host wait for both."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        places = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        assert places <= {"cuda"}, f"{function} on {places}"
        return result


def test_the_solver_never_waits_for_the_gpu(on_gpu_paths, monkeypatch):
    answers = []

    def download(counts):
        assert [(count.shape, count.device.type) for count in counts] == [((), "cuda")]
        answers.append([5, 4, 2, 2, 0][len(answers) % 5])
        return lambda answer=answers[-1:]: answer

    monkeypatch.setattr(tvl1_solver, "NUM_WARPS", 1)
    monkeypatch.setattr(tvl1_solver, "download", download)
    monkeypatch.setattr(tvl1_solver, "ITERATIONS_PER_CHECK", 1)
    with FakeTensorMode(), torch.no_grad():
        frames = torch.zeros(2, 6, 20, 24, device="cuda:1")
        with OnGpu():
            flow = tvl1_solver.solve(*frames)
    assert (flow.shape, flow.device, flow.dtype) == ((6, 2, 20, 24), torch.device("cuda:1"), torch.float32)
    assert len(answers) == 2 * 5  # at both scales until nothing moves


@pytest.mark.parametrize(
    ("waits", "error"),
    [
        (lambda gpu: gpu.sum().item(), DataDependentOutputException),
        (lambda gpu: bool(gpu.any()), DataDependentOutputException),
        (lambda gpu: gpu.cpu(), AssertionError),
        (lambda gpu: gpu * torch.ones(3), AssertionError),
        (lambda gpu: torch.tensor([1.0, 2.0, 3.0]).to(gpu), AssertionError),
    ],
)
def test_the_test_sees_what_waits(waits, error):
    with FakeTensorMode(), torch.no_grad():
        gpu = torch.zeros(3, device="cuda:1")
        with OnGpu(), pytest.raises(error):
            waits(gpu)


@pytest.fixture
def late_gpu(monkeypatch, on_gpu_paths):
    """CUDA on the CPU: answers arrive as late as allowed."""
    gpu = LateGpu(monkeypatch, computes=False)
    monkeypatch.setattr(tvl1_solver, "download", download)
    return gpu


def test_a_gpu_works_on_a_stream_of_its_own_and_answers_late(late_gpu, monkeypatch):
    prev, following = different_pairs(3)
    monkeypatch.setattr(tvl1_solver, "NUM_WARPS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(tvl1_solver, "download", download_at_once)
        expected = solve_together(prev, following)
    streams = []

    def solve(*frames):
        streams.append(late_gpu.stream.name)
        return tvl1_solver.solve(*frames)

    monkeypatch.setattr(tvl1, "solve", solve)
    flow = np.empty((3, 24, 37, 2), np.float32)
    for gpu in (tvl1._Gpu(torch.device("cpu")), tvl1._Gpu(torch.device("cpu"))):
        assert gpu.solve(prev, following, flow) == 3
        np.testing.assert_array_equal(flow, expected)
    assert streams == ["stream 1", "stream 2"]
    assert late_gpu.stream is late_gpu.networks and not late_gpu.networks.work


# Memory


@pytest.fixture
def gpu(late_gpu, monkeypatch):
    """A GPU that solves up to 8 pairs of 4×5 px at once if it has room; it notes the sizes of its batches."""
    monkeypatch.setattr(tvl1, "GPU_BATCH_PX", 8 * 4 * 5 + 3)
    gpu = tvl1._Gpu(torch.device("cpu"))
    gpu.sizes, gpu.room, gpu.message, gpu.kept = [], 100, "CUDA out of memory.", lambda: None

    def solve(prev, following):
        assert gpu.kept() is None, "the failed attempt still holds its memory"
        gpu.sizes.append(len(prev))
        if len(prev) > gpu.room:
            gpu.kept = weakref.ref(prev)
            raise RuntimeError(gpu.message)
        return (following - prev)[:, None].repeat(1, 2, 1, 1)

    monkeypatch.setattr(tvl1, "solve", solve)
    monkeypatch.setattr(tvl1, "_find_gpu", lambda name: gpu)
    return gpu


def brighter(num_pairs):
    """Frames (n+1, 4, 5) that get brighter by one."""
    return np.arange(num_pairs + 1, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(5, 2)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_a_gpu_out_of_memory_halves_its_batch_for_good(gpu, message):
    gpu.room, gpu.message = 3, message
    for sizes in ([8, 4, 2, 2, 2, 2, 2, 1], [2, 2, 2, 2, 2, 1]):
        gpu.sizes.clear()
        np.testing.assert_array_equal(Tvl1Flow("cuda:0")(brighter(11)), np.ones((11, 4, 5, 2)))
        assert gpu.sizes == sizes


def test_larger_frames_make_smaller_batches(gpu):
    Tvl1Flow("cuda:0")(np.zeros((10, 8, 10), np.uint8))
    assert gpu.sizes == [2, 2, 2, 2, 1]
    Tvl1Flow("cuda:0")(np.zeros((3, 80, 10), np.uint8))
    assert gpu.sizes[5:] == [1, 1]


def test_a_gpu_gives_up_where_one_pair_is_too_much(gpu):
    grey = brighter(3)
    gpu.room = 0
    with pytest.warns(Vid3dWarning, match="the slower CPU computes it: CUDA out of memory"):
        assert gpu.solve(grey[:-1], grey[1:], np.empty((3, 4, 5, 2), np.float32)) == 0
    assert gpu.sizes == [3, 1]


def test_other_errors_of_a_gpu_are_raised_and_the_next_call_works(gpu):
    gpu.room, gpu.message = 0, "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory"):
        Tvl1Flow("cuda:0")(brighter(3))
    gpu.room = 100
    assert len(Tvl1Flow("cuda:0")(brighter(3))) == 3


def test_the_cpu_computes_what_a_gpu_has_no_memory_for(monkeypatch):
    prev, following = different_pairs(3)
    expected = tvl1_flow(prev, following)

    def solve_one(prev, following, flow):
        flow[0] = 5
        return 1

    monkeypatch.setattr(tvl1, "_find_gpu", lambda name: SimpleNamespace(solve=solve_one))
    flow = tvl1_flow(prev, following, device="cuda:3")
    np.testing.assert_array_equal(flow[0], np.full_like(flow[0], 5))
    np.testing.assert_array_equal(flow[1:], expected[1:])


# Several GPUs


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, and the number of pairs that each has solved so far."""
    solved = {"cuda:0": 0, "cuda:1": 0}

    def find_gpu(name):
        def solve(prev, following, flow):
            solved[name] += len(prev)
            flow[:] = (following.astype(np.float32) - prev)[..., None]
            return len(prev)

        return SimpleNamespace(solve=solve)

    monkeypatch.setattr(tvl1, "_find_gpu", find_gpu)
    monkeypatch.setattr(tvl1, "GPU_BATCH_SIZE", 4)
    monkeypatch.setattr(devices, "select_devices", lambda name: [torch.device("cuda", 0), torch.device("cuda", 1)])
    return solved


def test_the_calls_of_all_videos_take_turns_on_the_gpus(two_gpus):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: Tvl1Flow("cuda:0,cuda:1")(brighter(3)), range(20)))
    assert two_gpus == {"cuda:0": 30, "cuda:1": 30}


def test_the_command_uses_all_gpus_it_is_given(vid3d, tmp_path, two_gpus):
    video = write_video(tmp_path / "a.mp4", num_frames=17)
    result = vid3d("flow", video, "--out", "flow.npz", "--flow", "tvl1", "--device", "cuda:0,1", "--short-side", 32)
    assert result.exit_code == 0, result.stderr
    assert two_gpus == {"cuda:0": 8, "cuda:1": 8}
    with np.load(tmp_path / "flow.npz") as arrays:
        assert arrays["flow"].shape[0] == 16


@pytest.mark.parametrize("device", ["mps", "cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_one_clear_error(device):
    with pytest.raises(UsageError, match=f"^cannot compute flow on '{device}': [^\n]+$"):
        tvl1_flow(*different_pairs(1), device=device)
