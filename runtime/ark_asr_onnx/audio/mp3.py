"""The recordings that follow each other in a file of MPEG audio (MP3), found frame by frame.

A recording may begin with a header (Xing, Info) that states its length, and may be wrong. Without
one, decoders guess the length from the bit rate of the first frame. This module counts the frames
and gives libsndfile a header that is right. It leaves out tags and all bytes that are no frames.

Sources: ISO 11172-3, ISO 13818-3; the layout of Xing's header as LAME writes it; ID3v2 and APEv2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from .excerpt import Piece

_BITRATES = {  # kbit/s by version 1 or not, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_STEP = 1 << 20
_FEW = 3  # after a recording, fewer frames than this are not another one
_SEARCHED = 1 << 16  # bytes that are searched for the first frame


@dataclass(frozen=True, slots=True)
class Frame:
    """The fields of a frame's header."""

    version: int  # 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    layer: int
    rate: int  # Hz
    n_bytes: int
    is_mono: bool

    @property
    def kind(self) -> tuple[int, int, int, bool]:
        """The properties that all frames of a recording share."""
        return self.version, self.layer, self.rate, self.is_mono

    @property
    def side_bytes(self) -> int:
        """Bytes between the header and the sound, in layer III."""
        return (32, 17)[self.is_mono] if self.version == 3 else (17, 9)[self.is_mono]


@dataclass(frozen=True, slots=True)
class Recording:
    """The frames of one recording."""

    pieces: tuple[Piece, ...]
    end: int
    claimed: int | None  # frames by its header; None: it states none
    there: int  # frames in the file
    is_torn: bool  # its last frame is cut off
    n_skipped: int  # bytes before its end that are neither frames nor tags


@lru_cache(maxsize=4096)
def frame_of(head: bytes) -> Frame | None:
    """The frame that begins with these four bytes; None if none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    kbits, padding = _BITRATES[version == 3, layer][bitrate], head[2] >> 1 & 1
    if layer == 1:
        n_bytes = (12_000 * kbits // hertz + padding) * 4
    else:
        n_bytes = (72_000 if layer == 3 and version != 3 else 144_000) * kbits // hertz + padding
    return Frame(version, layer, hertz, n_bytes, head[3] >> 6 == 3)


def begins(head: bytes) -> bool:
    """Whether bytes begin with two frames that match, or are one whole frame."""
    frame = frame_of(head[:4])
    if frame is None or len(head) < frame.n_bytes:
        return False
    after = head[frame.n_bytes : frame.n_bytes + 4]
    follower = frame_of(after)
    return not after or (follower is not None and follower.kind[:3] == frame.kind[:3])


def find(stream: BinaryIO, at: int, size: int) -> Recording | None:
    """The recording at position ``at`` of a stream of ``size`` bytes, or after tags there.

    None if there is none.
    """
    look = _Look(stream, size)
    first: Frame | None = None
    header: tuple[int, int, int | None] | None = None  # begin, end, frames
    pieces: list[tuple[int, int]] = []
    n_frames = n_skipped = 0
    is_torn = False
    begin = at
    while at < size:
        head = look(at, 10)
        frame = frame_of(head[:4])
        if frame is None or (first is not None and frame.kind != first.kind):
            if n_bytes := _tag_bytes(look, at):
                at += n_bytes
                continue
            if frame is not None and begins(look(at, frame.n_bytes + 4)):
                break  # another recording, for example with another sample rate
            place = _next(look, at + 1, size if first is not None else begin + _SEARCHED)
            if place is None:
                break
            n_skipped += place - at
            at = place
            continue
        if at + frame.n_bytes > size:
            is_torn, at = True, size
            break
        is_header, claimed = _header(frame, look(at, 64))
        if is_header and first is not None:
            break  # the header of the next recording
        first = first or frame
        if is_header:
            header = at, at + frame.n_bytes, claimed
        else:
            n_frames += 1
            if pieces and pieces[-1][1] == at:
                pieces[-1] = (pieces[-1][0], at + frame.n_bytes)
            else:
                pieces.append((at, at + frame.n_bytes))
        at += frame.n_bytes
    if first is None or (begin and n_frames < _FEW):
        return None
    claimed = header and header[2]
    if header is not None and claimed == n_frames:
        whole: tuple[Piece, ...] = (header[:2], *pieces)
    elif first.layer == 3:
        whole = (_new_header(look(pieces[0][0], 4) if pieces else b"", n_frames), *pieces)
    else:
        whole = tuple(pieces)
    return Recording(whole, at, claimed, n_frames, is_torn, n_skipped)


class _Look:
    """Bytes at any position, read in large steps."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self.size = stream, size
        self._begin, self._data = 0, b""

    def __call__(self, at: int, n: int) -> bytes:
        """``n`` bytes at position ``at``, fewer at the end."""
        begin = at - self._begin
        if begin < 0 or (begin + n > len(self._data) and self._begin + len(self._data) < self.size):
            self._stream.seek(at)
            self._begin, self._data = at, self._stream.read(max(n, _STEP))
            begin = 0
        return self._data[begin : begin + n]


def _next(look: _Look, at: int, limit: int) -> int | None:
    """Position of the next frame or tag before ``limit``; None if there is none."""
    while at < min(limit, look.size):
        data = look(at, 1 << 16)
        place = data.find(b"\xff")
        while place >= 0:
            if frame_of(data[place : place + 4]) or len(data) - place < 4:
                frame = frame_of(look(at + place, 4))
                if frame is not None and begins(look(at + place, frame.n_bytes + 4)):
                    return at + place
            place = data.find(b"\xff", place + 1)
        for name in (b"ID3", b"TAG", b"APETAGEX"):
            if (tag := data.find(name)) >= 0 and _tag_bytes(look, at + tag):
                return at + tag
        at += len(data)
        if not data:
            break
    return None


def tag_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag that begins with these ten bytes; 0 if none does."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 0x7F:
        return 0
    length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + length + (10 if head[5] & 0x10 else 0)


def _tag_bytes(look: _Look, at: int) -> int:
    """Length of the tag at a position; 0 if there is none."""
    head = look(at, 32)
    if head[:3] == b"TAG" and at + 128 <= look.size:
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        is_header = head[23] & 0x20
        return 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
    return tag_bytes(head[:10])


def _header(frame: Frame, data: bytes) -> tuple[bool, int | None]:
    """Whether a frame is the header of a recording, and the number of frames that it states."""
    if frame.layer != 3:
        return False, None
    at = 4 + frame.side_bytes
    if data[at : at + 4] in (b"Xing", b"Info"):
        has_frames = data[at + 7] & 1
        return True, int.from_bytes(data[at + 8 : at + 12], "big") if has_frames else None
    if data[36:40] == b"VBRI":
        return True, int.from_bytes(data[50:54], "big")
    return False, None


def _new_header(head: bytes, n_frames: int) -> bytes:
    """A header that states ``n_frames``, for frames like the one that begins with ``head``."""
    for bitrate in range(1, 15):  # the smallest frame that has room
        mine = bytes((head[0], head[1] | 1, bitrate << 4 | head[2] & 0x0C, head[3]))
        frame = frame_of(mine)
        if frame is not None and frame.n_bytes >= 4 + frame.side_bytes + 12:
            content = b"Xing" + (1).to_bytes(4, "big") + min(n_frames, 2**31).to_bytes(4, "big")
            return (mine + bytes(frame.side_bytes) + content).ljust(frame.n_bytes, b"\0")
    raise AssertionError("every kind of frame has room at the highest rate")
