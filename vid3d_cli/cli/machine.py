"""Facts about this machine for `vid3d doctor`, without torch, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..offline import is_on
from ..version import __version__

WRITTEN_BYTES = 64 << 20
"""Size of the file that measures a disk."""

SHORT_GB = 2.0
"""Less free space is a problem: a checkpoint has up to 240 MB, a converted network as much."""

FEW_FILES = 512
CONNECT_SECONDS = 3.0

DECODERS = {
    **{name: (name,) for name in ("h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg2video", "mjpeg", "prores", "wmv3")},
    "av1": ("libdav1d", "libaom-av1"),  # FFmpeg's own decoder needs hardware
}
"""The codecs that videos usually have, and FFmpeg's decoders of each."""


def describe_install() -> dict[str, Any]:
    """Return vid3d's version and place, Python and the packages that vid3d and its extras need; None: not installed."""
    lines = [line for line in requires("vid3d") or [] if not re.search("extra == .(test|dev)", line)]
    return {
        "vid3d": __version__,
        "path": str(Path(__file__).parents[1]),
        "python": f"{platform.python_version()}, {sys.executable}",
        "packages": {name: _version(name) for name in sorted({re.split("[^A-Za-z0-9-]", line)[0] for line in lines})},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_system() -> dict[str, Any]:
    """Return the operating system, CPU, memory, and what limits a process; None: no limit."""
    from ..run.threads import count_cores

    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*: (.*)", info.read_text() if info.exists() else "", re.MULTILINE)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": count_cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "open_files": None if files == resource.RLIM_INFINITY else files,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def describe_video() -> dict[str, Any]:
    """Return the versions of PyAV and FFmpeg, the codecs that decode here or do not, and decoders on hardware."""
    import av
    from av.codec import hwaccel

    decoded = [name for name, decoders in DECODERS.items() if av.codecs_available & set(decoders)]
    return {
        "ffmpeg": av.ffmpeg_version_info,
        "decodes": decoded,
        "missing": [name for name in DECODERS if name not in decoded],
        "hardware": hwaccel.hwdevices_available(),
    }


def describe_cache() -> dict[str, Any]:
    """Return the facts of the cache directory, and the weights in it."""
    from ..models.digests import cache_dir
    from ..models.manifest import model_entries
    from ..models.weights import is_on_disk, weights_path

    files = [stream.weights for entry in model_entries().values() for stream in entry.streams.values()]
    weights = [file.name for file in files if file and is_on_disk(file) and weights_path(file).exists()]
    return describe_directory(cache_dir()) | {"weights": weights}


def describe_directory(path: Path) -> dict[str, Any]:
    """Return free space, and the speed at which a file is written: of the directory, or of the one it would be made in.

    The speed is None if nothing can be written or space is short.
    """
    place = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # noqa: PTH110  (no PermissionError)
    free = shutil.disk_usage(place).free
    facts: dict[str, Any] = {
        "path": str(path),
        "free_gb": round(free / 1e9, 1),
        "megabytes_per_second": None,
        "not_writable": None,
    }
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
    """Return the host that models are downloaded from, and "reached" or why it cannot be reached."""
    from urllib.request import Request, urlopen

    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    answer = next((f"off by {name}" for name in ("VID3D_OFFLINE", "HF_HUB_OFFLINE") if is_on(name)), "")
    try:
        if not answer:
            urlopen(Request(address, method="HEAD"), timeout=CONNECT_SECONDS).close()  # by the proxy, if there is one
    except OSError as error:
        answer = str(getattr(error, "reason", error))
    return {"host": urlsplit(address).hostname or "", "answer": answer or "reached"}


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
        what = f"the {name} directory {facts[name].get('path')}"
        if reason := facts[name].get("not_writable"):
            yield f"{what} cannot be written: {reason}", f"set {variable} to another directory"
        elif (free := facts[name].get("free_gb", SHORT_GB)) < SHORT_GB:
            yield f"{what} has only {free} GB left", f"free some space, or set {variable} to another directory"
    if facts["cache"].get("weights") == [] and internet.get("answer") != "reached":
        what = f"no weights are on disk, and {internet.get('host')} cannot be reached: {internet.get('answer')}"
        yield what, "vid3d weights add NAME FILE, with a file from another machine"
    if (
        facts["torch"].get("devices") == ["cpu"]
        and facts["install"].get("packages", {"openvino": ""})["openvino"] is None
    ):
        yield "OpenVINO is not installed; it runs networks faster on a CPU", "pip install 'vid3d[openvino]'"
    threads, cores = system.get("omp_num_threads") or "", system.get("cores", 1)
    if threads.isdecimal() and 0 < int(threads) < cores:
        yield f"OMP_NUM_THREADS={threads} keeps torch from using all {cores} cores", "unset OMP_NUM_THREADS"
    if (system.get("open_files") or FEW_FILES) < FEW_FILES:
        yield f"a process may open only {system['open_files']} files", "ulimit -n 4096"
