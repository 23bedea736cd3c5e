"""The choice of runtime, device and precision: what "auto" selects, what is refused, and with which message."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import make_runtime

import vid3d_cli.runtimes
from vid3d_cli.errors import UsageError
from vid3d_cli.runtimes import check_runtime_options, devices, may_have_gpu, select_runtime
from vid3d_cli.runtimes.devices import select_devices, select_precision

HOPPER, AMPERE, VOLTA = (9, 0, "NVIDIA H100 PCIe"), (8, 0, "NVIDIA A100-SXM4-40GB"), (7, 0, "Tesla V100-SXM2-16GB")
TURING, GTX_TURING, PASCAL = (7, 5, "Tesla T4"), (7, 5, "NVIDIA GeForce GTX 1660 Ti"), (6, 1, "NVIDIA TITAN Xp")


@pytest.fixture
def num_gpus(monkeypatch):
    """Call with the number of CUDA GPUs that PyTorch shall report; there is no MPS."""

    def pretend(number):
        monkeypatch.setattr(devices, "_start_cuda", lambda: None)
        monkeypatch.setattr(devices, "_try_gpu", lambda gpu: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(vid3d_cli.runtimes, "may_have_gpu", lambda: number > 0)

    return pretend


@pytest.fixture
def capability(monkeypatch):
    """Call with the compute capability and name of each GPU."""

    def pretend(*of_gpus):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: of_gpus[device.index or 0][:2])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: of_gpus[device.index or 0][2])

    return pretend


@pytest.fixture
def all_installed(monkeypatch):
    """OpenVINO and a C++ compiler are installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def refuses(check, *words):
    with pytest.raises(UsageError) as error:
        check()
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Without torch
# ---------------------------------------------------------------------------------------------------------------------

MALFORMED_DEVICES = ["gpu", "", "meta", "tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cpu:1", "mps:1", "cuda,cpu"]
MALFORMED_DEVICES += ["cuda:0,x", "cuda:0,", "cuda:0,all", "cpu,cuda:0"]


@pytest.mark.parametrize("device", MALFORMED_DEVICES)
def test_malformed_devices(num_gpus, device):
    num_gpus(2)
    for check in (lambda: check_runtime_options(device=device), lambda: select_devices(device)):
        refuses(check, f"unknown device '{device}'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "onnx"}, ["'onnx'", "auto, torch, openvino"]),
        ({"runtime": "openvino", "device": "cuda"}, ["on the CPU, not on 'cuda'", "--runtime torch"]),
        ({"runtime": "openvino", "device": "cuda:0,1"}, ["on the CPU, not on 'cuda:0,1'", "--runtime torch"]),
        ({"runtime": "openvino", "compile": True}, ["--compile with --runtime torch"]),
        ({"runtime": "openvino", "precision": "fp16"}, ["fp16 needs a GPU", "--precision bf16"]),
        ({"precision": "fp16", "device": "cpu"}, ["fp16 needs a GPU", "--precision bf16"]),
        ({"precision": "fp64"}, ["'fp64'", "fp32, bf16, fp16, auto"]),
        ({"precision": ""}, ["''", "fp32, bf16, fp16, auto"]),
        ({"device": "tpu"}, ["'tpu'", "auto, cpu, cuda, cuda:1, cuda:0,1, cuda:all, mps"]),
        ({"device": "cuda:1,1"}, ["'cuda:1,1' names a GPU twice"]),
        ({"num_threads": 0}, ["at least 1 thread", "got 0"]),
    ],
)
def test_options_that_are_refused(all_installed, num_gpus, capability, options, words):
    num_gpus(2)
    capability(AMPERE, AMPERE)
    refuses(lambda: check_runtime_options(**options), *words)
    refuses(lambda: select_runtime(**{"name" if key == "runtime" else key: options[key] for key in options}), *words)


def test_openvino_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuses(lambda: select_runtime("openvino"), "pip install 'vid3d[openvino]'")


def test_checking_options_imports_neither_torch_nor_numpy():
    code = """
import sys
from vid3d_cli.errors import UsageError
from vid3d_cli.runtimes import check_runtime_options
check_runtime_options("torch", "cuda:0,1", "bf16", num_threads=2)
try:
    check_runtime_options("nonsense")
except UsageError as error:
    print(error)
print([name for name in ("torch", "numpy", "cv2", "openvino") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["unknown runtime 'nonsense': choose one of auto, torch, openvino", "[]"]


# ---------------------------------------------------------------------------------------------------------------------
# Devices
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name", "expected"),
    [
        (0, "auto", ["cpu"]),
        (1, "auto", ["cuda:0"]),
        (0, "cpu", ["cpu"]),
        (2, "cpu", ["cpu"]),
        (2, "cuda", ["cuda"]),
        (2, "cuda:1", ["cuda:1"]),
        (4, "cuda:0,1", ["cuda:0", "cuda:1"]),
        (4, "cuda:3,0,2", ["cuda:3", "cuda:0", "cuda:2"]),
        (3, "cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        (1, "cuda:all", ["cuda:0"]),
    ],
)
def test_devices_that_are_present(num_gpus, number, name, expected):
    num_gpus(number)
    assert [str(device) for device in select_devices(name)] == expected


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (0, "cuda", ["'cuda' was not found", "finds 0 cuda devices", "--device cpu"]),
        (1, "cuda:1", ["'cuda:1' was not found"]),
        (1, "cuda:999999", ["'cuda:999999' was not found"]),
        (0, "mps", ["'mps' was not found"]),
        (2, "cuda:0,2", ["'cuda:2' was not found", "finds 2 cuda devices", "--device cpu"]),
        (0, "cuda:0,1", ["'cuda:0' was not found"]),
        (0, "cuda:all", ["'cuda:all' was not found", "finds 0 cuda devices", "--device cpu"]),
    ],
)
def test_devices_that_are_absent(num_gpus, number, name, words):
    num_gpus(number)
    refuses(lambda: select_devices(name), *words)
    refuses(lambda: select_runtime(device=name), *words)


# ---------------------------------------------------------------------------------------------------------------------
# Precision and runtime
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "devices", "capabilities", "expected"),
    [
        ("auto", ["cpu"], [AMPERE], "fp32"),
        ("auto", ["cuda"], [AMPERE], "bf16"),
        ("auto", ["cuda"], [VOLTA], "fp16"),
        ("auto", ["cuda"], [TURING], "fp16"),
        ("auto", ["cuda"], [(7, 5, "NVIDIA GeForce RTX 2080 Ti")], "fp16"),
        ("auto", ["cuda"], [(7, 5, "Quadro RTX 4000")], "fp16"),
        ("auto", ["cuda"], [(7, 5, "GRID T4-16Q")], "fp16"),
        ("auto", ["cuda"], [GTX_TURING], "fp32"),
        ("auto", ["cuda"], [(7, 5, "NVIDIA T400 4GB")], "fp32"),
        ("auto", ["cuda"], [PASCAL], "fp32"),
        ("auto", ["cuda:1"], [AMPERE, VOLTA], "fp16"),
        ("auto", ["cuda:0", "cuda:1"], [AMPERE, HOPPER], "bf16"),
        ("auto", ["cuda:0", "cuda:1"], [AMPERE, VOLTA], "fp16"),
        ("auto", ["cuda:0", "cuda:1", "cuda:2"], [TURING, AMPERE, PASCAL], "fp32"),
        ("auto", ["mps"], [AMPERE], "fp32"),
        ("fp32", ["cuda"], [AMPERE], "fp32"),
        ("bf16", ["cpu"], [VOLTA], "bf16"),
        ("fp16", ["cuda"], [AMPERE], "fp16"),
        ("fp16", ["cuda"], [PASCAL], "fp16"),
    ],
)
def test_precisions(capability, name, devices, capabilities, expected):
    capability(*capabilities)
    assert select_precision(name, *map(torch.device, devices)) == expected


@pytest.mark.parametrize(
    ("name", "gpu", "words"),
    [
        ("bf16", TURING, ["Tesla T4 has no bf16", "--precision fp16"]),
        ("bf16", PASCAL, ["NVIDIA TITAN Xp has no bf16", "--precision fp32"]),
        ("fp16", GTX_TURING, ["NVIDIA GeForce GTX 1660 Ti computes NaN in fp16", "--precision fp32"]),
    ],
)
def test_precisions_that_a_gpu_does_not_have(num_gpus, capability, name, gpu, words):
    num_gpus(2)
    capability(AMPERE, gpu)
    refuses(lambda: select_runtime(device="cuda:0,1", precision=name), *words)


@pytest.mark.parametrize("version", [None, "6.4"])
def test_an_amd_gpu_runs_bf16(monkeypatch, capability, version):
    capability(TURING)  # ROCm has such numbers for its own architectures
    monkeypatch.setattr(torch.version, "hip", version)
    assert select_precision("auto", torch.device("cuda")) == ("bf16" if version else "fp16")


@pytest.mark.parametrize("name", ["", "fp64", "BF16", "float32"])
def test_unknown_precisions(name):
    refuses(lambda: select_precision(name, torch.device("cpu")), f"'{name}'", "fp32, bf16, fp16, auto")


def test_fp16_on_a_cpu_that_auto_selected(num_gpus):
    num_gpus(0)
    refuses(lambda: select_runtime(precision="fp16"), "fp16 needs a GPU")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_default_batch_of_a_cpu_is_one_clip(num_gpus, device):
    num_gpus(0)
    assert make_runtime(device=device, precision="auto").batch_size == 1
    assert make_runtime(device=device, batch_size=3).batch_size == 3


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
def test_a_cpu_runs_openvino_if_it_is_installed(monkeypatch, num_gpus, options, is_installed, expected):
    num_gpus(0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_installed else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert select_runtime(**options) == expected


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "torch"), ({"device": "cpu"}, "openvino"), ({"name": "openvino"}, "openvino")]
)
def test_a_gpu_runs_torch_by_default(all_installed, num_gpus, capability, options, expected):
    num_gpus(1)
    capability(AMPERE)
    assert select_runtime(**options) == expected


@pytest.mark.parametrize(
    ("files", "driver", "expected"),
    [
        (["null", "dri", "nvme0"], None, False),
        (["null", "nvidia0", "nvidiactl"], None, True),
        (["nvmap", "nvhost-gpu"], None, True),
        (["dxg"], None, True),
        (["kfd"], None, True),
        (["null"], 100, False),  # CUDA_ERROR_NO_DEVICE, as in an image with CUDA on a machine without a GPU
        (["null"], 0, True),
    ],
)
def test_a_gpu_shows_in_its_driver(monkeypatch, files, driver, expected):
    def load(name):
        if driver is None:
            raise OSError(name)
        return SimpleNamespace(cuInit=lambda flags: driver)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Path, "iterdir", lambda directory: (directory / name for name in files))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert may_have_gpu() == expected
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not may_have_gpu()
