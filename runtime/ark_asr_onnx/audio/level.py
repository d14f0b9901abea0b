"""Soft sound, and sound around something that is not zero, brought to where it can be heard.

Speech 40 dB below what is usual escapes the detector; 20 dB further down, where log-mel has its
floor, the model. Sound of a usual level passes unchanged.
"""

from __future__ import annotations

import numpy as np

from ..arrays import F32

_CLEAR = 0.05  # peak from which on a detector needs no help
_FADES = 0.995  # of the loudest sound, in a chunk of 32 ms: half of it in 4.4 s
_MOST = 1e4  # 80 dB: what is softer still has no bits in any file
_OFFSET = 0.005  # that a detector does not mind
_FOLLOWS = 0.05  # share of a chunk in the offset
_SOFT, _USUAL = 0.01, 0.1  # peaks of a window


class Ear:
    """Makes chunks ``[n]`` of one audio loud enough for a detector; called in order."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._peak = 0.0

    def __call__(self, chunk: F32) -> F32:
        """The chunk, at a level that depends on the loudest sound of the last seconds."""
        mean = float(chunk.mean())
        before = mean if self._offset is None else self._offset
        self._offset = before + _FOLLOWS * (mean - before)
        if abs(self._offset) > _OFFSET:
            chunk = chunk - np.float32(self._offset)
        self._peak = max(float(np.abs(chunk).max()), self._peak * _FADES)
        if self._peak >= _CLEAR or self._peak == 0:
            return chunk
        return chunk * np.float32(min(_CLEAR / self._peak, _MOST))


def centred(waveform: F32) -> F32:
    """Without the offset, where that is more than a part of the sound."""
    mean, spread = float(waveform.mean()), float(waveform.std())
    return waveform - np.float32(mean) if abs(mean) > spread / 2 else waveform


def peak(block: F32) -> float:
    """The loudest sample, around the offset."""
    return float(np.abs(centred(block)).max(initial=0.0))


def is_soft(waveform: F32) -> bool:
    """Whether speech in it would be too soft to be heard."""
    return 0 < peak(waveform) < _SOFT


def levelled(waveform: F32) -> F32:
    """Speech ``[n]``, made as loud as usual where it is soft."""
    waveform = centred(waveform)
    loudest = float(np.abs(waveform).max(initial=0.0))
    if not 0 < loudest < _SOFT:
        return waveform
    return waveform * np.float32(min(_USUAL / loudest, _MOST))


def decibels(peak: float) -> float:
    """Below full scale."""
    return 20 * float(np.log10(max(peak, 1e-9)))
