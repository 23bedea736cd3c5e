"""Aligned streams, from synthetic frames and a flow function that records its arguments."""

import itertools
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vid3d_cli.clips import streams
from vid3d_cli.clips.preprocess import Views
from vid3d_cli.clips.streams import align_streams
from vid3d_cli.flow.fields import quantise_flow
from vid3d_cli.flow.methods import create_flow
from vid3d_cli.records import Frame
from vid3d_cli.workers import Workers

HEIGHT, WIDTH, CROP = 12, 17, 8
CENTRE = Views(("c",), CROP)


def frames_of(images):
    return [Frame(i, i / 5, (i + 1) / 5, image) for i, image in enumerate(images)]


def flat(value, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def noise(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class FakeFlow:
    """Records its arguments. Its flow is constant: the mean grey of both images."""

    def __init__(self):
        self.calls = []

    def __call__(self, index, grey):
        assert grey.dtype == np.uint8
        means = [float(image.mean()) for image in grey]
        self.calls.append((index, *means))
        pairs = np.float32(list(itertools.pairwise(means)))
        return np.broadcast_to(pairs[:, None, None], (len(pairs), *grey.shape[1:], 2))

    @property
    def pairs(self):
        """Every pair: index of the first frame, mean of both."""
        runs = sorted(self.calls)
        return [(index + i, *pair) for index, *means in runs for i, pair in enumerate(itertools.pairwise(means))]


def align(images, *, rgb=True, flow=None, short_side_px=HEIGHT, crop=CENTRE, **options):
    options |= {"size_px": short_side_px, "crop": crop, "rgb": rgb, "flow": flow}
    return list(align_streams(frames_of(images), **options))


@pytest.mark.parametrize("short_side_px", [HEIGHT, 9, 20])
@given(st.lists(st.integers(0, 255), min_size=0, max_size=7))
def test_flow_t_is_from_frame_t_to_the_next_and_the_last_repeats(short_side_px, values):
    flow = FakeFlow()
    entries = align([flat(value) for value in values], flow=flow, short_side_px=short_side_px)
    assert len(entries) == len(values)
    pairs = list(itertools.pairwise(values))
    assert flow.calls == [(i, *pair) for i, pair in enumerate(pairs)]  # once a pair, in the order of time
    expected = [*pairs, pairs[-1]] if pairs else [(0, 0)] * len(values)
    for entry, means in zip(entries, expected, strict=True):
        motion = entry.streams["flow"]
        assert motion.shape == (CROP, CROP, 2)
        assert motion.dtype == np.float32
        assert (motion == np.float32(means)).all()


def test_flow_gets_the_index_of_the_frame():
    flow = FakeFlow()
    later = [Frame(i, i / 5, (i + 1) / 5, flat(i)) for i in range(7, 10)]
    list(align_streams(later, size_px=HEIGHT, crop=CENTRE, rgb=False, flow=flow))
    assert flow.calls == [(7, 7, 8), (8, 8, 9)]


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([0, 1, 4]), st.sampled_from([CENTRE, None]))
@settings(deadline=None)
def test_each_pair_is_computed_once_however_pairs_are_grouped(num_frames, pairs_per_call, num_threads, crop):
    images = [flat(5 * i) for i in range(num_frames)]
    flow = FakeFlow()
    with Workers(num_threads) as workers:
        entries = align(images, flow=flow, crop=crop, pairs_per_call=pairs_per_call, workers=workers)
    assert [entry.seconds for entry in entries] == [i / 5 for i in range(num_frames)]
    pairs = [(i, 5 * i, 5 * (i + 1)) for i in range(num_frames - 1)]
    for i, entry in enumerate(entries):
        _, *means = pairs[min(i, len(pairs) - 1)] if pairs else (0, 0, 0)
        motion = entry.streams["flow"]
        assert motion.shape == ((CROP, CROP, 2) if crop else (HEIGHT, WIDTH, 2))
        assert (motion == np.float32(means)).all()
        assert entry.streams["rgb"][0, 0, 0] == images[i][0, 0, 0]

    assert flow.pairs == pairs
    whole, rest = divmod(num_frames - 1, pairs_per_call)
    sizes = sorted(len(means) - 1 for _, *means in flow.calls)
    assert sizes == sorted([pairs_per_call] * whole + [size for size in [rest] if size])


@given(st.lists(st.integers(0, 255), min_size=1, max_size=5), st.sampled_from([3, 20]))
def test_flow_is_quantised_frame_by_frame(values, bound_px):
    images = [flat(value) for value in values]
    exact, coarse = align(images, flow=FakeFlow()), align(images, flow=FakeFlow(), bound_px=bound_px)
    for one, other in zip(exact, coarse, strict=True):
        np.testing.assert_array_equal(other.streams["flow"], quantise_flow(one.streams["flow"], bound_px))
        assert other.streams["flow"].dtype == np.uint8


@pytest.mark.parametrize("method", ["dis", "tvl1"])
def test_flow_does_not_depend_on_how_pairs_are_grouped(method):
    images = [noise(0, 40, 48 + 4 * t)[:, 4 * t :] for t in range(6)]  # the same size
    compute = create_flow(method)

    def flows(**options):
        entries = align(images, flow=lambda _, grey: compute(grey), short_side_px=40, crop=None, **options)
        return np.stack([entry.streams["flow"] for entry in entries])

    expected = flows()
    assert np.abs(expected).max() > 0.5
    with Workers(2) as workers:
        for pairs_per_call in (2, 64):
            np.testing.assert_array_equal(flows(pairs_per_call=pairs_per_call), expected)
            np.testing.assert_array_equal(flows(pairs_per_call=pairs_per_call, workers=workers), expected)


@pytest.mark.parametrize("num_threads", [0, 1, 4])
@pytest.mark.parametrize("pairs_per_call", [1, 2, 5])
def test_nothing_is_read_further_ahead_than_needed(pairs_per_call, num_threads):
    num_read = 0

    def frames():
        nonlocal num_read
        for frame in frames_of([flat(i) for i in range(40)]):
            num_read += 1
            yield frame

    options = {"size_px": HEIGHT, "crop": CENTRE, "rgb": True, "flow": FakeFlow(), "pairs_per_call": pairs_per_call}
    with Workers(num_threads) as workers:
        for t, _ in enumerate(align_streams(frames(), workers=workers, **options)):
            num_runs = t // pairs_per_call + 1 + -(-num_threads // pairs_per_call)
            needed = num_runs * pairs_per_call + 1 + num_threads
            assert num_read <= needed
            if num_threads == 0:
                assert num_read == min(needed, 40)


def test_the_next_run_fills_while_one_is_computed():
    """Even if a run has more pairs than there are threads."""
    next_run_is_there = threading.Event()

    def frames():
        for frame in frames_of([flat(i) for i in range(9)]):
            if frame.index == 8:  # the end of the second run
                next_run_is_there.set()
            yield frame

    def flow(_, grey):
        assert next_run_is_there.wait(timeout=20)
        return np.zeros((len(grey) - 1, *grey.shape[1:], 2), np.float32)

    with Workers(2) as workers:
        options = {"size_px": HEIGHT, "crop": CENTRE, "rgb": True, "flow": flow, "pairs_per_call": 4}
        assert len(list(align_streams(frames(), workers=workers, **options))) == 9


def test_a_flow_error_is_raised_at_its_frames():
    def flow(index, grey):
        if index == 3:
            raise RuntimeError("no flow")
        return np.zeros((len(grey) - 1, *grey.shape[1:], 2), np.float32)

    with Workers(2) as workers:
        options = {"size_px": HEIGHT, "crop": CENTRE, "rgb": True, "flow": flow, "pairs_per_call": 3}
        entries = align_streams(frames_of([flat(i) for i in range(9)]), workers=workers, **options)
        assert len([next(entries) for _ in range(3)]) == 3
        with pytest.raises(RuntimeError, match="no flow"):
            next(entries)


def test_times_are_those_of_the_frames():
    entries = align([flat(0)] * 3, flow=FakeFlow())
    assert [(entry.seconds, entry.end_seconds) for entry in entries] == [(0 / 5, 1 / 5), (1 / 5, 2 / 5), (2 / 5, 3 / 5)]


def test_both_streams_have_the_same_crop():
    images = [noise(i) for i in range(3)]
    top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
    place = np.s_[top : top + CROP, left : left + CROP]
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    coordinates = np.stack([x, y], axis=2)
    for entry, image in zip(align(images, flow=lambda *_: coordinates[None]), images, strict=True):
        np.testing.assert_array_equal(entry.streams["rgb"], image[place])
        np.testing.assert_array_equal(entry.streams["flow"], coordinates[place])


def test_flow_is_computed_on_resized_uncropped_frames():
    shapes = []

    def flow(_, grey):
        shapes.append(grey.shape)
        return np.zeros((1, *grey.shape[1:], 2), np.float32)

    align([noise(0, 24, 40), noise(1, 24, 40)], flow=flow, short_side_px=12)
    assert shapes == [(2, 12, 20)]


def test_without_a_crop_frames_and_flow_are_whole():
    entries = align([noise(0, 24, 40), noise(1, 24, 40)], flow=FakeFlow(), short_side_px=12, crop=None)
    shapes = {name: array.shape for name, array in entries[0].streams.items()}
    assert shapes == {"rgb": (12, 20, 3), "flow": (12, 20, 2)}
    (single,) = align([noise(0, 24, 40)], flow=FakeFlow(), short_side_px=12, crop=None)
    assert single.streams["flow"].shape == (12, 20, 2)


@pytest.mark.parametrize(("rgb", "with_flow"), [(True, False), (False, True), (True, True)])
def test_only_requested_streams_are_made(rgb, with_flow):
    entries = align([noise(0), noise(1)], rgb=rgb, flow=FakeFlow() if with_flow else None)
    assert [(("rgb" in entry.streams), ("flow" in entry.streams)) for entry in entries] == [(rgb, with_flow)] * 2


def test_an_image_that_is_shown_several_times_is_resized_once(monkeypatch):
    resize, resized = streams.resize, []

    def counting(image, size_px, interpolation):
        resized.append(id(image))
        return resize(image, size_px, interpolation)

    monkeypatch.setattr(streams, "resize", counting)
    first, second, third = noise(0), noise(1), noise(0)
    entries = align([first, first, first, second, second, third, first], flow=FakeFlow(), short_side_px=9)
    assert resized == [id(first), id(second), id(third), id(first)]
    shown = [entry.streams["rgb"] for entry in entries]
    for other in (1, 2, 5, 6):  # also where an equal image is another array
        np.testing.assert_array_equal(shown[other], shown[0])
    np.testing.assert_array_equal(shown[4], shown[3])
    assert (shown[3] != shown[0]).any()


def test_entries_do_not_hold_their_frames():
    alive, num_held = [], []

    def frames():
        for i in range(6):
            num_held.append(sum(reference() is not None for reference in alive))
            image = noise(i)
            alive.append(weakref.ref(image))
            yield Frame(i, i / 5, (i + 1) / 5, image)
            del image

    entries = list(align_streams(frames(), size_px=HEIGHT, crop=CENTRE, rgb=True, flow=FakeFlow()))
    assert len(entries) == 6
    assert max(num_held) <= 2
    assert not any(reference() is not None for reference in alive)
