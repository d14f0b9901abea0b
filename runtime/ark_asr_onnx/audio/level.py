"""Amplifies soft audio, and removes an offset: a mean that is not zero.

The detector misses speech that is 40 dB below the usual level. The model misses speech that is
20 dB softer still, where log-mel has its floor. Audio of the usual level passes unchanged.
"""

from __future__ import annotations

import numpy as np

from ..arrays import F32

_CLEAR = 0.05  # the detector needs no help with peaks from here on
_FADES = 0.995  # decay of the remembered peak in a chunk of 32 ms: half of it in 4.4 s
_MOST = 1e4  # largest gain, 80 dB: sound that is softer still has no bits in any file
_OFFSET = 0.005  # the detector tolerates offsets up to here
_FOLLOWS = 0.05  # weight of a chunk in the running mean of the offset
_SOFT, _USUAL = 0.01, 0.1  # peaks of a soft window and of a usual one


class Ear:
    """Makes chunks ``[n]`` of one audio loud enough for a detector; call it in order."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._peak = 0.0

    def __call__(self, chunk: F32) -> F32:
        """The chunk ``[n]``, with a gain that depends on the peak of the last seconds."""
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
    """The waveform ``[n]``, without its offset if that exceeds half the standard deviation."""
    mean, spread = float(waveform.mean()), float(waveform.std())
    return waveform - np.float32(mean) if abs(mean) > spread / 2 else waveform


def peak(block: F32) -> float:
    """The largest absolute sample of a block ``[n]``, without the offset."""
    return float(np.abs(centred(block)).max(initial=0.0))


def is_soft(waveform: F32) -> bool:
    """Whether speech in the waveform ``[n]`` would be too soft for the model."""
    return 0 < peak(waveform) < _SOFT


def levelled(waveform: F32) -> F32:
    """Speech ``[n]``, amplified to the usual level if it is soft."""
    waveform = centred(waveform)
    loudest = float(np.abs(waveform).max(initial=0.0))
    if not 0 < loudest < _SOFT:
        return waveform
    return waveform * np.float32(min(_USUAL / loudest, _MOST))


def decibels(peak: float) -> float:
    """A peak in dB; 0 is full scale."""
    return 20 * float(np.log10(max(peak, 1e-9)))
