"""Prints what a job would do, for `vid3d extract --dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from ..text import printable
from .console import duration, log, plural

if TYPE_CHECKING:
    from ..features.format import FeatureFormat
    from ..features.store import Store
    from ..jobs.planning import Comparison, Estimate, Totals, VideoPlan
    from ..plan import Plan
    from ..records import VideoFailure
    from ..video.sources import Source

MAX_LISTED = 100
"""Videos listed in a table; a pipe gets all of them."""


def print_plan(
    plan: Plan,
    sources: Sequence[Source],
    store: Store,
    form: FeatureFormat,
    as_table: bool,
    *,
    overwrite: bool = False,
    redo_failed: bool = False,
    timeout: float | None = None,
    estimate: bool = False,
) -> None:
    """Print the videos left to do, with clips, rows and bytes, and the totals.

    Args:
        plan: what to do with each video.
        sources: all videos of the job.
        store: the output; it is only read.
        form: format of the features.
        as_table: print a table instead of JSON lines.
        overwrite: see `jobs.extraction.extract`.
        redo_failed: see `jobs.extraction.extract`.
        timeout: see `run.local.run`.
        estimate: count what the networks compute, and estimate the time; imports torch.
    """
    from ..jobs.planning import Totals, compare, estimate_time, plan_videos

    for message in plan.warnings:
        log.warning("%s", message)
    comparison = compare(plan, sources, store, form, overwrite=overwrite, redo_failed=redo_failed)
    videos = [source.video for source in comparison.left.sources]
    totals = Totals()
    printer = _Table() if as_table else _JsonLines()
    for planned in plan_videos(plan, videos, form, timeout=timeout, count_operations=estimate):
        totals.add(planned)
        printer.add(planned)
    expected = estimate_time(plan, totals.multiply_adds) if totals.multiply_adds else None
    printer.end(comparison, totals, expected)


class _JsonLines:
    """Prints a line per video, or a failure line that `@FILE` reads; then a line of totals."""

    def add(self, plan: VideoPlan | VideoFailure) -> None:
        from ..records import to_json

        typer.echo(to_json(asdict(plan)))

    def end(self, comparison: Comparison, totals: Totals, expected: Estimate | None) -> None:
        from ..records import to_json

        line: dict[str, Any] = {"event": "plan", **asdict(totals)}
        left = comparison.left
        line |= {"done_before": left.num_done, "failed_before": left.num_failed, "unchecked": comparison.unchecked}
        line["estimate"] = None if expected is None else {**asdict(expected), "rests_on": describe_estimate(expected)}
        typer.echo(to_json(line))


class _Table:
    """Prints a row per video, up to `MAX_LISTED`; then the totals and the videos that cannot be opened."""

    def __init__(self) -> None:
        from .tables import make_console, make_table

        numbers = ("seconds", "frames", "clips", "rows", "features")
        self._console = make_console()
        self._table = make_table("video", *numbers, narrow=numbers)
        self._failed: list[str] = []

    def add(self, plan: VideoPlan | VideoFailure) -> None:
        from ..records import VideoFailure

        if isinstance(plan, VideoFailure):
            if len(self._failed) < MAX_LISTED:
                self._failed.append(f"{printable(plan.video)}: {plan.message}")
        elif self._table.row_count < MAX_LISTED:
            self._table.add_row(plan.video, *_cells(plan))

    def end(self, comparison: Comparison, totals: Totals, expected: Estimate | None) -> None:
        num_opened = totals.videos - totals.cannot_be_opened
        if num_opened > self._table.row_count:
            self._table.add_row(f"… and {num_opened - self._table.row_count} more; a pipe gets all")
        if num_opened:
            self._table.add_section()
            self._table.add_row(plural(num_opened, "video"), *_cells(totals))
            self._console.print(self._table)
        for line in [*self._failed, *_describe(comparison, totals)]:
            self._console.print(line)
        if expected is not None:
            self._console.print(f"about {duration(expected.seconds)}: {describe_estimate(expected)}")
        elif totals.rows:
            self._console.print("for the time, add --estimate")


def _cells(plan: VideoPlan | Totals) -> list[str]:
    seconds = "–" if plan.seconds is None else f"{plan.seconds:.1f}"
    numbers = ["–" if n is None else f"{n:,}" for n in (plan.frames, plan.clips, plan.rows)]
    return [seconds, *numbers, "–" if plan.bytes is None else describe_bytes(plan.bytes)]


def _describe(comparison: Comparison, totals: Totals) -> list[str]:
    lines, left = [], comparison.left
    if totals.cannot_be_opened:
        lines.append(f"{plural(totals.cannot_be_opened, 'video')} cannot be opened")
    if totals.unknown_length:
        lines.append(f"{plural(totals.unknown_length, 'video')} of unknown length, not in the totals")
    if left.num_done:
        lines.append(f"{plural(left.num_done, 'video')} done before")
    if left.num_failed:
        lines.append(f"{plural(left.num_failed, 'video')} failed before and are skipped (retry with --redo-failed)")
    if comparison.unchecked:
        streams = " and ".join(comparison.unchecked)
        lines.append(f"the {streams} checkpoint was not compared: its digest is unknown until it is downloaded")
    return lines or ["all videos can be opened"]


def describe_estimate(expected: Estimate) -> str:
    """Return what an estimate is based on and what it leaves out."""
    rate = f"{expected.operations_per_second / 1e9:,.0f} GFLOP/s in {expected.precision} on {expected.devices}"
    if expected.devices == "cpu":
        beside = "decoding and flow use the same cores and add to this time"
    else:
        beside = "decoding and flow run in parallel and may take longer"
    return f"networks only, at the measured speed of large matrix products, {rate}; {beside}"


def describe_bytes(number: int) -> str:
    """Return a size as text: "12.3 kB", "4.0 GB"."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
