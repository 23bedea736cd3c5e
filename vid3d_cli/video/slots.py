"""Shared memory for the frames of one video: the decoder process fills slots, this process reads them in place.

    byte 0 … 15   state of each slot: free, filled or lent
    byte 63       1: no more frames are wanted
    byte 4096 …   the slots, one (H, W, 3) frame each

All slots of a video have the same size.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import time
import weakref

import numpy as np
from numpy.typing import NDArray

SLOTS_BYTES = 64 * 2**20
"""Memory for the slots of a video, roughly: the decoder reads this far ahead."""

MIN_SLOTS = 4
MAX_SLOTS = 16

_FREE, _FILLED, _LENT = b"\0", b"\1", b"\2"
_STOP_AT = 63
_HEADER_BYTES = 4096
_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.0003, 0.005


class Stopped(Exception):
    """The other process wants no more frames."""


class Slots:
    """Slots for frames of one shape.

    Args:
        file: descriptor of a file made by `create_file`; the caller closes it.
        shape: (H, W, 3) of every frame.

    Raises:
        OSError: the memory cannot be mapped.
    """

    def __init__(self, file: int, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._frame_bytes = math.prod(shape)
        self.num_slots = min(max(MIN_SLOTS, SLOTS_BYTES // self._frame_bytes), MAX_SLOTS)
        num_bytes = _HEADER_BYTES + self.num_slots * self._frame_bytes
        os.ftruncate(file, num_bytes)
        self.memory = mmap.mmap(file, num_bytes)
        self._latest: NDArray[np.uint8] | None = None

    def fill(self, rgb: NDArray[np.uint8]) -> int | None:
        """Copy a frame into a free slot, and wait for one; return its number, or None for the same array as before.

        Raises:
            Stopped: the other process called `stop`.
        """
        wait_seconds = _WAIT_SECONDS
        while (slot := self.memory.find(_FREE, 0, self.num_slots)) < 0 and not self._is_stopped:
            time.sleep(wait_seconds)  # a pipe to wait on is no faster, and one more file to account for
            wait_seconds = min(2 * wait_seconds, _MAX_WAIT_SECONDS)
        if self._is_stopped:
            raise Stopped
        if rgb is self._latest:
            return None
        self._latest = rgb
        self._view(slot).reshape(self._shape)[:] = rgb
        self._mark(slot, _FILLED)
        return slot

    def borrow(self, slot: int) -> NDArray[np.uint8]:
        """Return the frame in a slot, (H, W, 3); the slot is free again when no view of the array is left.

        A free slot always remains for the decoder: once half of them are lent, this returns a copy.
        """
        flat = self._view(slot)
        if self.memory[: self.num_slots].count(_LENT) >= self.num_slots // 2:
            flat = flat.copy()
            self._mark(slot, _FREE)
        else:
            self._mark(slot, _LENT)
            # Every view of the frame keeps this array alive.
            weakref.finalize(flat, self._mark, slot, _FREE).atexit = False
        return np.reshape(flat, self._shape)

    def _mark(self, slot: int, state: bytes) -> None:
        self.memory[slot : slot + 1] = state

    def _view(self, slot: int) -> NDArray[np.uint8]:
        """Return the memory of a slot; one-dimensional."""
        start = _HEADER_BYTES + slot * self._frame_bytes
        view: NDArray[np.uint8] = np.frombuffer(self.memory, np.uint8, self._frame_bytes, start)
        return view

    @property
    def _is_stopped(self) -> bool:
        return self.memory[_STOP_AT] != 0

    def stop(self) -> None:
        """Make the other process raise Stopped at its next frame."""
        self.memory[_STOP_AT] = 1


def create_file() -> int:
    """Return the descriptor of a new file without a name. Not in /dev/shm, which is small in containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vid3d")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
