"""What the manifest says: every entry of ours, and what is refused in anybody's."""

import hashlib
import re
from fractions import Fraction

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vid3d_cli.errors import EXIT_USAGE, EXIT_WEIGHTS, UnknownModel, UsageError, WeightsError, WeightsUnavailable
from vid3d_cli.models import manifest
from vid3d_cli.models.backbones import BACKBONES
from vid3d_cli.models.manifest import HubSource, ManualSource, PackagedSource, UrlSource

KINETICS400_BLOB = "cdaafcb1415eee46483561e78cb4747cce76a933"  # deepmind/kinetics-i3d, data/label_map.txt

MODELS = list(manifest.model_entries().values())
STREAMS = [(entry, stream) for entry in MODELS for stream in entry.streams]


@pytest.mark.parametrize("entry", MODELS, ids=lambda e: e.name)
class TestEveryModel:
    def test_says_what_a_user_must_know(self, entry):
        assert entry.licence and entry.dataset
        assert entry.code.startswith("https://") or not entry.files
        assert len(manifest.read_labels(entry)) == entry.num_classes
        assert len(set(manifest.read_labels(entry))) == entry.num_classes
        assert entry.fps > 0

    def test_can_be_had_and_verified(self, entry):
        assert entry.published_streams == tuple(file.stream for file in entry.files)
        for file in entry.files:
            assert file.model == entry.name
            for part in file.parts:
                assert part.sources
                assert all(source.describe() for source in part.sources)
                urls = [source.url for source in part.sources if isinstance(source, UrlSource)]
                assert part.has_digest or all(url.startswith("https://") for url in urls)

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
        assert entry.clip_length >= backbone.min_frames
        if backbone.is_fixed_size:
            assert (entry.clip_length, entry.crop_px) == backbone.clip_of(entry.variant)


@pytest.mark.parametrize(("entry", "stream"), STREAMS, ids=lambda x: x if isinstance(x, str) else x.name)
class TestEveryStream:
    def test_the_network_is_of_the_stated_size(self, entry, stream):
        backbone, facts = BACKBONES[entry.backbone], entry.streams[stream]
        options = backbone.variants[entry.variant] if entry.variant else {}
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = backbone.build(stream, entry.num_classes, **options).eval()
            clip = torch.empty(1, {"rgb": 3, "flow": 2}[stream], entry.clip_length, entry.crop_px, entry.crop_px)
            output = net(clip)
        assert output.features.shape == (1, manifest.backbone_entries()[entry.backbone].feature_dim)
        assert output.logits.shape == (1, entry.num_classes)
        assert sum(parameter.numel() for parameter in net.parameters()) == facts.num_parameters
        assert counter.get_total_flops() == 2 * facts.multiply_adds

    def test_the_normalisation_makes_sense(self, entry, stream):
        facts = entry.streams[stream].normalisation
        low, high = facts.range
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
        assert backbone.summary and backbone.paper
        assert backbone.feature_dim == BACKBONES[name].feature_dim


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
    with pytest.raises(UsageError, match=r"i3d\.kinetics400 has no stream 'audio': it has rgb, flow"):
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
feature_dim = 7

[models."net.tag"]
backbone = "net"
default = true
dataset = "D"
num_classes = 3
licence = "L"
code = "C"
preprocessing = { fps = "30000/1001", clip_length = 16, clip_stride = 8, short_side_px = 128, crop_px = 112 }

[models."net.tag".streams.rgb]
num_parameters = 5
multiply_adds = 9
file = "w.pt"
sha256 = "0123abcd"
sources = [{ packaged = "w.pt" }]
normalisation = { channel_order = "BGR", range = [0, 255], mean = [104, 117, 123], std = [1, 1, 2] }
"""


def read_manifest(tmp_path, text):
    path = tmp_path / "manifest.toml"
    path.write_text(text, "utf-8")
    return manifest.read_manifest(path)


def test_manifest_of_another_kind_of_network(tmp_path):
    read = read_manifest(tmp_path, MANIFEST)
    entry, backbone = read.models["net.tag"], read.backbones["net"]
    assert (backbone.summary, backbone.paper, backbone.feature_dim, backbone.stated) == ("S", "P", 7, "")
    assert entry.fps == Fraction(30000, 1001)
    assert (entry.resize_px, entry.antialias, entry.variant, entry.has_classes) == (128, True, None, True)
    assert (entry.streams["rgb"].num_parameters, entry.streams["rgb"].multiply_adds) == (5, 9)
    assert entry.streams["rgb"].weights.sources == (PackagedSource("w.pt"),)
    words = "BGR to [0, 255], minus [104.0, 117.0, 123.0], divided by [1.0, 1.0, 2.0]"
    assert entry.streams["rgb"].normalisation.describe() == words


def test_manifest_of_metrics(tmp_path):
    metric = '[[models."net.tag".metrics]]\nstream = "rgb"\ndataset = "D"\nsplit = "test"\nscores = { top1 = 1.5 }\n'
    metric += 'protocol = "P"\nsource = "S"\n'
    told, not_told = (
        read_manifest(tmp_path, f'{MANIFEST}\n{metric}views = "5 clips"\n{metric}').models["net.tag"].metrics
    )
    assert (told.views, not_told.views) == ("5 clips", "")
    assert (told.scores, told.protocol, told.source) == ({"top1": 1.5}, "P", "S")
    with pytest.raises(WeightsError, match="views is empty"):
        read_manifest(tmp_path, f'{MANIFEST}\n{metric}views = ""\n')


def test_manifest_of_a_model_without_weights(tmp_path):
    text = MANIFEST.replace("short_side_px = 128", "resize_px = [128, 171], antialias = false")
    text = text.replace("num_classes = 3", 'num_classes = 3\nclasses = false\nvariant = "V"')
    text = re.sub(r"file = .*\nsha256 = .*\nsources = .*", 'unpublished = "Lost."', text)
    entry = read_manifest(tmp_path, text).models["net.tag"]
    assert (entry.resize_px, entry.antialias, entry.variant, entry.has_classes) == ((128, 171), False, "V", False)
    assert (entry.streams["rgb"].weights, entry.streams["rgb"].unpublished) == (None, "Lost.")
    assert (entry.files, entry.published_streams) == ((), ())


def test_manifest_of_a_checkpoint_of_two_files(tmp_path):
    text = MANIFEST.replace('"w.pt"\nsha', '"w.data-00000-of-00001"\nsha')
    index = '{ file = "w.index", git_blob = "' + "1" * 40 + '", sources = [{ url = "https://x/i" }] }'
    text = text.replace("normalisation", f"index = {index}\nnormalisation")
    (file,) = read_manifest(tmp_path, text).models["net.tag"].files
    assert [part.file_name for part in file.parts] == ["w.data-00000-of-00001", "w.index"]
    assert file.parts[1].name == file.name == "net.tag:rgb"
    for wrong in ('"v.index"', '"w.txt"'):
        with pytest.raises(WeightsError, match=r"index must be X\.index beside X\.data-00000-of-00001"):
            read_manifest(tmp_path, text.replace('"w.index"', wrong))


def test_manifest_of_files_without_a_digest(tmp_path):
    text = MANIFEST.replace('sha256 = "0123abcd"\n', "")
    by_hand = text.replace('{ packaged = "w.pt" }', '{ manual = "http://x/w.pt", how = "H." }')
    (file,) = read_manifest(tmp_path, by_hand).models["net.tag"].files
    assert file.sources == (ManualSource("http://x/w.pt", "H."),)
    assert not file.has_digest and not file.is_fetched
    fetched = text.replace(
        '{ packaged = "w.pt" }', '{ url = "https://x/w.pt" }, { manual = "http://x/w.pt", how = "H." }'
    )
    assert read_manifest(tmp_path, fetched).models["net.tag"].files[0].is_fetched
    with pytest.raises(WeightsError, match="http:// address but no digest"):
        read_manifest(tmp_path, fetched.replace("https:", "http:"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('licence = "L"\n', "", "licence is missing"),
        ('licence = "L"', 'licence = " "', "licence is empty"),
        ('licence = "L"', 'licence = "L"\nlicense = "L"', "unknown keys: license"),
        ("num_classes = 3", "num_classes = true", "num_classes must be of type int, got True"),
        ("num_classes = 3", "num_classes = 0", "num_classes must be at least 1"),
        ('"30000/1001"', '"0"', "fps must be a positive number"),
        ("crop_px = 112", "crop_px = 129", "crop_px does not fit into the resized frame: 129 > 128"),
        ("short_side_px = 128", "resize_px = [128, 100]", "crop_px does not fit into the resized frame: 112 > 100"),
        ("short_side_px = 128", "resize_px = [128]", "resize_px must be [height, width], got [128]"),
        (
            "short_side_px = 128",
            "resize_px = [128, 171], short_side_px = 128",
            "or resize_px must be given, one of them",
        ),
        ("short_side_px = 128, ", "", "or resize_px must be given, one of them"),
        ("short_side_px = 128", "short_side_px = 128, antialias = 1", "antialias must be of type bool"),
        ("feature_dim = 7", "feature_dim = 0", "feature_dim must be at least 1"),
        ("feature_dim = 7", 'feature_dim = 7\nstated = ""', "stated is empty"),
        ("[backbones.net]", "[backbones.other]", "no table [backbones.<name>] for the backbone of net.tag"),
        ("num_classes = 3", 'num_classes = 3\nclasses = false\nlabels = "l.txt"', "exclude each other"),
        ('file = "w.pt"\n', 'unpublished = "Lost."\nfile = "w.pt"\n', "unknown keys: file, sha256, sources"),
        ("multiply_adds = 9\n", "", "multiply_adds is missing"),
        ("default = true\n", "", "one model of net must be the default, found: none"),
        ('backbone = "net"', 'backbone = "other"', "must be called other.<tag>"),
        (".streams.rgb", ".streams.audio", "must be some of rgb, flow, got audio"),
        ('"w.pt"\nsha', '"../w.pt"\nsha', "must be a bare file name"),
        ('"0123abcd"', '"0123ABCD"', "lower-case hex digits"),
        ('{ packaged = "w.pt" }', "", "sources is empty"),
        ('{ packaged = "w.pt" }', '{ packaged = "w.pt", url = "https://x" }', "one of them; got 2"),
        ('{ packaged = "w.pt" }', '{ manual = "https://x" }', "how is missing"),
        ('{ packaged = "w.pt" }', '{ manual = "x", how = "H" }', "manual must start with https://"),
        ('{ packaged = "w.pt" }', '{ url = "ftp://x" }', "must start with https://"),
        ('{ packaged = "w.pt" }', '{ hub = "a/b", file = "c", revision = "main" }', "40 to 40 lower-case hex"),
        ('{ packaged = "w.pt" }', '{ hub = "a/b", file = "c" }', "revision is missing"),
        ('{ packaged = "w.pt" }', '{ file = "c" }', "hub or url or packaged or manual must be given"),
        ('"BGR"', '"GBR"', "must be RGB or BGR"),
        ("[0, 255]", "[255, 0]", "must be two rising numbers"),
        ("[104, 117, 123]", "[104, 117]", "mean must have 3 values"),
        ("[1, 1, 2]", "[1, 1, 0]", "std must be positive"),
        ("[models", "[[[models", "cannot be read"),
    ],
)
def test_bad_manifest_is_a_clear_error(tmp_path, old, new, problem):
    assert old in MANIFEST
    with pytest.raises(WeightsError) as caught:
        read_manifest(tmp_path, MANIFEST.replace(old, new))
    assert problem in str(caught.value)


def test_one_default_a_backbone(tmp_path):
    model = MANIFEST[MANIFEST.index("[models") :]
    with pytest.raises(WeightsError, match=r"one model of net must be the default, found: net\.tag, net\.tug"):
        read_manifest(tmp_path, MANIFEST + model.replace("net.tag", "net.tug"))


def test_hub_url_opens_in_a_browser():
    source = HubSource("owner/repo", "dir/a file.pt", "0" * 40)
    assert source.url == f"https://huggingface.co/owner/repo/resolve/{'0' * 40}/dir/a%20file.pt"
