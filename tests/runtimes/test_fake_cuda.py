"""Networks on a GPU that is not there: fake CUDA tensors have devices, types and layouts, and compute nothing."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny import facts
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vid3d_cli.clips.preprocess import CROPS, Views
from vid3d_cli.models.clip_model import ClipModel, Normalise
from vid3d_cli.models.registry import BACKBONES
from vid3d_cli.runtimes.torch import DTYPES, TorchRuntime
from vid3d_cli.runtimes.transfer import Transfer

CUDA = torch.device("cuda:0")
SYNCHRONISING = {"aten._local_scalar_dense", "aten.nonzero", "aten.item", "aten.is_nonzero", "aten.equal"}


class Kernels(TorchDispatchMode):
    """Counts what runs on the device, and notes tensors on the host and wrong layouts."""

    def __init__(self):
        super().__init__()
        self.counts, self.host, self.convolutions = Counter(), [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        self.counts[name] += 1
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, result)) if isinstance(x, torch.Tensor)]
        self.host += [name for tensor in tensors if tensor.device.type != "cuda"]
        if name == "aten.convolution":
            self.convolutions.append(args[:3])
        return result


class FakeTransfer(Transfer):
    """Stacks clips on the device at once, so that every tensor on the host is the network's."""

    def stack(self, clips):
        self.answers = []
        dtype = torch.uint8 if clips[0].dtype == np.uint8 else torch.float32
        return torch.empty((len(clips), *clips[0].shape), dtype=dtype, device=CUDA)

    def download(self, tensors):
        self.answers += tensors
        return list


def apply(module, function, recurse=True):
    """`Module._apply` for fake tensors, which may not be swapped."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            part._parameters[name] = None if tensor is None else nn.Parameter(function(tensor), requires_grad=False)
        for name, tensor in part._buffers.items():
            part._buffers[name] = None if tensor is None else function(tensor)
    return module


def fold(convolution, norm, dtype):
    convolution.bias = nn.Parameter(torch.empty_like(norm.running_mean), requires_grad=False)
    return True


def run(monkeypatch, name, variant, stream, precision, views=None):
    """Run two batches; return the kernels of the second, and the answers."""
    root = "vid3d_cli.runtimes.torch."
    monkeypatch.setattr(root + "select_devices", lambda name: [CUDA])
    monkeypatch.setattr(root + "CudaTransfer", FakeTransfer)
    monkeypatch.setattr(root + "copy.deepcopy", lambda model: model)
    monkeypatch.setattr("vid3d_cli.runtimes.folding._copy_to_meta", lambda model: build("meta"))
    monkeypatch.setattr("vid3d_cli.runtimes.folding._fold", fold)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(nn.Module, "_apply", apply)
    backbone = BACKBONES[name]
    num_frames, side_px = backbone.clip_of(variant)
    flow = facts(channel_order=None, bound_px=20.0)
    shape = (num_frames, side_px + 8, side_px + 9) if views else (num_frames, side_px, side_px)
    clip = np.zeros((*shape, 3), np.uint8) if stream == "rgb" else np.zeros((*shape, 2), np.float32)

    def build(device):
        with torch.device(device):
            net = backbone.build(stream, 400, **(backbone.variants[variant] if variant else {}))
            return ClipModel(net.eval(), Normalise(facts() if stream == "rgb" else flow))

    with FakeTensorMode():
        model = build("cpu")
        chosen = Views(CROPS[str(views)], side_px) if views else None
        runtime = TorchRuntime({stream: model}, device="cuda", precision=precision, views=chosen)
        runtime.start_stream(stream, [clip] * 2)
        with Kernels() as kernels:
            runtime.start_stream(stream, [clip] * 2)
    return kernels, runtime._transfer.answers


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("stream", "views"), [("rgb", None), ("flow", 10)])
def test_a_network_stays_on_the_gpu(monkeypatch, stream, views, precision):
    check(monkeypatch, "s3d_mini", None, stream, precision, views)


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, b in BACKBONES.items() for v in (None, *b.variants)])
def test_every_network_stays_on_the_gpu(monkeypatch, name, variant, stream, precision):
    check(monkeypatch, name, variant, stream, precision)


def check(monkeypatch, name, variant, stream, precision, views=None):
    kernels, answers = run(monkeypatch, name, variant, stream, precision, views)
    assert not kernels.host and not SYNCHRONISING & kernels.counts.keys()
    assert {(tensor.device, tensor.dtype) for tensor in answers} == {(CUDA, torch.float32)}
    dtype, num_crops = DTYPES[precision], views or 1
    assert {x.dtype for x, _, _ in kernels.convolutions} <= {dtype, torch.float32}  # float32: a classifier
    assert all(x.dtype == weight.dtype for x, weight, _ in kernels.convolutions)
    num_float32 = sum(x.dtype == torch.float32 for x, _, _ in kernels.convolutions)
    assert precision == "fp32" or num_float32 <= num_crops
    # Not one for each convolution: of the clip and of the last map, of norms and of gates.
    casts = kernels.counts["aten._to_copy"] / num_crops
    assert casts <= (4 if name not in ("s3d_g",) else 90)
