"""Selects the store for the path of an output."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ..arguments import checked
from ..errors import OutputError, OutputExists, UsageError
from ..suggest import did_you_mean
from . import hdf5, npz, parquet
from .directory import DirectoryStore, TreeStore, VideoFeaturesStore
from .export import ExportStore
from .files import FilesStore
from .format import LAYOUTS
from .inspection import describe_damage
from .npy import NpyStore
from .recipes import read_recipe
from .store import Store
from .table import ExportFormat

EXPORTS: dict[str, ExportFormat] = {
    ".npz": npz,
    ".h5": hdf5,
    ".hdf5": hdf5,
    ".parquet": parquet,
}
"""The formats of one file; to add one, write a module like these and add a line here."""

TREES: dict[str, type[TreeStore]] = {tree.layout: tree for tree in (DirectoryStore, VideoFeaturesStore, FilesStore)}
"""The layouts of a directory, by `FeatureFormat.layout`."""


def create_store(out: str, *, layout: str = LAYOUTS[0], worker: str | None = None) -> Store:
    """Return the store of a path, chosen by its suffix; nothing is written yet.

    Args:
        out: `x.npy`, `x.npz`, `x.h5`, `x.parquet`, or a directory: a name without a suffix, or ending in /.
        layout: see `FeatureFormat`.
        worker: name of this worker, if several work on the same list. In a directory, each has a journal of its own;
            any other output gets the name of the worker.

    Raises:
        UsageError: no format has this suffix, or the layout does not fit.
    """
    forms = f"{', '.join(f'x{suffix}' for suffix in ('.npy', *EXPORTS))}, or a directory (x or x/)"
    if not out:
        raise UsageError(f"the name of the output is empty: give {forms}")
    if out == "-":
        raise UsageError(f"features need a file or a directory, not stdout: give {forms}")
    path, suffix = Path(out), Path(out).suffix.lower()
    if is_directory(out):
        tree = TREES[layout]
        for other in TREES.values():  # two outputs in one directory could not be told apart
            if other.home != tree.home and (recipe := path / other.home / "recipe.json").exists():
                raise OutputExists(f"{path}: {_describe_layout(other.layout, recipe)}choose another directory")
        return tree(path, worker)
    if layout == "files":
        raise UsageError(
            f"a preset writes files for each video: give a directory instead of {out}, or --layout vid3d for one file"
        )
    if layout != LAYOUTS[0]:
        raise UsageError(f"--layout {layout} writes several files for each video: the output {out} must be a directory")
    if worker:
        path = path.with_name(f"{path.stem}.{worker}{path.suffix}")
    if suffix == ".npy":
        return NpyStore(path)
    if suffix in EXPORTS:
        EXPORTS[suffix].check()
        return ExportStore(path, EXPORTS[suffix])
    hint = did_you_mean(suffix, [".npy", *EXPORTS])
    raise UsageError(f"cannot write features to '{out}': {hint or f'give {forms}'}")


def _describe_layout(layout: str, recipe: Path) -> str:
    if layout == "files":
        with suppress(OutputError):
            if preset := (read_recipe(recipe) or {}).get("preset"):
                return f"made with preset {preset}: add --preset {preset.split(', but ')[0]} without --layout, or "
    return f"has features in the layout {layout}: delete it, or "


def is_directory(out: str) -> bool:
    """Whether a name stands for a directory of features, existing or not."""
    return out.endswith("/") or Path(out).is_dir() or not Path(out).suffix


@checked
def open_store(path: str | os.PathLike[str]) -> Store:
    """Return the store of an existing output, for reading.

    Args:
        path: as given with `--out`; also `feats_rgb.npy` of `feats.npy`.

    Raises:
        UsageError: nothing is there, or vid3d extract did not write it.
        OutputError: files are missing, cut off or damaged, so that rows would be left out; the text names them.
    """
    store = open_unchecked(path)
    if damage := describe_damage(store):
        store.close()
        raise OutputError(damage)
    return store


def open_unchecked(path: str | os.PathLike[str]) -> Store:
    """Return the store of an existing output that may be damaged, to describe it; otherwise see `open_store`."""
    path = _without_stream(os.fspath(path))
    if not is_directory(path) and Path(path).suffix.lower() not in (suffixes := (".npy", *EXPORTS)):
        raise UsageError(f"{path}: not features: give an output of vid3d extract, {', '.join(suffixes)} or a directory")
    homes = {tree.home for tree in TREES.values()} if Path(path).is_dir() else ()
    recipe = next(filter(None, (read_recipe(Path(path) / home / "recipe.json") for home in homes)), None)
    store = create_store(path, layout=recipe["layout"] if recipe else LAYOUTS[0])
    if store.recipe() is None:
        store.refuse_incomplete()
        what = "vid3d extract wrote no features there" if Path(path).exists() else "no such file"
        raise UsageError(f"{path}: {what}; give the path that extract got with --out")
    return store


def _without_stream(path: str) -> str:
    file = Path(path)
    if not file.name:
        return path
    whole = file.with_name(re.sub(r"_(rgb|flow)$", "", file.stem) + file.suffix)
    is_part = file.suffix.lower() == ".npy" and not NpyStore(file).recipe() and NpyStore(whole).recipe()
    return str(whole) if is_part else path
