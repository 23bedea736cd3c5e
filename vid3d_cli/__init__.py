"""vid3d: actions and clip features from video with two-stream 3D CNNs.

    import vid3d_cli as vid3d

    result = vid3d.classify("video.mp4", model="i3d")                  # VideoResult(video.mp4, 8 clips, archery 95 %)
    result.top(5)                                                      # list of Prediction; top_k() of any logits
    result.segments()                                                  # list of Segment: what is seen when
    result.save("video.csv")                                           # or another format; also to_dict, to_pandas
    model = vid3d.load("i3d")                                          # a Model, which stays loaded
    model.classify("another.mp4")
    for result in vid3d.extract("videos/", model="i3d"): ...           # features with their seconds
    summary = vid3d.extract("videos/", out="feats.npy", model="i3d")   # a JobSummary; the same call resumes the job
    store = vid3d.open_store("feats.npy")                              # output of vid3d extract, in any format
    plan = vid3d.make_plan(model="i3d", window=16)                     # a Plan: checked options, without a network
    flow = vid3d.optical_flow(grey, method="dis")                      # (T, H, W) uint8 → (T-1, H, W, 2) float32
    net = vid3d.create_model("i3d", stream="rgb", weights=None)        # an nn.Module
    info = vid3d.probe("video.mp4")                                    # codec, size, frame rate, lost frames
    for frame in vid3d.VideoReader("video.mp4", fps=25): ...           # (H, W, 3) uint8, with their seconds

help() explains each of them. `Options` lists the options; `Recipe` says how features were made, `Fusion` how the
streams' scores are summed, `VideoFailure` why a video failed. All errors are `Vid3dError`s: `UsageError` (an argument
is wrong), `VideoError` (one video cannot be used), `WeightsError`; warnings are `Vid3dWarning`s. `__version__` is the
version.

Names are imported when they are first used, so that `import vid3d_cli` is fast.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import Model, classify, extract, load, make_plan
    from .errors import UsageError, Vid3dError, Vid3dWarning, VideoError, WeightsError
    from .features.stores import open_store
    from .flow.methods import optical_flow
    from .fusion import Fusion
    from .jobs.events import JobSummary
    from .models.clip_model import create_model
    from .options import Options
    from .plan import Plan
    from .recipe import Recipe
    from .records import Prediction, VideoFailure, top_k
    from .results import VideoResult
    from .segments import Segment
    from .video.process import probe
    from .video.reader import VideoReader

if sys.platform == "win32":
    raise ImportError("vid3d needs a POSIX system, such as Linux or macOS: on Windows, install it in WSL")

_HOMES = {
    "api": ["Model", "classify", "extract", "load", "make_plan"],
    "errors": ["UsageError", "Vid3dError", "Vid3dWarning", "VideoError", "WeightsError"],
    "features.stores": ["open_store"],
    "flow.methods": ["optical_flow"],
    "fusion": ["Fusion"],
    "jobs.events": ["JobSummary"],
    "models.clip_model": ["create_model"],
    "options": ["Options"],
    "plan": ["Plan"],
    "recipe": ["Recipe"],
    "records": ["Prediction", "VideoFailure", "top_k"],
    "results": ["VideoResult"],
    "segments": ["Segment"],
    "video.process": ["probe"],
    "video.reader": ["VideoReader"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (in the order of use)
    "classify",
    "extract",
    "load",
    "open_store",
    "optical_flow",
    "create_model",
    "make_plan",
    "Options",
    "Plan",
    "Model",
    "VideoResult",
    "JobSummary",
    "VideoFailure",
    "Prediction",
    "Segment",
    "Recipe",
    "Fusion",
    "top_k",
    "VideoReader",
    "probe",
    "Vid3dError",
    "UsageError",
    "VideoError",
    "WeightsError",
    "Vid3dWarning",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vid3d_cli' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
