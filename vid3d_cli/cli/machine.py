"""Facts about this machine for `vid3d doctor`, without torch, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..offline import is_on
from ..version import __version__

WRITTEN_BYTES = 64 << 20
"""Size of the file that measures a disk."""

SHORT_BYTES = 2 << 30
"""Less free space is a problem: a checkpoint has up to 240 MB, a converted network as much."""

FEW_FILES = 512
CONNECT_SECONDS = 3.0

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "av", "safetensors", "huggingface-hub", "rich", "typer")
EXTRAS = ("openvino", "h5py", "pyarrow", "matplotlib", "ray")
"""The packages of vid3d's extras."""

NOT_INSTALLED = "not installed"

DECODERS = {
    **{name: (name,) for name in ("h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg2video", "mjpeg", "prores", "wmv3")},
    "av1": ("libdav1d", "libaom-av1"),  # FFmpeg's own decoder needs hardware
}
"""The codecs that videos usually have, and FFmpeg's decoders of each."""


def describe_install() -> dict[str, Any]:
    """Return vid3d's version and place, Python and its packages."""
    return {
        "vid3d": __version__,
        "path": str(Path(__file__).parents[1]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {name: _version(name) for name in EXTRAS},
    }


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return _version(f"{package}-headless") if package == "opencv-python" else NOT_INSTALLED


def describe_system() -> dict[str, Any]:
    """Return the operating system, CPU, memory in bytes and limits; None for what is not limited or not known."""
    from ..run.threads import count_cores

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"^MemAvailable: +(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    memory_limit = _cgroup("memory.max")
    return {
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": count_cores(),
        "cores_of_machine": os.cpu_count(),
        "cpu_limit": _cpu_limit(),
        "memory_bytes": memory,
        "memory_available_bytes": int(available[1]) * 1024 if available else None,
        "memory_limit_bytes": int(memory_limit) if memory_limit.isdecimal() else None,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    found = re.search(r"^model name\s*: (.*)", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _cpu_limit() -> float | None:
    """Return the cores of a container's quota, by cgroup v2."""
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _cgroup(name: str) -> str:
    """Return a setting of this process's cgroup v2, or of the container's."""
    own = re.search(r"^0::(.*)$", _read("/proc/self/cgroup"), re.MULTILINE)
    places = [f"/sys/fs/cgroup{own[1] if own else ''}", "/sys/fs/cgroup"]
    return next(filter(None, (_read(f"{place}/{name}").strip() for place in places)), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def describe_video() -> dict[str, Any]:
    """Return the versions of PyAV and FFmpeg, the codecs that decode here or do not, and decoders on hardware."""
    import av
    from av.codec import hwaccel

    decoded = [name for name, decoders in DECODERS.items() if av.codecs_available & set(decoders)]
    return {
        "ffmpeg": getattr(av, "ffmpeg_version_info", None),
        "decodes": decoded,
        "missing": [name for name in DECODERS if name not in decoded],
        "hardware": hwaccel.hwdevices_available(),
    }


def describe_cache() -> dict[str, Any]:
    """Return the facts of the cache directory, and the weights in it."""
    from ..models.digests import cache_dir
    from ..models.manifest import model_entries
    from ..models.weights import is_on_disk, weights_path

    files = [
        stream.weights for entry in model_entries().values() for stream in entry.streams.values() if stream.weights
    ]
    weights = [file.name for file in files if is_on_disk(file) and weights_path(file).exists()]
    path = cache_dir()
    size = sum(inner.lstat().st_size for inner in path.rglob("*")) if path.is_dir() else 0
    return describe_directory(path) | {"size_bytes": size, "weights": weights}


def describe_directory(path: Path) -> dict[str, Any]:
    """Return free bytes, and the speed at which a file is written: of the directory, or of the one it would be made in.

    The speed is None if nothing can be written or space is short.
    """
    place = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # noqa: PTH110  (no PermissionError)
    free = shutil.disk_usage(place).free
    facts: dict[str, Any] = {"path": str(path), "free_bytes": free, "megabytes_per_second": None, "not_writable": None}
    is_roomy = free > 4 * WRITTEN_BYTES
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            started = time.perf_counter()
            for _ in range(WRITTEN_BYTES // len(block) if is_roomy else 1):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if is_roomy:
                facts["megabytes_per_second"] = WRITTEN_BYTES / 1e6 / (time.perf_counter() - started)
    except OSError as error:
        facts["not_writable"] = error.strerror
    return facts


def describe_internet() -> dict[str, str]:
    """Return the host that models are downloaded from or through, and "reached" or why it cannot be reached."""
    address = getproxies().get("https") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    target = urlsplit(address if "//" in address else f"//{address}")
    host = target.hostname or address
    for variable in ("VID3D_OFFLINE", "HF_HUB_OFFLINE"):
        if is_on(variable):
            return {"host": host, "answer": f"off by {variable}"}
    answers = [f"no answer in {CONNECT_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, target.port or 443), CONNECT_SECONDS).close()
        except OSError as error:
            answers.append(str(error.strerror or error))
        else:
            answers.append("reached")

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name has no timeout
    thread.start()
    thread.join(CONNECT_SECONDS)
    return {"host": host, "answer": answers[-1]}


def find_problems(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what makes a run slow or stops it, and what to type.

    Args:
        facts: by part: "install", "system", "video", "cache", "temporary", "internet", and torch's "devices"; a part
            that could not be examined lacks its facts.
    """
    system, internet = facts["system"], facts["internet"]
    if missing := facts["video"].get("missing"):
        yield f"PyAV cannot decode {', '.join(missing)}", "pip install --force-reinstall av"
    for name, variable in (("cache", "VID3D_CACHE"), ("temporary", "TMPDIR")):
        directory = facts[name]
        what = f"the {name} directory {directory.get('path')}"
        if reason := directory.get("not_writable"):
            yield f"{what} cannot be written: {reason}", f"set {variable} to another directory"
        elif (free := directory.get("free_bytes", SHORT_BYTES)) < SHORT_BYTES:
            yield (
                f"{what} has only {free / 1e9:.1f} GB left",
                f"free some space, or set {variable} to another directory",
            )
    if not facts["cache"].get("weights") and internet.get("answer") != "reached":
        what = f"no weights are on disk, and {internet.get('host')} cannot be reached: {internet.get('answer')}"
        yield what, "vid3d weights add NAME FILE, with a file from another machine"
    if facts["torch"].get("devices") == ["cpu"] and facts["install"].get("extras", {}).get("openvino") == NOT_INSTALLED:
        yield "OpenVINO is not installed; it runs networks faster on a CPU", "pip install 'vid3d[openvino]'"
    seen = system.get("cores", 1)
    cores = min(seen, system.get("cpu_limit") or seen)
    if cores < seen:
        what = f"this container sees {seen} cores and may use {cores:g}, which makes threads wait"
        yield what, f"use --threads {max(1, int(cores))}"
    threads = system.get("omp_num_threads") or ""
    if threads.isdecimal() and 0 < int(threads) < int(cores):
        yield f"OMP_NUM_THREADS={threads} keeps torch from using all {int(cores)} cores", "unset OMP_NUM_THREADS"
    if 0 < system.get("open_files", FEW_FILES) < FEW_FILES:
        yield f"a process may open only {system['open_files']} files", "ulimit -n 4096"
