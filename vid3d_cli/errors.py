"""Every error that vid3d raises on purpose, and the exit code a command ends with.

    Vid3dError                     1
    ├─ UsageError                  2   an argument or option cannot be used as given
    │  ├─ UnknownModel             2   no such entry in the manifest
    │  └─ OutputExists             2   nothing is overwritten unasked
    ├─ VideoError                  1   this video cannot be used; the others of the job go on
    │  ├─ VideoNotFound                no such file
    │  ├─ EmptyFile                    zero bytes
    │  ├─ NotAVideo                    nothing that PyAV can open
    │  ├─ TruncatedVideo               cut off before the part that holds its index
    │  ├─ NoVideoStream                audio only, or a cover picture
    │  ├─ NoFrames                     a video stream of which no frame decodes
    │  ├─ NoScores                     the network's answer is not finite
    │  ├─ OddFeatures                  features of another shape than those before them in the file
    │  └─ FlowFilesError               ready-made flow that is missing or does not fit its video
    ├─ WeightsError                3
    │  ├─ WeightsUnavailable       3   not on disk and not to be had from here
    │  ├─ ChecksumMismatch         3   the file is not the one that the manifest names
    │  └─ CheckpointError          3   unsafe, unreadable, or of another network
    ├─ ShapeError                  1   an array of the wrong shape
    └─ OutputError                 1   the results cannot be written

The library raises these and never prints or exits; `vid3d_cli.cli` turns them into one line and an exit code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_WEIGHTS = 3
EXIT_INTERRUPTED = 130


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
