"""`--out dir/`: one .npz a video, in a tree that mirrors the input's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..records import VideoResult
from .atomic import AtomicFile
from .features import FeatureFormat, refuse_existing, save_npz, span_arrays, text_array


class DirectoryOutput:
    """Each file: "features" (or "rgb" and "flow"), "clip", "start_seconds", … of N rows, "video" and "recipe"."""

    def __init__(self, out: Path, form: FeatureFormat, *, stems: Sequence[PurePosixPath], overwrite: bool) -> None:
        self._out, self._form = out, form
        refuse_existing([self._path(stem) for stem in stems], overwrite)

    def _path(self, stem: PurePosixPath) -> Path:
        return self._out / stem.with_name(stem.name + ".npz")

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Write the file of one video."""
        with AtomicFile(self._path(output_stem)) as file:
            save_npz(
                file,
                {
                    **self._form.matrices(result),
                    **span_arrays([clip.span for clip in result.clips]),
                    "num_decode_failures": np.array(result.num_decode_failures),
                    "video": text_array(result.video),
                    "recipe": text_array(result.recipe.to_json()),
                },
            )

    def commit(self) -> None:
        """Every file was whole when it appeared."""

    def discard(self) -> None:
        """Whole files stay: an interrupted job has done them."""
