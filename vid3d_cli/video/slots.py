"""Shared memory: the decoder process fills slots with frames or clips, this process reads them in place.

    byte 0 … 63   state of each slot: free, filled or lent
    byte 64       1: no more answers are wanted
    byte 4096 …   the slots, all of one size

    free ── decoder process ──→ filled ── this process ──→ lent ── no view is left here ──→ free

The first free slot is filled. Slots that were never needed take no memory, and those beyond the first few give it back
when they are free. All slots are never lent: the last one is
copied, so that the decoder process can go on whatever is kept here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import weakref
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FREE, _FILLED, _LENT = b"\0", b"\1", b"\2"
_STOP_AT = 64
_HEADER_BYTES = 4096
_NUM_KEPT = 3  # slots that keep their memory: one is filled, one waits, one is in the network
_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.0003, 0.005


class Stopped(Exception):
    """The other process wants no more answers."""


class Layout(NamedTuple):
    """The layout of shared memory."""

    num_slots: int
    slot_bytes: int

    @classmethod
    def fit(cls, slot_bytes: int, total_bytes: int, max_slots: int = 64) -> Layout:
        """Return slots of at least some size that take about so much memory, if all are used; at least 4."""
        whole = -(-slot_bytes // 4096) * 4096
        return cls(min(max(4, total_bytes // whole), max_slots), whole)

    def holds(self, other: Layout) -> bool:
        """Whether memory of this layout can be used for another one."""
        return self.num_slots >= other.num_slots and self.slot_bytes >= other.slot_bytes


class Slots:
    """The slots in a file that both processes map.

    Args:
        file: descriptor of a file made by `create_file`; the caller closes it.
        layout: number and size of the slots.

    Raises:
        OSError: the memory cannot be mapped.
    """

    def __init__(self, file: int, layout: Layout) -> None:
        self.layout = layout
        num_bytes = _HEADER_BYTES + layout.num_slots * layout.slot_bytes
        os.ftruncate(file, num_bytes)
        self.memory = mmap.mmap(file, num_bytes)

    def _count(self, state: bytes) -> int:
        return self.memory[: self.layout.num_slots].count(state)

    def _find(self, state: bytes) -> int:
        return self.memory.find(state, 0, self.layout.num_slots)

    def _mark(self, slot: int, state: bytes) -> None:
        self.memory[slot : slot + 1] = state

    def _view(self, slot: int) -> NDArray[np.uint8]:
        view: NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8, self.layout.slot_bytes, self._start(slot))
        return view

    def _start(self, slot: int) -> int:
        return _HEADER_BYTES + slot * self.layout.slot_bytes

    # In the decoder process ------------------------------------------------------------------------------------------

    def take(self, max_ahead: int) -> tuple[int, NDArray[np.uint8]]:
        """Wait for a free slot, and until fewer than `max_ahead` are filled; return its number and its bytes.

        Raises:
            Stopped: the other process called `stop`.
        """
        wait_seconds = _WAIT_SECONDS
        while (slot := self._find(_FREE)) < 0 or self._count(_FILLED) >= max_ahead:
            self.check()
            time.sleep(wait_seconds)  # a pipe to wait on is no faster, and one more file to account for
            wait_seconds = min(2 * wait_seconds, _MAX_WAIT_SECONDS)
        self.check()
        return slot, self._view(slot)

    def check(self) -> None:
        """Raise Stopped if the other process called `stop`."""
        if self.is_stopped:
            raise Stopped

    def mark_filled(self, slot: int) -> None:
        """Hand over a slot that `take` returned; its number is sent next."""
        self._mark(slot, _FILLED)

    # In this process -------------------------------------------------------------------------------------------------

    def borrow(self, slot: int) -> NDArray[np.uint8]:
        """Return the bytes of a filled slot; it is free again when no view of the array is left."""
        flat = self._view(slot)
        self._mark(slot, _LENT)
        if self._count(_LENT) == self.layout.num_slots:
            flat = flat.copy()
            self._free(slot)
        else:
            # Every view of the bytes keeps this array alive.
            weakref.finalize(flat, self._free, slot, _NUM_KEPT).atexit = False
        return flat

    def _free(self, slot: int, num_kept: int = 0) -> None:
        """Free a slot, and return its memory to the system unless it is one of the first."""
        if slot >= num_kept and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):  # not every kernel can
                self.memory.madvise(mmap.MADV_REMOVE, self._start(slot), self.layout.slot_bytes)
        self._mark(slot, _FREE)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called since the last `reset`."""
        return bool(self.memory[_STOP_AT])

    def stop(self) -> None:
        """Make the other process raise Stopped when it takes its next slot."""
        self.memory[_STOP_AT] = 1

    def reset(self) -> None:
        """Free all that is not borrowed, for the next request; the other process is idle."""
        self.memory[_STOP_AT] = 0
        for slot in range(self.layout.num_slots):
            if self.memory[slot : slot + 1] != _LENT:
                self._free(slot)


def create_file() -> int:
    """Return the descriptor of a new file without a name. Not in /dev/shm, which is small in containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vid3d")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
