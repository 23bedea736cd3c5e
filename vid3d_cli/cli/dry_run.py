"""`vid3d extract --dry-run`: what a job would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from .batch import count
from .console import duration, stdout_is_terminal

if TYPE_CHECKING:
    from ..features.format import FeatureFormat
    from ..features.store import FeatureStore
    from ..jobs.extraction import Left
    from ..jobs.planning import CannotOpen, Estimate, Totals, VideoPlan
    from ..run.pipeline import Pipeline
    from ..video.sources import Source

MAX_LISTED = 100
"""Videos in a table; a pipe has all of them."""


def print_plan(
    pipeline: Pipeline,
    sources: Sequence[Source],
    store: FeatureStore,
    form: FeatureFormat,
    *,
    overwrite: bool = False,
    redo_failed: bool = False,
    timeout: float | None = None,
) -> None:
    """List the videos that are left, with clips, rows and bytes, and the totals with an estimate of the time.

    Args:
        pipeline: what would be done.
        sources: all videos of the job.
        store: where features would go; nothing is written there.
        form: how.
        overwrite: see `Extraction`.
        redo_failed: likewise.
        timeout: see `engines.local.run`.
    """
    from ..jobs.planning import Totals, estimate, find_left_roughly, plan_videos

    left = find_left_roughly(pipeline, sources, store, form, overwrite=overwrite, redo_failed=redo_failed)
    videos = [source.video for source in left.sources]
    totals = Totals()
    printer = _Table() if stdout_is_terminal() else _JsonLines()
    for plan in plan_videos(pipeline, videos, form, timeout=timeout):
        totals.add(plan)
        printer.add(plan)
    expected = estimate(pipeline, totals.multiply_adds) if totals.multiply_adds else None
    printer.end(left, totals, expected)


class _JsonLines:
    """A line a video, in the form of a list of failures where it cannot be opened, and one of totals."""

    def add(self, plan: VideoPlan | CannotOpen) -> None:
        from ..records import to_json

        typer.echo(to_json(asdict(plan)))

    def end(self, left: Left, totals: Totals, expected: Estimate | None) -> None:
        from ..records import to_json

        line: dict[str, Any] = {"event": "plan", **asdict(totals)}
        line |= {"done_before": left.num_done, "failed_before": left.num_failed}
        line["estimate"] = None if expected is None else {**asdict(expected), "rests_on": describe_estimate(expected)}
        typer.echo(to_json(line))


class _Table:
    """A row a video, the first of them at least; below it those that cannot be opened, and what all would take."""

    def __init__(self) -> None:
        from .tables import make_console, make_table

        numbers = ("seconds", "frames", "clips", "rows", "features")
        self._console = make_console()
        self._table = make_table("video", *numbers, narrow=numbers)
        self._failed: list[str] = []

    def add(self, plan: VideoPlan | CannotOpen) -> None:
        from ..jobs.planning import CannotOpen

        if isinstance(plan, CannotOpen):
            if len(self._failed) < MAX_LISTED:
                self._failed.append(f"{plan.video}: {plan.message}")
        elif self._table.row_count < MAX_LISTED:
            self._table.add_row(plan.video, *_cells(plan))

    def end(self, left: Left, totals: Totals, expected: Estimate | None) -> None:
        num_opened = totals.videos - totals.cannot_be_opened
        if num_opened > self._table.row_count:
            self._table.add_row(f"… and {num_opened - self._table.row_count} more; a pipe has all")
        if num_opened:
            self._table.add_section()
            self._table.add_row(count(num_opened, "video"), *_cells(totals))
            self._console.print(self._table)
        for line in [*self._failed, *_describe(left, totals)]:
            self._console.print(line)
        if expected is not None:
            self._console.print(f"about {duration(expected.seconds)}: {describe_estimate(expected)}")


def _cells(plan: VideoPlan | Totals) -> list[str]:
    seconds = "–" if plan.seconds is None else f"{plan.seconds:.1f}"
    numbers = ["–" if n is None else f"{n:,}" for n in (plan.frames, plan.clips, plan.rows)]
    return [seconds, *numbers, "–" if plan.bytes is None else describe_bytes(plan.bytes)]


def _describe(left: Left, totals: Totals) -> list[str]:
    lines = []
    if totals.cannot_be_opened:
        lines.append(f"{count(totals.cannot_be_opened, 'video')} cannot be opened")
    if totals.unknown_length:
        lines.append(f"{count(totals.unknown_length, 'video')} of unknown length, which the totals leave out")
    if left.num_done:
        lines.append(f"{count(left.num_done, 'video')} done already")
    if left.num_failed:
        lines.append(f"{count(left.num_failed, 'video')} failed before and left out (again with --redo-failed)")
    return lines or ["all videos can be opened"]


def describe_estimate(expected: Estimate) -> str:
    """What an estimate rests on, and what it leaves out."""
    rate = f"{expected.operations_per_second / 1e9:,.0f} GFLOP/s in {expected.precision} on {expected.devices}"
    if expected.devices == "cpu":
        beside = "decoding and flow share its cores, and come on top"
    else:
        beside = "decoding and flow run beside them, and may take longer"
    return f"the networks alone, at the speed of large matrix products measured now, {rate}; {beside}"


def describe_bytes(number: int) -> str:
    """A size that a person reads: 12.3 kB, 4.0 GB."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
