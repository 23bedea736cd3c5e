"""All errors that vid3d raises on purpose, and the exit codes of its commands.

    Vid3dError                     1
    ├─ UsageError                  2   an argument or option cannot be used as given
    │  ├─ UnknownModel             2   no such entry in the manifest
    │  ├─ OutputExists             2   the output exists and may not be overwritten
    │  └─ RecipeDiffers            2   the output was made with another recipe
    ├─ VideoError                  1   this video cannot be used; the job continues
    │  ├─ VideoNotFound                no such file
    │  ├─ EmptyFile                    zero bytes
    │  ├─ NotAVideo                    FFmpeg cannot open it
    │  ├─ TruncatedVideo               cut off before the end of its index
    │  ├─ NoVideoStream                audio only, or a cover image
    │  ├─ NoFrames                     no frame decodes, or none lies in the span
    │  ├─ TooLarge                     frames that would need gigabytes of memory
    │  ├─ VideoChanged                 the file changed while it was read
    │  ├─ OutOfMemory                  decoding needs more memory than there is
    │  ├─ DecoderDied                  its decoder process crashed or was killed
    │  ├─ DecoderHangs                 no progress for longer than --timeout
    │  ├─ DecoderFailed                decoding ended with another error
    │  ├─ WorkerDied                   several cluster workers died while they processed it
    │  ├─ NoScores                     the network's scores are not finite
    │  ├─ NoFeatures                   its features are not finite, or too large for float16
    │  ├─ FeatureShapeMismatch         its features differ in shape from earlier rows
    │  └─ FlowFilesError               ready-made flow that is missing or does not fit its video
    ├─ WeightsError                3
    │  ├─ WeightsUnavailable       3   not on disk, and cannot be downloaded
    │  ├─ ChecksumMismatch         3   the file's digest differs from the expected one
    │  └─ CheckpointError          3   unsafe, unreadable, or made for another network
    ├─ ShapeError                  1   an array of the wrong shape
    ├─ OutputError                 1   the results cannot be written
    └─ ResourceError               1   the machine lacks a resource that the whole job needs, such as open files

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
    """Base class of all errors; its text is a message for users, of one or a few lines."""

    exit_code = EXIT_SOME_FAILED


class Vid3dWarning(UserWarning):
    """The run works but may not do what the user intended."""


class UsageError(Vid3dError):
    """An argument or option cannot be used as given."""

    exit_code = EXIT_USAGE


class UnknownModel(UsageError):
    """The manifest has no model of this name."""


class OutputExists(UsageError):
    """The output exists and may not be overwritten."""


class RecipeDiffers(UsageError):
    """The output was made with another recipe."""


class VideoError(Vid3dError):
    """One video cannot be used.

    Args:
        video: path or URL as given.
        message: what is wrong and what to do, without the path.
    """

    def __init__(self, video: str, message: str) -> None:
        super().__init__(video, message)
        self.video = video
        self.message = message

    def __str__(self) -> str:
        return f"{self.video}: {self.message}"


class VideoNotFound(VideoError):
    """The file does not exist."""


class EmptyFile(VideoError):
    """The file has zero bytes."""


class NotAVideo(VideoError):
    """FFmpeg cannot open the file."""


class TruncatedVideo(VideoError):
    """The file is cut off before the end of its index."""


class NoVideoStream(VideoError):
    """The container has no video: audio only, or a cover image."""


class NoFrames(VideoError):
    """No frame of the video decodes, or none lies in the span."""


class TooLarge(VideoError):
    """The header announces frames that would need gigabytes of memory."""


class VideoChanged(VideoError):
    """The file changed while it was read."""


class OutOfMemory(VideoError):
    """Decoding needs more memory than is available."""


class DecoderDied(VideoError):
    """The decoder process crashed or was killed."""


class DecoderHangs(VideoError):
    """The decoder process made no progress for longer than the timeout."""


class DecoderFailed(VideoError):
    """Decoding ended with an error that has no class of its own; the message names it."""


class WorkerDied(VideoError):
    """Several cluster workers crashed or were killed while they processed the video."""


class NoScores(VideoError):
    """The network's scores for this video are not finite."""


class NoFeatures(VideoError):
    """The features of this video are not finite, or too large for the dtype of the output."""


class FeatureShapeMismatch(VideoError):
    """The features differ in shape from earlier rows, and one matrix cannot hold both."""


class FlowFilesError(VideoError):
    """Ready-made flow is missing, unreadable, or does not fit its video."""


class WeightsError(Vid3dError):
    """Weights are unavailable or unusable."""

    exit_code = EXIT_WEIGHTS


class WeightsUnavailable(WeightsError):
    """The weights are not on disk and could not be downloaded."""


class ChecksumMismatch(WeightsError):
    """The file's digest differs from the expected one."""


class CheckpointError(WeightsError):
    """The checkpoint is unsafe, unreadable, or does not fit the network."""


class ShapeError(Vid3dError, ValueError):
    """An array has the wrong shape."""


class OutputError(Vid3dError):
    """The results cannot be written."""


class ResourceError(Vid3dError):
    """The machine lacks a resource that the whole job needs, such as open files."""
