"""The decoder process: it answers one request after the other, and ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

from .process import BEAT_SECONDS, Last, Request, Sign, explain
from .slots import Layout, Slots, Stopped


def serve(number: int) -> None:
    """Answer requests until the parent is gone.

    Args:
        number: file descriptor of the connection to the parent.
    """
    # A cluster sends these to all processes of a job. This one ends with its parent, not before.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # on Linux: when memory runs out, the system kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    parent = Parent(Connection(number))
    threading.Thread(target=parent.listen, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        parent.serve()


class Parent:
    """The process that asks, seen from the decoder process; requests answer to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # requests, and descriptors of shared memory
        self._slots: Slots | None = None
        self._progress: Callable[[], object] | None = None
        self._reported: object = None

    def send(self, answer: object) -> None:
        """Send an answer.

        Raises:
            Stopped: the parent wants no more answers.
        """
        if self._slots is not None:
            self._slots.check()
        with self._sending:
            self._connection.send(answer)

    def report(self, progress: Callable[[], object]) -> None:
        """Report progress, between answers, whenever this function returns another value."""
        self._progress = progress

    def share(self, layout: Layout) -> Slots:
        """Return memory that both processes map, of this layout or a larger one; it stays for the next requests."""
        if self._slots is None or not self._slots.layout.holds(layout):
            self.send(layout)
            self._slots = None  # the parent has new ones, even if they cannot be mapped here
            file = self._inbox.get()
            try:
                self._slots = Slots(file, layout)
            finally:
                os.close(file)
        return self._slots

    def listen(self) -> None:
        """Receive requests, and end this process with its parent, whatever FFmpeg is doing."""
        code = 1
        try:
            while True:
                if not self._connection.poll(BEAT_SECONDS):
                    self._beat()
                    continue
                message = self._connection.recv()
                self._inbox.put(recv_handle(self._connection) if message is Sign.MEMORY_FOLLOWS else message)
        except (EOFError, ConnectionResetError, BrokenPipeError):
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _beat(self) -> None:
        with self._sending:
            if self._progress is not None and (progress := self._progress()) != self._reported:
                self._reported = progress
                self._connection.send(Sign.BEAT)

    def serve(self) -> None:
        """Answer one request after the other."""
        while True:
            request: Request = self._inbox.get()
            last: Last | ExceptionWithTraceback
            try:
                last = Last(request.answer(self))
            except Stopped:
                last = Last(None)
            except Exception as error:
                last = _explain(request.video, error)
            with self._sending:
                self._progress = None
                self._connection.send(last)


def _explain(video: str, error: Exception) -> ExceptionWithTraceback:
    """Return the error to send; there, its cause is the traceback of here."""
    explained: Exception = explain(video, error)
    try:
        pickle.loads(pickle.dumps(explained))
    except Exception:
        explained = explain(video, RuntimeError(f"{type(error).__name__}: {error}"))
    return ExceptionWithTraceback(explained, error.__traceback__)
