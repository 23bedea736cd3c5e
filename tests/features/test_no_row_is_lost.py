"""Files of an output are removed, cut off or swapped: the next job gives the same rows, or refuses."""

import random
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
from disks import _fast_disk  # noqa: F401
from formats import FORMATS, skip_without_package, split
from test_stores import RECIPE, make_form, make_result

from vid3d_cli.errors import OutputError, Vid3dError
from vid3d_cli.features.entries import FailedVideo, VideoFeatures, span_arrays
from vid3d_cli.features.inspection import find_problems, summarise
from vid3d_cli.features.store import read_verified
from vid3d_cli.features.stores import create_store, open_store, open_unchecked
from vid3d_cli.jobs.extraction import Extraction
from vid3d_cli.records import VideoFailure
from vid3d_cli.video.sources import Source

CLIPS = {"f": {"a": 2, "sub/b": 1, "c": 3}, "g": {"d": 2, "sub/e": 1, "h": 3}}
"""Clips of the videos of two outputs, which have the same number of rows."""
BROKEN = "x"


def source_of(stem):
    return Source(f"in/{stem}.mp4", PurePosixPath(stem))


def result_of(stem, num_clips):
    return make_result(f"in/{stem}.mp4", num_clips, seed=sum(map(ord, stem)))


@dataclass(frozen=True)
class FakePlan:
    """All that an extraction asks of a plan."""

    recipe = RECIPE
    precision = "fp32"

    def fetch(self, fetch):
        return self


def run_job(store, form, stems):
    """Do what `jobs.extraction.extract` does with the results of networks."""
    sources = [source_of(stem) for stem in stems]
    with Extraction(FakePlan(), sources, store, form, False, False, None, None, lambda event: None) as job:
        if job.pending:
            job.start(SimpleNamespace(recipe=RECIPE))
            for drawn in job.rounds():
                for source in drawn:
                    stem = str(source.output_stem)
                    if stem == BROKEN:
                        job.fail(source, VideoFailure(source.video, "NotAVideo", "it is broken"))
                    else:
                        job.write(source, result_of(stem, {**CLIPS["f"], **CLIPS["g"], "new": 2}[stem]))
        job.finish()


def bytes_below(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def restore(directory, files):
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def rows_of(out):
    """Return the rows and times of each video; a directory may have damaged ones."""
    found = {}
    with open_unchecked(str(out)) as store:
        for entry in store.entries():
            with suppress(OutputError if store.has_files_per_video else ()):
                found[entry.stem] = rows_and_times(read_verified(store, entry))
    return found


def rows_or_nothing(out):
    with suppress(Vid3dError):
        return rows_of(out)
    return {}


def rows_and_times(features):
    return {**{n: np.array(m) for n, m in features.matrices.items()}, **span_arrays(features.spans)}


def are_equal(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in expected)


class Outputs:
    """Two outputs of one format in a folder, and what they hold."""

    def __init__(self, directory, name, concat, state):
        self.directory, self.name, self.form = directory, name, make_form(name, concat=concat)
        self.rows = {}
        for out, clips in CLIPS.items():
            stems = [*clips, BROKEN]
            if state == "finished":
                run_job(self.store(out), self.form, stems)
            else:
                self.leave_unfinished(out, clips)
            self.rows |= {s: self.rows_of_result(result_of(s, n)) for s, n in [*clips.items(), ("new", 2)]}
        self.files = bytes_below(directory)
        self.state = state

    def rows_of_result(self, result):
        features = VideoFeatures.of(result, PurePosixPath("a"), None, self.form)
        return rows_and_times(features)

    def path(self, out):
        return self.directory / split(self.name)[0].replace("feats", out)

    def store(self, out):
        return create_store(str(self.path(out)), layout=split(self.name)[1])

    def leave_unfinished(self, out, clips):
        """All videos but the last are committed, and the rows of the last are written; then the job is killed."""
        with closing(self.store(out)) as store:
            store.begin(self.form.describe(RECIPE))
            store.write_failure(FailedVideo(f"in/{BROKEN}.mp4", "NotAVideo", "it is broken", None))
            for i, (stem, num_clips) in enumerate(clips.items()):
                if i == len(clips) - 1:
                    store.commit()
                features = VideoFeatures.of(result_of(stem, num_clips), PurePosixPath(stem), None, self.form)
                store.write(features)
            killed = bytes_below(self.directory)
        restore(self.directory, killed)

    def own(self, out):
        """Return the names of the files of an output."""
        return [name for name in self.files if name.lstrip(".").split(".")[0].split("/")[0].split("_")[0] == out]

    def holds_rows(self, name):
        return name.endswith((".npy", ".npz", ".h5", ".parquet")) and not name.endswith(("_fps.npy", "_ms.npy"))


def check_harm(outputs, harmed, what, stems):
    """Run a job on a harmed output; return whether it refused."""
    directory, out = outputs.directory, outputs.path("f")
    restore(directory, harmed)
    if not what.startswith("swapped"):
        check_readers(outputs, harmed, what)
    hint = f"{outputs.name}, {outputs.state}, concat {outputs.form.concat}, {what}, job of {stems}"
    try:
        run_job(outputs.store("f"), outputs.form, stems)
    except Vid3dError as error:
        assert bytes_below(directory) == harmed, f"{hint}: refused ({error}), but touched files"
        assert str(directory) in str(error), f"{hint}: {error} names no file"
        assert "\n" not in str(error), hint
        assert says_so(out), f"{hint}: refused ({error}), but features check finds nothing"
        return True
    found = rows_of(out)
    if what.startswith("swapped") and not outputs.store("f").has_files_per_video:
        found = {**rows_or_nothing(outputs.path("g")), **found}  # whole files may have changed names
    gone = gone_with_their_files(outputs, harmed)
    for stem in {*stems, *CLIPS["f"]} - {BROKEN} - (gone - {*stems}):
        assert stem in found, f"{hint}: lost {stem}"
        assert are_equal(found[stem], outputs.rows[stem]), f"{hint}: other rows of {stem}"
    for name in outputs.own("g"):
        assert bytes_below(directory).get(name) == harmed.get(name), f"{hint}: touched {name}"
    return False


def check_readers(outputs, harmed, what):
    """An output that opens has all its videos, or says that its job has not ended."""
    with suppress(Vid3dError), open_store(str(outputs.path("f"))) as store:
        stems = {entry.stem for entry in store.entries()}
        lost = {*list(CLIPS["f"])[: 3 if outputs.state == "finished" else 2]} - stems
        assert lost <= gone_with_their_files(outputs, harmed) or store.describe_unfinished(), (what, lost)


def gone_with_their_files(outputs, harmed):
    """Return the videos whose rows no file holds any longer, or whose own file was harmed."""
    own = [name for name in outputs.own("f") if outputs.holds_rows(name)]
    if not outputs.store("f").has_files_per_video:
        committed = {*CLIPS["f"]} if outputs.state == "finished" else {*list(CLIPS["f"])[:-1]}
        is_gone = all(len(harmed.get(name, b"")) < 128 or name not in harmed for name in own)
        return {*CLIPS["f"]} if is_gone else {*CLIPS["f"]} - committed
    changed = {n for n in outputs.own("f") if harmed.get(n) != outputs.files[n]}
    return {s for s in CLIPS["f"] if any(n.startswith((f"f/{s}.", f"f/{s}_")) for n in changed)} | (
        {list(CLIPS["f"])[-1]} if outputs.state == "killed" else set()
    )


def says_so(out):
    try:
        with open_unchecked(str(out)) as store:
            summarise(store)
            return any(problem.is_damage for problem in find_problems(store))
    except Vid3dError:
        return True


def removals(outputs, chance, count):
    own = outputs.own("f")
    subsets = [c for n in range(1, len(own) + 1) for c in combinations(own, n)] if len(own) < 8 else None
    if subsets is None:
        subsets = [tuple(chance.sample(own, chance.randint(1, len(own)))) for _ in range(4 * count)]
    for subset in chance.sample(subsets, min(count, len(subsets))):
        yield f"removed {subset}", {name: data for name, data in outputs.files.items() if name not in subset}


def truncations(outputs, chance, count):
    for _ in range(count):
        subset = chance.sample(outputs.own("f"), chance.choice([1, 1, 1, 2, 3]) if len(outputs.own("f")) > 2 else 1)
        sizes = {name: chance.randrange(len(outputs.files[name]) or 1) for name in subset}
        if chance.random() < 0.3:  # at the end of a line
            lines = {name: outputs.files[name][:size].rpartition(b"\n") for name, size in sizes.items()}
            sizes = {name: len(head) + len(end) for name, (head, end, _) in lines.items()}
        yield f"cut {sizes}", {n: d[: sizes.get(n, len(d))] for n, d in outputs.files.items()}


def swaps(outputs, chance, count):
    pairs = [*combinations(outputs.own("f"), 2)]
    pairs += [(a, b) for a in outputs.own("f") for b in outputs.own("g")]
    pairs = [(a, b) for a, b in pairs if outputs.files[a] != outputs.files[b]]
    for a, b in chance.sample(pairs, min(count, len(pairs))):
        yield f"swapped {a} and {b}", {**outputs.files, a: outputs.files[b], b: outputs.files[a]}


JOBS = ([*CLIPS["f"], BROKEN], ["a"], ["new"], ["sub/b", "new", BROKEN])


def check_harms(directory, name, concat, state, counts, num_jobs):
    outputs, chance = Outputs(directory, name, concat, state), random.Random(f"{name} {concat} {state}")
    refused = total = 0
    for make, count in zip((removals, truncations, swaps), counts, strict=True):
        for what, harmed in make(outputs, chance, count):
            for stems in chance.sample(JOBS, num_jobs):
                refused += check_harm(outputs, harmed, what, stems)
                total += 1
    print(f"{name}, {state}, {'concat' if concat else 'apart'}: {total} harms, {refused} refused")


every_output = pytest.mark.parametrize(
    ("name", "concat", "state"),
    [
        (name, concat, state)
        for name in FORMATS
        for concat in (True, False)
        for state in ("finished", "killed")
        if concat or not name.endswith("video_features")
    ],
)


@every_output
def test_no_row_is_lost(tmp_path, name, concat, state):
    skip_without_package(name)
    check_harms(tmp_path, name, concat, state, (3, 3, 3), 1)


@pytest.mark.exhaustive
@every_output
def test_no_row_is_lost_often(tmp_path, name, concat, state):
    skip_without_package(name)
    check_harms(tmp_path, name, concat, state, (12, 16, 16), 2)
