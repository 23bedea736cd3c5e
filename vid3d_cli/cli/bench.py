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
from .console import log, stdout_is_terminal
from .options import takes_pipeline_options

if TYPE_CHECKING:
    from ..records import Clip
    from ..run.pipeline import Pipeline
    from ..timings import StageSeconds

NUM_FRAMES_READ = 256
NETWORK_SECONDS = 5.0
"""The network runs again and again until so much is measured; the run before these is not counted."""

BF16_PAYS = 1.3
"""Advise bf16 where matrix products are so many times as fast as in fp32."""


@takes_pipeline_options
def bench(
    options: Options,
    video: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="Read this one.", show_default="a rendered film of 320×240 px"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; the default in a pipe.")] = False,
) -> None:
    """Measure for half a minute what bounds a run here, decoding, resizing, flow or the network, and say what helps.

    Takes the options of classify and extract, and shows what they change. Weights that are not on disk are not
    downloaded: random ones take the same time.

    Example: vid3d bench
    """
    from ..records import to_json
    from ..run.pipeline import Pipeline

    with tempfile.TemporaryDirectory() as directory:
        options, random_streams = _with_random_weights(options, Path(directory))
        pipeline = Pipeline(options)
        film = _render(Path(directory)) if video is None else video
        report = measure(pipeline, film) | {"random_weights": random_streams}
    report |= {"bound": find_bound(report), "advice": advise(report)}
    if as_json or not stdout_is_terminal():
        typer.echo(to_json(report))
    else:
        _print_report(report)


def _with_random_weights(options: Options, directory: Path) -> tuple[Options, list[str]]:
    """The same with untrained checkpoints for the streams whose weights are not on disk, and which these are."""
    from ..models.manifest import find_model
    from ..models.weights import is_on_disk
    from ..runtimes.speed import save_random_weights

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

    render(directory / "film.mp4")
    return str(directory / "film.mp4")


@dataclass(frozen=True)
class _Reading:
    """What was read of a video while no network was working."""

    clips: list[Clip]
    """A batch."""
    num_frames: int
    seconds: float
    spent: StageSeconds


def measure(pipeline: Pipeline, video: str) -> dict[str, Any]:
    """Measure the parts of a run, one after the other, as plain values."""
    from ..run.threads import count_cores
    from ..runtimes import has_openvino

    log.info("measuring the machine and %s; this takes about half a minute", pipeline.entry.name)
    runtime = pipeline.runtime
    reading = _read(pipeline, video, runtime.batch_size)
    plan = pipeline.dense_plan
    num_new_frames = pipeline.stride if plan is None else plan.length / plan.times_computed
    clip_seconds = _run_network(pipeline, reading.clips)
    stages = {stage: getattr(reading.spent, stage) for stage in ("decode", "resize", "flow")}
    rates = {"reading": reading.num_frames / reading.seconds, "network": num_new_frames / clip_seconds}
    return {
        "model": pipeline.entry.name,
        "streams": list(pipeline.streams),
        "window": pipeline.window,
        "stride": pipeline.stride,
        "cores": count_cores(),
        "runtime": runtime.description,
        "precision": runtime.precision,
        "batch_size": runtime.batch_size,
        "matrix_gflops": _matrix_rates(pipeline, runtime.precision),
        "ms_per_frame": {stage: 1000 * seconds / reading.num_frames for stage, seconds in stages.items()},
        "network_seconds_per_clip": clip_seconds,
        "network_gflops": _network_gflops(pipeline, clip_seconds),
        "has_openvino": has_openvino(),
        "dense_pays": _dense_pays(pipeline),
        "frames_per_second": rates | {"together": together(**rates, share_cores=runtime.description.endswith("cpu"))},
    }


def _read(pipeline: Pipeline, video: str, num_clips: int) -> _Reading:
    from ..run.threads import count_cores, one_opencv_thread
    from ..timings import StageSeconds
    from ..workers import Workers

    spent = StageSeconds()
    clips: list[Clip] = []
    started = time.perf_counter()
    with (
        one_opencv_thread(),
        Workers(count_cores(), spent) as workers,
        pipeline.open_clips(video, workers) as reader,
    ):
        for clip in reader:
            if len(clips) < num_clips:
                clips.append(clip)
            if reader.num_frames >= NUM_FRAMES_READ:
                break
        seconds = time.perf_counter() - started
    # A short film gives fewer; the network is measured on a whole batch all the same.
    return _Reading(list(islice(cycle(clips), num_clips)), reader.num_frames, seconds, spent)


def _run_network(pipeline: Pipeline, clips: list[Clip]) -> float:
    """Median seconds a clip, where as many batches are in work as in a run."""
    runtime = pipeline.runtime
    started = deque(runtime.start(clips) for _ in range(runtime.num_in_flight))  # converts, compiles, allocates
    seconds: list[float] = []
    while sum(seconds) < NETWORK_SECONDS:
        since = time.perf_counter()
        for _ in range(runtime.num_in_flight):
            started.popleft()()
            started.append(runtime.start(clips))
        seconds.append(time.perf_counter() - since)
    return statistics.median(seconds) / runtime.num_in_flight / len(clips)


def _matrix_rates(pipeline: Pipeline, precision: str) -> dict[str, float]:
    from ..runtimes.speed import matrix_product_rate
    from ..runtimes.torch import select_devices

    precisions = dict.fromkeys(["fp32", "bf16", precision])
    devices = select_devices(pipeline.device)
    return {name: sum(matrix_product_rate(str(d), name) for d in devices) / 1e9 for name in precisions}


def _network_gflops(pipeline: Pipeline, clip_seconds: float) -> float | None:
    """What all streams compute in a second; None where a clip is not of the model's usual form."""
    entry, options = pipeline.entry, pipeline.options
    if pipeline.window != entry.clip_length or options.crops > 1 or options.resize_only or options.dense:
        return None
    return sum(2 * entry.streams[stream].multiply_adds for stream in pipeline.streams) / clip_seconds / 1e9


def _dense_pays(pipeline: Pipeline) -> bool:
    """Whether these windows would need less work in a dense run."""
    from ..run.pipeline import Pipeline

    try:
        plan = Pipeline(replace(pipeline.options, dense=True)).dense_plan
    except UsageError:
        return False
    return not pipeline.options.dense and plan is not None and plan.pays


def together(reading: float, network: float, *, share_cores: bool) -> float:
    """Frames a second where readers and the network work at the same time, from what each does alone.

    On a CPU both keep all cores busy, and their times add up; beside a GPU the slower one counts.
    """
    return 1 / (1 / reading + 1 / network) if share_cores else min(reading, network)


def find_bound(report: Mapping[str, Any]) -> str:
    """What most of the time goes to: "network", or the slowest stage of reading."""
    rates, stages = report["frames_per_second"], report["ms_per_frame"]
    return "network" if rates["network"] <= rates["reading"] else max(stages, key=stages.__getitem__)


def advise(report: Mapping[str, Any]) -> list[str]:
    """What to type to go faster, the most helpful first."""
    bound, products = find_bound(report), report["matrix_gflops"]
    has_flow = "flow" in report["streams"]
    tips = []
    is_cpu = report["runtime"].endswith("cpu")
    if bound == "network":
        if is_cpu and report["runtime"].startswith("torch"):
            how = "--runtime openvino" if report["has_openvino"] else "pip install 'vid3d[openvino]'"
            tips.append(f"{how}: made for CPUs, and quicker")
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
        tips.append("--flow dis-ultrafast: about half the time of the default, and less exact")
        tips.append("--streams rgb: no flow")
    else:
        tips.append("smaller videos: frames are resized for the network anyway")
        if has_flow:
            tips.append("--streams rgb: no flow")
    return tips


def _print_report(report: Mapping[str, Any]) -> None:
    from .tables import make_console, make_table

    console = make_console()
    weights = f", random {' and '.join(report['random_weights'])} weights" if report["random_weights"] else ""
    title = f"{report['model']}, {' + '.join(report['streams'])}{weights}"
    table = make_table("part", "ms a frame", "frames/s", title=title, narrow=["ms a frame", "frames/s"])
    for stage, milliseconds in report["ms_per_frame"].items():
        table.add_row(f"{stage}, one thread", f"{milliseconds:.2f}", "")
    rates = report["frames_per_second"]
    table.add_row(f"reading, {report['cores']} cores", "", f"{rates['reading']:.0f}")
    clip = f"{report['network_seconds_per_clip']:.2f} s a clip"
    table.add_row(f"network, {report['runtime']}, {report['precision']}, {clip}", "", f"{rates['network']:.0f}")
    table.add_row("together", "", f"{rates['together']:.0f}")
    console.print(table)
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in report["matrix_gflops"].items())
    network = f"; the network: {report['network_gflops']:.0f}" if report["network_gflops"] else ""
    console.print(f"GFLOP/s of matrix products: {products}{network}")
    console.print(f"\n{_describe_bound(report)}")
    for tip in report["advice"]:
        console.print(f"  {tip}")


def _describe_bound(report: Mapping[str, Any]) -> str:
    rates, bound = report["frames_per_second"], report["bound"]
    slower, quicker = sorted([rates["network"], rates["reading"]])
    what = "the network" if bound == "network" else f"reading, {bound} most of all"
    more = " To go faster:" if report["advice"] else ""
    return f"Bound by {what}: {slower:.0f} frames/s where the rest could do {quicker:.0f}.{more}"
