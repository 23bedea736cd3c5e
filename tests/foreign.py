"""Features as other people's scripts make them: PyAV, Pillow or OpenCV, NumPy and a network, and nothing of ours."""

import contextlib
import itertools
from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn


def write_scene(path, *, num_frames=140, fps=30, width=176, height=144, seed=0, num_still=0):
    """A video of a coloured texture that drifts, turns and changes its light, so that every frame differs.

    The first frame is shown `num_still` frames longer.
    """
    noise = np.random.default_rng(seed).normal(size=(2 * height, 2 * width, 3)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 6, 20))
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 8_000_000
        stream.codec_context.options = {"threads": "1"}
        for index in [0] * num_still + list(range(num_frames)):
            turn = cv2.getRotationMatrix2D((width, height), 12 * np.sin(index / 17), 1 + 0.25 * np.sin(index / 29))
            turn[:, 2] += (-width / 2 + 30 * np.sin(index / 11), -height / 2 + 20 * np.cos(index / 7))
            light = 0.8 + 0.2 * np.cos(index / 13) * np.array([1, 0.5, -1])
            image = np.clip(cv2.warpAffine(texture, turn, (width, height)) * light, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def read_frames(video, fps=None):
    """All frames, (T, H, W, 3) uint8 RGB; `fps`: the frame shown at each tick, of a video of constant rate."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    if fps is None:
        return frames
    ticks = [int(k * rate / Fraction(fps)) for k in range(int(np.ceil(len(frames) * Fraction(fps) / rate)))]
    return frames[ticks]


def filter_frames(video, fps):
    """Frames as ffmpeg's fps filter takes them."""
    with av.open(str(video)) as container:
        graph = av.filter.Graph()
        source = graph.add_buffer(template=container.streams.video[0])
        rate, sink = graph.add("fps", fps), graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        frames = []
        for frame in itertools.chain(container.decode(video=0), [None]):
            graph.push(frame)
            with contextlib.suppress(av.BlockingIOError, av.EOFError):
                while True:
                    frames.append(graph.pull().to_ndarray(format="rgb24"))
    return np.stack(frames)


def store_as_jpeg(frames):
    """Frames as OpenCV stores them by default, at quality 95."""
    return np.stack([cv2.imdecode(cv2.imencode(".jpg", frame)[1], cv2.IMREAD_COLOR) for frame in frames])


def resize(frames, size, kernel="pillow"):
    """Resized frames; `size` is the short side, or (width, height)."""
    height, width = frames.shape[1:3]
    if isinstance(size, int):
        size = (int(size * width / height), size) if width >= height else (size, int(size * height / width))
    if isinstance(kernel, str):
        kind = {"pillow": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}[kernel]
        return np.stack([np.asarray(Image.fromarray(frame).resize(size, kind)) for frame in frames])
    return np.stack([cv2.resize(frame, size, interpolation=kernel) for frame in frames])


def crop(frames, side):
    """The centre squares."""
    top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
    return frames[:, top : top + side, left : left + side]


def flow_of(frames, compute):
    """(T, H, W, 2) float32: the flow from each frame to the next; the last one is repeated."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    fields = [compute(a, b) for a, b in itertools.pairwise(grey)]
    return np.stack([*fields, fields[-1]]).astype(np.float32)


def dis(a, b):
    """OpenCV's DIS as it comes, at its preset "fast"."""
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(a, b, None)


def farneback(a, b):
    """The call of OpenCV's tutorial."""
    return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


def scale_pixels(frames, low=-1.0, high=1.0, mean=0.0, std=1.0):
    """Pixels as the network's input; 0 and 255 become `low` and `high`."""
    return (frames / np.float32(255) * (high - low) + low - np.float32(mean)) / np.float32(std)


def scale_flow(fields, bound):
    """Flow in [-1, 1]."""
    return np.clip(fields, -bound, bound) / bound


def with_eps(net, eps):
    """The network with another eps in all batch norms."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps
    return net


def run(net, entries, *, window, stride, offset=0, picks=slice(None)):
    """(N, D) float32: features of `picks` of the windows of (T, H, W, C) float32, which start at `offset`."""
    rows = []
    for start in range(offset, len(entries) - window + 1, stride):
        clip = torch.from_numpy(np.ascontiguousarray(entries[start : start + window][picks], np.float32))
        with torch.inference_mode():
            rows.append(net(clip.permute(3, 0, 1, 2)[None]).features[0].numpy())
    return np.stack(rows)
