"""`--out feats.npz`: the features of all videos, the seconds of every row, and the recipe, as named arrays."""

from __future__ import annotations

import json
import zipfile
import zlib
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..durable import AtomicFile
from ..errors import OutputError
from .directory import save_npz
from .entries import SPAN_COLUMNS, VideoEntry, VideoFeatures, spans_of
from .format import FEATURES
from .npy import NpyStore
from .packed import PackedStore, parse_entries, parse_recipe
from .store import Recipe


class NpzStore(PackedStore):
    """Arrays of N rows: "features" (or "rgb" and "flow"), "video", "clip", "start_seconds", …; see `columns_of`.

    "recipe" is JSON, "videos" the bytes of JSON lines, one a video.
    """

    def pack(self, rows: NpyStore, recipe: Recipe, file: AtomicFile) -> None:
        videos, spans = rows.columns()
        lines = "".join(f"{entry.to_json()}\n" for entry in rows.entries())
        save_npz(
            file,
            {
                **rows.matrices,
                "video": np.array(videos),
                **spans,
                "videos": np.frombuffer(lines.encode(), np.uint8),
                "recipe": np.array(json.dumps(recipe)),
            },
        )

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, in memory: an .npz cannot be mapped."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored}
        except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise OutputError(f"{self.path}: cannot be read: {error}") from None

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return self._arrays[name]
        except KeyError:
            raise OutputError(f"{self.path}: not an .npz of vid3d extract: it has no array '{name}'") from None

    def packed_recipe(self) -> dict[str, Any]:
        return parse_recipe(str(self._array("recipe")), self.path)

    def packed_entries(self) -> list[VideoEntry]:
        return parse_entries(self._array("videos").tobytes().splitlines(), self.path)

    def read_packed(self, entry: VideoEntry) -> VideoFeatures:
        rows = slice(entry.row, entry.row + entry.num_rows)
        names = [name for name in (FEATURES, "rgb", "flow") if name in self._arrays]
        spans = spans_of({name: self._array(name)[rows] for name in SPAN_COLUMNS})
        return VideoFeatures(entry, {name: self._array(name)[rows] for name in names}, spans)

    def release(self) -> None:
        self.__dict__.pop("_arrays", None)
