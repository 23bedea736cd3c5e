"""Every error that vid3d raises on purpose, and the exit code a command ends with.

    Vid3dError                     1
    ├─ UsageError                  2   an argument or option cannot be used as given
    │  ├─ UnknownModel             2   no such entry in the manifest
    │  ├─ OutputExists             2   nothing is overwritten unasked
    │  └─ RecipeDiffers            2   features of two recipes do not go into one output
    ├─ VideoError                  1   this video cannot be used; the others of the job go on
    │  ├─ VideoNotFound                no such file
    │  ├─ EmptyFile                    zero bytes
    │  ├─ NotAVideo                    nothing that PyAV can open
    │  ├─ TruncatedVideo               cut off before the part that holds its index
    │  ├─ NoVideoStream                audio only, or a cover picture
    │  ├─ NoFrames                     a video stream of which no frame decodes
    │  ├─ TooLarge                     frames that would need gigabytes of memory
    │  ├─ VideoChanged                 somebody wrote to it while it was read
    │  ├─ OutOfMemory                  decoding takes more memory than there is
    │  ├─ DecoderDied                  the process that decoded it crashed or was killed
    │  ├─ DecoderHangs                 no progress for longer than --timeout
    │  ├─ DecoderFailed                decoding ended with an error that has no name here
    │  ├─ WorkerDied                   workers of a cluster were lost over it, again and again
    │  ├─ NoScores                     the network's answer is not finite
    │  ├─ OddFeatures                  features of another shape than those before them in the file
    │  └─ FlowFilesError               ready-made flow that is missing or does not fit its video
    ├─ WeightsError                3
    │  ├─ WeightsUnavailable       3   not on disk and not to be had from here
    │  ├─ ChecksumMismatch         3   the file is not the one that the manifest names
    │  └─ CheckpointError          3   unsafe, unreadable, or of another network
    ├─ ShapeError                  1   an array of the wrong shape
    ├─ OutputError                 1   the results cannot be written
    └─ ResourceError               1     the machine has too little of something for the whole job, such as open files

The library raises these and never prints or exits; `vid3d_cli.cli` turns them into one line and an exit code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_WEIGHTS = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Vid3dError(Exception):
    """Base of all errors below; its text is one line (or a few) made to be shown as it is."""

    exit_code = EXIT_SOME_FAILED


class UsageError(Vid3dError):
    """An argument or option cannot be used as given."""

    exit_code = EXIT_USAGE


class UnknownModel(UsageError):
    """The manifest has no model of this name."""


class OutputExists(UsageError):
    """The output is already there, and overwriting was not asked for."""


class RecipeDiffers(UsageError):
    """The output was made by another recipe."""


class VideoError(Vid3dError):
    """One video cannot be used.

    Args:
        video: path or URL as the user gave it.
        message: what is wrong and what to do, without the path.
    """

    def __init__(self, video: str, message: str) -> None:
        super().__init__(video, message)
        self.video = video
        self.message = message

    def __str__(self) -> str:
        return f"{self.video}: {self.message}"


class VideoNotFound(VideoError):
    """No such file."""


class EmptyFile(VideoError):
    """The file has zero bytes."""


class NotAVideo(VideoError):
    """Nothing that PyAV can open."""


class TruncatedVideo(VideoError):
    """The file was cut off before the part that holds its index."""


class NoVideoStream(VideoError):
    """The container holds no moving pictures: audio only, or a cover picture."""


class NoFrames(VideoError):
    """There is a video stream, but no frame of it decodes in the asked span."""


class TooLarge(VideoError):
    """The header announces frames that would need gigabytes of memory."""


class VideoChanged(VideoError):
    """The file is not the one that was opened."""


class OutOfMemory(VideoError):
    """Decoding takes more memory than there is."""


class DecoderDied(VideoError):
    """The process that decoded it crashed or was killed."""


class DecoderHangs(VideoError):
    """Its decoder made no progress for longer than it was given."""


class DecoderFailed(VideoError):
    """Decoding ended with an error that has no class of its own here; the message names it."""


class WorkerDied(VideoError):
    """The workers of a cluster that had it crashed or were killed, one after the other."""


class NoScores(VideoError):
    """The network's answer for this video is not finite."""


class OddFeatures(VideoError):
    """The features are of another shape than those of the videos before, and go into one matrix with them."""


class FlowFilesError(VideoError):
    """Ready-made flow is missing, unreadable, or does not fit its video."""


class WeightsError(Vid3dError):
    """Weights cannot be had or cannot be used."""

    exit_code = EXIT_WEIGHTS


class WeightsUnavailable(WeightsError):
    """The weights are not on disk and no source of them could be reached."""


class ChecksumMismatch(WeightsError):
    """The file is not the one that the manifest names."""


class CheckpointError(WeightsError):
    """The checkpoint is unsafe, unreadable, or does not fit the network."""


class ShapeError(Vid3dError, ValueError):
    """An array has the wrong shape."""


class OutputError(Vid3dError):
    """The results cannot be written."""


class ResourceError(Vid3dError):
    """The machine has too little of something for the job as a whole, such as open files."""
