"""`vid3d verify`: networks against published outputs, and recipes against published features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EXIT_OK, EXIT_SOME_FAILED, UnknownModel, UsageError
from ..options import Options
from .batch import fetch_weights, make_plan
from .console import download_bar
from .formats import ObjectFormat, Record, or_dash, print_columns, print_record
from .options import is_given, takes_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..checks import Verdict
    from ..models.manifest import ModelEntry

_OF_CHECKS = ("streams", "weights")
"""The options that a comparison with published outputs takes: the sample decides all others."""


@takes_options
def verify(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|VIDEO]", help="A model; or a video, with --against.", show_default="i3d"),
    ] = None,
    *,
    options: Options,
    sample: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The model's sample, downloaded by other means: its file or directory."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published features of the video: .npy or .npz, a row for each clip."),
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Array of the .npz, if it has several.")] = None,
    form: ObjectFormat = None,
) -> None:
    """Compare a model with published outputs, or your options with published features.

    A model runs on the sample that its authors published. With --against, the first clips of a video are extracted with
    your options and, if they differ, with changes of them. Exit code 1: something differs; 3: a file is missing.

    Example: vid3d verify i3d.kinetics400
    """
    if against is not None:
        if sample is not None:
            raise UsageError("--sample belongs to a model, --against to a video: leave one out")
        code = _verify_features(target, options, against, key, form)
    else:
        given = [f.name for f in dataclasses.fields(Options) if f.name not in _OF_CHECKS and is_given(context, f.name)]
        if key is not None or given:
            flag = "--key" if key is not None else f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{flag} needs a video and --against: a model runs on its authors' sample as it stands")
        code = _verify_model(_find_model(target or options.model), options, sample, form)
    raise typer.Exit(code)


# A model and its authors' sample -------------------------------------------------------------------------------------


def _find_model(name: str) -> ModelEntry:
    from ..models.manifest import find_model

    try:
        return find_model(name)
    except UnknownModel as error:
        if Path(name).is_file():
            raise UsageError(f"{name} is a file: to compare it with published features, add --against FILE") from None
        raise UsageError(f"'{name}' is neither a model nor a file: {error}") from None


def _verify_model(entry: ModelEntry, options: Options, sample: Path | None, form: str | None) -> int:
    from .. import checks

    # Own checkpoints stand alone: the published ones of other streams need not be on this machine.
    streams = [options.streams] if options.streams != "both" else list(options.weights) or list(entry.streams)
    if unused := [stream for stream in options.weights if stream not in streams]:
        raise UsageError(f"weights were given for '{unused[0]}', but these streams run: {', '.join(streams)}")
    listed = checks.read_checks()
    with download_bar("sample") as on_bytes:
        run = checks.run_checks(
            entry, listed, streams, weights=options.weights, sample=sample, find=fetch_weights, progress=on_bytes
        )
        verdicts = list(run)
    matches = all(verdict.matches for verdict in verdicts)
    weights = {stream: str(path) for stream, path in options.weights.items()} or "published"
    record = {"model": entry.name, "weights": weights, "matches": matches, "checks": [*map(_to_record, verdicts)]}
    print_record(record, form, _print_checks)
    return EXIT_OK if matches else EXIT_SOME_FAILED


def _to_record(verdict: Verdict) -> Record:
    return {
        "stream": verdict.check.stream,
        "sample": verdict.sample.what,
        "unit": verdict.check.unit,
        "source": verdict.check.source,
        "matches": verdict.matches,
        "numbers": [{**dataclasses.asdict(number), "difference": number.difference} for number in verdict.numbers],
    }


def _print_checks(record: Record) -> None:
    own = "" if record["weights"] == "published" else " with your weights"
    for check in record["checks"]:
        typer.echo(f"{record['model']} {check['stream']}{own}, {check['unit']} on {check['sample']}")
        print_columns([_row(number) for number in check["numbers"]])
        if any(number["yours"] is None for number in check["numbers"]):
            typer.echo("your outputs are NaN or infinite: check the weights and the sample")
        typer.echo(f"{'match' if check['matches'] else 'MISMATCH'}; published in {check['source']}\n")


def _row(number: Record) -> dict[str, str]:
    other = f" ({number['your_class']})" if number["your_class"] else ""
    return {
        "number": number["what"],
        "published": f"{number['published']:.9g}",
        "yours": or_dash(number["yours"], ".8g") + other,
        "difference": or_dash(number["difference"], "+.3g"),
        "allowed": f"{number['max_difference']:.2g}",
    }


# A video and published features --------------------------------------------------------------------------------------


def _verify_features(video: str | None, options: Options, against: Path, key: str | None, form: str | None) -> int:
    if video is None:
        raise UsageError(f"name the video whose features {against} has: vid3d verify VIDEO --against {against}")
    published = read_published(against, key)
    from ..diagnosis import diagnose
    from ..video.sources import is_url
    from .bars import Bar

    if not is_url(video) and not Path(video).exists():  # before weights are downloaded
        raise UsageError(f"{video}: no such file")
    make_plan(options).find_checkpoints(fetch_weights)  # downloads have a bar of their own
    with Bar(unit="clips") as bar:

        def on_progress(num_clips: int, most: int) -> None:
            bar.total = most
            bar.update(num_clips - bar.n)

        diagnosis = diagnose(options, video, published, on_progress=on_progress)
    print_record(dataclasses.asdict(diagnosis), form, lambda _: typer.echo(diagnosis.describe()))
    return EXIT_OK if diagnosis.verdict == "same" else EXIT_SOME_FAILED


def read_published(path: Path, key: str | None = None) -> NDArray[Any]:
    """Return an array of published features, without running code from its file.

    Args:
        path: .npy or .npz.
        key: the array of an .npz; None for its only one.

    Raises:
        UsageError: there is no such file or array.
    """
    from ..features.npz import load_array

    if key is not None and path.suffix != ".npz":
        raise UsageError(f"--key {key}: only an .npz has named arrays, and {path} is none")
    try:
        return load_array(path, key)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:  # a damaged archive makes its readers raise anything: zlib.error, BadZipFile, KeyError
        reason = getattr(error, "strerror", None) or "damaged, or not a file that np.save or np.savez writes"
        raise UsageError(f"{path}: no array of numbers: {reason}") from None
