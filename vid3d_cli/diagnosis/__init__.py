"""Explains how published features differ from one's own: searches the recipe that gives the published rows.

    your recipe ─→ first 4 rows ─→ same? ─→ done
                        ↓ no
    every single change ─→ the best 3 ─→ with each further change ─→ the best 2 ─→ …

Rows are compared by direction, so that their scale hides no mistake. A search runs at most `MAX_RUNS` clips through
each network, and ends after `MAX_SECONDS`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError, UsageError
from ..options import Options
from ..plan import Plan
from ..presets import Files, find_preset
from ..run.threads import count_cores, one_opencv_thread
from ..video import TIMEOUT_SECONDS
from ..video.process import Decoders
from ..video.reader import VideoInfo
from ..workers import Workers
from .moves import Move, count_frames, explain_rows, find_moves, fits
from .published import (
    NUM_ROWS,
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
    readings,
    rescale,
)
from .rows import HeldFrames, RowMaker, Settings

__all__ = ["MAX_RUNS", "Change", "Diagnosis", "OnProgress", "diagnose"]

MAX_RUNS = 500
"""Clips that a search runs through the network of a stream; the first and the last comparison add 4 each."""

MAX_SECONDS = 15 * 60
"""A search ends after this time: 500 clips of I3D take 12 minutes on 2 cores, but TV-L1 of full HD 2.4 s a frame."""

SEARCHED_ROWS = 2
"""Rows compared while searching."""

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

CLOSE_COSINE, CLOSE_ERROR = 0.999, 0.1
"""Rows that no change brings closer may be your recipe's on frames stored in another way: JPEG moves them by 0.0106."""

OnProgress = Callable[[int, int], None]
"""Called with the number of clips that went through a network, and the most there can be."""


@dataclass(frozen=True)
class Diagnosis:
    """What the search found."""

    verdict: str
    """"same": your recipe gives the published rows; "close": it gives the first ones but not their number, or all but
    for a rounding of the frames, see `notes`; "explained": it does with the changes in `closest`; or "unexplained"."""
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
    notes: tuple[str, ...] = ()
    """What else to know, a sentence each."""

    def describe(self) -> str:
        """Return a few lines for people."""
        compared = f"{self.rows} row{'s' * (self.rows != 1)} compared"
        if self.verdict in ("same", "close"):
            numbers = f"cosine {self.cosine:.5f}, largest difference {100 * self.error:.2g} %"
            return "\n".join([f"{self.verdict}: {numbers} ({compared})", *self.notes, self.counted])
        found = ", ".join(map(str, self.closest)) or "your recipe"
        digits = 3 if self.yours < 0.9995 else 6
        first = f"closest: {found}: cosine {self.cosine:.{digits}f}; yours {self.yours:.{digits}f} ({compared})"
        changes = (f"  {change.name}: {change.sentence}" for change in self.closest)
        lines = [first, *changes, *self.notes, self.counted]
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
        published: (T, D), (D, T) or (T, crops, D), any float type; a row holds one stream or both. With a preset, the
            array of one of its files.
        on_progress: see `OnProgress`.

    Raises:
        UsageError: an array that holds no rows of this model, or options that do not fit.
        WeightsError: checkpoints that are missing or do not fit.
        VideoError: the video cannot be used.
    """
    array = check_array(published)
    plan = Plan.make(options)
    files = find_preset(options.preset).files if options.preset else None
    if plan.dense:
        raise UsageError("published features are compared clip by clip: leave --dense out")
    if plan.layer is None and len(plan.crop_names) == 1:
        from ..models.registry import BACKBONES

        widths = dict.fromkeys(plan.networks, BACKBONES[plan.backbone].feature_dim)
        readings(array, widths, plan.model, files)  # before loading
    checkpoints = plan.find_checkpoints()
    most = len(plan.networks) * (MAX_RUNS + 2 * NUM_ROWS * len(plan.crop_names))
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
        return _Search(plan, maker, held.info, array, files).run()


class _Search:
    """Searches the recipe of some rows."""

    def __init__(self, plan: Plan, maker: RowMaker, info: VideoInfo, array: NDArray[Any], files: Files | None) -> None:
        self._start, self._maker, self._info = Settings(plan), maker, info
        self._distances: dict[tuple[str, frozenset[int]], Distance] = {}
        self._tried = 1
        self._notes: list[str] = []
        self._reading = self._read(array, files)
        self._num_rows = self._reading.num_rows
        self._deadline = time.monotonic() + MAX_SECONDS

    def _read(self, array: NDArray[Any], files: Files | None) -> Reading:
        """Return the reading of the array that is closest to your rows; one crop's, if each has a file of its own."""
        ours = {stream: self._make(self._start, stream, NUM_ROWS) for stream in self._start.plan.networks}
        if not all(len(rows) for rows in ours.values()):
            self._maker.refuse_empty(self._start.plan)
        plan = self._start.plan
        kept = plan.crop_names if files and files.has_file_per_crop and plan.keep_crops else ("",)
        crops = {stream: np.split(rows, len(kept), axis=1) for stream, rows in ours.items()}
        widths = {stream: crops[stream][0].shape[1] for stream in ours}

        def far(found: tuple[int, Reading]) -> float:
            crop, reading = found
            each = [distance(*_paired(crops[stream][crop], rows)).mean for stream, rows in reading.rows.items()]
            return sum(each) / len(each)

        found = readings(array, widths, plan.model, files)
        crop, reading = min(itertools.product(range(len(kept)), found), key=far)
        if len(kept) > 1:
            self._start = Settings(replace(plan, crops=kept[crop], keep_crops=False))
            self._notes.append(f"the rows are those of crop {crop} ({kept[crop]}), counted from 0")
        return reading

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
        ours, wanted = self._compared(settings)
        scaled, scale = rescale(ours, wanted)
        before, wanted_before = self._compared(start)
        plain = np.hstack([before[stream] for stream in wanted_before])
        all_wanted = np.hstack(list(wanted.values()))
        cosine = float(cosines(scaled, all_wanted).mean())
        yours = float(cosines(plain, np.hstack(list(wanted_before.values()))).mean())
        closest = (*reading.changes, *(self._complete(move.change, settings) for move in path), *scale)
        far = max(distance(ours[stream], wanted[stream]).worst for stream in wanted)
        far_before = max(distance(before[stream], wanted_before[stream]).worst for stream in wanted)
        largest = error(scaled, all_wanted)
        is_same = far <= SAME_DISTANCE and largest <= SAME_ERROR
        is_near = is_same or (far <= ROUNDED_DISTANCE and largest <= 2 * ROUNDED_DISTANCE)
        is_close = is_near or (not path and cosine >= CLOSE_COSINE and largest <= CLOSE_ERROR)
        gained = far_before >= EXPLAINED_GAIN * far and cosine >= EXPLAINED_COSINE
        has_count = count_frames(self._info, settings.plan) is None or fits(self._info, settings.plan, self._num_rows)
        is_whole = has_count and len(scaled) == min(NUM_ROWS, self._num_rows)
        if closest:
            verdict = "explained" if is_close or gained else "unexplained"
        else:
            verdict = ("same" if is_near and is_whole else "close") if is_close else "unexplained"
        is_short = self._maker.is_cut and len(scaled) < min(NUM_ROWS, self._num_rows)
        notes = {
            "your recipe, up to the rounding of stored frames (JPEG, another decoder or flow)": not is_near,
            "the rest is as small as the rounding of bfloat16, and no change reduces it": is_near and not is_same,
            "the compared rows agree, the number of rows differs": not has_count,
            "memory holds the frames of no more rows: compare a smaller copy of the video": is_short,
        }
        self._notes += [note for note, is_so in notes.items() if is_close and is_so]
        if verdict != "same" and time.monotonic() >= self._deadline:
            self._notes.append(f"the search ended after {MAX_SECONDS / 60:g} minutes, with the best that it had found")
        counted = explain_rows(self._info, settings.plan, self._num_rows)
        return Diagnosis(
            verdict, len(scaled), yours, cosine, largest, closest, self._tried, counted, tuple(self._notes)
        )

    def _complete(self, change: Change, settings: Settings) -> Change:
        """Return a change with what to type, where that depends on the recipe that was found."""
        plan, sentence = settings.plan, change.sentence
        if change.name == "offset" and settings.offset > 0:
            # Half a frame early, so that no rounding of times leaves the frame out.
            fps = float(plan.fps or self._info.fps)
            first = math.ceil(round(plan.start_seconds * fps, 3)) + settings.offset - 0.5
            sentence += f": --start {round(first / fps, 4)}"
        elif change.name in ("window", "spread"):  # the usual stride is the window
            sentence += f" --stride {plan.stride}"
        return replace(change, sentence=sentence)

    # Rows ------------------------------------------------------------------------------------------------------------

    def _make(self, settings: Settings, stream: str, num_rows: int) -> NDArray[np.float64]:
        return self._maker.rows(settings, stream, num_rows).astype(np.float64)

    def _compared(self, settings: Settings) -> tuple[Rows, Rows]:
        """Return our rows and theirs, `NUM_ROWS` or as many as there are."""
        theirs = self._reading.rows
        made = {stream: self._make(settings, stream, NUM_ROWS) for stream in theirs}
        number = min(len(rows) for rows in (*made.values(), *theirs.values()))
        return (
            {stream: rows[:number] for stream, rows in made.items()},
            {stream: rows[:number] for stream, rows in theirs.items()},
        )

    def _far(self, stream: str, path: Sequence[Move], num_rows: int = SEARCHED_ROWS) -> Distance:
        """Return the distance of the first rows of a recipe; of `NUM_ROWS` where fewer are the same, as in a still."""
        key = stream, frozenset(map(id, path))
        if num_rows == SEARCHED_ROWS and key in self._distances:
            return self._distances[key]
        theirs = self._reading.rows[stream][:num_rows]
        try:
            ours = self._make(_apply(path, self._start), stream, num_rows)
        except ShapeError:  # the network takes no such clips
            ours = np.empty((0, 0))
        if ours.shape[1] != theirs.shape[1]:  # no rows, or a layer's map of another size
            ours = np.empty((0, theirs.shape[1]))
        pair = _paired(ours, theirs)
        far = distance(*pair, 0 if self._maker.is_cut and len(pair[0]) else len(theirs) - len(pair[0]))
        if num_rows == SEARCHED_ROWS:
            far = self._far(stream, path, NUM_ROWS) if far.is_same else far
            self._distances[key] = far
            self._tried += 1
        return far

    # Search ----------------------------------------------------------------------------------------------------------

    def _climb(self, stream: str, start: list[Move], moves: list[Move]) -> list[Move]:
        """Return the changes that bring the rows of a stream closest, after those of `start`."""
        if self._far(stream, start, NUM_ROWS).is_same:
            return start
        limit = self._maker.num_runs + MAX_RUNS

        def goes_on() -> bool:
            return self._maker.num_runs < limit and time.monotonic() < self._deadline

        def far(path: list[Move]) -> Distance:
            return self._far(stream, path)

        def extend(path: list[Move], further: Sequence[Move]) -> list[list[Move]]:
            """Return a path with each of some moves; stop at one that gives the rows."""
            names = {move.change.name for move in path}
            longer: list[list[Move]] = []
            for move in further:
                if move.change.name not in names and goes_on():
                    longer.append([*path, move])
                    if far(longer[-1]).is_same:
                        break
            return longer

        level = sorted(extend(start, moves), key=far)
        if level and not far(level[0]).is_same:
            # Rates and strides that explain the number of rows are continued even if other mistakes hide their merit.
            pairs = self._pairs(start, moves) if goes_on() else []
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
