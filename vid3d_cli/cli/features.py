"""`vid3d features …`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, Vid3dError
from .batch import count
from .console import duration, log, shows_bars, stdout_is_terminal

if TYPE_CHECKING:
    from ..features.comparing import Comparison, RowPair
    from ..features.entries import VideoFeatures
    from ..features.inspection import Summary
    from ..features.merging import Merged

app = typer.Typer(no_args_is_help=True, help="Look into features, check, join, convert and compare them.")

File = Annotated[str, typer.Argument(metavar="FILE", help="What was given to extract with --out.", show_default=False)]
Out = Annotated[
    str,
    typer.Option(
        "--out", "-o", metavar="PATH", help="As of extract; what is there is gone on with.", show_default=False
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew, and remove what is there.")]
Layout = Annotated[
    str, typer.Option(metavar="vid3d|video_features", help="File names and arrays, where PATH is a directory.")
]
Concat = Annotated[
    bool | None,
    typer.Option(
        "--concat/--no-concat", help="rgb and flow side by side, or one matrix each.", show_default="as they are"
    ),
]

_SHOWN_NUMBERS = 4
"""Of a row, in a table."""

_SHOWN_DIGITS = 12
"""Of a digest, for a person."""


# info ----------------------------------------------------------------------------------------------------------------


@app.command()
def info(file: File) -> None:
    """Tell what features are of: videos, rows, seconds, the recipe, failures, damaged videos; JSON in a pipe.

    Example: vid3d features info feats.npy
    """
    from ..features.inspection import summarise
    from ..features.stores import open_store
    from ..records import to_json

    with open_store(file) as store:
        summary = summarise(store)
    if stdout_is_terminal():
        _print_summary(file, summary)
    else:
        fields = {name.removeprefix("num_"): value for name, value in asdict(summary).items()}
        typer.echo(to_json({"file": file, **fields}))


def _print_summary(file: str, summary: Summary) -> None:
    from .tables import make_console, make_table

    table = make_table("features", file)
    for label, text in _summary_lines(summary):
        table.add_row(label, text)
    make_console().print(table)


def _summary_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    """(label, text), in the order of reading."""
    yield "videos", f"{summary.num_videos:,}, {duration(summary.seconds)} of video"
    for name, matrix in summary.matrices.items():
        yield name, f"{' × '.join(f'{n:,}' for n in matrix['shape'])} {matrix['dtype']}"
    yield from _recipe_lines(summary.recipe)
    failures = ", ".join(f"{number} {name}" for name, number in summary.failures.items())
    yield "failed", failures or "none"
    for video, num_lost in summary.lost_frames.items():
        yield "damaged", f"{video}: {count(num_lost, 'frame')} lost"
    if summary.unfinished:
        yield "unfinished", summary.unfinished


def _recipe_lines(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    variant = f", {recipe['variant']}" if recipe["variant"] else ""
    yield "model", f"{recipe['model']}{variant}; features: {recipe['features']}"
    for name, stream in recipe["streams"].items():
        digest = stream["weights_sha256"][:_SHOWN_DIGITS]
        yield name, f"{stream['weights']}, sha256 {digest}…; {stream['normalisation']}"
    fps = "native" if recipe["fps"] == "native" else f"{recipe['fps']} per second"
    yield "frames", f"{fps}; {recipe['resize']}; crop {recipe['crops']}"
    if recipe["start_seconds"] or recipe["end_seconds"] is not None:
        end = "the end" if recipe["end_seconds"] is None else f"{recipe['end_seconds']:g} s"
        yield "read", f"from {recipe['start_seconds']:g} s to {end}"
    dense = f"; dense: {recipe['dense']}" if recipe["dense"] else ""
    yield "clips", f"{recipe['window']} frames every {recipe['stride']}, tail {recipe['tail']}{dense}"
    if recipe["flow"]:
        yield "flow", recipe["flow"]
    yield "computed", f"{recipe['runtime']}, {recipe['precision']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())


# get -----------------------------------------------------------------------------------------------------------------


@app.command()
def get(
    file: File,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Its path, its stem, or the end of either.")],
    at: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Only the clips that cover this moment.", show_default="all")
    ] = None,
) -> None:
    """Show the rows of a video; JSON lines in a pipe, with all numbers.

    Example: vid3d features get feats.npy video.mp4 --at 1.5
    """
    from ..features.inspection import find_video, read_whole, rows_at
    from ..features.stores import open_store

    with open_store(file) as store:
        features = read_whole(store, find_video(store.entries(), video))
        rows = range(len(features.spans)) if at is None else rows_at(features, at)
        (_print_rows if stdout_is_terminal() else _echo_rows)(features, rows)


def _echo_rows(features: VideoFeatures, rows: Sequence[int]) -> None:
    from ..features.entries import SPAN_COLUMNS
    from ..records import to_json

    for row in rows:
        span = {"clip": features.spans[row].index, **asdict(features.spans[row])}
        matrices = {name: matrix[row].tolist() for name, matrix in features.matrices.items()}
        typer.echo(to_json({"video": features.entry.video, **{n: span[n] for n in SPAN_COLUMNS}, **matrices}))


def _print_rows(features: VideoFeatures, rows: Sequence[int]) -> None:
    from .tables import make_console, make_table

    table = make_table("clip", "seconds", *features.matrices, title=features.entry.video, narrow=["clip", "seconds"])
    for row in rows:
        span = features.spans[row]
        seconds = f"{span.start_seconds:.2f} – {span.end_seconds:.2f}"
        table.add_row(str(span.index), seconds, *[_describe_row(matrix[row]) for matrix in features.matrices.values()])
    make_console().print(table)


def _describe_row(row: Any) -> str:
    first = " ".join(f"{value:.4g}" for value in row.ravel()[:_SHOWN_NUMBERS])
    return f"{first} … ({' × '.join(map(str, row.shape))})"


# check ---------------------------------------------------------------------------------------------------------------


@app.command()
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="What was given to extract with --out.", show_default=False)
    ],
) -> None:
    """Read every row and compare it with its checksum; exit code 1 where something is damaged.

    Example: vid3d features check feats.npy
    """
    codes = [_check(file) for file in files]
    raise typer.Exit(max(codes))


def _check(file: str) -> int:
    from ..features.checking import find_problems
    from ..features.stores import open_store

    num_damaged = 0
    try:
        with open_store(file) as store:
            entries = store.entries()
            with _bar(len(entries)) as on_video:
                for problem in find_problems(store, on_video):
                    num_damaged += problem.is_damage
                    (log.error if problem.is_damage else log.warning)("%s: %s", file, problem.what)
    except Vid3dError as error:  # the other files are looked at all the same
        log.error("%s", error)
        return error.exit_code
    rows = count(sum(entry.num_rows for entry in entries), "row")
    result = f"{count(num_damaged, 'problem')} found" if num_damaged else "whole"
    typer.echo(f"{file}: {rows} of {count(len(entries), 'video')}: {result}")
    return EXIT_SOME_FAILED if num_damaged else EXIT_OK


@contextmanager
def _bar(num_videos: int) -> Iterator[Any]:
    """Gives what is to be called after each video."""
    import sys

    from tqdm import tqdm

    with tqdm(total=num_videos, unit="video", disable=not shows_bars(), file=sys.stderr, leave=False) as bar:
        yield bar.update


# merge, convert ------------------------------------------------------------------------------------------------------


@app.command()
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Features of one recipe, of any formats.", show_default=False)
    ],
    out: Out,
    layout: Layout = "vid3d",
    concat: Concat = None,
    overwrite: Overwrite = False,
) -> None:
    """Join the features of shards, or of any jobs of one recipe; a video that several have stands once.

    Rows keep the order of the files; those of a directory are in the order of the videos' names. The same command goes
    on where it stopped. Rows that are damaged are left out, and the exit code is 1.

    Example: vid3d features merge feats.shard-*.npy --out feats.npy
    """
    raise typer.Exit(_merge(parts, out, layout, concat, overwrite))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Features of any format.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT", help="feats.npy, .npz, .h5, .parquet, or a directory.")],
    layout: Layout = "vid3d",
    concat: Concat = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy features into another format; also a directory that several workers filled into one matrix.

    Example: vid3d features convert feats.npy feats.h5
    """
    raise typer.Exit(_merge([source], out, layout, concat, overwrite))


def _merge(files: list[str], out: str, layout: str, concat: bool | None, overwrite: bool) -> int:
    from ..features.format import FeatureFormat
    from ..features.merging import merge
    from ..features.stores import create_store, open_store

    form = FeatureFormat(layout=layout)
    parts = [open_store(file) for file in files]
    target = create_store(out, layout=form.layout)
    with _bar(sum(len(part.entries()) for part in parts)) as on_video:
        merged = merge(parts, target, concat=concat, overwrite=overwrite, on_video=on_video)
    for problem in merged.damaged.values():
        log.error("left out: %s", problem)
    log.info("%s", _describe_merged(merged, out))
    return EXIT_SOME_FAILED if merged.damaged else EXIT_OK


def _describe_merged(merged: Merged, out: str) -> str:
    more = [
        f"{merged.num_there} there already" if merged.num_there else "",
        f"{merged.num_repeated} in several files, taken once" if merged.num_repeated else "",
        f"{merged.num_failures} failed" if merged.num_failures else "",
    ]
    rows = f"{count(merged.num_rows, 'row')} of {count(merged.num_videos, 'video')} → {out}"
    return "; ".join([rows, *filter(None, more)])


# compare -------------------------------------------------------------------------------------------------------------


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Features, or a plain .npy matrix.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.", show_default=False)],
    per_row: Annotated[bool, typer.Option("--per-row", help="Show every pair of rows too.")] = False,
) -> None:
    """Compare features row by row: cosine, largest relative difference, what only one has, what differs in the recipe.

    Rows belong together that are of the same video, by its path as it was given, and start at the same time; those of a
    plain .npy matrix, such as published features, by their order. A difference is relative to the largest number of the
    two rows. The exit code is 1 where nothing can be compared, else 0, however unlike they are.

    Example: vid3d features compare feats.npy other.h5
    """
    from ..features.comparing import Comparison, open_rows

    comparison = Comparison(open_rows(a), open_rows(b))
    cosines: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {}
    shown = _shown_pairs(per_row)
    for pair in comparison.pairs():
        for name in pair.cosine:
            cosines.setdefault(name, []).append(pair.cosine[name])
            differences.setdefault(name, []).append(pair.relative_difference[name])
        shown(pair)
    statistics = {name: _statistics(cosines[name], differences[name]) for name in cosines}
    (_print_comparison if stdout_is_terminal() else _echo_comparison)(a, b, comparison, statistics)
    if not comparison.num_rows:
        log.error("%s and %s have no row in common: the same videos, as they were given, and the same times", a, b)
        raise typer.Exit(EXIT_SOME_FAILED)


def _shown_pairs(per_row: bool) -> Any:
    """What is done with each pair of rows."""
    if not per_row:
        return lambda pair: None
    return _print_pair if stdout_is_terminal() else _echo_pair


def _print_pair(pair: RowPair) -> None:
    where = f"row {pair.clip}" if pair.video is None else f"{pair.video}  {pair.start_seconds:.2f} s"
    values = ", ".join(f"{n} {pair.cosine[n]:.6f} ({pair.relative_difference[n]:.1e})" for n in pair.cosine)
    typer.echo(f"{where}: {values}")


def _echo_pair(pair: RowPair) -> None:
    from ..records import to_json

    numbers = ("cosine", "relative_difference")
    line = asdict(pair) | {field: {n: _finite(v) for n, v in getattr(pair, field).items()} for field in numbers}
    typer.echo(to_json(line))


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def _statistics(cosines: list[float], differences: list[float]) -> dict[str, float]:
    import numpy as np

    return {
        "min_cosine": float(np.min(cosines)),
        "median_cosine": float(np.median(cosines)),
        "mean_cosine": float(np.mean(cosines)),
        "max_relative_difference": float(np.max(differences)),
    }


def _echo_comparison(a: str, b: str, comparison: Comparison, statistics: Mapping[str, Mapping[str, float]]) -> None:
    from ..records import to_json

    line = {
        "event": "comparison",
        "a": a,
        "b": b,
        "rows": comparison.num_rows,
        "rows_only": comparison.num_rows_only,
        "videos_only": comparison.num_videos_only,
        "matrices": {name: {n: _finite(v) for n, v in values.items()} for name, values in statistics.items()},
        "recipe": {name: {"a": there, "b": here} for name, (there, here) in comparison.recipe_differences().items()},
    }
    typer.echo(to_json(line))


def _print_comparison(a: str, b: str, comparison: Comparison, statistics: Mapping[str, Mapping[str, float]]) -> None:
    from .tables import make_console, make_table

    columns = ("rows", "cosine: min", "median", "mean", "difference")
    table = make_table("matrix", *columns, narrow=columns)
    for name, of in statistics.items():
        cosines = [f"{of[f'{which}_cosine']:.6f}" for which in ("min", "median", "mean")]
        table.add_row(name, str(comparison.num_rows), *cosines, f"{of['max_relative_difference']:.1e}")
    console = make_console()
    console.print(table)
    for side, path in (("a", a), ("b", b)):
        if num_rows := comparison.num_rows_only[side]:
            videos = count(comparison.num_videos_only[side], "video")
            console.print(f"only in {path}: {count(num_rows, 'row')}, those of {videos} as a whole")
    for name, (there, here) in comparison.recipe_differences().items():
        console.print(f"{name}: {there} in {a}, {here} in {b}")
