"""The job of `vid3d extract`: no crash loses committed rows; it resumes, and shares videos by shards or claims."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, UsageError, VideoChanged
from ..features.committer import Committer, Item
from ..features.entries import FailedVideo, VideoFeatures, video_key
from ..features.files import refuse_misfit
from ..features.format import FeatureFormat
from ..features.journals import JournalTail
from ..features.recipes import refuse_other_recipe
from ..features.store import Store, is_done
from ..features.stores import create_store, is_directory
from ..plan import Fetch, Plan
from ..recipe import Recipe, provenance_differences
from ..records import VideoFailure
from ..results import VideoResult
from ..run.engines import check_engine, open_engine
from ..run.local import Results
from ..video import TIMEOUT_SECONDS
from ..video.fingerprint import Fingerprint
from ..video.sources import Source
from .batch import Batch
from .claims import STALE_SECONDS, Claims, refuse_living_claims, worker_name
from .events import Finished, JobSummary, OnEvent, Resumed, ShardSelected, Warned
from .shards import Shard, select_shard

_CHECKING_THREADS = 16
"""Threads that check files, which may be on slow network drives."""

WAIT_SECONDS = 2.0
"""Seconds between two checks of what other workers have claimed."""

_WARN_OF = ("flow", "runtime")
"""Keys of provenance whose change causes a warning: the last digits may differ."""


def extract(
    plan: Plan,
    sources: Sequence[Source],
    out: str,
    *,
    form: FeatureFormat,
    overwrite: bool = False,
    redo_failed: bool = False,
    shard: str | None = None,
    claim: bool = False,
    stale_after: float | None = None,
    failures: Path | None = None,
    jobs: int | None = None,
    timeout: float | None = TIMEOUT_SECONDS,
    engine: str = "local",
    ray_address: str | None = None,
    fetch: Fetch | None = None,
    on_event: OnEvent = lambda event: None,
) -> JobSummary:
    """Extract the features of videos to files; an existing output is resumed.

    If all videos are done, no network is loaded.

    Args:
        plan: what to do with each video.
        sources: all videos of the job.
        out: `feats.npy`, `.npz`, `.h5`, `.parquet` or a directory.
        form: dtype, layout and concatenation of the features.
        overwrite: start over and replace the output.
        redo_failed: retry videos that failed before and have not changed.
        shard: "3/16" or "slurm": work on one of n parts of the list.
        claim: share the list with all workers that write to this directory.
        stale_after: with `claim`, seconds after which the claims of a silent worker expire; None is 60.
        failures: file that also lists the failed videos, as JSON lines.
        jobs: see `run.local.run`.
        timeout: see `run.local.run`.
        engine: "local" or "ray".
        ray_address: address of the cluster.
        fetch: see `run.local.run`.
        on_event: called with every event, see `events`.

    Returns:
        The outcome of the job, with its failed videos; these raise no error.

    Raises:
        UsageError: options that exclude each other, or another process that writes to the output.
        OutputExists: the path holds files that no such job wrote.
        RecipeDiffers: the output was made with another recipe; the text lists the differences.
        WeightsError: checkpoints that are missing or do not fit.
        OutputError: the output cannot be written. Committed rows are kept, and the same call resumes.
    """
    check_sharing(out, shard, claim=claim, stale_after=stale_after, overwrite=overwrite, engine=engine)
    worker = worker_name() if claim else None
    store, sources = open_part(plan, sources, out, form, shard, worker, failures, timeout=timeout, on_event=on_event)
    with ExitStack() as stack:
        run = stack.enter_context(open_engine(engine, ray_address))
        claims = Claims(Path(out), worker, stale_after or STALE_SECONDS) if worker and claim else None
        job = stack.enter_context(
            Extraction(plan, sources, store, form, overwrite, redo_failed, claims, fetch, on_event)
        )
        batch = Batch(
            job.plan,
            job.pending,
            job.write,
            on_failure=job.fail,
            on_start=job.start,
            run=run,
            jobs=jobs,
            timeout=timeout,
            fetch=fetch,
            failures_path=failures,
            on_event=on_event,
        )
        try:
            if job.pending or failures is not None:
                batch.work(job.rounds() if job.pending else [])
            job.finish()
        except BaseException as error:
            job.stop()
            if isinstance(error, UsageError) and "--precision" in str(error) and job.is_resumed:
                raise UsageError(
                    f"{out}: made in {job.plan.precision}, which this machine cannot run; resume it on one that can, "
                    "choose another name, or add --overwrite"
                ) from None
            raise
        finally:
            summary = job.summarise(batch)
            on_event(Finished(summary))
    return summary


def refuse_same_file(failures: Path | None, *own: Path) -> None:
    """Raise UsageError for a list of failures that would replace a file of the output."""
    if failures is not None and _place(failures) in map(_place, own):
        raise UsageError(f"--failures {failures} is also the output: choose another name")


def _place(path: Path) -> Path:
    """Return what is equal for all names of a file that may not exist yet."""
    return path.parent.resolve() / path.name


def check_sharing(
    out: str, shard: str | None, *, claim: bool, stale_after: float | None, overwrite: bool, engine: str
) -> None:
    """Raise UsageError for ways to share a list that exclude each other or do not suit the output."""
    check_engine(engine)
    if stale_after is not None and not stale_after > 0:
        raise UsageError(f"--stale-after must be more than 0 s, got {stale_after:g}")
    if stale_after is not None and not claim:
        raise UsageError("--stale-after needs --claim")
    if claim and engine == "ray":
        raise UsageError("--engine ray shares the videos among its workers by itself: leave --claim out")
    if shard is not None and claim:
        raise UsageError("--shard gives every worker its part, --claim lets workers take what is left: choose one")
    if overwrite and (shard is not None or claim) and is_directory(out):
        raise UsageError(f"--overwrite would delete what other workers write to {out}: delete it before they start")
    if claim and not is_directory(out):
        raise UsageError(
            "--claim needs a directory: give --out feats/, and when all workers have ended, run: "
            f"vid3d features convert feats/ {out}"
        )


def open_part(
    plan: Plan,
    sources: Sequence[Source],
    out: str,
    form: FeatureFormat,
    shard: str | None,
    worker: str | None = None,
    failures: Path | None = None,
    *,
    keep: bool = True,
    timeout: float | None = TIMEOUT_SECONDS,
    on_event: OnEvent = lambda event: None,
) -> tuple[Store, list[Source]]:
    """Return the output of this worker, and its videos: those of its shard, or all.

    Args:
        plan, sources, out, form, shard, failures, timeout, on_event: see `extract`.
        worker: name of a worker that claims videos.
        keep: whether to save the assignment of videos to shards.
    """
    selected = list(sources)
    if shard is not None:
        part, path = Shard.parse(shard), Path(out)
        plans = path / ".shards" if is_directory(out) else path.with_name(f".{path.name}.shards")
        selected = select_shard(sources, part, plans, keep=keep, timeout=timeout, allow_playlists=plan.allow_playlists)
        on_event(ShardSelected(part.name, len(selected), len(sources)))
        worker = part.name
    store = create_store(out, layout=form.layout, worker=worker)
    if form.files is not None:
        refuse_misfit(form.files, plan, {str(source.output_stem): source.video for source in sources})
    refuse_same_file(failures, store.failures_path, *store.own_paths())
    return store, selected


class Extraction:
    """The output of a running job: it selects the videos left to do and writes their rows.

    A video is done when the output has its rows, made with the same recipe from the same file. Leaving the block
    commits all rows; only `finish` marks the job as ended.

    Raises:
        OutputExists: the path holds files that no such job wrote.
        RecipeDiffers: the output was made with another recipe.
        UsageError: another process is writing to the output.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Source],
        store: Store,
        form: FeatureFormat,
        overwrite: bool,
        redo_failed: bool,
        claims: Claims | None,
        fetch: Fetch | None,
        on_event: OnEvent,
    ) -> None:
        self.plan = plan
        self._sources, self._store, self._form, self._claims = list(sources), store, form, claims
        self._overwrite, self._fetch, self._on_event = overwrite, fetch, on_event
        store.on_mended = lambda message: on_event(Warned(message))
        self._files: dict[str, Fingerprint | None] = {}
        self._claimed: dict[str, Source] = {}
        # Opened before the store is read: a row that another worker writes meanwhile may be seen twice, but not missed.
        self._journals = None if claims is None else JournalTail(store.recipe_path.parent)
        self._recipe: Recipe | None = None
        self._provenance: dict[str, Any] = {}
        self._committer: Committer | None = None
        self._num_safe = 0
        self.has_ended = False
        self.left = Left(self._sources, 0, 0, set())
        try:
            if not overwrite:  # else the output is kept until the networks are loaded
                self._resume(redo_failed)
        except BaseException:
            store.close()
            if claims is not None:
                claims.close()
            raise

    def _resume(self, redo_failed: bool) -> None:
        there = self._prepare()
        if there is not None:
            # Before weights are fetched for their digests, as far as digests are known.
            refuse_other_recipe(self._store.path, there, self._form.describe(self.plan.recipe))
            self.plan = adopt(self.plan, there, self._fetch)
            refuse_other_recipe(self._store.path, there, self._form.describe(self.plan.recipe))
        # Without a recipe it is unknown why videos failed before.
        self.left = find_left(self._store, self._sources, redo_failed=redo_failed or there is None)
        left = self.left
        if left.num_done or left.num_failed or left.outdated:
            self._on_event(
                Resumed(
                    str(self._store.path),
                    num_videos=len(self._sources),
                    num_left=len(left.sources),
                    num_done=left.num_done,
                    num_failed=left.num_failed,
                    num_changed=len(left.outdated),
                )
            )

    def _prepare(self) -> dict[str, Any] | None:
        stems = {str(source.output_stem): video_key(source.video) for source in self._sources}
        if self._claims is None:
            refuse_living_claims(self._store.path)  # before anything is removed
        recipe = self._form.describe(self._recipe or self.plan.recipe)
        there = self._store.prepare(stems, recipe, overwrite=self._overwrite)
        self._store.refuse_taken_stems(stems)
        return there

    def start(self, results: Results) -> None:
        """Use the recipe of the loaded networks, and warn if the provenance has changed."""
        self._recipe = results.recipe
        there = self._prepare() if self._overwrite else self._store.recipe()
        if there is not None:
            differences = provenance_differences(there, self._form.describe(results.recipe))
            self._provenance = {name: now for name, (_, now) in differences.items()}
            for name in _WARN_OF:
                if name in differences:
                    before, now = differences[name]
                    self._on_event(Warned(f"{self._store.path}: {name} has changed from {before} to {now}"))

    # What is left ----------------------------------------------------------------------------------------------------

    @property
    def is_resumed(self) -> bool:
        """Whether the output existed when the job began."""
        return not self._overwrite and self._store.recipe() is not None

    @property
    def pending(self) -> list[Source]:
        """The videos that were left when the job began."""
        return self.left.sources

    def rounds(self) -> Iterator[Iterator[Source]]:
        """Yield the videos to work on, in rounds, until this or another worker has finished every video."""
        yield self._draw()
        while self._wait():
            yield self._draw()

    def _draw(self) -> Iterator[Source]:
        """Yield the videos one by one; with claims, only those that no other worker has claimed."""
        for source in self.pending:
            if self._claims is not None and not self._claim(source):
                continue
            self._files[source.video] = Fingerprint.of(source.video)
            yield source

    # Results ---------------------------------------------------------------------------------------------------------

    def write(self, source: Source, result: VideoResult) -> bool:
        """Add the rows of a video; False if another worker has taken it over.

        Raises:
            VideoChanged: its file changed while it was read.
            NoFeatures: its features are not finite.
            FeatureShapeMismatch: its rows do not fit into one matrix with earlier rows.
            OutputError: the output cannot be written.
        """
        file = self._files.pop(source.video)
        if file is not None and not file.may_be(source.video):
            raise VideoChanged(source.video, "it changed while it was read; run again when it is complete")
        features = VideoFeatures.of(result, source.output_stem, file, self._form, self._provenance)
        committer = self._begin()
        self._store.check(features)
        if not self._still_holds(source):
            return False
        committer.put(features)
        return True

    def fail(self, source: Source, failure: VideoFailure) -> None:
        """Record a failed video, unless all are missing."""
        if self._has_only_missing:
            return
        file = self._files.pop(source.video, None) or Fingerprint.of(source.video)
        if self._still_holds(source):
            self._begin().put(FailedVideo.of(failure, file, source.output_stem))

    def _begin(self) -> Committer:
        if self._committer is None:
            assert self._recipe is not None
            self._store.begin(self._form.describe(self._recipe))
            self._committer = Committer(self._store, self._on_commit)
        return self._committer

    def finish(self) -> None:
        """Put the output into its final form: all videos are done or have failed."""
        if self._overwrite and not self.pending:
            self._prepare()
        if not self._has_only_missing:
            self._close_committer()
            self._store.finish()
        self.has_ended = True

    @property
    def _has_only_missing(self) -> bool:
        """Whether all videos left are missing: no network was loaded, and the output stays as it is."""
        return bool(self.pending) and self._recipe is None

    def stop(self) -> None:
        """Commit all rows when the job is stopped; errors of the committer were raised before."""
        with suppress(OutputError):
            self._close_committer()

    def summarise(self, batch: Batch) -> JobSummary:
        """Return the outcome of the job, from the batch of this run."""
        store, failures = self._store, self._store.failures_path
        files = [path for path in store.own_paths() if path.suffix == store.path.suffix and path.is_file()]
        return replace(
            batch.summary(has_ended=self.has_ended),
            out=str(store.path),
            files=tuple(dict.fromkeys(map(str, files))),
            failures_path=str(failures) if failures.exists() and not self._has_only_missing else None,
            num_videos=len(self._sources),
            num_kept=self.left.num_done + self._num_safe,
            num_skipped_failed=self.left.num_failed,
        )

    def _close_committer(self) -> None:
        if self._committer is not None:
            committer, self._committer = self._committer, None
            committer.close()

    def close(self) -> None:
        """Commit all rows, and release the output and the claims."""
        try:
            self._close_committer()
        finally:
            self._store.close()
            if self._claims is not None:
                self._claims.close()

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Claims ----------------------------------------------------------------------------------------------------------

    def _claim(self, source: Source) -> bool:
        """Claim a video, unless another worker has just done it.

        Raises:
            UsageError: another worker has done another video of the same name.
        """
        assert self._claims is not None and self._journals is not None
        key, stem = video_key(source.video), str(source.output_stem)
        if key in self._journals.keys or not self._claims.take(source):
            return False
        self._journals.read()
        if key in self._journals.keys:
            self._claims.give_back(source)
            return False
        if self._journals.key_of_stem.get(stem, key) != key:
            raise UsageError(
                f"{self._store.path / stem} holds {self._journals.key_of_stem[stem]}, and {source.video} would replace "
                "it: give all workers the same list"
            )
        self._claimed[key] = source
        return True

    def _still_holds(self, source: Source) -> bool:
        """Whether this worker may write the result; if it was silent too long, its claim has expired."""
        if self._claims is None or self._claims.holds(source):
            return True
        self._claimed.pop(video_key(source.video), None)
        return False

    def _on_commit(self, items: list[Item]) -> None:
        self._num_safe += sum(isinstance(item, VideoFeatures) for item in items)
        if self._claims is not None:
            for item in items:
                key = item.entry.key if isinstance(item, VideoFeatures) else item.key
                if self._journals is not None:
                    self._journals.keys.add(key)
                self._claims.give_back(self._claimed.pop(key))

    def _wait(self) -> bool:
        """Wait for videos that other workers have claimed; False when none is left."""
        if self._claims is None:
            return False
        self._close_committer()
        assert self._journals is not None
        self._journals.read()
        if all(video_key(source.video) in self._journals.keys for source in self.pending):
            return False
        time.sleep(WAIT_SECONDS)
        return True


def adopt(plan: Plan, there: dict[str, Any], fetch: Fetch | None = None) -> Plan:
    """Return the plan for resuming an output: with all digests, and the output's precision instead of "auto"."""
    plan = plan.fetch(fetch)
    return replace(plan, precision=there.get("precision", "auto")) if plan.precision == "auto" else plan


@dataclass(frozen=True)
class Left:
    """The videos of a list that are left to do."""

    sources: list[Source]
    """Videos left to do, in list order."""
    num_done: int
    """Videos whose rows are in the output and whose file has not changed."""
    num_failed: int
    """Videos that failed before and have not changed."""
    outdated: set[str]
    """Keys of videos whose rows are in the output and whose file has changed."""


def find_left(store: Store, sources: Sequence[Source], *, redo_failed: bool) -> Left:
    """Return which videos of a list an output lacks; files are checked, not decoded.

    Args:
        store: the output; no process may be writing to it.
        sources: the list.
        redo_failed: whether to retry failed videos that have not changed.
    """
    keys = {video_key(source.video) for source in sources}
    entries = [entry for entry in store.entries() if entry.key in keys]
    failures = [] if redo_failed else [failed for failed in store.failures() if failed.key in keys]
    with ThreadPoolExecutor(_CHECKING_THREADS) as pool:
        is_current = dict(zip((entry.key for entry in entries), pool.map(is_done, entries), strict=True))
        is_hopeless = dict(zip((failed.key for failed in failures), pool.map(_fails_again, failures), strict=True))
    outdated = {key for key, is_so in is_current.items() if not is_so}
    failed = {key for key, is_so in is_hopeless.items() if is_so}
    skipped = (is_current.keys() - outdated) | failed
    left = [source for source in sources if video_key(source.video) not in skipped]
    return Left(left, len(is_current) - len(outdated), len(failed), outdated)


def _fails_again(failed: FailedVideo) -> bool:
    """Whether a failed video has not changed; a video without a local file, such as a URL, may have."""
    return failed.file is not None and failed.file.is_of(failed.video)
