"""The library's main calls. The command line uses the same functions below them."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, overload

from .arguments import check, checked, hints_of
from .errors import UsageError, Vid3dWarning
from .features.format import FeatureFormat
from .jobs import extraction
from .jobs.events import JobSummary, OnEvent, Warned
from .options import Options
from .plan import Plan
from .presets import with_preset
from .results import VideoResult
from .run import local
from .run.load import Networks
from .run.load import load as load_networks
from .run.local import OnClips, OnFailure
from .suggest import did_you_mean
from .video import TIMEOUT_SECONDS
from .video.sources import Source, find_sources

Video = str | PathLike[str]

_FORM_HINTS = hints_of(FeatureFormat)
_JOB_HINTS = {
    name: hint
    for name, hint in hints_of(extraction.extract).items()
    if name not in ("plan", "sources", "out", "form", "jobs", "timeout", "fetch", "on_event", "return")
}
"""What `**options` of `extract` takes with `out`, beside the fields of `Options`."""


class Model:
    """A model whose networks stay loaded: `load` returns one. `plan` holds its options, checked and complete.

        model = vid3d_cli.load("i3d")                # Model(i3d.kinetics400, rgb + flow, torch on cpu, fp32)
        model.classify("a.mp4").top(5)
        for result in model.extract("videos/"): ...

    Use it in one thread at a time, or load one model per thread. Two iterators of `extract` may take turns.
    """

    def __init__(self, plan: Plan, networks: Networks) -> None:
        self.plan, self._networks = plan, networks

    def __repr__(self) -> str:
        recipe = self._networks.recipe
        return f"Model({self.plan.model}, {' + '.join(self.plan.networks)}, {recipe.runtime}, {recipe.precision})"

    @checked
    def classify(self, video: Video) -> VideoResult:
        """Return the actions recognised in one video, like `vid3d_cli.classify`.

        Args:
            video: path or URL.

        Raises:
            UsageError: several videos, or a model without classes.
            VideoError: the video cannot be used.
        """
        return _classify(self.plan, video, self._networks)

    @checked
    def extract(
        self,
        videos: Video | Iterable[Video],
        *,
        jobs: int | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
        on_failure: OnFailure | None = None,
        on_clips: OnClips | None = None,
    ) -> Iterator[VideoResult]:
        """Return an iterator over one result per video, like `vid3d_cli.extract` without `out`.

        Args:
            videos: path or URL, or several; directories, globs and "@list.txt" stand for the videos in them.
            jobs: how many videos are read at the same time; None: see `run.threads.share_threads`.
            timeout: seconds without progress before a video fails; None for no limit.
            on_failure: called with each failed video, and the others continue; None raises the failure.
            on_clips: called with the progress within a video; see `vid3d_cli.extract`.

        Raises:
            UsageError: no videos; raised at the call.
            VideoError: while iterating, unless `on_failure` is given.
        """
        return _extract(self.plan, _find(videos), jobs, timeout, on_failure, on_clips, self._networks)


@checked
def load(model: str | None = None, **options: Any) -> Model:
    """Return a model whose networks are loaded once, for many calls.

        model = vid3d_cli.load("i3d", streams="rgb")
        for name in ("a.mp4", "b.mp4"):
            print(model.classify(name))

    Args:
        model: name of a model; its weights are downloaded if they are not on disk. None is the preset's, or i3d.
        **options: fields of `Options`, such as streams="rgb", window=16, stride=8.

    Raises:
        UsageError: options that do not fit.
        WeightsError: checkpoints that are missing or do not fit.
    """
    if model is not None:
        options["model"] = model
    plan = make_plan(**options)
    networks = load_networks(plan)
    _warn([*plan.warnings, *networks.warnings])
    return Model(plan, networks)


@checked
def classify(video: Video, *, model: str = "i3d", **options: Any) -> VideoResult:
    """Return the actions recognised in one video.

        result = vid3d_cli.classify("video.mp4")     # VideoResult(video.mp4, 8 clips, archery 95 %)
        result.top(5)

    Args:
        video: path or URL. For several videos, iterate over `extract`, which yields the same results; or `load` a model
            and classify them one by one.
        model: name of a model; its weights are downloaded if they are not on disk.
        **options: fields of `Options`, such as streams="rgb", window=16, stride=8.

    Raises:
        UsageError: options that do not fit, several videos, or a model without classes.
        WeightsError: checkpoints that are missing or do not fit.
        VideoError: the video cannot be used.
    """
    return _classify(make_plan(model=model, **options), video)


def _classify(plan: Plan, video: Video, networks: Networks | None = None) -> VideoResult:
    plan.check_classes()
    sources = find_sources([fspath(video)])
    if len(sources) > 1:
        raise UsageError(
            f"{video} names {len(sources)} videos, and classify takes one: iterate over extract({str(video)!r}), which "
            "yields a result for each"
        )
    results = local.run(plan, [sources[0].video], networks=networks)
    try:
        if networks is None:
            _warn([*plan.warnings, *results.warnings])
        assert results.networks is not None
        results.networks.check_classes()
        return next(results)
    finally:
        results.close()


@overload
def extract(videos: Video | Iterable[Video], *, out: None = None, **options: Any) -> Iterator[VideoResult]: ...


@overload
def extract(videos: Video | Iterable[Video], *, out: Video, **options: Any) -> JobSummary: ...


@checked
def extract(
    videos: Video | Iterable[Video],
    *,
    out: Video | None = None,
    model: str | None = None,
    jobs: int | None = None,
    timeout: float | None = TIMEOUT_SECONDS,
    on_failure: OnFailure | None = None,
    on_clips: OnClips | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Iterator[VideoResult] | JobSummary:
    """Extract one feature vector per clip and stream.

    Without `out`, it yields one result per video, in list order:

        for result in extract(["a.mp4", "b.mp4"], streams="rgb"):
            result.features()                    # (N, D) float32
            [c.span.start_seconds for c in result.clips]

    With `out`, it runs a job as `vid3d extract` does; the same call resumes an interrupted job:

        summary = extract("videos/", out="feats.npy", streams="rgb", on_event=print)
        summary.done, summary.failures

    Args:
        videos: path or URL, or several. Directories, globs and "@list.txt" stand for the videos in them, as on the
            command line. Each video comes once.
        out: `feats.npy`, `.npz`, `.h5`, `.parquet` or a directory.
        model: name of a model; None is the preset's, or i3d.
        jobs: how many videos are read at the same time; None: see `run.threads.share_threads`.
        timeout: seconds without progress before a video fails; None for no limit.
        on_failure: without `out`, called with each failed video, and the others continue; None raises the failure.
        on_clips: without `out`, called with a video, the numbers of its clips done and expected (or None), and the new
            clips: `ClipOutput`s whose logits include "fused".
        on_event: with `out`, called with every event; see `vid3d_cli.jobs.events`. Without it, warnings are
            `Vid3dWarning`s.
        **options: fields of `Options`. With `out` also those of `vid3d_cli.jobs.extraction.extract`: dtype, concat,
            layout, overwrite, redo_failed, shard, claim, stale_after, failures, engine, ray_address.

    Raises:
        UsageError: options that do not fit, or no videos; raised at the call, like the next two.
        RecipeDiffers: the output was made with another recipe; the text lists the differences.
        WeightsError: checkpoints that are missing or do not fit.
        VideoError: without `out`, while iterating, unless `on_failure` is given.
        OutputError: the output cannot be written. Committed rows are kept, and the same call resumes.
    """
    if model is not None:
        options["model"] = model
    if out is not None:
        if on_failure is not None or on_clips is not None:
            raise UsageError("with out, on_event reports failures and clips: leave on_failure and on_clips out")
        return _extract_to(fspath(out), videos, jobs, timeout, on_event, options)
    if on_event is not None:
        raise UsageError("on_event is for jobs: give out, or use on_failure and on_clips")
    return _extract(make_plan(**options), _find(videos), jobs, timeout, on_failure, on_clips)


def _find(videos: Video | Iterable[Video], *, each_alone: bool = False) -> list[Source]:
    given = [videos] if isinstance(videos, (str, PathLike)) else list(videos)
    return find_sources([fspath(video) for video in check("videos", given, Sequence[Video])], each_alone=each_alone)


def _extract(
    plan: Plan,
    sources: list[Source],
    jobs: int | None,
    timeout: float | None,
    on_failure: OnFailure | None,
    on_clips: OnClips | None,
    networks: Networks | None = None,
) -> Iterator[VideoResult]:
    paths = [source.video for source in sources]
    plan.check_videos(paths)
    results = local.run(
        plan, paths, jobs=jobs, timeout=timeout, on_failure=on_failure, on_clips=on_clips, networks=networks
    )
    if networks is None:
        _warn([*plan.warnings, *results.warnings])
    return results


def _extract_to(
    out: str,
    videos: Video | Iterable[Video],
    jobs: int | None,
    timeout: float | None,
    on_event: OnEvent | None,
    options: dict[str, Any],
) -> JobSummary:
    if isinstance(options.get("failures"), str):
        options["failures"] = Path(options["failures"])
    form, job_options = (
        {name: check(name, options.pop(name), hint) for name, hint in hints.items() if name in options}
        for hints in (_FORM_HINTS, _JOB_HINTS)
    )
    written = FeatureFormat.of(options.get("preset"), form)
    return extraction.extract(
        make_plan(**options),
        _find(videos, each_alone=written.files is not None),
        out,
        form=written,
        jobs=jobs,
        timeout=timeout,
        on_event=on_event or _warn_of_event,
        **job_options,
    )


@checked
def make_plan(**options: Any) -> Plan:
    """Return the plan for some options, checked and with defaults filled in; needs no torch and no network.

    Args:
        **options: fields of `Options`.

    Raises:
        UsageError: an unknown option, or options that do not fit.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    if unknown := [name for name in options if name not in known]:
        if unknown[0] in {**_FORM_HINTS, **_JOB_HINTS}:
            raise UsageError(f"{unknown[0]} is an option of extract with out: give out, or leave {unknown[0]} out")
        flags = {
            f.metadata["flags"][0].strip("-"): f.name for f in dataclasses.fields(Options) if "flags" in f.metadata
        }
        meant = flags.get(unknown[0].replace("_", "-"))
        names = [*known, *_FORM_HINTS, *_JOB_HINTS]
        hint = f"did you mean '{meant}'?" if meant else did_you_mean(unknown[0], names)
        raise UsageError(f"unknown option '{unknown[0]}': {hint or 'see help(vid3d_cli.Options)'}")
    return Plan.make(with_preset(options))


def _warn_of_event(event: Any) -> None:
    if isinstance(event, Warned):
        _warn([event.message])


def _warn(messages: Iterable[str]) -> None:
    """Warn at the line of the user's that called us."""
    package, level, frame = str(Path(__file__).parent), 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    for message in messages:
        warnings.warn(message, Vid3dWarning, stacklevel=level)
