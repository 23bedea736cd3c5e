"""Decoder processes: same frames as `VideoReader`; one that dies or hangs fails its video and is replaced."""

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import damage, read_index, write_video

from vid3d_cli.errors import (
    DecoderDied,
    DecoderFailed,
    DecoderHangs,
    NoFrames,
    NotAVideo,
    OutOfMemory,
    ResourceError,
    UsageError,
    VideoNotFound,
)
from vid3d_cli.options import Options
from vid3d_cli.plan import Plan
from vid3d_cli.run import local
from vid3d_cli.video import process as module
from vid3d_cli.video.process import Decoders, probe
from vid3d_cli.video.reader import VideoReader

linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """60 frames at 25 fps: more than slots."""
    return str(write_video(tmp_path_factory.mktemp("decoders") / "video.mp4", num_frames=60))


def pid_of(frames):
    return frames._answers._decoder.process.pid


# The same as in this process -----------------------------------------------------------------------------------------


def damaged(path):
    return damage(write_video(path, num_frames=40, num_b_frames=0), [13, 14, 30])


VIDEOS = {
    "variable.mp4": lambda path: write_video(path, times_seconds=[0, 0.04, 0.1, 0.5, 0.52, 0.9, 1.4, 1.41, 2.0]),
    "mirrored.mp4": lambda path: write_video(path, num_frames=200, rotation_degrees=90, is_mirrored=True),
    "odd.webm": lambda path: write_video(path, num_frames=20, width=70, height=50),
    "damaged.mp4": damaged,
    "damaged.avi": damaged,
}
SPANS = [{}, {"fps": Fraction(60)}, {"start_seconds": 0.3, "end_seconds": 1.1}, {"start_seconds": 6.0}]


def read_all(frames):
    """Header, frames, and counts after the last one; or the error."""
    try:
        with frames as reader:
            shown = [(frame.index, frame.seconds, frame.end_seconds, frame.rgb.tobytes()) for frame in reader]
        return reader.info, reader.num_expected_frames, reader.num_lost_frames, shown
    except NoFrames as error:
        return error.args


@pytest.mark.parametrize("name", VIDEOS)
def test_nothing_differs_from_reading_in_this_process(pool, tmp_path, name):
    path = str(VIDEOS[name](tmp_path / name))
    for span in SPANS:
        assert read_all(pool.open(path, **span)) == read_all(VideoReader(path, **span))
    if name.startswith("damaged"):
        assert read_all(pool.open(path))[2] > 0


def test_a_repeated_frame_is_the_same_array(pool, video):
    with pool.open(video, fps=Fraction(100)) as frames:
        shown = [frame.rgb for frame in frames]
    assert len(shown) == 240
    for index in range(0, 240, 4):
        assert all(rgb is shown[index] for rgb in shown[index : index + 4])
    assert len({id(rgb) for rgb in shown}) == 60


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), OutOfMemory, "needs more memory than there is"),
        (av.error.MemoryError(12, "Cannot allocate memory"), OutOfMemory, "needs more memory than there is"),
        (RuntimeError("the decoder fell over"), DecoderFailed, "RuntimeError: the decoder fell over"),
        (OSError(24, "Too many open files"), ResourceError, "raise the limit"),
        (NoFrames("a.mp4", "nothing in it"), NoFrames, "nothing in it"),
    ],
)
def test_foreign_errors_become_ours(error, kind, text):
    assert type(module.explain("a.mp4", error)) is kind
    assert text in str(module.explain("a.mp4", error))
    if not isinstance(error, NoFrames):  # where our own reader has put it into its words
        wrapped = NotAVideo("a.mp4", "cannot be opened")
        wrapped.__cause__ = error
        assert type(module.explain("a.mp4", wrapped)) is (NotAVideo if kind is DecoderFailed else kind)


# Shared memory -------------------------------------------------------------------------------------------------------


def indices(images):
    return [read_index(rgb) for rgb in images]


def test_frames_can_be_kept(pool, video):
    with pool.open(video) as frames:
        kept = [frame.rgb for frame in frames]
    with pool.open(video) as frames:  # the same child
        for frame in frames:
            frame.rgb[:] = 0
    assert indices(kept) == list(range(60))


def test_a_view_keeps_its_frame(pool, video):
    """Its slot is not filled again while any view of it is left, however it was made."""
    with pool.open(video) as frames:
        views = [next(frames).rgb[:, ::-1][::1], memoryview(next(frames).rgb.transpose(2, 0, 1))]
        before = [np.array(view) for view in views]
        assert read_index(views[0][:, ::-1]) == 0
        for frame in frames:
            last = frame.index
        assert last == 59
        for view, copy in zip(views, before, strict=True):
            np.testing.assert_array_equal(view, copy)


def test_frames_are_not_copied_while_few_are_kept(pool, video):
    with pool.open(video) as frames:
        for frame in frames:
            assert np.may_share_memory(frame.rgb, np.frombuffer(frames._answers._decoder.slots.memory, np.uint8))


def test_large_frames_have_few_slots_and_do_not_block(pool, tmp_path):
    path = write_video(tmp_path / "large.mp4", num_frames=12, width=3840, height=2160, codec="mpeg4")
    with pool.open(str(path)) as frames:
        assert frames._answers._decoder.slots.layout.num_slots == 4
        kept = [frame.rgb[::40, ::40] for frame in frames]
    assert indices(kept) == list(range(12))


# Processes -----------------------------------------------------------------------------------------------------------


def test_a_process_is_reused_after_errors_and_unfinished_videos(tmp_path, video):
    endless = str(write_video(tmp_path / "endless.mp4", times_seconds=[0, 50, 50.04]))
    with Decoders(30) as decoders:
        pids = []
        for path, fps, num_frames in [(video, None, 60), (video, None, 3), (endless, 1000, 5), (video, None, 1)]:
            with decoders.open(path, fps=fps and Fraction(fps)) as frames:
                pids.append(pid_of(frames))
                assert [next(frames).index for _ in range(num_frames)] == list(range(num_frames))
        with pytest.raises(VideoNotFound):
            decoders.open("absent.mp4")
        with decoders.open(video) as frames, decoders.open(video) as others:
            assert pid_of(frames) != pid_of(others)
            pids.append(min(pid_of(frames), pid_of(others), key=lambda pid: pid != pids[0]))
            assert indices(frame.rgb for frame in frames) == indices(frame.rgb for frame in others) == list(range(60))
    assert len(set(pids)) == 1


def test_iteration_stays_at_its_end(pool, video):
    with pool.open(video) as frames:
        assert len(list(frames)) == 60
        assert list(frames) == []
    frames.close()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGSEGV, "its reader crashed (SIGSEGV): re-encode it, or leave it out"),
        (signal.SIGKILL, "its reader was killed (SIGKILL), as the system does when memory runs out"),
    ],
)
def test_a_process_that_dies_fails_its_video(video, number, text):
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            next(frames)
            dead = pid_of(frames)
            os.kill(dead, number)
            with pytest.raises(DecoderDied) as caught:
                list(frames)
        assert caught.value.video == video
        assert caught.value.message.startswith(text)
        with decoders.open(video) as frames:
            assert pid_of(frames) != dead
            assert len(list(frames)) == 60


def test_a_process_that_dies_while_idle_is_replaced(video):
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            dead = frames._answers._decoder
        dead.process.kill()
        dead.process.wait()
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_silent_process_is_killed(video):
    with Decoders(timeout=2.0) as decoders:
        with decoders.open(video) as frames:
            process = frames._answers._decoder.process
            process.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(DecoderHangs, match=r"made no progress for 2 s: give --timeout more seconds"):
                list(frames)
        assert 2 <= time.monotonic() - started < 10
        assert process.returncode == -signal.SIGKILL
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_process_that_hangs_on_opening_is_killed(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with Decoders(timeout=0.5) as decoders, pytest.raises(DecoderHangs):
        decoders.open(str(tmp_path / "pipe.mp4"))


def test_the_timeout_counts_only_waiting(video):
    with Decoders(timeout=2.0) as decoders, decoders.open(video) as frames:
        next(frames)
        time.sleep(2.5)
        assert len(list(frames)) == 59


@pytest.mark.exhaustive
def test_slow_progress_is_no_timeout(tmp_path):
    """On the way to a late start, it decodes for longer than the timeout without sending a frame."""
    source = write_video(tmp_path / "whole.ts", num_frames=100, codec="mpeg4").read_bytes()
    slow = tmp_path / "slow.ts"
    os.mkfifo(slow)

    def feed():
        with slow.open("wb", buffering=0) as pipe:
            half = len(source) // 2
            pipe.write(source[:half])
            for start in range(half, len(source), (len(source) - half) // 25):
                time.sleep(0.2)
                pipe.write(source[start : start + (len(source) - half) // 25])

    feeding = threading.Thread(target=feed)
    feeding.start()
    with Decoders(timeout=2.5) as decoders, decoders.open(str(slow), start_seconds=3.9) as frames:
        started = time.monotonic()
        assert read_index(next(frames).rgb) == 98
        assert time.monotonic() - started > 3
    feeding.join()


def test_a_process_that_does_not_stop_is_replaced(video, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    with Decoders() as decoders:
        with decoders.open(video) as frames:
            process = frames._answers._decoder.process
            process.send_signal(signal.SIGSTOP)
        assert process.returncode == -signal.SIGKILL
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_job_do_not_stop_its_processes(pool, video, wish):
    with pool.open(video) as frames:
        next(frames)
        os.kill(pid_of(frames), wish)
        assert os.getsid(pid_of(frames)) != os.getsid(0)
        assert len(list(frames)) == 59


def test_closing_fails_threads_that_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    decoders, errors = Decoders(), []

    def read():
        try:
            decoders.open(str(tmp_path / "pipe.mp4"))
        except DecoderDied as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not decoders._lent:
        time.sleep(0.01)
    started = time.monotonic()
    decoders.close()
    reading.join(5)
    assert time.monotonic() - started < 1
    assert len(errors) == 1
    with pytest.raises(RuntimeError, match="closed"):
        decoders.open("video.mp4")


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for_end(pids):
    give_up = time.monotonic() + 5
    while any(map(is_running, pids)):
        assert time.monotonic() < give_up
        time.sleep(0.01)


@linux_only
def test_a_process_ends_with_its_parent_even_while_it_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    script = (
        "import sys, threading, time\n"
        "from vid3d_cli.video.process import Decoders\n"
        "decoders = Decoders()\n"
        "threading.Thread(target=decoders.open, args=[sys.argv[1]]).start()\n"
        "while not decoders._lent: time.sleep(0.01)\n"
        "time.sleep(0.7)\n"
        "print(*[decoder.process.pid for decoder in decoders._lent], flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "pipe.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_for_end([pid])


@linux_only
def test_the_system_kills_a_decoder_first_when_memory_runs_out(pool, video):
    with pool.open(video) as frames:
        assert Path(f"/proc/{pid_of(frames)}/oom_score_adj").read_text().strip() == "1000"


@linux_only
def test_a_process_without_memory_fails_its_video(tmp_path, video):
    large = str(write_video(tmp_path / "large.mp4", num_frames=3, width=3840, height=2160))
    with Decoders(30) as decoders:
        with decoders.open(video) as frames:
            pid = pid_of(frames)
        num_bytes = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (num_bytes + 2**25, num_bytes + 2**25))
        with pytest.raises((OutOfMemory, DecoderDied)), decoders.open(large) as frames:
            list(frames)
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60


def test_a_process_imports_little():
    script = (
        "import vid3d_cli.video.child, sys; print([m for m in ('torch', 'cv2', 'rich', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_cannot_start_is_no_fault_of_the_video(video, monkeypatch, capfd):
    monkeypatch.setattr(module, "_COMMAND", "import no_such_module")
    with (
        Decoders(30) as decoders,
        pytest.raises(ResourceError, match="ended with exit code 1: its error message is above"),
    ):
        decoders.open(video)
    assert "no_such_module" in capfd.readouterr().err


def open_files():
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208


def children():
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


def wait_for_children(pid):
    give_up = time.monotonic() + 30
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return [int(child) for child in found]


@linux_only
def test_no_process_or_file_is_left(video):
    gc.collect()  # what tracebacks of earlier tests still hold
    files, before = open_files(), children()
    with Decoders(30) as decoders:
        for number in range(30):
            try:
                with decoders.open(video) as frames:
                    next(frames)
                    if number % 10 == 3:
                        os.kill(pid_of(frames), signal.SIGSEGV)
                    if number % 10 != 7:
                        list(frames)
            except DecoderDied:
                assert number % 10 == 3
            del frames
        assert len(children()) == len(before) + 1
    assert open_files() == files
    assert children() == before


@contextlib.contextmanager
def open_files_left(num_left):
    """Leave room for this many open files."""
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(num_left):
            os.close(taken.pop())
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("is_running", [False, True])
def test_too_many_open_files_are_no_fault_of_the_video(video, is_running):
    """Whichever step fails: the connection, the process, the memory, its mapping, sending it."""
    num_left, has_worked = 0, False
    while not has_worked:
        with Decoders(30) as decoders:
            if is_running:
                decoders.open(video).close()
            try:
                with open_files_left(num_left), decoders.open(video) as frames:
                    has_worked = len(list(frames)) == 60
            except ResourceError as error:
                assert "too many open files: raise the limit (ulimit -n" in str(error)
                num_left += 1
    assert (num_left == 0) if is_running else (num_left >= 3)  # a running process has all it needs


# Probing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mirrored.mp4", "damaged.avi", "odd.webm"])
@pytest.mark.parametrize("decode", [False, True])
def test_probe_returns_what_the_reader_knows(pool, tmp_path, name, decode):
    path = str(VIDEOS[name](tmp_path / name))
    with VideoReader(path) as reader:
        expected = reader.count_frames() if decode else reader.info
    assert probe(path, decode=decode, decoders=pool) == expected


def test_probe_without_decoders_leaves_no_process(video):
    before = children()
    assert probe(video, decode=True).num_frames_decoded == 60
    assert children() == before
    with pytest.raises(VideoNotFound):
        probe("absent.mp4")
    assert children() == before


def test_probe_of_a_pipe_without_a_writer_ends_with_the_timeout(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    before = children()
    with pytest.raises(DecoderHangs, match=r"made no progress for 0\.5 s: give --timeout more seconds"):
        probe(str(tmp_path / "pipe.mp4"), timeout=0.5)
    assert children() == before


def test_the_command_fails_a_pipe_and_probes_the_rest(vid3d, video, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    result = vid3d("probe", "pipe.mp4", video, "--timeout", 4)
    assert result.exit_code == 1
    assert [json.loads(line)["num_frames_decoded"] for line in result.stdout.splitlines()] == [60]
    assert "pipe.mp4: its reader made no progress for 4 s" in result.stderr


def test_sigterm_during_probe_exits_143_and_leaves_no_process(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    command = [sys.executable, "-m", "vid3d_cli", "probe", str(tmp_path / "pipe.mp4")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        decoders = wait_for_children(running.pid)
        running.terminate()
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 143
    assert "terminated (SIGTERM)" in stderr
    wait_for_end(decoders)  # one that had not quite started ends by itself


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_decoders_refuse_a_timeout_that_is_not_positive(timeout):
    with pytest.raises(UsageError, match="more than 0 s"):
        Decoders(timeout)


# In a job -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path):
    return [str(write_video(tmp_path / f"{n}.mp4", num_frames=n)) for n in (20, 100, 13, 9)]


def features_of(videos, failures=None, **options):
    on_failure = None if failures is None else lambda failure, _: failures.append(failure)
    plan = Plan.make(Options(window=9, stride=4, fps="native", device="cpu", batch_size=1))
    results = local.run(plan, videos, on_failure=on_failure, **options)
    return {result.video: result.features() for result in results}


def strike(monkeypatch, victim, number):
    """Send a signal to the process that opens this video."""

    def ask(self, request):
        answers = really_ask(self, request)
        if request.video == victim:
            os.kill(answers._decoder.process.pid, number)
        return answers

    really_ask = Decoders.ask
    monkeypatch.setattr(Decoders, "ask", ask)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGSEGV, "DecoderDied"),
        pytest.param(signal.SIGKILL, "DecoderDied", marks=pytest.mark.exhaustive),
        (signal.SIGSTOP, "DecoderHangs"),
    ],
)
def test_a_process_that_fails_fails_one_video_of_a_job(
    decoder_processes, tiny_model, videos, monkeypatch, number, error
):
    expected = features_of(videos)
    strike(monkeypatch, videos[1], number)
    failures = []
    found = features_of(videos, failures, jobs=2, timeout=3.0)
    assert [(failure.video, failure.error) for failure in failures] == [(videos[1], error)]
    assert list(found) == [videos[0], *videos[2:]]
    for video, features in found.items():
        np.testing.assert_array_equal(features, expected[video])


def test_a_job_ends_at_once_while_a_decoder_hangs(decoder_processes, tiny_model, videos, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    before = threading.active_count()
    plan = Plan.make(Options(window=9, device="cpu"))
    results = local.run(plan, [videos[0], str(tmp_path / "pipe.mp4"), *videos[1:]], jobs=2, timeout=None)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 1
    assert threading.active_count() == before


def test_a_job_that_cannot_open_files_ends_with_the_reason(decoder_processes, tiny_model, videos, monkeypatch):
    def no_file():
        raise OSError(24, "Too many open files")

    failures = []
    monkeypatch.setattr(module, "create_file", no_file)
    with pytest.raises(ResourceError, match="too many open files: raise the limit"):
        features_of(videos, failures)
    assert failures == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_job_refuses_a_timeout_that_is_not_positive(decoder_processes, tiny_model, videos, timeout):
    with pytest.raises(UsageError, match="more than 0 s"):
        features_of(videos, timeout=timeout)


def test_a_process_that_gets_nonsense_fails_its_video(video):
    with Decoders(timeout=30) as decoders:
        with decoders.open(video) as frames:
            next(frames)
            frames._answers._decoder._connection.send_bytes(b"no request")
            frames._answers._decoder.process.wait()  # or it may send all frames first
            with pytest.raises(DecoderDied, match="ended with exit code 1"):
                list(frames)
        with decoders.open(video) as frames:
            assert len(list(frames)) == 60
