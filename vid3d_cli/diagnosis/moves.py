"""The mistakes that are tried: each is a change of the settings, and a sentence that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from ..clips.preprocess import CENTRE, INTERPOLATIONS
from ..clips.windows import count_clips
from ..flow.methods import FLOW_METHODS
from ..models.manifest import Normalisation, model_entries
from ..models.registry import BACKBONES
from ..plan import Plan
from ..video.clock import describe_fps
from ..video.reader import VideoInfo
from .published import Change
from .rows import FLOW_AXES, Settings

RATES: tuple[int | Fraction, ...] = (25, 30, 15, Fraction(25, 2), 10, 24, 20, 8, 5)
WINDOWS = (16, 64, 32, 8, 10, 20, 21, 24, 48)
STRIDES = (1, 2, 4, 5, 8, 10, 12, 16, 24, 32, 64)
MAX_STRIDE = 1000
"""Strides that are counted where the number of rows does not fit."""
OFFSETS = (1, -1, 2, -2, 3, -3, 4, -4, 5, 8, -8, 10, 16)
LIKELY = {
    *(("fps", rate) for rate in ("native", "25", "30")),
    *(("window", window) for window in ("16", "64")),
    *(("offset", frames) for frames in ("+1 frame", "-1 frame")),
}
"""Changes of time that are tried before those of pixels."""

SIDES_PX = (224, 256, 240, 112, 128)
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
BOUNDS_PX = (20.0, 8.0, 10.0, 15.0, 16.0, 32.0, 1000.0)
EPS = (1e-5, 1e-3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Move:
    """One change, and how to make it."""

    change: Change
    apply: Callable[[Settings], Settings]
    stream: str | None = None
    """The stream that it changes; None: all."""


def count_frames(info: VideoInfo, plan: Plan) -> int | None:
    """Return how many frames a plan reads of a video, from its header; None if it says too little."""
    if info.duration_seconds is None:
        return None
    end = min(info.duration_seconds, plan.end_seconds or info.duration_seconds)
    if plan.fps is None and not plan.start_seconds and plan.end_seconds is None and info.num_frames_declared:
        return info.num_frames_declared
    return max(1, round((end - plan.start_seconds) * float(plan.fps or info.fps)))


def fits(info: VideoInfo, plan: Plan, num_rows: int) -> bool:
    """Return whether a plan gives this number of rows, with any tail; a frame more or less is the header's."""
    num_frames = count_frames(info, plan)
    return num_frames is not None and any(num_rows in _counts(num_frames + more, plan).values() for more in (-1, 0, 1))


def _counts(num_frames: int, plan: Plan, stride: int | None = None) -> dict[str, int]:
    """Return how many clips a plan makes, by tail; `stride`: instead of the plan's."""
    return {
        tail: count_clips(num_frames, length=plan.window, stride=stride or plan.stride, tail=tail, centred=plan.centred)
        for tail in ("pad", "drop")
    }


def explain_rows(info: VideoInfo, plan: Plan, num_rows: int) -> str:
    """Return what the number of published rows says of a plan: "139 rows fit stride 8, window 16 at 25 fps"."""
    rows, fit, do = ("1 row", "fits", "does") if num_rows == 1 else (f"{num_rows:,} rows", "fit", "do")
    rate = f"{describe_fps(plan.fps or info.fps)} fps"
    recipe = f"stride {plan.stride}, window {plan.window} at {rate}"
    num_frames = count_frames(info, plan)
    if num_frames is None:
        return f"{rows}; the video's header does not say how many fit {recipe}"
    counts = _counts(num_frames, plan)
    if num_rows == counts["drop"] != counts["pad"] and plan.tail != "drop":
        return f"{rows} {fit} {recipe} without the tail: --tail drop"
    if num_rows in counts.values() or fits(info, plan, num_rows):
        return f"{rows} {fit} {recipe}"
    strides = [s for s in range(1, MAX_STRIDE) if num_rows > 1 and num_rows in _counts(num_frames, plan, s).values()]
    others = f"; they fit stride {' to '.join(map(str, sorted({strides[0], strides[-1]})))}" if strides else ""
    return f"{rows} {do} not fit {recipe}, which gives {counts[plan.tail if plan.tail == 'drop' else 'pad']:,}{others}"


def find_moves(settings: Settings, info: VideoInfo, num_rows: int) -> list[Move]:
    """Return the moves from a recipe: common mistakes of time, then pixels, the network, other times, and flow.

    Args:
        settings: yours.
        info: of the video.
        num_rows: of the published array.
    """
    plan = settings.plan
    time = list(_time(plan, info, num_rows))
    likely = [move for move in time if _is_likely(move, settings, info, num_rows)]
    moves = [*likely, *_pixels(plan)]
    for stream in plan.networks:
        moves += _normalisation(plan, stream)
    moves += [
        Move(
            Change("eps", "the network's own", f"{eps:g}", f"all batch norms have eps {eps:g}, not the network's own"),
            lambda s, eps=eps: replace(s, eps=eps),  # type: ignore[misc]
        )
        for eps in EPS
    ]
    rest = [move for move in time if move not in likely]
    return [*moves, *rest, *_crops(plan), *(_flow(plan) if "flow" in plan.networks else ())]


def _is_likely(move: Move, settings: Settings, info: VideoInfo, num_rows: int) -> bool:
    """Return whether a move of time is a common mistake, or explains the number of rows."""
    name, theirs = move.change.name, move.change.theirs
    if name in ("fps", "stride", "window") and fits(info, move.apply(settings).plan, num_rows):
        return True
    return (name, theirs) in LIKELY or name in ("rounding", "clips")


def _planned(**changes: object) -> Callable[[Settings], Settings]:
    return lambda settings: replace(settings, plan=dataclasses.replace(settings.plan, **changes))  # type: ignore[arg-type]


def _option(name: str, yours: object, theirs: object, what: str, **changes: object) -> Move:
    """Return a move that an option makes; its flag is the name."""
    flag = f"--{name} {theirs}"
    return Move(Change(name, str(yours), str(theirs), f"{what}: {flag}"), _planned(**changes))


def _time(plan: Plan, info: VideoInfo, num_rows: int) -> Iterator[Move]:
    native = Fraction(info.fps).limit_denominator(1001)
    rates: list[Fraction | None] = [None, *(Fraction(rate) for rate in RATES)]
    plans = {fps: dataclasses.replace(plan, fps=fps) for fps in rates if fps is None or _differ(fps, native)}
    rates = [fps for fps in plans if _differ(fps or native, plan.fps or native)]
    num_frames = {fps: count_frames(info, one) for fps, one in {plan.fps: plan, **plans}.items()}
    rates.sort(key=lambda fps: not fits(info, plans[fps], num_rows))
    yours = "native" if plan.fps is None else describe_fps(plan.fps)
    for fps in rates:
        name = "native" if fps is None else describe_fps(fps)
        what = f"frames are read at {'the native rate, ' * (fps is None)}{describe_fps(fps or native)} fps"
        yield _option("fps", yours, name, what, fps=fps)
    if plan.fps is not None and _differ(plan.fps, native):
        sentence = "frames are the nearest to each tick, as in ffmpeg's fps filter; vid3d takes those shown then"
        yield Move(
            Change("rounding", "shown", "nearest", sentence),
            lambda settings: replace(settings, takes_nearest=True),
        )
    for stride in dict.fromkeys(
        [*_strides_by_rows(num_frames.values(), plan, num_rows), plan.window, plan.window // 2, *STRIDES]
    ):
        if 0 < stride != plan.stride:
            what = f"a clip starts every {_frames(stride)}"
            yield _option("stride", plan.stride, stride, what, stride=stride)
    backbone = BACKBONES[plan.backbone]
    for window in WINDOWS:
        is_whole = window % backbone.frame_multiple == 0 and window >= backbone.min_frames
        if window != plan.window and is_whole and not backbone.is_fixed_size:
            yield _option("window", plan.window, window, f"clips have {window} frames", window=window)
    if not plan.centred:
        sentence = f"a clip every {_frames(plan.stride)} is centred on its frame; the first and the last frame repeat"
        sentence += ": --centred" + " --tail pad" * (plan.tail != "pad")
        yield Move(Change("clips", "from a frame on", "centred", sentence), _planned(centred=True, tail="pad"))
    if plan.spread is None:
        number, window = plan.window, 2 * plan.window
        sentence = f"clips are {number} frames spread over {window}: --window {window} --spread {number}"
        change = Change("spread", "none", f"{number} of {window} frames", sentence)
        yield Move(change, _planned(window=window, spread=number))
    halves = (-(plan.window // 2), plan.window // 2)
    for offset in dict.fromkeys((*OFFSETS, *halves, plan.stride, -plan.stride)):
        frames = f"{abs(offset)} frame{'s' * (abs(offset) > 1)}"
        first = "; the first frame repeats before the video" if offset < 0 else ""
        sentence = f"clips start {frames} {'later' if offset > 0 else 'earlier'}{first}"
        yield Move(
            Change("offset", "0 frames", f"{'+' if offset > 0 else '-'}{frames}", sentence),
            lambda settings, offset=offset: replace(settings, offset=offset),  # type: ignore[misc]
        )


def _frames(number: int) -> str:
    return "frame" if number == 1 else f"{number} frames"


def _differ(a: Fraction, b: Fraction) -> bool:
    return abs(a / b - 1) > Fraction(1, 500)


def _strides_by_rows(num_frames: Iterable[int | None], plan: Plan, num_rows: int) -> Iterator[int]:
    """Yield the strides at which a video of these numbers of frames gives so many rows."""
    for number in num_frames:
        if number and num_rows > 1 and number > plan.window:
            about = number / num_rows if plan.centred else (number - plan.window) / (num_rows - 1)
            for stride in {int(about), round(about), int(about) + 1}:
                if stride and num_rows in _counts(number, plan, stride).values():
                    yield stride


def _pixels(plan: Plan) -> Iterator[Move]:
    yours = _name_size(plan.resize_px)
    side = plan.resize_px if isinstance(plan.resize_px, int) else plan.resize_px[0]
    crop = plan.crop_px
    wide = (256, 340) if side == 256 else (side, round(side * 4 / 3))
    sizes: list[int | tuple[int, int]] = [wide, (side, side), (crop, crop), (256, 340), (128, 171), (256, 256)]
    if not isinstance(plan.resize_px, int):
        sizes.insert(0, side)
    for size in dict.fromkeys((*sizes, round(crop * 8 / 7), crop, *SIDES_PX)):
        if size == plan.resize_px or (size if isinstance(size, int) else min(size)) < crop:
            continue
        what = "whatever their aspect" if isinstance(size, tuple) else "on their short side"
        theirs = f"{'without aspect ' * isinstance(size, tuple)}{_name_size(size)}"
        sentence = f"frames are resized to {_name_size(size)} px {what}: --resize {_name_size(size)}"
        yield Move(Change("resize", yours, theirs, sentence), _planned(resize_px=size))
    if not plan.resize_only and plan.crop_names == CENTRE and not BACKBONES[plan.backbone].is_fixed_size:
        change = Change("crop", f"centre {crop} px", "none", "whole frames run, without a crop: --resize-only")
        yield Move(change, _planned(resize_only=True))
    for name, words in INTERPOLATIONS.items():
        if name != plan.interpolation:
            what = f"frames are resized by {words} interpolation"
            yield _option("interpolation", plan.interpolation, name, what, interpolation=name)


def _crops(plan: Plan) -> Iterator[Move]:
    if plan.crop_names == CENTRE and not plan.resize_only:
        for number in ("3", "10"):
            yield _option("crops", "1", number, f"rows are the mean of {number} crops", crops=number)


def _name_size(size: int | tuple[int, int]) -> str:
    """Return a size as `--resize` takes it."""
    return str(size) if isinstance(size, int) else f"{size[1]}x{size[0]}"


def _normalisation(plan: Plan, stream: str) -> Iterator[Move]:
    own = plan.networks[stream].normalisation
    if stream == "flow":
        return
    order = "RGB" if own.channel_order == "BGR" else "BGR"
    yield _normalised(
        Change("channels", str(own.channel_order), order, f"the network gets {order} frames"),
        stream,
        lambda n: replace(n, channel_order=order),
    )
    plain = [Normalisation(values, None, None) for values in RANGES]
    known = [entry.streams["rgb"].normalisation for entry in model_entries().values() if "rgb" in entry.streams]
    seen = [(own.range, own.mean, own.std)]
    for other in [*plain, Normalisation((0.0, 1.0), *IMAGENET), *known]:
        facts = other.range, other.mean, other.std
        if facts in seen:
            continue
        seen.append(facts)
        yours, theirs = (replace(n, channel_order="RGB").describe().removeprefix("RGB to ") for n in (own, other))
        yield _normalised(
            Change("range", yours, theirs, f"pixels are scaled to {theirs}"),
            stream,
            lambda n, other=other: replace(n, range=other.range, mean=other.mean, std=other.std),  # type: ignore[misc]
        )


def _normalised(change: Change, stream: str, edit: Callable[[Normalisation], Normalisation]) -> Move:
    def apply(settings: Settings) -> Settings:
        networks = dict(settings.plan.networks)
        networks[stream] = replace(networks[stream], normalisation=edit(networks[stream].normalisation))
        return _planned(networks=networks)(settings)

    return Move(change, apply, stream)


def _flow(plan: Plan) -> Iterator[Move]:
    own = plan.networks["flow"].normalisation
    for axes in FLOW_AXES:
        if axes != "x, y":
            yield Move(
                Change("flow axes", "x, y", axes, f"the network gets flow as {axes}"),
                lambda settings, axes=axes: replace(settings, flow_axes=axes),  # type: ignore[misc]
                "flow",
            )
    for bound in BOUNDS_PX:
        if bound == own.bound_px:
            continue
        change = Change("flow bound", f"{own.bound_px:g} px", f"{bound:g} px", f"flow is truncated to ±{bound:g} px")
        move = _normalised(change, "flow", lambda n, bound=bound: replace(n, bound_px=bound))  # type: ignore[misc]
        yield replace(
            move,
            apply=lambda settings, apply=move.apply, bound=bound: _planned(trained_bound_px=bound)(apply(settings)),  # type: ignore[misc]
        )
    if own.range != (0.0, 1.0):
        yield _normalised(
            Change("flow range", f"{own.range}", "(0, 1)", "flow is scaled to [0, 1]"),
            "flow",
            lambda n: replace(n, range=(0.0, 1.0)),
        )
    if not plan.flow_files:
        size = "resized" if plan.flow_size == "source" else "source"
        what = "flow is computed before the resize" if size == "source" else "flow is computed on resized frames"
        yield replace(_option("flow-size", plan.flow_size, size, what, flow_size=size), stream="flow")
    seen = [FLOW_METHODS[plan.flow].description]
    for method, facts in FLOW_METHODS.items():
        if facts.description not in seen and not plan.flow_files:
            seen.append(facts.description)
            move = _option("flow", plan.flow, method, f"flow is computed by {method}", flow=method)
            yield replace(move, stream="flow")
