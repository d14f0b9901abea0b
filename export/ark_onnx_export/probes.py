"""Sounds that every export is tried on, where the user gives none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

SAMPLE_RATE = 16000  # Hz


def probe_waveforms() -> list[F32]:
    """Three speech-like sounds of 0.5 s, 2.0 s and 5.03 s, always the same.

    A gliding voice with harmonics and syllables, over faint noise: enough to drive every layer
    with lively values, which is all a comparison of two renderings of one network needs.
    """
    return [_babble(seed, seconds) for seed, seconds in enumerate((0.5, 2.0, 5.03))]


def _babble(seed: int, seconds: float) -> F32:
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 110 + 40 * np.sin(2 * np.pi * 0.7 * time + seed) + 25 * np.sin(2 * np.pi * 2.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    formant = 900 + 600 * np.sin(2 * np.pi * 1.9 * time)
    voice = sum(
        np.sin(k * phase) * np.exp(-(((k * pitch - formant) / 500) ** 2)) for k in range(1, 30)
    )
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time), 0, 1)
    noise = 0.003 * generator.standard_normal(len(time))
    return (0.2 * voice * syllables + noise).astype(np.float32)
