"""Layers, crops, class names, and models without public weights, as a user types them."""

import json

import numpy as np
import pytest
import torch
from conftest import TinyNet
from seeded import SeededCase
from videos import write_video

from vid3d_cli import classify, create_model
from vid3d_cli.errors import EXIT_SOME_FAILED, EXIT_USAGE, EXIT_WEIGHTS, UsageError
from vid3d_cli.models.manifest import find_model, read_labels

LABELS = read_labels(find_model("i3d"))


@pytest.fixture
def wide(tmp_path):
    """A video of 40 frames at 25 fps that is twice as wide as high."""
    return write_video(tmp_path / "wide.mp4", num_frames=40, width=96, height=48)


def features(vid3d, tmp_path, *options):
    result = vid3d("extract", "--out", "f.npz", "--overwrite", *options)
    assert result.exit_code == 0, result.stderr
    stored = np.load(tmp_path / "f.npz")
    return stored["features"], json.loads(str(stored["recipe"]))


@pytest.mark.exhaustive
def test_ten_crops_may_be_averaged_or_kept(vid3d, tiny_model, wide, tmp_path):
    one, recipe = features(vid3d, tmp_path, wide)
    assert recipe["crops"] == "centre 224 px"
    kept, recipe = features(vid3d, tmp_path, "--crops", "10", "--keep-crops", wide)
    assert (recipe["crops"], recipe["keeps_crops"]) == ("10 of 224 px, kept", True)
    assert kept.shape == (len(one), 10, one.shape[1])
    np.testing.assert_allclose(kept[:, 4], one, atol=1e-6)  # the fifth is the centre
    mean, recipe = features(vid3d, tmp_path, "--crops", "10", wide)
    assert recipe["crops"] == "10 of 224 px, averaged"
    np.testing.assert_allclose(mean, kept.mean(1), atol=1e-6)
    named, recipe = features(vid3d, tmp_path, "--crops", "cm,blm,brm,tlm,trm,c,br,bl,tr,tl", "--keep-crops", wide)
    assert recipe["crops"] == "cm, blm, brm, tlm, trm, c, br, bl, tr, tl of 224 px, kept"
    np.testing.assert_array_equal(named, kept[:, ::-1])
    three, _ = features(vid3d, tmp_path, "--crops", "3", "--keep-crops", wide)
    np.testing.assert_allclose(three[:, 1], one, atol=1e-6)
    assert np.abs(three[:, 0] - three[:, 2]).max() > 1e-3


def test_ten_crops_average_the_scores(vid3d, tiny_model, wide, tmp_path):
    def logits(*options):
        result = vid3d("classify", "--per", "video", "--topk", "400", *options, wide)
        return {p["label"]: p["logit"] for p in json.loads(result.stdout)["rgb"]}

    one, ten = logits(), logits("--crops", "10")
    # TinyNet's logits are linear in its features: the mean over crops of one is that of the other
    mean, _ = features(vid3d, tmp_path, "--crops", "10", "--streams", "rgb", wide)
    torch.manual_seed(0)
    net = TinyNet("rgb")
    with torch.inference_mode():
        expected = net.head(torch.from_numpy(mean))[0].numpy()
    np.testing.assert_allclose([ten[label] for label in LABELS], expected, atol=1e-4)
    assert any(abs(one[label] - ten[label]) > 1e-3 for label in one)


def test_whole_frames_may_be_run(vid3d, tiny_model, wide, tmp_path):
    whole, recipe = features(vid3d, tmp_path, "--resize-only", "--layer", "Mixed_4f", "--pool", "none", wide)
    assert recipe["crops"] == "none"
    assert recipe["features"] == "Mixed_4f, none"
    assert whole.shape == (1, 5, 64, 256, 512)  # the short side is 256; TinyNet's layer is the clip itself


@pytest.mark.parametrize(("pool", "shape"), [("avg", (5,)), ("max", (5,)), ("spatial", (5, 64))])
def test_a_layer_may_be_pooled(vid3d, tiny_model, video, tmp_path, pool, shape):
    pooled, recipe = features(vid3d, tmp_path, "--layer", "Mixed_4f", "--pool", pool, video)
    assert pooled.shape == (1, *shape)
    assert recipe["features"] == f"Mixed_4f, {pool}"


def test_kept_crops_and_maps_go_into_every_format(vid3d, tiny_model, video, tmp_path):
    options = ["--layer", "Mixed_4f", "--pool", "spatial", "--crops", "3", "--keep-crops", video]
    expected, _ = features(vid3d, tmp_path, *options)
    assert expected.shape == (1, 3, 5, 64)
    assert vid3d("extract", "--out", "f.npy", *options).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), expected)
    assert vid3d("extract", "--out", "f/", *options).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "f" / "video.npz")["features"], expected)


def test_maps_of_several_sizes_do_not_go_into_one_matrix(vid3d, tiny_model, video, wide, tmp_path):
    options = ["--layer", "Mixed_4f", "--pool", "none", "--resize-only", "--streams", "rgb"]
    result = vid3d("extract", "--out", "f.npy", *options, "--window", "9", "--end", "0.7", video, wide)
    assert result.exit_code == EXIT_SOME_FAILED
    assert "wide.mp4: its features have shape" in result.stderr
    assert "write to a directory" in result.stderr
    assert len(np.load(tmp_path / "f.npy")) == 2  # the first video is complete
    result = vid3d("extract", "--out", "f/", *options, "--window", "9", "--end", "0.7", video, wide)
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "Mixed_9z"], "i3d has no layer 'Mixed_9z': choose one of Conv3d_1a_7x7"),
        (["--layer", "Mixed_4f", "--pool", "sum"], "--pool sum: choose one of avg, max, none, spatial"),
        (["--pool", "max"], "name one with --layer"),
        (["--crops", "5"], "--crops 5: give 1, 3, 10, or a list of tl, tr, c, bl, br, start, end, mirrored with an m"),
        (["--crops", "tl,tml"], "--crops tl,tml: give 1, 3, 10, or a list"),
        (["--crops", "tl", "--keep-crops"], "--keep-crops needs several crops"),
        (["--crops", "tl", "--resize-only"], "give --no-resize-only, or --crops 1"),
        (["--resize", "340x"], "--resize 340x: give the pixels of the short side (256), or width x height (340x256)"),
        (["--resize", "9999"], "--resize 9999: frames would be too large, give at most 4096 or 4096x4096"),
        (
            ["--model", "c3d", "--resize", "100", "--weights", "rgb=w.pt"],
            "takes only clips of 16 frames of 112 × 112 px",
        ),
        (["--interpolation", "cubic"], "--interpolation cubic: choose one of antialiased, bilinear, lanczos"),
        (["--flow-size", "stored"], "--flow-size stored: did you mean 'source'?"),
        (["--crops", "3", "--resize-only"], "give --no-resize-only, or --crops 1"),
        (["--keep-crops"], "--keep-crops needs several crops: give --crops 3, 10, or a list, or --no-keep-crops"),
        (["--variant", "fast"], "i3d has no variant 'fast': choose one of default"),
        (["--model", "c3d", "--resize-only", "--weights", "rgb=w.pt"], "takes only clips of 16 frames of 112 × 112 px"),
        (
            ["--model", "c3d", "--window", "32", "--weights", "rgb=w.pt"],
            "takes only clips of 16 frames of 112 × 112 px",
        ),
        (["--model", "s3d_g", "--window", "31"], "s3d_g needs a window that is a multiple of 2 frames, got 31"),
        (["--model", "s3d", "--variant", "fast"], "--variant needs your own --weights"),
    ],
)
def test_incompatible_options_are_refused_before_a_video_is_read(vid3d, tiny_model, video, tmp_path, options, words):
    (tmp_path / "w.pt").write_bytes(tiny_model.read_bytes())
    result = vid3d("extract", "--out", "f.npy", *options, video)
    assert result.exit_code == EXIT_USAGE, result.stderr
    assert words in result.stderr
    assert not (tmp_path / "f.npy").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Class names
# ---------------------------------------------------------------------------------------------------------------------


def test_class_names_of_the_user(vid3d, tiny_model, video, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(400)) + "\n\n", encoding="utf-8")
    result = vid3d("classify", "--labels", "names.txt", video)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[0])["rgb"][0]["label"].startswith("name ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\ntwo\n", "names.txt has 2 class names and the checkpoint has 400 classes"),
        (b"", "contains no class names"),
        (b"\xff\xfe\x00", "must be UTF-8 text"),
        (None, "no such file"),
    ],
)
def test_unusable_class_names_are_one_line(vid3d, tiny_model, video, tmp_path, content, words):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    result = vid3d("classify", "--labels", "names.txt", video)
    assert result.exit_code == EXIT_USAGE
    assert "names.txt" in result.stderr or "--labels" in result.stderr
    assert words in result.stderr
    errors = [line for line in result.stderr.splitlines() if "PyTorch on the CPU" not in line]
    assert len(errors) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Models without public weights
# ---------------------------------------------------------------------------------------------------------------------


def test_a_stream_without_public_weights_is_left_out_with_a_warning(vid3d, tiny_model, video):
    result = vid3d("classify", "--model", "r3d_18", video)
    assert result.exit_code == 0, result.stderr
    assert "flow" not in json.loads(result.stdout.splitlines()[0])
    assert "r3d_18.kinetics400 runs on rgb alone: there are no public flow weights" in result.stderr


def test_requesting_a_stream_without_public_weights_is_an_error_with_advice(vid3d, tiny_model, video):
    result = vid3d("classify", "--model", "r3d_18", "--streams", "flow", video)
    assert result.exit_code == EXIT_WEIGHTS
    assert "r3d_18.kinetics400 has no public flow weights" in result.stderr
    assert "--weights flow=FILE, or run --streams rgb" in result.stderr


def test_own_weights_enable_the_stream(vid3d, tiny_model, video):
    result = vid3d("classify", "--model", "r3d_18", "--weights", f"flow={tiny_model}", video)
    assert result.exit_code == 0, result.stderr
    assert "flow" in json.loads(result.stdout.splitlines()[0])


def test_a_model_without_public_weights_is_an_error(vid3d, video):
    result = vid3d("classify", "--model", "ltc", video)
    assert result.exit_code == EXIT_WEIGHTS
    assert "ltc.own has no public rgb or flow weights" in result.stderr
    assert "--weights rgb=FILE" in result.stderr


@pytest.mark.parametrize("command", [["classify"], ["eval", "--labels", "labels.csv"]])
def test_an_embedding_has_no_classes(vid3d, tiny_model, video, tmp_path, command):
    (tmp_path / "labels.csv").write_text("video,label\nvideo,zumba\n")
    result = vid3d(*command, "--model", "s3d_g", video)
    assert result.exit_code == EXIT_USAGE
    assert "s3d_g.howto100m gives an embedding and has no classes: use vid3d extract" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Own checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_checkpoint_with_tensor_names_of_another_model_is_a_warning(vid3d, video, tmp_path):
    """kylemin's S3D was trained on another input than torchvision's, whose model the bare name means."""
    case = SeededCase("s3d_kylemin_64f")
    torch.save({key: torch.from_numpy(array) for key, array in case.state_dict().items()}, tmp_path / "a.pt")
    options = ["--weights", "rgb=a.pt", "--window", "8", "--end", "0.2", video]
    result = vid3d("classify", "--model", "s3d", *options)
    assert result.exit_code == 0, result.stderr
    assert "a.pt has the tensor names of s3d.kinetics400_kylemin" in result.stderr
    assert "tensor names" not in vid3d("classify", "--model", "s3d.kinetics400_kylemin", *options).stderr


@pytest.mark.parametrize("options", [["classify", "--labels", "names.txt"], ["extract", "--out", "f.npy"]])
def test_different_class_counts_are_refused_before_a_video_is_read(vid3d, tmp_path, options):
    """The video is broken; if it had been opened, that would be the error."""
    for stream, num_classes in (("rgb", 5), ("flow", 7)):
        net = create_model("s3d_mini", stream=stream, num_classes=num_classes)
        torch.save(net.state_dict(), tmp_path / f"{stream}.pt")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    result = vid3d(*options, "--model", "s3d_mini", "--weights", "rgb=rgb.pt", "--weights", "flow=flow.pt", "empty.mp4")
    assert result.exit_code in (EXIT_USAGE, EXIT_WEIGHTS)
    words = (
        "3 class names and the checkpoint has 5 classes"
        if "classify" in options
        else "different numbers of classes (rgb 5, flow 7)"
    )
    assert words in result.stderr
    assert "empty.mp4" not in result.stderr


def test_an_own_checkpoint_of_the_embedding_has_no_classes(vid3d, video, tmp_path):
    torch.save(create_model("s3d_g", num_classes=512).state_dict(), tmp_path / "a.pt")
    result = vid3d("classify", "--model", "s3d_g", "--weights", "rgb=a.pt", video)
    assert result.exit_code == EXIT_USAGE
    assert "gives an embedding" in result.stderr
    with pytest.raises(UsageError, match="gives an embedding"):
        classify(video, model="s3d_g")


def test_labels_may_be_a_path_or_a_string(tiny_model, video, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(400)))
    for labels in (tmp_path / "names.txt", str(tmp_path / "names.txt")):
        assert classify(video, labels=labels).labels[7] == "name 7"


def test_frames_that_the_network_cannot_run_fail_only_their_video(vid3d, tmp_path):
    """Space to depth needs even sides; 50 × 48 becomes 233 × 224."""
    torch.save(create_model("s3d_g").state_dict(), tmp_path / "a.pt")
    for name, width in (("a", 48), ("odd", 50), ("z", 48)):
        write_video(tmp_path / f"{name}.mp4", num_frames=2, width=width, height=48)
    options = ["--model", "s3d_g", "--weights", "rgb=a.pt", "--resize-only", "--window", "2", "--failures", "bad.jsonl"]
    options += ["--runtime", "torch"]  # OpenVINO cannot convert pools that are larger than these clips
    result = vid3d("extract", "--out", "f.npz", *options, "a.mp4", "odd.mp4", "z.mp4")
    assert result.exit_code == EXIT_SOME_FAILED, result.stderr
    assert "odd.mp4: s3d_g needs clips whose frames, height and width" in result.stderr
    assert list(np.load(tmp_path / "f.npz")["video"]) == ["a.mp4", "z.mp4"]
    assert json.loads((tmp_path / "bad.jsonl").read_text())["video"] == "odd.mp4"
