"""Make s3d_mini.camera_motion: render a virtual world, train both streams, calibrate, measure, write the checkpoint.

    python tools/train_camera_motion.py                              # into weights/; about an hour on two cores
    python tools/train_camera_motion.py --short --out /tmp/short     # a seeded run of seconds, for the tests

Writes s3d_mini.camera_motion.rgb.safetensors and .flow.safetensors (float16), .metrics.json and the card, .md, and
prints the entries of the files for weights/manifest.toml. Rendered clips (1.4 MB each) and trained streams stay in
--cache, where the next run with the same numbers finds them.

The same seed, machine, thread count and versions of the packages give the same checkpoint; another machine's rounding
gives a different one of the same quality.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from camera_motion.card import update_card
from camera_motion.dataset import CHANNELS, ClipSet, cached_clips
from camera_motion.paths import CLASSES
from camera_motion.report import accuracies, class_table, confusion, confusion_table
from camera_motion.training import BACKBONE, Schedule, Trained, new_model, predict, train_stream
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent
NAME = f"{BACKBONE}.camera_motion"
CLASSIFIER = ("classifier.1.weight", "classifier.1.bias")

TEMPERATURES = np.exp(np.linspace(np.log(0.02), np.log(10), 63))
"""Candidate factors for a stream's logits."""


@dataclass(frozen=True)
class Plan:
    """The options of a run; all but the directories decide the numbers."""

    seed: int
    train_clips: int
    val_clips: int
    test_clips: int
    rounds: dict[str, str]
    """Per stream, as in "4/2+3": four epochs of clips at half the size, then three at the whole; each round starts with
    a fresh optimiser from what the one before it left."""
    minutes: float | None
    augment: bool
    cache: str
    out: str

    def clips(self, split: str) -> ClipSet:
        """Return a set of clips, rendered at the first call."""
        number, num_clips = {
            "train": (1, self.train_clips),
            "val": (2, self.val_clips),
            "test": (3, self.test_clips),
        }[split]
        return cached_clips(Path(self.cache), seed=10 * self.seed + number, num_clips=num_clips)


def train(plan: Plan, stream: str) -> Trained:
    """Train one stream round by round, or find it in the cache; runs in its own process."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    trained = Trained({}, [], 0.0)
    done: list[str] = []
    for number, spec in enumerate(plan.rounds[stream].split("+")):
        kept = _kept(plan, stream, [*done, spec])
        if kept.is_file():
            done.append(spec)
            trained = Trained(**torch.load(kept, weights_only=True) | {"rounds": "+".join(done)})
            continue
        epochs, _, shrink = spec.partition("/")
        schedule = Schedule(int(epochs), shrink=int(shrink or 1), minutes=plan.minutes, augment=plan.augment)
        seed = plan.seed + 1000 * number
        new = train_stream(stream, plan.clips("train"), schedule, seed=seed, state=trained.state or None)
        done.append(f"{len(new.losses)}{'/' + shrink if shrink else ''}")
        trained = Trained(new.state, trained.losses + new.losses, trained.seconds + new.seconds, "+".join(done))
        torch.save(vars(trained), _kept(plan, stream, done))
    return trained


def _kept(plan: Plan, stream: str, rounds: list[str]) -> Path:
    """Return the path of a stream in the cache after these rounds."""
    name = "+".join(rounds).replace("/", "by")
    return Path(plan.cache) / f"trained-{stream}-{plan.seed}-{plan.train_clips}-{name}-1.pt"


def train_both(plan: Plan) -> dict[str, Trained]:
    """Train the streams side by side."""
    with multiprocessing.get_context("spawn").Pool(len(CHANNELS)) as pool:
        jobs = {stream: pool.apply_async(train, (plan, stream)) for stream in CHANNELS}
        return {stream: job.get() for stream, job in jobs.items()}


def predict_both(states: Mapping[str, dict[str, Tensor]], clips: ClipSet) -> dict[str, NDArray[np.float32]]:
    """Return the logits (N, 10) of every stream, one thread each."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(len(states)) as pool:
        jobs = {s: pool.submit(predict, new_model(s, state), clips.streams[s]) for s, state in states.items()}
        return {stream: job.result() for stream, job in jobs.items()}


def calibrate(logits: Mapping[str, NDArray[np.float32]], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the factor of each stream's logits for which their 1:1 sum explains the labels best.

    Least cross-entropy of the fused scores, over a grid of pairs.
    """
    best: tuple[float, dict[str, float]] = (float("inf"), {})
    for rgb in TEMPERATURES:
        for flow in TEMPERATURES:
            loss = cross_entropy(rgb * logits["rgb"] + flow * logits["flow"], labels)
            best = min(best, (loss, {"rgb": float(rgb), "flow": float(flow)}), key=lambda found: found[0])
    return best[1]


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sum - shifted[np.arange(len(labels)), labels]).mean())


def fold(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return the state to publish: the factor in the classifier, float16, without training's counters."""
    folded = {name: tensor * factor if name in CLASSIFIER else tensor for name, tensor in state.items()}
    return {name: t.half().contiguous() for name, t in folded.items() if not name.endswith("num_batches_tracked")}


def as_loaded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state in float32, as the network uses it."""
    template = new_model("rgb").backbone.state_dict()
    counters = {name: tensor for name, tensor in template.items() if name.endswith("num_batches_tracked")}
    return {name: tensor.float() for name, tensor in state.items()} | counters


def with_fusion(logits: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return the streams and their sum."""
    return logits | {"fused": logits["rgb"] + logits["flow"]}


def save(states: Mapping[str, dict[str, Tensor]], out: Path) -> dict[str, dict[str, Any]]:
    """Write the checkpoints; return the manifest entry of each."""
    facts = {}
    for stream, state in states.items():
        path = out / f"{NAME}.{stream}.safetensors"
        # One entry alone: safetensors writes several in any order, and the digest would change with it.
        save_file(state, path, metadata={"model": f"{NAME}:{stream}, Apache-2.0"})
        path.chmod(0o644)  # safetensors writes for the owner alone
        num_parameters = sum(p.numel() for p in new_model(stream).backbone.parameters())
        facts[stream] = {
            "file": path.name,
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "num_parameters": num_parameters,
        }
    return facts


def real_footage(plan: Plan, num_clips: int) -> dict[str, Any] | None:
    """Return the check on real footage, if its videos exist and the manifest has the model."""
    from check_camera_motion import DEFAULT_VIDEOS, check, describe, static_verdict

    if not num_clips or not DEFAULT_VIDEOS.is_dir():
        return None
    weights = {stream: Path(plan.out) / f"{NAME}.{stream}.safetensors" for stream in CHANNELS}
    answers = check(DEFAULT_VIDEOS, weights, num_clips=num_clips, seed=100)
    return {
        "clips": num_clips,
        "top1": accuracies(answers.logits, answers.labels),
        "tables": describe(answers, static_verdict(DEFAULT_VIDEOS, weights)),
    }


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return {"cpu": cpu, "cores": os.cpu_count(), **versions, "numpy": np.__version__}


def git_commit() -> str:
    """Return the current commit, marked if the working tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def run(plan: Plan, num_real_clips: int) -> dict[str, Any]:
    """Render, train, calibrate, measure and write; return the metrics."""
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    commit = git_commit()  # before the checkpoints in the repository are replaced
    start = time.monotonic()
    sets = {split: plan.clips(split) for split in ("train", "val", "test")}
    rendered = time.monotonic()
    trained = train_both(plan)
    val, test = sets["val"], sets["test"]
    factors = calibrate(predict_both({s: t.state for s, t in trained.items()}, val), val.labels)
    states = {stream: fold(t.state, factors[stream]) for stream, t in trained.items()}
    files = save(states, out)
    logits = with_fusion(predict_both({s: as_loaded(state) for s, state in states.items()}, test))
    metrics: dict[str, Any] = {
        "model": NAME,
        "classes": list(CLASSES),
        "plan": {name: value for name, value in asdict(plan).items() if name not in ("cache", "out", "minutes")}
        | {"rounds": {stream: t.rounds for stream, t in trained.items()}},
        "commit": commit,
        "machine": machine(),
        "seconds": {"render": round(rendered - start)} | {s: round(t.seconds) for s, t in trained.items()},
        "losses": {stream: t.losses for stream, t in trained.items()},
        "factors": factors,
        "files": files,
        "synthetic": {
            "clips": len(test.labels),
            "top1": accuracies(logits, test.labels),
            "cross_entropy": {s: round(cross_entropy(x, test.labels), 4) for s, x in logits.items()},
            "confusion_fused": confusion(logits["fused"], test.labels).tolist(),
            "tables": class_table(logits, test.labels) + "\n\n" + confusion_table(logits["fused"], test.labels),
        },
        "real": real_footage(plan, num_real_clips),
    }
    (out / f"{NAME}.metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    update_card(out / f"{NAME}.md", metrics)
    return metrics


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the weights and the order")
    parser.add_argument("--clips", type=int, default=4000, help="clips to train on")
    parser.add_argument("--val-clips", type=int, default=400, help="clips to calibrate on")
    parser.add_argument("--test-clips", type=int, default=500, help="held-out clips to measure on")
    parser.add_argument("--real-clips", type=int, default=120, help="clips of real footage to measure on")
    parser.add_argument("--rgb", default="1+3", metavar="ROUNDS", help="epochs: 4/2+3 is 4 at half size, then 3")
    parser.add_argument("--flow", default="3+2", metavar="ROUNDS", help="epochs of flow, likewise")
    parser.add_argument("--minutes", type=float, help="end a round early, after this many minutes")
    parser.add_argument("--cache", type=Path, help="directory of rendered clips; default: a temporary one")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "weights", help="directory of the checkpoint")
    parser.add_argument("--short", action="store_true", help="a run of seconds that shows that everything works")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.clips, arguments.val_clips, arguments.test_clips = 64, 10, 10
        arguments.rgb, arguments.flow, arguments.real_clips = "5", "5", 0
    with tempfile.TemporaryDirectory() as scratch:
        plan = Plan(
            seed=arguments.seed,
            train_clips=arguments.clips,
            val_clips=arguments.val_clips,
            test_clips=arguments.test_clips,
            rounds={"rgb": arguments.rgb, "flow": arguments.flow},
            minutes=arguments.minutes,
            augment=not arguments.short,
            cache=str(arguments.cache or scratch),
            out=str(arguments.out.resolve()),
        )
        metrics = run(plan, arguments.real_clips)
    print(metrics["synthetic"]["tables"])
    if metrics["real"]:
        print("\n" + metrics["real"]["tables"])
    for stream, facts in metrics["files"].items():
        print(f"\n[models.{NAME!r}.streams.{stream}]", file=sys.stderr)
        for key, value in facts.items():
            print(f"{key} = {json.dumps(value)}", file=sys.stderr)


if __name__ == "__main__":
    main()
