"""The library's main calls; the command line uses nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from typing import TYPE_CHECKING

from .options import Options, OptionValues
from .records import VideoResult
from .run import local
from .run.local import OnClips, OnFailure
from .run.pipeline import Pipeline

if TYPE_CHECKING:
    from typing_extensions import Unpack


def classify(video: str | PathLike[str], *, model: str = "i3d", **options: Unpack[OptionValues]) -> VideoResult:
    """Recognise the actions in one video.

        result = classify("video.mp4")
        top_k(result.logits["fused"], result.labels, 5)

    Args:
        video: path or URL.
        model: of the manifest; its weights are downloaded when they are not on disk.
        **options: fields of `Options`, such as streams="rgb", window=16, stride=8.

    Raises:
        UsageError: options that do not fit.
        WeightsError: weights that cannot be had or used.
        VideoError: the video cannot be used.
    """
    pipeline = Pipeline(Options(model=model, **options))
    pipeline.check_classes()
    return next(local.run(pipeline, [fspath(video)]))


def extract(
    videos: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    model: str = "i3d",
    jobs: int | None = None,
    on_failure: OnFailure | None = None,
    on_clips: OnClips | None = None,
    **options: Unpack[OptionValues],
) -> Iterator[VideoResult]:
    """Run the model over videos, one result each, in their order.

        for result in extract(["a.mp4", "b.mp4"], streams="rgb"):
            result.features()                    # (N, D) float32
            [c.span.start_seconds for c in result.clips]

    Args:
        videos: paths or URLs, or one of them.
        model: of the manifest.
        jobs: how many videos are read at the same time; None is 2, the one at hand and the next, or more on many cores.
        on_failure: is told of a video that failed, and the others go on; None raises the failure.
        on_clips: is told of progress: clips of this video done, and expected in all or None.
        **options: fields of `Options`.

    Raises:
        UsageError: options that do not fit; at the call, like the next one.
        WeightsError: weights that cannot be had or used.
        VideoError: while iterating, unless `on_failure` takes it.
    """
    pipeline = Pipeline(Options(model=model, **options))
    paths = [fspath(video) for video in ([videos] if isinstance(videos, (str, PathLike)) else videos)]
    pipeline.check_videos(paths)
    return local.run(pipeline, paths, jobs=jobs, on_failure=on_failure, on_clips=on_clips)
