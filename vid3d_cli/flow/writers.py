"""Writes the flow of a video: a directory of 8-bit images, an .npz, or Middlebury colours to look at.

    with open_flow_output("walk.npz", fps=Fraction(25), bound_px=20.0, max_px=20.0, recipe=recipe) as output:
        for flow, seconds in pairs:
            output.write(flow, seconds)

One field is in memory at a time; of a .gif and a .png, all that is shown. The output appears when the block ends. If it
raises, nothing is left behind.
`files.open_flow_files` reads images and .npz.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av.error
import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from ..durable import AtomicFile, sync_directory
from ..errors import OutputError, OutputExists, ShapeError, UsageError
from ..suggest import did_you_mean
from ..video.writer import VIDEO_CODECS, VideoWriter
from .colour import flow_to_rgb
from .drawing import draw_pair, draw_sheet
from .fields import check_field, quantise_flow
from .files import SIDECAR_NAME, is_flow_image_name

JPEG_QUALITY = 95
"""OpenCV's default, which denseflow uses too."""

FORMS = f"a directory, .npz, a video ({', '.join(VIDEO_CODECS)}), .gif or .png"

GIF_WIDTH_PX, GIF_FPS, GIF_SECONDS = 480, 10, 20
"""Largest width and rate of a .gif, and the seconds that it should show: it is in memory until it is done."""

SHOWN = (*VIDEO_CODECS, ".gif", ".png")
"""The suffixes of outputs to look at, in colours."""

_Append = Callable[[NDArray[np.float32], float, NDArray[np.uint8] | None], object]
"""Takes a field (H, W, 2), the time of its first frame in seconds, and this frame (H, W, 3)."""


def suffix_of(path: str | Path) -> str:
    """Return the suffix that decides the form of an output, in lower case; "" for a directory."""
    is_directory = str(path).endswith(("/", os.sep)) or Path(path).is_dir()
    return "" if is_directory else Path(path).suffix.lower()


class FlowWriter:
    """Checks fields and passes them on to an output.

    Args:
        target: the output, for error messages.
        append: writes a field.
    """

    def __init__(self, target: Path, append: _Append) -> None:
        self.num_pairs = 0
        self._target, self._append = target, append
        self._shape: tuple[int, ...] | None = None

    def write(self, flow: NDArray[np.float32], seconds: float, rgb: NDArray[np.uint8] | None = None) -> None:
        """Append the flow of one pair.

        Args:
            flow: (H, W, 2), pixels per frame step.
            seconds: when the pair's first frame appears.
            rgb: (H, W, 3), this frame, to be shown with the colours and their scale; None for the colours alone.

        Raises:
            ShapeError: the array is not a field, or has another size than the first one.
            OutputError: it cannot be written.
        """
        check_field(flow)
        self._shape = self._shape or flow.shape
        if flow.shape != self._shape:
            raise ShapeError(f"expected flow {self._shape} like the first field, got {flow.shape}")
        with _errors_explained(self._target):
            self._append(flow, seconds, rgb)
        self.num_pairs += 1


@contextmanager
def open_flow_output(
    path: str | Path,
    *,
    fps: Fraction,
    bound_px: float,
    max_px: float,
    recipe: Mapping[str, Any],
    overwrite: bool = False,
    dtype: DTypeLike = np.float16,
) -> Iterator[FlowWriter]:
    """Open an output, whose name decides the form.

    Args:
        path: an .npz, a video, a .gif, a .png with a sheet of all pairs written, or a directory of images: an
            existing one, a name without suffix, or one that ends in a slash.
        fps: frames per second that the flow is computed at.
        bound_px: what 0 and 255 stand for in images.
        max_px: motion that the colours show fully saturated.
        recipe: how the flow is made; stored with images and .npz.
        overwrite: replace an existing output.
        dtype: float16 (exact to 0.008 px up to 32 px) or float32, for an .npz.

    Raises:
        OutputExists: the output exists, and `overwrite` is false; or it is a directory with other files.
        OutputError: the output cannot be written.
        UsageError: there is no such form, or no such dtype.
    """
    target = Path(path)
    if target == Path("-"):
        raise UsageError(f"flow needs a file or a directory, not stdout: give {FORMS}")
    suffix = suffix_of(path)
    is_directory = target.is_dir()
    form: AbstractContextManager[_Append]
    if not suffix:
        form = _image_output(target, fps=fps, bound_px=bound_px, recipe=recipe)
        # --overwrite must never delete anything but flow, whatever directory was typed.
        if is_directory and not _holds_only_flow(target):
            raise OutputExists(f"{target} holds other files than flow images: choose another directory")
        overwrite = is_directory and (overwrite or not any(target.iterdir()))
    elif suffix == ".npz":
        if np.dtype(dtype) not in (np.float16, np.float32):
            raise UsageError(f"flow is stored as float16 or float32, not {np.dtype(dtype)}")
        form = _npz_output(target, recipe=recipe, dtype=np.dtype(dtype))
    elif suffix in VIDEO_CODECS:
        form = _video_output(target, fps=fps, max_px=max_px)
    elif suffix in (".gif", ".png"):
        form = (_gif_output if suffix == ".gif" else _sheet_output)(target, max_px=max_px)
    else:
        hint = did_you_mean(suffix, [".npz", *SHOWN])
        advice = hint or f"use {FORMS}; for a directory whose name has a dot, write {target}/"
        raise UsageError(f"cannot write flow as {suffix!r} ({target}): {advice}")
    if target.exists() and not overwrite:
        raise OutputExists(f"{target}: already exists; choose another name, or add --overwrite")
    with ExitStack() as stack:
        with _errors_explained(target):
            append = stack.enter_context(form)
        yield (writer := FlowWriter(target, append))
        if suffix in SHOWN and not writer.num_pairs:
            raise OutputError(f"{target}: the video has no pair of frames, so there is no flow to show")
        with _errors_explained(target):
            stack.close()


@contextmanager
def _errors_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _image_output(target: Path, *, fps: Fraction, bound_px: float, recipe: Mapping[str, Any]) -> Iterator[_Append]:
    """Write `flow_x_00001.jpg`, `flow_y_00001.jpg`, … quantised to ±bound, and `flow.json`."""
    part = target.absolute().with_name(f".vid3d-{uuid.uuid4().hex[:8]}.part")
    facts: dict[str, Any] = {"bound_px": bound_px, "fps": str(fps), "height_px": 0, "width_px": 0, "num_pairs": 0}

    def append(flow: NDArray[np.float32], seconds: float, _: NDArray[np.uint8] | None) -> None:
        facts["height_px"], facts["width_px"], _ = flow.shape
        facts["num_pairs"] += 1
        image = quantise_flow(flow, bound_px)
        for channel, axis in enumerate("xy"):
            is_encoded, data = cv2.imencode(".jpg", image[..., channel], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not is_encoded:
                raise OSError(f"a {flow.shape[1]}×{flow.shape[0]} px image cannot be a JPEG")
            data.tofile(part / f"flow_{axis}_{facts['num_pairs']:05d}.jpg")

    part.mkdir(parents=True)
    try:
        yield append
        # Only this file is synced: one sync per image would take longer than the flow.
        with AtomicFile(part / SIDECAR_NAME) as file:
            file.write((json.dumps({**facts, "recipe": dict(recipe)}, ensure_ascii=False, indent=1) + "\n").encode())
        old = part.with_suffix(".old")
        if target.exists():  # a directory cannot be replaced in one step unless it is empty
            target.replace(old)
        part.replace(target)
        sync_directory(target.absolute().parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _holds_only_flow(target: Path) -> bool:
    return all(entry.name == SIDECAR_NAME or is_flow_image_name(entry.name) for entry in target.iterdir())


@contextmanager
def _npz_output(target: Path, *, recipe: Mapping[str, Any], dtype: np.dtype[Any]) -> Iterator[_Append]:
    """Write arrays `flow` (T-1, H, W, 2) in pixels, `seconds` (T-1,) float64, and `recipe`, a string of JSON."""
    shape = (0, 0, 2)
    times: list[float] = []

    def append(flow: NDArray[np.float32], seconds: float, _: NDArray[np.uint8] | None) -> None:
        nonlocal shape
        shape = flow.shape
        raw.write(np.ascontiguousarray(flow, dtype).data)
        times.append(seconds)

    # The header of an array precedes it and holds its length, which is known last: so the data waits in another file.
    with AtomicFile(target) as file, ExitStack() as stack:
        raw = tempfile.TemporaryFile(dir=target.parent)  # noqa: SIM115  (see `_close_quietly`)
        stack.callback(_close_quietly, raw)
        yield append
        raw.seek(0)
        with zipfile.ZipFile(file, "w") as archive:
            with _open_member(archive, "flow") as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(member, {**header, "shape": (len(times), *shape)})
                shutil.copyfileobj(raw, member, 1 << 20)
            for name, array in [
                ("seconds", np.array(times, dtype=np.float64)),
                ("recipe", np.array(json.dumps(dict(recipe), ensure_ascii=False))),
            ]:
                with _open_member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _close_quietly(file: IO[bytes] | VideoWriter) -> None:
    """Close a file that is no longer needed: if the disk is full, closing fails like the write before."""
    with suppress(OSError, av.error.FFmpegError):
        file.close()


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Start an array, without the time of day: so equal flow gives equal files."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


@contextmanager
def _video_output(target: Path, *, fps: Fraction, max_px: float) -> Iterator[_Append]:
    """Write a video of what `_draw` draws, one frame per pair."""
    # FFmpeg opens its file by name, and picks the container by the suffix.
    with (
        AtomicFile(target) as file,
        tempfile.NamedTemporaryFile(dir=target.parent, prefix=".vid3d-", suffix=target.suffix) as encoded,
        ExitStack() as stack,
    ):
        video = VideoWriter(Path(encoded.name), fps=fps)
        stack.callback(_close_quietly, video)
        video.open()
        yield lambda flow, _, rgb: video.write(_draw(flow, rgb, max_px))
        video.finish()
        shutil.copyfileobj(encoded, file, 1 << 20)


@contextmanager
def _gif_output(target: Path, *, max_px: float) -> Iterator[_Append]:
    """Write what `_draw` draws as an animation that loops, at most `GIF_FPS` frames a second."""
    images: list[Image.Image] = []
    times: list[float] = []

    def append(flow: NDArray[np.float32], seconds: float, rgb: NDArray[np.uint8] | None) -> None:
        if times and seconds < times[-1] + 1 / GIF_FPS - 1e-6:
            return
        image = Image.fromarray(_draw(flow, rgb, max_px))
        image.thumbnail((GIF_WIDTH_PX, image.height))
        images.append(image)
        times.append(seconds)

    with AtomicFile(target) as file:
        yield append
        # One palette, or the colours would flicker. Octrees keep rare hues, which are directions; median cut does not.
        some = np.vstack([np.asarray(image.reduce(2)) for image in images[:: -(-len(images) // 20)]])
        palette = Image.fromarray(some).quantize(256, Image.Quantize.FASTOCTREE)
        first, *others = (image.quantize(palette=palette) for image in images)
        steps_ms = [int(ms) for ms in np.diff(10 * np.rint(100 * np.array(times)))] or [1000 // GIF_FPS]
        first.save(file, "GIF", save_all=True, append_images=others, duration=[*steps_ms, steps_ms[-1]], loop=0)


@contextmanager
def _sheet_output(target: Path, *, max_px: float) -> Iterator[_Append]:
    """Write all pairs as one PNG, see `draw_sheet`."""
    pairs: list[tuple[NDArray[np.float32], float, NDArray[np.uint8] | None]] = []
    with AtomicFile(target) as file:
        yield lambda *pair: pairs.append(pair)
        Image.fromarray(draw_sheet(pairs, max_px)).save(file, "PNG")


def _draw(flow: NDArray[np.float32], rgb: NDArray[np.uint8] | None, max_px: float) -> NDArray[np.uint8]:
    return flow_to_rgb(flow, max_px) if rgb is None else draw_pair(rgb, flow, max_px)
