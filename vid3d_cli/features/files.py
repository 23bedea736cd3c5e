"""`--preset NAME --out feats/`: the files that another program loads, as `presets.Files` names them.

a.npy, RGB/sub/b__0.npy, …          an array each, and nothing else
.vid3d/recipe.json, videos.jsonl    and failures.jsonl, as in other layouts; the recipe has the `Files`
.vid3d/videos/sub/b.jsonl           the recipe, the line of videos.jsonl and the sizes of the files; then a line for
                                    each row, with the seconds of the video that it describes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile, read_errors
from ..errors import UsageError
from ..plan import Plan
from ..presets import MAX_CROPS, Files
from ..records import STREAMS
from .directory import TreeStore
from .entries import Recipe, VideoEntry, VideoFeatures, index_line, parse_index
from .format import FEATURES
from .npz import open_npz
from .recipes import files_of, parse_recipe

_MAX_HEADER_BYTES = 1 << 20


def refuse_misfit(files: Files, plan: Plan, videos: Mapping[str, str]) -> None:
    """Raise UsageError if a job cannot write these files.

    Args:
        files: what it writes.
        plan: its options.
        videos: its videos, by the stems of their files.
    """
    if files.has_crops and not plan.keep_crops:
        raise UsageError(f"the files {files.names} ({files.axes}) hold every crop: add --keep-crops")
    if plan.keep_crops and not files.has_crops:
        raise UsageError(
            f"the files {files.names} ({files.axes}) hold no crops: leave out --keep-crops, or add --layout vid3d"
        )
    if files.has_file_per_crop and len(plan.crop_names) > MAX_CROPS:
        raise UsageError(
            f"--crops: the files {files.names} are of at most {MAX_CROPS} crops, not {len(plan.crop_names)}"
        )
    if plan.layer is not None and plan.pool in ("none", "spatial"):
        raise UsageError(
            f"the files {files.names} hold a vector for each row, and --pool {plan.pool} gives maps: choose avg or "
            "max, or add --layout vid3d"
        )
    refuse_shared_files(files, videos)


def refuse_shared_files(files: Files, videos: Mapping[str, str]) -> None:
    """Raise UsageError if two videos, by their stems, would get the same file."""
    taken: dict[Path, str] = {}
    for stem, video in videos.items():
        path = Path(files.path(stem))
        if taken.setdefault(path, video) != video:
            raise UsageError(f"{taken[path]} and {video} would both be written to {path}: rename one, or leave it out")


class FilesStore(TreeStore):
    """The files of a preset."""

    layout = "files"
    home = ".vid3d"
    markers = ".vid3d/videos"
    marker = ".jsonl"
    _parsed: tuple[Recipe, Files] | None = None

    def files(self, stem: str, recipe: Recipe) -> list[Path]:
        paths = [path for _, _, path in self._places(stem, recipe, MAX_CROPS)] if "files" in recipe else []
        return [*paths, self.marker_path(stem)]

    def _files_of(self, recipe: Recipe) -> Files:
        """Return the files of a recipe, parsed once and not for every video."""
        if self._parsed is None or self._parsed[0] is not recipe:
            self._parsed = recipe, files_of(recipe)
        return self._parsed[1]

    def _places(self, stem: str, recipe: Recipe, num_crops: int) -> Iterator[tuple[str, int, Path]]:
        """Yield the matrix, the crop and the path of every file of a video."""
        files = self._files_of(recipe)
        for name in [FEATURES] if recipe["concat"] else [s for s in STREAMS if s in recipe["streams"]]:
            for crop in range(num_crops if files.has_file_per_crop else 1):
                yield name, crop, self.path / files.path(stem, name, crop)

    def refuse_taken_stems(self, videos: Mapping[str, str]) -> None:
        super().refuse_taken_stems(videos)
        if (recipe := self.recipe()) is not None:
            there = {entry.stem: entry.key for entry in self.entries()}
            refuse_shared_files(files_of(recipe), {**there, **videos})

    def is_whole(self, entry: VideoEntry) -> bool:
        with suppress(Exception):  # whatever a damaged header makes Python raise
            path = self.marker_path(entry.stem)
            with path.open("rb") as file:
                header = self._header(file.readline(_MAX_HEADER_BYTES))
                paths = [path for _, _, path in self._places(entry.stem, self.recipe() or {}, header["crops"])]
                sizes = [*(p.stat().st_size for p in paths), path.stat().st_size - file.tell()]
                return bool(sizes == header["bytes"])
        return False

    @staticmethod
    def _header(line: bytes) -> dict[str, Any]:
        header: dict[str, Any] = json.loads(line)
        if not 1 <= header["crops"] <= MAX_CROPS:
            raise ValueError(f"{header['crops']} crops")
        return header

    def stored_lines(self, path: Path) -> tuple[Any, Any]:
        with path.open("rb") as file:
            header = self._header(file.readline(_MAX_HEADER_BYTES))
        recipe = parse_recipe(json.dumps(header["recipe"]))
        if recipe is None or recipe["layout"] != self.layout:
            raise ValueError("it has no recipe of this layout")
        return recipe, header["entry"]

    def read(self, entry: VideoEntry) -> VideoFeatures:
        path, recipe = self.marker_path(entry.stem), self.recipe() or {}
        with read_errors(path), path.open("rb") as file:
            header = self._header(file.readline(_MAX_HEADER_BYTES))
            spans = parse_index(file.readlines(), entry, 0)
        files, matrices = self._files_of(recipe), dict[str, list[NDArray[Any]]]()
        for name, _, path in self._places(entry.stem, recipe, header["crops"]):
            with read_errors(path):
                array = _load(path, files)
                if array.ndim != len(files.axes):
                    raise ValueError(f"it holds an array {array.shape}, whose axes are not {files.axes}")
                matrices.setdefault(name, []).append(array.T if files.axes == "DT" else array)
        if files.has_file_per_crop:
            return VideoFeatures(entry, {name: np.stack(crops, 1) for name, crops in matrices.items()}, spans)
        return VideoFeatures(entry, {name: array for name, (array,) in matrices.items()}, spans)

    def write_files(self, features: VideoFeatures, recipe: Recipe) -> None:
        entry, files = features.entry, self._files_of(recipe)
        num_crops = next(iter(features.matrices.values())).shape[1] if files.has_file_per_crop else 1
        sizes = []
        for name, crop, path in self._places(entry.stem, recipe, num_crops):
            rows = features.matrices[name][:, crop] if files.has_file_per_crop else features.matrices[name]
            with AtomicFile(path) as file:
                _save(file, np.ascontiguousarray(rows.T if files.axes == "DT" else rows), files)
                sizes.append(file.seek(0, 2))
        lines = "".join(f"{index_line(row, entry.video, span)}\n" for row, span in enumerate(features.spans)).encode()
        header = {"recipe": recipe, "entry": asdict(entry), "crops": num_crops, "bytes": [*sizes, len(lines)]}
        with AtomicFile(self.marker_path(entry.stem)) as file:  # last: it marks the files as whole
            file.write(f"{json.dumps(header)}\n".encode() + lines)


def _save(file: AtomicFile, array: NDArray[Any], files: Files) -> None:
    if files.suffix == ".npy":
        np.save(file, array)
    else:
        np.savez(file, **{files.key: array})  # type: ignore[arg-type]


def _load(path: Path, files: Files) -> NDArray[Any]:
    array: NDArray[Any]
    if files.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with open_npz(path) as stored:
            array = stored[files.key]
    return array
