"""Any audio a caller may hold, as a waveform: ``[n]`` float32, mono, 16 kHz.

Decoding is libsndfile's (WAV in every encoding, FLAC, OGG, Opus, MP3, AIFF …), resampling soxr's.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import soundfile  # pyright: ignore[reportMissingTypeStubs]
import soxr  # pyright: ignore[reportMissingTypeStubs]

from ..arrays import F32
from ..errors import AudioError, EmptyAudioError
from . import containers
from .mel import SAMPLE_RATE

_File: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
AudioSource: TypeAlias = _File | npt.NDArray[Any]

_SAMPLE_RATES = range(1_000, 1_000_001)  # Hz; beyond, a header is damaged, and resampling explodes
_BLOCK_SAMPLES = 1 << 20  # of all channels together, in memory at once
_MAX_CLAIMED = 1 << 48  # samples; a header that claims more does not know
_T = TypeVar("_T")
# Who writes a WAV into a pipe cannot go back to its header, and leaves nearly 2**31 or 2**32.
UNKNOWN_BYTES = (1 << 31) - (1 << 20)
_READABLE = (
    "WAV, FLAC, OGG, Opus, WebM/Opus, MP3 and AIFF can be read, MP4/M4A with the extra media; "
    "convert others, for example with ffmpeg"
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
    parts = blocks(source, sample_rate, begin_seconds=begin_seconds, end_seconds=end_seconds)
    return np.concatenate(list(parts))


def blocks(
    source: AudioSource | Iterable[npt.NDArray[Any]],
    sample_rate: int | None = None,
    *,
    begin_seconds: float | None = None,
    end_seconds: float | None = None,
) -> Iterator[F32]:
    """What :func:`read` gives, in parts ``[n]`` of about a second, read as they are asked for.

    Also of an iterable of arrays, such as those of a microphone, one part each. The first part is
    never empty; errors come when the place that they speak of is reached.
    """
    begin, end = begin_seconds or 0.0, end_seconds
    if not (math.isfinite(begin) and (end is None or math.isfinite(end))):
        raise AudioError(f"the part from {begin} s to {end} s has no end: times must be finite")
    if begin < 0 or (end is not None and end <= begin):
        raise AudioError(
            f"the part from {begin} s to {end} s is empty: begin must be 0 or more, and before end"
        )
    return _mono_16_khz(source, sample_rate, begin, end)


def duration(source: AudioSource, sample_rate: int | None = None) -> float | None:
    """Seconds of audio as the header says; None for a source that would have to be read first."""
    if isinstance(source, np.ndarray):
        return len(source) / sample_rate if sample_rate and source.ndim else None
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # noqa: PTH113 - never raises
            return None  # a pipe can be read only once
    elif not isinstance(source, bytes) and not _can_seek(source):
        return None
    with _opened(source, name := describe(source)) as stream:
        if containers.kind(stream) is not None:
            return None
        with _decoder(stream, name) as file:
            found = file.frames / file.samplerate if file.frames < _MAX_CLAIMED else None
        stream.seek(0)  # where reading begins
        return found


def _mono_16_khz(
    source: AudioSource | Iterable[npt.NDArray[Any]],
    sample_rate: int | None,
    begin: float,
    end: float | None,
) -> Iterator[F32]:
    name = describe(source)
    resampler: Any = None
    n_read = 0
    for samples, rate in _native_blocks(source, sample_rate, name, begin, end):
        if rate not in _SAMPLE_RATES:
            raise AudioError(f"{name}: sample rate is {rate} Hz, expected 1000 to 1000000")
        with np.errstate(over="ignore", invalid="ignore"):  # reported just below
            mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
        if not np.isfinite(mono).all():
            first = n_read + int(np.argmin(np.isfinite(mono)))
            raise AudioError(f"{name}: sample {first} ({first / rate:.3f} s) is NaN or infinite")
        n_read += len(mono)
        if rate != SAMPLE_RATE:
            if resampler is None:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")
            mono = cast("F32", resampler.resample_chunk(np.ascontiguousarray(mono)))
        if len(mono):
            yield np.ascontiguousarray(mono, dtype=np.float32)
    if not n_read:
        where = f" from {begin} s on" if begin else ""
        raise EmptyAudioError(f"{name}: no samples{where}; the audio is empty")
    if resampler is not None:
        rest = cast("F32", resampler.resample_chunk(np.empty(0, np.float32), last=True))
        if len(rest):
            yield rest


def _native_blocks(
    source: AudioSource | Iterable[npt.NDArray[Any]],
    sample_rate: int | None,
    name: str,
    begin: float,
    end: float | None,
) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` in parts as they are stored, and their rate."""
    if isinstance(source, np.ndarray):
        rate = _rate(sample_rate)
        whole = _as_columns(cast("npt.NDArray[Any]", source))
        first, last = _at(begin, rate), len(whole) if end is None else _at(end, rate)
        for at in range(first, min(last, len(whole)), rate):
            yield _scaled(whole[at : min(at + rate, last)]), rate
    elif isinstance(source, (str, os.PathLike, bytes)) or hasattr(source, "read"):
        yield from _decode(cast("_File", source), name, begin, end)
    elif isinstance(cast("object", source), Iterable):
        parts = cast("Iterable[npt.NDArray[Any]]", source)
        columns = ((_columns_of(part, source), _rate(sample_rate)) for part in parts)
        for part, rate in _between(columns, begin, end):
            yield _scaled(part), rate
    else:
        raise _no_audio(source)


def _columns_of(part: object, source: object) -> npt.NDArray[Any]:
    if not isinstance(part, np.ndarray):
        raise _no_audio(source)
    return _as_columns(cast("npt.NDArray[Any]", part))


def _between(
    parts: Iterable[tuple[npt.NDArray[Any], int]], begin: float, end: float | None
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """What lies between two times of parts ``[n, channels]``, and their rate."""
    n_before = 0
    for part, rate in parts:
        n_after = n_before + len(part)
        last = n_after if end is None else min(n_after, _at(end, rate))
        wanted = part[max(0, _at(begin, rate) - n_before) : max(0, last - n_before)]
        if len(wanted):
            yield wanted, rate
        if last < n_after:
            return
        n_before = n_after


def describe(source: object) -> str:
    """What to call a source in a message."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(cast("str", source))
    if isinstance(source, np.ndarray):
        return "audio array"
    return "audio bytes" if isinstance(source, bytes) else "audio stream"


def _rate(sample_rate: int | None) -> int:
    if sample_rate is None:
        raise AudioError("an audio array needs its sample rate: transcribe(array, sample_rate=…)")
    if sample_rate not in _SAMPLE_RATES:
        raise AudioError(f"audio array: sample rate is {sample_rate} Hz, expected 1000 to 1000000")
    return sample_rate


def _as_columns(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array in memory as ``[n, channels]``."""
    if array.ndim not in (1, 2):
        raise AudioError(f"audio array has shape {array.shape}, expected [n] or [n, channels]")
    if array.ndim == 2 and array.shape[1] > 32:
        raise AudioError(
            f"audio array has shape {array.shape}: {array.shape[1]} channels; expected "
            "[n, channels], perhaps it must be transposed"
        )
    if array.ndim == 2 and array.shape[1] == 0:
        raise AudioError(f"audio array has shape {array.shape}: no channels")
    if array.dtype.kind not in "fiu":
        raise AudioError(f"audio array has dtype {array.dtype}, expected floating point or integer")
    return array[:, None] if array.ndim == 1 else array


def _scaled(samples: npt.NDArray[Any]) -> F32:
    """Samples of any type as float32 in [-1, 1]."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, which is reported
            return samples.astype(np.float32)
    limits = np.iinfo(samples.dtype)
    half = (int(limits.max) - int(limits.min) + 1) / 2  # unsigned audio is centred on it
    centre = half if samples.dtype.kind == "u" else 0
    return ((samples.astype(np.float64) - centre) / half).astype(np.float32)


def _decode(source: _File, name: str, begin: float, end: float | None) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` of an encoded file between two times, in parts, and its rate."""
    with _opened(source, name) as stream:
        which = containers.kind(stream)
        if which is None:
            yield from _decode_file(stream, name, begin, end)
        elif which == "webm" and (ogg := containers.as_ogg(stream, name)) is not None:
            with ogg:
                yield from _decode_file(ogg, name, begin, end)
        else:
            yield from _between(containers.blocks(stream, which, name), begin, end)


def _decode_file(
    stream: BinaryIO, name: str, begin: float, end: float | None
) -> Iterator[tuple[F32, int]]:
    """What libsndfile opens."""
    with _decoder(stream, name) as file:
        rate = int(file.samplerate)
        first = min(_at(begin, rate), file.frames)
        last = file.frames if end is None else min(_at(end, rate), file.frames)
        # GSM 6.10 and some ADPCMs cannot seek. After a seek MP3 loses up to 0.1 s, because a
        # frame keeps some of its bits in those before it.
        at = first if file.can_seek and file.format != "MP3" else 0
        with _told(name, file.frames, file):
            file.seek(at)
            while at < last:
                part = file.part(min(rate, last - at, max(1, _BLOCK_SAMPLES // file.channels)))
                if not len(part):
                    break
                if at + len(part) > first:
                    yield part[max(0, first - at) :], rate
                at += len(part)
        if (at >= file.frames or at < last) and (lost := _lost(file.extra_info)):
            warnings.warn(
                f"{name}: the file ends too early ({lost}), what is there was read; copy it again",
                stacklevel=2,
            )


def _lost(info: str) -> str:
    """What libsndfile tells of a file that was cut off, empty for one that is whole."""
    if found := re.search(r"^data : (\d+) \(should be (\d+)\)", info, re.MULTILINE):
        claimed, there = map(int, found.groups())
        if there < claimed < UNKNOWN_BYTES:
            return f"{there} bytes of samples, its header says {claimed}"
    is_cut = re.search(
        r"Last page lacks an end-of-stream bit|^PCM end +: unknown", info, re.MULTILINE
    )
    return "its last page is missing" if is_cut else ""


class _OnDisk(io.FileIO):
    """A file that was opened here, by its name."""

    name: str  # pyright: ignore[reportIncompatibleVariableOverride] - typeshed says int or str


class _Watched:
    """A stream that is no file, and whose failures are kept.

    libsndfile calls it through C, where an exception (also that of Ctrl-C) would be printed and
    taken for the end of the audio. A file it reads by itself.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        return self._kept(b"", self._stream.read, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._kept(0, self._stream.seek, offset, whence)

    def tell(self) -> int:
        return self._kept(0, self._stream.tell)

    def _kept(self, otherwise: _T, call: Callable[..., _T], *arguments: int) -> _T:
        try:
            return call(*arguments)
        except BaseException as error:
            self.error = error
            return otherwise


class _Forward(soundfile.SoundFile):
    """A file that is read from front to back.

    soundfile seeks after every read of a file that can seek, which makes MP3 lose samples.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._watched: _Watched | None = None
        self.n_read = 0
        if isinstance(stream, _OnDisk) and os.name == "posix":
            super().__init__(cast("str", os.fsencode(stream.name)))
        else:
            self._watched = _Watched(stream)
            super().__init__(cast("BinaryIO", self._watched))

    def part(self, n: int) -> F32:
        """The next ``[n, channels]`` samples, fewer at the end."""
        found = cast("Any", self).read(n, dtype="float32", always_2d=True)
        self.n_read += len(found)
        if self._watched is not None and self._watched.error is not None:
            raise self._watched.error
        return found

    @property
    def can_seek(self) -> bool:
        return super().seekable()

    def seekable(self) -> bool:
        """Not so that soundfile would do it."""
        return False

    def seek(self, frames: int, whence: int = 0) -> int:
        """To a place other than the one where reading would begin."""
        return super().seek(frames, whence) if frames else 0


@contextmanager
def _told(name: str, claimed: int, file: _Forward | None = None) -> Generator[None]:
    """What libsndfile and soundfile raise, as an :class:`AudioError`."""
    try:
        yield
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (MemoryError, ValueError) as error:  # of the array
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
        if file is not None and file.n_read:
            seconds = file.n_read / file.samplerate
            raise AudioError(
                f"{name}: damaged after {seconds:.1f} s ({reason}); copy it again"
            ) from error
        raise AudioError(f"{name}: not readable as audio ({reason}); {_READABLE}") from error


@contextmanager
def _decoder(stream: BinaryIO, name: str) -> Generator[_Forward]:
    with _told(name, 0):
        file = _Forward(stream)
    with file:
        yield file


@contextmanager
def _opened(source: _File, name: str) -> Generator[BinaryIO]:
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
            raise AudioError(
                f"{name}: is a folder, expected an audio file, or audio files in it"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a closed file, a NUL in a name
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{name}: cannot be opened ({reason})") from error
        if isinstance(head, str):
            raise AudioError(f"{name}: opened as text; open it in binary mode, 'rb'")
        if not head:
            raise EmptyAudioError(f"{name}: the file is empty (0 bytes)")
        yield stream


def _stream(source: _File, owned: ExitStack) -> BinaryIO:
    """The source as a stream that can seek; a pipe is read to its end first."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        stream: BinaryIO = owned.enter_context(_OnDisk(os.fspath(source)))
    elif hasattr(source, "read"):
        stream = source
    else:
        raise _no_audio(source)
    if _can_seek(stream):
        return stream
    content = cast("object", stream.read())
    if isinstance(content, str):
        return cast("BinaryIO", io.StringIO(content))
    return io.BytesIO(cast("bytes", content))


def _can_seek(stream: object) -> bool:
    """A SpooledTemporaryFile, an upload for one, has no seekable() before Python 3.11, and can."""
    if not (hasattr(stream, "read") and hasattr(stream, "seek")):
        return False
    try:
        return cast("Any", getattr(stream, "seekable", lambda: True))()
    except ValueError:  # it is closed, which is told when it is read
        return True


def _no_audio(source: object) -> AudioError:
    return AudioError(
        f"cannot read audio from {type(source).__name__}; pass a path, bytes, a binary file "
        "object, or an array with sample_rate"
    )


def _at(seconds: float, rate: int) -> int:
    return round(seconds * rate)
