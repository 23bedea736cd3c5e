"""A cluster: Ray Data reads clips on CPUs, and actors run the networks over them, on a GPU each.

    videos → a task a video, on CPUs → clips ─────────→ actors: the networks → outputs → this process: results
                                     └ how it ended ──────────────────────────────────────┘

Every node has the same installation and sees the same files by the same names. Whatever dies is replaced by Ray, which
repeats its work from the start. So an output may come twice, and is taken once; a video is done when there are as many
as its reader says at the end. Where workers die over one video again and again, that video fails.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import pickle
import platform
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ..errors import ResourceError, ShapeError, UsageError, Vid3dError, VideoError, WorkerDied
from ..flow.methods import find_flow_method
from ..options import TIMEOUT_SECONDS, Options
from ..recipe import Recipe
from ..records import Clip, ClipOutput, VideoResult
from ..timings import StageSeconds
from ..video.process import Decoders
from ..workers import Workers
from .local import OnClips, OnFailure, are_alike, check_run, tell
from .pipeline import Pipeline, ReadVideo, package_versions
from .threads import one_opencv_thread

if TYPE_CHECKING:
    import pyarrow as pa

    from ..runtimes.base import Runtime

MAX_ATTEMPTS = 4
"""So many workers may die over one video, or one batch of clips."""

CONNECT_SECONDS = 10.0
"""So long a cluster may take to answer at its address."""

VIDEOS_PER_PROCESS = 1000
"""A reader's process is replaced after so many. Without this the actors' resources might be the same as the readers',
and Ray would have the actors read."""


class Cluster:
    """A Ray cluster, connected to; a context manager.

        with Cluster("auto") as cluster:
            for result in cluster.run(pipeline, videos): ...

    Args:
        address: "auto" for the cluster that this machine is part of, or "host:port" of its head; None is $RAY_ADDRESS,
            else a Ray of this machine alone, which ends with the block.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = _import_ray()
        self._stack = ExitStack()
        if not self._ray.is_initialized():
            self._stack.enter_context(_silent_stdout(self._ray))
            _connect(self._ray, address or os.environ.get("RAY_ADDRESS") or "local")
            self._stack.callback(self._ray.shutdown)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def prepare(self, pipeline: Pipeline) -> None:
        """Have a worker load the networks, and take over what runs there into `pipeline.recipe`.

        This process loads no network and needs no GPU.

        Raises:
            UsageError: options that do not suit a cluster or its machines, or packages that differ from those here.
            WeightsError: weights that cannot be had or used.
            ResourceError: the worker died.
        """
        if isinstance(pipeline.__dict__.get("runtime"), _RemoteRuntime):
            return
        pipeline.checkpoints  # noqa: B018  (fetched here first: nodes that share the cache find them)
        plan = self._plan(pipeline)
        describe = self._ray.remote(**plan.actor_resources)(_describe_networks)
        with self._failing():
            answer = self._ray.get(describe.remote(_Job.of(pipeline, plan)))
        if isinstance(answer, Exception):
            raise answer
        runtime, recipe = answer
        pipeline.runtime = cast("Runtime", runtime)
        _refuse_difference(recipe, pipeline.recipe, "a worker of the cluster", "this process")

    def run(
        self,
        pipeline: Pipeline,
        videos: Iterable[str],
        *,
        jobs: int | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
        on_failure: OnFailure | None = None,
        on_clips: OnClips | None = None,
        spent: StageSeconds | None = None,
    ) -> Generator[VideoResult, None, None]:
        """Run the pipeline over videos, like `local.run` but for this: results come as they are ready, in any order.

        Args:
            pipeline: see `prepare`.
            videos: all are drawn at once.
            jobs: how many videos are read at the same time in the whole cluster; None: as many as CPUs are left.
            timeout: see `local.run`.
            on_failure: see `local.run`.
            on_clips: is told of the clips of each video when all are there.
            spent: the time of every stage is added there, of all machines.

        Raises:
            UsageError: see `prepare`, or no jobs or no time.
            WeightsError: weights that cannot be had or used.
            ResourceError: while iterating: the cluster failed, or a machine of it has too little of something.
        """
        check_run(jobs, timeout)
        self.prepare(pipeline)
        plan = self._plan(pipeline)
        job = replace(_Job.of(pipeline, plan), timeout=timeout, recipe=pipeline.recipe)
        names = list(videos)
        results = _Results(pipeline, names, on_failure, StageSeconds() if spent is None else spent)
        return results.collect(self._stream(names, job, plan, jobs), on_clips)

    def _stream(self, videos: list[str], job: _Job, plan: _Plan, jobs: int | None) -> Iterator[_Item]:
        """What the cluster makes of videos; no item is a clip."""
        if not videos:
            return
        data = self._ray.data
        rows = [{"number": number, "video": os.fsencode(video)} for number, video in enumerate(videos)]
        with self._failing():
            with data.DataContext.current(self._context()):
                dataset = (
                    data.from_items(rows, override_num_blocks=len(rows))  # a task a video
                    .map_batches(
                        _read_clips,
                        fn_kwargs={"job": job},
                        batch_size=1,
                        batch_format="pyarrow",
                        num_cpus=plan.reader_cpus,
                        max_calls=VIDEOS_PER_PROCESS,
                        compute=data.TaskPoolStrategy(size=jobs),
                    )
                    .map_batches(
                        _Networks,
                        fn_constructor_kwargs={"job": job},
                        batch_size=plan.batch_size,
                        batch_format="pyarrow",
                        compute=data.ActorPoolStrategy(size=plan.num_actors),
                        **plan.actor_resources,
                    )
                )
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from _unpack(table)

    def _context(self) -> Any:
        context = self._ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a block a clip: it goes on to the networks at once
        # What is lost in spite of all repetition is missed by `_Results`, and costs its videos alone.
        context.max_errored_blocks = -1
        return context

    def _plan(self, pipeline: Pipeline) -> _Plan:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return _Plan.of(pipeline, [n.get("CPU", 0.0) for n in nodes], int(sum(n.get("GPU", 0.0) for n in nodes)))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong with Ray itself, in one line."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ResourceError(f"the Ray cluster failed ({type(error).__name__}: {reason}): see its logs") from error


def _import_ray() -> Any:
    # Before it is imported: it tells a server of its use, and hides GPUs from tasks that ask for none with a remark.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # lower levels are printed by this process, too
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f'--engine ray needs Ray ({error}): pip install "vid3d[ray]"') from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # its log file has the same
    return ray


def _connect(ray: Any, address: str) -> None:
    _knock(address)
    is_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _silent_stderr():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--ray-address {address}: there is no Ray cluster to connect to ({reason})") from error
    if is_main:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of ours


def _knock(address: str) -> None:
    """Raise UsageError where nothing listens: Ray would try for minutes, and then take this process down."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise UsageError(f"--ray-address {address}: nothing answers there ({error})") from None


@contextmanager
def _silent_stdout(ray: Any) -> Iterator[None]:
    """Ray tells there of workers that die, and results may go there."""
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        ray._private.worker._worker_logs_enabled = True


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """For what Ray's C++ prints on its way up, of which the worst comes as an exception, too."""
    stderr = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(silence)


# What is decided ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How the machines are shared out."""

    on_gpus: bool
    num_actors: int
    """That have the networks: one a GPU, or where there is none one a machine."""
    actor_resources: Mapping[str, float]
    reader_cpus: float
    batch_size: int
    """Clips that an actor is given at a time."""

    @classmethod
    def of(cls, pipeline: Pipeline, cpus: list[float], num_gpus: int) -> _Plan:
        """Share them out.

        On CPUs a network's threads are as many as those of a run without Ray, so that it computes the same. Half of
        each machine is booked for them, since readers wait for the network most of the time.

        Args:
            pipeline: what is to be run.
            cpus: of each machine.
            num_gpus: of all machines.

        Raises:
            UsageError: options that do not suit a cluster or its machines.
        """
        options = pipeline.options
        if pipeline.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--engine ray gives each network a GPU or a CPU by itself: --device {options.device} cannot"
            )
        if pipeline.device == "cuda" and not num_gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU")
        cpus = [number for number in cpus if number > 0]
        if not cpus:
            raise UsageError("the Ray cluster has no CPU to read videos with")
        on_gpus = num_gpus > 0 and pipeline.device != "cpu"
        usual_batch = 1 if pipeline.dense_plan is not None or not on_gpus else 8
        if on_gpus:
            if "flow" in pipeline.streams and not options.flow_files and find_flow_method(options.flow).can_use_gpu:
                raise UsageError(
                    f"--engine ray reads on CPUs, where --flow {options.flow} takes a second a frame: write flow with "
                    "vid3d flow first and give --flow-files, or choose --flow dis"
                )
            actors, resources = num_gpus, {"num_gpus": 1.0, "num_cpus": 0.0}  # CPUs are for the readers
        else:
            half = min(cpus) / 2
            actors, resources = len(cpus), {"num_cpus": float(int(half)) if half >= 1 else half}
        return cls(on_gpus, actors, resources, min(1.0, min(cpus) / 2), options.batch_size or usual_batch)


@dataclass(frozen=True)
class _Job:
    """What every worker is told."""

    options: Options
    device: str
    """For the networks."""
    directory: str
    """The working directory of the command: names may be relative to it."""
    num_omp_threads: str | None
    """$OMP_NUM_THREADS there; Ray sets another one, by the CPUs that are booked."""
    timeout: float | None = None
    recipe: Recipe | None = None
    """By which all work; None before the first worker has said it."""

    @classmethod
    def of(cls, pipeline: Pipeline, plan: _Plan) -> _Job:
        device = "cuda" if plan.on_gpus else "cpu"
        return cls(pipeline.options, device, os.getcwd(), os.environ.get("OMP_NUM_THREADS"))  # noqa: PTH109

    def pipeline(self, device: str) -> Pipeline:
        """The pipeline of the command, in a worker.

        Raises:
            UsageError: this machine does not have the command's directory.
        """
        try:
            os.chdir(self.directory)
        except OSError as error:
            raise UsageError(
                f"{self.directory}: not to be had on {platform.node()} ({error.strerror}): --engine ray needs a file "
                "system that all machines share"
            ) from None
        return Pipeline(replace(self.options, device=device))

    def networks(self) -> Pipeline:
        """The pipeline with its networks loaded.

        Raises:
            UsageError: see `pipeline`, or this machine would work by another recipe.
            WeightsError: weights that cannot be had or used.
        """
        os.environ.pop("OMP_NUM_THREADS", None)  # before torch is imported
        if self.num_omp_threads is not None:
            os.environ["OMP_NUM_THREADS"] = self.num_omp_threads
        pipeline = self.pipeline(self.device)
        if self.recipe is not None:
            _refuse_difference(pipeline.recipe, self.recipe, platform.node(), "the first worker")
        return pipeline


@dataclass(frozen=True)
class _RemoteRuntime:
    """What a `Runtime` says of itself, where it is on other machines."""

    name: str
    version: str
    description: str
    precision: str
    batch_size: int


def _describe_networks(job: _Job) -> tuple[_RemoteRuntime, Recipe] | Exception:
    """Load the networks in a worker, and say what they are."""
    try:
        pipeline = job.networks()
        runtime = pipeline.runtime
        return (
            _RemoteRuntime(runtime.name, runtime.version, runtime.description, runtime.precision, runtime.batch_size),
            pipeline.recipe,
        )
    except Exception as error:
        return _sendable(error)


def _refuse_difference(one: Recipe, other: Recipe, who: str, other_who: str) -> None:
    """Raise UsageError for two machines whose rows would not be of one recipe."""
    ones, others = asdict(one), asdict(other)
    ones |= ones.pop("versions")
    others |= others.pop("versions")
    for name in ones | others:
        if ones.get(name) != others.get(name):
            raise UsageError(
                f"{who} has {name} {ones.get(name)}, {other_who} has {others.get(name)}: --engine ray needs the same "
                "installation and hardware everywhere"
            )


# What travels ---------------------------------------------------------------------------------------------------------


class _End(NamedTuple):
    """What a reader says last of a video."""

    outcome: ReadVideo | Exception
    num_clips: int
    spent: Mapping[str, float]
    """Seconds by stage."""


class _Item(NamedTuple):
    """A row: a clip, or what became of one."""

    number: int
    """Of the video."""
    content: Clip | ClipOutput | Exception | _End
    network_seconds: float = 0.0


def _pack(items: Iterable[_Item]) -> pa.Table:
    """Rows whose arrays are found where they lie when they are unpacked."""
    import pyarrow as pa

    heads, arrays = [], []
    for item in items:
        buffers: list[pickle.PickleBuffer] = []
        heads.append(pickle.dumps(item, protocol=5, buffer_callback=buffers.append))
        arrays.append([memoryview(buffer.raw()) for buffer in buffers])
    return pa.table(
        {"head": pa.array(heads, pa.large_binary()), "arrays": pa.array(arrays, pa.list_(pa.large_binary()))}
    )


def _unpack(table: pa.Table) -> Iterator[_Item]:
    for batch in table.to_batches():
        arrays = iter(_find_values(batch["arrays"].flatten()))
        counts = batch["arrays"].value_lengths().to_pylist()
        for head, count in zip(_find_values(batch["head"]), counts, strict=True):
            yield pickle.loads(head, buffers=itertools.islice(arrays, count))


def _find_values(array: pa.LargeBinaryArray) -> list[pa.Buffer]:
    """The values where they lie; a scalar of Arrow's would be a copy."""
    if not len(array):
        return []
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1].tolist()
    return [data.slice(start, end - start) for start, end in itertools.pairwise(bounds)]


def _sendable(error: Exception) -> Exception:
    """The error, or where it cannot travel one in its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return Vid3dError(f"{type(error).__name__}: {error}")
    return error


# Results --------------------------------------------------------------------------------------------------------------


@dataclass
class _Parts:
    """What has come of a video so far."""

    outputs: dict[int, ClipOutput] = field(default_factory=dict)
    end: _End | None = None
    error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all is there, or it has failed."""
        return self.error is not None or (self.end is not None and len(self.outputs) == self.end.num_clips)


class _Results:
    """Puts videos together from what comes in any order, and some of it twice."""

    def __init__(
        self, pipeline: Pipeline, videos: list[str], on_failure: OnFailure | None, spent: StageSeconds
    ) -> None:
        self._pipeline, self._on_failure, self._spent = pipeline, on_failure, spent
        self._left = dict(enumerate(videos))
        self._parts: defaultdict[int, _Parts] = defaultdict(_Parts)

    def collect(self, items: Iterable[_Item], on_clips: OnClips | None) -> Generator[VideoResult, None, None]:
        """The results as they are ready; failures are told of."""
        for item in items:
            self._spent.add("network", item.network_seconds)
            if item.number not in self._left:  # of a video that has failed, or again
                continue
            parts = self._parts[item.number]
            self._take(item.content, parts)
            if parts.is_settled:
                video = self._left.pop(item.number)
                del self._parts[item.number]
                outcome = parts.error or self._pool(parts)
                if isinstance(outcome, Exception):
                    tell(video, outcome, self._on_failure)
                    continue
                if on_clips is not None:
                    on_clips(len(parts.outputs), len(parts.outputs))
                yield outcome
        for video in self._left.values():
            tell(video, _worker_died(video), self._on_failure)

    def _take(self, content: Clip | ClipOutput | Exception | _End, parts: _Parts) -> None:
        if isinstance(content, ClipOutput):
            parts.outputs[content.span.index] = content
        elif isinstance(content, _End) and parts.end is None:
            parts.end = content
            parts.error = content.outcome if isinstance(content.outcome, Exception) else None
            for stage, seconds in content.spent.items():
                self._spent.add(stage, seconds)
        elif isinstance(content, (ShapeError, WorkerDied)):
            parts.error = content
        elif isinstance(content, Exception):  # of the networks
            raise content

    def _pool(self, parts: _Parts) -> VideoResult | Exception:
        assert parts.end is not None and isinstance(parts.end.outcome, ReadVideo)
        try:
            return self._pipeline.pool(parts.end.outcome, [parts.outputs[index] for index in sorted(parts.outputs)])
        except VideoError as error:
            return error


def _worker_died(video: str) -> WorkerDied:
    return WorkerDied(video, "the workers that had it died or were lost: try it again alone, or leave it out")


# Workers --------------------------------------------------------------------------------------------------------------


def _read_clips(table: pa.Table, job: _Job) -> Iterator[pa.Table]:
    """One video: its clips, and last how it ended."""
    (row,) = table.to_pylist()
    for content in _read(os.fsdecode(row["video"]), job):
        yield _pack([_Item(row["number"], content)])


def _read(video: str, job: _Job) -> Iterator[Clip | _End]:
    num_clips, spent = 0, StageSeconds()
    outcome: ReadVideo | Exception
    try:
        if _attempt() >= MAX_ATTEMPTS:
            raise _worker_died(video)
        _check_versions(job)
        with (
            one_opencv_thread(),
            job.pipeline("cpu").open_clips(video, Workers(spent=spent), _decoders(job.timeout)) as reader,
        ):
            for clip in reader:
                yield clip
                num_clips += 1
            outcome = reader.summary()
    except Exception as error:
        outcome = _sendable(error)
    yield _End(outcome, num_clips, spent.by_stage())


@functools.lru_cache(maxsize=1)
def _decoders(timeout: float | None) -> Decoders:
    """Of this process: they serve all videos that it reads."""
    return Decoders(timeout)


def _check_versions(job: _Job) -> None:
    """Raise UsageError for packages that differ from those of the machines with the networks."""
    assert job.recipe is not None
    here = replace(job.recipe, versions={**job.recipe.versions, **_versions_here()})
    _refuse_difference(here, job.recipe, platform.node(), "the first worker")


_versions_here = functools.cache(package_versions)


def _attempt() -> int:
    """How often workers have died over the task at hand."""
    from ray._private.worker import global_worker

    number: int = global_worker.core_worker.get_current_task_attempt_number()
    return number


class _Networks:
    """An actor: clips → outputs. Nothing is raised in it, since Ray would tell it in its own words."""

    def __init__(self, job: _Job) -> None:
        self._loaded: Runtime | Exception
        try:
            self._loaded = job.networks().runtime
        except Exception as error:
            self._loaded = _sendable(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        items = list(_unpack(table))
        answers = [item for item in items if isinstance(item.content, _End)]
        left = [_ClipOf(item.number, item.content) for item in items if isinstance(item.content, Clip)]
        while left:
            batch = [it for it in left if are_alike(it.clip, left[0].clip)]
            left = [it for it in left if not are_alike(it.clip, left[0].clip)]
            answers += self._run(batch)
        return _pack(answers)

    def _run(self, batch: list[_ClipOf]) -> Iterator[_Item]:
        spent = StageSeconds()
        contents: Sequence[ClipOutput | Exception]
        try:
            with spent.during("network"):
                contents = self._answer([clip for _, clip in batch])
        except Exception as error:
            contents = [_sendable(error)] * len(batch)
        for (number, _), content in zip(batch, contents, strict=True):
            yield _Item(number, content, spent.network / len(batch))

    def _answer(self, clips: list[Clip]) -> list[ClipOutput]:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        if _attempt() >= MAX_ATTEMPTS:
            raise _worker_died("a video")
        return self._loaded.run(clips)


class _ClipOf(NamedTuple):
    number: int
    """Of the video."""
    clip: Clip
