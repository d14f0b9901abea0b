"""Whisper's log-mel spectrogram in numpy.

Source: ``transformers``' ``WhisperFeatureExtractor`` for a single clip of natural length: nothing
is padded to 30 s, the last frame is dropped, and the floor is 8 below the maximum of this clip.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from numpy import fft  # numpy itself would import it only at its first use

from ..arrays import F32
from ..errors import AudioError

SAMPLE_RATE = 16000  # Hz
N_FFT = 400  # samples per window, 25 ms
HOP_LENGTH = 160  # samples between windows, 10 ms
MIN_SAMPLES = N_FFT // 2 + 1  # reflection by half a window needs one sample more than that
_FRAMES_PER_BLOCK = 3000  # bounds the memory of the transform, whatever the length
# From 2 ** 18 multiply-adds on (201 x 128 a frame) BLAS may wake all its threads, which then spin.
_FRAMES_PER_PRODUCT = 8


def log_mel(waveform: F32, n_mels: int) -> F32:
    """Log-mel spectrogram ``[1, n_mels, n // 160]`` of a waveform ``[n]``, 16 kHz, in [-1, 1].

    Centred frames with reflection, periodic Hann window, power spectrum, Slaney filters,
    ``log10`` floored at 1e-10 and at 8 below the clip's maximum, then ``(x + 4) / 4``.
    Raises :class:`AudioError` below 201 samples, where reflection is undefined.
    """
    n_samples = waveform.shape[0]
    if n_samples < MIN_SAMPLES:
        raise AudioError(
            f"audio is too short: {n_samples} samples at 16 kHz, at least {MIN_SAMPLES} "
            "(0.013 s) are needed"
        )
    padded = np.pad(waveform.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    frames = frames[: n_frames(n_samples)]  # drops the last frame
    filters = mel_filters(n_mels)
    window = _hann_window()
    mel = np.empty((n_mels, frames.shape[0]), np.float32)
    for start in range(0, frames.shape[0], _FRAMES_PER_BLOCK):
        spectrum = fft.rfft(frames[start : start + _FRAMES_PER_BLOCK] * window)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        power = power.astype(np.float32)
        for first in range(0, len(power), _FRAMES_PER_PRODUCT):
            product = power[first : first + _FRAMES_PER_PRODUCT] @ filters
            mel[:, start + first : start + first + len(product)] = product.T
    np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)
    np.maximum(mel, mel.max() - 8.0, out=mel)
    return ((mel + 4.0) / 4.0)[None]


def n_frames(n_samples: int) -> int:
    """Number of frames of a waveform with ``n_samples`` samples."""
    return n_samples // HOP_LENGTH


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> F32:
    """Triangular filters ``[201, n_mels]`` on the Slaney mel scale, area-normalised, 0 to 8 kHz."""
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (upper - lower))).astype(np.float32)


@lru_cache(maxsize=1)
def _hann_window() -> F32:
    """Periodic Hann window ``[400]``."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


# The Slaney scale is linear (200/3 Hz per mel) up to 1 kHz = mel 15, then 27 mels per factor 6.4.
def _hz_to_mel(hz: float) -> float:
    return 15.0 + 27.0 * float(np.log(hz / 1000.0) / np.log(6.4)) if hz >= 1000.0 else hz * 3 / 200


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel >= 15.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0), mel * 200 / 3)
