"""Files made of chunks: how many bytes of samples a header claims, and how many there are.

WAV (RIFF, RIFX, RF64, BW64), W64, AIFF and IFF (FORM), CAF, AU and NIST SPHERE. A header is
written before its samples, so it is wrong if the writer died, could not seek, or wrote more bytes
than 32 bits can count. This module reads only sizes; libsndfile decodes, from a header with the
right sizes.

Sources: Microsoft's "Multimedia Programming Interface and Data Specifications 1.0", EBU Tech 3306,
Sony's Wave64, Apple's AIFF 1.3 and CAF 1.0, and Sun's ``audio_filehdr(5)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from .excerpt import Piece

# A WAV written to a pipe has a placeholder size near 2**31 or 2**32: its writer could not seek.
UNKNOWN_BYTES = (1 << 31) - (1 << 20)
MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b".snd", b"dns.", b"riff", b"NIST")
_USUAL = frozenset(  # chunks that may follow the samples
    b"LIST INFO id3 ID3 bext fact cue smpl PEAK iXML JUNK PAD FLLR inst plst labl DISP ANNO NAME "
    b"AUTH COMT MARK APPL INST MIDI CHAN chan pakt info free meta summ".split()
)
# Position of the codec's name in the chunk that describes the samples, and the codecs whose
# samples have no fixed number of bytes.
_CODECS = {
    b"COMM": (18, (b"GSM ", b"agsm", b"DWVW")),
    b"desc": (8, (b"alac", b"aac ", b"ima4", b".mp3")),
}
_MAX_CHUNKS = 10_000  # before the samples; more is an attack
_PACKETS_HEADER = 24  # bytes before a CAF's table of packets
_MAX_PACKETS = 16 << 20  # bytes of that table
_W64_TAIL = b"\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


@dataclass(frozen=True, slots=True)
class Chunks:
    """Where the samples of a recording are, and what its header says about that."""

    pieces: tuple[Piece, ...]  # of a file with the right sizes
    end: int  # of the recording, in the file
    claimed: int | None  # bytes of samples by the header; None: it states none
    there: int  # bytes of samples in the file


@dataclass(frozen=True, slots=True)
class _Style:
    """How a format writes its chunks."""

    order: Literal["little", "big"]
    id_bytes: int = 4
    size_bytes: int = 4
    align: int = 2
    holds_header: bool = False  # the size of a chunk includes the chunk's header

    @property
    def header(self) -> int:
        return self.id_bytes + self.size_bytes

    def read(self, stream: BinaryIO, at: int) -> tuple[bytes, int] | None:
        """Name and size of the chunk at a position; None at the end."""
        stream.seek(at)
        head = stream.read(self.header)
        if len(head) < self.header:
            return None
        size = int.from_bytes(head[self.id_bytes :], self.order)
        return head[: self.id_bytes], size - self.header * self.holds_header

    def after(self, begin: int, size: int) -> int:
        """Position of the next chunk, after padding."""
        return begin + size + -size % self.align


_RIFF, _FORM = _Style("little"), _Style("big")
_CAF = _Style("big", size_bytes=8, align=1)
_W64 = _Style("little", id_bytes=16, size_bytes=8, align=8, holds_header=True)


def find(stream: BinaryIO, at: int, size: int) -> Chunks | None:
    """The recording at position ``at`` of a stream of ``size`` bytes; None for another format.

    Also None for a recording without samples: libsndfile reports what is wrong with it.
    """
    stream.seek(at)
    head = stream.read(16)
    if head[:4] in (b"RIFF", b"RF64", b"BW64", b"RIFX") and head[8:12] == b"WAVE":
        style = _FORM if head[:4] == b"RIFX" else _RIFF
        return _find(stream, at, at + 12, size, style, b"data")
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _find(stream, at, at + 12, size, _FORM, b"SSND", 8)
    if head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
        return _find(stream, at, at + 12, size, _FORM, b"BODY")
    if head[:4] == b"caff":
        return _find(stream, at, at + 8, size, _CAF, b"data", 4)
    if head == b"riff" + _W64_TAIL:
        return _find(stream, at, at + 40, size, _W64, b"data")
    if head[:8] == b"NIST_1A\n":
        return _nist(stream, at, size)
    if head[:4] in (b".snd", b"dns."):
        return _au(stream, at, size, "big" if head[:4] == b".snd" else "little")
    return None


def _find(
    stream: BinaryIO, at: int, first: int, size: int, style: _Style, wanted: bytes, lead: int = 0
) -> Chunks | None:
    """``lead`` is the number of bytes before the samples in their chunk."""
    wide: int | None = None  # position of the size in 64 bits
    claimed: int | None = None
    begin, is_fixed = 0, True  # whether every sample has the same number of bytes
    for begin, name, n in _chunks(stream, first, size, style):
        if name in _CODECS:
            stream.seek(begin + _CODECS[name][0])
            is_fixed = stream.read(4) not in _CODECS[name][1]
        if name == b"ds64" and style is _RIFF:
            wide = begin + 8
        if name[:4] == wanted:
            claimed = n
            break
    if claimed is None:
        return None
    there, limit = size - begin, (1 << 8 * style.size_bytes) - 1
    is_unknown = claimed == limit or (limit >> 32 == 0 and UNKNOWN_BYTES <= claimed > there)
    if is_unknown and wide is not None:
        stream.seek(wide)
        claimed = int.from_bytes(stream.read(8), style.order)
        is_unknown = claimed == (1 << 64) - 1
    place = begin - style.size_bytes
    if is_unknown:
        places = {place: there.to_bytes(8, style.order)} if style.size_bytes == 8 else {}
        return Chunks(_replaced(at, size, places), size, None, there - lead)
    end = rest = size
    if claimed <= there:
        after = begin + claimed
        found = _rest(stream, after, -claimed % style.align, size, style)
        found = found if found is not None or is_fixed else after
        if found is not None:
            end, rest = begin + claimed, found
    n = end - begin
    if n == claimed:
        return Chunks(((at, rest),), rest, claimed - lead, claimed - lead)
    written = n + style.header * style.holds_header
    places = {place: min(written, limit).to_bytes(style.size_bytes, style.order)}
    if wide is not None:
        places[wide] = n.to_bytes(8, style.order)
    return Chunks(_replaced(at, end, places), rest, max(0, claimed - lead), n - lead)


def _replaced(begin: int, end: int, places: dict[int, bytes]) -> tuple[Piece, ...]:
    """The file from ``begin`` to ``end``, with other bytes at ``places``."""
    pieces: list[Piece] = []
    for place, data in sorted(places.items()):
        pieces += [(begin, place), data]
        begin = place + len(data)
    return (*pieces, (begin, end))


def _chunks(
    stream: BinaryIO, at: int, size: int, style: _Style
) -> Iterator[tuple[int, bytes, int]]:
    """The position of each chunk's content, its name and its size."""
    for _ in range(_MAX_CHUNKS):
        found = style.read(stream, at)
        if found is None or found[1] < 0:
            return
        begin = at + style.header
        yield begin, *found
        at = style.after(begin, found[1])
        if at > size:
            return


def _rest(stream: BinaryIO, end: int, pad: int, size: int, style: _Style) -> int | None:
    """Where a recording ends if its samples end at ``end``; None if samples continue there.

    After the samples come chunks up to the end of the file, another recording, or nothing.
    ``pad`` bytes come first, which some writers leave out.
    """
    for start in sorted({end, end + pad}):
        at = start
        while at <= size + style.align:
            found = style.read(stream, at)
            if found is None:
                return size
            name = found[0][:4]
            if is_recording(name):
                return at
            if found[1] < 0 or not is_name(name):
                break
            at = style.after(at + style.header, found[1])
            # This chunk was cut off, the samples were not.
            if at > size + style.align and name.strip() in _USUAL:
                return size
    return None


def has_bad_packets(stream: BinaryIO) -> bool:
    """Whether the table of packets of a CAF with ALAC is damaged; rewinds the stream.

    libsndfile prints lines on standard output for such a file.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    found = stream.read(4) == b"caff" and next(
        (pair for pair in _chunks(stream, 8, size, _CAF) if pair[1] == b"pakt"), None
    )
    table = b""
    if found:
        stream.seek(found[0] + _PACKETS_HEADER)
        table = stream.read(min(max(0, found[2] - _PACKETS_HEADER), _MAX_PACKETS + 1))
    stream.seek(0)
    # Each number is stored with seven bits in a byte; its last byte is below 128.
    is_torn = re.search(rb"[\x80-\xff]{5}|[\x80-\xff]\Z", table) is not None
    return is_torn or len(table) > _MAX_PACKETS


def is_name(head: bytes) -> bool:
    """Whether bytes can be the name of a chunk."""
    return all(0x20 <= c < 0x7F for c in head)


def is_recording(head: bytes) -> bool:
    """Whether the first four bytes are those of a format that can be read."""
    return head[:4] in (*MAGICS, b"fLaC", b"OggS")


def _au(stream: BinaryIO, at: int, size: int, order: Literal["little", "big"]) -> Chunks | None:
    stream.seek(at + 4)
    numbers = stream.read(8)
    begin = at + int.from_bytes(numbers[:4], order)
    claimed = int.from_bytes(numbers[4:], order)
    if len(numbers) < 8 or not at + 24 <= begin <= size:
        return None
    if claimed == 0xFFFFFFFF:
        return Chunks(((at, size),), size, None, size - begin)
    end = _end(stream, begin + claimed, size)
    if end - begin == claimed:
        return Chunks(((at, end),), end, claimed, claimed)
    length = min(end - begin, 0xFFFFFFFE).to_bytes(4, order)
    return Chunks(((at, at + 8), length, (at + 12, end)), end, claimed, end - begin)


def _end(stream: BinaryIO, claimed: int, size: int) -> int:
    """Where samples end in a format in which only another recording can follow them."""
    if claimed >= size:
        return size
    stream.seek(claimed)
    return claimed if is_recording(stream.read(4)) else size


def _nist(stream: BinaryIO, at: int, size: int) -> Chunks | None:
    """NIST SPHERE: a header of fixed length, in text, states the number of samples."""
    stream.seek(at)
    text = stream.read(1024)
    numbers = {
        name: int(value)
        for name, value in re.findall(rb"^(\w+) -i (\d{1,12})$", text, re.MULTILINE)
    }
    begin = at + len(text)
    is_law = b"ulaw" in text or b"alaw" in text  # some writers state two bytes here, too
    frame = numbers.get(b"channel_count", 1) * (1 if is_law else numbers.get(b"sample_n_bytes", 2))
    if len(text) < 1024 or b"\n   1024\n" not in text or b"sample_count" not in numbers:
        return None
    claimed = numbers[b"sample_count"] * frame
    end = _end(stream, begin + claimed, size)
    return Chunks(((at, end),), end, claimed, end - begin)
