"""Frames to aligned streams, with pictures made by hand and a flow function that says what it was given."""

import itertools
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli import streams
from vid3d_cli.records import Frame
from vid3d_cli.streams import align_streams

HEIGHT, WIDTH, CROP = 12, 17, 8


def frames_of(pictures):
    return [Frame(i, i / 5, (i + 1) / 5, picture) for i, picture in enumerate(pictures)]


def flat(value, height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), value, np.uint8)


def noise(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class FakeFlow:
    """Records what it is called with; its flow is the same two numbers everywhere: the means of the two pictures."""

    def __init__(self):
        self.calls = []

    def __call__(self, index, first, second):
        assert first.dtype == second.dtype == np.uint8
        assert first.shape == second.shape
        self.calls.append((index, float(first.mean()), float(second.mean())))
        return np.broadcast_to(np.float32([first.mean(), second.mean()]), (*first.shape, 2))


def align(pictures, *, rgb=True, flow=None, short_side_px=HEIGHT, crop_px=CROP):
    options = {"size_px": short_side_px, "crop_px": crop_px, "rgb": rgb, "flow": flow}
    return list(align_streams(frames_of(pictures), **options))


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


def test_flow_is_told_the_index_that_the_frame_carries():
    flow = FakeFlow()
    later = [Frame(i, i / 5, (i + 1) / 5, flat(i)) for i in range(7, 10)]
    list(align_streams(later, size_px=HEIGHT, crop_px=CROP, rgb=False, flow=flow))
    assert flow.calls == [(7, 7, 8), (8, 8, 9)]


def test_times_are_those_of_the_frames():
    entries = align([flat(0)] * 3, flow=FakeFlow())
    assert [(entry.seconds, entry.end_seconds) for entry in entries] == [(0 / 5, 1 / 5), (1 / 5, 2 / 5), (2 / 5, 3 / 5)]


def test_both_streams_are_cut_from_the_same_place():
    pictures = [noise(i) for i in range(3)]
    top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
    place = np.s_[top : top + CROP, left : left + CROP]
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    coordinates = np.stack([x, y], axis=2)
    for entry, picture in zip(align(pictures, flow=lambda *_: coordinates), pictures, strict=True):
        np.testing.assert_array_equal(entry.streams["rgb"], picture[place])
        np.testing.assert_array_equal(entry.streams["flow"], coordinates[place])


def test_flow_is_computed_on_whole_pictures_of_the_resized_size():
    shapes = []

    def flow(_, first, second):
        shapes.append((first.shape, second.shape))
        return np.zeros((*first.shape, 2), np.float32)

    align([noise(0, 24, 40), noise(1, 24, 40)], flow=flow, short_side_px=12)
    assert shapes == [((12, 20), (12, 20))]


def test_without_a_crop_frames_and_flow_are_whole():
    entries = align([noise(0, 24, 40), noise(1, 24, 40)], flow=FakeFlow(), short_side_px=12, crop_px=None)
    shapes = {name: array.shape for name, array in entries[0].streams.items()}
    assert shapes == {"rgb": (12, 20, 3), "flow": (12, 20, 2)}
    (single,) = align([noise(0, 24, 40)], flow=FakeFlow(), short_side_px=12, crop_px=None)
    assert single.streams["flow"].shape == (12, 20, 2)


@pytest.mark.parametrize(("rgb", "with_flow"), [(True, False), (False, True), (True, True)])
def test_only_the_streams_that_were_asked_for_are_made(rgb, with_flow):
    entries = align([noise(0), noise(1)], rgb=rgb, flow=FakeFlow() if with_flow else None)
    assert [(("rgb" in entry.streams), ("flow" in entry.streams)) for entry in entries] == [(rgb, with_flow)] * 2


def test_a_picture_shown_several_times_is_resized_once(monkeypatch):
    resize, resized = streams.resize, []

    def counting(picture, size_px, *, antialias):
        resized.append(id(picture))
        return resize(picture, size_px, antialias=antialias)

    monkeypatch.setattr(streams, "resize", counting)
    first, second, third = noise(0), noise(1), noise(0)
    entries = align([first, first, first, second, second, third, first], flow=FakeFlow(), short_side_px=9)
    assert resized == [id(first), id(second), id(third), id(first)]
    shown = [entry.streams["rgb"] for entry in entries]
    for other in (1, 2, 5, 6):  # also where an equal picture is another array
        np.testing.assert_array_equal(shown[other], shown[0])
    np.testing.assert_array_equal(shown[4], shown[3])
    assert (shown[3] != shown[0]).any()


def test_entries_do_not_hold_the_frames_they_were_cut_from():
    alive, num_held = [], []

    def frames():
        for i in range(6):
            num_held.append(sum(reference() is not None for reference in alive))
            picture = noise(i)
            alive.append(weakref.ref(picture))
            yield Frame(i, i / 5, (i + 1) / 5, picture)
            del picture

    entries = list(align_streams(frames(), size_px=HEIGHT, crop_px=CROP, rgb=True, flow=FakeFlow()))
    assert len(entries) == 6
    assert max(num_held) <= 2
    assert not any(reference() is not None for reference in alive)
