"""Videos of known colours in any pixel format, and their RGB by float64 arithmetic that shares nothing with FFmpeg."""

from pathlib import Path

import av
import numpy as np

UNTAGGED, LIMITED, FULL = 2, 1, 2  # AVColorSpace; AVColorRange, where 0 is untagged
WEIGHTS = {
    "untagged": (2, 0.299, 0.114),
    "bt709": (1, 0.2126, 0.0722),
    "fcc": (4, 0.30, 0.11),
    "bt470bg": (5, 0.299, 0.114),
    "smpte170m": (6, 0.299, 0.114),
    "smpte240m": (7, 0.212, 0.087),
    "bt2020nc": (9, 0.2627, 0.0593),
}
"""Matrix: its AVColorSpace, and the weights of red and blue in luma. Source: ITU-T H.273, table 4."""

CODECS = {"yuvj420p": "mjpeg", "nv12": "rawvideo", "rgb24": "png", "rgba": "png", "pal8": "png"}
"""The encoder of a pixel format, if it is not FFV1."""

PATCH = 16
"""Side of a patch of one colour. Chroma is interpolated across borders, so only the middle of patches is compared."""


def patches(height=96, width=128, seed=0):
    """An RGB image of patches of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (-(-height // PATCH), -(-width // PATCH), 3), np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(colours, PATCH, 0), PATCH, 1)[:height, :width])


def middles(image):
    """The pixels of an image of patches that lie 4 or more from a border."""
    rows, columns = (np.flatnonzero(np.arange(n) % PATCH // 4 % 3) for n in image.shape[:2])
    return image[np.ix_(rows, columns)]


def make_frame(rgb, pixel_format, matrix="untagged", colour_range=0):
    """A frame of an RGB image, with the samples and the tags of a matrix and a range."""
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    space = {2: 5, 6: 5}.get(WEIGHTS[matrix][0], WEIGHTS[matrix][0])
    if pixel_format == "pal8":
        frame = av.VideoFrame.from_ndarray(_indexed(rgb), format="pal8")
    elif pixel_format != "rgb24":
        frame = frame.reformat(format=pixel_format, dst_colorspace=space, dst_color_range=colour_range or LIMITED)
    frame.colorspace, frame.color_range = WEIGHTS[matrix][0], colour_range
    return frame


def _indexed(rgb):
    colours, indices = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    palette = np.zeros((256, 4), np.uint8)
    palette[: len(colours)] = np.insert(colours, 0, 255, axis=1)  # ARGB
    return indices.reshape(rgb.shape[:2]).astype(np.uint8), palette


def write_frames(path: Path, frames, codec=None, *, aspect=None, rotation=0, flags=""):
    """Write frames to a file, losslessly where the codec is; the tags are those of the first frame."""
    first = frames[0]
    with av.open(str(path), "w") as container:
        options = {"flags": flags} if flags else {}
        stream = container.add_stream(codec or CODECS.get(first.format.name, "ffv1"), rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        stream.codec_context.colorspace, stream.codec_context.color_range = first.colorspace, first.color_range
        stream.codec_context.color_trc = first.color_trc
        stream.codec_context.bit_rate = 4_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(-rotation)
        for number, frame in enumerate(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_frame(path):
    """The first frame, as PyAV decodes it."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def exact_rgb(frame, matrix="untagged"):
    """RGB of a YUV or grey frame in float64, (H, W, 3) in 0 … 255; each chroma sample fills its block."""
    planes, bits = _planes(frame)
    height, width = planes[0].shape
    luma, *chroma = planes
    black, peak, swing, middle = (v * 2.0 ** (bits - 8) for v in (16, 219, 224, 128))
    if frame.color_range == FULL or frame.format.name.startswith("yuvj") or (not chroma and not frame.color_range):
        black, peak, swing = 0, 2**bits - 1, 2**bits - 1
    y = (luma - black) / peak
    if not chroma:
        return np.clip(np.stack([y] * 3, -1) * 255, 0, 255)
    blue, red = ((np.kron(c, np.ones((height // c.shape[0], width // c.shape[1]))) - middle) / swing for c in chroma)
    _, of_red, of_blue = WEIGHTS[matrix]
    r, b = y + 2 * (1 - of_red) * red, y + 2 * (1 - of_blue) * blue
    g = (y - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return np.clip(np.stack([r, g, b], -1) * 255, 0, 255)


def _planes(frame):
    """The samples of each component but alpha, as float64, and their bits."""
    name = frame.format.name
    planes = []
    for number, component in enumerate(frame.format.components):
        if component.is_alpha:
            continue
        plane = frame.planes[component.plane]
        samples = np.frombuffer(plane, np.uint16 if component.bits > 8 else np.uint8).reshape(plane.height, -1)
        if name in ("nv12", "p010le") and number:
            samples = samples[:, number - 1 :: 2]
        samples = samples[: component.height, : component.width].astype(float)
        planes.append(samples / 64 if name == "p010le" else samples)  # the lower bits are padding
    return planes, frame.format.components[0].bits
