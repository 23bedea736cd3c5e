"""Several outputs, of which one fails: the others stay whole."""

import json

import pytest
from test_predictions import make_result

from vid3d_cli.errors import OutputError, UsageError, VideoError
from vid3d_cli.jobs.extraction import refuse_same_file
from vid3d_cli.predictions.formats import Choices
from vid3d_cli.predictions.outputs import open_outputs
from vid3d_cli.predictions.subtitles import Vtt
from vid3d_cli.segments import SegmentRule

VIDEOS = {"a": "a.mp4", "b": "b.mp4"}


def opened(*paths, form=None, videos=VIDEOS, **options):
    return open_outputs(list(paths), [form] if form else [], Choices(SegmentRule()), videos, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt, VideoError("a.mp4", "gone"), OutputError("full")])
def test_files_are_whole_if_a_later_output_fails(tmp_path, error):
    files = [tmp_path / "a.json", tmp_path / "a.boris", tmp_path / "a.jsonl"]
    with pytest.raises(type(error) if isinstance(error, Exception) else error), opened(*files) as outputs:
        outputs.writers[-1].write = lambda *_: (_ for _ in ()).throw(error)
        outputs.write(make_result(), "a")
    assert list(json.loads(files[0].read_text())["results"]) == ["a"]
    assert list(json.loads(files[1].read_text())["observations"]) == ["a"]
    assert not files[2].exists()


def test_no_record_confirms_a_video_whose_own_file_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Vtt, "write", lambda *_: (_ for _ in ()).throw(VideoError("a.mp4", "gone")))
    result = make_result()
    lines = tmp_path / "a.jsonl"
    with opened(lines, tmp_path / "out", form="vtt") as outputs:
        outputs.write_clips(result.video, result.clips, result.labels)
        with pytest.raises(VideoError):
            outputs.write(result, "a")
    assert [json.loads(line)["clip"] for line in lines.read_text().splitlines()] == [0, 1]
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_an_interrupted_run_without_a_video_keeps_the_earlier_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("earlier")
    result = make_result()
    with pytest.raises(KeyboardInterrupt), opened(path, overwrite=True) as outputs:
        outputs.write_clips(result.video, result.clips[:1], result.labels)
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"


def test_a_file_in_the_place_of_a_directory_fails_at_once(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").touch()
    with (
        pytest.raises(OutputError, match="Not a directory"),
        opened(tmp_path / "out", form="vtt", videos={"b/c": "b/c.mp4"}),
    ):
        pass


def test_one_file_by_two_names_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = tmp_path / "a.csv", tmp_path / "link" / "a.csv"
    with pytest.raises(UsageError, match="twice"), opened(one, other):
        pass
    with pytest.raises(UsageError, match="is also the output"):
        refuse_same_file(one, other)
