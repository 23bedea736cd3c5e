"""One contract for every backbone of the registry: adding one adds its tests.

`data/*.npz` hold what the original networks returned for seeded weights and clips; see seeded.py.
"""

import functools
import re

import numpy as np
import pytest
import torch
import torchvision
from lively import lively, noise
from seeded import SeededCase, case_names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.errors import CheckpointError, ShapeError, UsageError
from vid3d_cli.models.backbones import Stepwise
from vid3d_cli.models.checkpoint import (
    convert_keys,
    count_classes,
    describe_misfits,
    load_strictly,
    recognise_layout,
    rename_keys,
)
from vid3d_cli.models.clip_model import create_model
from vid3d_cli.models.registry import BACKBONES

CASES = [name for name in case_names() if SeededCase(name).facts["backbone"] in BACKBONES]
QUICK_CASES = {"i3d_rgb_piergiaj_23f", "r3d18_torchvision_16f"}

SIBLINGS = {"p3d131", "p3d199", "r2plus1d_34", "mc3_18"}
"""Networks built of the parts of smaller ones: only in the exhaustive tests."""
EACH = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SIBLINGS)) for name in BACKBONES]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK_CASES else [pytest.mark.exhaustive]) for name in CASES]
)
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


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * name.startswith(("p3d131", "p3d199"))) for name in CASES],
)
def test_a_published_layout_is_renamed_to_ours(name):
    case = SeededCase(name).facts
    published = {key: torch.empty(shape, device="meta") for key, shape in case["shapes"].items()}
    renamed, backbone = convert_keys(published, BACKBONES[case["backbone"]]), BACKBONES[case["backbone"]]
    net = on_meta(case["backbone"], case["stream"], count_classes(renamed, backbone))
    assert describe_misfits(net.state_dict(), renamed) == ""
    assert recognise_layout(published, backbone) == case["layout"]


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


@pytest.mark.parametrize(
    ("name", "variant", "stream"),
    [
        *((name, variant, "rgb") for name, variant in FORMS),
        *(pytest.param(name, "", "flow", marks=[pytest.mark.exhaustive] * (name in SIBLINGS)) for name in BACKBONES),
        *(pytest.param(name, v, "flow", marks=[pytest.mark.exhaustive]) for name, v in FORMS if v),
    ],
)
def test_both_stems_give_features_and_logits(name, variant, stream):
    output = on_meta(name, stream, 7, variant)(meta_clip(name, stream, 2, variant))
    assert output.features.shape == (2, BACKBONES[name].feature_dim)
    assert output.logits.shape == (2, 7)
    assert output.features.dtype == output.logits.dtype == torch.float32


@pytest.mark.parametrize("name", EACH)
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


def run_on_meta(name, num_frames, side_px, variant=""):
    return on_meta(name, variant=variant)(torch.empty(1, 3, num_frames, side_px, side_px, device="meta"))


@pytest.mark.parametrize("name", EACH)
def test_min_frames_is_the_shortest_clip_that_runs(name):
    backbone = BACKBONES[name]
    assert run_on_meta(name, backbone.min_frames, backbone.clip[1]).features.shape == (1, backbone.feature_dim)
    with pytest.raises(ShapeError):
        run_on_meta(name, backbone.min_frames - 1, backbone.clip[1])


@pytest.mark.parametrize("name", EACH)
def test_frame_multiple_is_the_smallest_step_between_lengths_that_run(name):
    backbone = BACKBONES[name]
    if backbone.is_fixed_size:
        return
    for extra in range(1, backbone.frame_multiple):
        with pytest.raises(ShapeError):
            run_on_meta(name, backbone.clip[0] + extra, backbone.clip[1])
    run_on_meta(name, backbone.clip[0] + backbone.frame_multiple, backbone.clip[1])


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, v in FORMS if BACKBONES[name].is_fixed_size])
def test_a_network_of_fixed_size_accepts_its_own_clip_alone(name, variant):
    num_frames, side_px = BACKBONES[name].clip_of(variant)
    run_on_meta(name, num_frames, side_px, variant)
    for other in [(num_frames - 1, side_px), (num_frames + 1, side_px), (num_frames, side_px + 1)]:
        with pytest.raises(ShapeError, match=rf"exactly {num_frames} frames.*got \({other[0]}, {other[1]}") as error:
            run_on_meta(name, *other, variant)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if not backbone.is_fixed_size])
def test_other_networks_accept_clips_of_other_sizes(name):
    num_frames, side_px = BACKBONES[name].clip
    assert run_on_meta(name, 2 * num_frames, side_px + 32).features.shape == (1, BACKBONES[name].feature_dim)


@pytest.mark.parametrize("name", EACH)
def test_steps_are_those_of_the_last_map(name):
    backbone, net = BACKBONES[name], on_meta(name)
    assert isinstance(net, Stepwise) == (backbone.steps is not None)
    if backbone.steps is not None:
        stride, margin = backbone.steps.stride, backbone.steps.margin
        num_steps = 2 * -(-backbone.clip[0] // stride)
        clips = torch.empty(1, 3, num_steps * stride, backbone.clip[1], backbone.clip[1], device="meta")
        assert net.steps(clips).features.shape == (1, backbone.feature_dim, num_steps)
        assert net.maps(clips[:, :, : num_steps * stride - stride]).shape[2] == num_steps - 1
        assert margin > 0 or stride == 1
        assert margin % stride == 0


@pytest.mark.parametrize("name", EACH)
def test_every_variant_is_another_network(name):
    """Its options change the modules, or the clip."""
    variants = ["", *BACKBONES[name].variants]
    forms = {(repr(on_meta(name, variant=variant)), BACKBONES[name].clip_of(variant)) for variant in variants}
    assert len(forms) == len(variants)
    assert "default" not in variants


def test_ltc_has_a_frame_size_for_every_side():
    for backbone in BACKBONES.values():
        sides = {backbone.clip_of(variant)[1] for variant in ("", *backbone.variants)}
        assert set(backbone.resizes_px) == (sides if len(sides) > 1 else set())


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.image_networks])
def test_the_2d_networks_fit(name):
    """Every tensor of torchvision's network has its place, save in time, and in the auxiliary classifiers."""
    for image_network, rules in BACKBONES[name].image_networks.items():
        with torch.device("meta"):
            options = {"init_weights": False} if image_network == "googlenet" else {}
            image = getattr(torchvision.models, image_network)(weights=None, **options).state_dict()
        renamed = rename_keys(image, rules)
        assert renamed
        assert renamed.keys() <= on_meta(name).state_dict().keys()


@pytest.mark.parametrize("name", EACH)
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


@pytest.mark.parametrize("name", EACH)
def test_half_a_checkpoint_is_refused(name):
    net = on_meta(name)
    state = {key: tensor for i, (key, tensor) in enumerate(net.state_dict().items()) if i % 2}
    missing = [key for i, key in enumerate(net.state_dict()) if not i % 2 and "num_batches" not in key]
    message = refusal(net, state)
    assert f"{len(missing)} missing" in message
    assert missing[0] in message


@pytest.mark.parametrize("name", EACH)
def test_another_number_of_classes_is_refused(name):
    message = refusal(on_meta(name), on_meta(name, "rgb", 7).state_dict())
    assert "misshapen" in message
    assert BACKBONES[name].classifier in message


@pytest.mark.parametrize("name", EACH)
def test_the_other_streams_checkpoint_is_refused(name):
    message = refusal(on_meta(name, "flow"), on_meta(name, "rgb").state_dict())
    assert "misshapen" in message


@pytest.mark.parametrize("name", EACH)
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
    pytest.param("p3d63", "rgb", "p3d199", "flow", marks=pytest.mark.exhaustive),
    pytest.param("slowfast_r50", "rgb", "two_stream", "rgb", marks=pytest.mark.exhaustive),
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


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", ["c3d.sports1m", "p3d199.kinetics400"])
def test_the_weights_of_a_model_bring_its_variant(monkeypatch, tmp_path, model):
    name = model.split(".")[0]
    variant = on_meta(name, "rgb", 400, "caffe")
    torch.save(BACKBONES[name].build("rgb", 5).state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr("vid3d_cli.models.clip_model.pull", lambda file: tmp_path / "a.pt")
    for net in (create_model(model), create_model(name, weights=model), create_model(model, weights=model)):
        assert repr(net).replace("=5", "=400") == repr(variant).replace("=487", "=400")
    assert repr(create_model(name, weights=tmp_path / "a.pt")) != repr(create_model(name, weights=model))


def test_another_number_of_classes_is_named(tmp_path):
    torch.save(create_model("s3d_mini", num_classes=5).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"does not fit s3d_mini.*It has 5 classes: leave num_classes out"):
        create_model("s3d_mini", weights=tmp_path / "a.pt", num_classes=7)
    for num_classes in (0, -1):
        with pytest.raises(UsageError, match="num_classes must be at least 1"):
            create_model("s3d_mini", num_classes=num_classes)


def test_half_a_published_file_is_compared_under_our_names(tmp_path):
    (case,) = [case for case in map(SeededCase, CASES) if case.facts["layout"] == "kylemin"]
    half = list(case.facts["shapes"].items())[:200]
    torch.save({key: torch.zeros(shape) for key, shape in half}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="missing: ") as error:
        create_model("s3d", weights=tmp_path / "a.pt")
    assert "unexpected" not in str(error.value)


def test_half_a_checkpoint_lists_the_known_layouts(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(dict(list(create_model("s3d_mini").state_dict().items())[:50]), path)
    with pytest.raises(CheckpointError, match=r"missing: .*the file is complete.*torchvision, kylemin"):
        create_model("s3d", weights=path)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------

# Parameters and multiply-adds of the public implementations; with flow, the stem has one channel less.
SIZES = {
    ("i3d", "rgb", 400): (12_697_264, 111_150_686_208),  # + 6 steps whose logits the original averages: 111.153 G
    ("i3d", "flow", 400): (12_675_312, 102_338_977_792),
    ("i3d", "rgb", 157): (12_448_189, 111_150_437_376),  # Charades
    ("i3d_r50", "rgb", 400): (28_043_472, 32_829_964_288),  # counted from the tensors of the reference case
    ("i3d_r50", "flow", 400): (28_043_472 - 64 * 245, 32_829_964_288 - 64 * 245 * 16 * 112**2),
    ("s3d", "rgb", 400): (8_320_048, 71_913_857_024),  # torchvision
    ("s3d", "flow", 400): (8_320_048 - 64 * 49, 71_913_857_024 - 64 * 49 * 64 * 112**2),
    ("s3d", "rgb", 101): (8_320_048 - 299 * 1025, 71_913_857_024 - 299 * 1024),
    ("s3d_g", "rgb", 512): (9_670_800, 36_292_438_784),
    ("s3d_g", "flow", 512): (9_654_416, 33_004_104_448),
    ("p3d63", "rgb", 400): (25_745_232, 8_441_856_000),
    ("p3d63", "flow", 400): (25_745_232 - 64 * 49, 8_441_856_000 - 64 * 49 * 16 * 80**2),
    ("p3d131", "rgb", 400): (48_088_400, 12_898_304_000),
    ("p3d131", "flow", 400): (48_088_400 - 64 * 49, 12_898_304_000 - 64 * 49 * 16 * 80**2),
    ("p3d199", "rgb", 400): (66_492_240, 18_403_328_000),
    ("p3d199", "flow", 400): (66_489_104, 18_403_328_000 - 64 * 49 * 16 * 80**2),
    ("r3d_18", "rgb", 400): (33_371_472, 40_696_553_472),  # torchvision: 40.697, 43.343 and 40.519 G
    ("r3d_18", "flow", 400): (33_371_472 - 64 * 147, 40_696_553_472 - 64 * 147 * 16 * 56**2),
    ("mc3_18", "rgb", 400): (11_695_440, 43_342_635_008),
    ("r2plus1d_18", "rgb", 400): (31_505_325, 40_519_080_960),
    ("r2plus1d_18", "flow", 400): (31_505_325 - 45 * 49, 40_519_080_960 - 45 * 49 * 16 * 56**2),
    ("r2plus1d_34", "rgb", 400): (63_697_175, 152_355_715_072),
    ("c3d", "rgb", 487): (79_991_015, 38_548_959_232),  # Sports-1M
    ("c3d", "flow", 487): (79_991_015 - 64 * 27, 38_548_959_232 - 64 * 27 * 16 * 112**2),
    ("c3d", "rgb", 101): (78_409_573, 38_547_378_176),  # UCF-101; mmaction2: 78.4 M and 38.5 G
    ("slowfast_r50", "rgb", 400): (34_566_488, 65_708_888_064),  # pytorchvideo: 34.57 M and 65.71 G
    ("slowfast_r50", "flow", 400): (
        34_566_488 - 64 * 49 - 8 * 245,
        65_708_888_064 - (64 * 49 * 8 + 8 * 245 * 32) * 128**2,
    ),
    ("two_stream", "rgb", 1000): (92_469_864, 1_665_735_712),  # 370 MB, as VGG_CNN_M_2048.caffemodel has
    ("two_stream", "rgb", 400): (92_469_864 - 600 * 2049, 1_665_735_712 - 600 * 2048),
    ("two_stream", "flow", 400): (
        92_469_864 - 600 * 2049 + 17 * 96 * 49,
        1_665_735_712 - 600 * 2048 + 17 * 96 * 49 * 109**2,
    ),
}


@pytest.mark.parametrize(
    ("name", "stream", "num_classes"),
    [pytest.param(*size, marks=[pytest.mark.exhaustive] * (size[0] in SIBLINGS)) for size in SIZES],
)
def test_sizes_are_those_of_the_public_implementations(name, stream, num_classes):
    net = on_meta(name, stream, num_classes)
    with FlopCounterMode(display=False) as counter:
        net(meta_clip(name, stream))
    sizes = sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() / 2
    assert sizes == SIZES[name, stream, num_classes]


# ---------------------------------------------------------------------------------------------------------------------
# Clips
# ---------------------------------------------------------------------------------------------------------------------

SMALLEST = {
    "i3d": (9, 193, 193),
    "i3d_r50": (7, 5, 5),
    **dict.fromkeys(("s3d", "s3d_mini"), (5, 17, 17)),
    "s3d_g": (2, 2, 2),
    **dict.fromkeys(("p3d63", "p3d131", "p3d199"), (1, 3, 3)),
    **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18", "r2plus1d_34"), (1, 1, 1)),
    "slowfast_r50": (4, 1, 1),
}


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if not backbone.is_fixed_size])
def test_the_smallest_clip_runs_and_a_smaller_one_is_refused(name):
    smallest, net = SMALLEST[name], on_meta(name)
    assert net(torch.empty(1, 3, *smallest, device="meta")).features.shape == (1, BACKBONES[name].feature_dim)
    for axis in range(3):
        smaller = tuple(size - (i == axis) for i, size in enumerate(smallest))
        with pytest.raises(ShapeError, match=re.escape(str(smaller))) as error:
            net(torch.empty(1, 3, *smaller, device="meta"))
        assert "\n" not in str(error.value)


# Clips that are quick to compute: (T, H, W), and the variant if the network accepts only its own clip.
SMALL_CLIPS = {
    "i3d": ((9, 193, 193), ""),
    "c3d": ((16, 112, 112), ""),
    "ltc": ((20, 58, 58), "20x58"),
    "fstcn": ((30, 204, 204), "tcl3"),
    "two_stream": ((10, 224, 224), ""),
}
LARGE = (
    "p3d131",
    "p3d199",
    "r2plus1d_34",
    "c3d",
    "fstcn",
    "i3d",
    "i3d_r50",
    "two_stream",
    "slowfast_r50",
    "r2plus1d_18",
    "mc3_18",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in LARGE else []) for name in BACKBONES]
)
def test_clips_do_not_mix_and_their_layout_in_memory_does_not_matter(name):
    shape, variant = SMALL_CLIPS.get(name, ((10, 40, 56), ""))
    backbone = BACKBONES[name]
    net = lively(backbone.build("flow", 5, **(backbone.variants[variant] if variant else {})))
    clips = noise(2, 2, *shape)
    with torch.inference_mode():
        together, alone = net(clips), net(clips[1:])
        channels_last = net(clips.contiguous(memory_format=torch.channels_last_3d))
    for expected, single, other in zip(together, alone, channels_last, strict=True):
        largest = expected.abs().max()
        assert (single - expected[1:]).abs().max() <= 1e-5 * largest
        assert (other - expected).abs().max() <= 1e-5 * largest
        assert (expected[0] - expected[1]).abs().max() > 1e-3 * largest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in LARGE else []) for name in BACKBONES]
)
def test_training_reaches_every_parameter(name):
    with torch.device("meta"):
        net = BACKBONES[name].build("rgb", 5).train()
    net(meta_clip(name, "rgb", num_clips=2)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EACH)
def test_every_parameter_learns(name):
    shape, variant = SMALL_CLIPS.get(name, ((10, 40, 56), ""))
    backbone = BACKBONES[name]
    net = lively(backbone.build("flow", 5, **(backbone.variants[variant] if variant else {})))
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    net(noise(2, 2, *shape)).logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(parameter.grad.any() for parameter in net.parameters())
