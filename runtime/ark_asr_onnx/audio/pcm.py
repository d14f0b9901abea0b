"""Audio from a pipe: WAV or raw samples, read as they arrive."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ..errors import AudioError
from ..transcript import AudioWarning
from . import chunks, mp3
from .account import OnWarning, joined
from .chunks import UNKNOWN_BYTES
from .mel import SAMPLE_RATE
from .sources import blocks, opens, python_warning

_BLOCK_SECONDS = 0.032
_MAX_HEADER = 1 << 20  # bytes before the samples of a WAV, and of a chunk after them
_LOOKED_AT = 4096  # first bytes, which distinguish samples from other data
_FILES = (  # signatures of formats that can be read, or that are certainly no samples
    *chunks.MAGICS,
    b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"0&\xb2u", b"#!AMR", b".SoX", b"XoS.", b"2BIT",
    b"NIST", b"PVF1", b" paf", b"fap ", b"MATLAB", b"Creative Voice File", b"MThd", b"%PDF", b"PK",
    b"\x1f\x8b\x08", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd",
    b"7z\xbc\xaf", b"\x7fELF",
)  # fmt: skip
# Words within headers; they also identify a file whose first bytes are damaged.
_WORDS = re.compile(rb"WAVE|fmt |SSND|COMM|desc\0|OpusHead|\x01vorbis|ftyp|moov|mdat|Xing|LAME")
_HEADER_BYTES = 512
_DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}
_PCM, _EXTENSIBLE = 1, 0xFFFE


class Pipe:
    """A binary stream whose next bytes can be looked at before they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._head = b""

    def head(self, n: int) -> bytes:
        """The next ``n`` bytes, fewer only at the end; they remain to be read."""
        while len(self._head) < n and (data := self._stream.read(n - len(self._head))):
            self._head += data
        return self._head[:n]

    def read(self, n: int = -1) -> bytes:
        """The next ``n`` bytes, as any binary stream gives them."""
        if n < 0:
            data, self._head = self._head + self._stream.read(), b""
            return data
        data = self.head(n)
        self._head = self._head[len(data) :]
        return data


@dataclass(frozen=True, slots=True)
class _Wav:
    """The header of a WAV with integer samples."""

    n_header: int  # bytes before the samples
    rate: int
    channels: int
    width: int  # bytes of a sample
    n_bytes: float  # of samples; infinite if the header states no size


def can_be_read_as_it_comes(pipe: Pipe, rate: int | None = None) -> bool:
    """Whether the pipe holds WAV with integer samples, or raw samples, by its first bytes.

    With a ``rate`` the user states that the bytes are raw samples; then only the full signature
    of a file format proves otherwise.
    """
    if is_wav(pipe):
        return _wav(pipe) is not None  # libsndfile reads other WAVs, once they have arrived whole
    head = pipe.head(_LOOKED_AT)
    if head.startswith(tuple(name for name in _FILES if len(name) >= 4)) or head[4:8] == b"ftyp":
        return False
    if rate is not None:
        return True
    is_file = head.startswith(_FILES) or _WORDS.search(head[:_HEADER_BYTES]) is not None
    is_file = is_file or mp3.begins(head) or _is_adts(head) or opens(head)
    return not is_file and _looks_like_sound(head)


def is_wav(pipe: Pipe) -> bool:
    """Whether the pipe begins with a WAV header."""
    head = pipe.head(12)
    return head[:4] == b"RIFF" and head[8:] == b"WAVE"


def parts(
    pipe: Pipe,
    rate: int = SAMPLE_RATE,
    channels: int = 1,
    on_warning: OnWarning | None = None,
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Integer arrays ``[n, channels]`` of 32 ms each, with their sample rate in Hz.

    A stream that begins with a WAV header states its rate and channels; anything else is read as
    signed 16-bit little-endian samples with ``rate`` (Hz) and ``channels``. If a recording in
    another format follows, its arrays are float32, mono, 16 kHz. Raises :class:`AudioError` for a
    WAV that is not PCM.
    """
    if not is_wav(pipe):
        bare = _Wav(0, rate, channels, 2, math.inf)
        return ((block, rate) for block in _blocks(pipe, bare, math.inf))
    found = _wav(pipe)
    if found is None:
        raise AudioError(
            "standard input: a WAV that cannot be read as it comes; send PCM, for example with "
            "ffmpeg -i … -f s16le -ac 1 -ar 16000 -"
        )
    pipe.read(found.n_header)
    told = on_warning or functools.partial(python_warning, "standard input")
    return _samples(pipe, found, told)


def _wav(pipe: Pipe) -> _Wav | None:
    at, form = 12, b""
    while at < _MAX_HEADER:
        head = pipe.head(at + 8)[at:]
        size = int.from_bytes(head[4:], "little")
        if len(head) < 8:
            return None
        if head[:4] == b"fmt ":
            form = pipe.head(at + 8 + min(size, 40))[at + 8 :]
        if head[:4] == b"data":
            return _of_integers(form, at + 8, size)
        at += 8 + size + size % 2
    return None


def _of_integers(form: bytes, n_header: int, size: int) -> _Wav | None:
    def number(at: int, n: int) -> int:
        return int.from_bytes(form[at : at + n], "little")

    tag, channels, rate, frame, bits = (
        number(at, n) for at, n in ((0, 2), (2, 2), (4, 4), (12, 2), (14, 2))
    )
    if tag == _EXTENSIBLE:
        tag = number(24, 2)
    width = frame // channels if channels else 0
    is_whole = width in (1, 2, 3, 4) and width * channels == frame and 8 * width - 8 < bits
    if tag != _PCM or not is_whole or bits > 8 * width or not 1000 <= rate <= 1_000_000:
        return None
    return _Wav(n_header, rate, channels, width, size if size < UNKNOWN_BYTES else math.inf)


def _samples(
    pipe: Pipe, wav: _Wav, on_warning: OnWarning
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Samples of a WAV, including those after the end that its header states."""
    second = wav.rate * wav.channels * wav.width
    lengths: list[float] = []  # seconds of each recording
    claimed = left = wav.n_bytes
    n_bytes = n_other = 0  # bytes of these samples; samples in another format
    while True:
        n_before = n_bytes
        for block in _blocks(pipe, wav, left):
            n_bytes += block.size * wav.width
            yield block, wav.rate
        if not math.isfinite(left) or not _go_on(pipe, (n_bytes - n_before) % 2):
            break
        if chunks.is_recording(pipe.head(4)):
            lengths.append(n_bytes / second - sum(lengths))
            other = _wav(pipe)
            same = other and (other.rate, other.channels, other.width)
            if other is None or same != (wav.rate, wav.channels, wav.width):
                for block in blocks(cast("BinaryIO", pipe), on_warning=on_warning):
                    n_other += len(block)
                    yield block[:, None], SAMPLE_RATE
                break
            pipe.read(other.n_header)
            left, claimed = other.n_bytes, claimed + other.n_bytes
        else:
            left = math.inf
    expected, there = claimed / second, n_bytes / second
    says = f"its header says {expected:.2f} s, {there:.2f} s came"
    if math.isfinite(claimed) and claimed - n_bytes >= wav.channels * wav.width:
        on_warning(AudioWarning("cut", f"cut off: {says}"))
    elif n_bytes > claimed:
        on_warning(AudioWarning("longer", f"{says}: all of it was heard"))
    if lengths:
        last = n_other / SAMPLE_RATE if n_other else there - sum(lengths)
        on_warning(joined([*lengths, last]))


def _go_on(pipe: Pipe, pad: int) -> bool:
    """Whether samples or another recording follow; skips chunks without samples.

    ``pad`` bytes come before those chunks, which some writers leave out.
    """
    head = pipe.head(8 + pad)
    if not _is_chunk(head) and (len(head) < 8 + pad or _is_chunk(head[pad:])):
        pipe.read(pad)
    while head := pipe.head(8):
        if len(head) < 8:
            return False
        size = int.from_bytes(head[4:], "little")
        size += size % 2
        if chunks.is_recording(head) or not _is_chunk(head) or size > _MAX_HEADER:
            return True
        after = pipe.head(16 + size)[8 + size :]
        if len(after) == 8 and not chunks.is_name(after[:4]):
            return True
        pipe.read(8 + size)
    return False


def _is_chunk(head: bytes) -> bool:
    return chunks.is_recording(head) or chunks.is_name(head[:4])


def _blocks(pipe: Pipe, wav: _Wav, left: float) -> Iterator[npt.NDArray[Any]]:
    frame = wav.channels * wav.width
    size = frame * max(1, round(wav.rate * _BLOCK_SECONDS))
    while data := pipe.read(int(min(size, left))):
        left -= len(data)
        whole = data[: len(data) // frame * frame]  # the last sample may be incomplete
        if wav.width == 3:
            padded = np.zeros((len(whole) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            samples = padded.view("<i4")[:, 0]
        else:
            samples = np.frombuffer(whole, _DTYPES[wav.width])
        if len(samples):
            yield samples.reshape(-1, wav.channels)


def _is_adts(head: bytes) -> bool:
    """Whether AAC (ADTS) begins: twelve bits of one, then layer 0; the layer of MP3 is another."""
    return len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _looks_like_sound(head: bytes) -> bool:
    """Whether bytes look like 16-bit samples, and not like text or compressed data.

    The mean of text is far from zero. Compressed data is as loud as possible, and its neighbouring
    values do not correlate.
    """
    samples = np.frombuffer(head[: len(head) // 2 * 2], "<i2").astype(np.float64) / 32768
    if len(samples) < 64:
        return True
    centred = samples - samples.mean()
    energy = float(np.square(centred).mean())
    likeness = float((centred[2:] * centred[:-2]).mean())  # at a distance of two: it may be stereo
    is_noise = energy > 0.16 and abs(likeness) < 0.25 * energy
    return abs(float(samples.mean())) < 0.2 and not is_noise
