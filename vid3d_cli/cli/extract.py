"""`vid3d extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OutputError
from ..options import Options
from .batch import Failures, Jobs, NulSeparated, Videos, count, find_videos, make_pipeline, refuse_same_file, run_batch
from .console import log
from .options import takes_pipeline_options

if TYPE_CHECKING:
    from ..records import VideoResult
    from ..sources import Source


@takes_pipeline_options
def extract(
    videos: Videos,
    options: Options,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="PATH", help="feats.npy, feats.npz, or a directory.", show_default=False),
    ],
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Features of this layer; see: vid3d models show.", show_default="before the classifier"
        ),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(metavar="avg|max|none|spatial", help="A layer's map: mean, maximum, as it is, mean over space."),
    ] = Options.pool,
    keep_crops: Annotated[
        bool, typer.Option("--keep-crops", help="Features of every crop, (N, crops, D), not their mean.")
    ] = False,
    layout: Annotated[
        str, typer.Option(metavar="vid3d|video_features", help="File names and arrays in a directory.")
    ] = "vid3d",
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of the features on disk.")] = "float32",
    concat: Annotated[bool, typer.Option(help="One matrix with rgb and flow side by side, or one each.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")] = False,
    nul_separated: NulSeparated = False,
    failures: Failures = None,
    jobs: Jobs = None,
) -> None:
    """Extract one feature vector per clip and stream, with the seconds it describes and the recipe.

    Example: vid3d extract --out feats.npy videos/
    """
    from ..outputs.features import FeatureFormat, open_features

    sources = find_videos(videos, nul_separated)
    refuse_same_file(failures, Path(out))
    pipeline = make_pipeline(options)
    output = open_features(
        out,
        FeatureFormat(dtype, concat),
        layout=layout,
        stems=[source.output_stem for source in sources],
        streams=pipeline.streams,
        overwrite=overwrite,
    )
    num_videos = num_clips = 0
    is_broken = False

    def write(source: Source, result: VideoResult) -> None:
        nonlocal num_videos, num_clips, is_broken
        try:
            output.write(result, source.output_stem)
        except OutputError:
            is_broken = True
            raise
        num_videos, num_clips = num_videos + 1, num_clips + len(result.clips)

    try:
        code = run_batch(pipeline, sources, write, jobs=jobs, failures_path=failures)
    except BaseException:
        # Interrupted, or nothing more can be done: what is done stays, whole.
        output.discard() if is_broken else output.commit()
        raise
    output.commit()
    if num_videos:
        log.info("%s of %s → %s", count(num_clips, "clip"), count(num_videos, "video"), out)
    raise typer.Exit(code)
