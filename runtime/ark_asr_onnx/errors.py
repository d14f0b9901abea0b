"""Every error that this project raises on purpose.

::

    ArkError
    ├── PackageError (ValueError)        a model folder is missing, damaged or too new
    ├── RecordsError (ValueError)        a list of audio, or an output for it, cannot be used
    ├── AudioError (ValueError)          the audio cannot be read or cannot be transcribed
    │   ├── EmptyAudioError              it has no samples, or too few for one frame
    │   └── AudioTooLongError            it is longer than was allowed
    ├── DecodeError (RuntimeError)       the model failed while it ran
    ├── ClosedError (RuntimeError)       a transcriber was closed, before or during its use
    ├── QueueFullError (RuntimeError)    too much work waits; says when to try again
    ├── ServiceError (RuntimeError)      the HTTP service cannot start
    ├── MissingExtraError (ImportError)  an optional dependency is not installed
    └── ExportError (ValueError)         a checkpoint cannot be exported (raised by ark_onnx_export)

A message states what was found, what was expected and what to do, in one line.
"""

from __future__ import annotations


class ArkError(Exception):
    """Base class of every error that this project raises on purpose."""


class PackageError(ArkError, ValueError):
    """A model folder is missing, damaged, of a newer schema, or not a package at all."""


class RecordsError(ArkError, ValueError):
    """A JSON Lines file of a batch, input or output, cannot be used as it is."""


class AudioError(ArkError, ValueError):
    """Audio cannot be read, or has nothing to transcribe."""


class EmptyAudioError(AudioError):
    """Audio has no samples, or too few for a single frame."""


class AudioTooLongError(AudioError):
    """Audio is longer than the caller allows."""


class DecodeError(ArkError, RuntimeError):
    """The model failed while it ran."""


class ClosedError(ArkError, RuntimeError):
    """A transcriber was closed, before its use or during the work."""


class QueueFullError(ArkError, RuntimeError):
    """As much work waits as is allowed; there should be room after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceError(ArkError, RuntimeError):
    """The HTTP service cannot start, or cannot be found."""


class MissingExtraError(ArkError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""


class ExportError(ArkError, ValueError):
    """A checkpoint cannot be exported to a package."""
