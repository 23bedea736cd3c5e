"""The facts of every backbone, without torch: a network's own file is imported when it is first built.

To add a network, write `backbones/<name>.py` and add its entry to `BACKBONES` below. tests/models/test_registry.py then
compares the entry with the network. A model, that is a backbone with weights, is an entry of weights/manifest.toml.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..suggest import check_known

if TYPE_CHECKING:
    from torch import nn

KeyRules = Sequence[tuple[str, str]]
"""(pattern, replacement) pairs, applied in order to a published tensor name to give ours; an empty result drops it."""

IN_CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of a frame in each stream."""

DEFAULT_VARIANT = "default"
"""The name of every backbone's plain form."""

POOLS = ("avg", "max", "none", "spatial")
"""How a layer's map (C, T, H, W) becomes features: its mean (C,), its maximum (C,), the map itself, or its mean over
space (C, T). `clip_model.pool_map` computes them."""


@dataclass(frozen=True)
class TimeSteps:
    """The steps in time of a network's last map."""

    stride: int
    """Frames from one step to the next."""
    margin: int
    """Frames at each end of a stretch whose steps depend on what lies beyond it: half of the receptive field, or the
    part of it that moves features by 1e-4 of the largest or more. A multiple of `stride`."""
    pool: int = 1
    """Steps that the head averages at a time before it averages the results. With more than 1, the outer steps of a
    clip count less."""

    def weights(self, num_steps: int) -> NDArray[np.float32]:
        """Return the weight of each step of a clip in its features: (num_steps,) float32, whose sum is 1.

        >>> (6 * TimeSteps(stride=8, margin=48, pool=2).weights(4)).round(3).tolist()
        [1.0, 2.0, 2.0, 1.0]
        """
        pool = min(self.pool, num_steps)
        counts = np.convolve(np.ones(num_steps - pool + 1), np.ones(pool))
        weights: NDArray[np.float32] = (counts / counts.sum()).astype(np.float32)
        return weights


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry."""

    network: str
    """File and class below `backbones`, as in "i3d.I3D"; the class takes (in_channels, num_classes, **options)."""
    clip: tuple[int, int]
    """Frames of a clip and its side in pixels, in the paper or with the published weights."""
    feature_dim: int
    """D, the width of `BackboneOutput.features`."""
    classifier: str
    """Name of the last layer's weight, whose first axis is the number of classes."""
    layers: Mapping[str, str]
    """The layers that can give features, in the order in which they run: the paper's name → the module's name. Their
    outputs are (N, C, T, H, W) or (N, D)."""
    min_frames: int = 1
    """Frames of the shortest clip that the network accepts."""
    frame_multiple: int = 1
    """The number of frames must be a multiple of this."""
    is_fixed_size: bool = False
    """Whether fully connected layers bind the network to clips of exactly `clip`."""
    steps: TimeSteps | None = None
    """The steps of the last map, if the network is `Stepwise` and so can run over more frames than a clip."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the class that make it this network."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The paper's other forms of the network: name → options of the class."""
    resizes_px: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """If variants take squares of different sides: side → (height, width) of the frame that the square is cut from."""
    key_layouts: Mapping[str, KeyRules] = field(default_factory=dict)
    """The tensor names of published files: publisher → rules that give ours. No rules: they are ours."""
    image_networks: Mapping[str, KeyRules] = field(default_factory=dict)
    """The 2-D networks that `vid3d inflate` accepts: torchvision's name → rules that give our tensor names."""

    def build(self, stream: str, num_classes: int, **options: Any) -> nn.Module:
        """Return the untrained network of one stream; the first call imports torch and the network's file.

        Args:
            stream: "rgb" or "flow".
            num_classes: K.
            options: options of a variant, or others of the class.
        """
        file, _, name = self.network.partition(".")
        network = getattr(importlib.import_module(f"{__package__}.backbones.{file}"), name)
        net: nn.Module = network(IN_CHANNELS[stream], num_classes, **{**self.options, **options})
        return net

    def clip_of(self, variant: str | None) -> tuple[int, int]:
        """Return `clip` for a variant, whose options may set another `num_frames` and `side_px`."""
        options = self.variants[variant] if variant else {}
        return options.get("num_frames", self.clip[0]), options.get("side_px", self.clip[1])


def _own_names(layers: str, prefix: str = "") -> dict[str, str]:
    """Return layers whose modules have the paper's names, below `prefix`."""
    return {name: prefix + name for name in layers.split()}


# torchvision's GoogLeNet counts the Inception blocks from 3a to 5b, I3D and S3D from 3b to 5c
_GOOGLENET_BLOCKS = {
    **{"3a": "3b", "3b": "3c"},
    **{"4a": "4b", "4b": "4c", "4c": "4d", "4d": "4e", "4e": "4f"},
    **{"5a": "5b", "5b": "5c"},
}

_S3D_STAGES = _own_names(
    "Conv_1a MaxPool_2a Conv_2b Conv_2c MaxPool_3a Mixed_3b Mixed_3c MaxPool_4a "
    "Mixed_4b Mixed_4c Mixed_4d Mixed_4e Mixed_4f MaxPool_5a Mixed_5b Mixed_5c"
)
_S3D_LAYERS = {stage: f"features.{i}" for i, stage in enumerate(_S3D_STAGES)}


def _p3d(depths: tuple[int, int, int, int], margin: int, image_network: str, **others: Any) -> Backbone:
    return Backbone(
        "p3d.P3D",
        clip=(16, 160),
        feature_dim=2048,
        classifier="fc.weight",
        layers={"conv1": "relu", **_own_names("pool1 layer1 layer2 layer3 layer4")},
        steps=TimeSteps(stride=16, margin=margin),
        options={"depths": depths},
        variants={
            "A": {"structure": "A"},
            "B": {"structure": "B"},
            "C": {"structure": "C"},
            "caffe": {"structure": "ABc"},
        },
        image_networks={
            image_network: [  # its 3×3 is the spatial convolution, its last 1×1 the fourth one here
                (r"^conv1\.", "conv1_custom."),
                (r"^(layer4\.\d+)\.conv2\.", r"\1.conv_normal."),
                (r"^(layer4\.\d+)\.bn2\.", r"\1.bn_normal."),
                (r"\.(conv|bn)3\.", r".\g<1>4."),
            ]
        },
        **others,
    )


_RESNET = [  # torchvision's 2-D names
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"\.conv([12])\.", r".conv\1.0."),
    (r"\.bn([12])\.", r".conv\1.1."),
]


def _resnet3d(
    form: str, num_frames: int, key_layouts: Mapping[str, KeyRules], steps: TimeSteps, **others: Any
) -> Backbone:
    return Backbone(
        "resnet3d.ResNet3D",
        clip=(num_frames, 112),
        feature_dim=512,
        classifier="fc.weight",
        layers=_own_names("stem layer1 layer2 layer3 layer4"),
        steps=steps,
        options={"form": form},
        key_layouts=key_layouts,
        **others,
    )


BACKBONES: dict[str, Backbone] = {
    "i3d": Backbone(
        "i3d.I3D",
        clip=(64, 224),
        feature_dim=1024,
        classifier="logits.conv3d.weight",
        layers=_own_names(
            "Conv3d_1a_7x7 MaxPool3d_2a_3x3 Conv3d_2b_1x1 Conv3d_2c_3x3 MaxPool3d_3a_3x3 Mixed_3b Mixed_3c "
            "MaxPool3d_4a_3x3 Mixed_4b Mixed_4c Mixed_4d Mixed_4e Mixed_4f MaxPool3d_5a_2x2 Mixed_5b Mixed_5c"
        ),
        min_frames=9,
        steps=TimeSteps(stride=8, margin=48, pool=2),
        key_layouts={
            "piergiaj": [],
            "hassony2": [
                (r"^conv3d_0c_1x1\.", "logits."),
                (r"^conv3d_(\w+)\.", r"Conv3d_\1."),
                (r"^mixed_", "Mixed_"),
                (r"\.branch_0\.", ".b0."),
                (r"\.branch_([12])\.0\.", r".b\1a."),
                (r"\.branch_([12])\.1\.", r".b\1b."),
                (r"\.branch_3\.1\.", ".b3b."),
                (r"\.batch3d\.", ".bn."),
            ],
            "deepmind": [
                (r"/", "."),
                (r"^((RGB|Flow)\.)?(inception_i3d\.)?", ""),
                (r"^Logits\.Conv3d_0c_1x1\.", "logits."),
                (r"\.Branch_0\.Conv3d_0a_1x1\.", ".b0."),
                (r"\.Branch_([12])\.Conv3d_0a_1x1\.", r".b\1a."),
                (r"\.Branch_([12])\.Conv3d_0[ab]_3x3\.", r".b\1b."),  # 0a in branch 2 of Mixed_5b, by mistake
                (r"\.Branch_3\.Conv3d_0b_1x1\.", ".b3b."),
                (r"\.conv_3d\.w$", ".conv3d.weight"),
                (r"\.conv_3d\.b$", ".conv3d.bias"),
                (r"\.batch_norm\.gamma$", ".bn.weight"),
                (r"\.batch_norm\.beta$", ".bn.bias"),
                (r"\.batch_norm\.moving_mean$", ".bn.running_mean"),
                (r"\.batch_norm\.moving_variance$", ".bn.running_var"),
            ],
        },
        image_networks={
            "googlenet": [
                (r"^aux.*", ""),
                (r"^conv1\.", "Conv3d_1a_7x7."),
                (r"^conv2\.", "Conv3d_2b_1x1."),
                (r"^conv3\.", "Conv3d_2c_3x3."),
                *((f"^inception{theirs}", f"Mixed_{ours}") for theirs, ours in _GOOGLENET_BLOCKS.items()),
                (r"\.branch1\.", ".b0."),
                (r"\.branch2\.0\.", ".b1a."),
                (r"\.branch2\.1\.", ".b1b."),
                (r"\.branch3\.0\.", ".b2a."),
                (r"\.branch3\.1\.", ".b2b."),
                (r"\.branch4\.1\.", ".b3b."),
                (r"\.conv\.", ".conv3d."),
                (r"^fc\.", "logits.conv3d."),
            ]
        },
    ),
    "i3d_r50": Backbone(
        "i3d_r50.I3DResNet50",
        clip=(32, 224),
        feature_dim=2048,
        classifier="fc.weight",
        layers={"conv1": "relu", **_own_names("pool1 layer1 pool2 layer2 layer3 layer4")},
        min_frames=7,
        steps=TimeSteps(stride=8, margin=64),
        key_layouts={"tushar": []},
        image_networks={"resnet50": []},
    ),
    "s3d": Backbone(
        "s3d.S3D",
        clip=(64, 224),
        feature_dim=1024,
        classifier="classifier.1.weight",
        layers=_S3D_LAYERS,
        min_frames=5,
        steps=TimeSteps(stride=8, margin=48, pool=2),
        variants={
            "i3d": {"bottom": "3d", "top": "3d"},
            "i2d": {"bottom": "2d", "top": "2d"},
            "bottom_heavy_i3d": {"bottom": "3d", "top": "2d"},
            "top_heavy_i3d": {"bottom": "2d", "top": "3d"},
            "bottom_heavy_s3d": {"bottom": "separable", "top": "2d"},
            "fast": {"bottom": "2d", "top": "separable"},
        },
        key_layouts={
            "torchvision": [],
            "kylemin": [
                (r"^base\.", "features."),
                (r"^fc\.0\.", "classifier.1."),
                (r"\.branch0\.0\.", ".branch0."),
                (r"\.conv_s\.", ".0.0."),
                (r"\.bn_s\.", ".0.1."),
                (r"\.conv_t\.", ".1.0."),
                (r"\.bn_t\.", ".1.1."),
                (r"\.conv\.", ".0."),
                (r"\.bn\.", ".1."),
            ],
        },
        image_networks={
            "googlenet": [  # becomes the spatial half of each separable convolution
                (r"^aux.*", ""),
                (r"^conv1\.", "features.0.0."),
                (r"^conv2\.", "features.2."),
                (r"^conv3\.", "features.3.0."),
                *((f"^inception{theirs}", _S3D_LAYERS[f"Mixed_{ours}"]) for theirs, ours in _GOOGLENET_BLOCKS.items()),
                (r"\.branch1\.", ".branch0."),
                (r"\.branch2\.0\.", ".branch1.0."),
                (r"\.branch2\.1\.", ".branch1.1.0."),
                (r"\.branch3\.0\.", ".branch2.0."),
                (r"\.branch3\.1\.", ".branch2.1.0."),
                (r"\.branch4\.", ".branch3."),
                (r"\.conv\.", ".0."),
                (r"\.bn\.", ".1."),
                (r"^fc\.", "classifier.1."),
            ]
        },
    ),
    "s3d_mini": Backbone(
        "s3d.S3D",
        clip=(16, 112),
        feature_dim=256,
        classifier="classifier.1.weight",
        layers=_S3D_LAYERS,
        min_frames=5,
        steps=TimeSteps(stride=8, margin=48, pool=2),
        options={"width": 0.25, "momentum": 0.1},  # this momentum suits training from scratch
    ),
    "s3d_g": Backbone(
        "s3d_g.S3DG",
        clip=(32, 224),
        feature_dim=1024,
        classifier="fc.weight",
        # Conv_2c ends with its gating
        layers={stage: stage.lower() for stage in _S3D_STAGES}
        | {"Conv_1a": "conv1", "Conv_2c": "gating", "embedding": "fc"},
        min_frames=2,
        frame_multiple=2,  # space to depth pairs the frames; the variant "paper" accepts any number
        variants={"paper": {"space_to_depth": False}},
        key_layouts={"howto100m": [(r"^text_module\..*", "")]},
    ),
    # In the deep ones, res4 alone sees hundreds of frames, but the far ones have almost no weight.
    "p3d63": _p3d((3, 4, 6, 3), 64, "resnet50"),
    "p3d131": _p3d((3, 4, 23, 3), 112, "resnet101"),
    "p3d199": _p3d((3, 8, 36, 3), 128, "resnet152", key_layouts={"qijiezhao": []}),
    "r3d_18": _resnet3d("r3d_18", 16, {"torchvision": []}, TimeSteps(8, 56), image_networks={"resnet18": _RESNET}),
    "mc3_18": _resnet3d("mc3_18", 16, {"torchvision": []}, TimeSteps(1, 5), image_networks={"resnet18": _RESNET}),
    "r2plus1d_18": _resnet3d("r2plus1d_18", 16, {"torchvision": []}, TimeSteps(8, 56)),
    "r2plus1d_34": _resnet3d(
        "r2plus1d_34",
        32,
        {
            "moabitcoin": [],
            "tsp": [  # fc1 scores actions; fc2 tells action from background, with the help of the whole video
                (r"^features\.", ""),
                (r"^fc1\.", "fc."),
                (r"^fc2\..*", ""),
            ],
        },
        TimeSteps(8, 96),
    ),
    "c3d": Backbone(
        "c3d.C3D",
        clip=(16, 112),
        feature_dim=4096,
        classifier="fc8.weight",
        layers={"conv1a": "conv1", "pool1": "pool1", "conv2a": "conv2"}
        | _own_names("pool2 conv3a conv3b pool3 conv4a conv4b pool4 conv5a conv5b pool5 fc6 fc7"),
        min_frames=16,
        is_fixed_size=True,
        variants={"caffe": {"pads_after": True}},
        key_layouts={
            "davidea": [],
            "mmaction2": [
                (r"^cls_head\.fc_cls\.", "fc8."),
                (r"^backbone\.conv([12])a\.conv\.", r"conv\1."),
                (r"^backbone\.(conv[345][ab])\.conv\.", r"\1."),
                (r"^backbone\.(fc[67])\.", r"\1."),
            ],
        },
    ),
    "ltc": Backbone(
        "ltc.LTC",
        clip=(100, 58),
        feature_dim=2048,
        classifier="fc8.weight",
        layers=_own_names("conv1 pool1 conv2 pool2 conv3 pool3 conv4 pool4 conv5 pool5 fc6 fc7"),
        min_frames=100,
        is_fixed_size=True,
        variants={  # the clips that the authors compare
            f"{num_frames}x{side_px}": {"num_frames": num_frames, "side_px": side_px}
            for side_px, lengths in {112: (16,), 58: (20, 40, 60, 80), 71: (20, 40, 60, 80, 100)}.items()
            for num_frames in lengths
        },
        resizes_px={58: (67, 89), 71: (81, 108), 112: (128, 171)},  # the authors' README
    ),
    "fstcn": Backbone(
        "fstcn.FstCN",
        clip=(30, 204),
        feature_dim=2048,
        classifier="classifier.weight",
        layers=_own_names(
            "scl1 scl2 scl3 scl4 temporal_scl temporal_tp tcl temporal_fc1 temporal_fc2 spatial_scl spatial_fc1 "
            "spatial_fc2 fc"
        ),
        min_frames=30,
        is_fixed_size=True,
        variants={"tcl3": {"kernels": (3,)}, "tcl5": {"kernels": (5,)}},
    ),
    "slowfast_r50": Backbone(
        "slowfast.SlowFast",
        clip=(32, 256),
        feature_dim=2304,
        classifier="blocks.6.proj.weight",
        layers={
            f"{pathway}.{stage}": f"blocks.{i}.multipathway_blocks.{j}"
            for i, stage in enumerate(("pool1", "res2", "res3", "res4", "res5"))
            for j, pathway in enumerate(("slow", "fast"))
        },
        min_frames=4,
        key_layouts={"pytorchvideo": []},
    ),
    "two_stream": Backbone(
        "two_stream.TwoStream",
        clip=(10, 224),
        feature_dim=2048,
        classifier="classifier.weight",
        layers={
            **_own_names("conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5", "features."),
            **_own_names("full6 full7"),
        },
        min_frames=10,
        is_fixed_size=True,
    ),
}


def find_variant(name: str, variant: str | None) -> str | None:
    """Return the variant of that name of the backbone `name`; None for the plain form.

    Raises:
        UsageError: the backbone has no such variant.
    """
    variants = BACKBONES[name].variants
    if variant is None or variant == DEFAULT_VARIANT:
        return None
    check_known(variant, [DEFAULT_VARIANT, *variants], f"{name} has no variant '{variant}'")
    return variant
