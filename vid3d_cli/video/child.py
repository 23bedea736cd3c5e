"""The decoder process: it reads one video after the other on request, and ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

from ..errors import Vid3dError
from .audio import AudioOpened, AudioPacket, read_audio
from .process import (
    BEAT_SECONDS,
    MEMORY_FOLLOWS,
    AudioRequest,
    CountRequest,
    End,
    Opened,
    ReadRequest,
    SentFrame,
    explain,
)
from .reader import VideoInfo, VideoReader
from .slots import Slots, Stopped


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
    child = _Child(Connection(number))
    threading.Thread(target=child.listen, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.work()


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # requests, and descriptors of shared memory
        self._reader: VideoReader | None = None  # while it reads
        self._num_packets_reported = 0

    def listen(self) -> None:
        """Receive requests, and end this process with its parent, whatever FFmpeg is doing."""
        code = 1
        try:
            while True:
                if not self._connection.poll(BEAT_SECONDS):
                    self._beat()
                    continue
                message = self._connection.recv()
                self._inbox.put(recv_handle(self._connection) if message == MEMORY_FOLLOWS else message)
        except (EOFError, ConnectionResetError, BrokenPipeError):
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _beat(self) -> None:
        with self._sending:
            if self._reader is not None and self._reader.num_packets_read != self._num_packets_reported:
                self._num_packets_reported = self._reader.num_packets_read
                self._connection.send(None)

    def _send(self, answer: Opened | SentFrame | AudioOpened | AudioPacket) -> None:
        with self._sending:
            self._connection.send(answer)

    def work(self) -> None:
        """Answer one request after the other."""
        while True:
            request = self._inbox.get()
            last: VideoInfo | End | Vid3dError
            try:
                if isinstance(request, AudioRequest):
                    last = self._read_audio(request)
                else:
                    last = self._count(request) if isinstance(request, CountRequest) else self._read(request)
            except Exception as error:
                last = explain(request.video, error)
            with self._sending:
                self._reader = None
                self._connection.send(last)

    def _count(self, request: CountRequest) -> VideoInfo:
        with VideoReader(request.video, allow_playlists=request.allow_playlists) as self._reader:
            return self._reader.count_frames() if request.decode else self._reader.info

    def _read_audio(self, request: AudioRequest) -> End:
        for answer in read_audio(request):
            self._send(answer)
        return End(0)

    def _read(self, request: ReadRequest) -> End:
        with VideoReader(**request._asdict()) as reader:
            self._reader = reader
            self._send(Opened(reader.info, reader.num_expected_frames, reader.time_base, reader.first_units))
            file = self._inbox.get()
            try:
                slots = Slots(file, (reader.info.height, reader.info.width, 3))
            finally:
                os.close(file)
            with contextlib.suppress(Stopped):
                for frame in reader:
                    slot = slots.fill(frame.rgb)
                    self._send(SentFrame(frame.index, frame.seconds, frame.end_seconds, slot, reader.num_lost_frames))
            return End(reader.num_lost_frames)
