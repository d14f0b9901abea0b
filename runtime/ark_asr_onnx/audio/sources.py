"""Audio from any source that a caller has, as a waveform: ``[n]`` float32, mono, 16 kHz.

libsndfile decodes (WAV in every encoding, FLAC, OGG, Opus, MP3, AIFF …), soxr resamples.
"""

from __future__ import annotations

import functools
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import soundfile  # pyright: ignore[reportMissingTypeStubs]
import soxr  # pyright: ignore[reportMissingTypeStubs]

from .. import values
from ..arrays import F32
from ..errors import AudioError, EmptyAudioError
from ..transcript import AudioWarning
from . import chunks, containers, recordings
from .account import OnWarning, joined
from .mel import SAMPLE_RATE
from .quiet import quiet
from .recordings import Recording
from .sound import Mixer, can_be_sound, check_range, scaled

_File: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
AudioSource: TypeAlias = _File | npt.NDArray[Any]

_SAMPLE_RATES = range(1_000, 1_000_001)  # Hz; others come from damaged headers, and cost memory
_BLOCK_SAMPLES = 1 << 20  # of all channels together, in memory at once
_MAX_CLAIMED = 1 << 48  # samples; a header that claims more is not believed
_T = TypeVar("_T")
_READABLE = (
    "WAV, FLAC, OGG, Opus, WebM/Opus, MP3 and AIFF can be read, MP4/M4A with the extra media; "
    "convert others, for example with ffmpeg"
)


def _renew_lock() -> None:
    """In a forked child, replace soundfile's lock: a thread of the parent may have held it."""
    lock = threading.Lock()
    soundfile.SoundFile._sf_error_lock = lock  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork") and hasattr(soundfile.SoundFile, "_sf_error_lock"):
    os.register_at_fork(after_in_child=_renew_lock)


def read(
    source: AudioSource,
    sample_rate: int | None = None,
    *,
    begin_seconds: float | None = None,
    end_seconds: float | None = None,
    on_warning: OnWarning | None = None,
) -> F32:
    """Waveform ``[n]`` float32, mono, 16 kHz, of a path, bytes, binary file object or array.

    Channels are averaged; if they cancel each other, the louder one is used. An array is
    ``[n]`` or ``[n, channels]``, floating point in [-1, 1] or integer (scaled by its type's
    range), and needs ``sample_rate`` in Hz; the other sources state theirs.
    ``begin_seconds`` and ``end_seconds`` select a part. ``on_warning`` is called with each warning
    about audio that may be missing or wrong, such as a file that was cut off; without it, Python's
    ``warnings`` reports them. Raises :class:`AudioError` for a source that cannot be read, holds no
    samples, or holds NaN, infinity or samples far from [-1, 1].
    """
    parts = blocks(
        source,
        sample_rate,
        begin_seconds=begin_seconds,
        end_seconds=end_seconds,
        on_warning=on_warning,
    )
    return np.concatenate(list(parts))


def blocks(
    source: AudioSource | Iterable[npt.NDArray[Any]],
    sample_rate: int | None = None,
    *,
    begin_seconds: float | None = None,
    end_seconds: float | None = None,
    on_warning: OnWarning | None = None,
) -> Iterator[F32]:
    """The waveform of :func:`read`, in parts ``[n]`` of about a second, read on demand.

    The source may also be an iterable of arrays, such as those of a microphone: one part each. The
    first part is never empty. An error is raised when reading reaches the place it concerns.
    """
    try:
        begin = 0.0 if begin_seconds is None else values.seconds("begin_seconds", begin_seconds)
        end = None if end_seconds is None else values.seconds("end_seconds", end_seconds)
    except ValueError as error:
        raise AudioError(str(error)) from error
    if end is not None and end <= begin:
        raise AudioError(f"the part from {begin} s to {end} s is empty: begin must be before end")
    name = describe(source)
    told = on_warning or functools.partial(python_warning, name)
    parts = _native_blocks(source, sample_rate, name, begin, end, told)
    return _mono_16_khz(parts, name, begin, told)


def mono(
    parts: Iterable[tuple[npt.NDArray[Any], int]], name: str, on_warning: OnWarning
) -> Iterator[F32]:
    """Arrays ``[n, channels]``, each with its sample rate, as a waveform in parts, 16 kHz.

    Their types and ranges are those of :func:`read`; ``name`` is for messages.
    """
    return _mono_16_khz(((scaled(part), rate) for part, rate in parts), name, 0.0, on_warning)


def python_warning(name: str, warning: AudioWarning) -> None:
    """Report a warning about the audio of this name through Python's ``warnings``."""
    warnings.warn(f"{name}: {warning.message}", stacklevel=2)


def duration(source: AudioSource, sample_rate: int | None = None) -> float | None:
    """Seconds of audio by its header; None for a source that would have to be read first."""
    if isinstance(source, np.ndarray):
        return len(source) / sample_rate if sample_rate and source.ndim else None
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # noqa: PTH113 - never raises
            return None  # a pipe can be read only once
    elif hasattr(source, "read") and not _can_seek(source):
        return None
    with _opened(source, name := describe(source)) as stream:
        if containers.kind(stream) is not None:
            return None
        seconds = 0.0
        for one in _recordings(stream, name):
            with _decoder(one.stream, name) as file:
                frames = _length(one, file)
                if frames is None:
                    return None
                seconds += frames / file.samplerate
        stream.seek(0)  # the caller reads from the beginning
        return seconds


def opens(head: bytes) -> bool:
    """Whether libsndfile recognises bytes as the beginning of a file."""
    try:
        with quiet(), soundfile.SoundFile(io.BytesIO(head)):
            return True
    except soundfile.LibsndfileError as error:
        return "not recognised" not in error.error_string


def _recordings(stream: BinaryIO, name: str) -> Iterator[Recording]:
    with _told(name, 0):
        stream.seek(0, os.SEEK_END)
        yield from recordings.find(stream, stream.tell())


def _length(one: Recording, file: _Forward) -> int | None:
    """Samples of each channel by a header; None if it states none."""
    if file.frames < _MAX_CLAIMED:
        return file.frames
    return one.claimed if one.there is None else None


def _mono_16_khz(
    parts: Iterable[tuple[F32, int]], name: str, begin: float, warn: OnWarning
) -> Iterator[F32]:
    mix = Mixer(name, warn)
    resampler: Any = None
    rate_before = 0
    n_read = n_given = 0
    for samples, rate in parts:
        if rate not in _SAMPLE_RATES:
            raise AudioError(f"{name}: sample rate is {rate} Hz, expected 1000 to 1000000")
        mono = mix(samples, rate)
        n_read += len(mono)
        if rate != rate_before:
            if resampler is not None:
                yield from _rest(resampler)
            is_same = rate == SAMPLE_RATE
            resampler = None if is_same else soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")
            rate_before = rate
        if resampler is not None:
            mono = cast("F32", resampler.resample_chunk(np.ascontiguousarray(mono)))
        if len(mono):
            n_given += len(mono)
            yield np.ascontiguousarray(mono, dtype=np.float32)
    if not n_read:
        where = f" from {begin} s on" if begin else ""
        raise EmptyAudioError(f"{name}: no samples{where}; the audio is empty")
    for mono in _rest(resampler) if resampler is not None else ():
        n_given += len(mono)
        yield mono
    if not n_given:
        raise EmptyAudioError(f"{name}: too short, {n_read} samples at {rate_before} Hz")


def _rest(resampler: Any) -> Iterator[F32]:
    """The samples that a resampler still holds."""
    rest = cast("F32", resampler.resample_chunk(np.empty(0, np.float32), last=True))
    if len(rest):
        yield rest


def _native_blocks(
    source: AudioSource | Iterable[npt.NDArray[Any]],
    sample_rate: int | None,
    name: str,
    begin: float,
    end: float | None,
    warn: OnWarning,
) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` in parts, at the rate at which they are stored, and that rate."""
    if isinstance(source, np.ndarray):
        rate = _rate(sample_rate)
        whole = _as_columns(cast("npt.NDArray[Any]", source))
        check_range(whole)
        first, last = _at(begin, rate), len(whole) if end is None else _at(end, rate)
        for at in range(first, min(last, len(whole)), rate):
            yield scaled(whole[at : min(at + rate, last)]), rate
    elif _is_file(source):
        yield from _decode(cast("_File", source), name, begin, end, warn)
    elif isinstance(cast("object", source), Iterable):
        parts = cast("Iterable[npt.NDArray[Any]]", source)
        columns = ((_columns_of(part, source), _rate(sample_rate)) for part in parts)
        for part, rate in _between(columns, begin, end):
            yield scaled(part), rate
    else:
        raise _no_audio(source)


def _is_file(source: object) -> bool:
    """Whether a source is a file, the path of one, or the content of one."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(source, kinds) or hasattr(source, "read")


def _columns_of(part: object, source: object) -> npt.NDArray[Any]:
    if not isinstance(part, np.ndarray):
        raise _no_audio(source)
    return _as_columns(cast("npt.NDArray[Any]", part))


def _between(
    parts: Iterable[tuple[npt.NDArray[Any], int]], begin: float, end: float | None
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """The samples of parts ``[n, channels]`` between two times, and their rate."""
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
    """The name of a source in messages."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(cast("str", source))
    if isinstance(source, np.ndarray):
        return "audio array"
    is_content = isinstance(source, (bytes, bytearray, memoryview))
    return "audio bytes" if is_content else "audio stream"


def _rate(sample_rate: object) -> int:
    if sample_rate is None:
        raise AudioError("an audio array needs its sample rate: transcribe(array, sample_rate=…)")
    try:
        rate = int(cast("Any", sample_rate))
        is_whole = not isinstance(sample_rate, (str, bytes)) and rate == sample_rate
    except (TypeError, ValueError, OverflowError):
        rate, is_whole = 0, False
    if not is_whole or rate not in _SAMPLE_RATES:
        raise AudioError(
            f"audio array: sample rate is {sample_rate!r}, expected a whole number of Hz from 1000 "
            "to 1000000"
        )
    return rate


def _as_columns(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array in memory as ``[n, channels]``."""
    array = np.asarray(array)  # a masked array gives the samples below its mask
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


def _decode(
    source: _File, name: str, begin: float, end: float | None, warn: OnWarning
) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` of an encoded file between two times, in parts, and its rate."""
    with _opened(source, name) as stream:
        with _told(name, 0):
            which = containers.kind(stream)
        if which is None:
            yield from _decode_recordings(stream, name, begin, end, warn)
        else:
            yield from _between(_decode_files(stream, which, name, warn), begin, end)


def _decode_files(
    stream: BinaryIO, which: containers.Kind, name: str, warn: OnWarning
) -> Iterator[tuple[F32, int]]:
    """Samples of containers that libsndfile does not open; several files may follow each other."""
    with _told(name, 0):
        parts, n_more = containers.files(stream, which)
    lengths: list[float] = []
    told: list[AudioWarning] = []
    for part in parts:
        seconds = 0.0
        try:
            for samples, rate in _decode_container(part, which, name, told.append):
                seconds += len(samples) / rate
                yield samples, rate
        except AudioError as error:
            if not lengths:
                raise
            told.append(AudioWarning("unused", f"what follows is not readable ({error})"))
            break
        lengths.append(seconds)
    if len(lengths) > 1:
        told.append(joined(lengths))
    if n_more > 0:
        what = f"{n_more} bytes after the end of the audio"
        told.append(AudioWarning("unused", f"{what} are no audio and were not heard"))
    elif n_more < 0 and all(warning.kind != "cut" for warning in told):
        told.append(AudioWarning("cut", f"cut off: {-n_more} bytes of it are missing"))
    for warning in told:
        warn(warning)


def _decode_container(
    stream: BinaryIO, which: containers.Kind, name: str, warn: OnWarning
) -> Iterator[tuple[F32, int]]:
    if which == "webm" and (ogg := containers.as_ogg(stream, name, warn)) is not None:
        with ogg:
            yield from _decode_recordings(ogg, name, 0.0, None, warn)
    else:
        yield from containers.blocks(stream, which, name, warn)


def _decode_recordings(
    stream: BinaryIO, name: str, begin: float, end: float | None, warn: OnWarning
) -> Iterator[tuple[F32, int]]:
    """Samples of one recording, or of several that follow each other, through libsndfile."""
    offset, used = 0.0, 0  # seconds and bytes
    lengths: list[float] = []
    for one in _recordings(stream, name):
        if end is not None and offset >= end:
            return
        try:
            seconds = yield from _decode_one(one, name, begin, end, offset, warn)
        except AudioError:
            if not lengths:
                raise
            break  # these bytes only looked like a recording
        offset += seconds
        lengths.append(seconds)
        used = one.end
    if end is not None and offset >= end:
        return
    if len(lengths) > 1:
        warn(joined(lengths))
    size = stream.seek(0, os.SEEK_END) or stream.tell()
    if used < size:
        warn(
            AudioWarning(
                "unused",
                f"{size - used} of its {size} bytes, after the end of {offset:.1f} s of audio, are "
                "no audio and were not heard",
            )
        )


def _decode_one(
    one: Recording, name: str, begin: float, end: float | None, offset: float, warn: OnWarning
) -> Generator[tuple[F32, int], None, float]:
    """Samples between two times of a recording that begins at ``offset``; returns its seconds."""
    with _decoder(one.stream, name) as file:
        rate = int(file.samplerate)
        first = max(0, _at(begin - offset, rate))
        last = sys.maxsize if end is None else _at(end - offset, rate)
        length = _length(one, file)
        if length is not None and 0 < length <= first:
            return length / rate
        # GSM 6.10 and some ADPCMs cannot seek. After a seek MP3 loses up to 0.1 s, because a
        # frame stores some of its bits in the frames before it.
        at = first if file.can_seek and file.format != "MP3" else 0
        n_most = max(1, _BLOCK_SAMPLES // file.channels)
        claim = _claim(one, file)
        reason = ""
        with _told(name, file.frames, file):
            file.seek(at)
            while at < last and not reason:
                part, reason = file.part(min(rate, last - at, n_most), claim)
                if not len(part):
                    break
                if claim is not None and at + len(part) > claim and not can_be_sound(part):
                    reason = "no audio"
                    break
                if at + len(part) > first:
                    yield part[max(0, first - at) :], rate
                at += len(part)
        if end is None or at < _at(end - offset, rate):
            for warning in _account(one, file, at, claim, reason):
                warn(warning)
        return at / rate


def _claim(one: Recording, file: _Forward) -> float | None:
    """Samples of each channel by the header; None if it states none."""
    if one.claimed is None:
        return file.claimed()
    if one.there is None:
        return one.claimed
    return one.claimed * file.frames / one.there if one.there else 0.0


def _account(
    one: Recording, file: _Forward, n_samples: int, claim: float | None, reason: str
) -> Iterator[AudioWarning]:
    """Warnings about a recording that is incomplete, damaged, or not as long as its header says."""
    seconds = n_samples / file.samplerate
    difference = 0.0 if claim is None else claim - n_samples
    if one.claimed is not None and one.there is not None and reason != "no audio":
        difference = one.claimed - one.there  # exact; a block codec pads its last block
    is_much = abs((claim or 0) - n_samples) > file.samplerate / 20
    unit, scale, digits = ("s", file.samplerate, 2) if is_much else ("samples", 1, 0)
    expected, found = (f"{n / scale:.{digits}f} {unit}" for n in (claim or 0, n_samples))
    says = f"its header says {expected}, {found} are there"
    if difference > 0:
        yield AudioWarning("cut", f"cut off: {says}; copy it again")
    elif claim is not None and reason:
        yield AudioWarning("unused", f"what follows after {seconds:.2f} s is no audio")
    elif difference < 0:
        yield AudioWarning("longer", f"{says}: all of it was heard")
    elif one.is_cut or reason:
        yield AudioWarning("cut", f"cut off after {seconds:.2f} s: its end is missing")
    elif not one.is_known:
        what = f"{file.format} files do not tell whether they are all there"
        yield AudioWarning("unchecked", f"{what}; convert it to WAV or FLAC to be sure")
    for fault in one.faults:
        yield AudioWarning("damaged", f"damaged: {fault}")


class _Watched:
    """A stream that keeps its exceptions, to be raised later.

    libsndfile calls it through C, where an exception (also that of Ctrl-C) would be printed, and
    the audio would seem to end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        self.is_at_end = False  # the last read reached the end

    def read(self, size: int = -1) -> bytes:
        data = self._kept(b"", self._stream.read, size)
        self.is_at_end = len(data) < size
        return data

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


_MIDI_DUMP = b"\xf0\x7e"
# How libsndfile's log writes the length of formats that this package does not parse: samples, or
# bytes of samples.
_CLAIMS = {
    "AVR": r"^ *Frames *: (?P<samples>\d+)",
    "MPC2K": r"^ *Frames *: (?P<samples>\d+)",
    "WVE": r"^Data length (?P<samples>\d+)",
    "MAT4": r"Cols *: (?P<samples>\d+)(?!.*Cols)",
    "MAT5": r"Cols *: (?P<samples>\d+)(?!.*Cols)",
    "VOC": r"^ *Extended II *: (?P<bytes>\d+)",
}


class _Forward(soundfile.SoundFile):
    """A file that is read from front to back.

    soundfile seeks after every read if the file can seek, which makes MP3 lose samples.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._watched = _Watched(stream)
        self.n_read = 0
        try:
            with quiet():
                super().__init__(cast("BinaryIO", self._watched))
        except soundfile.LibsndfileError:
            self._check()
            raise
        self._check()

    def part(self, n: int, claim: float | None) -> tuple[F32, str]:
        """The next samples ``[n, channels]``, fewer at the end, and the reason for an early end.

        Data after ``claim`` samples that cannot be decoded is no damage: the audio ended there.
        """
        found = np.full((n, self.channels), np.nan, np.float32)
        reason = ""
        try:
            with quiet():
                found = cast("F32", cast("Any", self).read(out=found))
        except soundfile.LibsndfileError as error:
            self._check()
            found = found[: int(np.isnan(found[:, -1]).argmax())]
            is_over = claim is not None and self.n_read + len(found) >= claim
            if not (is_over or self._watched.is_at_end):
                self.n_read += len(found)
                raise
            reason = error.error_string
        self._check()
        self.n_read += len(found)
        return found, reason

    def claimed(self) -> int | None:
        """Samples of each channel by the header, from libsndfile's log; None if that has none."""
        found = self.format in _CLAIMS and re.search(
            _CLAIMS[self.format], self.extra_info, re.MULTILINE | re.DOTALL
        )
        if not found:
            return None
        (unit, n), width = next(iter(found.groupdict().items())), 1 + self.subtype.endswith("16")
        return int(n) if unit == "samples" else (int(n) - 12) // self.channels // width

    def _check(self) -> None:
        if self._watched.error is not None:
            raise self._watched.error

    @property
    def can_seek(self) -> bool:
        return super().seekable()

    def seekable(self) -> bool:
        """False, so that soundfile does not seek."""
        return False

    def seek(self, frames: int, whence: int = 0) -> int:
        """Seek, but not to the beginning, where the file already is."""
        return super().seek(frames, whence) if frames else 0


@contextmanager
def _told(name: str, claimed: int, file: _Forward | None = None) -> Generator[None]:
    """Raise :class:`AudioError` instead of the errors of libsndfile and soundfile."""
    try:
        yield
    except AudioError:
        raise
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror or error})") from error
    except (MemoryError, ValueError) as error:  # the array would be too large
        raise AudioError(
            f"{name}: not readable as audio (its header claims {claimed} samples); {_READABLE}"
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
        head = stream.read(2)
        stream.seek(0)
        if head == _MIDI_DUMP:
            # libsndfile prints lines on standard output for a damaged one.
            raise AudioError(f"{name}: is a MIDI sample dump, which cannot be read; {_READABLE}")
        if chunks.has_bad_packets(stream):
            raise AudioError(f"{name}: its table of packets is damaged; copy it again")
        file = _Forward(stream)
    with file:
        yield file


@contextmanager
def _opened(source: _File, name: str) -> Generator[BinaryIO]:
    """A seekable binary stream over the source. Raises :class:`AudioError` if it is empty."""
    with ExitStack() as owned:
        try:
            stream = _stream(source, owned)
            head = cast("object", stream.read(1))
            if not isinstance(head, (str, bytes, bytearray, memoryview)) and head is not None:
                raise _no_audio(source)
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
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        stream: BinaryIO = owned.enter_context(io.FileIO(os.fspath(source)))
    elif hasattr(source, "read"):
        stream = source
    else:
        raise _no_audio(source)
    if _can_seek(stream):
        return stream
    content = cast("object", stream.read())
    if isinstance(content, str):
        return cast("BinaryIO", io.StringIO(content))
    if content is not None and not isinstance(content, (bytes, bytearray, memoryview)):
        raise _no_audio(source)
    return io.BytesIO(cast("bytes", content or b""))


def _can_seek(stream: object) -> bool:
    """Whether a stream can seek.

    A SpooledTemporaryFile, such as an upload, can, but has no seekable() before Python 3.11.
    """
    if not (hasattr(stream, "read") and hasattr(stream, "seek")):
        return False
    try:
        return cast("Any", getattr(stream, "seekable", lambda: True))()
    except ValueError:  # it is closed; reading it raises the error
        return True


def _no_audio(source: object) -> AudioError:
    return AudioError(
        f"cannot read audio from {type(source).__name__}; pass a path, bytes, a binary file "
        "object, or an array with sample_rate"
    )


def _at(seconds: float, rate: int) -> int:
    return round(min(seconds, _MAX_CLAIMED) * rate)
