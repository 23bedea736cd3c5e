"""Explains how published features differ from one's own: searches the recipe that gives the published rows.

    your recipe ─→ first 4 rows ─→ same? ─→ done
                        ↓ no
    every single change ─→ the best 3 ─→ with each further change ─→ the best 2 ─→ …

Rows are compared by direction, so that their scale hides no mistake, and by length where directions agree. A search
runs at most `MAX_RUNS` clips through each network: at most 12 minutes of I3D on 2 cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError, UsageError
from ..options import Options
from ..plan import Plan
from ..run.threads import count_cores, one_opencv_thread
from ..video import TIMEOUT_SECONDS
from ..video.process import Decoders
from ..video.reader import VideoInfo
from ..workers import Workers
from .moves import Move, explain_rows, find_moves, fits
from .published import (
    SAME_DISTANCE,
    SAME_ERROR,
    Change,
    Distance,
    Reading,
    Rows,
    check_array,
    cosines,
    distance,
    error,
    is_unit,
    readings,
    rescale,
)
from .rows import HeldFrames, RowMaker, Settings

__all__ = ["MAX_RUNS", "Change", "Diagnosis", "OnProgress", "diagnose"]

MAX_RUNS = 500
"""Clips that a search runs through the network of a stream; the first and the last comparison add 4 each."""

NUM_ROWS, SEARCHED_ROWS = 4, 2
"""Rows compared at the start and at the end, and while searching."""

BEAM = ((45, 30, 30, 30), (45, 20), (45,))
"""For the second change, the third and the fourth: how many further changes the best recipe gets, the second best …"""

MAX_PAIRS = 12
"""Pairs of a frame rate and a stride, that explain the number of rows, which are tried as one change."""

NO_GAIN = 0.95
"""The search ends if no further change brings the rows at least so much closer."""

CLEAR_GAIN = 1.5
"""A change is reported if the rows are so many times as far away without it."""

EXPLAINED_GAIN, EXPLAINED_COSINE = 4.0, 0.99
"""Rows are explained if they come so many times as close, and point so nearly in the same direction."""

ROUNDED_DISTANCE = 0.01
"""Rows that no change brings closer are the same up to rounding: bfloat16 moves them by 0.006."""

OnProgress = Callable[[int, int], None]
"""Called with the number of clips that went through a network, and the most there can be."""


@dataclass(frozen=True)
class Diagnosis:
    """What the search found."""

    verdict: str
    """"same": your recipe gives the published rows; "explained": it does with the changes in `closest`; or
    "unexplained"."""
    rows: int
    """Rows compared."""
    yours: float
    """Mean cosine of your rows and the published ones."""
    cosine: float
    """The same, with the changes in `closest`."""
    error: float
    """The largest difference from a published number, relative to the largest of these, with these changes."""
    closest: tuple[Change, ...]
    """The changes that bring the rows clearly closer."""
    tried: int
    """Recipes tried."""
    counted: str
    """What the number of published rows says."""

    def describe(self) -> str:
        """Return a few lines for people."""
        compared = f"{self.rows} row{'s' * (self.rows != 1)} compared"
        if self.verdict == "same":
            lines = [f"same: cosine {self.cosine:.5f}, largest difference {100 * self.error:.2g} % ({compared})"]
            if self.error > SAME_ERROR:
                lines.append("the rest is as small as the rounding of bfloat16, and no change of the recipe reduces it")
            return "\n".join([*lines, self.counted])
        found = ", ".join(map(str, self.closest)) or "your recipe"
        digits = 3 if self.yours < 0.9995 else 6
        first = f"closest: {found}: cosine {self.cosine:.{digits}f}; yours {self.yours:.{digits}f} ({compared})"
        lines = [first, *(f"  {change.name}: {change.sentence}" for change in self.closest), self.counted]
        if self.verdict == "unexplained":
            lines.append(
                f"not explained by {self.tried} recipes (time, pixels, network, flow): compare the model, its weights, "
                "the layer and the video"
            )
        return "\n".join(lines)


def diagnose(
    options: Options, video: str, published: NDArray[Any], *, on_progress: OnProgress | None = None
) -> Diagnosis:
    """Return how published features of a video differ from those of a recipe.

    The first 4 rows are compared. They are the same up to a distance of 0.003 between their directions and a largest
    difference of 0.5 %, which admits other runtimes, float16, TF32, other decoders and Pillow's resize.

    Args:
        options: your recipe. The networks run in torch and fp32.
        video: path or URL.
        published: (T, D), (D, T) or (T, crops, D), any float type; a row holds one stream or both.
        on_progress: see `OnProgress`.

    Raises:
        UsageError: an array that holds no rows of this model, or options that do not fit.
        WeightsError: checkpoints that are missing or do not fit.
        VideoError: the video cannot be used.
    """
    array = check_array(published)
    plan = Plan.make(options)
    if plan.dense:
        raise UsageError("published features are compared clip by clip: leave --dense out")
    if plan.layer is None and len(plan.crop_names) == 1:
        from ..models.registry import BACKBONES

        readings(
            array, dict.fromkeys(plan.networks, BACKBONES[plan.backbone].feature_dim), plan.model
        )  # before loading
    checkpoints = plan.find_checkpoints()
    most = len(plan.networks) * (MAX_RUNS + 2 * NUM_ROWS)
    with (
        one_opencv_thread(),
        Workers(count_cores()) as workers,
        Decoders(TIMEOUT_SECONDS, allow_playlists=plan.allow_playlists) as decoders,
        HeldFrames(
            decoders.open(
                video,
                start_seconds=max(0.0, plan.start_seconds - 1),  # the frame shown at the start may start before it
                end_seconds=plan.end_seconds,
                pixels=plan.pixels,
            )
        ) as held,
    ):
        maker = RowMaker(
            video, held, checkpoints, workers, (lambda done: on_progress(done, most)) if on_progress else lambda _: None
        )
        return _Search(plan, maker, held.info, array).run()


class _Search:
    """Searches the recipe of some rows."""

    def __init__(self, plan: Plan, maker: RowMaker, info: VideoInfo, array: NDArray[Any]) -> None:
        self._start, self._maker, self._info = Settings(plan), maker, info
        self._distances: dict[tuple[str, bool, frozenset[int]], Distance] = {}
        self._with_length = False
        self._tried = 1
        self._reading = self._read(array)
        self._num_rows = self._reading.num_rows

    def _read(self, array: NDArray[Any]) -> Reading:
        """Return the reading of the array that is closest to your rows."""
        ours = {stream: self._make(self._start, stream, NUM_ROWS) for stream in self._start.plan.networks}
        if not all(len(rows) for rows in ours.values()):
            self._maker.refuse_empty(self._start.plan)
        widths = {stream: rows.shape[1] for stream, rows in ours.items()}
        found = readings(array, widths, self._start.plan.model)

        def far(reading: Reading) -> float:
            each = [distance(*_paired(ours[stream], rows)).mean for stream, rows in reading.rows.items()]
            return sum(each) / len(each)

        return min(found, key=far)

    def run(self) -> Diagnosis:
        """Return what was found."""
        reading, start = self._reading, self._start
        lead, *others = sorted(reading.rows, reverse=True)  # rgb before flow
        moves = find_moves(start, self._info, self._num_rows)
        of_lead = [move for move in moves if move.stream in (None, lead)]
        # Flow differs more often in how it is computed than in how frames are cut.
        path = self._climb(lead, [], sorted(of_lead, key=lambda move: lead == "flow" and move.stream is None))
        for stream in others:
            path = self._climb(stream, path, [move for move in moves if move.stream == stream])
        settings = _apply(path, start)
        theirs = self._theirs(settings.shift)
        ours, wanted = self._compared(settings, theirs)
        scaled, scale = rescale(ours, wanted)
        before, wanted_before = self._compared(start, self._theirs(0))
        plain = np.hstack([before[stream] for stream in wanted_before])
        all_wanted = np.hstack(list(wanted.values()))
        cosine = float(cosines(scaled, all_wanted).mean())
        yours = float(cosines(plain, np.hstack(list(wanted_before.values()))).mean())
        closest = (*reading.changes, *(self._with_start(move.change, settings) for move in path), *scale)
        far = max(distance(ours[stream], wanted[stream]).worst for stream in wanted)
        far_before = max(distance(before[stream], wanted_before[stream]).worst for stream in wanted)
        largest = error(scaled, all_wanted)
        is_same = far <= SAME_DISTANCE and largest <= SAME_ERROR
        is_near = is_same or (far <= ROUNDED_DISTANCE and largest <= 2 * ROUNDED_DISTANCE)
        gained = far_before >= EXPLAINED_GAIN * far and cosine >= EXPLAINED_COSINE
        if is_near and not closest:
            verdict = "same"
        else:
            verdict = "explained" if closest and (is_near or gained) else "unexplained"
        counted = explain_rows(self._info, settings.plan, self._num_rows)
        return Diagnosis(verdict, len(scaled), yours, cosine, largest, closest, self._tried, counted)

    def _with_start(self, change: Change, settings: Settings) -> Change:
        """Return a change; a later start says what to type at the frame rate that was found."""
        if change.name != "offset" or settings.offset < 0:
            return change
        seconds = settings.plan.start_seconds + settings.offset / float(settings.plan.fps or self._info.fps)
        return replace(change, sentence=f"{change.sentence}: --start {seconds:.4g}")

    # Rows ------------------------------------------------------------------------------------------------------------

    def _make(self, settings: Settings, stream: str, num_rows: int) -> NDArray[np.float64]:
        return self._maker.rows(settings, stream, num_rows).astype(np.float64)

    def _theirs(self, shift: int) -> Rows:
        return {stream: rows[max(0, shift) :] for stream, rows in self._reading.rows.items()}

    def _compared(self, settings: Settings, theirs: Rows) -> tuple[Rows, Rows]:
        """Return our rows and theirs, `NUM_ROWS` or as many as there are."""
        skipped = max(0, -settings.shift)
        made = {stream: self._make(settings, stream, NUM_ROWS + skipped)[skipped:] for stream in theirs}
        number = min(*(len(rows) for rows in made.values()), self._num_rows, NUM_ROWS)
        number = min(number, *(len(rows) for rows in theirs.values()))
        return (
            {stream: rows[:number] for stream, rows in made.items()},
            {stream: rows[:number] for stream, rows in theirs.items()},
        )

    def _far(self, stream: str, path: Sequence[Move], num_rows: int = SEARCHED_ROWS) -> Distance:
        """Return the distance of the first rows of a recipe."""
        key = stream, self._with_length, frozenset(map(id, path))
        if num_rows == SEARCHED_ROWS and key in self._distances:
            return self._distances[key]
        settings, theirs = _apply(path, self._start), self._reading.rows[stream]
        skipped = max(0, -settings.shift)
        try:
            ours = self._make(settings, stream, num_rows + skipped)[skipped:]
        except ShapeError:  # the network takes no such clips
            ours = np.empty((0, 0))
        if ours.shape[1] != theirs.shape[1]:  # no rows, or a layer's map of another size
            ours = np.empty((0, theirs.shape[1]))
        pair = _paired(ours, theirs[max(0, settings.shift) :])
        num_missing = 0 if self._maker.is_cut and len(pair[0]) else min(num_rows, len(theirs)) - len(pair[0])
        far = distance(*pair, num_missing, with_length=self._with_length)
        if num_rows == SEARCHED_ROWS:
            self._distances[key] = far
            self._tried += 1
        return far

    # Search ----------------------------------------------------------------------------------------------------------

    def _climb(self, stream: str, start: list[Move], moves: list[Move]) -> list[Move]:
        """Return the changes that bring the rows of a stream closest, after those of `start`."""
        self._with_length = False
        if self._far(stream, start, NUM_ROWS).is_same:
            if self._is_equal(stream, start):
                return start
            self._with_length = True  # the directions agree already
        limit = self._maker.num_runs + MAX_RUNS

        def far(path: list[Move]) -> Distance:
            return self._far(stream, path)

        def extend(path: list[Move], further: Sequence[Move]) -> list[list[Move]]:
            """Return a path with each of some moves; stop at one that gives the rows."""
            names = {move.change.name for move in path}
            longer: list[list[Move]] = []
            for move in further:
                if move.change.name not in names and self._maker.num_runs < limit:
                    longer.append([*path, move])
                    if far(longer[-1]).is_same:
                        break
            return longer

        level = sorted(extend(start, moves), key=far)
        if level and not far(level[0]).is_same:
            # Rates and strides that explain the number of rows are continued even if other mistakes hide their merit.
            pairs = self._pairs(start, moves)
            level = [*sorted([*level, *pairs], key=far)[:2], *pairs]
            level = [path for i, path in enumerate(level) if path not in level[:i]]
        best = min([start, *level], key=far)
        for numbers in BEAM:
            if far(best).is_same or far(best).mean > NO_GAIN * far(start).mean:
                break
            longer: list[list[Move]] = []
            for path, number in zip(level, numbers, strict=False):
                if not (longer and far(longer[-1]).is_same):
                    longer += extend(path, self._order(path, moves)[:number])
            level = sorted(longer, key=far)
            if not level or far(level[0]).mean > NO_GAIN * far(best).mean:
                break
            best = level[0]
        return self._prune(stream, start, best)

    def _pairs(self, start: list[Move], moves: Sequence[Move]) -> list[list[Move]]:
        """Return pairs of a frame rate and a stride that explain the number of rows."""
        rates, strides = ([move for move in moves if move.change.name == name] for name in ("fps", "stride"))
        pairs = [[*start, rate, stride] for rate in rates for stride in strides]
        fitting = [p for p in pairs if fits(self._info, _apply(p, self._start).plan, self._num_rows)]
        return fitting[:MAX_PAIRS]

    def _is_equal(self, stream: str, path: list[Move]) -> bool:
        """Return whether the numbers of a stream agree too, or would if they were scaled."""
        if is_unit(np.hstack(list(self._reading.rows.values()))):
            return True
        settings = _apply(path, self._start)
        theirs = {stream: self._theirs(settings.shift)[stream]}
        ours, wanted = self._compared(settings, theirs)
        return error(rescale(ours, wanted)[0], wanted[stream]) <= SAME_ERROR

    def _order(self, path: list[Move], moves: list[Move]) -> list[Move]:
        """Return the moves, those first that explain the number of rows."""

        def fails(move: Move) -> bool:
            is_of_time = move.change.name in ("stride", "window", "fps")
            return not (is_of_time and fits(self._info, _apply([*path, move], self._start).plan, self._num_rows))

        return sorted(moves, key=fails)

    def _prune(self, stream: str, start: list[Move], path: list[Move]) -> list[Move]:
        """Return a path without the moves that bring the rows no clearly closer."""
        for move in path[len(start) :]:
            without = [other for other in path if other is not move]
            if self._far(stream, without).mean < CLEAR_GAIN * self._far(stream, path).mean:
                return self._prune(stream, start, without)
        return path


def _apply(path: Sequence[Move], settings: Settings) -> Settings:
    for move in path:
        settings = move.apply(settings)
    return settings


def _paired(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    number = min(len(ours), len(theirs))
    return ours[:number], theirs[:number]
