"""`vid3d_cli.extract(videos, out=…)`: the job of the command line, for Python."""

import re
import warnings

import numpy as np
import pytest
from videos import write_video

import vid3d_cli
from vid3d_cli.jobs.events import ClipsDone, Finished, Resumed, ShardSelected, Started, VideoDone, VideoFailed

OPTIONS = {"model": "s3d_mini", "streams": "rgb", "window": 10}


@pytest.fixture
def videos(tmp_path):
    """A directory of three videos and a broken one."""
    (tmp_path / "v").mkdir()
    for name, num_frames in {"a": 40, "b": 25, "c": 60}.items():
        write_video(tmp_path / "v" / f"{name}.mp4", num_frames=num_frames)
    (tmp_path / "v" / "broken.mp4").write_bytes(b"nothing")
    return tmp_path / "v"


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


@pytest.mark.parametrize("out", ["f.npy", "f.npz", "f.h5", "f.parquet", "f"])
def test_the_library_writes_what_the_command_writes(vid3d, tiny_model, videos, tmp_path, out):
    by_command = vid3d(
        "extract", videos, "--out", f"command/{out}", "--model", "s3d_mini", "--streams", "rgb", "--window", 10
    )
    assert by_command.exit_code == 1
    summary = vid3d_cli.extract(videos, out=tmp_path / "library" / out, **OPTIONS)
    assert (summary.done, summary.failed, summary.has_ended, summary.num_kept) == (3, 1, True, 3)
    assert [(f.video, f.error) for f in summary.failures] == [(str(videos / "broken.mp4"), "NotAVideo")]
    assert bytes_of(tmp_path / "library") == bytes_of(tmp_path / "command")
    again = vid3d_cli.extract(videos, out=tmp_path / "library" / out, **OPTIONS)
    assert (again.done, again.failed, again.num_kept, again.num_skipped_failed) == (0, 0, 3, 1)


def test_events_come_in_order(tiny_model, videos, tmp_path):
    events = []
    vid3d_cli.extract(videos, out=tmp_path / "f.npy", on_event=events.append, **OPTIONS)
    kinds = [type(event) for event in events if not isinstance(event, ClipsDone)]
    assert kinds == [Started, VideoDone, VideoDone, VideoFailed, VideoDone, Finished]
    assert events[0].recipe.precision == "fp32" and events[0].recipe.runtime
    done = [event for event in events if isinstance(event, VideoDone)]
    assert [event.num_clips for event in done] == [2, 2, 3]
    counted = [(event.num_done, event.num_expected) for event in events if isinstance(event, ClipsDone)]
    assert counted[-1] == (3, 3)
    assert events[-1].summary.progress["clips"] == 7
    again = []
    vid3d_cli.extract(videos, out=tmp_path / "f.npy", on_event=again.append, **OPTIONS)
    assert [type(event) for event in again] == [Resumed, Finished]
    assert (again[0].num_done, again[0].num_failed, again[0].num_left) == (3, 1, 0)


def test_an_interrupted_job_keeps_finished_videos_and_resumes(tiny_model, videos, tmp_path):
    def interrupt(event):
        if isinstance(event, VideoDone) and event.progress.done == 2:
            raise KeyboardInterrupt

    out, whole = tmp_path / "f.npy", tmp_path / "whole" / "f.npy"
    with pytest.raises(KeyboardInterrupt):
        vid3d_cli.extract(videos, out=out, on_event=interrupt, **OPTIONS)
    assert [len(vid3d_cli.open_store(str(out)).entries()), np.load(out).shape[0]] == [2, 4]
    summary = vid3d_cli.extract(videos, out=out, **OPTIONS)
    assert (summary.done, summary.failed, summary.num_kept) == (1, 1, 3)
    vid3d_cli.extract(videos, out=whole, **OPTIONS)
    np.testing.assert_array_equal(np.load(out), np.load(whole))


def test_shards_are_parts_of_the_list(tiny_model, videos, tmp_path):
    events, rows = [], 0
    for shard in ("1/2", "2/2"):
        summary = vid3d_cli.extract(videos, out=tmp_path / "f.npy", shard=shard, on_event=events.append, **OPTIONS)
        rows += len(np.load(summary.out))
    selected = [event for event in events if isinstance(event, ShardSelected)]
    assert [event.name for event in selected] == ["shard-1-of-2", "shard-2-of-2"]
    assert sum(event.num_videos for event in selected) == 4
    assert rows == 7


def test_another_recipe_is_refused_and_overwrite_starts_over(tiny_model, videos, tmp_path):
    out = tmp_path / "f.npy"
    vid3d_cli.extract(videos / "a.mp4", out=out, **OPTIONS)
    with pytest.raises(vid3d_cli.UsageError, match="window: 10 there, 12 now"):
        vid3d_cli.extract(videos / "a.mp4", out=out, **{**OPTIONS, "window": 12})
    vid3d_cli.extract(videos / "a.mp4", out=out, overwrite=True, **{**OPTIONS, "window": 12})
    assert vid3d_cli.open_store(str(out)).recipe()["window"] == 12


def test_overwrite_keeps_the_output_until_the_networks_are_loaded(tiny_model, videos, tmp_path):
    out = tmp_path / "f.npy"
    vid3d_cli.extract(videos / "a.mp4", out=out, **OPTIONS)
    before = bytes_of(tmp_path)
    with pytest.raises(vid3d_cli.UsageError, match="device"):
        vid3d_cli.extract(videos / "a.mp4", out=out, overwrite=True, device="cuda:77", **OPTIONS)
    assert bytes_of(tmp_path) == before


def test_a_stream_that_is_left_out_is_a_warning(tiny_model, videos, tmp_path):
    options = {"model": "r3d_18", "window": 16}
    with pytest.warns(vid3d_cli.Vid3dWarning, match="no public flow weights"):
        vid3d_cli.extract(videos / "a.mp4", out=tmp_path / "f.npy", **options)
    with pytest.warns(vid3d_cli.Vid3dWarning, match="no public flow weights"):
        next(vid3d_cli.extract(videos / "a.mp4", **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vid3d_cli.extract(videos / "a.mp4", out=tmp_path / "g.npy", streams="rgb", **options)


def test_a_job_moves_to_another_machine_with_a_warning_at_most(tiny_model, videos, tmp_path):
    """Another runtime, other versions and another path of the weights do not stop a job; its recipe stays."""
    out = tmp_path / "f.npy"
    vid3d_cli.extract(videos / "a.mp4", out=out, **OPTIONS)
    path = tmp_path / "f.recipe.json"
    old = path.read_text().replace('"torch on cpu"', '"torch on NVIDIA H100"').replace('"numpy": "', '"numpy": "9.')
    assert old != path.read_text()
    path.write_text(old)
    journal = tmp_path / "f.videos.jsonl"
    journal.write_text(re.sub(r', "record_crc32": .*}', "}", journal.read_text()))
    with pytest.warns(vid3d_cli.Vid3dWarning, match="runtime has changed from torch on NVIDIA H100 to torch on cpu"):
        summary = vid3d_cli.extract([videos / "a.mp4", videos / "b.mp4"], out=out, **OPTIONS)
    assert (summary.done, summary.num_kept) == (1, 2)
    assert path.read_text() == old
    with vid3d_cli.open_store(str(out)) as store:
        assert [(entry.provenance or {}).get("runtime") for entry in store.entries()] == [None, "torch on cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "f.npy", "on_failure": print}, "on_event reports failures"),
        ({"on_event": print}, "on_event is for jobs"),
        ({"out": "f.npy", "claim": True}, "--claim needs a directory"),
        ({"out": "f.npy", "stale_after": 3.0}, "--stale-after needs --claim"),
        ({"out": "f.txt"}, "f.txt"),
        ({"out": "f.npy", "dtype": "int8"}, "unknown dtype"),
        ({"out": "f.npy", "dtype": np.float16}, "give a str"),
        ({"dtype": "float16"}, "dtype is an option of extract with out: give out"),
        ({"shard": "1/2"}, "shard is an option of extract with out: give out"),
        ({"out": "f.npy", "shard": "3/2"}, "shards count from 1"),
        ({"out": "f.npy", "engine": "spark"}, "unknown engine"),
        ({"out": "f.npy", "windw": 3}, "unknown option 'windw'"),
    ],
)
def test_incompatible_options_are_usage_errors(videos, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vid3d_cli.UsageError, match=message):
        vid3d_cli.extract(videos, **options)
