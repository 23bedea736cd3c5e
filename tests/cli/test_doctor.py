"""`vid3d doctor`: the self-test sees wrong numbers, and faults of a machine are named with what mends them."""

import errno
import json
import os
import socket
import sys
import tempfile

import numpy as np
import pytest
import torch
from disks import file_size_limit

from vid3d_cli.cli import doctor, machine
from vid3d_cli.errors import UsageError
from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.runtimes import selftest

# Self-test -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_embedded_networks_pass_on_the_cpu(precision):
    check = selftest.check_network("cpu", "torch", precision)
    assert check.passed
    assert check.same_top1
    assert (check.difference < 1e-6) == (precision == "fp32")


def test_rounding_in_fp32_fails(monkeypatch):
    """To 8 bits; a GPU that computes in TF32 rounds to 10, in every layer."""
    create = selftest.create_runtime

    def create_rounding(models, **options):
        for parameter in [parameter for model in models.values() for parameter in model.parameters()]:
            mantissa, exponent = torch.frexp(parameter.data)
            parameter.data = torch.ldexp((mantissa * 2**9).round() / 2**9, exponent)
        return create(models, **options)

    monkeypatch.setattr(selftest, "create_runtime", create_rounding)
    check = selftest.check_network("cpu", "torch", "fp32")
    assert check.same_top1
    assert not check.passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_fail(value):
    found, expected = np.ones((2, 3)), np.ones((2, 3))
    assert selftest._is_rounding(*selftest.compare(found, expected), "fp32")
    found[1, 2] = value
    with np.errstate(invalid="ignore"):
        assert not selftest._is_rounding(*selftest.compare(found, expected), "bf16")


def test_a_wrong_convolution_and_a_wrong_flow_fail(monkeypatch):
    assert selftest.check_convolution("cpu", "bf16").passed
    convolve = torch.conv3d
    monkeypatch.setattr(torch, "conv3d", lambda x, w, **k: convolve(x, w, **k) * (0.9 if x.dtype != torch.float else 1))
    assert not selftest.check_convolution("cpu", "bf16").passed

    flows = {"cpu": 2.0, "cuda:0": 2.01, "cuda:1": 2.1, "cuda:2": np.nan}
    monkeypatch.setattr(
        selftest, "tvl1_flow", lambda prev, _, device: np.full((*prev.shape, 2), flows[device], np.float32)
    )
    assert [selftest.check_tvl1(device).passed for device in flows] == [True, True, False, False]


class Small(torch.nn.Module):
    """Runs out of memory with more than some clips."""

    def __init__(self, max_clips):
        super().__init__()
        self.max_clips = max_clips

    def forward(self, clips):
        if len(clips) > self.max_clips:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        means = clips.float().mean((1, 2, 3))
        return BackboneOutput(means, means)


@pytest.mark.parametrize(("max_clips", "passes"), [(3, True), (1, True), (64, False)])
def test_out_of_memory_must_be_survived_and_must_happen(monkeypatch, max_clips, passes):
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    for name, value in {
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 10,
        "get_device_properties": type("Gpu", (), {"total_memory": 300}),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(selftest, "load_models", lambda streams: {"rgb": Small(max_clips)})
    check = selftest.check_out_of_memory("cpu")
    assert (check.passed, check.error is None) == (passes, passes)
    assert shares == [0.1, 1.0]


def test_a_check_that_raises_is_a_line_and_one_that_the_device_lacks_is_none(monkeypatch, capsys):
    def fail():
        raise RuntimeError("CUDA error: an illegal\n memory access")

    def lack():
        raise UsageError("no bf16")

    monkeypatch.setattr(selftest, "list_checks", lambda device: [("lacking", lack), ("failing", fail)])
    monkeypatch.setattr(sys, "argv", ["selftest", "cuda:0"])
    selftest.main()
    *started, record = map(json.loads, capsys.readouterr().out.splitlines())
    assert started == [{"check": "lacking"}, {"check": "failing"}]
    assert (record["passed"], record["error"]) == (False, "RuntimeError: CUDA error: an illegal memory access")


def test_a_gpu_runs_every_check_and_a_cpu_those_that_it_has(monkeypatch):
    monkeypatch.setattr(selftest, "has_openvino", lambda: True)
    on_cpu, on_gpu = ([name for name, _ in selftest.list_checks(device)] for device in ("cpu", "cuda:1"))
    assert len(on_cpu) == 5
    assert [name for name in on_gpu if "openvino" in name] == []
    assert {"network fp32 torch", "network fp16 torch", "convolution bf16", "tvl1", "out of memory"} <= set(on_gpu)


# Processes -----------------------------------------------------------------------------------------------------------


def run_instead(monkeypatch, code):
    monkeypatch.setattr(doctor, "_RUN", code.replace("{", "{{").replace("}", "}}"))


STARTED = """print('{"check": "network fp16", "passed": true}\\n{"check": "tvl1"}', flush=True); import os; """


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("raise SystemExit('vid3d: error: no CUDA\\nvid3d: error: this is a bug in vid3d')", "no CUDA"),
        ("print('{\"che', flush=True); os._exit(9)", "no reason was printed"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_failed_check(monkeypatch, code, why):
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 1.0)
    run_instead(monkeypatch, STARTED + code)
    first, second = doctor.check_device("cuda:0")
    assert (first["check"], first["passed"]) == ("network fp16", True)
    assert (second["check"], second["device"], second["passed"], second["error"]) == ("tvl1", "cuda:0", False, why)


# Faults of machines --------------------------------------------------------------------------------------------------

GOOD = {
    "install": {"path": "/home/alice/vid3d_cli", "extras": {"openvino": "2026.1"}},
    "system": {"cores": 16, "cpu_limit": None, "omp_num_threads": None, "open_files": 1024},
    "video": {"missing": []},
    "cache": {"path": "/home/alice/c", "free_bytes": 1 << 40, "not_writable": None, "weights": ["i3d:rgb"]},
    "temporary": {"path": "/tmp", "free_bytes": 1 << 40, "not_writable": None},
    "internet": {"host": "huggingface.co", "answer": "reached"},
    "torch": {"devices": ["cpu"], "gpus": {}},
}
OFFLINE = {"answer": "off by HF_HUB_OFFLINE"}


@pytest.mark.parametrize(
    ("part", "changes", "what", "fix"),
    [
        ("video", {"missing": ["h264"]}, "PyAV cannot decode h264", "pip install"),
        ("cache", {"not_writable": "Read-only file system"}, "cannot be written: Read-only", "set VID3D_CACHE"),
        ("cache", {"free_bytes": 10**8}, "has only 0.1 GB left", "free some space, or set VID3D_CACHE"),
        ("temporary", {"not_writable": "No space left on device"}, "directory /tmp cannot be written", "set TMPDIR"),
        ("install", {"extras": {"openvino": machine.NOT_INSTALLED}}, "OpenVINO", "pip install 'vid3d[openvino]'"),
        ("system", {"cpu_limit": 2.5}, "sees 16 cores and may use 2.5", "--threads 2"),
        (
            "system",
            {"omp_num_threads": "1"},
            "OMP_NUM_THREADS=1 keeps torch from using all 16 cores",
            "unset OMP_NUM_THREADS",
        ),
        ("system", {"open_files": 256}, "only 256 files", "ulimit -n 4096"),
    ],
)
def test_each_fault_is_named_with_what_mends_it(part, changes, what, fix):
    assert list(machine.find_problems(GOOD)) == []
    ((found_what, found_fix),) = machine.find_problems(GOOD | {part: GOOD[part] | changes})
    assert what in found_what
    assert fix in found_fix


def test_weights_are_missed_only_without_a_network():
    empty = GOOD | {"cache": GOOD["cache"] | {"weights": []}}
    assert list(machine.find_problems(empty)) == []
    ((what, fix),) = machine.find_problems(empty | {"internet": {"host": "huggingface.co", **OFFLINE}})
    assert "off by HF_HUB_OFFLINE" in what
    assert "vid3d weights add" in fix
    assert list(machine.find_problems(GOOD | {"internet": OFFLINE})) == []


def test_a_part_that_could_not_be_examined_is_no_other_fault():
    assert list(machine.find_problems({name: {"error": "x"} for name in GOOD} | {"internet": GOOD["internet"]})) == []


def test_a_directory_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "WRITTEN_BYTES", 1 << 20)
    facts = machine.describe_directory(tmp_path / "not" / "yet")
    assert facts["megabytes_per_second"] > 0
    assert facts["free_bytes"] > 0
    assert facts["not_writable"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_one_that_cannot_be_written_are_facts(tmp_path, monkeypatch):
    with file_size_limit(1 << 19):
        assert machine.describe_directory(tmp_path)["not_writable"] == os.strerror(errno.EFBIG)
    (tmp_path / "file").touch()
    assert machine.describe_directory(tmp_path / "file" / "cache")["not_writable"] == os.strerror(errno.ENOTDIR)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    facts = machine.describe_directory(tmp_path)
    assert (facts["not_writable"], facts["megabytes_per_second"]) == (None, None)

    def refuse(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert machine.describe_directory(tmp_path)["not_writable"] == "Read-only file system"


def test_no_connection_is_tried_where_the_environment_forbids_it(monkeypatch):
    monkeypatch.setattr(machine.socket, "create_connection", lambda *a: pytest.fail("connected"))
    monkeypatch.setattr(machine, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert machine.describe_internet() == {"host": "huggingface.co", **OFFLINE}


def test_a_proxy_is_what_must_be_reached_and_its_password_stays_secret(monkeypatch):
    for variable in ("VID3D_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    tried = []
    monkeypatch.setattr(
        machine.socket, "create_connection", lambda target, seconds: tried.append(target) or socket.socket()
    )
    monkeypatch.setattr(machine, "getproxies", lambda: {"https": "http://me:secret@proxy:8080"})
    assert machine.describe_internet() == {"host": "proxy", "answer": "reached"}
    assert tried == [("proxy", 8080)]


def test_a_cgroup_limits_cores_and_memory(monkeypatch):
    files = {"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/job/cpu.max": "250000 100000\n"}
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert (machine._cpu_limit(), machine.describe_system()["memory_limit_bytes"]) == (2.5, None)
    files["/sys/fs/cgroup/memory.max"] = "1073741824\n"
    assert machine.describe_system()["memory_limit_bytes"] == 1 << 30
    files["/sys/fs/cgroup/job/cpu.max"] = "max 100000\n"
    assert machine._cpu_limit() is None


# The command ---------------------------------------------------------------------------------------------------------

PASSED = {
    "check": "network",
    "device": "cuda:0",
    "precision": "bf16",
    "passed": True,
    "runtime": "torch",
    "error": None,
}
PASSED |= {"difference": 0.004, "cosine": 0.99999, "same_top1": True}
SPEED = {"model": "i3d.kinetics400", "runtime": "torch on H100", "precision": "bf16", "bound": "flow"}
SPEED |= {"frames_per_second": {"network": 9000.0, "reading": 300.0}}


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """A machine without faults whose parts tests replace: faked["torch"], faked["check"], faked["speed"]."""
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VID3D_CACHE", str(home / "cache"))
    monkeypatch.setattr(machine, "WRITTEN_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "describe_internet", lambda: GOOD["internet"])
    monkeypatch.setattr(machine, "describe_system", lambda: GOOD["system"])
    monkeypatch.setattr(machine, "describe_install", lambda: GOOD["install"] | {"path": str(home / "vid3d_cli")})
    monkeypatch.setattr(machine, "SHORT_BYTES", 0)
    monkeypatch.setattr(doctor, "check_video", lambda: [doctor._check("video", "auto", None)])
    answers = {"torch": GOOD["torch"] | {"devices": ["cuda:0"], "problems": []}, "check": PASSED, "speed": SPEED}

    def run(module, *words):
        answer = answers["torch" if not words else "check" if module == "runtimes.selftest" else "speed"]
        if isinstance(answer, Exception):
            raise answer
        return [json.dumps(answer)]

    monkeypatch.setattr(doctor, "_run", run)
    return answers


def test_a_sound_machine_is_one_object_without_names(vid3d, faked):
    result = vid3d("doctor")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert list(report)[-4:] == ["selftest", "speed", "problems", "works"]
    assert (report["problems"], report["works"]) == ([], True)
    assert report["selftest"][0] == PASSED
    assert (report["cache"]["path"], report["install"]["path"]) == ("~/cache", "~/vid3d_cli")
    assert "alice" not in result.stdout
    assert "about a minute" in result.stderr


def test_names_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/al")
    given = {"a": ["/home/al/x: not found", "/home/alf/x", "/scratch/al/cache", "/opt/all"], "b": 1}
    assert doctor._without_names(given) == {
        "a": ["~/x: not found", "/home/alf/x", "/scratch/USER/cache", "/opt/all"],
        "b": 1,
    }
    monkeypatch.setenv("HOME", "/")  # as in some containers
    assert doctor._without_names("/opt/all") == "/opt/all"


def test_wrong_numbers_are_exit_code_1(vid3d, faked):
    faked["check"] = PASSED | {"passed": False, "difference": 0.7, "same_top1": False}
    result = vid3d("doctor", "--format", "table")
    assert result.exit_code == 1
    printed = " ".join(result.stdout.split())
    assert "network bf16 cuda:0 torch 7.0e-01 0.999990 other ✗ failed" in printed
    assert (
        "✗ network bf16 on cuda:0 torch: the outputs differ from float32 on the CPU → use --precision fp32" in printed
    )
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(("is_wrong", "code"), [(False, 0), (True, 1)])
def test_a_gpu_that_cannot_be_used_fails_only_where_it_gives_wrong_numbers(vid3d, faked, is_wrong, code):
    problem = {
        "what": "the driver 470 is too old",
        "fix": "update it",
        "device": "cuda:0",
        "gives_wrong_numbers": is_wrong,
    }
    faked["torch"] = GOOD["torch"] | {"problems": [problem]}
    result = vid3d("doctor", "--format", "table")
    assert result.exit_code == code
    mark = "✗" if is_wrong else "!"
    assert f"{mark} cuda:0: the driver 470 is too old → update it" in " ".join(result.stdout.split())


def test_a_crashing_part_ends_nothing(vid3d, faked, monkeypatch):
    faked["torch"] = doctor._Failed("killed by SIGSEGV", [])
    faked["speed"] = doctor._Failed("out of memory", [])
    monkeypatch.setattr(machine, "describe_video", lambda: 1 / 0)
    result = vid3d("doctor")
    report = json.loads(result.stdout)
    assert result.exit_code == 1  # without torch nothing works
    assert [(problem["what"], problem["fails"]) for problem in report["problems"]] == [
        ("the check of video failed: ZeroDivisionError: division by zero", False),
        ("the check of torch failed: killed by SIGSEGV", True),
        ("the check of speed failed: out of memory", False),
    ]
    assert "not known" not in result.stdout
    assert vid3d("doctor", "--format", "table").exit_code == 1


@pytest.mark.exhaustive
def test_this_machine_passes(vid3d, monkeypatch, tmp_path):
    monkeypatch.setenv("VID3D_CACHE", str(tmp_path / "cache"))
    result = vid3d("doctor")
    report = json.loads(result.stdout)
    assert result.exit_code == 0, report["problems"]
    assert {check["check"] for check in report["selftest"]} >= {"network", "convolution", "video"}
    assert all(check["passed"] for check in report["selftest"])
    assert report["speed"]["bound"]
