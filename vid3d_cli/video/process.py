"""Decodes videos in separate processes, so that a broken file can only fail itself.

    this process                                       decoder process (child.py)
    Decoders.open ──── path, fps, span ── connection ──→ VideoReader
    Frame ←─────────── times, slot ────── connection ──────┘  │
    Frame.rgb ←─────── pixels ─────────── shared memory ←─────┘

A decoder process decodes one video after the other and reads ahead until its slots are full. It starts in 0.3 s and
takes 60 MB. If a video kills it, hangs it or exhausts its memory, that video fails and the next one gets a new process.
It ends by itself when this process does, however that happens.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from multiprocessing.reduction import send_handle
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked
from ..errors import DecoderDied, DecoderFailed, DecoderHangs, OutOfMemory, ResourceError, UsageError, Vid3dError
from ..records import Frame
from . import TIMEOUT_SECONDS as TIMEOUT_SECONDS  # defined there for the command line, which starts without PyAV
from .pixels import PixelOptions
from .reader import VideoInfo
from .slots import Slots, create_file

STOP_SECONDS = 1.0
"""A process that takes longer to leave a video is killed; starting another one is faster."""

BEAT_SECONDS = 1.0
"""How often a process that sends no frame reports progress, as on its way to a late start."""

MEMORY_FOLLOWS = "memory"
"""Announces the descriptor of shared memory, which the next message carries."""

_MAX_POLL_MS = 2**31 - 1

# With this process's own sys.path. Not `-m`: classes of __main__ are not those of the module.
_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from vid3d_cli.video.child import serve; serve(int(sys.argv[1]))"

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's linear algebra (`clips.resampling`) would start one thread per core
    # glibc returns large blocks to the system at once. Frames are allocated and freed all the time: in full HD, getting
    # the same pages again would take 2.7 ms a frame instead of 0.4 ms.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}

_TOO_MANY_FILES = "too many open files: raise the limit (ulimit -n 4096), or read fewer videos at a time (--jobs 1)"


@checked
def probe(
    video: str | os.PathLike[str],
    *,
    decode: bool = True,
    timeout: float | None = TIMEOUT_SECONDS,
    allow_playlists: bool = False,
    decoders: Decoders | None = None,
) -> VideoInfo:
    """Return the facts of a video: codec, size, rotation, frame rate, duration.

    Args:
        video: path or URL.
        decode: decode the whole video, to count its frames and the lost ones; otherwise only the first frame.
        timeout: seconds without progress before the video fails; None for no limit.
        allow_playlists: let a playlist (HLS, ffconcat) open the files and addresses that it names.
        decoders: processes to use, with their own timeout and playlists; None starts one for this video (0.3 s).

    Raises:
        VideoError: the video cannot be used; the class says why. `DecoderHangs` after the timeout.
        ResourceError: no process can be started.
    """
    if decoders is None:
        with Decoders(timeout, allow_playlists=allow_playlists) as own:
            return probe(video, decode=decode, decoders=own)
    decoder = decoders.lend()
    try:
        info: VideoInfo = decoder.ask(CountRequest(os.fspath(video), decode, decoders.allow_playlists))
        return info
    finally:
        decoders.take_back(decoder)


# Messages ------------------------------------------------------------------------------------------------------------


class CountRequest(NamedTuple):
    """Asks for the `VideoInfo` of a video, with counts if `decode`."""

    video: str
    decode: bool
    allow_playlists: bool


class AudioRequest(NamedTuple):
    """Asks for the audio of a video; `audio` defines the answers."""

    video: str
    allow_playlists: bool


class ReadRequest(NamedTuple):
    """Asks for the frames of a video; the arguments of `VideoReader`."""

    video: str
    fps: Fraction | None
    start_seconds: float
    end_seconds: float | None
    pixels: PixelOptions
    allow_playlists: bool


class Opened(NamedTuple):
    """The first answer to a `ReadRequest`; shared memory for the frames is then sent."""

    info: VideoInfo
    num_expected_frames: int | None
    time_base: Fraction
    first_units: int


class SentFrame(NamedTuple):
    """A `Frame` whose pixels are in shared memory."""

    frame_index: int
    seconds: float
    end_seconds: float
    slot: int | None
    """None: the same pixels as those of the previous frame."""
    num_lost_frames: int


class End(NamedTuple):
    """Follows the last frame, or the last one that was wanted; an error comes in its place."""

    num_lost_frames: int


# Errors --------------------------------------------------------------------------------------------------------------


def explain(video: str, error: Exception) -> Vid3dError:
    """Return the vid3d error that describes why a video failed."""
    cause = error.__cause__ or error
    number = getattr(cause, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(_TOO_MANY_FILES)
    if number == errno.ENOMEM or isinstance(cause, MemoryError):
        return OutOfMemory(video, "decoding it needs more memory than there is: re-encode it smaller, or leave it out")
    if isinstance(error, Vid3dError):
        return error
    return DecoderFailed(video, f"decoding it ended with {type(error).__name__}: {error}")


def _explain_death(video: str, code: int | None, *, has_answered: bool) -> Vid3dError:
    if code is not None and code >= 0 and not has_answered:  # no video makes Python end like this
        return ResourceError(f"a decoder process ended with exit code {code}: its error message is above")
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


# Processes -----------------------------------------------------------------------------------------------------------


class Decoders:
    """Starts decoder processes, one for each video that is open at the same time, and reuses them.

        with Decoders(timeout=120) as decoders, decoders.open("video.mp4", fps=Fraction(25)) as frames:
            for frame in frames: ...

    Any thread may open videos. Closing kills all processes.

    Args:
        timeout: seconds without progress, while a frame is waited for, before a video fails; None for no limit.
        allow_playlists: see `container.open_container`.

    Raises:
        UsageError: the timeout is not positive.
    """

    def __init__(self, timeout: float | None = None, *, allow_playlists: bool = False) -> None:
        if timeout is not None and not timeout > 0:
            raise UsageError(f"the timeout must be more than 0 s, got {timeout:g} s")
        self._timeout = timeout
        self.allow_playlists = allow_playlists
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
        pixels: PixelOptions = PixelOptions(),  # noqa: B008  (immutable)
    ) -> DecodedVideo:
        """Open a video; for the arguments see `VideoReader`, for the errors `DecodedVideo`."""
        request = ReadRequest(video, fps, start_seconds, end_seconds, pixels, self.allow_playlists)
        return DecodedVideo(request, self)

    def lend(self) -> _Decoder:
        """Return a living process for one video.

        Raises:
            ResourceError: no process can be started.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the decoders are closed")
            decoder = self._living() or _Decoder(self._timeout)
            self._lent.add(decoder)
            return decoder

    def _living(self) -> _Decoder | None:
        while self._idle:
            decoder = self._idle.pop()
            if decoder.process.poll() is None:
                return decoder
            decoder.end()
        return None

    def take_back(self, decoder: _Decoder) -> None:
        """Keep a process for the next video, or end it if it is still busy or dead."""
        with self._lock:
            self._lent.discard(decoder)
            is_kept = decoder.is_idle and not self._is_closed
            if is_kept:
                self._idle.append(decoder)
        if not is_kept:
            decoder.end()

    def close(self) -> None:
        """Kill all processes; a thread that waits for a frame gets DecoderDied."""
        with self._lock:
            self._is_closed = True
            decoders = [*self._idle, *self._lent]
            self._idle.clear()
        for decoder in decoders:
            decoder.process.kill()
        for decoder in decoders:
            decoder.wait()  # the threads that read from them close the connections

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Decoder:
    """A decoder process, seen from this process.

    Raises:
        ResourceError: it cannot be started.
    """

    def __init__(self, timeout: float | None) -> None:
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
        self.is_idle = True
        self._timeout = timeout
        self._video = ""
        self._has_answered = False
        self._arrivals = select.poll()  # directly: a connection's own `poll` takes 30 µs to set up, for every frame
        self._arrivals.register(self._connection, select.POLLIN)

    def ask(self, request: CountRequest | ReadRequest | AudioRequest) -> Any:
        """Send a request and return its first answer; for the errors see `receive`."""
        self._video, self.is_idle = request.video, False
        with self._explained():
            self._connection.send(request)
        return self.receive()

    def send_memory(self, file: int) -> None:
        """Send the descriptor of shared memory; for the errors see `receive`."""
        with self._explained():
            self._connection.send(MEMORY_FOLLOWS)
            send_handle(self._connection, file, self.process.pid)

    def receive(self) -> Any:
        """Return the next answer.

        Raises:
            VideoError: the process sent an error, hangs, or died.
            ResourceError: too many files are open, or no process ever starts.
        """
        with self._explained():
            answer = self.next_answer(self._timeout)
        if isinstance(answer, Vid3dError):
            raise answer
        return answer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            why = f"its decoder made no progress for {self._timeout:g} s: give --timeout more seconds, or leave it out"
            raise DecoderHangs(self._video, why) from None
        except (EOFError, OSError) as broken:
            if getattr(broken, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise ResourceError(_TOO_MANY_FILES) from None
            raise _explain_death(self._video, self.wait(), has_answered=self._has_answered) from None

    def next_answer(self, timeout: float | None) -> Any:
        """Return the next answer, which may be an error that the process sent.

        Raises:
            TimeoutError: it made no progress for that many seconds.
            EOFError, OSError: it is dead.
        """
        answer = None
        while answer is None:  # None: a beat
            if not self._arrivals.poll(None if timeout is None else min(1000 * timeout, _MAX_POLL_MS)):
                raise TimeoutError
            answer = self._connection.recv()
        self._has_answered = True
        self.is_idle = isinstance(answer, (VideoInfo, End, Vid3dError))
        return answer

    def wait(self) -> int | None:
        """Return the exit code; None if it hangs in the kernel, as for a network drive that is gone."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kill it; no other thread may be using it."""
        self.process.kill()
        self._connection.close()
        self.wait()


class DecodedVideo(Iterator[Frame]):
    """The frames of a video as `VideoReader` yields them, once.

    A `Frame.rgb` can be kept for any time; if many are kept, they are copies. Not thread-safe: close it in the thread
    that iterates.

    Args:
        request: what to read.
        decoders: lend a process for the video.

    Raises:
        VideoError: on opening or from the loop: as `VideoReader`, and if the decoder dies, hangs or fails.
        UsageError: the span or the frame rate is impossible.
        ResourceError: no process can be started, or too many files are open.
    """

    info: VideoInfo
    """What the header and the first frame say, without counts."""
    num_expected_frames: int | None
    """Estimate of the number of frames; None if the header says too little."""
    time_base: Fraction
    """Seconds per unit of the file's clock."""
    first_units: int
    """When the first frame is shown, in units of the file's clock."""
    num_lost_frames: int
    """Lost and damaged frames found up to the latest frame; after the last one, all of them."""

    def __init__(self, request: ReadRequest, decoders: Decoders) -> None:
        self.num_lost_frames = 0
        self._decoders = decoders
        self._rgb: NDArray[np.uint8] | None = None  # of the latest frame
        self._slots: Slots | None = None
        self._decoder: _Decoder | None = decoders.lend()
        try:
            opened: Opened = self._decoder.ask(request)
            self.info, self.num_expected_frames, self.time_base, self.first_units = opened
            self._slots = self._share_memory(self._decoder)
        except OSError as error:
            self.close()
            raise explain(request.video, error) from error
        except BaseException:
            self.close()
            raise

    def _share_memory(self, decoder: _Decoder) -> Slots:
        file = create_file()
        try:
            slots = Slots(file, (self.info.height, self.info.width, 3))
            decoder.send_memory(file)
            return slots
        finally:
            os.close(file)

    def __next__(self) -> Frame:
        if self._decoder is None or self._slots is None:
            raise StopIteration
        try:
            answer = self._decoder.receive()
        except Vid3dError:
            self._hand_back()
            raise
        self.num_lost_frames = answer.num_lost_frames
        if isinstance(answer, End):
            self._hand_back()
            raise StopIteration
        assert isinstance(answer, SentFrame)
        if answer.slot is not None:
            self._rgb = self._slots.borrow(answer.slot)
        assert self._rgb is not None
        return Frame(answer.frame_index, answer.seconds, answer.end_seconds, self._rgb)

    def __enter__(self) -> DecodedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the video; frames that were yielded stay as they are."""
        if self._decoder is None:
            return
        if self._slots is not None:
            self._slots.stop()
            give_up = time.monotonic() + STOP_SECONDS
            with suppress(EOFError, OSError):  # it died, or it takes too long
                while not self._decoder.is_idle:
                    self._decoder.next_answer(max(0.0, give_up - time.monotonic()))
        self._hand_back()

    def _hand_back(self) -> None:
        decoder, self._decoder = self._decoder, None
        self._rgb = self._slots = None
        assert decoder is not None
        self._decoders.take_back(decoder)
