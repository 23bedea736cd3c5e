"""The Ray engine: the rows of a local run, whatever dies on the way."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from vid3d_cli.errors import CheckpointError, DecoderDied, ResourceError, ShapeError, UsageError, WorkerDied
from vid3d_cli.options import Options
from vid3d_cli.records import Clip, ClipOutput, ClipSpan
from vid3d_cli.run import local
from vid3d_cli.run import ray as engine
from vid3d_cli.run.pipeline import Pipeline, ReadVideo
from vid3d_cli.timings import StageSeconds

OPTIONS = Options(model="s3d_mini", stride=8)
NUM_FRAMES = [40, 90, 16, 60, 33, 120, 48, 70]
LONG, POISON = "long.mp4", "poison.mp4"  # they take a while to read


@pytest.fixture(scope="module")
def cluster():
    """Two machines of two CPUs, both of which are this one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    machines.add_node(num_cpus=2)
    with engine.Cluster(machines.address) as cluster:
        cluster.address = machines.address
        yield cluster
    machines.shutdown()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Videos, and a file that is none."""
    directory = tmp_path_factory.mktemp("videos")
    for index, num_frames in enumerate(NUM_FRAMES):
        write_video(directory / f"{index}.mp4", num_frames=num_frames)
    write_video(directory / LONG, num_frames=400, width=320, height=240)
    shutil.copy(directory / LONG, directory / POISON)
    (directory / "broken.mp4").write_bytes(b"nothing that could be decoded")
    return directory


@pytest.fixture(autouse=True)
def _in_directory(directory, monkeypatch):
    monkeypatch.chdir(directory)  # which the workers have to find


VIDEOS = [*(f"{index}.mp4" for index in range(len(NUM_FRAMES))), LONG]


@pytest.fixture(scope="module")
def expected(directory):
    """What a local run makes of the videos."""
    return {result.video: result for result in local.run(Pipeline(OPTIONS), [str(directory / v) for v in VIDEOS])}


def assert_same(results, directory, expected):
    """Every video of the results once, and to the last bit as a local run has it."""
    assert len({result.video for result in results}) == len(results)
    for result in results:
        alone = expected[str(directory / result.video)]
        assert [clip.span for clip in result.clips] == [clip.span for clip in alone.clips]
        for one, other in zip(result.clips, alone.clips, strict=True):
            for kind in ("features", "logits"):
                ours, theirs = getattr(one, kind), getattr(other, kind)
                assert ours.keys() == theirs.keys()
                assert all(np.array_equal(ours[stream], theirs[stream]) for stream in ours)
        assert all(np.array_equal(result.logits[stream], alone.logits[stream]) for stream in alone.logits)
        assert result.recipe == alone.recipe
        assert replace(result, video="", clips=(), logits={}) == replace(alone, video="", clips=(), logits={})


# With a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(cluster):
    """One for all runs, so that the networks are described once."""
    pipeline = Pipeline(OPTIONS)
    cluster.prepare(pipeline)
    return pipeline


def test_an_actor_that_is_killed_costs_no_row(cluster, pipeline, directory, expected, capfd):
    videos = [*VIDEOS[:4], "broken.mp4", *VIDEOS[4:], "nowhere.mp4"]
    failures, local_failures, clips, spent = [], [], [], StageSeconds()
    running = cluster.run(
        pipeline,
        videos,
        on_failure=lambda failure, error: failures.append((failure, type(error))),
        on_clips=lambda *numbers: clips.append(numbers),
        spent=spent,
    )
    results = [next(running)]
    actors = find_processes("ray::MapWorker(MapBatches(_Networks))")
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    results += running

    assert {result.video for result in results} == set(VIDEOS)
    assert_same(results, directory, expected)
    list(
        local.run(Pipeline(OPTIONS), videos[4::6], on_failure=lambda f, error: local_failures.append((f, type(error))))
    )
    assert sorted(failures, key=str) == sorted(local_failures, key=str)
    assert len(failures) == 2
    assert clips == [(len(result.clips), len(result.clips)) for result in results]
    assert min(spent.decode, spent.resize, spent.flow, spent.network) > 0
    assert capfd.readouterr().out == ""


def test_readers_that_are_killed_cost_no_row_and_at_worst_the_video_that_they_all_read(
    cluster, pipeline, directory, expected
):
    failures = []
    with killing_readers_of(LONG, times=1) as once, killing_readers_of(POISON, times=100) as always:
        results = list(
            cluster.run(
                pipeline, [POISON, LONG, *VIDEOS[:2]], on_failure=lambda f, error: failures.append((f.video, f.error))
            )
        )
    assert (len(once), len(always)) == (1, engine.MAX_ATTEMPTS)
    assert failures == [(POISON, "WorkerDied")]
    assert {result.video for result in results} == {LONG, *VIDEOS[:2]}
    assert_same(results, directory, expected)


def test_a_run_that_is_left_stops(cluster, pipeline):
    running = cluster.run(pipeline, [*VIDEOS, LONG])
    next(running)
    running.close()
    deadline = time.monotonic() + 10
    while find_processes("ray::MapWorker(MapBatches(_Networks))") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert find_processes("ray::MapWorker(MapBatches(_Networks))") == []


def test_what_is_wrong_with_the_weights_is_told_at_the_call(cluster, tmp_path):
    (tmp_path / "own.pt").write_bytes(b"no checkpoint")
    pipeline = Pipeline(replace(OPTIONS, streams="rgb", weights={"rgb": tmp_path / "own.pt"}))
    with pytest.raises(CheckpointError, match=r"own\.pt"):
        cluster.run(pipeline, VIDEOS)


def test_the_command_line_writes_the_same_rows(cluster, tmp_path):
    def extract(name, *options):
        command = [sys.executable, "-m", "vid3d_cli", "extract", "--model", "s3d_mini", "--stride", "8", *VIDEOS[:3]]
        done = subprocess.run(
            [*command, "broken.mp4", "--out", tmp_path / name, *options], capture_output=True, text=True
        )
        said = done.stderr.replace(name, "out").splitlines()
        return done.returncode, done.stdout, sorted(line for line in said if "clips/s" not in line)

    def rows(name):
        lines = map(json.loads, (tmp_path / name).with_suffix(".index.jsonl").read_text().splitlines())
        return {(line["video"], line["clip"]): (np.load(tmp_path / name)[line.pop("row")], line) for line in lines}

    here = extract("here.npy")
    assert here[:2] == (1, "")
    assert extract("there.npy", "--engine", "ray", "--ray-address", cluster.address) == here
    ours, theirs = rows("here.npy"), rows("there.npy")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key][0], theirs[key][0]) and ours[key][1] == theirs[key][1] for key in ours)
    for rest in (".recipe.json", ".failures.jsonl"):
        assert (tmp_path / "here").with_suffix(rest).read_text() == (tmp_path / "there").with_suffix(rest).read_text()


def find_processes(title):
    """Those whose command line starts so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(title.encode()):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@contextmanager
def killing_readers_of(video, times):
    """Kill the process that reads a video, so many times; gives the list of those that were killed."""
    killed, is_over = [], threading.Event()
    path = str(Path(video).absolute())

    def reader_of(decoder):
        """The parent of a decoder that has the video open, where it is a Ray worker that was not killed yet."""
        try:
            if path not in map(os.readlink, Path(f"/proc/{decoder}/fd").iterdir()):
                return None
            parent = int(Path(f"/proc/{decoder}/stat").read_text().rsplit(")")[1].split()[1])
            is_reader = Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"ray::")
        except OSError:
            return None
        return parent if is_reader and parent not in killed else None

    def kill():
        while not is_over.wait(0.005) and len(killed) < times:
            for decoder in find_processes(f"{sys.executable}\0-c\0import sys; sys.path[:] = sys.argv[2:]; from vid3d"):
                if reader := reader_of(decoder):
                    killed.append(reader)
                    os.kill(reader, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


# Without --------------------------------------------------------------------------------------------------------------


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "vid3d\[ray\]"'):
        engine.Cluster()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_told_at_once(address):
    pytest.importorskip("ray")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = address.format(closed.getsockname()[1])
        with pytest.raises(UsageError, match=f"{address}: nothing answers there"):
            engine._connect(None, address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "rya"], "choose local or ray"),
        (["--ray-address", "auto"], "add --engine ray"),
        (["--engine", "ray", "--claim"], "leave --claim out"),
    ],
)
def test_options_that_do_not_fit_are_refused(vid3d, directory, arguments, message):
    done = vid3d("extract", directory / "0.mp4", "--model", "s3d_mini", "--out", "feats/", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def plan(cpus, num_gpus=0, **options):
    return engine._Plan.of(Pipeline(Options(**{"model": "s3d_mini", **options})), cpus, num_gpus)


@pytest.mark.parametrize(
    ("cpus", "actors", "actor_cpus", "reader_cpus"),
    [([16.0, 8.0, 0.0], 2, 4.0, 1.0), ([5.0], 1, 2.0, 1.0), ([2.0, 2.0], 2, 1.0, 1.0), ([1.0], 1, 0.5, 0.5)],
)
def test_each_machine_without_gpus_has_one_copy_of_the_networks(cpus, actors, actor_cpus, reader_cpus):
    found = plan(cpus)
    assert (found.num_actors, found.actor_resources) == (actors, {"num_cpus": actor_cpus})
    assert (found.reader_cpus, found.batch_size, found.on_gpus) == (reader_cpus, 1, False)
    assert all(actor_cpus + reader_cpus <= number for number in cpus if number)  # else nobody could ever read


def test_each_gpu_has_a_copy_of_the_networks():
    found = plan([16.0, 16.0], num_gpus=3)
    assert (found.num_actors, found.actor_resources, found.batch_size) == (3, {"num_gpus": 1.0, "num_cpus": 0.0}, 8)
    assert plan([16.0], num_gpus=3, batch_size=5).batch_size == 5
    assert not plan([16.0], num_gpus=3, device="cpu").on_gpus
    assert not plan([16.0], num_gpus=3, runtime="openvino").on_gpus
    assert plan([16.0], num_gpus=1, model="i3d", dense=True).batch_size == 1


@pytest.mark.parametrize(
    ("options", "num_gpus", "message"),
    [
        ({"device": "cuda:1"}, 2, "--device cuda:1"),
        ({"device": "cuda"}, 0, "no GPU"),
        ({"flow": "tvl1"}, 1, "--flow tvl1"),
    ],
)
def test_a_cluster_refuses_what_it_cannot_do(options, num_gpus, message):
    with pytest.raises(UsageError, match=message):
        plan([4.0], num_gpus, **options)


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(UsageError, match="no CPU"):
        plan([0.0], 1)


def test_a_machine_that_would_make_other_rows_is_named():
    recipe = Pipeline(OPTIONS).recipe
    other = replace(recipe, versions={**recipe.versions, "av": "1.2.3"})
    engine._refuse_difference(recipe, replace(recipe), "one", "two")
    with pytest.raises(UsageError, match=rf"one has av 1.2.3, two has {recipe.versions['av']}"):
        engine._refuse_difference(other, recipe, "one", "two")
    with pytest.raises(UsageError, match="one has precision bf16, two has fp32"):
        engine._refuse_difference(replace(recipe, precision="bf16"), replace(recipe, precision="fp32"), "one", "two")


def test_a_machine_without_the_directory_is_refused(tmp_path):
    job = engine._Job(OPTIONS, "cpu", str(tmp_path / "gone"), None)
    with pytest.raises(UsageError, match="file system that all machines share"):
        job.pipeline("cpu")


@pytest.mark.parametrize("options", [{}, {"dense": True, "window": 16, "stride": 8}, {"crops": 3, "streams": "rgb"}])
def test_what_workers_do_is_what_a_local_run_does(directory, monkeypatch, options):
    """Without Ray between them."""
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(engine, "_attempt", lambda: 0)
    odd_name = os.fsdecode(b"no utf-8 \xff.mp4")
    shutil.copy("1.mp4", odd_name)
    videos, options = ["0.mp4", odd_name], replace(OPTIONS, **options)
    pipeline = Pipeline(options)
    job = engine._Job(options, "cpu", str(directory), os.environ.get("OMP_NUM_THREADS"), 60.0, pipeline.recipe)
    networks = engine._Networks(job)
    rows = [pa.table({"number": [i], "video": [os.fsencode(video)]}) for i, video in enumerate(videos)]
    items = [item for row in rows for table in engine._read_clips(row, job) for item in engine._unpack(networks(table))]
    results = engine._Results(pipeline, videos, None, StageSeconds()).collect(iter(items), None)
    local_results = {str(directory / result.video): result for result in local.run(Pipeline(options), videos)}
    results = list(results)
    assert [result.video for result in results] == videos
    assert_same(results, directory, local_results)


def make_clip(index, side_px=8):
    rgb = np.full((4, side_px, side_px, 3), index, np.uint8)
    return Clip(ClipSpan(index, 4 * index, 4, 0.0, 1.0), {"rgb": rgb, "flow": np.ones((4, 8, 8, 2), np.float32)})


def test_clips_are_read_where_they_lie():
    pytest.importorskip("pyarrow")
    end = engine._Item(7, engine._End(UsageError("no"), 1, {"flow": 2.0}))
    table = engine._pack([engine._Item(7, make_clip(3)), end])
    clip, last = engine._unpack(table.slice(0))
    assert next(engine._unpack(table.slice(1))).content.spent == {"flow": 2.0}
    assert (clip.number, clip.content.span) == (7, make_clip(3).span)
    buffers = [buffer for chunk in table["arrays"].chunks for buffer in chunk.flatten().buffers() if buffer]
    for stream, frames in make_clip(3).streams.items():
        found = clip.content.streams[stream]
        assert np.array_equal(found, frames)
        assert found.dtype == frames.dtype
        start = found.__array_interface__["data"][0]
        assert any(buffer.address <= start < buffer.address + buffer.size for buffer in buffers)
    assert (str(last.content.outcome), last.content[1:]) == ("no", (1, {"flow": 2.0}))


def test_what_cannot_travel_is_told_in_words():
    class Local(Exception):
        pass

    assert str(engine._sendable(Local("too odd"))) == "Local: too odd"
    error = DecoderDied("a.mp4", "it crashed")
    assert engine._sendable(error) is error
    assert pickle.loads(pickle.dumps(error)).message == "it crashed"


# What comes back ------------------------------------------------------------------------------------------------------


class FakePipeline:
    def pool(self, read, outputs):
        return SimpleResult(read.video, tuple(output.span.index for output in outputs))


class SimpleResult:
    def __init__(self, video, clips):
        self.video, self.clips = video, clips


def output(number, index):
    return engine._Item(number, ClipOutput(ClipSpan(index, index, 1, 0.0, 1.0), {}, {}), 0.5)


def end(number, num_clips, error=None):
    read = ReadVideo("ab"[number], 25.0, 1, 0, None, ())
    return engine._Item(number, engine._End(error or read, num_clips, {"decode": 1.0}))


def collect(*items):
    failures, spent = [], StageSeconds()
    results = engine._Results(FakePipeline(), ["a", "b"], lambda failure, error: failures.append(failure), spent)
    made = [(result.video, result.clips) for result in results.collect(iter(items), None)]
    return made, [(failure.video, failure.error) for failure in failures], spent


@pytest.mark.parametrize(
    "items",
    [
        [output(0, 0), output(0, 1), end(0, 2), output(1, 0), end(1, 1)],
        [end(0, 2), output(0, 1), output(1, 0), end(1, 1), output(0, 0)],
        [output(0, 1), output(0, 1), end(0, 2), end(0, 2), output(0, 0), output(0, 0), end(1, 1), output(1, 0)],
    ],
    ids=["in order", "in any order", "some of it twice"],
)
def test_a_video_is_done_when_all_its_clips_are_there(items):
    made, failures, spent = collect(*items)
    assert sorted(made) == [("a", (0, 1)), ("b", (0,))]
    assert failures == []
    assert spent.decode == 2.0  # once a video


def test_what_never_comes_back_is_a_failure():
    made, failures, _ = collect(output(0, 0), end(0, 2), output(1, 0))
    assert made == []
    assert failures == [("a", "WorkerDied"), ("b", "WorkerDied")]


@pytest.mark.parametrize("error", [DecoderDied("a", "it crashed"), OSError("odd")])
def test_a_failure_in_reading_costs_its_video_alone(error):
    made, failures, _ = collect(output(0, 0), output(1, 0), end(0, 5, error), output(0, 1), end(1, 1))
    assert (made, failures) == ([("b", (0,))], [("a", type(error).__name__)])


def test_clips_that_the_network_cannot_take_cost_their_video_alone():
    odd = engine._Item(0, ShapeError("too small"))
    made, failures, _ = collect(odd, output(1, 0), odd, end(0, 2), end(1, 1))
    assert (made, failures) == ([("b", (0,))], [("a", "ShapeError")])


@pytest.mark.parametrize("error", [UsageError("another recipe"), RuntimeError("the network fell over")])
def test_what_goes_wrong_in_the_networks_ends_the_job(error):
    with pytest.raises(type(error), match=str(error)):
        collect(output(0, 0), engine._Item(1, error))


def test_a_machine_without_files_to_open_ends_the_job():
    with pytest.raises(ResourceError):
        collect(end(0, 0, ResourceError("too many open files")))


class FakeRuntime:
    def run(self, clips):
        assert len({clip.streams["rgb"].shape for clip in clips}) == 1
        if clips[0].streams["rgb"].shape[1] == 7:
            raise ShapeError("too odd")
        return [ClipOutput(clip.span, {}, {}) for clip in clips]


@pytest.fixture
def networks(monkeypatch):
    pytest.importorskip("pyarrow")
    actor = engine._Networks.__new__(engine._Networks)
    actor._loaded = FakeRuntime()
    monkeypatch.setattr(engine, "_attempt", lambda: 0)
    return actor


def answers_of(networks, *items):
    return [(number, content) for number, content, _ in engine._unpack(networks(engine._pack(items)))]


def test_an_actor_runs_clips_of_a_size_together_and_passes_ends_on(networks):
    clips = [engine._Item(number, make_clip(number, side)) for number, side in enumerate([8, 7, 8, 9])]
    answers = answers_of(networks, *clips, end(1, 3))
    assert answers[0][1].num_clips == 3
    found = {number: type(content) for number, content in answers[1:]}
    assert found == {0: ClipOutput, 1: ShapeError, 2: ClipOutput, 3: ClipOutput}


def test_clips_over_which_actors_die_again_and_again_are_given_up(networks, monkeypatch):
    monkeypatch.setattr(engine, "_attempt", lambda: engine.MAX_ATTEMPTS)
    ((number, content),) = answers_of(networks, engine._Item(1, make_clip(0)))
    assert (number, type(content)) == (1, WorkerDied)
