"""The Ray engine gives the rows of the local engine, even if actors die."""

import json
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from videos import write_video

from vid3d_cli.errors import CheckpointError, DecoderDied, ResourceError, UsageError
from vid3d_cli.models.manifest import find_model
from vid3d_cli.models.weights import pull
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.run import local
from vid3d_cli.run import ray as engine
from vid3d_cli.timings import StageSeconds

PLAN = Plan.make(Options(model="s3d_mini", stride=8))
NUM_FRAMES = [40, 90, 16, 60, 33, 120, 48, 70]
LONG, POISON = "long.mp4", "poison.mp4"  # reading them takes a while
VIDEOS = [*(f"{index}.mp4" for index in range(len(NUM_FRAMES))), LONG]


@pytest.fixture(autouse=True)
def _no_cluster_of_the_user(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def rows_of(path):
    """Return the rows and the index of an .npy output, by video and clip."""
    lines = map(json.loads, path.with_suffix(".index.jsonl").read_text().splitlines())
    rows = np.load(path)
    return {(line["video"], line["clip"]): (rows[line.pop("row")].tobytes(), line) for line in lines}


@pytest.mark.exhaustive
def test_a_local_ray_writes_the_rows_of_the_local_engine(vid3d, tmp_path):
    pytest.importorskip("ray")
    for index in range(3):
        write_video(tmp_path / f"{index}.mp4", num_frames=NUM_FRAMES[index])
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    names = ["0.mp4", "1.mp4", "2.mp4", "broken.mp4"]
    done = [
        vid3d("extract", *names, "--model", "s3d_mini", "--stride", "8", "--out", f"{name}.npy", "--engine", name)
        for name in ("local", "ray")
    ]
    assert [one.exit_code for one in done] == [1, 1]
    assert [one.stdout for one in done] == ["", ""]
    assert rows_of(tmp_path / "ray.npy") == rows_of(tmp_path / "local.npy")
    for rest in (".recipe.json", ".failures.jsonl"):
        assert (tmp_path / f"ray{rest}").read_text() == (tmp_path / f"local{rest}").read_text()


# A cluster of two machines -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two machines of two CPUs each; both are this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    machines.add_node(num_cpus=2)
    with engine.Cluster(machines.address) as cluster:
        yield cluster
    machines.shutdown()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Videos, and a file that is not a video."""
    directory = tmp_path_factory.mktemp("videos")
    for index, num_frames in enumerate(NUM_FRAMES):
        write_video(directory / f"{index}.mp4", num_frames=num_frames)
    write_video(directory / LONG, num_frames=400, width=320, height=240)
    shutil.copy(directory / LONG, directory / POISON)
    (directory / "broken.mp4").write_bytes(b"not a video")
    return directory


@pytest.fixture
def _in_directory(directory, monkeypatch):
    monkeypatch.chdir(directory)  # names are relative to it, and actors work elsewhere


in_cluster = [pytest.mark.exhaustive, pytest.mark.usefixtures("_in_directory")]


@pytest.fixture(scope="module")
def expected(directory):
    """Return the results of the local engine."""
    return {Path(result.video).name: result for result in local.run(PLAN, [str(directory / v) for v in VIDEOS])}


def assert_same(results, expected):
    """Check that each result occurs once and equals that of the local engine to the last bit."""
    assert len({result.video for result in results}) == len(results)
    for result in results:
        alone = expected[result.video]
        assert [clip.span for clip in result.clips] == [clip.span for clip in alone.clips]
        for one, other in zip(result.clips, alone.clips, strict=True):
            for kind in ("features", "logits"):
                ours, theirs = getattr(one, kind), getattr(other, kind)
                assert ours.keys() == theirs.keys()
                assert all(np.array_equal(ours[stream], theirs[stream]) for stream in ours)
        assert all(np.array_equal(result.logits[stream], alone.logits[stream]) for stream in alone.logits)
        assert result.recipe == alone.recipe
        assert replace(result, video="", clips=(), logits={}) == replace(alone, video="", clips=(), logits={})


class TestCluster:
    pytestmark = in_cluster

    def test_killed_actors_lose_no_row(self, cluster, expected, capfd):
        videos = [*VIDEOS[:4], "broken.mp4", *VIDEOS[4:], "nowhere.mp4"]
        failures, local_failures, clips, spent = [], [], [], StageSeconds()
        drawn = []
        running = cluster.run(
            PLAN,
            (drawn.append(video) or video for video in videos),
            on_failure=lambda failure, error: failures.append((failure, type(error))),
            on_clips=lambda *done: clips.append(done),
            spent=spent,
        )
        assert drawn == []
        results = [next(running)]
        assert len(drawn) < len(videos)
        wait_until(lambda: len(find_actors()) == 2)
        for actor in find_actors():
            os.kill(actor, signal.SIGKILL)
        results += running

        assert {result.video for result in results} == set(VIDEOS)
        assert_same(results, expected)
        alone = local.run(PLAN, videos[4::6], on_failure=lambda f, error: local_failures.append((f, type(error))))
        assert running.recipe == alone.recipe
        assert list(alone) == []
        assert sorted(failures, key=str) == sorted(local_failures, key=str)
        assert len(failures) == 2
        assert clips == [(result.video, len(result.clips), len(result.clips), result.clips) for result in results]
        assert min(spent.decode, spent.resize, spent.flow, spent.network) > 0
        assert capfd.readouterr().out == ""

    def test_a_video_that_kills_every_actor_fails_alone(self, cluster, expected):
        failures = []
        with killing_actors_that_read(POISON) as killed:
            results = list(
                cluster.run(
                    PLAN, [POISON, LONG, *VIDEOS[:2]], on_failure=lambda f, error: failures.append((f.video, f.error))
                )
            )
        assert len(killed) == engine.MAX_ATTEMPTS
        assert failures == [(POISON, "WorkerDied")]
        assert {result.video for result in results} == {LONG, *VIDEOS[:2]}
        assert_same(results, expected)

    def test_closing_a_run_ends_its_actors(self, cluster):
        with closing(cluster.run(PLAN, [*VIDEOS, LONG])) as running:
            next(running)
        wait_until(lambda: not find_actors())

    def test_jobs_count_for_the_whole_cluster(self, cluster, expected):
        wait_until(lambda: not find_actors())
        with closing(cluster.run(PLAN, VIDEOS[:3], jobs=1)) as running:
            results = [next(running)]
            assert len(find_actors()) == 1
            results += running
        assert [result.video for result in results] == VIDEOS[:3]
        assert_same(results, expected)

    def test_own_checkpoints_odd_names_and_crops(self, cluster, directory):
        shutil.copy(pull(find_model("s3d_mini").streams["rgb"].weights), "own.safetensors")
        odd_name = os.fsdecode(b"not utf-8 \xff.mp4")
        shutil.copy("1.mp4", odd_name)
        options = Options(model="s3d_mini", streams="rgb", weights={"rgb": "own.safetensors"}, stride=8)
        for other in ({"crops": 3}, {"dense": True, "runtime": "torch"}):
            plan = Plan.make(replace(options, **other))
            alone = {result.video: result for result in local.run(plan, ["0.mp4", odd_name])}
            assert_same(list(cluster.run(plan, ["0.mp4", odd_name])), alone)

    def test_weights_errors_are_raised_at_the_call(self, cluster, tmp_path):
        (tmp_path / "own.pt").write_bytes(b"not a checkpoint")
        options = Options(model="s3d_mini", streams="rgb", weights={"rgb": tmp_path / "own.pt"})
        with pytest.raises(CheckpointError, match=r"own\.pt"):
            cluster.run(Plan.make(options), VIDEOS)

    def test_a_failure_is_raised_without_on_failure(self, cluster):
        with closing(cluster.run(PLAN, ["broken.mp4"])) as running, pytest.raises(Exception, match=r"^broken\.mp4: "):
            next(running)

    def test_no_videos_give_no_results(self, cluster):
        assert list(cluster.run(PLAN, [])) == []


def find_actors():
    return find_processes("ray::_Actor")


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def find_processes(title):
    """Return the processes whose command line starts with some text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(title.encode()):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@contextmanager
def killing_actors_that_read(video):
    """Kill every actor that reads a video; yield the list of killed actors."""
    killed, is_over = [], threading.Event()
    path = str(Path(video).absolute())

    def actor_of(decoder):
        """Return the parent of a decoder that has the video open, unless it was killed already."""
        try:
            if path not in map(os.readlink, Path(f"/proc/{decoder}/fd").iterdir()):
                return None
            parent = int(Path(f"/proc/{decoder}/stat").read_text().rsplit(")")[1].split()[1])
        except OSError:
            return None
        return parent if parent in find_actors() and parent not in killed else None

    def kill():
        while not is_over.wait(0.005):
            for decoder in find_processes(f"{sys.executable}\0-c\0import sys; sys.path[:] = sys.argv[2:]; from vid3d"):
                if actor := actor_of(decoder):
                    killed.append(actor)
                    os.kill(actor, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


# Without a cluster ----------------------------------------------------------------------------------------------------


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "vid3d\[ray\]"'):
        engine.Cluster()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_without_a_cluster_is_refused_at_once(address):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = address.format(closed.getsockname()[1])
        with pytest.raises(UsageError, match=f"{address}: nothing listens there"):
            engine._connect(None, address)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "rya"], "did you mean 'ray'"),
        (["--ray-address", "auto"], "needs --engine ray"),
        (["--engine", "ray", "--claim"], "leave --claim out"),
    ],
)
def test_incompatible_options_are_refused(vid3d, video, arguments, message):
    done = vid3d("extract", video, "--model", "s3d_mini", "--out", "feats/", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


NODES = [f"{number:056x}" for number in range(9)]


def nodes(*resources):
    """Return the answer of `ray.nodes()` for machines with these resources and a dead one."""
    found = [{"NodeID": NODES[i], "Alive": True, "Resources": each} for i, each in enumerate(resources)]
    return [*found, {"NodeID": NODES[-1], "Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]


@pytest.mark.parametrize(
    ("cpus", "booked"),
    [([16.0, 8.0], [8.0, 4.0]), ([5.0], [2.0]), ([1.0], [0.5])],
)
def test_each_machine_without_gpus_has_one_actor(cpus, booked):
    found = engine.share_out(PLAN, nodes(*({"CPU": number} for number in cpus), {}))
    assert [place.node for place in found] == NODES[: len(cpus)]
    assert [place.resources for place in found] == [{"num_cpus": each, "num_gpus": 0.0} for each in booked]


def test_each_gpu_has_one_actor():
    machines = nodes({"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}, {"CPU": 1.0, "GPU": 1.0})
    found = engine.share_out(PLAN, machines)
    assert [place.node for place in found] == [NODES[0], NODES[0], NODES[2]]
    assert [place.resources["num_cpus"] for place in found] == [4.0, 4.0, 0.5]
    assert {place.resources["num_gpus"] for place in found} == {1.0}
    assert engine.share_out(PLAN, machines, jobs=2) == found[:2]
    for on_cpu in ({"device": "cpu"}, {"runtime": "openvino"}):
        places = engine.share_out(replace(PLAN, **on_cpu), machines)
        assert [place.resources["num_gpus"] for place in places] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("device", "resources", "message"),
    [
        ("cuda:1", {"CPU": 4.0, "GPU": 2.0}, "--device cuda:1"),
        ("cuda", {"CPU": 4.0}, "no GPU"),
        ("auto", {}, "no CPU"),
    ],
)
def test_a_device_that_the_cluster_does_not_have_is_refused(device, resources, message):
    with pytest.raises(UsageError, match=message):
        engine.share_out(replace(PLAN, device=device), nodes(resources))


def test_actors_get_the_threads_and_the_cache_of_this_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VID3D_CACHE", "cache")
    found = engine._environment()
    assert (found["OMP_NUM_THREADS"], found["VID3D_CACHE"]) == ("3", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert engine._environment()["OMP_NUM_THREADS"] == ""


def test_a_machine_without_the_directory_is_refused(tmp_path):
    with pytest.raises(UsageError, match="file system that all machines share"):
        engine._Actor(PLAN, tmp_path / "gone", None, None).load()


def test_an_error_that_does_not_pickle_is_sent_as_text():
    class Local(Exception):
        pass

    assert str(engine._sendable(Local("too odd"))) == "Local: too odd"
    error = DecoderDied("a.mp4", "it crashed")
    assert engine._sendable(error) is error
    assert pickle.loads(pickle.dumps(error)).message == "it crashed"


def test_a_dead_head_is_one_line(monkeypatch):
    ray = FakeRay([])
    run = engine._Run(ray, PLAN, [], None, None, StageSeconds())
    monkeypatch.setattr(engine, "CHECK_SECONDS", 0.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        run._head = f"127.0.0.1:{closed.getsockname()[1]}"
        ray.wait = lambda calls, timeout: ([], calls)
        with pytest.raises(ResourceError, match=f"its head {run._head} is gone"):
            run._wait(["call"])


class FakeRay:
    """Ray with actors that only load: each answers with a recipe, or raises."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    util = SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: True)))

    def __init__(self, answers):
        self.answers, self.killed, self.jobs = iter(answers), [], []

    def is_initialized(self):
        return True

    def nodes(self):
        return nodes({"CPU": 2.0}, {"CPU": 2.0})

    def remote(self, **options):
        def start(plan, directory, jobs, timeout):
            self.jobs.append(jobs)
            answer = next(self.answers)
            return SimpleNamespace(
                load=SimpleNamespace(remote=lambda: lambda: answer), work=SimpleNamespace(remote=lambda videos: None)
            )

        return lambda actor: SimpleNamespace(remote=start)

    def get(self, call):
        if isinstance(call(), Exception):
            raise call()
        return engine._Answer(call(), (), 1)

    def wait(self, calls, timeout):
        return calls[:1], calls[1:]

    def kill(self, actor):
        self.killed.append(actor)


def run_fake(*answers):
    cluster = engine.Cluster.__new__(engine.Cluster)
    cluster._ray = FakeRay(answers)
    return cluster, cluster.run(PLAN, VIDEOS)


@pytest.mark.parametrize(("num_gpus", "jobs"), [(0, 2), (1, 8), (4, 2)])
def test_the_actors_of_a_machine_share_its_cores(monkeypatch, num_gpus, jobs):
    pytest.importorskip("ray")
    monkeypatch.setattr(FakeRay, "nodes", lambda self: nodes({"CPU": 8.0, "GPU": float(num_gpus)}))
    cluster, running = run_fake(*[PLAN.recipe] * max(1, num_gpus))
    running.close()
    assert cluster._ray.jobs == [jobs]


def test_a_machine_whose_rows_would_differ_is_refused():
    pytest.importorskip("ray")
    recipe = replace(PLAN.recipe, precision="fp32")
    _, running = run_fake(recipe, replace(recipe, precision="bf16"))
    with pytest.raises(UsageError, match="precision is fp32 on one and bf16 on another"):
        next(running)


def test_actors_that_die_while_they_load_end_the_run():
    pytest.importorskip("ray")
    death = FakeRay.exceptions.RayError("an actor died")
    with pytest.raises(ResourceError, match="an actor died"):
        run_fake(death)
    recipe = replace(PLAN.recipe, precision="fp32")
    cluster, running = run_fake(recipe, *[death] * engine.MAX_ATTEMPTS)
    with pytest.raises(ResourceError, match="die while they load"):
        next(running)
    assert len(set(map(id, cluster._ray.killed))) == 1 + engine.MAX_ATTEMPTS
