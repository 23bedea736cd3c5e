"""Runs a plan on a Ray cluster: an actor per GPU, or per machine without GPUs, runs the local engine on its share.

    this process:  videos ──→ the next one, when it is due to be read ──→ actor: local.run
                   results ←───────────── a result or a failure ←────────────┘

All machines have the same installation and see the same files under the same names. An actor that dies is replaced. Its
videos are retried one at a time, so that a video that kills actors fails alone.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import platform
import queue
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ResourceError, UsageError, Vid3dError, VideoError, WorkerDied
from ..models.digests import cache_dir
from ..models.weights import pull
from ..plan import Fetch, Plan
from ..recipe import Recipe, deciding_differences
from ..results import VideoResult
from ..timings import StageSeconds
from ..video.process import TIMEOUT_SECONDS
from ..video.sources import is_url
from . import local
from .load import load
from .local import OnClips, OnFailure, Results, check_run, report_failure

MAX_ATTEMPTS = 4
"""A video fails after this many actors died while they processed it."""

CONNECT_SECONDS = 10.0
"""How long a cluster may take to answer at its address."""

CHECK_SECONDS = 5.0
"""Seconds between checks that the cluster is alive. If it is not, Ray silently ends this process after a minute."""

NUM_AHEAD = 1
"""Videos queued at an actor before it asks for them, so that it need not wait for this process."""


class Cluster(ExitStack):
    """A connection to a Ray cluster.

        with Cluster("auto") as cluster:
            for result in cluster.run(plan, videos): ...

    Args:
        address: "auto" for the cluster of this machine, or "host:port" of its head; None for $RAY_ADDRESS, else for a
            local Ray, which ends with the block.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        super().__init__()
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            self.enter_context(_silent_stdout(self._ray))
            _connect(self._ray, address or os.environ.get("RAY_ADDRESS") or "local")
            self.callback(self._ray.shutdown)

    def run(
        self,
        plan: Plan,
        videos: Iterable[str],
        *,
        jobs: int | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
        fetch: Fetch = pull,
        on_failure: OnFailure | None = None,
        on_clips: OnClips | None = None,
        spent: StageSeconds | None = None,
        networks: None = None,
    ) -> Results:
        """Return the results of a plan over videos like `local.run`, but in any order; the call loads the networks.

        Args:
            plan: what to do with each video; its device is "auto", "cpu" or "cuda".
            videos: paths or URLs, drawn when an actor is due to read them.
            jobs: how many videos are read at the same time in the whole cluster; None: each actor decides.
            timeout: seconds without progress before a video fails; None for no limit.
            fetch: downloads checkpoints to this machine, for all that share its cache; others download their own.
            on_failure: called with each failed video, and the run continues; None raises the failure.
            on_clips: called once per video, when all its clips are done.
            spent: collects the seconds of every stage, summed over all machines.
            networks: not used, because the actors load them.

        Raises:
            UsageError: options that do not suit the cluster; while iterating: a machine that differs from the first.
            WeightsError: checkpoints that are missing or do not fit.
            ResourceError: the cluster failed; while iterating: a machine has no more processes or open files.
        """
        check_run(jobs, timeout)
        places = share_out(plan, self._ray.nodes(), jobs)
        plan.find_checkpoints(fetch)
        run = _Run(self._ray, plan, videos, jobs and jobs // len(places), timeout, spent or StageSeconds())
        generator = run.results(places, on_failure, on_clips)
        recipe, warnings = next(generator)
        return Results(replace(recipe, flow=plan.recipe.flow), warnings, generator)


# Connecting -----------------------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    # Set before the import: Ray reports its use to a server, and hides GPUs from actors that ask for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # this process prints lower levels too
    try:
        import ray
        import ray.util.client
    except ImportError as error:
        raise UsageError(f'--engine ray needs Ray ({error}): pip install "vid3d[ray]"') from None
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        _knock(address)  # without this, Ray would try for minutes and then end this process
    except OSError as error:
        raise UsageError(f"--ray-address {address}: nothing listens there ({error})") from None
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _silent_stderr():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--ray-address {address}: cannot connect to a Ray cluster ({reason})") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at "host:port"; any other address passes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_SECONDS).close()


@contextmanager
def _silent_stdout(ray: Any) -> Iterator[None]:
    """Keep Ray's reports of dead workers out of stdout, which may carry results."""
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what Ray's C++ prints while it starts; errors also come as exceptions."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


# Sharing out ----------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """The machine and the resources of an actor."""

    node: str
    """Id of the machine."""
    resources: Mapping[str, float]
    """The resources that Ray books for it."""


def share_out(plan: Plan, nodes: Iterable[Mapping[str, Any]], jobs: int | None = None) -> list[Place]:
    """Return the places of the actors: one per GPU, or per machine if there are none; at most `jobs`.

    An actor uses all CPUs of its machine, but books only half of its share, so that other work does not block it.

    Args:
        plan: what the actors run.
        nodes: the machines, as `ray.nodes()` lists them.
        jobs: how many videos are read at the same time in the whole cluster.

    Raises:
        UsageError: a device that the cluster does not have.
    """
    if plan.network_device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device {plan.device} does not work with --engine ray, which gives each actor a GPU: "
            "use cuda, cpu or auto"
        )
    alive = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    has_gpus = plan.network_device != "cpu" and any(resources.get("GPU", 0) >= 1 for resources in alive.values())
    if plan.network_device == "cuda" and not has_gpus:
        raise UsageError("--device cuda: the Ray cluster has no GPU")
    places = []
    for node, resources in alive.items():
        cpus = resources.get("CPU", 0.0)
        num_actors = int(resources.get("GPU", 0)) if has_gpus else int(cpus > 0)
        for _ in range(num_actors):
            half = cpus / num_actors / 2
            booked = float(int(half)) if half >= 1 else round(half, 2)  # Ray takes fractions only below 1
            places.append(Place(node, {"num_cpus": booked, "num_gpus": float(has_gpus)}))
    if not places:
        raise UsageError("the Ray cluster has no CPU and no GPU for an actor")
    return places[:jobs]


# This process ---------------------------------------------------------------------------------------------------------

_Outcome = tuple[str, "VideoResult | Exception"]
"""A video as given, and its result or error."""


@dataclass(eq=False)
class _Worker:
    """An actor."""

    place: Place
    actor: Any
    call: Any
    """Its pending call; None while it is idle."""
    answer: _Answer | None = None
    """Its last answer; None until the networks are loaded."""
    videos: dict[int, str] = field(default_factory=dict)
    """Its current videos, by number."""


class _Run:
    """Gives videos to actors, and replaces actors that die."""

    def __init__(
        self, ray: Any, plan: Plan, videos: Iterable[str], jobs: int | None, timeout: float | None, spent: StageSeconds
    ) -> None:
        self._ray, self._plan, self._jobs, self._timeout, self._spent = ray, plan, jobs, timeout, spent
        self._directory = Path.cwd()
        self._fresh = enumerate(videos)
        self._has_fresh = True
        self._retries: deque[tuple[int, str]] = deque()
        self._deaths: Counter[int] = Counter()
        self._num_failed_starts = 0
        self._workers: list[_Worker] = []
        self._recipe: Recipe | None = None
        # A driver connected over ray:// may see another network than the cluster.
        self._head = "" if ray.util.client.ray.is_connected() else ray.get_runtime_context().gcs_address
        self._next_check = time.monotonic()

    def results(
        self, places: Sequence[Place], on_failure: OnFailure | None, on_clips: OnClips | None
    ) -> Generator[Any, None, None]:
        """Yield the recipe and the warnings of the networks when they are loaded, then the results."""
        try:
            self._start_actor(places[0])
            self._wait([self._workers[0].call])
            first = self._take_answer(self._workers[0])
            yield first.recipe, first.warnings
            self._plan = replace(self._plan, precision=first.recipe.precision or "auto")  # the same for all actors
            for place in places[1:]:
                self._start_actor(place)
            for video, outcome in self._outcomes():
                if isinstance(outcome, Exception):
                    report_failure(video, outcome, on_failure)
                    continue
                if on_clips is not None:
                    on_clips(video, len(outcome.clips), len(outcome.clips), outcome.clips)
                yield outcome
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ResourceError(f"the Ray cluster failed ({type(error).__name__}: {reason}): see its logs") from error
        finally:
            if self._ray.is_initialized():  # else the actors have ended with it
                for worker in self._workers:
                    self._ray.kill(worker.actor)

    def _outcomes(self) -> Iterator[_Outcome]:
        self._give_videos()
        while self._has_fresh or self._retries or any(worker.videos for worker in self._workers):
            calls = {worker.call: worker for worker in self._workers if worker.call is not None}
            worker = calls[self._wait(list(calls))]
            try:
                answer = self._take_answer(worker)
            except self._ray.exceptions.RayError:
                outcomes = self._replace(worker)
            else:
                outcomes = [_name_as_given(worker.videos.pop(number), outcome) for number, outcome in answer.outcomes]
            self._give_videos()  # now, so that no actor waits while the caller works on the results
            yield from outcomes

    def _start_actor(self, place: Place) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            **place.resources,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(place.node, soft=True),
            "runtime_env": {"env_vars": _environment()},
        }
        plan = _plan_for_actor(self._plan, "cuda" if place.resources["num_gpus"] else "cpu")
        actor = self._ray.remote(**options)(_Actor).remote(plan, self._directory, self._jobs, self._timeout)
        self._workers.append(_Worker(place, actor, actor.load.remote()))

    def _wait(self, calls: list[Any]) -> Any:
        """Return the first call that has an answer."""
        while True:
            done, _ = self._ray.wait(calls, timeout=CHECK_SECONDS)
            if time.monotonic() >= self._next_check:
                self._check_head()
            if done:
                return done[0]

    def _check_head(self) -> None:
        """Raise ResourceError if the head of the cluster is gone."""
        try:
            _knock(self._head)
        except OSError as error:
            raise ResourceError(f"the Ray cluster failed: its head {self._head} is gone ({error})") from None
        self._next_check = time.monotonic() + CHECK_SECONDS

    def _take_answer(self, worker: _Worker) -> _Answer:
        """Return what an actor answered; raise its own error, or RayError if it died."""
        try:
            answer: _Answer = self._ray.get(worker.call)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if worker.answer is None:
            self._num_failed_starts = 0
            self._recipe = self._recipe or answer.recipe
            for key, (first, other) in deciding_differences(asdict(self._recipe), asdict(answer.recipe)).items():
                raise UsageError(
                    f"the machines of the Ray cluster differ: {key} is {first} on one and {other} on another; "
                    "install the same vid3d on all"
                )
        worker.call, worker.answer = None, answer
        for stage, seconds in answer.seconds.items():
            self._spent.add(stage, seconds)
        return answer

    def _replace(self, worker: _Worker) -> list[_Outcome]:
        """Replace an actor that died; return the videos that fail because of it."""
        self._check_head()
        self._ray.kill(worker.actor)  # it may be alive and only out of reach
        self._workers.remove(worker)
        self._num_failed_starts += worker.answer is None
        if self._num_failed_starts >= MAX_ATTEMPTS:
            raise ResourceError("the Ray cluster failed: actors die while they load the networks; see its logs")
        self._start_actor(worker.place)
        self._deaths.update(worker.videos.keys())
        failed = [name for number, name in worker.videos.items() if self._deaths[number] >= MAX_ATTEMPTS]
        self._retries.extend(item for item in worker.videos.items() if self._deaths[item[0]] < MAX_ATTEMPTS)
        return [
            (name, WorkerDied(name, f"{MAX_ATTEMPTS} actors died while they processed it: leave it out"))
            for name in failed
        ]

    def _give_videos(self) -> None:
        """Give every idle actor the videos that it takes now, and ask for its next answer."""
        for worker in self._workers:
            if worker.call is None and worker.answer is not None:
                videos = self._draw(worker.answer)
                worker.videos.update(videos)
                if videos or not worker.answer.is_idle:
                    paths = [(n, name if is_url(name) else str(self._directory / name)) for n, name in videos]
                    worker.call = worker.actor.work.remote(paths)

    def _draw(self, answer: _Answer) -> list[tuple[int, str]]:
        if self._retries and answer.is_idle:  # alone: if the actor dies, this video is the cause
            return [self._retries.popleft()]
        videos = list(itertools.islice(self._fresh, answer.num_wanted))
        self._has_fresh = self._has_fresh and len(videos) == answer.num_wanted
        return videos


def _plan_for_actor(plan: Plan, device: str) -> Plan:
    """Return the plan with absolute paths: actors work in another directory."""
    networks = {
        stream: replace(network, checkpoint=network.checkpoint and network.checkpoint.absolute())
        for stream, network in plan.networks.items()
    }
    flow_files = plan.flow_files and Path(plan.flow_files).absolute()
    return replace(plan, device=device, networks=networks, flow_files=flow_files)


def _environment() -> dict[str, str]:
    """Return the environment variables that actors get from this process."""
    own = {name: value for name, value in os.environ.items() if name.startswith("VID3D_")}
    if "VID3D_CACHE" in own:
        own["VID3D_CACHE"] = str(cache_dir().absolute())
    # If it were unset, Ray would set it to the number of booked CPUs. For torch, empty means unset.
    return {**own, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}


def _name_as_given(video: str, outcome: VideoResult | Exception) -> _Outcome:
    """Return the outcome with the video's name as given instead of its absolute path."""
    if isinstance(outcome, VideoResult):
        return video, replace(outcome, video=video)
    return video, type(outcome)(video, outcome.message) if isinstance(outcome, VideoError) else outcome


# An actor's process ---------------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """An actor's news since its last answer."""

    recipe: Recipe
    warnings: tuple[str, ...]
    num_wanted: int
    """How many videos it takes next. If it gets fewer, it gets no more until it is idle."""
    is_idle: bool = True
    outcomes: Sequence[tuple[int, VideoResult | Exception]] = ()
    """By number of the video."""
    seconds: Mapping[str, float] = {}
    """Time spent by stage."""


_DRAWN, _DONE = "drawn", "done"
"""Events of the engine's thread, beside outcomes and errors."""


class _Actor:
    """Runs the local engine in a thread, on the videos it receives."""

    def __init__(self, plan: Plan, directory: Path, jobs: int | None, timeout: float | None) -> None:
        self._plan, self._directory, self._jobs, self._timeout = plan, directory, jobs, timeout
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._numbers: deque[int] = deque()  # of the videos that the engine has drawn, in order
        self._spent, self._seconds = StageSeconds(), StageSeconds().by_stage()

    def load(self) -> _Answer:
        """Load the networks."""
        if not self._directory.is_dir():
            raise UsageError(
                f"{self._directory}: no such directory on {platform.node()}: --engine ray needs a file system that all "
                "machines share"
            )
        self._networks = load(self._plan)
        self._answer = _Answer(self._networks.recipe, self._networks.warnings, 1 + NUM_AHEAD)
        return self._answer

    def work(self, videos: Sequence[tuple[int, str]]) -> _Answer:
        """Take the next videos, as numbers and paths, and wait until there is something to answer."""
        if self._answer.is_idle:
            self._given: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
            self._is_last = False
            threading.Thread(target=self._run, daemon=True).start()
        for video in videos:
            self._given.put(video)
        if len(videos) < self._answer.num_wanted:
            self._is_last = True
            self._given.put(None)
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        for event in events:
            if isinstance(event, BaseException):
                raise event
        is_idle, num_drawn = _DONE in events, events.count(_DRAWN)
        before, self._seconds = self._seconds, self._spent.by_stage()
        self._answer = self._answer._replace(
            num_wanted=1 + NUM_AHEAD if is_idle else 0 if self._is_last else num_drawn,
            is_idle=is_idle,
            outcomes=[event for event in events if isinstance(event, tuple)],
            seconds={stage: seconds - before[stage] for stage, seconds in self._seconds.items()},
        )
        return self._answer

    def _run(self) -> None:
        def report(outcome: VideoResult | Exception) -> None:
            self._events.put((self._numbers.popleft(), outcome))

        try:
            for result in local.run(
                self._plan,
                self._draw(),
                jobs=self._jobs,
                timeout=self._timeout,
                on_failure=lambda failure, error: report(_sendable(error)),
                spent=self._spent,
                networks=self._networks,
            ):
                report(result)
            self._events.put(_DONE)
        except BaseException as error:
            self._events.put(error)

    def _draw(self) -> Iterator[str]:
        """Yield the paths that are given, until None."""
        while True:
            self._events.put(_DRAWN)
            if (video := self._given.get()) is None:
                return
            self._numbers.append(video[0])
            yield video[1]


def _sendable(error: Exception) -> Exception:
    """Return the error, or its text if it does not pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return Vid3dError(f"{type(error).__name__}: {error}")
    return error
