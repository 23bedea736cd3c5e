"""Records of class predictions: plain values of a clip, a video or a segment, for JSON lines, CSV and Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..records import FUSED, STREAMS, ClipOutput, ClipSpan, Logits, rank
from ..segments import Segment

if TYPE_CHECKING:
    from ..results import VideoResult

Record = dict[str, Any]

CSV_COLUMNS = ("video", "clip", "start_seconds", "end_seconds", "stream", "rank", "label", "score", "logit")
"""Columns of the CSV file, and of `VideoResult.to_pandas`."""


def prediction_records(result: VideoResult, *, k: int, per: str = "clip", skip: int = 0) -> Iterator[Record]:
    """Yield the predictions for one video as records.

    Args:
        result: the result of one video.
        k: number of classes per stream.
        per: "clip" yields one record per clip, then one for the video, whose "clip" is None; "video" only the latter.
        skip: leave out so many of the first clips.

    Yields:
        video, clip, start_seconds, end_seconds, and for each stream and "fused" the top k as label, score, logit.
    """
    if per == "clip":
        yield from clip_records(result.video, result.clips[skip:], result.labels, k)
    yield prediction_record(result.video, None, result, result.logits, result.labels, k)


def clip_records(video: str, clips: Iterable[ClipOutput], labels: Sequence[str], k: int) -> Iterator[Record]:
    """Yield a record per clip, as `prediction_records` does, before the video is done.

    Args:
        video: path or URL as given.
        clips: with "fused" logits.
        labels: class names, in the order of the logits.
        k: number of classes per stream.
    """
    for clip in clips:
        yield prediction_record(video, clip.span.index, clip.span, clip.logits, labels, k)


def streams_of(record: Record) -> dict[str, list[Record]]:
    """Return the predictions of a record by stream, "fused" last."""
    return {name: record[name] for name in (*STREAMS, FUSED) if name in record}


def prediction_rows(record: Record) -> Iterator[list[Any]]:
    """Yield the values of `CSV_COLUMNS` for each stream and class of a record, best first."""
    where = [record[name] for name in CSV_COLUMNS[:4]]
    for stream, predictions in streams_of(record).items():
        for place, p in enumerate(predictions, start=1):
            yield [*where, stream, place, p["label"], p["score"], p["logit"]]


def prediction_record(
    video: str,
    clip: int | None,
    span: ClipSpan | VideoResult,
    logits: Mapping[str, Logits],
    labels: Sequence[str],
    k: int,
) -> dict[str, Any]:
    """Return what `vid3d classify` writes of a clip, or of a video if `clip` is None."""
    predictions = {
        stream: [
            {"label": p.label, "score": round(p.score, 6), "logit": round(p.logit, 6)} for p in rank(values, labels, k)
        ]
        for stream, values in logits.items()
    }
    seconds = {"start_seconds": round(span.start_seconds, 6), "end_seconds": round(span.end_seconds, 6)}
    return {"video": video, "clip": clip, **seconds, **predictions}


def segment_record(video: str, segment: Segment) -> Record:
    """Return what `vid3d classify --segments` writes of a segment."""
    return {
        "video": video,
        "start_seconds": round(segment.start_seconds, 6),
        "end_seconds": round(segment.end_seconds, 6),
        "label": segment.label,
        "score": round(segment.score, 6),
        "stream": segment.stream,
    }
