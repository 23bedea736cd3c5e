"""Writers of `vid3d flow VIDEO --out …`: a directory of 8-bit images, an .npz, or a film to look at.

    with open_flow_output("walk.npz", fps=Fraction(25), bound_px=20.0, max_px=20.0, recipe=recipe) as output:
        for flow, seconds in pairs:
            output.write(flow, seconds)

Every writer holds one field at a time. It works on a hidden name beside the target and renames it when the block
ends well, so that what stands at the target is whole; when the block raises, nothing is left. The first two are read
again by `flow_files.open_flow_files`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av.error
import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import OutputError, OutputExists, ShapeError, UsageError
from ..video.writer import FILM_CODECS, Film
from .files import SIDECAR_NAME, is_flow_image_name
from .methods import flow_to_rgb, quantise_flow

JPEG_QUALITY = 95
"""OpenCV's default, with which denseflow's images were made too."""

FORMS = f"a directory, .npz, or a film ({', '.join(FILM_CODECS)})"


class FlowWriter(ABC):
    """Writes the flow of one video; use it in a `with` block.

    Args:
        target: what appears when the block ends.
        overwrite: replace it if it is there.

    Raises:
        OutputExists: it is there, and `overwrite` is false.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        if target.exists() and not overwrite:
            raise OutputExists(f"{target} is already there: add --overwrite to replace it")
        self.target = target
        self.num_pairs = 0
        self._size: tuple[int, int] | None = None
        # The suffix stays, FFmpeg chooses the container by it; the random part lets two processes race harmlessly.
        self._part = target.absolute().with_name(f".vid3d-{uuid.uuid4().hex[:8]}.part{target.suffix}")

    def __enter__(self) -> FlowWriter:
        with self._errors_explained():
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        return self

    def write(self, flow: NDArray[np.float32], seconds: float) -> None:
        """Append one pair's flow.

        Args:
            flow: (H, W, 2), pixels per frame step.
            seconds: when the pair's first frame appears.

        Raises:
            ShapeError: not a field, or of another size than the first.
            OutputError: it cannot be written.
        """
        size = flow.shape[:2]
        if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0 or size != (self._size or size):
            raise ShapeError(f"expected flow (H, W, 2) of size {self._size or '(H, W)'}, got {flow.shape}")
        self._size = (size[0], size[1])
        with self._errors_explained():
            self._append(flow, seconds)
        self.num_pairs += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._errors_explained():
                    self._finish()
                    self._publish()
        finally:
            with suppress(OSError, av.error.FFmpegError):
                self._discard()

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            raise OutputError(f"cannot write {self.target}: {getattr(error, 'strerror', None) or error}") from error

    def _publish(self) -> None:
        """Give the finished part its name."""
        _sync(self._part)
        self._part.replace(self.target)
        _sync(self.target.parent)

    @abstractmethod
    def _open(self) -> None:
        """Create the part."""

    @abstractmethod
    def _append(self, flow: NDArray[np.float32], seconds: float) -> None:
        """Add one field, of the same size as all before."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete the part and close it."""

    @abstractmethod
    def _discard(self) -> None:
        """Close and remove whatever is left of the part; called in every case."""


def open_flow_output(
    path: str | Path,
    *,
    fps: Fraction,
    bound_px: float,
    max_px: float,
    recipe: Mapping[str, Any],
    overwrite: bool = False,
    dtype: DTypeLike = np.float16,
) -> FlowWriter:
    """Choose the writer by the name of the output.

    Args:
        path: where to write. No suffix, a slash at the end (for names with dots), or a directory that is there: images.
        fps: frames per second that the flow was computed at.
        bound_px: what 0 and 255 stand for in images.
        max_px: motion that a film shows fully saturated.
        recipe: how the flow was made; stored with images and .npz.
        overwrite: replace what is there.
        dtype: of the .npz, float16 (exact to 0.008 px up to 32 px) or float32.

    Raises:
        OutputExists: something is there, and `overwrite` is false.
        UsageError: no such form.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if not suffix or str(path).endswith(("/", os.sep)) or target.is_dir():
        return ImageDirectoryWriter(target, fps=fps, bound_px=bound_px, recipe=recipe, overwrite=overwrite)
    if suffix == ".npz":
        return NpzWriter(target, recipe=recipe, overwrite=overwrite, dtype=dtype)
    if suffix in FILM_CODECS:
        return FilmWriter(target, fps=fps, max_px=max_px, overwrite=overwrite)
    raise UsageError(f"cannot write flow as {suffix!r} ({target}): use {FORMS}; a directory with a dot ends in a slash")


class ImageDirectoryWriter(FlowWriter):
    """`flow_x_00001.jpg`, `flow_y_00001.jpg`, … quantised to ±bound, and `flow.json`, which says to what."""

    def __init__(
        self, target: Path, *, fps: Fraction, bound_px: float, recipe: Mapping[str, Any], overwrite: bool
    ) -> None:
        is_directory = target.is_dir()
        # --overwrite must never cost more than flow, whatever directory was typed.
        if is_directory and not _holds_only_flow(target):
            raise OutputExists(f"{target} holds other files than flow images: choose another directory")
        is_empty = is_directory and not any(target.iterdir())
        super().__init__(target, overwrite=is_empty or (overwrite and is_directory))
        self._fps, self._bound_px, self._recipe = fps, bound_px, recipe

    def _open(self) -> None:
        self._part.mkdir()

    def _append(self, flow: NDArray[np.float32], seconds: float) -> None:
        image = quantise_flow(flow, self._bound_px)
        for channel, axis in enumerate("xy"):
            is_encoded, data = cv2.imencode(".jpg", image[..., channel], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not is_encoded:
                raise OSError(f"a {flow.shape[1]}×{flow.shape[0]} px image cannot be a JPEG")
            data.tofile(self._part / f"flow_{axis}_{self.num_pairs + 1:05d}.jpg")

    def _finish(self) -> None:
        height, width = self._size or (0, 0)
        facts = {
            "bound_px": self._bound_px,
            "fps": str(self._fps),
            "height_px": height,
            "width_px": width,
            "num_pairs": self.num_pairs,
            "recipe": dict(self._recipe),
        }
        # Only this file is synced: one sync an image would take longer than the flow.
        _write_synced(self._part / SIDECAR_NAME, json.dumps(facts, ensure_ascii=False, indent=1) + "\n")

    def _publish(self) -> None:
        _sync(self._part)
        old = self._part.with_suffix(".old")
        if self.target.exists():  # a directory cannot be replaced in one step unless it is empty
            self.target.replace(old)
        self._part.replace(self.target)
        _sync(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _discard(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)


def _holds_only_flow(target: Path) -> bool:
    return all(entry.name == SIDECAR_NAME or is_flow_image_name(entry.name) for entry in target.iterdir())


class NpzWriter(FlowWriter):
    """Arrays `flow` (T-1, H, W, 2) in pixels, `seconds` (T-1,) float64, and `recipe`, a string of JSON."""

    def __init__(self, target: Path, *, recipe: Mapping[str, Any], overwrite: bool, dtype: DTypeLike) -> None:
        if np.dtype(dtype) not in (np.float16, np.float32):
            raise UsageError(f"flow is stored as float16 or float32, not {np.dtype(dtype)}")
        super().__init__(target, overwrite=overwrite)
        self._recipe = recipe
        self._dtype = np.dtype(dtype)
        self._seconds: list[float] = []
        # An array's header comes first and says its length, which is known last: hence the second file.
        self._raw_path = self._part.with_suffix(".raw")
        self._raw: IO[bytes] | None = None

    def _open(self) -> None:
        self._raw = self._raw_path.open("wb")

    def _append(self, flow: NDArray[np.float32], seconds: float) -> None:
        assert self._raw is not None  # opened by __enter__
        self._raw.write(np.ascontiguousarray(flow, self._dtype).data)
        self._seconds.append(seconds)

    def _finish(self) -> None:
        assert self._raw is not None
        self._raw.close()
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.num_pairs, *(self._size or (0, 0)), 2),
        }
        with zipfile.ZipFile(self._part, "w") as archive:
            with _open_member(archive, "flow") as member, self._raw_path.open("rb") as raw:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(raw, member, 1 << 20)
            for name, array in [
                ("seconds", np.array(self._seconds, dtype=np.float64)),
                ("recipe", np.array(json.dumps(dict(self._recipe), ensure_ascii=False))),
            ]:
                with _open_member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def _discard(self) -> None:
        if self._raw:
            self._raw.close()
        self._raw_path.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Start an array; without the time of day, so that equal flow gives equal files."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


class FilmWriter(FlowWriter):
    """A film of the colour wheel (see `flow.flow_to_rgb`), one picture a pair, at the video's frame rate."""

    def __init__(self, target: Path, *, fps: Fraction, max_px: float, overwrite: bool) -> None:
        super().__init__(target, overwrite=overwrite)
        self._film = Film(self._part, fps=fps)
        self._max_px = max_px

    def _open(self) -> None:
        self._film.open()

    def _append(self, flow: NDArray[np.float32], seconds: float) -> None:
        self._film.write(flow_to_rgb(flow, self._max_px))

    def _finish(self) -> None:
        if not self.num_pairs:
            raise OutputError(f"{self.target}: no pair of frames, so there is nothing to film")
        self._film.finish()

    def _discard(self) -> None:
        try:
            self._film.close()
        finally:
            self._part.unlink(missing_ok=True)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory, before anything relies on it."""
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
