"""A part of a file as a separate file, with some bytes replaced; nothing is copied."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO, TypeAlias

Piece: TypeAlias = bytes | tuple[int, int]
"""Literal bytes, or the bytes of the file from one position up to another."""


class Excerpt(io.RawIOBase):
    """Pieces of a seekable binary stream, one after the other, read on demand."""

    def __init__(self, stream: BinaryIO, pieces: Sequence[Piece]) -> None:
        self._stream = stream
        self._pieces: list[tuple[int, int, Piece]] = []  # begin and end in the excerpt
        self._at = self._size = 0
        for piece in pieces:
            n = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._pieces.append((self._size, self._size + n, piece))
            self._size += n

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position and return it, as any file does."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer only at the end."""
        left = self._size - self._at if size < 0 else size
        found: list[bytes] = []
        for begin, end, piece in self._pieces:
            if left <= 0:
                break
            if not begin <= self._at < end:
                continue
            n, skip = min(left, end - self._at), self._at - begin
            if isinstance(piece, bytes):
                data = piece[skip : skip + n]
            else:
                self._stream.seek(piece[0] + skip)
                data = self._stream.read(n)
            found.append(data)
            self._at += len(data)
            left -= len(data)
            if len(data) < n:  # the file has become shorter
                break
        return b"".join(found)
