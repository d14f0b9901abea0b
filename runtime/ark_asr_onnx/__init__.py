"""Speech to text with ARK-ASR packages on the CPU, through onnxruntime alone.

>>> import ark_asr_onnx
>>> transcriber = ark_asr_onnx.load("models/demo")               # doctest: +SKIP
>>> transcriber.transcribe("audio.wav").text                     # doctest: +SKIP
"""

from __future__ import annotations

from . import writers as writers
from .clips import Clip
from .errors import (
    ArkError,
    AudioError,
    ClosedError,
    DecodeError,
    ExportError,
    ManifestError,
    MissingExtraError,
    PackageError,
    QueueFullError,
)
from .greedy import Options
from .job import Job
from .package import Package, open_package
from .split import Splitting
from .transcriber import Transcriber, load, prepare
from .transcript import Segment, Timings, Transcript, transcript_to_json

__version__ = "0.1.0"

__all__ = [
    "ArkError",
    "AudioError",
    "Clip",
    "ClosedError",
    "DecodeError",
    "ExportError",
    "Job",
    "ManifestError",
    "MissingExtraError",
    "Options",
    "Package",
    "PackageError",
    "QueueFullError",
    "Segment",
    "Splitting",
    "Timings",
    "Transcriber",
    "Transcript",
    "__version__",
    "load",
    "open_package",
    "prepare",
    "transcript_to_json",
]
