"""Compares `vid3d extract` with the features that the field's most used extractor gave for real videos.

The references are v-iashin/video_features' I3D rgb features, its batch-norm eps corrected to 1e-3, with the seeded
weights of case i3d_rgb_hassony2-64f. It needs one frame more than a window, so it may have one window fewer.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import SeededCase

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.exhaustive
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the reference videos beside the checkout")
@pytest.mark.parametrize("name, window, stride", [("short_32_frames", 16, 8), ("v_GGSY1Qvo990", 64, 64)])
def test_features_of_real_videos(vid3d, tmp_path, name, window, stride):
    state = SeededCase("i3d_rgb_hassony2_64f").state_dict()
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "rgb.pt")
    arguments = ["--streams", "rgb", "--weights", "rgb=rgb.pt", "--precision", "fp32", "--fps", "native"]
    arguments += ["--window", window, "--stride", stride, "--tail", "drop", "--out", "feats.npz"]
    result = vid3d("extract", SHARED / "videos" / f"{name}.mp4", *arguments)
    assert result.exit_code == 0, result.stderr
    with np.load(SHARED / "reference" / "e2e" / f"{name}-i3d_rgb-{window}-{stride}.npz") as reference:
        expected, end_ms = reference["rgb"], reference["timestamps_ms"]
    with np.load(tmp_path / "feats.npz") as found:
        features, ends = found["features"][: len(expected)], found["end_seconds"][: len(expected)]
        assert len(found["features"]) - len(expected) in (0, 1)
    assert np.abs(features - expected).max() <= 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(ends * 1000, end_ms, atol=1)
