"""Converts networks from PyTorch to OpenVINO: batch norms folded → traced on fake tensors → OpenVINO's model."""

from __future__ import annotations

import importlib
import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import Vid3dError
from ..models.clip_model import ClipModel
from . import Form
from .folding import fold_batch_norms

_log = logging.getLogger("vid3d_cli")


def convert(openvino: Any, model: ClipModel, stream: str, form: Form) -> Any:
    """Return OpenVINO's model of a network, which takes one clip.

    Args:
        openvino: the module, imported without telemetry.
        model: the network; its batch norms are folded in place.
        stream: name of the network, for the log.
        form: shape (T, H, W, C) and type of the clip.

    Raises:
        Vid3dError: openvino cannot convert it.
    """
    started = time.perf_counter()
    shape, dtype = form
    model, clips = model.eval(), torch.from_numpy(np.zeros((1, *shape), dtype))
    fold_batch_norms(model, clips)  # makes tracing ten times and conversion twice as fast

    def forward(clips: Tensor) -> tuple[Tensor, Tensor]:
        output = model(clips)
        return output.features, output.logits

    with torch.no_grad():
        # Fake tensors have shapes but no values, so tracing a full-length clip computes nothing.
        trace = make_fx(torch.func.functionalize(forward), tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = trace(clips)
    try:
        fx_decoder: Any = importlib.import_module("openvino.frontend.pytorch.fx_decoder")
        network = openvino.convert_model(fx_decoder.TorchFXPythonDecoder(graph, dynamic_shapes=False))
    except Exception as error:  # openvino raises several types, none of them public
        reason = " ".join(str(error).split("Summary:")[-1].split())
        release = str(openvino.__version__).split("-")[0]
        raise Vid3dError(
            f"openvino {release} cannot convert {type(model.backbone).__name__} ({reason}): try --runtime torch"
        ) from error
    _log.info("converted the %s network to OpenVINO in %.1f s", stream, time.perf_counter() - started)
    return network
