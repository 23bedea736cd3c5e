"""`vid3d doctor`: the self-test sees wrong numbers, and faults of a machine are named with what mends them."""

import errno
import json
import os
import sys
import tempfile

import numpy as np
import pytest
import torch
from disks import file_size_limit

import vid3d_cli.cli
from vid3d_cli.cli import doctor, machine
from vid3d_cli.errors import UsageError
from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.runtimes import devices, selftest


def network(precision):
    return selftest.Check("network", "cpu", precision, "torch")


# Self-test -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_embedded_networks_pass_on_the_cpu(precision):
    check = selftest.check_network(network(precision))
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
    check = selftest.check_network(network("fp32"))
    assert check.same_top1
    assert not check.passed


def test_outputs_that_are_not_finite_fail_and_are_valid_json(monkeypatch):
    create = selftest.create_runtime

    def create_broken(models, **options):
        next(models["flow"].parameters()).data[:] = np.nan  # the second stream: Python's max hides a later NaN
        return create(models, **options)

    monkeypatch.setattr(selftest, "create_runtime", create_broken)
    with np.errstate(invalid="ignore"):
        check = selftest.check_network(network("fp32"))
    assert (check.passed, check.error) == (False, "the outputs are not finite")
    json.dumps(selftest.asdict(check), allow_nan=False)


def test_a_wrong_convolution_and_a_wrong_flow_fail(monkeypatch):
    convolution = selftest.Check("convolution", "cpu", "bf16")
    assert selftest.check_convolution(convolution).passed
    convolve = torch.conv3d
    monkeypatch.setattr(torch, "conv3d", lambda x, w, **k: convolve(x, w, **k) * (0.9 if x.dtype != torch.float else 1))
    assert not selftest.check_convolution(convolution).passed

    flows = {"cpu": 2.0, "cuda:0": 2.01, "cuda:1": 2.1, "cuda:2": np.nan}
    monkeypatch.setattr(
        selftest, "tvl1_flow", lambda prev, _, device: np.full((*prev.shape, 2), flows[device], np.float32)
    )
    checks = [selftest.check_tvl1(selftest.Check("tvl1", device)) for device in flows]
    assert [check.passed for check in checks] == [True, True, False, False]


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
    check = selftest.check_out_of_memory(selftest.Check("out of memory", "cpu"))
    assert (check.passed, check.error is None) == (passes, passes)
    assert shares == [0.1, 1.0]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (RuntimeError("CUDA error: an illegal\n memory access"), "use --precision fp32"),
        (UsageError("device 'cuda:0' cannot be used"), "use --precision fp32"),
        (RuntimeError("CUDA out of memory"), "free memory of cuda:0, then repeat vid3d doctor"),
    ],
)
def test_a_check_that_raises_keeps_what_it_checked_and_what_mends_it(monkeypatch, capsys, error, fix):
    def fail(check):
        raise error

    check = selftest.Check("network", "cuda:0", "bf16", "torch", "use --precision fp32")
    monkeypatch.setattr(selftest, "list_checks", lambda device: [(check, fail)])
    monkeypatch.setattr(sys, "argv", ["selftest", "cuda:0"])
    selftest.main()
    started, record = map(json.loads, capsys.readouterr().out.splitlines())
    assert (started["passed"], record["passed"]) == (None, False)
    assert (record["precision"], record["runtime"], record["fix"]) == ("bf16", "torch", fix)
    assert record["error"] == f"{type(error).__name__}: {' '.join(str(error).split())}"


@pytest.mark.parametrize(("capability", "low"), [((6, 1), {"fp16"}), ((7, 0), {"fp16"}), ((8, 0), {"fp16", "bf16"})])
def test_a_gpu_runs_every_check_in_the_precisions_that_it_has(monkeypatch, capability, low):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA")
    monkeypatch.setattr(torch.version, "hip", None)
    checks = [check for check, _ in selftest.list_checks("cuda:1")]
    assert {check.check for check in checks} == {"network", "convolution", "tvl1", "out of memory"}
    assert {check.precision for check in checks} == {"fp32", *low}
    assert all(check.fix and check.runtime != "openvino" for check in checks)


def test_openvino_that_cannot_be_imported_is_a_failed_check(monkeypatch, capsys):
    def fail():
        raise UsageError("openvino cannot be imported (libtbb.so)")

    monkeypatch.setattr(selftest, "has_openvino", lambda: True)
    monkeypatch.setattr(selftest, "import_openvino", fail)
    checks = [check for check, _ in selftest.list_checks("cpu") if check.runtime == "openvino"]
    assert [(check.precision, check.fix) for check in checks] == [("fp32", "use --runtime torch, and report this")]


# Processes -----------------------------------------------------------------------------------------------------------


def run_instead(monkeypatch, code):
    monkeypatch.setattr(doctor, "_RUN", code.replace("{", "{{").replace("}", "}}"))


STARTED = """import os; print('{"check": "network", "passed": true}')
print('{"check": "tvl1", "device": "cuda:0", "passed": null}', flush=True); """


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
    assert (first["check"], first["passed"]) == ("network", True)
    assert (second["check"], second["device"], second["passed"], second["error"]) == ("tvl1", "cuda:0", False, why)


def test_a_process_that_prints_may_take_longer_than_one_that_hangs(monkeypatch):
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 2.0)
    run_instead(monkeypatch, "import time\nfor i in range(4): print(i, flush=True); time.sleep(0.8)")
    assert doctor._run("x") == ["0", "1", "2", "3"]


def test_a_process_that_cannot_be_killed_is_waited_for_only_shortly(monkeypatch):
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "KILL_SECONDS", 0.1)
    kill = doctor.Popen.kill
    stuck = []
    monkeypatch.setattr(doctor.Popen, "kill", lambda self: stuck.append(self))
    run_instead(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(doctor._Failed, match="no answer"):
        doctor._run("x")
    kill(stuck[0])
    stuck[0].communicate()


def test_no_process_at_all_is_a_failed_check(monkeypatch):
    def refuse(*args, **options):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(doctor, "Popen", refuse)
    (check,) = doctor.check_device("cpu")
    assert check["fix"] == "use another --device, and report this"
    assert (check["passed"], check["error"]) == (False, f"no process can be started: {os.strerror(errno.EAGAIN)}")


# Faults of machines --------------------------------------------------------------------------------------------------

GOOD = {
    "install": {"path": "/home/alice/vid3d_cli", "packages": {"openvino": "2026.1"}},
    "system": {"cores": 16, "omp_num_threads": None, "open_files": 1024},
    "video": {"missing": []},
    "cache": {"path": "/home/alice/c", "free_gb": 900.0, "not_writable": None, "weights": ["i3d:rgb"]},
    "temporary": {"path": "/tmp", "free_gb": 900.0, "not_writable": None},
    "internet": {"host": "huggingface.co", "answer": "reached"},
    "torch": {"devices": ["cpu"], "gpus": {}},
}
OFFLINE = {"answer": "off by HF_HUB_OFFLINE"}


@pytest.mark.parametrize(
    ("part", "changes", "what", "fix"),
    [
        ("video", {"missing": ["h264"]}, "PyAV cannot decode h264", "pip install"),
        ("cache", {"not_writable": "Read-only file system"}, "cannot be written: Read-only", "set VID3D_CACHE"),
        ("cache", {"free_gb": 0.1}, "has only 0.1 GB left", "free some space, or set VID3D_CACHE"),
        ("temporary", {"not_writable": "No space left on device"}, "directory /tmp cannot be written", "set TMPDIR"),
        ("install", {"packages": {"openvino": None}}, "OpenVINO", "pip install 'vid3d[openvino]'"),
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
    assert facts["free_gb"] > 0
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


def test_the_internet_is_asked_only_where_the_environment_allows_it(monkeypatch):
    for variable in ("VID3D_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    facts = machine.describe_internet()
    assert facts["host"] == "127.0.0.1"
    assert "reached" not in facts["answer"]
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("connected"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert machine.describe_internet() == {"host": "127.0.0.1", **OFFLINE}


def test_no_limit_of_open_files_is_null(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (machine.resource.RLIM_INFINITY,) * 2)
    assert machine.describe_system()["open_files"] is None


# The command ---------------------------------------------------------------------------------------------------------

PASSED = {
    "check": "network",
    "device": "cuda:0",
    "precision": "bf16",
    "passed": True,
    "runtime": "torch",
    "fix": "use --precision fp32, and report this",
    "error": None,
}
PASSED |= {"difference": 0.004, "cosine": 0.99999, "same_top1": True}
SPEED = {"model": "i3d.kinetics400", "runtime": "torch on H100", "precision": "bf16", "bound": "flow"}
SPEED |= {
    "frames_per_second": {"flow": None, "network": 9000.0, "reading": 300.0},
    "advice": ["--streams rgb: no flow"],
}


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
    monkeypatch.setattr(machine, "SHORT_GB", 0)
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
    monkeypatch.setenv("SUDO_USER", "bob")
    hidden = {
        "/home/al/x: not found": "~/x: not found",
        "/home/alf/x": "/home/alf/x",
        "/scratch/al-data/x": "/scratch/USER-data/x",
        "/data/bob": "/data/USER",
        "/opt/all": "/opt/all",
    }
    assert doctor._without_names({"a": list(hidden), "b": 1}) == {"a": list(hidden.values()), "b": 1}
    monkeypatch.setenv("HOME", "/")  # as in some containers
    assert doctor._without_names("/opt/all") == "/opt/all"


def test_wrong_numbers_are_exit_code_1(vid3d, faked):
    faked["check"] = PASSED | {"passed": False, "difference": 0.7, "same_top1": False}
    result = vid3d("doctor", "--format", "table")
    assert result.exit_code == 1
    printed = " ".join(result.stdout.split())
    assert "network bf16 cuda:0 torch 7.0e-01 0.999990 other ✗ failed" in printed
    what = "✗ network bf16 on cuda:0 torch: the outputs differ from float32 on the CPU: do not trust its results"
    assert f"{what} → use --precision fp32" in printed
    assert "bf16: network 9000, reading 300 Limited by: flow. To go faster: --streams rgb: no flow" in printed
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_problems_of_gpus_are_plain_values(monkeypatch):
    gpu = torch.device("cuda", 1)
    problems = [devices.Problem("no driver", "install one"), devices.Problem("x", "y", gpu, gives_wrong_numbers=True)]
    monkeypatch.setattr(devices, "find_problems", lambda: problems)
    found = json.loads(json.dumps(selftest.describe_torch()))
    assert "cpu" in found["devices"]
    assert [(problem["device"], problem["gives_wrong_numbers"]) for problem in found["problems"]] == [
        (None, False),
        ("cuda:1", True),
    ]


@pytest.mark.parametrize("error", ["CUDA error: no kernel image is available", "CUDA driver version is insufficient"])
def test_a_broken_gpu_is_a_problem_and_no_device_to_check(monkeypatch, error):
    def fail(*args):
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Broken")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (5, 0))
    monkeypatch.setattr(devices, "_convolve_on", fail)
    found = selftest.describe_torch()
    assert "cuda:0" not in found["devices"]
    assert found["gpus"] == {}
    assert "NVIDIA Broken" in found["problems"][0]["what"]


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


def test_a_bug_asks_for_the_doctor(monkeypatch, capsys):
    def fail(**options):
        raise RuntimeError("x")

    monkeypatch.setattr(vid3d_cli.cli, "app", fail)
    monkeypatch.setattr(vid3d_cli.cli, "_watch_signals", list)
    vid3d_cli.cli.set_verbosity(verbose=False, quiet=False)
    with pytest.raises(SystemExit):
        vid3d_cli.cli.main()
    assert "vid3d doctor --format json" in capsys.readouterr().err
