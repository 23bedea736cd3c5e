"""The format of clip features in every kind of file: dtype, concatenation, layout."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from ..recipe import Recipe
from ..records import VideoResult
from ..suggest import check_known

FEATURES = "features"
"""Name of the matrix that holds all streams side by side, rgb first."""

DTYPES = ("float32", "float16")
LAYOUTS = ("vid3d", "video_features")


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

    def __post_init__(self) -> None:
        check_known(self.dtype, DTYPES, f"unknown dtype '{self.dtype}'")
        check_known(self.layout, LAYOUTS, f"unknown layout '{self.layout}'")
        if self.layout == "video_features":
            object.__setattr__(self, "concat", False)  # its file names contain the stream

    def matrices(self, result: VideoResult) -> dict[str, NDArray[Any]]:
        """Return the features of one video, (N, D) each: by stream, or all as "features"."""
        if self.concat:
            return {FEATURES: result.features().astype(self.dtype)}
        return {stream: result.features(stream).astype(self.dtype) for stream in result.clips[0].features}

    def describe(self, recipe: Recipe) -> dict[str, Any]:
        """Return the recipe and this format, as stored with the features and compared before a job resumes."""
        return {**asdict(recipe), **asdict(self)}
