"""Where `vid3d extract` puts clip features: what all formats share, and which one a path means."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputExists, UsageError
from ..records import ClipSpan, VideoResult

FEATURES = "features"
"""Name of the matrix that holds all streams side by side, rgb first."""

DTYPES = ("float32", "float16")
LAYOUTS = ("vid3d", "video_features")


@dataclass(frozen=True)
class FeatureFormat:
    """How features are written, whatever the file format."""

    dtype: str = "float32"
    """One of `DTYPES`."""
    concat: bool = True
    """One matrix with the streams side by side, or one a stream."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype '{self.dtype}': choose one of {', '.join(DTYPES)}")

    def matrices(self, result: VideoResult) -> dict[str, NDArray[Any]]:
        """The features of one video, (N, D) each: by stream, or all under "features"."""
        if self.concat:
            return {FEATURES: result.features().astype(self.dtype)}
        return {stream: result.features(stream).astype(self.dtype) for stream in result.clips[0].features}


class FeatureOutput(Protocol):
    """One output of a job. A job that is interrupted commits the videos that are whole."""

    def write(self, result: VideoResult, output_stem: PurePosixPath) -> None:
        """Add one video, all of its rows or none."""

    def commit(self) -> None:
        """Make what was written durable and visible."""

    def discard(self) -> None:
        """Leave nothing behind that was not there before, except whole files."""


def span_arrays(spans: Sequence[ClipSpan]) -> dict[str, NDArray[Any]]:
    """Which part of its video each row describes, as columns of length N."""
    return {
        "clip": np.array([s.index for s in spans], np.int64),
        "start_seconds": np.array([s.start_seconds for s in spans], np.float64),
        "end_seconds": np.array([s.end_seconds for s in spans], np.float64),
        "start_frame": np.array([s.start_frame for s in spans], np.int64),
        "num_valid_frames": np.array([s.num_valid_frames for s in spans], np.int64),
    }


def refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise OutputExists for the first of the paths that is there, unless they may be overwritten."""
    existing = [] if overwrite else [path for path in paths if os.path.lexists(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputExists(f"{existing[0]}{more}: already there; choose another name, or add --overwrite")


def open_features(
    out: str,
    form: FeatureFormat,
    *,
    layout: str,
    stems: Sequence[PurePosixPath],
    streams: Sequence[str],
    overwrite: bool,
) -> FeatureOutput:
    """Choose the format by the suffix of the path; none is a directory.

    Args:
        out: `x.npy`, `x.npz` or a directory.
        form: dtype and whether streams are put side by side.
        layout: "vid3d", or in a directory "video_features".
        stems: of all videos of the job, below a directory.
        streams: that will be written.
        overwrite: whether existing files may be replaced.

    Raises:
        UsageError: no format has this suffix, or the layout does not fit.
        OutputExists: something is already there.
    """
    from .directory import DirectoryOutput
    from .npy import NpyOutput
    from .npz import NpzOutput
    from .video_features import VideoFeaturesOutput

    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}': choose one of {', '.join(LAYOUTS)}")
    if not out:
        raise UsageError("the name of the output is empty: give x.npy, x.npz, or a directory")
    path, suffix = Path(out), Path(out).suffix.lower()
    if out.endswith("/") or path.is_dir() or not suffix:
        if layout == "video_features":
            return VideoFeaturesOutput(path, form, stems=stems, streams=streams, overwrite=overwrite)
        return DirectoryOutput(path, form, stems=stems, overwrite=overwrite)
    if layout == "video_features":
        raise UsageError(f"--layout video_features writes several files a video: --out {out} must be a directory")
    if suffix == ".npy":
        return NpyOutput(path, form, streams=streams, overwrite=overwrite)
    if suffix == ".npz":
        return NpzOutput(path, form, streams=streams, overwrite=overwrite)
    raise UsageError(
        f"cannot write features to '{out}': give x.npy, x.npz, or a directory (a name without a suffix, or ending in /)"
    )


def save_npz(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as .npz."""
    np.savez(file, **cast(dict[str, Any], dict(arrays)))


def text_array(text: str) -> NDArray[np.str_]:
    """A string as a NumPy array of no dimensions, readable without pickle."""
    return np.array(text)
