"""`vid3d features …`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UsageError, Vid3dError
from ..recipe import describe_value
from ..text import printable
from .command import App
from .console import duration, log, plural
from .formats import ListFormat, ObjectFormat, Record, or_dash, print_record, print_records
from .options import out_option

if TYPE_CHECKING:
    from ..features.comparing import Comparison
    from ..features.entries import VideoFeatures
    from ..features.merging import Merged

app = App(help="Inspect, check, merge, convert and compare features.")

File = Annotated[str, typer.Argument(metavar="FILE", help="Output of vid3d extract.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete an existing output and start over.")]
Layout = Annotated[
    str,
    typer.Option(
        metavar="vid3d|video_features|files",
        help="File names and arrays, if the output is a directory; files: those of the input, written with a preset.",
    ),
]
Concat = Annotated[
    bool | None,
    typer.Option(
        "--concat/--no-concat", help="rgb and flow side by side, or one matrix each.", show_default="as they are"
    ),
]

_SHOWN_NUMBERS = 4
"""Numbers of a row in a table."""

_SHOWN_DIGITS = 12
"""Digits of a digest in a table."""


# info ----------------------------------------------------------------------------------------------------------------


@app.command()
def info(file: File, form: ObjectFormat = None) -> None:
    """Summarise features: videos, rows, seconds, recipe, failures, damaged videos.

    Example: vid3d features info feats.npy
    """
    from ..features.inspection import summarise
    from ..features.stores import open_unchecked

    with open_unchecked(file) as store:
        summary = {"file": file, **summarise(store)}
    print_record(summary, form, lambda _: _print_table(["output", file], _summary_lines(summary)))
    if summary["damage"]:
        log.error("%s", summary["damage"])
        raise typer.Exit(EXIT_SOME_FAILED)


def _print_table(columns: Sequence[str], rows: Iterator[Sequence[str]], **options: Any) -> None:
    from .tables import make_console, make_table

    table = make_table(*columns, **options)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)


def _summary_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (label, text) in reading order."""
    yield "videos", f"{summary['videos']:,}, {duration(summary['seconds'])} of video"
    for name, matrix in summary["matrices"].items():
        yield f"{name} matrix", f"{' × '.join(f'{n:,}' for n in matrix['shape'])} {matrix['dtype']}"
    yield from _recipe_lines(summary["recipe"])
    failures = ", ".join(f"{number} {name}" for name, number in summary["failures"].items())
    yield "failed", failures or "none"
    for video, num_lost in summary["lost_frames"].items():
        yield "damaged", f"{video}: {plural(num_lost, 'frame')} lost"
    for provenance in summary["elsewhere"]:
        yield "some rows", ", ".join(f"{name} {value}" for name, value in provenance.items())
    if summary["unfinished"]:
        yield "unfinished", summary["unfinished"]


def _recipe_lines(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from ..video.clock import describe_fps, parse_fps

    variant = f", {recipe['variant']}" if recipe["variant"] else ""
    yield "model", f"{recipe['model']}{variant}; features: {recipe['features']}"
    for name, stream in recipe["streams"].items():
        digest = stream["weights_sha256"][:_SHOWN_DIGITS]
        yield f"{name} stream", f"{stream['weights']}, sha256 {digest}…; {stream['normalisation']}"
    rate = parse_fps(recipe["fps"])
    fps = "native" if rate is None else f"{describe_fps(rate)} per second"
    pixels = f"; {recipe['pixels']}" if recipe.get("pixels") else ""
    yield "frames", f"{fps}; {recipe['resize']}; crop {recipe['crops']}{pixels}"
    if recipe["start_seconds"] or recipe["end_seconds"] is not None:
        end = "the end" if recipe["end_seconds"] is None else f"{recipe['end_seconds']:g} s"
        yield "span", f"from {recipe['start_seconds']:g} s to {end}"
    dense = f"; dense: {recipe['dense']}" if recipe["dense"] else ""
    edges = "centred" if recipe.get("centred") else f"tail {recipe['tail']}"
    spread = f"; spread {recipe['spread']}" if recipe.get("spread") else ""
    yield "clips", f"{recipe['window']} frames every {recipe['stride']}, {edges}{spread}{dense}"
    if recipe["flow"]:
        yield "flow method", recipe["flow"]
    if files := recipe.get("files"):
        yield "files", f"{files['names']}, axes {files['axes']}"
    if recipe.get("preset"):
        yield "preset", recipe["preset"]
    yield "computed", f"{recipe['runtime']}, {recipe['precision']}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())


# get -----------------------------------------------------------------------------------------------------------------


@app.command()
def get(
    file: File,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Path or stem of the video, or the end of either.")],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only the clips that cover this moment: seconds, or 1:30.", show_default="all"
        ),
    ] = None,
    form: ListFormat = None,
) -> None:
    """Show the rows of a video; JSON has all numbers.

    Example: vid3d features get feats.npy video.mp4 --at 1.5
    """
    from ..features.inspection import find_video, rows_at
    from ..features.store import read_verified
    from ..features.stores import open_store
    from ..video.clock import parse_seconds

    with open_store(file) as store:
        features = read_verified(store, find_video(store.entries(), video))
        rows = range(len(features.spans)) if at is None else rows_at(features, parse_seconds(at, "--at"))
        print_records(_row_records(features, rows), form, lambda _: _print_rows(features, rows))


def _row_records(features: VideoFeatures, rows: Sequence[int]) -> Iterator[Record]:
    from ..features.entries import SPAN_COLUMNS, span_arrays

    spans = span_arrays(features.spans)
    for row in rows:
        span = {name: spans[name][row].item() for name in SPAN_COLUMNS}
        matrices = {name: matrix[row].tolist() for name, matrix in features.matrices.items()}
        yield {"video": features.entry.video, **span, **matrices}


def _print_rows(features: VideoFeatures, rows: Sequence[int]) -> None:
    def cells() -> Iterator[list[str]]:
        for row in rows:
            span = features.spans[row]
            seconds = f"{span.start_seconds:.2f} – {span.end_seconds:.2f}"
            yield [str(span.index), seconds, *(_describe_row(m[row]) for m in features.matrices.values())]

    columns = ["clip", "seconds", *features.matrices]
    _print_table(columns, cells(), title=features.entry.video, narrow=["clip", "seconds"])


def _describe_row(row: Any) -> str:
    first = " ".join(f"{value:.4g}" for value in row.ravel()[:_SHOWN_NUMBERS])
    return f"{first} … ({' × '.join(map(str, row.shape))})"


# check ---------------------------------------------------------------------------------------------------------------


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Outputs of vid3d extract.", show_default=False)],
    form: ListFormat = None,
) -> None:
    """Compare rows, times, videos and recipe with their checksums. The exit code is 1 if any is damaged or missing.

    Example: vid3d features check feats.npy
    """
    code = EXIT_OK

    def check_all() -> Iterator[Record]:
        nonlocal code
        for file in files:
            try:
                checked = _check(file)
            except Vid3dError as error:  # continue with the other files
                log.error("%s", error)
                code = max(code, error.exit_code)
            else:
                code = max(code, EXIT_SOME_FAILED if checked["damaged"] else EXIT_OK)
                yield checked

    print_records(check_all(), form, _print_checked)
    raise typer.Exit(code)


def _check(file: str) -> Record:
    from ..features.inspection import find_problems
    from ..features.stores import open_unchecked

    num_damaged = 0
    with open_unchecked(file) as store:
        entries = store.entries()
        with _bar(len(entries)) as on_video:
            for problem in find_problems(store, on_video):
                num_damaged += problem.is_damage
                what = problem.what if problem.what.startswith(file) else f"{file}: {problem.what}"
                (log.error if problem.is_damage else log.warning)("%s", what)
    num_rows = sum(entry.num_rows for entry in entries)
    return {"file": file, "rows": num_rows, "videos": len(entries), "damaged": num_damaged}


def _print_checked(records: list[Record]) -> None:
    for record in records:
        what = f"{plural(record['rows'], 'row')} of {plural(record['videos'], 'video')}"
        result = f"{plural(record['damaged'], 'problem')} found" if record["damaged"] else "no damage"
        typer.echo(f"{printable(record['file'])}: {what}: {result}")


@contextmanager
def _bar(num_videos: int) -> Iterator[Any]:
    """Show a progress bar; yield the function to call after each video."""
    from .bars import Bar

    with Bar(total=num_videos, unit="videos") as bar:
        yield bar.update


# merge, convert ------------------------------------------------------------------------------------------------------


@app.command()
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Features of one recipe, in any formats.", show_default=False)
    ],
    out: Annotated[
        str,
        out_option("Output, as for extract; an interrupted merge is resumed."),
    ],
    layout: Layout = "vid3d",
    concat: Concat = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge the features of shards, or of any jobs with the same recipe. A video in several files is written once.

    Rows keep the order of the files; those of a directory are sorted by video name. Damaged rows are left out, and the
    exit code is then 1. Run the same command again to resume an interrupted merge; other outputs are refused.

    Example: vid3d features merge feats.shard-*.npy --out feats.npy
    """
    raise typer.Exit(_merge(parts, out, layout, concat, overwrite))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Features in any format.", show_default=False)],
    out: Annotated[str, typer.Argument(metavar="OUT", help="feats.npy, .npz, .h5, .parquet, or a directory.")],
    layout: Layout = "vid3d",
    concat: Concat = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert features to another format, for example the directory of several workers to one matrix.

    Example: vid3d features convert feats.npy feats.h5
    """
    raise typer.Exit(_merge([source], out, layout, concat, overwrite))


def _merge(files: list[str], out: str, layout: str, concat: bool | None, overwrite: bool) -> int:
    from ..features.merging import merge
    from ..features.stores import create_store, open_store

    if out == "-":
        raise UsageError("features cannot go to standard output: name a file (x.npy, x.h5) or a directory")
    parts = [open_store(file) for file in files]
    target = create_store(out, layout=layout)
    for part in parts:
        if unfinished := part.describe_unfinished():
            log.warning("%s: %s", part.path, unfinished)
    with _bar(sum(len(part.entries()) for part in parts)) as on_video:
        merged = merge(parts, target, concat=concat, overwrite=overwrite, on_video=on_video)
    for problem in merged.damaged.values():
        log.error("left out: %s", problem)
    if merged.provenance:
        differences = "; ".join(f"{name}: {kept} and {other}" for name, (kept, other) in merged.provenance.items())
        log.warning("%s: the rows have the same recipe but different provenance: %s", out, differences)
    log.info("%s", _describe_merged(merged, out))
    return EXIT_SOME_FAILED if merged.damaged else EXIT_OK


def _describe_merged(merged: Merged, out: str) -> str:
    more = [
        f"{plural(merged.num_there, 'video')} already there" if merged.num_there and merged.num_videos else "",
        f"{merged.num_repeated} in several files, written once" if merged.num_repeated else "",
        f"{merged.num_failures} failed" if merged.num_failures else "",
    ]
    rows = f"{plural(merged.num_rows, 'row')} of {plural(merged.num_videos, 'video')} → {out}"
    if not merged.num_videos and merged.num_there:
        rows = f"nothing to add: {out} already has {plural(merged.num_there, 'video')} of the input"
    return "; ".join([rows, *filter(None, more)])


# compare -------------------------------------------------------------------------------------------------------------


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Features, or a plain .npy matrix.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Features or matrix to compare with A.", show_default=False)],
    per_row: Annotated[bool, typer.Option("--per-row", help="Also show every pair of rows.")] = False,
    form: ListFormat = None,
) -> None:
    """Compare features row by row: cosine, largest relative difference, rows of only one side, recipe differences.

    Rows match if they have the same video path and start time; rows of a plain .npy matrix, such as published
    features, match by position. A difference is relative to the largest number of both rows. The exit code is 1 if no
    rows match, else 0, even if the differences are large.

    Example: vid3d features compare feats.npy other.h5
    """
    from ..features.comparing import Comparison, open_rows

    comparison = Comparison(open_rows(a), open_rows(b))
    cosines: dict[str, list[float]] = {}
    differences: dict[str, list[float]] = {}

    def compare_all() -> Iterator[Record]:
        for pair in comparison.pairs():
            for name in pair.cosine:
                cosines.setdefault(name, []).append(pair.cosine[name])
                differences.setdefault(name, []).append(pair.relative_difference[name])
            if per_row:
                yield _finite(asdict(pair))
        yield _summary_of(a, b, comparison, {name: _statistics(cosines[name], differences[name]) for name in cosines})

    print_records(compare_all(), form, _print_compared)
    if not comparison.num_rows:
        log.error("%s and %s have no row in common: their video paths or start times differ", a, b)
        raise typer.Exit(EXIT_SOME_FAILED)


def _finite(value: Any) -> Any:
    """Return the value with NaN and infinity replaced by None, since JSON has neither."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _statistics(cosines: list[float], differences: list[float]) -> dict[str, float]:
    import numpy as np

    return {
        "min_cosine": float(np.min(cosines)),
        "median_cosine": float(np.median(cosines)),
        "mean_cosine": float(np.mean(cosines)),
        "max_relative_difference": float(np.max(differences)),
    }


def _summary_of(a: str, b: str, comparison: Comparison, statistics: Mapping[str, Mapping[str, float]]) -> Record:
    return {
        "event": "comparison",
        "a": a,
        "b": b,
        "rows": comparison.num_rows,
        "rows_only": comparison.num_rows_only,
        "videos_only": comparison.num_videos_only,
        "matrices": _finite(statistics),
        "recipe": {name: {"a": in_a, "b": in_b} for name, (in_a, in_b) in comparison.recipe_differences().items()},
    }


def _print_compared(records: list[Record]) -> None:
    *pairs, summary = records
    for pair in pairs:
        where = f"row {pair['clip']}" if pair["video"] is None else f"{pair['video']}  {pair['start_seconds']:.2f} s"
        cosine, difference = pair["cosine"], pair["relative_difference"]
        values = [f"{n} {or_dash(cosine[n], '.6f')} ({or_dash(difference[n], '.1e')})" for n in cosine]
        typer.echo(printable(f"{where}: {', '.join(values)}"))

    def cells() -> Iterator[list[str]]:
        for name, of in summary["matrices"].items():
            cosines = [or_dash(of[f"{which}_cosine"], ".6f") for which in ("min", "median", "mean")]
            yield [name, str(summary["rows"]), *cosines, or_dash(of["max_relative_difference"], ".1e")]

    columns = ["rows", "cosine: min", "median", "mean", "difference"]
    if summary["matrices"]:
        _print_table(["matrix", *columns], cells(), narrow=columns)
    for side in ("a", "b"):
        if num_rows := summary["rows_only"][side]:
            videos = plural(summary["videos_only"][side], "video")
            rows = plural(num_rows, "row")
            typer.echo(printable(f"only in {summary[side]}: {rows}, among them all rows of {videos}"))
    for name, values in summary["recipe"].items():
        of_a, of_b = (describe_value(name, values[side]) for side in ("a", "b"))
        typer.echo(printable(f"{name}: {of_a} in {summary['a']}, {of_b} in {summary['b']}"))
