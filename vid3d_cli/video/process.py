"""Videos decoded in processes of their own: what a broken file does to its decoder costs that file alone.

    this process                                                         a child
    Decoders.open ──── path, fps, span ──────────── connection ──────→ VideoReader
    Frame ←─────────── times, number of a slot ──── connection ──────────┘  │
    Frame.rgb ←─────── the picture ──────────────── shared memory, slots ←──┘
        └ is dropped ─ number of its slot ───────── pipe ──────────────→ filled anew

A child decodes one video after the other and reads ahead until its slots are full. It imports little: it is there in
0.3 s and takes 60 MB. What kills it, hangs in it or eats its memory is the failure of the video that it was at, and the
next one gets a new child. It ends by itself when this process does, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import multiprocessing
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DecoderDied, DecoderFailed, DecoderHangs, OutOfMemory, ResourceError, UsageError, Vid3dError
from ..records import Frame
from . import TIMEOUT_SECONDS as TIMEOUT_SECONDS  # there, the command line finds it without PyAV
from .reader import VideoInfo, VideoReader

SLOTS_BYTES = 64 * 2**20
"""Shared memory of an open video, about: so much is read ahead."""

MIN_SLOTS = 4
MAX_SLOTS = 16

STOP_SECONDS = 1.0
"""So long a child may take to leave a video that is not wanted to its end; then it is quicker to start another."""

BEAT_SECONDS = 1.0
"""So often a child that brings no frame says whether it is getting on, as on its way to a late start."""

_STOP = 255
"""Sent in the place of a slot: no more frames are wanted."""

_MAX_POLL_MS = 2**31 - 1

# With the path of this process, whatever changed that. Not `-m`: the classes of a __main__ are not those of the module.
_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from vid3d_cli.video.process import serve; serve(int(sys.argv[1]))"

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's linear algebra is not used, and would start a thread for every core
    # glibc gives large pieces back at once. Frames are taken and freed all the time: in full HD the system would spend
    # 2.7 ms a frame on handing out the same pages again, instead of 0.4 ms.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}

_TOO_MANY_FILES = "too many open files: raise the limit (ulimit -n 4096), or read fewer videos at a time (--jobs 1)"


# What is said --------------------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """The arguments of `VideoReader`; the numbers of the shared memory and of the pipe's end follow."""

    video: str
    fps: Fraction | None
    start_seconds: float
    end_seconds: float | None
    probe: str | None = None
    """No frames are wanted, only the info: "header", or "count" to decode the video for the counts."""


class _Opened(NamedTuple):
    info: VideoInfo
    num_expected_frames: int | None


class _Layout(NamedTuple):
    """How pictures lie in the shared memory; all have the shape of the first one."""

    shape: tuple[int, ...]

    @property
    def picture_bytes(self) -> int:
        return math.prod(self.shape)

    @property
    def num_slots(self) -> int:
        return min(max(MIN_SLOTS, SLOTS_BYTES // self.picture_bytes), MAX_SLOTS)

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.picture_bytes


class _Sent(NamedTuple):
    """A `Frame`."""

    frame_index: int
    seconds: float
    end_seconds: float
    layout: _Layout
    slot: int | None
    """None: it shows the picture of the frame before."""
    num_decode_failures: int


class _End(NamedTuple):
    """After the last frame, or the last that was wanted; an error comes in its place."""

    num_decode_failures: int


def _explain(video: str, error: Exception) -> Vid3dError:
    """What went wrong with a video, as one of ours."""
    cause = error.__cause__ or error
    number = getattr(cause, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(_TOO_MANY_FILES)
    if number == errno.ENOMEM or isinstance(cause, MemoryError):
        return OutOfMemory(video, "decoding it takes more memory than there is: re-encode it smaller, or leave it out")
    if isinstance(error, Vid3dError):
        return error
    return DecoderFailed(video, f"decoding it ended with {type(error).__name__}: {error}")


# This process --------------------------------------------------------------------------------------------------------


def probe(
    video: str, *, decode: bool = False, timeout: float | None = TIMEOUT_SECONDS, decoders: Decoders | None = None
) -> VideoInfo:
    """Return what a video is: codec, size, rotation, frame rate, duration.

    Args:
        video: path or URL.
        decode: decode the whole video, to count its frames and the lost ones; otherwise only the first frame.
        timeout: seconds without progress before the video fails; None for no limit.
        decoders: processes to use, with their own timeout; None to start one for this video alone (0.3 s).

    Raises:
        VideoError: the video cannot be used; the class says why. `DecoderHangs` after the timeout.
        ResourceError: the process cannot be started.
    """
    if decoders is None:
        with Decoders(timeout) as own:
            return probe(video, decode=decode, decoders=own)
    with decoders.probe(video, decode=decode) as opened:
        return opened.info


class Decoders:
    """The children that decode videos: as many as are open at the same time, and used again.

        with Decoders(timeout=120) as decoders, decoders.open("video.mp4", fps=Fraction(25)) as frames:
            for frame in frames: ...

    Any thread may open videos. Closing this ends all children at once.

    Args:
        timeout: seconds that a decoder may make no progress while a frame is waited for; None: as many as it likes.
    """

    def __init__(self, timeout: float | None = None) -> None:
        if timeout is not None and not timeout > 0:
            raise UsageError(f"the timeout must be more than 0 s, got {timeout:g} s")
        self._timeout = timeout
        self._idle: list[_Decoder] = []
        self._lent: set[_Decoder] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def open(
        self,
        video: str,
        *,
        fps: Fraction | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
    ) -> DecodedVideo:
        """Open a video in a child; for the arguments see `VideoReader`, for the errors `DecodedVideo`."""
        return DecodedVideo(_Request(video, fps, start_seconds, end_seconds), self, self._timeout)

    def probe(self, video: str, *, decode: bool) -> DecodedVideo:
        """Open a video for its `info` alone; see `probe`."""
        return DecodedVideo(_Request(video, None, 0.0, None, "count" if decode else "header"), self, self._timeout)

    def lend(self) -> _Decoder:
        """Give out a living child, for one video.

        Raises:
            ResourceError: no process can be started.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the decoders are closed")
            decoder = self._living() or _Decoder()
            self._lent.add(decoder)
            return decoder

    def _living(self) -> _Decoder | None:
        while self._idle:
            decoder = self._idle.pop()
            if decoder.is_alive:
                return decoder
            decoder.end()
        return None

    def take_back(self, decoder: _Decoder, *, is_fit: bool) -> None:
        """Keep a child for the next video, or end it if it is not fit for one."""
        with self._lock:
            self._lent.discard(decoder)
            is_kept = is_fit and not self._is_closed
            if is_kept:
                self._idle.append(decoder)
        if not is_kept:
            decoder.end()

    def close(self) -> None:
        """Kill all children; whoever waits for a frame of theirs is told that they died."""
        with self._lock:
            self._is_closed = True
            children = [*self._idle, *self._lent]
            self._idle.clear()
        for decoder in children:
            decoder.process.kill()
        for decoder in children:
            decoder.wait()  # and no more: the threads that read from them close the connections

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class DecodedVideo(Iterator[Frame]):
    """The frames of a video as `VideoReader` gives them, to be gone through once.

    Each `Frame.rgb` may be kept for as long as it is of use: where many are, they are copies. Not thread-safe: close it
    in the thread that iterates.

    Args:
        request: what to read.
        decoders: lend a child for it.
        timeout: see `Decoders`.

    Raises:
        VideoError: on opening or from the loop: like `VideoReader`, and where its decoder died, hangs or failed.
        UsageError: the span or the frame rate makes no sense.
        ResourceError: no process can be started, or too many files are open.
    """

    info: VideoInfo
    """What the header and the first frame say; counts only where `probe` decodes."""
    num_expected_frames: int | None
    """About how many frames there will be; None if the header does not tell."""
    num_decode_failures: int
    """How many lost and damaged frames were met by the latest frame; after the last one, in all."""

    def __init__(self, request: _Request, decoders: Decoders, timeout: float | None) -> None:
        self.num_decode_failures = 0
        self._video = request.video
        self._timeout = timeout
        self._decoders = decoders
        self._rgb: NDArray[np.uint8] | None = None  # of the latest frame
        try:
            self._pictures: _Pictures | None = _Pictures()
        except OSError as error:
            raise _explain(self._video, error) from error
        self._decoder: _Decoder | None = decoders.lend()
        try:
            opened = self._ask(request)
        except BaseException:
            self.close()
            raise
        assert isinstance(opened, _Opened)
        self.info, self.num_expected_frames = opened

    def __next__(self) -> Frame:
        if self._decoder is None:
            raise StopIteration
        answer = self._ask()
        assert not isinstance(answer, _Opened)
        self.num_decode_failures = answer.num_decode_failures
        if isinstance(answer, _End):
            raise StopIteration
        if answer.slot is not None:
            self._rgb = self._borrow(answer.layout, answer.slot)
        assert self._rgb is not None
        return Frame(answer.frame_index, answer.seconds, answer.end_seconds, self._rgb)

    def _borrow(self, layout: _Layout, slot: int) -> NDArray[np.uint8]:
        assert self._pictures is not None
        try:
            return self._pictures.borrow(layout, slot)
        except OSError as error:
            raise _explain(self._video, error) from error

    def _ask(self, request: _Request | None = None) -> _Opened | _Sent | _End:
        """What the child says next: of a request, or by itself."""
        assert self._decoder is not None and self._pictures is not None
        try:
            if request is not None:
                self._decoder.send(request, self._pictures)
            answer = self._decoder.receive(self._timeout)
        except TimeoutError:
            self._hand_back(is_fit=False)
            why = f"its decoder got no further for {self._timeout:g} s: give --timeout more seconds, or leave it out"
            raise DecoderHangs(self._video, why) from None
        except (EOFError, OSError) as broken:
            error = _explain(self._video, broken)
            if not isinstance(error, ResourceError):
                error = _explain_death(self._video, self._decoder.wait(), has_answered=self._decoder.has_answered)
            self._hand_back(is_fit=False)
            raise error from None
        if isinstance(answer, (_End, Vid3dError)):
            self._hand_back(is_fit=True)
        if isinstance(answer, Vid3dError):
            raise answer
        return answer

    def __enter__(self) -> DecodedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Have the child leave the video, if it is still at it; frames that were given stay as they are."""
        if self._decoder is not None:
            self._hand_back(is_fit=self._stops_soon(self._decoder))

    def _stops_soon(self, decoder: _Decoder) -> bool:
        assert self._pictures is not None
        self._pictures.give_back(_STOP)
        give_up = time.monotonic() + STOP_SECONDS
        try:
            while not isinstance(decoder.receive(max(0.0, give_up - time.monotonic())), (_End, Vid3dError)):
                pass
        except (EOFError, OSError):  # it died, or its time is over
            return False
        return True

    def _hand_back(self, *, is_fit: bool) -> None:
        decoder, self._decoder = self._decoder, None
        self._rgb = self._pictures = None
        assert decoder is not None
        self._decoders.take_back(decoder, is_fit=is_fit)


class _Decoder:
    """A child, seen from this process.

    Raises:
        ResourceError: it cannot be started.
    """

    def __init__(self) -> None:
        try:
            self._connection, theirs = multiprocessing.Pipe()
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _COMMAND, str(theirs.fileno()), *sys.path],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, **_ENVIRONMENT},
                    start_new_session=True,  # Ctrl-C at the terminal is for this process
                )
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise ResourceError(_TOO_MANY_FILES) from error
            raise ResourceError(f"no process can be started to decode videos: {error.strerror}") from error
        self.has_answered = False
        self._arrivals = select.poll()  # by hand: a connection's own `poll` takes 30 µs to set up, for every frame
        self._arrivals.register(self._connection, select.POLLIN)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def send(self, request: _Request, pictures: _Pictures) -> None:
        """Have it read a video into shared memory."""
        self._connection.send(request)
        for number in (pictures.memory, pictures.free_slots):
            send_handle(self._connection, number, self.process.pid)

    def receive(self, timeout: float | None) -> _Opened | _Sent | _End | Vid3dError:
        """Wait for what it says next.

        Raises:
            TimeoutError: it has been silent for so long.
            EOFError: it is dead. So it is with any other OSError.
        """
        answer = None
        while answer is None:  # None: it is getting on
            if not self._arrivals.poll(None if timeout is None else min(1000 * timeout, _MAX_POLL_MS)):
                raise TimeoutError
            answer = self._connection.recv()
            self.has_answered = True
        return answer  # type: ignore[no-any-return]

    def wait(self) -> int | None:
        """How it ended; None where it hangs in the kernel, as for a network drive that is gone."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kill it; nobody else may be using it."""
        self.process.kill()
        self._connection.close()
        self.wait()


def _explain_death(video: str, code: int | None, *, has_answered: bool) -> Vid3dError:
    if code is not None and code >= 0 and not has_answered:  # no video makes Python end like this
        return ResourceError(f"a process that decodes videos ended with exit code {code}: its last words stand above")
    if code == -signal.SIGKILL:
        why = "its decoder was killed (SIGKILL), as the system does when memory runs out"
    elif code is None:
        why = "its decoder crashed and does not end"
    elif code >= 0:
        why = f"its decoder ended with exit code {code}"
    else:
        name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
        why = f"its decoder crashed ({name})"
    return DecoderDied(video, f"{why}: re-encode it, or leave it out")


class _Pictures:
    """The shared memory that a child puts the pictures of a video into, and the pipe by which it gets slots back.

    Arrays refer to it for as long as they live, and its files are closed after them and not before: a file's number
    that comes too late may be that of another file.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []  # of files
        self._numbers.append(_create_memory())
        self._numbers.extend(os.pipe())
        self.memory, self.free_slots, self._returned = self._numbers
        self._mapped: mmap.mmap | None = None
        self._lent: set[int] = set()

    def __del__(self) -> None:
        for number in self._numbers:
            os.close(number)

    def borrow(self, layout: _Layout, slot: int) -> NDArray[np.uint8]:
        """The picture in a slot, which goes back when neither the array nor a view of it is left.

        A child always finds a slot, whatever is kept here: from half of them on, this is a copy.

        Returns:
            (H, W, 3).

        Raises:
            OSError: the memory cannot be mapped.
        """
        if self._mapped is None:
            self._mapped = mmap.mmap(self.memory, layout.num_bytes)
        picture: NDArray[np.uint8]
        flat = np.frombuffer(self._mapped, np.uint8, layout.picture_bytes, slot * layout.picture_bytes)
        picture = flat.reshape(layout.shape)
        if len(self._lent) >= layout.num_slots // 2:
            picture = picture.copy()
            self.give_back(slot)
        else:
            self._lent.add(slot)
            # All views refer to this array and to nothing below it, since that is no array.
            weakref.finalize(flat, self.give_back, slot).atexit = False
        return picture

    def give_back(self, slot: int) -> None:
        """Let the child fill a slot anew."""
        self._lent.discard(slot)
        with contextlib.suppress(OSError):
            os.write(self._returned, bytes([slot]))  # a pipe holds many more than there are: this does not wait


def _create_memory() -> int:
    """The number of a new file that has no name. Not in /dev/shm, which is small in containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vid3d")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# A child -------------------------------------------------------------------------------------------------------------


def serve(number: int) -> None:
    """Be a child: decode what is asked for until the parent is gone.

    Args:
        number: file number of the connection to it.
    """
    # A cluster sends these to all processes of a job at a time: this one ends with its parent, not before.
    for wish in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(wish, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # on Linux: when memory runs out, this process is the one to be killed
        Path("/proc/self/oom_score_adj").write_text("1000")
    child = _Child(Connection(number))
    threading.Thread(target=child.listen, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.work()


class _Stopped(Exception):
    """No more frames are wanted."""


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._speaking = threading.Lock()
        self._requests: queue.SimpleQueue[tuple[_Request, int, int]] = queue.SimpleQueue()
        self._reader: VideoReader | None = None  # while it reads
        self._num_packets_told = 0

    def listen(self) -> None:
        """Take requests, and end this process together with its parent, whatever FFmpeg is doing."""
        code = 1
        try:
            while True:
                if self._connection.poll(BEAT_SECONDS):
                    request = self._connection.recv()
                    self._requests.put((request, recv_handle(self._connection), recv_handle(self._connection)))
                else:
                    self._beat()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _beat(self) -> None:
        with self._speaking:
            if self._reader is not None and self._reader.num_packets_read != self._num_packets_told:
                self._num_packets_told = self._reader.num_packets_read
                self._connection.send(None)

    def _say(self, answer: _Opened | _Sent) -> None:
        with self._speaking:
            self._connection.send(answer)

    def work(self) -> None:
        """Read one video after the other."""
        while True:
            request, memory, free_slots = self._requests.get()
            end: _End | Vid3dError
            try:
                end = self._decode(request, _Slots(memory, free_slots))
            except Exception as error:
                end = _explain(request.video, error)
            finally:
                os.close(memory)
                os.close(free_slots)
            with self._speaking:
                self._reader = None
                self._connection.send(end)

    def _decode(self, request: _Request, slots: _Slots) -> _End:
        video, fps, start_seconds, end_seconds, probe = request
        with VideoReader(video, fps=fps, start_seconds=start_seconds, end_seconds=end_seconds) as reader:
            self._reader = reader
            info = reader.count_frames() if probe == "count" else reader.info
            self._say(_Opened(info, reader.num_expected_frames))
            if probe:
                return _End(reader.num_decode_failures)
            with contextlib.suppress(_Stopped):
                for frame in reader:
                    layout, slot = slots.fill(frame.rgb)
                    failures = reader.num_decode_failures
                    self._say(_Sent(frame.index, frame.seconds, frame.end_seconds, layout, slot, failures))
            return _End(reader.num_decode_failures)


class _Slots:
    """The shared memory, seen from the child.

    Args:
        memory: number of an empty file.
        free: number of the pipe's end from which the slots come that may be filled anew.
    """

    def __init__(self, memory: int, free: int) -> None:
        self._memory = memory
        self._returned = free
        self._poll = select.poll()
        self._poll.register(free, select.POLLIN)
        self._free: list[int] = []
        self._last: NDArray[np.uint8] | None = None
        self._pictures: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)

    def fill(self, picture: NDArray[np.uint8]) -> tuple[_Layout, int | None]:
        """Copy a picture into a slot, and wait for one.

        Returns:
            How they lie, and which slot; None for the same picture as the last time.

        Raises:
            _Stopped: no more are wanted.
        """
        layout = _Layout(picture.shape)
        if self._last is None:
            os.ftruncate(self._memory, layout.num_bytes)
            memory = np.frombuffer(mmap.mmap(self._memory, layout.num_bytes), np.uint8)
            self._pictures = memory.reshape(layout.num_slots, *layout.shape)
            self._free = list(range(layout.num_slots))
        self._collect()
        if picture is self._last:
            return layout, None
        slot = self._free.pop()  # the one that came last is in the processor's cache
        self._pictures[slot] = self._last = picture
        return layout, slot

    def _collect(self) -> None:
        """Take what was given back; wait only where no slot is left."""
        while not self._free or self._poll.poll(0):
            slots = os.read(self._returned, MAX_SLOTS)
            if _STOP in slots:
                raise _Stopped
            self._free.extend(slots)
