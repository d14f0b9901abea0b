"""Converts samples to float32, mixes channels to one, and refuses samples that cannot be audio."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import F32
from ..errors import AudioError
from ..transcript import AudioWarning
from .account import OnWarning

_LOUDEST = 16.0  # 24 dB above full scale: more is not headroom but another unit
_CANCELS = 0.15  # share of the energy that uncorrelated channels leave in their mean
_SILENCE = 1e-8  # energy, -80 dB
_UNUSED_BITS = 15  # 16-bit samples in a type of 32 bits leave at least this many unused


class Mixer:
    """Mixes channels to one. Make one for each audio, and call it in order."""

    def __init__(self, name: str, warn: OnWarning) -> None:
        self._name, self._warn = name, warn
        self._alone: int | None = None  # the channel that is used alone
        self._n = 0

    def __call__(self, samples: F32, rate: int) -> F32:
        """The mean ``[n]`` of channels ``[n, channels]``; if they cancel out, the louder one.

        Raises :class:`AudioError` for NaN, infinity, and samples that are far from [-1, 1].
        """
        if not can_be_sound(samples):
            self._refuse(samples, rate)
        self._n += len(samples)
        if samples.shape[1] == 1:
            return samples[:, 0]
        mean = samples.mean(axis=1, dtype=np.float32)
        energies = np.square(samples, dtype=np.float32).mean(axis=0, dtype=np.float64)
        left = float(np.square(mean, dtype=np.float64).mean()) if len(mean) else 0.0
        if self._alone is None and (
            energies.sum() > _SILENCE and left < _CANCELS * energies.sum() / len(energies) ** 2
        ):
            self._alone = int(energies.argmax())
            begin = (self._n - len(samples)) / rate
            self._warn(
                AudioWarning(
                    "channels",
                    f"its channels cancel each other, as if one were inverted; from {begin:.1f} s "
                    f"on channel {self._alone + 1} is heard alone",
                )
            )
        return mean if self._alone is None else samples[:, min(self._alone, len(energies) - 1)]

    def _refuse(self, samples: F32, rate: int) -> None:
        loudest = np.abs(samples).max(axis=1)
        at = int(np.argmin(loudest <= _LOUDEST))
        where = f"{self._name}: sample {self._n + at} ({(self._n + at) / rate:.3f} s)"
        if not np.isfinite(loudest[at]):
            raise AudioError(f"{where} is NaN or infinite")
        raise AudioError(
            f"{where} is {loudest[at]:g}, floating point samples are expected from -1 to 1; divide "
            "16-bit ones by 32768"
        )


def can_be_sound(samples: F32) -> bool:
    """Whether all samples are numbers in or near [-1, 1]."""
    return bool(np.abs(samples).max(initial=0.0) <= _LOUDEST)


def scaled(samples: npt.NDArray[Any]) -> F32:
    """Samples of any type as float32 in [-1, 1]."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # such a sample becomes infinite, and is refused later
            return samples.astype(np.float32)
    limits = np.iinfo(samples.dtype)
    half = (int(limits.max) - int(limits.min) + 1) / 2  # the zero of unsigned samples
    centre = half if samples.dtype.kind == "u" else 0
    return ((samples.astype(np.float64) - centre) / half).astype(np.float32)


def check_range(array: npt.NDArray[Any]) -> None:
    """Refuse an array ``[n, channels]`` whose integers use almost none of their type's range.

    16-bit samples in a type of 32 or 64 bits would be at least 96 dB too soft. Raises
    :class:`AudioError`.
    """
    if array.dtype.kind == "f" or array.dtype.itemsize <= 2 or not array.size:
        return
    lowest, highest = int(array.min()), int(array.max())
    limits = np.iinfo(array.dtype)
    centre = (int(limits.max) + 1) // 2 if array.dtype.kind == "u" else 0
    largest = max(abs(lowest - centre), abs(highest - centre))
    if array.dtype.kind == "u" and highest < 1 << 16 and highest:
        largest = highest  # such samples are not centred in this type
    if 0 < largest <= 1 << (8 * array.dtype.itemsize - 1 - _UNUSED_BITS):
        raise AudioError(
            f"audio array: {array.dtype} samples from {lowest} to {highest} use next to nothing of "
            f"their range, {int(limits.min)} to {int(limits.max)}; 16-bit samples must be passed "
            "as int16"
        )
