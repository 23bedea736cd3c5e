"""Reads videos in separate processes, so that a broken file can only fail itself.

    this process                                decoder process (child.py)
    Decoders.ask ──── request ──── connection ──→ request.answer(parent)
    Answers ←─────── answers ───── connection ──────┘  │
    arrays ←──── frames, clips ─── shared memory ←─────┘

A request is an object that knows how to answer itself: it is pickled, and the decoder process imports its module. An
answer that is large lies in shared memory (slots.py), and only the number of its slot is sent.

A decoder process answers one request after the other. It starts in 0.3 s and takes 60 MB; for clips it imports more,
0.1 s and 30 MB. If a video kills it, hangs it or exhausts its memory, that video fails and the next one gets a new
process. It ends by itself when this process does, however that happens.
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
from enum import Enum
from fractions import Fraction
from multiprocessing.reduction import send_handle
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arguments import checked
from ..errors import DecoderDied, DecoderFailed, DecoderHangs, OutOfMemory, ResourceError, UsageError, Vid3dError
from . import TIMEOUT_SECONDS as TIMEOUT_SECONDS  # defined there for the command line, which starts without PyAV
from .frames import CountRequest, DecodedVideo, ReadRequest
from .pixels import PixelOptions
from .reader import VideoInfo
from .slots import Layout, Slots, create_file

if TYPE_CHECKING:
    from .child import Parent

STOP_SECONDS = 1.0
"""A process that takes longer to leave a video is killed; starting another one is faster."""

BEAT_SECONDS = 1.0
"""How often a process that sends no answer reports progress, as on its way to a late start."""


class Sign(Enum):
    """A message that is no answer: an answer may be anything, None too."""

    BEAT = "progress"
    MEMORY_FOLLOWS = "the next message carries the descriptor of shared memory"


_MAX_POLL_MS = 2**31 - 1

# With this process's own sys.path. Not `-m`: classes of __main__ are not those of the module.
_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from vid3d_cli.video.child import serve; serve(int(sys.argv[1]))"

_ENVIRONMENT = {
    # NumPy's linear algebra and torch (`clips.resampling`) would start one thread per core.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc returns large blocks to the system at once. Frames are allocated and freed all the time: in full HD, getting
    # the same pages again would take 2.7 ms a frame instead of 0.4 ms.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}

_NO_MEMORY = errno.ENOMEM, errno.EFBIG  # the second: shared memory is a file to `ulimit -f`

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
    with decoders.ask(CountRequest(os.fspath(video), decode, decoders.allow_playlists)) as answers:
        info: VideoInfo = answers.finish()
        return info


# Requests ------------------------------------------------------------------------------------------------------------


class Request(Protocol):
    """What a decoder process is asked; it pickles."""

    @property
    def video(self) -> str:
        """Path or URL; an error names it."""

    def answer(self, parent: Parent) -> Any:
        """Send answers to the parent, in the decoder process, and return the last one.

        Raises:
            Exception: `explain` makes it an error of the video.
        """


class Last(NamedTuple):
    """The last answer to a request; an error comes in its place."""

    value: Any
    """What `Request.answer` returned; None if the answers were stopped."""


# Errors --------------------------------------------------------------------------------------------------------------


def explain(video: str, error: Exception) -> Vid3dError:
    """Return the vid3d error that describes why a video failed."""
    cause = error.__cause__ or error
    number = getattr(cause, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourceError(_TOO_MANY_FILES)
    if number in _NO_MEMORY or isinstance(cause, MemoryError):
        why = "reading it needs more memory than there is, or than a limit allows (ulimit -v and -f, h_vmem)"
        return OutOfMemory(video, f"{why}: raise the limit, read fewer videos at a time (--jobs 1), or leave it out")
    if isinstance(error, Vid3dError):
        return error
    return DecoderFailed(video, f"reading it ended with {type(error).__name__}: {error}")


def _explain_death(video: str, code: int | None, *, has_answered: bool) -> Vid3dError:
    if code is not None and code >= 0 and not has_answered:  # no video makes Python end like this
        return ResourceError(f"a decoder process ended with exit code {code}: its error message is above")
    if code == -signal.SIGKILL:
        why = "its reader was killed (SIGKILL), as the system does when memory runs out"
    elif code is None:
        why = "its reader crashed and does not end"
    elif code >= 0:
        why = f"its reader ended with exit code {code}"
    else:
        name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
        why = f"its reader crashed ({name})"
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
        return DecodedVideo(self.ask(request))

    def ask(self, request: Request) -> Answers:
        """Ask a process, and start one if all are busy; for the errors see `Answers`."""
        decoder = self._lend()
        try:
            decoder.send(request)
        except BaseException:
            self.take_back(decoder)
            raise
        return Answers(decoder, self)

    def _lend(self) -> _Decoder:
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
        """Keep a process for the next request, or end it if it is still busy or dead."""
        with self._lock:
            self._lent.discard(decoder)
            is_kept = decoder.is_idle and not self._is_closed
            if is_kept and decoder.slots is not None:
                decoder.slots.reset()
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
        self.slots: Slots | None = None
        self._arrivals = select.poll()  # directly: a connection's own `poll` takes 30 µs to set up, for every frame
        self._arrivals.register(self._connection, select.POLLIN)

    def send(self, request: Request) -> None:
        """Send a request; for the errors see `receive`."""
        self._video, self.is_idle = request.video, False
        with self._explained():
            self._connection.send(request)

    def _share(self, layout: Layout) -> None:
        """Map new memory, and send its descriptor."""
        file = create_file()
        try:
            before, self.slots = self.slots, Slots(file, layout)
            if before is not None and before.is_stopped:
                self.slots.stop()
            self._connection.send(Sign.MEMORY_FOLLOWS)
            send_handle(self._connection, file, self.process.pid)
        finally:
            os.close(file)

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
            why = f"its reader made no progress for {self._timeout:g} s: give --timeout more seconds, or leave it out"
            raise DecoderHangs(self._video, why) from None
        except (EOFError, OSError) as broken:
            if getattr(broken, "errno", None) in (errno.EMFILE, errno.ENFILE, *_NO_MEMORY):
                raise explain(self._video, broken) from None
            raise _explain_death(self._video, self.wait(), has_answered=self._has_answered) from None

    def next_answer(self, timeout: float | None) -> Any:
        """Return the next answer, which may be an error that the process sent.

        Raises:
            TimeoutError: it made no progress for that many seconds.
            EOFError, OSError: it is dead.
        """
        answer: Any = Sign.BEAT
        while answer is Sign.BEAT:
            if not self._arrivals.poll(None if timeout is None else min(1000 * timeout, _MAX_POLL_MS)):
                raise TimeoutError
            answer = self._connection.recv()
            if isinstance(answer, Layout):
                self._share(answer)
                answer = Sign.BEAT
        self._has_answered = True
        self.is_idle = isinstance(answer, (Last, Vid3dError))
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


class Answers(Iterator[Any]):
    """The answers of a decoder process to one request, once.

    Not thread-safe: close it in the thread that iterates.

    Args:
        decoder: has the request.
        decoders: get it back.

    Raises:
        VideoError: while iterating: the video cannot be used, or the process dies, hangs or fails.
        UsageError: while iterating: the request is impossible.
        ResourceError: no process can be started, or too many files are open.
    """

    last: Any = None
    """The last answer, after the iteration; it is not yielded."""

    def __init__(self, decoder: _Decoder, decoders: Decoders) -> None:
        self._decoder: _Decoder | None = decoder
        self._decoders = decoders

    def __next__(self) -> Any:
        if self._decoder is None:
            raise StopIteration
        try:
            answer = self._decoder.receive()
        except Vid3dError:
            self._hand_back()
            raise
        if isinstance(answer, Last):
            self.last = answer.value
            self._hand_back()
            raise StopIteration
        return answer

    def finish(self) -> Any:
        """Return the last answer, after all others."""
        for _ in self:
            pass
        return self.last

    def borrow(self, slot: int) -> NDArray[np.uint8]:
        """Return the bytes that the latest answer says are in a slot; see `Slots.borrow`."""
        assert self._decoder is not None and self._decoder.slots is not None
        return self._decoder.slots.borrow(slot)

    def close(self) -> None:
        """Stop the answers; arrays that were borrowed stay as they are."""
        if self._decoder is None:
            return
        if self._decoder.slots is not None:
            self._decoder.slots.stop()
            give_up = time.monotonic() + STOP_SECONDS
            with suppress(EOFError, OSError):  # it died, or it takes too long
                while not self._decoder.is_idle:
                    self._decoder.next_answer(max(0.0, give_up - time.monotonic()))
        self._hand_back()

    def _hand_back(self) -> None:
        decoder, self._decoder = self._decoder, None
        assert decoder is not None
        self._decoders.take_back(decoder)

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
