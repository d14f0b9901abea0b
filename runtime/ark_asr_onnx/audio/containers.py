"""Recognises containers that libsndfile does not open, and decodes their audio."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np

from ..arrays import F32
from ..errors import AudioError
from ..forks import NO_FORK
from ..transcript import AudioWarning
from . import webm
from .account import OnWarning
from .excerpt import Excerpt

Kind: TypeAlias = Literal["webm", "mp4", "aac", "asf"]
_PADDING_SECONDS = 0.15  # an encoder may add this much, and a decoder may drop it
_IN_MEMORY_BYTES = 32 << 20  # some hours of Opus; more goes to a temporary file
_DEMUXERS = {"webm": "matroska,webm", "mp4": "mov,mp4,m4a,3gp,3g2,mj2", "aac": "aac", "asf": "asf"}
_NAMES = {"webm": "WebM", "mp4": "MP4/M4A (AAC)", "aac": "AAC", "asf": "WMA"}


def kind(stream: BinaryIO) -> Kind | None:
    """The container of a stream by its first bytes; None if libsndfile is to read the stream.

    The position of the stream does not change.
    """
    at = stream.tell()
    head = stream.read(12)
    stream.seek(at)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"pnot"):  # all but ftyp: QuickTime's
        return "mp4"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    # ADTS: twelve bits of one, then layer 0; the layer of MP3 is another.
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def has_media() -> bool:
    """Whether the extra ``media`` is installed."""
    return importlib.util.find_spec("av") is not None


def as_ogg(stream: BinaryIO, name: str, on_warning: OnWarning) -> BinaryIO | None:
    """The Opus track of a WebM as an Ogg file, which the caller closes.

    None if there is no such track and the extra ``media`` is installed to read another one;
    without the extra, raises :class:`NoOpusError`.
    """
    at = stream.tell()
    found = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115
    told: list[AudioWarning] = []
    try:
        for page in webm.to_ogg(stream, name, told.append):
            found.write(page)
    except webm.NoOpusError:
        found.close()
        if not has_media():
            raise
        stream.seek(at)
        return None
    except BaseException:
        found.close()
        raise
    for warning in told:
        on_warning(warning)
    found.seek(0)
    return cast("BinaryIO", found)


def blocks(
    stream: BinaryIO, which: Kind, name: str, on_warning: OnWarning
) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` as they are stored, and their rate, through the extra ``media``.

    The first audio track is read. Raises :class:`AudioError`, also if the extra is missing.
    """
    if not has_media():
        raise AudioError(
            f"{name}: {_NAMES[which]} needs an extra: install 'ark-asr-onnx[media]', or send WAV, "
            "FLAC, OGG, Opus, WebM/Opus or MP3"
        )
    track = _Track(stream, which, name)
    yield from track.blocks()
    for warning in track.account():
        on_warning(warning)


class _Track:
    """The first audio track of a file while it is decoded."""

    def __init__(self, stream: BinaryIO, which: Kind, name: str) -> None:
        self._stream, self._which, self._name = stream, which, name
        self.seconds = 0.0
        self._claimed: float | None = None
        self._n_damaged = 0
        self._reason = ""

    def blocks(self) -> Iterator[tuple[F32, int]]:
        """Samples ``[n, channels]``, and their rate in Hz."""
        with NO_FORK:
            import av

        library = cast("Any", av)
        errors = library.error.FFmpegError
        try:
            with library.open(self._stream, "r", format=_DEMUXERS[self._which]) as container:
                if not container.streams.audio:
                    raise AudioError(f"{self._name}: holds no audio track")
                track = container.streams.audio[0]
                if self._which != "aac":  # FFmpeg only guesses the length of AAC
                    self._claimed = _seconds(track.duration, track.time_base) or _seconds(
                        container.duration, 1e-6
                    )
                for packet in container.demux(track):
                    yield from self._decoded(packet, library.AudioResampler, errors)
        except (errors, UnicodeError) as error:  # UnicodeError: of a name within the file
            reason = getattr(error, "strerror", None) or str(error)
            if not self.seconds:
                raise AudioError(f"{self._name}: not readable as audio ({reason})") from error
            self._reason = reason

    def _decoded(self, packet: Any, resampler: Any, errors: Any) -> Iterator[tuple[F32, int]]:
        try:
            frames = packet.decode()
        except errors:
            self._n_damaged += 1
            return
        for part in (part for frame in frames for part in resampler(format="flt").resample(frame)):
            samples = part.to_ndarray().reshape(-1, part.layout.nb_channels)
            self.seconds += len(samples) / part.sample_rate
            yield np.ascontiguousarray(samples, np.float32), int(part.sample_rate)

    def account(self) -> Iterator[AudioWarning]:
        """Warnings about audio that is missing or damaged."""
        claimed, seconds = self._claimed, self.seconds
        if claimed is not None and seconds < claimed - _PADDING_SECONDS:
            says = f"its header says {claimed:.2f} s, {seconds:.2f} s are there"
            yield AudioWarning("cut", f"cut off: {says}; copy it again")
        elif self._reason:
            yield AudioWarning("cut", f"cut off after {seconds:.2f} s ({self._reason})")
        if self._n_damaged:
            yield AudioWarning("damaged", f"damaged: {self._n_damaged} packets cannot be decoded")


def _seconds(duration: int | None, unit: Any) -> float | None:
    return None if duration is None or unit is None else float(duration * unit)


def files(stream: BinaryIO, which: Kind) -> tuple[list[BinaryIO], int]:
    """The files in a stream, and how many bytes follow them (negative: are missing)."""
    stream.seek(0, 2)
    size = stream.tell()
    begins, at = _boxes(stream, size) if which == "mp4" else _segments(stream, size, which)
    stream.seek(0)
    n_more = size - at if begins else 0
    if len(begins) < 2 and n_more <= 0:
        return [stream], n_more
    ends = [*begins[1:], min(at, size)]
    files = [Excerpt(stream, [pair]) for pair in zip(begins, ends, strict=True)]
    return cast("list[BinaryIO]", files), n_more


def _segments(stream: BinaryIO, size: int, which: Kind) -> tuple[list[int], int]:
    """Where Matroska files begin in a stream, and where the last one ends."""
    begins: list[int] = []
    at = 0
    while which == "webm" and at < size and (end := webm.end_of(stream, at)) is not None:
        begins.append(at)
        at = end
    return begins, at if begins else size


def _boxes(stream: BinaryIO, size: int) -> tuple[list[int], int]:
    """Where MP4 files begin in a stream, and where the last one ends."""
    begins: list[int] = []
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        n = int.from_bytes(head[:4], "big")
        if n == 1:
            n = int.from_bytes(head[8:16], "big")
        elif n == 0:
            n = size - at
        if n < 8 or not all(0x20 <= c < 0x7F or c == 0xA9 for c in head[4:8]):
            break
        if head[4:8] == b"ftyp":
            begins.append(at)
        at += n
    return begins, at
