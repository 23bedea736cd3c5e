"""The result of a video: what `vid3d classify` and `vid3d_cli.classify` give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import checked
from .errors import UsageError
from .predictions.formats import Choices
from .predictions.outputs import open_outputs
from .predictions.records import prediction_records
from .recipe import Recipe
from .records import FUSED, STREAMS, ClipOutput, HoldsArrays, rank, softmax
from .segments import Curves, Segment, SegmentRule, find_segments, make_curves


@dataclass(frozen=True, eq=False, repr=False)
class VideoResult(HoldsArrays):
    """The scores and features of one video; `==` compares all of them."""

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
        return f"VideoResult({', '.join([self.video, clips, *(f'{p.label} {100 * p.score:.0f} %' for p in best)])})"

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
    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Return the k best classes of the video and of its clips, as values that JSON can hold.

        Returns:
            The records of `vid3d classify`: that of the video, and under "clips" a list of those of its clips. Each has
            video, clip (None for the video), start_seconds, end_seconds and, for each stream and "fused", a list of
            {"label", "score", "logit"}, best first.

        Raises:
            UsageError: k is negative.
        """
        if k < 0:
            raise UsageError(f"k={k}: give 0 or more")
        *clips, whole = prediction_records(self, k=k)
        return {**whole, "clips": clips}

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
        self, *, smooth: int = 1, threshold: float | None = None, min_seconds: float = 0.0, multi_label: bool = False
    ) -> list[Segment]:
        """Return when which class is seen, for each stream and "fused".

        Args:
            smooth: average the scores of so many neighbouring clips.
            threshold: least score of a class, 0 to 1; None for 0, or 0.2 with `multi_label`.
            min_seconds: join segments of one class across shorter gaps, then drop shorter segments.
            multi_label: whether classes may overlap; else only the best class of each moment has a segment.

        Returns:
            The segments by stream (rgb, flow, fused) and start. They lie within the clips.

        Raises:
            UsageError: an argument is out of range.
        """
        return self.segments_by(SegmentRule(smooth, threshold, min_seconds, multi_label))

    def segments_by(self, rule: SegmentRule, streams: Sequence[str] | None = None) -> list[Segment]:
        """Return the segments by a rule, of all streams or of some."""
        if not self.labels:
            return []
        streams = [s for s in (*STREAMS, FUSED) if s in self.logits] if streams is None else streams
        return [s for name in streams for s in find_segments(self.curves(name, rule.smooth), self.labels, name, rule)]

    def curves(self, stream: str = FUSED, smooth: int = 1) -> Curves:
        """Return the scores of a stream over time."""
        spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in self.clips]
        return make_curves(spans, softmax(np.stack([clip.logits[stream] for clip in self.clips])), smooth)

    @checked
    def save(self, path: str | PathLike[str], *, overwrite: bool = False, **choices: Any) -> None:
        """Write the result to a file, whose suffix names the format.

            result.save("video.vtt", min_seconds=1)

        Args:
            path: .jsonl, .csv, or another suffix of `predictions.formats.FORMATS`.
            overwrite: whether the file may exist.
            **choices: those of `segments`; and k, per, segments, embed, see `predictions.formats.Choices`.

        Raises:
            UsageError: an unknown suffix or choice.
            OutputExists: the file exists.
            OutputError: it cannot be written.
            VideoError: the format shows frames, and the video cannot be read.
        """
        rule = {name: choices.pop(name) for name in list(choices) if name in SegmentRule.__dataclass_fields__}
        try:
            chosen = Choices(SegmentRule(**rule), **choices)
        except TypeError:
            raise UsageError(
                f"save knows no choice {', '.join(choices)}: see help(vid3d_cli.VideoResult.save)"
            ) from None
        name = PurePath(self.video).stem
        with open_outputs([Path(path)], None, chosen, {name: self.video}, overwrite=overwrite) as outputs:
            outputs.write(self, name)
