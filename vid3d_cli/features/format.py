"""The format of clip features in every kind of file: dtype, concatenation, layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NoFeatures, UsageError
from ..presets import DTYPES, Files, find_preset
from ..recipe import Recipe
from ..results import VideoResult
from ..suggest import check_known

FEATURES = "features"
"""Name of the matrix that holds all streams side by side, rgb first."""

LAYOUTS = ("vid3d", "video_features", "files")
"""Ours, that of v-iashin/video_features, and that of a preset's `Files`."""


@dataclass(frozen=True)
class FeatureFormat:
    """The options `--dtype`, `--concat` and `--layout`.

    Raises:
        UsageError: a value is unknown.
    """

    dtype: str = "float32"
    """One of `DTYPES`."""
    concat: bool = True
    """One matrix with the streams side by side, or one for each stream."""
    layout: str = "vid3d"
    """One of `LAYOUTS`: file names and arrays in a directory."""
    files: Files | None = None
    """With the layout "files": what they are."""

    def __post_init__(self) -> None:
        check_known(self.dtype, DTYPES, f"unknown dtype '{self.dtype}'")
        check_known(self.layout, LAYOUTS, f"unknown layout '{self.layout}'")
        if self.layout == "video_features":
            object.__setattr__(self, "concat", False)  # its file names contain the stream
        if (self.layout == "files") != (self.files is not None):
            raise UsageError("--layout files writes the files of a preset: choose one with --preset")

    @classmethod
    def of(cls, preset: str | None, given: Mapping[str, Any]) -> FeatureFormat:
        """Return a format: the values given, then those of the preset's files, then the defaults.

        Raises:
            UsageError: there is no such preset, or a value is unknown.
        """
        if preset is None or given.get("layout", "files") != "files":
            return cls(**given)
        files = find_preset(preset).files
        if given.get("concat", files.concat) != files.concat:
            held = "both streams" if files.concat else "one stream each"
            raise UsageError(f"{preset}: the files '{files.names}' hold {held}: add --layout vid3d")
        return cls(**{"dtype": files.dtype, "concat": files.concat, "layout": "files", "files": files, **given})

    def matrices(self, result: VideoResult) -> dict[str, NDArray[Any]]:
        """Return the features of one video, (N, D) each: by stream, or all as "features".

        Raises:
            NoFeatures: a number is NaN or infinite, or too large for the dtype.
        """
        streams = {FEATURES: None} if self.concat else {stream: stream for stream in result.clips[0].features}
        matrices = {}
        for name, stream in streams.items():
            rows = result.features(stream)
            with np.errstate(over="ignore"):
                stored = rows.astype(self.dtype)
            if not np.isfinite(stored).all():
                if np.isfinite(rows).all():
                    raise NoFeatures(result.video, "its features exceed 65504, where float16 ends: use --dtype float32")
                raise NoFeatures(result.video, "its features are not finite: the weights are damaged, or try fp32")
            matrices[name] = stored
        return matrices

    def describe(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe and this format, as stored with the features and compared before a job resumes."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        fields.get("files", {}).pop("dtype", None)  # --dtype may have changed it
        return {**asdict(recipe), **fields}
