"""Annotations to fill in: the files with labels that a program opens beside the features, for the videos of an output.

    feats/ (made with --preset ms-tcn)  →  groundTruth/a.txt, mapping.txt, splits/train.split1.bundle

The `annotations` of `presets.Files` name one of `WRITERS`. To add one, write a function that takes an `Outline` and
returns {path below the output: text}, cite the loader that opens the files, and add a line to `WRITERS` and a name to
`presets.ANNOTATIONS`. It holds what is known of the videos; labels and the subset are the user's. tests/presets reads
the files as the loader does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path, PurePosixPath

from ..durable import AtomicFile, refuse_existing
from ..errors import UsageError
from ..presets import Files
from ..records import STREAMS
from .entries import FailedVideo, VideoEntry
from .recipes import files_of
from .stores import open_store

PLACEHOLDER = "background"
"""The class of every frame, until the user says otherwise."""


@dataclass(frozen=True)
class Outline:
    """What annotations are made from."""

    files: Files
    """The files with the features."""
    directory: Path
    """The output that has them."""
    stride: int
    """Frames from one row to the next, at the rate of `VideoEntry.fps`."""
    entries: Sequence[VideoEntry]
    """The videos that have rows, by stem."""
    failures: Sequence[FailedVideo]
    """The videos that have none."""
    subset: str | None
    """Name of the part of the data set that the videos are; None for the name of the training part."""
    classes: Sequence[str]
    """The user's class names; may be empty."""

    def key(self, stem: str) -> str:
        """Return the name that a loader makes the file's name from: what {stem} or {id} stands for in the names.

        Raises:
            UsageError: the video lies in a folder, and the names begin with text, which the loader puts before it.
        """
        names, path = self.files.names, PurePosixPath(stem)
        if len(path.parts) > 1 and not names.startswith("{"):
            raise UsageError(f"{stem}: its program reads files {names} of one folder: extract from one folder")
        return str(path.parent / (path.name.removeprefix("v_") or path.name)) if "{id}" in names else stem


Writer = Callable[[Outline], Mapping[str, str]]
"""Returns texts by their path below the output."""


def write_annotations(
    features: str, out: Path, *, subset: str | None = None, classes: Sequence[str] = (), overwrite: bool = False
) -> list[Path]:
    """Write the annotations to fill in for the videos of an output, and return their paths.

    Args:
        features: an output of vid3d extract that was made with a preset.
        out: the directory to write to.
        subset: see `Outline`.
        classes: see `Outline`.
        overwrite: replace existing files, and the labels in them.

    Raises:
        UsageError: the output has no files of a preset, its program opens no annotations or cannot read a name, or a
            file exists.
        OutputError: a file cannot be read or written.
    """
    with open_store(features) as store:
        recipe, entries, failures = store.recipe() or {}, store.entries(), store.failures()
    if "files" not in recipe:
        raise UsageError(f"{features}: has no files of a preset: extract with --preset, and without --layout")
    preset_files = files_of(recipe)
    if not preset_files.annotations:
        raise UsageError(
            f"{features}: its preset names no annotations; in your own, add to [files]: annotations = "
            f"{' or '.join(map(repr, WRITERS))}"
        )
    if out.resolve() == Path(features).resolve():
        raise UsageError(f"--out {out}: holds the features: choose another directory")
    entries = sorted(entries, key=lambda entry: entry.stem)
    outline = Outline(preset_files, Path(features), recipe["stride"], entries, failures, subset, classes)
    texts = WRITERS[preset_files.annotations](outline)
    files = {out / name: text for name, text in texts.items()}
    refuse_existing(files, overwrite)
    for path, text in files.items():
        with AtomicFile(path) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
    return list(files)


def _seconds(entry: VideoEntry) -> float:
    return round(entry.num_frames / entry.fps, 6)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _plain(text: str) -> str:
    if re.search("[\0-\x1f\x7f-\x9f\u2028\u2029]", text):
        raise UsageError(f"{text!r}: has a control character, which would break the lists: rename it")
    return text


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{_plain(line)}\n" for line in lines)


def activitynet(outline: Outline) -> Mapping[str, str]:
    """Return the JSON of ActionFormer, TriDet and OpenTAD, and OpenTAD's lists of classes and of videos without rows.

    "fps" and "frame" are those of the frames read, on which the rows lie. category_idx.txt is left out without classes:
    OpenTAD then writes it from the labels in the JSON.

    Raises:
        UsageError: no subset is given; no name suits all data sets.

    Source: actionformer_release, libs/datasets/thumos14.py, _load_json_db; CUSTOM_DATASET.md, step 4. OpenTAD,
    opentad/datasets/base/padding_dataset.py, get_dataset; opentad/datasets/thumos.py, get_gt.
    """
    if not outline.subset:
        raise UsageError(
            "name the part of the data set with --subset: ActionFormer reads training and validation, on THUMOS14 "
            "validation and test"
        )
    database = {
        outline.key(entry.stem): {
            "subset": outline.subset,
            "duration": _seconds(entry),
            "fps": entry.fps,
            "frame": entry.num_frames,
            "annotations": [],
        }
        for entry in outline.entries
    }
    missing = sorted(outline.key(failed.stem) for failed in outline.failures if failed.stem)
    texts = {"annotations.json": _json({"version": "", "database": database}), "missing_files.txt": _lines(missing)}
    return {**texts, "category_idx.txt": _lines(outline.classes)} if outline.classes else texts


def ms_tcn(outline: Outline) -> Mapping[str, str]:
    """Return a class for every frame, the numbers of the classes, and the list of videos of MS-TCN, ASFormer, DiffAct.

    Source: ms-tcn, batch_gen.py, read_data and next_batch; main.py. DiffAct, main.py and dataset.py, get_data_dict.

    Raises:
        UsageError: a video or a class has a name that these programs cannot read.
    """
    for entry in outline.entries:
        if "." in entry.stem:
            raise UsageError(f"{entry.stem}: MS-TCN reads the name of a video up to its first dot: rename the video")
    classes = [*dict.fromkeys([PLACEHOLDER, *outline.classes])]
    if other := [name for name in classes if len(name.split()) != 1]:
        raise UsageError(f"class '{other[0]}': MS-TCN ends a name at the first space: write _ instead")
    return {
        **{f"groundTruth/{e.stem}.txt": _lines([PLACEHOLDER] * e.num_rows) for e in outline.entries},
        "mapping.txt": _lines([f"{number} {name}" for number, name in enumerate(classes)]),
        f"splits/{outline.subset or 'train'}.split1.bundle": _lines([f"{e.stem}.txt" for e in outline.entries]),
    }


def dense_captions(outline: Outline) -> Mapping[str, str]:
    """Return a caption of each whole video to replace: BMT's table (separated by tabs), and the JSON of BMT and PDVC.

    Source: BMT, datasets/captioning_dataset.py, caption_iterator; main.py, train_json_path. PDVC,
    data/video_dataset.py, PropSeqDataset.__getitem__.
    """
    subset, caption = outline.subset or "train", "caption"
    table = [("video_id", "caption", "start", "end", "duration", "phase", "idx")]
    captions = {}
    for number, entry in enumerate(outline.entries):
        key, seconds = outline.key(entry.stem), _seconds(entry)
        table.append((key, caption, "0.0", str(seconds), str(seconds), subset, str(number)))
        captions[key] = {"duration": seconds, "timestamps": [[0.0, seconds]], "sentences": [caption]}
    lines = ["\t".join(map(_plain, row)) + "\n" for row in table]
    return {f"{subset}.csv": "".join(lines), f"{subset}.json": _json(captions)}


def anomaly_lists(outline: Outline) -> Mapping[str, str]:
    """Return the lists of feature files of RTFM, UR-DMU and XDVioDet, and the frames that ground truth must have.

    A list has the file of every crop, one after the other, of the videos with anomalies first: RTFM takes the first 63
    (ShanghaiTech) or 810 (UCF-Crime) lines for such videos, UR-DMU the first 8100 or 9525 (XD-Violence), so change
    these numbers in their code. Normal videos are those with "Normal" in their name, as in UCF-Crime, or "_label_A", as
    in XD-Violence. Ground truth has a value for each frame of a row: the programs repeat the score of a row 16 times;
    for another stride than 16 change this number, too.

    Source: RTFM, dataset.py, _parse_list, and test_10crop.py. UR-DMU, dataset_loader.py, and ucf_test.py. XDVioDet,
    dataset.py, list/make_list.py, list/make_gt.py, and test.py.

    Raises:
        UsageError: UR-DMU cannot read the name of a file.
    """
    files, folder = outline.files, outline.directory.absolute()
    entries = sorted(outline.entries, key=lambda e: "Normal" in PurePosixPath(e.stem).name or "_label_A" in e.stem)
    texts = {"frames.txt": _lines([f"{entry.stem} {outline.stride * entry.num_rows}" for entry in entries])}
    for stream in STREAMS if "{stream}" in files.names else STREAMS[:1]:
        paths: list[str] = []
        for entry in entries:
            crops = count() if files.has_file_per_crop else range(1)
            found = (folder / files.path(entry.stem, stream, crop) for crop in crops)
            paths += map(str, takewhile(Path.is_file, found))
        if paths:
            texts[f"{stream}_{outline.subset}.list" if outline.subset else f"{stream}.list"] = _lines(paths)
        if files.has_file_per_crop and (cut := [path for path in paths if len(path.split()) > 1]):
            raise UsageError(f"{cut[0]}: UR-DMU ends a path at the first space: rename folders and videos")
    return texts


def moment_retrieval(outline: Outline) -> Mapping[str, str]:
    """Return a line of JSON for each video of Moment-DETR, QD-DETR and Lighthouse, with a query to replace.

    Its moment is the whole video: relevant_windows in seconds, a clip for each row, a score of 3 annotators for each
    clip. The programs take 2 s a row; for another stride change this number in their code. Text features are not made:
    the programs also load qid0.npz, qid1.npz and so on.

    Source: moment_detr, data/README.md, and moment_detr/start_end_dataset.py, __getitem__.
    """
    lines = []
    for number, entry in enumerate(outline.entries):
        clips = list(range(entry.num_rows))
        line = {"qid": number, "query": "query", "duration": _seconds(entry), "vid": outline.key(entry.stem)}
        end = min(round(len(clips) * outline.stride / entry.fps, 6), _seconds(entry))
        moment = {"relevant_windows": [[0, end]], "relevant_clip_ids": clips}
        lines.append(json.dumps({**line, **moment, "saliency_scores": [[0, 0, 0] for _ in clips]}))
    return {f"highlight_{outline.subset or 'train'}.jsonl": _lines(lines)}


WRITERS: dict[str, Writer] = {
    "activitynet": activitynet,
    "anomaly-lists": anomaly_lists,
    "dense-captions": dense_captions,
    "moment-retrieval": moment_retrieval,
    "ms-tcn": ms_tcn,
}
"""By the name that a preset's `annotations` has."""
