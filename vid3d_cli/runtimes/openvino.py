"""The OpenVINO runtime, for CPUs: twice as fast as a plain PyTorch forward pass in fp32, four times in bf16.

    ClipModel → conversion.py → OpenVINO's IR, cached on disk → compiled for this CPU

A compiled network takes one clip of one shape. A batch runs clip by clip, so results do not depend on the batch.
A cached network needs neither its ClipModel nor torch, whose import alone takes a second.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..clips.preprocess import Views
from ..errors import UsageError, Vid3dError
from . import Form, select_cpu_precision
from .base import Answer, DeviceRuntime
from .cache import NetworkCache

if TYPE_CHECKING:
    from ..models.clip_model import ClipModel

_HINTS = {"fp32": "f32", "bf16": "bf16"}

_MAX_COMPILED = 4
"""Compiled networks to hold in memory, one per clip shape; with --resize-only every video may have its own shape."""


def import_openvino() -> Any:
    """Import openvino without its telemetry, which would report every import and conversion to a server.

    Raises:
        UsageError: it is not installed.
    """
    # openvino uses a stub if it cannot import openvino_telemetry.
    is_hidden = "openvino_telemetry" not in sys.modules
    if is_hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise UsageError(f"openvino cannot be imported ({error}): pip install 'vid3d[openvino]'") from None
    finally:
        if is_hidden:
            del sys.modules["openvino_telemetry"]


def has_bf16(core: Any) -> bool:
    """Return whether OpenVINO computes in bf16 on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINORuntime(DeviceRuntime):
    """Runs the clip models of a two-stream model with OpenVINO on the CPU.

    The arguments are those of `create_runtime`; without a cache every start converts the networks. A model is taken
    from `models` only to convert it. Clips run one by one: the batch size only affects how many are read ahead.

    Raises:
        UsageError: OpenVINO is not installed, or this CPU does not support the precision.
    """

    name = "openvino"

    def __init__(
        self,
        models: Mapping[str, ClipModel],
        *,
        precision: str = "auto",
        batch_size: int | None = None,
        views: Views | None = None,
        num_threads: int | None = None,
        identities: Mapping[str, str] | None = None,
        cache: NetworkCache | None = None,
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        self._openvino = import_openvino()
        batch_size = 1 if batch_size is None else batch_size
        super().__init__(models, select_cpu_precision(precision), batch_size, views)
        self.version = str(self._openvino.__version__).split("-")[0]
        self._core = self._openvino.Core()
        if self.precision == "bf16" and not has_bf16(self._core):
            raise UsageError("this CPU does not support bf16: use --precision fp32")
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            # All cores work on one clip. Several clips at once would gain 2 % and cost the memory of each.
            "PERFORMANCE_HINT": "LATENCY",
            # Several processes, such as shards, would all pin their threads to the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if num_threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = num_threads
        self._models = models
        self._identities = identities or {}
        self._cache = cache
        self._requests: OrderedDict[tuple[str, Form], Any] = OrderedDict()
        pool = ThreadPoolExecutor(2)
        self._early = {(stream, form): pool.submit(self._load, stream, form) for stream, form in (forms or {}).items()}
        pool.shutdown(wait=False)

    @property
    def description(self) -> str:
        return f"{self.name} on cpu"

    def start_stream(self, stream: str, clips: Sequence[NDArray[Any]]) -> Callable[[], list[Answer]]:
        views = [clips] if self.views is None else self.views.cut(clips, is_flow=stream == "flow")
        answers = [self._answer(stream, view) for view in views]
        return lambda: answers

    def _answer(self, stream: str, clips: Sequence[NDArray[Any]]) -> Answer:
        request = self._request(stream, clips[0])
        answers = [self._infer(request, clip) for clip in clips]
        return Answer(*(np.concatenate(arrays) for arrays in zip(*answers, strict=True)))

    @staticmethod
    def _infer(request: Any, clip: NDArray[Any]) -> Answer:
        request.infer({0: clip[np.newaxis]})
        return Answer(*(request.get_output_tensor(i).data.copy() for i in range(2)))

    def _request(self, stream: str, clip: NDArray[Any]) -> Any:
        """Return the network compiled for clips of this shape and type."""
        form = (clip.shape, clip.dtype.str)
        key = (stream, form)
        if key not in self._requests:
            while len(self._requests) >= _MAX_COMPILED:
                self._requests.popitem(last=False)
            network = self._early.pop(key).result() if key in self._early else self._load(stream, form)
            if network is None:
                network = self._compile(self._convert(stream, form))
            self._requests[key] = network.create_infer_request()
        self._requests.move_to_end(key)
        return self._requests[key]

    def _load(self, stream: str, form: Form) -> Any:
        """Return the compiled network from the cache; None if the cache does not have it."""
        files = None
        if self._cache and stream in self._identities:
            files = self._cache.read(self._key(stream, form), "model.xml", "model.bin")
        return files and self._compile(self._core.read_model(*files))

    def _compile(self, network: Any) -> Any:
        return self._core.compile_model(network, "CPU", self._config)

    def _key(self, stream: str, form: Form) -> str:
        return repr((self._identities.get(stream), *form, self.version, version("torch")))

    def _convert(self, stream: str, form: Form) -> Any:
        """Return OpenVINO's model of a network for clips of this shape and type, and cache it."""
        from .conversion import convert

        network = convert(self._openvino, self._models[stream], stream, form)
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "model.xml"
                self._openvino.save_model(network, path, compress_to_fp16=False)
                files = {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
        except (OSError, RuntimeError) as error:
            raise Vid3dError(
                f"cannot write the converted network to {tempfile.gettempdir()}: free some space there, "
                "set TMPDIR to another directory, or try --runtime torch"
            ) from error
        if self._cache and stream in self._identities:
            self._cache.write(self._key(stream, form), files)
        # Read back, as later starts will: a model that was never written differs in the last bits.
        return self._core.read_model(files["model.xml"], files["model.bin"])
