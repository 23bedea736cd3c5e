"""The Python API, with the real network where it matters."""

import threading
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from seeded import SeededCase
from videos import write_video

import vid3d_cli as vid3d
import vid3d_cli.models.clip_model
from vid3d_cli.errors import CheckpointError
from vid3d_cli.run.reader import ClipReader


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Both streams of I3D in published layouts, with seeded values."""
    folder = tmp_path_factory.mktemp("weights")
    for stream, case in {"rgb": "i3d_rgb_hassony2_64f", "flow": "i3d_flow_piergiaj_64f"}.items():
        state = SeededCase(case).state_dict()
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, folder / f"{stream}.pt")
    return {stream: folder / f"{stream}.pt" for stream in ("rgb", "flow")}


@pytest.mark.exhaustive
def test_both_streams_of_the_real_network(tmp_path, checkpoints):
    """What the pipeline says is what its network says of the clips that its reader reads."""
    video = str(write_video(tmp_path / "a.mp4", num_frames=12))
    result = vid3d.classify(video, weights=checkpoints, window=9, precision="fp32")
    assert [clip.span.num_valid_frames for clip in result.clips] == [9, 3]
    assert result.features().shape == (2, 2048)
    with ClipReader(vid3d.make_plan(weights=checkpoints, window=9), video) as reader:
        clips = list(reader)
    rgb = np.stack([clip.streams["rgb"] for clip in clips]).astype(np.float32) / 127.5 - 1
    flow = np.stack([clip.streams["flow"] for clip in clips]).clip(-20, 20) / 20
    for stream, values in {"rgb": rgb, "flow": flow}.items():
        net = vid3d.create_model("i3d", stream=stream, weights=checkpoints[stream])
        with torch.inference_mode():
            expected = net(torch.from_numpy(np.ascontiguousarray(values.transpose(0, 4, 1, 2, 3))))
        for found, reference in (
            (result.features(stream), expected.features.numpy()),
            (np.stack([clip.logits[stream] for clip in result.clips]), expected.logits.numpy()),
        ):
            assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()
    fused = result.logits["rgb"] + result.logits["flow"]
    np.testing.assert_allclose(result.logits["fused"], fused, rtol=1e-5)
    assert vid3d.top_k(fused, result.labels, 1)[0].label == result.labels[int(fused.argmax())]


@pytest.mark.exhaustive
def test_streams_with_different_classes_are_refused(tmp_path, checkpoints):
    torch.save(vid3d.create_model("i3d", stream="flow", num_classes=157).state_dict(), tmp_path / "flow.pt")
    video = write_video(tmp_path / "a.mp4", num_frames=9)
    weights = {"rgb": checkpoints["rgb"], "flow": tmp_path / "flow.pt"}
    with pytest.raises(CheckpointError, match="rgb 400, flow 157"):
        vid3d.classify(video, weights=weights, window=9)


@pytest.mark.parametrize(
    "options",
    [{"device": "bogus"}, {"precision": "fp8"}, {"batch_size": 0}, {"jobs": 0}, {"window": 4}, {"model": "x"}],
)
def test_impossible_options_are_refused_at_the_call(tiny_model, video, options):
    with pytest.raises(vid3d.UsageError):
        vid3d.extract([video], **options)


def test_a_failing_video_is_raised_or_handed_over(tiny_model, video):
    with pytest.raises(vid3d.VideoError, match=r"gone\.mp4: no such file"):
        vid3d.classify("gone.mp4")
    failures = []
    results = list(vid3d.extract(["gone.mp4", video], on_failure=lambda failure, _: failures.append(failure.error)))
    assert (len(results), failures) == (1, ["VideoNotFound"])


def test_one_video_or_several_and_rates_of_any_type(tiny_model, video):
    whole = [next(vid3d.extract(video, fps=fps)).features() for fps in ("25", 25, 25.0, Fraction(25), "native")]
    for features in whole[1:]:
        np.testing.assert_array_equal(features, whole[0])


def test_an_iterator_that_is_left_leaves_no_thread(tiny_model, video):
    before = threading.active_count()
    results = vid3d.extract([video] * 5, window=9)
    next(results)
    assert repr(results) == "Results(i3d.kinetics400, rgb + flow)"
    results.close()
    assert threading.active_count() == before


def test_an_unknown_keyword_is_a_usage_error():
    for name, hint in {
        "start": "did you mean 'start_seconds'",
        "end": "did you mean 'end_seconds'",
        "topk": "see help",
    }.items():
        with pytest.raises(vid3d.UsageError, match=f"unknown option '{name}': {hint}"):
            vid3d.make_plan(**{name: 1})
    with pytest.raises(vid3d.UsageError, match="unknown option 'windw'"):
        vid3d.extract(["a.mp4"], windw=3)


def test_the_recipe_says_how_flow_came_about(tiny_model, video, tmp_path, vid3d):
    import vid3d_cli

    assert vid3d("flow", video, "--out", "flow/", "--bound", "10").exit_code == 0
    computed = vid3d_cli.classify(video)
    read = vid3d_cli.classify(video, flow_files=tmp_path / "flow", flow_bound_px=3.0, quantise_flow=True)
    assert computed.recipe.flow.startswith("dis")
    assert "bound 10 px" in read.recipe.flow  # flow.json knows better than the option
    assert read.recipe.flow.endswith("quantised to 8 bits")
    assert vid3d_cli.classify(video, streams="rgb").recipe.flow is None
    with pytest.raises(vid3d_cli.UsageError, match="is the flow of one video"):
        vid3d_cli.extract([video, "b.mp4"], flow_files=tmp_path / "flow")


# A model that stays loaded -------------------------------------------------------------------------------------------

MINI = "s3d_mini.camera_motion"


def test_a_loaded_model_gives_the_same_results_and_loads_once(tiny_model, video, monkeypatch):
    loaded = []
    create_model = vid3d_cli.models.clip_model.create_model
    monkeypatch.setattr(
        vid3d_cli.models.clip_model, "create_model", lambda *a, **k: loaded.append(k["stream"]) or create_model(*a, **k)
    )
    model = vid3d.load(MINI, window=16, threads=1)
    assert loaded == ["rgb", "flow"]
    assert repr(model) == f"Model({MINI}, rgb + flow, torch on cpu, fp32)"
    results = [model.classify(video), model.classify(str(video)), *model.extract([video])]
    assert loaded == ["rgb", "flow"]
    assert results == 3 * [vid3d.classify(video, model=MINI, window=16, threads=1)]


def test_iterators_of_a_loaded_model_take_turns(tiny_model, video, tmp_path):
    model = vid3d.load(MINI, streams="rgb")
    videos = [video, write_video(tmp_path / "b.mp4", num_frames=90)]
    expected = list(model.extract(videos))
    one, other = model.extract(videos), model.extract(videos[::-1])
    assert [next(one), next(other)] == expected[:1] + expected[1:]
    assert [next(one), next(other)] == expected[::-1]


def test_a_loaded_model_survives_a_bad_video(tiny_model, video):
    model = vid3d.load(MINI, streams="rgb")
    with pytest.raises(vid3d.VideoError, match=r"gone\.mp4: no such file"):
        model.classify("gone.mp4")
    failures = []
    results = model.extract(["gone.mp4", video], on_failure=lambda failure, _: failures.append(failure.error))
    assert [*results] == [model.classify(video)]
    assert failures == ["VideoNotFound"]
    with pytest.raises(vid3d.UsageError, match="timeout='1': give a number or None"):
        model.extract(video, timeout="1")
    with pytest.raises(vid3d.UsageError, match="no videos given"):
        model.extract([])


def test_loading_warns_once_and_an_embedding_has_no_classes(tiny_model, video):
    with pytest.warns(vid3d.Vid3dWarning, match="runs on rgb alone") as caught:
        model = vid3d.load("s3d_g.howto100m")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = model.extract(video)
    assert result.labels == ()
    with pytest.raises(vid3d.UsageError, match="gives an embedding and has no classes"):
        model.classify(video)


def test_errors_of_loading(tmp_path):
    with pytest.raises(vid3d.UsageError, match="unknown model 'x'"):
        vid3d.load("x")
    with pytest.raises(vid3d.UsageError, match="unknown option 'windw'"):
        vid3d.load(windw=3)
    with pytest.raises(vid3d.WeightsError, match=r"gone\.pt: no such file"):
        vid3d.load(weights={"rgb": tmp_path / "gone.pt"})
