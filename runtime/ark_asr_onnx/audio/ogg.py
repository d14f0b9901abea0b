"""The recordings that follow each other in an Ogg file, and what is missing from each.

Source: RFC 3533. This module reads the headers of pages; libsndfile decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from .excerpt import Piece

MAGIC = b"OggS"
_HEADER = 27
_FIRST, _LAST = 2, 4  # flags of a stream's first page, and of its last one
_STEP = 1 << 16


@dataclass(frozen=True, slots=True)
class Chain:
    """The pages of one recording: streams that begin together."""

    pieces: tuple[Piece, ...]  # whole pages
    end: int
    is_cut: bool  # its last page is missing
    n_lost: int  # missing pages before its end
    n_skipped: int  # bytes between its pages that belong to no page


@dataclass(frozen=True, slots=True)
class _Page:
    flags: int
    serial: int
    number: int
    n_bytes: int


def find(stream: BinaryIO, at: int, size: int) -> Chain | None:
    """The recording at position ``at`` of a stream of ``size`` bytes; None if there is none."""
    pieces: list[tuple[int, int]] = []
    numbers: dict[int, int] = {}  # serial of a stream -> number of its last page
    open_streams: set[int] = set()
    n_lost = n_skipped = 0
    has_data = is_torn = False
    while at < size:
        page = _page(stream, at)
        if page is None or not _is_whole(stream, at, page, size):
            found = _next(stream, at + 1, size)
            if numbers and not open_streams:
                break  # the recording is complete; something else follows
            if found is None:
                is_torn, n_skipped = True, n_skipped + (0 if page else size - at)
                at = size
                break
            n_skipped += found - at
            at = found
            continue
        if page.flags & _FIRST and has_data:
            break
        if page.flags & _FIRST:
            open_streams.add(page.serial)
        elif page.serial in numbers:
            has_data = True
            n_lost += max(0, page.number - numbers[page.serial] - 1)
        numbers[page.serial] = page.number
        if page.flags & _LAST:
            open_streams.discard(page.serial)
        if pieces and pieces[-1][1] == at:
            pieces[-1] = (pieces[-1][0], at + page.n_bytes)
        else:
            pieces.append((at, at + page.n_bytes))
        at += page.n_bytes
    if not pieces:
        return None
    return Chain(tuple(pieces), at, is_torn or bool(open_streams), n_lost, n_skipped)


def _page(stream: BinaryIO, at: int) -> _Page | None:
    stream.seek(at)
    head = stream.read(_HEADER + 255)
    if len(head) < _HEADER or head[:5] != MAGIC + b"\0":
        return None
    n_parts = head[26]
    body = sum(head[_HEADER : _HEADER + n_parts])
    serial, number = (int.from_bytes(head[i : i + 4], "little") for i in (14, 18))
    return _Page(head[5], serial, number, _HEADER + n_parts + body)


def _is_whole(stream: BinaryIO, at: int, page: _Page, size: int) -> bool:
    """Whether a page is complete: a page or the end follows it, or no page begins within it."""
    end = at + page.n_bytes
    if end >= size:
        return end == size
    stream.seek(at + 1)
    data = stream.read(page.n_bytes - 1 + len(MAGIC))
    return data.endswith(MAGIC) or MAGIC + b"\0" not in data


def _next(stream: BinaryIO, at: int, size: int) -> int | None:
    """Position of the next page; None if there is none."""
    while at < size:
        stream.seek(at)
        data = stream.read(_STEP + len(MAGIC))
        if (place := data.find(MAGIC + b"\0")) >= 0:
            return at + place
        at += _STEP
    return None
