"""The recordings that follow each other in a file, and whether each is complete.

libsndfile reads the first recording of a file, up to the length that its header states. This module
finds all recordings, and gives each to libsndfile as a separate file with a header that is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from . import chunks, mp3, ogg
from .excerpt import Excerpt, Piece

_FLAC = b"fLaC"
_STEP, _OVERLAP = 1 << 20, 16
_BEGINNING = re.compile(
    rb"fLaC[\0\x80]\0\0\x22|OggS\0\x02|RIFF....WAVE|FORM....AIF[FC]|caff\0\x01\0\0desc", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of a file."""

    stream: BinaryIO  # in a form that libsndfile reads whole
    end: int  # in the file
    claimed: int | None = None  # length by its header, in any unit; None: it states none
    there: int | None = None  # length in the same unit; None: samples, counted when decoded
    is_cut: bool = False  # its end is missing, whatever its header states
    faults: tuple[str, ...] = ()  # damage before its end
    is_known: bool = True  # False: only libsndfile knows this format


def find(stream: BinaryIO, size: int) -> Iterator[Recording]:
    """The recordings of a seekable stream of ``size`` bytes, in order; at least one.

    Bytes after the last recording belong to none.
    """
    at = 0
    while at < size:
        found = _find(stream, at, size)
        if found is None and at:
            return
        stream.seek(0)
        yield found or Recording(stream, size, is_known=False)
        at = found.end if found else size


def _find(stream: BinaryIO, at: int, size: int) -> Recording | None:
    stream.seek(at)
    head = stream.read(10)
    if head.startswith(b"ID3"):
        after = at + mp3.tag_bytes(head)
        stream.seek(after)
        if chunks.is_recording(stream.read(4)):  # a tag before a format without tags
            return _find(stream, after, size)
    if head.startswith(_FLAC):
        return _flac(stream, at, size)
    if head.startswith(ogg.MAGIC) and (chain := ogg.find(stream, at, size)):
        faults = _faults(chain.n_skipped) + (
            (f"{chain.n_lost} pages are missing",) if chain.n_lost else ()
        )
        return Recording(
            _excerpt(stream, chain.pieces), chain.end, is_cut=chain.is_cut, faults=faults
        )
    if head.startswith(b"ID3") or mp3.frame_of(head[:4]) is not None:
        mpeg = mp3.find(stream, at, size)
        return mpeg and Recording(
            _excerpt(stream, mpeg.pieces), mpeg.end, mpeg.claimed, mpeg.there, mpeg.is_torn,
            _faults(mpeg.n_skipped),
        )  # fmt: skip
    part = chunks.find(stream, at, size)
    return part and Recording(_excerpt(stream, part.pieces), part.end, part.claimed, part.there)


def _excerpt(stream: BinaryIO, pieces: Sequence[Piece]) -> BinaryIO:
    return cast("BinaryIO", Excerpt(stream, pieces))


def _faults(n_skipped: int) -> tuple[str, ...]:
    return (f"{n_skipped} bytes within it are no audio",) if n_skipped else ()


def _flac(stream: BinaryIO, at: int, size: int) -> Recording:
    """A recording in FLAC, up to where the next one begins, without the length in its header.

    Then libsndfile reads to the end, even if the recording is longer than its header states.
    """
    stream.seek(at)
    head = stream.read(26)
    end = _next(stream, at + 4, size)
    if len(head) < 26 or head[4] & 0x7F:
        return Recording(_excerpt(stream, [(at, end)]), end)
    claimed = (head[21] & 0x0F) << 32 | int.from_bytes(head[22:26], "big")
    unknown = bytes((head[21] & 0xF0, 0, 0, 0, 0))
    pieces = ((at, at + 21), unknown, (at + 26, end))
    is_known = 0 < claimed < (1 << 36) - 1
    return Recording(_excerpt(stream, pieces), end, claimed if is_known else None)


def _next(stream: BinaryIO, at: int, size: int) -> int:
    """Position of the next recording with unmistakable first bytes; ``size`` if there is none."""
    while at < size:
        stream.seek(at)
        found = _BEGINNING.search(stream.read(_STEP + _OVERLAP))
        if found:
            return at + found.start()
        at += _STEP
    return size
