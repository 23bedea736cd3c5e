"""Loads the networks of a plan. torch is imported here and not earlier, and not at all for cached OpenVINO networks."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import NoScores, UsageError
from ..fusion import fuse_clips, pool_video
from ..models.manifest import find_model, read_labels
from ..models.registry import BACKBONES, DEFAULT_VARIANT
from ..plan import Fetch, Plan
from ..recipe import Recipe
from ..records import ClipOutput
from ..results import VideoResult
from ..version import __version__
from .reader import ReadVideo

if TYPE_CHECKING:
    from pathlib import Path

    from ..models.clip_model import ClipModel
    from ..runtimes import Form
    from ..runtimes.base import Runtime
    from ..runtimes.cache import NetworkCache


@dataclass(frozen=True)
class Networks:
    """The networks of a plan, ready to run."""

    plan: Plan
    runtime: Runtime
    """Clips → features and logits."""
    num_classes: int | None
    """Length of the logits, by the checkpoints; None for a network without a classifier."""
    recipe: Recipe
    """The plan's, with runtime, precision and versions filled in."""
    warnings: tuple[str, ...]
    """Warnings about GPUs that are not used and the user's own checkpoints, one sentence each; see `Plan.warnings`."""

    @property
    def has_classes(self) -> bool:
        """Whether the logits are scores of classes; a user's own checkpoint of an embedding may have some."""
        return self.plan.has_classes or self.num_classes not in (None, self.plan.num_classes)

    def check_classes(self) -> None:
        """Raise UsageError if the networks have no classes."""
        if not self.has_classes:
            raise UsageError(f"{self.plan.model} gives an embedding and has no classes: use vid3d extract")

    def fuse(self, video: str, outputs: Sequence[ClipOutput]) -> tuple[ClipOutput, ...]:
        """Return clips of a video with fused logits; none in a dense run, whose windows are pooled at the end.

        Raises:
            NoScores: the networks' scores are not finite.
        """
        if self.plan.dense:
            return ()
        clips = fuse_clips(outputs, self.plan.fusion)
        for clip in clips:
            _check_scores(video, clip.logits)
        return clips

    def pool(self, read: ReadVideo, outputs: Sequence[ClipOutput]) -> VideoResult:
        """Return the result of a video from the outputs of its clips, in time order.

        Raises:
            NoScores: the networks' scores are not finite.
        """
        if (dense := self.plan.dense_plan) is not None:
            outputs = dense.pool(outputs, read.windows)
        clips, logits = pool_video(outputs, self.plan.fusion)
        _check_scores(read.video, logits)
        return VideoResult(
            video=read.video,
            clips=clips,
            logits=logits,
            labels=name_classes(self.plan, next(iter(logits.values())).shape[0]) if self.has_classes else (),
            fps=read.fps,
            num_frames=read.num_frames,
            num_lost_frames=read.num_lost_frames,
            recipe=replace(self.recipe, flow=read.flow),
            warnings=read.warnings,
        )


def _check_scores(video: str, logits: Mapping[str, NDArray[np.float32]]) -> None:
    if not all(np.isfinite(values).all() for values in logits.values()):
        raise NoScores(video, "the network's scores are not finite: the weights are damaged, or try fp32")


def load(plan: Plan, fetch: Fetch | None = None) -> Networks:
    """Return the networks of a plan, loaded; published checkpoints that are not on disk are downloaded.

    Args:
        plan: see `Plan.make`.
        fetch: finds or downloads a published checkpoint; None for `models.weights.pull`.

    Raises:
        UsageError: a device or precision that this machine does not have, or class names that do not fit.
        WeightsError: checkpoints that are missing or do not fit.
    """
    from ..runtimes import create_runtime, select_runtime

    name = select_runtime(
        plan.runtime,
        device=plan.device,
        precision=plan.precision,
        compile=plan.compile,
        num_threads=plan.threads,
    )  # raises before anything is downloaded
    checkpoints = plan.find_checkpoints(fetch)
    plan = plan.fetch(lambda file: checkpoints[file.stream])
    models = _Models(plan, checkpoints)
    facts = _check_networks(plan, models, is_cached=name == "openvino")
    runtime = create_runtime(
        models,
        name=name,
        device=plan.device,
        precision=plan.precision,
        compile=plan.compile,
        num_threads=plan.threads,
        batch_size=1 if plan.dense else plan.batch_size,
        views=plan.views,
        identities={stream: _identity(plan, stream) for stream in models},
        forms=_forms(plan),
    )
    recipe = replace(
        plan.recipe,
        runtime=runtime.description,
        precision=runtime.precision,
        versions={runtime.name: runtime.version, **package_versions(plan.interpolation)},
    )
    num_classes = next((known.num_classes for known in facts.values() if known.num_classes is not None), None)
    warnings = (*_explain_device(plan), *_find_doubtful_checkpoints(plan, facts))
    return Networks(plan, runtime, num_classes, recipe, warnings)


def _explain_device(plan: Plan) -> list[str]:
    """Return why the networks do not run on a GPU of this machine, if "auto" passed over it."""
    from ..runtimes import may_have_gpu

    if plan.network_device != "auto" or not may_have_gpu():
        return []
    from ..runtimes.devices import explain_choice

    return explain_choice(plan.network_device)


class _Models(Mapping[str, "ClipModel"]):
    """The model of each stream, built from its checkpoint when it is first asked for."""

    def __init__(self, plan: Plan, checkpoints: Mapping[str, Path]) -> None:
        self._plan, self._checkpoints = plan, checkpoints
        self._built: dict[str, ClipModel] = {}

    def __getitem__(self, stream: str) -> ClipModel:
        if stream not in self._built:
            self._built[stream] = build_model(self._plan, stream, self._checkpoints[stream])
        return self._built[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)


def build_model(plan: Plan, stream: str, checkpoint: Path) -> ClipModel:
    """Return the model of a stream with the weights of a checkpoint, in eval mode."""
    from ..models.clip_model import ClipModel, LayerTap, Normalise, create_model

    net = create_model(plan.backbone, stream=stream, weights=checkpoint, variant=plan.variant or DEFAULT_VARIANT)
    tap = None if plan.layer is None else LayerTap(net, BACKBONES[plan.backbone].layers[plan.layer], plan.pool)
    return ClipModel(net, Normalise(plan.networks[stream].normalisation), tap, plan.dense)


class _Facts(NamedTuple):
    """What a run needs to know of a checkpoint that fits its network."""

    num_classes: int | None
    """None for a network without a classifier."""
    suggested: str | None
    """The model whose tensor names it has; None for a published checkpoint, and where names do not tell."""


def _check_networks(plan: Plan, models: Mapping[str, ClipModel], is_cached: bool) -> dict[str, _Facts]:
    """Return the facts of the streams' checkpoints; build the models, unless the cache has the facts of each.

    Raises:
        UsageError: class names that do not fit.
        CheckpointError: a checkpoint does not fit its network, or the other stream's.
    """
    from ..runtimes.base import check_classes
    from ..runtimes.cache import NetworkCache

    cache = NetworkCache() if is_cached else None
    facts, num_classes = {}, {}
    for stream, net in plan.networks.items():
        key = repr((net.sha256, plan.model, plan.backbone, plan.variant, stream, net.checkpoint is None))
        known = _read_facts(cache, key)
        if known is None:
            known = _find_facts(plan, stream, models[stream])
            if cache:
                cache.write(key, {"facts.json": json.dumps(known._asdict()).encode()})
        facts[stream] = known
        if known.num_classes is not None:
            num_classes[stream] = known.num_classes
            check_classes(num_classes)
            name_classes(plan, known.num_classes)
    return facts


def _read_facts(cache: NetworkCache | None, key: str) -> _Facts | None:
    files = cache.read(key, "facts.json") if cache else None
    try:
        return _Facts(**json.loads(files[0])) if files else None
    except (TypeError, ValueError):  # other content
        return None


def _find_facts(plan: Plan, stream: str, model: ClipModel) -> _Facts:
    from ..models.checkpoint import count_classes, read_checkpoint, suggest_model

    backbone, own = BACKBONES[plan.backbone], plan.networks[stream].checkpoint
    tells = own is not None and find_model(plan.model).layout is not None and backbone.key_layouts
    suggested = suggest_model(read_checkpoint(own), plan.backbone) if own is not None and tells else None
    return _Facts(count_classes(model.backbone.state_dict(), backbone), suggested)


def _forms(plan: Plan) -> dict[str, Form]:
    """Return the forms of a plan's clips; none if the videos decide."""
    if plan.dense or plan.resize_only:
        return {}
    flow = "|u1" if plan.quantise_flow else "<f4"
    forms = {"rgb": (3, "|u1"), "flow": (2, flow)}
    return {
        stream: ((plan.num_clip_frames, plan.crop_px, plan.crop_px, forms[stream][0]), forms[stream][1])
        for stream in plan.networks
    }


def name_classes(plan: Plan, num_classes: int) -> tuple[str, ...]:
    """Return the class names; numbered ones if the checkpoint has other classes than the model.

    Raises:
        UsageError: the user gave another number of class names.
    """
    labels = plan.labels or read_labels(find_model(plan.model))
    if len(labels) == num_classes:
        return labels
    if plan.labels is not None:
        given = f"{plan.labels_from} has {len(labels)} class names"
        raise UsageError(f"{given} and the checkpoint has {num_classes} classes: give one name per class")
    return tuple(f"class {i}" for i in range(num_classes))


def _identity(plan: Plan, stream: str) -> str:
    """Return a text that identifies the network of a stream."""
    net = plan.networks[stream]
    parts = (plan.backbone, plan.variant, plan.layer, plan.pool, plan.dense)
    return f"{net.sha256} {net.normalisation.describe()} {parts}"


def _find_doubtful_checkpoints(plan: Plan, facts: Mapping[str, _Facts]) -> Iterator[str]:
    """Yield a warning for each of the user's checkpoints that looks like one of another model."""
    for stream, known in facts.items():
        model = known.suggested
        if model is not None and find_model(model) is not find_model(plan.model):
            yield (
                f"{plan.networks[stream].checkpoint} has the tensor names of {model}, which was trained on another "
                f"input than {plan.model}: if your {stream} network was too, use --model {model}"
            )


def package_versions(interpolation: str) -> dict[str, str]:
    """Return the versions of the packages that make features with this interpolation, without the runtime."""
    return {
        **({"pillow": version("pillow")} if interpolation == "lanczos" else {}),
        "python": platform.python_version(),
        "vid3d": __version__,
        "av": av.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "torch": version("torch"),
    }
