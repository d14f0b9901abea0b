"""Disturbs training clips: noise, rooms, channels, other vocal tracts, masked stripes.

It also has Whisper's log-mel in two halves, so that filters can be applied to the power spectrum
between them; without filters, the result equals ``ark_asr_onnx.audio.mel.log_mel`` bit for bit.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.audio.mel import HOP_LENGTH, N_FFT, SAMPLE_RATE, mel_filters

F32 = npt.NDArray[np.float32]
Rng = np.random.Generator

N_MELS = 80
_BINS_HZ = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
_WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


def disturbed_log_mel(waveform: F32, rng: Rng) -> F32:
    """Log-mel through a random channel and vocal tract, with stripes masked (SpecAugment)."""
    power = power_spectrum(waveform)
    if rng.random() < 0.7:
        power = power * _channel(rng)
    warp = round(float(np.clip(rng.normal(1.0, 0.06), 0.88, 1.12)) * 50) / 50
    log_mel = to_log_mel(power, _warped_filters(warp))
    n_frames, fill = log_mel.shape[1], log_mel.mean()
    for _ in range(int(rng.integers(0, 3))):
        width = int(rng.integers(1, 13))
        low = int(rng.integers(N_MELS - width))
        log_mel[low : low + width] = fill
    for _ in range(int(rng.integers(0, 2 + n_frames // 120))):
        width = int(rng.integers(1, 13))
        if n_frames > 4 * width:
            start = int(rng.integers(n_frames - width))
            log_mel[:, start : start + width] = fill
    return log_mel


def power_spectrum(waveform: F32) -> F32:
    """Whisper's power spectrum ``[n // 160, 201]`` of a waveform."""
    if len(waveform) < N_FFT:
        waveform = np.pad(waveform, (0, N_FFT - len(waveform)))
    padded = np.pad(waveform, N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    spectrum = np.fft.rfft(frames[: len(waveform) // HOP_LENGTH] * _WINDOW)
    return np.square(spectrum.real) + np.square(spectrum.imag)


def to_log_mel(power: F32, filters: F32) -> F32:
    """``[n_frames, 201]`` through ``filters [201, n_mels]`` to Whisper's ``[n_mels, n_frames]``."""
    mel = np.log10(np.maximum(power @ filters, 1e-10)).T
    return (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0


def pad(waveform: F32, rng: Rng, max_seconds: float) -> F32:
    """``waveform`` with silence before and after, at most 2 s; unchanged in half of the cases."""
    if max_seconds < 3.0 or rng.random() < 0.5:
        return waveform
    longest = 2.0 if rng.random() < 0.15 else 0.5
    front, back = (rng.uniform(0.0, longest, size=2) * SAMPLE_RATE).astype(int)
    return np.pad(waveform, (front if rng.random() < 0.7 else 0, back))


def noise(length: int, rng: Rng) -> F32:
    """Noise ``[length]`` whose power falls as ``1 / f ** slope``, slope 0 to 2."""
    spectrum = np.fft.rfft(rng.standard_normal(length, dtype=np.float32))
    slope = rng.uniform(0.0, 1.0)
    spectrum *= np.linspace(1.0, len(spectrum), len(spectrum), dtype=np.float32) ** -slope
    return scaled(np.fft.irfft(spectrum, length).astype(np.float32), 10 ** rng.uniform(-4, -1.5))


def reverberate(waveform: F32, rng: Rng) -> F32:
    """``waveform`` in a small room: followed by noise that decays by 60 dB in 0.1 to 0.4 s."""
    seconds = rng.uniform(0.1, 0.4)
    tail = rng.standard_normal(int(seconds * SAMPLE_RATE), dtype=np.float32)
    tail *= np.exp(-6.9 * np.arange(len(tail), dtype=np.float32) / len(tail))
    tail *= rng.uniform(0.05, 0.5) / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    size = 1 << (len(waveform) + len(tail)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(tail, size), size)
    return wet[: len(waveform)].astype(np.float32)


def scaled(waveform: F32, level: float) -> F32:
    """``waveform`` at root mean square ``level``; digital silence is not changed."""
    rms = level_of(waveform)
    return waveform * np.float32(level / rms) if rms > 1e-5 else waveform


def level_of(waveform: F32) -> float:
    """Root mean square of ``waveform``."""
    return float(np.sqrt(np.square(waveform).mean() + 1e-12))


def _channel(rng: Rng) -> F32:
    """Power gain ``[201]`` of a microphone or telephone: random slopes, sometimes a low-pass."""
    knots = np.array([0.0, 200.0, 600.0, 1500.0, 3000.0, 5000.0, 8000.0])
    gain_db = np.interp(_BINS_HZ, knots, rng.normal(0.0, 4.0, len(knots)))
    if rng.random() < 0.2:
        edge = rng.uniform(3200.0, 6000.0)
        gain_db = gain_db - np.clip((_BINS_HZ - edge) / 200.0, 0.0, 1.0) * 100.0
    if rng.random() < 0.15:
        gain_db = gain_db - np.clip((300.0 - _BINS_HZ) / 200.0, 0.0, 1.0) * 40.0
    return (10.0 ** (gain_db / 10.0)).astype(np.float32)


@cache
def _warped_filters(warp: float) -> F32:
    """The mel filters on a frequency axis stretched by ``warp``: another vocal tract."""
    filters = mel_filters(N_MELS)
    if warp == 1.0:
        return filters
    columns = [np.interp(_BINS_HZ * warp, _BINS_HZ, f, right=0.0) for f in filters.T]
    return np.stack(columns, axis=1).astype(np.float32)
