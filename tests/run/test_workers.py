"""Workers return results in the order of the calls, and measure their time."""

import threading
import time

import numpy as np
import pytest

from vid3d_cli.clips.preprocess import Views
from vid3d_cli.clips.streams import align_streams
from vid3d_cli.flow.methods import create_flow
from vid3d_cli.records import Frame
from vid3d_cli.timings import StageSeconds
from vid3d_cli.workers import Workers


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_results_keep_the_order_of_the_calls(num_threads):
    def answer(number):
        time.sleep(0.002 * (number % 3))
        return number**2

    with Workers(num_threads) as workers:
        waiting = workers.ahead(workers.start("flow", answer, number) for number in range(20))
        assert [wait() for wait in waiting] == [number**2 for number in range(20)]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_no_more_items_are_drawn_than_threads_need(num_threads):
    drawn = []
    with Workers(num_threads) as workers:
        items = workers.ahead(drawn.append(number) or number for number in range(10))
        assert [next(items), next(items)] == [0, 1]
        assert len(drawn) == 2 + num_threads
        assert list(items) == list(range(2, 10))


def test_as_many_calls_run_at_once_as_there_are_threads():
    together = threading.Barrier(3, timeout=10)
    with Workers(3) as workers:
        for wait in list(workers.ahead(workers.start("flow", together.wait) for _ in range(3))):
            wait()  # raises BrokenBarrierError if there are fewer


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_reaches_the_caller(num_threads):
    with Workers(num_threads) as workers, pytest.raises(ZeroDivisionError):
        workers.start("flow", lambda: 1 // 0)()


def test_no_thread_outlives_the_workers():
    before = threading.active_count()
    with Workers(3) as workers:
        for number in range(9):
            workers.start("resize", time.sleep, 0.001 * number)
        assert threading.active_count() == before + 3
    assert threading.active_count() == before


def test_seconds_of_all_threads_add_up():
    spent = StageSeconds()
    with Workers(4, spent) as workers:
        waiting = [workers.start("flow", time.sleep, 0.05) for _ in range(8)]
        for wait in waiting:
            wait()
    assert 0.4 <= spent.flow < 4
    assert spent.decode == spent.resize == spent.network == spent.waited == 0


def test_only_the_time_to_make_items_is_counted():
    spent = StageSeconds()

    def items():
        for number in range(3):
            time.sleep(0.02)
            yield number

    taken, started = [], time.monotonic()
    for item in spent.each("decode", items()):
        time.sleep(0.1)
        taken.append(item)
    assert taken == [0, 1, 2]
    assert 0.06 <= spent.decode <= time.monotonic() - started - 3 * 0.1


def test_seconds_in_words():
    spent = StageSeconds(decode=3.14, resize=1, flow=4.2, network=40.1, waited=0.3)
    assert str(spent) == "decode 3.1 s, resize 1.0 s, flow 4.2 s, network 40.1 s, waited 0.3 s (0.7%)"
    assert str(StageSeconds()).endswith("waited 0.0 s (0.0%)")


@pytest.mark.parametrize("crop_px", [None, 32])
def test_streams_do_not_depend_on_the_number_of_threads(crop_px):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(12)]
    shown = [pictures[i // 2] for i in range(24)]  # each twice, as at twice the rate
    frames = [Frame(i, i / 25, (i + 1) / 25, picture) for i, picture in enumerate(shown)]
    compute = create_flow("dis")

    def flow(_, grey):
        return compute(grey)

    def align(workers=None):
        return list(
            align_streams(
                frames, size_px=48, crop=crop_px and Views(("c",), crop_px), rgb=True, flow=flow, workers=workers
            )
        )

    expected = align()
    assert len(expected) == 24
    for num_threads in (1, 3):
        with Workers(num_threads) as workers:
            found = align(workers)
        for one, other in zip(expected, found, strict=True):
            assert (one.seconds, one.end_seconds) == (other.seconds, other.end_seconds)
            for stream in ("rgb", "flow"):
                np.testing.assert_array_equal(one.streams[stream], other.streams[stream])
    assert all(a.streams["rgb"] is b.streams["rgb"] for a, b in zip(expected[::2], expected[1::2], strict=True))
