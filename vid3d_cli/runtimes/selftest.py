"""Compares what this machine computes with plain float32 on the CPU, for `vid3d doctor`.

    python -m vid3d_cli.runtimes.selftest           prints `describe_torch` as JSON
    python -m vid3d_cli.runtimes.selftest DEVICE    prints JSON lines: {"check": …} as one starts, then its `Check`

The command runs these in processes of their own, which a broken driver may hang or kill.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.backends import cudnn

from ..errors import UsageError
from ..flow.tvl1 import tvl1_flow
from ..models.clip_model import ClipModel, Normalise, create_model
from ..models.manifest import find_model
from ..models.weights import locate
from ..records import STREAMS, Clip, ClipSpan
from . import create_runtime, devices, has_openvino
from .torch import DTYPES

MODEL = "s3d_mini.camera_motion"

MAX_DIFFERENCES = {"fp32": 5e-5, "fp16": 0.01, "bf16": 0.05}
"""Largest difference that is rounding, relative to the largest value. TF32 in place of fp32 makes 1e-4, bf16 0.01."""

MIN_COSINES = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.999}

MAX_FLOW_DIFFERENCE_PX = 0.05
"""Largest mean difference of two TV-L1 flows."""

LARGE_BATCH = 64
"""Clips of a batch that gets only three times the memory of one clip."""


@dataclass(frozen=True)
class Check:
    """One part of the self-test."""

    check: str
    """What was computed: "network", "convolution", "tvl1" or "out of memory"."""
    device: str
    precision: str | None
    passed: bool
    runtime: str | None = None
    """"torch" or "openvino", of a network."""
    difference: float | None = None
    """Largest difference from float32, relative to the largest value; of tvl1 the mean one, in pixels."""
    cosine: float | None = None
    """Smallest cosine of two outputs of a network."""
    same_top1: bool | None = None
    """Whether every clip has the same best class in every stream."""
    error: str | None = None
    """Why nothing was compared."""


def list_checks(device: str) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Yield the name and the function of each check of a device: "cpu", "mps" or "cuda:0".

    The functions raise UsageError if the device does not have the precision.
    """
    is_cpu = device == "cpu"
    low_precisions = ["bf16"] if is_cpu else ["bf16", "fp16"]
    for runtime in ("torch", "openvino") if is_cpu and has_openvino() else ("torch",):
        for precision in ("fp32", *low_precisions):
            yield f"network {precision} {runtime}", partial(check_network, device, runtime, precision)
    for precision in low_precisions:
        yield f"convolution {precision}", partial(check_convolution, device, precision)
    if device.startswith("cuda"):
        yield "tvl1", partial(check_tvl1, device)
        yield "out of memory", partial(check_out_of_memory, device)


def check_network(device: str, runtime: str, precision: str) -> Check:
    """Compare features and logits of both streams with a plain forward pass in float32 on the CPU."""
    clips = make_clips()
    outputs = create_runtime(load_models(), name=runtime, device=device, precision=precision).run(clips)
    compared, same_top1 = [], True
    for stream, model in load_models().items():
        with torch.inference_mode():
            expected = model(torch.from_numpy(np.stack([clip.streams[stream] for clip in clips])))
        logits = np.stack([output.logits[stream] for output in outputs])
        features = np.stack([output.features[stream] for output in outputs])
        compared += [compare(features, expected.features.numpy()), compare(logits, expected.logits.numpy())]
        same_top1 &= bool((logits.argmax(1) == expected.logits.numpy().argmax(1)).all())
    difference, cosine = max(d for d, _ in compared), min(c for _, c in compared)
    passed = same_top1 and all(_is_rounding(*pair, precision) for pair in compared)
    return Check("network", device, precision, passed, runtime, difference, cosine, same_top1)


def check_convolution(device: str, precision: str) -> Check:
    """Compare a convolution of I3D, Conv3d_2c_3x3 on clips of 64 frames of 224² px, with float32 on the same device."""
    devices.select_precision(precision, *devices.select_devices(device))
    shape = (1, 64, 4, 56, 56) if device == "cpu" else (4, 64, 32, 56, 56)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn((192, 64, 3, 3, 3), generator=generator) / (64 * 27) ** 0.5
    x, weight = (tensor.to(device).to(memory_format=torch.channels_last_3d) for tensor in (x, weight))
    dtype = DTYPES[precision]
    with torch.inference_mode(), cudnn.flags(enabled=True, allow_tf32=False):
        expected = torch.conv3d(x, weight, padding=1)
        found = torch.conv3d(x.to(dtype), weight.to(dtype), padding=1)
        difference = float((found.float() - expected).abs().max() / expected.abs().max())
    return Check("convolution", device, precision, difference <= MAX_DIFFERENCES[precision], difference=difference)


def check_tvl1(device: str) -> Check:
    """Compare the TV-L1 flow of a moving texture with that of the CPU."""
    frames = make_clips()[0].streams["rgb"][:4, ..., 0]
    found, expected = (tvl1_flow(frames[:-1], frames[1:], device=where) for where in (device, "cpu"))
    difference = float(np.linalg.norm(found - expected, axis=-1).mean())
    return Check("tvl1", device, "fp32", difference <= MAX_FLOW_DIFFERENCE_PX, difference=difference)  # NaN fails


def check_out_of_memory(device: str) -> Check:
    """Check that a batch too large for the GPU's memory is halved until it fits, and gives the outputs of one clip."""
    clip = make_clips()[0]

    def run(num_clips: int) -> tuple[int, NDArray[np.float32]]:
        models = load_models(["rgb"])
        runtime = create_runtime(models, name="torch", device=device, precision="fp32", batch_size=num_clips)
        outputs = runtime.run([clip] * num_clips)
        return runtime.batch_size, np.stack([output.logits["rgb"] for output in outputs])

    torch.cuda.reset_peak_memory_stats(device)
    _, expected = run(1)
    share = 3 * torch.cuda.max_memory_allocated(device) / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    try:
        batch_size, found = run(LARGE_BATCH)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    difference, cosine = compare(found, expected.repeat(LARGE_BATCH, 0))
    error = None if batch_size < LARGE_BATCH else f"{LARGE_BATCH} clips fitted into the memory of 3"
    passed = error is None and _is_rounding(difference, cosine, "fp32")
    return Check("out of memory", device, "fp32", passed, "torch", difference, cosine, error=error)


def make_clips() -> list[Clip]:
    """Return two seeded clips of both streams: a texture that moves left, and one that moves up."""
    length, side_px = 16, 112
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 40, (side_px // 8, side_px // 8, 3)).repeat(8, 0).repeat(8, 1)
    texture = np.clip(128 + coarse + rng.normal(0, 15, (side_px, side_px, 3)), 0, 255).astype(np.uint8)
    clips: list[Clip] = []
    for axis in (1, 0):
        rgb = np.stack([np.roll(texture, -2 * i, axis) for i in range(length)])
        flow = rng.normal(0, 0.2, (length, side_px, side_px, 2)).astype(np.float32)
        flow[..., 1 - axis] -= 2
        clips.append(Clip(ClipSpan(len(clips), 0, length, 0.0, 1.0), {"rgb": rgb, "flow": flow}))
    return clips


def load_models(streams: Sequence[str] = STREAMS) -> dict[str, ClipModel]:
    """Return the networks that come with vid3d."""
    models = {}
    for stream in streams:
        entry = find_model(MODEL).streams[stream]
        assert entry.weights is not None
        net = create_model(MODEL, stream=stream, weights=locate(entry.weights))
        models[stream] = ClipModel(net, Normalise(entry.normalisation)).eval()
    return models


def compare(found: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference of two arrays (N, K), relative to the largest value, and the smallest cosine."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = ((found * expected).sum(1) / norms).min()
    return float(np.abs(found - expected).max() / np.abs(expected).max()), float(cosine)


def _is_rounding(difference: float, cosine: float, precision: str) -> bool:
    return difference <= MAX_DIFFERENCES[precision] and cosine >= MIN_COSINES[precision]  # NaN is not


def describe_torch() -> dict[str, Any]:
    """Return torch's build, the devices that can be used, the GPUs among them, and why others cannot."""
    usable = [name for name in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), "mps") if _has(name)]
    gpus = [(name, torch.cuda.get_device_properties(name)) for name in usable if name.startswith("cuda")]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": devices._driver_version() or None,
        "architectures": torch.cuda.get_arch_list(),
        "devices": usable,
        "gpus": {name: f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB, sm_{gpu.major}{gpu.minor}" for name, gpu in gpus},
        "problems": [
            {**asdict(problem), "device": problem.device and str(problem.device)} for problem in devices.find_problems()
        ],
    }


def _has(device: str) -> bool:
    try:
        return bool(devices.select_devices(device))
    except UsageError:
        return False


def main() -> None:
    """Print JSON lines; see the top of this file."""
    if len(sys.argv) < 2:
        print(json.dumps(describe_torch()))
        return
    device = sys.argv[1]
    for name, check in list_checks(device):
        print(json.dumps({"check": name}), flush=True)
        try:
            done = check()
        except UsageError:
            continue  # the device does not have this precision
        except Exception as error:  # shown in the place of its numbers
            done = Check(
                name, device, None, False, error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            )
        print(json.dumps(asdict(done)), flush=True)


if __name__ == "__main__":
    main()
