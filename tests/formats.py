"""The forms of an output, for tests of all of them."""

import pytest

FORMATS = ("feats.npy", "feats.npz", "feats.h5", "feats.parquet", "feats", "feats+video_features")
"""Names for --out; the last one is the directory in the layout of this name."""

_PACKAGES = {".h5": "h5py", ".parquet": "pyarrow"}


def split(name):
    """Return the path and the layout of a name."""
    path, _, layout = name.partition("+")
    return path, layout or "vid3d"


def skip_without_package(*names):
    """Skip the test if the package of a format is not installed."""
    for suffix, package in _PACKAGES.items():
        if any(str(name).endswith(suffix) for name in names):
            pytest.importorskip(package)
