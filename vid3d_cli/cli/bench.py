"""`vid3d bench`."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
    from ..video.process import Decoders
    from ..workers import Workers

READING_SECONDS = 3.0
"""Each part of reading is measured for this long, at least until every reader has given two clips."""

NETWORK_SECONDS = 5.0
"""The network runs for this long; its first run is not counted."""

NUM_RENDERED, MOTION_SECONDS = 4, 1.28
"""Rendered videos, of 256 frames each."""

BF16_PAYS = 1.3
"""Advise bf16 if matrix products are this many times as fast as in fp32."""

TRANSFER_BOUNDS = 0.9
"""With a GPU, handing over clips is the limit if it takes this share of the network's time."""


@takes_options
def bench(
    options: Options,
    video: Annotated[
        str | None,
        typer.Argument(
            metavar="VIDEO", help="Video that all readers read.", show_default="rendered videos of 320×240 px"
        ),
    ] = None,
    form: ObjectFormat = None,
) -> None:
    """Measure for half a minute what limits a run on this machine, and suggest what makes it faster.

    It reads as many videos at a time as a run, in the same processes. It takes the options of classify and extract to
    show their effect. It downloads no weights: random weights take the same time.

    Example: vid3d bench
    """
    log.info("measuring the machine and %s; this takes about half a minute", options.model)
    with tempfile.TemporaryDirectory() as directory:
        options, random_streams = _with_random_weights(options, Path(directory))
        plan = make_plan(options)
        videos = _render(Path(directory)) if video is None else [video]
        report = measure(plan, videos) | {"random_weights": random_streams}
    report |= {"bound": find_bound(report)}
    print_record(report | {"advice": advise(report)}, form, _print_report)


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


def _render(directory: Path) -> list[str]:
    from ..video.demo import render

    paths = [directory / f"{seed}.mp4" for seed in range(NUM_RENDERED)]
    for seed, path in enumerate(paths):
        render(path, seed, motion_seconds=MOTION_SECONDS)
    return [str(path) for path in paths]


def measure(plan: Plan, videos: Sequence[str]) -> dict[str, Any]:
    """Measure the parts of a run one after the other; return plain values. The readers share the videos."""
    from ..run.load import load
    from ..run.threads import count_cores, share_threads
    from ..runtimes import has_openvino

    networks = load(plan, fetch_weights)
    runtime, dense, cores = networks.runtime, plan.dense_plan, count_cores()
    is_cpu = runtime.description.endswith("cpu")
    shares = share_threads(cores, has_gpu=runtime.num_in_flight > 1)
    seconds, clips = _measure_reading(plan, list(islice(cycle(videos), shares.jobs)), shares.workers)
    clip_seconds, start_seconds = _run_network(networks, list(islice(cycle(clips), runtime.batch_size)))
    new_frames = plan.stride if dense is None else dense.length / dense.times_computed
    reading, network = seconds["reading"], clip_seconds / new_frames
    seconds |= {"transfer": start_seconds / new_frames if runtime.num_in_flight > 1 else 0.0, "network": network}
    # On a CPU both use all cores, so their times add up; with a GPU the longer one counts.
    seconds["together"] = together = reading + network if is_cpu else max(reading, network)
    return {
        "model": plan.model,
        "streams": list(plan.networks),
        "window": plan.window,
        "stride": plan.stride,
        "cores": cores,
        "videos_at_a_time": shares.jobs,
        "runtime": runtime.description,
        "precision": runtime.precision,
        "batch_size": runtime.batch_size,
        "matrix_gflops": _matrix_rates(plan, runtime.precision),
        "network_seconds_per_clip": clip_seconds,
        "network_gflops": _network_gflops(plan, clip_seconds),
        "has_openvino": has_openvino(),
        "dense_pays": _dense_pays(plan),
        "frames_per_second": {name: 1 / each if each > 0 else None for name, each in seconds.items()},
        "reading_share": reading / together if is_cpu else None,
        "cores_for_network": None if is_cpu else cores * reading / network,
    }


def _measure_reading(plan: Plan, videos: Sequence[str], num_workers: int) -> tuple[dict[str, float], Sequence[Clip]]:
    """Return the seconds per frame of each stage, and of reading as a whole; and a clip of each video.

    All readers run at the same time: first only decoding, then with one stage more, so that waiting for memory, for
    FFmpeg's threads and for each other counts. A stage that costs no time beside the others may get less than 0.
    """
    from ..video.process import probe

    info = probe(videos[0], decode=False, allow_playlists=plan.allow_playlists)
    without_flow = replace(plan, networks={"rgb": next(iter(plan.networks.values()))})
    size, crop_px = (info.height, info.width), min(plan.crop_px, info.height, info.width)
    only_decoded = replace(without_flow, resize_px=size, crop_px=crop_px, crops="1", resize_only=False, dense=False)
    decode, _ = _read(only_decoded, videos, num_workers)
    resize, clips = _read(without_flow, videos, num_workers)
    reading, clips = _read(plan, videos, num_workers) if "flow" in plan.networks else (resize, clips)

    return {"decode": decode, "resize": resize - decode, "flow": reading - resize, "reading": reading}, clips


def _read(plan: Plan, videos: Sequence[str], num_workers: int) -> tuple[float, Sequence[Clip]]:
    """Read all videos at the same time, again and again; return the seconds per frame, and a clip of each."""
    from ..run.threads import one_opencv_thread
    from ..video.process import TIMEOUT_SECONDS, Decoders
    from ..workers import Workers

    with (
        one_opencv_thread(),
        ThreadPoolExecutor(len(videos)) as pool,
        Workers(num_workers) as workers,
        Decoders(TIMEOUT_SECONDS, allow_playlists=plan.allow_playlists) as decoders,
    ):
        read = [pool.submit(_read_again_and_again, plan, video, workers, decoders) for video in videos]
        rates, clips = zip(*(each.result() for each in read), strict=True)
    return 1 / sum(rates), clips


def _read_again_and_again(plan: Plan, video: str, workers: Workers, decoders: Decoders) -> tuple[float, Clip]:
    from ..run.reader import open_clips

    first: Clip | None = None
    num_before, arrivals = 0, []
    while True:
        with open_clips(plan, video, workers, decoders) as clips:
            for clip in clips:
                first = first or clip
                arrivals.append((time.perf_counter(), num_before + clips.num_frames))
                seconds, num_frames = (end - start for start, end in zip(arrivals[0], arrivals[-1], strict=True))
                if num_frames > 0 and seconds > READING_SECONDS:
                    return num_frames / seconds, first
            num_before += clips.num_frames


def _run_network(networks: Networks, clips: list[Clip]) -> tuple[float, float]:
    """Return the seconds per clip, with as many batches in flight as in a run, and of these to start its batch."""
    runtime = networks.runtime
    started = deque(runtime.start(clips) for _ in range(runtime.num_in_flight))  # converts, compiles, allocates
    rounds: list[tuple[float, float]] = []
    while sum(seconds for seconds, _ in rounds) < NETWORK_SECONDS:
        since, starting = time.perf_counter(), 0.0
        for _ in range(runtime.num_in_flight):
            started.popleft()()
            waited = time.perf_counter()
            started.append(runtime.start(clips))
            starting += time.perf_counter() - waited
        rounds.append((time.perf_counter() - since, starting))
    num_clips = runtime.num_in_flight * len(clips)
    seconds, starting = map(statistics.median, zip(*rounds, strict=True))
    return seconds / num_clips, starting / num_clips


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
    if plan.num_clip_frames != entry.clip_length or len(plan.crop_names) > 1 or plan.resize_only or plan.dense:
        return None
    return sum(2 * entry.streams[stream].multiply_adds for stream in plan.networks) / clip_seconds / 1e9


def _dense_pays(plan: Plan) -> bool:
    """Whether these windows would need less work in a dense run."""
    try:
        dense = replace(plan, dense=True).dense_plan
    except UsageError:
        return False
    return not plan.dense and dense is not None and dense.pays


def find_bound(report: Mapping[str, Any]) -> str:
    """Return the bottleneck: "network", "transfer" of clips to it, or the slowest stage of reading."""
    rates = report["frames_per_second"]
    if rates["network"] > rates["reading"]:
        return min(("decode", "resize", "flow"), key=lambda stage: rates[stage] or math.inf)
    is_handing_over = rates["transfer"] and rates["network"] > TRANSFER_BOUNDS * rates["transfer"]
    return "transfer" if is_handing_over else "network"


def advise(report: Mapping[str, Any]) -> list[str]:
    """Return options and commands that make a run faster, the most helpful first."""
    bound, products = find_bound(report), report["matrix_gflops"]
    is_cpu, tips = report["runtime"].endswith("cpu"), []
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
    elif bound == "transfer":
        tips.append("vid3d extract --shard 1/2 and --shard 2/2: two processes hand over twice as many clips")
    else:
        tips.append("store smaller videos: frames are resized for the network anyway")
        if "flow" in report["streams"]:
            tips.append("--streams rgb: no flow")
    return tips


def _print_report(report: Mapping[str, Any]) -> None:
    from .tables import make_console, make_table

    console = make_console()
    weights = f", random {' and '.join(report['random_weights'])} weights" if report["random_weights"] else ""
    title = f"{report['model']}, {' + '.join(report['streams'])}{weights}"
    table = make_table("part", "frames/s", title=title, narrow=["frames/s"])
    rates, cores = report["frames_per_second"], f"{report['cores']} cores"
    for stage in ("decode", "resize", "flow"):
        if rates[stage]:
            table.add_row(f"{stage} alone, {cores}", f"{rates[stage]:.0f}")
    table.add_row(f"reading, {report['videos_at_a_time']} videos at a time, {cores}", f"{rates['reading']:.0f}")
    if rates["transfer"]:
        table.add_row("transfer of clips to the network", f"{rates['transfer']:.0f}")
    clip = f"{report['network_seconds_per_clip']:.2g} s per clip"
    table.add_row(f"network, {report['runtime']}, {report['precision']}, {clip}", f"{rates['network']:.0f}")
    table.add_row("together, estimated", f"{rates['together']:.0f}")
    console.print(table)
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in report["matrix_gflops"].items())
    network = f"; of this network: {report['network_gflops']:.0f}" if report["network_gflops"] else ""
    console.print(f"GFLOP/s of large matrix products, the most that a network can reach: {products}{network}")
    console.print(f"\n{_describe_bound(report)}{' To go faster:' if report['advice'] else ''}")
    for tip in report["advice"]:
        console.print(f"  {tip}")


def _describe_bound(report: Mapping[str, Any]) -> str:
    rates, bound = report["frames_per_second"], report["bound"]
    what = {"network": "the network", "transfer": "the transfer of clips to the network"}.get(bound, bound)
    if report["reading_share"] is not None:
        why = f"reading takes {report['reading_share']:.0%} of the cores' time, the network the rest"
    elif rates["network"] > rates["reading"]:
        why = f"the network would be the limit from {math.ceil(report['cores_for_network'])} cores on"
    else:
        why = f"{report['cores_for_network']:.1f} cores read fast enough"
    return f"Limited by {what}: {why}."
