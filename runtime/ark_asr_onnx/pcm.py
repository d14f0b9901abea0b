"""Audio that comes through a pipe: WAV or bare samples, read as they come."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import AudioError

_BLOCK_SECONDS = 0.032
_FILES = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff")
_MP3 = (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xe3", b"\xe2")
_DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}


def can_be_read_as_it_comes(stream: BufferedReader) -> bool:
    """Whether it is WAV or bare samples, as far as its first bytes tell."""
    head = stream.peek(4)[:4]
    # An MP3 without tags begins with a frame: eleven ones, version and layer III.
    is_mp3 = head[:1] == b"\xff" and head[1:2] in _MP3
    return not is_mp3 and not head.startswith(_FILES)


def blocks(
    stream: BufferedReader, rate: int = 16000, channels: int = 1
) -> tuple[Iterator[npt.NDArray[Any]], int]:
    """Integer arrays ``[n, channels]`` of a few milliseconds each, and their sample rate.

    A stream that begins with a WAV header says its own rate and channels; anything else is taken
    for signed 16-bit little-endian samples of ``rate`` and ``channels``. Raises
    :class:`AudioError` for a WAV that is no PCM.
    """
    width = 2
    if stream.peek(4)[:4] == b"RIFF":
        try:
            header = wave.open(stream)  # noqa: SIM115 - the stream is the caller's
        except (wave.Error, EOFError) as error:
            raise AudioError(
                f"standard input: a WAV that cannot be read as it comes ({error}); send PCM, for "
                "example with ffmpeg -i … -f s16le -ac 1 -ar 16000 -"
            ) from error
        rate, channels, width = header.getframerate(), header.getnchannels(), header.getsampwidth()
        # The header's length means nothing here: who writes into a pipe cannot go back to it.
    return _frames(stream, max(1, round(rate * _BLOCK_SECONDS)), channels, width), rate


def _frames(
    stream: BufferedReader, n: int, channels: int, width: int
) -> Iterator[npt.NDArray[Any]]:
    size = channels * width
    while data := stream.read(n * size):
        whole = data[: len(data) // size * size]  # the last sample may be torn
        if width == 3:
            padded = np.zeros((len(whole) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            samples = padded.view("<i4")[:, 0]
        else:
            samples = np.frombuffer(whole, _DTYPES[width])
        yield samples.reshape(-1, channels)
