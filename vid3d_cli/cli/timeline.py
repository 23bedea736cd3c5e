"""What `vid3d classify` prints on a terminal: a line per run of clips or per segment, then the video's best classes.

camera.mp4
 0:00.0 – 0:02.6   pan_left                           97.8% ███████████████████▌
 0:02.6 – 0:05.1   zoom_in                            61.2% ████████████▏

    whole video    pan_left                           43.1% ████████▌
                   static                             12.0% ██▍
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from ..predictions.formats import Choices, Writer
from ..predictions.views import clock
from ..records import FUSED, ClipOutput, rank
from ..text import printable
from .console import count_messages
from .tables import make_console

if TYPE_CHECKING:
    from ..results import VideoResult

_TIMES_WIDTH = len(" 0:00.0 – 10:00.0")
_SCORE_WIDTH = len("100.0%")
_MAX_WIDTH, _MAX_BAR = 100, 20
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass
class _Run:
    """Neighbouring clips of one class."""

    label: str
    start_seconds: float
    end_seconds: float
    centre: float
    """Of its last clip, in seconds."""
    sum_scores: float = 0.0
    num_clips: int = 0


class Timeline(Writer):
    """Prints fused predictions as a line per run of clips of one class, or per segment; then the video's best classes.

    A line is printed when it is complete; on a terminal it also grows while its clips are done.
    """

    def __init__(self, stream: TextIO, choices: Choices) -> None:
        super().__init__(stream, choices)
        self._console = make_console(stream)
        self._can_grow = self._console.is_terminal and not self._console.is_dumb_terminal
        self._video: str | None = None  # whose lines were printed last
        self._run: _Run | None = None  # it may grow
        self._num_messages: int | None = None  # when its line was printed
        self._num_written = 0  # clips of this video

    def write_clips(self, video: str, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        """Print clips before their video is done."""
        if self.choices.per == "clip" and not self.choices.segments:
            self._begin(video)
            self._add(clips, labels)

    def write(self, result: VideoResult, name: str) -> None:
        """Print the rest of a video."""
        self._begin(result.video)
        if self.choices.segments:
            segments = result.segments_by(self.choices.rule, [FUSED])
            for segment in segments:
                self._print(_times(segment.start_seconds, segment.end_seconds), segment.label, segment.score)
            if not segments:
                self._console.print("no segments")
        elif self.choices.per == "clip":
            self._add(result.clips[self._num_written :], result.labels)
            self._end_run()
        if self.choices.per == "clip":
            self._console.print()
        heading = "whole video"
        for best in rank(result.logits[FUSED], result.labels, self.choices.k):
            self._print(f"{heading:^{_TIMES_WIDTH}}", best.label, best.score)
            heading = ""
        self._console.file.flush()
        self._num_written = 0

    def close(self) -> None:
        """Print the line that was growing when the run ended."""
        self._end_run()
        self._console.file.flush()

    def _begin(self, video: str) -> None:
        if video == self._video:
            return
        self._end_run()  # of a video that failed midway
        if self._video is not None:
            self._console.print()
        self._console.print(Text(printable(video), "bold"), soft_wrap=True)
        self._video, self._num_written = video, 0

    def _add(self, clips: Sequence[ClipOutput], labels: Sequence[str]) -> None:
        """Add clips to the run, and print the lines that they complete."""
        self._num_written += len(clips)
        for clip in clips:
            (best,) = rank(clip.logits[FUSED], labels, 1)
            start, end = clip.span.start_seconds, clip.span.end_seconds
            centre = (start + end) / 2
            if self._run is None or self._run.label != best.label:
                if self._run is not None:
                    start = self._run.end_seconds = (self._run.centre + centre) / 2  # as in segments
                    self._end_run()
                self._run = _Run(best.label, start, end, centre)
            self._run.end_seconds, self._run.centre = end, centre
            self._run.sum_scores += best.score
            self._run.num_clips += 1
        if self._can_grow and self._run is not None:
            self._print_run(self._run)
            self._num_messages = count_messages()
        self._console.file.flush()

    def _end_run(self) -> None:
        if self._run is not None:
            self._print_run(self._run)
        self._run = self._num_messages = None

    def _print_run(self, run: _Run) -> None:
        if self._num_messages == count_messages():  # else a message stands below the line
            self._console.control(Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)))
        self._print(_times(run.start_seconds, run.end_seconds), run.label, run.sum_scores / run.num_clips)

    def _print(self, times: str, label: str, score: float) -> None:
        width = min(self._console.width, _MAX_WIDTH)
        bar = max(0, min(_MAX_BAR, (width - 40) // 2))
        space = max(8, width - len(times) - 2 - 2 - _SCORE_WIDTH - 1 - bar)
        name = Text(printable(label))
        name.truncate(space, overflow="ellipsis", pad=True)
        line = Text.assemble(f"{times}  ", name, f"  {score:{_SCORE_WIDTH}.1%} ", (self._bar(score, bar), "cyan"))
        line.rstrip()
        self._console.print(line, no_wrap=True, crop=True)

    def _bar(self, score: float, width: int) -> str:
        if self._console.options.ascii_only:
            return "#" * round(score * width)
        eighths = round(score * width * 8)
        return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _times(start: float, end: float) -> str:
    return f"{clock(start):>7} – {clock(end):<7}"
