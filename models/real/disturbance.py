"""Disturbs training speech before it is encoded: rooms, noise, channels, level, silence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ark_asr_onnx.audio.mel import SAMPLE_RATE

F32 = npt.NDArray[np.float32]
Rng = np.random.Generator

QUANTUM = 5120  # samples; lengths are multiples, so that equal lengths can be encoded together


def disturbed(waveform: F32, rng: Rng) -> F32:
    """The waveform in a random room, through a random channel, in random noise, at random level."""
    sound = waveform / (np.abs(waveform).max() + 1e-6)
    if rng.random() < 0.4:
        sound = _in_room(sound, rng)
    if rng.random() < 0.6:
        sound = _filtered(sound, rng)
    if rng.random() < 0.7:
        sound = _in_noise(sound, rng)
    level = 10 ** (rng.uniform(-25.0, -1.0) / 20)
    return (level * sound / (np.abs(sound).max() + 1e-6)).astype(np.float32)


def padded(waveform: F32, rng: Rng) -> F32:
    """The waveform with faint silence before and after, to a multiple of :data:`QUANTUM`."""
    least = int(rng.integers(0, 6400)) if rng.random() < 0.7 else 0
    total = -(-(len(waveform) + 800 + least) // QUANTUM) * QUANTUM
    front = int(rng.uniform(0.1, 0.6) * (total - len(waveform)))
    result = rng.normal(0.0, 10 ** rng.uniform(-5.0, -3.3), total).astype(np.float32)
    result[front : front + len(waveform)] += waveform
    return result


def sped(waveform: F32, rng: Rng) -> F32:
    """The waveform, played up to 10 % faster or slower (linear interpolation)."""
    factor = rng.uniform(0.9, 1.1)
    places = np.arange(0, len(waveform) - 1, factor)
    return np.interp(places, np.arange(len(waveform)), waveform).astype(np.float32)


def _in_room(sound: F32, rng: Rng) -> F32:
    """Sound convolved with noise that decays by 60 dB in 0.1 to 0.5 s after the direct sound."""
    seconds = rng.uniform(0.1, 0.5)
    n = int(seconds * SAMPLE_RATE)
    tail = rng.normal(0.0, 1.0, n) * 10 ** (-3.0 * np.arange(n) / n)
    tail *= 10 ** (-rng.uniform(3.0, 18.0) / 20) / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    size = len(sound) + n
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)[: len(sound)]


def _filtered(sound: F32, rng: Rng) -> F32:
    """Sound through a smooth random response, sometimes of a narrow band."""
    spectrum = np.fft.rfft(sound)
    hz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    knots = np.array([0.0, 100.0, 300.0, 1000.0, 2000.0, 4000.0, 8000.0])
    gain_db = np.interp(hz, knots, rng.normal(0.0, 4.0, len(knots)))
    if rng.random() < 0.3:
        gain_db -= 40.0 * (hz > rng.uniform(3400.0, 7500.0))
    if rng.random() < 0.3:
        gain_db -= 30.0 * (hz < rng.uniform(60.0, 250.0))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(sound))


def _in_noise(sound: F32, rng: Rng) -> F32:
    """Sound with noise of a random spectral slope, 8 to 40 dB below the speech."""
    spectrum = np.fft.rfft(rng.normal(0.0, 1.0, len(sound)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20.0) ** rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, len(sound))
    scale = np.sqrt(np.square(sound).mean() / (np.square(noise).mean() + 1e-12))
    return sound + noise * scale * 10 ** (-rng.uniform(8.0, 40.0) / 20)
