"""Every error this project raises on purpose.

::

    ArkError
    ├── PackageError (ValueError)        a model folder is missing, damaged or too new
    ├── RecordsError (ValueError)       a list of audio, or what was written for it, cannot be used
    ├── AudioError (ValueError)          the audio cannot be read or cannot be transcribed
    │   ├── EmptyAudioError              it has no samples, or too few for one frame
    │   └── AudioTooLongError            it is longer than was allowed
    ├── DecodeError (RuntimeError)       the model ran and could not go on
    ├── ClosedError (RuntimeError)       a transcriber was closed, before or while it was used
    ├── QueueFullError (RuntimeError)    more work waits than was allowed; says when to come again
    ├── ServiceError (RuntimeError)      the HTTP service cannot start
    ├── MissingExtraError (ImportError)  an optional dependency is not installed
    └── ExportError (ValueError)         a checkpoint cannot be exported (raised by ark_onnx_export)

A message says what was found, what was expected and what to do, in one line.
"""

from __future__ import annotations


class ArkError(Exception):
    """Base class: catch it to catch everything this project raises on purpose."""


class PackageError(ArkError, ValueError):
    """A model folder is missing, damaged, of a newer schema, or not a package at all."""


class RecordsError(ArkError, ValueError):
    """A JSON Lines file of a batch, input or output, that cannot be used as it is."""


class AudioError(ArkError, ValueError):
    """Audio that cannot be read, or that holds nothing that can be transcribed."""


class EmptyAudioError(AudioError):
    """Audio without samples, or with too few for a single frame."""


class AudioTooLongError(AudioError):
    """Audio longer than was allowed."""


class DecodeError(ArkError, RuntimeError):
    """The model ran but decoding could not go on."""


class ClosedError(ArkError, RuntimeError):
    """A transcriber was closed, before it was used or in the middle of the work."""


class QueueFullError(ArkError, RuntimeError):
    """As much work waits as was allowed; ``retry_after`` is when there should be room, seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceError(ArkError, RuntimeError):
    """The HTTP service cannot start, or cannot be found."""


class MissingExtraError(ArkError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""


class ExportError(ArkError, ValueError):
    """A checkpoint that cannot be turned into a package."""
