"""The job of `vid3d extract`: which videos of a list are left, and how results become rows that no crash can harm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import OutputError, UsageError, VideoChanged
from ..features.committer import Committer, Item
from ..features.directory import JournalTail, TreeStore
from ..features.entries import FailedVideo, VideoFeatures, video_key
from ..features.format import FeatureFormat
from ..features.store import FeatureStore, is_done, refuse_other_recipe
from ..records import VideoFailure, VideoResult
from ..run.pipeline import Pipeline
from ..video.fingerprint import Fingerprint
from ..video.sources import Source
from .claims import Claims, refuse_living_claims

_CHECKING_THREADS = 16
"""For looking at files, which may be far away."""

WAIT_SECONDS = 2.0
"""Between looks at what other workers have claimed."""


@dataclass
class Progress:
    """How far a job has come, in videos."""

    done: int = 0
    """Now."""
    safe: int = 0
    """Of these, whose rows the disk has."""
    skipped: int = 0
    """Done by an earlier run, or by another worker."""
    failed: int = 0
    """Now."""
    changed: int = 0
    """Done by an earlier run, and another file since; their rows stay until the new ones are there."""
    skipped_failed: int = 0
    """Failed in an earlier run, and are still the same file."""
    clips: int = 0
    """Of the videos done now."""
    lost_frames: dict[str, int] = field(default_factory=dict)
    """Of the videos done now that are damaged."""


@dataclass(frozen=True)
class Left:
    """What of a list is left to do."""

    sources: list[Source]
    """In their order."""
    num_done: int
    """Videos whose rows are there, and which are still the same file."""
    num_failed: int
    """Videos that failed before and have not changed."""
    outdated: set[str]
    """Keys of videos whose rows are there, and which are another file now."""


class Extraction:
    """Features of a list of videos, on their way into a store; a context manager.

        with Extraction(pipeline, sources, store, form) as job:
            for sources in job.rounds():
                for source in sources: ...        # as an engine draws them
                    job.write(source, result)     # or job.fail(source, failure)
            job.finish()

    A video is done when its rows are there, whole, by the same recipe, of the same file. Leaving the block commits what
    was written; only `finish` says that the job has ended.

    Args:
        pipeline: makes the features.
        sources: all videos of the job.
        store: where features go.
        form: how.
        overwrite: start anew.
        redo_failed: try videos again that failed before and have not changed.
        claims: shares the list with other workers.

    Raises:
        OutputExists: files that are no output of such a job are in the way.
        RecipeDiffers: what is there was made in another way.
        UsageError: another process is writing to the store.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sources: Sequence[Source],
        store: FeatureStore,
        form: FeatureFormat,
        *,
        overwrite: bool = False,
        redo_failed: bool = False,
        claims: Claims | None = None,
    ) -> None:
        self.progress = Progress()
        self._pipeline, self._store, self._form, self._claims = pipeline, store, form, claims
        self._sources = list(sources)
        self._files: dict[str, Fingerprint | None] = {}
        self._claimed: dict[str, Source] = {}
        # Before the plan: what others do while it is made is seen twice rather than not at all.
        self._journals = None if claims is None else JournalTail(store.path)
        self._committer: Committer | None = None
        try:
            if overwrite:
                pipeline.recipe  # noqa: B018  (what is wrong with the options is told before anything is removed)
            there = store.take_place([str(source.output_stem) for source in self._sources], overwrite=overwrite)
            if there is not None:
                refuse_other_recipe(store.path, there, self._recipe())
            if isinstance(store, TreeStore):
                if claims is None:
                    refuse_living_claims(store.path)
                store.refuse_taken_stems({str(s.output_stem): video_key(s.video) for s in self._sources})
            # Without a recipe nobody knows what made videos fail before.
            known = find_left(store, self._sources, redo_failed=redo_failed or there is None)
        except BaseException:
            store.close()
            raise
        self._pending, self.progress.changed = known.sources, len(known.outdated)
        self.progress.skipped, self.progress.skipped_failed = known.num_done, known.num_failed

    # What is left ----------------------------------------------------------------------------------------------------

    def _recipe(self) -> dict[str, Any]:
        return self._form.describe(self._pipeline.recipe)

    @property
    def pending(self) -> list[Source]:
        """The videos that were left when the job began."""
        return self._pending

    def left(self) -> Iterator[Source]:
        """The videos to work on, drawn one by one; with claims, those that no other worker has."""
        for source in self._pending:
            if self._claims is not None and not self._claim(source):
                continue
            self._files[source.video] = Fingerprint.of(source.video)
            yield source

    def rounds(self) -> Iterator[Iterator[Source]]:
        """`left`, again and again until every video is settled, by this worker or by another one."""
        yield self.left()
        while self._wait():
            yield self.left()

    # Results ---------------------------------------------------------------------------------------------------------

    def write(self, source: Source, result: VideoResult) -> None:
        """Add the rows of a video.

        Raises:
            VideoChanged: its file is not the one that was opened.
            OddFeatures: its rows do not go into one matrix with those before.
            OutputError: the store cannot be written.
        """
        file = self._files.pop(source.video)
        if file is not None and not file.may_be(source.video):
            raise VideoChanged(source.video, "it was changed while it was read; run again when it is complete")
        features = VideoFeatures.of(result, source.output_stem, file, self._form)
        committer = self._begin()
        self._store.check(features)
        if not self._still_holds(source):
            return
        committer.put(features)
        self.progress.done += 1
        self.progress.clips += len(result.clips)
        if result.num_decode_failures:
            self.progress.lost_frames[source.video] = result.num_decode_failures

    def fail(self, source: Source, failure: VideoFailure) -> None:
        """List a video that cannot be used."""
        file = self._files.pop(source.video, None) or Fingerprint.of(source.video)
        if self._still_holds(source):
            self._begin().put(FailedVideo.of(failure, file))
            self.progress.failed += 1

    def _begin(self) -> Committer:
        if self._committer is None:
            self._store.begin(self._recipe())
            self._committer = Committer(self._store, self._on_commit)
        return self._committer

    def finish(self) -> None:
        """All videos are done or have failed: put the output into its last form."""
        self._close_committer()
        self._store.finish()

    def stop(self) -> None:
        """Commit what was written, before its time; an error of that has been told of already."""
        with suppress(OutputError):
            self._close_committer()

    def _close_committer(self) -> None:
        if self._committer is not None:
            committer, self._committer = self._committer, None
            committer.close()

    def close(self) -> None:
        """Commit what was written, and give everything back."""
        try:
            self._close_committer()
        finally:
            self._store.close()
            if self._claims is not None:
                self._claims.close()

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Claims ----------------------------------------------------------------------------------------------------------

    def _claim(self, source: Source) -> bool:
        """Claim a video, and see that no other worker has done it just before.

        Raises:
            UsageError: another worker has done another video of the same name.
        """
        assert self._claims is not None and self._journals is not None
        key, stem = video_key(source.video), str(source.output_stem)
        if key in self._journals.keys or not self._claims.take(source):
            return False
        self._journals.read()
        if key in self._journals.keys:
            self._claims.give_back(source)
            return False
        if self._journals.key_of_stem.get(stem, key) != key:
            raise UsageError(
                f"{self._store.path / stem} is of {self._journals.key_of_stem[stem]}, and {source.video} would take "
                "its place: give all workers the same list"
            )
        self._claimed[source.video] = source
        return True

    def _still_holds(self, source: Source) -> bool:
        """Whether the result is ours to write: not if we were silent for so long that another worker took over."""
        if self._claims is None or self._claims.holds(source):
            return True
        self._claimed.pop(source.video, None)
        return False

    def _on_commit(self, items: list[Item]) -> None:
        self.progress.safe += sum(isinstance(item, VideoFeatures) for item in items)
        if self._claims is not None:
            for item in items:
                video = item.entry.video if isinstance(item, VideoFeatures) else item.video
                if self._journals is not None:
                    self._journals.keys.add(video_key(video))
                self._claims.give_back(self._claimed.pop(video))

    def _wait(self) -> bool:
        """Wait for videos that other workers have claimed: theirs are ours if they die. False when none is left."""
        if self._claims is None:
            return False
        self._close_committer()
        if not self._unsettled():
            self.progress.skipped = len(self._sources) - self.progress.done - self.progress.failed
            return False
        time.sleep(WAIT_SECONDS)
        return True

    def _unsettled(self) -> list[Source]:
        assert self._journals is not None
        self._journals.read()
        return [source for source in self._pending if video_key(source.video) not in self._journals.keys]


def find_left(store: FeatureStore, sources: Sequence[Source], *, redo_failed: bool) -> Left:
    """Compare a list of videos with what an output has; their files are looked at, not decoded.

    Args:
        store: that nobody is writing to.
        sources: the list.
        redo_failed: whether videos that failed before are left although they have not changed.
    """
    keys = {video_key(source.video) for source in sources}
    entries = [entry for entry in store.entries() if entry.key in keys]
    failures = [] if redo_failed else [failed for failed in store.failures() if failed.key in keys]
    with ThreadPoolExecutor(_CHECKING_THREADS) as pool:
        is_current = dict(zip((entry.key for entry in entries), pool.map(is_done, entries), strict=True))
        is_hopeless = dict(zip((failed.key for failed in failures), pool.map(_fails_again, failures), strict=True))
    outdated = {key for key, is_so in is_current.items() if not is_so}
    failed = {key for key, is_so in is_hopeless.items() if is_so}
    skipped = (is_current.keys() - outdated) | failed
    left = [source for source in sources if video_key(source.video) not in skipped]
    return Left(left, len(is_current) - len(outdated), len(failed), outdated)


def _fails_again(failed: FailedVideo) -> bool:
    """Whether nothing speaks for another try: what has no file here, such as a URL, may be there now."""
    return failed.file is not None and failed.file.is_of(failed.video)
