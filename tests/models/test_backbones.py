"""One contract for every backbone of the registry: adding one adds its tests.

`data/*.npz` hold what the original networks returned for seeded weights and clips; see seeded.py.
"""

import functools

import numpy as np
import pytest
import torch
from seeded import SeededCase, case_names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.errors import CheckpointError, UsageError
from vid3d_cli.models.backbones import BACKBONES
from vid3d_cli.models.clip_model import convert_keys, create_model, load_strictly
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
        load_strictly(net, state, "a.pt", "net")
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


FAMILIES = [  # what refuses a checkpoint says which network it is of
    ("s3d", "rgb", "i3d", "rgb"),
    ("i3d", "flow", "i3d", "rgb"),
    ("r3d_18", "rgb", "r2plus1d_18", "rgb"),
    ("p3d63", "rgb", "p3d199", "flow"),
    ("slowfast_r50", "rgb", "two_stream", "rgb"),
]


@pytest.mark.parametrize(("name", "stream", "asked", "asked_stream"), FAMILIES)
def test_a_checkpoint_of_another_network_is_named(tmp_path, name, stream, asked, asked_stream):
    path = tmp_path / "a.pt"
    torch.save(BACKBONES[name].build(stream, 5).state_dict(), path)
    with pytest.raises(CheckpointError) as error:
        create_model(asked, stream=asked_stream, weights=path)
    message = str(error.value)
    assert "\n" not in message
    what = f"It fits {name}'s {stream} stream with 5 classes"
    assert f"{what}: try --model {name} --streams {stream} --weights {stream}={path}" in message


def test_a_checkpoint_of_a_variant_is_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(create_model("s3d", variant="fast", num_classes=5).state_dict(), path)
    with pytest.raises(CheckpointError, match="try --model s3d --variant fast --streams rgb --weights rgb="):
        create_model("s3d", weights=path)
    assert create_model("s3d", weights=path, variant="fast").state_dict().keys() == torch.load(path).keys()
    assert create_model("s3d", variant="default").state_dict().keys() == create_model("s3d").state_dict().keys()
    with pytest.raises(UsageError, match="s3d has no variant 'slow': choose one of default, i3d, i2d"):
        create_model("s3d", variant="slow")


@pytest.mark.parametrize(("model", "num_classes"), [("s3d.kinetics400_kylemin", 400), ("c3d.sports1m", 487)])
def test_the_model_whose_input_a_file_was_trained_on_is_suggested(tmp_path, model, num_classes):
    """Two models of one backbone, with different input, are told apart by their tensor names."""
    (case,) = [
        c
        for c in map(SeededCase, CASES)
        if c.facts["layout"] in ("kylemin", "davidea") and c.facts["backbone"] == model.split(".")[0]
    ]
    torch.save({key: torch.zeros(shape) for key, shape in case.facts["shapes"].items()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"with {num_classes} classes: try --model {model} --streams rgb"):
        create_model("i3d", weights=tmp_path / "a.pt")


@pytest.mark.parametrize("model", ["c3d.sports1m", "p3d199.kinetics400"])
def test_the_weights_of_a_model_bring_its_variant(monkeypatch, tmp_path, model):
    name = model.split(".")[0]
    variant = on_meta(name, "rgb", 400, "caffe")
    torch.save(BACKBONES[name].build("rgb", 5).state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr("vid3d_cli.models.clip_model.pull", lambda file: tmp_path / "a.pt")
    for net in (create_model(model), create_model(name, weights=model), create_model(model, weights=model)):
        assert repr(net).replace("=5", "=400") == repr(variant).replace("=487", "=400")
    assert repr(create_model(name, weights=tmp_path / "a.pt")) != repr(create_model(name, weights=model))


def test_other_class_counts_are_told(tmp_path):
    torch.save(create_model("s3d_mini", num_classes=5).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"does not fit s3d_mini.*It has 5 classes: leave num_classes out"):
        create_model("s3d_mini", weights=tmp_path / "a.pt", num_classes=7)
    for num_classes in (0, -1):
        with pytest.raises(UsageError, match="at least 1 class"):
            create_model("s3d_mini", num_classes=num_classes)


def test_half_a_file_in_anothers_names_is_compared_in_these(tmp_path):
    (case,) = [case for case in map(SeededCase, CASES) if case.facts["layout"] == "kylemin"]
    half = list(case.facts["shapes"].items())[:200]
    torch.save({key: torch.zeros(shape) for key, shape in half}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="missing: ") as error:
        create_model("s3d", weights=tmp_path / "a.pt")
    assert "unexpected" not in str(error.value)


def test_half_a_checkpoint_is_told_what_is_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(dict(list(create_model("s3d_mini").state_dict().items())[:50]), path)
    with pytest.raises(CheckpointError, match=r"missing: .*Is the file whole.*torchvision, kylemin"):
        create_model("s3d", weights=path)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------

# Parameters, and multiply-adds in 1e9, of the public implementations with 400 classes (C3D 487) on the published clip.
PUBLISHED_SIZES = {
    ("i3d", "rgb"): (12_697_264, 111.153),
    ("i3d", "flow"): (12_675_312, 102.341),
    ("s3d", "rgb"): (8_320_048, 71.916),
    ("p3d63", "rgb"): (25_745_232, 8.442),
    ("p3d131", "rgb"): (48_088_400, 12.898),
    ("p3d199", "rgb"): (66_492_240, 18.403),
    ("p3d199", "flow"): (66_489_104, 18.082),
    ("r3d_18", "rgb"): (33_371_472, 40.697),
    ("mc3_18", "rgb"): (11_695_440, 43.343),
    ("r2plus1d_18", "rgb"): (31_505_325, 40.519),
    ("r2plus1d_34", "rgb"): (63_697_175, 152.356),
    ("c3d", "rgb"): (79_991_015, 38.549),
    ("slowfast_r50", "rgb"): (34_566_488, 65.709),
}

# The originals classify each of seven steps in time and average; here the mean is classified, which is the same.
CLASSIFIED_STEPS = {"i3d": 7, "s3d": 7}


@pytest.mark.parametrize(("name", "stream"), PUBLISHED_SIZES)
def test_sizes_are_those_of_the_public_implementations(name, stream):
    num_classes = 487 if name == "c3d" else 400
    net = on_meta(name, stream, num_classes)
    with FlopCounterMode(display=False) as counter:
        net(meta_clip(name, stream))
    spared = (CLASSIFIED_STEPS.get(name, 1) - 1) * BACKBONES[name].feature_dim * num_classes
    sizes = sum(p.numel() for p in net.parameters()), round((counter.get_total_flops() // 2 + spared) / 1e9, 3)
    assert sizes == PUBLISHED_SIZES[name, stream]
