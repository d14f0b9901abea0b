"""A microphone as blocks of samples, through sounddevice (extra ``mic``)."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AudioError, MissingExtraError
from .mel import SAMPLE_RATE

_BLOCK_SECONDS = 0.032


def parts(device: int | str | None = None) -> Iterator[npt.NDArray[Any]]:
    """Arrays ``[n]`` int16, mono, 16 kHz, from now on until the iterator is closed.

    What comes while nobody asks is kept. ``device`` is a number or a part of a name as
    ``python -m sounddevice`` lists them. Raises :class:`MissingExtraError`, and
    :class:`AudioError` when the device cannot be opened.
    """
    try:
        import sounddevice  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except (ImportError, OSError) as error:  # OSError: the PortAudio library is missing
        raise MissingExtraError(
            f"the microphone needs sounddevice and PortAudio ({error}); "
            "pip install 'ark-asr-onnx[mic]', and libportaudio2 from the system's packages"
        ) from error
    sound: Any = sounddevice
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def hear(data: Any, *_: object) -> None:
        heard.put(bytes(data))

    try:
        stream = sound.RawInputStream(
            samplerate=SAMPLE_RATE, channels=1, dtype="int16", device=device, callback=hear,
            blocksize=round(SAMPLE_RATE * _BLOCK_SECONDS),
        )  # fmt: skip
        stream.start()
    except (sound.PortAudioError, ValueError) as error:
        raise AudioError(
            f"the microphone cannot be opened ({error}); python -m sounddevice lists the devices"
        ) from error
    return _heard(stream, heard)


def _heard(stream: Any, heard: queue.SimpleQueue[bytes]) -> Iterator[npt.NDArray[Any]]:
    try:
        while True:
            yield np.frombuffer(heard.get(), np.int16)
    finally:
        stream.stop()
        stream.close()
