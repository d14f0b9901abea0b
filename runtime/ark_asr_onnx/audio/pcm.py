"""Audio that comes through a pipe: WAV or bare samples, read as they come."""

from __future__ import annotations

import math
import warnings
import wave
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import AudioError
from .mel import SAMPLE_RATE
from .sources import UNKNOWN_BYTES

_BLOCK_SECONDS = 0.032
_FILES = (
    b"fLaC",
    b"OggS",
    b"ID3",
    b"FORM",
    b".snd",
    b"caff",
    b"RF64",
    b"riff",
    b"\x1aE\xdf\xa3",
    b"0&\xb2u",
    b"#!AMR",
    b"\xff\xf1",
    b"\xff\xf9",
)
_MP3 = (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xe3", b"\xe2")
_DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}


def can_be_read_as_it_comes(stream: BufferedReader) -> bool:
    """Whether it is WAV or bare samples, as far as its first bytes tell."""
    head = stream.peek(22)[:22]
    # An MP3 without tags begins with a frame: eleven ones, version and layer III.
    if head.startswith(b"RIFF") and len(head) >= 22 and head[12:16] == b"fmt ":
        return head[20:22] == b"\x01\x00"  # PCM; libsndfile reads the others, once they are whole
    is_mp3 = head[:1] == b"\xff" and head[1:2] in _MP3
    return not (is_mp3 or head.startswith(_FILES) or head[4:8] == b"ftyp")


def is_wav(stream: BufferedReader) -> bool:
    """Whether it begins with a WAV header."""
    return stream.peek(4)[:4] == b"RIFF"


def parts(
    stream: BufferedReader, rate: int = SAMPLE_RATE, channels: int = 1
) -> tuple[Iterator[npt.NDArray[Any]], int]:
    """Integer arrays ``[n, channels]`` of a few milliseconds each, and their sample rate.

    A stream that begins with a WAV header says its own rate and channels; anything else is taken
    for signed 16-bit little-endian samples of ``rate`` and ``channels``. Raises
    :class:`AudioError` for a WAV that is no PCM.
    """
    width = 2
    if is_wav(stream):
        try:
            header = wave.open(stream)  # noqa: SIM115 - the stream is the caller's
        except (wave.Error, EOFError) as error:
            raise AudioError(
                f"standard input: a WAV that cannot be read as it comes ({error}); send PCM, for "
                "example with ffmpeg -i … -f s16le -ac 1 -ar 16000 -"
            ) from error
        rate, channels, width = header.getframerate(), header.getnchannels(), header.getsampwidth()
        if width > 4:
            raise AudioError(f"standard input: samples of {8 * width} bits, at most 32 can be read")
        n_bytes = header.getnframes() * channels * width
    else:
        n_bytes = 0
    size = channels * width * max(1, round(rate * _BLOCK_SECONDS))
    left = n_bytes if 0 < n_bytes < UNKNOWN_BYTES else math.inf
    return _frames(stream, size, left, channels, width), rate


def _frames(
    stream: BufferedReader, size: int, left: float, channels: int, width: int
) -> Iterator[npt.NDArray[Any]]:
    frame = channels * width
    while data := stream.read(int(min(size, left))):
        left -= len(data)
        whole = data[: len(data) // frame * frame]  # the last sample may be torn
        if width == 3:
            padded = np.zeros((len(whole) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            samples = padded.view("<i4")[:, 0]
        else:
            samples = np.frombuffer(whole, _DTYPES[width])
        yield samples.reshape(-1, channels)
    if 0 < left < math.inf:
        warnings.warn(f"standard input: it ended {left} bytes before its header says", stacklevel=2)
