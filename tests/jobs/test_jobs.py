"""Which videos of a list are left, and which worker processes them: resume, shards, claims."""

import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from unittest.mock import Mock

import numpy as np
import pytest
from formats import FORMATS as OUTPUTS
from hypothesis import given
from hypothesis import strategies as st
from killable import run_job, start_job, wait_until
from videos import write_video

from vid3d_cli.errors import UsageError
from vid3d_cli.features.entries import video_key
from vid3d_cli.features.journals import paths_of_all
from vid3d_cli.features.stores import create_store, open_store
from vid3d_cli.jobs import extraction, shards
from vid3d_cli.jobs.claims import Claims
from vid3d_cli.jobs.shards import Shard, balance, select_shard
from vid3d_cli.video.fingerprint import ENDS_BYTES, Fingerprint
from vid3d_cli.video.sources import Source

OPTIONS = ("--model", "s3d_mini", "--streams", "rgb", "--window", "10", "--fps", "native")
FORMATS = [name.replace("feats", "f") for name in OUTPUTS if "+" not in name]


@pytest.fixture
def three(tmp_path):
    """Three videos, and the options for their features."""
    for name, num_frames in (("a", 12), ("b", 25), ("c", 9)):
        write_video(tmp_path / f"{name}.mp4", num_frames=num_frames)
    return ["a.mp4", "b.mp4", "c.mp4"]


def rows_of(path):
    """Return the rows of each video in the first matrix."""
    with open_store(str(path)) as store:
        return {e.video: np.array(next(iter(store.read(e).matrices.values()))) for e in store.entries()}


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for video, rows in expected.items():
        np.testing.assert_array_equal(found[video], rows, err_msg=video)


# Resume --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", FORMATS)
def test_the_same_command_does_nothing_if_all_videos_are_done(vid3d, tiny_model, three, tmp_path, monkeypatch, out):
    assert vid3d("extract", *three, "--out", out, *OPTIONS).exit_code == 0
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("f*") if p.is_file()}
    monkeypatch.setattr(extraction.VideoFeatures, "of", None)  # nothing is computed
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert result.exit_code == 0
    assert f"{out}: 3 of 3 videos done before; 0 left" in result.stderr
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("f*") if p.is_file()} == before


@pytest.mark.parametrize("out", FORMATS)
def test_a_longer_list_adds_to_an_existing_output(vid3d, tiny_model, three, tmp_path, out):
    vid3d("extract", *three, "--out", f"all{out}", *OPTIONS)
    assert vid3d("extract", three[0], "--out", out, *OPTIONS).exit_code == 0
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert "1 of 3 videos done before; 2 left" in result.stderr
    assert_same_rows(rows_of(tmp_path / out), rows_of(tmp_path / f"all{out}"))


@pytest.mark.parametrize("out", FORMATS)
def test_a_changed_video_is_extracted_again(vid3d, tiny_model, three, tmp_path, out):
    vid3d("extract", *three, "--out", out, *OPTIONS)
    write_video(tmp_path / "b.mp4", num_frames=31)
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert "2 of 3 videos done before; 1 left" in result.stderr
    assert {video: len(rows) for video, rows in rows_of(tmp_path / out).items()} == {"a.mp4": 2, "b.mp4": 4, "c.mp4": 1}


def test_rows_of_a_deleted_video_stay(vid3d, tiny_model, three, tmp_path):
    vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    (tmp_path / "b.mp4").unlink()
    result = vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    assert result.exit_code == 0
    assert "3 of 3 videos done before" in result.stderr
    assert len(rows_of(tmp_path / "f.npy")) == 3


@pytest.mark.parametrize("out", FORMATS)
def test_another_recipe_is_refused_with_its_differences(vid3d, tiny_model, three, tmp_path, out):
    vid3d("extract", *three, "--out", out, *OPTIONS)
    before = rows_of(tmp_path / out)
    result = vid3d("extract", *three, "--out", out, *OPTIONS, "--stride", "5", "--dtype", "float16")
    assert result.exit_code == 2
    for part in ("made with another recipe", "stride: 10 there, 5 now", "dtype: float32 there, float16 now"):
        assert part in result.stderr
    assert_same_rows(rows_of(tmp_path / out), before)
    assert vid3d("extract", *three, "--out", out, *OPTIONS, "--stride", "5", "--overwrite").exit_code == 0
    assert sum(map(len, rows_of(tmp_path / out).values())) == 2 + 4 + 1


@pytest.mark.parametrize("out", FORMATS)
def test_failures_are_kept_reported_and_retried_on_request_or_change(vid3d, tiny_model, three, tmp_path, out):
    (tmp_path / "bad.mp4").write_bytes(b"not yet a video")
    videos = [*three, "bad.mp4", "gone.mp4"]
    assert vid3d("extract", *videos, "--out", out, *OPTIONS).exit_code == 1
    with open_store(str(tmp_path / out)) as store:
        assert {f.video: f.error for f in store.failures()} == {"bad.mp4": "NotAVideo", "gone.mp4": "VideoNotFound"}
        failures = store.failures_path
    result = vid3d("extract", *videos, "--out", out, *OPTIONS)
    assert result.exit_code == 1
    assert "3 of 5 videos done before, 1 failed before (retry with --redo-failed); 1 left" in result.stderr
    assert "gone.mp4: no such file" in result.stderr
    result = vid3d("extract", *videos, "--out", out, *OPTIONS, "--redo-failed")
    assert "bad.mp4: not a video" in result.stderr
    assert len(failures.read_text().splitlines()) == 2
    write_video(tmp_path / "bad.mp4", num_frames=10)
    result = vid3d("extract", f"@{failures}", "--out", out, *OPTIONS)  # a list of failures is a list of videos
    assert result.exit_code == 1
    with open_store(str(tmp_path / out)) as store:
        assert [f.video for f in store.failures()] == ["gone.mp4"]
        assert [e.video for e in store.entries()] == (sorted if out == "f" else list)([*three, "bad.mp4"])


def test_a_video_that_changes_while_it_is_read_fails(vid3d, tiny_model, three, tmp_path, monkeypatch):
    original = Fingerprint.of

    def of(video):
        found = original(video)
        if video == "b.mp4":
            os.utime(video, ns=(1, 1))
        return found

    monkeypatch.setattr(Fingerprint, "of", of)
    result = vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    assert result.exit_code == 1
    assert "b.mp4: it changed while it was read" in result.stderr
    assert set(rows_of(tmp_path / "f.npy")) == {"a.mp4", "c.mp4"}


def test_another_video_of_the_same_stem_is_not_replaced(vid3d, tiny_model, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "a.mp4", num_frames=10)
    vid3d("extract", "x/a.mp4", "--out", "f", *OPTIONS)
    result = vid3d("extract", "y/a.mp4", "--out", "f", *OPTIONS)
    assert result.exit_code == 2
    assert "f/a belongs to x/a.mp4, and y/a.mp4 would replace it" in result.stderr
    assert vid3d("extract", "x/a.mp4", "y/a.mp4", "--out", "g", *OPTIONS).exit_code == 0
    assert (tmp_path / "g" / "x" / "a.npz").exists()
    assert (tmp_path / "g" / "y" / "a.npz").exists()


@pytest.mark.parametrize("out", FORMATS)
def test_other_files_are_replaced_only_with_overwrite(vid3d, tiny_model, three, tmp_path, out):
    path = tmp_path / (out if "." in out else "f/b.npz")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"precious")
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert result.exit_code == 2
    assert "already exists, and vid3d extract did not write it" in result.stderr
    assert path.read_bytes() == b"precious"
    assert vid3d("extract", *three, "--out", out, *OPTIONS, "--overwrite").exit_code == 0
    assert len(rows_of(tmp_path / out)) == 3


@pytest.mark.parametrize("was_ours", [False, True])
def test_overwriting_replaces_only_the_names_that_the_output_has(vid3d, tiny_model, three, tmp_path, was_ours):
    if was_ours:
        vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    (tmp_path / "f_rgb.npy").write_bytes(b"precious")
    assert vid3d("extract", *three, "--out", "f.npy", *OPTIONS, "--overwrite").exit_code == 0
    assert (tmp_path / "f_rgb.npy").read_bytes() == b"precious"
    assert vid3d("extract", *three, "--out", "f.npy", *OPTIONS, "--overwrite", "--no-concat").exit_code == 0
    assert len(np.load(tmp_path / "f_rgb.npy")) == sum(map(len, rows_of(tmp_path / "f.npy").values()))


@pytest.mark.parametrize("lost", ["f.index.jsonl", "f.videos.jsonl", "f.recipe.json", "f.npy"])
def test_an_output_with_a_lost_file_is_refused_and_stays(vid3d, tiny_model, three, tmp_path, lost):
    vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    (tmp_path / lost).unlink()
    before = {p: p.read_bytes() for p in tmp_path.glob("f.*")}
    for more in ([], ["--dry-run"]):
        result = vid3d("extract", "a.mp4", "--out", "f.npy", *OPTIONS, *more)
        assert (result.exit_code, f"{lost}: missing" in result.stderr) == (1, True)
        assert "restore the file, or start over with --overwrite" in result.stderr
    for command in ("info", "check"):
        result = vid3d("features", command, "f.npy")
        assert (result.exit_code, f"{lost}: missing" in result.stderr) == (1, True)
    assert {p: p.read_bytes() for p in tmp_path.glob("f.*")} == before
    assert vid3d("extract", "a.mp4", "--out", "f.npy", *OPTIONS, "--overwrite").exit_code == 0
    assert list(rows_of(tmp_path / "f.npy")) == ["a.mp4"]


def test_a_directory_finds_its_rows_again_without_its_list(vid3d, tiny_model, three, tmp_path):
    vid3d("extract", *three, "--out", "f", *OPTIONS)
    before = rows_of(tmp_path / "f")
    (tmp_path / "f" / "videos.jsonl").unlink()
    result = vid3d("extract", "a.mp4", "--out", "f", *OPTIONS)
    assert "1 of 1 video done before" in result.stderr
    assert_same_rows(rows_of(tmp_path / "f"), before)


def test_an_output_in_fp16_cannot_be_resumed_on_a_cpu(vid3d, tiny_model, three, tmp_path):
    vid3d("extract", "a.mp4", "--out", "f.npy", *OPTIONS)
    recipe, journal = tmp_path / "f.recipe.json", tmp_path / "f.videos.jsonl"
    recipe.write_text(recipe.read_text().replace('"fp32"', '"fp16"'))
    journal.write_text(re.sub(r', "record_crc32": .*}', "}", journal.read_text()))
    for precision in ("auto", "fp16"):
        result = vid3d("extract", *three, "--out", "f.npy", *OPTIONS, "--precision", precision)
        assert result.exit_code == 2
        assert "f.npy: made in fp16, which this machine cannot run; resume it on one that can" in result.stderr
        assert "--precision fp32" not in result.stderr


def test_a_path_may_be_spelled_in_another_way(vid3d, tiny_model, three):
    vid3d("extract", *three, "--out", "f.npy", *OPTIONS)
    result = vid3d("extract", *[f"./{video}" for video in three], "--out", "f.npy", *OPTIONS)
    assert "3 of 3 videos done before" in result.stderr
    assert video_key("./x//y.mp4") == "x/y.mp4"
    assert video_key("http://a//b") == "http://a//b"


@pytest.mark.parametrize("out", FORMATS)
def test_a_video_that_changed_and_fails_keeps_its_rows_and_is_listed(vid3d, tiny_model, three, tmp_path, out):
    vid3d("extract", *three, "--out", out, *OPTIONS)
    (tmp_path / "b.mp4").write_bytes(b"half of an upload")
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert result.exit_code == 1
    assert f"{out}: 1 video changed since; extracting again" in result.stderr
    assert {video: len(rows) for video, rows in rows_of(tmp_path / out).items()} == {"a.mp4": 2, "b.mp4": 3, "c.mp4": 1}
    with open_store(str(tmp_path / out)) as store:
        assert [failed.video for failed in store.failures()] == ["b.mp4"]
    result = vid3d("extract", *three, "--out", out, *OPTIONS)
    assert (result.exit_code, "1 failed before" in result.stderr) == (1, True)
    write_video(tmp_path / "b.mp4", num_frames=31)
    assert vid3d("extract", *three, "--out", out, *OPTIONS).exit_code == 0
    assert len(rows_of(tmp_path / out)["b.mp4"]) == 4
    with open_store(str(tmp_path / out)) as store:
        assert store.failures() == []


@pytest.mark.parametrize("out", FORMATS)
def test_overwriting_forgets_failures_and_another_recipe_does_not_inherit_them(vid3d, tiny_model, three, tmp_path, out):
    assert vid3d("extract", three[0], "--out", out, *OPTIONS, "--start", "100").exit_code == 1
    assert vid3d("extract", three[0], "--out", out, *OPTIONS).exit_code == 0
    assert vid3d("extract", *three, "--out", out, *OPTIONS, "--start", "0.45", "--overwrite").exit_code == 1
    assert vid3d("extract", *three, "--out", out, *OPTIONS, "--overwrite").exit_code == 0
    assert len(rows_of(tmp_path / out)) == 3


@pytest.mark.parametrize("out", FORMATS)
def test_a_second_job_on_an_output_is_refused_while_the_first_one_writes(vid3d, tiny_model, three, tmp_path, out):
    with create_store(str(tmp_path / out)) as first:
        first.prepare([])
        result = vid3d("extract", *three, "--out", out, *OPTIONS)
        assert (result.exit_code, "another vid3d is writing to it" in result.stderr) == (2, True)
    assert vid3d("extract", *three, "--out", out, *OPTIONS).exit_code == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("out", FORMATS)
def test_two_jobs_that_start_together_write_no_row_twice(tmp_path, out):
    """The second job must see what the first one has done."""
    for i in range(60):
        write_video(tmp_path / f"v{i:02d}.mp4", num_frames=10)
    command = ("extract", *[f"v{i:02d}.mp4" for i in range(60)], "--out", out, *OPTIONS)
    jobs = [start_job(*command, cwd=tmp_path) for _ in range(2)]
    for job in jobs:
        job.join()
    assert sorted(job.exitcode for job in jobs) in ([0, 0], [0, 2]), (tmp_path / "stderr.txt").read_text()
    with open_store(str(tmp_path / out)) as store:
        assert sum(entry.num_rows for entry in store.entries()) == 60
        assert len(store.entries()) == 60
    if out == "f.npy":
        assert len(np.load(tmp_path / out)) == 60


@pytest.mark.parametrize("taken", ["f.failures.jsonl", "f.npy", "f.recipe.json", "f.videos.jsonl", "f.index.jsonl"])
def test_failures_cannot_replace_a_file_of_the_output(vid3d, tiny_model, three, taken):
    result = vid3d("extract", *three, "--out", "f.npy", "--failures", taken, *OPTIONS)
    assert result.exit_code == 2
    assert "is also the output: choose another name" in result.stderr


# Fingerprints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, ENDS_BYTES, ENDS_BYTES + 1, 2 * ENDS_BYTES, 3 * ENDS_BYTES])
def test_a_fingerprint_detects_changes_of_size_time_and_ends(tmp_path, size):
    path = tmp_path / "a.mp4"
    data = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    before = Fingerprint.of(str(path))
    assert before is not None and before.is_of(str(path)) and before.size_bytes == size
    stamp = path.stat().st_mtime_ns
    for position in {0, size - 1, size // 2} if size else ():
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        os.utime(path, ns=(stamp, stamp))
        is_in_the_middle = ENDS_BYTES <= position < size - ENDS_BYTES
        assert before.is_of(str(path)) == is_in_the_middle  # that is what the time is for
    path.write_bytes(data)
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert not before.is_of(str(path))
    path.unlink()
    assert Fingerprint.of(str(path)) is None
    assert Fingerprint.of("https://example.org/a.mp4") is None


# Shards --------------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=5), st.floats(0, 1e5), max_size=40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_shards_are_a_partition_that_does_not_depend_on_the_order(seconds, num_shards, chance):
    numbers = balance(seconds, num_shards)
    assert numbers.keys() == seconds.keys()
    assert set(numbers.values()) <= set(range(1, num_shards + 1))
    shuffled = list(seconds.items())
    chance.shuffle(shuffled)
    assert balance(dict(shuffled), num_shards) == numbers
    loads = Counter()
    for name, number in numbers.items():
        loads[number] += seconds[name]
    if seconds:
        best_possible = max(sum(seconds.values()) / num_shards, max(seconds.values()))
        assert max(loads.values()) <= best_possible * 2 + 1e-6


def test_videos_of_unknown_duration_are_spread_evenly():
    assert sorted(Counter(balance({f"{i}": 0.0 for i in range(10)}, 4).values()).values()) == [2, 2, 3, 3]


def test_shards_are_balanced_by_duration_and_saved_once(tmp_path):
    sources = []
    for i, num_frames in enumerate([60, 10, 10, 10, 10, 10, 10]):
        path = write_video(tmp_path / f"{i}.mp4", num_frames=num_frames)
        sources.append(Source(str(path), PurePosixPath(str(i))))
    first = select_shard(sources, Shard(1, 2), tmp_path / "plans")
    assert [s.output_stem.name for s in first] == ["0"]
    (tmp_path / "1.mp4").unlink()  # now only one of the workers could read this file
    second = select_shard(sources[::-1], Shard(2, 2), tmp_path / "plans")
    assert {s.output_stem.name for s in second} == set("123456")
    assert [path.name for path in (tmp_path / "plans").glob("*.json")] == ["shards-of-2.json"]


def test_workers_that_start_together_probe_the_list_once(tmp_path, monkeypatch):
    probed = []
    monkeypatch.setattr(shards, "_probe_duration", lambda video, _: probed.append(video) or time.sleep(0.01) or 1.0)
    sources = [Source(f"{i}.mp4", PurePosixPath(str(i))) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: select_shard(sources, Shard(i, 4), tmp_path / "plans"), range(1, 5)))
    assert sorted(probed) == sorted(source.video for source in sources)
    assert sorted(source.video for part in parts for source in part) == sorted(probed)


def test_playlists_count_for_shards_if_they_are_allowed(tmp_path):
    for name, num_frames in {"a.ts": 100, "b.mp4": 20, "c.mp4": 20}.items():
        write_video(tmp_path / name, num_frames=num_frames)
    (tmp_path / "a.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{tmp_path / 'a.ts'}\n#EXT-X-ENDLIST\n"
    )
    sources = [Source(str(tmp_path / name), PurePosixPath(name)) for name in ("a.m3u8", "b.mp4", "c.mp4")]
    part = select_shard(sources, Shard(1, 2), tmp_path / "plans", allow_playlists=True)
    assert [source.output_stem.name for source in part] == ["a.m3u8"]


def test_a_hanging_video_does_not_block_sharding(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    write_video(tmp_path / "a.mp4", num_frames=10)
    sources = [Source(str(tmp_path / name), PurePosixPath(name)) for name in ("pipe.mp4", "a.mp4")]
    parts = [select_shard(sources, Shard(i, 2), tmp_path / "plans", timeout=1.0) for i in (1, 2)]
    assert sorted(len(part) for part in parts) == [1, 1]


def test_a_longer_list_leaves_no_video_out(tmp_path):
    sources = [Source(f"{i}.mp4", PurePosixPath(str(i))) for i in range(20)]
    first = select_shard(sources[:12], Shard(1, 2), tmp_path / "plans")
    second = select_shard(sources, Shard(2, 2), tmp_path / "plans")
    again = select_shard(sources, Shard(1, 2), tmp_path / "plans")
    assert Counter(s.video for s in [*again, *second]) == Counter(s.video for s in sources)
    assert {s.video for s in first} <= {s.video for s in again}


def test_workers_on_a_file_system_without_locks_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError("not supported")))
    sources = [Source(f"{i}.mp4", PurePosixPath(str(i))) for i in range(9)]

    chance = random.Random(0)
    monkeypatch.setattr(shards, "_probe_duration", lambda *_: chance.random())  # every worker measures another duration
    real = os.link
    (tmp_path / "plans").mkdir()

    def late(mine, path):
        monkeypatch.setattr(os, "link", real)
        select_shard(sources, Shard(2, 3), tmp_path / "plans")  # another worker is faster
        real(mine, path)

    monkeypatch.setattr(os, "link", late)
    parts = [select_shard(sources, Shard(i, 3), tmp_path / "plans") for i in (1, 2, 3)]
    assert Counter(s.video for part in parts for s in part) == Counter(s.video for s in sources)


@pytest.mark.parametrize(
    ("text", "named"), [("0/4", "count from 1"), ("5/4", "1/4 to 4/4"), ("3", "write i/n"), ("a/b", "write i/n")]
)
def test_shards_that_do_not_exist_are_usage_errors(text, named):
    with pytest.raises(UsageError, match=named):
        Shard.parse(text)


def slurm(task, first, last, count, step=1):
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, (task, first, last, count, step), strict=True)}


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        (slurm(1, 1, 16, 16), Shard(1, 16)),
        (slurm(15, 0, 15, 16), Shard(16, 16)),
        (slurm(7, 3, 11, 3, 4), Shard(2, 3)),
    ],
)
def test_a_slurm_array_gives_each_task_its_shard(environ, shard):
    assert Shard.parse("slurm", environ) == shard


@pytest.mark.parametrize(
    ("environ", "named"), [({}, "works inside a Slurm array only"), (slurm(7, 0, 9, 3), "has gaps")]
)
def test_incomplete_slurm_arrays_are_usage_errors(environ, named):
    with pytest.raises(UsageError, match=named):
        Shard.parse("slurm", environ)


def test_names_of_shards_sort_like_their_numbers():
    names = [Shard(i, 12).name for i in range(1, 13)]
    assert names == sorted(names)
    assert names[2] == "shard-03-of-12"


# Claims --------------------------------------------------------------------------------------------------------------


SOURCE = Source("a.mp4", PurePosixPath("a"))


def test_only_one_of_two_workers_claims_a_video(tmp_path):
    with Claims(tmp_path, "one") as one, Claims(tmp_path, "two") as two:
        assert one.take(SOURCE)
        assert not two.take(SOURCE)
        assert one.holds(SOURCE) and not two.holds(SOURCE)
        two.give_back(SOURCE)  # it does not hold this claim
        assert not two.take(SOURCE)
        one.give_back(SOURCE)
        assert two.take(SOURCE)
    assert not (tmp_path / ".claims").exists()


@pytest.mark.exhaustive
def test_a_living_worker_keeps_its_claim_and_a_dead_one_loses_it(tmp_path):
    with Claims(tmp_path, "living", stale_seconds=1.5) as living, Claims(tmp_path, "other", 1.5) as other:
        assert living.take(SOURCE)
        time.sleep(2)
        assert not other.take(SOURCE)
        living._is_over.set()  # as if its machine had stopped
        time.sleep(2)
        assert other.take(SOURCE)
        assert other.holds(SOURCE)
        assert not living.holds(SOURCE)  # it sees this when it resumes
        living.give_back(SOURCE)
        assert other.holds(SOURCE)


def test_a_stale_claim_is_taken_over_by_one_worker_only(tmp_path):
    path = None
    with Claims(tmp_path, "dead") as dead:
        dead.take(SOURCE)
        path = dead._path(SOURCE)
        os.utime(path, (1, 1))
        dead._held.clear()
        workers = [Claims(tmp_path, f"w{i}") for i in range(8)]
        got = []
        barrier = threading.Barrier(8)

        def take(worker):
            barrier.wait()
            if worker.take(SOURCE):
                got.append(worker)

        threads = [threading.Thread(target=take, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [worker for worker in workers if worker.holds(SOURCE)] == got
        assert len(got) == 1
        for worker in workers:
            worker.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--claim", "--out", "f.npy"], "--claim needs a directory"),
        (["--claim", "--shard", "1/2", "--out", "f"], "choose one"),
        (["--claim", "--overwrite", "--out", "f"], "--overwrite would delete what other workers write"),
        (["--shard", "1/2", "--overwrite", "--out", "f"], "--overwrite would delete what other workers write"),
        (["--stale-after", "5", "--out", "f"], "--stale-after needs --claim"),
    ],
)
def test_incompatible_ways_to_share_are_usage_errors(vid3d, tiny_model, three, arguments, named):
    result = vid3d("extract", *three, *arguments, *OPTIONS)
    assert result.exit_code == 2
    assert named in result.stderr


# Workers -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[32, pytest.param(200, marks=pytest.mark.exhaustive)])
def many(tmp_path_factory, request):
    """Many tiny videos, and the output of one worker."""
    directory = tmp_path_factory.mktemp("many")
    for i in range(request.param):
        path = directory / "v" / f"s{i % 7}" / f"{i:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, num_frames=10 + i % 13, width=32, height=32)
    assert run_job("extract", "v", "--out", "single.npy", *OPTIONS, "-q", cwd=directory) == 0
    return directory


def count_videos(directory):
    return len(list((directory / "v").rglob("*.mp4")))


def journal_lines(directory):
    return [json.loads(line) for p in paths_of_all(directory, "videos.jsonl") for line in p.read_text().splitlines()]


def test_four_workers_that_claim_videos_do_each_of_them_once(many):
    command = ("extract", "v", "--out", "claimed", "--claim", "--stale-after", "3", *OPTIONS)
    jobs = [start_job(*command, cwd=many) for _ in range(4)]
    wait_until(lambda: len(list((many / "claimed").rglob("*.npz"))) >= count_videos(many) // 4, jobs[0])
    jobs[0].kill()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [-9, 0, 0, 0], (many / "stderr.txt").read_text()
    done = Counter(line["video"] for line in journal_lines(many / "claimed"))
    assert len(done) == count_videos(many)
    assert set(done.values()) == {1}
    assert not (many / "claimed" / ".claims").exists()
    assert_same_rows(rows_of(many / "claimed"), rows_of(many / "single.npy"))


@pytest.mark.parametrize("out", ["parts.npy", "parts"])
def test_four_shards_do_each_video_once(many, out):
    jobs = {i: start_job("extract", "v", "--out", out, "--shard", f"{i}/4", *OPTIONS, cwd=many) for i in range(1, 5)}
    pattern = "parts.shard-2-of-4.videos.jsonl" if "." in out else f"{out}/.workers/shard-2-of-4.videos.jsonl"
    wait_until(lambda: any(path.stat().st_size for path in many.glob(pattern)), jobs[2])
    jobs[2].kill()
    for job in jobs.values():
        job.join()
    assert [job.exitcode for job in jobs.values()] == [0, -9, 0, 0], (many / "stderr.txt").read_text()
    assert run_job("extract", "v", "--out", out, "--shard", "2/4", *OPTIONS, cwd=many) == 0
    if out == "parts":
        found = rows_of(many / out)
        done = Counter(line["video"] for line in journal_lines(many / out))
        assert set(done.values()) == {1}
    else:
        parts = [rows_of(path) for path in sorted(many.glob("parts.shard-?-of-4.npy"))]
        assert len(parts) == 4
        assert sum(map(len, parts)) == count_videos(many)
        found = {video: rows for part in parts for video, rows in part.items()}
    assert_same_rows(found, rows_of(many / "single.npy"))


def test_a_claimed_job_resumes(many):
    """The first list is shorter; a later worker finds the finished videos in the journals."""
    some = sorted(str(p.relative_to(many)) for p in (many / "v").rglob("*.mp4"))[:10]
    command = ("--out", "again", "--claim", "--stale-after", "2", *OPTIONS)
    assert run_job("extract", *some, *command, cwd=many) == 0
    bad = many / "v" / "s0" / "bad.mp4"
    bad.write_bytes(b"broken")
    try:
        assert run_job("extract", *some[:5], str(bad.relative_to(many)), *command, cwd=many) == 1
        assert run_job("extract", *some, *command, cwd=many) == 0
    finally:
        bad.unlink()
    assert len(journal_lines(many / "again")) == 10
    assert len(paths_of_all(many / "again", "failures.jsonl")) == 1


def test_a_video_that_fails_again_is_settled(many):
    command = ("extract", "v/s1/001.mp4", "missing.mp4", "--out", "twice", "--claim", *OPTIONS)
    assert run_job(*command, cwd=many) == 1
    assert run_job(*command, cwd=many) == 1
    assert run_job(*command, "--redo-failed", cwd=many) == 1
    assert "internal error" not in (many / "stderr.txt").read_text()


def test_a_job_without_claims_is_refused_while_workers_claim(vid3d, tiny_model, three, tmp_path):
    with Claims(tmp_path / "f", "other"):
        result = vid3d("extract", *three, "--out", "f", *OPTIONS)
        assert result.exit_code == 2
        assert "in use by --claim workers" in result.stderr
    assert vid3d("extract", *three, "--out", "f", *OPTIONS).exit_code == 0


def test_a_worker_does_not_expire_before_its_own_timeout(tmp_path):
    with Claims(tmp_path, "patient", stale_seconds=60) as patient, Claims(tmp_path, "hasty", 0.1) as hasty:
        assert patient.take(SOURCE)
        time.sleep(0.5)
        assert not hasty.take(SOURCE)


def test_another_video_of_the_same_name_is_not_replaced_by_a_worker(many):
    for folder, num_frames in (("A", 12), ("B", 30)):
        (many / folder).mkdir()
        write_video(many / folder / "v.mp4", num_frames=num_frames)
    assert run_job("extract", "A", "--out", "same", "--claim", *OPTIONS, cwd=many) == 0
    assert run_job("extract", "B", "--out", "same", "--claim", *OPTIONS, cwd=many) == 2
    assert [len(rows) for rows in rows_of(many / "same").values()] == [2]


# Overwriting ---------------------------------------------------------------------------------------------------------


def test_overwriting_does_not_remove_what_claiming_workers_write(vid3d, tiny_model, three, tmp_path):
    assert vid3d("extract", *three, "--out", "f", *OPTIONS).exit_code == 0
    with Claims(tmp_path / "f", "other"):
        result = vid3d("extract", *three, "--out", "f", *OPTIONS, "--overwrite")
        assert (result.exit_code, "in use by --claim workers" in result.stderr) == (2, True)
    assert len(rows_of(tmp_path / "f")) == 3


def test_overwriting_a_shard_that_has_become_empty_removes_its_rows(vid3d, tiny_model, three, tmp_path):
    number = next(i for i in (1, 2) if vid3d("extract", *three, "--out", "f.npy", *OPTIONS, "--shard", f"{i}/2"))
    shard = tmp_path / f"f.shard-{number}-of-2.npy"
    others = [name for name in three if name not in rows_of(shard)]
    assert vid3d("extract", *others, "--out", "f.npy", *OPTIONS, "--shard", f"{number}/2", "--overwrite").exit_code == 0
    assert not shard.exists()


@pytest.mark.parametrize(
    "options",
    [["--claim", "--shard", "1/2"], ["--stale-after", "3"], ["--claim", "--out", "f.npy"], ["--failures", "f.npy"]],
)
def test_a_dry_run_refuses_what_the_job_refuses(vid3d, tiny_model, three, options):
    out = [] if "--out" in options else ["--out", "f.npy" if "--failures" in options else "f"]
    for dry in ([], ["--dry-run"]):
        assert vid3d("extract", *three, *out, *options, *OPTIONS, *dry).exit_code == 2
