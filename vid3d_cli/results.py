"""The result of a video: what `vid3d classify` and `vid3d_cli.classify` give."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import checked
from .durable import open_output
from .errors import OutputExists, UsageError
from .predictions.formats import Choices, check_choices, find_writer, format_of, list_suffixes
from .predictions.records import CSV_COLUMNS, prediction_records, prediction_rows
from .recipe import Recipe
from .records import FUSED, STREAMS, ClipOutput, HoldsArrays, Prediction, rank, softmax
from .segments import Curves, Segment, SegmentRule, find_segments, make_curves
from .suggest import check_known
from .text import printable
from .video.sources import source_of


@dataclass(frozen=True, eq=False, repr=False)
class VideoResult(HoldsArrays):
    """The scores and features of one video; `==` compares all of them. A notebook shows it as a timeline."""

    video: str
    """Path or URL as given."""
    clips: tuple[ClipOutput, ...]
    """In time order; at least one."""
    logits: Mapping[str, NDArray[np.float32]]
    """Per stream and "fused", (K,): the video's scores before softmax."""
    labels: tuple[str, ...]
    """K class names, in the order of the logits; none if the logits are an embedding."""
    fps: float
    """Frames per second after resampling."""
    num_frames: int
    """Number of frames read, after resampling."""
    num_lost_frames: int
    """Number of frames lost to damage."""
    recipe: Recipe
    warnings: tuple[str, ...] = ()
    """What may not be intended in how its frames were read (interlaced, HDR, …), one sentence each."""

    def __repr__(self) -> str:
        best = rank(self.logits[FUSED], self.labels, 1) if FUSED in self.logits else []
        clips = f"{len(self.clips)} clip{'' if len(self.clips) == 1 else 's'}"
        shown = [self.video, clips, *(f"{p.label} {100 * p.score:.0f} %" for p in best)]
        return f"VideoResult({printable(', '.join(shown))})"

    def _repr_html_(self) -> str:
        from .predictions.notebook import draw_timeline

        return draw_timeline(self)

    @checked
    def features(self, stream: str | None = None) -> NDArray[np.float32]:
        """Return the clip features as a matrix.

        Args:
            stream: "rgb" or "flow"; None for all streams that ran, concatenated rgb first.

        Returns:
            (N, D) float32, one row per clip; (N, crops, D) if crops were kept. For the map of a layer, D is replaced by
            (C, T) or (C, T, H, W).

        Raises:
            UsageError: this stream did not run.
        """
        ran = [s for s in STREAMS if s in self.clips[0].features]
        if stream is not None and stream not in ran:
            raise UsageError(f"stream={stream!r}: choose one of {', '.join(ran)}, or None for all")
        streams = ran if stream is None else [stream]
        axis = 1 if self.recipe.keeps_crops else 0
        return np.stack([np.concatenate([clip.features[s] for s in streams], axis) for clip in self.clips])

    @checked
    def top(self, k: int = 5, stream: str = FUSED) -> list[Prediction]:
        """Return the k classes with the highest scores for the whole video, best first.

        Args:
            k: how many classes; all if there are fewer.
            stream: "rgb", "flow" or "fused".

        Raises:
            UsageError: this stream did not run, or k is negative.
        """
        _check_k(k)
        return rank(self._logits_of(stream), self.labels, k)

    @checked
    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Return the k best classes of the video and of its clips, as values that JSON can hold.

        Returns:
            The records of `vid3d classify`: that of the video, and under "clips" a list of those of its clips. Each has
            video, clip (None for the video), start_seconds, end_seconds and, for each stream and "fused", a list of
            {"label", "score", "logit"}, best first.

        Raises:
            UsageError: k is negative.
        """
        _check_k(k)
        *clips, whole = prediction_records(self, k=k)
        return {**whole, "clips": clips}

    @checked
    def to_pandas(self, k: int = 5) -> Any:
        """Return the k best classes of the clips and of the video as a pandas DataFrame: the rows of the CSV file.

            table = result.to_pandas()
            table[(table.stream == "fused") & (table["rank"] == 1)]

        Returns:
            A row per clip, stream and class, best first: video, clip, start_seconds, end_seconds, stream, rank (from
            1), label, score, logit. The clip is <NA> in the last rows, which are those of the whole video.

        Raises:
            UsageError: k is negative, or pandas is not installed.
        """
        _check_k(k)
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas: pip install pandas") from None
        rows = [row for record in prediction_records(self, k=k) for row in prediction_rows(record)]
        return pandas.DataFrame(rows, columns=CSV_COLUMNS).astype({"clip": "Int64"})

    @property
    def start_seconds(self) -> float:
        """When the first clip starts."""
        return self.clips[0].span.start_seconds

    @property
    def end_seconds(self) -> float:
        """When the last clip ends."""
        return self.clips[-1].span.end_seconds

    @checked
    def segments(
        self,
        *,
        stream: str | None = None,
        smooth: int = 1,
        threshold: float | None = None,
        min_seconds: float = 0.0,
        multi_label: bool = False,
    ) -> list[Segment]:
        """Return when which class is seen.

        Args:
            stream: "rgb", "flow" or "fused"; None for all.
            smooth: average the scores of so many neighbouring clips.
            threshold: least score of a class, 0 to 1; None for 0, or 0.2 with `multi_label`.
            min_seconds: join segments of one class across shorter gaps, then drop shorter segments.
            multi_label: whether classes may overlap; else only the best class of each moment has a segment.

        Returns:
            The segments by stream (rgb, flow, fused) and start, between the first clip's start and the last one's end.

        Raises:
            UsageError: this stream did not run, or an argument is out of range.
        """
        if stream is not None:
            self._logits_of(stream)
        rule = SegmentRule(smooth, threshold, min_seconds, multi_label)
        return self.segments_by(rule, None if stream is None else [stream])

    def segments_by(self, rule: SegmentRule, streams: Sequence[str] | None = None) -> list[Segment]:
        """Return the segments by a rule, of all streams or of some."""
        if not self.labels:
            return []
        streams = [s for s in (*STREAMS, FUSED) if s in self.logits] if streams is None else streams
        return [s for name in streams for s in find_segments(self.curves(name, rule.smooth), self.labels, name, rule)]

    @checked
    def curves(self, stream: str = FUSED, smooth: int = 1) -> Curves:
        """Return the scores of a stream over time, averaged where clips overlap.

        Args:
            stream: "rgb", "flow" or "fused".
            smooth: average the scores of so many neighbouring clips.

        Raises:
            UsageError: this stream did not run, or smooth is below 1.
        """
        self._logits_of(stream)
        SegmentRule(smooth)
        spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in self.clips]
        return make_curves(spans, softmax(np.stack([clip.logits[stream] for clip in self.clips])), smooth)

    @checked
    def save(
        self,
        path: str | PathLike[str],
        *,
        overwrite: bool = False,
        smooth: int = 1,
        threshold: float | None = None,
        min_seconds: float = 0.0,
        multi_label: bool = False,
        k: int = 5,
        per: str = "clip",
        segments: bool = False,
        embed: bool = False,
        allow_playlists: bool = False,
    ) -> None:
        """Write the result to a file, whose suffix names the format.

            result.save("video.vtt", min_seconds=1)

        Args:
            path: a file; its suffix is one of `vid3d_cli.predictions.formats.FORMATS`, such as .csv or .html.
            overwrite: whether the file may exist.
            smooth: for segments, as are the next three; see `segments`.
            threshold: see `segments`.
            min_seconds: see `segments`.
            multi_label: see `segments`.
            k: classes per stream, best first.
            per: "clip" or "video": which records .jsonl and .csv hold.
            segments: whether they hold segments instead.
            embed: whether .html holds the video itself.
            allow_playlists: whether a video that is read again may be a playlist, see `Options`.

        Raises:
            UsageError: an unknown suffix, no classes, or an argument that is out of range or has no effect.
            OutputExists: the file exists.
            OutputError: it cannot be written.
            VideoError: the format shows frames, and the video cannot be read.
        """
        path = Path(path)
        if (form := format_of(path)) is None:
            raise UsageError(f"{path}: give a file with one of the suffixes {list_suffixes()}")
        _check_k(k)
        check_known(per, ("clip", "video"), f"per={per!r}")
        rule = SegmentRule(smooth, threshold, min_seconds, multi_label)
        choices = Choices(rule, k, per, segments, embed, allow_playlists)
        if not self.labels:
            raise UsageError(f"{self.recipe.model} gives an embedding and has no classes to save: use features()")
        check_choices(choices, {form}, lambda name: f"{name}=True" if name in ("segments", "embed") else name)
        if not overwrite and os.path.lexists(path):
            raise OutputExists(f"{path}: already exists; choose another name, or give overwrite=True")
        with suppress(OSError, ValueError):  # there is no file of one of the names
            if path.samefile(self.video):
                raise UsageError(f"{path} is the video itself: choose another name")
        with open_output(path, overwrite=overwrite, keep_partial=False, keep_empty=True) as stream:
            writer = find_writer(form)(stream, choices, path)
            writer.write(self, str(source_of(self.video).output_stem))
            writer.close()

    def _logits_of(self, stream: str) -> NDArray[np.float32]:
        check_known(stream, self.logits, f"stream={stream!r}")
        return self.logits[stream]


def _check_k(k: int) -> None:
    if k < 0:
        raise UsageError(f"k={k}: give 0 or more")
