"""`vid3d bench`: its measurements are complete, and its advice follows from them."""

import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from videos import write_video

import vid3d_cli.models.weights
from vid3d_cli.cli import bench
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.runtimes import estimate
from vid3d_cli.video.process import probe


@pytest.fixture
def quick(monkeypatch):
    """Make all measurements short."""
    monkeypatch.setattr(bench, "NETWORK_SECONDS", 0.001)
    monkeypatch.setattr(bench, "READING_SECONDS", 0.001)
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
    assert min(report["matrix_gflops"].values()) > 0
    rates = report["frames_per_second"]
    assert list(rates) == ["decode", "resize", "flow", "reading", "transfer", "network", "together"]
    assert rates["network"] == pytest.approx(16 / report["network_seconds_per_clip"])
    assert rates["transfer"] is None
    assert 0 < rates["together"] < min(rates["network"], rates["reading"])
    assert report["reading_share"] == pytest.approx(rates["together"] / rates["reading"])
    assert report["cores_for_network"] is None
    assert report["network_gflops"] is None  # TinyNet gets other clips than the manifest's
    assert report["bound"] == bench.find_bound(report)
    assert report["advice"] == bench.advise(report)


def test_options_are_those_of_a_run(vid3d, tiny_model, quick, weights_on_disk, video):
    report = report_of(vid3d("bench", video, "--streams", "rgb", "--batch-size", 3, "--device", "cpu"))
    assert (report["streams"], report["batch_size"], report["precision"]) == (["rgb"], 3, "fp32")
    assert report["frames_per_second"]["flow"] is None
    assert vid3d("bench", video, "--streams", "sound").exit_code == 2


def test_missing_weights_are_random_and_a_video_is_rendered(vid3d, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(vid3d_cli.models.weights, "is_on_disk", lambda file: False)
    monkeypatch.setattr("vid3d_cli.video.demo.render", lambda path, seed, **_: write_video(path, num_frames=40))
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


@pytest.fixture
def plan():
    return Plan.make(Options(model="s3d_mini"))


class FakeClips:
    """Yields a clip whenever so many frames have been read."""

    def __init__(self, clip, nums_frames):
        self.clip, self.nums_frames = clip, nums_frames

    def __iter__(self):
        for num_frames in self.nums_frames:
            self.num_frames = num_frames
            yield self.clip


def test_all_readers_read_at_the_same_time(monkeypatch, plan):
    """Else the barrier breaks; every reader opens its video until its time is over."""
    barrier, opened = threading.Barrier(3), []

    @contextmanager
    def open_clips(plan, video, workers, decoders):
        opened.append((video, workers.num_threads))
        barrier.wait(timeout=10)
        yield FakeClips(f"clip of {video}", [16, 32])

    monkeypatch.setattr("vid3d_cli.run.reader.open_clips", open_clips)
    monkeypatch.setattr(bench, "READING_SECONDS", 0)
    seconds, clips = bench._read(plan, ["a.mp4", "b.mp4", "c.mp4"], 2)
    assert sorted(opened) == [("a.mp4", 2), ("b.mp4", 2), ("c.mp4", 2)]
    assert sorted(clips) == ["clip of a.mp4", "clip of b.mp4", "clip of c.mp4"]
    assert seconds > 0


def test_a_stage_costs_what_it_adds(monkeypatch, plan, video):
    seconds, plans = iter([1.0, 1.5, 4.0]), []

    def read(plan, videos, num_workers):
        plans.append(plan)
        return next(seconds), []

    monkeypatch.setattr(bench, "_read", read)
    stages, _ = bench._measure_reading(plan, [str(video)], 2)
    assert stages == {"decode": 1, "resize": 0.5, "flow": 2.5, "reading": 4}
    assert [list(each.networks) for each in plans] == [["rgb"], ["rgb"], ["rgb", "flow"]]
    info = probe(str(video), decode=False)
    assert plans[0].resize_px == (info.height, info.width)
    assert plans[2] == plan


def test_frames_are_counted_whatever_clips_hold(monkeypatch, plan):
    """Windows share frames, and the long stretches of a dense run are padded; two clips may end with the video."""
    now = 0.0

    @contextmanager
    def open_clips(*_):
        nonlocal now
        now += 10
        yield FakeClips("clip", [256, 300, 300])

    monkeypatch.setattr("vid3d_cli.run.reader.open_clips", open_clips)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(bench, "READING_SECONDS", 15)
    assert bench._read_again_and_again(plan, "a.mp4", None, None) == ((600 + 256 - 256) / 20, "clip")


@pytest.mark.parametrize(("device", "num_in_flight"), [("cpu", 1), ("NVIDIA H200", 2)])
def test_rates_of_reading_and_network_together(monkeypatch, plan, device, num_in_flight):
    """On a CPU their times add up; with a GPU the longer one counts. A stage that adds no time has no rate."""
    runtime = SimpleNamespace(
        description=f"torch on {device}", num_in_flight=num_in_flight, batch_size=2, precision="fp32"
    )
    monkeypatch.setattr("vid3d_cli.run.load.load", lambda *_: SimpleNamespace(runtime=runtime))
    monkeypatch.setattr("vid3d_cli.run.threads.count_cores", lambda: 12)
    monkeypatch.setattr(bench, "_matrix_rates", lambda *_: {})
    stages = {name: each / 16 for name, each in {"decode": 1.0, "resize": -0.1, "flow": 3.1, "reading": 4.0}.items()}
    monkeypatch.setattr(bench, "_measure_reading", lambda *_: (stages, ["clip"]))
    monkeypatch.setattr(bench, "_run_network", lambda *_: (1.0, 0.5))
    report = bench.measure(plan, ["a.mp4"])
    rates = report["frames_per_second"]
    assert (rates["decode"], rates["resize"], rates["reading"], rates["network"]) == (16, None, 4, 16)
    if device == "cpu":
        assert (rates["transfer"], rates["together"], report["videos_at_a_time"]) == (None, 16 / 5, 3)
        assert (report["reading_share"], report["cores_for_network"]) == (4 / 5, None)
    else:
        assert (rates["transfer"], rates["together"], report["videos_at_a_time"]) == (32, 4, 12)
        assert (report["reading_share"], report["cores_for_network"]) == (None, 48)


def test_starting_a_batch_is_measured_apart_from_waiting_for_it(monkeypatch):
    """Two batches of 4 clips are in flight; each takes 3 s to hand over, and 5 s more in the network."""
    now = 0.0

    def take(seconds):
        nonlocal now
        now += seconds

    def start(clips):
        take(3)
        return lambda: take(5)

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now))
    networks = SimpleNamespace(runtime=SimpleNamespace(num_in_flight=2, start=start))
    assert bench._run_network(networks, ["clip"] * 4) == (8 / 4, 3 / 4)


def facts(rates=None, **changes):
    report = {
        "model": "i3d.kinetics400",
        "random_weights": ["rgb", "flow"],
        "streams": ["rgb", "flow"],
        "window": 64,
        "stride": 64,
        "cores": 2,
        "videos_at_a_time": 4,
        "runtime": "openvino on cpu",
        "has_openvino": True,
        "precision": "fp32",
        "dense_pays": False,
        "matrix_gflops": {"fp32": 200.0, "bf16": 430.0},
        "network_seconds_per_clip": 3.2,
        "network_gflops": 139.0,
        "reading_share": 0.06,
        "cores_for_network": None,
        "frames_per_second": {
            **{"decode": 3000.0, "resize": 9000.0, "flow": 350.0, "reading": 300.0},
            **{"transfer": None, "network": 20.0, "together": 19.0},
            **(rates or {}),
        },
    } | changes
    report["bound"] = bench.find_bound(report)
    return report | {"advice": bench.advise(report)}


BF16_AND_GPU, INSTALL = ["--precision bf16", "--device cuda"], "pip install 'vid3d[openvino]'"
H200 = {"runtime": "torch on NVIDIA H200", "precision": "bf16", "reading_share": None}
QUICK = {"network": 900.0, "transfer": 5000.0, "together": 300.0}


@pytest.mark.parametrize(
    ("rates", "changes", "bound", "tips"),
    [
        ({}, {}, "network", ["--precision bf16", "--device cuda", "--streams rgb"]),
        (
            {},
            {"stride": 8, "dense_pays": True},
            "network",
            ["--precision bf16", "--device cuda", "--dense", "--streams rgb"],
        ),
        ({}, {"stride": 8, "precision": "bf16"}, "network", ["--device cuda", "--streams rgb"]),
        ({}, {"matrix_gflops": {"fp32": 200.0, "bf16": 90.0}, "streams": ["rgb"]}, "network", ["--device cuda"]),
        ({}, {"runtime": "torch on cpu", "streams": ["rgb"]}, "network", ["--runtime openvino", *BF16_AND_GPU]),
        ({}, {"runtime": "torch on cpu", "has_openvino": False}, "network", [INSTALL, *BF16_AND_GPU, "--streams rgb"]),
        ({"transfer": 5000.0}, H200, "network", ["--streams rgb"]),
        ({"transfer": 21.0}, H200, "transfer", ["vid3d extract --shard 1/2 and --shard 2/2"]),
        (QUICK, H200, "flow", ["--flow dis-ultrafast", "--streams rgb"]),
        (QUICK | {"decode": 340.0}, H200, "decode", ["store smaller videos", "--streams rgb"]),
        (QUICK | {"flow": None, "resize": 400.0}, H200 | {"streams": ["rgb"]}, "resize", ["store smaller videos"]),
        (QUICK | {"flow": None, "resize": None}, H200 | {"streams": ["rgb"]}, "decode", ["store smaller videos"]),
    ],
)
def test_bound_and_advice(rates, changes, bound, tips):
    report = facts(rates, **changes)
    assert report["bound"] == bound
    assert [tip.split(":")[0] for tip in report["advice"]] == tips


@pytest.mark.parametrize(
    ("rates", "changes", "expected"),
    [
        ({}, {}, "Limited by the network: reading takes 6% of the cores' time, the network the rest."),
        (QUICK, H200 | {"cores_for_network": 5.2}, "Limited by flow: the network would be the limit from 6 cores on."),
        (
            {"transfer": 5000.0},
            H200 | {"cores_for_network": 0.13},
            "Limited by the network: 0.1 cores read fast enough.",
        ),
        (
            {"transfer": 21.0},
            H200 | {"cores_for_network": 0.13},
            "Limited by the transfer of clips to the network: 0.1 cores read fast enough.",
        ),
    ],
)
def test_the_limit_in_words(rates, changes, expected):
    assert bench._describe_bound(facts(rates, **changes)) == expected


def test_a_terminal_gets_a_table_and_a_sentence(capsys):
    bench._print_report(facts())
    printed = " ".join(capsys.readouterr().out.split())
    assert "i3d.kinetics400, rgb + flow, random rgb and flow weights" in printed
    assert "flow alone, 2 cores 350 reading, 4 videos at a time, 2 cores 300 network, openvino on cpu, fp32" in printed
    assert (
        "GFLOP/s of large matrix products, the most that a network can reach: fp32 200, bf16 430; of this network: 139"
        in printed
    )
    assert "the network the rest. To go faster:" in printed
    assert "--precision bf16: matrix products are 2.1 × as fast here" in printed


def test_the_rate_counts_what_is_computed(monkeypatch):
    """A multiply-add counts as two operations, whether a whole product is computed or a strip of it."""
    monkeypatch.setattr(estimate, "MATRIX_SIZE", 1024)
    for seconds, num_rows in ((0.001, 1024), (10.0, 256)):
        monkeypatch.setattr(estimate, "_seconds", lambda a, b, seconds=seconds: seconds)
        monkeypatch.setattr(estimate, "MEASURED_SECONDS", 0.01 if seconds < 1 else 0.0001)
        assert estimate.matrix_product_rate("cpu", "bf16") == pytest.approx(2 * num_rows * 1024**2 / seconds)
