"""Counts the frames that a stream has and a decoder never shows."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray


class LostFrames:
    """Compares the times of packets with those of the frames that come out of a decoder.

    A packet without a frame is not always a loss: packets of VP8 may be hidden, and two packets of an interlaced video
    may hold one frame. So a packet counts if it does not decode, or if frames around it leave a gap for another one.

    Args:
        max_gap: in a transport stream, damage removes packets without a trace. There a gap near damage counts as the
            frames that fit into it, if it is at most this long. 0 for other containers.
        has_lead_in: what is shown before the first keyframe does not count, as after a seek and in a broadcast.
    """

    def __init__(self, *, max_gap: int, has_lead_in: bool) -> None:
        self._max_gap = max_gap
        self.has_begun = not has_lead_in
        """Whether what follows should decode."""
        self._begin = math.inf if has_lead_in else -math.inf  # what is earlier does not count
        self._packets, self._failed, self._torn, self._shown = (array("q") for _ in range(4))  # their times
        self._num_failed_without_time = 0
        self.num_damaged = 0
        """Frames that are shown with visible damage."""
        self._num_missing: int | None = None

    @property
    def first(self) -> int | None:
        """Time of the first packet that should become a frame; None if there is none."""
        return self._packets[0] if self._packets and self._packets[0] >= self._begin else None

    @property
    def num_lost(self) -> int:
        """Frames that do not decode, are missing, or are shown with visible damage."""
        num_missing = len(self._failed) if self._num_missing is None else self._num_missing
        return self._num_failed_without_time + num_missing + self.num_damaged

    def add_packet(self, units: int | None, *, is_key: bool, is_shown: bool, is_torn: bool) -> None:
        """Note a packet.

        Args:
            units: its time.
            is_key: it holds a keyframe.
            is_shown: it should become a frame.
            is_torn: the container says that a part of it is missing.
        """
        self.has_begun |= is_key
        if units is None:
            return
        if is_key:
            self._begin = min(self._begin, units)  # the time of the first one may be damaged
        if is_shown and self.has_begun:
            self._packets.append(units)
            if is_torn:
                self._torn.append(units)

    def add_failure(self, units: int | None) -> None:
        """Note a packet that does not decode."""
        if not self._counts(units):
            return
        if units is None:
            self._num_failed_without_time += 1
        else:
            self._failed.append(units)

    def add_frame(self, units: int | None, *, is_damaged: bool) -> None:
        """Note a frame that was decoded."""
        self.num_damaged += is_damaged and self._counts(units)
        if units is not None:
            if self.has_begun and self._begin == math.inf:  # the keyframe has no time
                self._begin = units
            self._shown.append(units)

    def _counts(self, units: int | None) -> bool:
        return self.has_begun if units is None else units >= self._begin

    def count_missing(self, *, at_end: bool) -> None:
        """Count the gaps between the frames shown so far and, at the end of the stream, after them."""
        packets, shown = (times[times >= self._begin] for times in map(_sorted, (self._packets, self._shown)))
        if not len(packets) or not len(shown):
            return
        unseen = np.setdiff1d(packets, shown)
        step = _usual_step(packets, shown)
        gaps = np.asarray([min(self._packets[0], shown[0]) - step, *shown, *([packets[-1] + step] if at_end else [])])
        num_room = np.floor(np.diff(gaps) / step + 0.25).astype(int) - 1

        def count(units: NDArray[np.int64]) -> NDArray[np.int64]:
            inside = units[(units > gaps[0]) & (units < gaps[-1])]
            return np.bincount(np.searchsorted(gaps, inside) - 1, minlength=len(num_room))

        failed = np.setdiff1d(_sorted(self._failed), shown)
        num_unseen, num_failed = count(unseen), count(failed)
        num_missing = np.maximum(num_failed, np.minimum(num_unseen, num_room))
        torn = _sorted(self._torn)
        near = np.searchsorted(torn, gaps[1:] + 4 * step) > np.searchsorted(torn, gaps[:-1] - 4 * step)
        is_filled = (near | (num_unseen > 0)) & (np.diff(gaps) <= self._max_gap)
        num_missing = np.where(is_filled, np.maximum(num_missing, num_room), num_missing)
        self._num_missing = int(num_missing.sum()) + len(self._failed) - int(num_failed.sum())


def _sorted(units: array[int]) -> NDArray[np.int64]:
    return np.unique(np.frombuffer(units, np.int64)) if units else np.empty(0, np.int64)


def _usual_step(packets: NDArray[np.int64], shown: NDArray[np.int64]) -> float:
    """Return the time from one frame to the next: that of most packets, or twice that if each frame has two."""
    of_packets = float(np.percentile(np.diff(packets), 25)) if len(packets) > 1 else 1.0
    of_frames = float(np.median(np.diff(shown))) if len(shown) > 1 else of_packets
    return of_frames if of_packets < of_frames <= 2.1 * of_packets else of_packets
