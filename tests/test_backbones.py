"""One contract for every backbone of the registry: adding one adds its tests.

`data/*.npz` hold what the original networks returned for seeded weights and clips; see seeded.py.
"""

import functools

import numpy as np
import pytest
import torch
from seeded import SeededCase, case_names
from torch import nn

from vid3d_cli.backbones import BACKBONES
from vid3d_cli.errors import CheckpointError
from vid3d_cli.model import convert_keys, create_model, load_strictly
from vid3d_cli.records import STREAMS

CASES = [name for name in case_names() if SeededCase(name).facts["backbone"] in BACKBONES]


@pytest.mark.parametrize("name", CASES)
def test_a_published_layout_gives_the_numbers_of_the_original(tmp_path, name):
    case = SeededCase(name)
    torch.save({key: torch.from_numpy(array) for key, array in case.state_dict().items()}, tmp_path / "a.pt")
    net = create_model(case.facts["backbone"], stream=case.facts["stream"], weights=tmp_path / "a.pt")
    assert not net.training
    with torch.inference_mode():
        output = net(torch.from_numpy(case.clips()))
    for answer, expected in [(output.features, case.features), (output.logits, case.logits)]:
        assert answer.dtype == torch.float32
        assert answer.shape == expected.shape
        assert np.abs(answer.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_every_published_layout_is_in_a_case():
    """Layouts whose original could not be run have a test beside their backbone's."""
    with_case = {(SeededCase(name).facts["backbone"], SeededCase(name).facts["layout"]) for name in CASES}
    published = {(name, layout) for name, backbone in BACKBONES.items() for layout in backbone.key_layouts}
    assert published - with_case <= {("c3d", "mmaction2"), ("i3d", "deepmind")}


@functools.cache
def on_meta(name, stream="rgb", num_classes=400, variant=""):
    """The network without memory or numbers."""
    backbone = BACKBONES[name]
    with torch.device("meta"):
        return backbone.build(stream, num_classes, **(backbone.variants[variant] if variant else {})).eval()


def meta_clip(name, stream, num_clips=1, variant=""):
    num_frames, side_px = BACKBONES[name].clip_of(variant)
    return torch.empty(num_clips, {"rgb": 3, "flow": 2}[stream], num_frames, side_px, side_px, device="meta")


FORMS = [(name, variant) for name, backbone in BACKBONES.items() for variant in ("", *backbone.variants)]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_both_stems_give_features_and_logits(name, variant, stream):
    output = on_meta(name, stream, 7, variant)(meta_clip(name, stream, 2, variant))
    assert output.features.shape == (2, BACKBONES[name].feature_dim)
    assert output.logits.shape == (2, 7)
    assert output.features.dtype == output.logits.dtype == torch.float32


@pytest.mark.parametrize("name", BACKBONES)
def test_layers_are_modules_that_give_clips_of_maps_or_vectors(name):
    net, shapes = on_meta(name), {}
    assert BACKBONES[name].layers
    hooks = [
        net.get_submodule(path).register_forward_hook(lambda m, i, x, key=layer: shapes.update({key: x.shape}))
        for layer, path in BACKBONES[name].layers.items()
    ]
    net(meta_clip(name, "rgb", num_clips=2))
    for hook in hooks:
        hook.remove()
    assert list(shapes) == list(BACKBONES[name].layers)  # in the order in which they run
    assert {len(shape) for shape in shapes.values()} <= {2, 5}
    assert {shape[0] for shape in shapes.values()} == {2}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_shortest_clip_is_the_stated_one(name):
    backbone, net = BACKBONES[name], on_meta(name)
    shape = list(meta_clip(name, "rgb").shape)
    if backbone.is_fixed_size:
        assert backbone.min_frames == backbone.clip[0]
    shape[2] = backbone.min_frames
    assert net(torch.empty(shape, device="meta")).features.shape == (1, backbone.feature_dim)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_classifier_is_the_last_weight(name):
    net, other = on_meta(name).state_dict(), on_meta(name, "rgb", 7).state_dict()
    differing = [key for key in net if net[key].shape != other[key].shape]
    assert BACKBONES[name].classifier in differing
    assert all(key.startswith(BACKBONES[name].classifier.removesuffix("weight")) for key in differing)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that do not fit
# ---------------------------------------------------------------------------------------------------------------------


def refusal(net, state):
    with pytest.raises(CheckpointError) as error:
        load_strictly(net, state, "a.pt")
    return str(error.value)


@pytest.mark.parametrize("name", BACKBONES)
def test_half_a_checkpoint_is_refused(name):
    net = on_meta(name)
    state = {key: tensor for i, (key, tensor) in enumerate(net.state_dict().items()) if i % 2}
    missing = [key for i, key in enumerate(net.state_dict()) if not i % 2 and "num_batches" not in key]
    message = refusal(net, state)
    assert f"{len(missing)} missing" in message
    assert missing[0] in message


@pytest.mark.parametrize("name", BACKBONES)
def test_another_number_of_classes_is_refused(name):
    message = refusal(on_meta(name), on_meta(name, "rgb", 7).state_dict())
    assert "misshapen" in message
    assert BACKBONES[name].classifier in message


@pytest.mark.parametrize("name", BACKBONES)
def test_the_other_streams_checkpoint_is_refused(name):
    message = refusal(on_meta(name, "flow"), on_meta(name, "rgb").state_dict())
    assert "misshapen" in message


@pytest.mark.parametrize("name", BACKBONES)
def test_another_networks_checkpoint_is_refused(name):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 3, device="meta")

    message = refusal(on_meta(name), convert_keys(Other().state_dict(), BACKBONES[name]))
    assert "2 unexpected: one.weight, one.bias" in message
