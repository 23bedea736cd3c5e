"""A job that is killed repeatedly ends with exactly the files of an undisturbed one."""

import random

import pytest
from formats import FORMATS as OUTPUTS
from killable import run_job, start_job
from videos import write_video

pytest.importorskip("fcntl")

NUM_VIDEOS = 30
OPTIONS = ("--model", "s3d_mini", "--streams", "rgb", "--window", "10", "--fps", "native", "-q")
FORMATS = tuple(name for name in OUTPUTS if "+" not in name)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Tiny videos of different lengths in a tree, and a broken one."""
    directory = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS):
        parent = directory / ("abc"[i % 3])
        parent.mkdir(exist_ok=True)
        write_video(parent / f"v{i // 3:02d}.mp4", num_frames=5 + i % 18)
    (directory / "b" / "v04.mp4").write_bytes(b"this is no video")
    return directory


def contents_below(directory):
    """Return the bytes of all files of the output."""
    paths = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    return {str(path): (directory / path).read_bytes() for path in paths if path.parts[0].startswith("feats")}


@pytest.mark.parametrize(
    ("out", "kills"),
    [("feats.npy", 2), ("feats", 2), *(pytest.param(out, 20, marks=pytest.mark.exhaustive) for out in FORMATS)],
)
def test_a_job_killed_at_any_instant_ends_with_the_same_files(tmp_path, videos, out, kills):
    if out.endswith(".h5"):
        pytest.importorskip("h5py")
    if out.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    chance = random.Random(out)
    command = ("extract", "--out", out, *OPTIONS, videos)

    def make_directory(name):
        (tmp_path / name).mkdir()
        return tmp_path / name

    undisturbed = make_directory("undisturbed")
    assert run_job(*command, cwd=undisturbed) == 1, (undisturbed / "stderr.txt").read_text()
    expected = contents_below(undisturbed)
    assert any("failures" in path for path in expected)

    num_kills, attempt, directory = 0, 0, make_directory("attempt-0")
    while num_kills < kills:
        if attempt % 2:
            job = start_job(*command, cwd=directory, die_at=chance.randint(1, 60))
            job.join()
        else:
            job = start_job(*command, cwd=directory)
            job.join(chance.uniform(0.1, 0.5))
            job.kill()
            job.join()
        attempt += 1
        if job.exitcode == -9:
            num_kills += 1
            continue
        assert job.exitcode == 1, (directory / "stderr.txt").read_text()
        assert contents_below(directory) == expected
        directory = make_directory(f"attempt-{attempt}")
    assert run_job(*command, cwd=directory) == 1, (directory / "stderr.txt").read_text()
    assert contents_below(directory) == expected
