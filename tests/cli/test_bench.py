"""`vid3d bench`: its measurements are complete, and its advice follows from them."""

import json

import pytest
import torch
from videos import write_video

import vid3d_cli.models.weights
from vid3d_cli.cli import bench
from vid3d_cli.runtimes import estimate


@pytest.fixture
def quick(monkeypatch):
    """Make all measurements short."""
    monkeypatch.setattr(bench, "NETWORK_SECONDS", 0.001)
    monkeypatch.setattr(bench, "NUM_FRAMES_READ", 30)
    monkeypatch.setattr(estimate, "MATRIX_SIZE", 256)
    monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.001)


@pytest.fixture
def weights_on_disk(monkeypatch):
    monkeypatch.setattr(vid3d_cli.models.weights, "is_on_disk", lambda file: True)


def report_of(result):
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_every_part_is_measured(vid3d, tiny_model, quick, weights_on_disk, video):
    report = report_of(vid3d("bench", video, "--window", 16, "--device", "cpu"))
    assert (report["model"], report["streams"]) == ("i3d.kinetics400", ["rgb", "flow"])
    assert (report["window"], report["stride"], report["random_weights"]) == (16, 16, [])
    assert min(report["ms_per_frame"].values()) > 0
    assert min(report["matrix_gflops"].values()) > 0
    assert report["frames_per_second"]["network"] == pytest.approx(16 / report["network_seconds_per_clip"])
    assert report["frames_per_second"]["together"] < min(
        report["frames_per_second"]["network"], report["frames_per_second"]["reading"]
    )
    assert report["network_gflops"] is None  # TinyNet gets other clips than the manifest's
    assert report["bound"] == bench.find_bound(report)
    assert report["advice"] == bench.advise(report)


def test_options_are_those_of_a_run(vid3d, tiny_model, quick, weights_on_disk, video):
    report = report_of(vid3d("bench", video, "--streams", "rgb", "--batch-size", 3, "--device", "cpu"))
    assert (report["streams"], report["batch_size"], report["precision"]) == (["rgb"], 3, "fp32")
    assert report["ms_per_frame"]["flow"] == 0
    assert vid3d("bench", video, "--streams", "sound").exit_code == 2


def test_missing_weights_are_random_and_a_video_is_rendered(vid3d, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(vid3d_cli.models.weights, "is_on_disk", lambda file: False)
    monkeypatch.setattr("vid3d_cli.video.demo.render", lambda path: write_video(path, num_frames=40))
    report = report_of(vid3d("bench", "--model", "s3d_mini.camera_motion"))
    assert report["random_weights"] == ["rgb", "flow"]
    assert report["network_gflops"] > 0
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_always_the_same_and_leave_others_random(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for name in ("a", "b"):
        estimate.save_random_weights(tmp_path / name, "s3d_mini", "flow", None)
    assert torch.rand(1) == expected
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_video_that_cannot_be_read_is_one_line(vid3d, tiny_model, quick, weights_on_disk, tmp_path):
    result = vid3d("bench", tmp_path / "none.mp4")
    assert result.exit_code == 1
    assert "no such file" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("share_cores", "expected"), [(True, 20.0), (False, 25.0)])
def test_rates_of_reading_and_network_together(share_cores, expected):
    assert bench.together(100.0, 25.0, share_cores=share_cores) == pytest.approx(expected)
    assert bench.together(25.0, 100.0, share_cores=share_cores) == pytest.approx(expected)


def facts(**changes):
    report = {
        "streams": ["rgb", "flow"],
        "window": 64,
        "stride": 64,
        "runtime": "openvino on cpu",
        "has_openvino": True,
        "precision": "fp32",
        "dense_pays": False,
        "matrix_gflops": {"fp32": 200.0, "bf16": 430.0},
        "ms_per_frame": {"decode": 1.0, "resize": 2.0, "flow": 3.0},
        "frames_per_second": {"network": 20.0, "reading": 300.0, "together": 19.0},
    }
    return report | changes


BF16_AND_GPU, INSTALL = ["--precision bf16", "--device cuda"], "pip install 'vid3d[openvino]'"
READING = {"network": 900.0, "reading": 300.0, "together": 300.0}


@pytest.mark.parametrize(
    ("changes", "bound", "tips"),
    [
        ({}, "network", ["--precision bf16", "--device cuda", "--streams rgb"]),
        (
            {"stride": 8, "dense_pays": True},
            "network",
            ["--precision bf16", "--device cuda", "--dense", "--streams rgb"],
        ),
        ({"stride": 8, "precision": "bf16"}, "network", ["--device cuda", "--streams rgb"]),
        ({"matrix_gflops": {"fp32": 200.0, "bf16": 90.0}, "streams": ["rgb"]}, "network", ["--device cuda"]),
        ({"runtime": "torch on cpu", "streams": ["rgb"]}, "network", ["--runtime openvino", *BF16_AND_GPU]),
        ({"runtime": "torch on cpu", "has_openvino": False}, "network", [INSTALL, *BF16_AND_GPU, "--streams rgb"]),
        ({"runtime": "torch on NVIDIA H200", "precision": "bf16"}, "network", ["--streams rgb"]),
        ({"frames_per_second": READING}, "flow", ["--flow dis-ultrafast", "--streams rgb"]),
        (
            {"frames_per_second": READING, "ms_per_frame": {"decode": 4.0, "resize": 1.0, "flow": 0.0}},
            "decode",
            ["store smaller videos", "--streams rgb"],
        ),
        (
            {
                "frames_per_second": READING,
                "ms_per_frame": {"decode": 4.0, "resize": 8.0, "flow": 0.0},
                "streams": ["rgb"],
                "runtime": "torch on NVIDIA H200",
            },
            "resize",
            ["store smaller videos"],
        ),
    ],
)
def test_bound_and_advice(changes, bound, tips):
    report = facts(**changes)
    assert bench.find_bound(report) == bound
    assert [tip.split(":")[0] for tip in bench.advise(report)] == tips


def test_a_terminal_gets_a_table_and_a_sentence(capsys):
    report = facts(model="i3d.kinetics400", random_weights=["rgb", "flow"], cores=2)
    report |= {"network_seconds_per_clip": 3.2, "network_gflops": 139.0}
    report |= {"bound": bench.find_bound(report), "advice": bench.advise(report)}
    bench._print_report(report)
    printed = " ".join(capsys.readouterr().out.split())
    assert "i3d.kinetics400, rgb + flow, random rgb and flow weights" in printed
    assert (
        "GFLOP/s of large matrix products, the most that a network can reach: fp32 200, bf16 430; of this network: 139"
        in printed
    )
    assert "Limited by the network: 20 frames/s; the rest reaches 300. To go faster:" in printed
    assert "--precision bf16: matrix products are 2.1 × as fast here" in printed


def test_the_rate_counts_what_is_computed(monkeypatch):
    """A multiply-add counts as two operations, whether a whole product is computed or a strip of it."""
    monkeypatch.setattr(estimate, "MATRIX_SIZE", 1024)
    for seconds, num_rows in ((0.001, 1024), (10.0, 256)):
        monkeypatch.setattr(estimate, "_seconds", lambda a, b, seconds=seconds: seconds)
        monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.01 if seconds < 1 else 0.0001)
        assert estimate.matrix_product_rate("cpu", "bf16") == pytest.approx(2 * num_rows * 1024**2 / seconds)
