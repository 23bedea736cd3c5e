"""`--out feats.npz`: the features of all videos, the seconds of every row, and the recipe, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import ClipSpan, VideoResult
from .atomic import AtomicFile, discard_all, open_all
from .features import FEATURES, FeatureFormat, refuse_existing, save_npz, span_arrays, text_array
from .npy import GrowingNpy, append_all


class NpzOutput:
    """Arrays: "features" (or "rgb" and "flow"), "video", "clip", "start_seconds", … of N rows, and "recipe".

    The rows wait in files beside the target, so that memory does not grow with the job.
    """

    def __init__(self, out: Path, form: FeatureFormat, *, streams: Sequence[str], overwrite: bool) -> None:
        refuse_existing([out], overwrite)
        self._out, self._form = out, form
        names = [FEATURES] if form.concat else streams
        self._files = open_all([out] * len(names))  # of which only the parts are used
        self._matrices = {name: GrowingNpy(file) for name, file in zip(names, self._files, strict=True)}
        self._rows: list[tuple[str, ClipSpan]] = []
        self._recipe = ""

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Append the rows of one video."""
        self._recipe = result.recipe.to_json()
        append_all(self._matrices, self._form.matrices(result), result.video)
        # The last step, so that a write that is interrupted leaves rows that do not count.
        self._rows += [(result.video, clip.span) for clip in result.clips]

    def commit(self) -> None:
        """Pack everything into the target. No rows, no file."""
        try:
            if self._rows:
                self._pack()
        finally:
            self.discard()

    def _pack(self) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        for (name, matrix), file in zip(self._matrices.items(), self._files, strict=True):
            matrix.finish(len(self._rows))
            arrays[name] = np.load(file.part, mmap_mode="r")
        videos, spans = zip(*self._rows, strict=True)
        columns = {"video": np.array(videos), **span_arrays(spans)}
        with AtomicFile(self._out) as target:
            save_npz(target, {**arrays, **columns, "recipe": text_array(self._recipe)})

    def discard(self) -> None:
        """Leave nothing behind."""
        discard_all(self._files)
