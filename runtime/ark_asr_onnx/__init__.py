"""Speech to text with ARK-ASR packages on the CPU, with onnxruntime and without torch.

>>> import ark_asr_onnx
>>> transcriber = ark_asr_onnx.load("models/demo")               # doctest: +SKIP
>>> transcriber.transcribe("audio.wav").text                     # doctest: +SKIP
"""

from __future__ import annotations

from . import writers as writers
from .audio.split import Splitting
from .decoding.clips import Clip
from .decoding.greedy import Options
from .decoding.job import Job
from .errors import (
    ArkError,
    AudioError,
    AudioTooLongError,
    ClosedError,
    DecodeError,
    EmptyAudioError,
    ExportError,
    MissingExtraError,
    PackageError,
    QueueFullError,
    RecordsError,
    ServiceError,
)
from .loading import load, prepare
from .package.opening import Package, open_package
from .subtitles import CueLayout
from .transcriber import Status, Transcriber
from .transcript import AudioWarning, Segment, Timings, Transcript, Word, transcript_to_json

__version__ = "0.2.0"

__all__ = [
    "ArkError",
    "AudioError",
    "AudioTooLongError",
    "AudioWarning",
    "Clip",
    "ClosedError",
    "CueLayout",
    "DecodeError",
    "EmptyAudioError",
    "ExportError",
    "Job",
    "MissingExtraError",
    "Options",
    "Package",
    "PackageError",
    "QueueFullError",
    "RecordsError",
    "Segment",
    "ServiceError",
    "Splitting",
    "Status",
    "Timings",
    "Transcriber",
    "Transcript",
    "Word",
    "__version__",
    "load",
    "open_package",
    "prepare",
    "transcript_to_json",
]
