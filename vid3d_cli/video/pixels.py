"""What a user can choose about pixels. Plans, recipes and decoder processes share it; it needs no PyAV."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import UsageError

if TYPE_CHECKING:
    from .reader import VideoInfo

MATRICES = ("tags", "guess", "bt601", "bt709")
"""Values of `PixelOptions.colour_matrix`."""


class PixelOptions(NamedTuple):
    """How stored frames become RGB; the defaults give what other extractors give."""

    colour_matrix: str = "tags"
    """The YUV matrix: "tags" follows each frame's tag, and takes BT.601 where there is none; "guess" takes BT.709 there
    if the frame is HD, as players do; "bt601" and "bt709" ignore the tags."""
    deinterlace: bool = False
    """Whether interlaced frames are deinterlaced."""
    square_pixels: bool = False
    """Whether the width is changed to the shape that players show."""

    def check(self) -> None:
        """Raise UsageError for an unknown matrix."""
        if self.colour_matrix not in MATRICES:
            raise UsageError(f"unknown colour matrix '{self.colour_matrix}': choose one of {', '.join(MATRICES)}")

    def describe(self) -> str | None:
        """Return the choices in words, for the recipe; None for the defaults."""
        words = {
            f"matrix {self.colour_matrix}": self.colour_matrix != "tags",
            "deinterlaced": self.deinterlace,
            "square pixels": self.square_pixels,
        }
        return ", ".join(word for word, holds in words.items() if holds) or None

    def warnings(self, info: VideoInfo) -> tuple[str, ...]:
        """Return what may not be intended in how a video is read, one sentence each, the same for every such video."""
        found = {
            "it is interlaced, so moving edges look like combs: --deinterlace repairs them": info.is_interlaced
            and not self.deinterlace,
            "its pixels are not square, and vid3d reads them as stored; --square-pixels reads what players show": (
                abs(info.pixel_aspect - 1) > 0.01 and not self.square_pixels
            ),
            "it is HDR, and vid3d does not map its brightness, so it looks pale: convert it to SDR": info.is_hdr,
        }
        return tuple(sentence for sentence, holds in found.items() if holds)
