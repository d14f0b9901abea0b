"""What a file is, by its first bytes, and the containers that libsndfile does not open."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np

from ..arrays import F32
from ..errors import AudioError
from ..transcript import AudioWarning
from . import webm

Kind: TypeAlias = Literal["webm", "mp4", "aac", "asf"]
_IN_MEMORY_BYTES = 32 << 20  # of Opus, some hours; longer ones become a temporary file
_DEMUXERS = {"webm": "matroska,webm", "mp4": "mov,mp4,m4a,3gp,3g2,mj2", "aac": "aac", "asf": "asf"}
_NAMES = {"webm": "WebM", "mp4": "MP4/M4A (AAC)", "aac": "AAC", "asf": "WMA"}


def kind(stream: BinaryIO) -> Kind | None:
    """Which of them a stream is; None for what is left to libsndfile. Its place stays."""
    at = stream.tell()
    head = stream.read(12)
    stream.seek(at)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    # ADTS: twelve ones, no layer; where MP3 has one.
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def has_media() -> bool:
    """Whether the extra ``media`` is installed."""
    return importlib.util.find_spec("av") is not None


def as_ogg(
    stream: BinaryIO, name: str, on_warning: Callable[[AudioWarning], None]
) -> BinaryIO | None:
    """A WebM's Opus as an Ogg file, which is closed by whoever asked for it.

    None where it has none, and the extra ``media`` can read what it has.
    """
    at = stream.tell()
    found = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115
    try:
        for page in webm.to_ogg(stream, name, on_warning):
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
    found.seek(0)
    return cast("BinaryIO", found)


def blocks(stream: BinaryIO, which: Kind, name: str) -> Iterator[tuple[F32, int]]:
    """Samples ``[n, channels]`` as they are stored, and their rate, through the extra ``media``.

    The first audio track counts. Raises :class:`AudioError`, also where the extra is missing.
    """
    if not has_media():
        raise AudioError(
            f"{name}: {_NAMES[which]} needs an extra: install 'ark-asr-onnx[media]', or send WAV, "
            "FLAC, OGG, Opus, WebM/Opus or MP3"
        )
    import av

    errors = cast("Any", av).error.FFmpegError
    try:
        with cast("Any", av).open(stream, "r", format=_DEMUXERS[which]) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: holds no audio track")
            resampler = cast("Any", av).AudioResampler(format="flt")
            for frame in container.decode(container.streams.audio[0]):
                for part in resampler.resample(frame):
                    samples = part.to_ndarray().reshape(-1, part.layout.nb_channels)
                    yield np.ascontiguousarray(samples, np.float32), int(part.sample_rate)
    except errors as error:
        raise AudioError(f"{name}: not readable as audio ({error.strerror or error})") from error
