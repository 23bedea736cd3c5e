"""What the manifest says: every entry of ours, and what is refused in anybody's."""

import hashlib
from fractions import Fraction

import pytest

from vid3d_cli import manifest
from vid3d_cli.errors import EXIT_USAGE, UnknownModel, UsageError, WeightsError
from vid3d_cli.manifest import HubSource, PackagedSource, UrlSource

KINETICS400_BLOB = "cdaafcb1415eee46483561e78cb4747cce76a933"  # deepmind/kinetics-i3d, data/label_map.txt


@pytest.mark.parametrize("entry", manifest.model_entries().values(), ids=lambda e: e.name)
class TestEveryEntry:
    def test_says_what_a_user_must_know(self, entry):
        assert entry.licence and entry.paper and entry.code.startswith("https://")
        assert len(manifest.read_labels(entry)) == entry.num_classes
        assert len(set(manifest.read_labels(entry))) == entry.num_classes
        assert entry.fps > 0 and entry.crop_px <= entry.short_side_px

    def test_can_be_had_and_verified(self, entry):
        for stream, stream_entry in entry.streams.items():
            file = stream_entry.weights
            assert (file.model, file.stream) == (entry.name, stream)
            assert file.git_blob or file.sha256
            assert file.sources
            assert all(source.describe() for source in file.sources)

    def test_is_found_by_name(self, entry):
        assert manifest.find_model(entry.name) is entry
        files = [stream.weights for stream in entry.streams.values()]
        assert manifest.parse_weights_name(entry.name) == files
        assert [manifest.parse_weights_name(file.name) for file in files] == [[file] for file in files]


def test_i3d_is_the_published_one():
    entry = manifest.find_model("i3d")
    assert entry.name == "i3d.kinetics400"
    assert (entry.fps, entry.clip_length, entry.short_side_px, entry.crop_px) == (Fraction(25), 64, 256, 224)
    rgb, flow = entry.streams["rgb"], entry.streams["flow"]
    assert rgb.weights.size_bytes == 50_883_138
    assert rgb.weights.git_blob == "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"
    assert flow.weights.git_blob == "ef0e7c282a102f76b14b52643574b80acba4e475"
    assert (rgb.num_parameters, flow.num_parameters) == (12_697_264, 12_675_312)
    assert rgb.normalisation.describe() == "RGB to [-1, 1]"
    assert flow.normalisation.describe() == "flow, truncated to ±20 px, to [-1, 1]"
    assert [type(source) for source in rgb.weights.sources] == [HubSource, UrlSource]


def test_kinetics400_labels_are_deepminds():
    entry = manifest.find_model("i3d.kinetics400")
    labels = manifest.read_labels(entry)
    assert (labels[0], labels[227], labels[399]) == ("abseiling", "playing cricket", "zumba")
    content = (manifest.data_path() / entry.labels_file).read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == KINETICS400_BLOB


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


MANIFEST = """
[models."net.tag"]
backbone = "net"
default = true
dataset = "D"
num_classes = 3
licence = "L"
paper = "P"
code = "C"
preprocessing = { fps = "30000/1001", clip_length = 16, clip_stride = 8, short_side_px = 128, crop_px = 112 }

[models."net.tag".streams.rgb]
num_parameters = 5
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
    entry = read_manifest(tmp_path, MANIFEST)["net.tag"]
    assert entry.fps == Fraction(30000, 1001)
    assert entry.streams["rgb"].weights.sources == (PackagedSource("w.pt"),)
    words = "BGR to [0, 255], minus [104.0, 117.0, 123.0], divided by [1.0, 1.0, 2.0]"
    assert entry.streams["rgb"].normalisation.describe() == words


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('licence = "L"\n', "", "licence is missing"),
        ('licence = "L"', 'licence = " "', "licence is empty"),
        ('licence = "L"', 'licence = "L"\nlicense = "L"', "unknown keys: license"),
        ("num_classes = 3", "num_classes = true", "num_classes must be of type int, got True"),
        ("num_classes = 3", "num_classes = 0", "num_classes must be at least 1"),
        ('"30000/1001"', '"0"', "fps must be a positive number"),
        ("crop_px = 112", "crop_px = 129", "crop_px is larger than short_side_px"),
        ('backbone = "net"', 'backbone = "other"', "must be called other.<tag>"),
        (".streams.rgb", ".streams.audio", "must be some of rgb, flow, got audio"),
        ('"w.pt"\nsha', '"../w.pt"\nsha', "must be a bare file name"),
        ('"0123abcd"', '"0123ABCD"', "lower-case hex digits"),
        ('sha256 = "0123abcd"\n', "", "unverified files are not fetched"),
        ('{ packaged = "w.pt" }', "", "sources is empty"),
        ('{ packaged = "w.pt" }', '{ packaged = "w.pt", url = "https://x" }', "exclude each other"),
        ('{ packaged = "w.pt" }', '{ url = "ftp://x" }', "must start with https://"),
        ('{ packaged = "w.pt" }', '{ hub = "a/b", file = "c", revision = "main" }', "40 to 40 lower-case hex"),
        ('{ packaged = "w.pt" }', '{ hub = "a/b", file = "c" }', "revision is missing"),
        ('{ packaged = "w.pt" }', '{ file = "c" }', "hub or url or packaged must be given"),
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
    with pytest.raises(WeightsError, match=r"more than one default of net: net\.tag, net\.tug"):
        read_manifest(tmp_path, MANIFEST + MANIFEST.replace("net.tag", "net.tug"))


def test_hub_url_opens_in_a_browser():
    source = HubSource("owner/repo", "dir/a file.pt", "0" * 40)
    assert source.url == f"https://huggingface.co/owner/repo/resolve/{'0' * 40}/dir/a%20file.pt"
