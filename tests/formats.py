"""The forms of an output, for tests of all of them."""

import pytest

from vid3d_cli.presets import Files

FORMATS = ("feats.npy", "feats.npz", "feats.h5", "feats.parquet", "feats", "feats+video_features")
"""Names for --out; the last one is the directory in the layout of this name."""

FILES = {
    "feats+npz": Files("{id}.npz", axes="DT", key="i3d"),
    "feats+streams": Files("{stream}/{stem}.npy", streams={"rgb": "RGB", "flow": "Flow"}),
}
"""Directories in the layout "files"."""

_PACKAGES = {".h5": "h5py", ".parquet": "pyarrow"}


def split(name):
    """Return the path and the layout of a name."""
    path, _, layout = name.partition("+")
    return path, "files" if name in FILES else layout or "vid3d"


def concat_of(name, concat=True):
    """Return whether an output has the streams side by side, if asked for `concat`."""
    if name in FILES:
        return FILES[name].concat
    return concat and not name.endswith("video_features")


def skip_without_package(*names):
    """Skip the test if the package of a format is not installed."""
    for suffix, package in _PACKAGES.items():
        if any(str(name).endswith(suffix) for name in names):
            pytest.importorskip(package)
