"""Reads a published array: which axis holds the rows, which streams a row holds, and how rows are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..clips.preprocess import CROPS
from ..errors import UsageError
from ..presets import Files

Rows = Mapping[str, NDArray[np.float64]]
"""(N, D) of each stream."""

SAME_DISTANCE, SAME_ERROR = 0.003, 0.005
"""Rows are the same up to these. Measured on s3d_mini: 0.001 and 0.001 (rgb), 0.002 and 0.003 (flow) for another YUV
conversion and Pillow's resize; 0.0002 and 0.0004 for float16; from 0.005 and 0.008 on for the smallest mistake, eps."""

NUM_ROWS = 4
"""Rows of the array that are compared."""

UNIT_TOLERANCE = 0.01
"""How far the length of a row that was divided by its length may be from 1, as in float16."""


@dataclass(frozen=True)
class Change:
    """One difference between the recipe and the published rows."""

    name: str
    """What differs, as in "stride"."""
    yours: str
    theirs: str
    sentence: str
    """What they did, and what to type if there is an option."""

    def __str__(self) -> str:
        return f"{self.name} {self.theirs}"


class Reading(NamedTuple):
    """One way to read the array."""

    rows: Rows
    """The first of them."""
    num_rows: int
    """How many the array has."""
    changes: tuple[Change, ...]
    """What differs from the form that is expected: (rows, features), rgb first, or that of a preset's files."""


def check_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array without axes of length 1, but with two axes at least.

    Raises:
        UsageError: it holds no rows.
    """
    if array.dtype.kind != "f":
        raise UsageError(f"the published array holds {array.dtype}: give features, as float16 or float32")
    if array.ndim < 2 or not array.size:
        raise UsageError(f"the published array is {array.shape}: give (rows, features), a row for each clip")
    kept = array
    while kept.ndim > 2 and 1 in kept.shape:
        kept = kept.squeeze(max(axis for axis in range(kept.ndim) if kept.shape[axis] == 1))
    if kept.ndim > 3:
        raise UsageError(f"the published array is {array.shape}: give (rows, features), or (rows, crops, features)")
    return kept


def readings(array: NDArray[Any], widths: Mapping[str, int], model: str, files: Files | None = None) -> list[Reading]:
    """Return the ways to read an array as rows of one or both streams.

    Args:
        array: from `check_array`.
        widths: numbers in a row of each stream that runs.
        model: for the message.
        files: of the preset, whose form is expected.

    Raises:
        UsageError: no axis is as long as a row, or its first numbers are not finite.
    """
    lengths = {sum(widths.values()), *widths.values()}
    found = [
        Reading(rows, num_rows, (*form, *streams))
        for matrix, num_rows, form in _matrices(array, files)
        if matrix.shape[1] in lengths
        for rows, streams in _split(np.asarray(matrix, np.float64), widths, files)
    ]
    if not found:
        each = " or ".join(f"{width} ({stream})" for stream, width in widths.items())
        both = f"{sum(widths.values())} (both streams), " if len(widths) > 1 else ""
        raise UsageError(
            f"the published array is {array.shape}, and a row of {model} has {both}{each} numbers: "
            "choose the --model, --streams or --layer that it was made with"
        )
    if number := max(sum(np.count_nonzero(~np.isfinite(r)) for r in one.rows.values()) for one in found):
        raise UsageError(
            f"the first published rows hold {number:,} numbers that are NaN or infinite: "
            "their file is damaged, or overflowed in float16"
        )
    return found


def _matrices(array: NDArray[Any], files: Files | None) -> Iterator[tuple[NDArray[Any], int, tuple[Change, ...]]]:
    """Yield the first rows, how many there are, and what differs."""
    if array.ndim == 2:
        is_turned = files is not None and files.axes == "DT"
        yours, theirs = ("(D, T)", "(T, D)") if is_turned else ("(T, D)", "(D, T)")
        words = "the array is (rows, features)" if is_turned else "the array is (features, rows)"
        change = Change("axes", yours, theirs, f"{words}: transpose it")
        for matrix, differs in ((array, is_turned), (array.T, not is_turned)):
            yield matrix[:NUM_ROWS], len(matrix), (change,) * differs
        return
    first, num_rows = array[:NUM_ROWS], len(array)
    yield first.reshape(len(first), -1), num_rows, ()  # kept crops, or the map of a layer
    num_crops = first.shape[1]
    if num_crops > len(CROPS["10"]):
        return
    for crop in range(num_crops):
        what = f"{crop + 1} of {num_crops}"
        change = Change("crop", "one", what, f"your crop is number {what} on axis 1 of the array")
        yield first[:, crop], num_rows, (change,)
    change = Change("crops", "one row", "mean of several", "your rows are the mean over axis 1 of the array, the crops")
    yield first.mean(1, dtype=np.float32), num_rows, (change,)


def _split(
    matrix: NDArray[np.float64], widths: Mapping[str, int], files: Files | None
) -> Iterator[tuple[Rows, tuple[Change, ...]]]:
    streams, width = list(widths), matrix.shape[1]
    ours = " and ".join(streams)
    if width == sum(widths.values()):
        edges = np.cumsum([widths[stream] for stream in streams])[:-1]
        yield dict(zip(streams, np.split(matrix, edges, axis=1), strict=True)), ()
    if len(streams) < 2:
        return
    if width == sum(widths.values()):
        turned = streams[::-1]
        parts = np.split(matrix, [widths[turned[0]]], axis=1)
        change = Change("streams", "rgb, flow", "flow, rgb", "a row holds flow first, then rgb")
        yield dict(zip(turned, parts, strict=True)), (change,)
    for stream in streams:
        if width == widths[stream]:
            change = Change("streams", ours, stream, f"rows hold {stream} alone: --streams {stream}")
            yield {stream: matrix}, (change,) * (files is None or files.concat)


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row of (N, D) and (N, D); 0 where one is all zeros."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.clip((a * b).sum(1) / np.where(norms == 0, 1, norms), -1, 1))


class Distance(NamedTuple):
    """How far apart rows are, whatever their scale; distances sort by their mean."""

    mean: float
    """Geometric, so that a row that agrees counts although the next one, by another mistake, does not."""
    worst: float

    @property
    def is_same(self) -> bool:
        """Whether all rows are the same."""
        return self.worst <= SAME_DISTANCE


def distance(a: NDArray[np.float64], b: NDArray[np.float64], num_missing: int = 0) -> Distance:
    """Return the distance of (N, D) and (N, D): how far apart rows of length 1 are, from 0 to 2.

    Args:
        a: rows.
        b: rows.
        num_missing: rows that one of them lacks; they are as far away as can be.
    """
    each = np.append(np.sqrt(2 - 2 * cosines(a, b)), [2.0] * num_missing)
    return Distance(float(np.exp(np.log(np.maximum(each, SAME_DISTANCE / 3)).mean())), float(each.max()))


def error(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest difference of two numbers, relative to the largest of `b`."""
    largest = abs(b).max()
    return float(abs(a - b).max() / (largest or 1))


def rescale(ours: Rows, theirs: Rows) -> tuple[NDArray[np.float64], tuple[Change, ...]]:
    """Return our rows, streams side by side in their order, scaled as theirs are, and how these are."""
    plain = np.hstack([ours[stream] for stream in theirs])
    wanted = np.hstack(list(theirs.values()))
    if error(plain, wanted) <= SAME_ERROR:
        return plain, ()
    if is_unit(wanted) and not is_unit(plain):
        return _unit(plain), (Change("rows", "as they are", "of length 1", "each row is divided by its length (L2)"),)
    if len(theirs) > 1 and all(is_unit(part) for part in theirs.values()) and not is_unit(ours[next(iter(theirs))]):
        units = np.hstack([_unit(ours[stream]) for stream in theirs])
        sentence = "each stream of a row is divided by its length (L2)"
        return units, (Change("rows", "as they are", "of length 1 in each stream", sentence),)
    factor = float((plain * wanted).sum() / ((plain * plain).sum() or 1))
    if abs(factor - 1) > UNIT_TOLERANCE and error(factor * plain, wanted) <= SAME_ERROR:
        sentence = f"all numbers are multiplied by {factor:.3g}"
        return factor * plain, (Change("rows", "as they are", f"times {factor:.3g}", sentence),)
    return plain, ()


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1, norms))


def is_unit(rows: NDArray[np.float64]) -> bool:
    """Return whether rows were divided by their length."""
    return bool(len(rows) and abs(np.linalg.norm(rows, axis=1) - 1).max() < UNIT_TOLERANCE)
