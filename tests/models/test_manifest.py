"""The manifest: the values of every entry that ships with vid3d, and how a manifest is read."""

import hashlib
import re
from fractions import Fraction

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.errors import EXIT_USAGE, EXIT_WEIGHTS, UnknownModel, UsageError, WeightsError, WeightsUnavailable
from vid3d_cli.models import manifest
from vid3d_cli.models.manifest import HubSource, ManualSource, PackagedSource, UrlSource
from vid3d_cli.models.registry import BACKBONES

KINETICS400_BLOB = "cdaafcb1415eee46483561e78cb4747cce76a933"  # deepmind/kinetics-i3d, data/label_map.txt

MODELS = list(manifest.model_entries().values())
STREAMS = [(entry, stream) for entry in MODELS for stream in entry.streams]


FILES = [part for entry in MODELS for file in entry.files for part in file.parts]


@pytest.mark.parametrize("entry", MODELS, ids=lambda e: e.name)
class TestEveryModel:
    def test_says_what_a_user_must_know(self, entry):
        assert entry.licence.strip() and entry.dataset.strip()
        assert entry.code.startswith("https://") or not entry.files
        assert len(manifest.read_labels(entry)) == entry.num_classes > 0
        assert len(set(manifest.read_labels(entry))) == entry.num_classes
        assert entry.has_classes or entry.labels_file is None

    def test_has_a_name_and_streams_that_commands_know(self, entry):
        backbone, tag = entry.name.split(".")
        assert (backbone, bool(tag)) == (entry.backbone, True)
        assert list(entry.streams) in (["rgb", "flow"], ["rgb"])
        assert entry.published_streams == tuple(file.stream for file in entry.files)

    def test_says_why_there_are_no_weights(self, entry):
        for stream in entry.streams.values():
            assert (stream.weights is None) == bool(stream.unpublished)
            assert stream.unpublished == "" or stream.unpublished.endswith(".")

    def test_is_found_by_name(self, entry):
        assert manifest.find_model(entry.name) is entry
        if entry.files:
            assert manifest.parse_weights_name(entry.name) == list(entry.files)
        else:
            with pytest.raises(WeightsUnavailable, match="no public weights"):
                manifest.parse_weights_name(entry.name)
        assert [manifest.parse_weights_name(file.name) for file in entry.files] == [[file] for file in entry.files]

    def test_kinetics400_has_one_list_of_classes(self, entry):
        of_kinetics400 = entry.dataset == "Kinetics-400" and bool(entry.files)
        assert of_kinetics400 == (entry.labels_file == "labels/kinetics400.txt")

    def test_the_network_takes_its_clips(self, entry):
        backbone = BACKBONES[entry.backbone]
        assert entry.variant is None or entry.variant in backbone.variants
        assert entry.layout is None or entry.layout in backbone.key_layouts
        assert entry.clip_length >= backbone.min_frames
        assert entry.clip_length % backbone.frame_multiple == 0
        if backbone.is_fixed_size:
            assert (entry.clip_length, entry.crop_px) == backbone.clip_of(entry.variant)

    def test_a_video_becomes_clips(self, entry):
        assert entry.fps > 0
        assert entry.clip_stride > 0
        resized = entry.resize_px if isinstance(entry.resize_px, tuple) else (entry.resize_px,)
        assert 0 < entry.crop_px <= min(resized)

    def test_published_accuracies_are_percentages(self, entry):
        for metric in entry.metrics:
            assert metric.stream in ("rgb", "flow", "fused")
            assert metric.scores and all(0 < score <= 100 for score in metric.scores.values())
            assert all([metric.dataset, metric.split, metric.protocol, metric.source])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.file_name)
class TestEveryFile:
    def test_has_a_name_that_stays_in_the_cache(self, file):
        """The cache's path is made of it."""
        assert re.fullmatch(r"[\w.-]+", file.file_name) and not file.file_name.startswith(".")

    def test_can_be_verified(self, file):
        """Without a digest, an address without a certificate could give anything."""
        assert file.git_blob is None or re.fullmatch("[0-9a-f]{40}", file.git_blob)
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{8,64}", file.sha256)
        assert file.size_bytes is None or file.size_bytes > 0
        urls = [source.url for source in file.sources if isinstance(source, UrlSource)]
        assert all(url.startswith("https://" if not file.has_digest else ("https://", "http://")) for url in urls)

    def test_has_sources_that_do_not_change(self, file):
        assert file.sources
        for source in file.sources:
            assert source.describe()
            if isinstance(source, HubSource):
                assert re.fullmatch("[0-9a-f]{40}", source.revision)
                assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo) and source.file
            elif isinstance(source, ManualSource):
                assert source.page.startswith(("https://", "http://")) and source.how.strip()
            elif isinstance(source, PackagedSource):
                assert (manifest.data_path() / source.packaged).is_file()

    def test_has_its_index_beside_it(self, file):
        """TensorFlow finds the second file by the name of the first."""
        if file.index is not None:
            assert file.file_name.endswith(".data-00000-of-00001")
            assert file.index.file_name == file.file_name.replace(".data-00000-of-00001", ".index")
            assert file.index.name == file.name


@pytest.mark.parametrize(("entry", "stream"), STREAMS, ids=lambda x: x if isinstance(x, str) else x.name)
class TestEveryStream:
    def test_the_network_is_of_the_stated_size(self, entry, stream):
        backbone, facts = BACKBONES[entry.backbone], entry.streams[stream]
        options = backbone.variants[entry.variant] if entry.variant else {}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = backbone.build(stream, entry.num_classes, **options).eval()
            clip = torch.empty(1, {"rgb": 3, "flow": 2}[stream], entry.clip_length, entry.crop_px, entry.crop_px)
            output = net(clip)
        assert output.features.shape == (1, backbone.feature_dim)
        assert output.logits.shape == (1, entry.num_classes)
        assert sum(parameter.numel() for parameter in net.parameters()) == facts.num_parameters
        assert counter.get_total_flops() == 2 * facts.multiply_adds

    def test_the_normalisation_makes_sense(self, entry, stream):
        facts, num_channels = entry.streams[stream].normalisation, {"rgb": 3, "flow": 2}[stream]
        low, high = facts.range
        assert low < high
        assert {len(values) for values in (facts.mean, facts.std) if values is not None} <= {num_channels}
        if stream == "rgb":
            assert facts.channel_order in ("RGB", "BGR")
            assert (facts.bound_px, facts.flow_method, facts.quantised) == (None, None, False)
        else:
            assert facts.channel_order is None
            assert facts.bound_px > 0
            assert facts.flow_method
        for mean in facts.mean or [(low + high) / 2]:
            if stream == "rgb":
                assert low < mean < high
            else:  # no motion is 0, to the nearest of 256 values
                assert abs((low + high) / 2 - mean) <= (high - low) / 255
        for std in facts.std or [1.0]:
            assert 0 < std <= high - low


def test_every_backbone_has_a_model_and_every_model_a_backbone():
    assert set(manifest.backbone_entries()) == set(BACKBONES) == {entry.backbone for entry in MODELS}
    for name, backbone in manifest.backbone_entries().items():
        assert manifest.find_model(name).backbone == name
        assert backbone.summary.strip() and backbone.paper.strip()
        assert [entry.default for entry in MODELS if entry.backbone == name].count(True) == 1


def test_i3d_is_the_published_one():
    entry = manifest.find_model("i3d")
    assert entry.name == "i3d.kinetics400"
    assert (entry.fps, entry.clip_length, entry.resize_px, entry.crop_px) == (Fraction(25), 64, 256, 224)
    assert entry.antialias and entry.has_classes and entry.published_streams == ("rgb", "flow")
    rgb, flow = entry.streams["rgb"], entry.streams["flow"]
    assert rgb.weights.size_bytes == 50_883_138
    assert rgb.weights.git_blob == "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"
    assert flow.weights.git_blob == "ef0e7c282a102f76b14b52643574b80acba4e475"
    assert (rgb.num_parameters, flow.num_parameters) == (12_697_264, 12_675_312)
    assert rgb.normalisation.describe() == "RGB to [-1, 1]"
    assert flow.normalisation.describe() == "flow, truncated to ±20 px, to [-1, 1]"
    assert [type(source) for source in rgb.weights.sources] == [HubSource, UrlSource]


def test_i3d_of_kinetics400_has_one_input_in_all_its_files():
    entries = [manifest.find_model(f"i3d.kinetics400{tag}") for tag in ("", "_tf", "_hassony2", "_scratch")]
    assert len({(e.fps, e.clip_length, e.clip_stride, e.resize_px, e.antialias, e.crop_px) for e in entries}) == 1
    for stream in ("rgb", "flow"):
        assert len({entry.streams[stream].normalisation for entry in entries}) == 1
        assert len({entry.streams[stream].weights.git_blob for entry in entries}) == len(entries)


def test_kinetics400_labels_are_deepminds():
    entry = manifest.find_model("i3d.kinetics400")
    labels = manifest.read_labels(entry)
    assert (labels[0], labels[227], labels[399]) == ("abseiling", "playing cricket", "zumba")
    content = (manifest.data_path() / entry.labels_file).read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == KINETICS400_BLOB


def test_ucf101_labels_are_in_the_order_of_its_class_index():
    labels = manifest.read_labels(manifest.find_model("c3d"))
    assert (labels[0], labels[35], labels[47], labels[100]) == ("ApplyEyeMakeup", "HammerThrow", "JumpRope", "YoYo")
    assert list(labels) == sorted(labels, key=str.lower)


def test_labels_without_a_list_are_numbers():
    labels = manifest.read_labels(manifest.find_model("i3d.charades"))
    assert (labels[0], labels[156], len(labels)) == ("class 0", "class 156", 157)


def test_unknown_model_names_the_closest():
    with pytest.raises(UnknownModel) as caught:
        manifest.find_model("i3d.kinetic400")
    assert str(caught.value) == "unknown model 'i3d.kinetic400': did you mean 'i3d.kinetics400'? See: vid3d models"
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(UnknownModel, match=r"^unknown model 'zzz'\. See: vid3d models$"):
        manifest.find_model("zzz")


def test_unknown_stream_names_those_there_are():
    with pytest.raises(UsageError, match=r"i3d\.kinetics400 has no stream 'audio': choose one of rgb, flow"):
        manifest.parse_weights_name("i3d:audio")


def test_names_without_weights_say_why():
    with pytest.raises(WeightsUnavailable) as caught:
        manifest.parse_weights_name("s3d:flow")
    assert str(caught.value) == "there are no public weights of s3d:flow. Nobody published flow weights of S3D."
    assert caught.value.exit_code == EXIT_WEIGHTS


MANIFEST = """
[backbones.net]
summary = "S"
paper = "P"

[models."net.tag"]
backbone = "net"
default = true
dataset = "D"
num_classes = 3
licence = "L"
code = "C"
preprocessing = { fps = "30000/1001", clip_length = 16, clip_stride = 8, resize_px = 128, crop_px = 112 }

[models."net.tag".streams.flow]
num_parameters = 4
multiply_adds = 8
unpublished = "Lost."
normalisation = { bound_px = 20, range = [-1, 1], flow_method = "DIS", quantised = true }

[models."net.tag".streams.rgb]
num_parameters = 5
multiply_adds = 9
file_name = "w.pt"
sha256 = "0123abcd"
sources = [{ packaged = "w.pt" }]
normalisation = { channel_order = "BGR", range = [0, 255], mean = [104, 117, 123], std = [1, 1, 2] }
"""


def read_manifest(tmp_path, *changes):
    text = MANIFEST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "manifest.toml"
    path.write_text(text, "utf-8")
    return manifest.read_manifest(path)


def test_a_manifest_is_read_into_its_dataclasses(tmp_path):
    read = read_manifest(tmp_path)
    entry = read.models["net.tag"]
    assert read.backbones == {"net": manifest.BackboneEntry("net", "S", "P", stated="")}
    assert (entry.name, entry.fps) == ("net.tag", Fraction(30000, 1001))
    assert (entry.resize_px, entry.antialias, entry.variant, entry.has_classes) == (128, True, None, True)
    assert list(entry.streams) == ["rgb", "flow"]
    assert (entry.streams["rgb"].num_parameters, entry.streams["rgb"].multiply_adds) == (5, 9)
    (file,) = entry.files
    assert (file.name, file.file_name, file.sources) == ("net.tag:rgb", "w.pt", (PackagedSource("w.pt"),))
    assert entry.published_streams == ("rgb",)
    assert (entry.streams["flow"].weights, entry.streams["flow"].unpublished) == (None, "Lost.")
    words = "BGR to [0, 255], minus [104.0, 117.0, 123.0], divided by [1.0, 1.0, 2.0]"
    assert entry.streams["rgb"].normalisation.describe() == words
    assert entry.streams["flow"].normalisation.describe() == "flow, truncated to ±20 px, to [-1, 1]"


def test_a_manifest_may_give_height_and_width(tmp_path):
    entry = read_manifest(tmp_path, ("resize_px = 128", "resize_px = [128, 171]")).models["net.tag"]
    assert entry.resize_px == (128, 171)


def test_a_manifest_of_published_accuracies(tmp_path):
    metric = '[[models."net.tag".metrics]]\nstream = "rgb"\ndataset = "D"\nsplit = "test"\nscores = { top1 = 1.5 }\n'
    metric += 'protocol = "P"\nsource = "S"\n'
    path = tmp_path / "manifest.toml"
    path.write_text(f'{MANIFEST}\n{metric}views = "5 clips"\n{metric}', "utf-8")
    told, not_told = manifest.read_manifest(path).models["net.tag"].metrics
    assert (told.views, not_told.views) == ("5 clips", "")
    assert (told.scores, told.protocol, told.source) == ({"top1": 1.5}, "P", "S")


def test_a_manifest_of_a_checkpoint_of_two_files(tmp_path):
    index = '{ file_name = "w.index", git_blob = "1", sources = [{ url = "https://x/i" }] }'
    read = read_manifest(tmp_path, ("sha256", f"index = {index}\nsha256"))
    (file,) = read.models["net.tag"].files
    assert [part.file_name for part in file.parts] == ["w.pt", "w.index"]
    assert [part.name for part in file.parts] == ["net.tag:rgb"] * 2


@pytest.mark.parametrize(
    ("table", "source", "is_fetched"),
    [
        (f'repo = "a/b", file = "c", revision = "{"1" * 40}"', HubSource("a/b", "c", "1" * 40), True),
        ('url = "https://x/w.pt"', UrlSource("https://x/w.pt"), True),
        ('packaged = "w.pt"', PackagedSource("w.pt"), True),
        ('page = "http://x/w.pt", how = "H."', ManualSource("http://x/w.pt", "H."), False),
    ],
)
def test_the_keys_decide_the_kind_of_a_source(tmp_path, table, source, is_fetched):
    (file,) = read_manifest(tmp_path, ('{ packaged = "w.pt" }', f"{{ {table} }}")).models["net.tag"].files
    assert file.sources == (source,)
    assert file.is_fetched == is_fetched


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('licence = "L"\n', "", "manifest.toml.models.net.tag.licence is missing"),
        ('licence = "L"', 'licence = "L"\nlicense = "L"', "models.net.tag has unknown keys: license"),
        ("num_classes = 3", "num_classes = true", "num_classes must be of type int, got True"),
        ('"30000/1001"', '"1/0"', "fps must be of type Fraction, got '1/0'"),
        ('"30000/1001"', "25", "fps must be of type Fraction, got 25"),
        ("resize_px = 128", "resize_px = [128]", "resize_px must be of type int or tuple, got [128]"),
        ("resize_px = 128", "resize_px = 128, antialias = 1", "antialias must be of type bool"),
        ("multiply_adds = 9\n", "", "streams.rgb.multiply_adds is missing"),
        ('file_name = "w.pt"\n', "", "streams.rgb.weights.file_name is missing"),
        (
            '{ packaged = "w.pt" }',
            '{ packaged = "w.pt", url = "https://x" }',
            "sources[0] must be of type HubSource",
        ),
        ('{ packaged = "w.pt" }', '{ page = "https://x" }', "sources[0] must be of type HubSource"),
        ('{ packaged = "w.pt" }', '{ repo = "a/b", file = "c" }', "sources[0] must be of type HubSource"),
        ("[0, 255]", "[0]", "range must be of type tuple, got [0]"),
        ("[104, 117, 123]", '[104, 117, "123"]', "mean[2] must be of type float, got '123'"),
        ("[backbones.net]", "[backbone.net]", "manifest.toml has unknown keys: backbone"),
        ("[models", "[[[models", "cannot be read"),
    ],
)
def test_a_bad_manifest_names_the_key(tmp_path, old, new, problem):
    with pytest.raises(WeightsError) as caught:
        read_manifest(tmp_path, (old, new))
    assert problem in str(caught.value)


def test_hub_url_opens_in_a_browser():
    source = HubSource("owner/repo", "dir/a file.pt", "0" * 40)
    assert source.url == f"https://huggingface.co/owner/repo/resolve/{'0' * 40}/dir/a%20file.pt"
