"""Any audio a caller may hold, as a waveform: ``[n]`` float32, mono, 16 kHz.

Decoding is libsndfile's (WAV in every encoding, FLAC, OGG, Opus, MP3, AIFF …), resampling soxr's.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import soundfile  # pyright: ignore[reportMissingTypeStubs]
import soxr  # pyright: ignore[reportMissingTypeStubs]

from .errors import AudioError
from .mel import F32, SAMPLE_RATE

AudioSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[Any]

_SAMPLE_RATES = range(1_000, 1_000_001)  # Hz; beyond, a header is damaged, and resampling explodes
_READABLE = (
    "WAV, FLAC, OGG, Opus, MP3 and AIFF can be read; convert others, for example with ffmpeg"
)


def read(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    begin_seconds: float | None = None,
    end_seconds: float | None = None,
) -> F32:
    """Waveform ``[n]`` float32, mono, 16 kHz, of a path, bytes, binary file object or array.

    Channels are averaged. An array is ``[n]`` or ``[n, channels]``, floating point in [-1, 1] or
    integer (scaled by its type's range), and needs ``sample_rate``; the others know their own.
    ``begin_seconds`` and ``end_seconds`` select a part. Raises :class:`AudioError` for anything
    that cannot be read, holds no samples, or holds NaN or infinity.
    """
    begin, end = begin_seconds or 0.0, end_seconds
    if not (math.isfinite(begin) and (end is None or math.isfinite(end))):
        raise AudioError(f"the part from {begin} s to {end} s has no end: times must be finite")
    if begin < 0 or (end is not None and end <= begin):
        raise AudioError(
            f"the part from {begin} s to {end} s is empty: begin must be 0 or more, and before end"
        )
    name = describe(source)
    if isinstance(source, np.ndarray):
        samples, rate = _from_array(source, sample_rate)
        samples = samples[_at(begin, rate) : None if end is None else _at(end, rate)]
    else:
        samples, rate = _decode(source, name, begin, end)
    if rate not in _SAMPLE_RATES:
        raise AudioError(f"{name}: sample rate is {rate} Hz, expected 1000 to 1000000")
    if samples.shape[0] == 0:
        where = f" from {begin} s on" if begin else ""
        raise AudioError(f"{name}: no samples{where}; the audio is empty")
    with np.errstate(over="ignore", invalid="ignore"):  # reported just below
        mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        first = int(np.argmin(np.isfinite(mono)))
        raise AudioError(f"{name}: sample {first} ({first / rate:.3f} s) is NaN or infinite")
    if rate != SAMPLE_RATE:
        mono = cast("F32", soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ"))
    return np.ascontiguousarray(mono, dtype=np.float32)


def describe(source: object) -> str:
    """What to call a source in a message."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(cast("str", source))
    if isinstance(source, np.ndarray):
        return "audio array"
    return "audio bytes" if isinstance(source, bytes) else "audio stream"


def _from_array(array: npt.NDArray[Any], sample_rate: int | None) -> tuple[F32, int]:
    """``[n, channels]`` float32 of an array in memory, and its rate."""
    if sample_rate is None:
        raise AudioError("an audio array needs its sample rate: transcribe(array, sample_rate=…)")
    if array.ndim not in (1, 2):
        raise AudioError(f"audio array has shape {array.shape}, expected [n] or [n, channels]")
    if array.ndim == 2 and array.shape[1] > 32:
        raise AudioError(
            f"audio array has shape {array.shape}: {array.shape[1]} channels; expected "
            "[n, channels], perhaps it must be transposed"
        )
    if array.ndim == 2 and array.shape[1] == 0:
        raise AudioError(f"audio array has shape {array.shape}: no channels")
    samples = array[:, None] if array.ndim == 1 else array
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which read() reports
            return samples.astype(np.float32), sample_rate
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        half = (int(limits.max) - int(limits.min) + 1) / 2  # unsigned audio is centred on it
        centre = half if array.dtype.kind == "u" else 0
        return ((samples.astype(np.float64) - centre) / half).astype(np.float32), sample_rate
    raise AudioError(f"audio array has dtype {array.dtype}, expected floating point or integer")


def _decode(
    source: str | os.PathLike[str] | bytes | BinaryIO, name: str, begin: float, end: float | None
) -> tuple[F32, int]:
    """Samples ``[n, channels]`` of an encoded file between two times, and its rate."""
    claimed = 0
    with _opened(source, name) as stream:
        try:
            with soundfile.SoundFile(stream) as file:
                rate, claimed = int(file.samplerate), int(file.frames)
                first = min(_at(begin, rate), claimed)
                last = claimed if end is None else min(_at(end, rate), claimed)
                # GSM 6.10 and some ADPCMs cannot seek. After a seek MP3 loses up to 0.1 s, because
                # a frame keeps some of its bits in those before it; and soundfile seeks after
                # every read, so it has to be a single one.
                skipped = first if file.seekable() and file.format != "MP3" else 0
                if skipped:
                    file.seek(skipped)
                samples = cast("Any", file).read(last - skipped, dtype="float32", always_2d=True)
                samples = samples[first - skipped :]
        except (MemoryError, ValueError) as error:  # of the array; streamed FLAC says 2**63 - 1
            raise AudioError(
                f"{name}: not readable as audio (its header claims {claimed} samples); {_READABLE}"
            ) from error
        except TypeError as error:  # soundfile wants to be told what a file named .raw holds
            raise AudioError(
                f"{name}: not readable as audio (a .raw file does not say its sample rate); "
                "pass its samples as an array with sample_rate"
            ) from error
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(".")
            raise AudioError(f"{name}: not readable as audio ({reason}); {_READABLE}") from error
    return samples, rate


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryIO, name: str) -> Generator[BinaryIO]:
    """A seekable binary stream over the source, refusing what is empty or no file."""
    with ExitStack() as owned:
        try:
            stream = _stream(source, owned)
            head = cast("object", stream.read(1))
            if head:
                stream.seek(0)
        except FileNotFoundError as error:
            raise AudioError(f"{name}: no such file") from error
        except IsADirectoryError as error:
            raise AudioError(f"{name}: is a folder, expected an audio file") from error
        except (OSError, ValueError) as error:  # ValueError: a closed file, a NUL in a name
            raise AudioError(f"{name}: cannot be opened ({error})") from error
        if isinstance(head, str):
            raise AudioError(f"{name}: opened as text; open it in binary mode, 'rb'")
        if not head:
            raise AudioError(f"{name}: the file is empty (0 bytes)")
        yield stream


def _stream(source: str | os.PathLike[str] | bytes | BinaryIO, owned: ExitStack) -> BinaryIO:
    """The source as a stream that can seek; a pipe is read to its end first."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        stream: BinaryIO = owned.enter_context(Path(source).open("rb"))  # noqa: SIM115 - owned
    elif hasattr(source, "read"):
        stream = source
    else:
        raise AudioError(
            f"cannot read audio from {type(source).__name__}; pass a path, bytes, a binary file "
            "object, or an array with sample_rate"
        )
    if hasattr(stream, "seek") and stream.seekable():
        return stream
    content = cast("object", stream.read())
    if isinstance(content, str):
        return cast("BinaryIO", io.StringIO(content))
    return io.BytesIO(cast("bytes", content))


def _at(seconds: float, rate: int) -> int:
    return round(seconds * rate)
