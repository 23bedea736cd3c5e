"""The OpenVINO runtime, for CPUs: twice as fast as a plain PyTorch forward pass in fp32, four times in bf16.

    ClipModel → batch norms folded → traced on fake tensors → OpenVINO's IR, cached on disk → compiled for this CPU

A compiled network takes one clip of one shape. A batch runs clip by clip, so results do not depend on the batch.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..clips.preprocess import Views
from ..errors import UsageError, Vid3dError
from ..models.clip_model import ClipModel
from ..version import __version__
from .base import Answer, DeviceRuntime
from .cache import NetworkCache, code_digest
from .devices import select_precision
from .folding import fold_batch_norms

_log = logging.getLogger("vid3d_cli")

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


class OpenVINORuntime(DeviceRuntime):
    """Runs the clip models of a two-stream model with OpenVINO on the CPU.

    The arguments are those of `create_runtime`; without a cache every start converts the networks. Clips run one by
    one: the batch size only affects how many are read ahead.

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
    ) -> None:
        self._openvino = import_openvino()
        batch_size = 1 if batch_size is None else batch_size
        super().__init__(models, select_precision(precision, torch.device("cpu")), batch_size, views)
        self.version = str(self._openvino.__version__).split("-")[0]
        self._core = self._openvino.Core()
        if self.precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
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
        self._models = {stream: model.eval() for stream, model in models.items()}
        self._identities = identities or {}
        self._cache = cache
        self._requests: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

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
        key = (stream, clip.shape, clip.dtype.str)
        if key not in self._requests:
            while len(self._requests) >= _MAX_COMPILED:
                self._requests.popitem(last=False)
            network = self._core.compile_model(self._find_or_convert(stream, clip), "CPU", self._config)
            self._requests[key] = network.create_infer_request()
        self._requests.move_to_end(key)
        return self._requests[key]

    def _find_or_convert(self, stream: str, clip: NDArray[Any]) -> Any:
        """Return OpenVINO's model of a network for clips of this shape and type, from the cache if it is there."""
        cache = self._cache if stream in self._identities else None
        facts = (self._identities.get(stream), clip.shape, clip.dtype.str)
        key = repr((*facts, self.version, torch.__version__, __version__, code_digest()))
        if cache and (files := cache.read(key)):
            return self._core.read_model(files["model.xml"], files["model.bin"])
        network = self._convert(stream, clip)
        try:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "model.xml"
                self._openvino.save_model(network, path, compress_to_fp16=False)
                if cache:
                    cache.write(key, [path, path.with_suffix(".bin")])
                # Read back, as later starts will: a model that was never written differs in the last bits.
                return self._core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
        except (OSError, RuntimeError) as error:
            raise Vid3dError(
                f"cannot write the converted network to {tempfile.gettempdir()}: free some space there, "
                "set TMPDIR to another directory, or try --runtime torch"
            ) from error

    def _convert(self, stream: str, clip: NDArray[Any]) -> Any:
        started = time.perf_counter()
        model, clips = self._models[stream], torch.from_numpy(np.zeros((1, *clip.shape), clip.dtype))
        fold_batch_norms(model, clips)  # makes tracing ten times and conversion twice as fast

        def forward(clips: Tensor) -> tuple[Tensor, Tensor]:
            output = model(clips)
            return output.features, output.logits

        with torch.no_grad():
            # Fake tensors have shapes but no values, so tracing a full-length clip computes nothing.
            trace = make_fx(torch.func.functionalize(forward), tracing_mode="fake", _allow_non_fake_inputs=True)
            graph = trace(clips)
            _compute_constants(graph)
        try:
            fx_decoder: Any = importlib.import_module("openvino.frontend.pytorch.fx_decoder")
            decoder = fx_decoder.TorchFXPythonDecoder(graph, dynamic_shapes=False)
            network = self._openvino.convert_model(decoder)
        except Exception as error:  # openvino raises several types, none of them public
            reason = " ".join(str(error).split("Summary:")[-1].split())
            raise Vid3dError(
                f"openvino {self.version} cannot convert {type(model.backbone).__name__} ({reason}): "
                "try --runtime torch"
            ) from error
        _log.info("converted the %s network to OpenVINO in %.1f s", stream, time.perf_counter() - started)
        return network


def _compute_constants(graph: fx.GraphModule) -> None:
    """Compute with torch what depends only on the shape of the clips, such as the indices of sampled frames.

    OpenVINO may round float32 differently, which changes values that are then truncated to an index.
    """
    constants: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and all(used in constants for used in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = node.target(*args, **kwargs)
    for i, (node, value) in enumerate(constants.items()):
        if isinstance(value, Tensor) and not all(user in constants for user in node.users):
            graph.register_buffer(f"constant_{i}", value)
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(f"constant_{i}"))
    graph.graph.eliminate_dead_code()
    graph.recompile()
