"""`vid3d bench`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..options import Options
from .batch import fetch_weights, make_plan
from .console import log
from .formats import ObjectFormat, print_record
from .options import takes_options

if TYPE_CHECKING:
    from ..plan import Plan
    from ..records import Clip
    from ..run.load import Networks
    from ..timings import StageSeconds

NUM_FRAMES_READ = 256
NETWORK_SECONDS = 5.0
"""The network runs for this long; its first run is not counted."""

BF16_PAYS = 1.3
"""Advise bf16 if matrix products are this many times as fast as in fp32."""


@takes_options
def bench(
    options: Options,
    video: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="Video to read.", show_default="a rendered video of 320×240 px"),
    ] = None,
    form: ObjectFormat = None,
) -> None:
    """Measure for half a minute what limits a run on this machine, and suggest what makes it faster.

    It takes the options of classify and extract to show their effect. It downloads no weights: random weights take the
    same time.

    Example: vid3d bench
    """
    log.info("measuring the machine and %s; this takes about half a minute", options.model)
    with tempfile.TemporaryDirectory() as directory:
        options, random_streams = _with_random_weights(options, Path(directory))
        plan = make_plan(options)
        path = _render(Path(directory)) if video is None else video
        report = measure(plan, path) | {"random_weights": random_streams}
    report |= {"bound": find_bound(report), "advice": advise(report)}
    print_record(report, form, _print_report)


def _with_random_weights(options: Options, directory: Path) -> tuple[Options, list[str]]:
    """Return the options with random checkpoints for streams without weights on disk, and their names."""
    from ..models.manifest import find_model
    from ..models.weights import is_on_disk
    from ..runtimes.estimate import save_random_weights

    entry = find_model(options.model)
    weights, random_streams = dict(options.weights), []
    for name, stream in entry.streams.items():
        is_there = name in weights or (stream.weights is not None and is_on_disk(stream.weights))
        if options.streams in (name, "both") and not is_there:
            path = weights[name] = directory / f"{name}.safetensors"
            save_random_weights(path, entry.backbone, name, options.variant or entry.variant)
            random_streams.append(name)
    return replace(options, weights=weights), random_streams


def _render(directory: Path) -> str:
    from ..video.demo import render

    render(directory / "video.mp4")
    return str(directory / "video.mp4")


@dataclass(frozen=True)
class _Reading:
    """Clips and timings of a video that was read while no network ran."""

    clips: list[Clip]
    """One batch."""
    num_frames: int
    seconds: float
    spent: StageSeconds


def measure(plan: Plan, video: str) -> dict[str, Any]:
    """Measure the parts of a run one after the other; return plain values."""
    from ..run.load import load
    from ..run.threads import count_cores
    from ..runtimes import has_openvino

    networks = load(plan, fetch_weights)
    runtime, dense = networks.runtime, plan.dense_plan
    reading = _read(plan, video, runtime.batch_size)
    num_new_frames = plan.stride if dense is None else dense.length / dense.times_computed
    clip_seconds = _run_network(networks, reading.clips)
    stages = {stage: getattr(reading.spent, stage) for stage in ("decode", "resize", "flow")}
    rates = {"reading": reading.num_frames / reading.seconds, "network": num_new_frames / clip_seconds}
    return {
        "model": plan.model,
        "streams": list(plan.networks),
        "window": plan.window,
        "stride": plan.stride,
        "cores": count_cores(),
        "runtime": runtime.description,
        "precision": runtime.precision,
        "batch_size": runtime.batch_size,
        "matrix_gflops": _matrix_rates(plan, runtime.precision),
        "ms_per_frame": {stage: 1000 * seconds / reading.num_frames for stage, seconds in stages.items()},
        "network_seconds_per_clip": clip_seconds,
        "network_gflops": _network_gflops(plan, clip_seconds),
        "has_openvino": has_openvino(),
        "dense_pays": _dense_pays(plan),
        "frames_per_second": rates | {"together": together(**rates, share_cores=runtime.description.endswith("cpu"))},
    }


def _read(plan: Plan, video: str, num_clips: int) -> _Reading:
    from ..run.reader import open_clips
    from ..run.threads import count_cores, one_opencv_thread
    from ..timings import StageSeconds
    from ..video.process import TIMEOUT_SECONDS, Decoders
    from ..workers import Workers

    spent = StageSeconds()
    clips: list[Clip] = []
    started = time.perf_counter()
    with (
        one_opencv_thread(),
        Workers(count_cores(), spent) as workers,
        Decoders(TIMEOUT_SECONDS, allow_playlists=plan.allow_playlists) as decoders,
        open_clips(plan, video, workers, decoders) as reader,
    ):
        for clip in reader:
            if len(clips) < num_clips:
                clips.append(clip)
            if reader.num_frames >= NUM_FRAMES_READ:
                break
        seconds = time.perf_counter() - started
    # A short video gives too few clips; repeat them, to measure the network on a full batch.
    return _Reading(list(islice(cycle(clips), num_clips)), reader.num_frames, seconds, spent)


def _run_network(networks: Networks, clips: list[Clip]) -> float:
    """Return the median seconds per clip, with as many batches in flight as in a run."""
    runtime = networks.runtime
    started = deque(runtime.start(clips) for _ in range(runtime.num_in_flight))  # converts, compiles, allocates
    seconds: list[float] = []
    while sum(seconds) < NETWORK_SECONDS:
        since = time.perf_counter()
        for _ in range(runtime.num_in_flight):
            started.popleft()()
            started.append(runtime.start(clips))
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds) / runtime.num_in_flight / len(clips)


def _matrix_rates(plan: Plan, precision: str) -> dict[str, float]:
    from ..runtimes.devices import select_devices
    from ..runtimes.estimate import matrix_product_rate

    precisions = dict.fromkeys(["fp32", "bf16", precision])
    devices = select_devices(plan.network_device)
    return {name: sum(matrix_product_rate(str(d), name) for d in devices) / 1e9 for name in precisions}


def _network_gflops(plan: Plan, clip_seconds: float) -> float | None:
    """Return the GFLOP/s of all streams; None if the clips differ from the model's own."""
    from ..models.manifest import find_model

    entry = find_model(plan.model)
    if plan.window != entry.clip_length or plan.crops > 1 or plan.resize_only or plan.dense:
        return None
    return sum(2 * entry.streams[stream].multiply_adds for stream in plan.networks) / clip_seconds / 1e9


def _dense_pays(plan: Plan) -> bool:
    """Whether these windows would need less work in a dense run."""
    try:
        dense = replace(plan, dense=True).dense_plan
    except UsageError:
        return False
    return not plan.dense and dense is not None and dense.pays


def together(reading: float, network: float, *, share_cores: bool) -> float:
    """Return the frames per second when reading and the network run at the same time, given the rate of each alone.

    On a CPU both use all cores, so their times add up; with a GPU the slower one counts.
    """
    return 1 / (1 / reading + 1 / network) if share_cores else min(reading, network)


def find_bound(report: Mapping[str, Any]) -> str:
    """Return the bottleneck: "network", or the slowest stage of reading."""
    rates, stages = report["frames_per_second"], report["ms_per_frame"]
    return "network" if rates["network"] <= rates["reading"] else max(stages, key=stages.__getitem__)


def advise(report: Mapping[str, Any]) -> list[str]:
    """Return options and commands that make a run faster, the most helpful first."""
    bound, products = find_bound(report), report["matrix_gflops"]
    has_flow = "flow" in report["streams"]
    tips = []
    is_cpu = report["runtime"].endswith("cpu")
    if bound == "network":
        if is_cpu and report["runtime"].startswith("torch"):
            how = "--runtime openvino" if report["has_openvino"] else "pip install 'vid3d[openvino]'"
            tips.append(f"{how}: faster on CPUs")
        if report["precision"] == "fp32" and products["bf16"] > BF16_PAYS * products["fp32"]:
            ratio = products["bf16"] / products["fp32"]
            tips.append(f"--precision bf16: matrix products are {ratio:.1f} × as fast here")
        if is_cpu:
            tips.append("--device cuda: on a machine that has a GPU")
        if report["dense_pays"]:
            tips.append("--dense: overlapping windows share one pass of the network")
        if len(report["streams"]) == 2:
            tips.append("--streams rgb: one network instead of two, and no flow")
    elif bound == "flow":
        tips.append("--flow dis-ultrafast: half the time of the default, and less exact")
        tips.append("--streams rgb: no flow")
    else:
        tips.append("store smaller videos: frames are resized for the network anyway")
        if has_flow:
            tips.append("--streams rgb: no flow")
    return tips


def _print_report(report: Mapping[str, Any]) -> None:
    from .tables import make_console, make_table

    console = make_console()
    weights = f", random {' and '.join(report['random_weights'])} weights" if report["random_weights"] else ""
    title = f"{report['model']}, {' + '.join(report['streams'])}{weights}"
    table = make_table("part", "ms/frame", "frames/s", title=title, narrow=["ms/frame", "frames/s"])
    for stage, milliseconds in report["ms_per_frame"].items():
        table.add_row(f"{stage}, one thread", f"{milliseconds:.2f}", "")
    rates = report["frames_per_second"]
    table.add_row(f"reading, {report['cores']} cores", "", f"{rates['reading']:.0f}")
    clip = f"{report['network_seconds_per_clip']:.2f} s per clip"
    table.add_row(f"network, {report['runtime']}, {report['precision']}, {clip}", "", f"{rates['network']:.0f}")
    table.add_row("together", "", f"{rates['together']:.0f}")
    console.print(table)
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in report["matrix_gflops"].items())
    network = f"; of this network: {report['network_gflops']:.0f}" if report["network_gflops"] else ""
    console.print(f"GFLOP/s of large matrix products, the most that a network can reach: {products}{network}")
    console.print(f"\n{_describe_bound(report)}")
    for tip in report["advice"]:
        console.print(f"  {tip}")


def _describe_bound(report: Mapping[str, Any]) -> str:
    rates, bound = report["frames_per_second"], report["bound"]
    slower, quicker = sorted([rates["network"], rates["reading"]])
    what = "the network" if bound == "network" else f"reading, mostly {bound}"
    more = " To go faster:" if report["advice"] else ""
    return f"Limited by {what}: {slower:.0f} frames/s; the rest reaches {quicker:.0f}.{more}"
