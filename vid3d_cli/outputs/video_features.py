"""`--layout video_features`: the file names of v-iashin/video_features, for programs that read its output.

<stem>_rgb.npy, <stem>_flow.npy   (N, 1024)
<stem>_fps.npy                    () frames per second read
<stem>_timestamps_ms.npy          (N,) the END of each clip, as there
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..records import VideoResult
from .atomic import AtomicFile
from .features import FeatureFormat, refuse_existing


class VideoFeaturesOutput:
    """See the head of this file; `<stem>_recipe.json` says how they were made."""

    def __init__(
        self, out: Path, form: FeatureFormat, *, stems: Sequence[PurePosixPath], streams: Sequence[str], overwrite: bool
    ) -> None:
        self._out, self._form = out, FeatureFormat(form.dtype, concat=False)
        written = ("fps", "timestamps_ms", *streams)
        refuse_existing([self._path(stem, what) for stem in stems for what in written], overwrite)

    def _path(self, stem: PurePosixPath, what: str) -> Path:
        return self._out / stem.with_name(f"{stem.name}_{what}.npy")

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Write the files of one video."""
        end_ms = np.array([clip.span.end_seconds * 1000 for clip in result.clips])
        arrays = {"fps": np.array(result.fps), "timestamps_ms": end_ms, **self._form.matrices(result)}
        with AtomicFile(self._out / output_stem.with_name(f"{output_stem.name}_recipe.json")) as file:
            file.write(result.recipe.to_json().encode() + b"\n")
        for what, array in arrays.items():
            with AtomicFile(self._path(output_stem, what)) as file:
                np.save(file, array)

    def commit(self) -> None:
        """Every file was whole when it appeared."""

    def discard(self) -> None:
        """Whole files stay: an interrupted job has done them."""
