"""Where `vid3d extract` puts clip features: which format a path means."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UsageError
from .directory import DirectoryStore, TreeStore, VideoFeaturesStore
from .format import LAYOUTS
from .hdf5 import Hdf5Store
from .npy import NpyStore
from .npz import NpzStore
from .packed import PackedStore
from .parquet import ParquetStore
from .store import FeatureStore, read_recipe

SUFFIXES: dict[str, type[NpyStore] | type[PackedStore]] = {
    ".npy": NpyStore,
    ".npz": NpzStore,
    ".h5": Hdf5Store,
    ".hdf5": Hdf5Store,
    ".parquet": ParquetStore,
}

_FORMS = "x.npy, x.npz, x.h5, x.parquet, or a directory (a name without a suffix, or ending in /)"


def create_store(out: str, *, layout: str = LAYOUTS[0], worker: str | None = None) -> FeatureStore:
    """Choose the format by the suffix of the path; none is a directory. Nothing is written yet.

    Args:
        out: `x.npy`, `x.npz`, `x.h5`, `x.parquet` or a directory.
        layout: see `FeatureFormat`.
        worker: name of one of several that work on the same list. They share a directory; each has a file of its own.

    Raises:
        UsageError: no format has this suffix, or the layout does not fit.
    """
    if not out:
        raise UsageError(f"the name of the output is empty: give {_FORMS}")
    path, suffix = Path(out), Path(out).suffix.lower()
    if is_directory(out):
        tree: type[TreeStore] = VideoFeaturesStore if layout == "video_features" else DirectoryStore
        return tree(path, worker)
    if layout == "video_features":
        raise UsageError(f"--layout video_features writes several files a video: --out {out} must be a directory")
    if suffix not in SUFFIXES:
        raise UsageError(f"cannot write features to '{out}': give {_FORMS}")
    return SUFFIXES[suffix](path.with_name(f"{path.stem}.{worker}{path.suffix}") if worker else path)


def is_directory(out: str) -> bool:
    """Whether a name stands for a directory of features, there or not."""
    return out.endswith("/") or Path(out).is_dir() or not Path(out).suffix


def open_store(path: str) -> FeatureStore:
    """Open features that are there, for reading.

    Raises:
        UsageError: nothing is there, or not what vid3d extract writes.
    """
    path = _without_stream(path)
    recipe = read_recipe(Path(path) / "recipe.json") if Path(path).is_dir() else None
    store = create_store(path, layout=recipe["layout"] if recipe else LAYOUTS[0])
    if store.recipe() is None:
        what = "no features of vid3d extract in it" if Path(path).exists() else "no such file"
        raise UsageError(f"{path}: {what}; name what was given with --out")
    return store


def _without_stream(path: str) -> str:
    """feats_rgb.npy → feats.npy, where that is the name that was given with --out."""
    file = Path(path)
    whole = file.with_name(re.sub(r"_(rgb|flow)$", "", file.stem) + file.suffix)
    is_part = file.suffix.lower() == ".npy" and not NpyStore(file).recipe() and NpyStore(whole).recipe()
    return str(whole) if is_part else path
