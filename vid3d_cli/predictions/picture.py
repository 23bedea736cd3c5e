r"""Predictions as a picture for a paper or a slide: segments on a timeline, above the curves of a few classes.

title
rgb    [ pan-left      ][ zoom-in  ]     a row a stream; labels that do not fit are in the legend
fused  [ pan-left        ][ zoom-in]
score  ~~~~~~~\_____/~~~~~~~~~~~~~~~     0 to 1
       0    5    10   15   20  time (s)
legend
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ..errors import UsageError
from ..records import FUSED, STREAMS
from ..segments import Curves, Segment
from ..text import printable
from .colours import class_colours
from .formats import Choices, Writer

try:
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, MultipleLocator
except ModuleNotFoundError:
    raise UsageError('a timeline as a picture needs matplotlib: pip install "vid3d[plots]"') from None

if TYPE_CHECKING:
    from ..results import VideoResult

WIDTH_INCHES = 7.0
"""The text of a page is that wide."""

_LEFT, _RIGHT, _TITLE, _LANE, _GAP, _CURVES, _AXIS, _ENTRY = 0.6, 0.25, 0.3, 0.2, 0.07, 1.2, 0.42, 0.17
"""Inches: the margins, and the heights of the title, a lane of segments, the gap below a row, the curves, the time axis
with its label, and a line of the legend."""

_MAX_CURVES = 8
_LEAST_PEAK = 0.1
"""A class without a segment has a curve if its score is ever that high."""
_MAX_CELLS = 400
"""Points of a curve; a longer one is averaged."""
_MAX_BLOCKS = 1000
"""Blocks of a row that stay vectors in SVG and PDF; more become one image."""
_MAX_LANES = 12
"""Lanes of a row that have the full height."""
_MAX_LEGEND_LINES = 8
_MAX_CHARACTERS = 40

_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Symbols2", "Noto Emoji"),
)
"""The first comes with matplotlib; the others, where they are installed, draw what it lacks."""

_STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
    "svg.hashsalt": "vid3d",  # equal input gives equal bytes
}
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
}

_STEPS_SECONDS = [m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)] + [
    *(10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0),
    *(3600.0 * m * 10**e for e in range(4) for m in (1, 2, 5)),
]


class Picture(Writer):
    """A timeline of one video."""

    holds_many = False
    is_binary = True
    form: ClassVar[str]
    """What matplotlib calls the format."""

    def write(self, result: VideoResult, name: str) -> None:
        if not result.labels:
            raise UsageError(f"{printable(result.video)}: its scores are an embedding without classes to draw")
        data = io.BytesIO()  # matplotlib seeks in some formats
        user_style = {**_STYLE, "font.family": _installed_fonts()}
        with style.context(["default", user_style]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a box stands for a character that no font has
            figure = draw_timeline(result, self.choices)
            figure.savefig(data, format=self.form, dpi=300, metadata=_METADATA[self.form])
        self.stream.buffer.write(data.getvalue())


class Png(Picture):
    """300 pixels per inch."""

    form = "png"


class Svg(Picture):
    """Text stays text."""

    form = "svg"


class Pdf(Picture):
    """Text stays text, in embedded fonts."""

    form = "pdf"


def _installed_fonts() -> list[str]:
    installed = set(fontManager.get_font_names())
    return [_FONTS[0], *(name for name in _FONTS[1:] if name in installed)]


class _Block(NamedTuple):
    segment: Segment
    lane: int


def draw_timeline(result: VideoResult, choices: Choices) -> Figure:
    """Return a figure of a video's segments and score curves.

    Args:
        result: its scores; it has classes.
        choices: the rule of the segments; `k` curves, or more to show every class that has a segment, up to 8.
    """
    streams = [stream for stream in STREAMS if stream in result.logits]
    streams += [FUSED] if len(streams) != 1 else []
    rows = {stream: _place(result.segments_by(choices.rule, [stream])) for stream in streams}
    curves = result.curves(streams[-1], choices.rule.smooth)
    shown = _shown_classes(result.labels, [block.segment for block in rows[streams[-1]]], curves, choices.k)
    span = float(curves.bounds[0]), float(max(curves.bounds[-1], curves.bounds[0] + 1 / result.fps))

    ordered = [block.segment.label for stream in reversed(streams) for block in rows[stream]]
    colours = class_colours([*ordered, *shown])
    lanes = {stream: max((block.lane + 1 for block in blocks), default=1) for stream, blocks in rows.items()}
    seconds = _seconds_of(block.segment for blocks in rows.values() for block in blocks)
    pen = _Pen(Figure(figsize=(WIDTH_INCHES, 1)))
    inches_per_second = pen.inner / (span[1] - span[0])
    written = {
        block.segment.label
        for stream, blocks in rows.items()
        for block in blocks
        if lanes[stream] <= _MAX_LANES and pen.fits(block.segment, inches_per_second)
    }
    longest_first = sorted(seconds, key=lambda label: -seconds[label])
    legend = pen.wrap([label for label in dict.fromkeys([*longest_first, *shown]) if label not in written])
    heights = {stream: _LANE * min(lanes[stream], _MAX_LANES) for stream in streams}
    pen.set_height(_TITLE + sum(heights.values()) + _GAP * len(streams) + _CURVES + _AXIS + _ENTRY * len(legend) + _GAP)
    pen.write(_file_name(result.video), 0, _TITLE / 2, size=9, limit=90)
    top = _TITLE
    for stream in streams:
        pen.draw_row(stream, rows[stream], lanes[stream], top, heights[stream], span, colours)
        top += heights[stream] + _GAP
    pen.draw_curves(curves, result.labels, shown, top, span, colours)
    pen.draw_legend(legend, top + _CURVES + _AXIS, colours)
    return pen.figure


def _place(segments: Iterable[Segment]) -> list[_Block]:
    """Give every segment a lane: that of its class if it is free, else the first free one."""
    lanes: list[tuple[float, str]] = []  # end and label of the last segment in each
    blocks = []
    for segment in segments:
        free = [i for i, (end, _) in enumerate(lanes) if end <= segment.start_seconds] or [len(lanes)]
        lane = next((i for i in free if i < len(lanes) and lanes[i][1] == segment.label), free[0])
        lanes[lane : lane + 1] = [(segment.end_seconds, segment.label)]
        blocks.append(_Block(segment, lane))
    return blocks


def _seconds_of(segments: Iterable[Segment]) -> dict[str, float]:
    """Return how long each class is seen."""
    seconds: dict[str, float] = {}
    for segment in segments:
        seconds[segment.label] = seconds.get(segment.label, 0) + segment.end_seconds - segment.start_seconds
    return seconds


def _shown_classes(labels: Sequence[str], segments: Sequence[Segment], curves: Curves, k: int) -> list[str]:
    """Return the classes whose curves are drawn: those seen longest, then those of the highest mean score."""
    seconds = _seconds_of(segments)
    means, peaks = curves.scores.mean(axis=0), curves.scores.max(axis=0)
    found = [i for i, label in enumerate(labels) if label in seconds or peaks[i] >= _LEAST_PEAK]
    found.sort(key=lambda i: (seconds.get(labels[i], 0), means[i]), reverse=True)
    return [labels[i] for i in found[: max(k, min(len(seconds), _MAX_CURVES))]]


def _file_name(video: str) -> str:
    return PurePath(video.partition("?")[0] if "://" in video else video).name or video


def _shorten(text: str, limit: int = _MAX_CHARACTERS) -> str:
    text = printable(text).replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")  # XML has no such characters
    return text if len(text) <= limit else f"{text[: limit - 9]}…{text[-8:]}"


def _ink_on(colour: str) -> str:
    """Return black or white, whichever is easier to read (the luminance of WCAG 2)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"


def _format_seconds(seconds: float, longest: float, step: float) -> str:
    if longest < 120:
        return f"{seconds:.{max(0, int(np.ceil(-np.log10(step))))}f}"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if longest >= 3600 else f"{60 * hours + rest // 60}:{rest % 60:02}"


class _Pen:
    """Draws into a figure; positions are inches from its top left corner."""

    inner = WIDTH_INCHES - _LEFT - _RIGHT
    """Width of the time axis."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self._canvas = FigureCanvasAgg(figure)
        self._widths: dict[tuple[str, float], float] = {}

    def set_height(self, inches: float) -> None:
        self.figure.set_size_inches(WIDTH_INCHES, inches)

    def width_of(self, text: str, size: float = 7.5) -> float:
        """Return the inches that a text takes."""
        if (text, size) not in self._widths:
            drawn = self.figure.text(0, 0, text, size=size, parse_math=False)
            extent = drawn.get_window_extent(self._canvas.get_renderer())  # type: ignore[no-untyped-call]
            self._widths[text, size] = extent.width / self.figure.dpi
            drawn.remove()
        return self._widths[text, size]

    def fits(self, segment: Segment, inches_per_second: float) -> bool:
        inches = (segment.end_seconds - segment.start_seconds) * inches_per_second
        return inches > 0.15 and self.width_of(_shorten(segment.label)) + 0.06 <= inches

    def write(
        self, text: str, x: float, y: float, size: float = 7.5, limit: int = _MAX_CHARACTERS, **style: Any
    ) -> None:
        """Write a stranger's text as it is, vertically centred."""
        height = self.figure.get_figheight()
        self.figure.text(
            (_LEFT + x) / WIDTH_INCHES,
            1 - y / height,
            _shorten(text, limit),
            size=size,
            va="center_baseline",
            parse_math=False,
            **style,
        )

    def _axes(self, top: float, height: float, span: tuple[float, float]) -> Any:
        whole = self.figure.get_figheight()
        axes = self.figure.add_axes(
            (_LEFT / WIDTH_INCHES, 1 - (top + height) / whole, self.inner / WIDTH_INCHES, height / whole)
        )
        axes.set_xlim(*span)
        return axes

    def draw_row(
        self,
        stream: str,
        blocks: Sequence[_Block],
        num_lanes: int,
        top: float,
        height: float,
        span: tuple[float, float],
        colours: Mapping[str, str],
    ) -> None:
        """Draw the segments of a stream."""
        axes = self._axes(top, height, span)
        axes.set_ylim(num_lanes, 0)
        axes.set_facecolor("#f0f0f0")
        axes.tick_params(bottom=False, labelbottom=False, left=False, labelleft=False)
        axes.spines[:].set_visible(False)
        self.write(stream, -0.08, top + height / 2, size=8, ha="right")
        inches_per_second = self.inner / (span[1] - span[0])
        corners, faces, are_wide = [], [], []
        for segment, lane in blocks:
            start, end = segment.start_seconds, segment.end_seconds
            corners.append([(start, lane), (end, lane), (end, lane + 1), (start, lane + 1)])
            faces.append(colours[segment.label])
            are_wide.append((end - start) * inches_per_second > 0.04)
            if num_lanes <= _MAX_LANES and self.fits(segment, inches_per_second):
                middle = (start + end) / 2 - span[0]
                self.write(
                    segment.label,
                    middle * inches_per_second,
                    top + (lane + 0.5) * height / num_lanes,
                    ha="center",
                    color=_ink_on(colours[segment.label]),
                )
        if blocks:
            edges = ["#ffffff" if is_wide else "none" for is_wide in are_wide]  # an edge would hide a narrow block
            axes.add_collection(
                PolyCollection(
                    corners,
                    facecolors=faces,
                    edgecolors=edges,
                    linewidths=0.6,
                    rasterized=len(blocks) > _MAX_BLOCKS,
                ),
                autolim=False,
            )

    def draw_curves(
        self,
        curves: Curves,
        labels: Sequence[str],
        shown: Sequence[str],
        top: float,
        span: tuple[float, float],
        colours: Mapping[str, str],
    ) -> None:
        """Draw the scores of some classes, and the time axis."""
        axes = self._axes(top, _CURVES, span)
        bounds, scores = _average_cells(curves.bounds, curves.scores[:, [labels.index(label) for label in shown]])
        for label, values in reversed(list(zip(shown, scores.T, strict=True))):  # the most seen one is on top
            axes.stairs(values, bounds, baseline=None, color=colours[label], linewidth=1.2)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_ylabel("score", labelpad=2)
        longest = span[1]
        step = next(s for s in [*_STEPS_SECONDS, np.inf] if (span[1] - span[0]) / s <= 10)
        axes.xaxis.set_major_locator(MultipleLocator(step) if np.isfinite(step) else MultipleLocator(longest))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _format_seconds(seconds, longest, step)))
        axes.set_xlabel(
            "time (s)" if longest < 120 else "time (m:ss)" if longest < 3600 else "time (h:mm:ss)", labelpad=2
        )
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)

    def wrap(self, labels: Sequence[str]) -> list[list[tuple[float, str]]]:
        """Return the lines of a legend: the inches from the left and the text of each entry."""
        lines: list[list[tuple[float, str]]] = []
        right = np.inf
        for label in labels:
            width = self.width_of(_shorten(label)) + 0.3
            if right + width > self.inner:
                lines.append([])
                right = 0.0
            lines[-1].append((right, label))
            right += width
        if len(lines) > _MAX_LEGEND_LINES:
            num_left_out = sum(map(len, lines[_MAX_LEGEND_LINES - 1 :]))
            lines[_MAX_LEGEND_LINES - 1 :] = [[(0.0, f"and {num_left_out} classes more")]]
        return lines

    def draw_legend(self, lines: Sequence[Sequence[tuple[float, str]]], top: float, colours: Mapping[str, str]) -> None:
        """Draw the lines of `wrap`; an entry without a colour is a remark."""
        height = self.figure.get_figheight()
        for number, line in enumerate(lines):
            y = top + (number + 0.5) * _ENTRY
            for x, label in line:
                if label in colours:
                    corner = (_LEFT + x) / WIDTH_INCHES, 1 - (y + 0.05) / height
                    swatch = Rectangle(corner, 0.1 / WIDTH_INCHES, 0.1 / height, color=colours[label])
                    swatch.set_transform(self.figure.transFigure)
                    self.figure.add_artist(swatch)
                self.write(label, x + 0.15, y)


def _average_cells(bounds: Any, scores: Any) -> tuple[Any, Any]:
    """Return at most `_MAX_CELLS` cells, each the mean of equally many."""
    step = -(-len(scores) // _MAX_CELLS)
    if step == 1:
        return bounds, scores
    firsts = np.arange(0, len(scores), step)
    seconds = np.diff(bounds)[:, None] + 1e-12
    means = np.add.reduceat(scores * seconds, firsts) / np.add.reduceat(seconds, firsts)
    return np.append(bounds[firsts], bounds[-1]), means
