"""Dense runs: the arithmetic against a network with known outputs, the networks' margins, and the whole tool."""

import doctest
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from held import count_held
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded import draw
from videos import write_video

import vid3d_cli
from vid3d_cli.clips import dense
from vid3d_cli.clips.dense import DensePlan
from vid3d_cli.clips.windows import sliding_clips
from vid3d_cli.errors import EXIT_USAGE, ShapeError, UsageError
from vid3d_cli.models.backbones import Stepwise
from vid3d_cli.models.registry import BACKBONES, TimeSteps
from vid3d_cli.records import ClipOutput, ClipSpan
from vid3d_cli.video.demo import render

# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw):
    step = draw(st.integers(1, 5))
    steps = TimeSteps(step, step * draw(st.integers(0, 4)), pool=draw(st.integers(1, 3)))
    return DensePlan(
        steps,
        window=step * draw(st.integers(1, 6)),
        stride=draw(st.integers(1, 12)),
        tail=draw(st.sampled_from(["pad", "drop"])),
        new_frames=step * draw(st.integers(1, 8)),
    )


num_frames_drawn = st.integers(1, 120)


def answers_of(plan, num_frames):
    """Outputs for the stretches of a video of numbers, of a network that returns the mean of each step's frames.

    Steps within the margin of the end of a stretch are NaN, except at the ends of the video.
    """
    stretches = list(plan.stretches(range(num_frames)))
    step, margin = plan.steps.stride, plan.steps.margin // plan.steps.stride
    for index, stretch in enumerate(stretches):
        means = np.reshape(stretch.frames, (-1, step)).mean(1, dtype=np.float32)
        phase = stretch.start % step
        if stretch.start != phase:
            means[:margin] = np.nan
        if any(later.start % step == phase for later in stretches[index + 1 :]) and margin:
            means[-margin:] = np.nan
        span = ClipSpan(index, stretch.start, stretch.num_valid, 0.0, 0.0)
        yield ClipOutput(span, {"rgb": np.stack([means, -means])}, {"rgb": 2 * means[None]})


@settings(deadline=None)
@given(plans(), num_frames_drawn)
def test_windows_are_pooled_from_their_own_frames(plan, num_frames):
    windows = list(sliding_clips(range(num_frames), length=plan.window, stride=plan.stride, tail=plan.tail))
    spans = [ClipSpan(i, window.start, window.num_valid, 0.0, 0.0) for i, window in enumerate(windows)]
    outputs = plan.pool(answers_of(plan, num_frames), spans)
    assert [output.span for output in outputs] == spans
    for output, window in zip(outputs, windows, strict=True):
        steps = np.reshape(window.frames, (-1, plan.steps.stride)).mean(1)
        pool = min(plan.steps.pool, len(steps))
        expected = np.mean([steps[i : i + pool].mean() for i in range(len(steps) - pool + 1)])
        np.testing.assert_allclose(output.features["rgb"], [expected, -expected], rtol=1e-5)
        np.testing.assert_allclose(output.logits["rgb"], [2 * expected], rtol=1e-5)


@settings(deadline=None)
@given(plans(), num_frames_drawn)
def test_stretches_are_whole_steps_of_bounded_length_and_show_every_frame(plan, num_frames):
    stretches = list(plan.stretches(range(num_frames)))
    assert len(stretches) == plan.count_stretches(num_frames)
    shown = set()
    for stretch in stretches:
        assert len(stretch.frames) == stretch.num_valid <= plan.length
        assert stretch.num_valid > 0
        assert stretch.num_valid % plan.steps.stride == 0
        in_order = [min(stretch.start + i, num_frames - 1) for i in range(stretch.num_valid)]
        assert stretch.frames == in_order
        shown.update(stretch.frames)
    lengths = {stretch.num_valid for stretch in stretches}
    assert lengths == {plan.length} or len(stretches) <= len(plan.phases)  # one length, except for a short video
    last_step = plan.steps.stride - 1 if plan.tail == "drop" or plan.stride > plan.window else 0
    assert shown >= set(range(num_frames - last_step))


@settings(deadline=None)
@given(plans(), num_frames_drawn)
def test_at_most_a_stretch_and_a_step_of_frames_are_held(plan, num_frames):
    most, left = count_held(plan.stretches, num_frames)
    assert most <= plan.length + plan.steps.stride
    assert left == 0


@pytest.mark.parametrize(
    ("stride", "phases"), [(8, [0]), (64, [0]), (4, [0, 4]), (12, [0, 4]), (2, [0, 2, 4, 6]), (5, list(range(8)))]
)
def test_one_pass_per_offset_within_a_step(stride, phases):
    plan = DensePlan(TimeSteps(8, 48), window=64, stride=stride, tail="pad")
    assert list(plan.phases) == phases
    starts = {stretch.start % 8 for stretch in plan.stretches(range(1000))}
    assert starts == set(phases)


def test_a_long_video_is_computed_1_4_times():
    plan = DensePlan(BACKBONES["i3d"].steps, window=64, stride=8, tail="pad")
    num_seen = sum(stretch.num_valid for stretch in plan.stretches(range(20_000)))
    assert num_seen == pytest.approx(20_000 * 352 / 256, rel=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 20}, "multiple of 8, such as 16 or 24, got 20"),
        ({"window": 4}, "multiple of 8, such as 8, got 4"),
        ({"tail": "loop"}, "use pad or drop"),
    ],
)
def test_windows_that_cannot_be_pooled(options, words):
    with pytest.raises(UsageError, match=words):
        DensePlan(TimeSteps(8, 48), **{"window": 16, "stride": 8, "tail": "pad", **options})


def test_the_examples_in_the_docstrings_are_right():
    results = doctest.testmod(dense)
    assert results.attempted >= 3
    assert results.failed == 0


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------

DEEP = {"p3d131", "p3d199", "r2plus1d_34", "mc3_18", "r2plus1d_18", "p3d63", "i3d_r50"}
"""Deep networks, most of them siblings of smaller ones: only in the exhaustive tests."""
STEPWISE = [
    pytest.param(name, marks=[pytest.mark.exhaustive] * (name in DEEP))
    for name, backbone in BACKBONES.items()
    if backbone.steps
]
SIDE_PX = {"i3d": 193}
"""The smallest clip that can be pooled, if 24 px are too few."""


@pytest.fixture(scope="module", params=STEPWISE)
def seeded(request):
    """A network with seeded weights: its name, itself, its steps."""
    name = request.param
    net = BACKBONES[name].build("rgb", 11).eval()
    state = {key: torch.from_numpy(np.asarray(draw(key, tuple(t.shape), 5))) for key, t in net.state_dict().items()}
    net.load_state_dict(state)
    return name, net, BACKBONES[name].steps


def noise(num_clips, num_frames, side_px):
    return torch.rand(num_clips, 3, num_frames, side_px, side_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_networks_with_steps_are_stepwise():
    for name, backbone in BACKBONES.items():
        with torch.device("meta"):
            assert isinstance(backbone.build("rgb", 7), Stepwise) == (backbone.steps is not None), name


def test_a_clip_is_the_weighted_mean_of_its_steps(seeded):
    name, net, steps = seeded
    clips = noise(1, 3 * max(8, steps.stride), SIDE_PX.get(name, 24))
    with torch.inference_mode():
        whole, each = net(clips), net.steps(clips)
    assert each.features.shape == (1, BACKBONES[name].feature_dim, clips.shape[2] // steps.stride)
    weights = torch.from_numpy(steps.weights(each.logits.shape[2]))
    for pooled, expected in [(each.features @ weights, whole.features), (each.logits @ weights, whole.logits)]:
        assert (pooled - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_step_at_the_margin_does_not_depend_on_the_end_of_the_stretch(seeded):
    name, net, steps = seeded
    step, margin = steps.stride, steps.margin
    frames = noise(1, 2 * margin + 8 * step, 24 if name in ("i3d", "s3d", "s3d_mini") else 16)
    last_map = net.get_submodule(list(BACKBONES[name].layers.values())[-1])
    maps = []
    last_map.register_forward_hook(lambda module, inputs, x: maps.append(x.mean((3, 4))[0]))
    beyond = 2 * step
    for part in (frames, frames[:, :, beyond:-beyond]):
        try:
            with torch.inference_mode():
                net.maps(part)
        except ShapeError:
            assert name == "i3d"  # too small for its head to pool
    whole, cut = maps
    whole = whole[:, 2:-2]
    assert cut.shape == whole.shape == (BACKBONES[name].feature_dim, (2 * margin + 4 * step) // step)
    error = (cut - whole).abs().amax(0) / whole.abs().max()
    num_steps = margin // step
    assert error[num_steps:-num_steps].max() <= 1e-4
    assert error[num_steps // 2 : -(num_steps // 2)].max() > 1e-4  # half the margin would be too small


# ---------------------------------------------------------------------------------------------------------------------
# The whole tool, with the embedded model
# ---------------------------------------------------------------------------------------------------------------------

MODEL = "s3d_mini.camera_motion"


@pytest.fixture(scope="module")
def camera_motions(tmp_path_factory):
    """A video of known camera motions, a new one every 32 frames at the model's 12.5 fps."""
    path = tmp_path_factory.mktemp("motions") / "motions.mp4"
    render(path)
    return str(path)


def extract(video, **options):
    return vid3d_cli.classify(
        str(video), **{"model": MODEL, "streams": "rgb", "precision": "fp32", "runtime": "torch", **options}
    )


def spans_of(result):
    return [clip.span for clip in result.clips]


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"window": 16, "stride": 5, "tail": "drop", "end_seconds": 2.5}, marks=pytest.mark.exhaustive),
        {"window": 32, "stride": 12, "start_seconds": 1.0, "end_seconds": 6.1},
        pytest.param({"window": 16, "stride": 8}, marks=pytest.mark.exhaustive),
        pytest.param({"window": 16, "stride": 40}, marks=pytest.mark.exhaustive),
        pytest.param({"window": 64, "stride": 64, "end_seconds": 5.0}, marks=pytest.mark.exhaustive),
    ],
)
def test_dense_windows_are_the_same_as_separate_windows(camera_motions, options):
    options = {"end_seconds": 4.0, **options}
    one_by_one, pooled = extract(camera_motions, **options), extract(camera_motions, dense=True, **options)
    assert spans_of(pooled) == spans_of(one_by_one)
    assert pooled.features().shape == one_by_one.features().shape
    assert pooled.logits["rgb"].shape == one_by_one.logits["rgb"].shape


@pytest.mark.parametrize("num_frames", [5, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (16, 64))])
def test_a_video_of_one_window_gives_the_same_numbers(tmp_path, num_frames):
    """There are no neighbouring frames, so the network sees the same input."""
    video = write_video(tmp_path / "a.mp4", num_frames=num_frames)
    options = {"window": 16 if num_frames < 64 else 64, "fps": "native", "streams": "both"}
    one_by_one, pooled = extract(video, **options), extract(video, dense=True, **options)
    assert len(pooled.clips) == 1
    assert_close(pooled.features(), one_by_one.features())
    assert_close(pooled.logits["fused"], one_by_one.logits["fused"])


@pytest.mark.exhaustive
def test_numbers_do_not_depend_on_where_stretches_are_cut(camera_motions, monkeypatch):
    options = {"window": 16, "stride": 4, "dense": True, "streams": "both", "end_seconds": 9.0}
    whole = extract(camera_motions, **options)
    monkeypatch.setattr("vid3d_cli.plan.DensePlan", partial(DensePlan, new_frames=24))
    cut = extract(camera_motions, **options)
    assert (whole.recipe.dense, cut.recipe.dense) == tuple(f"stretches of {n} frames, margin 48" for n in (352, 120))
    assert_close(cut.features(), whole.features())
    assert_close(cut.logits["fused"], whole.logits["fused"])


@pytest.mark.exhaustive
def test_windows_between_steps_equal_those_of_a_video_that_starts_there(camera_motions):
    all_of_them = extract(camera_motions, window=16, stride=4, dense=True, end_seconds=10.0)
    later = extract(camera_motions, window=16, stride=8, dense=True, start_seconds=4 / 12.5, end_seconds=10.0)
    num_far_from_the_end = 8  # 125 frames, less a margin
    assert_close(all_of_them.features()[1::2][:num_far_from_the_end], later.features()[:num_far_from_the_end])


@pytest.mark.parametrize(
    ("window", "least_cosine", "least_agreement"),
    [(64, 0.97, 0.9), pytest.param(16, 0.8, 0.8, marks=pytest.mark.exhaustive)],
)
def test_dense_windows_agree_with_separate_windows(camera_motions, window, least_cosine, least_agreement):
    """Closely for long windows; for 16 frames, where every other step touches padding, on most labels."""
    options = {"window": window, "stride": 8, "end_seconds": 9.0}
    one_by_one, pooled = extract(camera_motions, **options), extract(camera_motions, dense=True, **options)
    cosine = cosines(one_by_one.features(), pooled.features())
    assert cosine.mean() > least_cosine
    assert cosine.min() < 0.9999  # the numbers differ, as documented
    labels = [np.stack([c.logits["rgb"] for c in r.clips]).argmax(1) for r in (one_by_one, pooled)]
    assert (labels[0] == labels[1]).mean() >= least_agreement


@pytest.mark.exhaustive
def test_crops_may_be_kept_or_averaged(camera_motions):
    options = {"window": 16, "stride": 8, "dense": True, "end_seconds": 2.0}
    centre, kept = extract(camera_motions, **options), extract(camera_motions, crops=3, keep_crops=True, **options)
    assert kept.features().shape == (len(centre.clips), 3, 256)
    assert_close(kept.features()[:, 1], centre.features())
    averaged = extract(camera_motions, crops=3, **options)
    assert_close(averaged.features(), kept.features().mean(1))


def test_the_command_and_its_recipe(vid3d, camera_motions, tmp_path):
    arguments = ["--model", MODEL, "--stride", 8, "--end", 4, "--streams", "rgb", camera_motions]
    result = vid3d("extract", "--dense", "--out", "f.npz", *arguments)
    assert result.exit_code == 0, result.stderr
    stored = np.load(tmp_path / "f.npz")
    assert stored["features"].shape == (6, 256)
    assert json.loads(str(stored["recipe"]))["dense"] == "stretches of 352 frames, margin 48"


@pytest.mark.exhaustive
def test_a_fresh_process_reads_while_it_loads_torch(camera_motions, tmp_path):
    arguments = ["--model", MODEL, "--streams", "rgb", "--end", "2", "--out", "f.npy", "--runtime", "torch"]
    command = [sys.executable, "-m", "vid3d_cli", "extract", camera_motions, "--dense", "--stride", "8", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dense_run_that_does_not_pay_is_a_warning(vid3d, camera_motions):
    arguments = ["extract", camera_motions, "--model", MODEL, "--streams", "rgb", "--end", 1, "--overwrite", "--dense"]
    for window, stride, warned in ((64, 8, False), (64, 30, True), (16, 16, True)):
        result = vid3d(*arguments, "--window", window, "--stride", stride, "--out", "f.npy", "--dry-run")
        assert (result.exit_code, "leave --dense out" in result.stderr) == (0, warned)
        assert ("multiple of 8" in result.stderr) == (stride == 30)


def test_stretches_of_a_huge_video_are_counted_at_once():
    plan = DensePlan(TimeSteps(stride=8, margin=48), window=64, stride=4, tail="pad")
    assert plan.count_stretches(2**40) == pytest.approx(2 * 2**40 / plan.new_frames, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--model", "c3d", "--streams", "rgb"],
            "c3d looks at each clip as a whole and cannot run --dense; these can: i3d, ",
        ),
        (["--model", "s3d_g", "--streams", "rgb"], "s3d_g looks at each clip as a whole"),
        (["--window", "20"], "such as 16 or 24, got 20"),
        (["--tail", "loop"], "use pad or drop"),
        (["--layer", "Mixed_4f"], "give --no-dense, or leave out --layer"),
        (["--batch-size", "4"], "give --no-dense, or leave out --batch-size"),
    ],
)
def test_a_dense_run_is_refused_before_a_video_is_read(vid3d, tiny_model, video, options, words):
    result = vid3d("extract", "--dense", "--out", "f.npy", *options, video)
    assert result.exit_code == EXIT_USAGE, result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
