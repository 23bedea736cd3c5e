"""`--centred` and `--spread` in the whole pipeline, against NumPy indices into all frames of a video."""

import json
import math
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from videos import read_index, write_video

import vid3d_cli
from vid3d_cli import make_plan
from vid3d_cli.clips.preprocess import CENTRE, place_crops, resize
from vid3d_cli.errors import EXIT_USAGE
from vid3d_cli.features.store import read_verified
from vid3d_cli.features.stores import open_store
from vid3d_cli.flow.fields import quantise_flow as quantise_flow_exactly
from vid3d_cli.flow.fields import to_grey
from vid3d_cli.flow.methods import optical_flow
from vid3d_cli.records import Clip, ClipSpan
from vid3d_cli.run.load import load
from vid3d_cli.run.reader import ClipReader
from vid3d_cli.video.reader import VideoReader

MODEL = "s3d_mini.camera_motion"
RATES = [15, Fraction(24000, 1001), 25, Fraction(30000, 1001), 30]


def read(video, *, window, stride=None, centred=False, spread=None, **options):
    """Return the clips of a plan, and their expected number; any window works, since no network runs."""
    plan = make_plan(**{"model": MODEL, "streams": "rgb", "fps": "native", **options})
    cut = {"window": window, "stride": stride or window, "centred": centred, "spread": spread}
    with ClipReader(replace(plan, resize_px=40, crop_px=32, **cut), str(video)) as reader:
        expected = reader.num_expected_clips
        return list(reader), expected


def all_frames(video, num_frames, **options):
    """Return one clip of all frames."""
    (clip,), _ = read(video, window=num_frames, **options)
    assert clip.span.num_valid_frames == num_frames
    return clip


@pytest.mark.parametrize("fps", RATES, ids=float)
def test_a_row_for_every_frame_with_its_own_times(tmp_path, fps):
    video = write_video(tmp_path / "a.mp4", num_frames=26, fps=fps)
    frames = all_frames(video, 26).streams["rgb"]
    clips, expected = read(video, window=21, stride=1, centred=True)
    assert len(clips) == expected == 26
    for i, clip in enumerate(clips):
        shown = np.clip(np.arange(i - 10, i + 11), 0, 25)
        np.testing.assert_array_equal(clip.streams["rgb"], frames[shown])
        first, last = shown[0], shown[-1]
        seconds = pytest.approx((first / fps, (last + 1) / fps), abs=2e-3)
        assert (clip.span.index, clip.span.start_frame, clip.span.num_valid_frames) == (i, first, last + 1 - first)
        assert (clip.span.start_seconds, clip.span.end_seconds) == seconds


def shown_in(start, num_frames, window, *, centred):
    """Return the frames of a window, and which of them move: not the repeats at the start, nor the last frame."""
    at = np.arange(start, start + window)
    return np.clip(at, 0, num_frames - 1), (at >= 0) & (at < num_frames - 1) if centred else np.ones(window, bool)


@pytest.mark.parametrize("quantise_flow", [False, True])
def test_flow_is_that_of_a_video_whose_first_and_last_frames_repeat(tmp_path, quantise_flow):
    """As MS-TCN's extractor computes it (ahsaniqbal/Kinetics-FeatureExtractor, LazyLoader.cpp)."""
    video = write_video(tmp_path / "a.mp4", num_frames=14)
    with VideoReader(str(video)) as reader:
        resized = [resize(frame.rgb, 40) for frame in reader]
    extended = [resized[0]] * 10 + resized + [resized[-1]] * 11
    motion = optical_flow(np.stack([to_grey(rgb) for rgb in extended]))
    (centre,) = place_crops(CENTRE, *resized[0].shape[:2], 32)
    motion = quantise_flow_exactly(centre.cut(motion), 20.0) if quantise_flow else centre.cut(motion)
    clips, _ = read(video, window=21, stride=1, centred=True, model="i3d", streams="flow", quantise_flow=quantise_flow)
    assert len(clips) == 14
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(clip.streams["flow"], motion[i : i + 21])


@pytest.mark.parametrize("num_frames", [1, 2, 5, 20, 21])
def test_a_video_shorter_than_a_centred_clip_has_as_many_rows_as_frames(tmp_path, num_frames):
    video = write_video(tmp_path / "a.mp4", num_frames=num_frames)
    frames = all_frames(video, num_frames, streams="both")
    clips, expected = read(video, window=21, stride=1, centred=True, streams="both")
    assert len(clips) == expected == num_frames
    for i, clip in enumerate(clips):
        shown, moving = shown_in(i - 10, num_frames, 21, centred=True)
        np.testing.assert_array_equal(clip.streams["rgb"], frames.streams["rgb"][shown])
        motion = frames.streams["flow"][shown] * moving[:, None, None, None]
        np.testing.assert_array_equal(clip.streams["flow"], motion)
        assert clip.span.num_valid_frames == len(set(shown.tolist()))


@pytest.mark.parametrize("fps", RATES, ids=float)
@pytest.mark.parametrize("spread", [16, "16:32"])
def test_spread_frames_of_both_streams_are_those_of_linspace(tmp_path, fps, spread):
    """Clips of 30 frames at 30 fps; the last one is short."""
    video = write_video(tmp_path / "a.mp4", num_frames=50, fps=fps)
    options = {"streams": "both", "fps": 30, "flow": "farneback"}
    _, num_frames = read(video, window=1, **options)
    frames = all_frames(video, num_frames, **options)
    clips, expected = read(video, window=30, spread=spread, **options)
    assert len(clips) == expected == -(-num_frames // 30)
    last = 29 if spread == 16 else 32 * int(fps) / 30 - 1
    picked = np.clip(np.floor(np.linspace(0, last, 16) + 1e-9), 0, 29).astype(int)
    for i, clip in enumerate(clips):
        for stream in ("rgb", "flow"):
            expected_frames = frames.streams[stream][np.clip(30 * i + picked, 0, num_frames - 1)]
            np.testing.assert_array_equal(clip.streams[stream], expected_frames)
        assert clip.span.start_frame == 30 * i
        assert clip.span.num_valid_frames == min(30, num_frames - 30 * i)


@pytest.mark.parametrize(("num_frames", "spread"), [(1, 16), (3, 16), (3, 1), (40, 64)])
def test_fewer_frames_than_the_network_gets_repeat(tmp_path, num_frames, spread):
    video = write_video(tmp_path / "a.mp4", num_frames=num_frames)
    frames = all_frames(video, num_frames).streams["rgb"]
    (clip,), _ = read(video, window=40, spread=spread)
    shown = np.floor(np.linspace(0, 39, spread) + 1e-9).astype(int)
    np.testing.assert_array_equal(clip.streams["rgb"], frames[np.clip(shown, 0, num_frames - 1)])


def hero_frames(video):
    """Return the frames of each clip that HERO's extractor picks: FFmpeg's fps filter, then its preprocessing.py."""
    with av.open(str(video)) as container:
        (stream,) = container.streams.video
        graph = av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream), graph.add("fps", "fps=30"), graph.add("buffersink")
        ).configure()
        shown = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            with suppress(av.BlockingIOError, av.EOFError):
                while True:
                    shown.append(read_index(graph.pull().to_ndarray(format="rgb24")))
        file_fps = math.floor(stream.average_rate)
    shown += [shown[-1]] * (-len(shown) % 30)  # to whole seconds
    shown += shown[-30:] * (len(shown) // 30 % 2)  # to clips of two
    picked = np.linspace(0, 64 * file_fps / 30 - 1, 32).clip(0, 59).astype(int)
    return np.reshape(shown, (-1, 60))[:, picked].tolist()


@pytest.mark.parametrize(
    ("fps", "num_frames", "are_same"), [(15, 75, True), (30, 130, True), (60, 250, True), (25, 100, False)]
)
def test_heros_clips_are_its_own_where_ffmpeg_reads_the_same_frames(tmp_path, fps, num_frames, are_same):
    """For 15, 30 and 60 fps; at other rates, FFmpeg takes the frame nearest to a tick, and vid3d the one on screen."""
    video = write_video(tmp_path / "a.mp4", num_frames=num_frames, fps=fps, width=48, height=48, gop=30)
    plan = make_plan(model="i3d", streams="rgb", fps=30)
    with ClipReader(replace(plan, resize_px=48, crop_px=48, window=60, stride=60, spread="32:64"), str(video)) as clips:
        ours = [[read_index(frame) for frame in clip.streams["rgb"]] for clip in clips]
    theirs = hero_frames(video)
    assert len(ours) == len(theirs)
    assert (ours == theirs) == are_same
    assert np.abs(np.array(ours) - theirs).max() <= 1


# The network ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"window": 30, "stride": 20, "spread": 9, "centred": True},
        pytest.param({"window": 21, "stride": 1, "centred": True, "streams": "rgb"}, marks=pytest.mark.exhaustive),
        pytest.param({"window": 12, "stride": 5, "centred": True}, marks=pytest.mark.exhaustive),
        pytest.param({"window": 30, "stride": 20, "spread": 9}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:--centred with stride")
def test_features_equal_a_network_that_runs_each_clip_alone(tmp_path, options):
    """Equal bytes in fp32: clips cut by NumPy from all frames, one by one through the same network."""
    video = str(write_video(tmp_path / "a.mp4", num_frames=40))
    options = {"model": MODEL, "precision": "fp32", "runtime": "torch", "fps": "native", **options}
    result = vid3d_cli.classify(video, **options)
    num_frames = result.num_frames
    plan = make_plan(**options)
    with ClipReader(replace(plan, window=num_frames, centred=False, spread=None), video) as reader:
        (frames,) = reader
    networks = load(plan)
    starts = range(0, num_frames, plan.stride) if plan.centred else (0, 20)
    before = plan.window // 2 if plan.centred else 0
    assert len(result.clips) == len(starts)
    for clip, start in zip(result.clips, starts, strict=True):
        shown, moving = shown_in(start - before, num_frames, plan.window, centred=plan.centred)
        if plan.spread:
            picked = np.floor(np.linspace(0, plan.window - 1, plan.spread) + 1e-9).astype(int)
            shown, moving = shown[picked], moving[picked]
        streams = {stream: frames.streams[stream][shown] for stream in plan.networks}
        if "flow" in streams:
            streams["flow"][~moving] = 0
        alone = Clip(ClipSpan(0, 0, 0, 0.0, 0.0), streams)
        (expected,) = networks.runtime.run([alone])
        for stream in plan.networks:
            assert clip.features[stream].tobytes() == expected.features[stream].tobytes()


# Jobs ----------------------------------------------------------------------------------------------------------------

CENTRED = ("--model", "s3d_mini", "--window", 9, "--stride", 2, "--centred", "--fps", "native", "--spread", 12)


@pytest.fixture
def three(tmp_path):
    return [write_video(tmp_path / f"{n}.mp4", num_frames=n, width=48) for n in (3, 10, 21)]


@pytest.mark.parametrize(
    "name", ["f.npy", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("f", "f.npz", "f.h5", "f.parquet"))]
)
def test_outputs_are_checked_compared_and_resumed(vid3d, tiny_model, three, tmp_path, name):
    if name == "f.h5":
        pytest.importorskip("h5py")
    if name == "f.parquet":
        pytest.importorskip("pyarrow")
    assert vid3d("extract", *three, "--out", f"whole/{name}", *CENTRED).exit_code == 0
    assert vid3d("extract", *three[:2], "--out", name, *CENTRED).exit_code == 0
    assert vid3d("extract", *three, "--out", name, *CENTRED).exit_code == 0
    assert vid3d("features", "check", name).exit_code == 0
    compared = json.loads(vid3d("features", "compare", name, f"whole/{name}").stdout.splitlines()[-1])
    assert compared["rows"] == 2 + 5 + 11
    assert all(values["max_relative_difference"] == 0 for values in compared["matrices"].values())
    with open_store(name) as one, open_store(f"whole/{name}") as other:
        for a, b in zip(one.entries(), other.entries(), strict=True):
            assert read_verified(one, a).spans == read_verified(other, b).spans
    refused = vid3d("extract", *three, "--out", name, *CENTRED[:-2])
    assert refused.exit_code == EXIT_USAGE
    assert "spread: 12 there, none now" in refused.stderr


@pytest.mark.exhaustive
def test_shards_processes_flow_files_and_ten_crops(vid3d, tiny_model, decoder_processes, three, tmp_path):
    options = [*CENTRED, "--crops", 10, "--keep-crops"]
    for video in three:
        assert vid3d("flow", video, "--out", f"flow/{video.stem}.npz", "--fps", "native").exit_code == 0
    for i in (1, 2):
        done = vid3d("extract", tmp_path, "--out", "f.npz", *options, "--shard", f"{i}/2", "--flow-files", "flow")
        assert done.exit_code == 0, done.stderr
    assert vid3d("features", "merge", *tmp_path.glob("f.shard-*.npz"), "--out", "f.npz").exit_code == 0
    assert vid3d("features", "check", "f.npz").exit_code == 0
    rows = np.load(tmp_path / "f.npz")["features"]
    assert rows.shape[:2] == (2 + 5 + 11, 10)


def test_a_dry_run_says_how_often_a_frame_is_computed(vid3d, tiny_model, three):
    options = ("--model", "s3d_mini", "--window", 21, "--stride", 1, "--centred", "--fps", "native")
    result = vid3d("extract", *three, "--out", "f.npy", *options, "--dry-run")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["frames"], line["rows"], line["clips"]) for line in lines] == [
        (3, 3, 3), (10, 10, 10), (21, 21, 21), (34, 34, 34)
    ]  # fmt: skip
    assert "--centred with stride 1 computes every frame 21 times" in result.stderr
    assert vid3d("extract", *three, "--out", "f.npy", *options).exit_code == 0
    assert len(np.load("f.npy")) == 34


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tail", "drop"), "--centred repeats the first and the last frame: give --no-centred, or --tail pad"),
        (("--dense",), "--dense does not give the features of separate clips: give --no-dense, or give --no-centred"),
    ],
)
def test_what_does_not_fit_is_one_line(vid3d, video, options, words):
    result = vid3d("extract", video, "--out", "f.npy", "--model", "s3d_mini", "--centred", *options)
    assert result.exit_code == EXIT_USAGE
    assert words in " ".join(result.stderr.split())
