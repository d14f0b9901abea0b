"""Repacks Opus from WebM and Matroska, which browsers record, into Ogg, which libsndfile reads.

Sources: RFC 8794 (EBML), RFC 9559 (Matroska), RFC 7845 (Opus in Ogg), RFC 6716, section 3.1 (the
duration of a packet), RFC 3533 (Ogg pages).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import AudioError
from ..transcript import AudioWarning
from .account import OnWarning

_HEADER = 0x1A45DFA3
_SEGMENT, _TRACKS, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xA0
_ENTERED = {_SEGMENT, _TRACKS, _CLUSTER, _BLOCK_GROUP}  # their children are walked, not skipped
_TRACK_ENTRY, _SIMPLE_BLOCK, _BLOCK, _DISCARD_PADDING = 0xAE, 0xA3, 0xA1, 0x75A2
_TRACK_NUMBER, _CODEC_ID, _CODEC_PRIVATE, _ENCODINGS = 0xD7, 0x86, 0x63A2, 0x6D80
_LARGEST = 1 << 20  # bytes of a block or of a track's description; Opus packets have some hundred
_RATE = 48_000  # granules a second, at any sample rate
_PACKETS_PER_PAGE = 50
_LARGEST_PACKET = 255 * 255 - 1  # that fits into one page
_MAX_NAMES = 5  # of codecs in a message
_REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


class NoOpusError(AudioError):
    """A WebM or Matroska file without an Opus track."""


class _Cut(Exception):
    """The stream ends within an element."""


class _Over(Exception):
    """The bytes after the last element are not an element."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.n_bytes = n_bytes


@dataclass(slots=True)
class _Track:
    number: int = 0
    codec: str = "unknown"
    head: bytes = b""  # OpusHead
    is_encoded: bool = False  # encrypted or compressed


def to_ogg(stream: BinaryIO, name: str, on_warning: OnWarning) -> Iterator[bytes]:
    """The first Opus track of a WebM or Matroska stream as Ogg, page by page.

    A recording that was cut off gives its packets up to there, with a warning. Raises
    :class:`NoOpusError`, and :class:`AudioError` for a stream that is damaged or encrypted.
    """
    packets = _packets(stream, name, on_warning)
    head = next(packets)[0]
    yield _page([head], 0, 0, flags=2)
    yield _page([b"OpusTags" + struct.pack("<I4sI", 4, b"none", 0)], 0, 1)
    granule, waiting, n_segments, sequence = 0, list[bytes](), 0, 2
    for packet, discarded in packets:
        if len(waiting) == _PACKETS_PER_PAGE or n_segments + len(packet) // 255 + 1 > 255:
            yield _page(waiting, granule, sequence)
            waiting, n_segments, sequence = [], 0, sequence + 1
        waiting.append(packet)
        n_segments += len(packet) // 255 + 1
        granule += _samples(packet) - discarded
    yield _page(waiting, granule, sequence, flags=4)


def end_of(stream: BinaryIO, at: int) -> int | None:
    """End of the file that begins at a position; None without a file, or if its size is unknown."""
    whole = stream.seek(0, 2)
    end = at
    try:
        for wanted in (_HEADER, _SEGMENT):
            if end > whole:
                return None
            stream.seek(end)
            first = _exactly(stream, 1)
            if _number(first, stream, keeps_marker=True, most=4, name="") != wanted:
                return None
            size = _number(_exactly(stream, 1), stream, keeps_marker=False, most=8, name="")
            if size < 0:
                return None
            end = stream.tell() + size
    except (_Cut, AudioError):
        return None
    return end


def _packets(stream: BinaryIO, name: str, on_warning: OnWarning) -> Generator[tuple[bytes, int]]:
    """OpusHead, then every packet, each with the number of samples to drop at its end."""
    track: _Track | None = None
    others: list[str] = []
    last: bytes | None = None
    try:
        for element, payload in _elements(stream, name):
            if element == _TRACK_ENTRY and track is None:
                found = _track(payload)
                if len(others) < _MAX_NAMES:
                    others.append(found.codec)
                is_opus = found.codec == "A_OPUS" and found.head.startswith(b"OpusHead")
                if is_opus and len(found.head) <= _LARGEST_PACKET:
                    if found.is_encoded:
                        raise AudioError(f"{name}: its Opus track is encrypted or compressed")
                    track = found
                    yield track.head, 0
            elif element in (_SIMPLE_BLOCK, _BLOCK) and track is not None:
                for packet in _block(payload, track.number, name):
                    if last is not None:
                        yield last, 0
                    last = packet
            elif element == _DISCARD_PADDING and last is not None:
                padding = int.from_bytes(payload, "big", signed=True) * _RATE // 10**9
                yield last, min(max(padding, 0), _samples(last))
                last = None
    except _Cut:
        on_warning(AudioWarning("cut", "cut off: its end is missing; copy it again"))
    except _Over as over:
        what = f"{over.n_bytes} bytes after the end of the audio"
        on_warning(AudioWarning("unused", f"{what} are no audio and were not heard"))
    if track is None:
        what = f"its tracks are {', '.join(others)}" if others else "it has no tracks"
        raise NoOpusError(
            f"{name}: a WebM or Matroska file without Opus ({what}); install "
            "'ark-asr-onnx[media]', or send WAV, FLAC, OGG, Opus or MP3"
        )
    if last is not None:
        yield last, 0


def _elements(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """The elements that are needed, at any depth, and their content."""
    wanted = {_TRACK_ENTRY, _SIMPLE_BLOCK, _BLOCK, _DISCARD_PADDING}
    end = 0  # of all elements whose size is known
    while (first := stream.read(1)) != b"":
        at = stream.tell() - 1
        try:
            element = _number(first, stream, keeps_marker=True, most=4, name=name)
        except (AudioError, _Cut):
            if 0 < end <= at:
                raise _Over(stream.seek(0, 2) - at) from None
            raise
        size = _number(_exactly(stream, 1), stream, keeps_marker=False, most=8, name=name)
        if element in _ENTERED:
            end = max(end, stream.tell() + size if size >= 0 else 0)
            continue
        if size < 0:
            raise AudioError(f"{name}: damaged WebM, an element of unknown size; record it again")
        if element not in wanted:
            _skip(stream, size)
            continue
        if size > _LARGEST:
            raise AudioError(f"{name}: damaged WebM, a block of {size} bytes; copy it again")
        yield element, _exactly(stream, size)
    if stream.tell() < end:
        raise _Cut


def _number(first: bytes, stream: BinaryIO, *, keeps_marker: bool, most: int, name: str) -> int:
    """A number of variable length; -1 for an unknown size."""
    length = 9 - first[0].bit_length()
    if length > most:
        raise AudioError(f"{name}: damaged WebM, no element where one should begin; copy it again")
    raw = first + _exactly(stream, length - 1)
    if keeps_marker:
        return int.from_bytes(raw, "big")
    bits = (1 << 7 * length) - 1
    value = int.from_bytes(raw, "big") & bits
    return -1 if value == bits else value


def _exactly(stream: BinaryIO, n: int) -> bytes:
    found = stream.read(n) if n else b""
    if len(found) < n:
        raise _Cut
    return found


def _skip(stream: BinaryIO, n: int) -> None:
    """Skip content that is not needed; raises :class:`_Cut` if the stream ends within it."""
    at = stream.tell()
    if stream.seek(0, 2) < at + n:
        raise _Cut
    stream.seek(at + n)


def _children(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements within an element that was read; stops at a damaged one."""
    at = 0
    while at < len(payload):
        length = 9 - payload[at].bit_length()
        element = int.from_bytes(payload[at : at + length], "big")
        at += length
        if at >= len(payload) or (length := 9 - payload[at].bit_length()) > 8:
            return
        size = int.from_bytes(payload[at : at + length], "big") & ((1 << 7 * length) - 1)
        at += length
        yield element, payload[at : at + size]
        at += size


def _track(payload: bytes) -> _Track:
    found = _Track()
    for element, content in _children(payload):
        if element == _TRACK_NUMBER:
            found.number = int.from_bytes(content, "big")
        elif element == _CODEC_ID:
            codec = content[:32].rstrip(b"\0").decode("ascii", "replace")
            found.codec = ascii(codec)[1:-1][:32] or "unknown"
        elif element == _CODEC_PRIVATE:
            found.head = content
        elif element == _ENCODINGS:
            found.is_encoded = True
    return found


def _block(payload: bytes, track: int, name: str) -> list[bytes]:
    """The packets of a block; none if the block belongs to another track."""
    length = 9 - payload[0].bit_length() if payload else 9
    if len(payload) < length + 3 or length > 8:
        raise AudioError(f"{name}: damaged WebM, a block without content; copy it again")
    number = int.from_bytes(payload[:length], "big") & ((1 << 7 * length) - 1)
    if number != track:
        return []
    lacing, content = payload[length + 2] & 6, payload[length + 3 :]
    try:
        packets = _laced(content, lacing) if lacing else [content]
    except (IndexError, ValueError) as error:
        raise AudioError(f"{name}: damaged WebM, a block of packets; copy it again") from error
    if max(map(len, packets)) > _LARGEST_PACKET:
        raise AudioError(f"{name}: damaged WebM, a packet no Opus encoder makes; copy it again")
    return [packet for packet in packets if packet]


def _laced(content: bytes, lacing: int) -> list[bytes]:
    """The packets of one block: of equal size (4), or with sizes in the way of Xiph (2) or EBML."""
    n, at = content[0] + 1, 1
    sizes: list[int] = []
    if lacing == 4:
        sizes = [(len(content) - 1) // n] * (n - 1)
    elif lacing == 2:
        for _ in range(n - 1):
            size = 0
            while content[at] == 255:
                size, at = size + 255, at + 1
            sizes.append(size + content[at])
            at += 1
    else:
        for i in range(n - 1):
            length = 9 - content[at].bit_length()
            bits = (1 << 7 * length) - 1
            value = int.from_bytes(content[at : at + length], "big") & bits
            sizes.append(value if i == 0 else sizes[-1] + value - (bits >> 1))
            at += length
    packets: list[bytes] = []
    for size in sizes:
        if not 0 <= size <= len(content) - at:
            raise ValueError(size)
        packets.append(content[at : at + size])
        at += size
    return [*packets, content[at:]]


def _samples(packet: bytes) -> int:
    """Granules of an Opus packet, from its first byte or two."""
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1920, 2880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    n_frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return frame * n_frames


def _page(packets: list[bytes], granule: int, sequence: int, flags: int = 0) -> bytes:
    """An Ogg page that holds whole packets."""
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    head = struct.pack("<4sBBqII", b"OggS", 0, flags, max(granule, 0), 0x41524B, sequence)
    rest = bytes([len(lacing)]) + lacing + b"".join(packets)
    # Ogg's checksum is that of zlib on reversed bits, with zero as its initial value.
    raw = zlib.crc32((head + b"\0\0\0\0" + rest).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    checksum = int(f"{raw:032b}"[::-1], 2)
    return head + struct.pack("<I", checksum) + rest
