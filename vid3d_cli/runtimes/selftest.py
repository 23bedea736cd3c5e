"""Compares what this machine computes with plain float32 on the CPU, for `vid3d doctor`.

    python -m vid3d_cli.runtimes.selftest           prints `describe_torch` as JSON
    python -m vid3d_cli.runtimes.selftest DEVICE    prints each `Check` as JSON, as it starts and when it is done

The command runs these in processes of their own, which a broken driver may hang or kill.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
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
from .openvino import has_bf16, import_openvino
from .torch import DTYPES, cuda_settings

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
    """One part of the self-test; docs/doctor.md explains the fields."""

    check: str
    device: str
    precision: str = "fp32"
    runtime: str | None = None
    fix: str | None = None
    """What to do if the check fails."""
    passed: bool | None = None
    """None: not yet known."""
    difference: float | None = None
    cosine: float | None = None
    same_top1: bool | None = None
    error: str | None = None

    def judge(
        self, difference: float, limit: float, cosine: float | None = None, same_top1: bool | None = None
    ) -> Check:
        """Return the check with its numbers, which pass if they are rounding."""
        if not np.isfinite([difference, cosine or 0]).all():
            return replace(self, passed=False, error="the outputs are not finite")
        passed = (
            difference <= limit and (cosine is None or cosine >= MIN_COSINES[self.precision]) and same_top1 is not False
        )
        return replace(self, passed=passed, difference=difference, cosine=cosine, same_top1=same_top1)


def list_checks(device: str) -> Iterator[tuple[Check, Callable[[Check], Check]]]:
    """Yield each check of a device, "cpu", "mps" or "cuda:0", in the precisions that it has, and what computes it."""
    low_precisions = [
        name for name in ("bf16", "fp16") if _is_usable(devices.select_precision, name, torch.device(device))
    ]
    advice = "reinstall vid3d and torch" if device == "cpu" else "use --device cpu, and report this"
    yield Check("network", device, "fp32", "torch", advice), check_network
    for precision in low_precisions:
        yield Check("network", device, precision, "torch", "use --precision fp32, and report this"), check_network
        yield Check("convolution", device, precision, fix="use --precision fp32, and report this"), check_convolution
    if device == "cpu" and has_openvino():
        for precision in ("fp32", "bf16") if _openvino_has_bf16() else ("fp32",):
            yield Check("network", device, precision, "openvino", "use --runtime torch, and report this"), check_network
    if device.startswith("cuda"):
        yield Check("tvl1", device, fix=advice), check_tvl1
        advice = "use a smaller --batch-size, and report this"
        yield Check("out of memory", device, "fp32", "torch", advice), check_out_of_memory


def _is_usable(choose: Callable[..., Any], *args: Any) -> bool:
    try:
        choose(*args)
    except UsageError:
        return False
    return True


def _openvino_has_bf16() -> bool:
    with suppress(UsageError):  # `check_network` says that it cannot be imported
        return has_bf16(import_openvino().Core())
    return False


def check_network(check: Check) -> Check:
    """Compare features and logits of both streams with a plain forward pass in float32 on the CPU."""
    clips = make_clips()
    runtime = create_runtime(load_models(), name=check.runtime or "", device=check.device, precision=check.precision)
    outputs = runtime.run(clips)
    compared, same_top1 = [], True
    for stream, model in load_models().items():
        with torch.inference_mode():
            expected = model(torch.from_numpy(np.stack([clip.streams[stream] for clip in clips])))
        logits = np.stack([output.logits[stream] for output in outputs])
        features = np.stack([output.features[stream] for output in outputs])
        compared += [compare(features, expected.features.numpy()), compare(logits, expected.logits.numpy())]
        same_top1 &= bool((logits.argmax(1) == expected.logits.numpy().argmax(1)).all())
    differences, cosines = np.transpose(compared)
    limit = MAX_DIFFERENCES[check.precision]
    return check.judge(float(differences.max()), limit, float(cosines.min()), same_top1)  # NaN stays NaN


def check_convolution(check: Check) -> Check:
    """Compare a convolution of I3D, Conv3d_2c_3x3 on clips of 64 frames of 224² px, with float32 on the same device."""
    shape = (1, 64, 4, 56, 56) if check.device == "cpu" else (4, 64, 32, 56, 56)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn((192, 64, 3, 3, 3), generator=generator) / (64 * 27) ** 0.5
    x, weight = (tensor.to(check.device).to(memory_format=torch.channels_last_3d) for tensor in (x, weight))
    dtype = DTYPES[check.precision]
    with torch.inference_mode(), cuda_settings(is_benchmarked=False, is_deterministic=True):
        expected = torch.conv3d(x, weight, padding=1)
        found = torch.conv3d(x.to(dtype), weight.to(dtype), padding=1)
        difference = float((found.float() - expected).abs().max() / expected.abs().max())
    return check.judge(difference, MAX_DIFFERENCES[check.precision])


def check_tvl1(check: Check) -> Check:
    """Compare the TV-L1 flow of a moving texture with that of the CPU."""
    frames = make_clips()[0].streams["rgb"][:4, ..., 0]
    found, expected = (tvl1_flow(frames[:-1], frames[1:], device=where) for where in (check.device, "cpu"))
    return check.judge(float(np.linalg.norm(found - expected, axis=-1).mean()), MAX_FLOW_DIFFERENCE_PX)


def check_out_of_memory(check: Check) -> Check:
    """Check that a batch too large for the GPU's memory is halved until it fits, and gives the outputs of one clip."""
    clip, device = make_clips()[0], check.device

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
    if batch_size == LARGE_BATCH:
        return replace(check, passed=False, error=f"{LARGE_BATCH} clips fitted into the memory of 3")
    difference, cosine = compare(found, expected.repeat(LARGE_BATCH, 0))
    return check.judge(difference, MAX_DIFFERENCES["fp32"], cosine)


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


def describe_torch() -> dict[str, Any]:
    """Return torch's build, the devices that can be used, the GPUs among them, and why others cannot."""
    usable = [
        name
        for name in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), "mps")
        if _is_usable(devices.select_devices, name)
    ]
    gpus = [(name, torch.cuda.get_device_properties(name)) for name in usable if name.startswith("cuda")]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": devices.driver_version() or None,
        "architectures": torch.cuda.get_arch_list(),
        "devices": usable,
        "gpus": {name: f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB, sm_{gpu.major}{gpu.minor}" for name, gpu in gpus},
        "problems": [
            {**asdict(problem), "device": problem.device and str(problem.device)} for problem in devices.find_problems()
        ],
    }


def main() -> None:
    """Print JSON lines; see the top of this file."""
    if len(sys.argv) < 2:
        print(json.dumps(describe_torch()))
        return
    for check, compute in list_checks(sys.argv[1]):
        print(json.dumps(asdict(check)), flush=True)
        try:
            done = compute(check)
        except Exception as error:  # shown in the place of its numbers
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            is_full = isinstance(error, MemoryError) or re.search("out of memory|allocate memory", why)
            fix = f"free memory of {check.device}, then repeat vid3d doctor" if is_full else check.fix
            done = replace(check, passed=False, error=why, fix=fix)
        print(json.dumps(asdict(done)), flush=True)


if __name__ == "__main__":
    main()
