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
from collections.abc import Mapping, Sequence
from math import ceil, log10
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import UsageError
from ..segments import Curves, Segment, SegmentRule
from ..text import printable
from .colours import class_colours, ink_on
from .formats import Writer
from .views import choose_classes, clock, name_of, seconds_of, shown_streams

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

_MAX_CELLS = 400
"""Points of a curve; a longer one is averaged."""
_MAX_BLOCKS = 1000
"""Blocks of a row that stay vectors in SVG and PDF; more become one image."""
_MAX_LANES = 12
"""Lanes of a row that have the full height."""
_MAX_LEGEND_LINES = 8
_MAX_CHARACTERS = 40
_SMALL = 7.5
"""Points of labels."""

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
            figure = draw_timeline(result, self.choices.rule)
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


def draw_timeline(result: VideoResult, rule: SegmentRule) -> Figure:
    """Return a figure of a video's segments and score curves.

    Args:
        result: its scores; it has classes.
        rule: how scores become segments.
    """
    streams = shown_streams(result)
    rows = {stream: result.segments_by(rule, [stream]) for stream in streams}
    curves = result.curves(streams[-1], rule.smooth)
    classes = choose_classes(curves, rows[streams[-1]], result.labels)
    shown = [result.labels[k] for k in classes]
    all_segments = [segment for stream in reversed(streams) for segment in rows[stream]]
    span = float(curves.bounds[0]), float(max(curves.bounds[-1], curves.bounds[0] + 1 / result.fps))
    page = _Page(span, class_colours([*(segment.label for segment in all_segments), *shown]))

    page.write(name_of(result.video), _LEFT, _TITLE / 2, size=9, limit=90)
    y = _TITLE
    for stream in streams:
        y += page.draw_row(stream, rows[stream], y) + _GAP
    top_of_curves = y
    y += _CURVES + _AXIS
    seconds = seconds_of(all_segments)
    longest_first = sorted(seconds, key=lambda label: -seconds[label])
    for line in page.wrap([label for label in dict.fromkeys([*longest_first, *shown]) if label not in page.written]):
        for x, label in line:
            page.draw_entry(label, x, y + _ENTRY / 2)
        y += _ENTRY
    page.end(y + _GAP)
    page.draw_curves(Curves(curves.bounds, curves.scores[:, classes]).averaged(_MAX_CELLS), shown, top_of_curves)
    return page.figure


def _place(segments: Sequence[Segment]) -> list[int]:
    """Return a lane for every segment: that of its class if it is free, else the first free one."""
    lanes: list[tuple[float, str]] = []  # end and label of the last segment in each
    placed = []
    for segment in segments:
        free = [i for i, (end, _) in enumerate(lanes) if end <= segment.start_seconds] or [len(lanes)]
        lane = next((i for i in free if i < len(lanes) and lanes[i][1] == segment.label), free[0])
        lanes[lane : lane + 1] = [(segment.end_seconds, segment.label)]
        placed.append(lane)
    return placed


def _shorten(text: str, limit: int = _MAX_CHARACTERS) -> str:
    text = printable(text).replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")  # XML has no such characters
    return text if len(text) <= limit else f"{text[: limit - 9]}…{text[-8:]}"


class _Page:
    """Draws into a figure; x and y are inches from its top left corner.

    Args:
        span: start and end of the time axis in seconds.
        colours: of the classes.
    """

    def __init__(self, span: tuple[float, float], colours: Mapping[str, str]) -> None:
        self.figure = Figure(figsize=(WIDTH_INCHES, 1))
        self._canvas = FigureCanvasAgg(self.figure)
        self._axes = self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[], xlim=(0, WIDTH_INCHES))
        self._span, self._colours = span, colours
        self._inches_per_second = (WIDTH_INCHES - _LEFT - _RIGHT) / (span[1] - span[0])
        self._widths: dict[str, float] = {}
        self.written: set[str] = set()
        """Classes whose label is in a block."""

    def write(self, text: str, x: float, y: float, *, limit: int = _MAX_CHARACTERS, **style: Any) -> Any:
        """Write a stranger's text as it is, vertically centred."""
        style = {"size": _SMALL, "va": "center_baseline", **style}
        return self._axes.text(x, y, _shorten(text, limit), parse_math=False, **style)

    def width_of(self, label: str) -> float:
        """Return the inches that a label takes."""
        if label not in self._widths:
            drawn = self.write(label, 0, 0)
            self._widths[label] = drawn.get_window_extent(self._canvas.get_renderer()).width / self.figure.dpi  # type: ignore[no-untyped-call]
            drawn.remove()
        return self._widths[label]

    def draw_row(self, stream: str, segments: Sequence[Segment], top: float) -> float:
        """Draw the segments of a stream, and return the height."""
        placed = _place(segments)
        num_lanes = max(placed, default=0) + 1
        lane_height = _LANE * min(1, _MAX_LANES / num_lanes)
        height = num_lanes * lane_height
        self.write(stream, _LEFT - 0.08, top + height / 2, size=8, ha="right")
        width = WIDTH_INCHES - _LEFT - _RIGHT
        self._axes.add_patch(Rectangle((_LEFT, top), width, height, facecolor="#f0f0f0"))
        corners, faces, edges = [], [], []
        for segment, lane in zip(segments, placed, strict=True):
            times = segment.start_seconds, segment.end_seconds
            left, right = (_LEFT + (seconds - self._span[0]) * self._inches_per_second for seconds in times)
            y = top + lane * lane_height
            corners.append([(left, y), (right, y), (right, y + lane_height), (left, y + lane_height)])
            faces.append(colour := self._colours[segment.label])
            edges.append("#ffffff" if right - left > 0.04 else "none")  # an edge would hide a narrow block
            if lane_height == _LANE and right - left > 0.15 and self.width_of(segment.label) + 0.06 <= right - left:
                self.write(segment.label, (left + right) / 2, y + _LANE / 2, ha="center", color=ink_on(colour))
                self.written.add(segment.label)
        if corners:
            blocks = PolyCollection(corners, facecolors=faces, edgecolors=edges, linewidths=0.6)
            blocks.set_rasterized(len(corners) > _MAX_BLOCKS)
            self._axes.add_collection(blocks, autolim=False)
        return height

    def wrap(self, labels: Sequence[str]) -> list[list[tuple[float, str]]]:
        """Return the lines of a legend: x and the label of each entry."""
        lines: list[list[tuple[float, str]]] = []
        x = np.inf
        for label in labels:
            width = self.width_of(label) + 0.3
            if x + width > WIDTH_INCHES - _RIGHT:
                lines.append([])
                x = _LEFT
            lines[-1].append((x, label))
            x += width
        if len(lines) > _MAX_LEGEND_LINES:
            num_left_out = sum(map(len, lines[_MAX_LEGEND_LINES - 1 :]))
            lines[_MAX_LEGEND_LINES - 1 :] = [[(_LEFT, f"and {num_left_out} classes more")]]
        return lines

    def draw_entry(self, label: str, x: float, y: float) -> None:
        """Draw a class of the legend; without a colour, it is a remark."""
        if label in self._colours:
            self._axes.add_patch(Rectangle((x, y - 0.05), 0.1, 0.1, color=self._colours[label]))
        self.write(label, x + 0.15, y)

    def end(self, height: float) -> None:
        """Cut the page."""
        self.figure.set_size_inches(WIDTH_INCHES, height)
        self._axes.set_ylim(height, 0)

    def draw_curves(self, curves: Curves, labels: Sequence[str], top: float) -> None:
        """Draw the scores of some classes and the time axis, after `end`."""
        height = self.figure.get_figheight()
        width = 1 - (_LEFT + _RIGHT) / WIDTH_INCHES
        axes = self.figure.add_axes((_LEFT / WIDTH_INCHES, 1 - (top + _CURVES) / height, width, _CURVES / height))
        for label, values in reversed(list(zip(labels, curves.scores.T, strict=True))):  # the most seen one is on top
            axes.stairs(values, curves.bounds, baseline=None, color=self._colours[label], linewidth=1.2)
        axes.set(xlim=self._span, ylim=(-0.02, 1.02))
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_ylabel("score", labelpad=2)
        longest = self._span[1]
        step = next((s for s in _STEPS_SECONDS if longest - self._span[0] <= 10 * s), longest)
        axes.xaxis.set_major_locator(MultipleLocator(step))
        digits = max(0, ceil(-log10(step)))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda s, _: f"{s:.{digits}f}" if longest < 120 else clock(s, digits=0))
        )
        unit = "s" if longest < 120 else "m:ss" if longest < 3600 else "h:mm:ss"
        axes.set_xlabel(f"time ({unit})", labelpad=2)
        axes.grid(axis="y", linewidth=0.4, color="#dddddd")
        axes.set_axisbelow(True)
