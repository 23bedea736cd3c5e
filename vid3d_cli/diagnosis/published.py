"""Reads a published array: which axis holds the rows, which streams a row holds, and how rows are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Rows = Mapping[str, NDArray[np.float64]]
"""(N, D) of each stream."""

SAME_DISTANCE, SAME_ERROR = 0.003, 0.005
"""Rows are the same up to these. Measured on s3d_mini: 0.001 and 0.001 (rgb), 0.002 and 0.003 (flow) for another YUV
conversion and Pillow's resize; 0.0002 and 0.0004 for float16; from 0.005 and 0.008 on for the smallest mistake, eps."""

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


KEPT_ROWS = 8
"""Rows of the array that are read; more than are ever compared."""

_CHECKED_ROWS = 4096
"""Rows that are checked at a time: an array may be a file larger than memory."""


class Reading(NamedTuple):
    """One way to read the array."""

    rows: Rows
    """The first of them."""
    num_rows: int
    """How many the array has."""
    changes: tuple[Change, ...]
    """What differs from our form, (rows, features), rgb first."""


def check_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array without axes of length 1, but with two axes at least.

    Raises:
        UsageError: it holds no rows of finite numbers.
    """
    if array.dtype.kind != "f":
        raise UsageError(f"the published array holds {array.dtype}: give features, as float16 or float32")
    if array.ndim < 2 or not array.size:
        raise UsageError(f"the published array is {array.shape}: give (rows, features), a row for each clip")
    blocks = (array[start : start + _CHECKED_ROWS] for start in range(0, len(array), _CHECKED_ROWS))
    if number := sum(int(np.count_nonzero(~np.isfinite(block))) for block in blocks):
        raise UsageError(
            f"the published array holds {number:,} numbers that are NaN or infinite: "
            "its file is damaged, or overflowed in float16"
        )
    kept = array
    while kept.ndim > 2 and 1 in kept.shape:
        kept = kept.squeeze(max(axis for axis in range(kept.ndim) if kept.shape[axis] == 1))
    if kept.ndim > 3:
        raise UsageError(f"the published array is {array.shape}: give (rows, features), or (rows, crops, features)")
    return kept


def readings(array: NDArray[Any], widths: Mapping[str, int], model: str) -> list[Reading]:
    """Return the ways to read an array as rows of one or both streams.

    Args:
        array: from `check_array`.
        widths: numbers in a row of each stream that runs.
        model: for the message.

    Raises:
        UsageError: no axis is as long as a row.
    """
    found = [
        Reading(rows, len(turned), (*crop, *axes, *streams))
        for matrix, crop in _matrices(array)
        for turned, axes in _turned(matrix)
        for rows, streams in _split(np.asarray(turned[:KEPT_ROWS], np.float64), widths)
    ]
    if not found:
        each = " or ".join(f"{width} ({stream})" for stream, width in widths.items())
        both = f"{sum(widths.values())} (both streams), " if len(widths) > 1 else ""
        raise UsageError(
            f"the published array is {array.shape}, and a row of {model} has {both}{each} numbers: "
            "choose the --model, --streams or --layer that it was made with"
        )
    return found


def _matrices(array: NDArray[Any]) -> Iterator[tuple[NDArray[Any], tuple[Change, ...]]]:
    if array.ndim == 2:
        yield array, ()
        return
    yield array.reshape(len(array), -1), ()  # kept crops, or the map of a layer
    for axis in (1, 0) if array.shape[0] != array.shape[1] else (1,):
        crops = np.moveaxis(array, axis, 0)
        for number, crop in enumerate(crops):
            what = f"{number + 1} of {len(crops)}"
            yield crop, (Change("crop", "one", what, f"your crop is number {what} on axis {axis} of the array"),)
        mean = "mean of several"
        sentence = f"your rows are the mean over axis {axis} of the array, the crops"
        yield crops.mean(0, dtype=np.float32), (Change("crops", "one row", mean, sentence),)


def _turned(matrix: NDArray[Any]) -> Iterator[tuple[NDArray[Any], tuple[Change, ...]]]:
    yield matrix, ()
    yield matrix.T, (Change("axes", "(T, D)", "(D, T)", "the array is (features, rows): transpose it"),)


def _split(matrix: NDArray[np.float64], widths: Mapping[str, int]) -> Iterator[tuple[Rows, tuple[Change, ...]]]:
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
            yield {stream: matrix}, (Change("streams", ours, stream, f"rows hold {stream} alone: --streams {stream}"),)


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


def distance(
    a: NDArray[np.float64], b: NDArray[np.float64], num_missing: int = 0, *, with_length: bool = False
) -> Distance:
    """Return the distance of (N, D) and (N, D): how far apart rows of length 1 are, from 0 to 2.

    Args:
        a: rows.
        b: rows.
        num_missing: rows that one of them lacks; they are as far away as can be.
        with_length: compare the rows as they are, relative to the length of those of `b`.
    """
    if with_length:
        norms = np.linalg.norm(b, axis=1)
        each = np.minimum(2.0, np.linalg.norm(a - b, axis=1) / np.where(norms == 0, 1, norms))
    else:
        each = np.sqrt(2 - 2 * cosines(a, b))
    each = np.append(each, [2.0] * num_missing)
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
    units = np.hstack([_unit(ours[stream]) for stream in theirs])
    if is_unit(wanted) and not is_unit(plain):
        return _unit(plain), (Change("rows", "as they are", "of length 1", "each row is divided by its length (L2)"),)
    if len(theirs) > 1 and all(is_unit(part) for part in theirs.values()) and not is_unit(ours[next(iter(theirs))]):
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
