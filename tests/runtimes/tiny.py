"""Networks small enough to check by hand, clips for them, and their expected outputs."""

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vid3d_cli.models.backbones import BackboneOutput
from vid3d_cli.models.clip_model import ClipModel, Normalise
from vid3d_cli.models.manifest import Normalisation
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.runtimes.torch import TorchRuntime

K = 5


def facts(**changes):
    """How rgb is normalised to ±1, with changes."""
    fields = {
        "range": (-1.0, 1.0),
        "mean": None,
        "std": None,
        "channel_order": "RGB",
        "bound_px": None,
        "flow_method": None,
        "quantised": False,
    }
    return Normalisation(**{**fields, **changes})


class Tiny(nn.Module):
    """A convolution, means over halves of time, a classifier: different clips get different outputs."""

    def __init__(self, num_channels, max_batch=10**9, error=None):
        super().__init__()
        torch.manual_seed(num_channels)
        self.conv = nn.Conv3d(num_channels, 4, 3)
        self.head = nn.Linear(8, K)
        self.max_batch, self.error = max_batch, error or torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.batches, self.dtypes, self.grad = [], set(), set()

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.max_batch:
            raise self.error
        x = self.conv(x).relu()
        self.dtypes.add(x.dtype)
        self.grad.add(torch.is_grad_enabled())
        x, half = x.float(), x.shape[2] // 2
        features = torch.cat([x[:, :, :half].mean((2, 3, 4)), x[:, :, half:].mean((2, 3, 4))], 1)
        return BackboneOutput(features, self.head(features))


def make_clips(num_clips, streams=("rgb", "flow")):
    rng = np.random.default_rng(7)
    arrays = {
        "rgb": lambda: rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "flow": lambda: rng.normal(0, 12, (6, 8, 8, 2)).astype(np.float32),
    }
    return [
        Clip(ClipSpan(i, 4 * i, 6, i / 2, i / 2 + 1), {stream: arrays[stream]() for stream in streams})
        for i in range(num_clips)
    ]


def make_models(streams=("rgb", "flow"), **options):
    normalisations = {"rgb": facts(), "flow": facts(channel_order=None, bound_px=20.0)}
    channels = {"rgb": 3, "flow": 2}
    return {s: ClipModel(Tiny(channels[s], **options), Normalise(normalisations[s])) for s in streams}


def make_runtime(models=None, **options):
    return TorchRuntime(models or make_models(), **{"device": "cpu", "precision": "fp32", **options})


def by_hand(clip):
    """Tiny's outputs for one clip, in float64."""
    answers = {}
    for stream, x in clip.streams.items():
        x = x.astype(np.float64)
        x = x / 127.5 - 1 if stream == "rgb" else np.clip(x, -20, 20) / 20
        net = Tiny(x.shape[-1]).double()
        with torch.no_grad():
            y = net.conv(torch.from_numpy(x).permute(3, 0, 1, 2)[None]).relu().numpy()[0]
            half = y.shape[1] // 2
            features = np.concatenate([y[:, :half].mean((1, 2, 3)), y[:, half:].mean((1, 2, 3))])
            answers[stream] = features, net.head.weight.numpy() @ features + net.head.bias.numpy()
    return answers


def check_outputs(clips, outputs, rtol=1e-5, atol=1e-5):
    assert [output.span for output in outputs] == [clip.span for clip in clips]
    for clip, output in zip(clips, outputs, strict=True):
        assert list(output.features) == list(output.logits) == list(clip.streams)
        for stream, (features, logits) in by_hand(clip).items():
            assert output.features[stream].dtype == output.logits[stream].dtype == np.float32
            np.testing.assert_allclose(output.features[stream], features, rtol=rtol, atol=atol)
            np.testing.assert_allclose(output.logits[stream], logits, rtol=rtol, atol=atol)


def wide_clips(stream, num_clips, height=9, width=14):
    rng = np.random.default_rng(0)
    shape = (num_clips, 6, height, width, 3 if stream == "rgb" else 2)
    arrays = rng.integers(0, 256, shape, np.uint8) if stream == "rgb" else rng.normal(0, 9, shape).astype(np.float32)
    return [Clip(ClipSpan(i, 0, 6, 0.0, 1.0), {stream: array}) for i, array in enumerate(arrays)]


def tiny_model(stream):
    range_ = facts() if stream == "rgb" else facts(channel_order=None, bound_px=20.0)
    return ClipModel(Tiny(3 if stream == "rgb" else 2), Normalise(range_))


def shake(net):
    """Fill the batch norms with values that differ, as training does."""
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            for tensor, low, high in [
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
                (norm.weight.data, 0.5, 2),
                (norm.bias.data, -0.5, 0.5),
            ]:
                tensor.uniform_(low, high, generator=generator)
    return net.eval()
