"""GPUs that cannot be used: each reason is one line that says what to do, and "auto" goes on without them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from tiny import check_outputs, make_clips, make_models, make_runtime

from vid3d_cli.errors import UsageError, Vid3dError
from vid3d_cli.runtimes import compiling, devices
from vid3d_cli.runtimes.compiling import check_compiler, compile_errors_explained
from vid3d_cli.runtimes.devices import explain_choice, find_problems, select_devices

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
COUNTING = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? "
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Call to pretend a machine: how CUDA starts, how a convolution runs on each GPU, and the driver's version."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def pretend(start=None, gpus=(), driver="580.95.05", cuda="13.2"):
        (tmp_path / "version").write_text(f"{driver}\n", "utf-8")
        monkeypatch.setattr(devices, "_DRIVER_FILE", tmp_path / ("version" if driver else "none"))
        monkeypatch.setattr(torch, "__version__", "2.15.0")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "init", lambda: raise_or_return(start))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: f"NVIDIA T{gpu.index or 0}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (6, 1))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
        monkeypatch.setattr(devices, "_convolve_on", lambda gpu: raise_or_return(gpus[gpu.index or 0]))

    return pretend


def raise_or_return(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


TOO_OLD = RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update your GPU …")
NO_DRIVER = RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU …")
NO_GPUS = RuntimeError("No CUDA GPUs are available")
STARTS = [
    (TOO_OLD, "driver 580.95.05 is too old for torch 2.15.0, which needs CUDA 13.2: update the driver to 580 or newer"),
    (NO_DRIVER, "this process cannot reach the NVIDIA driver: if it runs in a container, start that with --gpus all"),
    (NO_GPUS, "shows no GPU (CUDA_VISIBLE_DEVICES is not set): unset CUDA_VISIBLE_DEVICES; start a container with --g"),
    (RuntimeError(COUNTING + "Error 802: system not yet initialized"), "not ready: start nvidia-fabricmanager"),
    (RuntimeError(COUNTING + "Error 803: system has …"), "was updated while it was loaded: restart the machine"),
    (RuntimeError(COUNTING + "Error 804: forward …"), "take it out of LD_LIBRARY_PATH, or update the driver"),
    (RuntimeError(COUNTING + "Error 1: no argument"), "CUDA fails on the GPU (Error 1: no argument): see nvidia-smi"),
    (RuntimeError("CUDA unknown error - this may be due to …"), "does not answer: sudo rmmod nvidia_uvm && sudo modpr"),
    (RuntimeError("Cannot re-initialize CUDA in forked subprocess. …"), "use multiprocessing's start method spawn"),
    (
        AssertionError("libcudart functions unavailable. …"),
        "CUDA fails on the GPU (libcudart functions unavailable. …)",
    ),
]


@pytest.mark.parametrize(("error", "words"), STARTS)
def test_cuda_that_does_not_start(machine, error, words):
    machine(error)
    (problem,) = find_problems()
    assert words in str(problem)
    assert problem.device is None
    assert explain_choice("auto") == [f"the GPU is not used: {problem}"]
    assert select_devices("auto") == [CPU]
    for name in ("cuda", "cuda:1", "cuda:all"):
        with pytest.raises(UsageError) as refused:
            select_devices(name)
        assert str(refused.value) == f"device '{name}' cannot be used: {problem}; or try --device cpu"
    assert select_devices("cpu") == [CPU]
    assert explain_choice("cpu") == []


@pytest.mark.parametrize("error", [NO_DRIVER, NO_GPUS, RuntimeError("No HIP GPUs are available")])
def test_a_machine_without_a_gpu_has_no_problem(machine, error):
    machine(error, driver="")
    assert find_problems() == explain_choice("auto") == []
    assert select_devices("auto") == [CPU]


def test_a_driver_under_wsl_shows_no_version(machine):
    machine(TOO_OLD, driver="")
    assert str(find_problems()[0]).startswith("the NVIDIA driver is too old")


@pytest.mark.parametrize(
    ("cuda", "oldest"), [("11.8", "450"), ("12.4", "525"), ("13.0", "580"), ("99.0", "the newest")]
)
def test_the_driver_that_a_torch_needs(machine, cuda, oldest):
    machine(TOO_OLD, cuda=cuda)
    assert find_problems()[0].fix.startswith(f"update the driver to {oldest}")


def test_a_torch_without_cuda_beside_a_driver(machine):
    machine(AssertionError("Torch not compiled with CUDA enabled"), cuda=None)
    (problem,) = find_problems()
    assert str(problem).startswith("torch 2.15.0 is built for CPUs: install a torch for CUDA")
    machine(AssertionError("Torch not compiled with CUDA enabled"), driver="", cuda=None)
    assert find_problems() == []


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_who_hides_the_gpus_wants_the_cpu(machine, monkeypatch, hidden):
    machine(NO_GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_problems() == explain_choice("auto") == []
    assert select_devices("auto") == [CPU]
    with pytest.raises(UsageError, match=f"shows no GPU .CUDA_VISIBLE_DEVICES is '{hidden}'"):
        select_devices("cuda")


def test_hidden_gpus(machine, monkeypatch):
    machine(NO_GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES is '7'" in find_problems()[0].what


@pytest.mark.parametrize(
    ("answer", "words", "is_wrong"),
    [
        (RuntimeError("CUDA error: no kernel image is available"), "no code for NVIDIA T0, architecture sm_61", False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), "the memory of NVIDIA T0 is full: end the other", False),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\n…"), "MIG mode", False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "pip install --force-reinstall torch", False),
        (
            RuntimeError("CUDA error: an illegal instruction\nCUDA kernel"),
            "(CUDA error: an illegal instruction)",
            False,
        ),
        (26.5, "NVIDIA T0 computes wrongly: a sum is 26.5 instead of 27", True),
    ],
)
def test_a_gpu_that_fails_is_passed_over(machine, answer, words, is_wrong):
    machine(gpus=[answer, 27.0])
    (problem,) = find_problems()
    assert words in str(problem)
    assert "\n" not in str(problem)
    assert problem.device == FIRST
    assert problem.gives_wrong_numbers == is_wrong
    assert explain_choice("auto") == [f"cuda:0 is not used: {problem}"]
    assert select_devices("auto") == [SECOND]
    assert select_devices("cuda:1") == [SECOND]
    for name in ("cuda", "cuda:0,1", "cuda:all"):
        with pytest.raises(UsageError, match=r"^device 'cuda(:0)?' cannot be used: .*; or try --device cpu$"):
            select_devices(name)
    machine(gpus=[answer])
    assert select_devices("auto") == [CPU]


def test_gpus_that_work(machine):
    machine(gpus=[27.0, RuntimeError("not asked")])
    assert select_devices("auto") == [FIRST]
    assert explain_choice("auto") == []


def test_the_convolution_that_a_gpu_must_run():
    assert devices._convolve_on.__wrapped__(CPU) == 27


def test_a_gpu_that_worked_is_not_asked_again(monkeypatch):
    answers = [RuntimeError("CUDA out of memory"), 27.0, RuntimeError("CUDA out of memory: the networks fill it")]
    convolve_on = devices.functools.cache(lambda gpu: raise_or_return(answers.pop(0)))
    monkeypatch.setattr(devices, "_convolve_on", convolve_on)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (8, 0))
    assert [devices._try_gpu(FIRST) is None for _ in range(3)] == [False, True, True]


# ---------------------------------------------------------------------------------------------------------------------
# The real torch, with a driver that fails
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_driver(tmp_path_factory):
    """A folder with a libcuda.so.1 that fails as $FAKE_INIT and $FAKE_VERSION say."""
    if torch.version.cuda is None or shutil.which("gcc") is None or torch.cuda.is_available():
        pytest.skip("needs a torch for CUDA, gcc and no GPU")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("no_gpu.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"FAKE_VERSION": "10000"}, "is too old for torch"),
        ({"FAKE_INIT": "999"}, "does not answer"),
        ({"FAKE_INIT": "2"}, "the memory of the GPU is full"),
        ({"FAKE_INIT": "803"}, "restart the machine"),
        ({"FAKE_INIT": "1"}, "CUDA fails on the GPU (Error 1: "),
    ],
)
def test_real_errors_of_a_driver(broken_driver, variables, words):
    code = "from vid3d_cli.runtimes.devices import *; print(*explain_choice('auto'), select_devices('auto'), sep='|')"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(broken_driver), **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    explained, chosen = done.stdout.split("|")
    assert words in explained
    assert chosen == "[device(type='cpu')]\n"
    assert done.stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# --compile
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """Call with the compilers that are installed, and whether Triton and Python.h are."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)

    def pretend(*names, has_triton=True, has_header=True):
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)
        monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: object() if has_triton else None)
        if has_header:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})

    return pretend


@pytest.mark.parametrize(
    ("device", "names"), [("cpu", ["g++"]), ("mps", ["g++"]), ("cuda", ["gcc"]), ("cuda", ["clang"])]
)
def test_what_compiling_needs(tools, device, names):
    tools(*names)
    check_compiler(device)
    tools()
    with pytest.raises(UsageError, match=r"^--compile needs a C(\+\+)? compiler, and g(cc|\+\+) was not"):
        check_compiler(device)


@pytest.mark.parametrize(("device", "variable"), [("cpu", "CXX"), ("cuda", "CC")])
def test_a_compiler_of_the_users_choice(tools, monkeypatch, device, variable):
    tools("gcc", "g++", "mycc")
    monkeypatch.setenv(variable, "mycc")
    check_compiler(device)
    monkeypatch.setenv(variable, "nocc")
    with pytest.raises(UsageError, match=rf"nocc was not found: install one, or set {variable} to its path"):
        check_compiler(device)


def test_a_gpu_needs_triton_and_the_headers_of_python(tools):
    tools("gcc", has_header=False)
    with pytest.raises(UsageError, match=r"--compile on a GPU needs .*Python.h: install python3-dev"):
        check_compiler("cuda")
    tools("gcc", has_triton=False)
    with pytest.raises(UsageError, match="needs Triton, which is not installed: pip install triton"):
        check_compiler("cuda")
    tools("g++", has_triton=False, has_header=False)
    check_compiler("cpu")


@pytest.mark.exhaustive
def test_a_network_that_cannot_be_compiled_is_one_line(monkeypatch):
    def fail(graph, inputs):
        raise ValueError("first line\nsecond line")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=fail))
    with pytest.raises(Vid3dError) as error:
        make_runtime(compile=True).run(make_clips(1))
    assert re.fullmatch(r"the network cannot be compiled \(.*first line\): leave out --compile", str(error.value))


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried …"), MemoryError("no 3 GiB")])
def test_a_batch_too_large_to_be_compiled_is_halved(monkeypatch, error):
    """Inductor computes constants and times its kernels on the device."""

    errors = [error]

    def compile_graph(graph, inputs):
        if errors:
            raise errors.pop()
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=compile_graph))
    clips = make_clips(3, ("rgb",))
    runtime = make_runtime(make_models(("rgb",)), compile=True, batch_size=2)
    check_outputs(clips, runtime.run(clips))
    assert runtime.batch_size == 1


def test_other_errors_stay():
    with pytest.raises(KeyError, match="mine"), compile_errors_explained():
        raise KeyError("mine")
