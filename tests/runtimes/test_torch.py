"""The PyTorch runtime: batches, memory, precision, batches in flight, and its ways to be fast on a CPU."""

import copy
import os
import re
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tiny import K, Tiny, check_outputs, facts, make_clips, make_models, make_runtime, shake, tiny_model, wide_clips

from vid3d_cli.clips.preprocess import CROPS, Views
from vid3d_cli.errors import UsageError, Vid3dError
from vid3d_cli.models.clip_model import ClipModel, LayerTap, Normalise
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes import create_runtime
from vid3d_cli.runtimes.base import MultiDeviceRuntime, Runtime
from vid3d_cli.runtimes.cache import use_private_inductor_cache
from vid3d_cli.runtimes.torch import cuda_settings
from vid3d_cli.runtimes.transfer import CudaTransfer, Transfer


@pytest.mark.parametrize("num_clips", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7, 100])
def test_each_clip_gets_its_own_output_at_every_batch_size(num_clips, batch_size):
    clips = make_clips(num_clips)
    models = make_models()
    check_outputs(clips, make_runtime(models, batch_size=batch_size).run(clips))
    assert sum(models["rgb"].backbone.batches) == num_clips
    assert max(models["rgb"].backbone.batches, default=1) == min(batch_size or 1, num_clips or 1)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_one_stream_runs_without_the_other(stream):
    clips = make_clips(3, streams=(stream,))
    check_outputs(clips, make_runtime(make_models(streams=(stream,))).run(clips))


def test_no_gradients_are_kept():
    models = make_models()
    make_runtime(models).run(make_clips(2))
    assert models["rgb"].backbone.grad == {False}


def test_the_networks_are_put_into_eval_mode():
    models = make_models()
    models["rgb"].train()
    make_runtime(models)
    assert not models["rgb"].backbone.training


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


def test_bf16_computes_in_bf16_and_returns_float32():
    clips = make_clips(3)
    models = make_models()
    runtime = make_runtime(models, precision="bf16", batch_size=2)
    check_outputs(clips, runtime.run(clips), rtol=0.05, atol=0.05)
    for net in (model.backbone for model in runtime._ready.values()):
        assert net.dtypes == {net.conv.weight.dtype} == {torch.bfloat16}
        assert net.head.weight.dtype == torch.float32
    check_outputs(clips, make_runtime(models).run(clips))  # the models themselves are as they were


def test_fp32_computes_in_float32():
    models = make_models()
    make_runtime(models).run(make_clips(1))
    assert models["rgb"].backbone.dtypes == {torch.float32}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_onednn_runs_small_convolutions():
    models = make_models(("rgb",))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        make_runtime(models).run(make_clips(1, ("rgb",)))
    called = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in called
    assert not [name for name in called if "slow_conv" in name]


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_networks_give_the_same_results(capfd):
    clips = make_clips(3, streams=("rgb",))
    runtime = make_runtime(make_models(("rgb",)), compile=True, batch_size=2)
    assert runtime.description == "torch, compiled, on cpu"
    check_outputs(clips, runtime.run(clips))
    assert "CUDA" not in capfd.readouterr().err


class LateTransfer(Transfer):
    """Acts like a GPU: a download is not there until it was waited for."""

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
    monkeypatch.setattr("vid3d_cli.runtimes.torch.Transfer", LateTransfer)


def test_the_transfer_decides_how_many_batches_are_in_flight(late):
    assert make_runtime().num_in_flight == 2
    assert Runtime.num_in_flight == Transfer.num_in_flight == 1


@pytest.mark.parametrize("views", [None, Views(CROPS["3"], 8)])
def test_start_does_not_wait(late, views):
    clips = make_clips(6) if views is None else wide_clips("rgb", 6)
    models = make_models() if views is None else {"rgb": tiny_model("rgb")}
    runtime = make_runtime(models, batch_size=2, views=views)
    waiting = [runtime.start(clips[i : i + 2]) for i in (0, 2, 4)]
    assert runtime._transfer.num_waiting == 3 * len(models)
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


def test_out_of_memory_keeps_the_batches_in_flight(late):
    clips, models = make_clips(9), make_models()
    runtime = make_runtime(models, batch_size=4)
    first = runtime.start(clips[:4])
    models["flow"].backbone.max_batch = 2
    second, third = runtime.start(clips[4:8]), runtime.start(clips[8:])
    assert (runtime._transfer.num_drained, runtime.batch_size) == (1, 2)
    assert models["flow"].backbone.batches == [4, 4, 2, 2, 1]
    check_outputs(clips, first() + second() + third())


class FailingTransfer(LateTransfer):
    """Runs out of memory while answers are waited for, with more than two clips."""

    def download(self, tensors):
        wait = super().download(tensors)

        def fail():
            if len(tensors[0]) > 2:
                self.num_waiting -= 1
                raise RuntimeError("MPS backend out of memory (MPS allocated: 17.5 GB)")
            return wait()

        return fail


def test_out_of_memory_while_waiting_keeps_all_clips_in_order(monkeypatch):
    monkeypatch.setattr("vid3d_cli.runtimes.torch.Transfer", FailingTransfer)
    clips, models = make_clips(9), make_models()
    runtime = make_runtime(models, batch_size=4)
    runtime.device = torch.device("meta")  # as on a GPU, whose batches are copies; networks stay where they are
    for model in models.values():
        model.to = lambda device, model=model: model
    waiting = [runtime.start(clips[:4]), runtime.start(clips[4:8]), runtime.start(clips[8:])]
    check_outputs(clips, [output for wait in waiting for output in wait()])
    assert runtime.batch_size == 2 and runtime._transfer.num_waiting == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError("Unable to allocate 3.00 GiB"),
    ],
)
def test_every_kind_of_short_memory_halves_the_batch(error):
    clips, models = make_clips(3, ("rgb",)), make_models(("rgb",), max_batch=2, error=error)
    check_outputs(clips, make_runtime(models, batch_size=3).run(clips))
    assert models["rgb"].backbone.batches == [3, 1, 1, 1]
    models["rgb"].backbone.max_batch = 0
    reason = str(error).partition("\n")[0]
    with pytest.raises(Vid3dError, match=re.escape(f"out of memory with a single clip ({reason}): try")):
        make_runtime(models).run(clips)


def test_other_errors_are_raised_as_they_are():
    models = make_models(("rgb",), max_batch=0, error=RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        make_runtime(models, batch_size=3).run(make_clips(3, ("rgb",)))


def test_an_operation_that_mps_lacks_is_one_clear_line():
    lacks = "The operator 'aten::max_pool3d_with_indices' is not implemented for the MPS device. If you want"
    runtime = make_runtime(make_models(("rgb",)))
    runtime._ready["rgb"] = Mock(side_effect=NotImplementedError(lacks))
    runtime.device = torch.device("mps")
    with pytest.raises(
        Vid3dError, match=r"cannot run this network on MPS \(The operator .* MPS device\): use torch 2.9"
    ):
        runtime.run(make_clips(1, ("rgb",)))


needs_newer_names = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")


def allow_tf32_by_older_names(precision):
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True


def allow_tf32_by_newer_names():
    for place in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        place.fp32_precision = "tf32"


def forbid_tf32_for_convolutions():
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def read_precisions():
    """Everything that says whether float32 is rounded; None for what torch refuses to tell."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    reads = [lambda: matmul.allow_tf32, lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision]
    if hasattr(cudnn, "conv"):
        places = (matmul, torch.backends.mkldnn.matmul, cudnn, cudnn.conv, cudnn.rnn)
        reads += [lambda place=place: place.fp32_precision for place in places]

    def read(setting):
        try:
            return setting()
        except RuntimeError:
            return None

    return [read(setting) for setting in reads]


@pytest.mark.parametrize(
    "allow",
    [
        lambda: None,
        lambda: allow_tf32_by_older_names("high"),
        lambda: allow_tf32_by_older_names("medium"),
        pytest.param(allow_tf32_by_newer_names, marks=needs_newer_names),
        pytest.param(forbid_tf32_for_convolutions, marks=needs_newer_names),
    ],
)
def test_float32_is_never_rounded_to_tf32(allow):
    cudnn = torch.backends.cudnn
    at_first = read_precisions()
    try:
        allow()
        before = read_precisions()
        with cuda_settings(is_benchmarked=True, is_deterministic=True):
            inside = read_precisions()
            assert inside == [False, False, "highest", *["ieee"] * (len(inside) - 3)]
            assert cudnn.benchmark and cudnn.deterministic
        assert read_precisions() == before
        assert not cudnn.benchmark and not cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = True
        if hasattr(cudnn, "conv"):
            torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert read_precisions() == at_first


def test_devices_take_batches_in_turn():
    clips, models = make_clips(7), [make_models() for _ in range(3)]
    runtime = MultiDeviceRuntime([make_runtime(on_one, batch_size=1) for on_one in models])
    waiting = [runtime.start([clip]) for clip in clips]
    assert [on_one["flow"].backbone.batches for on_one in models] == [[1] * 3, [1] * 2, [1] * 2]
    check_outputs(clips, [output for wait in waiting for output in wait()])


def test_several_devices_give_the_same_results_as_one():
    clips = make_clips(9)
    expected = make_runtime(batch_size=2).run(clips)
    outputs = MultiDeviceRuntime([make_runtime(batch_size=2) for _ in range(2)]).run(clips)
    for one, other in zip(outputs, expected, strict=True):
        assert one.span == other.span
        for stream in ("rgb", "flow"):
            np.testing.assert_array_equal(one.features[stream], other.features[stream])
            np.testing.assert_array_equal(one.logits[stream], other.logits[stream])


def test_out_of_memory_on_one_device_halves_the_batches_of_all():
    clips, models = make_clips(10, ("rgb",)), [make_models(("rgb",)) for _ in range(2)]
    models[1]["rgb"].backbone.max_batch = 2
    runtime = MultiDeviceRuntime([make_runtime(on_one, batch_size=4) for on_one in models])
    check_outputs(clips, runtime.run(clips))
    assert [on_one["rgb"].backbone.batches for on_one in models] == [[4, 2], [4, 2, 2]]
    assert runtime.batch_size == 2


def test_the_description_of_several_devices(monkeypatch):
    gpus = ["NVIDIA H200", "NVIDIA H200", "NVIDIA A100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpus[device.index])

    def several(*indexes):
        runtimes = [make_runtime() for _ in indexes]
        for runtime, index in zip(runtimes, indexes, strict=True):
            runtime.device, runtime.num_in_flight = torch.device("cuda", index), 2
        return MultiDeviceRuntime(runtimes)

    alike = several(0, 1)
    assert alike.description == several(1).description == "torch on NVIDIA H200"  # whatever their number
    assert (alike.name, alike.version, alike.precision, alike.num_in_flight) == ("torch", torch.__version__, "fp32", 4)
    assert several(0, 2).description == several(2, 1, 0).description == "torch on NVIDIA A100 and torch on NVIDIA H200"


def test_every_device_has_its_own_networks(monkeypatch):
    devices = [torch.device("cpu")] * 3
    for module in ("devices", "torch"):
        monkeypatch.setattr(f"vid3d_cli.runtimes.{module}.select_devices", lambda name: devices)
    net = Tiny(3)
    models = {"rgb": ClipModel(net, Normalise(facts()), LayerTap(net, "conv", "avg"))}
    clips = make_clips(6, ("rgb",))
    expected = make_runtime(copy.deepcopy(models)).run(clips)
    runtime = create_runtime(models, name="torch", device="cuda:0,1,2")
    waiting = [runtime.start([clip]) for clip in clips]
    assert net.batches == [1, 1]  # a third of them
    for wait, output in zip(waiting, expected, strict=True):
        np.testing.assert_array_equal(wait()[0].features["rgb"], output.features["rgb"])


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@needs_cuda
def test_a_gpu_gives_the_same_results_as_a_cpu():
    torch.manual_seed(0)
    net = shake(BACKBONES["s3d_mini"].build("rgb", K))
    models = {"rgb": ClipModel(net, Normalise(facts()))}
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 16, 112, 112, 3), dtype=np.uint8)
    clips = [Clip(ClipSpan(i, 0, 16, 0.0, 1.0), {"rgb": array}) for i, array in enumerate(frames)]
    expected = make_runtime(copy.deepcopy(models)).run(clips)
    runtimes = [make_runtime(copy.deepcopy(models), device="cuda", batch_size=2) for _ in range(2)]
    for runtime in (*runtimes, MultiDeviceRuntime(runtimes)):
        waiting = [runtime.start(clips[i : i + 2]) for i in range(0, 7, 2)]  # cuDNN benchmarks the third shape
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

    start()()  # the first time allocates and loads, which waits
    torch.cuda._sleep(2_000_000_000)  # cycles, about a second
    wait = start()
    assert not torch.cuda.current_stream(device).query()
    (found,) = wait()
    np.testing.assert_array_equal(found, np.stack(arrays) + 1)
    assert not torch.from_numpy(found).is_pinned()  # results do not hold page-locked memory


def test_compiled_code_needs_no_home_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("vid3d_cli.runtimes.cache.cache_dir", Mock(side_effect=UsageError("no directory for weights")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_private_inductor_cache()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path


@pytest.mark.parametrize("planted", ["nothing", "directory", "link", "ours"])
def test_compiled_code_is_loaded_from_a_private_directory(tmp_path, monkeypatch, planted):
    """Before: torch ran the code that anybody had put into /tmp/torchinductor_NAME before --compile was first used."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    usual = tmp_path / f"cache/inductor-{os.getuid()}"
    usual.parent.mkdir()
    if planted == "directory":
        usual.mkdir()
        usual.chmod(0o777)
    elif planted == "link":
        usual.symlink_to(tmp_path / "elsewhere")
    elif planted == "ours":
        usual.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    use_private_inductor_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_private_inductor_cache()
    found = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (found == usual) == (planted in ("nothing", "ours"))
    assert found.is_dir() and not found.is_symlink() and not found.stat().st_mode & 0o077
