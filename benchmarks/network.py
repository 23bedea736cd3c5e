"""Seconds per clip of each runtime, against a plain PyTorch forward pass and the matrix products of the same machine.

    python benchmarks/network.py                            # i3d, s3d, p3d199, r2plus1d_18: a few minutes
    python benchmarks/network.py --networks i3d --rounds 3
    python benchmarks/network.py --device cuda --batch-size 8

Runs the rgb networks of the reference cases in tests/data, on one clip or on copies of it. Prints a Markdown table:

- plain is what most ports do: contiguous (N, C, T, H, W), eager, batch norms not folded;
- ready is the extra time of the first clip; for OpenVINO without and, after the slash, with the converted network in
  the cache;
- of mm is the speed relative to that of large matrix products in the same precision, by torch.mm or OpenVINO,
  whichever is faster; a multiply-add is two operations;
- difference and cosine compare the features with plain: max |y - plain| / max |plain|.

Every round times each contestant once and the table has medians, so other work on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.models.clip_model import ClipModel, Normalise, create_model
from vid3d_cli.models.manifest import Normalisation
from vid3d_cli.records import Clip, ClipOutput, ClipSpan
from vid3d_cli.runtimes import create_runtime
from vid3d_cli.runtimes.openvino import import_openvino

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from seeded import SeededCase

CASES = {
    "i3d": "i3d_rgb_hassony2_64f",
    "s3d": "s3d_torchvision_64f",
    "p3d199": "p3d199_rgb_16f",
    "r2plus1d_18": "r2plus1d18_torchvision_16f",
}

MATRIX_SIZES = {"cpu": 3072, "cuda": 16384}
RUNTIMES = {"cpu": ("torch", "openvino"), "cuda": ("torch",)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Answer = tuple[NDArray[np.float32], NDArray[np.float32]]


def seconds(call: Callable[[], Any]) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Network:
    """The network and the clip of one reference case.

    Args:
        name: one of `CASES`.
        directory: for its checkpoint and the cache of converted networks.
        device: the device that it runs on.
        batch_size: copies of the clip per batch.
    """

    def __init__(self, name: str, directory: Path, device: str, batch_size: int) -> None:
        self.name = name
        self.directory = directory
        self.device = device
        self.batch_size = batch_size
        case = SeededCase(CASES[name])
        self.checkpoint = directory / f"{name}.pt"
        torch.save({key: torch.from_numpy(array) for key, array in case.state_dict().items()}, self.checkpoint)
        frames = ((case.clips()[0].transpose(1, 2, 3, 0) + 1) * 127.5).round().astype(np.uint8)
        self.clip = Clip(ClipSpan(0, 0, len(frames), 0.0, 1.0), {"rgb": frames})

    def model(self) -> ClipModel:
        """Load the network."""
        plus_minus_one = Normalisation((-1.0, 1.0), None, None, "RGB", None, None, False)
        net = create_model(self.name, weights=self.checkpoint)
        return ClipModel(net, Normalise(plus_minus_one))

    def plain(self) -> Callable[[], Answer]:
        """Return the forward pass of most ports."""
        model = self.model().to(self.device)
        frames = torch.from_numpy(self.clip.streams["rgb"]).permute(3, 0, 1, 2)
        clips = torch.stack([frames] * self.batch_size).to(self.device)
        clips = model.normalise(clips)

        def forward() -> Answer:
            with torch.inference_mode():
                output = model.backbone(clips)
            return output.features[0].cpu().numpy(), output.logits[0].cpu().numpy()

        return forward

    def run(self, runtime: str, precision: str) -> Callable[[], Answer]:
        """Return a forward pass by a runtime."""
        runner = create_runtime(
            {"rgb": self.model()},
            name=runtime,
            device=self.device,
            precision=precision,
            batch_size=self.batch_size,
            identities={"rgb": self.name},
            cache_dir=self.directory / runtime / precision,
        )

        def forward() -> Answer:
            output: ClipOutput = runner.run([self.clip] * self.batch_size)[0]
            return output.features["rgb"], output.logits["rgb"]

        return forward

    def count_operations(self) -> int:
        """Return the operations of a batch, two per multiply-add."""
        net = self.model().backbone.to("meta")
        T, H, W, C = self.clip.streams["rgb"].shape
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(self.batch_size, C, T, H, W, device="meta"))
        return int(counter.get_total_flops())


def matrix_product(runtime: str, precision: str, device: str) -> Callable[[], Any]:
    """Return a function that multiplies two large matrices."""
    size = MATRIX_SIZES[device]
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    if runtime == "openvino":
        return openvino_product(a.numpy(), b.numpy(), precision)
    a, b = a.to(DTYPES[precision]), b.to(DTYPES[precision])
    return lambda: float(torch.mm(a, b)[0, 0])  # waits for a GPU


def openvino_product(a: NDArray[np.float32], b: NDArray[np.float32], precision: str) -> Callable[[], Any]:
    """Return a function that multiplies two matrices with OpenVINO."""
    openvino = import_openvino()
    ops = openvino.opset13
    left = ops.parameter(a.shape, np.float32)
    model = openvino.Model([ops.matmul(left, ops.constant(b), False, False)], [left])
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    return lambda: request.infer([a], share_inputs=True, share_outputs=True)


def measure(network: Network, rounds: int) -> list[str]:
    """Return the table rows of one network."""
    contestants = {("plain", "fp32"): network.plain()}
    starts: dict[tuple[str, str], list[float]] = {("plain", "fp32"): [seconds(contestants["plain", "fp32"])]}
    for runtime in RUNTIMES[network.device]:
        for precision in DTYPES:
            key = runtime, precision
            starts[key] = []
            for _ in range(1 if runtime == "torch" else 2):
                contestants[key] = network.run(*key)
                starts[key].append(seconds(contestants[key]))
    products = {
        (f"{runtime} product", precision): matrix_product(runtime, precision, network.device)
        for runtime in RUNTIMES[network.device]
        for precision in DTYPES
    }
    everything: dict[Any, Callable[[], Any]] = {**contestants, **products}
    for call in everything.values():
        call()
    times: dict[Any, list[float]] = {key: [] for key in everything}
    for _ in range(rounds):
        for key, call in everything.items():
            times[key].append(seconds(call))
    median = {key: statistics.median(values) for key, values in times.items()}

    operations = network.count_operations()
    plain_features, plain_logits = contestants["plain", "fp32"]()
    rows = []
    for key, forward in contestants.items():
        runtime, precision = key
        product = min(median[f"{by} product", precision] for by in RUNTIMES[network.device])
        rate = 2 * MATRIX_SIZES[network.device] ** 3 / product
        features, logits = forward()
        difference = np.abs(features - plain_features).max() / np.abs(plain_features).max()
        cosine = features @ plain_features / np.linalg.norm(features) / np.linalg.norm(plain_features)
        cells = [
            f"{network.name} ({operations / network.batch_size / 1e9:.0f} GFLOP)",
            f"{runtime} {precision}",
            f"{median[key] / network.batch_size:.3f}",
            f"{median['plain', 'fp32'] / median[key]:.2f}",
            f"{operations / median[key] / rate:.0%} of {rate / 1e9:.0f} GFLOP/s",
            " / ".join(f"{max(0, start - median[key]):.1f}" for start in starts[key]),
            f"{difference:.0e}",
            f"{cosine:.6f}",
            "same" if logits.argmax() == plain_logits.argmax() else "OTHER",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=RUNTIMES, default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, medians of {options.rounds} rounds\n")
    print("| network | runtime | s/clip | × plain | of mm | ready, s | difference | cosine | top-1 |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for name in options.networks:
        with tempfile.TemporaryDirectory() as directory:
            network = Network(name, Path(directory), options.device, options.batch_size)
            print(*measure(network, options.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
