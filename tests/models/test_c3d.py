"""C3D: the second published layout, the layers that the field uses, the one size that fits."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded import SeededCase

from vid3d_cli.errors import CheckpointError
from vid3d_cli.models.checkpoint import convert_keys, load_strictly
from vid3d_cli.models.registry import BACKBONES

C3D = BACKBONES["c3d"]
CHANNELS = {"rgb": 3, "flow": 2}

MMACTION2 = {
    "conv1": "backbone.conv1a.conv",
    "conv2": "backbone.conv2a.conv",
    "conv3a": "backbone.conv3a.conv",
    "conv3b": "backbone.conv3b.conv",
    "conv4a": "backbone.conv4a.conv",
    "conv4b": "backbone.conv4b.conv",
    "conv5a": "backbone.conv5a.conv",
    "conv5b": "backbone.conv5b.conv",
    "fc6": "backbone.fc6",
    "fc7": "backbone.fc7",
    "fc8": "cls_head.fc_cls",
}
"""DavideA's modules → mmaction2's, `Recognizer3D` of `C3D` and `I3DHead` without normalisation layers."""


@functools.cache
def case_and_tensors():
    case = SeededCase("c3d_davidea_16f")
    return case, {name: torch.from_numpy(array) for name, array in case.state_dict().items()}


@functools.cache
def seeded_c3d():
    _, tensors = case_and_tensors()
    net = C3D.build("rgb", 487).eval()
    load_strictly(net, tensors, Path("c3d.pickle"), "c3d")
    return net


def on_meta(stream="rgb", num_classes=487, **options):
    with torch.device("meta"):
        return C3D.build(stream, num_classes, **options).eval()


def in_mmaction2s_names():
    renamed = {}
    for name, tensor in case_and_tensors()[1].items():
        module, kind = name.split(".")
        renamed[f"{MMACTION2[module]}.{kind}"] = tensor
    return renamed


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def test_mmaction2s_layout_gives_the_same_tensors():
    converted, (_, tensors) = convert_keys(in_mmaction2s_names(), C3D), case_and_tensors()
    assert converted.keys() == tensors.keys()
    assert all(converted[name] is tensors[name] for name in tensors)


@pytest.mark.exhaustive
def test_mmaction2s_layout_gives_the_numbers_of_the_original():
    case, _ = case_and_tensors()
    net = C3D.build("rgb", 487).eval()
    load_strictly(net, convert_keys(in_mmaction2s_names(), C3D), Path("c3d.pth"), "c3d")
    with torch.inference_mode():
        output = net(torch.from_numpy(case.clips()))
    for answer, expected in [(output.features, case.features), (output.logits, case.logits)]:
        assert np.abs(answer.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_mmaction2s_pretrained_file_is_refused_for_its_missing_classifier():
    headless = {
        name.removeprefix("backbone."): tensor
        for name, tensor in in_mmaction2s_names().items()
        if not name.startswith("cls_head")
    }
    with pytest.raises(CheckpointError, match="missing"):
        load_strictly(on_meta(), convert_keys(headless, C3D), Path("c3d_sports1m_pretrain.pth"), "c3d")


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def test_layers_are_what_comes_out_of_the_relu_and_stay_so():
    case, tensors = case_and_tensors()
    net, given, copies = seeded_c3d(), {}, {}

    def keep(name, module, inputs, output):
        given[name], copies[name] = output, output.clone()

    hooks = [
        net.get_submodule(path).register_forward_hook(functools.partial(keep, name))
        for name, path in C3D.layers.items()
    ]
    # channels-last, as the pipeline's clips come: fc6 must read pool5 in the order of its logical axes
    clips = torch.from_numpy(case.clips()).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        output = net(clips)
    for hook in hooks:
        hook.remove()
    for name in C3D.layers:
        assert given[name].min() >= 0
        torch.testing.assert_close(given[name], copies[name], rtol=0, atol=0)
    assert given["pool5"].shape == (2, 512, 1, 4, 4)
    fc6 = (given["pool5"].reshape(2, 8192) @ tensors["fc6.weight"].T + tensors["fc6.bias"]).clamp(min=0)
    fc7 = (fc6 @ tensors["fc7.weight"].T + tensors["fc7.bias"]).clamp(min=0)
    torch.testing.assert_close(given["fc6"], fc6, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given["fc7"], fc7, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.features, given["fc7"], rtol=0, atol=0)


@pytest.mark.parametrize(("variant", "before", "after"), [(None, 1, 1), ("caffe", 0, 1)])
def test_pool5_pads_on_the_sides_that_it_should(variant, before, after):
    """7 px → 4: DavideA's and mmaction2's pool 0|12|34|56, Caffe's 01|23|45|6."""
    pool5 = on_meta(**(C3D.variants[variant] if variant else {})).pool5
    maps = torch.rand(1, 3, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    padded = F.pad(maps, (before, after, before, after))
    windows = padded.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)
    pooled = pool5(maps)
    assert pooled.shape == (1, 3, 1, 4, 4)
    torch.testing.assert_close(pooled, windows.amax((-1, -2, -3)), rtol=0, atol=0)


def test_dropout_works_in_training_only():
    net = C3D.build("rgb", 3).train()
    features = torch.ones(1, 4096)
    assert (net.dropout(features) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(net.eval().dropout(features), features)
