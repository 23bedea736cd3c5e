"""Centred clips and spread frames against NumPy, which looks at all frames at once."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from held import count_held
from hypothesis import given
from hypothesis import strategies as st

from vid3d_cli.clips.windows import Spread, Window, count_clips, sliding_clips
from vid3d_cli.errors import UsageError
from vid3d_cli.models.registry import BACKBONES

num_frames_drawn = st.integers(0, 60)
length_drawn = st.integers(1, 30)
stride_drawn = st.integers(1, 40)


@given(num_frames_drawn, length_drawn, stride_drawn)
def test_centred_clips_are_clamped_indices(num_frames, length, stride):
    cut = list(sliding_clips(range(num_frames), length=length, stride=stride, centred=True))
    centres = np.arange(0, num_frames, stride)
    expected = np.clip(centres[:, None] - length // 2 + np.arange(length), 0, max(num_frames - 1, 0))
    assert [window.frames for window in cut] == expected.tolist()
    assert len(cut) == count_clips(num_frames, length=length, stride=stride, centred=True)
    for window, centre in zip(cut, centres, strict=True):
        assert window.frames[length // 2] == centre
        assert window.start == min(window.frames)
        assert window.num_valid == len(set(window.frames))


def test_ms_tcn_has_a_row_for_every_frame_from_ten_before_to_ten_after():
    cut = list(sliding_clips(range(300), length=21, stride=1, centred=True))
    assert len(cut) == 300
    assert cut[150].frames == list(range(140, 161))
    assert (cut[0].start, cut[0].num_valid, cut[0].frames) == (0, 11, [0] * 10 + list(range(11)))
    assert (cut[299].start, cut[299].num_valid) == (289, 11)


def test_centred_clips_of_even_length_have_one_frame_more_before_the_middle():
    cut = sliding_clips("012345", length=4, stride=2, centred=True)
    assert ["".join(window.frames) for window in cut] == ["0001", "0123", "2345"]


@given(num_frames_drawn, length_drawn, stride_drawn)
def test_at_most_one_centred_clip_of_frames_is_held(num_frames, length, stride):
    cut = partial(sliding_clips, length=length, stride=stride, centred=True)
    most, left = count_held(cut, num_frames)
    assert most <= length
    assert left == 0


@given(length_drawn, stride_drawn)
def test_a_centred_clip_is_yielded_as_soon_as_its_last_frame_is_read(length, stride):
    frames = iter(range(60))
    for window in sliding_clips(frames, length=length, stride=stride, centred=True):
        if window.frames.count(59) <= 1:
            assert frames.__length_hint__() == 59 - window.frames[-1]


def test_no_dense_run_can_give_the_features_of_centred_clips():
    """A step near the end of a clip depends on frames beyond it; --dense takes these, a clip of its own has none."""
    assert all(backbone.steps.margin > 0 for backbone in BACKBONES.values() if backbone.steps)


def whole(length):
    """A window in the middle of a video."""
    return Window(0, length, list(range(length)))


# Spread --------------------------------------------------------------------------------------------------------------


@given(length_drawn.map(lambda n: 4 * n), st.integers(1, 70))
def test_spread_frames_are_those_of_linspace(length, num_frames):
    spread = Spread(num_frames).indices(whole(length), 25.0, Fraction(25))
    # NumPy's positions are rounded: one just below a whole number is that number.
    assert spread == np.floor(np.linspace(0, length - 1, num_frames) + 1e-9).astype(int).tolist()
    assert spread[0] == 0
    assert spread[-1] == (length - 1 if num_frames > 1 else 0)


@pytest.mark.parametrize("window", [45, 60])
@pytest.mark.parametrize("file_fps", [*range(1, 121), 14.985, 24000 / 1001, 30000 / 1001, 60000 / 1001, 0.5])
def test_heros_spread_is_that_of_its_extractor_in_float32(file_fps, window):
    """Its preprocessing.py: 64 frames at a rate that is rounded down, 32 of them, clamped to the clip, cut to whole."""
    import torch

    last = 32 * 2 * int(file_fps) / 30 - 1
    theirs = torch.clamp(torch.linspace(0, last, 32), 0, window - 1).long().tolist()
    assert Spread.parse("32:64").indices(whole(window), file_fps, Fraction(30)) == theirs


@pytest.mark.parametrize(
    ("file_fps", "last"), [(15, 31), (24000 / 1001, 48), (25, 52), (28, 58), (30000 / 1001, 59), (30, 59), (60, 59)]
)
def test_heros_spread_ends_with_the_file(file_fps, last):
    picked = Spread(32, 64).indices(whole(60), file_fps, Fraction(30))
    assert (picked[0], picked[-1], len(picked)) == (0, last, 32)
    assert picked == sorted(picked)


@given(st.integers(1, 500), st.sampled_from([15, 24, 30]), st.sampled_from([(60, 2), (45, 3)]))
def test_heros_last_clip_repeats_its_last_second(num_frames, file_fps, clip):
    """Its preprocessing.py: the last frame repeats to a whole second, and that second to whole clips of whole seconds.

    Clips that the file's duration does not reach are cut off. A second that begins before the clip is not held.
    """
    length, seconds = clip
    filled = list(range(num_frames)) + [num_frames - 1] * (-num_frames % 30)
    filled += filled[-30:] * (-(len(filled) // 30) % seconds)
    clips = np.reshape(filled, (-1, length))[: -(-num_frames // length)]
    theirs = clips[:, np.linspace(0, 64 * file_fps / 30 - 1, 32).clip(0, length - 1).astype(int)]
    cut = sliding_clips(range(num_frames), length=length, stride=length)
    ours = [[window.frames[i] for i in Spread(32, 64).indices(window, file_fps, 30)] for window in cut]
    np.testing.assert_array_equal(ours, np.maximum(theirs, length * np.arange(len(clips))[:, None]))
    if length == 60:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1.5", "8:", ":8", "8:0", "8:16:32", "٣", "1" * 5000, " 8"])
def test_other_text_is_no_spread(text):
    with pytest.raises(UsageError, match="give a number of frames"):
        Spread.parse(text)


def test_a_spread_reads_what_it_prints():
    assert [str(Spread.parse(text)) for text in ("32", 32, "32:64")] == ["32", "32", "32:64"]
